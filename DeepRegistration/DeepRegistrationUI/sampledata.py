"""Sample data of this extension in the module Sample Data: two phantoms that are made on the spot, and a public pair that is downloaded.

``register`` is called once the application has started. The phantoms need neither network nor PyTorch; their nodes are a fixed and a
moving volume, structures and landmarks of both, the moving head in a second contrast and the true transform.
"""

from __future__ import annotations

from pathlib import Path

from slicer.i18n import tr as _

CATEGORY = "DeepRegistration"
ICONS = Path(__file__).resolve().parents[1] / "Resources" / "Icons"
DOWNLOADS = "https://github.com/Slicer/SlicerTestingData/releases/download/SHA256/"
TUMOR_PAIR = {"MRBrainTumor1": ("RegLib_C01_1.nrrd", "998cb522173839c78657f4bc0ea907cea09fd04e44601f17c82ea27927937b95"),
              "MRBrainTumor2": ("RegLib_C01_2.nrrd", "1a64f3f422eb3d1c9b093d1a18da354b13bcf307907c66317e2463ee530b7a97")}
"""Node name -> file name and SHA256 of the two visits of one patient that the application offers, too."""


def register() -> None:
    """Offer the samples in the module Sample Data, where the application has it."""
    try:
        from SampleData import SampleDataLogic
    except ImportError:
        return
    if hasattr(SampleDataLogic, "registerCustomSampleDataCategory"):  # since 5.12
        SampleDataLogic.registerCustomSampleDataCategory(CATEGORY, _("Deep Registration"))
    for name, picture, make in (("Phantom head pair", "DeepRegistrationPhantomHead.png", load_head_pair),
                                ("Phantom slice pair", "DeepRegistrationPhantomSlice.png", load_slice_pair)):
        SampleDataLogic.registerCustomSampleDataSource(
            category=CATEGORY, sampleName=name, uris=[], fileNames=[], nodeNames=[], thumbnailFileName=str(ICONS / picture), customDownloader=make)
    files, sums = zip(*TUMOR_PAIR.values())
    SampleDataLogic.registerCustomSampleDataSource(
        category=CATEGORY, sampleName="Brain tumor pair", uris=[DOWNLOADS + value for value in sums], fileNames=list(files),
        nodeNames=list(TUMOR_PAIR), thumbnailFileName=str(ICONS / "DeepRegistrationTumorPair.png"),
        checksums=[f"SHA256:{value}" for value in sums], loadFileTypes=["VolumeFile"] * len(files))


def load_head_pair(source=None) -> list:
    """Make the phantom of a head and put it into the scene; returns its nodes, the fixed and the moving volume first."""
    from . import phantoms

    return _into_the_scene(phantoms.head_pair(), second_contrast=True)


def load_slice_pair(source=None) -> list:
    """The same with one slice of the head."""
    from . import phantoms

    return _into_the_scene(phantoms.slice_pair(), second_contrast=False)


def _into_the_scene(pair, second_contrast: bool) -> list:
    """Nodes of a phantom; the views show the fixed volume with the moving one over it, segmentations and landmarks of the fixed one."""
    import slicer

    from . import mrml

    scene = slicer.mrmlScene
    with slicer.util.WaitCursor():
        volumes = [mrml.volume_node(scene, value) for value in (pair.fixed, pair.moving)]
        volumes += [mrml.volume_node(scene, pair.moving_t2)] if second_contrast else []
        structures = [mrml.segmentation_node(scene, value) for value in (pair.fixed_labels, pair.moving_labels)]
        landmarks = [mrml.points_node(scene, value) for value in (pair.fixed_points, pair.moving_points)]
        name = pair.fixed.name.removesuffix("Fixed")
        truth = mrml.transform_node(scene, pair.truth.parts(pair.fixed.grid), f"{name}TrueTransform", volumes[0], volumes[1])
    for node in (structures[1], landmarks[1]):
        node.GetDisplayNode().SetVisibility(False)
    slicer.util.setSliceViewerLayers(background=volumes[0], foreground=volumes[1], foregroundOpacity=0.5, fit=True)
    return [*volumes, *structures, *landmarks, truth]
