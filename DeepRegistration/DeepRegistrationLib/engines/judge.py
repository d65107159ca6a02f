"""Does a deformation make two images tell more of each other than its start does? Asked of intensities in any relation.

The answer is the mutual information I at points that lie anywhere between the voxels, of images smoothed to twice the voxel size. At the
voxels of its own lattice an image keeps its noise and loses it as soon as a map moves it, which looks like a gain of any map over a header;
at such points every map interpolates. A gain is the smaller of the relative gains of I and of I over the entropy of the warped image: the
first alone also grows where a map merely shows more of what the moving image has. A map is clearly better with a gain of ``WORTH`` that is
also more than what chance gives to images that have nothing in common, (bins - 1)^2 / 2N.

Maes et al., IEEE TMI 1997 (mutual information); Theil, Statistical Decomposition Analysis, 1972 (the uncertainty coefficient I / H);
Thevenaz et al., IEEE TIP 2008 (points off the lattice against artefacts of interpolation).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ..image import Image
from ..ops.sample import apply_matrix, inside, sample
from ..ops.stats import robust_range
from ..terms.information import entropies
from ..transforms import Transform

WORTH = 0.02
"""The gain from which on a deformation is kept. On generated pairs (the MNI template and its copies in 14 contrasts) the deformations of
a start that was right gained at most 0.014 without strong shading, those of a start that was wrong by a voxel mostly 0.03 or more."""
COARSER = 2.0
FEWEST = 32
POINTS = 100_000
MOST_OF_A_VOXEL = 8
BINS = (8, 32)
VOXELS_PER_CELL = 40


@dataclass(frozen=True, eq=False)
class Judge:
    """``fixed`` and ``moving`` at the spacing at which they are compared."""

    fixed: Image
    moving: Image

    @classmethod
    def of(cls, fixed: Image, moving: Image) -> "Judge":
        """The judge of a whole registration: both images at ``COARSER`` times the voxel size of the coarser one, or at that size where
        the fixed lattice would have less than ``FEWEST`` voxels an axis."""
        images = [Image(image.data.float(), image.grid, image.mask) for image in (fixed, moving)]
        wide = fixed.grid.wide
        spacing = max(float(image.grid.spacing[image.grid.wide].min()) for image in images)
        if np.prod((fixed.grid.extent / (COARSER * spacing))[wide]) >= FEWEST ** wide.sum():
            spacing *= COARSER
        return cls(*(image.smoothed_to(spacing) for image in images))

    @cached_property
    def _index(self) -> torch.Tensor:
        """(1, N, dim) the points in voxels of the fixed image: one in a voxel or several, or one in every so many; the same every time."""
        grid, dim = self.fixed.grid, self.fixed.dim
        count = min(POINTS, MOST_OF_A_VOXEL * grid.voxels)
        number = torch.arange(count) * grid.voxels // count
        place = []
        for n in grid.size:
            place.append(number % n)
            number = number // n
        within = torch.rand(count, dim, generator=torch.Generator().manual_seed(0)) - 0.5
        within = within * (torch.tensor(grid.size) > 1)
        return (torch.stack(place, -1) + within)[None].to(self.fixed.device)

    def gain(self, before: Transform, after: Transform) -> float:
        """By which share the images tell more of each other under ``after`` than under ``before`` (fixed mm -> moving mm); negative for
        less, 0 where there is nothing that both maps show."""
        return self._compared(before, after)[0]

    def clearly_better(self, before: Transform, after: Transform) -> bool:
        """Is the gain ``WORTH`` or more, and more than chance gives?"""
        gain, difference, chance = self._compared(before, after)
        return bool(gain >= WORTH and difference > chance)

    def _compared(self, before, after):
        """(gain, difference of the mutual informations, what chance gives), the latter two in nats."""
        world = apply_matrix(self.fixed.grid.affine, self._index)
        seen = [apply_matrix(self.moving.grid.inverse_affine, each(world).to(world)) for each in (before, after)]
        counted = (_within(self.fixed, self._index) & _within(self.moving, seen[0]) & _within(self.moving, seen[1]))[0]
        voxels = int(counted.sum()) * min(self.fixed.grid.voxels / len(counted), 1.0)
        if voxels < VOXELS_PER_CELL:
            return 0.0, 0.0, 0.0
        bins = int(np.clip((voxels / VOXELS_PER_CELL) ** 0.5, *BINS))
        (shared, entropy), (found, other) = (self._told(index[:, counted], self._index[:, counted], bins) for index in seen)
        shares = [max(value, 1e-9) / max(of, 1e-9) for value, of in ((found, shared), (found, other), (shared, entropy))]
        return min(shares[0], shares[1] / shares[2]) - 1, found - shared, (bins - 1) ** 2 / (2 * voxels)

    def _told(self, seen, index, bins):
        """(mutual information, entropy of the warped image), nats, summed over the channels."""
        fixed, warped = (sample(image.data, at)[0] for image, at in ((self.fixed, index), (self.moving, seen)))
        total = np.zeros(3)
        for c in range(warped.shape[0]):
            one, other = fixed[min(c, fixed.shape[0] - 1)], warped[c]
            limits = robust_range(one), robust_range(self.moving.data[0, c].flatten())
            total += [float(h) for h in entropies(one, other, bins, *limits)]
        return total[0] + total[1] - total[2], total[1]


def _within(image: Image, index: torch.Tensor) -> torch.Tensor:
    """(1, N) bool: positions (1, N, dim) in voxels that lie in the field of view and in the mask."""
    valid = inside(index, image.grid.shape)
    return valid if image.mask is None else valid & (sample(image.mask.float(), index, "nearest")[:, 0] > 0.5)
