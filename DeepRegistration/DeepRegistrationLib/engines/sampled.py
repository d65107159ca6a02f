"""Costs of two lists of samples with soft weights: what a linear search lowers; 0 is ideal.

The moving values move with the transform; a weight falls from 1 to 0 where a sample leaves the moving image, and the costs
can be differentiated in the weights too, so they stay smooth while the overlap changes. (The terms count voxels of a mask
or leave them out; here N samples of weight w_i stand for the images.)

* ``Information``: 1 - 2 I / (H_f + H_m) from a joint histogram, hard bins for the fixed values, Parzen windows for the moving
  ones. Mattes et al., IEEE TMI 2003; divided by the entropies it depends less on the overlap (Maes et al., IEEE TMI 1997).
* ``Correlation``: 1 - r^2, r Pearson's correlation.
* ``Squares``: mean of squared differences.
* ``Lattice``: any ``Similarity`` term on the voxels of a grid, for costs that need neighbourhoods.
"""

from __future__ import annotations

import torch

from ..geometry import Grid
from ..ops.stats import joint_histogram
from ..terms.base import Similarity


class Information:
    """Normalised mutual information of ``fixed`` (C, N) in [0, 1] with samples given later; mean over channels."""

    def __init__(self, fixed: torch.Tensor, bins: int = 32):
        self.bins = bins
        self.rows = (fixed * bins).long().clamp_(0, bins - 1)

    def __call__(self, moving: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """moving (C, N) in [0, 1], weight (N,) -> cost (), differentiable in both."""
        columns = 1 + moving * (self.bins - 4)
        return torch.stack([self._channel(r, c, weight) for r, c in zip(self.rows, columns)]).mean()

    def _channel(self, rows, columns, weight):
        table = joint_histogram(rows, columns, self.bins, weight)
        p = table / table.sum()
        joint, single = _entropy(p), _entropy(p.sum(1)) + _entropy(p.sum(0))
        return 2 * joint / single - 1 if float(single.detach()) > 1e-9 else 1 + 0 * joint


def _entropy(p):
    return -(p * torch.where(p > 0, p, torch.ones_like(p)).log()).sum()


class Correlation:
    """1 - r^2 of ``fixed`` (C, N) with samples given later; mean over channels."""

    def __init__(self, fixed: torch.Tensor):
        self.fixed = fixed.double()

    def __call__(self, moving, weight):
        """As in ``Information``."""
        share = weight.double() / weight.double().sum()
        f, m = (v - (share * v).sum(1, keepdim=True) for v in (self.fixed, moving.double()))
        ff, mm, fm = ((share * a * b).sum(1) for a, b in ((f, f), (m, m), (f, m)))
        return (1 - fm.square() / (ff.clamp_min(1e-9) * mm.clamp_min(1e-9))).mean()


class Squares:
    """Weighted mean of squared differences to ``fixed`` (C, N)."""

    def __init__(self, fixed: torch.Tensor):
        self.fixed = fixed

    def __call__(self, moving, weight):
        """As in ``Information``."""
        return ((moving - self.fixed).square().mean(0).double() * weight).sum() / weight.double().sum()


class Lattice:
    """A ``Similarity`` term between ``fixed`` (C, voxels of ``grid``) and samples at the same voxels."""

    def __init__(self, fixed: torch.Tensor, grid: Grid, term: Similarity):
        self.grid, self.term = grid, term
        self.fixed = fixed.reshape(1, -1, *grid.shape)

    def __call__(self, moving, weight):
        """As in ``Information``; the voxels with a weight above a half count, the weight itself has no gradient."""
        mask = (weight.detach() > 0.5).reshape(1, 1, *self.grid.shape)
        cost, slope = self.term.gradient(self.fixed, moving.detach().reshape(self.fixed.shape), mask, self.grid)
        linear = (moving * slope.reshape(moving.shape)).sum()
        return cost.sum() + linear - linear.detach()
