"""Comparison by structure, for images of different contrast: channels that follow edges and textures, and a second opinion.

Two things set the structural channels (mind, ngf) apart from intensities. They have directions, so the moving image is first
brought onto axes parallel to those of the fixed one. And they must be made on the finest lattice: a coarse voxel mixes tissues,
and mixtures correspond to nothing in another contrast, whereas averages of channels do. Heinrich et al., MICCAI 2013; Haber and
Modersitzki, MICCAI 2006.

The second opinion is the mutual information of the intensities themselves (Mattes et al., IEEE TMI 2003), which no step has raised on
purpose (``judge.py``): a level that lowers it is undone. Levels of less than ``FEWEST`` voxels an axis, whose voxels are mixtures, are judged
together with the next finer one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ..geometry import Grid
from ..image import Image
from ..ops import demons
from ..ops.sample import resample
from ..transforms import Displacement
from .channels import channels
from .judge import Judge

STRUCTURAL = ("mind", "ngf")
FEWEST = 32
AROUND = 0.125
"""Share of the working lattice's edge that the moving image is kept for on every side of it."""


def structural_pair(fixed: Image, moving: Image, box: Grid, spacing: float, kind: str) -> tuple[Image, Image]:
    """Channel images of a normalised pair at ``spacing`` mm, the moving one on axes parallel to the fixed grid. ``moving`` is as seen
    through the linear map (``folded``), so that what is left is the deformation; ``box`` is the part of the fixed grid in use."""
    fixed = fixed.smoothed_to(spacing)
    return channels(fixed, kind), channels(_parallel(moving.smoothed_to(spacing), fixed.grid, box), kind)


def _parallel(moving, lattice, box):
    """``moving`` on the voxels of ``lattice``, continued as far as the box with ``AROUND`` and the moving field of view go."""
    reached, near = (lattice.world_to_index(grid.corners()) for grid in (moving.grid, box))
    around = AROUND * np.ptp(near, axis=0)
    lower = np.floor(np.maximum(reached.min(0), near.min(0) - around) + 0.5 + 1e-6).astype(int)
    upper = np.ceil(np.minimum(reached.max(0), near.max(0) + around) + 0.5 - 1e-6).astype(int)
    grid = lattice.crop(lower, np.maximum(upper, lower + 1))
    shown = moving.overlap(grid)
    moving = moving.at(grid, fill=None)
    shown = shown if moving.mask is None else shown & moving.mask
    return replace(moving, mask=None if bool(shown.all()) else shown)


@dataclass
class SecondOpinion:
    """``images`` are the normalised pair, the moving one folded; ``accepted`` is the last (fields in voxels, their lattice) that mutual
    information found no worse than the one before, at first the start or the identity."""

    images: tuple[Image, Image]
    accepted: tuple[list[torch.Tensor], Grid]

    def judged(self, state: list[torch.Tensor], grid: Grid, joined, last: bool) -> list[torch.Tensor]:
        """``state`` (fields in voxels of ``grid``) or, where mutual information prefers it, the accepted one on ``grid``.

        ``joined`` makes one displacement (1, dim, *S) voxels of a state; ``last`` tells that no finer level follows.
        """
        wide = [n for n in grid.size if n > 1]
        if not last and np.prod(wide) ** (1 / max(len(wide), 1)) < FEWEST:
            return state
        before = carried(*self.accepted, grid)
        fixed, moving = (image.smoothed_to(float(grid.spacing.min())) for image in self.images)
        fixed = fixed.at(grid, fill=None)
        maps = [Displacement(demons.to_world(joined(fields), grid), grid) for fields in (before, state)]
        if Judge.of(fixed, moving).gain(*maps) < 0:
            state = before
        self.accepted = [field.clone() for field in state], grid
        return state


def carried(state: list[torch.Tensor], old: Grid, grid: Grid) -> list[torch.Tensor]:
    """Fields in voxels of the lattice ``old`` as fields in voxels of ``grid``."""
    return [demons.from_world(resample(demons.to_world(u, old), old, grid), grid) for u in state]


__all__ = ["STRUCTURAL", "SecondOpinion", "carried", "structural_pair"]
