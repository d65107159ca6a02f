"""The pose of a set of slices in a volume: a search from far away, the binary search about the common axis, then all six degrees of freedom.

1. Poses that fill the reach evenly (a low-discrepancy sequence of six numbers: shift and turn) are scored on the coarsest level by the
   normalized mutual information of all pixels. The start is one of them.
2. The best, apart from each other, go through the binary search of the report (see ``methods/qmri.py``): the set is turned about its axis by +-15, +-7.5, ...
   degrees, every slice votes for the way in which it is most like its emulation, the majority moves the set; then a short quasi-Newton
   search. The best of these go on to the finer levels.
3. On the finest level every slice may move a little on its own, against a penalty and within a bound.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from ..errors import InputError
from ..runtime import fewer_threads
from ..transforms.linear import Affine
from .search import minimise, spread_points
from .slices import SIMILARITIES, SliceLevel, about_axis, build_levels, common_axis, refine, rigid
from .starts import worth

SEARCHES = ("full", "axis", "none")
LEAST_VOXELS = 4
"""Voxels of the volume that the slices have to be long, at least: shorter ones are in another unit."""
ONE_THREAD = 200_000
"""Pixels of all slices up to which several threads cost more than they save."""
THIN = 3000
"""Pixels of all slices together that poses far from each other are compared by."""


@dataclass(frozen=True)
class SliceSettings:
    """``search`` from where: 'full' all poses within ``angle`` degrees and ``shift`` mm (0: 0.15 of the slices' longer edge) of the start, 'axis' the
    binary search alone, 'none' the start; ``tried`` poses and ``kept`` ones of each level; ``similarity`` of the fine levels; ``coarsest`` and ``finest``
    mm (0: a 40th and a 128th of the longer edge, never finer than the pixels); ``own_shift`` mm and ``own_turn`` degrees that a slice may move on
    its own (0, 0: not at all); ``iterations`` at most on a level."""

    search: str = "full"
    similarity: str = "mi"
    profile: str = "box"
    angle: float = 45.0
    shift: float = 0.0
    tried: int = 2500
    kept: tuple[int, ...] = (14, 4, 2)
    first_turn: float = 15.0
    coarsest: float = 0.0
    finest: float = 0.0
    own_shift: float = 0.0
    own_turn: float = 0.0
    iterations: int = 40

    def __post_init__(self):
        for name, choices in (("search", SEARCHES), ("similarity", SIMILARITIES)):
            if getattr(self, name) not in choices:
                raise InputError(f"{name} '{getattr(self, name)}' was asked for; expected one of {', '.join(choices)}")


class PoseOfSet(Affine):
    """The pose of a set while it is searched, for previews: slice mm -> volume mm after the ``moves`` (S, 4, 4) of the slices to where they are placed."""

    def __init__(self, matrix, moves):
        super().__init__(torch.as_tensor(np.array(matrix)))
        self.moves = moves


@dataclass(eq=False)
class Found:
    """``matrix`` (4, 4) slice mm -> volume mm of the set, its ``cost`` on the finest of ``levels``; ``others`` [(matrix, cost)] that were refined on the
    last but one level; ``own`` (S, 4, 4) small motions of every slice before ``matrix``; ``votes`` of the binary search about ``axis``; history;
    ``moves`` (S, 4, 4) that the slices were placed by before."""

    matrix: np.ndarray
    cost: float
    levels: list[SliceLevel]
    others: list = field(default_factory=list)
    own: np.ndarray | None = None
    moves: np.ndarray | None = None
    votes: list = field(default_factory=list)
    axis: tuple | None = None
    history: list = field(default_factory=list)


def level_spacings(problem, settings: SliceSettings) -> list[float]:
    """mm, coarse to fine, each about half of the one before."""
    edge = longest_edge(problem)
    pixel = float(np.median([np.sort(s.grid.spacing[s.grid.wide])[0] for s in problem.slices]))
    finest = max(settings.finest or max(edge / 128, 0.5 * float(problem.volume.grid.spacing.min())), pixel)
    coarsest = max(settings.coarsest or edge / 40, finest)
    count = max(2, int(np.ceil(np.log2(coarsest / finest) - 0.25)) + 1)
    return [float(s) for s in np.geomspace(coarsest, finest, count)]


def longest_edge(problem) -> float:
    """mm, of the slices' fields of view."""
    return float(max(s.grid.extent[s.grid.wide].max() for s in problem.slices))


def reach_of(problem, settings: SliceSettings) -> tuple[float, float]:
    """(mm, radians) that the search reaches from its start along and about every axis."""
    return settings.shift or 0.15 * longest_edge(problem), np.deg2rad(settings.angle)


def out_of_reach(problem) -> InputError:
    """What to say where no pose has the slices in the volume; files in other units than mm are seen by the sizes."""
    edges = " x ".join(f"{edge:.3g}" for edge in problem.volume.grid.extent)
    return InputError(f"no pose within reach of the start brings the slices, {longest_edge(problem):.3g} mm long, into the volume of {edges} mm; check that "
                      "both belong together and are in mm, give an initial transform, or let the search reach farther")


def spread_poses(level: SliceLevel, starts, count: int, shift: float, turn: float) -> np.ndarray:
    """(starts + count, 4, 4): the starts, and poses that fill the reach around them evenly."""
    unit = 2 * spread_points(count, 6, np.full(6, 0.5)) - 1
    moves = rigid(unit[:, :3] * shift, unit[:, 3:] * turn, level.centre)
    starts = np.stack(starts)
    return np.concatenate([starts, starts[np.arange(count) % len(starts)] @ moves])


def binary_search(level: SliceLevel, matrix: np.ndarray, axis, first: float, last: float = 0.5) -> tuple[np.ndarray, list[dict]]:
    """(matrix after the turn about ``axis``, one dict a step: turn tried, votes for each way, turn so far and similarity).

    Each of the slices votes for the turn (-step, 0, +step) at which it has most in common with its emulation; the most votes win, a draw goes to
    the way with the larger sum of similarities.
    """
    angle, step, trace = 0.0, first, []
    while step >= last:
        tried = (angle - step, angle, angle + step)
        together, single, overlap = level.scores([matrix @ about_axis(axis, a) for a in tried])
        votes = np.bincount(single.argmax(0), minlength=3)
        winner = int(np.lexsort((single.sum(1), votes))[-1])
        angle = tried[winner]
        trace.append({"step": step, "back": int(votes[0]), "stay": int(votes[1]), "forth": int(votes[2]), "angle": angle,
                      "similarity": float(together[winner]), "overlap": float(overlap[winner])})
        step /= 2
    return matrix @ about_axis(axis, angle), trace


def apart(level: SliceLevel, found: list, count: int, least: float) -> list:
    """The ``count`` of [(matrix, cost)] with the lowest costs, no two closer than ``least`` mm (root mean square over the pixels)."""
    kept: list = []
    for matrix, cost in sorted(found, key=lambda f: f[1]):
        if len(kept) == count:
            break
        if np.isfinite(cost) and all(distance(level, matrix, other) > least for other, _ in kept):
            kept.append((matrix, cost))
    return kept


def distance(level: SliceLevel, one, other) -> float:
    """Root mean square distance of the slices' pixels under two maps of the set, mm."""
    points = level.points[0].double().cpu().numpy()
    change = (np.asarray(one) - np.asarray(other))[:3]
    offset = change @ np.r_[level.centre, 1.0]
    return float(np.sqrt((((points @ change[:, :3].T) + offset) ** 2).sum(1).mean()))


def search(problem, starts, settings: SliceSettings, runtime, monitor, moves=None) -> Found:
    """The pose of the set from ``starts`` (4, 4) slice mm -> volume mm, and the slices' own motions where these are asked for; ``moves`` (S, 4, 4) that
    the slices of the problem were placed by, for previews.

    Raises InputError where no pose within reach brings the slices into the volume; Cancelled.
    """
    if longest_edge(problem) < LEAST_VOXELS * float(problem.volume.grid.spacing.min()):
        raise out_of_reach(problem)
    device = runtime.torch_device()
    device = torch.device("cpu") if device.type == "mps" else device
    levels = build_levels(problem, level_spacings(problem, settings), settings.similarity, settings.profile, device)
    axis = problem.axis if problem.axis is not None else common_axis([s.grid for s in problem.slices])
    still = np.broadcast_to(np.eye(4), (len(problem.slices), 4, 4))
    found = Found(starts[0], float("inf"), levels, axis=axis, moves=still if moves is None else moves)
    with fewer_threads(levels[-1].points.shape[1], ONE_THREAD):
        poses = _first(levels[0], problem, starts, settings, found, monitor.part(0.0, 0.4, "search"))
        poses = _finer(levels, poses, settings, found, monitor.part(0.4, 0.85))
        found.matrix, found.cost = poses[0]
        if settings.own_shift > 0 or settings.own_turn > 0:
            found.own = own_motions(levels[-1], found.matrix, settings, monitor.part(0.85, 1.0, "every slice"))
    return found


def _first(level, problem, starts, settings, found, monitor) -> list:
    """[(matrix, cost)] on the coarsest level, best first."""
    thin = level.thinned(THIN)
    if settings.search == "none":
        return [(m, thin.cost(m)) for m in starts]
    poses = list(starts)
    if settings.search == "full":
        tried = spread_poses(thin, starts, settings.tried, *reach_of(problem, settings))
        scored = []
        for part in monitor.part(0.0, 0.4).steps(max(1, len(tried) // 250), f"{len(tried)} poses"):
            some = tried[part::max(1, len(tried) // 250)]
            together, _, overlap = thin.scores(some)
            scored += [(m, -worth(1 - t, o)) for m, t, o in zip(some, together, overlap) if o >= level.lowest]
        if not scored:
            raise out_of_reach(problem)
        poses = [m for m, _ in apart(thin, scored, settings.kept[0], 2 * level.spacing)] + list(starts)
    out = []
    for k in monitor.part(0.4, 1.0).steps(len(poses), f"{len(poses)} hypotheses"):
        matrix, trace = poses[k], []
        if found.axis is not None:
            matrix, trace = binary_search(thin, matrix, found.axis, settings.first_turn)
        if settings.search == "full":
            matrix, cost = refine(thin, matrix, 15, _quiet(monitor), tolerance=0.05 * level.spacing)
        else:
            cost = thin.cost(matrix)
        out.append((matrix, cost, trace))
        if cost == min(o[1] for o in out):
            monitor.preview(PoseOfSet(matrix, found.moves))
    best = min(out, key=lambda o: o[1])
    if not np.isfinite(best[1]):
        raise InputError("the slices do not lie in the volume at the start; give an initial transform, or search all poses")
    found.votes = best[2]
    return [(m, c) for m, c, _ in out]


def _quiet(monitor):
    """A monitor for the short searches of hypotheses: they can be cancelled and are not counted one by one."""
    return monitor.part(0.4, 0.4)


def _finer(levels, poses, settings, found, monitor) -> list:
    for k, level in enumerate(levels):
        last = k == len(levels) - 1
        keep = settings.kept[min(k + 1, len(settings.kept) - 1)]
        poses = apart(level, poses, keep, level.spacing)
        part = monitor.part(k / len(levels), (k + 1) / len(levels))
        refined = []
        for n, (matrix, _) in enumerate(poses):
            def observe(matrix, cost, level=level, first=n == 0):
                if first:
                    found.history.append({"stage": f"pose {level.spacing:.3g} mm", "step": len(found.history), "loss": cost})
                    monitor.log(loss=cost)
                    monitor.preview(PoseOfSet(matrix, found.moves))

            share = part.part(n / len(poses), (n + 1) / len(poses))
            refined.append(refine(level, matrix, settings.iterations, share, observe, (0.005 if last else 0.02) * level.spacing))
        poses = sorted(refined, key=lambda p: p[1])
        if not poses or not np.isfinite(poses[0][1]):
            raise InputError("the slices left the volume during the search; check that both belong together, or give an initial transform")
        if not last:
            found.others = poses
    return poses


def own_motions(level: SliceLevel, matrix: np.ndarray, settings: SliceSettings, monitor) -> np.ndarray:
    """(S, 4, 4) small motions of every slice before ``matrix``: lowest cost with a penalty of half a squared bound, none beyond its bound."""
    bounds = np.r_[np.full(3, settings.own_shift), np.full(3, np.deg2rad(settings.own_turn) * level.radius)]
    free = np.tile(bounds > 0, level.count)
    scale = np.tile(np.where(bounds > 0, bounds, 1.0), level.count)
    pull = 0.02 / level.count

    def evaluate(q):
        if (np.abs(q) > scale).any():
            return float("inf"), None
        steps = np.stack([level.step(row) for row in q.reshape(level.count, 6)])
        cost, slope = level.evaluate(matrix @ steps)
        if slope is None:
            return cost, None
        return cost + pull * float(((q / scale) ** 2).sum()) / 2, np.where(free, slope.ravel() + pull * q / scale**2, 0.0)

    metric = np.kron(np.eye(level.count), level.gram(matrix))
    metric = np.where(np.outer(free, free), metric, 0.0) + np.diag(np.where(free, 0.0, metric.max()))
    best, _ = minimise(evaluate, np.zeros(6 * level.count), lambda q, s: q + s, metric, longest=level.spacing, tolerance=0.01 * level.spacing,
                       iterations=settings.iterations, monitor=monitor, text="slices on their own")
    return np.stack([level.step(row) for row in best.reshape(level.count, 6)])
