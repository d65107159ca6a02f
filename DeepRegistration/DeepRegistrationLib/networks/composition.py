"""Registration networks made of registration networks: one that sees half the resolution, and two that follow each other.

Every network here maps (fixed, moving), both (B, C, *S), to the displacement (B, dim, *S) of fixed -> moving points, in voxels of the
lattice that it is given, components (x, y, z). So the parts nest freely:

    Downsampled(n)   u = 2 n(fixed averaged over blocks of 2, moving likewise), read between the blocks
    TwoStep(n, m)    u = n(fixed, moving),  v = m(fixed, moving o (id + u)),  id + result = (id + u) o (id + v)

``finer(n, m) = TwoStep(Downsampled(n), m)`` adds one resolution to what n has learned; with m silent at first it answers as n does, one
level finer. Three resolutions are finer(finer(n, m), k). Tian, Greer et al., GradICON, CVPR 2023.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ..geometry import Grid
from ..ops import fields, nd
from ..ops.sample import index_points, sample
from .blocks import Convolution, chain, silent
from .heads import on_lattice


class PairNetwork(nn.Module):
    """The simplest network for a pair: the images side by side through ``body``, then a layer that starts near 0.

    body: (B, 2 C, *S) -> (B, width, *S).
    """

    def __init__(self, dim: int, body: nn.Module, width: int):
        super().__init__()
        self.body, self.last = body, silent(Convolution(dim, width, dim))

    @classmethod
    def plain(cls, dim: int, channels: int = 1, widths: tuple[int, ...] = (16, 16)) -> "PairNetwork":
        """Convolutions at one resolution only: for refinements that see the neighbourhood alone."""
        return cls(dim, chain(dim, (2 * channels, *widths)), widths[-1])

    def forward(self, fixed, moving):
        return self.last(self.body(torch.cat([fixed, moving], 1)))


class Downsampled(nn.Module):
    """``network`` on both images at half resolution; its displacement is brought back to the lattice of the images."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, fixed, moving):
        coarse = self.network(nd.average_pool(fixed, 2), nd.average_pool(moving, 2))
        grid = _lattice(fixed)
        return on_lattice(coarse, halved(grid), grid)


class TwoStep(nn.Module):
    """``first``, then ``second`` on the fixed image and the moving image as ``first`` warped it; the maps are composed."""

    def __init__(self, first: nn.Module, second: nn.Module):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, fixed, moving):
        grid = _lattice(fixed)
        u = self.first(fixed, moving)
        warped = sample(moving, index_points(grid, dtype=u.dtype, device=u.device) + u.movedim(1, -1))
        return fields.compose(u, self.second(fixed, warped), grid, "border")


def finer(network: nn.Module, refinement: nn.Module) -> TwoStep:
    """``network`` at half the resolution, followed by ``refinement`` at the full one."""
    return TwoStep(Downsampled(network), refinement)


def halved(grid: Grid) -> Grid:
    """The lattice of blocks of two voxels an axis, as ``nd.average_pool`` makes them: an odd last voxel is in no block, an axis of one
    voxel stays."""
    size = np.array(grid.size)
    scale = np.where(size > 1, 2.0, 1.0)
    affine = grid.affine.copy()
    affine[:-1, -1] = grid.index_to_world((scale - 1) / 2)
    affine[:-1, :-1] = grid.matrix * scale
    return Grid(tuple(int(n) for n in (size // scale)[::-1]), affine)


def _lattice(image) -> Grid:
    return Grid(tuple(image.shape[2:]), np.eye(image.ndim - 1))
