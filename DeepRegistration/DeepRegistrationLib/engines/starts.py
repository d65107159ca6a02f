"""Where a linear search begins: the headers, the centres, the centres of mass, or a covering of all rotations.

Weights of a centre of mass are the mask, or |intensity - background| with the median of the outermost voxels as the background, so
that dark and bright surroundings are both ignored.
"""

from __future__ import annotations

import numpy as np
import torch

from ..errors import InputError
from .search import angle_between, rotations

STARTS = ("auto", "header", "center", "moments", "global")


def candidates(level, initial, settings, pair, monitor) -> dict[str, np.ndarray]:
    """Name -> map fixed mm -> moving mm (dim + 1, dim + 1) to try, for ``settings.start``.

    An ``initial`` matrix takes the place of all but 'global', which then searches the rotations around it. Raises InputError
    where a start that was asked for leaves no overlap of the fields of view.
    """
    dim = pair.fixed.dim
    moving_centre = centre_of_mass(level.moving)
    every = {"header": np.eye(dim + 1), "center": _shift(pair.moving.grid.centre - pair.fixed.grid.centre),
             "moments": _shift(moving_centre - level.centre)}
    if initial is not None:
        every = {"initial": initial}
    chosen = every if settings.start in ("auto", "global") or initial is not None else {settings.start: every[settings.start]}
    usable = {name: matrix for name, matrix in chosen.items() if level.cost(matrix).overlap >= level.lowest}
    if not usable and len(chosen) > 1:
        sizes = [" x ".join(f"{edge:.3g}" for edge in image.grid.extent) for image in (pair.fixed, pair.moving)]
        raise InputError(f"the fields of view of {pair.fixed.name} ({sizes[0]} mm) and {pair.moving.name} ({sizes[1]} mm) do not overlap enough at any start "
                         f"({', '.join(chosen)}); check that both show the same part of the body and that their voxels are given in mm")
    if not usable:
        name = next(iter(chosen))
        raise InputError(f"the fields of view of {pair.fixed.name} and {pair.moving.name} do not overlap at the start '{name}'; "
                         "start from 'center' or 'moments', or give an initial transform that brings them together")
    if settings.start == "global":
        middle = initial if initial is not None else every["moments"]
        usable.update(_turned(level, middle, settings, monitor))
    return usable


def centre_of_mass(image) -> np.ndarray:
    """(dim,) mm, of the mask where there is one."""
    if image.mask is not None:
        weight = image.mask[0, 0].double()
    else:
        data = image.data[0].double().mean(0)
        weight = (data - background(data)).abs()
    total = float(weight.sum())
    if total <= 0:
        return image.grid.centre
    index = []
    for axis in range(weight.ndim - 1, -1, -1):
        line = weight.sum(tuple(a for a in range(weight.ndim) if a != axis))
        index.append(float(line @ torch.arange(len(line), dtype=line.dtype, device=line.device)) / total)
    return image.grid.index_to_world(index)


def background(data: torch.Tensor) -> float:
    """Median of the voxels on the faces of ``data`` (*S); one-voxel axes have no faces."""
    faces = [data.select(axis, end).reshape(-1) for axis in range(data.ndim) if data.shape[axis] > 1 for end in (0, -1)]
    return float(torch.cat(faces).median()) if faces else 0.0


def _shift(vector):
    m = np.eye(len(vector) + 1)
    m[:-1, -1] = vector
    return m


def _turned(level, middle, settings, monitor):
    """The ``kept`` best of ``rotations`` turns about the fixed centre of mass, none close to a better one."""
    dim = len(level.centre)
    turns = rotations(settings.rotations, 3) if dim == 3 and level.plane is None else rotations(min(settings.rotations, 72), 2)
    if dim == 3 and level.plane is not None:
        turns = _about_normal(turns, level.plane)
    thin = level.thinned(4000)
    found = [thin.cost(_about(level.centre, middle, turns[k])) for k in monitor.steps(len(turns), "rotations")]
    scores = np.array([worth(e.cost, e.overlap) for e in found])
    apart, kept = np.deg2rad(20), []
    for k in np.argsort(-scores, kind="stable"):
        if len(kept) == settings.kept or not np.isfinite(scores[k]):
            break
        if all(angle_between(turns[k], turns[j]) > apart for j in kept):
            kept.append(k)
    return {f"turn {i + 1}": _about(level.centre, middle, turns[k]) for i, k in enumerate(kept)}


def _about_normal(turns, normal):
    """Turns (K, 2, 2) of a plane -> (K, 3, 3) about its unit ``normal``."""
    frame = np.linalg.svd(normal[None])[2][[1, 2]].T
    return frame @ turns @ frame.T + np.outer(normal, normal)


def worth(cost: float, overlap: float) -> float:
    """What a start is ranked by: the similarity shared by the whole fixed image, so that a tiny overlap cannot win."""
    return (1 - cost) * overlap if np.isfinite(cost) else -np.inf


def _about(centre, middle, turn):
    """``middle`` after a rotation about ``centre``."""
    m = np.eye(len(centre) + 1)
    m[:-1, :-1] = turn
    m[:-1, -1] = centre - turn @ centre
    return middle @ m
