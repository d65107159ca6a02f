"""The pairs of the benchmark: what each is, which linear stage it needs, its truth and its scores.

Every case is built from the data folder (default: ``shared/data`` beside the checkout) into uncompressed files that we and
the peers read alike; nothing of it is stored in the repository. Label maps, landmarks and known transforms are for scoring
only. ``python cases.py ID FOLDER [DATA]`` builds one case.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
POINTS = 5000


@dataclass(frozen=True)
class Case:
    """One pair. ``stage`` is the linear stage that it needs ('none' where the headers align it already); ``deformable``
    False asks for that stage alone; ``contrast`` 'same' or 'different'; ``region`` says where similarity, folds and SDlogJ
    are taken; ``method`` is ours where none is asked for. A pair that needs a linear stage is left to each tool's own start."""

    id: str
    title: str
    dim: int
    folder: str
    stage: str
    truth: str
    region: str
    build: Callable
    deformable: bool = True
    contrast: str = "same"
    method: str = "instance-optimisation:default"


def brain_pair(folder, swapped=False, shade=0.0):
    def build(data, out):
        sides = ("moving", "fixed") if swapped else ("fixed", "moving")
        images = [image(data / folder / f"{s}.nii.gz") for s in sides]
        images[1] = shaded(images[1], shade)
        labels = [read(data / folder / f"{s}_seg.nii.gz") for s in sides]
        values = [int(v) for v in json.loads((data / "brain3d-pair-labelled" / "structures30.json").read_text("utf-8"))]
        return store(out, *images, mask=images[0] > 0, labels=labels, values=values)

    return build


def brain_copy(folder, shade=0.0):
    """A brain and its shaded copy, each with noise of its own: nothing is to be moved."""

    def build(data, out):
        import numpy as np

        clean = image(data / folder / "fixed.nii.gz")
        rng, brain = np.random.default_rng(3), array(clean) > 0
        noisy = [like(x, array(x) + brain * rng.normal(0, 4, brain.shape)) for x in (clean, shaded(clean, shade))]
        return store(out, *noisy, mask=clean > 0, truth=lambda p: p)

    return build


def slices2d(data, out):
    fixed, moving = (image(data / "brain2d" / f"{n}.png") for n in ("r16", "r64"))
    return store(out, fixed, moving, mask=foreground(fixed))


def mni_rigid(data, out):
    import numpy as np

    folder = data / "brain3d-mni-tissues"
    matrix = np.array(json.loads((folder / "wm_perturbed_groundtruth.json").read_text("utf-8"))["G_LPS"])
    mask = read(folder / "brain_mask.nii.gz") > 0
    return store(out, image(folder / "t1.nii.gz"), image(folder / "wm_perturbed.nii.gz"), mask=mask,
                 truth=lambda p: p @ matrix[:3, :3].T + matrix[:3, 3])


def multimodal(moving):
    def build(data, out):
        folder = data / "multimodal-same-subject"
        fixed, other = image(folder / "t1.nii.gz"), image(folder / f"{moving}.nii.gz")
        return store(out, fixed, other, mask=foreground(fixed, 0.1))

    return build


def spinal_cord(data, out):
    folder = data / "spinal-cord-multicontrast"
    fixed, moving = image(folder / "t2.nii.gz"), image(folder / "t1.nii.gz")
    labels = [read(folder / f"{n}_seg.nii.gz") for n in ("t2", "t1")]
    return store(out, fixed, moving, mask=overlap(fixed, moving), labels=labels, values=[1])


def tumour_followup(data, out):
    fixed, moving = (image(data / "brain-tumour-followup" / f"time{k}.nii.gz") for k in (1, 2))
    return store(out, fixed, moving, mask=foreground(fixed, 0.1))


def lung_synthetic(data, out):
    """fixed(p) = moving(T(p)) with a closed-form diffeomorphism T over the field of view; noise of 20 HU in both."""
    import numpy as np
    import SimpleITK as sitk

    sys.path[:0] = [str(ROOT / "Testing"), str(ROOT / "DeepRegistration")]
    import torch
    from truths import random_diffeomorphism

    folder = data / "lung-ct-left"
    moving = image(folder / "followup_registered_to_baseline.nii.gz")
    lattice = grid_of(moving)
    map_ = random_diffeomorphism(7, lattice, angle=0.2, rate=0.3)

    def truth(points):
        return map_(torch.as_tensor(points.reshape(1, -1, 3))).numpy().reshape(points.shape)

    points = lattice.points()
    field = sitk.GetImageFromArray(truth(points) - points, isVector=True)
    field.CopyInformation(moving)
    transform = sitk.DisplacementFieldTransform(field)
    fixed = sitk.Resample(moving, moving, transform, sitk.sitkBSpline, -1000.0)
    mask = sitk.Resample(read(folder / "baseline_mask.nii.gz"), moving, transform, sitk.sitkNearestNeighbor, 0) > 0
    rng = np.random.default_rng(7)
    noisy = []
    for clean in (fixed, moving):
        values = array(clean)
        noisy.append(like(clean, values + rng.normal(0, 20, values.shape)))
    return store(out, *noisy, mask=mask, truth=truth)


def mouse_brain(data, out):
    fixed, moving = (image(data / "mouse-brain" / f"{n}.nii.gz") for n in ("standard_space", "sample"))
    return store(out, fixed, moving, mask=foreground(fixed, 0.05))


def histology(data, out):
    """Grey images in pixels; the landmark rows correspond."""
    import numpy as np
    import SimpleITK as sitk

    folder, images, points = data / "histology-pair", [], []
    for side in ("fixed", "moving"):
        colour = sitk.GetArrayFromImage(read(folder / f"{side}.jpg")).astype(np.float32)
        images.append(sitk.GetImageFromArray(255 - colour @ np.array([0.299, 0.587, 0.114], np.float32)))
        points.append(np.loadtxt(folder / f"landmarks_{side}.csv", delimiter=",", skiprows=1)[:, 1:3])
    return store(out, *images, mask=foreground(images[0], 0.15), points=points)


def slab(fixed, moving):
    def build(data, out):
        folder = data / "cohort3d-slab-labelled"
        images = [image(folder / f"subj{n}.nii.gz") for n in (fixed, moving)]
        labels = [read(folder / f"subj{n}_seg.nii.gz") for n in (fixed, moving)]
        return store(out, *images, mask=labels[0] > 0, labels=labels, values=[1, 2, 3, 4])

    return build


def prostate(data, out):
    """The high-b image of the same scan; its header is moved by a known rigid map (8 degrees, 9 mm)."""
    import numpy as np
    import SimpleITK as sitk

    folder = data / "prostate-adc-hbv"
    fixed, moving = image(folder / "adc.nii.gz"), image(folder / "hbv.nii.gz")
    centre = np.array(fixed.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in fixed.GetSize()]))
    rigid = sitk.Euler3DTransform(centre.tolist(), *np.deg2rad([4.0, -3.0, 6.0]).tolist(), [6.0, -5.0, 4.0])
    matrix = np.array(rigid.GetMatrix()).reshape(3, 3)
    moving.SetDirection((matrix @ np.array(moving.GetDirection()).reshape(3, 3)).ravel().tolist())
    moving.SetOrigin(rigid.TransformPoint(moving.GetOrigin()))
    return store(out, fixed, moving, mask=foreground(fixed, 0.1),
                 truth=lambda p: (p - centre) @ matrix.T + centre + np.array(rigid.GetTranslation()))


def tumour2d(data, out):
    folder = data / "brain-tumour2d"
    fixed, moving = image(folder / "brats_00090.png"), image(folder / "sri24.png")
    return store(out, fixed, moving, mask=foreground(fixed) & (read(folder / "brats_00090_seg.png") == 0))


BRAIN30 = "30 structures, FreeSurfer"
CASES = {c.id: c for c in (
    Case("brain3d-pair-labelled", "two T1 brains, 1 mm", 3, "brain3d-pair-labelled", "none", BRAIN30, "fixed brain", brain_pair("brain3d-pair-labelled")),
    Case("brain3d-pair-labelled-swapped", "the same pair, other direction", 3, "brain3d-pair-labelled", "none", BRAIN30, "fixed brain",
         brain_pair("brain3d-pair-labelled", True)),
    Case("brain3d-pair-2mm", "the same pair at 2 mm", 3, "brain3d-pair-2mm", "none", BRAIN30, "fixed brain", brain_pair("brain3d-pair-2mm")),
    Case("brain3d-pair-2mm-shaded", "the same pair at 2 mm, moving image shaded by e^-0.5 to e^0.5", 3, "brain3d-pair-2mm", "none", BRAIN30, "fixed brain",
         brain_pair("brain3d-pair-2mm", shade=0.5)),
    Case("brain3d-copy-2mm", "a brain and its copy with other noise", 3, "brain3d-pair-2mm", "none", "nothing is to be moved", "fixed brain",
         brain_copy("brain3d-pair-2mm")),
    Case("brain3d-copy-2mm-shaded", "a brain and its copy, shaded by e^-0.5 to e^0.5, with other noise", 3, "brain3d-pair-2mm", "none",
         "nothing is to be moved", "fixed brain", brain_copy("brain3d-pair-2mm", shade=0.5)),
    Case("brain2d", "T1 slices of two people, far apart", 2, "brain2d", "affine", "none", "fixed head", slices2d,
         method="instance-optimisation:2d"),
    Case("brain3d-mni-tissues", "T1 template and a moved white-matter map", 3, "brain3d-mni-tissues", "rigid", "known rigid map", "fixed brain", mni_rigid,
         deformable=False, contrast="different", method="affine:rigid"),
    Case("multimodal-t1-pd", "T1 and proton density of one head", 3, "multimodal-same-subject", "rigid", "none", "fixed head", multimodal("pd"),
         deformable=False, contrast="different", method="affine:rigid"),
    Case("multimodal-t1-mra", "T1 and MR angiography of one head", 3, "multimodal-same-subject", "rigid", "none", "fixed head", multimodal("mra"),
         deformable=False, contrast="different", method="affine:rigid"),
    Case("spinal-cord", "T2 and T1 of one neck", 3, "spinal-cord-multicontrast", "none", "cord", "common field of view", spinal_cord, contrast="different"),
    Case("brain-tumour-followup", "T1 with tumour, two dates, 5 mm", 3, "brain-tumour-followup", "affine", "none", "fixed head", tumour_followup),
    Case("lung-ct-left", "lung CT and its copy under a known diffeomorphism", 3, "lung-ct-left", "none", "known map at 5000 points", "fixed lung",
         lung_synthetic, method="instance-optimisation:lung-ct"),
    Case("mouse-brain", "mouse brain in sample and in atlas space", 3, "mouse-brain", "affine", "none", "fixed brain", mouse_brain),
    Case("histology-pair", "two stains of one section", 2, "histology-pair", "affine", "78 landmarks, pixels", "fixed tissue", histology, contrast="different",
         method="instance-optimisation:histology"),
    Case("cohort3d-slab-01-22", "axial slabs of two children", 3, "cohort3d-slab-labelled", "none", "4 tissues", "fixed tissues", slab("01", "22")),
    Case("cohort3d-slab-10-34", "axial slabs of two children", 3, "cohort3d-slab-labelled", "none", "4 tissues", "fixed tissues", slab("10", "34")),
    Case("prostate-adc-hbv", "diffusion maps of one prostate, header moved", 3, "prostate-adc-hbv", "rigid", "known rigid map", "fixed body", prostate,
         deformable=False, contrast="different", method="affine:rigid"),
    Case("brain-tumour2d", "slice with a tumour and a healthy slice", 2, "brain-tumour2d", "none", "none", "fixed head without tumour", tumour2d,
         method="instance-optimisation:2d"),
)}


def read(path):
    import SimpleITK as sitk

    return sitk.ReadImage(str(path))


def image(path):
    import SimpleITK as sitk

    return sitk.ReadImage(str(path), sitk.sitkFloat32)


def array(image):
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(image)


def like(image, values):
    """An image of ``values`` (z, y, x) in the place of another one."""
    import numpy as np
    import SimpleITK as sitk

    made = sitk.GetImageFromArray(values.astype(np.float32))
    made.CopyInformation(image)
    return made


def shaded(image, strength):
    """The image times e^(strength w), w a smooth wave between -1 and 1 over the field of view, as coils and bias fields leave it."""
    import numpy as np

    values = array(image)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in values.shape), indexing="ij")
    return like(image, values * np.exp(strength * np.mean([np.cos(np.pi * (x + k / 3)) for k, x in enumerate(axes)], 0)))


def foreground(image, share=0.02):
    """Voxels above a share of the 99th percentile, closed and filled."""
    import numpy as np
    import SimpleITK as sitk

    mask = image > share * float(np.percentile(sitk.GetArrayViewFromImage(image), 99))
    return sitk.BinaryFillhole(sitk.BinaryMorphologicalClosing(mask, [2] * image.GetDimension()))


def overlap(fixed, moving):
    """Voxels of the fixed image inside the moving field of view, by the headers."""
    import SimpleITK as sitk

    return sitk.Resample(moving * 0 + 1, fixed, sitk.Transform(), sitk.sitkNearestNeighbor, 0.0) > 0


def grid_of(image):
    """The library's Grid of a SimpleITK image."""
    import numpy as np
    from DeepRegistrationLib.geometry import Grid

    dim = image.GetDimension()
    return Grid.from_parts(image.GetSize()[::-1], image.GetSpacing(), image.GetOrigin(), np.array(image.GetDirection()).reshape(dim, dim))


def store(out, fixed, moving, mask, labels=None, values=(), points=None, truth=None) -> dict:
    """Write the case's files and its manifest. ``truth`` maps fixed points (N, dim) mm; ``points`` are (fixed, moving) rows."""
    import numpy as np
    import SimpleITK as sitk

    out.mkdir(parents=True, exist_ok=True)
    suffix = "nii" if fixed.GetDimension() == 3 else "mha"
    manifest = {"fixed": f"fixed.{suffix}", "moving": f"moving.{suffix}", "mask": "mask.mha"}
    sitk.WriteImage(fixed, str(out / manifest["fixed"]))
    sitk.WriteImage(moving, str(out / manifest["moving"]))
    sitk.WriteImage(mask, str(out / manifest["mask"]))
    if labels:
        manifest.update(labels=["fixed_labels.mha", "moving_labels.mha"], values=list(values))
        for map_, name in zip(labels, manifest["labels"]):
            sitk.WriteImage(sitk.Cast(map_, sitk.sitkInt16), str(out / name))
    if truth is not None:
        index = np.argwhere(sitk.GetArrayViewFromImage(mask) > 0)[:, ::-1]
        index = np.random.default_rng(0).permutation(index)[:POINTS].tolist()
        fixed_points = np.array([fixed.TransformIndexToPhysicalPoint(i) for i in index])
        points = (fixed_points, truth(fixed_points))
    if points is not None:
        manifest["points"] = "points.npy"
        np.save(out / manifest["points"], np.stack(points))
    (out / "case.json").write_text(json.dumps(manifest), "utf-8")
    return manifest


if __name__ == "__main__":
    CASES[sys.argv[1]].build(Path(sys.argv[3]) if len(sys.argv) > 3 else DATA, Path(sys.argv[2]))
