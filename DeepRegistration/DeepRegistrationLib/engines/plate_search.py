"""Which plate a slice shows, and its pose as an oblique plane, by mutual information; and the baseline without a network.

The plates that an embedding ranks first (Lukoyanov et al., WBIR 2022) are starts: from each the plane is tilted, turned and moved, rigidly and with
scales along its axes, until its normalized mutual information with the slice is largest. The plates are ranked anew by the planes:

    cost(k) = min_j (APART |k - plate_j| - information_j),

so that those nearest to the best plane come first, and then those near the next one if it is almost as good.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..ops.filters import gaussian
from .plates import AXES, BINS, SHOWN, Plates, Query, edges_of

APART, STARTS, LEAST = 0.01, 8, 3
"""Information that one plate's distance from a plane is worth; starts of the search, and plates between them at least."""


def spread_starts(ranked, count: int = STARTS, least: int = LEAST) -> np.ndarray:
    """The first ``count`` of the plates ``ranked`` (P,) that lie at least ``least`` apart."""
    chosen: list[int] = []
    for plate in ranked:
        if len(chosen) < count and all(abs(int(plate) - other) >= least for other in chosen):
            chosen.append(int(plate))
    return np.array(chosen)


def costs_of(poses, count: int) -> np.ndarray:
    """(P,) cost of every plate by the planes that were found; see above."""
    plates = np.arange(count)[:, None]
    return (APART * np.abs(plates - [pose.plate for pose in poses]) - [pose.score for pose in poses]).min(1)


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


@dataclass(frozen=True, eq=False)
class Pose:
    """Where the slice lies: ``frame`` (4, 4) rigid, (u, v, w) mm of the picture -> LPS mm; ``scale`` of the slice along u and v; ``tilt`` degrees
    between its normal and that of the plates; ``plate``: the nearest one to the middle of what the atlas shows on it;
    ``start``: the plate from which it was found; ``score``: normalized mutual information."""

    frame: np.ndarray
    scale: tuple[float, float]
    tilt: float
    plate: int
    start: int
    score: float


def frames_of(frames: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(N, 4, 4) frames turned by rotation vectors (degrees) about their own origin and moved along their own axes: ``values`` (N, 6 or more)
    shift u, v, w (mm), turn about u, v, w; what follows is left to the caller."""
    motion = np.tile(np.eye(4), (len(values), 1, 1))
    x, y, z = np.deg2rad(values[:, 3:6]).T
    zero = np.zeros_like(x)
    skew = np.stack([np.stack(row, 1) for row in ((zero, -z, y), (z, zero, -x), (-y, x, zero))], 1)
    motion[:, :3, :3] = torch.matrix_exp(torch.as_tensor(skew)).numpy()
    motion[:, :3, 3] = values[:, :3]
    return frames @ motion


def refine(query: Query, plates: Plates, starts, generator: torch.Generator, monitor, candidates: int = 40, rounds: int = 16) -> list[Pose]:
    """The pose of the slice from each of the plates ``starts``, best first; the best three are searched twice."""
    starts = np.asarray(starts, int)
    wide = np.array([1.5 * plates.pixel, 1.5 * plates.pixel, 2 * plates.spacing, 5.0, 5.0, 6.0, 0.06, 0.06])
    search = _Search(query, plates, generator)
    values, score = search.best(plates.frames[starts], np.zeros((len(starts), 8)), wide, candidates, rounds, monitor.part(0, 0.6))
    again = np.argsort(-score)[:3]
    finer, better = search.best(plates.frames[starts[again]], values[again], 0.4 * wide, 2 * candidates, rounds, monitor.part(0.6, 1))
    values[again], score[again] = finer, better
    placed = frames_of(plates.frames[starts], values)
    return sorted((_pose(plates, *each) for each in zip(placed, values, starts, score)), key=lambda pose: -pose.score)


class _Search:
    """The cross-entropy method over eight numbers of a plane: each round draws candidates from a normal distribution and fits it to the best sixth
    (Rubinstein, Methodol. Comput. Appl. Probab. 1999)."""

    def __init__(self, query: Query, plates: Plates, generator: torch.Generator):
        self.plates, self.generator = plates, generator
        self.points, self.rows = compared(query, plates, 1)

    def best(self, frames, middle, spread, candidates: int, rounds: int, monitor) -> tuple[np.ndarray, np.ndarray]:
        """(N, 8) numbers and (N,) information of the best planes from ``frames`` (N, 4, 4), around ``middle`` (N, 8) in the reach ``spread`` (8,)."""
        count, elite, every = len(frames), max(candidates // 6, 2), np.arange(len(frames))
        best, score, spread = middle.copy(), np.full(count, -1.0), np.tile(spread, (count, 1))
        for _ in monitor.steps(rounds, "pose"):
            noise = torch.randn(count, candidates, 8, generator=self.generator).numpy()
            tried = middle[:, None] + spread[:, None] * noise
            tried[:, 0] = middle
            found = self.scored(np.repeat(frames, candidates, 0), tried.reshape(-1, 8)).reshape(count, candidates)
            ranked = np.argsort(-found, 1)
            first = found[every, ranked[:, 0]]
            better = first > score
            best[better], score[better] = tried[every, ranked[:, 0]][better], first[better]
            chosen = np.take_along_axis(tried, ranked[:, :elite, None], 1)
            middle, spread = chosen.mean(1), 0.3 * spread + 0.7 * chosen.std(1)
        return best, score

    def scored(self, frames, values: np.ndarray) -> np.ndarray:
        """(N,) information of planes."""
        scales = torch.as_tensor(np.exp(values[:, 6:]), dtype=torch.float32)[:, None]
        return information(self.rows, self.plates.bins(frames_of(frames, values), self.points * scales)).numpy()


def _pose(plates: Plates, frame, values, start, score) -> Pose:
    normal = AXES[plates.axis][:, 2]
    tilt = float(np.rad2deg(np.arccos(np.clip(frame[:3, 2] @ normal, -1, 1))))
    plate = int(np.argmin(np.abs(plates.positions - position_of(plates, frame))))
    return Pose(frame, tuple(np.exp(values[6:]).tolist()), tilt, plate, int(start), float(score))


def position_of(plates: Plates, frame: np.ndarray) -> float:
    """mm along the normal of the plates: the middle of what the atlas shows on the plane ``frame`` (4, 4), however little of it the slice has."""
    normal = AXES[plates.axis][:, 2]
    points = 1.5 * plates.lattice()
    shown = (plates.values(frame[None], points)[0] > SHOWN).numpy()
    middle = points.numpy()[shown].mean(0) if shown.any() else np.zeros(2)
    return float(normal @ (frame[:3, :2] @ middle + frame[:3, 3]))
