"""Global rigid search: for every rotation of a list all shifts at once, by ``ops.fft``, over a pyramid of spacings.

A level is a cubic lattice of one spacing in mm. For a rotation R about the center of the moving image the moving image is
resampled on a lattice with the axes of the fixed one, turned by R; the best shift chi of that lattice over the fixed one gives
the map fixed mm -> moving mm

    T = G_R chi G_F^-1,    G the index-to-world matrix of a lattice.

The first level tries rotations from the whole group: a covering of it, or random ones; so the headers need not agree on
anything. Each later level tries the best rotations of the level before, no two of them close together, and small turns of
them. With 'random' these are drawn at random, as published (Öfverstedt et al., Cross-Sim-NGF, WBIR 2022); with 'covering' (Alexa,
CVPR 2022) nothing is left to chance: each kept rotation climbs by turns about the axes, whose size is halved where none helps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..errors import InputError
from ..geometry import Grid
from ..image import Image
from ..ops import nd
from ..ops.fft import Shifts, best_shift, cross_similarity, gradient_products, unit_gradient
from ..ops.filters import gaussian
from ..ops.sample import index_points, sample
from ..ops.stats import robust_range
from ..runtime import Monitor, Runtime, fewer_threads
from ..transforms.linear import Affine
from .search import angle_between, rotations

SAMPLINGS = ("covering", "random")
BATCH_VALUES = 500_000
"""Padded voxels that are worked on at a time, a few: they stay in the processor's cache, and the memory is bounded."""


@dataclass(frozen=True)
class SearchSettings:
    """``factors`` spacing of each level over the finest; ``tried`` rotations of each level, in 2D the first level at most one per
    degree; ``kept`` hypotheses after each level, no two closer than ``apart`` (degrees), so that one peak cannot take every place;
    ``turns`` largest angle (degrees) about each axis by which the levels after the first turn what was kept; ``blur`` Gaussian sigma in voxels of each level;
    ``finest`` mm, 0 for a 64th of the longer edge, never finer than the voxels; ``overlap`` least share of the smaller image;
    ``epsilon`` gradient per voxel of a level, of images scaled to [0, 1], that counts as noise, 0 for half of the root mean square."""

    sampling: str = "covering"
    factors: tuple[float, ...] = (2.0, 2.0, 1.0)
    tried: tuple[int, ...] = (1000, 300, 48)
    kept: tuple[int, ...] = (10, 4, 4)
    apart: float = 15.0
    turns: tuple[float, ...] = (8.0, 2.0)
    blur: tuple[float, ...] = (1.25, 1.25, 1.0)
    finest: float = 0.0
    overlap: float = 0.5
    epsilon: float = 1e-5

    def __post_init__(self):
        counts = {"factors": len(self.factors), "tried": len(self.tried), "kept": len(self.kept), "blur": len(self.blur), "turns": len(self.turns) + 1}
        if len(set(counts.values())) != 1 or not self.factors:
            raise InputError("the levels of the search disagree: " + ", ".join(f"{k} is for {v}" for k, v in counts.items())
                             + "; give one number per level, and one turn less")
        if self.sampling not in SAMPLINGS:
            raise InputError(f"sampling '{self.sampling}' was asked for; expected one of {', '.join(SAMPLINGS)}")


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """A rotation (dim, dim) about the center of the moving image, its best map fixed mm -> moving mm (dim + 1, dim + 1) and the similarity."""

    turn: np.ndarray
    matrix: np.ndarray
    similarity: float


@dataclass(frozen=True, eq=False)
class Found:
    """``hypotheses`` best first and apart from each other, the last ``level``, and all that was ``tried`` on the first one."""

    hypotheses: list[Hypothesis]
    level: Level
    tried: list[Hypothesis]

    def lead(self, turn: np.ndarray) -> float:
        """How far the best similarity near a rotation (dim, dim) is above the best elsewhere (more than 30 degrees away) on the first level,
        in standard deviations of all that were tried; negative where another rotation was better."""
        scores = np.array([h.similarity for h in self.tried])
        near = np.array([angle_between(h.turn, turn) for h in self.tried]) <= np.deg2rad(30)
        if near.all() or not near.any():
            return 0.0
        return float((scores[near].max() - scores[~near].max()) / max(scores.std(), 1e-12))


class Level:
    """One spacing: the fixed lattice with the spectra of its gradients, and the moving image to be turned."""

    def __init__(self, fixed: Image, moving: Image, spacing: float, blur: float, overlap: float, epsilon: float):
        """Images prepared by ``prepared``; spacing in mm, blur in voxels of this level."""
        self.spacing, self.overlap = spacing, overlap
        axes = _orthogonal(fixed.grid.direction)
        self.fixed_grid = _lattice(fixed.region(), axes, spacing, cube=False)
        box = moving.region()
        self.moving_grid, self.centre = _lattice(box, axes, spacing, cube=True), box.centre
        fixed, self.moving = (_blurred(image, spacing, blur) for image in (fixed, moving))
        self.shifts = Shifts(self.fixed_grid.shape, self.moving_grid.shape, overlap)
        self.epsilons = [epsilon or self._noise(image, grid) for image, grid in ((fixed, self.fixed_grid), (self.moving, self.moving_grid))]
        products = self._products(fixed, index_points(self.fixed_grid, fixed.grid, device=fixed.device), self.epsilons[0])
        self.fixed_voxels = float(products[:, 0].sum())
        self.products = products[0]
        self.spectrum = self.shifts.spectrum(products[0]).conj_physical_()
        offsets = self.moving_grid.points().reshape(-1, fixed.dim) - self.centre
        self.offsets = torch.as_tensor(offsets, dtype=torch.float32, device=fixed.device)
        unmoved = index_points(self.moving_grid, self.moving.grid, device=fixed.device)
        self.moving_voxels = float(self._products(self.moving, unmoved, self.epsilons[1])[:, 0].sum())

    @property
    def batch(self) -> int:
        """Rotations that are tried together."""
        return max(1, BATCH_VALUES // int(np.prod(self.shifts.padded)))

    def try_rotations(self, turns: np.ndarray) -> list[Hypothesis]:
        """The best shift for each of ``turns`` (K, dim, dim); those without enough overlap are left out."""
        grid = self.moving.grid
        to_index = torch.as_tensor(grid.inverse_affine[:-1, :-1] @ turns, dtype=torch.float32, device=self.offsets.device)
        start = torch.as_tensor(grid.world_to_index(self.centre), dtype=torch.float32, device=self.offsets.device)
        index = (self.offsets @ to_index.transpose(1, 2) + start).reshape(len(turns), *self.moving_grid.shape, grid.dim)
        products = self._products(self.moving, index, self.epsilons[1])
        least = self.overlap * products[:, 0].flatten(1).sum(1).clamp_max(self.fixed_voxels)
        scores, shifts = best_shift(*cross_similarity(self.spectrum, products, self.shifts), least.clamp_min(1), self.shifts)
        return [Hypothesis(turn, self._matrix(turn, shift), float(score)) for turn, shift, score in zip(turns, shifts, scores) if score > -np.inf]

    def similarity(self, matrix: np.ndarray) -> float:
        """The similarity at any map fixed mm -> moving mm, read on the fixed lattice; -inf where too little overlaps."""
        grid = self.fixed_grid.moved(matrix)
        moved = self._products(self.moving, index_points(grid, self.moving.grid, device=self.offsets.device), self.epsilons[1])
        common = float((self.products[0] * moved[0, 0]).sum())
        if common < max(1.0, self.overlap * min(self.moving_voxels, self.fixed_voxels)):
            return float("-inf")
        return float((self.products[1:] * moved[0, 1:]).sum()) / common

    def _matrix(self, turn, shift):
        turned = _about(self.centre, turn) @ self.moving_grid.affine
        turned[:-1, -1] += turned[:-1, :-1] @ shift
        return turned @ self.fixed_grid.inverse_affine

    def _products(self, image, index, epsilon):
        """Products of the image's normals on the positions ``index`` (B, *S, dim); a margin of one voxel inside the field of view."""
        values = sample(image.data, index)
        size, margin = np.array(image.grid.size), np.minimum(self.spacing / image.grid.spacing, np.array(image.grid.size) / 8)
        low, high = (torch.as_tensor(v, dtype=index.dtype, device=index.device) for v in (margin - 0.5, size - 0.5 - margin))
        inside = ((index >= low) & (index <= high)).all(-1)[:, None]
        if image.mask is not None:
            inside &= sample(image.mask.to(values), index) > 0.99
        return gradient_products(unit_gradient(values, epsilon), inside.to(values))

    def _noise(self, image, grid):
        """Half of the root mean square of the gradient per voxel of ``grid``, inside the field of view and mask."""
        index = index_points(grid, image.grid, device=image.device)
        square = nd.index_gradient(sample(image.data, index))[:, 0].square().sum(1, keepdim=True)
        inside = self._products(image, index, 1.0)[:, :1]
        return 0.5 * float(((square * inside).sum() / inside.sum().clamp_min(1)).sqrt())


def search(fixed: Image, moving: Image, settings: SearchSettings, runtime: Runtime, monitor: Monitor,
           first: np.ndarray | None = None) -> Found:
    """The best rigid maps fixed mm -> moving mm; several channels are averaged.

    ``first`` (dim + 1, dim + 1): a map whose rotation is tried too (the headers', or an initial transform). Raises InputError for
    batches, single slices of volumes, and where no rotation leaves enough overlap; Cancelled.
    """
    dim, generator = fixed.dim, np.random.default_rng(runtime.seed)
    device = runtime.torch_device()
    fixed, moving = (prepared(image, device) for image in (fixed, moving))
    turns = np.concatenate([np.eye(dim)[None] if first is None else _orthogonal(first[:-1, :-1])[None],
                            first_rotations(settings.sampling, settings.tried[0], dim, generator)])
    work = np.array([count / factor**dim for count, factor in zip(settings.tried, settings.factors)])
    ends = np.concatenate([[0.0], np.cumsum(work) / work.sum()])
    found: list[Hypothesis] = []
    everywhere: list[Hypothesis] = []
    for k, spacing in enumerate(level_spacings(fixed.region(), moving.region(), settings)):
        level = Level(fixed, moving, spacing, settings.blur[k], settings.overlap, settings.epsilon)
        trial = Trial(level, monitor.part(ends[k], ends[k + 1], f"level {k + 1}/{len(settings.tried)}"))
        with fewer_threads(level.moving_grid.voxels):
            if k == 0:
                trial.all_of(turns)
            elif settings.sampling == "random":
                trial.all_of(perturbed([h.turn for h in found], settings.tried[k], np.deg2rad(settings.turns[k - 1]), generator))
            else:
                trial.climb([h.turn for h in found], settings.tried[k], np.deg2rad(settings.turns[k - 1]))
        found = apart(trial.found, settings.kept[k], settings.apart)
        if not found:
            raise InputError(f"no rotation leaves {100 * settings.overlap:g} % of the smaller image in common with the other; "
                             "lower the least overlap, or check the masks")
        everywhere = everywhere or trial.found
    return Found(found, level, everywhere)


class Trial:
    """The rotations tried on one level; every new leader is logged and previewed."""

    def __init__(self, level: Level, monitor: Monitor):
        self.level, self.monitor = level, monitor
        self.found: list[Hypothesis] = []
        self.leader: Hypothesis | None = None

    def all_of(self, turns: np.ndarray) -> None:
        """Try ``turns`` (K, dim, dim), a few at a time."""
        size = self.level.batch
        for k in self.monitor.steps(-(-len(turns) // size), self._text(len(turns))):
            self._try(turns[k * size:(k + 1) * size])

    def climb(self, starts: list[np.ndarray], count: int, largest: float) -> None:
        """Pattern search with about ``count`` rotations: each start looks at turns of ``largest`` rad about every axis, one way and
        the other, moves to the best where that is better, and halves its step where none is."""
        steps = _axis_turns(len(starts[0]))
        self._try(np.stack(starts))
        heads = [(h, largest) for h in self.found]
        for _ in self.monitor.steps(max(1, round(count / (len(steps) * max(len(heads), 1)))), self._text(count)):
            heads = [self._step(h, size, steps) for h, size in heads]

    def _step(self, head, size, steps):
        tried = self._try(np.stack([_turned(size * step) @ head.turn for step in steps]))
        best = max([head, *tried], key=lambda h: h.similarity)
        return (best, size) if best is not head else (head, size / 2)

    def _try(self, turns):
        tried = [h for k in range(0, len(turns), self.level.batch) for h in self.level.try_rotations(turns[k:k + self.level.batch])]
        self.found += tried
        best = max(self.found, key=lambda h: h.similarity, default=None)
        if best is not self.leader:
            self.leader = best
            self.monitor.log(loss=1 - best.similarity)
            self.monitor.preview(Affine(torch.as_tensor(best.matrix)))
        return tried

    def _text(self, count):
        return f"{count} rotations at {self.level.spacing:.3g} mm"


def first_rotations(sampling: str, count: int, dim: int, generator: np.random.Generator) -> np.ndarray:
    """(count, dim, dim) rotations from the whole group; in 2D at most 360."""
    count = count if dim == 3 else min(count, 360)
    if sampling == "covering":
        return rotations(count, dim)
    if dim == 2:
        angle = generator.uniform(0, 2 * np.pi, count)
        return np.stack([np.stack([np.cos(angle), -np.sin(angle)], -1), np.stack([np.sin(angle), np.cos(angle)], -1)], 1)
    quaternion = generator.normal(size=(count, 4))
    return _from_quaternion(quaternion / np.linalg.norm(quaternion, axis=1, keepdims=True))


def perturbed(turns: list[np.ndarray], count: int, largest: float, generator: np.random.Generator) -> np.ndarray:
    """The given rotations unchanged, then ``count`` small turns of them: up to ``largest`` rad about each axis, uniformly."""
    dim, made = len(turns[0]), list(turns)
    for k in range(count):
        made.append(_turned(generator.uniform(-largest, largest, 1 if dim == 2 else 3)) @ turns[k % len(turns)])
    return np.stack(made)


def apart(found: list[Hypothesis], count: int, degrees: float) -> list[Hypothesis]:
    """The ``count`` best, none within ``degrees`` of a better one."""
    kept: list[Hypothesis] = []
    for h in sorted(found, key=lambda h: -h.similarity):
        if len(kept) == count:
            break
        if all(angle_between(h.turn, other.turn) > np.deg2rad(degrees) for other in kept):
            kept.append(h)
    return kept


def level_spacings(fixed: Grid, moving: Grid, settings: SearchSettings) -> list[float]:
    """Spacing in mm of each level; never finer than the voxels of the coarser image, the first with at least 24 voxels along the longer edge."""
    longest = max(fixed.extent.max(), moving.extent.max())
    voxel = max(np.exp(np.log(g.spacing).mean()) for g in (fixed, moving))
    finest = max(voxel, settings.finest or longest / 64)
    return [float(max(finest, min(factor * finest, longest / 24))) for factor in settings.factors]


def prepared(image: Image, device) -> Image:
    """One channel of float32 on the device, its robust range (within the mask) brought to [0, 1]."""
    if image.data.shape[0] != 1:
        raise InputError(f"{image.name} is a batch of {image.data.shape[0]} images; the global search takes one pair at a time")
    if image.dim == 3 and min(image.grid.shape) == 1:
        raise InputError(f"{image.name} is a single slice of a volume; the global search needs volumes, or two 2D images")
    data = image.data.to(torch.float32).mean(1, keepdim=True)
    values = data if image.mask is None else data[image.mask]
    low, high = robust_range(values.reshape(-1), 1e-3)
    if high <= low:
        low, high = float(values.min()), float(values.max())
    data = data.sub(low).div_(max(high - low, 1e-12)).clamp_(0, 1)
    return Image(data, image.grid, image.mask, image.name).to(device)


def _lattice(box: Grid, axes: np.ndarray, spacing: float, cube: bool) -> Grid:
    """The lattice along ``axes`` that covers ``box``, or the cube of its longest edge about the same center."""
    corners = (box.corners() - box.centre) @ axes
    extent = np.full(box.dim, box.extent.max()) if cube else corners.max(0) - corners.min(0)
    size = np.maximum(np.ceil(extent / spacing - 1e-6).astype(int), 1)
    grid = Grid.from_parts(tuple(size[::-1]), spacing, None, axes)
    return Grid.from_parts(grid.shape, spacing, box.centre - grid.centre, axes)


def _blurred(image: Image, spacing: float, blur: float) -> Image:
    """The image smoothed with a sigma of ``blur * spacing`` mm, on at most twice the resolution of the level; what lies outside the mask stays out."""
    coarse = image.smoothed_to(spacing / 2)
    if image.mask is None:
        return Image(gaussian(coarse.data, blur * spacing / coarse.grid.spacing), coarse.grid, None, image.name)
    inside = Image(image.mask.to(image.data), image.grid)
    weighted, weight = (Image(data, image.grid).smoothed_to(spacing / 2).data for data in (image.data * inside.data, inside.data))
    sigma = blur * spacing / coarse.grid.spacing
    data = gaussian(weighted, sigma) / gaussian(weight, sigma).clamp_min(1e-4)
    return Image(data, coarse.grid, coarse.mask, image.name)


def _orthogonal(matrix: np.ndarray) -> np.ndarray:
    u, _, v = np.linalg.svd(matrix)
    return u @ v


def _about(centre, turn):
    m = np.eye(len(centre) + 1)
    m[:-1, :-1], m[:-1, -1] = turn, centre - turn @ centre
    return m


def _turned(angles: np.ndarray) -> np.ndarray:
    """The rotation of a rotation vector (1,) or (3,) rad."""
    dim = 2 if len(angles) == 1 else 3
    values = torch.as_tensor(np.r_[np.zeros(dim), angles])[None]
    return Affine.from_parameters("rigid", values, torch.zeros(dim, dtype=torch.float64)).numpy()[:-1, :-1]


def _axis_turns(dim: int) -> np.ndarray:
    """(2 or 6, 1 or 3) unit rotation vectors about every axis, one way and the other."""
    axes = np.eye(1 if dim == 2 else 3)
    return np.concatenate([axes, -axes])


def _from_quaternion(q):
    w, x, y, z = q.T
    rows = [[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]]
    return np.stack([np.stack(row, -1) for row in rows], 1)
