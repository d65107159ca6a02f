"""A network that draws an atlas of an age, in 2D and 3D.

    f_j(a) = exp(-(J - 1)^2 (a - j / (J - 1))^2 / 2),   x = linear(f(a)) on the coarsest lattice,   x <- leaky(convolution(doubled x)) twice,
    A(a) = base + convolution(x)

with a from 0 to 1. ``base`` is an image of its own parameters, the network says what changes with age. Dalca, Rakic, Guttag and Sabuncu, Learning
Conditional Deformable Templates, NeurIPS 2019, who give the age itself to the linear layer; Gaussians of it let the atlas follow growth that
is not steady.
"""

from __future__ import annotations

import torch
from torch import nn

from ..ops import nd
from .blocks import SLOPE, Convolution, silent

DOUBLINGS = 2


class AtlasGenerator(nn.Module):
    """ages (B,) in [0, 1] -> (B, 1, *shape). features: Gaussians of age; width: channels of the coarsest lattice."""

    def __init__(self, shape: tuple[int, ...], features: int = 6, width: int = 16):
        super().__init__()
        self.shape, dim = tuple(shape), len(shape)
        self.coarse = tuple(-(-n // 2**DOUBLINGS) for n in shape)
        self.register_buffer("centers", torch.linspace(0, 1, features))
        count = width
        for n in self.coarse:
            count *= n
        self.linear = nn.Linear(features, count)
        widths = (width, width, width // 2)
        self.stages = nn.ModuleList(Convolution(dim, a, b) for a, b in zip(widths, widths[1:]))
        self.last = silent(Convolution(dim, widths[-1], 1))
        self.base = nn.Parameter(torch.zeros(1, 1, *self.shape))

    @torch.no_grad()
    def begin_with(self, atlases: torch.Tensor) -> None:
        """Take the mean of ``atlases`` (K, 1, *shape) as what does not change with age."""
        self.base.copy_(atlases.mean(0, keepdim=True))

    def forward(self, ages: torch.Tensor) -> torch.Tensor:
        steps = (len(self.centers) - 1) * (ages.reshape(-1, 1).to(self.base) - self.centers)
        x = self.linear((-steps.square() / 2).exp()).reshape(len(steps), -1, *self.coarse)
        for stage in self.stages:
            x = nn.functional.leaky_relu(stage(nd.repeat(x)), SLOPE)
        return self.base + self.last(x)[(..., *(slice(0, n) for n in self.shape))]
