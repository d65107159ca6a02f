"""A velocity that was drawn from a normal distribution: what a probabilistic network says about a pair.

    v = mu + sigma e,   e ~ N(0, 1) at every voxel and component;   Dalca et al., Medical Image Analysis 2019.
"""

from __future__ import annotations

import torch

from ..geometry import Grid
from .dense import Velocity


class SampledVelocity(Velocity):
    """The flow of ``velocity`` (B, dim, *S) mm on ``grid``, which was drawn from N(``mean``, exp(``log_variance``)), both (B, dim, *S) in
    voxels of ``grid``. Everything but the distribution is that of ``Velocity``; the inverse is a plain flow."""

    def __init__(self, velocity: torch.Tensor, grid: Grid, mean: torch.Tensor, log_variance: torch.Tensor, steps: int | None = None):
        super().__init__(velocity, grid, steps)
        self.mean, self.log_variance = mean, log_variance

    def to(self, device=None, dtype=None):
        parts = (x.to(device=device, dtype=dtype) for x in (self.mean, self.log_variance))
        return SampledVelocity(self.velocity.to(device=device, dtype=dtype), self.grid, *parts, self.steps)
