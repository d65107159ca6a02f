"""Costs of a displacement u (mm) on a grid, from its derivatives per mm; right for oblique and anisotropic grids.

With G = A^-1 A^-T (A the index-to-world matrix), D_a the difference and H_ab the second difference along voxel axes, per
component of u and averaged over the lattice:

Diffusion    |grad u|^2   = sum_ab G_ab D_a u D_b u                Fischer and Modersitzki, Linear Algebra Appl. 2004
Bending      |Hessian|^2  = tr (G H G H)                            Rueckert et al., IEEE TMI 1999
Curvature    (Laplacian)^2 = (sum_ab G_ab H_ab)^2                   Fischer and Modersitzki, JMIV 2003
Folding      max(0, -det J)                                         Mok and Chung, MICCAI 2020
LogJacobian  (log det J)^2                                          Leow et al., IEEE TMI 2007

The whole lattice counts, masked or not: outside the mask these costs are all that shapes the map.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import numpy as np
import torch

from ..geometry import Grid
from ..ops import fields, nd
from .base import Term


class Regularity(Term):
    """A cost of one field, usable on any field (a velocity, a residual) through ``penalty``."""

    def penalty(self, field: torch.Tensor, grid: Grid) -> torch.Tensor:
        """field (B, dim, *S) mm on ``grid`` -> (B,)."""
        raise NotImplementedError

    def __call__(self, alignment):
        return self.penalty(alignment.field, alignment.grid)


@dataclass(frozen=True)
class Diffusion(Regularity):
    """Mean squared Frobenius norm of the displacement's derivative (mm per mm); 0 for a translation."""

    reference = """@article{Fischer2004Unified,
  author = {Fischer, Bernd and Modersitzki, Jan},
  title = {A Unified Approach to Fast Image Registration and a New Curvature Based Registration Technique},
  journal = {Linear Algebra and its Applications}, volume = {380}, pages = {107--124}, year = {2004},
  doi = {10.1016/j.laa.2003.10.021}}"""

    def penalty(self, field, grid):
        metric = _metric(grid)
        total = torch.zeros_like(field[:, 0].flatten(1)[:, 0])
        for a in range(grid.dim):
            if grid.size[a] > 1:
                total = total + metric[a, a] * _mean_sum(torch.diff(field, dim=-1 - a).square())
            for b in range(a):
                if metric[a, b] != 0:
                    product = nd.derivative(field, -1 - a) * nd.derivative(field, -1 - b)
                    total = total + 2 * metric[a, b] * _mean_sum(product)
        return total


@dataclass(frozen=True)
class Bending(Regularity):
    """Mean squared norm of the displacement's second derivatives (1/mm^2); 0 for every affine map."""

    reference = """@article{Rueckert1999FFD,
  author = {Rueckert, Daniel and Sonoda, L. I. and Hayes, C. and Hill, D. L. G. and Leach, M. O. and Hawkes, D. J.},
  title = {Nonrigid Registration Using Free-form Deformations: Application to Breast {MR} Images},
  journal = {IEEE Transactions on Medical Imaging}, volume = {18}, number = {8}, pages = {712--721}, year = {1999},
  doi = {10.1109/42.796284}}"""

    def penalty(self, field, grid):
        metric, second = _metric(grid), _Second(field)
        total = torch.zeros_like(field[:, 0].flatten(1)[:, 0])
        for a in range(grid.dim):
            for b in range(a + 1):
                one, other = second.raised(metric, a, b), second.raised(metric, b, a)
                if one is not None and other is not None:
                    total = total + (1 if a == b else 2) * _mean_sum(one * other)
        return total


@dataclass(frozen=True)
class Curvature(Regularity):
    """Mean squared Laplacian of the displacement (1/mm^2); 0 for every affine and every harmonic map."""

    reference = """@article{Fischer2003Curvature,
  author = {Fischer, Bernd and Modersitzki, Jan}, title = {Curvature Based Image Registration},
  journal = {Journal of Mathematical Imaging and Vision}, volume = {18}, number = {1}, pages = {81--85}, year = {2003},
  doi = {10.1023/A:1021897212261}}"""

    def penalty(self, field, grid):
        metric, second = _metric(grid), _Second(field)
        parts = [metric[a, b] * h for a in range(grid.dim) for b in range(grid.dim)
                 if metric[a, b] != 0 and (h := second(a, b)) is not None]
        return _mean_sum(sum(parts).square()) if parts else torch.zeros_like(field[:, 0].flatten(1)[:, 0])


@dataclass(frozen=True)
class Folding(Regularity):
    """Mean of max(0, threshold - det J): how far Jacobian determinants lie under ``threshold``; 0 without folds."""

    threshold: float = 0.0

    reference = """@inproceedings{Mok2020LapIRN,
  author = {Mok, Tony C. W. and Chung, Albert C. S.},
  title = {Large Deformation Diffeomorphic Image Registration with {Laplacian} Pyramid Networks},
  booktitle = {Medical Image Computing and Computer Assisted Intervention}, pages = {211--221}, year = {2020},
  doi = {10.1007/978-3-030-59716-0_21}}"""

    def penalty(self, field, grid):
        return self._cost(fields.jacobian_determinant(field, grid))

    def __call__(self, alignment):
        return self._cost(alignment.determinant)

    def _cost(self, determinant):
        return torch.relu(self.threshold - determinant).flatten(1).mean(1)


@dataclass(frozen=True)
class LogJacobian(Regularity):
    """Mean squared logarithm of the Jacobian determinant: growth and shrinkage cost the same; 0 where volume is kept.

    Under ``floor`` the logarithm goes on along its tangent, so a fold has a finite cost and a slope that undoes it.
    """

    floor: float = 0.05

    reference = """@article{Leow2007Statistical,
  author = {Leow, Alex D. and Yanovsky, Igor and Chiang, Ming-Chang and Lee, Agatha D. and Klunder, Andrea D. and Lu, Allen
  and Becker, James T. and Davis, Simon W. and Toga, Arthur W. and Thompson, Paul M.},
  title = {Statistical Properties of {Jacobian} Maps and the Realization of Unbiased Large-Deformation Nonlinear Image Registration},
  journal = {IEEE Transactions on Medical Imaging}, volume = {26}, number = {6}, pages = {822--832}, year = {2007},
  doi = {10.1109/TMI.2007.892646}}"""

    def penalty(self, field, grid):
        return self._cost(fields.jacobian_determinant(field, grid))

    def __call__(self, alignment):
        return self._cost(alignment.determinant)

    def _cost(self, determinant):
        tangent = log(self.floor) + (determinant - self.floor) / self.floor
        value = torch.where(determinant > self.floor, determinant.clamp_min(self.floor).log(), tangent)
        return value.square().flatten(1).mean(1)


def _metric(grid) -> np.ndarray:
    """(dim, dim) G = A^-1 A^-T in 1/mm^2; entries that are only rounding are 0, so orthogonal axes have no mixed terms."""
    inverse = grid.inverse_affine[:-1, :-1]
    metric = inverse @ inverse.T
    scale = np.sqrt(np.diag(metric))
    return np.where(np.abs(metric) > 1e-9 * np.outer(scale, scale), metric, 0.0)


def _mean_sum(x):
    """(B, dim, *S) -> (B,) sum over components, mean over voxels."""
    return x.flatten(2).mean(2).sum(1)


class _Second:
    """Second differences of a field (B, dim, *S) at its inner voxels; None along axes of fewer than three voxels."""

    def __init__(self, field):
        self.field, self.known = field, {}

    def __call__(self, a, b):
        key = (min(a, b), max(a, b))
        if key not in self.known:
            self.known[key] = self._difference(*key)
        return self.known[key]

    def _difference(self, a, b):
        if min(self.field.shape[-1 - a], self.field.shape[-1 - b]) < 3:
            return None
        if a == b:
            return self._at({a: 1}) + self._at({a: -1}) - 2 * self._at({})
        same = self._at({a: 1, b: 1}) + self._at({a: -1, b: -1})
        return (same - self._at({a: 1, b: -1}) - self._at({a: -1, b: 1})) / 4

    def _at(self, shift):
        """The inner voxels, moved by ``shift`` voxels along some axes."""
        view = self.field
        for axis in range(self.field.ndim - 2):
            n = view.shape[-1 - axis]
            if n >= 3:
                view = view.narrow(-1 - axis, 1 + shift.get(axis, 0), n - 2)
        return view

    def raised(self, metric, a, c):
        """(G H)_ac = sum_b G_ab H_bc, None where it is 0."""
        parts = [metric[a, b] * h for b in range(len(metric)) if metric[a, b] != 0 and (h := self(b, c)) is not None]
        return sum(parts) if parts else None
