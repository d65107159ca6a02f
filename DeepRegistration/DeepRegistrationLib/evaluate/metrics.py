"""Scores of a registration, in physical space, with the definitions of the Learn2Reg challenge.

* Dice  2 |F and W| / (|F| + |W|) of a label in the fixed map F and the warped map W (nearest neighbour).
* HD95  the larger of the two directed 95th percentiles of surface distances. The surface of a label runs between voxel
  centres (marching cubes on 2 x 2 x 2 cells), a surface element lies at the centre of its cell and weighs as much as
  its area (Nikolov et al., J Med Internet Res 2021). Here in mm; the challenge's own script counts voxels.
* TRE   |T(p) - q| in mm, p a fixed landmark, q its moving counterpart.
* folds the share of voxels with det(dT/dp) <= 0, by central differences on the fixed grid.
* SDlogJ standard deviation of log det over voxels with det > 0. The challenge's script adds 3 to the determinant, clips to
  [1e-9, 1e9] and leaves out two voxels at the border; that figure is given as ``sdlogj_learn2reg``.
* Inverse-consistency error |T^-1(T(p)) - p| in mm.

A label that is absent from the fixed or from the moving map is not scored (nan); a label that the warp lost has Dice 0 and
HD95 infinity. Reference: Hering et al., Learn2Reg, IEEE TMI 2023.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import numpy as np
import torch
from scipy.ndimage import find_objects
from scipy.spatial import cKDTree

from ..errors import InputError
from ..geometry import Grid
from ..image import Image, Labels
from ..points import Points
from ..result import warp
from ..terms.base import Alignment
from ..transforms import Displacement, Identity, Transform

UNITS = {"dice": "0 to 1", "hd95": "mm", "tre": "mm", "inverse_consistency": "mm", "folds": "share of voxels",
         "sdlogj": "standard deviation of the log determinant", "ncc": "-1 to 1", "nmi": "1 to 2"}


def dice_per_label(fixed: Labels, warped: Labels, values=None) -> dict[int, float]:
    """Label -> Dice overlap of two label maps on one grid.

    values: labels to score, by default all that occur in either map. A label that is absent from ``fixed`` gets nan, one
    that is absent from ``warped`` alone gets 0. Raises InputError for maps on different grids.
    """
    _same_grid(fixed, warped)
    a, b = _integers(fixed), _integers(warped)
    wanted = _wanted(a, b, values)
    if not wanted:
        return {}
    table = np.array(wanted)
    place_a, place_b = _places(a, table), _places(b, table)
    count = [np.bincount(p.ravel(), minlength=len(table) + 1)[1:] for p in (place_a, place_b, place_a * (place_a == place_b))]
    return {v: 2.0 * both / (fa + fb) if fa else math.nan for v, fa, fb, both in zip(wanted, *(c.tolist() for c in count))}


def hd95_per_label(fixed: Labels, warped: Labels, values=None) -> dict[int, float]:
    """Label -> 95 % Hausdorff distance in mm of two label maps on one grid; oblique and sheared grids are exact.

    values as in ``dice_per_label``. nan for a label absent from ``fixed``, inf for one absent from ``warped`` alone.
    """
    _same_grid(fixed, warped)
    a, b = _integers(fixed), _integers(warped)
    wanted = _wanted(a, b, values)
    if not wanted:
        return {}
    place_a, place_b = (_places(x, np.array(wanted)) for x in (a, b))
    boxes_a, boxes_b = (find_objects(p, len(wanted)) for p in (place_a, place_b))
    out = {}
    for k, value in enumerate(wanted):
        if boxes_a[k] is None:
            out[value] = math.nan
        elif boxes_b[k] is None:
            out[value] = math.inf
        else:
            surfaces = [_surface(p[box] == k + 1, box, fixed.grid) for p, box in ((place_a, boxes_a[k]), (place_b, boxes_b[k]))]
            out[value] = _robust_hausdorff(*surfaces, 0.95)
    return out


def tre(fixed_points: Points, moving_points: Points, transform) -> np.ndarray:
    """(N,) distance in mm between the transformed fixed points and their moving counterparts, row by row."""
    if len(fixed_points) != len(moving_points):
        raise InputError(f"{len(fixed_points)} fixed and {len(moving_points)} moving points were given; they must correspond one to one")
    moved = transform(fixed_points.positions.double())
    return torch.linalg.vector_norm(moved - moving_points.positions.double(), dim=-1)[0].detach().cpu().numpy()


def jacobian_scores(transform, grid: Grid, mask=None) -> dict[str, float]:
    """Folds and regularity of a map on ``grid``; ``mask`` (B, 1, *S) bool limits all but ``sdlogj_learn2reg``.

    folds (share), folds_count, voxels, sdlogj (nan where every determinant is <= 0), sdlogj_learn2reg, determinant_min and
    determinant_max.
    """
    determinant = _dense(transform, grid).jacobian_determinant(grid)[0, 0].detach().double().cpu().numpy()
    inner = determinant[tuple(slice(2, -2) if n > 4 else slice(None) for n in determinant.shape)]
    inside = determinant if mask is None else determinant[_array(mask) > 0]
    if inside.size == 0:
        raise InputError("the mask for the Jacobian scores is empty; give a mask with at least one voxel or none")
    positive = inside[inside > 0]
    count = int(inside.size - positive.size)
    return {"folds": count / inside.size, "folds_count": count, "voxels": int(inside.size),
            "sdlogj": float(np.log(positive).std()) if positive.size else math.nan,
            "sdlogj_learn2reg": float(np.log((inner + 3).clip(1e-9, 1e9)).std()),
            "determinant_min": float(inside.min()), "determinant_max": float(inside.max())}


def displacement_scores(transform, grid: Grid) -> dict[str, float]:
    """How far a map moves the voxels of ``grid``: mean, p95 and max in mm."""
    length = torch.linalg.vector_norm(_dense(transform, grid).displacement[0].double(), dim=0).flatten().cpu().numpy()
    return {"mean": float(length.mean()), "p95": float(np.percentile(length, 95)), "max": float(length.max())}


def inverse_consistency_error(transform, inverse, grid: Grid, mask=None, moving_grid: Grid | None = None) -> dict[str, float]:
    """|inverse(transform(p)) - p| over the voxels p of ``grid``: mean, p95 and max in mm, and the number of voxels.

    mask (B, 1, *S) bool limits the voxels; ``moving_grid`` leaves out voxels that land outside it, where an inverse on a
    grid is not defined. Raises InputError where no voxel remains.
    """
    points = torch.as_tensor(grid.points()).reshape(-1, grid.dim)
    if mask is not None:
        points = points[torch.as_tensor(_array(mask).ravel() > 0)]
    moved = transform(points[None].float())
    if moving_grid is not None and points.shape[0]:
        kept = torch.as_tensor(moving_grid.contains(moved[0].detach().cpu().numpy()))
        points, moved = points[kept], moved[:, kept]
    if points.shape[0] == 0:
        raise InputError("no voxel is left for the inverse-consistency error; check the mask and the overlap of the two images")
    error = torch.linalg.vector_norm(inverse(moved)[0].double() - points, dim=-1).detach().cpu().numpy()
    return {"mean": float(error.mean()), "p95": float(np.percentile(error, 95)), "max": float(error.max()), "voxels": int(error.size)}


def correlation(one, other, mask=None) -> float:
    """Pearson correlation (NCC over the whole image) of two arrays of one shape; nan where one of them is constant."""
    a, b = _selected(one, other, mask)
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return float((a * b).sum()) / norm if norm > 0 else math.nan


def normalised_mutual_information(one, other, mask=None, bins: int = 32) -> float:
    """(H(a) + H(b)) / H(a, b) of a joint histogram, from 1 (independent) to 2 (Studholme et al., Pattern Recognition 1999)."""
    joint = np.histogram2d(*_selected(one, other, mask), bins)[0]
    joint /= joint.sum()
    entropies = [-float((p[p > 0] * np.log(p[p > 0])).sum()) for p in (joint.sum(1), joint.sum(0), joint)]
    return (entropies[0] + entropies[1]) / entropies[2] if entropies[2] > 0 else math.nan


def evaluate_pair(transform, fixed: Image, moving: Image, fixed_labels: Labels | None = None, moving_labels: Labels | None = None,
                  fixed_points: Points | None = None, moving_points: Points | None = None, inverse=None) -> dict:
    """All scores of a transform (fixed mm -> moving mm) before (identity) and after, as a dict that is valid JSON.

    Masks of the images limit similarity, folds and inverse error. Labels and points must be given for both images or for
    none (InputError). Figures that do not exist are None; labels that the warp lost are listed.
    """
    for one, other, what in ((fixed_labels, moving_labels, "labels"), (fixed_points, moving_points, "points")):
        if (one is None) != (other is None):
            raise InputError(f"{what} were given for one image only; give {what} for both or for none")
    identity, dense = Identity(fixed.dim), _dense(transform, fixed.grid)
    out = {"units": dict(UNITS), "similarity": _before_after(lambda t: _similarity(t, fixed, moving), identity, dense)}
    if fixed_labels is not None:
        same = fixed_labels.grid.same_as(fixed.grid)
        out.update(_label_scores(dense if same else _dense(transform, fixed_labels.grid), fixed_labels, moving_labels))
    if fixed_points is not None:
        out["tre"] = _before_after(lambda t: _summary(tre(fixed_points, moving_points, t)), identity, transform)
    out["jacobian"] = jacobian_scores(dense, fixed.grid, fixed.mask)
    if inverse is not None:
        out["inverse_consistency"] = inverse_consistency_error(transform, inverse, fixed.grid, fixed.mask, moving.grid)
    return _json_ready(out)


def _before_after(score, identity, transform) -> dict:
    """{name: {before, after}} of a function that scores a transform by a dict of figures."""
    before, after = score(identity), score(transform)
    return {name: {"before": before[name], "after": after[name]} for name in after}


def _similarity(transform, fixed, moving) -> dict[str, float]:
    """Similarity over the voxels that both images cover, in the fixed mask where there is one."""
    pair = Alignment(fixed, moving, transform)
    if not bool(pair.mask.any()):
        return {"ncc": math.nan, "nmi": math.nan}
    mask = pair.mask.expand_as(fixed.data)
    return {"ncc": correlation(fixed.data, pair.warped, mask), "nmi": normalised_mutual_information(fixed.data, pair.warped, mask)}


def _label_scores(transform, fixed, moving) -> dict:
    """Dice and HD95 of the labels that both maps hold."""
    values = sorted(set(fixed.values()) & set(moving.values()))
    warped = [warp(moving, t, fixed.grid) for t in (Identity(fixed.dim), transform)]
    out: dict = {}
    for name, score in (("dice", dice_per_label), ("hd95", hd95_per_label)):
        before, after = (score(fixed, w, values) for w in warped)
        out[name] = {"labels": {str(v): {"before": before[v], "after": after[v]} for v in values},
                     "mean": {"before": _mean(before.values()), "after": _mean(after.values())}}
    out["labels_lost"] = [v for v in values if math.isinf(after[v])]
    return out


def _mean(values) -> float:
    values = [v for v in values if not math.isnan(v)]
    return float(np.mean(values)) if values else math.nan


def _summary(errors) -> dict[str, float]:
    if errors.size == 0:
        return {"mean": math.nan, "median": math.nan, "p95": math.nan, "max": math.nan, "points": 0}
    return {"mean": float(errors.mean()), "median": float(np.median(errors)), "p95": float(np.percentile(errors, 95)),
            "max": float(errors.max()), "points": int(errors.size)}


def _json_ready(value):
    """Strict JSON knows neither nan nor infinity: both become None."""
    if isinstance(value, dict):
        return {k: _json_ready(v) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _dense(transform, grid: Grid) -> Transform:
    """The map as a displacement on ``grid``, so that it is computed once; any callable on points is accepted."""
    frame = Image(torch.zeros((1, 1, *grid.shape)), grid)
    return Displacement(Alignment(frame, frame, transform).field.detach(), grid)


def _same_grid(fixed, warped):
    if not fixed.grid.same_as(warped.grid):
        raise InputError(f"the label maps lie on different grids, {fixed.grid} and {warped.grid}; warp the moving labels onto the fixed grid first")


def _array(x) -> np.ndarray:
    """The first batch entry of (B, 1, *S), or an array as it is."""
    return x[0, 0].detach().cpu().numpy() if torch.is_tensor(x) and x.ndim > 3 else np.asarray(x)


def _selected(one, other, mask):
    arrays = [np.asarray(x.detach().cpu() if torch.is_tensor(x) else x, np.float64) for x in (one, other)]
    if mask is None:
        return [a.ravel() for a in arrays]
    mask = np.asarray(mask.detach().cpu() if torch.is_tensor(mask) else mask) > 0
    return [a[mask] for a in arrays]


def _integers(labels: Labels) -> np.ndarray:
    return np.rint(labels.data[0, 0].detach().cpu().numpy()).astype(np.int64)


def _wanted(a, b, values) -> list[int]:
    found = np.union1d(np.unique(a), np.unique(b)).tolist() if values is None else values
    return sorted({int(v) for v in found} - {0})


def _places(labels, table) -> np.ndarray:
    """1 + position of each voxel's label in the sorted ``table``, 0 for labels that are not in it."""
    place = np.searchsorted(table, labels).clip(0, len(table) - 1)
    return np.where(table[place] == labels, place + 1, 0).astype(np.int32)


def _surface(mask, box, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Surface elements of ``mask``, the part ``box`` of ``grid``: positions (N, dim) mm and areas (N,) mm^(dim - 1)."""
    dim = mask.ndim
    padded = np.pad(mask, 1)
    code = np.zeros([n - 1 for n in padded.shape], np.int32)
    for bit, corner in enumerate(_corners(dim)):
        code += padded[tuple(slice(c, n - 1 + c) for c, n in zip(corner[::-1], padded.shape))].astype(np.int32) << bit
    where = np.nonzero((code > 0) & (code < 2 ** (2**dim) - 1))
    index = np.stack([where[k] + box[k].start - 0.5 for k in reversed(range(dim))], -1)
    cofactor = np.linalg.det(grid.matrix) * np.linalg.inv(grid.matrix).T
    areas = np.linalg.norm(_area_vectors(dim) @ cofactor.T, axis=-1).sum(-1)
    return grid.index_to_world(index), areas[code[where]]


def _robust_hausdorff(one, other, share: float) -> float:
    """The larger of the two directed area-weighted percentiles of the distance between surfaces (positions, areas)."""
    directed = []
    for (points, areas), (targets, _) in ((one, other), (other, one)):
        # scipy's tree may split just above a coordinate. Above 0 that is a subnormal number, which counts as 0 during a run (denormals are
        # flushed), and the tree would split for ever: hence coordinates of at least 1.
        origin = targets.min(0) - 1.0
        distance = cKDTree(targets - origin).query(points - origin)[0]
        order = np.argsort(distance)
        total = np.cumsum(areas[order])
        directed.append(distance[order][min(np.searchsorted(total / total[-1], share), len(order) - 1)])
    return float(max(directed))


def _corners(dim: int) -> list[tuple[int, ...]]:
    return list(itertools.product((0, 1), repeat=dim))


@lru_cache
def _area_vectors(dim: int) -> np.ndarray:
    """(2 ** 2 ** dim, pieces, dim) area vectors of the flat pieces of the surface in a cell, in voxels.

    By the divergence theorem the area vector of a part of the interface follows from the faces of the cell: along each axis
    the share of the low face minus the share of the high face that the part covers. No table of triangles is needed.
    """
    corners = _corners(dim)
    table = np.zeros((2 ** len(corners), 2**dim // 2, dim))
    for code in range(len(table)):
        inside = [c for bit, c in enumerate(corners) if code >> bit & 1]
        if len(inside) > len(corners) // 2:
            inside = [c for c in corners if c not in inside]
        pieces = [piece for part in _parts(inside) for piece in _flat_pieces(_area_vector(part, dim))]
        table[code, : len(pieces)] = np.reshape(pieces, (-1, dim))
    return table


def _area_vector(part, dim) -> np.ndarray:
    """(dim,) area vector of the interface around connected corners of a cell."""
    sides = [[[c for c in part if c[axis] == side] for side in (0, 1)] for axis in range(dim)]
    return np.array([_covered(low, dim) - _covered(high, dim) for low, high in sides])


def _flat_pieces(vector) -> list[np.ndarray]:
    """The area vectors of the pieces that marching cubes makes of one part; two shapes of part are not flat."""
    size = np.sort(np.abs(vector))
    if np.array_equal(size, [0.375, 0.375, 0.875]):
        along = np.where(np.abs(vector) == 0.875, 0.5 * np.sign(vector), 0.0)
        return [along, vector - along]
    if np.array_equal(size, [0.0, 0.75, 0.75]):
        middle = (vector == 0).astype(float)
        first = 0.5 * (np.sign(vector) + middle)
        return [first] + [np.where(np.arange(3) == k, 0.25 * np.sign(vector), -0.25 * middle) for k in np.flatnonzero(vector)]
    return [vector]


def _parts(corners) -> list[list]:
    """Corners of a cell grouped by the edges of the cell."""
    parts: list[list] = []
    for corner in corners:
        near = [p for p in parts if any(sum(a != b for a, b in zip(corner, c)) == 1 for c in p)]
        parts = [p for p in parts if p not in near] + [[corner] + [c for p in near for c in p]]
    return parts


def _covered(corners, dim) -> float:
    """Share of a face that marching squares (a line in 2D: half an edge a corner) gives to ``corners`` of it."""
    if dim == 2:
        return len(corners) / 2
    if len(corners) == 2:
        neighbours = sum(a != b for a, b in zip(*corners)) == 1
        return 0.5 if neighbours else 0.25
    return {0: 0.0, 1: 0.125, 3: 0.875, 4: 1.0}[len(corners)]
