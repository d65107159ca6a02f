"""Requests: what is to be registered, validated with sentences that a user can act on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from .errors import InputError
from .geometry import Grid
from .image import Image, Labels
from .io import read_grid, read_image, read_labels, read_mask
from .planes import Plane
from .points import Points
from .transforms import Affine, Transform
from .transforms.base import Identity


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


@dataclass(frozen=True, eq=False)
class Subject:
    """One member of a cohort: an image with its labels and its mask, each in memory or the file that holds it; ``covariate``: its age, or another
    number that an atlas may depend on; ``unusable``: why it is to be set aside, '' where it is not.

    Files are read when they are asked for and not kept. A one-slice volume is a 2D image in its plane.
    """

    name: str
    image: Image | Path
    labels: Labels | Path | None = None
    mask: Labels | Path | None = None
    covariate: float | None = None
    unusable: str = ""

    def grid(self) -> Grid:
        """The lattice of the image, from the header alone where it is a file. InputError for a file that is none, and for one that is unusable."""
        if self.unusable:
            raise InputError(self.unusable)
        grid = self.image.grid if isinstance(self.image, Image) else read_grid(self.image)
        plane = _plane(grid)
        return grid if plane is None else plane.flat(grid)

    def read(self) -> Image:
        """The image (1, 1, *S) with its mask, which leaves out what holds no number. InputError for one that cannot be read or is constant."""
        image = self.image if isinstance(self.image, Image) else read_image(self.image, channels="gray")
        if self.mask is not None:
            image = image.with_mask(self.mask if isinstance(self.mask, Image) else read_mask(self.mask))
        if image.data.shape[:2] != (1, 1):
            raise InputError(f"{image.name} has {image.data.shape[1]} channels; a cohort needs gray images, convert it first")
        image = image.completed()
        _check_image(image)
        return _flat(image, _plane(image.grid))

    def read_labels(self) -> Labels | None:
        """The label map on its own lattice, None where the subject has none. InputError for a file that is no label map."""
        labels = read_labels(self.labels) if isinstance(self.labels, Path) else self.labels
        if labels is None:
            return None
        grid = self.image.grid if isinstance(self.image, Image) else read_grid(self.image)
        return _flat(labels, _plane(grid))


@dataclass(frozen=True, eq=False)
class Group:
    """A cohort, for an atlas: two or more subjects of one dimension, read one at a time.

    Names are those of folders and occur once. What single subjects lack is found when they are read: it does not make the cohort unusable.
    """

    subjects: tuple[Subject, ...]

    def __post_init__(self):
        object.__setattr__(self, "subjects", tuple(self.subjects))
        names = [subject.name for subject in self.subjects]
        if len(names) < 2:
            raise InputError(f"a cohort of {'one subject' if names else 'no subjects'} was given; an atlas needs at least two")
        for name in names:
            if not name.strip() or name in (".", "..") or any(c in name for c in '/\\:*?"<>|'):
                raise InputError(f"the subject name '{name}' cannot be that of a folder; use letters, digits, '-' and '_'")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"the subject '{twice}' occurs {names.count(twice)} times; give every subject a name of its own")

    @cached_property
    def dim(self) -> int:
        """That of the first subject whose header can be read. InputError where there is none."""
        reasons = []
        for subject in self.subjects:
            try:
                return subject.grid().dim
            except InputError as error:
                reasons.append(str(error))
        raise InputError(f"no image of the cohort can be read; the first one: {reasons[0]}")


@dataclass(frozen=True, eq=False)
class Slices:
    """Find where 2D ``slices`` lie in a 3D ``volume``: for the set and for every slice a map slice mm -> volume mm.

    slices: one-slice 3D Images (1, 1, ...) in world space, as their headers place them; what their masks leave out is not compared.
    ``thickness`` mm of the slices, 0 for that of their headers; ``segments`` one label map a slice (> 0 is bone) and
    ``volume_segment`` the same bone in the volume, both or none; ``axis`` (point (3,) mm, direction (3,)) that all planes share, None to
    take it from the planes; ``initial`` a linear map slice mm -> volume mm to start from, None for that of the headers.
    """

    slices: tuple[Image, ...]
    volume: Image
    thickness: float = 0.0
    segments: tuple[Labels, ...] | None = None
    volume_segment: Labels | None = None
    axis: tuple | None = None
    initial: Transform | None = None

    def __post_init__(self):
        object.__setattr__(self, "slices", tuple(self.slices))
        if len(self.slices) < 2:
            raise InputError(f"{'one slice was' if self.slices else 'no slices were'} given; at least two are needed to place a set in a volume")
        for image in (*self.slices, self.volume):
            _check_image(image)
            if image.data.shape[:2] != (1, 1):
                raise InputError(f"{image.name} has {image.data.shape[1]} channels; slices and volume need one value per voxel, choose one channel")
        for image in self.slices:
            if image.dim != 3 or image.grid.size.count(1) != 1:
                raise InputError(f"{image.name} has {' x '.join(map(str, image.grid.size))} voxels; a slice is a 3D image with one axis of one voxel, "
                                 "give one file a slice with its position in space")
        if self.volume.dim != 3 or min(self.volume.grid.size) < 2:
            raise InputError(f"{self.volume.name} has {' x '.join(map(str, self.volume.grid.size))} voxels; a volume of several slices is needed")
        if not 0 <= self.thickness < 1000:
            raise InputError(f"a slice thickness of {self.thickness} mm was given; give 0 (that of the headers) or a length in mm")
        if self.initial is not None and not isinstance(self.initial, (Affine, Identity)):
            raise InputError(f"the initial transform is a {type(self.initial).__name__}; slices start from a linear one, give its linear part")
        if self.initial is not None and self.initial.dim != 3:
            raise InputError(f"the initial transform is {self.initial.dim}D; slices lie in a volume, give a 3D transform")
        self._check_segments()
        self._check_axis()

    def _check_segments(self):
        if (self.segments is None) != (self.volume_segment is None):
            raise InputError("segments were given for the slices only or for the volume only; give the bone in both or in neither")
        if self.segments is None:
            return
        object.__setattr__(self, "segments", tuple(self.segments))
        if len(self.segments) != len(self.slices):
            raise InputError(f"{len(self.segments)} segments were given for {len(self.slices)} slices; give one a slice, in the same order")
        for image, segment in zip(self.slices, self.segments):
            if segment.grid != image.grid:
                raise InputError(f"{segment.name} does not lie on the voxels of {image.name}; resample it, or give the files in the order of the slices")
        for segment in (*self.segments, self.volume_segment):
            if not bool((segment.data > 0).any()):
                raise InputError(f"{segment.name} marks no voxel; draw the bone in it, or leave the segments out")

    def _check_axis(self):
        if self.axis is None:
            return
        try:
            point, direction = (np.array(v, float).reshape(3) for v in self.axis)
        except (TypeError, ValueError):
            raise InputError(f"an axis of {self.axis!r} was given; a point and a direction of three numbers each are needed") from None
        length = float(np.linalg.norm(direction))
        if not (np.isfinite(point).all() and np.isfinite(length) and length > 0):
            raise InputError("the axis has a direction without length or numbers that are not finite; give a point and a direction in mm")
        object.__setattr__(self, "axis", (point, direction / length))

    @property
    def dim(self) -> int:
        return 3


@dataclass(frozen=True, eq=False)
class Series:
    """Repeated scans of one subject on one lattice, in their order.

    ``tissues`` (1, K, *T), on any lattice: maps of K tissues in the space of the scans, each from 0 to 1.
    """

    frames: tuple[Image, ...]
    tissues: Image | None = None

    def __post_init__(self):
        object.__setattr__(self, "frames", tuple(self.frames))
        if len(self.frames) < 2:
            named = ", ".join(f"{image.name}, {image.grid}" for image in self.frames)
            raise InputError(f"a series of {len(self.frames)} scan ({named}) was given; at least two are needed: files of a scan each, or one of four axes")
        first = self.frames[0]
        for image in self.frames:
            if image.data.shape[:2] != (1, 1):
                raise InputError(f"{image.name} has {image.data.shape[1]} channels; every scan of a series needs one, give a series as single scans")
            if not image.grid.same_as(first.grid):
                raise InputError(f"{image.name} ({image.grid}) lies on another lattice than {first.name} ({first.grid}); "
                                 "the scans of a series share one, resample them first")
            _check_image(image)
        if self.tissues is not None and self.tissues.dim != first.dim:
            raise InputError(f"the tissue maps are {self.tissues.dim}D, the scans {first.dim}D; give maps of the same dimension")

    @property
    def dim(self) -> int:
        return self.frames[0].dim


def _plane(grid: Grid) -> Plane | None:
    return Plane.of(grid) if grid.dim == 3 and grid.size.count(1) == 1 else None


def _flat(image: Image, plane: Plane | None):
    """A one-slice volume as a 2D image in ``plane``; other images as they are."""
    if plane is None or image.dim == 2:
        return image
    grid = plane.flat(image.grid)
    mask = None if image.mask is None else image.mask.reshape(1, 1, *grid.shape)
    return replace(image, data=image.data.reshape(*image.data.shape[:2], *grid.shape), grid=grid, mask=mask)


def _check_image(image: Image) -> None:
    data = image.data
    lowest, highest = _extremes(data)
    if not (math.isfinite(lowest) and math.isfinite(highest)):  # both are NaN where any voxel is
        count = int((~torch.isfinite(data)).sum())
        raise InputError(f"{image.name} holds {count} NaN or infinite voxels; replace them (for example by 0) or mask and fill them first")
    if image.mask is not None:
        inside = data.masked_select(image.mask.expand_as(data))
        if inside.numel() == 0:
            raise InputError(f"the mask of {image.name} is empty; draw a mask that covers the region of interest")
        lowest, highest = _extremes(inside)
    if lowest == highest:
        raise InputError(f"{image.name} has the constant value {lowest:g}; there is nothing to register, check the file or the mask")


def _extremes(values: torch.Tensor) -> tuple[float, float]:
    """(lowest, highest) in one pass."""
    low, high = torch.aminmax(values)
    return float(low), float(high)
