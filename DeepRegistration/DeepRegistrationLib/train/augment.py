"""Pairs changed at random while they are drawn: where things are, how they look, what is seen of them.

Both images of a pair are moved by one affine map A, so that the network meets them in every pose, and each by a small one and a smooth
diffeomorphism of its own, so that no pair is met twice:

    image'(x) = look(image(A B exp(v) x)),   labels'(x) = labels(A B exp(v) x),   a point p goes to exp(-v) B^-1 A^-1 p.

Looks: a power and a line through the brightness, a shading, a blur, thick slices, and a field of view that ends earlier (what is not
seen is 0, is no label, and its points count nothing). Every change happens with its probability and is drawn from its range; all from one
generator: same generator, same pair. What is done to images is that of the synthetic pairs (``degrade``).
"""

from __future__ import annotations

from dataclasses import dataclass, fields as fields_of, replace

import torch

from ..errors import InputError
from ..geometry import Grid
from ..image import Image, Labels
from ..ops import fields
from ..ops.filters import gaussian
from ..ops.sample import apply_matrix, index_points, sample, world_points
from ..points import Points
from ..problem import Pair
from ..transforms import Affine
from .degrade import between, chance, seen_side, shaded, smooth_velocity, thick_slices

LATTICE = 3.0
"""Spacing of the lattice of elastic motion in voxels of the image."""


@dataclass(frozen=True)
class Augmentation:
    """Probabilities (0 leaves a change out) and upper ends of ranges.

    affine: probability; turn degrees, scale and shear (shares), shift (share of the field of view) of both images; apart: the share of these
    that each image gets for itself; mirror: probability of a mirror image along each axis, both images alike. elastic: probability; widths (sigma)
    and motions (largest root mean square), shares of the field of view. gamma: the largest exponent, 1 / gamma the smallest; contrast:
    largest change of slope and offset; bias: largest spread of the log of the shading; blur: voxels; crop: the largest lost share of an axis.
    """

    affine: float = 0.8
    turn: float = 12.0
    scale: float = 0.12
    shear: float = 0.04
    shift: float = 0.04
    apart: float = 0.3
    mirror: float = 0.0
    elastic: float = 0.5
    widths: tuple[float, ...] = (0.15, 0.06)
    motions: tuple[float, ...] = (0.02, 0.008)
    intensity: float = 0.5
    gamma: float = 1.5
    contrast: float = 0.15
    shading: float = 0.3
    bias: float = 0.25
    blurring: float = 0.2
    blur: float = 1.0
    resolution: float = 0.15
    cropping: float = 0.1
    crop: float = 0.15

    def __post_init__(self):
        for name in ("affine", "mirror", "elastic", "intensity", "shading", "blurring", "resolution", "cropping", "apart"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"augmentation: {name} = {getattr(self, name)}; a number from 0 to 1 is needed")
        if self.gamma < 1 or not 0 <= self.crop < 1 or min(getattr(self, f.name) for f in fields_of(self) if f.type == "float") < 0:
            raise InputError("augmentation: ranges are at least 0, gamma at least 1 and crop under 1; check the values")
        if len(self.widths) != len(self.motions):
            raise InputError(f"augmentation: {len(self.widths)} widths and {len(self.motions)} motions of the elastic change; give equal numbers")


NONE = Augmentation(affine=0, elastic=0, intensity=0, shading=0, blurring=0, resolution=0, cropping=0)


def augmented(pair: Pair, settings: Augmentation, generator: torch.Generator) -> Pair:
    """The pair with its images, labels and points changed; all on the grids that they were on."""
    common = _affine(pair.fixed.grid, settings, 1.0, generator)
    parts = {}
    for side in ("fixed", "moving"):
        image, labels, points = (getattr(pair, side + part) for part in ("", "_labels", "_points"))
        motion = _Motion.drawn(image.grid, common, settings, generator)
        seen = _seen(image, settings, generator)
        parts[side] = _looking(motion.of_image(image), seen, settings, generator)
        parts[f"{side}_labels"] = None if labels is None else motion.of_labels(labels, seen, image.grid)
        parts[f"{side}_points"] = None if points is None else motion.of_points(points, seen, image.grid)
    return Pair(**parts)


@dataclass(eq=False)
class _Motion:
    """x -> linear(x + u(x)), u the flow of ``velocity`` (1, dim, *S) mm on ``lattice``; None without an elastic part."""

    linear: Affine
    lattice: Grid
    velocity: torch.Tensor | None
    found: tuple | None = None

    @classmethod
    def drawn(cls, grid: Grid, common: Affine, settings: Augmentation, generator) -> "_Motion":
        linear = common @ _affine(grid, settings, settings.apart, generator, mirrored=False)
        lattice = grid.resample(LATTICE * grid.spacing.min())
        if not chance(settings.elastic, generator):
            return cls(linear, lattice, None)
        size = float(grid.extent.mean())
        return cls(linear, lattice, smooth_velocity(lattice, [w * size for w in settings.widths], [m * size for m in settings.motions], generator))

    def _shifted(self, points, sign: float):
        """points (1, N, dim) mm carried by the flow of ``sign`` times the velocity."""
        if self.velocity is None:
            return points
        flow = fields.exp(sign * self.velocity, self.lattice, padding="border")
        return points + sample(flow, apply_matrix(self.lattice.inverse_affine, points)).movedim(1, -1)

    def _index(self, grid: Grid):
        """(1, *S, dim) where each voxel of ``grid`` is looked up, in its own voxels; found once for an image and its labels."""
        if self.found is None or self.found[0] is not grid:
            points = world_points(grid)
            moved = self.linear(self._shifted(points.reshape(1, -1, grid.dim), 1.0)).reshape(points.shape)
            self.found = grid, apply_matrix(grid.inverse_affine, moved)
        return self.found[1]

    def of_image(self, image: Image) -> Image:
        index = self._index(image.grid)
        mask = None if image.mask is None else sample(image.mask.float(), index, "nearest", fill=0.0) > 0.5
        mask = mask if mask is None or bool(mask.any()) else None
        return replace(image, data=sample(image.data, index, fill=0.0), mask=mask)

    def of_labels(self, labels: Labels, seen: torch.Tensor, grid: Grid) -> Labels:
        data = sample(labels.data.float(), self._index(grid if labels.grid.same_as(grid) else labels.grid), "nearest", fill=0.0)
        kept = sample(seen, index_points(labels.grid, grid), "nearest", fill=0.0)
        return replace(labels, data=(data * kept).to(labels.data.dtype))

    def of_points(self, points: Points, seen: torch.Tensor, grid: Grid) -> Points:
        moved = self._shifted(self.linear.inverse()(points.positions.float()), -1.0)
        kept = sample(seen, apply_matrix(grid.inverse_affine, moved), "nearest", fill=0.0)[:, 0]
        weights = kept if points.weights is None else points.weights * kept
        return replace(points, positions=moved, weights=weights)


def _affine(grid: Grid, settings: Augmentation, share: float, generator, mirrored: bool = True) -> Affine:
    """A random affine map about the centre of ``grid``, its ranges times ``share``, after a random mirror image."""
    dim = grid.dim
    centre, made = torch.as_tensor(grid.centre.copy()).float(), Affine.identity(dim, torch.float32)
    if chance(settings.affine, generator):
        limits = torch.tensor([*(settings.shift * grid.extent), *[settings.turn * torch.pi / 180] * (1 if dim == 2 else 3),
                               *[settings.scale] * dim, *[settings.shear] * (dim * (dim - 1) // 2)], dtype=torch.float32)
        values = share * limits * (2 * torch.rand(len(limits), generator=generator) - 1)
        made = Affine.from_parameters("affine", values[None], centre)
    flips = [-1.0 if mirrored and chance(settings.mirror, generator) else 1.0 for _ in range(dim)]
    if min(flips) > 0:
        return made
    directions = torch.as_tensor(grid.direction.copy()).float()
    mirror = torch.eye(dim + 1)
    mirror[:dim, :dim] = directions @ torch.diag(torch.tensor(flips)) @ torch.linalg.inv(directions)
    mirror[:dim, dim] = centre - mirror[:dim, :dim] @ centre
    return made @ Affine(mirror)


def _seen(image: Image, settings: Augmentation, generator) -> torch.Tensor:
    """(1, 1, *S) 1 where the field of view is kept."""
    if chance(settings.cropping, generator) and settings.crop > 0.03:
        return seen_side(image.data.shape, generator, settings.crop)
    return torch.ones(1, 1, *image.data.shape[2:])


def _looking(image: Image, seen: torch.Tensor, settings: Augmentation, generator) -> Image:
    """The image with another brightness, shading, sharpness and field of view; its values stay in [0, 1]."""
    data = image.data
    if chance(settings.intensity, generator):
        data = data.clamp(0, 1) ** (settings.gamma ** between(-1, 1, generator))
        slope, offset = (settings.contrast * between(-1, 1, generator) for _ in range(2))
        data = data * (1 + slope) + offset * (data > 0)
    if chance(settings.shading, generator):
        data = shaded(data, settings.bias, generator)
    if chance(settings.blurring, generator):
        data = gaussian(data, between(0.0, settings.blur, generator))
    if chance(settings.resolution, generator):
        data = thick_slices(data, generator)
    return replace(image, data=data.clamp(0, 1) * seen)
