"""Nodes of the scene as the plain values of ``exchange``: no torch. See the package for the conventions.

Arrays are views of the scene's memory, as long as their type allows it: what is kept or changed must be copied.
"""

from __future__ import annotations

import numpy as np

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.exchange import LabelMap, Lattice, Matrix, PointSet, Volume
from DeepRegistrationLib.geometry import Grid

from .common import FLIP, array_of, grid_of, lattice_of, matrix_values, placement_of, vectors_of, vtk_matrix


def volume_of(node) -> Volume:
    """Volume of a volume node in its own type, channels first; its linear parents are folded into the grid. InputError see ``grid_of``."""
    values = array_of(node)
    return Volume(np.moveaxis(values, -1, 0) if values.ndim == 4 else values, grid_of(node), node.GetName())


def labelmap_of(node, reference=None, segments: tuple[str, ...] = ()) -> LabelMap:
    """LabelMap of a label map node (or a scalar volume of whole numbers), or of a segmentation node on the voxels of ``reference``.

    Segment n becomes label n + 1, with its name; ``segments``: IDs to take, all where it is empty. The label map is made by Slicer's
    segmentation logic, also from closed surfaces; where segments overlap, the later one wins. InputError for a non-linear parent, an
    empty segmentation, values that are no labels, and a segmentation without ``reference`` (a volume node).
    """
    if node.IsA("vtkMRMLSegmentationNode"):
        if reference is None:
            raise InputError(f"segmentation '{node.GetName()}' was given without a volume; choose the volume that it belongs to")
        return _labelmap_of_segments(node, reference, tuple(segments))
    values = array_of(node)
    if values.ndim != 3 or (values.dtype.kind == "f" and not np.array_equal(values, np.round(values))):
        raise InputError(f"'{node.GetName()}' is no label map (it has channels or fractions); choose a label map or a segmentation")
    colors = node.GetDisplayNode().GetColorNode() if node.GetDisplayNode() else None
    whole = values if values.dtype.kind in "iu" else values.astype(np.int32)
    named = tuple((int(v), colors.GetColorName(int(v))) for v in np.unique(whole) if v != 0) if colors else ()
    return LabelMap(whole, grid_of(node), named, node.GetName())


def _labelmap_of_segments(node, reference, segments) -> LabelMap:
    import slicer
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    grid, segmentation, ids, values = grid_of(reference), node.GetSegmentation(), vtk.vtkStringArray(), vtk.vtkIntArray()
    for n, identifier in enumerate(segments or segmentation.GetSegmentIDs(), 1):
        if segmentation.GetSegment(identifier) is None:
            raise InputError(f"segmentation '{node.GetName()}' has no segment '{identifier}'; choose one of its segments")
        ids.InsertNextValue(identifier)
        values.InsertNextValue(n)
    _require_labelmap(node, ids)
    geometry, merged = slicer.vtkOrientedImageData(), slicer.vtkOrientedImageData()
    geometry.SetDimensions(grid.size)
    geometry.SetGeometryFromImageToWorldMatrix(vtk_matrix(np.linalg.inv(placement_of(node)) @ FLIP @ grid.affine))
    extent = slicer.vtkSegmentation.EXTENT_REFERENCE_GEOMETRY
    if not node.GenerateMergedLabelmapForAllSegments(merged, extent, geometry, ids, values):
        raise InputError(f"segmentation '{node.GetName()}' could not be turned into a label map on '{reference.GetName()}'; "
                         "check that both overlap")
    data = vtk_to_numpy(merged.GetPointData().GetScalars()).reshape(grid.shape)
    names = tuple((n + 1, segmentation.GetSegment(ids.GetValue(n)).GetName()) for n in range(ids.GetNumberOfValues()))
    return LabelMap(data.copy() if data.dtype.kind in "iu" else data.astype(np.int32), grid, names, node.GetName())


def _require_labelmap(node, ids):
    """Make sure that the segmentation has segments and a binary labelmap of them."""
    if ids.GetNumberOfValues() == 0:
        raise InputError(f"segmentation '{node.GetName()}' has no segment; draw or import at least one")
    if not node.GetSegmentation().ContainsRepresentation("Binary labelmap") and not node.CreateBinaryLabelmapRepresentation():
        raise InputError(f"segmentation '{node.GetName()}' has no voxels or closed surface to make a label map from; "
                         "check its representations")


def points_of(node) -> PointSet:
    """PointSet of the defined control points of a markups node, at their world positions; names are the points' labels.
    InputError where none is placed."""
    import slicer
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    defined = [n for n in range(node.GetNumberOfControlPoints())
               if node.GetNthControlPointPositionStatus(n) == slicer.vtkMRMLMarkupsNode.PositionDefined]
    if not defined:
        raise InputError(f"markups '{node.GetName()}' holds no placed point; place at least one")
    world = vtk.vtkPoints()
    world.SetDataTypeToDouble()
    node.GetControlPointPositionsWorld(world)
    positions = vtk_to_numpy(world.GetData()).astype(np.float64)[defined] * np.diag(FLIP)[:3]
    return PointSet(positions, tuple(node.GetNthControlPointLabel(n) for n in defined), node.GetName())


def parts_of(node, grid: Grid | None = None) -> tuple[Matrix | Lattice, ...]:
    """The map fixed -> moving (LPS mm) that a transform node and its parents apply to data under it: their from-parent transform, as
    parts that are applied last to first.

    Matrices and displacement grids are taken as they are, an inverted grid as an inverted part. Any other kind (B-spline, thin plate)
    is read on ``grid``; InputError where none is given. A grid with cubic interpolation is read at its nodes and interpolated linearly.
    """
    import slicer
    import vtk

    general, found = vtk.vtkGeneralTransform(), vtk.vtkCollection()
    node.GetTransformFromWorld(general)
    slicer.vtkMRMLTransformNode.FlattenGeneralTransform(found, general)
    parts = [_part(found.GetItemAsObject(n), node.GetName(), grid) for n in range(found.GetNumberOfItems())]
    return tuple(reversed(parts)) or (Matrix(np.eye(4)),)


def _part(transform, name: str, grid: Grid | None) -> Matrix | Lattice:
    """One vtk transform (RAS) as a part (LPS)."""
    if transform.IsA("vtkLinearTransform"):
        return Matrix(FLIP @ matrix_values(transform.GetMatrix()) @ FLIP)
    if transform.IsA("vtkOrientedGridTransform"):
        transform.Update()
        inverted = bool(transform.GetInverseFlag())
        plain = transform.GetInverse() if inverted else transform
        vectors = vectors_of(plain)
        if plain.GetDisplacementScale() != 1 or plain.GetDisplacementShift() != 0:
            vectors = vectors * plain.GetDisplacementScale() + plain.GetDisplacementShift()
        return Lattice(vectors * np.diag(FLIP)[:3].astype(vectors.dtype), lattice_of(plain), inverted)
    if grid is None:
        raise InputError(f"transform '{name}' holds a {transform.GetClassName()}, which has no lattice of its own; "
                         "choose a reference volume or convert it to a grid transform (Transforms module)")
    return Lattice(_sampled(transform, grid), grid)


def _sampled(transform, grid: Grid) -> np.ndarray:
    """(z, y, x, 3) float32 LPS: the displacement of a vtk transform (RAS) at the voxels of ``grid``."""
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

    start = np.ascontiguousarray(grid.points().reshape(-1, 3) * np.diag(FLIP)[:3])
    before, after = vtk.vtkPoints(), vtk.vtkPoints()
    after.SetDataTypeToDouble()
    before.SetData(numpy_to_vtk(start))
    transform.TransformPoints(before, after)
    moved = (vtk_to_numpy(after.GetData()) - start) * np.diag(FLIP)[:3]
    return moved.reshape(*grid.shape, 3).astype(np.float32)
