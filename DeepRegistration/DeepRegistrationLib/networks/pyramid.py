"""A recursive network for one pair, exactly inverse consistent by its construction: demons in learned features.

Both images and their MIND-SSC are halved until the coarsest level is reached; every level is treated by the same small network, so
what it learns is how to align in voxels, at any scale. At a level, features f and m are read where the maps a and b carry the
fixed and the moving image (to a space half way between them); with d = f - m and g the mean gradient of f and m, a step is

    v = G * ( w G*(d g) / (G*(|g|^2 + d^2) + floor) + N(f, m) - N(m, f) ),   a <- a o exp(-v/2),   b <- b o exp(v/2),

N a few convolutions at half the resolution, which also see what small displacements would cost (``correlation``), bounded, and
0 < w < 2 a symmetric output of theirs. Every part changes its sign when the images are exchanged, so T = b o a^-1 becomes its
inverse (Greer et al., MICCAI 2023; Honkamaa and Marttinen, SITReg, MELBA 2024). The features are MIND-SSC (Heinrich et al., MICCAI
2013), which knows no contrast, beside learned ones; averaging them for the coarse levels is ConvexAdam's. Demons: Vercauteren et al.,
NeuroImage 2009.
All displacements are in voxels of their level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..geometry import Grid
from ..ops import fields, nd
from ..ops.features import mind_ssc
from ..ops.filters import gaussian
from ..ops.sample import index_points, resample, sample
from .blocks import Convolution, chain, silent
from .correlation import local_costs, offsets

SQUARINGS = 4
FLOOR = 1e-3
LONGEST = 1.5


@dataclass(frozen=True, eq=False)
class LevelMaps:
    """What is known after a step: displacements (B, dim, *S) in voxels of a level ``factor`` times coarser than the input: fixed -> moving, and back."""

    forward: torch.Tensor
    backward: torch.Tensor
    factor: int


class SymmetricPyramid(nn.Module):
    """(fixed, moving), both (B, 1, *S) in [0, 1], sides divisible by 2^levels -> one LevelMaps a step, coarse to fine.

    learned: channels of the features beside MIND's; hidden, width: channels of the convolutions for features and for a step;
    smoothing: sigma of a step in voxels.
    """

    def __init__(self, dim: int, learned: int = 12, hidden: int = 16, width: int = 40, smoothing: float = 1.2):
        super().__init__()
        self.dim, self.smoothing = dim, smoothing
        described = 12 if dim == 3 else 4
        self.encoder = nn.Sequential(*chain(dim, (1 + described, hidden, hidden)), silent(Convolution(dim, hidden, learned), 1e-2))
        self.scale = nn.Parameter(torch.ones(described))
        channels = described + learned
        seen = 2 * channels + 2 * dim + 2 + 3**dim
        self.step = nn.Sequential(*chain(dim, (seen, width, width)), silent(Convolution(dim, width, dim + 1), 1e-3))
        self.sharpness = nn.Parameter(torch.tensor(1.0))
        self.share = nn.Parameter(torch.tensor(0.0))

    def forward(self, fixed, moving, levels: int, steps: tuple[int, ...]) -> list[LevelMaps]:
        """``steps`` says how often the step is repeated on each level, coarse to fine; one LevelMaps a step. While training, a step
        learns from its own share of the map: what came before it is taken as given."""
        return list(self.by_step(fixed, moving, levels, steps))

    def by_step(self, fixed, moving, levels: int, steps: tuple[int, ...]):
        """The same, step by step, so that a caller may show each and stop between them."""
        images = torch.cat([fixed, moving])
        pyramid = [torch.cat([images, mind_ssc(images, radius=1, dilation=1)], 1)]
        for _ in range(levels - 1):
            pyramid.append(nd.average_pool(pyramid[-1], 2))
        state = None
        for k, described in enumerate(reversed(pyramid)):
            grid = Grid(tuple(described.shape[2:]), np.eye(self.dim + 1))
            features = self.features(described)
            state = self._carried(state, features, grid)
            for _ in range(steps[k]):
                state = self._stepped(features, state.detach(), grid)
                to_fixed, to_moving, from_fixed, from_moving = state.chunk(4)
                both = fields.compose(torch.cat([to_moving, to_fixed]), torch.cat([from_fixed, from_moving]), grid, "border")
                yield LevelMaps(*both.chunk(2), 2 ** (levels - 1 - k))

    def features(self, described):
        """(N, 1 + D, *S) image and MIND-SSC -> (N, C, *S): MIND-SSC with learned weights of its channels, and learned features."""
        scale = self.scale.reshape(1, -1, *[1] * self.dim)
        return torch.cat([described[:, 1:] * scale, self.encoder(described)], 1)

    def _carried(self, state, features, grid):
        """a, b, a^-1, b^-1 one after the other on the batch axis (4 B, dim, *S), on this level's lattice."""
        if state is None:
            return features.new_zeros(2 * features.shape[0], self.dim, *grid.shape)
        return 2 * resample(state, _coarser(grid, state.shape[2:]), grid)

    def _stepped(self, features, state, grid):
        to_fixed, to_moving, from_fixed, from_moving = state.chunk(4)
        index = index_points(grid, dtype=state.dtype, device=state.device)
        halves = torch.cat([to_fixed, to_moving])
        f, m = sample(features, index + halves.movedim(1, -1)).chunk(2)
        v = self.velocity(f, m)
        plus, minus = fields.exp(torch.cat([v, -v]) / 2, grid, SQUARINGS, "border").chunk(2)
        outer = torch.cat([to_fixed, to_moving, plus, minus])
        inner = torch.cat([minus, plus, from_fixed, from_moving])
        return fields.compose(outer, inner, grid, "border")

    def velocity(self, f, m):
        """(B, C, *S) features of both images -> (B, dim, *S); f and m exchanged give its negative."""
        d, middle = f - m, (f + m) / 2
        error, sharp, forces = d.square().mean(1, keepdim=True), 0.0, []
        for component in range(self.dim):
            g = nd.derivative(middle, nd.axis_of(component, self.dim))
            forces.append((d * g).mean(1, keepdim=True))
            sharp = sharp + g.square().mean(1, keepdim=True)
        averaged = gaussian(torch.cat([*forces, sharp + error], 1), 1.0)
        demons = averaged[:, :-1] / (averaged[:, -1:] + FLOOR)
        one, other = self._at_half_resolution(f, m, torch.cat([demons, sharp, error], 1)).chunk(2)
        gain = 2 * torch.sigmoid(one[:, -1:] + other[:, -1:])
        return gaussian(gain * demons + one[:, :-1] - other[:, :-1], self.smoothing)

    def _at_half_resolution(self, f, m, figures):
        """(2 B, dim + 1, *S) what the convolutions say of (f, m) and of (m, f): half of the odd part, and the even part. They see
        blocks of two voxels an axis; ``figures`` are demons, sharpness and error of (f, m)."""
        grid = Grid(tuple(f.shape[2:]), np.eye(self.dim + 1))
        f, m, figures = (nd.average_pool(x, 2) for x in (f, m, figures))
        turned = torch.cat([-figures[:, : self.dim], figures[:, self.dim :]], 1)
        costs = torch.cat([local_costs(f, m), local_costs(m, f)])
        contrast = costs / (costs.mean(1, keepdim=True) + FLOOR) - 1
        nearest = torch.softmax(-self.sharpness.exp() * contrast, 1)
        matched = torch.einsum("bd...,dc->bc...", nearest, offsets(self.dim).to(nearest))
        pairs = torch.cat([torch.cat([f, m, figures], 1), torch.cat([m, f, turned], 1)])
        said = self.step(torch.cat([pairs, contrast, matched], 1))
        odd = self.share * matched + LONGEST * torch.tanh(said[:, :-1] / LONGEST)
        half = torch.cat([odd, said[:, -1:]], 1)
        return resample(half, _coarser(grid, half.shape[2:]), grid)


def _coarser(grid: Grid, shape) -> Grid:
    """The lattice of ``shape`` whose voxels are blocks of those of ``grid``, in voxels of ``grid``."""
    scale = np.array(grid.size) / np.array(tuple(shape)[::-1])
    return Grid(tuple(shape), np.vstack([np.hstack([np.diag(scale), ((scale - 1) / 2)[:, None]]), np.eye(grid.dim + 1)[-1:]]))
