"""Dense displacement fields: compose, exponentiate, invert, differentiate.

A field is (B, dim, *S), components (x, y, z) in mm, on a Grid; the map is phi(p) = p + u(p), and u is 0 outside the
lattice (it falls linearly over one voxel). Reference for the exponential: Arsigny et al., MICCAI 2006.
"""

from __future__ import annotations

import numpy as np
import torch

from ..errors import ConvergenceError
from ..geometry import Grid
from . import nd
from .sample import index_points, sample


def to_index_units(field: torch.Tensor, grid: Grid) -> torch.Tensor:
    """(B, dim, *S) mm -> (B, *S, dim) voxels of ``grid``."""
    return _mix(field.movedim(1, -1), grid.inverse_affine[:-1, :-1])


def _mix(vectors, matrix):
    """``matrix`` @ vector for channel-last vectors; a diagonal or permuted matrix costs no product."""
    m = torch.as_tensor(matrix, dtype=vectors.dtype, device=vectors.device)
    return vectors @ m.T


def sample_field(field: torch.Tensor, grid: Grid, index: torch.Tensor) -> torch.Tensor:
    """Field (B, dim, *S) at continuous ``index`` (B, *T, dim) of its grid -> (B, dim, *T), mm; 0 outside."""
    return sample(field, index, "linear", "zeros")


def compose(outer: torch.Tensor, inner: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Displacement of (id + outer) o (id + inner), both (B, dim, *S) mm on ``grid``: inner(p) + outer(p + inner(p))."""
    index = index_points(grid, dtype=inner.dtype, device=inner.device) + to_index_units(inner, grid)
    return inner + sample_field(outer, grid, index)


def exp(velocity: torch.Tensor, grid: Grid, steps: int | None = None) -> torch.Tensor:
    """Displacement of the flow of a stationary ``velocity`` (B, dim, *S) mm after unit time, by scaling and squaring.

    ``steps`` squarings; by default as many as bring the first step under a quarter of a voxel.
    """
    if steps is None:
        largest = float(to_index_units(velocity.detach(), grid).abs().max())
        steps = 0 if largest == 0 else max(0, int(np.ceil(np.log2(max(largest, 1e-12) / 0.25))))
    u = velocity / 2**steps
    for _ in range(steps):
        u = compose(u, u, grid)
    return u


def invert(field: torch.Tensor, grid: Grid, tolerance: float = 0.05, iterations: int = 50):
    """Inverse displacement by the fixed point w(p) = -u(p + w(p)), damped where it oscillates.

    Returns (w (B, dim, *S) mm, largest residual |w(p) + u(p + w(p))| in mm over the lattice). Chen et al., Med Phys 2008.
    ``tolerance`` mm ends the iteration; the caller judges the residual.
    """
    base = index_points(grid, dtype=field.dtype, device=field.device)
    w, best, best_residual, step = -field, -field, float("inf"), 1.0
    for _ in range(iterations):
        error = w + sample_field(field, grid, base + to_index_units(w, grid))
        residual = float(error.square().sum(1).max().sqrt())
        if not np.isfinite(residual):
            raise ConvergenceError("the field has no finite inverse; look at its folds before inverting it")
        if residual < best_residual:
            best, best_residual = w, residual
        else:
            step = max(0.25, step * 0.7)
        if residual <= tolerance:
            break
        w = w - step * error
    return best, best_residual


def jacobian(field: torch.Tensor, grid: Grid) -> torch.Tensor:
    """(B, dim, *S) mm -> (B, dim, dim, *S): d phi_i / d p_j = delta_ij + du_i/dp_j in world axes, central differences.

    The chain rule through the inverse index-to-world matrix makes it right for oblique and flipped grids. Along a
    one-voxel axis the field is taken as constant.
    """
    du = nd.index_gradient(field)
    to_index = torch.as_tensor(grid.inverse_affine[:-1, :-1].copy(), dtype=field.dtype, device=field.device)
    dp = torch.einsum("bik...,kj->bij...", du, to_index)
    eye = torch.eye(grid.dim, dtype=field.dtype, device=field.device)
    return dp + eye.reshape(1, grid.dim, grid.dim, *([1] * grid.dim))


def determinant(matrix: torch.Tensor) -> torch.Tensor:
    """(B, dim, dim, *S) -> (B, 1, *S), closed form."""
    m = matrix
    if m.shape[1] == 2:
        return (m[:, 0, 0] * m[:, 1, 1] - m[:, 0, 1] * m[:, 1, 0])[:, None]
    minor0 = m[:, 1, 1] * m[:, 2, 2] - m[:, 1, 2] * m[:, 2, 1]
    minor1 = m[:, 1, 0] * m[:, 2, 2] - m[:, 1, 2] * m[:, 2, 0]
    minor2 = m[:, 1, 0] * m[:, 2, 1] - m[:, 1, 1] * m[:, 2, 0]
    return (m[:, 0, 0] * minor0 - m[:, 0, 1] * minor1 + m[:, 0, 2] * minor2)[:, None]


def jacobian_determinant(field: torch.Tensor, grid: Grid) -> torch.Tensor:
    """(B, dim, *S) mm -> (B, 1, *S) determinant of d phi / d p; 1 is no change of volume, <= 0 is a fold."""
    return determinant(jacobian(field, grid))


def divergence(field: torch.Tensor, grid: Grid) -> torch.Tensor:
    """(B, dim, *S) mm -> (B, 1, *S) sum of du_i/dp_i."""
    return torch.diagonal(jacobian(field, grid), dim1=1, dim2=2).sum(-1)[:, None] - grid.dim


def curl(field: torch.Tensor, grid: Grid) -> torch.Tensor:
    """(B, dim, *S) mm -> (B, 3, *S) curl in 3D, (B, 1, *S) its one component in 2D."""
    j = jacobian(field, grid)
    if grid.dim == 2:
        return (j[:, 1, 0] - j[:, 0, 1])[:, None]
    return torch.stack([j[:, 2, 1] - j[:, 1, 2], j[:, 0, 2] - j[:, 2, 0], j[:, 1, 0] - j[:, 0, 1]], 1)
