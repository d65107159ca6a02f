"""One resolution of a linear registration: well spread samples of the fixed image, and their cost under a linear map.

With K the matrix from a fixed point x_i to the index in the moving image and g_i = dC/d(index of sample i), the derivative of
a cost C of the samples is dC/dK = sum_i g_i [x_i, 1]^T. The samples do not lie on voxels, which removes the steps that mutual
information has where two lattices coincide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..geometry import Grid
from ..image import Image
from ..ops.filters import gaussian
from ..ops.sample import sample
from ..ops.stats import robust_range
from ..runtime import Runtime
from ..terms.local_correlation import LNCC
from . import sampled
from .search import spread_points
from .starts import centre_of_mass

SMALLEST_OVERLAP = 0.02
FEWEST_SAMPLES = 5000
FILL_SIGMA = 1.5


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
    ``counted`` (N,) is 0 for samples outside the fixed mask, None where all are inside; ``plane`` is the normal of a one-slice
    pair or None; under a share ``lowest`` of samples inside the moving image the cost is infinite; a search ends at steps of
    ``tolerance`` mm."""

    spacing: float
    offsets: torch.Tensor
    centre: np.ndarray
    values: torch.Tensor
    measure: object
    moving: Image
    stack: torch.Tensor
    counted: torch.Tensor | None
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
        keep = torch.arange(len(self.offsets)) if self.counted is None else self.counted.nonzero()[:, 0]
        keep = keep[::max(1, len(keep) // count)]
        values = self.values[:, keep]
        return replace(self, offsets=self.offsets[keep], values=values, measure=sampled.Information(values, 16), counted=None)

    def index_matrix(self, matrix) -> np.ndarray:
        """World map ``matrix`` -> (dim, dim + 1) from an offset to the index in the moving image."""
        shift = np.eye(len(self.centre) + 1)
        shift[:-1, -1] = self.centre
        return (self.grid.inverse_affine @ matrix @ shift)[:-1]

    def cost(self, matrix) -> Evaluation:
        """Cost of the world map ``matrix`` (dim + 1, dim + 1), without its derivative."""
        with torch.no_grad():
            values, weight = self._values(self._index(self.index_matrix(matrix)))
            overlap = self._overlap(weight)
            if overlap < self.lowest:
                return Evaluation(float("inf"), None, overlap)
            return Evaluation(float(self.measure(values, weight)), None, overlap)

    def evaluate(self, index_matrix) -> Evaluation:
        """As ``cost`` with the derivative, from the matrix of offsets to indices."""
        index = self._index(index_matrix).requires_grad_(True)
        with torch.enable_grad():
            values, weight = self._values(index)
            overlap = self._overlap(weight.detach())
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
            if self._overlap(weight) < self.lowest:
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

    def _overlap(self, weight):
        return float(weight.mean() if self.counted is None else weight.sum() / self.counted.sum())

    def _values(self, index):
        """index (N, dim) -> moving values (C, N) and weights (N,): 1 inside, falling to 0 over the outermost voxel."""
        read = sample(self.stack, index[None])[0]
        size = torch.tensor(self.grid.size, dtype=index.dtype, device=index.device)
        along = (torch.minimum(index, size - 1 - index) + 1).clamp(0, 1).unbind(-1)
        inside = math.prod(along if self.counted is None else (*along, self.counted))
        return (read, inside) if self.moving.mask is None else (read[:-1], inside * read[-1])


def build_levels(fixed: Image, moving: Image, settings, runtime: Runtime) -> list[Level]:
    """The levels of a run, coarse to fine; computed on the CPU where the device has no float64."""
    device = runtime.torch_device()
    device = torch.device("cpu") if device.type == "mps" else device
    plane = _common_plane(fixed.grid, moving.grid)
    spacings = level_spacings(fixed.region(), moving.region(), settings)
    fixed_levels, moving_levels = (_pyramid(_prepared(image, device), spacings) for image in (fixed, moving))
    centre = centre_of_mass(fixed_levels[0])
    points = None if settings.similarity == "lncc" else _sample_points(fixed, settings.samples, runtime.generator())
    tolerances = [0.02 * s for s in spacings[:-1]] + [0.005 * spacings[-1]]
    return [_level(*parts, centre, points, settings, plane) for parts in zip(spacings, tolerances, fixed_levels, moving_levels)]


def _level(spacing, tolerance, fixed, moving, centre, points, settings, plane):
    counted = None
    if points is None:
        offsets = fixed.grid.points().reshape(-1, fixed.dim) - centre
        values = fixed.data[0].flatten(1)
        counted = None if fixed.mask is None else fixed.mask.flatten().to(values)
    else:
        offsets = points[:max(fixed.grid.voxels, FEWEST_SAMPLES)] - centre
        index = torch.as_tensor(fixed.grid.world_to_index(offsets + centre), dtype=torch.float32, device=fixed.device)
        values = sample(fixed.data, index[None])[0]
    stack = moving.data if moving.mask is None else torch.cat([moving.data, moving.mask.to(moving.data)], 1)
    offsets = torch.as_tensor(offsets, dtype=torch.float32, device=fixed.device)
    return Level(spacing, offsets, centre, values, _measure(values, fixed, settings, spacing), moving, stack, counted, plane, tolerance)


def _measure(values, fixed, settings, spacing):
    if settings.similarity == "mi":
        return sampled.Information(values, settings.bins)
    if settings.similarity == "ncc":
        return sampled.Correlation(values)
    if settings.similarity == "mse":
        return sampled.Squares(values)
    return sampled.Lattice(values, fixed.grid, LNCC(settings.radius or 2.0 * spacing))


def level_spacings(fixed: Grid, moving: Grid, settings) -> list[float]:
    """Spacings in mm, coarse to fine, each about half of the one before: from 32 voxels along the longest edge to the voxel size."""
    voxel = max(fixed.mean_spacing, moving.mean_spacing)
    finest = settings.finest or voxel
    if settings.similarity == "lncc" and not settings.finest:
        finest = max(finest, (np.prod(fixed.extent) / 250000) ** (1 / fixed.dim))
    coarsest = max(settings.coarsest or min(fixed.extent.max(), moving.extent.max()) / 32, finest)
    count = int(np.ceil(np.log2(coarsest / finest) - 0.25)) + 1
    return [float(s) for s in np.geomspace(coarsest, finest, max(count, 1))] if count > 1 else [float(finest)]


def _prepared(image, device):
    """The image as float32 with values from 0 to 1: its robust range, within the mask."""
    values = image.data if image.mask is None else image.data[image.mask.expand_as(image.data)]
    low, high = robust_range(values.reshape(-1).float(), 5e-4)
    if high <= low:
        low, high = float(values.min()), float(values.max())
    data = image.data.to(device=device, dtype=torch.float32).sub(low).div_(high - low).clamp_(0, 1)
    prepared = replace(image.to(device), data=data)
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
    region = fixed.region()
    size = np.array(region.size)
    share = 1.0 if fixed.mask is None else int(fixed.mask.sum()) / region.voxels
    unit = spread_points(int(np.ceil(count / share)), fixed.dim, torch.rand(fixed.dim, generator=generator, dtype=torch.float64).numpy())
    points = region.index_to_world(np.where(size == 1, 0.0, unit * size - 0.5))
    if fixed.mask is None:
        return points
    nearest = np.floor(fixed.grid.world_to_index(points) + 0.5).astype(int).clip(0, np.array(fixed.grid.size) - 1)
    return points[fixed.mask[0, 0].cpu().numpy()[tuple(nearest.T[::-1])]]


def _common_plane(fixed, moving):
    """The unit normal of the fixed slice where both are one-slice volumes, else None."""
    if fixed.dim != 3 or 1 not in fixed.size or 1 not in moving.size:
        return None
    normal = fixed.inverse_affine[:-1, :-1][fixed.size.index(1)]
    return normal / np.linalg.norm(normal)
