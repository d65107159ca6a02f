"""Cubic B-splines: interpolating coefficients, sampling between voxels, and free-form fields from control points.

Unser, IEEE Signal Processing Magazine 1999; Rueckert et al., IEEE TMI 1999.
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np
import torch


def cubic_weights(t: torch.Tensor) -> torch.Tensor:
    """Fractions t (...) in [0, 1) -> (..., 4) weights of the four nearest coefficients."""
    s = 1 - t
    return torch.stack([s**3 / 6, 2 / 3 - t**2 + t**3 / 2, 2 / 3 - s**2 + s**3 / 2, t**3 / 6], -1)


def cubic_coefficients(data: torch.Tensor) -> torch.Tensor:
    """Coefficients (B, C, *S) whose cubic B-spline passes through ``data`` (mirror border); not differentiable."""
    from scipy.ndimage import spline_filter1d  # here, because it costs every start a third of a second and few runs need it

    array = data.detach().cpu().double().numpy()
    for axis in range(2, array.ndim):
        if array.shape[axis] > 1:
            array = spline_filter1d(array, 3, axis, mode="mirror")
    return torch.as_tensor(array, dtype=data.dtype, device=data.device)


def cubic_sample(coefficients: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Spline of ``coefficients`` (B, C, *S) at continuous ``index`` (B or 1, *T, dim) -> (B, C, *T).

    Mirrored at the border voxels, as the coefficients are; further than half a voxel outside the value stays.
    """
    batch, channels, *shape = coefficients.shape
    targets = index.shape[1:-1]
    flat = index.reshape(index.shape[0], -1, index.shape[-1]).expand(batch, -1, -1)
    size = torch.tensor(shape[::-1], dtype=flat.dtype, device=flat.device)
    flat = torch.minimum(flat.clamp_min(-0.5), size - 0.5)
    low = flat.floor()
    weights = cubic_weights(flat - low)
    dim = len(shape)
    strides = np.cumprod([1, *shape[:0:-1]]).tolist()
    values = coefficients.reshape(batch, channels, -1)
    out = torch.zeros(batch, channels, flat.shape[1], dtype=coefficients.dtype, device=coefficients.device)
    taps = [_mirror(low[..., c, None].long() + torch.arange(-1, 3, device=flat.device), int(size[c])) for c in range(dim)]
    for offsets in itertools.product(range(4), repeat=dim):
        position = sum(taps[c][..., o] * strides[c] for c, o in enumerate(offsets))
        weight = torch.ones_like(flat[..., 0])
        for c, o in enumerate(offsets):
            weight = weight * weights[..., c, o]
        out = out + values.gather(2, position[:, None].expand(-1, channels, -1)) * weight[:, None].to(out.dtype)
    return out.reshape(batch, channels, *targets)


def _mirror(index: torch.Tensor, n: int) -> torch.Tensor:
    if n == 1:
        return torch.zeros_like(index)
    index = index.abs() % (2 * (n - 1))
    return torch.minimum(index, 2 * (n - 1) - index)


def doubled(data: torch.Tensor) -> torch.Tensor:
    """(B, C, *S) -> (B, C, *2S): the cubic spline through ``data`` at half the spacing over the same field of view; differentiable. Read linearly
    there, an image loses a small part of the detail that it loses on its own lattice."""
    return tensor_product(data, [_doubling(n) for n in data.shape[:1:-1]])


@lru_cache(maxsize=16)
def _doubling(n: int) -> np.ndarray:
    """(2n, n): the value of the spline a quarter of a voxel before and after every voxel."""
    eye = torch.eye(n, dtype=torch.float64)[:, None]
    position = ((torch.arange(2 * n, dtype=torch.float64) + 0.5) / 2 - 0.5).reshape(1, -1, 1)
    return cubic_sample(cubic_coefficients(eye), position)[:, 0].T.numpy()


def upsampling_matrix(n: int, control: int, first: float, step: float) -> np.ndarray:
    """(n, control) weights of control points at ``first + k * step`` (voxels) for every voxel of a line of n voxels."""
    position = (np.arange(n) - first) / step
    low = np.floor(position).astype(int)
    t = position - low
    weights = cubic_weights(torch.as_tensor(t)).numpy()
    m = np.zeros((n, control))
    for o in range(4):
        column = low - 1 + o
        valid = (column >= 0) & (column < control)
        np.add.at(m, (np.arange(n)[valid], column[valid]), weights[valid, o])
    return m


def tensor_product(control: torch.Tensor, matrices: list[np.ndarray]) -> torch.Tensor:
    """Control values (B, C, *K) -> (B, C, *S); ``matrices`` (n, control) per axis in (x, y, z)."""
    out = control
    for component, matrix in enumerate(matrices):
        m = torch.as_tensor(matrix, dtype=out.dtype, device=out.device)
        axis = -1 - component
        out = (out.movedim(axis, -1) @ m.T).movedim(-1, axis)
    return out
