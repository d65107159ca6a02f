"""The four operations of a compositive registration loop, in voxels of one lattice.

With d = fixed - warped and g = (grad fixed + grad warped) / 2 per mm, the update of symmetric demons, smoothed by a
Gaussian G, is
    v = G * (d g) / (G * (|g|^2 + d^2 / k^2) + floor),
a Gauss-Newton step for the squared difference in a neighbourhood whose length stays below k / 2 mm (each factor of the upper
sum is at most k / 2 times its partner below). Smoothing both sums and not their quotient lets edges speak for their flat
surroundings, as normalised averaging does. Several channels are summed above and below the line. Vercauteren et al.,
NeuroImage 2009 (efficient second-order forces); Thirion, MedIA 1998; Knutsson and Andersson, Signal Processing: Image
Communication 2005 (normalised averaging); Lucas and Kanade, IJCAI 1981.

``out`` and ``spare`` are tensors that the compiled path writes into, so that a loop allocates nothing; torch ignores them.

Displacements are (1, dim, *S) in voxels of the lattice, components (x, y, z) along its axes: inside the loop no world
coordinates are needed; ``to_world`` and ``from_world`` convert.
"""

from __future__ import annotations

import numpy as np
import torch

from ..geometry import Grid
from . import nd
from .filters import gaussian, gaussian_kernel
from .native import kernels_for, volumes
from .sample import apply_matrix, index_points, inside, sample

TAIL = 1e-3
WIDEST = 3.0


def to_world(u: torch.Tensor, grid: Grid) -> torch.Tensor:
    """(1, dim, *S) voxels -> mm in world axes."""
    return torch.einsum("ij,bj...->bi...", torch.as_tensor(grid.matrix.copy(), dtype=u.dtype, device=u.device), u)


def from_world(u: torch.Tensor, grid: Grid) -> torch.Tensor:
    """(1, dim, *S) mm in world axes -> voxels."""
    matrix = torch.as_tensor(grid.inverse_affine[:-1, :-1].copy(), dtype=u.dtype, device=u.device)
    return torch.einsum("ij,bj...->bi...", matrix, u)


def pull(moving, moving_mask, matrix: np.ndarray, u, fixed, fixed_mask, out=None):
    """Moving image on the fixed lattice; voxels that cannot be compared get the fixed value, so that they exert no force.

    moving (1, C, *M), masks (1, 1, *) bool or None, matrix (dim + 1, dim + 1) fixed index -> moving index, u and fixed
    (1, dim or C, *S). Not compared: outside the moving field of view, or outside either mask.
    """
    native = kernels_for(moving, u, fixed)
    if native is not None:
        out = torch.empty(fixed.shape) if out is None else out
        masks = _mask_array(moving_mask), _mask_array(fixed_mask)
        native.pull(volumes(moving), masks[0], _full_matrix(matrix), volumes(u), volumes(fixed), masks[1], volumes(out))
        return out
    grid = Grid(tuple(fixed.shape[2:]), np.eye(fixed.ndim - 1))
    index = apply_matrix(matrix, index_points(grid, dtype=u.dtype, device=u.device) + u.movedim(1, -1))
    valid = inside(index, moving.shape[2:])[:, None]
    if moving_mask is not None:
        valid = valid & (sample(moving_mask.to(u.dtype), index, "nearest") > 0.5)
    if fixed_mask is not None:
        valid = valid & fixed_mask
    return torch.where(valid, sample(moving, index), fixed)


def _mask_array(mask):
    if mask is None:
        return np.zeros((0, 0, 0), np.uint8)
    array = mask.numpy().view(np.uint8)
    return array.reshape(*(1,) * (5 - array.ndim), *array.shape[2:])


def _full_matrix(matrix):
    full = np.eye(4)
    dim = matrix.shape[0] - 1
    full[:dim, :dim], full[:dim, 3] = matrix[:dim, :dim], matrix[:dim, dim]
    return full[:3].astype(np.float32)


def update(fixed, warped, spacing, limit: float, floor: float, sigma=0.0):
    """(v (1, dim, *S) voxels, mean squared difference as a number or a tensor of one): the demons step above.

    fixed, warped (1, C, *S); spacing (dim,) mm; limit k mm; floor (intensity per mm) squared, below which a gradient is
    noise; sigma of G in voxels.
    """
    sums, cost = forces(fixed, warped, spacing, limit)
    return quotient(smooth(sums, sigma)[0], floor), cost


def quotient(sums, floor: float):
    """(1, dim, *S) the step: the channels of ``sums`` (1, dim + 1, *S) over the last one plus ``floor``; overwrites ``sums``."""
    native = kernels_for(sums)
    if native is not None and sums.is_contiguous():
        native.quotient(volumes(sums), np.float32(floor))
        return sums[:, :-1]
    return sums[:, :-1] / (sums[:, -1:] + floor)


def forces(fixed, warped, spacing, limit: float, out=None):
    """((1, dim + 1, *S): d g in voxels and, last, |g|^2 + d^2 / k^2; the mean squared difference). Arguments as in ``update``."""
    native = kernels_for(fixed, warped)
    if native is not None:
        out = torch.empty(1, fixed.ndim - 1, *fixed.shape[2:]) if out is None else out
        full = np.ones(3, np.float32)
        full[: len(spacing)] = spacing
        total = native.forces(volumes(fixed), volumes(warped), full, np.float32(limit), volumes(out))
        return out, total / fixed.numel()
    d = fixed - warped
    scale = torch.as_tensor(np.asarray(spacing, float).copy(), dtype=d.dtype, device=d.device).reshape(1, 1, -1, *[1] * (d.ndim - 2))
    g = nd.index_gradient((fixed + warped) / 2) / scale
    below = (g.square().sum((1, 2)) + d.square().sum(1) / limit**2)[:, None]
    return torch.cat([(d[:, :, None] * g).sum(1) / scale[:, 0], below], 1), d.square().mean()


def compose(u, v, out=None):
    """Displacement of (id + u) o (id + v) in voxels: v + u o (id + v), u being clamped at the border."""
    native = kernels_for(u, v)
    if native is not None:
        out = torch.empty(v.shape) if out is None else out
        native.compose(volumes(u), volumes(v), volumes(out))
        return out
    grid = Grid(tuple(u.shape[2:]), np.eye(u.ndim - 1))
    return v + sample(u, index_points(grid, dtype=u.dtype, device=u.device) + v.movedim(1, -1))


def smooth(u, sigma, spare=None):
    """(smoothed u, a tensor free for reuse): Gaussian with the border value outside; sigma voxels, a scalar or (x, y, z).
    u (1, any number of channels, *S).

    With a ``spare`` tensor of the same shape the compiled path works in ``u`` and ``spare`` and allocates nothing.
    """
    native = kernels_for(u)
    if native is None or np.max(sigma) > WIDEST or not u.is_contiguous():
        return gaussian(u, sigma, smallest=TAIL), spare
    sigma = np.broadcast_to(np.asarray(sigma, float), (u.ndim - 2,))
    data, other = (u.clone(), torch.empty_like(u)) if spare is None else (u, spare)
    for component in range(u.ndim - 2):
        n = u.shape[-1 - component]
        if sigma[component] < 0.1 or n == 1:
            continue
        kernel = gaussian_kernel(float(sigma[component]), TAIL).astype(np.float32)
        if component == 0:
            native.filter_lines(data.numpy().reshape(-1, n), kernel, other.numpy().reshape(-1, n))
        else:
            shape = (-1, n, int(np.prod(u.shape[u.ndim - component:])))
            native.filter_rows(data.numpy().reshape(shape), kernel, other.numpy().reshape(shape))
        data, other = other, data
    return data, other
