"""Pairs of phantoms with a known linear map, on different oblique and anisotropic lattices with different fields of view; their registration."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import truths

from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.method import find
from DeepRegistrationLib.problem import Pair
from DeepRegistrationLib.runtime import Runtime, Silent
from DeepRegistrationLib.transforms import Affine
from DeepRegistrationLib.transforms.linear import parameter_count

CONTRASTS = {
    "same": lambda v: v,
    "scaled": lambda v: 3.0 + 40.0 * v,
    "inverted": lambda v: torch.where(v > 0.05, 1.6 - v, 0.02 * v),
    "nonmonotone": lambda v: torch.sin(3.2 * v).abs(),
}


@dataclass(frozen=True)
class LinearPair:
    """A request, the map that made it (fixed mm -> moving mm) and points (1, N, dim) mm in the fixed body."""

    pair: Pair
    truth: Affine
    points: torch.Tensor

    @property
    def voxel(self) -> float:
        """Mean spacing of both images, mm."""
        return float(np.exp(np.log(np.concatenate([self.pair.fixed.grid.spacing, self.pair.moving.grid.spacing])).mean()))

    def error(self, transform) -> float:
        """Median distance from the truth, in voxels."""
        return float(torch.linalg.vector_norm(transform(self.points) - self.truth(self.points), dim=-1).median()) / self.voxel


def known_map(seed: int, kind: str, centre, shift=7.0, angle=0.25, stretch=0.08) -> Affine:
    """A random map of ``kind`` about ``centre`` mm: shifts up to ``shift`` mm, angles up to ``angle`` rad."""
    dim = len(centre)
    rng = np.random.default_rng(seed)
    count = parameter_count(kind, dim)
    turns = 0 if kind == "translation" else 1 if dim == 2 else 3
    limits = np.r_[np.full(dim, shift), np.full(turns, angle), np.full(count - dim - turns, stretch)]
    values = rng.uniform(0.5, 1, count) * np.sign(rng.normal(size=count)) * limits
    return Affine.from_parameters(kind, torch.as_tensor(values)[None], torch.as_tensor(np.asarray(centre, float)))


def linear_pair(seed: int, dim: int, kind: str = "rigid", contrast: str = "same", flipped: bool = False, noise: float = 0.02,
                truth: Affine | None = None) -> LinearPair:
    """A phantom of about 80 mm on two lattices of about 2 mm (3 mm in 3D); the moving one is turned, offset and smaller."""
    rng = np.random.default_rng(seed)
    coarser = 1.0 if dim == 2 else 1.5
    fixed_spacing, moving_spacing = coarser * np.array([2.0, 1.7, 2.4])[:dim], coarser * np.array([1.6, 2.3, 2.0])[:dim]
    fixed_grid = _lattice(rng, dim, fixed_spacing, 104.0, rng.uniform(-200, 200, dim), flipped)
    truth = known_map(seed, kind, fixed_grid.centre) if truth is None else truth
    there = truth(torch.as_tensor(fixed_grid.centre)[None, None]).numpy()[0, 0]
    moving_grid = _lattice(rng, dim, moving_spacing, 90.0, there + rng.uniform(-5, 5, dim), False)
    phantom = truths.Phantom(seed, Grid.from_parts((50,) * dim, 2.0, there - 49.0))
    recolour = CONTRASTS[contrast]
    fixed, moving = phantom.image(fixed_grid, truth), phantom.image(moving_grid)
    moving = Image(recolour(moving.data), moving_grid, name="moving")
    fixed, moving = (Image(i.data + noise * float(i.data.std()) * _noise(rng, i), i.grid, name=i.name) for i in (fixed, moving))
    body = torch.as_tensor(fixed_grid.points().reshape(-1, dim))
    body = body[phantom.labels(truth(body[None])[0]) > 0][::7]
    return LinearPair(Pair(fixed, moving), truth, body[None])


def register(pair, seed=0, monitor=None, preset="default", samples=8000, **values):
    """The result of the method 'affine', with samples enough for phantoms."""
    values = {"samples": samples, **values}
    runtime = Runtime("cpu", seed=seed, monitor=monitor or Silent())
    return find(f"affine:{preset}", values).run(pair, runtime)


def moved_grid(image: Image, matrix) -> Image:
    """The image under a header that is moved by ``matrix`` (mm to mm)."""
    return replace(image, grid=image.grid.moved(matrix))


def _lattice(rng, dim, spacing, edge, centre, flipped):
    size = np.round(edge / spacing).astype(int)
    direction = known_map(int(rng.integers(1000)), "rigid", np.zeros(dim), 0.0, 0.35).numpy()[:dim, :dim]
    if flipped:
        direction = direction * np.where(np.arange(dim) == 0, -1.0, 1.0)
    grid = Grid.from_parts(tuple(size[::-1]), spacing, None, direction)
    return Grid.from_parts(grid.shape, spacing, centre - grid.centre, direction)


def _noise(rng, image):
    return torch.as_tensor(rng.normal(size=tuple(image.data.shape)), dtype=image.data.dtype)
