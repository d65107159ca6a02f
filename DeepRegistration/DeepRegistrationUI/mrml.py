"""Nodes of a 3D Slicer scene (MRML) <-> Image, Labels, Points and Transform of the library.

The scene is RAS millimetres and stores an image as (k, j, i); the library is LPS millimetres (see geometry). Besides the
library's ``io`` this is the only place with the two sign flips.

* A linear parent transform of an input volume or segmentation is folded into the grid's affine; a non-linear one is
  refused, because the voxels then form no regular grid. Markups are read at their world positions, whatever their parents.
* A transform node's *from-parent* transform is the library's map of fixed -> moving points: moving data are put under the
  node of the linear part, and that node under the node of the deformation, so that a world point x goes to A(x + u(x)).
* VTK repeats the border vector of a displacement grid outside its lattice, ITK and the library return identity there. A
  written grid gets a ring of zeros, so that all three read the same map.
* A written grid is interpolated linearly, as the library does; a grid that Slicer reads from a file is interpolated by cubics,
  which differs between the nodes of the lattice only.
* A one-slice volume becomes a 2D image in a coordinate frame of its plane (``Plane``); a 2D transform is lifted back with
  the motion out of the plane left as it is.

``slicer``, ``vtk`` and ``torch`` are imported inside the functions: importing this file costs nothing.
"""

from __future__ import annotations

import numpy as np

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.geometry import Grid

from .planes import Plane

FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
"""RAS <-> LPS; its own inverse."""


def _numpy(matrix) -> np.ndarray:
    """vtkMatrix4x4 -> (4, 4) float64."""
    return np.array([matrix.GetElement(r, c) for r in range(4) for c in range(4)]).reshape(4, 4)


def _vtk_matrix(array):
    """(4, 4) -> vtkMatrix4x4."""
    import vtk

    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(np.asarray(array, float).ravel())
    return matrix


def _to_world(node) -> np.ndarray:
    """(4, 4) RAS: the linear parent transforms of ``node``; InputError where one of them is not linear."""
    import vtk

    parent, matrix = node.GetParentTransformNode(), vtk.vtkMatrix4x4()
    if parent is None:
        return np.eye(4)
    if not parent.IsTransformToWorldLinear():
        raise InputError(f"'{node.GetName()}' is under the non-linear transform '{parent.GetName()}'; harden the transform on it "
                         "(Transforms module) or take it out of the transform, then register")
    parent.GetMatrixTransformToWorld(matrix)
    return _numpy(matrix)


def grid_of(node) -> Grid:
    """The 3D grid of a volume node in LPS, its linear parent transforms folded in. InputError where it holds no voxels."""
    import vtk

    data = node.GetImageData()
    if data is None or min(data.GetDimensions()) < 1 or data.GetPointData().GetScalars() is None:
        raise InputError(f"volume '{node.GetName()}' holds no voxels; load an image into it or choose another volume")
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return Grid(data.GetDimensions()[::-1], FLIP @ _to_world(node) @ _numpy(matrix))


def plane_of(node, like: Plane | None = None) -> Plane | None:
    """The plane of a one-slice volume node, None for a true volume. ``like`` see ``Plane.of``."""
    grid = grid_of(node)
    return Plane.of(grid, like) if 1 in grid.size else None


def array_of(node) -> np.ndarray:
    """The voxels (k, j, i) or (k, j, i, C) of a volume node: a view, not a copy."""
    from vtk.util.numpy_support import vtk_to_numpy

    shape = grid_of(node).shape
    values = vtk_to_numpy(node.GetImageData().GetPointData().GetScalars())
    return values.reshape(shape if values.ndim == 1 else (*shape, values.shape[-1]))


def image_from_volume(node, plane: Plane | None = None):
    """Image (1, C, *S) float32 of a volume node; a one-slice volume becomes 2D in ``plane`` (its own where None is given)."""
    import torch

    from DeepRegistrationLib.image import Image

    values, grid = array_of(node), grid_of(node)
    values = np.moveaxis(values, -1, 0) if values.ndim == 4 else values[None]
    data = torch.from_numpy(values.astype(np.float32, order="C"))[None]
    if 1 in grid.size:
        grid = (plane or Plane.of(grid)).flat(grid)
    return Image(data.reshape(1, len(values), *grid.shape), grid, name=node.GetName())


def labels_from_volume(node, plane: Plane | None = None):
    """Labels (1, 1, *S) int32 of a label map node or of a scalar volume of whole numbers."""
    import torch

    from DeepRegistrationLib.image import Labels

    values, grid = array_of(node), grid_of(node)
    if values.ndim != 3 or (values.dtype.kind == "f" and not np.array_equal(values, np.round(values))):
        raise InputError(f"'{node.GetName()}' is no label map (it has channels or fractions); choose a label map or a segmentation")
    colors = node.GetDisplayNode().GetColorNode() if node.GetDisplayNode() else None
    if 1 in grid.size:
        grid = (plane or Plane.of(grid)).flat(grid)
    data = torch.from_numpy(values.astype(np.int32, order="C")).reshape(1, 1, *grid.shape)
    named = tuple((int(v), colors.GetColorName(int(v))) for v in np.unique(values) if v != 0) if colors else ()
    return Labels(data, grid, name=node.GetName(), names=named)


def labels_from_segmentation(node, reference, plane: Plane | None = None, segments: tuple[str, ...] = ()):
    """Labels on the voxels of the volume node ``reference``: segment n of ``node`` becomes label n + 1, with its name.

    ``segments`` IDs to take, all where it is empty. The labelmap is made by Slicer's segmentation logic, also from closed
    surfaces; where segments overlap, the later one wins. InputError for a non-linear parent or an empty segmentation.
    """
    import slicer
    import torch
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    from DeepRegistrationLib.image import Labels

    grid, segmentation, ids = grid_of(reference), node.GetSegmentation(), vtk.vtkStringArray()
    for identifier in segments or segmentation.GetSegmentIDs():
        ids.InsertNextValue(identifier)
    _require_labelmap(node, ids)
    geometry, merged = slicer.vtkOrientedImageData(), slicer.vtkOrientedImageData()
    geometry.SetDimensions(grid.size)
    geometry.SetGeometryFromImageToWorldMatrix(_vtk_matrix(np.linalg.inv(_to_world(node)) @ FLIP @ grid.affine))
    extent = slicer.vtkSegmentation.EXTENT_REFERENCE_GEOMETRY
    values = vtk.vtkIntArray()
    for n in range(ids.GetNumberOfValues()):
        values.InsertNextValue(n + 1)
    if not node.GenerateMergedLabelmapForAllSegments(merged, extent, geometry, ids, values):
        raise InputError(f"segmentation '{node.GetName()}' could not be turned into a label map on '{reference.GetName()}'; "
                         "check that both overlap")
    data = vtk_to_numpy(merged.GetPointData().GetScalars()).astype(np.int32).reshape(grid.shape)
    if 1 in grid.size:
        grid = (plane or Plane.of(grid)).flat(grid)
    named = tuple((n + 1, segmentation.GetSegment(ids.GetValue(n)).GetName()) for n in range(ids.GetNumberOfValues()))
    return Labels(torch.from_numpy(data).reshape(1, 1, *grid.shape), grid, name=node.GetName(), names=named)


def _require_labelmap(node, ids):
    """Make sure that the segmentation has segments and a binary labelmap of them."""
    if ids.GetNumberOfValues() == 0:
        raise InputError(f"segmentation '{node.GetName()}' has no segment; draw or import at least one")
    if not node.GetSegmentation().ContainsRepresentation("Binary labelmap") and not node.CreateBinaryLabelmapRepresentation():
        raise InputError(f"segmentation '{node.GetName()}' has no voxels or closed surface to make a label map from; "
                         "check its representations")


def points_from_markups(node, plane: Plane | None = None):
    """Points (1, N, 3) LPS mm, float64, of the defined control points of a markups node, at their world positions; with
    ``plane`` their feet (1, N, 2) in it. Names are the control points' labels."""
    import slicer
    import torch
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    from DeepRegistrationLib.points import Points

    defined = [n for n in range(node.GetNumberOfControlPoints())
               if node.GetNthControlPointPositionStatus(n) == slicer.vtkMRMLMarkupsNode.PositionDefined]
    if not defined:
        raise InputError(f"markups '{node.GetName()}' holds no placed point; place at least one")
    world = vtk.vtkPoints()
    world.SetDataTypeToDouble()
    node.GetControlPointPositionsWorld(world)
    positions = vtk_to_numpy(world.GetData()).astype(np.float64)[defined] * np.diag(FLIP)[:3]
    if plane is not None:
        positions = plane.to_plane(positions)
    return Points(torch.from_numpy(positions)[None], names=tuple(node.GetNthControlPointLabel(n) for n in defined))


def transform_from_node(node, grid: Grid | None = None):
    """The map fixed -> moving (LPS mm) that a transform node and its parents apply to data under it: their from-parent transform.

    Matrices become Affine, displacement grids Displacement (an inverted one is inverted numerically), a composite their
    composition. Any other kind (B-spline, thin plate) is read on ``grid``; InputError where none is given. A grid with cubic
    interpolation is read at its nodes and interpolated linearly.
    """
    import slicer
    import vtk

    from DeepRegistrationLib.transforms import Composite, Identity

    general, parts = vtk.vtkGeneralTransform(), vtk.vtkCollection()
    node.GetTransformFromWorld(general)
    slicer.vtkMRMLTransformNode.FlattenGeneralTransform(parts, general)
    items = [_transform_from_vtk(parts.GetItemAsObject(n), node.GetName(), grid) for n in range(parts.GetNumberOfItems())]
    return Composite.of(Identity(3), *reversed(items))


def _transform_from_vtk(transform, name, grid):
    """One vtk transform (RAS) as a library transform (LPS)."""
    import torch

    from DeepRegistrationLib.transforms import Affine, Displacement

    if transform.IsA("vtkLinearTransform"):
        return Affine(torch.from_numpy(FLIP @ _numpy(transform.GetMatrix()) @ FLIP))
    if transform.IsA("vtkOrientedGridTransform"):
        transform.Update()
        plain = transform if not transform.GetInverseFlag() else transform.GetInverse()
        found = Displacement(_displacement_of(plain), lattice_of(plain))
        return found.inverse() if transform.GetInverseFlag() else found
    if grid is None:
        raise InputError(f"transform '{name}' holds a {transform.GetClassName()}, which has no lattice of its own; "
                         "choose a reference volume or convert it to a grid transform (Transforms module)")
    return Displacement(torch.from_numpy(_sampled(transform, grid)), grid)


def _sampled(transform, grid: Grid) -> np.ndarray:
    """(1, 3, *S) float32 LPS: the displacement of a vtk transform (RAS) at the voxels of ``grid``."""
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

    start = np.ascontiguousarray(grid.points().reshape(-1, 3) * np.diag(FLIP)[:3])
    before, after = vtk.vtkPoints(), vtk.vtkPoints()
    after.SetDataTypeToDouble()
    before.SetData(numpy_to_vtk(start))
    transform.TransformPoints(before, after)
    moved = (vtk_to_numpy(after.GetData()) - start) * np.diag(FLIP)[:3]
    return np.ascontiguousarray(np.moveaxis(moved.reshape(*grid.shape, 3), -1, 0)[None], dtype=np.float32)


def lattice_of(transform) -> Grid:
    """The LPS grid of a vtkOrientedGridTransform."""
    data, matrix = transform.GetDisplacementGrid(), np.eye(4)
    direction = transform.GetGridDirectionMatrix()
    turn = _numpy(direction)[:3, :3] if direction is not None else np.eye(3)
    matrix[:3, :3] = turn * np.array(data.GetSpacing())
    matrix[:3, 3] = data.GetOrigin()
    return Grid(data.GetDimensions()[::-1], FLIP @ matrix)


def _vectors(transform) -> np.ndarray:
    """(z, y, x, 3) RAS mm: a view of the lattice of a vtkOrientedGridTransform."""
    from vtk.util.numpy_support import vtk_to_numpy

    data = transform.GetDisplacementGrid()
    return vtk_to_numpy(data.GetPointData().GetScalars()).reshape(*data.GetDimensions()[::-1], 3)


def _displacement_of(transform):
    """(1, 3, *S) LPS mm tensor of a vtkOrientedGridTransform, its scale and shift applied."""
    import torch

    vectors = _vectors(transform) * transform.GetDisplacementScale() + transform.GetDisplacementShift()
    kind = np.float64 if vectors.dtype == np.float64 else np.float32
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(vectors * np.diag(FLIP)[:3], -1, 0)[None], dtype=kind))


def volume_from_image(scene, image, name: str, plane: Plane | None = None):
    """A new scalar volume node (a label map node for Labels) with display; vectors of channels become a vector volume.

    A 2D image needs ``plane`` and becomes a one-slice volume.
    """
    from DeepRegistrationLib.image import Labels

    labels = isinstance(image, Labels)
    values = image.data[0].detach().cpu().numpy()
    grid, channels = _solid(image.grid, plane, name), len(values)
    kind = "LabelMapVolume" if labels else "ScalarVolume" if channels == 1 else "VectorVolume"
    node = scene.AddNewNodeByClass(f"vtkMRML{kind}Node", name)
    values = values.astype(np.int16 if values.max(initial=0) < 32768 else np.int32) if labels else values
    node.SetAndObserveImageData(_image_data(np.moveaxis(values.reshape(channels, *grid.shape), 0, -1)))
    node.SetIJKToRASMatrix(_vtk_matrix(FLIP @ grid.affine))
    node.CreateDefaultDisplayNodes()
    return node


def _solid(grid: Grid, plane: Plane | None, name: str) -> Grid:
    if grid.dim == 3:
        return grid
    if plane is None:
        raise InputError(f"'{name}' is 2D and its plane in the scene is not known; give the plane of the slice it was made from")
    return plane.solid(grid)


def _image_data(vectors: np.ndarray, spacing=(1, 1, 1), origin=(0, 0, 0)):
    """(z, y, x, C) -> vtkImageData; the values are written once, straight into VTK's own memory."""
    import vtk
    from vtk.util.numpy_support import get_vtk_array_type, vtk_to_numpy

    array = vtk.vtkDataArray.CreateDataArray(get_vtk_array_type(vectors.dtype))
    array.SetNumberOfComponents(vectors.shape[-1])
    array.SetNumberOfTuples(int(np.prod(vectors.shape[:-1])))
    vtk_to_numpy(array).reshape(vectors.shape)[...] = vectors
    data = vtk.vtkImageData()
    data.SetDimensions(vectors.shape[2::-1])
    data.SetSpacing(spacing)
    data.SetOrigin(origin)
    data.GetPointData().SetScalars(array)
    return data


def segmentation_from_labels(scene, labels, name: str, plane: Plane | None = None):
    """A new segmentation node: one segment a label, named by ``labels.names``."""
    import slicer

    values = labels.data[0, 0].detach().cpu().numpy()
    grid, names = _solid(labels.grid, plane, name), dict(labels.names)
    values = values.reshape(grid.shape)
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    matrix = _vtk_matrix(FLIP @ grid.affine)
    for value in labels.values():
        image = slicer.vtkOrientedImageData()
        image.ShallowCopy(_image_data((values == value).astype(np.uint8)[..., None]))
        image.SetGeometryFromImageToWorldMatrix(matrix)
        node.AddSegmentFromBinaryLabelmapRepresentation(image, names.get(value, f"label {value}"))
    converter, extent = slicer.vtkSegmentationConverter, [limit for n in grid.size for limit in (0, n - 1)]
    geometry = converter.SerializeImageGeometry(matrix, extent)
    node.GetSegmentation().SetConversionParameter(converter.GetReferenceImageGeometryParameterName(), geometry)
    return node


def markups_from_points(scene, points, name: str, plane: Plane | None = None, kind: str = "Fiducial"):
    """A new markups node (kind 'Fiducial' or 'Curve') with the points of the first batch entry, in LPS mm or in ``plane``."""
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk

    positions = points.positions[0].detach().cpu().double().numpy()
    if points.dim == 2:
        if plane is None:
            raise InputError(f"'{name}' is 2D and its plane in the scene is not known; give the plane of the slice it was made from")
        positions = plane.to_world(positions)
    world = vtk.vtkPoints()
    world.SetData(numpy_to_vtk(np.ascontiguousarray(positions * np.diag(FLIP)[:3]), deep=True))
    node = scene.AddNewNodeByClass(f"vtkMRMLMarkups{kind}Node", name)
    node.CreateDefaultDisplayNodes()
    node.SetControlPointPositionsWorld(world)
    for n, label in enumerate(points.names):
        node.SetNthControlPointLabel(n, label)
    return node


def vtk_from_transform(transform):
    """A library transform (3D, LPS) as the vtk transform (RAS) of the same map, with exact parts: matrices and grids.

    Affine -> vtkMatrixToLinearTransform, a dense map -> vtkOrientedGridTransform on its own lattice, a composition ->
    vtkGeneralTransform. InputError for a kind that has no lattice; put it on a grid first.
    """
    import vtk

    from DeepRegistrationLib.transforms import Affine, Composite, Displacement, Identity

    if transform.dim != 3:
        raise InputError("a 2D transform cannot be put into the scene as it is; lift it with the planes of its slices")
    if isinstance(transform, (Affine, Identity)):
        linear = vtk.vtkMatrixToLinearTransform()
        linear.SetInput(_vtk_matrix(FLIP @ (np.eye(4) if isinstance(transform, Identity) else transform.numpy()) @ FLIP))
        return linear
    if isinstance(transform, Composite):
        general = vtk.vtkGeneralTransform()
        for item in transform.items:
            general.Concatenate(vtk_from_transform(item))
        return general
    dense = getattr(transform, "dense", transform)
    if not isinstance(dense, Displacement):
        raise InputError(f"a {type(transform).__name__} has no lattice; sample it on a grid (Displacement) first")
    return _vtk_grid(dense.with_zero_ring())


def _vtk_grid(dense):
    """A Displacement as vtkOrientedGridTransform: RAS vectors in their own precision, direction matrix, linear interpolation."""
    import slicer

    matrix, spacing = FLIP @ dense.grid.affine, dense.grid.spacing
    direction = np.eye(4)
    direction[:3, :3] = matrix[:3, :3] / spacing
    vectors = np.moveaxis(dense.displacement[0].detach().cpu().numpy(), 0, -1) * np.diag(FLIP)[:3].astype(np.float32)
    transform = slicer.vtkOrientedGridTransform()
    transform.SetDisplacementGridData(_image_data(vectors, spacing, matrix[:3, 3]))
    transform.SetGridDirectionMatrix(_vtk_matrix(direction))
    transform.SetInterpolationModeToLinear()
    return transform


def node_from_transform(scene, transform, name: str, fixed=None, moving=None):
    """A new transform node whose from-parent transform is ``transform`` (fixed -> moving, LPS); the volume nodes ``fixed`` and
    ``moving`` are noted as what was registered."""
    import vtk

    node = scene.AddNewNodeByClass("vtkMRMLTransformNode", name)
    made = vtk_from_transform(transform)
    if made.IsA("vtkLinearTransform"):
        node.SetMatrixTransformFromParent(made.GetMatrix())
    else:
        node.SetAndObserveTransformFromParent(made)
    for role, other in ((node.GetFixedNodeReferenceRole(), fixed), (node.GetMovingNodeReferenceRole(), moving)):
        if other is not None:
            node.SetNodeReferenceID(role, other.GetID())
    return node


def update_linear(node, affine) -> bool:
    """Set the matrix of a linear transform node, only where it differs; True where it did (one TransformModifiedEvent)."""
    import vtk

    new, old = FLIP @ affine.numpy() @ FLIP, vtk.vtkMatrix4x4()
    node.GetMatrixTransformFromParent(old)
    if np.array_equal(new, _numpy(old)):
        return False
    node.SetMatrixTransformFromParent(_vtk_matrix(new))
    return True


def update_grid(node, transform) -> None:
    """Write ``transform``, read at the lattice of the grid transform ``node``, into the node's own memory: one
    TransformModifiedEvent, and the views follow. The zero ring of the lattice stays zero.

    Setting the array or the grid fires nothing; ``Modified`` on the vtkOrientedGridTransform does.
    """
    import torch

    grid = node.GetTransformFromParentAs("vtkOrientedGridTransform")
    vectors, inner = _vectors(grid), lattice_of(grid)
    margin = [1 if n > 2 else 0 for n in inner.size]
    inner = inner.pad([-m for m in margin])
    with torch.no_grad():
        u = transform.field(inner)[0].cpu().numpy()
    body = vectors[tuple(slice(m, n - m) for m, n in zip(margin[::-1], vectors.shape))]
    np.multiply(np.moveaxis(u, 0, -1), np.diag(FLIP)[:3], out=body, casting="same_kind")
    grid.Modified()


def placement_node(node):
    """A new linear node with the whole placement of ``node`` (its linear parents), None where it has no parent."""
    if node.GetParentTransformNode() is None:
        return None
    placement = node.GetScene().AddNewNodeByClass("vtkMRMLTransformNode", f"{node.GetName()} placement")
    placement.SetMatrixTransformToParent(_vtk_matrix(_to_world(node)))
    return placement
