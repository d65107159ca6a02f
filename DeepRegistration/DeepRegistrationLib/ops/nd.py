"""Operations that exist per dimension in torch, chosen by the number of axes of the input; tensors are (B, C, *S)."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def dim_of(x: torch.Tensor) -> int:
    """Number of spatial axes of (B, C, *S)."""
    return x.ndim - 2


def axis_of(component: int, dim: int) -> int:
    """The tensor axis, counted from the end, along which vector component 0 (x), 1 (y), 2 (z) runs."""
    if not 0 <= component < dim:
        raise ValueError(f"component {component} of a {dim}D vector")
    return -1 - component


def conv(x, weight, bias=None, stride=1, padding=0):
    """Convolution in as many axes as ``x`` (B, C, *S) has."""
    return (F.conv1d, F.conv2d, F.conv3d)[dim_of(x) - 1](x, weight, bias, stride, padding)


def average_pool(x, size):
    """Mean over blocks of ``size`` voxels, one number or (x, y, z); an axis shorter than a block stays as it is."""
    sizes = list(size)[::-1] if hasattr(size, "__len__") else [size] * dim_of(x)
    kernel = [int(k) if n >= k else 1 for n, k in zip(x.shape[2:], sizes)]
    if not x.requires_grad and all(k == 1 or (k == 2 and n % 2 == 0) for n, k in zip(x.shape[2:], kernel)):
        return _mean_of_pairs(x, [axis for axis, k in enumerate(kernel, 2) if k == 2])
    return (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[dim_of(x) - 1](x, kernel, kernel)


def _mean_of_pairs(x, axes):
    """The same for blocks of two voxels along ``axes`` in a third of the time."""
    for axis in reversed(axes):
        one, other = (x[(slice(None),) * axis + (slice(k, None, 2),)] for k in (0, 1))
        x = one + other
    return x.mul_(0.5 ** len(axes)) if axes else x


def doubled(x, shape):
    """(B, C, *S) between its voxels on the lattice ``shape`` of the same field of view, whose axes have twice as many voxels or as many: what
    sampling there linearly gives, clamped at the border, without a list of positions."""
    for axis in range(x.ndim - 1, 1, -1):  # the largest step copies whole planes
        n, size = x.shape[axis], shape[axis - 2]
        if size == n:
            continue
        out = x.new_empty((*x.shape[:axis], size, *x.shape[axis + 1:]))
        even, odd = (out[(slice(None),) * axis + (slice(k, None, 2),)] for k in (0, 1))
        before, after = x.narrow(axis, 0, n - 1), x.narrow(axis, 1, n - 1)
        torch.lerp(after, before, 0.25, out=even.narrow(axis, 1, n - 1))
        torch.lerp(before, after, 0.25, out=odd.narrow(axis, 0, n - 1))
        even.narrow(axis, 0, 1).copy_(x.narrow(axis, 0, 1))
        odd.narrow(axis, n - 1, 1).copy_(x.narrow(axis, n - 1, 1))
        x = out
    return x


def max_pool(x, size: int, stride: int | None = None, padding: int = 0):
    """Maximum over windows of ``size`` voxels."""
    return (F.max_pool1d, F.max_pool2d, F.max_pool3d)[dim_of(x) - 1](x, size, stride or size, padding)


def repeat(x, count: int = 2):
    """Every voxel ``count`` times along every axis: (B, C, *S) -> (B, C, *count S), the nearest neighbour of a finer lattice."""
    return F.interpolate(x, scale_factor=float(count), mode="nearest")


def derivative(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Central difference along one tensor axis in units per voxel, one-sided at the ends, 0 on a one-voxel axis."""
    n = x.shape[axis]
    if n == 1:
        return torch.zeros_like(x)
    out = torch.empty_like(x)
    low, high = x.narrow(axis, 0, n - 2), x.narrow(axis, 2, n - 2)
    out.narrow(axis, 1, n - 2).copy_(high - low).mul_(0.5) if n > 2 else None
    out.narrow(axis, 0, 1).copy_(x.narrow(axis, 1, 1) - x.narrow(axis, 0, 1))
    out.narrow(axis, n - 1, 1).copy_(x.narrow(axis, n - 1, 1) - x.narrow(axis, n - 2, 1))
    return out


def index_gradient(x: torch.Tensor) -> torch.Tensor:
    """(B, C, *S) -> (B, C, dim, *S): derivatives along x, y, z per voxel."""
    dim = dim_of(x)
    return torch.stack([derivative(x, axis_of(c, dim)) for c in range(dim)], 2)


def spatial_mean(x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """(B, C, *S) -> (B,) mean over channels and voxels, of the mask (B, 1, *S) where one is given; 0 for an empty mask."""
    if mask is None:
        return x.flatten(1).mean(1)
    weight = mask.to(x.dtype)
    total = (x * weight).flatten(1).sum(1)
    return total / (weight.flatten(1).sum(1) * x.shape[1]).clamp_min(1)
