"""Diffeomorphic registration by composing small smooth steps over a pyramid of spacings.

One step on a level, in voxels of its lattice: compare the fixed channels with the moving channels pulled back by phi,
take the symmetric demons update v (``ops/demons.py``) or the scaled slope of another similarity, smooth it (fluid), and
    phi <- phi o (id + v),   u <- G * u,   phi = id + u,
where the second smoothing is the elastic part. Every step is shorter than half a voxel and smooth, so that phi stays
invertible. Vercauteren et al., NeuroImage 2009; Yushkevich et al., 'greedy', 2016.

The symmetric form moves both images to a mean space, each by half a step, and returns phi_moving o phi_fixed^-1; swapping
the images swaps the result (Avants et al., MedIA 2008).

With a halved field the last level compares the images as ever, but phi lies on a lattice of twice their spacing: phi is read there linearly, and the
sums of a step are averaged over blocks of two voxels an axis (one along thick slices). Widths stay the same in mm. Half of the time of a step, an
eighth of the field.

``cautious`` adds two doubts where images alone steer: a level that has a finer one after it is undone where the images, seen on that finer
level, tell less of each other than before (``judge.py``), since a lattice of few voxels shows mixtures, and pieces cut off by the fields of
view; and the steps of a level are smoothed as much as two halves of its voxels need to agree (``halves.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import InputError
from ..geometry import Grid
from ..image import Image
from ..ops import demons, fields, nd
from ..parameters import require_counts
from ..runtime import Monitor, fewer_threads
from ..transforms import Affine, Displacement, Transform
from .channels import CHANNELS, folded, normalised_pair
from .extent import MARGIN, RUNOUT, content_box, fade, finest_spacing, ramp_lengths, widened
from .guides import Guides, LandmarkGuide
from .halves import smoothing
from .judge import Judge
from .matching import IntensityMap, local_map
from .slopes import SLOPES, SlopeDescent
from .starts import background
from .structure import STRUCTURAL, SecondOpinion, carried, structural_pair

REFRESH = 5
NOISE = 0.01


@dataclass(frozen=True)
class CompositiveSettings:
    """factors: spacing of each level in units of the finest; iterations per level; sigmas in voxels of the level; step limit
    k in voxels; window mm of the local statistics; finest mm, 0 for the voxel size; tolerance ends a level early; cautious
    as told above; halved: the field of the last level has half of its resolution."""

    similarity: str = "lncc"
    factors: tuple[float, ...] = (8.0, 4.0, 2.0, 1.0)
    iterations: tuple[int, ...] = (100, 100, 60, 10)
    fluid: float = 1.0
    elastic: float = 0.6
    limit: float = 1.0
    window: float = 12.0
    finest: float = 0.0
    shared_range: bool = False
    symmetric: bool = False
    tolerance: float = 1e-3
    cautious: bool = False
    largest: int = 24_000_000
    halved: bool = False


@dataclass
class Level:
    """Both images at one spacing: channels on the working lattice and on the moving lattice; a voxel of the field is a block of ``blocks``
    (x, y, z) of their voxels, one or two an axis."""

    fixed: Image
    moving: Image
    matrix: np.ndarray
    background: float = 0.0
    map: IntensityMap | None = None
    target: torch.Tensor | None = None
    labels: "Level | None" = None
    landmarks: LandmarkGuide | None = None
    weight: float = 1.0
    blocks: tuple[int, ...] | None = None

    @cached_property
    def warped(self) -> torch.Tensor:
        """Memory of the warped channels."""
        return torch.empty_like(self.fixed.data)

    @cached_property
    def work(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Memory of a field with a weight, (1, dim + 1, *S), on the lattice of the images and on that of the field."""
        shapes = [(1, grid.dim + 1, *grid.shape) for grid in (self.fixed.grid, self.grid)]
        return tuple(torch.empty(shape, dtype=torch.float32, device=self.fixed.device) for shape in shapes)

    @cached_property
    def grid(self) -> Grid:
        """The lattice of the field."""
        return self.fixed.grid if self.blocks is None else self.fixed.grid.resample(self.fixed.grid.spacing * self.blocks)

    @property
    def share(self) -> np.ndarray:
        """(dim,) voxels of the field along a voxel of the images."""
        return np.ones(self.fixed.dim) if self.blocks is None else 1 / np.array(self.blocks)

    def comparable(self, u: torch.Tensor) -> torch.Tensor:
        """(1, 1, *S) bool: voxels that the displacement u (voxels) leaves inside the moving field of view and both masks."""
        ones, zeros = torch.ones_like(self.moving.data[:, :1]), torch.zeros_like(self.fixed.data[:, :1])
        return demons.pull(ones, self.moving.mask, self.matrix, u, zeros, self.fixed.mask) > 0.5


def register(fixed: Image, moving: Image, linear: Affine, settings: CompositiveSettings, monitor: Monitor,
             start: Transform | None = None, guides: Guides | None = None,
             rival: Transform | None = None) -> tuple[Displacement, list[dict], Transform | None]:
    """The displacement u (mm, on a lattice over the content) with moving = linear(x + u(x)), and one dict per step.

    ``start`` is a map fixed -> moving to begin from in place of ``linear``; where a ``rival`` is given, the first of several levels is run from both, and
    what ends with the lower cost is gone on with. ``guides`` steer besides the images. The third value is the inverse of the displacement where the
    symmetric form gives it. InputError for an unknown similarity, Cancelled.
    """
    guides = guides or Guides()
    _check(settings, fixed, guides)
    with fewer_threads(max(fixed.grid.voxels, moving.grid.voxels)):
        return _registered(fixed, moving, linear, settings, monitor, (start,) if rival is None else (start, rival), guides)


def _registered(fixed, moving, linear, settings, monitor, starts, guides):
    box = content_box(fixed, moving, linear)
    step = finest_spacing(box, settings)
    spacings = [step * f for f in settings.factors]
    images = normalised_pair(fixed, moving, settings.shared_range)
    pyramid, through = _compared(images, linear, box, spacings, settings.similarity)
    labels = [None] * len(spacings) if guides.labels is None else _pyramid(*guides.labels, spacings)
    work = np.array([n * (f ** -fixed.dim + 0.02) for n, f in zip(settings.iterations, settings.factors)], float)
    ends = np.concatenate([[0], np.cumsum(work) / work.sum()])
    opinion, state, grid, history = None, None, None, []
    alone = guides == Guides(weight=guides.weight)
    settings = replace(settings, cautious=settings.cautious and alone)
    used = [k for k, iterations in enumerate(settings.iterations) if iterations > 0]
    for k in used:
        level = _level(*pyramid[k], box, through, settings.halved and k == used[-1])
        if labels[k] is not None:
            level.labels, level.weight = _level(*labels[k], box, linear, level.blocks is not None), guides.weight
        if guides.points is not None:
            level.landmarks = LandmarkGuide.on(guides, linear, level.grid, level.fixed.device)
        rivals = [_carried(state, grid, level.grid, settings, linear, each, fixed.dim, fixed.device)
                  for each in (starts if state is None and k != used[-1] else starts[:1])]
        grid, state = level.grid, rivals[0]
        if opinion is None and settings.similarity in STRUCTURAL and alone:
            opinion = SecondOpinion((images[0], folded(images[1], linear)), ([u.clone() for u in state], grid))
        part = monitor.part(ends[k], ends[k + 1], f"level {k + 1}/{len(pyramid)}")
        with fewer_threads(grid.voxels):
            before = [u.clone() for u in state] if settings.cautious and k != used[-1] and settings.similarity not in STRUCTURAL else None
            state = _cheapest(level, rivals, settings.iterations[k], settings, part, history, linear)
            state = state if before is None else _better(before, state, grid, pyramid[k + 1], linear)
        state = state if opinion is None else opinion.judged(state, grid, _joined, k == used[-1])
    return _finished(state, grid, fixed.grid, history, int(settings.halved))


def _check(settings, fixed, guides):
    known = CHANNELS + SLOPES
    if settings.similarity not in known:
        raise InputError(f"similarity '{settings.similarity}' is not known to the compositive model; expected one of {', '.join(known)}")
    if settings.similarity in SLOPES and (guides.labels is not None or guides.points is not None):
        raise InputError(f"labels or landmarks steer the similarities {', '.join(CHANNELS)} of the model 'greedy'; "
                         f"similarity '{settings.similarity}' was asked for")
    if settings.halved and (settings.symmetric or settings.similarity in SLOPES):
        raise InputError("a field of half the resolution was asked for in the symmetric form or with a similarity of "
                         f"{', '.join(SLOPES)}; it serves {', '.join(CHANNELS)} in the plain form")
    if settings.symmetric and settings.similarity in SLOPES:
        raise InputError(f"the symmetric form compares {', '.join(CHANNELS)}; similarity '{settings.similarity}' was asked for")
    require_counts(settings.factors, settings.iterations)
    if fixed.data.shape[0] != 1:
        raise InputError(f"a batch of {fixed.data.shape[0]} images was given; the compositive model registers one pair at a time")


def _pyramid(fixed, moving, spacings):
    """(fixed, moving) at each spacing, coarse to fine, each made from the next finer one."""
    made = []
    for spacing in spacings[::-1]:
        fixed, moving = fixed.smoothed_to(spacing), moving.smoothed_to(spacing)
        made.append((fixed, moving))
    return made[::-1]


def _compared(images, linear, box, spacings, kind):
    """(pyramid of what is compared, the linear map that it is still to be seen through)."""
    if kind not in STRUCTURAL:
        return _pyramid(*images, spacings), linear
    pair = structural_pair(images[0], folded(images[1], linear), box, spacings[-1], kind)
    return _pyramid(*pair, spacings), Affine.identity(box.dim)


def _level(fixed, moving, box, linear, halved=False):
    """One level; the working lattice is the part of the smoothed fixed grid that covers the box; for a ``halved`` field with an even number of
    voxels along every axis that is not much coarser than the finest one."""
    index = fixed.grid.world_to_index(box.corners())
    lower = np.clip(np.floor(index.min(0) + 0.5 + 1e-6), 0, np.array(fixed.grid.size) - 1).astype(int)
    upper = np.clip(np.ceil(index.max(0) + 0.5 - 1e-6), lower + 1, fixed.grid.size).astype(int)
    spacing, blocks = fixed.grid.spacing, None
    if halved:
        blocks = tuple(int(n) for n in np.where((spacing < 1.5 * spacing[upper - lower > 1].min(initial=np.inf)) & (upper - lower > 1), 2, 1))
        upper = upper - (upper - lower) % blocks
    part = tuple(slice(a, b) for a, b in zip(lower[::-1], upper[::-1]))
    mask = None if fixed.mask is None else fixed.mask[(..., *part)].contiguous()
    fixed = Image(fixed.data[(..., *part)].contiguous(), fixed.grid.crop(lower, upper), mask, fixed.name)
    matrix = moving.grid.inverse_affine @ linear.numpy() @ fixed.grid.affine
    return Level(fixed, moving, matrix, background(fixed.data[0, 0]), target=fixed.data, blocks=blocks)


def _carried(state, old, grid, settings, linear, start, dim, device):
    """The fields of the last level on the new lattice; at first the start, or the identity."""
    if state is None:
        count = 2 if settings.symmetric else 1
        if start is None:
            return [torch.zeros(1, dim, *grid.shape, device=device) for _ in range(count)]
        u = demons.from_world((linear.inverse() @ start).field(grid, device=device), grid)
        return [u] if count == 1 else _halves(u)
    return carried(state, old, grid)


def _halves(u):
    """[to the moving image, to the fixed image] of the symmetric form that together make id + u (voxels): the flow of minus half the
    logarithm leads to the fixed image, and u o that flow to the moving one, so that _joined gives u back however good the logarithm is."""
    grid = Grid(tuple(u.shape[2:]), np.eye(u.ndim - 1))
    to_fixed = fields.exp(-fields.logarithm(u, grid, "border") / 2, grid, padding="border")
    return [demons.compose(u, to_fixed), to_fixed]


def _better(before, after, grid, finer, linear):
    """``after`` or, where the images of the next ``finer`` level tell less of each other under it, ``before`` (fields in voxels of ``grid``)."""
    maps = [linear @ Displacement(demons.to_world(_joined(state), grid), grid) for state in (before, after)]
    return before if Judge(*finer).gain(*maps) < 0 else after


def _cheapest(level, rivals, iterations, settings, monitor, history, linear):
    """The level run from each of ``rivals``: the fields of the run that ends with the lowest cost, the first of equal ones; ``history`` tells its steps."""
    runs = []
    for k, state in enumerate(rivals):
        level.map, level.target, rows = None, level.fixed.data, []
        part = monitor.part(k / len(rivals), (k + 1) / len(rivals))
        runs.append((_run_level(level, state, iterations, settings, part, rows, linear), [{**row, "rival": k} for row in rows] if k else rows))
    state, rows = min(runs, key=lambda run: run[1][-1]["cost"])
    history += rows
    return state


def _run_level(level, state, iterations, settings, monitor, history, linear):
    slope = SlopeDescent.of(settings.similarity, level.grid, _limit(level, settings), settings.fluid)
    costs: list[float] = []
    pending: list = []
    for k in monitor.steps(iterations):
        if settings.similarity == "lncc" and (k == REFRESH or k % (2 * REFRESH) == 0):
            _match(level, state, settings)
        if k == 0 and slope is None and settings.cautious:
            settings = _smoothed_enough(level, state, settings)
        state, cost = _step_symmetric(level, state, settings) if settings.symmetric else _step(level, state, settings, slope)
        pending.append(cost)
        if monitor.wants_preview:
            monitor.preview(linear @ Displacement(demons.to_world(_joined(state), level.grid), level.grid))
        if len(pending) < REFRESH and k + 1 < iterations:
            continue
        # Costs are read once in a few steps: reading one makes a GPU wait.
        for value in (float(c) for c in pending):
            history.append({"spacing": float(level.fixed.grid.spacing.min()), "cost": value})
            monitor.log(cost=value)
            costs.append(value)
        pending.clear()
        if level.labels is None and level.landmarks is None and len(costs) > 15 and min(costs[:-10]) - min(costs[-10:]) < settings.tolerance * costs[0]:
            break
    return state if slope is None else [slope.finished(state[0], level.fixed.data, _pulled(level, state)[1], level.comparable(state[0]))]


def _smoothed_enough(level, state, settings):
    """``settings`` with as much smoothing as two halves of the voxels need to agree on the first step (``halves.py``)."""
    fixed, warped = _pulled(level, state)
    target = level.target if len(state) == 1 else _mapped(level, fixed)
    sums, _ = demons.forces(target, warped, level.fixed.grid.spacing, _limit(level, settings), level.work[0])
    fluid, elastic = smoothing(_on_field(level, sums), settings.fluid, settings.elastic, _floor(level), level.share)
    return replace(settings, fluid=fluid, elastic=elastic)


def _match(level, state, settings):
    """Fit the local intensity map anew; ``target`` is the fixed image in the units of the moving one."""
    fixed, warped = _pulled(level, state)
    level.map = local_map(fixed, warped, _mapped(level, fixed), level.fixed.grid, settings.window, level.background)
    level.target = level.map(level.fixed.data, level.background)


def _pulled(level, state):
    """(fixed, warped) as the next step sees them, the fixed one before its intensity map."""
    if len(state) == 1:
        moving, mask = level.moving, level.fixed.mask
        u = state[0] if level.blocks is None else nd.doubled(_scaled(state[0], 1 / level.share), level.fixed.grid.shape)
        return level.fixed.data, demons.pull(moving.data, moving.mask, level.matrix, u, level.target, mask, level.warped)
    identity = np.eye(level.grid.dim + 1)
    fixed = demons.pull(level.fixed.data, None, identity, state[1], level.fixed.data, None)
    mapped = _mapped(level, fixed)
    warped = demons.pull(level.moving.data, level.moving.mask, level.matrix, state[0], mapped, None)
    if level.fixed.mask is not None:
        counts = level.fixed.mask.to(fixed.dtype)
        warped = torch.where(demons.pull(counts, None, identity, state[1], torch.zeros_like(counts), None) > 0.5, warped, mapped)
    return fixed, warped


def _mapped(level, fixed):
    return fixed if level.map is None else level.map(fixed, level.background)


def _step(level, state, settings, slope):
    u = state[0]
    _, warped = _pulled(level, state)
    if slope is None:
        v, cost, free = _update(level, state, level.target, warped, settings)
    else:
        v, cost = slope.step(u, level.fixed.data, warped, level.comparable(u))
        free = None
    composed = demons.compose(u, v, free)
    smoothed, _ = demons.smooth(composed, level.share * settings.elastic, u)
    return [smoothed if smoothed.data_ptr() == u.data_ptr() else u.copy_(smoothed)], cost


def _update(level, state, fixed, warped, settings):
    """(the demons step of images and guides, voxels; cost; a free tensor of the step's shape or None)."""
    spacing, limit = level.fixed.grid.spacing, _limit(level, settings)
    sums, cost = demons.forces(fixed, warped, spacing, limit, level.work[0])
    if level.labels is not None:
        label_sums, label_cost = demons.forces(*_pulled(level.labels, state), spacing, limit)
        sums.add_(label_sums, alpha=level.weight)
        cost = cost + level.weight * label_cost
    sums, free = demons.smooth(_on_field(level, sums), level.share * settings.fluid, level.work[1])
    if level.landmarks is not None:
        level.landmarks.add(sums, state, 0.5 * limit / level.grid.spacing)
    return demons.quotient(sums, _floor(level)), cost, None if free is None else free[:, : level.grid.dim]


def _on_field(level, sums):
    """The sums of a step on the lattice of the field, in its voxels."""
    if level.blocks is None:
        return sums
    sums = nd.average_pool(sums, level.blocks)
    sums[:, :-1] = _scaled(sums[:, :-1], level.share)
    return sums


def _scaled(u, factors):
    """Every component of u (1, dim, *S) by its one of ``factors`` (dim,)."""
    return u * torch.as_tensor(factors, dtype=u.dtype, device=u.device).reshape(1, -1, *[1] * (u.ndim - 2))


def _limit(level, settings):
    return settings.limit * float(level.grid.spacing[level.grid.wide].min())


def _floor(level):
    """(``NOISE`` of the range per voxel) squared: a gradient below it is taken for noise."""
    return (NOISE / float(level.fixed.grid.spacing[level.grid.wide].max())) ** 2


def _step_symmetric(level, state, settings):
    fixed, warped = _pulled(level, state)
    v, cost, _ = _update(level, state, _mapped(level, fixed), warped, settings)
    v = v / 2
    return [demons.smooth(demons.compose(u, step), settings.elastic)[0] for u, step in zip(state, (v, -v))], cost


def _joined(state):
    """One displacement in voxels: phi_moving o phi_fixed^-1 in the symmetric form."""
    if len(state) == 1:
        return state[0]
    to_moving, to_fixed = state
    grid = Grid(tuple(to_fixed.shape[2:]), np.eye(to_fixed.ndim - 1))
    back, _ = fields.invert(to_fixed, grid, 0.02)
    return demons.compose(to_moving, back)


def _finished(state, grid, whole, history, beyond=0):
    """Displacements in world mm on the lattice widened within the image, faded to 0 on the sides inside the image, and continued ``beyond``
    by that many voxels: the outermost voxels of the images lie outside the centers of a halved field."""
    maps = [_joined(state)] if len(state) == 1 else [_joined(state), _joined(state[::-1])]
    lengths = np.max([ramp_lengths(u) for u in maps], 0)
    wide = widened(grid, whole, lengths)
    ending = fade(grid, wide, whole, lengths).to(state[0].device)
    forward, inverse = ([_exported(u, grid, wide, ending, beyond) for u in maps] + [None])[:2]
    return forward, history, inverse


def _exported(u, grid, wide, ending, beyond):
    start = np.round(wide.world_to_index(grid.origin)).astype(int)
    end = np.array(wide.size) - start - np.array(grid.size)
    pad = [int(v) for pair in zip(start, end) for v in pair]
    u = F.pad(demons.to_world(u, grid), pad, mode="replicate").mul_(ending)
    margin = [beyond if n > 1 else 0 for n in wide.size]
    return Displacement(F.pad(u, [n for n in margin for _ in range(2)], mode="replicate") if beyond else u, wide.pad(margin))


__all__ = ["MARGIN", "RUNOUT", "CompositiveSettings", "content_box", "finest_spacing", "register"]
