"""Scores one registration; the same path for every tool. ``python score.py CASE_FOLDER RESULT_FOLDER`` prints JSON.

RESULT_FOLDER holds ``transforms.json`` (files in the order in which a fixed point is carried) or our ``transform.h5``;
without either the identity is scored. Files are read by SimpleITK. Labels are warped by nearest neighbour, the Jacobian is
taken by central differences on the fixed grid inside the case's region, images are sampled linearly.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "DeepRegistration"))
from cases import grid_of  # noqa: E402
from DeepRegistrationLib.evaluate import metrics  # noqa: E402
from DeepRegistrationLib.image import Labels  # noqa: E402
from DeepRegistrationLib.transforms import Displacement  # noqa: E402


def load(folder: Path, dim: int) -> sitk.Transform:
    """The map fixed mm -> moving mm as one SimpleITK transform."""
    record = folder / "transforms.json"
    names = json.loads(record.read_text("utf-8"))["transforms"] if record.exists() else ["transform.h5"] if (folder / "transform.h5").exists() else []
    chain = sitk.CompositeTransform(dim)
    for name in reversed(names):  # the transform added last is applied first
        chain.AddTransform(_one(folder / name))
    return chain if names else sitk.Transform(dim, sitk.sitkIdentity)


def _one(path: Path) -> sitk.Transform:
    if path.name.endswith((".mha", ".nii", ".nii.gz", ".nrrd")):
        return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
    return sitk.ReadTransform(str(path))


def score(case: Path, result: Path) -> dict:
    """All figures of one result on one case."""
    manifest = json.loads((case / "case.json").read_text("utf-8"))
    fixed, moving = (sitk.ReadImage(str(case / manifest[side]), sitk.sitkFloat32) for side in ("fixed", "moving"))
    transform = load(result, fixed.GetDimension())
    grid, mask = grid_of(fixed), sitk.GetArrayFromImage(sitk.ReadImage(str(case / manifest["mask"]))) > 0
    field = sitk.TransformToDisplacementField(transform, sitk.sitkVectorFloat64, fixed.GetSize(), fixed.GetOrigin(), fixed.GetSpacing(), fixed.GetDirection())
    displacement = sitk.GetArrayFromImage(field)
    warp = sitk.DisplacementFieldTransform(field)
    low = float(sitk.GetArrayViewFromImage(moving).min())
    warped = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, warp, sitk.sitkLinear, low))
    pair = (sitk.GetArrayViewFromImage(fixed), warped, mask)
    dense = Displacement(torch.as_tensor(np.moveaxis(displacement, -1, 0)[None]).float(), grid)
    regular = metrics.jacobian_scores(dense, grid, torch.as_tensor(mask)[None, None])
    out = {"ncc": metrics.correlation(*pair), "nmi": metrics.normalised_mutual_information(*pair), "folds_percent": 100 * regular["folds"],
           "folds_count": regular["folds_count"], "sdlogj": regular["sdlogj"], "sdlogj_learn2reg": regular["sdlogj_learn2reg"],
           "displacement_mean": float(np.linalg.norm(displacement, axis=-1)[mask].mean())}
    if "labels" in manifest:
        out.update(_overlap(case, manifest, warp))
    if "points" in manifest:
        start, end = np.load(case / manifest["points"])
        error = np.linalg.norm([transform.TransformPoint(p) for p in start.tolist()] - end, axis=1)
        out.update(tre_mean=float(error.mean()), tre_median=float(np.median(error)), tre_p95=float(np.percentile(error, 95)))
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in out.items()}


def _overlap(case, manifest, warp) -> dict:
    fixed, moving = (sitk.ReadImage(str(case / name)) for name in manifest["labels"])
    maps = [_labels(x) for x in (fixed, sitk.Resample(moving, fixed, warp, sitk.sitkNearestNeighbor, 0))]
    dice, hd95 = metrics.dice_per_label(*maps, manifest["values"]), metrics.hd95_per_label(*maps, manifest["values"])
    return {"dice": float(np.nanmean(list(dice.values()))), "hd95": float(np.nanmean(list(hd95.values()))),
            "dice_by_label": {str(k): round(v, 5) for k, v in dice.items()}}


def _labels(image):
    return Labels(torch.as_tensor(sitk.GetArrayFromImage(image))[None, None], grid_of(image))


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(score(Path(sys.argv[1]), Path(sys.argv[2]))) + "\n")
