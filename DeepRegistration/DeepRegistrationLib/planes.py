"""One-slice volumes as 2D images: the frame of a slice's plane, and the way back from 2D transforms to space.

A point x of the scene is x = F (u, v, w): (u, v) mm in the plane, w mm along its normal, F a rotation and a shift. A 2D
transform T from a fixed plane F to a moving plane M is lifted to x -> M (T(u, v), w): the motion along the normal is left
as it is (``transforms.planar``). With T = A o (id + d) that is the linear map M (A x 1) F^-1 after the displacement F (d, 0) of space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import InputError
from .geometry import Grid


@dataclass(frozen=True, eq=False)
class Plane:
    """The plane of a one-slice volume; ``frame`` (4, 4) maps (u, v, w) mm, w along the normal, to LPS mm (a rotation and a shift).

    The frame depends on the plane only, not on the volume's voxels, so two slices of one plane share it. ``thickness`` mm.
    """

    frame: np.ndarray
    thickness: float

    @classmethod
    def of(cls, grid: Grid, like: "Plane | None" = None) -> "Plane":
        """The plane of a 3D ``grid`` with one axis of one voxel; its frame is the one of ``like`` (or of the nearest pair of
        world axes) turned by the smallest rotation that brings the normals together."""
        axis = _single_axis(grid)
        normal = np.cross(*np.delete(grid.direction, axis, 1).T)
        normal /= np.linalg.norm(normal)
        start = np.roll(np.eye(3), -int(np.argmax(np.abs(normal))) - 1, axis=1) if like is None else like.frame[:3, :3]
        if normal @ start[:, 2] < 0:
            normal = -normal
        frame = np.eye(4)
        frame[:3, :3] = _rotation_between(start[:, 2], normal) @ start
        frame[:3, 3] = normal * (normal @ grid.origin)
        return cls(frame, float(abs(normal @ grid.matrix[:, axis])))

    def flat(self, grid: Grid) -> Grid:
        """The 2D grid, in (u, v) mm, of a one-slice 3D ``grid`` that lies in this plane."""
        axis = _single_axis(grid)
        keep = [a for a in range(3) if a != axis]
        local = np.linalg.inv(self.frame) @ grid.affine
        affine = np.eye(3)
        affine[:2, :2], affine[:2, 2] = local[:2, keep], local[:2, 3]
        return Grid(tuple(grid.size[a] for a in reversed(keep)), affine)

    def solid(self, grid: Grid) -> Grid:
        """The one-slice 3D grid, in LPS mm, of a 2D ``grid`` in (u, v) mm."""
        local = np.diag([1.0, 1.0, self.thickness, 1.0])
        local[:2, :2], local[:2, 3] = grid.matrix, grid.origin
        return Grid((1, *grid.shape), self.frame @ local)

    def to_plane(self, points) -> np.ndarray:
        """LPS points (..., 3) mm -> (..., 2) mm of their feet in the plane."""
        return ((np.asarray(points, float) - self.frame[:3, 3]) @ self.frame[:3, :3])[..., :2]

    def to_world(self, points) -> np.ndarray:
        """(..., 2) mm in the plane -> LPS points (..., 3) mm."""
        return np.asarray(points, float) @ self.frame[:3, :2].T + self.frame[:3, 3]


def _single_axis(grid: Grid) -> int:
    """The one voxel axis (0 x, 1 y, 2 z) of ``grid`` that has a single voxel."""
    single = [axis for axis, n in enumerate(grid.size) if n == 1]
    if len(single) != 1:
        raise InputError(f"a volume of {' x '.join(map(str, grid.size))} voxels is no slice; exactly one axis of one voxel is needed")
    return single[0]


def _rotation_between(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(3, 3) smallest rotation of the unit vector ``start`` onto ``end``, which lie within 90 degrees (Rodrigues)."""
    x, y, z = np.cross(start, end)
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + skew + skew @ skew / (1 + start @ end)


def planes_of(fixed: Grid, moving: Grid, names: tuple[str, str] = ("the fixed image", "the moving image")) -> tuple[Plane | None, Plane | None]:
    """The planes of two 3D grids, (None, None) for true volumes. The moving frame is the fixed one turned as little as possible, so
    the headers' relation is kept. InputError, with ``names``, for a slice against a volume, and for a line of voxels."""
    for grid, name in zip((fixed, moving), names):
        if grid.size.count(1) > 1:
            raise InputError(f"{name} has {' x '.join(map(str, grid.size))} voxels, which make neither a volume nor a slice; choose another image")
    fixed_plane = Plane.of(fixed) if 1 in fixed.size else None
    moving_plane = Plane.of(moving, fixed_plane) if 1 in moving.size else None
    if (fixed_plane is None) != (moving_plane is None):
        one, other = names if fixed_plane else names[::-1]
        raise InputError(f"{one} is a single slice and {other} is a volume; choose two slices or two volumes")
    return fixed_plane, moving_plane
