"""The pose of a slice as an oblique plane of an atlas, and the plates ranked by it.

The plates that an embedding ranks first (Antanavicius et al., WBIR 2022) are starts. What was torn off moves the center of what is left, so the slice
is first laid over every plate: the product of both, locally normalized, summed over the slice's tissue for all shifts at once (by Fourier
transforms) and a few turns; where it fits best are further starts. From these the plane is tilted, turned, moved and scaled so that its local
correlation with the slice rises (``plate_agreement``), the best ones once more from other tilts, in ever finer pixels. The plates are ranked
anew by the planes:

    cost(k) = min_j (APART |k - plate_j| - score_j),

so that those nearest to the best plane come first, and then those near the next one if it is almost as good.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .plate_agreement import NUMBERS, Agreement, frames_of, improved
from .plates import AXES, SHOWN, Plates, Query

APART, LEAST = 0.01, 3
"""Score that one plate's distance from a plane is worth; plates between starts at least."""
RANKED, FITTING = 5, 10
"""Starts because they rank first, and because the slice fits them."""
COARSE, FINE, FINEST = (2.2, 1.5), 1.5, 2.5
"""Windows of the local correlation, in pixels of each stage: both coarse ones are followed, since each ends in other wrong planes."""
TILTS = ((0.0, 0.0), (6.0, 0.0), (-6.0, 0.0), (0.0, 6.0), (0.0, -6.0))
"""Degrees about u and v by which the best coarse planes are tilted to start from once more."""
HALF = 0.5
"""Share of a plane's tissue that a slice is expected to show at least: what it lacks lowers the score."""
TURNS = (-10.0, -5.0, 0.0, 5.0, 10.0)
"""Degrees in the plane that are tried for each start."""


@dataclass(frozen=True, eq=False)
class Pose:
    """Where the slice lies: ``frame`` (4, 4) rigid, (u, v, w) mm of the picture -> LPS mm; ``scale`` of the slice along u and v; ``tilt`` degrees
    between its normal and that of the plates; ``plate``: the nearest one to the middle of what the atlas shows on it;
    ``start``: the plate from which it was found; ``score``: local correlation, at most 1, less what is unlikely of the plane."""

    frame: np.ndarray
    scale: tuple[float, float]
    tilt: float
    plate: int
    start: int
    score: float


@dataclass(eq=False)
class _Planes:
    """Planes on the way: their ``numbers`` (N, M) (``plate_agreement``) from the frames of the plates ``starts`` (N,), and their ``scores`` (N,)."""

    plates: Plates
    starts: np.ndarray
    numbers: torch.Tensor
    scores: torch.Tensor

    def improved(self, agreement: Agreement, steps: int, monitor) -> "_Planes":
        return _Planes(self.plates, self.starts, *improved(agreement, self.plates.frames[self.starts], self.numbers, steps, monitor))

    def tilted(self) -> "_Planes":
        """Every plane from all of ``TILTS``."""
        change = torch.zeros(len(TILTS), NUMBERS)
        change[:, 3:5] = torch.tensor(TILTS)
        starts, numbers, scores = (np.repeat(self.starts, len(TILTS)), *(x.repeat_interleave(len(TILTS), 0) for x in (self.numbers, self.scores)))
        return _Planes(self.plates, starts, numbers + change.repeat(len(self.starts), 1), scores)

    def poses(self, agreement: Agreement, most: int) -> tuple["_Planes", list[Pose]]:
        """At most ``most`` planes, best first, of which no two are at one plate or the next; and their poses."""
        frames, values = frames_of(self.plates.frames[self.starts], self.numbers), self.numbers[:, 6:].exp().double().numpy()
        lacking = (HALF - agreement.share(frames, values)).clamp_min(0)
        scores = (self.scores - lacking).numpy()
        every = [_pose(self.plates, *each) for each in zip(frames, values, self.starts, scores)]
        kept: list[int] = []
        for k in np.argsort(-scores, kind="stable"):
            if len(kept) < most and all(abs(every[k].plate - every[other].plate) > 1 for other in kept):
                kept.append(int(k))
        return _Planes(self.plates, self.starts[kept], self.numbers[kept], self.scores[kept]), [every[k] for k in kept]


def refine(query: Query, plates: Plates, ranked, monitor) -> list[Pose]:
    """Poses of the slice, best first; ``ranked`` (P or fewer,) plates, the most likely first."""
    coarse = [_coarse(Agreement.of(query, plates.coarser, window), plates, np.asarray(ranked, int), monitor.part(0.3 * k, 0.3 * (k + 1)))
              for k, window in enumerate(COARSE)]
    fine, finest = Agreement.of(query, plates, FINE), Agreement.of(query, plates.finer, FINEST)
    planes, _ = _joined(coarse).improved(fine, 5, monitor.part(0.6, 0.8)).poses(fine, 3)
    return planes.improved(finest, 6, monitor.part(0.8, 1)).poses(finest, 3)[1]


def _coarse(agreement: Agreement, plates: Plates, ranked: np.ndarray, monitor) -> _Planes:
    """The best planes in coarse pixels."""
    planes, _ = _begun(agreement, plates, ranked).improved(agreement, 8, monitor.part(0, 0.5)).poses(agreement, 4)
    return planes.tilted().improved(agreement, 6, monitor.part(0.5, 1)).poses(agreement, 4)[0]


def _joined(several: list[_Planes]) -> _Planes:
    return _Planes(several[0].plates, np.concatenate([each.starts for each in several]), torch.cat([each.numbers for each in several]),
                   torch.cat([each.scores for each in several]))


def _begun(coarse: Agreement, plates: Plates, ranked: np.ndarray) -> _Planes:
    """The slice laid over the first of the plates ``ranked`` and over those that it fits best."""
    fit, numbers = coarse.laid_over(plates.frames[ranked], TURNS)
    places = spread_starts(ranked, RANKED)
    order = np.argsort(-fit.numpy(), kind="stable")
    places = np.concatenate([places, spread_starts([plate for plate in ranked[order] if np.abs(plate - places).min() > 1], FITTING, 2)])
    where = [int(np.flatnonzero(ranked == plate)[0]) for plate in places]
    return _Planes(plates, places, numbers[where], fit[where])


def spread_starts(ranked, count: int, least: int = LEAST) -> np.ndarray:
    """The first ``count`` of the plates ``ranked`` (P,) that lie at least ``least`` apart."""
    chosen: list[int] = []
    for plate in ranked:
        if len(chosen) < count and all(abs(int(plate) - other) >= least for other in chosen):
            chosen.append(int(plate))
    return np.array(chosen, int)


def costs_of(poses, count: int) -> np.ndarray:
    """(P,) cost of every plate by the planes that were found; see above."""
    plates = np.arange(count)[:, None]
    return (APART * np.abs(plates - [pose.plate for pose in poses]) - [pose.score for pose in poses]).min(1)


def _pose(plates: Plates, frame, scale, start, score) -> Pose:
    normal = AXES[plates.axis][:, 2]
    tilt = float(np.rad2deg(np.arccos(np.clip(frame[:3, 2] @ normal, -1, 1))))
    plate = int(np.argmin(np.abs(plates.positions - position_of(plates.coarser, frame))))
    return Pose(frame, tuple(scale.tolist()), tilt, plate, int(start), float(score))


def position_of(plates: Plates, frame: np.ndarray) -> float:
    """mm along the normal of the plates: the middle of what the atlas shows on the plane ``frame`` (4, 4), however little of it the slice has."""
    normal = AXES[plates.axis][:, 2]
    points = 1.5 * plates.lattice()
    shown = (plates.values(frame[None], points)[0] > SHOWN).numpy()
    middle = points.numpy()[shown].mean(0) if shown.any() else np.zeros(2)
    return float(normal @ (frame[:3, :2] @ middle + frame[:3, 3]))
