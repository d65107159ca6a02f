"""A small residual network that gives a 2D picture a place on the unit sphere of an embedding space.

h = S(picture) / |S(picture)|, S a residual backbone (He et al., CVPR 2016) with a perceptron of two layers behind it; pictures that
show the same plate of an atlas are to lie close. Antanavicius et al., WBIR 2022, whose network begins with weights from photographs; this one
is small enough to be trained for one atlas in minutes. Normalization by groups: a picture's place does not depend on its batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..ops import nd
from .blocks import SLOPE, Convolution

GROUPS, GRID = 8, 2


class ResidualBlock(nn.Module):
    """(B, inputs, y, x) -> (B, outputs, y / 2, x / 2): two convolutions of 3 taps beside one of 1 tap."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.first, self.second = Convolution(2, inputs, outputs, stride=2), Convolution(2, outputs, outputs)
        self.beside = Convolution(2, inputs, outputs, 1, stride=2)
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, outputs) for _ in range(2))

    def forward(self, x):
        inner = F.leaky_relu(self.norms[0](self.first(x)), SLOPE)
        return F.leaky_relu(self.norms[1](self.second(inner)) + self.beside(x), SLOPE)


class PlateEmbedding(nn.Module):
    """Pictures (B, 1, size, size) of any brightness -> (B, length) of unit norm; ValueError for a size that cannot be halved often enough.

    ``places`` (plates, length): where the plates of its atlas lie; ``usual``: the distance to their own plate that most slices keep. Both are set
    once it is trained and belong to its weights.
    """

    def __init__(self, size: int = 64, plates: int = 0, widths: tuple[int, ...] = (16, 32, 64, 96), length: int = 64):
        super().__init__()
        widths = tuple(widths)
        if size % (GRID * 2 ** len(widths)) or any(width % GROUPS for width in widths):
            raise ValueError(f"size {size} must be a multiple of {GRID * 2 ** len(widths)}, widths {widths} of {GROUPS}")
        self.size = size
        self.register_buffer("places", torch.zeros(plates, length))
        self.register_buffer("usual", torch.tensor(2.0))
        self.first = Convolution(2, 1, widths[0], stride=2)
        self.blocks = nn.Sequential(*(ResidualBlock(*pair) for pair in zip(widths[:-1], widths[1:])))
        self.last = nn.Sequential(nn.Linear(widths[-1] * GRID**2, 128), nn.LeakyReLU(SLOPE), nn.Linear(128, length))

    def forward(self, pictures):
        flat = pictures.flatten(1)
        spread = flat.std(1, keepdim=True).clamp_min(1e-6)
        scaled = ((flat - flat.mean(1, keepdim=True)) / spread).reshape(pictures.shape)
        deep = self.blocks(F.leaky_relu(self.first(scaled), SLOPE))
        return F.normalize(self.last(nd.average_pool(deep, deep.shape[-1] // GRID).flatten(1)), dim=1)


def distances(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """(A, L), (B, L) of unit norm -> (A, B) Euclidean distances, 0 to 2; differentiable where two are equal."""
    return (2 - 2 * one @ other.T).clamp_min(1e-8).sqrt()
