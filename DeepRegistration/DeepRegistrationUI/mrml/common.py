"""What reading and writing the scene share: the two sign flips, matrices and VTK's arrays of voxels.

Large arrays are copied into VTK's memory in parts of a few MiB (``image_steps``, a generator), so that the interface stays alive.
"""

from __future__ import annotations

import numpy as np

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.exchange import finish
from DeepRegistrationLib.geometry import Grid

FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
"""RAS <-> LPS; its own inverse."""
STEP = 4 << 20
"""Bytes that one step of a generator copies at most."""


def matrix_values(matrix) -> np.ndarray:
    """vtkMatrix4x4 -> (4, 4) float64."""
    return np.array([matrix.GetElement(r, c) for r in range(4) for c in range(4)]).reshape(4, 4)


def vtk_matrix(array):
    """(4, 4) -> vtkMatrix4x4."""
    import vtk

    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(np.asarray(array, float).ravel())
    return matrix


def parents_of(node, carriers=()) -> list:
    """The transform nodes above ``node``, the nearest first, up to the first of ``carriers``, which is left out with all above it."""
    found, parent = [], node.GetParentTransformNode()
    while parent is not None and not any(parent is carrier for carrier in carriers):
        found.append(parent)
        parent = parent.GetParentTransformNode()
    return found


def is_carried(node, carriers) -> bool:
    """True where one of the transform nodes ``carriers`` is above ``node``."""
    return len(parents_of(node, carriers)) < len(parents_of(node))


def placement_of(node, carriers=()) -> np.ndarray:
    """(4, 4) RAS: the linear parent transforms of ``node`` (see ``parents_of``); InputError where one of them is not linear.

    ``carriers``: the transform nodes of a registration that shows the node on the other image; the node is read as it is without them.
    """
    import vtk

    whole, matrix = np.eye(4), vtk.vtkMatrix4x4()
    for parent in parents_of(node, carriers):
        if not parent.IsLinear():
            raise InputError(f"'{node.GetName()}' is under the non-linear transform '{parent.GetName()}'; harden the transform on it "
                             "(Transforms module) or take it out of the transform first")
        parent.GetMatrixTransformToParent(matrix)
        whole = matrix_values(matrix) @ whole
    return whole


def grid_of(node, carriers=()) -> Grid:
    """The 3D grid of a volume node in LPS, its placement (see ``placement_of``) folded in. InputError where it holds no voxels."""
    import vtk

    _require_voxels(node)
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    affine = FLIP @ placement_of(node, carriers) @ matrix_values(matrix)
    try:
        return Grid(node.GetImageData().GetDimensions()[::-1], affine)
    except InputError as error:
        raise InputError(f"'{node.GetName()}': {error}") from None


def _require_voxels(node) -> None:
    data = node.GetImageData()
    if data is None or min(data.GetDimensions()) < 1 or data.GetPointData().GetScalars() is None:
        raise InputError(f"volume '{node.GetName()}' holds no voxels; load an image into it or choose another volume")


def array_of(node) -> np.ndarray:
    """The voxels (k, j, i) or (k, j, i, C) of a volume node: a view, not a copy."""
    from vtk.util.numpy_support import vtk_to_numpy

    _require_voxels(node)
    shape = node.GetImageData().GetDimensions()[::-1]
    values = vtk_to_numpy(node.GetImageData().GetPointData().GetScalars())
    return values.reshape(shape if values.ndim == 1 else (*shape, values.shape[-1]))


def image_steps(array: np.ndarray, factor=None, spacing=(1, 1, 1), origin=(0, 0, 0), margin=(0, 0, 0)):
    """(z, y, x, C), times ``factor`` (C,), -> vtkImageData with ``margin`` (z, y, x) voxels of zeros around; a generator."""
    import vtk
    from vtk.util.numpy_support import get_vtk_array_type, vtk_to_numpy

    margin = np.asarray(margin)
    shape = (*(np.array(array.shape[:3]) + 2 * margin), array.shape[3])
    made = vtk.vtkDataArray.CreateDataArray(get_vtk_array_type(array.dtype))
    made.SetNumberOfComponents(shape[3])
    made.SetNumberOfTuples(int(np.prod(shape[:3])))
    values = vtk_to_numpy(made).reshape(shape)
    yield
    if margin.any():
        for first in range(0, shape[0], rows := rows_of_a_step(values)):
            values[first : first + rows] = 0
            yield
    inner = values[tuple(slice(m, n - m) for m, n in zip(margin, shape))]
    for first in range(0, len(array), rows := rows_of_a_step(values)):
        part = array[first : first + rows]
        inner[first : first + rows] = part if factor is None else part * factor
        yield
    data = vtk.vtkImageData()
    data.SetDimensions(values.shape[2::-1])
    data.SetSpacing(spacing)
    data.SetOrigin(origin)
    data.GetPointData().SetScalars(made)
    return data


def rows_of_a_step(values: np.ndarray) -> int:
    """Slices of an array that one step may copy."""
    return max(1, STEP // max(1, values[:1].nbytes))


def image_data(array: np.ndarray):
    """``image_steps`` at once."""
    return finish(image_steps(array))


def oriented_image(data, grid: Grid):
    """A vtkImageData as vtkOrientedImageData (what segments are made of) on ``grid``; it shares the voxels."""
    import slicer

    image = slicer.vtkOrientedImageData()
    image.ShallowCopy(data)
    image.SetGeometryFromImageToWorldMatrix(vtk_matrix(FLIP @ grid.affine))
    return image


def lattice_of(transform) -> Grid:
    """The LPS grid of a vtkOrientedGridTransform."""
    data, matrix = transform.GetDisplacementGrid(), np.eye(4)
    direction = transform.GetGridDirectionMatrix()
    turn = matrix_values(direction)[:3, :3] if direction is not None else np.eye(3)
    matrix[:3, :3] = turn * np.array(data.GetSpacing())
    matrix[:3, 3] = data.GetOrigin()
    return Grid(data.GetDimensions()[::-1], FLIP @ matrix)


def vectors_of(transform) -> np.ndarray:
    """(z, y, x, 3) RAS mm: a view of the lattice of a vtkOrientedGridTransform."""
    from vtk.util.numpy_support import vtk_to_numpy

    data = transform.GetDisplacementGrid()
    return vtk_to_numpy(data.GetPointData().GetScalars()).reshape(*data.GetDimensions()[::-1], 3)
