"""Nodes of the scene as the plain values of ``exchange``: no torch. See the package for the conventions.

Arrays are views of the scene's memory, as long as their type allows it: what is kept or changed must be copied. What takes long is a generator
(``labelmap_steps``, ``parts_steps``), so that the interface stays alive; ``labelmap_of`` and ``parts_of`` run it to its end.
"""

from __future__ import annotations

import numpy as np

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.exchange import LabelMap, Lattice, Matrix, PointSet, Volume, blocks, finish, pairing
from DeepRegistrationLib.geometry import Grid

from .common import FLIP, array_of, grid_of, is_carried, lattice_of, matrix_values, placement_of, rows_of_a_step, vectors_of, vtk_matrix

SEGMENT_VOXELS = 4e6
"""Voxels, counted once for each segment, that one step makes a label map of: about 10 ms, up to 70 on a busy machine."""
BINARY = "Binary labelmap"
"""Slicer's name of the representation of segments as voxels."""
POINTS = 40_000
"""Points that one step moves by a transform without a lattice."""


def volume_of(node, carriers=()) -> Volume:
    """Volume of a volume node in its own type, channels first; its placement is folded into the grid. InputError see ``grid_of``."""
    values = array_of(node)
    return Volume(np.moveaxis(values, -1, 0) if values.ndim == 4 else values, grid_of(node, carriers), node.GetName())


def is_color(node) -> bool:
    """Does a volume node hold red, green and blue (and opacity) of a picture, rather than channels of measured values?"""
    data = node.GetImageData()
    return data is not None and data.GetNumberOfScalarComponents() in (3, 4) and data.GetScalarTypeAsString() == "unsigned char"


def labelmap_of(node, reference=None, segments: tuple[str, ...] = ()) -> LabelMap:
    """LabelMap of a label map node (or a scalar volume of whole numbers), or of a segmentation node on the voxels of ``reference``.

    Segment n becomes label n + 1, with its name; ``segments``: IDs to take, all where it is empty. The label map is made by Slicer's
    segmentation logic, also from closed surfaces; where segments overlap, the later one wins. InputError for a non-linear parent, an
    empty segmentation, values that are no labels, and a segmentation without ``reference`` (a volume node).
    """
    return finish(labelmap_steps(node, reference, segments))


def labelmap_steps(node, reference=None, segments: tuple[str, ...] = (), carriers=()):
    """``labelmap_of`` as a generator; node and reference are read without ``carriers``, see ``placement_of``."""
    if node.IsA("vtkMRMLSegmentationNode"):
        if reference is None:
            raise InputError(f"segmentation '{node.GetName()}' was given without a volume; choose the volume that it belongs to")
        return (yield from _labelmap_of_segments(node, reference, tuple(segments), carriers))
    values, found = array_of(node), set()
    if values.ndim != 3:
        raise no_labels(node)
    for part in blocks(values):
        if values.dtype.kind == "f" and not np.array_equal(part, np.round(part)):
            raise no_labels(node)
        found.update(np.unique(part).tolist())
        yield
    colors = node.GetDisplayNode().GetColorNode() if node.GetDisplayNode() else None
    whole = values if values.dtype.kind in "iu" else values.astype(np.int32)
    named = tuple((int(v), colors.GetColorName(int(v))) for v in sorted(found) if v != 0) if colors else ()
    return LabelMap(whole, grid_of(node, carriers), named, node.GetName())


def mask_steps(node, reference, segments=(), carriers=()):
    """The LabelMap of what counts by a mask: the ``segments`` of a segmentation node, or where a volume of any numbers is above 0, as ``io.read_mask``
    (NaN is not). A generator; InputError as ``labelmap_steps``, and for a volume of several channels."""
    if node.IsA("vtkMRMLSegmentationNode"):
        return (yield from labelmap_steps(node, reference, segments, carriers))
    values = array_of(node)
    if values.ndim != 3:
        raise InputError(f"'{node.GetName()}' has {values.shape[3]} values per voxel, so it is no mask; choose a segmentation or a volume of one value")
    counted = np.zeros(values.shape, np.uint8)
    for first in range(0, len(values), rows := rows_of_a_step(values)):
        counted[first : first + rows] = values[first : first + rows] > 0
        yield
    return LabelMap(counted, grid_of(node, carriers), name=node.GetName())


def no_labels(node) -> InputError:
    """The error for a volume node that holds no labels."""
    return InputError(f"'{node.GetName()}' is no label map (it has channels or fractions); choose a label map or a segmentation")


def _labelmap_of_segments(node, reference, segments, carriers):
    """The segments on the voxels of the volume node ``reference``, a few of them or a part of one a step; a generator."""
    grid, segmentation = grid_of(reference, carriers), node.GetSegmentation()
    chosen = list(segments or segmentation.GetSegmentIDs())
    for identifier in chosen:
        if segmentation.GetSegment(identifier) is None:
            raise InputError(f"segmentation '{node.GetName()}' has no segment '{identifier}'; choose one of its segments")
    _require_labelmap(node, chosen)
    to_world = np.linalg.inv(placement_of(node, carriers)) @ FLIP @ grid.affine
    count, rows = max(1, int(SEGMENT_VOXELS / grid.voxels)), max(1, int(SEGMENT_VOXELS * grid.shape[0] / grid.voxels))
    values = np.zeros(grid.shape, np.int16)
    for first in range(0, len(chosen), count):
        for start in range(0, grid.shape[0], rows):
            slab = values[start : start + rows]
            part = _merged(node, reference, (*grid.size[:2], start, len(slab)), to_world, chosen[first : first + count], first + 1)
            inside = part > 0
            slab[inside] = part[inside]
            yield
    names = tuple((n, segmentation.GetSegment(identifier).GetName()) for n, identifier in enumerate(chosen, 1))
    return LabelMap(values, grid, names, node.GetName())


def overlap_steps(node):
    """What it means for the label map of a segmentation node that its segments overlap; '' where they do not, for other nodes and None. A generator.

    Segments that overlap lie in several layers, which Slicer keeps on the same lattice; layers on lattices of their own are not looked at.
    """
    if node is None or node.GetScene() is None or not node.IsA("vtkMRMLSegmentationNode"):
        return ""
    images = [node.GetSegmentation().GetLayerDataObject(n, BINARY) for n in range(node.GetSegmentation().GetNumberOfLayers(BINARY))]
    images = [image for image in images if image is not None and image.GetNumberOfPoints() > 0 and image.GetPointData().GetScalars() is not None]
    if len(images) < 2 or any(_lattice_values(image) != _lattice_values(images[0]) for image in images):
        return ""
    extents = np.array([image.GetExtent() for image in images]).reshape(-1, 3, 2)
    low, high = extents[..., 0].min(0), extents[..., 1].max(0)
    covered = np.zeros((high - low + 1)[::-1], np.uint8)
    for image, extent in zip(images, extents - low[:, None]):
        part, values = covered[tuple(slice(first, last + 1) for first, last in extent[::-1])], _scalars_of(image)
        for first in range(0, len(values), rows := rows_of_a_step(values)):
            part[first : first + rows] += values[first : first + rows] > 0
            yield
    count = 0
    for part in blocks(covered):
        count += int((part > 1).sum())
        yield
    return (f"segments of '{node.GetName()}' overlap in {count} voxels, which count for the later segment alone; give overlapping segments one by one "
            "where that matters") if count else ""


def _lattice_values(image) -> list[float]:
    """Spacing, origin and directions of a vtkOrientedImageData."""
    import vtk

    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    return matrix_values(matrix).round(6).ravel().tolist()


def _scalars_of(image) -> np.ndarray:
    """(z, y, x): a view of the voxels of a vtkImageData."""
    from vtk.util.numpy_support import vtk_to_numpy

    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])


def _merged(node, reference, slab, to_world: np.ndarray, identifiers, first: int) -> np.ndarray:
    """(z, y, x): a label map of some segments in Slicer's memory, on a ``slab`` (columns, rows, first slice, slices) of a lattice whose index ->
    world matrix is ``to_world``; the segments are numbered from ``first``."""
    import slicer
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    ids, values, merged, geometry = vtk.vtkStringArray(), vtk.vtkIntArray(), slicer.vtkOrientedImageData(), slicer.vtkOrientedImageData()
    columns, rows, start, count = slab
    geometry.SetExtent(0, columns - 1, 0, rows - 1, start, start + count - 1)
    geometry.SetGeometryFromImageToWorldMatrix(vtk_matrix(to_world))
    for n, identifier in enumerate(identifiers, first):
        ids.InsertNextValue(identifier)
        values.InsertNextValue(n)
    extent = slicer.vtkSegmentation.EXTENT_REFERENCE_GEOMETRY
    if not node.GenerateMergedLabelmapForAllSegments(merged, extent, geometry, ids, values):
        raise InputError(f"segmentation '{node.GetName()}' could not be turned into a label map on '{reference.GetName()}'; "
                         "check that both overlap")
    return vtk_to_numpy(merged.GetPointData().GetScalars()).reshape(count, rows, columns)


def _require_labelmap(node, identifiers):
    """Make sure that the segmentation has segments and a binary labelmap of them."""
    if not identifiers:
        raise InputError(f"segmentation '{node.GetName()}' has no segment; draw or import at least one")
    if not node.GetSegmentation().ContainsRepresentation("Binary labelmap") and not node.CreateBinaryLabelmapRepresentation():
        raise InputError(f"segmentation '{node.GetName()}' has no voxels or closed surface to make a label map from; "
                         "check its representations")


def names_of(node) -> tuple[str, ...]:
    """The names of the defined control points of a markups node, those of ``points_of``."""
    return tuple(node.GetNthControlPointLabel(n) for n in _defined(node))


def _defined(node) -> list[int]:
    import slicer

    return [n for n in range(node.GetNumberOfControlPoints())
            if node.GetNthControlPointPositionStatus(n) == slicer.vtkMRMLMarkupsNode.PositionDefined]


def points_of(node, carriers=()) -> PointSet:
    """PointSet of the defined control points of a markups node, at their world positions without ``carriers`` (see ``placement_of``); names are
    the points' labels. InputError where none is placed."""
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    defined = _defined(node)
    if not defined:
        raise InputError(f"markups '{node.GetName()}' holds no placed point; place at least one")
    if is_carried(node, carriers):
        placement = placement_of(node, carriers)
        positions = np.array([node.GetNthControlPointPosition(n) for n in defined]) @ placement[:3, :3].T + placement[:3, 3]
    else:
        world = vtk.vtkPoints()
        world.SetDataTypeToDouble()
        node.GetControlPointPositionsWorld(world)
        positions = vtk_to_numpy(world.GetData()).astype(np.float64)[defined]
    positions = positions * np.diag(FLIP)[:3]
    return PointSet(positions, names_of(node), node.GetName())


def paired_points(fixed, moving, carriers=((), ())) -> tuple[PointSet, PointSet]:
    """The points of two markups nodes, row by row those that belong together (see ``exchange.pairing``); ``carriers`` of each as in ``points_of``."""
    one, two = (points_of(node, above) for node, above in zip((fixed, moving), carriers))
    rows, _remark = pairing(one.names, two.names)
    return one, two if rows is None else two.taken(rows)


def pairing_remark(fixed_points, moving_points) -> str:
    """How the points of two markups nodes (or None) are paired, where that is not row by row as their names have it; '' elsewhere and where one
    was deleted."""
    if any(node is None or node.GetScene() is None for node in (fixed_points, moving_points)):
        return ""
    return pairing(names_of(fixed_points), names_of(moving_points))[1]


def parts_of(node, grid: Grid | None = None) -> tuple[Matrix | Lattice, ...]:
    """The map fixed -> moving (LPS mm) that a transform node and its parents apply to data under it: their from-parent transform, as
    parts that are applied last to first.

    Matrices and displacement grids are taken as they are, an inverted grid as an inverted part. Any other kind (B-spline, thin plate)
    is read on ``grid``; InputError where none is given. A grid with cubic interpolation is read at its nodes and interpolated linearly.
    """
    return finish(parts_steps(node, grid))


def parts_steps(node, grid: Grid | None = None):
    """``parts_of`` as a generator."""
    import slicer
    import vtk

    general, found, parts = vtk.vtkGeneralTransform(), vtk.vtkCollection(), []
    node.GetTransformFromWorld(general)
    slicer.vtkMRMLTransformNode.FlattenGeneralTransform(found, general)
    for n in range(found.GetNumberOfItems()):
        parts.append((yield from _part_steps(found.GetItemAsObject(n), node.GetName(), grid)))
    return tuple(reversed(parts)) or (Matrix(np.eye(4)),)


def _part_steps(transform, name: str, grid: Grid | None):
    """One vtk transform (RAS) as a part (LPS); a generator."""
    if transform.IsA("vtkLinearTransform"):
        return Matrix(FLIP @ matrix_values(transform.GetMatrix()) @ FLIP)
    if transform.IsA("vtkOrientedGridTransform"):
        transform.Update()
        inverted = bool(transform.GetInverseFlag())
        plain = transform.GetInverse() if inverted else transform
        vectors = yield from _flipped(vectors_of(plain), plain.GetDisplacementScale(), plain.GetDisplacementShift())
        return Lattice(vectors, lattice_of(plain), inverted)
    if grid is None:
        raise InputError(f"transform '{name}' holds a {transform.GetClassName()}, which has no lattice of its own; "
                         "choose a reference volume or convert it to a grid transform (Transforms module)")
    return Lattice((yield from _sampled(transform, grid)), grid)


def _flipped(vectors: np.ndarray, scale: float, shift: float):
    """(z, y, x, 3): RAS vectors times ``scale`` plus ``shift``, as LPS; a generator."""
    factor, term = (np.diag(FLIP)[:3] * value for value in (scale, shift))
    made = np.empty_like(vectors)
    for first in range(0, len(vectors), rows := rows_of_a_step(vectors)):
        made[first : first + rows] = vectors[first : first + rows] * factor.astype(vectors.dtype) + term.astype(vectors.dtype)
        yield
    return made


def _sampled(transform, grid: Grid):
    """(z, y, x, 3) float32 LPS: the displacement of a vtk transform (RAS) at the voxels of ``grid``; a generator."""
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

    flip = np.diag(FLIP)[:3]
    points, moved = np.ascontiguousarray(grid.points().reshape(-1, 3) * flip), np.empty((grid.voxels, 3), np.float32)
    for first in range(0, len(points), POINTS):
        start = points[first : first + POINTS]
        before, after = vtk.vtkPoints(), vtk.vtkPoints()
        after.SetDataTypeToDouble()
        before.SetData(numpy_to_vtk(start))
        transform.TransformPoints(before, after)
        moved[first : first + POINTS] = (vtk_to_numpy(after.GetData()) - start) * flip
        yield
    return moved.reshape(*grid.shape, 3)
