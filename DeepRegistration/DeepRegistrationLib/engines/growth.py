"""What an atlas over age says about growth: volume and length at every age, of the body and of every label.

    volume = sum_x s(x) voxel,   length = extent of {s >= 1/2} along its principal axis, from the first to the last voxel and one voxel more

with s the share of the subjects of an age whose label a voxel has, or, where no label maps are there, 1 where the atlas is brighter than the threshold
that divides the values of all ages best in two (Otsu, IEEE SMC 1979). Shares of labels are weighted over age as the atlas itself is
(``ages.py``). Label maps lie on the atlas lattice as files, so one at a time is in memory.
"""

from __future__ import annotations

import numpy as np
import torch

from ..geometry import Grid
from ..image import Labels
from ..ops.sample import world_points
from .ages import add_to, seen_mean
from .consensus import UNSEEN

BINS = 256


def of_atlases(atlases: torch.Tensor, grid: Grid) -> list[dict]:
    """[{"volume", "length"}] of what is bright in ``atlases`` (M, 1, *S)."""
    limit = otsu(atlases)
    return [_named("", (one > limit).float()[None], grid) for one in atlases]


def of_labels(raters, weights: np.ndarray, grid: Grid) -> tuple[tuple[Labels, ...], list[dict]]:
    """(consensus, rows) at M ages: raters() yields (voxels,) whole numbers of every subject in turn, weights (M, N); a subject has no say in what it does
    not see, and what nobody sees is background."""
    values = sorted({int(v) for said in raters() for v in torch.unique(said)} - {UNSEEN} | {0})
    best = torch.full((len(weights), grid.voxels), -np.inf)
    label, rows, unseen = torch.zeros(best.shape, dtype=torch.int32), [{} for _ in weights], torch.zeros_like(best)
    for said, weight in zip(raters(), weights.T):
        add_to(unseen, weight, (said == UNSEEN).float()[None])
    for value in values:
        share = torch.zeros_like(best)
        for said, weight in zip(raters(), weights.T):
            add_to(share, weight, (said == value).float()[None])
        share = seen_mean(share, unseen).clamp(0, 1)
        label[share > best] = value
        best = torch.maximum(best, share)
        if value:
            for row, one in zip(rows, share):
                row |= _named(f"_{value}", one.reshape(1, 1, *grid.shape), grid)
    return tuple(Labels(one.reshape(1, 1, *grid.shape), grid, name="labels") for one in label), rows


def _named(ending: str, share: torch.Tensor, grid: Grid) -> dict:
    return {f"volume{ending}": float(share.sum()) * float(np.prod(grid.spacing)), f"length{ending}": length(share >= 0.5, grid)}


def length(mask: torch.Tensor, grid: Grid) -> float:
    """mm: the extent of a mask (1, 1, *S) along the principal axis of its voxels; 0 for an empty one."""
    points = world_points(grid, torch.float64)[0][mask[0, 0]]
    if not len(points):
        return 0.0
    offset = points - points.mean(0)
    axis = torch.linalg.eigh(offset.T @ offset)[1][:, -1]
    along = offset @ axis
    step = float(np.abs(grid.matrix.T @ axis.numpy()).max())
    return float(along.max() - along.min()) + step


def otsu(images: torch.Tensor) -> float:
    """The threshold with the largest variance between the values below and above it, in the middle of all that are as good; that of all ``images``
    together."""
    low, high = float(images.min()), float(images.max())
    if low == high:
        return high
    counts = torch.histc(images.float(), BINS, low, high).double()
    middles = low + (torch.arange(BINS, dtype=torch.float64) + 0.5) * (high - low) / BINS
    below, total = counts.cumsum(0), counts.sum()
    sums = (counts * middles).cumsum(0)
    between = (sums[-1] * below - sums * total).square() / (below * (total - below)).clamp_min(1e-12)
    best = between[:-1] >= between[:-1].max() * (1 - 1e-9)
    return float(middles[:-1][best].mean() + (high - low) / BINS / 2)
