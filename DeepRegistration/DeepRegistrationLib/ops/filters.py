"""Separable smoothing of (B, C, *S) tensors; widths are in voxels per axis (methods convert from mm).

A Gaussian along one axis is a product with a banded N x N matrix: near the peak of matrix multiplication, and the border
rule is in the matrix. Tails under 1e-5 are cut (they would become denormals). Very long axes use a convolution. A box is
a sum of shifted sums.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

LONGEST_MATRIX = 512


@lru_cache(maxsize=256)
def gaussian_kernel(sigma: float, smallest: float = 1e-5) -> np.ndarray:
    """Weights of the discrete Gaussian at whole voxels, cut where they fall under ``smallest`` of the peak; their sum is 1.

    exp(-sigma^2) I_k(sigma^2), by its spectrum exp(sigma^2 (cos w - 1)): the variance is sigma^2 and two filters add up, also
    at a sigma under one voxel, where samples of the continuous Gaussian smooth far too little. Lindeberg, PAMI 1990.
    """
    half = int(np.ceil(6 * sigma)) + 8
    spectrum = np.exp(sigma**2 * (np.cos(np.pi * np.arange(half + 1) / half) - 1))
    weights = np.fft.irfft(spectrum, 2 * half)[:half]
    side = weights[1 : int(np.nonzero(weights >= smallest * weights[0])[0].max()) + 1]
    kernel = np.concatenate([side[::-1], weights[:1], side])
    return kernel / kernel.sum()


@lru_cache(maxsize=64)
def _matrix(n: int, sigma: float, border: str, smallest: float) -> np.ndarray:
    """(n, n) filter matrix: row i holds the weights of output i. border 'renormalise', 'clamp' or 'zero'."""
    kernel = gaussian_kernel(sigma, smallest)
    radius = len(kernel) // 2
    m = np.zeros((n, n))
    for offset, weight in zip(range(-radius, radius + 1), kernel):
        rows = np.arange(n)
        columns = rows + offset
        if border == "clamp":
            np.add.at(m, (rows, columns.clip(0, n - 1)), weight)
        else:
            valid = (columns >= 0) & (columns < n)
            m[rows[valid], columns[valid]] += weight
    if border == "renormalise":
        m /= m.sum(1, keepdims=True)
    return m


def _along(x: torch.Tensor, matrix: np.ndarray, axis: int) -> torch.Tensor:
    """Product of ``matrix`` (m, n) with ``x`` along a tensor axis of n."""
    m = torch.as_tensor(matrix, dtype=x.dtype, device=x.device)
    axis = axis % x.ndim
    if axis == x.ndim - 1:
        return x @ m.T
    shape = x.shape
    flat = x.reshape(int(np.prod(shape[:axis])), shape[axis], -1)
    return torch.matmul(m, flat).reshape(*shape[:axis], m.shape[0], *shape[axis + 1:])


def _convolve(x, kernel, axis, border):
    """The same filter for axes too long for a matrix."""
    axis = axis % x.ndim
    moved = x.movedim(axis, -1)
    shape = moved.shape
    radius = len(kernel) // 2
    flat = moved.reshape(-1, 1, shape[-1])
    flat = F.pad(flat, (radius, radius), mode="replicate") if border == "clamp" else F.pad(flat, (radius, radius))
    weight = torch.as_tensor(kernel, dtype=x.dtype, device=x.device).reshape(1, 1, -1)
    out = F.conv1d(flat, weight)
    if border == "renormalise":
        ones = F.conv1d(F.pad(torch.ones(1, 1, shape[-1], dtype=x.dtype, device=x.device), (radius, radius)), weight)
        out = out / ones
    return out.reshape(shape).movedim(-1, axis)


def gaussian(x: torch.Tensor, sigma, border: str = "clamp", smallest: float = 1e-5) -> torch.Tensor:
    """Gaussian smoothing; ``sigma`` voxels, a scalar or (x, y, z), 0 leaves an axis alone; tails are cut at ``smallest``."""
    return _separable(x, sigma, border, smallest)


def coarsened(x: torch.Tensor, size, sigma) -> torch.Tensor:
    """``gaussian(x, sigma)`` read by linear interpolation at ``size`` (x, y, z) voxels over the same field of view, in one product an axis:
    what the next axis costs falls with every axis done. ``sigma`` voxels of ``x``, (x, y, z); clamped at the border."""
    _check(x, "clamp")
    for component, (new, width) in enumerate(zip(size, sigma)):
        axis, n, width = -1 - component, x.shape[-1 - component], float(width)
        if new == n:
            x = x if width < 0.1 or n == 1 else _smoothed_along(x, width, axis)
        elif n <= LONGEST_MATRIX:
            x = _along(x, _coarsening(n, int(new), width), axis)
        else:
            low, share = _between(n, int(new))
            x = _smoothed_along(x, width, axis)
            share = torch.as_tensor(share, dtype=x.dtype, device=x.device).reshape(-1, *[1] * component)
            low = torch.as_tensor(low, device=x.device)
            x = torch.lerp(x.index_select(axis, low), x.index_select(axis, (low + 1).clamp_max(n - 1)), share)
    return x


def _smoothed_along(x, sigma, axis):
    n = x.shape[axis]
    return _along(x, _matrix(n, sigma, "clamp", 1e-5), axis) if n <= LONGEST_MATRIX else _convolve(x, gaussian_kernel(sigma), axis, "clamp")


@lru_cache(maxsize=64)
def _coarsening(n: int, new: int, sigma: float) -> np.ndarray:
    """(new, n): smoothing and linear interpolation as one matrix."""
    low, share = _between(n, new)
    smooth = np.eye(n) if sigma < 0.1 else _matrix(n, sigma, "clamp", 1e-5)
    return (1 - share)[:, None] * smooth[low] + share[:, None] * smooth[np.minimum(low + 1, n - 1)]


def _between(n: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """(index below, share of the next voxel) of the centers of ``new`` voxels over the field of view of ``n``."""
    position = np.clip((np.arange(new) + 0.5) * n / new - 0.5, 0, n - 1)
    low = np.floor(position).astype(np.int64)
    return low, position - low


def box(x: torch.Tensor, radius, border: str = "renormalise") -> torch.Tensor:
    """Mean over (2 radius + 1) voxels per axis; ``radius`` a scalar or (x, y, z)."""
    _check(x, border)
    dim, shape = x.ndim - 2, x.shape
    radius = [int(r) if n > 1 else 0 for r, n in zip(np.broadcast_to(np.asarray(radius, float), (dim,)), shape[:1:-1])]
    if not any(radius):
        return x
    margins = [m for r in radius for m in (r, r)]
    x = F.pad(x, margins, mode="replicate") if border == "clamp" else F.pad(x, margins)
    for component, r in enumerate(radius):
        x = window_sum(x, 2 * r + 1, -1 - component)
    if border != "renormalise":
        return x.mul_(1 / np.prod([2 * r + 1 for r in radius]))
    for component, r in enumerate(radius):
        if r > 0:
            position = np.arange(shape[-1 - component])
            share = 1 / (np.minimum(position, r) + 1 + np.minimum(position[::-1], r))
            x = x.mul_(torch.as_tensor(share, dtype=x.dtype, device=x.device).reshape(-1, *[1] * component))
    return x


def _check(x, border):
    if border not in ("clamp", "renormalise", "zero") or not x.is_floating_point():
        raise ValueError(f"a filter of {x.dtype} with border '{border}'; a floating type and clamp, renormalise or zero are known")


def _separable(x, sigmas, border, smallest):
    dim = x.ndim - 2
    _check(x, border)
    sigmas = np.broadcast_to(np.asarray(sigmas, float), (dim,))
    for component in range(dim):
        sigma, axis = float(sigmas[component]), -1 - component
        n = x.shape[axis]
        if sigma < 0.1 or n == 1:
            continue
        if n <= LONGEST_MATRIX:
            x = _along(x, _matrix(n, sigma, border, smallest), axis)
        else:
            x = _convolve(x, gaussian_kernel(sigma, smallest), axis, border)
    return x


def window_sum(x: torch.Tensor, width: int, axis: int) -> torch.Tensor:
    """Sum over every ``width`` consecutive voxels along ``axis``; the result is ``width - 1`` voxels shorter.

    Sums of 1, 2, 4, ... voxels are added, so the cost grows with the logarithm of the width.
    """
    n = x.shape[axis] - width + 1
    total, owned, offset, power = None, False, 0, 1
    while True:
        if width & power:
            piece = x.narrow(axis, offset, n)
            total, owned = (piece, False) if total is None else (total.add_(piece) if owned else total + piece, True)
            offset += power
        power *= 2
        if power > width:
            return total
        half = x.shape[axis] - power // 2
        x = x.narrow(axis, 0, half) + x.narrow(axis, power // 2, half)


def resolution_sigma(source_spacing, target_spacing) -> np.ndarray:
    """(dim,) Gaussian sigma in source voxels that takes an image from one spacing to a coarser one without aliasing.

    sigma = 0.4 * sqrt((target/source)^2 - 1), the width whose variance makes up the difference of two samplings;
    0 on axes that do not get coarser.
    """
    ratio = np.asarray(target_spacing, float) / np.asarray(source_spacing, float)
    return 0.4 * np.sqrt(np.maximum(ratio**2 - 1, 0))
