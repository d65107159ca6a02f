"""A network that draws an atlas of an age, in 2D and 3D.

    f_j(a) = exp(-(J - 1)^2 (a - j / (J - 1))^2 / 2),   w = f / sum f,   x = linear(f(a)) on the coarsest lattice,
    x <- leaky(convolution(doubled x)) twice,   A(a) = sum_j w_j(a) B_j + convolution(x)

with a from 0 to 1. The B_j are images of its own parameters; the convolutions say what else changes with age. Dalca, Rakic, Guttag and Sabuncu,
Learning Conditional Deformable Templates, NeurIPS 2019, whose linear layer takes the age itself to a full image of several channels. Gaussians of it let
the atlas follow growth that is not steady, and images at full resolution keep edges that a coarse lattice with a few convolutions blurs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ..ops import nd
from .blocks import SLOPE, Convolution, silent

DOUBLINGS = 2
SMALLEST = 1e-3
"""Singular values of the weights of ages, as a share of the largest, below which two ages cannot be told apart."""


class AtlasGenerator(nn.Module):
    """ages (B,) in [0, 1] -> (B, 1, *shape). features: Gaussians of age, J; width: channels of the coarsest lattice."""

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
        self.base = nn.Parameter(torch.zeros(features, 1, *self.shape))

    @torch.no_grad()
    def begin_with(self, ages: torch.Tensor, atlases: torch.Tensor) -> None:
        """Take the mean of ``atlases`` (K, 1, *shape) as what does not change, then draw them at ``ages`` (K,)."""
        self.base.copy_(atlases.mean(0, keepdim=True).expand_as(self.base))
        self.settle(ages, atlases)

    @torch.no_grad()
    def settle(self, ages: torch.Tensor, atlases: torch.Tensor) -> None:
        """Change the images B_j as little as it takes to draw ``atlases`` (K, 1, *shape) at ``ages`` (K,): exactly where K is at most J, else in
        least squares."""
        missing = torch.cat([atlas[None].to(self.base) - self(age[None]) for age, atlas in zip(ages, atlases)])
        weights = self._weights(ages).double().cpu().numpy()
        back = torch.as_tensor(np.linalg.pinv(weights, rcond=SMALLEST)).to(self.base)
        self.base += torch.einsum("jk,k...->j...", back, missing)

    def _gaussians(self, ages: torch.Tensor) -> torch.Tensor:
        """(B, J) f."""
        steps = (len(self.centers) - 1) * (ages.reshape(-1, 1).to(self.base) - self.centers)
        return (-steps.square() / 2).exp()

    def _weights(self, ages: torch.Tensor) -> torch.Tensor:
        """(B, J) w."""
        gaussians = self._gaussians(ages)
        return gaussians / gaussians.sum(1, keepdim=True)

    def forward(self, ages: torch.Tensor) -> torch.Tensor:
        x = self.linear(self._gaussians(ages)).reshape(len(ages), -1, *self.coarse)
        for stage in self.stages:
            x = nn.functional.leaky_relu(stage(nd.repeat(x)), SLOPE)
        images = torch.einsum("bj,j...->b...", self._weights(ages), self.base)
        return images + self.last(x)[(..., *(slice(0, n) for n in self.shape))]
