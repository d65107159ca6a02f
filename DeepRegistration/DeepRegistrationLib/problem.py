"""Requests: what is to be registered, validated with sentences that a user can act on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .errors import InputError
from .image import Image, Labels
from .points import Points
from .transforms import Transform


@dataclass(frozen=True, eq=False)
class Pair:
    """Register ``moving`` onto ``fixed``; masks travel inside the images, labels and points are optional guides.

    ``initial`` is a transform (fixed mm -> moving mm) to start from; None leaves the start to the method.
    """

    fixed: Image
    moving: Image
    initial: Transform | None = None
    fixed_labels: Labels | None = None
    moving_labels: Labels | None = None
    fixed_points: Points | None = None
    moving_points: Points | None = None

    def __post_init__(self):
        if self.fixed.dim != self.moving.dim:
            raise InputError(f"{self.fixed.name} is {self.fixed.dim}D and {self.moving.name} is {self.moving.dim}D; both must have the same dimension")
        if self.initial is not None and self.initial.dim != self.fixed.dim:
            raise InputError(f"the initial transform is {self.initial.dim}D, the images are {self.fixed.dim}D; give a transform of the same dimension")
        for image in (self.fixed, self.moving):
            _check_image(image)
        if self.fixed.data.shape[1] != self.moving.data.shape[1]:
            raise InputError(f"{self.fixed.name} has {self.fixed.data.shape[1]} channels and {self.moving.name} has {self.moving.data.shape[1]}; "
                             "give images with the same channels, or convert color to gray")
        if self.fixed.data.shape[0] != self.moving.data.shape[0]:
            raise InputError(f"{self.fixed.data.shape[0]} fixed and {self.moving.data.shape[0]} moving images were given; "
                             "they must pair up one to one")
        for one, other, what in ((self.fixed_labels, self.moving_labels, "labels"), (self.fixed_points, self.moving_points, "points")):
            if (one is None) != (other is None):
                raise InputError(f"{what} were given for one image only; give {what} for both or for none")
            if one is not None and {one.dim, other.dim} != {self.dim}:
                raise InputError(f"the {what} are {one.dim}D and {other.dim}D, the images are {self.dim}D; "
                                 f"give {what} of the same dimension")
        if self.fixed_points is not None and len(self.fixed_points) != len(self.moving_points):
            raise InputError(f"{len(self.fixed_points)} fixed and {len(self.moving_points)} moving points were given; they must correspond one to one")

    @property
    def dim(self) -> int:
        return self.fixed.dim

    def swapped(self) -> "Pair":
        """The request in the other direction."""
        initial = None if self.initial is None else self.initial.inverse()
        return Pair(self.moving, self.fixed, initial, self.moving_labels, self.fixed_labels, self.moving_points, self.fixed_points)


@dataclass(frozen=True, eq=False)
class PointPair:
    """Register ``moving`` points onto ``fixed`` points; ``corresponding`` says that row i belongs to row i."""

    fixed: Points
    moving: Points
    corresponding: bool = False

    def __post_init__(self):
        if self.fixed.dim != self.moving.dim:
            raise InputError(f"the fixed points are {self.fixed.dim}D, the moving points {self.moving.dim}D; both must have the same dimension")
        if self.corresponding and len(self.fixed) != len(self.moving):
            raise InputError(f"{len(self.fixed)} fixed and {len(self.moving)} moving points cannot correspond one to one; give equal numbers")
        for points, name in ((self.fixed, "fixed"), (self.moving, "moving")):
            if len(points) < points.dim:
                raise InputError(f"{len(points)} {name} points were given; at least {points.dim} are needed")

    @property
    def dim(self) -> int:
        return self.fixed.dim


def _check_image(image: Image) -> None:
    data = image.data
    if not bool(torch.isfinite(data).all()):
        count = int((~torch.isfinite(data)).sum())
        raise InputError(f"{image.name} holds {count} NaN or infinite voxels; replace them (for example by 0) or mask and fill them first")
    inside = data if image.mask is None else data.masked_select(image.mask.expand_as(data))
    if inside.numel() == 0:
        raise InputError(f"the mask of {image.name} is empty; draw a mask that covers the region of interest")
    if float(inside.max()) == float(inside.min()):
        raise InputError(f"{image.name} has the constant value {float(inside.min()):g}; there is nothing to register, check the file or the mask")
