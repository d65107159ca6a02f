"""The Poisson equation on a lattice with no flow through its border, by the cosine transform; and a displacement of a wanted divergence.

    Laplacian p = f,  dp/dn = 0       P_k = F_k / sum_a (2 cos(pi k_a / n_a) - 2) / h_a^2       the mean of f is left out, that of p is 0
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.fft import dctn, idctn

from ..errors import InputError
from ..geometry import Grid
from . import nd

ORTHOGONAL = 1e-3


def solve(source: torch.Tensor, spacing) -> torch.Tensor:
    """p (1, 1, *S) with Laplacian ``source`` (1, 1, *S), its mean left out; spacing (x, y, z) mm. The second differences of the lattice are meant."""
    values = source[0, 0].detach().double().cpu().numpy()
    total = np.zeros(values.shape)
    for axis, (n, h) in enumerate(zip(values.shape, np.asarray(spacing, float)[::-1])):
        line = [1] * values.ndim
        line[axis] = n
        total = total + ((2 * np.cos(np.pi * np.arange(n) / n) - 2) / h**2).reshape(line)
    spectrum = dctn(values, norm="ortho")
    spectrum.flat[0], total.flat[0] = 0.0, 1.0
    return torch.from_numpy(idctn(spectrum / total, norm="ortho")).to(source)[None, None]


def with_divergence(wanted: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The curl-free displacement (1, dim, *S) mm on ``grid`` whose divergence is ``wanted`` (1, 1, *S) up to its mean.

    InputError for voxel axes that are not at right angles.
    """
    if np.abs(grid.direction.T @ grid.direction - np.eye(grid.dim)).max() > ORTHOGONAL:
        raise InputError(f"the voxel axes of {grid} are not at right angles; resample the images to a regular lattice")
    slope = nd.index_gradient(solve(wanted, grid.spacing))[:, 0]
    matrix = torch.as_tensor(grid.direction / grid.spacing, dtype=wanted.dtype, device=wanted.device)
    return torch.einsum("ij,bj...->bi...", matrix, slope)
