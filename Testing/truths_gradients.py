"""Similarity of normalized gradients by its definition: a loop over shifts, to check and to time the fast way (``ops/fft.py``)."""

from __future__ import annotations

import numpy as np
import torch

from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.ops.fft import unit_gradient
from DeepRegistrationLib.ops.filters import gaussian


def smooth_noise(shape, seed: int, sigma: float = 1.5) -> Image:
    """An image of smoothed random numbers with a random mask that leaves out about a tenth."""
    generator = torch.Generator().manual_seed(seed)
    data = gaussian(torch.randn((1, 1, *shape), generator=generator), sigma)
    hidden = gaussian(torch.randn((1, 1, *shape), generator=generator), 2.0)
    return Image(data, Grid.from_parts(shape), hidden < hidden.flatten().quantile(0.9))


def normals(image: Image, epsilon: float = 1e-3) -> tuple[torch.Tensor, torch.Tensor]:
    """(dim, *S) normalized gradients and (*S) mask of 0 and 1."""
    return unit_gradient(image.data, epsilon)[0], image.mask[0, 0].to(image.data)


def overlapping(fixed, moving, shift):
    """Slices of two lattices (shapes (z, y, x)) that lie on each other; index in moving = index in fixed + shift (z, y, x)."""
    here = tuple(slice(max(0, -s), min(f, m - s)) for f, m, s in zip(fixed, moving, shift))
    return here, tuple(slice(h.start + s, h.stop + s) for h, s in zip(here, shift))


def direct(fixed, moving, shift) -> tuple[float, float]:
    """(similarity, overlap in voxels) at one shift (z, y, x); ``fixed`` and ``moving`` are pairs of normals and mask."""
    here, there = overlapping(fixed[1].shape, moving[1].shape, shift)
    both = fixed[1][here] * moving[1][there]
    product = (fixed[0][(slice(None), *here)] * moving[0][(slice(None), *there)]).sum(0).square_()
    count = float(both.sum())
    return float((product * both).sum()) / max(count, 1.0), count


def shifts_with_overlap(edge: int, dim: int, share: float) -> np.ndarray:
    """(K, dim) all shifts of two equal cubes of ``edge`` voxels that leave at least ``share`` of their voxels in common."""
    axes = np.meshgrid(*[np.arange(-edge + 1, edge)] * dim, indexing="ij")
    common = np.prod([1 - np.abs(a) / edge for a in axes], axis=0)
    return np.stack([a[common >= share] for a in axes], -1)
