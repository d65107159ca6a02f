"""Pairs of images with a known map between them, made from label maps alone: any contrast, no patient.

A label map L (random shapes, or the user's; with an image I of the same anatomy where there is one) is seen through two random
diffeomorphisms,

    fixed(x) = look_1(L(A exp(v) x)),   moving(x) = look_2(L(A exp(w) x)),   so  T = exp(-w) o exp(v) maps fixed to moving,

A a random turn, mirror image and scale that both share, v and w sums of smooth fields of several widths. A look gives every label a
random brightness (or sends I through a random curve), then texture, blur, shading, thick slices, noise, a lost piece and a lost side.
Everything is drawn from one generator: same generator, same pair. Hoffmann et al., SynthMorph, IEEE TMI 2022; random shapes and
brightness are theirs, the known map is kept here as points. Lengths are in voxels, and voxels are 1 mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..errors import InputError
from ..geometry import Grid
from ..image import Image, Labels
from ..ops import fields
from ..ops.filters import gaussian
from ..ops.sample import apply_matrix, index_points, inside, resample, sample
from ..points import Points
from ..problem import Pair
from .degrade import between, chance, shaded, smooth_noise, smooth_velocity, thick_slices, without_piece, without_side


LATTICE = 2.0
"""Spacing of the random motion in voxels of the pair."""
MARGIN = 2.0
"""Points keep so many voxels from the border, where a coarse level has no voxel centres left."""


@dataclass(frozen=True, eq=False)
class Source:
    """A label map (1, 1, *S), whole numbers as float32, and an image of the same lattice in [0, 1], or None."""

    labels: torch.Tensor
    image: torch.Tensor | None = None


@dataclass(frozen=True)
class Synthesis:
    """What the pairs are like. ``shape`` of both images; widths (sigma) of the motion and the largest root mean square of each, in
    voxels; points and labels that are kept as truth; the other fields are upper ends of ranges or probabilities of a look."""

    shape: tuple[int, ...] = (32, 32, 32)
    widths: tuple[float, ...] = (9.0, 4.5, 2.2)
    motions: tuple[float, ...] = (3.5, 1.8, 0.7)
    scales: tuple[float, float] = (0.7, 1.4)
    points: int = 1024
    kept_labels: int = 4
    same_contrast: float = 0.4
    texture: float = 0.1
    blur: float = 1.0
    bias: float = 0.4
    noise: float = 0.08
    thick_slices: float = 0.2
    lost_piece: float = 0.2
    lost_side: float = 0.15
    empty_background: float = 0.7


def random_shapes(count: int, shape, generator, labels=(4, 20), widths=(2.5, 9.0)) -> list[Source]:
    """``count`` label maps of ``shape``: the largest of several smooth random fields at every voxel. A third of them is cut
    to a round body in an empty background."""
    made = []
    for _ in range(count):
        number = int(between(labels[0], labels[1] + 1, generator))
        width = between(*widths, generator)
        fields_ = torch.cat([smooth_noise(shape, width * between(0.7, 1.4, generator), generator) for _ in range(number)], 1)
        map_ = fields_.argmax(1, keepdim=True).float() + 1
        if chance(0.33, generator):
            body = smooth_noise(shape, 0.15 * min(shape), generator) + 2.0 - 4.0 * _radius(shape)
            map_ = map_ * (body > 0)
        made.append(Source(map_))
    return made


def synthetic_pair(sources: list[Source], settings: Synthesis, generator: torch.Generator) -> Pair:
    """A pair of scalar images (1, 1, *shape) in [0, 1] with label maps and ``settings.points`` corresponding points, weighted 1 inside
    the body of the fixed image where the motion stays in view. InputError where there is no source."""
    if not sources:
        raise InputError("no label map was given to make pairs from; give at least one, or random shapes")
    source = sources[int(between(0, len(sources), generator))]
    grid = Grid.from_parts(settings.shape)
    lattice = grid.resample(LATTICE)
    velocities = [random_velocity(lattice, settings, generator) for _ in range(2)]
    there = [fields.exp(v, lattice, padding="border") for v in velocities]
    back = fields.exp(-velocities[1], lattice, padding="border")
    matrix = _random_view(grid, source, settings, generator)
    seen = [_seen(source, grid, matrix, resample(u, lattice, grid)) for u in there]
    looks = _looks(source, seen, settings, generator)
    points = _true_points(grid, lattice, there[0], back, seen[0][0], settings.points, generator)
    images = [Image(look, grid, name=name) for look, name in zip(looks, ("fixed", "moving"))]
    maps = [Labels(labels, grid) for labels in _some_labels(seen, settings.kept_labels, generator)]
    return Pair(*images, None, *maps, *points)


def _some_labels(seen, count, generator):
    """The label maps of both images with ``count`` of the labels of the fixed one; the others become background."""
    there = torch.unique(seen[0][0])
    there = there[there > 0]
    kept = there[torch.randperm(len(there), generator=generator)[:count]]
    return [torch.where(torch.isin(labels, kept), labels, 0.0).to(torch.int32) for labels, _ in seen]


def random_velocity(grid: Grid, settings: Synthesis, generator) -> torch.Tensor:
    """(1, dim, *S) mm: a sum of smooth random fields, each with a random share of its largest root mean square."""
    return smooth_velocity(grid, settings.widths, settings.motions, generator)


def _random_view(grid, source, settings, generator):
    """(dim + 1, dim + 1) voxels of the pair -> voxels of the source: axes exchanged and mirrored, scaled, somewhere inside."""
    dim = grid.dim
    turn = np.eye(dim)[torch.randperm(dim, generator=generator).numpy()]
    turn = turn * np.where(torch.rand(dim, generator=generator).numpy() < 0.5, -1.0, 1.0)
    scale = between(*settings.scales, generator) * np.exp(0.15 * torch.randn(dim, generator=generator).numpy())
    size = np.array(source.labels.shape[:1:-1])
    room = np.maximum(size - 0.7 * np.abs(turn @ (scale * np.array(grid.size))), 0) / 2
    middle = (size - 1) / 2 + room * (2 * torch.rand(dim, generator=generator).numpy() - 1)
    matrix = np.eye(dim + 1)
    matrix[:dim, :dim] = turn * scale
    matrix[:dim, dim] = middle - matrix[:dim, :dim] @ ((np.array(grid.size) - 1) / 2)
    return matrix


def _seen(source, grid, matrix, displacement):
    """(labels, image or None) of the source through the view and a displacement in voxels; 0 outside the source."""
    moved = index_points(grid) + displacement.movedim(1, -1)
    m = torch.as_tensor(matrix, dtype=torch.float32)
    index = moved @ m[:-1, :-1].T + m[:-1, -1]
    labels = sample(source.labels, index, "nearest", fill=0.0)
    return labels, None if source.image is None else sample(source.image, index, fill=0.0)


def _looks(source, seen, settings, generator):
    """The two images (1, 1, *S); where both share a contrast, the second curve is the first one a little changed."""
    by_image = source.image is not None and chance(0.6, generator)
    number = int(source.labels.max()) + 1
    size = 9 if by_image else number
    curves = [_random_curve(size, settings, generator)]
    other = _random_curve(size, settings, generator)
    same = chance(settings.same_contrast, generator)
    curves.append(curves[0] + 0.06 * (other - other.mean()) if same else other)
    if by_image and chance(0.5, generator):
        curves[0] = torch.linspace(0, 1, size)
        curves[1] = torch.linspace(0, 1, size) ** between(0.7, 1.4, generator) if same else curves[1]
    return [_degraded(_painted(*pictures, curve, by_image), settings, generator) for pictures, curve in zip(seen, curves)]


def _random_curve(size, settings, generator):
    """Brightness of ``size`` labels, or of equally spaced levels of an image; the first one is often 0, the background."""
    curve = torch.rand(size, generator=generator)
    if chance(settings.empty_background, generator):
        curve[0] = 0
    return curve


def _painted(labels, image, curve, by_image):
    if not by_image:
        return curve[labels.long()]
    place = image.clamp(0, 1) * (len(curve) - 1)
    low = place.floor().clamp_max(len(curve) - 2)
    return torch.lerp(curve[low.long()], curve[low.long() + 1], place - low)


def _degraded(image, settings, generator):
    shape = image.shape[2:]
    strength = settings.texture * float(torch.rand(1, generator=generator))
    image = image + strength * smooth_noise(shape, between(0.6, 2.0, generator), generator) * (image > 0)
    image = gaussian(image, between(0.0, settings.blur, generator))
    image = shaded(image, settings.bias, generator)
    if chance(settings.thick_slices, generator):
        image = thick_slices(image, generator)
    image = image + settings.noise * float(torch.rand(1, generator=generator)) ** 2 * torch.randn(image.shape, generator=generator)
    if chance(settings.lost_piece, generator):
        image = without_piece(image, generator)
    if chance(settings.lost_side, generator):
        image = without_side(image, generator)
    low, high = image.flatten().kthvalue(1 + image.numel() // 200)[0], image.flatten().kthvalue(image.numel() - image.numel() // 200)[0]
    return ((image - low) / (high - low).clamp_min(1e-3)).clamp(0, 1) + 1e-4 * torch.rand(image.shape, generator=generator)


def _true_points(grid, lattice, there, back, labels, count, generator):
    """(fixed, moving) Points: random positions and where T = exp(-w) o exp(v) takes them; 0.05 is the weight of empty places."""
    last = torch.tensor([float(n - 1) for n in grid.size])
    start = MARGIN + torch.rand(1, count, grid.dim, generator=generator) * (last - 2 * MARGIN)
    middle = start + _read(there, lattice, start)
    end = middle + _read(back, lattice, middle)
    body = sample(labels, start, "nearest")[:, 0] > 0
    weights = torch.where(body, 1.0, 0.05) * inside(end, grid.shape)
    return Points(start, weights=weights), Points(end)


def _read(field, lattice, positions):
    """Displacement (1, dim, *S) on ``lattice`` at positions (1, N, dim) mm -> (1, N, dim)."""
    return sample(field, apply_matrix(lattice.inverse_affine, positions)).movedim(1, -1)


def _radius(shape):
    """(1, 1, *S) distance from the middle as a share of the half edges."""
    axes = [torch.linspace(-1, 1, n) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt()[None, None]
