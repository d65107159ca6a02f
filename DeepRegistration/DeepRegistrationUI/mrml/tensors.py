"""Nodes of the scene as the library's Image, Labels, Points and Transform, and back: what scripts and the demo use; needs torch."""

from __future__ import annotations

import numpy as np

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.exchange import LabelMap, PointSet, Volume
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.planes import Plane

from . import read, write
from .common import grid_of


def plane_of(node, like: Plane | None = None) -> Plane | None:
    """The plane of a one-slice volume node, None for a true volume. ``like`` see ``Plane.of``."""
    grid = grid_of(node)
    return Plane.of(grid, like) if 1 in grid.size else None


def image_from_volume(node, plane: Plane | None = None):
    """Image (1, C, *S) float32 of a volume node; a one-slice volume becomes 2D in ``plane`` (its own where None is given)."""
    from DeepRegistrationLib.commands.jobs_pair import image_of

    return image_of(read.volume_of(node), plane or plane_of(node))


def labels_from_volume(node, plane: Plane | None = None):
    """Labels (1, 1, *S) int32 of a label map node or of a scalar volume of whole numbers."""
    from DeepRegistrationLib.commands.jobs_pair import labels_of

    return labels_of(read.labelmap_of(node), plane or plane_of(node))


def labels_from_segmentation(node, reference, plane: Plane | None = None, segments: tuple[str, ...] = ()):
    """Labels on the voxels of the volume node ``reference``, see ``read.labelmap_of``."""
    from DeepRegistrationLib.commands.jobs_pair import labels_of

    return labels_of(read.labelmap_of(node, reference, segments), plane or plane_of(reference))


def points_from_markups(node, plane: Plane | None = None):
    """Points (1, N, 3) LPS mm, float64, see ``read.points_of``; with ``plane`` their feet (1, N, 2) in it."""
    from DeepRegistrationLib.commands.jobs_pair import points_of

    return points_of(read.points_of(node), plane)


def transform_from_node(node, grid: Grid | None = None):
    """The map fixed -> moving (LPS mm) of a transform node, see ``read.parts_of``; inverted grids are inverted numerically."""
    from DeepRegistrationLib.transforms.parts import from_parts

    return from_parts(read.parts_of(node, grid))


def volume_from_image(scene, image, name: str, plane: Plane | None = None):
    """A new scalar volume node (a label map node for Labels) with display; vectors of channels become a vector volume.

    A 2D image needs ``plane`` and becomes a one-slice volume.
    """
    return write.volume_node(scene, value_of(image, plane, name), name)


def value_of(image, plane: Plane | None, name: str) -> Volume | LabelMap:
    """The Volume or LabelMap of an Image or Labels; label maps of small numbers take 16 bits a voxel."""
    from DeepRegistrationLib.image import Labels

    grid, values = _solid(image.grid, plane, name), image.data[0].detach().cpu().numpy()
    values = values.reshape(-1, *grid.shape)
    if isinstance(image, Labels):
        return LabelMap(values[0].astype(np.int16 if values.max(initial=0) < 32768 else np.int32), grid, image.names, name)
    return Volume(values[0] if len(values) == 1 else values, grid, name)


def _solid(grid: Grid, plane: Plane | None, name: str) -> Grid:
    if grid.dim == 3:
        return grid
    if plane is None:
        raise InputError(f"'{name}' is 2D and its plane in the scene is not known; give the plane of the slice it was made from")
    return plane.solid(grid)


def segmentation_from_labels(scene, labels, name: str, plane: Plane | None = None):
    """A new segmentation node: one segment a label, named by ``labels.names``."""
    return write.segmentation_node(scene, value_of(labels, plane, name), name)


def markups_from_points(scene, points, name: str, plane: Plane | None = None, kind: str = "Fiducial"):
    """A new markups node (kind 'Fiducial' or 'Curve') with the points of the first batch entry, in LPS mm or in ``plane``."""
    positions = points.positions[0].detach().cpu().double().numpy()
    if points.dim == 2:
        if plane is None:
            raise InputError(f"'{name}' is 2D and its plane in the scene is not known; give the plane of the slice it was made from")
        positions = plane.to_world(positions)
    return write.points_node(scene, PointSet(positions, points.names, name), name, kind)


def node_from_transform(scene, transform, name: str, fixed=None, moving=None):
    """A new transform node whose from-parent transform is ``transform`` (fixed -> moving, LPS, 3D), with exact parts: matrices, and grids
    on their own lattices. InputError for a kind that has no lattice; the volume nodes are noted as what was registered."""
    from DeepRegistrationLib.transforms.parts import to_parts

    return write.transform_node(scene, to_parts(transform), name, fixed, moving)
