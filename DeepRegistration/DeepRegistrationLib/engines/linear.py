"""Linear registration of two images over a pyramid of spacings, on a fixed set of well spread sample points.

A quasi-Newton search on the group of rigid, similarity or affine maps moves the fixed -> moving matrix A to A delta(q), where
delta turns and stretches about the centre of mass of the fixed image and q is in mm (angles and log-stretches are multiplied
by the mean radius of the samples). It lowers the cost of N samples

    C(A) = cost( F(x_i), M(A x_i) ),   i = 1..N,

whose gradient is exact: with K the matrix from x to the index in the moving image and g_i = dC/d(index of sample i),
dC/dK = sum_i g_i [x_i, 1]^T, and dK/dq at q = 0 are the generators of the group. The first Hessian has the shape of
sum_i J_i J_i^T, J_i = dM/dq. The samples do not lie on voxels, which removes the steps that mutual information has where
two lattices coincide. References: Viola and Wells, IJCV 1997; Mattes et al., IEEE TMI 2003; Klein et al., IEEE TMI 2010.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from ..errors import InputError
from ..geometry import Grid
from ..image import Image
from ..ops.filters import gaussian
from ..ops.sample import sample
from ..ops.stats import robust_range
from ..runtime import Monitor, Runtime
from ..terms.local_correlation import LNCC
from ..transforms.base import Identity, linear_part
from ..transforms.linear import Affine, parameter_count
from . import sampled
from .search import minimise, spread_points
from .starts import STARTS, candidates, centre_of_mass

SIMILARITIES = ("mi", "ncc", "mse", "lncc")
LADDER = {"none": (), "translation": ("translation",), "rigid": ("rigid",), "similarity": ("rigid", "similarity"),
          "affine": ("rigid", "similarity", "affine")}
FREEDOMS = tuple(LADDER)
SMALLEST_OVERLAP = 0.02
FEWEST_SAMPLES = 5000
FILL_SIGMA = 1.5


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


def align_linear(pair, settings: LinearSettings = LinearSettings(), runtime: Runtime | None = None, monitor: Monitor | None = None) -> Affine:
    """The linear map fixed mm -> moving mm of ``pair`` (``fixed``, ``moving`` Images, ``initial`` linear Transform or None).

    ``monitor`` takes the place of the runtime's, for a method that gives a share of its own progress. Raises as
    ``solve_linear``.
    """
    return solve_linear(pair, settings, runtime, monitor).transform


def solve_linear(pair, settings: LinearSettings = LinearSettings(), runtime: Runtime | None = None, monitor: Monitor | None = None) -> LinearSolution:
    """As ``align_linear``, with costs and history.

    Raises InputError where the fields of view do not overlap at the asked start, for batches and for a deformable initial
    transform; Cancelled.
    """
    runtime = runtime or Runtime()
    monitor = monitor or runtime.monitor
    initial = _initial_matrix(pair)
    levels = build_levels(pair.fixed, pair.moving, settings, runtime)
    history: list = []
    starts = candidates(levels[0], initial, settings, pair, monitor.part(0.0, 0.1, "starts"))
    base, name = _best_start(levels[0], starts, settings, monitor.part(0.1, 0.3, "start"), history)
    start = initial if initial is not None else np.eye(pair.fixed.dim + 1)
    for i, level in enumerate(levels):
        part = monitor.part(0.3 + 0.7 * i / len(levels), 0.3 + 0.7 * (i + 1) / len(levels))
        for kind in LADDER[settings.freedom] if i == 0 else LADDER[settings.freedom][-1:]:
            base, _ = refine(level, base, kind, settings.iterations, part, history)
        monitor.preview(Affine(torch.as_tensor(base)))
    return _finished(levels[-1], start if settings.freedom != "none" else base, base, name, history)


def _finished(level, start, base, name, history):
    """The solution, or the start where the search did not improve on it.

    A gain of less than 1 % of the similarity by a move of less than a tenth of a voxel is the error of interpolation, not a
    better alignment: images that are aligned already are not resampled for it.
    """
    before, after = level.cost(start), level.cost(base)
    if before.overlap < SMALLEST_OVERLAP:
        return LinearSolution(Affine(torch.as_tensor(base)), None, after.cost, after.overlap, name, history)
    gain = level.compare(start, base)
    still = level.distance(start, base) < 0.1 * level.spacing and gain < 0.01 * (1 - before.cost)
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


# ---------------------------------------------------------------------------------------------------------------- levels


@dataclass(frozen=True)
class Evaluation:
    """``cost`` (inf without overlap), ``slope`` (dim, dim + 1) its derivative by the index matrix, ``overlap`` 0 to 1."""

    cost: float
    slope: np.ndarray | None
    overlap: float


@dataclass(frozen=True, eq=False)
class Level:
    """One resolution: sample ``offsets`` (N, dim) mm from ``centre`` (dim,), their fixed ``values`` (C, N) and the ``measure``
    made of them; the ``moving`` image and its values stacked with its mask where there is one, ``stack`` (1, C or C + 1, *S);
    ``plane`` is the normal of a one-slice pair or None; under a share ``lowest`` of samples inside the moving image the cost
    is infinite; a search ends at steps of ``tolerance`` mm."""

    spacing: float
    offsets: torch.Tensor
    centre: np.ndarray
    values: torch.Tensor
    measure: object
    moving: Image
    stack: torch.Tensor
    plane: np.ndarray | None
    tolerance: float
    lowest: float = SMALLEST_OVERLAP

    @property
    def grid(self) -> Grid:
        return self.moving.grid

    @property
    def radius(self) -> float:
        """Root mean square distance of the samples from the centre, mm."""
        return float(self.offsets.square().sum(1).mean().sqrt())

    def thinned(self, count: int) -> "Level":
        """About ``count`` of the samples, compared by mutual information with few bins: quick to score many maps."""
        step = max(1, len(self.offsets) // count)
        values = self.values[:, ::step]
        return replace(self, offsets=self.offsets[::step], values=values, measure=sampled.Information(values, 16))

    def index_matrix(self, matrix) -> np.ndarray:
        """World map ``matrix`` -> (dim, dim + 1) from an offset to the index in the moving image."""
        shift = np.eye(len(self.centre) + 1)
        shift[:-1, -1] = self.centre
        return (self.grid.inverse_affine @ matrix @ shift)[:-1]

    def cost(self, matrix) -> Evaluation:
        """Cost of the world map ``matrix`` (dim + 1, dim + 1), without its derivative."""
        with torch.no_grad():
            values, weight = self._values(self._index(self.index_matrix(matrix)))
            overlap = float(weight.mean())
            if overlap < self.lowest:
                return Evaluation(float("inf"), None, overlap)
            return Evaluation(float(self.measure(values, weight)), None, overlap)

    def evaluate(self, index_matrix) -> Evaluation:
        """As ``cost`` with the derivative, from the matrix of offsets to indices."""
        index = self._index(index_matrix).requires_grad_(True)
        with torch.enable_grad():
            values, weight = self._values(index)
            overlap = float(weight.detach().mean())
            if overlap < self.lowest:
                return Evaluation(float("inf"), None, overlap)
            cost = self.measure(values, weight)
        (slope,) = torch.autograd.grad(cost, index)
        full = torch.cat([slope.T @ self.offsets, slope.sum(0)[:, None]], 1)
        return Evaluation(float(cost.detach()), full.double().cpu().numpy(), overlap)

    def gram(self, index_matrix) -> np.ndarray:
        """(P, P) sum of the squared derivatives of the moving values by the entries of the index matrix, row by row."""
        index = self._index(index_matrix).requires_grad_(True)
        with torch.enable_grad():
            values, weight = self._values(index)
            (slope,) = torch.autograd.grad((values * weight.detach()).sum(), index)
        ones = torch.ones_like(self.offsets[:, :1])
        rows = (slope[:, :, None] * torch.cat([self.offsets, ones], 1)[:, None]).flatten(1)
        return (rows.T @ rows).double().cpu().numpy() / len(rows)

    def compare(self, one, other) -> float:
        """Cost of the map ``one`` less that of ``other``, on the samples that both keep inside the moving image."""
        with torch.no_grad():
            (values, here), (others, there) = (self._values(self._index(self.index_matrix(m))) for m in (one, other))
            weight = torch.minimum(here, there)
            if float(weight.mean()) < self.lowest:
                return self.cost(one).cost - self.cost(other).cost
            return float(self.measure(values, weight) - self.measure(others, weight))

    def distance(self, one, other) -> float:
        """Root mean square distance between the images of the samples under two world maps, mm."""
        change = torch.as_tensor((np.asarray(one) - np.asarray(other))[:-1], dtype=self.offsets.dtype, device=self.offsets.device)
        points = self.offsets + torch.as_tensor(self.centre, dtype=self.offsets.dtype, device=self.offsets.device)
        return float((points @ change[:, :-1].T + change[:, -1]).square().sum(1).mean().sqrt())

    def _index(self, index_matrix):
        m = torch.as_tensor(index_matrix, dtype=self.offsets.dtype, device=self.offsets.device)
        return self.offsets @ m[:, :-1].T + m[:, -1]

    def _values(self, index):
        """index (N, dim) -> moving values (C, N) and weights (N,): 1 inside, falling to 0 over the outermost voxel."""
        read = sample(self.stack, index[None])[0]
        size = torch.tensor(self.grid.size, dtype=index.dtype, device=index.device)
        inside = (torch.minimum(index, size - 1 - index) + 1).clamp(0, 1).prod(-1)
        return (read, inside) if self.moving.mask is None else (read[:-1], inside * read[-1])


def build_levels(fixed: Image, moving: Image, settings: LinearSettings, runtime: Runtime) -> list[Level]:
    """The levels of a run, coarse to fine."""
    device = runtime.torch_device()
    plane = _common_plane(fixed.grid, moving.grid)
    spacings = level_spacings(fixed.grid, moving.grid, settings)
    fixed_levels, moving_levels = (_pyramid(_prepared(image, device), spacings) for image in (fixed, moving))
    centre = centre_of_mass(fixed_levels[0])
    points = None if settings.similarity == "lncc" else _sample_points(fixed, settings.samples, runtime.generator())
    tolerances = [0.02 * s for s in spacings[:-1]] + [0.005 * spacings[-1]]
    return [_level(*parts, centre, points, settings, plane) for parts in zip(spacings, tolerances, fixed_levels, moving_levels)]


def _level(spacing, tolerance, fixed, moving, centre, points, settings, plane):
    if points is None:
        offsets = fixed.grid.points().reshape(-1, fixed.dim) - centre
        values = fixed.data[0].flatten(1)
    else:
        offsets = points[:max(fixed.grid.voxels, FEWEST_SAMPLES)] - centre
        index = torch.as_tensor(fixed.grid.world_to_index(offsets + centre), dtype=torch.float32, device=fixed.device)
        values = sample(fixed.data, index[None])[0]
    stack = moving.data if moving.mask is None else torch.cat([moving.data, moving.mask.to(moving.data)], 1)
    offsets = torch.as_tensor(offsets, dtype=torch.float32, device=fixed.device)
    return Level(spacing, offsets, centre, values, _measure(values, fixed, settings, spacing), moving, stack, plane, tolerance)


def _measure(values, fixed, settings, spacing):
    if settings.similarity == "mi":
        return sampled.Information(values, settings.bins)
    if settings.similarity == "ncc":
        return sampled.Correlation(values)
    if settings.similarity == "mse":
        return sampled.Squares(values)
    return sampled.Lattice(values, fixed.grid, LNCC(settings.radius or 2.0 * spacing))


def level_spacings(fixed: Grid, moving: Grid, settings: LinearSettings) -> list[float]:
    """Spacings in mm, coarse to fine, each about half of the one before: from 32 voxels along the longest edge to the voxel size."""
    voxel = max(_mean_spacing(fixed), _mean_spacing(moving))
    finest = settings.finest or voxel
    if settings.similarity == "lncc" and not settings.finest:
        finest = max(finest, (np.prod(fixed.extent) / 250000) ** (1 / fixed.dim))
    coarsest = max(settings.coarsest or min(fixed.extent.max(), moving.extent.max()) / 32, finest)
    count = int(np.ceil(np.log2(coarsest / finest) - 0.25)) + 1
    return [float(s) for s in np.geomspace(coarsest, finest, max(count, 1))] if count > 1 else [float(finest)]


def _mean_spacing(grid):
    wide = np.array(grid.size) > 1
    return float(np.exp(np.log(grid.spacing[wide]).mean())) if wide.any() else float(grid.spacing.min())


def _prepared(image, device):
    """The image as float32 with values from 0 to 1: its robust range, within the mask."""
    values = image.data if image.mask is None else image.data[image.mask.expand_as(image.data)]
    low, high = robust_range(values.reshape(-1).double(), 5e-4)
    if high <= low:
        low, high = float(values.min()), float(values.max())
    data = image.data.to(device=device, dtype=torch.float32)
    prepared = replace(image.to(device), data=((data - low) / (high - low)).clamp_(0, 1))
    return prepared if image.mask is None else _filled(prepared)


def _filled(image):
    """The image with the values outside its mask made from those inside, so that neither smoothing nor interpolation brings
    in what the mask excludes."""
    inside = image.mask.to(image.data)
    mean = (image.data * inside).sum() / (inside.sum() * image.data.shape[1])
    near = gaussian(inside, FILL_SIGMA) + 1e-4
    spread = (gaussian(image.data * inside, FILL_SIGMA) + 1e-4 * mean) / near
    return replace(image, data=torch.where(image.mask, image.data, spread))


def _pyramid(image, spacings):
    """The image at each spacing (given coarse to fine), each made from the next finer one."""
    made = []
    for spacing in spacings[::-1]:
        image = image.smoothed_to(spacing)
        made.append(image)
    return made[::-1]


def _sample_points(fixed, count, generator):
    """(N, dim) mm: positions spread over the fixed mask or field of view, not on voxel centres."""
    grid, lower, share = fixed.grid, np.zeros(fixed.dim), 1.0
    upper = np.array(grid.size, float)
    if fixed.mask is not None:
        where = fixed.mask[0, 0].nonzero().cpu().numpy()[:, ::-1]
        lower, upper = where.min(0).astype(float), where.max(0) + 1.0
        share = len(where) / np.prod(upper - lower)
    unit = spread_points(int(np.ceil(count / share)), fixed.dim, torch.rand(fixed.dim, generator=generator, dtype=torch.float64).numpy())
    index = np.where(np.array(grid.size) == 1, 0.0, lower + unit * (upper - lower) - 0.5)
    if fixed.mask is not None:
        nearest = np.clip(np.floor(index + 0.5).astype(int), 0, np.array(grid.size) - 1)
        index = index[fixed.mask[0, 0].cpu().numpy()[tuple(nearest.T[::-1])]]
    return grid.index_to_world(index)


def _common_plane(fixed, moving):
    """The unit normal of the fixed slice where both are one-slice volumes, else None."""
    if fixed.dim != 3 or 1 not in fixed.size or 1 not in moving.size:
        return None
    normal = fixed.inverse_affine[:-1, :-1][fixed.size.index(1)]
    return normal / np.linalg.norm(normal)


# ---------------------------------------------------------------------------------------------------------------- stages


def refine(level: Level, base: np.ndarray, kind: str, iterations: int, monitor: Monitor, history: list, name: str = ""):
    """The map ``base @ delta`` of lowest cost, ``delta`` of ``kind``: returns (matrix (dim + 1, dim + 1), cost)."""
    directions, centre = _directions(kind, level), torch.as_tensor(level.centre)
    generators = torch.autograd.functional.jacobian(lambda q: _delta(kind, directions @ q, centre), directions.new_zeros(directions.shape[1]))
    generators = np.moveaxis(generators.numpy(), -1, 0)
    overlap = level.cost(base).overlap
    guarded = replace(level, lowest=max(SMALLEST_OVERLAP, 0.4 * overlap))
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


def _delta(kind, values, centre):
    return Affine.from_parameters(kind, values[None], centre).matrix[0]


def _directions(kind, level):
    """(parameters, Q) from q in mm to the parameters of ``kind``; a one-slice pair keeps to its plane."""
    dim = len(level.centre)
    turns = {2: 1, 3: 3}[dim]
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


def _best_start(level, starts, settings, monitor, history):
    """The most promising of ``starts`` (name -> matrix) after a short rigid search: (matrix, name)."""
    kind = "translation" if settings.freedom == "translation" else "rigid"
    if len(starts) == 1:
        (name, matrix), = starts.items()
        return matrix, name
    level, found = level.thinned(FEWEST_SAMPLES), []
    for k, (name, matrix) in enumerate(starts.items()):
        part = monitor.part(k / len(starts), (k + 1) / len(starts))
        refined, cost = refine(level, matrix, kind, max(settings.iterations // 2, 5), part, history, f"start {name}")
        overlap = level.cost(refined).overlap
        if np.isfinite(cost):
            found.append((worth(cost, overlap), name, refined))
    if not found:
        raise InputError("no start of the search brings the two images together; check the masks and the headers, or give an initial transform")
    best = max(found, key=lambda entry: entry[0])
    return best[2], best[1]


def worth(cost: float, overlap: float) -> float:
    """What a start is ranked by: the similarity shared by the whole fixed image, so that a tiny overlap cannot win."""
    return (1 - cost) * overlap
