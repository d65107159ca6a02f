"""Registration networks made of registration networks: one that sees half the resolution, and two that follow each other.

Every network here maps (fixed, moving), both (B, C, *S), to the displacement (B, dim, *S) of fixed -> moving points, in voxels of the
lattice that it is given, components (x, y, z). So the parts nest freely:

    Downsampled(n)   u = 2 n(fixed averaged over blocks of 2, moving likewise), read between the blocks
    TwoStep(n, m)    u = n(fixed, moving),  v = m(fixed, moving o (id + u)),  id + result = (id + u) o (id + v)

``finer(n, m) = TwoStep(Downsampled(n), m)`` adds one resolution to what n has learned; with m silent at first it answers as n does, one
level finer. ``MultiResolution`` is that of U-Nets: finer(finer(n, m), k) for three resolutions, each trained before the next one is
added (``train/resolutions.py``). Tian, Greer et al., GradICON, CVPR 2023.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from ..geometry import Grid
from ..ops import fields, nd
from ..ops.sample import index_points, sample
from .heads import on_lattice
from .unet import UNet


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


class MultiResolution(nn.Module):
    """U-Nets of ``resolutions`` sizes: the first sees the images averaged over blocks of 2^(resolutions - 1) voxels, every further one twice
    the resolution and the moving image warped by those before it.

    encoder, decoder, tail, channels: of each ``UNet``. (B, channels, *S) with sides divisible by ``multiple``. ValueError as ``UNet``.
    """

    output = "displacement"

    def __init__(self, dim: int, resolutions: int = 3, encoder=(16, 32, 32), decoder=(32, 32, 32), tail=(16,), channels: int = 1):
        super().__init__()
        if resolutions < 1:
            raise ValueError(f"{resolutions} resolutions were asked for; at least 1 is needed")
        self.dim, self.resolutions = dim, resolutions
        self.shape = {"encoder": encoder, "decoder": decoder, "tail": tail, "channels": channels}
        self.network = UNet(dim, **self.shape)
        self.multiple = self.network.multiple * 2 ** (resolutions - 1)
        for _ in range(resolutions - 1):
            self.network = finer(self.network, UNet(dim, **self.shape))

    def forward(self, fixed, moving):
        return self.network(fixed, moving)

    def by_resolution(self) -> list[nn.Module]:
        """The networks of 1, 2, ... resolutions that it is made of, each for images twice as fine as the one before; the last one is the whole."""
        found = [self.network]
        for _ in range(self.resolutions - 1):
            found.insert(0, found[0].first.network)
        return found


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
