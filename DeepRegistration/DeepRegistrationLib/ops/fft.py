"""Similarity of normalized gradient fields for every shift of one image over another, in the frequency domain.

With n = grad(A) / sqrt(|grad A|^2 + epsilon^2), masks M, and a shift chi in whole voxels,

    s(chi) = sum_x M_A(x) M_B(x + chi) <n(x; A), n(x + chi; B)>^2 / N(chi),   N(chi) = sum_x M_A(x) M_B(x + chi).

The squared product is sum_ij (n_i n_j)(A) (n_i n_j)(B): a sum of correlations of the dim (dim + 1) / 2 products of components
(those with i < j count twice), added up before the one inverse transform; a second one gives N. Öfverstedt, Lindblad and
Sladoje, Cross-Sim-NGF, Workshop on Biomedical Image Registration 2022. 2D and 3D alike, on any device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.fft import next_fast_len

from . import nd


def unit_gradient(data: torch.Tensor, epsilon: float) -> torch.Tensor:
    """(B, 1, *S) -> (B, dim, *S) along x, y, z: the gradient per voxel over its length, that of ``epsilon`` and less counts as noise."""
    gradient = nd.index_gradient(data)[:, 0]
    return gradient / (gradient.square().sum(1, keepdim=True) + max(epsilon, 1e-12) ** 2).sqrt()


def gradient_products(normals: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """normals (B, dim, *S), mask (B, 1, *S) of 0 and 1 -> (B, 1 + dim (dim + 1) / 2, *S): the mask, then the products n_i n_j inside it.

    Products with i < j are multiplied by the root of 2, so that the scalar product of two such lists is the squared product of
    the two normals.
    """
    dim, inside = normals.shape[1], normals * mask
    pairs = [(i, i) for i in range(dim)] + [(i, j) for i in range(dim) for j in range(i + 1, dim)]
    products = normals.new_empty((len(normals), 1 + len(pairs), *normals.shape[2:]))
    products[:, 0] = mask[:, 0]
    for k, (i, j) in enumerate(pairs, 1):
        torch.mul(inside[:, i], inside[:, j], out=products[:, k])
    products[:, 1 + dim:] *= 2**0.5
    return products


@dataclass(frozen=True)
class Shifts:
    """The shifts of a lattice ``moving`` over a lattice ``fixed`` (shapes (z, y, x)) that leave at least the share ``overlap`` of
    the shorter edge in common along every axis; ``padded`` is the shape on which the transforms are periodic without wrapping
    any of them."""

    fixed: tuple[int, ...]
    moving: tuple[int, ...]
    overlap: float

    @property
    def padded(self) -> tuple[int, ...]:
        common = [max(1, int(np.ceil(self.overlap * min(f, m)))) for f, m in zip(self.fixed, self.moving)]
        return tuple(next_fast_len(f + m - c, real=True) for f, m, c in zip(self.fixed, self.moving, common))

    @property
    def lowest(self) -> tuple[int, ...]:
        """Along z, y, x: index in ``moving`` less index in ``fixed`` of the first shift of the table that ``cross_similarity`` gives."""
        return tuple(m - p for m, p in zip(self.moving, self.padded))

    def spectrum(self, values: torch.Tensor) -> torch.Tensor:
        """The transform of ``values`` (..., *S) of either lattice, padded with 0."""
        return torch.fft.rfftn(values, self.padded, dim=self._axes)

    def correlation(self, spectrum: torch.Tensor) -> torch.Tensor:
        """The table (..., *T) by shift from ``lowest`` on of the correlations whose periodic ``spectrum`` (..., *F) is given."""
        for axis in self._axes[:-1]:  # what nobody asks for is left out at once, so the next ones have less to do
            spectrum = self._wanted(torch.fft.ifft(spectrum, dim=axis), axis)
        return self._wanted(torch.fft.irfft(spectrum, self.padded[-1]), -1)

    def _wanted(self, circular: torch.Tensor, axis: int) -> torch.Tensor:
        """The entries of the table along ``axis`` (negative), from those by periodic shift."""
        padded, first, last = self.padded[axis], self.lowest[axis], self.padded[axis] - self.fixed[axis]
        return torch.cat([circular.narrow(axis, padded + first, -first), circular.narrow(axis, 0, last + 1)], axis)

    @property
    def _axes(self):
        return tuple(range(-len(self.padded), 0))


def cross_similarity(fixed: torch.Tensor, moving: torch.Tensor, shifts: Shifts) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarity (B, *T) from 0 to 1 and overlap (B, *T) in voxels, by shift.

    fixed (C, *F): the conjugate spectrum of ``gradient_products``; moving (B, C, *S): the products themselves. Entry t of the
    tables is the shift ``shifts.lowest`` + t; without overlap the similarity is 0. One channel is transformed at a time, which
    keeps the work in the processor's cache and bounds the memory.
    """
    overlap = shifts.correlation(shifts.spectrum(moving[:, 0]).mul_(fixed[0])).round_()
    total = shifts.spectrum(moving[:, 1]).mul_(fixed[1])
    for k in range(2, len(fixed)):
        total.addcmul_(shifts.spectrum(moving[:, k]), fixed[k])
    similarity = shifts.correlation(total).div_(overlap.clamp_min(1))
    return similarity.mul_(overlap > 0), overlap


def best_shift(similarity: torch.Tensor, overlap: torch.Tensor, least: torch.Tensor, shifts: Shifts) -> tuple[torch.Tensor, np.ndarray]:
    """The highest similarity (B,), -inf where no shift has ``least`` (B,) voxels of overlap, and its shift (B, dim) along x, y, z."""
    allowed = torch.where(overlap >= least.reshape(-1, *[1] * (overlap.ndim - 1)), similarity, -torch.inf).flatten(1)
    score, place = allowed.max(1)
    index = np.stack(np.unravel_index(place.cpu().numpy(), tuple(similarity.shape[1:])), 1)
    return score, (index + np.array(shifts.lowest))[:, ::-1]
