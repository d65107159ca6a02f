"""2D transforms between the planes of two slices as 3D ones, and back; see ``planes``."""

from __future__ import annotations

import numpy as np
import torch

from ..errors import InputError
from ..geometry import Grid
from ..planes import Plane
from .base import Composite, Identity, linear_part
from .dense import Displacement
from .linear import Affine


def lift(transform, fixed: Plane, moving: Plane):
    """A 2D ``transform`` (plane ``fixed`` -> plane ``moving``, mm) as a 3D one: M F^-1 after F (T x 1) F^-1, part by part.

    A dense part becomes a one-slice lattice; a scene repeats its vectors along the normal, the library and files end there.
    """
    between = Affine(torch.from_numpy(moving.frame @ np.linalg.inv(fixed.frame)))
    items = transform.items if isinstance(transform, Composite) else (transform,)
    return Composite.of(between, *(_lift_item(item, fixed) for item in items))


def _lift_item(item, plane: Plane):
    """F (item x 1) F^-1 of one 2D part."""
    if isinstance(item, Identity):
        return Identity(3)
    if isinstance(item, Affine):
        local = np.eye(4)
        local[:2, :2], local[:2, 3] = item.numpy()[:2, :2], item.numpy()[:2, 2]
        return Affine(torch.from_numpy(plane.frame @ local @ np.linalg.inv(plane.frame)))
    dense = getattr(item, "dense", item)
    if not isinstance(dense, Displacement):
        raise InputError(f"a {type(item).__name__} has no lattice; sample it on a grid (Displacement) first")
    dense = dense.with_zero_ring()
    axes = torch.as_tensor(plane.frame[:3, :2].copy(), dtype=dense.displacement.dtype)
    vectors = torch.einsum("ij,bj...->bi...", axes, dense.displacement.detach().cpu())
    return Displacement(vectors[:, :, None], plane.solid(dense.grid))


def flatten(transform, fixed: Plane, moving: Plane, grid: Grid):
    """A 3D ``transform`` between two planes as a 2D one: what it does to points of the fixed plane, their feet in the moving plane.

    A linear one stays linear. Any other is read on the 2D ``grid``; where its deformation keeps to the fixed plane, the linear map
    after it stays a factor of its own.
    """
    linear = linear_part(transform)
    if isinstance(transform, (Affine, Identity)):
        return _flat_linear(linear, fixed, moving)
    start = grid.points()
    world = torch.from_numpy(fixed.to_world(start).reshape(1, -1, 3))
    moved = transform(world)[0].detach().cpu().numpy()
    before = linear.inverse()(torch.from_numpy(moved)[None])[0].numpy()
    outside = np.abs((before - fixed.frame[:3, 3]) @ fixed.frame[:3, 2]).max()
    if outside < 1e-3:
        return Composite.of(_flat_linear(linear, fixed, moving), _read(fixed.to_plane(before), start, grid))
    return _read(moving.to_plane(moved), start, grid)


def _flat_linear(linear: Affine, fixed: Plane, moving: Plane) -> Affine:
    local = np.linalg.inv(moving.frame) @ linear.numpy() @ fixed.frame
    return Affine(torch.from_numpy(local[np.ix_([0, 1, 3], [0, 1, 3])]))


def _read(moved: np.ndarray, start: np.ndarray, grid: Grid) -> Displacement:
    """The displacement that brings the voxel centres ``start`` (*S, 2) of ``grid`` to ``moved`` (N, 2) mm."""
    shift = moved.reshape(start.shape) - start
    return Displacement(torch.from_numpy(np.moveaxis(shift, -1, 0)[None].astype(np.float32)), grid)
