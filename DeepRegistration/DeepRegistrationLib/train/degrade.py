"""What both the synthetic pairs and augmentation do to images: smooth noise, shading, thick slices, lost parts; all from one generator.

Lengths are in voxels. Images are (1, 1, *S). Everything is drawn from the generator that is given: same generator, same result.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from ..geometry import Grid
from ..ops.filters import gaussian
from ..ops.sample import index_points, sample


def between(low, high, generator) -> float:
    """A number between ``low`` and ``high``, all equally likely."""
    return float(low) + float(high - low) * float(torch.rand(1, generator=generator))


def chance(probability, generator) -> bool:
    """True with ``probability``."""
    return float(torch.rand(1, generator=generator)) < probability


def smooth_noise(shape, width: float, generator) -> torch.Tensor:
    """(1, 1, *shape) normal noise smoothed by a Gaussian of ``width`` voxels, with root mean square 1."""
    stride = max(1, int(width / 2.5))
    coarse = [n // stride + 3 for n in shape]
    noise = gaussian(torch.randn((1, 1, *coarse), generator=generator), width / stride)
    noise = noise / noise.square().mean().sqrt().clamp_min(1e-6)
    return noise if stride == 1 and list(shape) == coarse else sample(noise, _places(tuple(shape), stride))


@lru_cache(maxsize=8)
def _places(shape: tuple[int, ...], stride: int) -> torch.Tensor:
    """(1, *shape, dim) where the voxels of ``shape`` lie in a noise that is ``stride`` times as coarse; a pair asks for the same few many times."""
    return index_points(Grid.from_parts(shape)) / stride + 1


def smooth_velocity(grid: Grid, widths, motions, generator) -> torch.Tensor:
    """(1, dim, *S) mm: a sum of smooth random fields of ``widths`` (sigma, mm), each with a random share of its largest root mean square
    in ``motions`` (mm)."""
    total = torch.zeros(1, grid.dim, *grid.shape)
    for width, motion in zip(widths, motions):
        parts = [smooth_noise(grid.shape, width / float(grid.spacing[0]), generator) for _ in range(grid.dim)]
        total += torch.cat(parts, 1) * (motion * float(torch.rand(1, generator=generator)) / 2**0.5)
    return total


def shaded(image, strength: float, generator):
    """The image times a smooth positive field, as a receiving coil leaves it; ``strength`` is the largest spread of its logarithm."""
    shape = image.shape[2:]
    return image * (strength * float(torch.rand(1, generator=generator)) * smooth_noise(shape, min(shape) / 3, generator)).exp()


def thick_slices(image, generator):
    """Slices two to four voxels thick along one axis."""
    axis = int(between(2, image.ndim, generator))
    thickness = int(between(2, 5, generator))
    n = image.shape[axis] // thickness * thickness
    body = image.narrow(axis, 0, n).unflatten(axis, (n // thickness, thickness))
    thick = body.mean(axis + 1, keepdim=True).expand_as(body).flatten(axis, axis + 1)
    return torch.cat([thick, image.narrow(axis, n, image.shape[axis] - n)], axis)


def without_piece(image, generator):
    """A ball of another brightness."""
    grid = Grid.from_parts(image.shape[2:])
    centre = torch.rand(grid.dim, generator=generator) * torch.tensor([float(n) for n in grid.size])
    ball = torch.linalg.vector_norm(index_points(grid) - centre, dim=-1) < between(0.06, 0.15, generator) * min(grid.size)
    return torch.where(ball[:, None], torch.rand(1, generator=generator), image)


def without_side(image, generator):
    """Up to a fifth of the field of view at one end is 0."""
    kept = seen_side(image.shape, generator, 0.2)
    return image * kept


def seen_side(shape, generator, share: float) -> torch.Tensor:
    """(1, 1, *S) 1 where the field of view is kept, 0 in up to ``share`` of it at one end; ``shape`` is (1, C, *S)."""
    axis = int(between(2, len(shape), generator))
    count = int(shape[axis] * between(0.03, share, generator))
    kept = torch.ones(1, 1, *shape[2:])
    kept.narrow(axis, 0 if chance(0.5, generator) else shape[axis] - count, count).zero_()
    return kept
