"""What every adapter shares: the request, the linear start for tools without one, and the way a transform is handed back.

An adapter is a script that runs alone in the environment of its tool, from one process start to the written transform:

    python run_X.py --fixed F --moving M --out DIR --stage none|rigid|affine --contrast same|different --threads N --setting S

It writes its transform files into DIR, as the tool writes them, and ``transforms.json``: their names in the order in which
a fixed point is carried to the moving image (ITK's convention, LPS mm). It knows nothing of the library under test.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path


@dataclass
class Request:
    """One registration. ``stage`` is the linear stage that the pair needs; ``deformable`` False asks for that stage alone."""

    fixed: Path
    moving: Path
    out: Path
    stage: str
    deformable: bool
    contrast: str
    threads: int
    setting: str


def main(register, *packages: str) -> None:
    """Parse the command line, call ``register(request) -> list of transform files`` and write what the driver reads."""
    parser = argparse.ArgumentParser()
    for name in ("fixed", "moving", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--stage", choices=("none", "rigid", "affine"), required=True)
    parser.add_argument("--linear-only", action="store_true")
    parser.add_argument("--contrast", choices=("same", "different"), required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--setting", default="")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    files = register(Request(a.fixed, a.moving, a.out, a.stage, not a.linear_only, a.contrast, a.threads, a.setting))
    record = {"transforms": [Path(f).name for f in files], "seconds": round(time.perf_counter() - began, 3),
              "versions": {p: version(p) for p in packages}}
    (a.out / "transforms.json").write_text(json.dumps(record), "utf-8")


def read(path):
    """An image as float32 SimpleITK image."""
    import SimpleITK as sitk

    return sitk.ReadImage(str(path), sitk.sitkFloat32)


def linear_start(fixed, moving, stage: str):
    """SimpleITK's rigid or affine map by Mattes mutual information, for tools that bring no linear stage of their own.

    Centres of the two images, then rigid and, where asked for, affine; shrink 4, 2, 1 with 10 % random samples, seeded.
    """
    import SimpleITK as sitk

    dim = fixed.GetDimension()
    rigid = sitk.Euler3DTransform() if dim == 3 else sitk.Euler2DTransform()
    start = type(rigid)(sitk.CenteredTransformInitializer(fixed, moving, rigid, sitk.CenteredTransformInitializerFilter.GEOMETRY))
    found = _optimise(fixed, moving, start)
    if stage == "rigid":
        return found
    affine = sitk.AffineTransform(dim)
    affine.SetMatrix(found.GetMatrix())
    affine.SetTranslation(found.GetTranslation())
    affine.SetCenter(found.GetCenter())
    return _optimise(fixed, moving, affine)


def _optimise(fixed, moving, start):
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(50)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.1, 42)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsGradientDescentLineSearch(1.0, 100, 1e-6, 10)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    method.SetInitialTransform(start, inPlace=True)
    method.Execute(fixed, moving)
    return start


def on_fixed_grid(request):
    """(fixed, moving resampled by the linear stage, files of that stage): the input of tools that need one lattice."""
    import SimpleITK as sitk

    fixed, moving = read(request.fixed), read(request.moving)
    if request.stage == "none":
        start, files = sitk.Transform(fixed.GetDimension(), sitk.sitkIdentity), []
    else:
        start = linear_start(fixed, moving, request.stage)
        files = [request.out / "linear.tfm"]
        sitk.WriteTransform(start, str(files[0]))
    return fixed, sitk.Resample(moving, fixed, start, sitk.sitkLinear), files


def write_voxel_field(displacement, fixed, path):
    """``displacement`` (X, Y[, Z], dim) in voxels of ``fixed``, axes and components in x, y, z order -> ITK field, mm."""
    import numpy as np

    dim = fixed.GetDimension()
    matrix = np.array(fixed.GetDirection()).reshape(dim, dim) * np.array(fixed.GetSpacing())
    write_field(displacement @ matrix.T, fixed, path)


def write_field(displacement, fixed, path):
    """``displacement`` (X, Y[, Z], dim) in mm, LPS -> ITK field on the grid of ``fixed``."""
    import numpy as np
    import SimpleITK as sitk

    axes = tuple(reversed(range(fixed.GetDimension()))) + (fixed.GetDimension(),)
    image = sitk.GetImageFromArray(np.ascontiguousarray(np.transpose(displacement, axes), dtype=np.float32), isVector=True)
    image.CopyInformation(fixed)
    sitk.WriteImage(image, str(path))


def array(image):
    """SimpleITK image -> contiguous array with axes (x, y[, z])."""
    import numpy as np
    import SimpleITK as sitk

    return np.ascontiguousarray(sitk.GetArrayFromImage(image).T)
