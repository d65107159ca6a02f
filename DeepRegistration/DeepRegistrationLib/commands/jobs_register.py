"""The job 'register'; see jobs.py."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from ..errors import InputError
from .jobs_pair import Frames, image_of, pair_of
from .output import missing_remark
from .register import plain, require_overlap, with_start

OUTPUTS = ("inverse", "warped", "log_jacobian", "folds")
EDGE = 48
"""Nodes of the lattice of previews along the longest edge, where no spacing is asked for."""


def register(request: dict, monitor, folder: Path) -> dict:
    """Run the method and make what was asked for. Raises InputError, ConvergenceError or Cancelled."""
    from ..method import find
    from ..runtime import Runtime

    wanted = tuple(request.get("outputs", OUTPUTS))
    for name in wanted:
        if name not in OUTPUTS:
            raise InputError(f"the output '{name}' was asked for; choose from {', '.join(OUTPUTS)}")
    method = find(request.get("method", "instance-optimisation"), request.get("values") or {})
    monitor.progress(0.0, "preparing")
    problem, frames = pair_of(request)
    monitor.check()
    runtime = Runtime(request.get("device", "auto"), int(request.get("seed", 0)), int(request.get("threads", 0)))
    runtime.torch_device()
    small = coarsened(problem, float(request.get("coarsen", 1.0)))
    small = started(small, request.get("initial"), frames, replace(runtime, monitor=monitor.part(0.0, 0.1, "start")))
    prepare_previews(monitor, request, frames, folder)
    result = method.run(small, replace(runtime, monitor=monitor.part(0.1 if request.get("initial") in ("global", "affine") else 0.0, 0.9)))
    monitor.sketch = None
    with runtime.active():
        made, scores = outputs_of(result, problem, frames, wanted, monitor)
    if "warped" in made:
        made["warped"] = of_kind(made["warped"], request["moving"].array.dtype)
    stated = plain({**result.provenance, "overlap": scores["overlap"], "preset": request.get("method", "").partition(":")[2] or "default",
                    "missing": [*filter(None, (missing_remark(image_of(request[side])) for side in ("fixed", "moving")))]})
    return {**made, "scalars": plain(result.scalars), "history": plain(result.history), "provenance": stated,
            "previews": {"count": monitor.count, "share_of_time": monitor.spent / max(result.provenance["wall_seconds"], 1e-9)}}


def coarsened(problem, factor: float):
    """The request with images of ``factor`` times their voxel size; labels and points stay."""
    if not (math.isfinite(factor) and factor >= 1):
        raise InputError(f"images {factor} times as coarse were asked for; give a number of at least 1")
    if factor == 1:
        return problem
    small = {side: getattr(problem, side).smoothed_to(getattr(problem, side).grid.spacing * factor) for side in ("fixed", "moving")}
    return replace(problem, **small)


def started(problem, initial, frames: Frames, runtime):
    """``problem`` with its initial transform: parts, or a name of a start as on the command line."""
    from ..transforms.parts import from_parts

    if initial is None or isinstance(initial, str):
        return with_start(problem, initial or None, runtime)
    transform = frames.flattened(from_parts(initial))
    require_overlap(problem, transform, "transform")
    return replace(problem, initial=transform)


def prepare_previews(monitor, request: dict, frames: Frames, folder: Path) -> None:
    """Let the monitor make previews on the lattice that the request asks for."""
    from ..exchange import write
    from ..geometry import Grid
    from ..transforms.parts import split

    wanted = request.get("preview")
    if not wanted:
        return
    lattice = wanted.get("lattice")
    if lattice is None:
        spacing = wanted.get("spacing_mm") or float(frames.fixed_grid.extent.max()) / EDGE
        lattice = frames.fixed_grid.resample([max(float(spacing), s) for s in frames.fixed_grid.spacing])
    elif not isinstance(lattice, Grid):
        lattice = Grid(tuple(lattice["shape"]), lattice["affine"])
    flat = lattice if frames.dim == 3 else frames.fixed_plane.flat(lattice)
    monitor.interval, monitor.lattice = float(wanted.get("interval_s", 0.1)), write(folder, "preview", lattice)
    monitor.sketch = lambda transform: sketch(*split(transform, flat), flat, lattice, frames)


def sketch(affine, dense, flat, lattice, frames: Frames):
    """(matrix (4, 4) as a list, (z, y, x, 4) float32: u in mm and log det of the map) on ``lattice``; ``flat`` is the same in the problem's
    dimension."""
    import numpy as np
    import torch

    from ..ops import fields

    with torch.no_grad():
        u = torch.zeros(1, flat.dim, *flat.shape) if dense is None else dense.to("cpu").field(flat)
        determinant = fields.jacobian_determinant(u, flat)[0, 0] * float(torch.linalg.det(affine.matrix[0, :-1, :-1].detach().cpu().double()))
        log = determinant.clamp_min(1e-6).log().numpy()
    vectors = np.moveaxis(u[0].numpy(), 0, -1)
    if frames.dim == 2:
        vectors = vectors @ frames.fixed_plane.frame[:3, :2].T
    values = np.concatenate([vectors, log[..., None]], -1).astype(np.float32).reshape(*lattice.shape, 4)
    return frames.lifted(affine).numpy().tolist(), values


def outputs_of(result, problem, frames: Frames, wanted, monitor) -> tuple[dict, dict]:
    """The entries 'transform', 'inverse', 'warped', 'log_jacobian', 'folds' and 'metrics' of a Result, and its scores (see ``summary.summarise``);
    ``problem`` has the full images.

    All figures and images come from the transform as it is handed over.
    """
    import torch

    from ..evaluate.summary import summarise
    from ..transforms.parts import split, to_parts
    from .jobs_measure import rows_of

    with torch.no_grad():
        affine, dense = split(result.transform.to("cpu"), result.problem.fixed.grid)
        transform = affine if dense is None else affine @ dense.with_zero_ring()
        made: dict = {"transform": to_parts(frames.lifted(affine)) if dense is None else to_parts(frames.lifted(transform))}
        monitor.progress(0.9, "inverse")
        monitor.check()
        inverse = result.inverse if "inverse" in wanted else None
        if inverse is not None:
            made["inverse"] = to_parts(frames.lifted(inverse.to("cpu"), backward=True))
        monitor.progress(0.94, "scores")
        monitor.check()
        summary = summarise(transform, problem.fixed, problem.moving)
        monitor.progress(0.98, "results")
        monitor.check()
    made["metrics"] = rows_of(summary.scores, problem, transform, inverse)
    if "warped" in wanted:
        made["warped"] = frames.volume(summary.warped.data, "warped")
    log_jacobian = frames.volume(summary.log_jacobian.data, "log-Jacobian")
    if "log_jacobian" in wanted:
        made["log_jacobian"] = log_jacobian
    if "folds" in wanted:
        made["folds"] = folds_of(log_jacobian)
    return made, summary.scores


def folds_of(log_jacobian):
    """LabelMap of the voxels (1) where the map folds: log-determinants on the floor of ``Transform.log_jacobian``."""
    import numpy as np

    from ..exchange import LabelMap

    return LabelMap((log_jacobian.array <= math.log(1e-6) + 1e-3).astype(np.uint8), log_jacobian.grid, ((1, "folds"),), "folds")


def of_kind(volume, kind):
    """The Volume with values of the type ``kind`` where that is a type of whole numbers: rounded, and kept in its range."""
    import numpy as np

    if kind.kind not in "iu":
        return volume
    limits = np.iinfo(kind)
    return replace(volume, array=np.rint(volume.array).clip(limits.min, limits.max).astype(kind))
