"""Pairs of images from files: drawn one by one from an index, read on one common lattice, kept in memory as far as it reaches.

All ordered pairs of n scans are numbered 0 ... n (n - 1) - 1; a pair is made from its number, so none is held. Every image is
read on the lattice of the cohort (``common_lattice``): axes along the patient's (LPS), the spacing and the size asked for or the medians of the
cohort. Where the headers place the images beside each other, their centres are brought together. Intensities are scaled to
[0, 1] by their robust range, as the engines do. One-slice volumes are 2D images.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from ..engines.channels import normalised
from ..errors import InputError
from ..geometry import Grid
from ..image import Image, Labels
from ..io import read_grid, read_image, read_labels, read_mask, read_points
from ..planes import Plane
from ..points import Points
from ..problem import Pair
from ..runtime import Monitor
from .cohort import SPLITS, Cohort, Scan, split

MOST_VOXELS = {2: 1 << 18, 3: 1 << 21}
"""A lattice that is derived from the cohort is made coarser until it has no more voxels."""
FAR = 0.25
"""Share of the field of view by which centres may differ before the headers count as unrelated."""


@dataclass(frozen=True)
class Lattice:
    """The lattice of all images; with ``centred`` the centre of every image is brought to that of ``grid``."""

    grid: Grid
    centred: bool

    def shift(self, grid: Grid) -> np.ndarray:
        """(dim,) mm by which an image on ``grid`` is moved into the lattice's space."""
        return self.grid.centre - grid.centre if self.centred else np.zeros(grid.dim)


def common_lattice(grids: list[Grid], spacing=None, shape: tuple[int, ...] | None = None, multiple: int = 16) -> Lattice:
    """The lattice for images on ``grids``, which have one dimension.

    spacing (scalar or (dim,) x, y, z, mm) and shape (z, y, x) voxels: asked for, or the medians of the cohort, made coarser where that would
    be too many voxels; sides become multiples of ``multiple``. InputError for values that do not fit.
    """
    dim = grids[0].dim
    measured = np.array([_along_axes(grid) for grid in grids])
    steps, extents = np.median(measured[:, 0], 0), np.median(measured[:, 1], 0)
    centres = np.array([grid.centre for grid in grids])
    middle = np.median(centres, 0)
    centred = bool((np.abs(centres - middle) > FAR * extents).any())
    if shape is not None and (len(shape) != dim or min(shape) < 1):
        raise InputError(f"a lattice of {' x '.join(map(str, shape))} voxels was asked for; the images are {dim}D, give {dim} numbers of at least 1")
    if spacing is not None:
        given = np.atleast_1d(np.asarray(spacing, float))
        if given.size not in (1, dim) or not (given > 0).all():
            raise InputError(f"a spacing of {given.tolist()} mm was asked for; give one positive number, or {dim}")
        steps = np.broadcast_to(given, (dim,))
    elif shape is not None:
        steps = extents / np.array(shape[::-1], float)
    size = np.array(shape[::-1]) if shape is not None else np.ceil(extents / steps - 1e-6)
    if shape is None and spacing is None:
        steps = steps * max(1.0, (float(np.prod(size)) / MOST_VOXELS[dim]) ** (1 / dim))
        size = np.ceil(extents / steps - 1e-6)
    size = (np.ceil(size / multiple) * multiple).astype(int)
    origin = (np.zeros(dim) if centred else middle) - steps * (size - 1) / 2
    return Lattice(Grid.from_parts(tuple(int(n) for n in size[::-1]), steps, origin), centred)


def _along_axes(grid: Grid):
    """(spacing, extent) of a grid along the world axes, mm."""
    axes = linear_sum_assignment(-np.abs(grid.direction))[1]
    corners = grid.corners()
    return grid.spacing[axes], corners.max(0) - corners.min(0)


@dataclass(frozen=True, eq=False)
class Seen:
    """An image on the lattice of the cohort, in [0, 1], with its labels and points where it has them."""

    image: Image
    labels: Labels | None = None
    points: Points | None = None

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        tensors = [self.image.data, self.image.mask, None if self.labels is None else self.labels.data]
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)


class Scans:
    """``scans[k]`` is the k-th image as Seen; the most recently used stay in memory up to ``limit_mib`` MiB. Threads may share it."""

    def __init__(self, scans, lattice: Lattice, limit_mib: float = 2048.0):
        self.scans, self.lattice, self.limit = tuple(scans), lattice, int(limit_mib * (1 << 20))
        self.held: OrderedDict[int, Seen] = OrderedDict()
        self.bytes, self.read, self.lock = 0, 0, threading.Lock()

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, k: int) -> Seen:
        with self.lock:
            if k in self.held:
                self.held.move_to_end(k)
                return self.held[k]
        found = read_scan(self.scans[k], self.lattice)
        with self.lock:
            self.read += 1
            if k not in self.held and found.bytes <= self.limit:
                self.held[k], self.bytes = found, self.bytes + found.bytes
                while self.bytes > self.limit:
                    self.bytes -= self.held.popitem(last=False)[1].bytes
        return found


def read_scan(scan: Scan, lattice: Lattice) -> Seen:
    """The files of a scan on the lattice. InputError for one that cannot be read or is empty there."""
    image = read_image(scan.image, channels="gray")
    if scan.mask is not None:
        image = image.with_mask(read_mask(scan.mask))
    plane = Plane.of(image.grid) if 1 in image.grid.shape and image.dim == 3 else None
    if not bool(torch.isfinite(image.data).all()):
        raise InputError(f"{scan.image} holds NaN or infinite voxels; replace them first")
    if float(image.data.max()) == float(image.data.min()):
        raise InputError(f"{scan.image} is constant; there is nothing to learn from it")
    flat = _flat(image, plane)
    shift = lattice.shift(flat.grid)
    seen = _on(normalised(flat), shift, lattice)
    if float(seen.data.max()) - float(seen.data.min()) < 1e-6:
        raise InputError(f"{scan.image} shows nothing on the lattice of the cohort ({lattice.grid}); check the file, its mask and the lattice")
    labels = None if scan.labels is None else _on(_flat(read_labels(scan.labels), plane), shift, lattice)
    if labels is not None and not bool(labels.data.any()):
        raise InputError(f"{scan.labels} holds no label on the lattice of the cohort; check that it belongs to {scan.image.name}")
    points = None if scan.points is None else _points(read_points(scan.points), plane, shift)
    return Seen(seen, labels, points)


def _flat(image: Image, plane: Plane | None):
    if plane is None:
        return image
    grid = plane.flat(image.grid)
    shape = (*image.data.shape[:2], *grid.shape)
    return replace(image, data=image.data.reshape(shape), grid=grid, mask=None if image.mask is None else image.mask.reshape(1, 1, *grid.shape))


def _on(image: Image, shift, lattice: Lattice):
    """An image moved by ``shift`` mm, smoothed where the lattice is coarser, and read there; 0 outside its field of view."""
    matrix = np.eye(image.dim + 1)
    matrix[:-1, -1] = shift
    return replace(image, grid=image.grid.moved(matrix)).smoothed_to(lattice.grid.spacing.min()).at(lattice.grid)


def _points(points: Points, plane: Plane | None, shift) -> Points:
    positions = points.positions.numpy() if plane is None else plane.to_plane(points.positions.numpy())
    return Points(torch.as_tensor(positions + shift).float(), names=points.names)


# --------------------------------------------------------------------------------------------------------------- pairs


class Index:
    """Ordered pairs of numbers: every one of two different ``members``, or those of ``given`` whose both ends are members."""

    def __init__(self, members, given=None):
        self.members, inside = tuple(members), set(members)
        self.given = None if given is None else tuple(pair for pair in given if pair[0] in inside and pair[1] in inside)

    def __len__(self) -> int:
        n = len(self.members)
        return n * (n - 1) if self.given is None else len(self.given)

    def __getitem__(self, number: int) -> tuple[int, int]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        if self.given is not None:
            return self.given[number]
        i, j = divmod(number, len(self.members) - 1)
        return self.members[i], self.members[j + (j >= i)]

    def spread(self, count: int) -> list[tuple[int, int]]:
        """At most ``count`` of the pairs, evenly spaced over the index."""
        n = len(self)
        return [self[k * n // count] for k in range(count)] if n > count else [self[k] for k in range(n)]


def pair_of(fixed: Seen, moving: Seen) -> Pair:
    """The pair of two images; labels where both have some, points where both name the same ones."""
    labels = (fixed.labels, moving.labels) if fixed.labels is not None and moving.labels is not None else (None, None)
    return Pair(fixed.image, moving.image, None, *labels, *_common(fixed.points, moving.points))


def _common(fixed: Points | None, moving: Points | None):
    if fixed is None or moving is None:
        return None, None
    places = {name: k for k, name in enumerate(moving.names)}
    both = [(k, places[name]) for k, name in enumerate(fixed.names) if name in places]
    if not both:
        return None, None
    return tuple(Points(points.positions[:, [pair[side] for pair in both]]) for side, points in enumerate((fixed, moving)))


@dataclass(frozen=True, eq=False)
class Data:
    """What a cohort gives to a training run: ``scans``, an Index for each of the splits, ``remarks`` (sentences on what was set aside)."""

    scans: Scans
    indices: dict[str, Index]
    remarks: tuple[str, ...] = ()

    @property
    def lattice(self) -> Lattice:
        return self.scans.lattice

    @property
    def dim(self) -> int:
        return self.lattice.grid.dim

    def pair(self, numbers: tuple[int, int]) -> Pair:
        return pair_of(*(self.scans[k] for k in numbers))

    def draw(self, generator: torch.Generator) -> Pair:
        """A pair of the training split, every one equally likely: for ``loop.train``."""
        index = self.indices["train"]
        return self.pair(index[int(torch.randint(len(index), (1,), generator=generator))])

    def some(self, name: str, count: int) -> list[Pair]:
        """At most ``count`` pairs of a split, always the same ones."""
        return [self.pair(numbers) for numbers in self.indices[name].spread(count)]


def open_data(cohort: Cohort, seed: int, spacing=None, shape=None, multiple: int = 16, limit_mib: float = 2048.0,
              monitor: Monitor | None = None) -> Data:
    """Look at every file of a cohort once, and prepare to draw pairs. Files that cannot be read are set aside and named in ``remarks``.

    InputError where fewer than two subjects remain, where 2D and 3D images are mixed, or where no pair is left for training.
    """
    monitor, remarks = monitor or Monitor(), []
    headers: dict[int, Grid] = {}
    for k in range(len(cohort.scans)):
        _try(headers, k, lambda k=k: _grid(cohort.scans[k].image), remarks)
    _require_one_dimension(cohort, headers, remarks)
    lattice = common_lattice(list(headers.values()), spacing, shape, multiple)
    if limit_mib < 0:
        raise InputError(f"{limit_mib:g} MiB of memory for images were asked for; give 0 or more")
    scans = Scans(cohort.scans, lattice, limit_mib)
    good: dict[int, Seen] = {}
    for _, k in zip(monitor.steps(len(headers), "reading the images"), list(headers)):
        _try(good, k, lambda k=k: bool(scans[k].bytes), remarks)
    subjects = {cohort.scans[k].subject for k in good}
    if len(subjects) < 2:
        reason = f"; set aside: {remarks[0]}" if remarks else ""
        raise InputError(f"{len(good)} usable images of {len(subjects)} subjects were found, and images of at least two subjects are needed{reason}")
    parts = split([cohort.scans[k] for k in good], seed)
    numbers = list(good)
    indices = {name: Index([numbers[n] for n in parts[name]], cohort.pairs) for name in SPLITS}
    if not len(indices["train"]):
        raise InputError("no pair is left for training; give more images, or fewer of them to 'validation' and 'test'")
    return Data(scans, indices, tuple(remarks))


def _grid(path: Path) -> Grid:
    grid = read_grid(path)
    return Plane.of(grid).flat(grid) if grid.dim == 3 and 1 in grid.shape else grid


def _try(found: dict, k: int, look, remarks: list[str]) -> None:
    """Note what ``look()`` says; what cannot be used is one sentence more."""
    try:
        found[k] = look()
    except InputError as error:
        remarks.append(str(error))


def _require_one_dimension(cohort: Cohort, headers: dict[int, Grid], remarks: list[str]) -> None:
    by_dim = {grid.dim: cohort.scans[k].image for k, grid in headers.items()}
    if len(by_dim) > 1:
        raise InputError(f"2D and 3D images are mixed ({by_dim[2].name} is 2D, {by_dim[3].name} is 3D); train with images of one dimension")
    if not by_dim:
        raise InputError(f"none of the {len(cohort.scans)} images can be read: {remarks[0]}")
