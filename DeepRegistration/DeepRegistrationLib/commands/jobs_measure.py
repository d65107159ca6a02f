"""The jobs 'evaluate' and 'report', and the rows of figures of every registration; see jobs.py. Definitions: evaluate/metrics.py."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

from ..errors import InputError
from .jobs_pair import finished, pair_of
from .output import staged

POINTS_PER_EDGE = 64
"""Lattice on which mutual information and the error of the inverse are taken, along the longest edge."""
GUIDES = ("fixed", "moving", "fixed_mask", "moving_mask", "fixed_labels", "moving_labels", "fixed_points", "moving_points")


def evaluate(request: dict, monitor, folder: Path) -> dict:
    """The rows of figures of a transform."""
    import torch

    from ..evaluate.summary import summarise
    from ..runtime import Runtime

    monitor.progress(0.0, "reading")
    with Runtime("cpu", threads=int(request.get("threads", 0))).active(), torch.no_grad():
        problem, transform, inverse, _ = case_of(request)
        monitor.progress(0.2, "inverse")
        monitor.check()
        inverse = inverse or transform.inverse()
        monitor.progress(0.5, "scores")
        monitor.check()
        summary = summarise(transform, problem.fixed, problem.moving)
        monitor.check()
        return {"rows": rows_of(summary.scores, problem, transform, inverse)}


def case_of(request: dict):
    """(Pair, transform, inverse or None, provenance) in the problem's dimension of a request with ``parts`` or ``result``."""
    from ..transforms.parts import from_parts

    source, made = finished(request["result"]) if request.get("result") is not None else ({}, request)
    parts = made.get("transform") or request.get("parts")
    if not parts:
        raise InputError("the request has no transform; give 'parts', or the folder of a registration as 'result'")
    problem, frames = pair_of({name: request.get(name, source.get(name)) for name in GUIDES})
    inverse = made.get("inverse")
    backward = None if inverse is None else frames.flattened(from_parts(inverse), backward=True)
    return problem, frames.flattened(from_parts(parts)), backward, made


def rows_of(scores: dict, problem, transform, inverse) -> list[dict]:
    """Rows of the scores of ``summary.summarise``, of the guides of ``problem``, and of ``inverse`` where it is given."""
    similarity = scores["similarity"]
    rows = [row("Correlation", "", "-1 to 1", similarity["before"], similarity["after"]), *mutual_information(problem, transform)]
    rows += overlap_rows(problem, transform) + distance_rows(problem, transform)
    rows += [row("Folded voxels", "", "%", None, 100 * scores["folds"]), row("Folded voxels, count", "", "voxels", None, scores["folds_count"]),
             row("SDlogJ", "", "", None, scores["sdlogj"]),
             row("Jacobian determinant, smallest", "", "", None, scores["determinant_min"]),
             row("Jacobian determinant, largest", "", "", None, scores["determinant_max"])]
    return rows + ([] if inverse is None else inverse_rows(problem, transform, inverse))


def row(name: str, structure: str, unit: str, before, value) -> dict:
    """One row; figures that do not exist are None."""
    before, value = (None if v is None or not math.isfinite(v) else v for v in (before, value))
    return {"name": name, "structure": structure, "unit": unit, "before": before, "value": value}


def mutual_information(problem, transform) -> list[dict]:
    """Normalized mutual information of the first channels over the common field of view, on a coarse lattice."""
    import torch

    from ..evaluate.metrics import normalised_mutual_information
    from ..result import warp
    from ..transforms import Identity

    fixed = problem.fixed.smoothed_to(float(problem.fixed.grid.extent.max()) / POINTS_PER_EDGE)
    moving = problem.moving.smoothed_to(fixed.grid.spacing.min())
    values = []
    for each in (Identity(problem.dim), transform):
        warped = warp(moving, each, fixed.grid, fill=math.nan).data[:, :1]
        seen = torch.isfinite(warped)
        values.append(normalised_mutual_information(fixed.data[:, :1], warped, seen) if int(seen.sum()) > 1 else None)
    return [row("Normalized mutual information", "", "1 to 2", *values)]


def overlap_rows(problem, transform) -> list[dict]:
    """Dice and 95 % Hausdorff distance of every structure that both label maps hold, and their means."""
    from ..evaluate.metrics import dice_per_label, hd95_per_label
    from ..result import warp
    from ..transforms import Identity

    fixed, moving = problem.fixed_labels, problem.moving_labels
    if fixed is None:
        return []
    values, names = sorted(set(fixed.values()) & set(moving.values())), dict(fixed.names)
    if not values:
        raise InputError(f"'{fixed.name}' and '{moving.name}' have no label in common; give corresponding structures the same name or number")
    warped, rows = [warp(moving, each, fixed.grid) for each in (Identity(problem.dim), transform)], []
    for name, unit, score in (("Dice", "0 to 1", dice_per_label), ("HD95", "mm", hd95_per_label)):
        before, after = (score(fixed, each, values) for each in warped)
        rows += [row(name, names.get(v, f"label {v}"), unit, before[v], after[v]) for v in values]
        if len(values) > 1:
            rows.append(row(name, "mean", unit, *(sum(each.values()) / len(values) for each in (before, after))))
    return rows


def distance_rows(problem, transform) -> list[dict]:
    """Distance of corresponding landmarks."""
    import numpy as np

    from ..evaluate.metrics import tre
    from ..transforms import Identity

    if problem.fixed_points is None or len(problem.fixed_points) == 0:
        return []
    before, after = (tre(problem.fixed_points, problem.moving_points, each) for each in (Identity(problem.dim), transform))
    kinds = (("mean", np.mean), ("95 %", lambda x: np.percentile(x, 95)), ("largest", np.max))
    return [row(f"TRE, {name}", "landmarks", "mm", float(f(before)), float(f(after))) for name, f in kinds]


def inverse_rows(problem, transform, inverse) -> list[dict]:
    """|inverse(T(x)) - x| on a lattice over the fixed image, where T(x) lies in the moving image; no row where that is nowhere."""
    import torch

    from ..evaluate.metrics import inverse_consistency_error

    fixed = problem.fixed.grid
    grid = fixed.resample([max(float(fixed.extent.max()) / POINTS_PER_EDGE, s) for s in fixed.spacing])
    moved = transform(torch.as_tensor(grid.points()).reshape(1, -1, grid.dim).float())[0].numpy()
    if not problem.moving.grid.contains(moved).any():
        return []
    error = inverse_consistency_error(transform, inverse, grid, moving_grid=problem.moving.grid)
    return [row(f"Inverse consistency, {name}", "", "mm", None, error[key]) for name, key in (("mean", "mean"), ("95 %", "p95"), ("largest", "max"))]


def report(request: dict, monitor, folder: Path) -> dict:
    """Write one HTML file with the figures, the pictures and how it was made. InputError where matplotlib or the folder is missing."""
    import torch

    from ..evaluate.report import Table, provenance_table, report_html, result_pictures
    from ..evaluate.summary import summarise
    from ..result import Result

    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("the pictures of the report need the Python package matplotlib, which is not installed; install it and try again")
    path = Path(request["path"])
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise InputError(f"the report cannot be written to {path}; choose a file in a folder that exists")
    monitor.progress(0.0, "scores")
    with torch.no_grad():
        problem, transform, inverse, made = case_of(request)
        monitor.check()
        rows = rows_of(summarise(transform, problem.fixed, problem.moving).scores, problem, transform, inverse)
        monitor.progress(0.4, "pictures")
        monitor.check()
        pictures = result_pictures(Result(problem, transform, history=made.get("history") or request.get("history") or []))
    monitor.check()
    table = Table("Figures", ("figure", "structure", "before", "after", "unit"),
                  tuple((r["name"], r["structure"], r["before"], r["value"], r["unit"]) for r in rows))
    stated = made.get("provenance") or {k: v for k, v in (request.get("figures") or {}).items() if not isinstance(v, list)}
    title = request.get("title") or f"{problem.moving.name} to {problem.fixed.name}"
    page = report_html(title, f"{problem.moving.name} (moving) registered to {problem.fixed.name} (fixed). Before is the position given by the "
                       "headers.", [table, *([provenance_table(stated)] if stated else [])], pictures)
    with staged(path.resolve().parent) as stage:
        (stage / path.name).write_text(page, "utf-8")
    return {"path": str(path), "rows": rows}
