"""Costs of two lists of samples with soft weights, and their gradients in closed form.

The moving values move with the transform; a weight falls from 1 to 0 where a sample leaves the moving image, and the
derivative with respect to the weight is part of the gradient, so the cost stays smooth while the overlap changes.

* ``Information``: 1 - 2 I / (H_f + H_m) from a joint histogram, hard bins for the fixed values, cubic B-spline Parzen
  windows for the moving ones. Mattes et al., IEEE TMI 2003; the normalisation by the entropies makes it independent of the
  overlap (Studholme et al., Pattern Recognition 1999; 0 is ideal, 1 is independence).
* ``Correlation``: 1 - r^2, weighted.
* ``Squares``: weighted mean of squared differences.
* ``Lattice``: any ``Similarity`` term on the voxels of a grid, for costs that need neighbourhoods.
"""

from __future__ import annotations

import torch

from ..geometry import Grid
from ..ops.spline import cubic_weights
from ..terms.base import Similarity


class Information:
    """Normalised mutual information of ``fixed`` (C, N) in [0, 1] with samples given later; mean over channels."""

    def __init__(self, fixed: torch.Tensor, bins: int = 32):
        self.bins = bins
        self.rows = (fixed * bins).long().clamp_(0, bins - 1) * bins

    def __call__(self, moving: torch.Tensor, weight: torch.Tensor):
        """moving (C, N) in [0, 1], weight (N,) -> cost (float), d cost / d moving (C, N), d cost / d weight (N,)."""
        total, by_value, by_weight = 0.0, [], 0.0
        for rows, values in zip(self.rows, moving):
            cost, value_slope, weight_slope = self._channel(rows, values, weight)
            total, by_weight = total + cost, by_weight + weight_slope
            by_value.append(value_slope)
        n = len(self.rows)
        return total / n, torch.stack(by_value) / n, by_weight / n

    def _channel(self, rows, values, weight):
        scale = self.bins - 3 - 1e-3
        position = 1 + values * scale
        low = position.floor()
        t = position - low
        taps = rows[:, None] + (low.long() - 1)[:, None] + torch.arange(4, device=rows.device)
        windows = cubic_weights(t)
        table = torch.zeros(self.bins**2, dtype=torch.float64, device=rows.device)
        table.index_add_(0, taps.reshape(-1), (windows * weight[:, None]).reshape(-1).double())
        cost, slope = _normalised_information(table.reshape(self.bins, self.bins))
        at_taps = slope.reshape(-1).to(values.dtype)[taps]
        value_slope = (at_taps * _cubic_slopes(t)).sum(-1) * weight * scale
        return cost, value_slope, (at_taps * windows).sum(-1)


def _normalised_information(table):
    """Joint histogram (F, M), float64 -> (1 - 2 I / (H_f + H_m), its derivative (F, M) with respect to the counts)."""
    total = table.sum()
    p = table / total
    pf, pm = p.sum(1, keepdim=True), p.sum(0, keepdim=True)
    log_p, log_f, log_m = (torch.where(q > 0, q, torch.ones_like(q)).log() for q in (p, pf, pm))
    joint, single = -(p * log_p).sum(), -(pf * log_f).sum() - (pm * log_m).sum()
    if float(single) < 1e-9:
        return 1.0, torch.zeros_like(table)
    slope = 2 * (-(log_p + 1) * single + joint * (log_f + log_m + 2)) / single**2
    slope = (slope - (p * slope).sum()) / total
    return float(2 * joint / single - 1), slope


def _cubic_slopes(t):
    """Derivatives of ``cubic_weights`` with respect to the position: t (...) -> (..., 4)."""
    s = 1 - t
    return torch.stack([-(s**2) / 2, 1.5 * t**2 - 2 * t, 2 * s - 1.5 * s**2, t**2 / 2], -1)


class Correlation:
    """1 - r^2 of ``fixed`` (C, N) with samples given later, r Pearson's correlation; mean over channels."""

    def __init__(self, fixed: torch.Tensor):
        self.fixed = fixed.double()

    def __call__(self, moving, weight):
        """As in ``Information``."""
        f, m, w = self.fixed, moving.double(), weight.double()
        total = w.sum()
        f0, m0 = f - (w * f).sum(1, keepdim=True) / total, m - (w * m).sum(1, keepdim=True) / total
        ff, mm, fm = (w * f0 * f0).sum(1, keepdim=True), (w * m0 * m0).sum(1, keepdim=True), (w * f0 * m0).sum(1, keepdim=True)
        ff, mm = ff.clamp_min(1e-9 * float(total)), mm.clamp_min(1e-9 * float(total))
        r2 = fm**2 / (ff * mm)
        by_value = -2 * w * (fm * f0 / (ff * mm) - r2 * m0 / mm)
        by_weight = -(2 * fm * f0 * m0 / (ff * mm) - r2 * (f0**2 / ff + m0**2 / mm))
        return float(1 - r2.mean()), (by_value / len(f)).to(moving.dtype), by_weight.mean(0).to(weight.dtype)


class Squares:
    """Weighted mean of squared differences to ``fixed`` (C, N)."""

    def __init__(self, fixed: torch.Tensor):
        self.fixed = fixed

    def __call__(self, moving, weight):
        """As in ``Information``."""
        difference = moving - self.fixed
        squares = difference.square().mean(0)
        total = weight.double().sum()
        cost = float((weight.double() * squares).sum() / total)
        total = float(total)
        return cost, 2 * weight * difference / (total * len(self.fixed)), (squares - cost) / total


class Lattice:
    """A ``Similarity`` term between ``fixed`` (C, voxels of ``grid``) and samples at the same voxels."""

    def __init__(self, fixed: torch.Tensor, grid: Grid, term: Similarity):
        self.grid, self.term = grid, term
        self.fixed = fixed.reshape(1, -1, *grid.shape)

    def __call__(self, moving, weight):
        """As in ``Information``; the voxels with a weight above a half count, the weight itself has no gradient."""
        mask = (weight > 0.5).reshape(1, 1, *self.grid.shape)
        cost, slope = self.term.gradient(self.fixed, moving.reshape(self.fixed.shape), mask, self.grid)
        return float(cost.sum()), slope.reshape(moving.shape), torch.zeros_like(weight)
