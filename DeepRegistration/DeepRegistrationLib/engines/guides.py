"""What steers a compositive registration besides the images: labels and landmarks, added to the forces of a step.

The step is a quotient of two sums (``ops/demons.py``); a guide adds to both. Labels become a few channels, one code vector
per structure, whose squared difference pulls equal structures onto each other. A pair of landmarks p, q adds
    w K(x - p) r  above and  w K(x - p)  below the line,  r = q - phi(p), at most half the step limit long,
with a Gaussian K of ``REACH`` voxels: near a landmark the step is r, away from it that of the images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..geometry import Grid
from ..image import Image, Labels
from ..ops.filters import gaussian
from ..ops.sample import sample
from ..points import Points

CODES = 4
SOFT = 1.0
REACH = 4.0
STRENGTH = 1.0
"""Weight of a landmark against the images: the strongest image gradients (the whole range in one voxel) weigh 1."""


def code_images(fixed: Labels, moving: Labels, grids: tuple[Grid, Grid]) -> tuple[Image, Image]:
    """Both label maps as images of ``CODES`` channels at most on the given grids. Up to ``CODES`` structures have a channel
    each; more have unit vectors in random directions, from a fixed seed. Structures that only one map holds count nowhere. A
    blur of ``SOFT`` voxels takes the stairs out of the edges."""
    shared = sorted(set(fixed.values()) & set(moving.values()))
    count = len(shared)
    table = torch.eye(count) if count <= CODES else torch.nn.functional.normalize(
        torch.randn(count, CODES, generator=torch.Generator().manual_seed(0)), dim=1)
    return tuple(_coded(labels, shared, table, grid) for labels, grid in zip((fixed, moving), grids))


def _coded(labels, values, table, grid):
    data = labels.data if labels.grid == grid else labels.at(grid).data
    coded = torch.zeros((1, table.shape[1], *grid.shape), dtype=torch.float32, device=data.device)
    for value, code in zip(values, table):
        here = data == value
        for channel, share in enumerate(code.tolist()):
            coded[:, channel : channel + 1].masked_fill_(here, share)
    return Image(gaussian(coded, SOFT), grid, name=labels.name)


@dataclass(frozen=True)
class Guides:
    """What a registration is given: images of ``code_images``, corresponding points (fixed, moving), and their weight."""

    labels: tuple[Image, Image] | None = None
    points: tuple[Points, Points] | None = None
    weight: float = 1.0

    @classmethod
    def of(cls, pair, device, weight: float = 1.0) -> "Guides":
        """What a ``problem.Pair`` brings along, on ``device``."""
        labels = points = None
        if pair.fixed_labels is not None:
            labels = code_images(pair.fixed_labels.to(device), pair.moving_labels.to(device), (pair.fixed.grid, pair.moving.grid))
        if pair.fixed_points is not None:
            points = pair.fixed_points, pair.moving_points
        return cls(labels, points, weight)


def steered(pair) -> bool:
    """Does a ``problem.Pair`` bring labels or landmarks along?"""
    return pair.fixed_labels is not None or pair.fixed_points is not None


@dataclass(frozen=True)
class LandmarkGuide:
    """Landmarks on a lattice: ``here`` and ``goal`` (N, dim) voxels, fixed positions and linear^-1(moving positions)."""

    here: torch.Tensor
    goal: torch.Tensor
    shape: tuple[int, ...]
    weight: torch.Tensor

    @classmethod
    def on(cls, guides: Guides, linear, grid: Grid, device) -> "LandmarkGuide":
        """The guide of the corresponding points (mm) on ``grid`` with moving = linear(phi(fixed))."""
        fixed, moving = guides.points
        back = linear.inverse()(moving.positions.double())
        here, goal = (torch.as_tensor(grid.world_to_index(p[0].detach().cpu().numpy()), dtype=torch.float32, device=device)
                      for p in (fixed.positions.double(), back))
        shares = torch.ones(len(here), device=device) if fixed.weights is None else fixed.weights[0].to(device, torch.float32)
        return cls(here, goal, grid.shape, shares * guides.weight * STRENGTH)

    def add(self, sums: torch.Tensor, state: list[torch.Tensor], limit) -> None:
        """Add to ``sums`` (1, dim + 1, *S); ``state`` the displacement in voxels, or the two of the symmetric form; ``limit``
        (dim,) voxels: half the longest step along each axis."""
        at = self.here if len(state) == 1 else self._middle(state[1])
        residual = self.goal - at - _at(state[0], at)
        longest = torch.as_tensor(np.asarray(limit, np.float32), device=at.device)
        residual = residual / (residual / longest).square().sum(1, keepdim=True).sqrt().clamp_min(1.0)
        for centre, step, weight in zip(at, residual, self.weight):
            block, kernel = self._kernel(centre)
            if kernel is not None:
                part = torch.cat([step, torch.ones_like(step[:1])]) * weight
                sums[(0, slice(None), *block)] += kernel * part.reshape(-1, *[1] * len(self.shape))

    def _middle(self, to_fixed):
        """Where the fixed positions lie in the mean space of the symmetric form."""
        at = self.here
        for _ in range(10):
            at = self.here - _at(to_fixed, at)
        return at

    def _kernel(self, centre):
        """(slices of the lattice, Gaussian on them) around ``centre`` (x, y, z) voxels; None where that is outside."""
        block, kernel = [], torch.ones(())
        for c, n in zip(range(len(self.shape) - 1, -1, -1), self.shape):
            middle = float(centre[c])
            low, high = max(int(middle - 3 * REACH), 0), min(int(middle + 3 * REACH) + 2, n)
            if low >= high:
                return block, None
            line = (-0.5 * ((torch.arange(low, high, device=centre.device) - middle) / REACH) ** 2).exp()
            kernel = kernel.to(line)[..., None] * line
            block.append(slice(low, high))
        return block, kernel


def _at(u, index):
    """(N, dim) the displacement u (1, dim, *S) voxels at ``index`` (N, dim)."""
    return sample(u, index[None])[0].T
