"""Inverse consistency of two maps, A -> B and B -> A: how far their composition R(T(p)) is from p.

InverseConsistency          mean |R(T(p)) - p|^2, mm^2                      Christensen and Johnson, IEEE TMI 2001
GradientInverseConsistency  mean |d (R(T(p)) - p) / dp|^2, Frobenius norm   Tian, Greer et al., CVPR 2023

The second forgives a common shift and leaves the maps more freedom, so it may be weighted far more strongly. Its
derivative is a forward difference, which is exact in the interior of a linearly interpolated voxel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..errors import InputError
from ..ops.sample import apply_matrix, inside
from .base import Term


@dataclass(frozen=True)
class InverseConsistency(Term):
    """Mean squared distance (mm^2) of R(T(p)) and p over the voxels p of the fixed grid that land in the moving image.

    T is the alignment's map and R that of ``alignment.reverse``; InputError where there is none.
    """

    reference = """@article{Christensen2001Consistent,
  author = {Christensen, Gary E. and Johnson, Hans J.}, title = {Consistent Image Registration},
  journal = {IEEE Transactions on Medical Imaging}, volume = {20}, number = {7}, pages = {568--582}, year = {2001},
  doi = {10.1109/42.932742}}"""

    def __call__(self, alignment):
        reverse = _reverse(alignment)
        field = alignment.field
        batch, dim = field.shape[:2]
        moved = apply_matrix(alignment.moving.grid.affine, alignment.moving_index).reshape(batch, -1, dim)
        offset = (reverse(moved) - moved) + field.flatten(2).movedim(1, -1)
        counts = inside(alignment.moving_index.detach(), alignment.moving.grid.shape).reshape(batch, -1).to(field.dtype)
        return (offset.square().sum(-1) * counts).sum(1) / counts.sum(1).clamp_min(1)


@dataclass(frozen=True)
class GradientInverseConsistency(Term):
    """Mean squared Frobenius norm of the derivative of R(T(p)) - p at ``samples`` random points of the fixed image.

    step is the length of the difference, as a share of the smallest voxel spacing. Points come from ``generator`` (new
    ones in every call, for training) or, without one, from ``seed`` (the same in every call, so the cost is a function).
    Points that land outside the moving image do not count. InputError where ``alignment.reverse`` is missing.
    """

    samples: int = 16384
    step: float = 0.1
    seed: int = 0
    generator: torch.Generator | None = None

    reference = """@inproceedings{Tian2023GradICON,
  author = {Tian, Lin and Greer, Hastings and Vialard, Fran{\\c{c}}ois-Xavier and Kwitt, Roland and Est{\\'e}par, Ra{\\'u}l San Jos{\\'e}
  and Rushmore, Richard Jarrett and Makris, Nikolaos and Bouix, Sylvain and Niethammer, Marc},
  title = {{GradICON}: Approximate Diffeomorphisms via Gradient Inverse Consistency},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition}, pages = {18084--18094}, year = {2023},
  doi = {10.1109/CVPR52729.2023.01734}}"""

    def __call__(self, alignment):
        reverse, forward = _reverse(alignment), alignment.transform
        points = self._points(alignment)
        step = self.step * float(alignment.grid.spacing.min())
        moved = forward(points)
        error = reverse(moved) - points
        index = apply_matrix(alignment.moving.grid.inverse_affine, moved.detach())
        counts = inside(index, alignment.moving.grid.shape).to(error.dtype)
        total = 0.0
        for direction in torch.as_tensor(_axes(alignment.grid)).to(points):
            shifted = points + step * direction
            slope = (reverse(forward(shifted)) - shifted - error) / step
            total = total + (slope.square().sum(-1) * counts).sum(1)
        return total / counts.sum(1).clamp_min(1)

    def _points(self, alignment):
        """(1, samples, dim) mm, uniform in the fixed image between its outermost voxel centres."""
        data, grid = alignment.fixed.data, alignment.grid
        generator = self.generator or torch.Generator().manual_seed(self.seed)
        last = torch.tensor(grid.size, dtype=torch.float64) - 1
        index = torch.rand(1, self.samples, grid.dim, generator=generator, dtype=torch.float64, device=generator.device)
        return apply_matrix(grid.affine, index.cpu() * last).to(data)


def _axes(grid):
    """(dim, dim) orthonormal directions in its rows that turn with the grid: the voxel axes where these are orthogonal."""
    axes, triangle = np.linalg.qr(grid.direction)
    return (axes * np.sign(np.diag(triangle))).T


def _reverse(alignment):
    if alignment.reverse is None:
        raise InputError("inverse consistency was asked for but the reverse map is missing; give the reverse alignment or remove the cost")
    return alignment.reverse.transform
