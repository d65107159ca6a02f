"""Two volumes in one picture: checkerboard, difference, inverse colours; composed on the voxels of the fixed volume.

The moving volume is read where the scene shows it (its parent transforms, also non-linear ones, included), so a warped volume, a
volume under the nodes of a result and a volume under a live view are all compared as they appear.
"""

from __future__ import annotations

import numpy as np

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.exchange import Volume

from . import mrml
from .colors import display_of, diverging_colors, magnitude_limit, single_hue
from .views import nodes_of

WARM, COLD = (1.0, 0.55, 0.10), (0.0, 0.45, 0.90)
"""Colours of the fixed and the moving image in the overlay; they add up to white, so agreement is grey."""
HUES = ("DeepRegistration warm", "DeepRegistration cold")
"""Names of their colour nodes."""
MATCHES = ("auto", "robust", "none")


def resampled(moving, fixed) -> np.ndarray:
    """(z, y, x) float32: the volume node ``moving``, as the scene places it, on the voxels of ``fixed``; NaN outside of it."""
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    grid = mrml.grid_of(fixed)
    _require_scalars(moving)
    if moving.GetParentTransformNode() is None and mrml.grid_of(moving).same_as(grid):
        return mrml.array_of(moving).astype(np.float32)
    cast, reslice, general, to_index = vtk.vtkImageCast(), vtk.vtkImageReslice(), vtk.vtkGeneralTransform(), vtk.vtkMatrix4x4()
    plain = vtk.vtkImageData()
    plain.ShallowCopy(moving.GetImageData())
    plain.SetOrigin(0, 0, 0)
    plain.SetSpacing(1, 1, 1)
    cast.SetInputData(plain)
    cast.SetOutputScalarTypeToFloat()
    from_world = vtk.vtkGeneralTransform()
    moving.GetRASToIJKMatrix(to_index)
    if moving.GetParentTransformNode() is not None:
        moving.GetParentTransformNode().GetTransformFromWorld(from_world)
    general.PostMultiply()
    general.Concatenate(mrml.vtk_matrix(mrml.FLIP @ grid.affine))
    general.Concatenate(from_world)
    general.Concatenate(to_index)
    reslice.SetInputConnection(cast.GetOutputPort())
    reslice.SetResliceTransform(general)
    reslice.SetOutputExtent(*[limit for n in grid.size for limit in (0, n - 1)])
    reslice.SetOutputOrigin(0, 0, 0)
    reslice.SetOutputSpacing(1, 1, 1)
    reslice.SetInterpolationModeToLinear()
    reslice.SetBackgroundLevel(float("nan"))
    reslice.Update()
    return vtk_to_numpy(reslice.GetOutput().GetPointData().GetScalars()).reshape(grid.shape).astype(np.float32, copy=False)


def _require_scalars(node):
    data = node.GetImageData()
    if data is None or data.GetPointData().GetScalars() is None:
        raise InputError(f"volume '{node.GetName()}' holds no voxels; load an image into it or choose another volume")
    if data.GetNumberOfScalarComponents() != 1:
        raise InputError(f"volume '{node.GetName()}' has {data.GetNumberOfScalarComponents()} channels; choose a volume of one channel")


def checkerboard(fixed: np.ndarray, moving: np.ndarray, grid, square_mm: float | None = None, match: str = "none") -> np.ndarray:
    """(z, y, x) float32: squares of ``square_mm`` (default: an eighth of the shortest edge) along the volume's own axes, alternately of two
    images on ``grid``, the moving one after ``matching``; where it is NaN the fixed image is shown."""
    if square_mm is not None and not square_mm > 0:
        raise InputError(f"squares of {square_mm} mm were asked for; their edge must be positive")
    wide = [e for e, n in zip(grid.extent, grid.size) if n > 1]
    square = float(min(wide, default=1.0)) / 8 if square_mm is None else float(square_mm)
    # Squares are counted from the middle of the volume, so that both images meet there.
    counts = [np.floor((np.arange(n) - (n - 1) / 2) * s / square + 0.5).astype(int) for n, s in zip(grid.size, grid.spacing)]
    odd, (gain, offset) = (counts[1][:, None] + counts[0]) % 2 == 1, matching(fixed, moving, match)
    board = np.empty(grid.shape, np.float32)
    for k, count in enumerate(counts[2]):  # slice by slice, which needs no memory for what lies between
        other = moving[k] * gain + offset
        board[k] = np.where((odd if count % 2 == 0 else ~odd) & np.isfinite(other), other, fixed[k])
    return board


def looks_like_ct(values: np.ndarray) -> bool:
    """True for Hounsfield units: air near -1000 and nothing far above metal."""
    sample = _sample(values)
    return len(sample) > 0 and np.percentile(sample, 1) < -600 and sample.min() >= -3100 and np.percentile(sample, 99.9) < 8000


def _sample(values: np.ndarray) -> np.ndarray:
    flat = values.reshape(-1)
    flat = flat[:: max(1, len(flat) // 200_000)]
    return flat[np.isfinite(flat)]


def matching(fixed: np.ndarray, moving: np.ndarray, how: str = "auto") -> tuple[float, float]:
    """(gain, offset) that give ``moving`` the robust range (1st to 99th percentile where both images are) of ``fixed``; (1, 0) for 'none' and,
    with 'auto', where both are CT: Hounsfield units are comparable as they are."""
    if how not in MATCHES:
        raise InputError(f"intensities matched by '{how}' were asked for; choose one of {', '.join(MATCHES)}")
    if how == "none" or (how == "auto" and looks_like_ct(fixed) and looks_like_ct(moving)):
        return 1.0, 0.0
    step = max(1, fixed.size // 200_000)
    some = np.stack([fixed.reshape(-1)[::step], moving.reshape(-1)[::step]])
    some = some[:, np.isfinite(some).all(0)]
    if some.size == 0:
        return 1.0, 0.0
    (low, start), (high, end) = np.percentile(some, (1, 99), axis=1).tolist()
    if end <= start or high <= low:
        return 1.0, 0.0
    gain = (high - low) / (end - start)
    return gain, low - gain * start


def difference(fixed: np.ndarray, moving: np.ndarray, absolute: bool = False, match: str = "auto") -> np.ndarray:
    """(z, y, x) float32: moving - fixed, or its magnitude, after ``matching``; 0 where one of them is missing."""
    (gain, offset), out = matching(fixed, moving, match), np.empty(fixed.shape, np.float32)
    for k in range(len(fixed)):
        out[k] = moving[k] * gain + offset - fixed[k]
        out[k][~np.isfinite(out[k])] = 0
    return np.abs(out, out=out) if absolute else out


# ---------------------------------------------------------------------------------------------------------------- nodes


def checkerboard_node(fixed, values: np.ndarray, square_mm: float | None = None, name: str = "Checkerboard", node=None):
    """A volume node with the checkerboard of a volume node and of ``values`` from ``resampled``, shown as the fixed one is."""
    _require_scalars(fixed)
    grid = mrml.grid_of(fixed)
    node = _written(fixed, checkerboard(mrml.array_of(fixed), values, grid, square_mm, "auto"), name, node)
    if fixed.GetDisplayNode() is not None:
        display = fixed.GetDisplayNode()
        node.GetDisplayNode().SetAndObserveColorNodeID(display.GetColorNodeID())
        node.GetDisplayNode().SetWindowLevel(display.GetWindow(), display.GetLevel())
    return node


def _written(fixed, values: np.ndarray, name: str, node):
    """A volume node of ``values`` on the voxels of ``fixed``; an existing ``node`` is rewritten."""
    node = mrml.volume_node(fixed.GetScene(), Volume(values, mrml.grid_of(fixed)), name, node, display=False)
    display_of(node)
    return node


def difference_node(fixed, values: np.ndarray, absolute: bool = False, match: str = "auto", name: str = "Difference", node=None):
    """A volume node with ``values`` from ``resampled`` minus fixed in diverging colours symmetric about 0, or with its magnitude in grey."""
    _require_scalars(fixed)
    values = difference(mrml.array_of(fixed), values, absolute, match)
    node = _written(fixed, values, name, node)
    limit, display = magnitude_limit(values, least=1e-6), node.GetDisplayNode()
    display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeGrey" if absolute else diverging_colors(fixed.GetScene()).GetID())
    display.SetWindowLevelMinMax(0 if absolute else -limit, limit)
    return node


def set_hue(node, name: str, color) -> None:
    """Display a volume from black to ``color`` over the range from its 1st to its 99th percentile."""
    from vtk.util.numpy_support import vtk_to_numpy

    display = node.GetDisplayNode()
    _require_scalars(node)
    low, high = np.percentile(_sample(vtk_to_numpy(node.GetImageData().GetPointData().GetScalars())), (1, 99))
    display.SetAndObserveColorNodeID(single_hue(node.GetScene(), name, color).GetID())
    display.SetAutoWindowLevel(0)
    display.SetWindowLevelMinMax(float(low), float(max(high, low + 1e-6)))


def remove_hues(scene) -> None:
    """Remove the colour nodes of ``show_inverse_colors`` that no display uses any more."""
    for name in HUES:
        node = scene.GetFirstNodeByName(name)
        if node is not None and not any(display.GetColorNodeID() == node.GetID() for display in nodes_of(scene, "vtkMRMLDisplayNode")):
            scene.RemoveNode(node)


def show_inverse_colors(fixed, moving) -> None:
    """Fixed in one colour and moving in its complement, added up in all slice views: what agrees is grey, what does not is coloured."""
    from . import views

    set_hue(fixed, HUES[0], WARM)
    set_hue(moving, HUES[1], COLD)
    views.show_layers(fixed, moving, opacity=1.0)
    for node in views.composites(fixed.GetScene()):
        node.SetCompositing(node.Add)
