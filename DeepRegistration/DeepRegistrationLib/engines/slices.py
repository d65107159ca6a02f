"""Slices of a volume emulated at any pose, and the similarity of real and emulated slices with its exact slope.

A slice of thickness d through the points p (mm) with the normal n is, where the map T_s of slice s takes it into the volume V,

    E_s(p) = sum_k w_k V( T_s(p + o_k n) ),

o_k the Gauss-Legendre nodes over the thickness and w_k their weights times the slice profile. All slices of a set are compared
together: the joint histogram of mutual information has the pixels of all of them, since one contrast is common to all. With
g_i the slope of the cost by the position of a sample and r = p - c, the slope by a small motion (shift t, turn w) of the slices
before T is sum_i (g_i, r_i x g_i); summed over one slice it is that slice's own, and summed over a part of one it says how far
the parts agree (``slice_evidence``). Follows the emulation of 2D slices from the volume in
the report of ``methods/qmri.py``; mutual information as in ``sampled``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ..errors import InputError
from ..geometry import Grid
from ..image import Image
from ..ops.filters import gaussian
from ..ops.sample import sample
from ..ops.stats import robust_range
from ..terms import LNCC, NGF
from . import sampled
from .search import minimise

SIMILARITIES = ("mi", "lncc", "ngf")
PROFILES = ("box", "gaussian")
LOWEST_OVERLAP = 0.3
TAIL, CORE, FENCE = 2e-3, 0.05, 3.0
"""Share of the values that is left out at either end; share beyond the core of the values, and widths of this core from it, beyond which values that
were clipped there are none."""
FILL_SIGMA = 1.5


def profile_nodes(thickness: float, spacing: float, profile: str = "box") -> tuple[np.ndarray, np.ndarray]:
    """(offsets (K,) mm along the normal, weights (K,) of sum 1) of a slice of ``thickness`` mm in a volume of ``spacing`` mm.

    'box' weighs all depths alike; 'gaussian' has its full width at half maximum equal to the thickness. A slice thinner than
    0.75 of the spacing is one plane. InputError for another profile.
    """
    if profile not in PROFILES:
        raise InputError(f"slice profile '{profile}' was asked for; expected one of {', '.join(PROFILES)}")
    ratio = thickness / spacing
    count = 1 if ratio < 0.75 else 3 if ratio < 4 else 5
    nodes, weights = np.polynomial.legendre.leggauss(count)
    if profile == "box" or count == 1:
        return nodes * thickness / 2, weights / weights.sum()
    depth = nodes * thickness  # a Gaussian reaches beyond its half width
    weights = weights * np.exp(-4 * np.log(2) * (depth / thickness) ** 2)
    return depth, weights / weights.sum()


def normal_of(grid: Grid) -> np.ndarray:
    """(3,) unit normal of a one-slice grid."""
    axis = grid.size.index(1)
    normal = np.cross(*np.delete(grid.direction, axis, 1).T)
    return normal / np.linalg.norm(normal)


def thickness_of(grid: Grid) -> float:
    """mm along the normal, as the header says."""
    return float(abs(normal_of(grid) @ grid.matrix[:, grid.size.index(1)]))


def common_axis(grids) -> tuple[np.ndarray, np.ndarray] | None:
    """(point (3,), unit direction (3,)) of the line that lies closest to all planes; None where the planes are (nearly) parallel.

    The direction is the one most nearly perpendicular to all normals; the point is that of the line closest to the slices' centers.
    """
    normals = np.stack([normal_of(g) for g in grids])
    centres = np.stack([g.centre for g in grids])
    values, vectors = np.linalg.eigh(normals.T @ normals / len(normals))
    if values[1] < 0.02:
        return None
    direction = vectors[:, 0]
    direction = direction * np.sign(direction[np.argmax(np.abs(direction))])
    middle = centres.mean(0)
    across = normals - np.outer(normals @ direction, direction)
    offsets = ((centres - middle) * normals).sum(1)
    shift = np.linalg.lstsq(across, offsets, rcond=1e-6)[0]
    point = middle + shift - direction * (direction @ shift)
    return point, direction


def about_axis(axis, degrees: float) -> np.ndarray:
    """(4, 4) turn by ``degrees`` about ``axis`` (point, unit direction)."""
    point, direction = axis
    return rigid(np.zeros(3), np.deg2rad(degrees) * np.asarray(direction), point)


def rigid(shift, turn, centre) -> np.ndarray:
    """(..., 4, 4) turn by the rotation vector ``turn`` (..., 3) rad about ``centre`` (3,) mm, then ``shift`` (..., 3) mm."""
    from scipy.spatial.transform import Rotation  # here, because it costs every start of any method a third of a second

    shift, turn, centre = (np.asarray(v, float) for v in (shift, turn, centre))
    matrix = np.zeros((*turn.shape[:-1], 4, 4))
    matrix[..., :3, :3] = Rotation.from_rotvec(turn.reshape(-1, 3)).as_matrix().reshape(*turn.shape[:-1], 3, 3)
    matrix[..., :3, 3] = shift + centre - matrix[..., :3, :3] @ centre
    matrix[..., 3, 3] = 1
    return matrix


def placed_about(image, axis, degrees: float, thickness: float = 0.0, pixel=None):
    """``image`` (2D, or a one-slice volume whose place is not believed) centered on ``axis`` (point, direction), its rows of pixels across the axis and
    its columns along it, turned by ``degrees`` about it; ``thickness`` mm, 0 for that of the header (of a 2D image: the pixel size); ``pixel`` (2,) mm
    between columns and between rows, None for those of the header. InputError for sizes that are none."""
    if image.dim == 3 and image.grid.size.count(1) != 1:
        raise InputError(f"{image.name} has {' x '.join(map(str, image.grid.size))} voxels; a slice with one axis of one voxel is needed")
    wide = [n for n in range(image.dim) if image.dim == 2 or image.grid.size[n] != 1]
    point, along = (np.array(v, float) for v in axis)
    if not np.linalg.norm(along) > 0:
        raise InputError("the axis has a direction without length; give a point and a direction in mm")
    along = along / np.linalg.norm(along)
    first = np.cross(along, np.eye(3)[np.argmin(np.abs(along))])
    across = about_axis((point, along), degrees)[:3, :3] @ (first / np.linalg.norm(first))
    direction = np.stack([across, along, np.cross(across, along)], 1)
    pixel = image.grid.spacing[wide] if pixel is None else np.array(pixel, float)
    if not ((pixel > 0) & (pixel < 1000)).all():
        raise InputError(f"pixels of {' x '.join(f'{p:g}' for p in pixel)} mm were given; give lengths in mm, between columns and between rows")
    spacing = np.r_[pixel, thickness or (thickness_of(image.grid) if image.dim == 3 else pixel[0])]
    size = [image.grid.size[n] for n in wide]
    grid = Grid.from_parts((1, *size[::-1]), spacing, point - direction @ np.r_[(np.array(size) - 1) / 2 * spacing[:2], 0], direction)
    mask = None if image.mask is None else image.mask.reshape(1, 1, *grid.shape)
    return replace(image, data=image.data.reshape(*image.data.shape[:2], *grid.shape), grid=grid, mask=mask)


def emulate(volume: Image, grid: Grid, matrix, thickness: float, profile: str = "box", fill: float = 0.0, points=None) -> Image:
    """The slice that the volume shows on the one-slice ``grid`` (slice mm) under ``matrix`` (4, 4) slice mm -> volume mm; ``fill`` outside. ``points``
    (N, 3) mm takes the place of those of the pixels, where these are displaced in the slice first."""
    offsets, weights = profile_nodes(thickness, float(volume.grid.spacing.min()), profile)
    points, normal = grid.points().reshape(-1, 3) if points is None else points, normal_of(grid)
    total = torch.zeros((1, volume.data.shape[1], len(points)), dtype=torch.float32, device=volume.device)
    for offset, weight in zip(offsets, weights):
        world = (points + offset * normal) @ np.asarray(matrix)[:3, :3].T + np.asarray(matrix)[:3, 3]
        index = torch.as_tensor(volume.grid.world_to_index(world), dtype=torch.float32, device=volume.device)[None]
        total += float(weight) * sample(volume.data.float(), index, fill=fill)
    return Image(total.reshape(1, -1, *grid.shape), grid, name=f"emulated {volume.name}")


@dataclass(frozen=True, eq=False)
class SliceLevel:
    """One resolution. ``points`` (K, N, 3) mm from ``centre`` (3,): the pixels of all slices, one after the other, on K planes of the
    thickness with ``weights`` (K,); ``values`` (1, N) in [0, 1]; ``bounds`` (S + 1,) where each slice begins; ``counted`` (N,) 0 outside the
    masks or None; ``stack`` (1, 1 or 2, *S): the volume and its mask; ``measure`` of ``sampled``; a slope is in mm, turns times ``radius``."""

    spacing: float
    points: torch.Tensor
    weights: torch.Tensor
    values: torch.Tensor
    bounds: tuple[int, ...]
    counted: torch.Tensor | None
    centre: np.ndarray
    radius: float
    grid: Grid
    stack: torch.Tensor
    measure: object
    lowest: float = LOWEST_OVERLAP

    @property
    def count(self) -> int:
        """How many slices."""
        return len(self.bounds) - 1

    def spans(self):
        return zip(self.bounds[:-1], self.bounds[1:])

    def index_matrices(self, matrices) -> np.ndarray:
        """(S, 3, 4) from a point relative to the center to the index in the volume, of maps (4, 4) or (S, 4, 4) slice mm -> volume mm."""
        shift = np.eye(4)
        shift[:3, 3] = self.centre
        full = self.grid.inverse_affine @ np.asarray(matrices) @ shift
        return np.broadcast_to(full, (self.count, 4, 4))[:, :3]

    def index(self, index_matrices) -> torch.Tensor:
        """(K, N, 3) where the samples land in the volume, voxels."""
        m = torch.as_tensor(np.array(index_matrices), dtype=torch.float32, device=self.points.device)
        return torch.cat([self.points[:, a:b] @ m[s, :, :3].T + m[s, :, 3] for s, (a, b) in enumerate(self.spans())], 1)

    def read(self, index) -> tuple[torch.Tensor, torch.Tensor]:
        """index (K, N, 3) -> emulated values (1, N) and weights (N,), which fall to 0 over the outermost voxel of the volume."""
        planes, count = index.shape[:2]
        read = sample(self.stack, index.reshape(1, -1, 3))[0].reshape(-1, planes, count)
        size = torch.tensor(self.grid.size, dtype=index.dtype, device=index.device)
        inside = (torch.minimum(index, size - 1 - index) + 1).clamp(0, 1).prod(-1)
        if len(read) > 1:
            inside = inside * read[1]
        weight = (self.weights[:, None] * inside).sum(0)
        return (self.weights[:, None] * read[0]).sum(0)[None], weight if self.counted is None else weight * self.counted

    def overlap(self, weight) -> float:
        return float(weight.mean() if self.counted is None else weight.sum() / self.counted.sum())

    def cost(self, matrices) -> float:
        """Cost of maps slice mm -> volume mm; inf where too little of the slices lies in the volume."""
        with torch.no_grad():
            values, weight = self.read(self.index(self.index_matrices(matrices)))
            return float(self.measure(values, weight)) if self.overlap(weight) >= self.lowest else float("inf")

    def forces(self, matrices) -> tuple[float, np.ndarray | None]:
        """(cost, (N, 6) slope of the cost by the motion of every pixel on its own: shift in mm, turn in radians times the radius)."""
        index_matrices = self.index_matrices(matrices)
        index = self.index(index_matrices).requires_grad_(True)
        with torch.enable_grad():
            values, weight = self.read(index)
            if self.overlap(weight.detach()) < self.lowest:
                return float("inf"), None
            cost = self.measure(values, weight)
        (slope,) = torch.autograd.grad(cost, index)
        return float(cost.detach()), self._motions(slope, index_matrices)

    def evaluate(self, matrices) -> tuple[float, np.ndarray | None]:
        """(cost, (S, 6) slope by the motion of every slice); summed over the slices it is the slope by the motion of the set."""
        cost, forces = self.forces(matrices)
        return cost, None if forces is None else np.stack([forces[a:b].sum(0) for a, b in self.spans()])

    def gram(self, matrices) -> np.ndarray:
        """(6, 6) mean product of the derivatives of the emulated values by the motion of the set."""
        index_matrices = self.index_matrices(matrices)
        index = self.index(index_matrices).requires_grad_(True)
        with torch.enable_grad():
            values, weight = self.read(index)
            (slope,) = torch.autograd.grad((values * weight.detach()).sum(), index)
        rows = self._motions(slope, index_matrices)
        return rows.T @ rows / len(rows)

    def _motions(self, slope, index_matrices) -> np.ndarray:
        m = torch.as_tensor(np.array(index_matrices)[:, :, :3], dtype=torch.float32, device=slope.device)
        push = torch.cat([slope[:, a:b] @ m[s] for s, (a, b) in enumerate(self.spans())], 1)
        turn = torch.linalg.cross(self.points, push) / self.radius
        return torch.cat([push, turn], -1).sum(0).double().cpu().numpy()

    def step(self, values) -> np.ndarray:
        """(4, 4) the motion of ``values`` (6,) mm about the center."""
        values = np.asarray(values, float)
        return rigid(values[:3], values[3:] / self.radius, self.centre)

    def of_slices(self, chosen, measure=None) -> "SliceLevel":
        """The level with the slices ``chosen`` only, compared by mutual information (or by ``measure``, made of their values)."""
        parts = [torch.arange(self.bounds[s], self.bounds[s + 1]) for s in chosen]
        return self._picked(torch.cat(parts), np.cumsum([0, *map(len, parts)]), measure)

    def thinned(self, count: int, bins: int = 16) -> "SliceLevel":
        """About ``count`` of the pixels on the middle plane, compared by mutual information with few bins: quick to score many poses."""
        total = self.points.shape[1] if self.counted is None else int(self.counted.sum())
        step = max(1, round(total / count))
        parts = []
        for a, b in self.spans():
            keep = torch.arange(a, b) if self.counted is None else a + self.counted[a:b].nonzero()[:, 0].cpu()
            parts.append(keep[torch.as_tensor(np.arange(len(keep)) * 0.6180339887 % 1.0 < 1.0 / step)])
        middle = replace(self, points=self.points.mean(0, keepdim=True), weights=torch.ones_like(self.weights[:1]))
        picked = middle._picked(torch.cat(parts), np.cumsum([0, *map(len, parts)]), None, bins)
        return replace(picked, counted=None)

    def _picked(self, keep, bounds, measure, bins: int = 32):
        values = self.values[:, keep]
        made = sampled.Information(values, bins) if measure is None else measure(values)
        counted = None if self.counted is None else self.counted[keep]
        return replace(self, points=self.points[:, keep], values=values, bounds=tuple(int(b) for b in bounds), counted=counted, measure=made)

    def scores(self, matrices, bins: int = 16) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """((B,) normalized mutual information of the set, (B, S) of every slice alone, (B,) overlap) of maps (B, 4, 4) of the whole set,
        with hard bins and without slopes; read on the middle plane."""
        parts = np.array_split(np.asarray(matrices), max(1, len(matrices) * self.points.shape[1] // 400_000))
        return tuple(np.concatenate(found) for found in zip(*(self._scores(part, bins) for part in parts)))

    def _scores(self, matrices, bins):
        shift = np.eye(4)
        shift[:3, 3] = self.centre
        m = torch.as_tensor((self.grid.inverse_affine @ np.asarray(matrices) @ shift)[:, :3], dtype=torch.float32, device=self.points.device)
        with torch.no_grad():
            index = self.points.mean(0) @ m[:, :, :3].transpose(1, 2) + m[:, None, :, 3]
            read = sample(self.stack, index.reshape(1, -1, 3))[0].reshape(-1, *index.shape[:2])
            size = torch.tensor(self.grid.size, dtype=index.dtype, device=index.device)
            inside = ((index >= -0.5) & (index <= size - 0.5)).all(-1)
            inside = inside if len(read) == 1 else inside & (read[1] > 0.5)
            inside = inside if self.counted is None else inside & (self.counted > 0.5)
            owner = torch.repeat_interleave(torch.arange(self.count), torch.as_tensor(np.diff(self.bounds))).to(index.device)
            rows = owner * bins**2 + (self.values[0] * bins).long().clamp(0, bins - 1) * bins
            cells = rows + (read[0] * bins).long().clamp_(0, bins - 1) + torch.arange(len(m), device=index.device)[:, None] * self.count * bins**2
            table = torch.bincount(cells[inside], minlength=len(m) * self.count * bins**2).reshape(len(m), self.count, bins, bins)
        table, total = table.double().cpu().numpy(), self.values.shape[1] if self.counted is None else float(self.counted.sum())
        return normalised_information(table.sum(1)), normalised_information(table), table.sum((1, 2, 3)) / total


def normalised_information(table: np.ndarray) -> np.ndarray:
    """(...) 2 I / (H_a + H_b) of joint histograms ``table`` (..., A, B) of counts; 0 for an empty one."""
    p = table / np.maximum(table.sum((-2, -1), keepdims=True), 1)
    single = _entropy(p.sum(-1)) + _entropy(p.sum(-2))
    joint = _entropy(p.reshape(*p.shape[:-2], -1))
    return np.where(single > 1e-9, 2 * (single - joint) / np.maximum(single, 1e-9), 0.0)


def _entropy(p):
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(-1)


class PerSlice:
    """A lattice similarity of every slice with its emulation, averaged over the slices by their number of pixels."""

    def __init__(self, values, bounds, grids, term):
        self.parts = [(slice(a, b), sampled.Lattice(values[:, a:b], grid.flat(), term)) for a, b, grid in zip(bounds[:-1], bounds[1:], grids)]

    def __call__(self, moving, weight):
        """As in ``sampled.Information``."""
        total = moving.shape[1]
        return sum((part.stop - part.start) / total * measure(moving[:, part], weight[part]) for part, measure in self.parts)


def build_levels(problem, spacings, similarity: str, profile: str, device) -> list[SliceLevel]:
    """The levels of ``problem`` (slices, volume, thickness) at ``spacings`` mm, coarse to fine."""
    volume = prepared([problem.volume], device)[0]
    slices = prepared(problem.slices, device)
    centre = centre_of(problem)
    made = []
    for spacing in sorted(spacings):
        volume = volume.smoothed_to(spacing)
        slices = [image.smoothed_to(spacing) for image in slices]
        made.append(_level(spacing, slices, volume, problem, centre, similarity, profile))
    return made[::-1]


def centre_of(problem) -> np.ndarray:
    """(3,) the middle of the slices, on their common axis where they have one."""
    axis = problem.axis if problem.axis is not None else common_axis([s.grid for s in problem.slices])
    middle = np.mean([s.grid.centre for s in problem.slices], 0)
    return middle if axis is None else axis[0] + axis[1] * (axis[1] @ (middle - axis[0]))


def _level(spacing, slices, volume, problem, centre, similarity, profile) -> SliceLevel:
    thickness = [problem.thickness or thickness_of(s.grid) for s in problem.slices]
    depths, weights = profile_nodes(max(thickness), max(spacing, float(volume.grid.spacing.min())), profile)
    offsets = [depths * own / max(thickness) for own in thickness]
    points = [s.grid.points().reshape(1, -1, 3) - centre + depth[:, None, None] * normal_of(s.grid) for s, depth in zip(slices, offsets)]
    bounds = tuple(np.cumsum([0, *(p.shape[1] for p in points)]).tolist())
    points = np.concatenate(points, 1)
    device = volume.device
    values = torch.cat([s.data[0].flatten(1) for s in slices], 1)
    counted = None
    if any(s.mask is not None for s in slices):
        counted = torch.cat([(torch.ones_like(s.data) if s.mask is None else s.mask.to(s.data)).flatten() for s in slices])
    stack = volume.data if volume.mask is None else torch.cat([volume.data, volume.mask.to(volume.data)], 1)
    radius = float(np.sqrt((points[0] ** 2).sum(1).mean()))
    return SliceLevel(spacing, torch.as_tensor(points, dtype=torch.float32, device=device), torch.as_tensor(weights, dtype=torch.float32, device=device),
                      values, bounds, counted, centre, radius, volume.grid, stack, _measure(values, bounds, slices, similarity, spacing))


def _measure(values, bounds, slices, similarity, spacing):
    if similarity == "mi":
        return sampled.Information(values)
    term = LNCC(3 * spacing) if similarity == "lncc" else NGF()
    return PerSlice(values, bounds, [s.grid for s in slices], term)


def prepared(images, device) -> list[Image]:
    """The images as float32 with values from 0 to 1: the robust range of all of them together, within their masks; copies, the inputs stay."""
    values = values_of(images)
    low, high = range_of(values)
    if high <= low:
        low, high = float(values.min()), float(values.max())
    return [_filled(replace(i.to(device), data=i.data.to(device=device, dtype=torch.float32).sub(low).div_(high - low).clamp_(0, 1)))
            for i in images]


def values_of(images) -> torch.Tensor:
    """(N,) float32: the values of all ``images`` within their masks."""
    return torch.cat([(i.data.reshape(-1) if i.mask is None else i.data[i.mask.expand_as(i.data)]).float() for i in images])


def range_of(values: torch.Tensor) -> tuple[float, float]:
    """The robust range of ``values`` (N,). The least or the largest value does not count where so many have it that the range would end there, far from
    all others: fits that fail are clipped to such a limit, and a range up to it would leave the anatomy a few of the histogram's bins."""
    (low, high), (first, last) = robust_range(values, TAIL), robust_range(values, CORE)
    reach, kept = FENCE * (last - first), values
    if reach > 0 and low < first - reach and low == float(values.min()):
        kept = kept[kept > low]
    if reach > 0 and high > last + reach and high == float(values.max()):
        kept = kept[kept < high]
    return (low, high) if kept is values else robust_range(kept, TAIL)


def is_stretched(values: torch.Tensor) -> bool:
    """True where the range of ``values`` (N,) reaches far beyond the core of them, so that few values take most of the histogram's bins."""
    (low, high), (first, last) = range_of(values), robust_range(values, CORE)
    return last > first and max(first - low, high - last) > FENCE * (last - first)


def _filled(image: Image) -> Image:
    """Values outside the mask made from those inside, so that smoothing does not bring in what the mask excludes."""
    if image.mask is None:
        return image
    inside = image.mask.to(image.data)
    mean = (image.data * inside).sum() / inside.sum().clamp_min(1)
    sigma = [0.0 if n == 1 else FILL_SIGMA for n in image.grid.size]
    spread = (gaussian(image.data * inside, sigma) + 1e-4 * mean) / (gaussian(inside, sigma) + 1e-4)
    return replace(image, data=torch.where(image.mask, image.data, spread))


def refine(level: SliceLevel, matrix: np.ndarray, iterations: int, monitor, observe=None, tolerance: float | None = None):
    """(matrix (4, 4), cost): the map of the whole set of lowest cost near ``matrix``, six degrees of freedom, by a quasi-Newton search."""
    def evaluate(m):
        cost, slope = level.evaluate(m)
        return cost, None if slope is None else slope.sum(0)

    return minimise(evaluate, matrix, lambda m, q: m @ level.step(q), level.gram(matrix), longest=2 * level.spacing,
                    tolerance=tolerance or 0.01 * level.spacing, iterations=iterations, monitor=monitor, text=f"pose at {level.spacing:.3g} mm",
                    observe=observe)
