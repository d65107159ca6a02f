"""The figures and maps that every run states, in one pass over slabs of the fixed image.

The definitions are those of metrics.py (a test compares them); here nothing is held for the whole image but the two results, so a
large volume needs little memory and the temporary arrays stay in the cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from ..image import Image
from ..ops.sample import inside
from ..terms.base import Alignment
from ..transforms import Identity

SLAB_VOXELS = 1 << 19


@dataclass
class Moments:
    """Sums of pairs of values, in double precision."""

    count: int = 0
    sums: torch.Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))
    products: torch.Tensor = field(default_factory=lambda: torch.zeros(2, 2, dtype=torch.float64))

    def add(self, one: torch.Tensor, other: torch.Tensor, mask: torch.Tensor) -> None:
        """Values of one shape; only those count where ``mask`` (bool) is true."""
        values = (torch.stack([one.flatten(), other.flatten()]) * mask.expand_as(one).flatten()).double()
        self.count += int(mask.expand_as(one).sum())
        self.sums += values.sum(1).cpu()
        self.products += (values @ values.T).cpu()

    def covariance(self) -> torch.Tensor:
        """(2, 2) of all pairs so far."""
        mean = self.sums / max(self.count, 1)
        return self.products / max(self.count, 1) - mean[:, None] * mean[None]

    def correlation(self) -> float | None:
        """Pearson's coefficient; None where a side is constant or nothing was added."""
        c = self.covariance()
        norm = math.sqrt(max(float(c[0, 0] * c[1, 1]), 0.0))
        return float(c[0, 1]) / norm if norm > 0 else None


@dataclass
class Summary:
    """``scores`` a dict that is valid JSON; ``warped`` and ``log_jacobian`` Images on the fixed grid."""

    scores: dict
    warped: Image
    log_jacobian: Image


def summarise(transform, fixed: Image, moving: Image, fill: float | None = None) -> Summary:
    """Correlation over the common field of view and its share of the fixed one, before and after; folds, SDlogJ, and the two images that go with them.

    transform: fixed mm -> moving mm. Masks limit the figures as in ``metrics.evaluate_pair``. ``warped`` is ``fill``, by default the
    background of ``moving``, outside its field of view; determinants below 1e-6 count as 1e-6 in ``log_jacobian``.
    """
    before, after, logs = Moments(), Moments(), Moments()
    fill = moving.background if fill is None else fill
    warped, log_jacobian = torch.zeros_like(fixed.data), torch.zeros_like(fixed.data[:, :1])
    folds, voxels, lowest, highest = 0, 0, math.inf, -math.inf
    for (first, end), (first_padded, end_padded) in _slabs(fixed.grid.shape):
        part, inner, rows = _rows(fixed, first_padded, end_padded), slice(first - first_padded, end - first_padded), slice(first, end)
        values, seen = _unmoved(_rows(fixed, first, end), moving, fixed.grid, rows)
        before.add(fixed.data[:, :, rows], values, seen)
        a = Alignment(part, moving, transform)
        after.add(fixed.data[:, :, rows], a.warped[:, :, inner], a.mask[:, :, inner])
        visible = a.mask if part.mask is None and moving.mask is None else inside(a.moving_index, moving.grid.shape)[:, None]
        warped[:, :, rows] = torch.where(visible[:, :, inner], a.warped[:, :, inner], fill)
        determinant, log = a.determinant[:, :, inner], log_jacobian[:, :, rows]
        torch.log(determinant.clamp_min(1e-6), out=log)
        counted = torch.ones_like(determinant, dtype=torch.bool) if part.mask is None else part.mask[:, :, inner]
        positive = counted & (determinant > 0)
        logs.add(log, log, positive)
        folds, voxels = folds + int((counted & ~positive).sum()), voxels + int(counted.sum())
        lowest = min(lowest, float(determinant.where(counted, math.inf).min()))
        highest = max(highest, float(determinant.where(counted, -math.inf).max()))
    similarity = {"name": "correlation over the common field of view, -1 to 1", "before": before.correlation(), "after": after.correlation()}
    compared = max(voxels, 1) * fixed.data.shape[1]
    scores = {"similarity": similarity, "overlap": {"before": before.count / compared, "after": after.count / compared},
              "folds": folds / max(voxels, 1), "folds_count": folds, "voxels": voxels,
              "sdlogj": math.sqrt(max(float(logs.covariance()[0, 0]), 0.0)) if logs.count else None,
              "determinant_min": lowest, "determinant_max": highest}
    return Summary(scores, Image(warped, fixed.grid, name="warped"), Image(log_jacobian, fixed.grid, name="log_jacobian"))


def _unmoved(part: Image, moving: Image, grid, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """The moving image and the mask of what counts on ``part`` before registration; equal grids need no sampling."""
    if not moving.grid.same_as(grid):
        a = Alignment(part, moving, Identity(part.dim))
        return a.warped, a.mask
    mask = torch.ones_like(part.data[:, :1], dtype=torch.bool)
    for each in (part.mask, None if moving.mask is None else moving.mask[:, :, rows]):
        mask = mask if each is None else mask & each
    return moving.data[:, :, rows], mask


def _slabs(shape):
    """((first, end), the same with one more row at either side where there is one) along the slowest axis."""
    rows = max(1, SLAB_VOXELS // max(1, math.prod(shape[1:])))
    for first in range(0, shape[0], rows):
        end = min(first + rows, shape[0])
        yield (first, end), (max(first - 1, 0), min(end + 1, shape[0]))


def _rows(image: Image, first: int, end: int) -> Image:
    lower = [0] * (image.dim - 1) + [first]
    upper = [*image.grid.size[:-1], end]
    mask = None if image.mask is None else image.mask[:, :, first:end]
    return Image(image.data[:, :, first:end], image.grid.crop(lower, upper), mask, image.name)
