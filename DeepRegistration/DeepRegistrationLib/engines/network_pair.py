"""What a network sees of a pair: both images on one lattice of the kind that it was trained on, scaled as in training.

The lattice covers the field of view of the fixed image. Its axes are those of the fixed image, exchanged and reversed so that they are
as close as possible to the orientation on the card of the weights, so that voxels are renamed but not interpolated; its spacing is the
card's or the image's; it grows to sides that the network can halve. The moving image is read through the start, which may be any map
fixed -> moving. What the network says is then a map of the fixed space alone: transform = start o (id + u).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import torch

from ..errors import InputError
from ..geometry import Grid
from ..image import Image
from ..networks.weights import WeightsCard
from ..ops.sample import sample
from ..terms import Alignment
from ..transforms import Transform
from ..transforms.base import Identity
from .channels import normalised

DIRECTIONS = {"L": (0, 1.0), "R": (0, -1.0), "P": (1, 1.0), "A": (1, -1.0), "S": (2, 1.0), "I": (2, -1.0)}
"""Letter -> world axis and sign in LPS."""
SAME_SPACING = 0.01


def network_grid(fixed: Grid, card: WeightsCard, multiple: int) -> Grid:
    """The lattice that a network with this card sees, over the field of view of ``fixed``; sides are divisible by ``multiple``.

    InputError where the card speaks of another dimension.
    """
    grid = oriented(fixed, card.orientation) if card.orientation else fixed
    if card.shape:
        _check_length(card.shape, "sides", grid, card)
        return grid.resample(grid.extent / np.array(card.shape[::-1], float))
    if card.spacing:
        _check_length(card.spacing, "spacings", grid, card)
        wanted = np.array(card.spacing, float)
        if np.abs(grid.spacing / wanted - 1).max() > SAME_SPACING:
            grid = grid.resample(wanted)
    missing = -np.array(grid.size) % multiple
    return grid.crop(-(missing // 2), np.array(grid.size) + missing - missing // 2)


def oriented(grid: Grid, letters: str) -> Grid:
    """The same voxels with their axes exchanged and reversed so that they run as closely as possible to ``letters``, for example 'LIA'."""
    if len(letters) != grid.dim or grid.dim != 3 or any(letter not in DIRECTIONS for letter in letters):
        raise InputError(f"the orientation '{letters}' on the card of the weights does not fit a {grid.dim}D image; three letters of "
                         f"{', '.join(DIRECTIONS)} are needed for a volume, none for a slice")
    wanted = np.zeros((3, 3))
    for column, letter in enumerate(letters):
        axis, sign = DIRECTIONS[letter]
        wanted[axis, column] = sign
    likeness = grid.direction.T @ wanted
    order = max(permutations(range(3)), key=lambda p: sum(abs(likeness[p[k], k]) for k in range(3)))
    size, change = np.array(grid.size), np.eye(4)
    change[:3, :3] = 0
    for new, old in enumerate(order):
        reverse = likeness[old, new] < 0
        change[old, new] = -1.0 if reverse else 1.0
        change[old, 3] = size[old] - 1 if reverse else 0
    return Grid(tuple(int(size[old]) for old in order[::-1]), grid.affine @ change)


def seen(fixed: Image, moving: Image, start: Transform, card: WeightsCard, multiple: int) -> tuple[Image, Image]:
    """(fixed, moving) on the network's lattice, scaled; 0 outside their fields of view and masks. InputError for colors."""
    for image in (fixed, moving):
        if image.data.shape[1] != 1:
            raise InputError(f"{image.name} has {image.data.shape[1]} channels; this network sees gray images, convert it first")
    grid = network_grid(fixed.grid, card, multiple)
    fixed, moving = (_masked(scaled(image, card.scaling)).smoothed_to(grid.spacing.max()) for image in (fixed, moving))
    return fixed.at(grid), through(moving, start, grid)


def through(image: Image, start: Transform, grid: Grid) -> Image:
    """The moving image read on ``grid`` through a map fixed -> moving, 0 outside its field of view."""
    if isinstance(start, Identity):
        return image.at(grid)
    frame = Image(torch.zeros((1, 1, *grid.shape), dtype=image.data.dtype, device=image.device), grid)
    index = Alignment(frame, image, start).moving_index
    return Image(sample(image.data, index, fill=0.0), grid, name=image.name)


def scaled(image: Image, kind: str) -> Image:
    """The intensities as float32, brought to [0, 1] as a card says: 'minmax', 'robust', 'bytes' or 'none'."""
    if kind == "none":
        return replace(image, data=image.data.float())
    if kind == "robust":
        return normalised(image)
    data = image.data.float()
    values = data if image.mask is None else data[image.mask.expand_as(data)]
    low, high = float(values.min()), float(values.max())
    if kind == "bytes" and low >= 0 and high <= 255:
        low, high = 0.0, 1.0 if high <= 1 else 255.0
    return replace(image, data=((data - low) / (high - low)).clamp(0, 1))


def _masked(image: Image) -> Image:
    """Networks know no masks: what a mask leaves out becomes 0, as in the skull-stripped images that they were trained on."""
    return image if image.mask is None else replace(image, data=image.data * image.mask, mask=None)


def _check_length(values, what, grid, card):
    if len(values) != grid.dim:
        raise InputError(f"the weights '{card.title}' are for {len(values)}D images ({len(values)} {what} on their card); the images are {grid.dim}D")
