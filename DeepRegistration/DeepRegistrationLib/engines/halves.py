"""How much to smooth a step: as little as lets two halves of the voxels agree on where to go.

The voxels are dealt to two halves like the fields of a checkerboard, and each makes a demons step v, w of its own (``ops/demons.py``).
Their agreement is

    sum v.w / sqrt(sum |v|^2 sum |w|^2),

near 1 where structure leads them, and low where noise or texture without a counterpart does, which more smoothing averages out. Split-half
reliability: Spearman, British Journal of Psychology 1910; Brown, the same issue.
"""

from __future__ import annotations

import numpy as np
import torch

from ..ops import demons

BLOCK = 2
"""Voxels of the level along the edge of a square of the board: neighbors share their noise, since a level is smoothed."""
STIFFER = ((1.7, 0.8), (2.5, 1.5))
"""Smoothing of steps and of the field, voxels, that is tried beyond the one asked for."""
ENOUGH = 0.7
"""Agreement that is enough. Generated sections (``Testing/truths_sections.py``) and slices of the MNI template under a known smooth warp came
out best with it among 0.4 to 0.7; heads in 3D and one contrast reach it with the least smoothing."""
LITTLE = 0.5
"""Agreement of the first try below which the stiffest is taken where none is enough. Above it structures contradict each other that smoothing
does not reconcile, as those of two people; fine known warps lost by more smoothing there."""
MOST = 1_000_000


def smoothing(sums: torch.Tensor, fluid: float, elastic: float, floor: float, share=1.0) -> tuple[float, float]:
    """(fluid, elastic), voxels, at least as asked for. ``sums`` (1, dim + 1, *S) are the forces of a level's first step before they are
    smoothed, ``floor`` that of their quotient, ``share`` the voxels of ``sums`` along a voxel of the level."""
    sums = _middle(sums)
    half = _checkerboard(sums, share)
    tried, agreed = [(fluid, elastic), *((f, max(elastic, e)) for f, e in STIFFER if f > fluid)], []
    for each in tried:
        agreed.append(_agreement(sums, half, share * each[0], floor))
        if agreed[-1] >= ENOUGH:
            return each
    return tried[-1] if agreed[0] < LITTLE else tried[0]


def _middle(sums):
    """The middle half of one axis after the other while there are more than ``MOST`` voxels."""
    for axis, n in enumerate(sums.shape[2:], 2):
        sums = sums.narrow(axis, n // 4, n - 2 * (n // 4)) if sums[0, 0].numel() > MOST else sums
    return sums.contiguous()


def _agreement(sums, half, fluid, floor):
    one, other = (demons.quotient(demons.smooth(sums * part, fluid)[0], floor) for part in (half, 1 - half))
    return float((one * other).sum() / (one.square().sum() * other.square().sum()).sqrt().clamp_min(1e-12))


def _checkerboard(sums, share):
    blocks = np.maximum(1, np.rint(BLOCK * np.broadcast_to(share, sums.ndim - 2))).astype(int)
    places = [torch.arange(n, device=sums.device) // int(block) for n, block in zip(sums.shape[2:], blocks)]
    return (sum(torch.meshgrid(*places, indexing="ij")) % 2).to(sums.dtype)[None, None]
