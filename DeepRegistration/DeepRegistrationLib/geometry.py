"""Space, stated once.

World coordinates are **LPS millimetres** (x to the patient's left, y to posterior, z to superior), as in ITK, SimpleITK,
ANTs, elastix, DICOM and transform files. 3D Slicer's scene is RAS; the two sign flips live in ``io.py`` and
``DeepRegistrationUI/mrml.py`` and nowhere else.

* Vectors and points are (x, y, z) or (x, y). Tensor axes are (B, C, z, y, x) or (B, C, y, x).
* A transform pulls back: it maps fixed points to moving points (``fixed_to_moving``).
* Displacements and velocities are in mm on a Grid. Radii, spacings and sigmas are in mm.
* Geometry is float64 on the CPU and is cast once, where an image is sampled.

An index is continuous, in the order (x, y, z), and 0 is the centre of the first voxel:
``world = affine[:dim, :dim] @ index + affine[:dim, dim]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .errors import InputError


def _numbers(values, what: str, *shapes) -> np.ndarray:
    """``values`` as a new float64 array of one of ``shapes`` (any where none is given); InputError otherwise."""
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{what} of {values!r} was given; numbers are needed") from None
    if shapes and array.shape not in shapes:
        raise InputError(f"{what} of shape {array.shape} was given; expected {' or '.join(map(str, shapes))}")
    return array


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular lattice of voxels in world space, in 2D or 3D; any invertible index-to-world affine is allowed.

    shape (z, y, x) or (y, x) voxels; affine (dim + 1, dim + 1) index -> world, mm.
    Raises InputError for a shape or an affine that describes no lattice.
    """

    shape: tuple[int, ...]
    affine: np.ndarray

    def __post_init__(self):
        numbers = _numbers(self.shape, "a grid's shape").ravel()
        if len(numbers) not in (2, 3) or not (numbers >= 1).all() or not (numbers == np.round(numbers)).all():
            raise InputError(f"a grid of shape {tuple(self.shape)} was given; 2 or 3 axes of at least one voxel are needed")
        shape = tuple(int(n) for n in numbers)
        affine = _numbers(self.affine, "an index-to-world matrix")
        n = len(shape) + 1
        if affine.shape != (n, n) or not np.isfinite(affine).all():
            raise InputError(f"an index-to-world matrix of shape {affine.shape} was given; a finite {n} x {n} matrix is needed")
        if not np.allclose(affine[-1], np.eye(n)[-1]):
            raise InputError(f"the last row of the index-to-world matrix is {affine[-1].tolist()}; it must be 0 ... 0 1")
        lengths = np.linalg.norm(affine[:-1, :-1], axis=0)
        if lengths.min() <= 0 or abs(np.linalg.det(affine[:-1, :-1] / np.maximum(lengths, 1e-300))) < 1e-6:
            raise InputError(f"voxel axes of lengths {lengths.tolist()} mm span no volume; check the header's spacing and directions")
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def from_parts(cls, shape, spacing=None, origin=None, direction=None) -> "Grid":
        """Grid from ITK's parts: spacing (dim,) mm, origin (dim,) mm, direction (dim, dim) columns are the voxel axes."""
        dim = len(shape)
        spacing = _numbers(1.0 if spacing is None else spacing, "a spacing", (), (1,), (dim,))
        direction = _numbers(np.eye(dim) if direction is None else direction, "a direction", (dim, dim), (dim * dim,))
        affine = np.eye(dim + 1)
        affine[:dim, :dim] = direction.reshape(dim, dim) * spacing
        affine[:dim, dim] = _numbers(np.zeros(dim) if origin is None else origin, "an origin", (dim,))
        return cls(tuple(shape), affine)

    @property
    def dim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> tuple[int, ...]:
        """Voxels along x, y, z: the reverse of ``shape``."""
        return self.shape[::-1]

    @property
    def matrix(self) -> np.ndarray:
        """(dim, dim) index -> world, mm per voxel."""
        return self.affine[:-1, :-1]

    @property
    def origin(self) -> np.ndarray:
        """(dim,) world position of the centre of voxel 0, mm."""
        return self.affine[:-1, -1]

    @cached_property
    def spacing(self) -> np.ndarray:
        """(dim,) voxel size along x, y, z, mm."""
        return np.linalg.norm(self.matrix, axis=0)

    @property
    def wide(self) -> np.ndarray:
        """(dim,) True along the axes of more than one voxel; along all where there is a single voxel."""
        many = np.array(self.size) > 1
        return many if many.any() else ~many

    @property
    def mean_spacing(self) -> float:
        """mm: the geometric mean of the spacing along the ``wide`` axes."""
        return float(np.exp(np.log(self.spacing[self.wide]).mean()))

    @property
    def direction(self) -> np.ndarray:
        """(dim, dim) unit vectors of the voxel axes in its columns."""
        return self.matrix / self.spacing

    @cached_property
    def inverse_affine(self) -> np.ndarray:
        """(dim + 1, dim + 1) world -> index."""
        return np.linalg.inv(self.affine)

    @property
    def extent(self) -> np.ndarray:
        """(dim,) edge lengths of the field of view, mm."""
        return self.spacing * np.array(self.size)

    @property
    def centre(self) -> np.ndarray:
        """(dim,) world position of the centre of the field of view, mm."""
        return self.index_to_world((np.array(self.size) - 1) / 2)

    @property
    def voxels(self) -> int:
        return int(np.prod(self.shape))

    def index_to_world(self, index) -> np.ndarray:
        """index (..., dim) voxels -> (..., dim) mm."""
        return np.asarray(index, float) @ self.matrix.T + self.origin

    def world_to_index(self, points) -> np.ndarray:
        """points (..., dim) mm -> (..., dim) voxels."""
        return np.asarray(points, float) @ self.inverse_affine[:-1, :-1].T + self.inverse_affine[:-1, -1]

    def points(self) -> np.ndarray:
        """(*shape, dim) world position of every voxel centre, mm."""
        axes = np.meshgrid(*[np.arange(n, dtype=float) for n in self.shape], indexing="ij")
        return self.index_to_world(np.stack(axes[::-1], -1))

    def corners(self) -> np.ndarray:
        """(2 ** dim, dim) corners of the field of view (outer faces of the border voxels), mm."""
        ends = np.meshgrid(*[(-0.5, n - 0.5) for n in self.size], indexing="ij")
        return self.index_to_world(np.stack([e.ravel() for e in ends], -1))

    def contains(self, points) -> np.ndarray:
        """points (..., dim) mm -> (...) True inside the field of view (up to the outer faces of the border voxels)."""
        index = self.world_to_index(points)
        return ((index >= -0.5 - 1e-9) & (index <= np.array(self.size) - 0.5 + 1e-9)).all(-1)

    def resample(self, spacing) -> "Grid":
        """The same field of view at about another spacing (scalar or (dim,), mm); a one-voxel axis keeps its size.

        Halves are rounded down with a tolerance, so that rounding errors of a rotated header do not change the size.
        """
        spacing = np.broadcast_to(_numbers(spacing, "a spacing", (), (1,), (self.dim,)), (self.dim,))
        if not (np.isfinite(spacing).all() and spacing.min() > 0):
            raise InputError(f"a spacing of {spacing.tolist()} mm was asked for; it must be positive")
        size = np.array(self.size)
        new = np.where(size == 1, 1, np.maximum(1, np.ceil(self.extent / spacing - 0.5 - 1e-6))).astype(int)
        return self._with_size(new)

    def _with_size(self, new) -> "Grid":
        scale = np.array(self.size) / new
        affine = self.affine.copy()
        affine[:-1, -1] = self.index_to_world((scale - 1) / 2)
        affine[:-1, :-1] = self.matrix * scale
        return Grid(tuple(int(n) for n in new[::-1]), affine)

    def crop(self, lower, upper) -> "Grid":
        """The part from index ``lower`` to before ``upper`` ((dim,) in x, y, z)."""
        lower, upper = np.asarray(lower, int), np.asarray(upper, int)
        if (lower >= upper).any():
            raise InputError(f"a crop from {lower.tolist()} to {upper.tolist()} keeps no voxel; upper must be above lower on every axis")
        affine = self.affine.copy()
        affine[:-1, -1] = self.index_to_world(lower)
        return Grid(tuple(int(n) for n in (upper - lower)[::-1]), affine)

    def pad(self, margin) -> "Grid":
        """The grid with ``margin`` voxels more at both ends (scalar or (dim,) in x, y, z)."""
        margin = np.broadcast_to(_numbers(margin, "a margin", (), (1,), (self.dim,)), (self.dim,)).astype(int)
        return self.crop(-margin, np.array(self.size) + margin)

    def flat(self) -> "Grid":
        """The ``wide`` axes, in a frame of their own."""
        return Grid.from_parts(tuple(np.array(self.shape)[self.wide[::-1]].tolist()), self.spacing[self.wide])

    def moved(self, matrix) -> "Grid":
        """The grid after the world map ``matrix`` (dim + 1, dim + 1): header surgery, no resampling."""
        return Grid(self.shape, np.asarray(matrix, float) @ self.affine)

    def same_as(self, other: "Grid", tolerance=1e-3) -> bool:
        """True where both have the same shape and no corner differs by more than ``tolerance`` voxels."""
        if self.shape != other.shape:
            return False
        return bool(np.abs(self.corners() - other.corners()).max() <= tolerance * self.spacing.min())

    def __eq__(self, other):
        return isinstance(other, Grid) and self.same_as(other)

    __hash__ = None

    def __repr__(self):
        size = " x ".join(str(n) for n in self.size)
        return f"Grid({size} voxels, {' x '.join(f'{s:.4g}' for s in self.spacing)} mm)"
