"""The plate that a slice shows by mutual information alone, after an affine search in the plane with every plate: the baseline without a network."""

from __future__ import annotations

import numpy as np
import torch

from ..ops.filters import gaussian
from .plates import BINS, SHOWN, Plates, Query, edges_of


def information(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Normalized mutual information 2 I / (H + H') of a slice's bins (M,) with bins ``columns`` (N, M): (N,), 0 to 1."""
    count = columns.shape[0]
    place = (torch.arange(count)[:, None] * BINS + rows) * BINS + columns
    joint = torch.bincount(place.flatten(), minlength=count * BINS * BINS).reshape(count, BINS, BINS) / columns.shape[1]
    entropy = [-torch.xlogy(p, p.clamp_min(1e-12)).flatten(1).sum(1) for p in (joint.sum(1), joint.sum(2), joint)]
    return 2 * (entropy[0] + entropy[1] - entropy[2]) / (entropy[0] + entropy[1]).clamp_min(1e-6)


def compared(query: Query, plates: Plates, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (M, 2) mm, every ``step``-th pixel where the slice shows something or something is near, and its bins there (M,)."""
    picture = gaussian(query.picture, 0.7)[0, 0]
    shown = (picture > SHOWN).float()
    wide = sum(shown.roll((a, b), (0, 1)) for a in (-1, 0, 1) for b in (-1, 0, 1)) > 0
    chosen = torch.zeros_like(wide)
    chosen[::step, ::step] = wide[::step, ::step]
    points = plates.lattice().reshape(plates.size, plates.size, 2)[chosen]
    values = picture[chosen]
    return points, torch.bucketize(values, edges_of(values))


def in_plane(values: np.ndarray) -> np.ndarray:
    """(N, 6) shift u, v (mm), turn (degrees), two log scales and a shear -> (N, 3, 3) maps of (u, v, 1) from the slice into a plate."""
    turn = np.deg2rad(values[:, 2])
    cos, sin = np.cos(turn), np.sin(turn)
    rotation = np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)
    stretch = np.zeros((len(values), 2, 2))
    stretch[:, 0, 0], stretch[:, 1, 1], stretch[:, 0, 1] = np.exp(values[:, 3]), np.exp(values[:, 4]), values[:, 5]
    out = np.tile(np.eye(3), (len(values), 1, 1))
    out[:, :2, :2], out[:, :2, 2] = rotation @ stretch, values[:, :2]
    return out


def information_after_affine(query: Query, plates: Plates, generator: torch.Generator, candidates: int = 16, rounds: int = 8,
                             step: int = 2) -> np.ndarray:
    """(P,) mutual information of the slice with every plate after a search over affine maps in the plane: the baseline.

    ``rounds`` times ``candidates`` maps around the best so far of each plate, in ever closer reach.
    """
    points, rows = compared(query, plates, step)
    reach = np.array([3 * plates.pixel, 3 * plates.pixel, 12.0, 0.1, 0.1, 0.06])
    best, score = np.zeros((plates.count, 6)), information(rows, plates.bins(plates.frames, points)).numpy()
    homogeneous = np.concatenate([points.numpy(), np.ones((len(points), 1))], 1)
    for k in range(rounds):
        noise = torch.randn(plates.count, candidates, 6, generator=generator).numpy() * reach * 0.75**k
        tried = best[:, None] + noise
        for c in range(candidates):
            moved = torch.as_tensor((homogeneous @ in_plane(tried[:, c]).transpose(0, 2, 1))[..., :2], dtype=torch.float32)
            found = information(rows, plates.bins(plates.frames, moved)).numpy()
            better = found > score
            score[better], best[better] = found[better], tried[better, c]
    return score
