"""Plain values of ``exchange`` as nodes of the scene: no torch. See the package for the conventions.

Large values are copied into VTK's memory step by step (``common.image_steps``, ``grid_steps``), before a node is made.
"""

from __future__ import annotations

import numpy as np

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.exchange import LabelMap, Lattice, Matrix, PointSet, Volume, finish

from .common import FLIP, image_data, image_steps, matrix_values, oriented_image, placement_of, rows_of_a_step, vectors_of, vtk_matrix


def grid_steps(lattice: Lattice):
    """A Lattice as vtkOrientedGridTransform: RAS vectors in their own precision, a ring of zeros, linear interpolation; a generator."""
    import slicer

    grid, margin = lattice.grid, np.zeros(3, int)
    if not (yield from _border_steps(lattice.vectors)):
        margin = np.array([1 if n > 1 else 0 for n in lattice.grid.shape])
        grid = lattice.grid.pad(margin[::-1])
    matrix, spacing, direction = FLIP @ grid.affine, grid.spacing, np.eye(4)
    direction[:3, :3] = matrix[:3, :3] / spacing
    flip = np.diag(FLIP)[:3].astype(lattice.vectors.dtype)
    data = yield from image_steps(lattice.vectors, flip, spacing, matrix[:3, 3], margin)
    transform = slicer.vtkOrientedGridTransform()
    transform.SetDisplacementGridData(data)
    transform.SetGridDirectionMatrix(vtk_matrix(direction))
    transform.SetInterpolationModeToLinear()
    if lattice.inverted:
        transform.Inverse()
    return transform


def _border_steps(vectors: np.ndarray):
    """True where a field is 0 on all border nodes; a generator, since the last axis touches all of its memory."""
    rows = rows_of_a_step(vectors)
    for first in range(0, len(vectors), rows):
        part = vectors[first : first + rows]
        faces = [part[:, k] for k in (0, -1) if vectors.shape[1] > 1] + [part[:, :, k] for k in (0, -1) if vectors.shape[2] > 1]
        if any(np.any(face) for face in faces):
            return False
        yield
    return not (len(vectors) > 1 and (np.any(vectors[0]) or np.any(vectors[-1])))


def vtk_steps(parts):
    """Parts of a transform (LPS) as one vtk transform (RAS) of the same map; a generator. A single Matrix gives a linear transform."""
    import vtk

    made = []
    for part in parts:
        if isinstance(part, Matrix):
            made.append(vtk.vtkMatrixToLinearTransform())
            made[-1].SetInput(vtk_matrix(FLIP @ np.asarray(part.matrix) @ FLIP))
        else:
            made.append((yield from grid_steps(part)))
    if len(made) == 1:
        return made[0]
    general = vtk.vtkGeneralTransform()
    for each in made:
        general.Concatenate(each)
    return general


def transform_node(scene, parts, name: str, fixed=None, moving=None):
    """A new transform node whose from-parent transform is that of ``parts``; the volume nodes ``fixed`` and ``moving`` are noted as what was
    registered."""
    return node_of_vtk_transform(scene, finish(vtk_steps(parts)), name, fixed, moving)


def node_of_vtk_transform(scene, made, name: str, fixed=None, moving=None):
    """The same with a transform that ``vtk_steps`` made."""
    node = scene.AddNewNodeByClass("vtkMRMLTransformNode", name)
    if made.IsA("vtkLinearTransform"):
        node.SetMatrixTransformFromParent(made.GetMatrix())
    else:
        node.SetAndObserveTransformFromParent(made)
    for role, other in ((node.GetFixedNodeReferenceRole(), fixed), (node.GetMovingNodeReferenceRole(), moving)):
        if other is not None:
            node.SetNodeReferenceID(role, other.GetID())
    return node


def volume_node(scene, value: Volume | LabelMap, name: str | None = None, node=None, display: bool = True):
    """A new scalar, vector (several channels) or label map volume node of a Volume or LabelMap, with its ``display``; an existing ``node`` is
    rewritten."""
    return node_of_vtk_image(scene, finish(volume_steps(value)), value, name, display, node)


def volume_steps(value: Volume | LabelMap):
    """The voxels of a Volume or LabelMap as vtkImageData; a generator. Types that VTK's volumes do not know become ones they know."""
    array = value.array if value.array.ndim == 4 else value.array[None]
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    elif array.dtype == np.float16:
        array = array.astype(np.float32)
    elif array.dtype.itemsize == 8 and array.dtype.kind in "iu":
        array = array.astype(np.int32)
    return image_steps(np.moveaxis(array, 0, -1))


def node_of_vtk_image(scene, data, value: Volume | LabelMap, name: str | None = None, display: bool = True, node=None):
    """The same with an image that ``volume_steps`` made of ``value``; ``display`` False leaves it without a display."""
    if node is None:
        channels = data.GetNumberOfScalarComponents()
        kind = "LabelMapVolume" if isinstance(value, LabelMap) else "ScalarVolume" if channels == 1 else "VectorVolume"
        node = scene.AddNewNodeByClass(f"vtkMRML{kind}Node", name or value.name)
    node.SetIJKToRASMatrix(vtk_matrix(FLIP @ value.grid.affine))
    node.SetAndObserveImageData(data)
    if display and node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
    return node


def segmentation_node(scene, value: LabelMap, name: str | None = None):
    """A new segmentation node: one segment a label that occurs, named by ``value.names``."""
    array, names = np.asarray(value.array), dict(value.names)
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name or value.name)
    node.CreateDefaultDisplayNodes()
    for label in (int(v) for v in np.unique(array) if v != 0):
        image = oriented_image(image_data((array == label).astype(np.uint8)[..., None]), value.grid)
        node.AddSegmentFromBinaryLabelmapRepresentation(image, names.get(label, f"label {label}"))
    set_reference_geometry(node.GetSegmentation(), value.grid)
    return node


def set_reference_geometry(segmentation, grid) -> None:
    """Let a vtkSegmentation make its label maps on the voxels of ``grid``."""
    import slicer

    converter, extent = slicer.vtkSegmentationConverter, [limit for n in grid.size for limit in (0, n - 1)]
    geometry = converter.SerializeImageGeometry(vtk_matrix(FLIP @ grid.affine), extent)
    segmentation.SetConversionParameter(converter.GetReferenceImageGeometryParameterName(), geometry)


def points_node(scene, value: PointSet, name: str | None = None, kind: str = "Fiducial"):
    """A new markups node (kind 'Fiducial' or 'Curve') with the points of a PointSet."""
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk

    world = vtk.vtkPoints()
    world.SetData(numpy_to_vtk(np.ascontiguousarray(value.positions * np.diag(FLIP)[:3]), deep=True))
    node = scene.AddNewNodeByClass(f"vtkMRMLMarkups{kind}Node", name or value.name)
    node.CreateDefaultDisplayNodes()
    node.SetControlPointPositionsWorld(world)
    for n, label in enumerate(value.names):
        node.SetNthControlPointLabel(n, label)
    return node


def update_matrix(node, matrix) -> bool:
    """Set the LPS matrix (4, 4) of a linear transform node, only where it differs; True where it did (one TransformModifiedEvent)."""
    import vtk

    new, old = FLIP @ np.asarray(matrix, float) @ FLIP, vtk.vtkMatrix4x4()
    node.GetMatrixTransformFromParent(old)
    if np.array_equal(new, matrix_values(old)):
        return False
    node.SetMatrixTransformFromParent(vtk_matrix(new))
    return True


def update_vectors(node, vectors: np.ndarray) -> None:
    """Write ``vectors`` (z, y, x, 3) LPS mm into the memory of a grid transform node, within its ring of zeros: one
    TransformModifiedEvent, and the views follow.

    Setting the array or the grid fires nothing; ``Modified`` on the vtkOrientedGridTransform does.
    """
    grid = node.GetTransformFromParentAs("vtkOrientedGridTransform")
    whole = vectors_of(grid)
    margin = [1 if n > 2 else 0 for n in whole.shape[:3]]
    body = whole[tuple(slice(m, n - m) for m, n in zip(margin, whole.shape))]
    if body.shape != vectors.shape:
        raise InputError(f"vectors of shape {vectors.shape} do not fit the lattice of '{node.GetName()}', {body.shape} without its ring")
    np.multiply(vectors, np.diag(FLIP)[:3], out=body, casting="same_kind")
    grid.Modified()


def placement_node(node):
    """A new linear node with the whole placement of ``node`` (its linear parents), None where it has no parent."""
    if node.GetParentTransformNode() is None:
        return None
    placement = node.GetScene().AddNewNodeByClass("vtkMRMLTransformNode", f"{node.GetName()} placement")
    placement.SetMatrixTransformToParent(vtk_matrix(placement_of(node)))
    return placement
