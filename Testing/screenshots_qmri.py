"""Pictures of the module QMRIRegister for the tutorial, of real runs: radial slices of a generated hip, and repeated noisy scans of the phantom head.

    python Testing/screenshots_qmri.py [--folder DIR]

writes ``panel-qmri*.png``, ``view-qmri*.png`` and ``panel-motion.png`` into DIR (default: Resources/Screenshots); it takes about a minute. The headers of
the slices are wrong by 15 degrees and 8 mm, two slices are exchanged, and one is mirrored. The bone of the hip is learned from strokes on two slices.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from studio import Studio, options

ORDER, MIRRORED = [0, 2, 1, 3, 4, 5], 4
SCANS, SPACING = 6, 4.0


def hip():
    """(Volumes of the slices, Volume, strokes on the slices, femur and cartilage of the volume) of a generated hip."""
    import truths_hip

    from DeepRegistrationLib.exchange import LabelMap, Volume

    flips = [(k == MIRRORED, False) for k in range(6)]
    whole = truths_hip.hip_volume(truths_hip.Hip(3), truths_hip.volume_grid(72))
    known = truths_hip.known_set(3, 15.0, 8.0, hip=truths_hip.Hip(3), volume=whole, size=72, order=ORDER, flips=flips, segments=True).problem
    slices = [Volume(image.data[0, 0].numpy(), image.grid, f"T2 {image.name}") for image in known.slices]
    marks = [truths_hip.strokes_on(segment) for segment in known.segments]
    strokes = [LabelMap(m.data[0, 0].numpy().astype(np.uint8), m.grid, ((1, "bone"), (2, "other")), "strokes") for m in marks]
    labels = truths_hip.Hip(3).labels(whole.grid.points())
    femur, cartilage = (LabelMap((labels == value).astype(np.uint8), whole.grid, ((1, name),), name)
                        for value, name in ((truths_hip.FEMUR, "Femur"), (truths_hip.CARTILAGE_LABEL, "Cartilage")))
    return slices, Volume(whole.data[0, 0].numpy(), whole.grid, "Hip"), strokes, femur, cartilage


def head(number: int):
    """Volume of a scan of the phantom head that has moved, with Rician noise."""
    from DeepRegistrationLib.exchange import Volume
    from DeepRegistrationLib.geometry import Grid
    from DeepRegistrationUI import phantoms

    draw = np.random.default_rng(number)
    shape = (30, 48, 40)
    grid = Grid.from_parts(shape, SPACING, -(np.array(shape[::-1]) - 1) * SPACING / 2)
    angle, shift = np.deg2rad(draw.normal(0, 1.5)), draw.normal(0, 1.5, 3)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    values = phantoms.anatomy(grid.points() @ turn.T + shift)[1]
    sigma = 0.12 * values.max()
    return Volume(np.hypot(values + draw.normal(0, sigma, shape), draw.normal(0, sigma, shape)).astype(np.float32), grid, f"scan {number + 1}")


def load_hip(scene, node) -> list:
    """The nodes of the slices; the volume, strokes on two slices and segmentations of the volume are in the scene and chosen in the parameter ``node``."""
    from DeepRegistrationUI import mrml

    slices, volume, strokes, femur, cartilage = hip()
    node.qmriVolume = mrml.volume_node(scene, volume)
    nodes = [mrml.volume_node(scene, value) for value in slices]
    for k in (0, 3):
        mrml.segmentation_node(scene, strokes[k]).SetReferenceImageGeometryParameterFromVolumeNode(nodes[k])
    mrml.segmentation_node(scene, femur).SetReferenceImageGeometryParameterFromVolumeNode(node.qmriVolume)
    node.qmriSegments, node.qmriSurface = True, mrml.segmentation_node(scene, cartilage)
    return nodes


def show_only(name: str) -> None:
    """Show the segmentation of a name and hide all others."""
    import slicer

    for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        node.GetDisplayNode().SetVisibility(node.GetName() == name)


def main(arguments: list[str]) -> None:
    studio = Studio("QMRIRegister", options(__doc__).parse_args(arguments).folder, "slices")
    slices(studio)
    motion(studio)
    studio.holder.self().cleanup()


def slices(studio: Studio) -> None:
    """Bones from strokes, the search, and its result."""
    from DeepRegistrationUI import views

    page = studio.page
    nodes = load_hip(studio.slicer.mrmlScene, studio.node)
    studio.press(page.ui.qmriBonesButton, page)
    studio.picture("qmri-bones")
    show_only("Bone on T2 slice 2")
    views.show_layers(nodes[1], None, rotate=True)
    studio.view("qmri-bone")
    show_only("")
    page.ui.qmriButton.click()
    studio.until(lambda: not page.running or page.ui.qmriCheckTable.visible)
    studio.picture("qmri")
    studio.until(lambda: not page.running)
    studio.settle()
    page.ui.qmriCheckTable.selectRow(1)
    studio.picture("qmri-done")
    studio.view("qmri")
    sys.stderr.write(f"{page.ui.qmriAnswerLabel.text}\n{page.ui.qmriStatusLabel.text}\n")


def motion(studio: Studio) -> None:
    """Scans of a sequence and how they moved."""
    from DeepRegistrationUI import mrml

    studio.panel.open("motion")
    page, node, scene = studio.panel.page("motion"), studio.node, studio.slicer.mrmlScene
    series = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "Repeated scans")
    for number in range(SCANS):
        scan = mrml.volume_node(scene, head(number))
        series.SetDataNodeAtValue(scan, str(number))
        scene.RemoveNode(scan)
    node.motionSource, node.motionSeries, node.motionValues = "series", series, json.dumps({"translation": 2.0, "rotation": 0.04})
    studio.press(page.ui.motionRunButton, page)
    studio.picture("motion")
    sys.stderr.write(f"{page.ui.motionStatusLabel.text}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
