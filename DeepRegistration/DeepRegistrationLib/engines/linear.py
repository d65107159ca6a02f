"""Linear registration of two images over a pyramid of spacings, on a fixed set of well spread sample points.

A quasi-Newton search on the group of rigid, similarity or affine maps moves the fixed -> moving matrix A to A delta(q), where
delta turns and stretches about the centre of mass of the fixed image and q is in mm (angles and log-stretches are multiplied
by the mean radius of the samples). It lowers the cost of N samples

    C(A) = cost( F(x_i), M(A x_i) ),   i = 1..N,

whose gradient is exact (``linear_levels`` has dC/dA, and dA/dq at q = 0 are the generators of the group). The first Hessian
has the shape of sum_i J_i J_i^T, J_i = dM/dq. Levels go from coarse to fine in mm, stages from few to many degrees of freedom.
References: Viola and Wells, IJCV 1997; Mattes et al., IEEE TMI 2003; Klein et al., IEEE TMI 2010.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from ..errors import InputError
from ..runtime import Monitor, Runtime, fewer_threads
from ..transforms.base import Identity, linear_part
from ..transforms.linear import Affine, parameter_count
from .linear_levels import FEWEST_SAMPLES, SMALLEST_OVERLAP, Level, build_levels
from .search import minimise
from .starts import STARTS, candidates, worth

SIMILARITIES = ("mi", "ncc", "mse", "lncc")
LADDER = {"none": (), "translation": ("translation",), "rigid": ("rigid",), "similarity": ("rigid", "similarity"),
          "affine": ("rigid", "similarity", "affine")}
FREEDOMS = tuple(LADDER)
FINE_SAMPLES = 60000
"""Points of a linear map that is the answer, or may be; one of many maps of a cohort makes do with fewer."""
KEPT = 0.6
"""Share of the worth of its start that a search must not fall below."""
MOST_SAMPLES = 50000
"""Samples that one thread compares as fast as several."""


@dataclass(frozen=True)
class LinearSettings:
    """How ``align_linear`` searches; spacings in mm, 0 leaves the choice to the images.

    ``start`` where to begin (see ``starts``), ``freedom`` the last stage ('none' keeps the start), ``similarity`` what is
    compared, ``samples`` points on the finest level, ``iterations`` at most per stage, ``radius`` mm of the local correlation,
    ``rotations`` tried and ``kept`` refined by the start 'global'.
    """

    start: str = "auto"
    freedom: str = "affine"
    similarity: str = "mi"
    coarsest: float = 0.0
    finest: float = 0.0
    samples: int = 20000
    iterations: int = 40
    bins: int = 32
    radius: float = 0.0
    rotations: int = 1000
    kept: int = 6

    def __post_init__(self):
        for name, choices in (("start", STARTS), ("freedom", FREEDOMS), ("similarity", SIMILARITIES)):
            if getattr(self, name) not in choices:
                raise InputError(f"{name} '{getattr(self, name)}' was asked for; expected one of {', '.join(choices)}")


@dataclass
class LinearSolution:
    """``transform`` fixed mm -> moving mm; costs at the start (None where the images did not overlap) and at the end, the
    share of samples inside the moving image, the name of the start that won, and one dict per step."""

    transform: Affine
    before: float | None
    after: float
    overlap: float
    start: str
    history: list = field(default_factory=list)


def align_linear(pair, settings: LinearSettings = LinearSettings(), runtime: Runtime | None = None,
                 monitor: Monitor | None = None) -> Affine:
    """The linear map fixed mm -> moving mm of ``pair`` (``fixed``, ``moving`` Images, ``initial`` linear Transform or None).

    ``monitor`` takes the place of the runtime's, for a method that gives a share of its own progress. Raises as
    ``solve_linear``.
    """
    return solve_linear(pair, settings, runtime, monitor).transform


def solve_linear(pair, settings: LinearSettings = LinearSettings(), runtime: Runtime | None = None,
                 monitor: Monitor | None = None) -> LinearSolution:
    """As ``align_linear``, with costs and history.

    Raises InputError where the fields of view do not overlap at the asked start, for batches and for a deformable initial
    transform; Cancelled.
    """
    runtime = runtime or Runtime()
    monitor = monitor or runtime.monitor
    initial = _initial_matrix(pair)
    with fewer_threads(max(pair.fixed.grid.voxels, pair.moving.grid.voxels)):
        levels = build_levels(pair.fixed, pair.moving, settings, runtime)
    history: list = []
    with fewer_threads(len(levels[-1].offsets), MOST_SAMPLES):
        starts = candidates(levels[0], initial, settings, pair, monitor.part(0.0, 0.1, "starts"))
        base, name = _likely(levels[0], starts, settings, monitor.part(0.1, 0.3, "start"), history)[0]
        start = initial if initial is not None else np.eye(pair.fixed.dim + 1)
        first, whole = base, levels[0].cost(base).overlap
        for i, level in enumerate(levels):
            part = monitor.part(0.3 + 0.7 * i / len(levels), 0.3 + 0.7 * (i + 1) / len(levels))
            stages = LADDER[settings.freedom] if i == 0 else LADDER[settings.freedom][-1:]
            for k, kind in enumerate(stages):
                share = part.part(k / len(stages), (k + 1) / len(stages))
                found, _ = refine(level, base, kind, settings.iterations, share, history, whole=whole)
                base = base if _lost(level, first, found) else found
            monitor.preview(Affine(torch.as_tensor(base)))
        return _finished(levels[-1], start if settings.freedom != "none" else base, base, name, history)


def likely_starts(pair, settings: LinearSettings, runtime: Runtime, monitor: Monitor) -> list[np.ndarray]:
    """The maps (dim + 1, dim + 1) fixed mm -> moving mm that ``settings.start`` offers, after a short search on the coarsest level, most
    promising first; of those that came to lie within one voxel of it, one. Raises as ``solve_linear``."""
    with fewer_threads(max(pair.fixed.grid.voxels, pair.moving.grid.voxels)):
        level = build_levels(pair.fixed, pair.moving, settings, runtime)[0]
    with fewer_threads(len(level.offsets), MOST_SAMPLES):
        starts = candidates(level, _initial_matrix(pair), settings, pair, monitor.part(0.0, 0.5, "starts"))
        kept: list[np.ndarray] = []
        for matrix, _ in _likely(level, starts, settings, monitor.part(0.5, 1.0, "start"), []):
            if all(level.distance(matrix, other) > level.spacing for other in kept):
                kept.append(matrix)
        return kept


def _lost(level, first, found) -> bool:
    """True where the search from ``first`` to ``found`` gave up more of what the whole fixed image shares with the moving one than it can have gained:
    over the few samples of a small overlap the similarity is high by chance. So stacks of a few slices would be moved apart."""
    before, after = (level.cost(matrix) for matrix in (first, found))
    return worth(after.cost, after.overlap) < KEPT * worth(before.cost, before.overlap)


def _finished(level, start, base, name, history):
    """The solution, or the start where the search did not improve on it.

    A gain of less than 0.2 % of the similarity by less than a tenth of a voxel is what interpolation brings, not a better
    alignment (true moves of 0.05 voxels bring more): images that are aligned already are not resampled for it.
    """
    before, after = level.cost(start), level.cost(base)
    if before.overlap < SMALLEST_OVERLAP:
        return LinearSolution(Affine(torch.as_tensor(base)), None, after.cost, after.overlap, name, history)
    gain = level.compare(start, base)
    still = level.distance(start, base) < 0.1 * level.spacing and gain < 0.002 * (1 - before.cost)
    if start is not base and (gain <= 0 or still):
        base, after, name = start, before, "unchanged"
    return LinearSolution(Affine(torch.as_tensor(base)), before.cost, after.cost, after.overlap, name, history)


def _initial_matrix(pair):
    """(dim + 1, dim + 1) of the pair's initial transform, None where there is none."""
    for image in (pair.fixed, pair.moving):
        if image.data.shape[0] != 1:
            raise InputError(f"{image.name} is a batch of {image.data.shape[0]} images; linear registration takes one pair at a time")
    initial = pair.initial
    if initial is None or isinstance(initial, Identity):
        return None if initial is None else np.eye(pair.fixed.dim + 1)
    if not isinstance(initial, Affine):
        raise InputError(f"the initial transform is a {type(initial).__name__}; linear registration starts from a linear one, "
                         "give its linear part or choose a deformable method")
    return linear_part(initial).numpy()


def refine(level: Level, base: np.ndarray, kind: str, iterations: int, monitor: Monitor, history: list, name: str = "", whole: float = 0.0):
    """The map ``base @ delta`` of lowest cost, ``delta`` of ``kind``: returns (matrix (dim + 1, dim + 1), cost).

    A search that loses the images compares what would fit anything; it has to keep two fifths of the overlap of ``base`` and of ``whole``, the
    overlap where the first of several searches began (if ``base`` is already close to that, nine tenths of its own)."""
    directions, centre = _directions(kind, level), torch.as_tensor(level.centre)
    generators = _generators(kind, directions, centre)
    overlap = level.cost(base).overlap
    guarded = replace(level, lowest=max(SMALLEST_OVERLAP, 0.4 * overlap, min(0.4 * whole, 0.9 * overlap)))
    text = f"{name or kind} {level.spacing:.3g} mm"

    def by_index(matrix):
        return np.stack([level.index_matrix(matrix @ g) for g in generators], -1).reshape(-1, len(generators))

    def evaluate(matrix):
        found = guarded.evaluate(level.index_matrix(matrix))
        return found.cost, None if found.slope is None else by_index(matrix).T @ found.slope.ravel()

    def move(matrix, step):
        return matrix @ _delta(kind, directions @ torch.as_tensor(step), centre).numpy()

    def observe(matrix, cost):
        history.append({"stage": text, "step": len(history), "loss": cost})
        monitor.log(loss=cost)
        if monitor.wants_preview:
            monitor.preview(Affine(torch.as_tensor(matrix)))

    slopes = by_index(base)
    metric = slopes.T @ level.gram(level.index_matrix(base)) @ slopes
    return minimise(evaluate, base, move, metric, longest=2 * level.spacing, tolerance=level.tolerance,
                    iterations=iterations, monitor=monitor, text=text, observe=observe)


def _generators(kind, directions, centre):
    """(Q, dim + 1, dim + 1) dA/dq at q = 0, by central differences: for steps this short their error is that of rounding."""
    step = 1e-3 * directions.T
    ahead, behind = (Affine.from_parameters(kind, values, centre).matrix for values in (step, -step))
    return ((ahead - behind) / 2e-3).numpy()


def _delta(kind, values, centre):
    return Affine.from_parameters(kind, values[None], centre).matrix[0]


def _directions(kind, level):
    """(parameters, Q) from q in mm to the parameters of ``kind``; a one-slice pair keeps to its plane."""
    dim = len(level.centre)
    count = parameter_count(kind, dim)
    scale = np.full(count, 1 / level.radius)
    scale[:dim] = 1.0
    if level.plane is None:
        return torch.as_tensor(np.diag(scale))
    normal = level.plane
    first = np.cross(normal, np.eye(3)[np.argmin(np.abs(normal))])
    first /= np.linalg.norm(first)
    second = np.cross(normal, first)
    blocks = [np.stack([first, second], 1)]
    if kind != "translation":
        blocks.append(normal[:, None])
    if kind == "similarity":
        blocks.append(np.ones((1, 1)))
    elif kind == "affine":
        pairs = [(first, first), (second, second), (first, second)]
        tensors = [np.outer(a, b) + np.outer(b, a) for a, b in pairs]
        blocks.append(np.stack([[t[0, 0], t[1, 1], t[2, 2], t[0, 1], t[0, 2], t[1, 2]] for t in tensors], 1) / 2)
    basis = np.zeros((count, sum(b.shape[1] for b in blocks)))
    row = column = 0
    for block in blocks:
        basis[row:row + block.shape[0], column:column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return torch.as_tensor(scale[:, None] * basis)


def _likely(level, starts, settings, monitor, history):
    """``starts`` (name -> matrix) after a short rigid search, most promising first: [(matrix, name)]; one alone is left as it is."""
    kind = "translation" if settings.freedom == "translation" else "rigid"
    if len(starts) == 1:
        (name, matrix), = starts.items()
        return [(matrix, name)]
    level, found = level.thinned(FEWEST_SAMPLES), []
    for k, (name, matrix) in enumerate(starts.items()):
        part = monitor.part(k / len(starts), (k + 1) / len(starts))
        refined, _ = refine(level, matrix, kind, max(settings.iterations // 2, 5), part, history, f"start {name}")
        refined = matrix if _lost(level, matrix, refined) else refined
        there = level.cost(refined)
        if np.isfinite(there.cost):
            found.append((worth(there.cost, there.overlap), name, refined))
    if not found:
        raise InputError("no start of the search brings the two images together; check the masks and the headers, "
                         "or give an initial transform")
    return [(matrix, name) for _, name, matrix in sorted(found, key=lambda entry: entry[0], reverse=True)]
