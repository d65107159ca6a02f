"""Inverse consistency of two maps, A -> B and B -> A: how far their composition R(T(p)) is from p.

InverseConsistency          mean |R(T(p)) - p|^2, mm^2                      Christensen and Johnson, IEEE TMI 2001
GradientInverseConsistency  mean |d (R(T(p)) - p) / dp|^2, Frobenius norm   Tian, Greer et al., CVPR 2023

The second forgives a common shift and leaves the maps more freedom, so it may be weighted far more strongly. Its
derivative is a forward difference, which is exact in the interior of a linearly interpolated voxel, or, for maps that are formulas
of the point (coordinate networks), the exact one by automatic differentiation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..errors import InputError
from ..ops.sample import apply_matrix, inside
from ..transforms.parts import items_of
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

    step is the length of the difference, as a share of the smallest voxel spacing. With ``exact`` the derivative is the one of
    torch.autograd: for transforms and callables that can be differentiated twice, InputError for those that are read from a lattice.
    ``probes`` > 0 takes the mean over that many random signs s of |s^T D|^2 instead of all rows of D, the derivative: the same on
    average for less work (Hutchinson 1990).
    Points come from ``generator`` (new ones in every call, for training) or, without one, from ``seed`` (the same in every call, so
    the cost is a function). Points that land outside the moving image do not count. InputError where ``alignment.reverse`` is missing.
    """

    samples: int = 16384
    step: float = 0.1
    seed: int = 0
    generator: torch.Generator | None = None
    exact: bool = False
    probes: int = 0

    reference = """@inproceedings{Tian2023GradICON,
  author = {Tian, Lin and Greer, Hastings and Vialard, Fran{\\c{c}}ois-Xavier and Kwitt, Roland and Est{\\'e}par, Ra{\\'u}l San Jos{\\'e}
  and Rushmore, Richard Jarrett and Makris, Nikolaos and Bouix, Sylvain and Niethammer, Marc},
  title = {{GradICON}: Approximate Diffeomorphisms via Gradient Inverse Consistency},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition}, pages = {18084--18094}, year = {2023},
  doi = {10.1109/CVPR52729.2023.01734}}"""

    def __call__(self, alignment):
        reverse, forward = _reverse(alignment), alignment.transform
        generator = self.generator or torch.Generator().manual_seed(self.seed)
        points = self._points(alignment, generator)
        if self.exact:
            for each in (forward, reverse):
                _require_formula(each)
            moved, squares = self._differentiated(forward, reverse, points, generator)
        else:
            moved, squares = self._differences(forward, reverse, points, alignment.grid)
        index = apply_matrix(alignment.moving.grid.inverse_affine, moved.detach())
        counts = inside(index, alignment.moving.grid.shape).to(squares.dtype)
        return (squares * counts).sum(1) / counts.sum(1).clamp_min(1)

    def _points(self, alignment, generator):
        """(1, samples, dim) mm, uniform in the fixed image between its outermost voxel centres."""
        data, grid = alignment.fixed.data, alignment.grid
        last = torch.tensor(grid.size, dtype=torch.float64) - 1
        index = torch.rand(1, self.samples, grid.dim, generator=generator, dtype=torch.float64, device=generator.device)
        return apply_matrix(grid.affine, index.cpu() * last).to(data)

    def _differences(self, forward, reverse, points, grid):
        """T(p) and the squared norm (B, N) of the derivative by forward differences along the axes of the lattice."""
        step = self.step * float(grid.spacing.min())
        moved = forward(points)
        error, total = reverse(moved) - points, 0.0
        for direction in torch.as_tensor(_axes(grid)).to(points):
            shifted = points + step * direction
            slope = (reverse(forward(shifted)) - shifted - error) / step
            total = total + slope.square().sum(-1)
        return moved, total

    def _differentiated(self, forward, reverse, points, generator):
        """The same by autograd. A map acts on each point alone, so a row of every point's derivative is the gradient of one sum."""
        recording = torch.is_grad_enabled()
        with torch.enable_grad():
            points = points.clone().requires_grad_(True)
            moved = forward(points)
            if moved.shape[0] > 1:  # each map of a batch needs points of its own
                points = points.detach().repeat(moved.shape[0], 1, 1).requires_grad_(True)
                moved = forward(points)
            error = reverse(moved) - points
            total = 0.0
            for rows in self._rows(error, generator):
                (slope,) = torch.autograd.grad((error * rows).sum(), points, create_graph=recording, retain_graph=True)
                total = total + slope.square().sum(-1)
        return moved, total / self.probes if self.probes else total

    def _rows(self, error, generator):
        """What the rows of the derivative are multiplied by: each alone, or ``probes`` times all of them with random signs."""
        if not self.probes:
            return torch.eye(error.shape[-1], dtype=error.dtype, device=error.device)
        signs = torch.randint(0, 2, (self.probes, *error.shape), generator=generator, device=generator.device)
        return (2 * signs - 1).to(error)


def _require_formula(transform):
    """Linear interpolation on a lattice has no second derivative, which the optimisation of an exact derivative needs."""
    for item in items_of(transform):
        if hasattr(item, "grid"):
            raise InputError(f"the exact derivative was asked for, but a {type(item).__name__} is read from a lattice; "
                             "use the difference (exact=False), or a coordinate network")


def _axes(grid):
    """(dim, dim) orthonormal directions in its rows that turn with the grid: the voxel axes where these are orthogonal."""
    axes, triangle = np.linalg.qr(grid.direction)
    return (axes * np.sign(np.diag(triangle))).T


def _reverse(alignment):
    if alignment.reverse is None:
        raise InputError("inverse consistency was asked for but the reverse map is missing; give the reverse alignment or remove the cost")
    return alignment.reverse.transform
