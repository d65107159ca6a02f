"""What the networks of an atlas over age are trained for.

With A(a) the atlas of an age (``engines/ages.py``), v = network(A(a_i), I_i), phi_i = exp(v): atlas -> subject, the network lowers

    L_sim(A(a_i) o phi_i^-1, I_i)  +  g |mean of the last c phi|^2  +  m |phi_i^-1|^2  +  d |grad phi_i^-1|^2

over subjects in the order of their ages, forth and back, so that the last c fields (displacements in voxels of the atlas) are of subjects of about
one age; L_sim is 1 - the squared local correlation. A generator (``networks/generator.py``), which draws A(a), is trained along with

    |A(a_i) - I_i o phi_i|^2 / 2 var  +  t |A(a - s) - 2 A(a) + A(a + s)|^2 / 2 var,   s the distance of two knots,

for which phi_i is held. Bastiaansen et al., Towards a 4D spatio-temporal atlas of the embryonic and fetal brain, 2022.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..geometry import Grid
from ..image import Image
from ..networks import heads
from ..networks.generator import AtlasGenerator
from ..networks.unet import UNet
from ..ops import fields
from ..problem import Pair
from ..terms import LNCC, Alignment, Diffusion, Term

NOISE = 0.1
"""Deviation that counts as noise in the local correlation, as a share of that of the image: flat background is a match, not a quarrel."""


@dataclass(frozen=True)
class TemporalSettings:
    """group, magnitude, diffusion: g, m and d above; smoothness: of the atlas over age (``Ages.weights``; t of a generator); window mm of the
    local correlation; recent: c, 0 for the mean number of subjects a knot; generator: draw the atlas by a network; centering: share above; iterations at most
    of ``steps`` each, until the atlas changes by less than ``change`` (share); batch: subjects a step; memory: MiB of images that are kept."""

    group: float = 10.0
    magnitude: float = 0.01
    diffusion: float = 0.01
    smoothness: float = 0.0
    window: float = 4.0
    recent: int = 0
    generator: bool = False
    centering: float = 1.0
    iterations: int = 4
    change: float = 0.02
    steps: int = 500
    rate: float = 1e-3
    batch: int = 2
    width: int = 16
    levels: int = 3
    memory: float = 2048.0

    def network(self, dim: int) -> UNet:
        w, n = self.width, self.levels
        return UNet(dim, (w,) + (2 * w,) * (n - 1), (2 * w,) * n, (w,), output="velocity", half=True)


class AgeNetwork(nn.Module):
    """``network`` (a velocity on the half lattice), ``generator`` or None, and the last fields that were found, in voxels of the atlas."""

    def __init__(self, network: UNet, generator: AtlasGenerator | None, recent: int, grid: Grid):
        super().__init__()
        self.network, self.generator = network, generator
        self.register_buffer("recent", torch.zeros(recent, grid.dim, *(n // 2 for n in grid.shape)))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    def velocity(self, atlas: torch.Tensor, subjects: torch.Tensor, grid: Grid):
        """Atlas -> subjects as the flow of a velocity."""
        return heads.transform(self.network(atlas, subjects), grid, self.network.output)

    def mean_of_recent(self, found: torch.Tensor) -> torch.Tensor:
        """(1, dim, *S): the mean of ``found`` (B, dim, *S) and of the fields before it; in training the oldest ones make room for them."""
        others = self.recent[: max(min(int(self.filled), len(self.recent) - len(found)), 0)].clone()
        mean = (others.sum(0) + found.sum(0)) / (len(others) + len(found))
        if self.training:
            held = torch.cat([found.detach(), self.recent])[: len(self.recent)]
            self.recent.copy_(held)
            self.filled += len(found)
        return mean[None]


@dataclass(frozen=True, eq=False)
class AgedPair(Pair):
    """A batch of subjects (moving) and the atlas at their ages; ``share`` (B,): where the ages lie between the first and the last knot."""

    share: torch.Tensor | None = None


class AgedAlignment(Alignment):
    """Atlas and subjects; ``pull`` (B,) the squared mean of the last fields, ``drawing`` (B,) the cost of the generator, 0 without one."""

    pull: torch.Tensor
    drawing: torch.Tensor


@dataclass(frozen=True)
class TemporalCost(Term):
    """The cost of an ``AgedAlignment`` (equation above)."""

    settings: TemporalSettings

    def __call__(self, alignment):
        settings, back = self.settings, alignment.reverse
        moved = back.field / float(np.prod(back.grid.spacing)) ** (1 / back.grid.dim)
        return (LNCC(radius=settings.window, noise=NOISE)(back) + settings.group * alignment.pull + settings.magnitude * moved.square().flatten(1).mean(1)
                + settings.diffusion * Diffusion()(back) + alignment.drawing)


@dataclass(frozen=True)
class TemporalView:
    """How the answer of an ``AgeNetwork`` is scored, for ``loop.train``; ``step``: share of the ages between two knots; variance of the first
    atlas."""

    settings: TemporalSettings
    step: float
    variance: float

    def __call__(self, model: AgeNetwork, pair: AgedPair) -> list[tuple[float, Alignment]]:
        subjects, atlas = pair.moving, pair.fixed.data
        drawn = None if model.generator is None else model.generator(pair.share)
        atlas = atlas if drawn is None else drawn.detach()
        alignment = aligned(model, atlas, subjects)
        voxels = fields.to_index_units(alignment.transform.dense.displacement, subjects.grid).movedim(-1, 1)
        alignment.pull = model.mean_of_recent(voxels).square().mean().expand(len(voxels))
        alignment.drawing = torch.zeros_like(alignment.pull) if drawn is None else self._drawing(model, pair, drawn, alignment)
        return [(1.0, alignment)]

    def _drawing(self, model, pair, drawn, alignment) -> torch.Tensor:
        cost = (drawn - alignment.warped.detach()).square().flatten(1).mean(1)
        if self.settings.smoothness > 0:
            middle = pair.share.clamp(self.step, 1 - self.step)
            before, here, after = (model.generator(middle + k * self.step) for k in (-1, 0, 1))
            cost = cost + self.settings.smoothness * (before - 2 * here + after).square().flatten(1).mean(1)
        return cost / (2 * max(self.variance, 1e-6))


def aligned(model: AgeNetwork, atlas: torch.Tensor, subjects: Image) -> AgedAlignment:
    """Atlas (B, 1, *S) and subjects under the map that the network finds, and the way back."""
    flow = model.velocity(atlas, subjects.data, subjects.grid)
    template = Image(atlas, subjects.grid, name="atlas")
    alignment = AgedAlignment(template, subjects, flow)
    alignment.reverse = Alignment(subjects, template, flow.inverse(), reverse=alignment)
    return alignment
