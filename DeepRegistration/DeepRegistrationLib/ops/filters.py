"""Separable smoothing of (B, C, *S) tensors; widths are in voxels per axis (methods convert from mm).

A filter along one axis is a product with a banded N x N matrix: near the peak of matrix multiplication, and the border
rule is in the matrix. Tails under 1e-5 are cut (they would become denormals). Very long axes use a convolution.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

LONGEST_MATRIX = 512


def gaussian_kernel(sigma: float) -> np.ndarray:
    """Normalised Gaussian weights at whole voxels, cut where they fall under 1e-5 of the peak."""
    radius = int(np.floor(sigma * np.sqrt(2 * np.log(1e5))))
    x = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (x / sigma) ** 2)
    return weights / weights.sum()


@lru_cache(maxsize=64)
def _matrix(n: int, kind: str, width: float, border: str) -> np.ndarray:
    """(n, n) filter matrix: row i holds the weights of output i. border 'renormalise', 'clamp' or 'zero'."""
    if kind == "gauss":
        kernel = gaussian_kernel(width)
    else:
        kernel = np.ones(2 * int(width) + 1)
        kernel = kernel / kernel.sum()
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
    """Product of ``matrix`` (n, n) with ``x`` along a tensor axis."""
    m = torch.as_tensor(matrix, dtype=x.dtype, device=x.device)
    axis = axis % x.ndim
    if axis == x.ndim - 1:
        return x @ m.T
    shape = x.shape
    flat = x.reshape(int(np.prod(shape[:axis])), shape[axis], -1)
    return torch.matmul(m, flat).reshape(shape)


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


def gaussian(x: torch.Tensor, sigma, border: str = "clamp") -> torch.Tensor:
    """Gaussian smoothing; ``sigma`` voxels, a scalar or (x, y, z); 0 leaves an axis alone."""
    return _separable(x, "gauss", sigma, border)


def box(x: torch.Tensor, radius, border: str = "renormalise") -> torch.Tensor:
    """Mean over (2 radius + 1) voxels per axis; ``radius`` a scalar or (x, y, z)."""
    return _separable(x, "box", radius, border)


def _separable(x, kind, widths, border):
    dim = x.ndim - 2
    widths = np.broadcast_to(np.asarray(widths, float), (dim,))
    for component in range(dim):
        width, axis = float(widths[component]), -1 - component
        n = x.shape[axis]
        if width < (0.1 if kind == "gauss" else 1) or n == 1:
            continue
        if n <= LONGEST_MATRIX:
            x = _along(x, _matrix(n, kind, width, border), axis)
        else:
            kernel = gaussian_kernel(width) if kind == "gauss" else np.full(2 * int(width) + 1, 1 / (2 * int(width) + 1))
            x = _convolve(x, kernel, axis, border)
    return x


def resolution_sigma(source_spacing, target_spacing) -> np.ndarray:
    """(dim,) Gaussian sigma in source voxels that takes an image from one spacing to a coarser one without aliasing.

    sigma = 0.4 * sqrt((target/source)^2 - 1), the width whose variance makes up the difference of two samplings;
    0 on axes that do not get coarser.
    """
    ratio = np.asarray(target_spacing, float) / np.asarray(source_spacing, float)
    return 0.4 * np.sqrt(np.maximum(ratio**2 - 1, 0))
