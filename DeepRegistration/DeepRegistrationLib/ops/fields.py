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
from .filters import box
from .sample import index_points, sample

LOGARITHM_STEPS = 8


def to_index_units(field: torch.Tensor, grid: Grid) -> torch.Tensor:
    """(B, dim, *S) mm -> (B, *S, dim) voxels of ``grid``."""
    return _mix(field.movedim(1, -1), grid.inverse_affine[:-1, :-1])


def _mix(vectors, matrix):
    """``matrix`` @ vector for channel-last vectors; a diagonal or permuted matrix costs no product."""
    m = torch.as_tensor(matrix, dtype=vectors.dtype, device=vectors.device)
    return vectors @ m.T


def sample_field(field: torch.Tensor, grid: Grid, index: torch.Tensor, padding: str = "zeros") -> torch.Tensor:
    """Field (B, dim, *S) at continuous ``index`` (B, *T, dim) of its grid -> (B, dim, *T), mm; outside 0, or continued
    by its border values with ``padding`` 'border'."""
    return sample(field, index, "linear", padding)


def compose(outer: torch.Tensor, inner: torch.Tensor, grid: Grid, padding: str = "zeros") -> torch.Tensor:
    """Displacement of (id + outer) o (id + inner), both (B, dim, *S) mm on ``grid``: inner(p) + outer(p + inner(p))."""
    index = index_points(grid, dtype=inner.dtype, device=inner.device) + to_index_units(inner, grid)
    return inner + sample_field(outer, grid, index, padding)


def exp(velocity: torch.Tensor, grid: Grid, steps: int | None = None, padding: str = "zeros") -> torch.Tensor:
    """Displacement of the flow of a stationary ``velocity`` (B, dim, *S) mm after unit time, by scaling and squaring.

    ``steps`` squarings; by default as many as bring the first step under a quarter of a voxel. ``padding`` as in ``sample_field``.
    """
    if steps is None:
        largest = float(to_index_units(velocity.detach(), grid).abs().max())
        steps = 0 if largest == 0 else max(0, int(np.ceil(np.log2(max(largest, 1e-12) / 0.25))))
    u = velocity / 2**steps
    for _ in range(steps):
        u = compose(u, u, grid, padding)
    return u


def logarithm(u: torch.Tensor, grid: Grid, padding: str = "zeros") -> torch.Tensor:
    """Velocity (B, dim, *S) mm whose flow is close to id + u: v <- v + (exp(-v) o (id + u) - id) as long as what is left shrinks.

    The first order of Bossa, Hernandez and Olmos, MICCAI 2007; the displacement itself would be the velocity of another map.
    ``padding`` as in ``sample_field``.
    """
    v, left = u, compose(exp(-u, grid, padding=padding), u, grid, padding)
    for _ in range(LOGARITHM_STEPS):
        trial = v + left
        remaining = compose(exp(-trial, grid, padding=padding), u, grid, padding)
        if not float(remaining.square().mean()) < float(left.square().mean()):
            break
        v, left = trial, remaining
    return v


def invert(field: torch.Tensor, grid: Grid, tolerance: float = 0.05, iterations: int = 50, target: Grid | None = None):
    """Inverse displacement w(q) = -u(q + w(q)) on ``target`` (by default ``grid``), u continued by its border values outside.

    Every u(p) is first noted at the voxel that p is moved to; a few fixed-point steps over the lattice follow (Chen et al.,
    Med Phys 2008), then damped Newton steps where these did not reach ``tolerance`` mm. Returns w (B, dim, *T) mm and the
    largest |w(q) + u(q + w(q))| in mm over the q whose preimage q + w(q) lies in ``grid``; the caller judges this residual.
    ConvergenceError where the field is not finite.
    """
    target = target or grid
    base = index_points(target, grid, field.dtype, field.device)
    w = guess = _first_inverse(field, grid, base, target)
    for step in range(8):
        error = _inverse_error(field, grid, base, w)
        far = error.square().sum(1) > tolerance**2
        if not bool(torch.isfinite(error).all()):
            raise ConvergenceError("the field has no finite inverse; look at its folds before inverting it")
        if step == 7 or float(far.float().mean()) < 0.2:
            w, error = _newton(field, grid, base, w, guess, error, far, tolerance, iterations)
            break
        w = w - error
    where, last = base + to_index_units(w, grid), torch.tensor(grid.size, dtype=w.dtype, device=w.device) - 1
    counted = ((where > -1e-3) & (where < last + 1e-3)).all(-1)
    return w, float((error.square().sum(1) * counted).max().sqrt())


def _inverse_error(field, grid, base, w):
    """w(q) + u(q + w(q)) in mm."""
    return w + sample(field, base + to_index_units(w, grid), "linear", "border")


def _first_inverse(field, grid, base, target):
    """-u(p) at the voxel of ``target`` next to p + u(p), averaged over the p that meet there; small holes are filled from
    their neighbours and everything else has -u(q)."""
    batch, dim = field.shape[:2]
    reached = index_points(grid, target, field.dtype, field.device) + to_index_units(field, target)
    total = torch.zeros(batch, dim + 1, target.voxels, dtype=field.dtype, device=field.device)
    last = torch.tensor(target.size, device=field.device) - 1
    place = torch.minimum(reached.nan_to_num().round().long().clamp_min(0), last)
    strides = torch.tensor(np.cumprod((1, *target.size[:-1])), device=field.device)
    place = (place * strides).sum(-1).flatten(1)
    values = torch.cat([-field, torch.ones_like(field[:, :1])], 1).flatten(2)
    total = total.scatter_add_(2, place[:, None].expand(-1, dim + 1, -1), values).reshape(batch, dim + 1, *target.shape)
    near = box(total, 1, "zero")
    total = torch.where(total[:, -1:] > 0, total, near)
    count = total[:, -1:]
    other = -sample(field, base, "linear", "border").expand(batch, dim, *target.shape)
    return torch.where(count > 1e-6, total[:, :-1] / count.clamp_min(1e-6), other)


def _newton(field, grid, base, w, guess, error, far, tolerance, iterations):
    """Solve w + u(q + w) = 0 by Newton's method at the lattice points marked in ``far``; returns the new w and error."""
    w, error = w.clone(), error.clone()
    for b in range(field.shape[0]):
        active = far[b].nonzero(as_tuple=True)
        each = (slice(None), *active)
        found = _newton_list(field[b : b + 1], grid, base[0][active], (w[b][each].T, guess[b][each].T), tolerance, iterations)
        w[b][each], error[b][each] = found[0].T, found[1].T
    return w, error


def _newton_list(field, grid, goal, starts, tolerance, iterations):
    """The same for a list: goal (N, dim) voxels, two starts (N, dim) mm -> w and its error (N, dim) mm. Steps are
    halved until they improve."""
    to_index = torch.as_tensor(grid.inverse_affine[:-1, :-1].copy(), dtype=field.dtype, device=field.device)

    def moved(w):
        return sample(field, (goal[todo] + w @ to_index.T)[None], "linear", "border")[0].T

    todo = torch.arange(len(goal), device=goal.device)
    w, first = starts
    error, other = w + moved(w), first + moved(first)
    better = _square(other) < _square(error)
    w, error = torch.where(better, first, w), torch.where(better, other, error)
    step = torch.ones(len(goal), 1, dtype=w.dtype, device=w.device)
    for _ in range(iterations):
        todo = ((_square(error) > tolerance**2) & (step > 1e-3)).nonzero()[:, 0]
        if len(todo) == 0:
            break
        now, e = w[todo], error[todo]
        trial = now - step[todo] * _newton_step(moved, now, e, float(grid.spacing.min()) / 2)
        after = trial + moved(trial)
        good = _square(after) < _square(e)
        w[todo], error[todo] = torch.where(good, trial, now), torch.where(good, after, e)
        step[todo] = torch.where(good, (2 * step[todo]).clamp_max(1), step[todo] / 2)
    return w, error


def _square(vectors):
    return vectors.square().sum(-1, keepdim=True)


def _newton_step(moved, w, error, h):
    """(I + du)^-1 error with du by differences of ``h`` mm; the damped normal equations also serve where it is singular."""
    eye = torch.eye(w.shape[1], dtype=w.dtype, device=w.device)
    j = eye + torch.stack([(moved(w + h * e) - moved(w - h * e)) / (2 * h) for e in eye], -1)
    normal = j.transpose(1, 2) @ j + 1e-6 * eye
    return torch.linalg.solve(normal, j.transpose(1, 2) @ error[..., None])[..., 0]


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
