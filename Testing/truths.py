"""Generators of known answers: lattices, closed-form maps with exact inverses and derivatives, and phantoms.

Everything is evaluated at world points in float64, so a warped phantom is exact: no interpolation makes the truth.

* ``random_grid``: oblique, flipped and anisotropic lattices with origins of hundreds of mm.
* ``Swirl``: rotation about an axis through a centre by an angle that falls off with the distance; volume is kept and the
  inverse is the opposite angle. It is also the flow of a stationary velocity.
* ``Logistic``: the flow of v(s) = a s (1 - s) along every axis of a box; s -> s e^a / (1 - s + s e^a). Volume changes,
  the faces of the box stay where they are, the inverse is -a.
* ``random_diffeomorphism``: a composition of these with its exact inverse.
* ``Phantom``: smooth ellipsoids with texture, and their labels, at any point in 2D and 3D.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image, Labels
from DeepRegistrationLib.ops.sample import apply_matrix, world_points
from DeepRegistrationLib.transforms import Affine, Composite, Transform


def rotation(rng: np.random.Generator, dim: int) -> np.ndarray:
    """(dim, dim) a random rotation matrix, determinant +1."""
    q, r = np.linalg.qr(rng.normal(size=(dim, dim)))
    q = q * np.sign(np.diag(r))
    if np.linalg.det(q) < 0:
        q[:, 0] = -q[:, 0]
    return q


def random_grid(seed: int, dim: int, shape=None, spacing=None, oblique=True, flipped=False, reach=300.0) -> Grid:
    """A lattice of 9 to 20 voxels per axis, spacings from 0.5 to 3 mm, an origin within ``reach`` mm."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(9, 21, dim)) if shape is None else tuple(shape)
    spacing = rng.uniform(0.5, 3.0, dim) if spacing is None else spacing
    direction = rotation(rng, dim) if oblique else np.eye(dim)
    if flipped:
        direction = direction * np.where(np.arange(dim) == rng.integers(dim), -1.0, 1.0)
    return Grid.from_parts(shape, spacing, rng.uniform(-reach, reach, dim), direction)


def grid_kinds(dim: int) -> dict[str, Grid]:
    """One lattice of every kind that a coordinate bug can hide in."""
    shape = (11, 14, 17)[-dim:]
    return {
        "plain": Grid.from_parts(shape),
        "anisotropic": random_grid(1, dim, shape, oblique=False),
        "flipped": random_grid(2, dim, shape, oblique=False, flipped=True),
        "oblique": random_grid(3, dim, shape),
        "oblique-flipped": random_grid(4, dim, shape, flipped=True),
    }


def random_motion(seed: int, dim: int, angle=None, shift=40.0, flipped=False) -> np.ndarray:
    """(dim + 1, dim + 1) a rigid map of world space (with a reflection where ``flipped``): header surgery for both images."""
    rng = np.random.default_rng(seed)
    matrix = np.eye(dim + 1)
    matrix[:dim, :dim] = rotation(rng, dim)
    if flipped:
        matrix[:dim, 0] = -matrix[:dim, 0]
    matrix[:dim, dim] = rng.uniform(-shift, shift, dim)
    return matrix


def random_affine(seed: int, dim: int, centre=None, strength=0.15, shift=5.0) -> Affine:
    """An affine map near the identity about ``centre`` mm."""
    rng = np.random.default_rng(seed)
    centre = np.zeros(dim) if centre is None else np.asarray(centre)
    matrix = np.eye(dim + 1)
    matrix[:dim, :dim] += rng.uniform(-strength, strength, (dim, dim))
    matrix[:dim, dim] = centre - matrix[:dim, :dim] @ centre + rng.uniform(-shift, shift, dim)
    return Affine(torch.as_tensor(matrix))


class ClosedForm(Transform):
    """A map with a closed form: ``jacobian`` by automatic differentiation of it, exact to rounding."""

    def jacobian(self, points, step=0.0):
        with torch.enable_grad():
            x = points.detach().double().requires_grad_(True)
            y = self(x)
            rows = [torch.autograd.grad(y[..., i].sum(), x, retain_graph=True)[0] for i in range(x.shape[-1])]
        return torch.stack(rows, -2).detach()

    def jacobian_on(self, grid: Grid) -> torch.Tensor:
        """(1, dim, dim, *S) exact Jacobian matrices at the voxel centres of ``grid``."""
        points = world_points(grid, torch.float64).reshape(1, -1, grid.dim)
        return self.jacobian(points).reshape(1, *grid.shape, grid.dim, grid.dim).movedim((-2, -1), (1, 2))

    def to(self, device=None, dtype=None):
        return self


@dataclass
class Swirl(ClosedForm):
    """x -> c + R(angle * exp(-|x - c|^2 / (2 width^2))) (x - c); the rotation axis matters in 3D only."""

    centre: np.ndarray
    angle: float
    width: float
    axis: np.ndarray | None = None

    def __post_init__(self):
        self.centre = np.asarray(self.centre, float)
        self.dim = len(self.centre)

    def _frame(self, points):
        offset = points - torch.as_tensor(self.centre, dtype=points.dtype)
        theta = self.angle * (-0.5 * offset.square().sum(-1, keepdim=True) / self.width**2).exp()
        return offset, theta

    def _cross(self, offset):
        if self.dim == 2:
            return torch.stack([-offset[..., 1], offset[..., 0]], -1)
        axis = torch.as_tensor(self._unit_axis(), dtype=offset.dtype).expand_as(offset)
        return torch.linalg.cross(axis, offset)

    def _unit_axis(self):
        axis = np.array([0.0, 0.0, 1.0]) if self.axis is None else np.asarray(self.axis, float)
        return axis / np.linalg.norm(axis)

    def __call__(self, points):
        offset, theta = self._frame(points)
        turned = offset * theta.cos() + self._cross(offset) * theta.sin()
        if self.dim == 3:
            axis = torch.as_tensor(self._unit_axis(), dtype=points.dtype)
            turned = turned + axis * (offset @ axis)[..., None] * (1 - theta.cos())
        return points + turned - offset

    def inverse(self):
        return Swirl(self.centre, -self.angle, self.width, self.axis)

    def velocity(self, grid: Grid) -> torch.Tensor:
        """(1, dim, *S) float64, mm: the stationary velocity whose flow this map is."""
        offset, theta = self._frame(world_points(grid, torch.float64))
        return (self._cross(offset) * theta).movedim(-1, 1)


@dataclass
class Logistic(ClosedForm):
    """The flow of v(s) = a s (1 - s) along the axes of ``grid``'s lattice, s from 0 at the first to 1 at the last voxel."""

    grid: Grid
    rate: np.ndarray = field(default_factory=lambda: np.zeros(3))

    def __post_init__(self):
        self.dim = self.grid.dim
        self.rate = np.broadcast_to(np.asarray(self.rate, float), (self.dim,))
        self.length = np.maximum(np.array(self.grid.size) - 1.0, 1.0)

    def __call__(self, points):
        index = apply_matrix(self.grid.inverse_affine, points)
        length = torch.as_tensor(self.length.copy(), dtype=points.dtype)
        growth = torch.as_tensor(np.exp(self.rate), dtype=points.dtype)
        s = (index / length).clamp(0, 1)
        moved = s * growth / (1 - s + s * growth)
        matrix = torch.as_tensor(self.grid.matrix.copy(), dtype=points.dtype)
        return points + ((moved - s) * length) @ matrix.T

    def inverse(self):
        return Logistic(self.grid, -self.rate)

    def velocity(self, grid: Grid) -> torch.Tensor:
        """(1, dim, *S) float64, mm: the stationary velocity whose flow this map is."""
        s = (apply_matrix(self.grid.inverse_affine, world_points(grid, torch.float64)) / torch.as_tensor(self.length)).clamp(0, 1)
        speed = torch.as_tensor(self.rate.copy()) * s * (1 - s) * torch.as_tensor(self.length)
        return (speed @ torch.as_tensor(self.grid.matrix.copy()).T).movedim(-1, 1)


def random_swirl(seed: int, grid: Grid, angle=0.6, width=0.15) -> Swirl:
    """A swirl near the centre of ``grid``; ``width`` is a share of its shortest edge."""
    rng = np.random.default_rng(seed)
    edge = grid.extent[np.array(grid.size) > 1].min()
    centre = grid.centre + grid.direction @ (rng.uniform(-0.12, 0.12, grid.dim) * grid.extent)
    return Swirl(centre, float(rng.choice([-1, 1])) * angle, width * edge, rng.normal(size=3) if grid.dim == 3 else None)


def random_diffeomorphism(seed: int, grid: Grid, angle=0.5, rate=0.5) -> Composite:
    """Swirl o logistic o swirl over ``grid`` with the exact inverse in ``.inverse()``; both are (nearly) 0 at its border."""
    rng = np.random.default_rng(seed)
    middle = Logistic(grid, rng.uniform(-rate, rate, grid.dim))
    return Composite((random_swirl(seed + 1, grid, angle), middle, random_swirl(seed + 2, grid, angle)))


class Phantom:
    """Smooth ellipsoids on a smooth texture; ``__call__`` gives intensities, ``labels`` whole numbers, at any world point."""

    def __init__(self, seed: int, grid: Grid, ellipsoids: int = 5, waves: int = 12):
        rng = np.random.default_rng(seed)
        self.dim = grid.dim
        edge = grid.extent[np.array(grid.size) > 1].min()
        self.centres = grid.centre + (rng.uniform(-0.25, 0.25, (ellipsoids, grid.dim)) * grid.extent) @ grid.direction.T
        self.centres[0] = grid.centre
        self.radii = rng.uniform(0.08, 0.2, (ellipsoids, grid.dim)) * edge
        self.radii[0] = 0.38 * edge
        self.levels = rng.uniform(0.3, 1.0, ellipsoids) * np.where(np.arange(ellipsoids) % 2, -1, 1)
        self.levels[0] = 1.0
        self.frequencies = rng.normal(size=(waves, grid.dim)) * 2 * np.pi / (0.35 * edge)
        self.phases = rng.uniform(0, 2 * np.pi, waves)
        self.edge = edge

    def _distance(self, points):
        offset = (points[..., None, :] - torch.as_tensor(self.centres)) / torch.as_tensor(self.radii)
        return offset.square().sum(-1).add(1e-12).sqrt()

    def __call__(self, points: torch.Tensor) -> torch.Tensor:
        """points (..., dim) mm -> (...) float64, from about -0.5 to 2."""
        points = points.double()
        soft = torch.sigmoid((1 - self._distance(points)) * torch.as_tensor(self.radii.mean(1)) / (0.015 * self.edge))
        body = soft[..., 0]
        texture = (points @ torch.as_tensor(self.frequencies).T + torch.as_tensor(self.phases)).cos().mean(-1)
        return (soft * torch.as_tensor(self.levels)).sum(-1) + 0.4 * body * texture

    def labels(self, points: torch.Tensor) -> torch.Tensor:
        """points (..., dim) mm -> (...) int64: 0 outside, 1 in the large ellipsoid, k + 1 in the k-th small one."""
        hit = self._distance(points.double()) < 1
        numbers = torch.arange(1, hit.shape[-1] + 1)
        return (hit * numbers).amax(-1)

    def image(self, grid: Grid, transform=None, dtype=torch.float32) -> Image:
        """The phantom at T(p) for every voxel centre p of ``grid``: what an image pulled back by T must look like."""
        return Image(self(self._positions(grid, transform)).reshape(1, 1, *grid.shape).to(dtype), grid, name="phantom")

    def label_map(self, grid: Grid, transform=None) -> Labels:
        """Its labels at T(p)."""
        return Labels(self.labels(self._positions(grid, transform)).reshape(1, 1, *grid.shape), grid, name="phantom labels")

    def _positions(self, grid, transform):
        points = world_points(grid, torch.float64).reshape(1, -1, grid.dim)
        return points if transform is None else transform(points)


@dataclass(frozen=True)
class KnownPair:
    """Two images with the map between them (fixed mm -> moving mm) that made them."""

    fixed: Image
    moving: Image
    truth: Transform
    fixed_labels: Labels
    moving_labels: Labels


def known_pair(seed: int, dim: int, shape=None, affine=0.0, angle=0.4, rate=0.4) -> KnownPair:
    """A phantom on a lattice of about 48 voxels and its exact warp on another lattice; ``affine`` is the linear strength."""
    shape = shape or (40, 44, 48)[-dim:]
    fixed_grid = random_grid(seed, dim, shape, spacing=(2.0,) * dim, oblique=False, reach=100.0)
    moving_grid = fixed_grid.pad(4).resample(2.0 + 0.3 * np.arange(dim))
    truth = random_diffeomorphism(seed, fixed_grid, angle, rate)
    if affine:
        truth = random_affine(seed, dim, fixed_grid.centre, affine, 20 * affine) @ truth
    phantom = Phantom(seed, moving_grid)
    return KnownPair(phantom.image(fixed_grid, truth), phantom.image(moving_grid), truth,
                     phantom.label_map(fixed_grid, truth), phantom.label_map(moving_grid))


def inner_points(grid: Grid, share: int = 6) -> torch.Tensor:
    """(1, N, dim) mm: the nodes of a grid that are farther than 1 / ``share`` of its size from its border."""
    inner = tuple(slice(n // share, n - n // share) for n in grid.shape)
    return torch.as_tensor(grid.points()[inner].reshape(1, -1, grid.dim)).float()


def distance(one, other, points) -> float:
    """Mean distance of two maps at ``points`` (1, N, dim), mm."""
    return float(torch.linalg.vector_norm(one(points) - other(points), dim=-1).mean())
