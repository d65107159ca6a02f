"""Maps of a deformation: grid, arrows and contours drawn by the scene, log-Jacobian with a legend, folds in red.

A map T(x) = A (x + u(x)) changes volumes by the factor J = det A * det(I + du/dx). log J is 0 where nothing changes, positive where
the moving image is larger than the fixed one (it was shrunk to fit), and a fold is a place with J <= 0, where T cannot be inverted.
"""

from __future__ import annotations

import numpy as np

from DeepRegistrationLib.errors import InputError

from . import mrml, views
from .colors import diverging_colors, magnitude_limit

KINDS = ("grid", "arrows", "contours")
FLOOR = 1e-6
"""Determinants below this count as this before the logarithm, as in the library."""
FOLDED = float(np.log(FLOOR)) + 1e-3
"""A log-Jacobian up to this value marks a fold."""
MAGNITUDE = ((0.0, (0.75, 0.75, 0.75)), (0.25, (0.35, 0.75, 0.95)), (0.5, (0.30, 0.85, 0.35)), (0.75, (0.98, 0.85, 0.20)), (1.0, (0.95, 0.20, 0.15)))
"""Colours of displacements from none to the longest: grey, blue, green, yellow, red."""
RED = (0.93, 0.07, 0.07)


def log_jacobian(vectors: np.ndarray, grid, linear: np.ndarray | None = None) -> np.ndarray:
    """(z, y, x) float32: log J of x -> A (x + u(x)) by central differences in physical space, so for oblique and flipped grids.

    vectors (z, y, x, 3) LPS mm on ``grid``; linear (4, 4) LPS or None. An axis of one voxel contributes no derivative.
    """
    moved = np.ascontiguousarray(np.moveaxis(vectors, -1, 0), np.float32)
    # Columns of T's derivative along the voxel axes; along an axis of one voxel it is the voxel's own edge (no change).
    columns = [[np.gradient(u, axis=2 - axis) + np.float32(grid.matrix[k, axis]) for k, u in enumerate(moved)] if n > 1
               else [np.full(grid.shape, grid.matrix[k, axis], np.float32) for k in range(3)] for axis, n in enumerate(grid.size)]
    (a, b, c), (d, e, f), (g, h, i) = columns
    determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    determinant /= np.float32(np.linalg.det(grid.matrix))
    if linear is not None:
        determinant *= np.float32(np.linalg.det(np.asarray(linear, float)[:3, :3]))
    return np.log(np.maximum(determinant, FLOOR, dtype=np.float32))


def displacements(node, points: np.ndarray) -> np.ndarray:
    """(N, 3) mm: what a transform node alone, without its parents, adds to LPS ``points`` (N, 3) of the fixed image."""
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

    flip = np.diag(mrml.FLIP)[:3]
    start = np.ascontiguousarray(points * flip)
    before, after = vtk.vtkPoints(), vtk.vtkPoints()
    after.SetDataTypeToDouble()
    before.SetData(numpy_to_vtk(start))
    node.GetTransformFromParent().TransformPoints(before, after)
    return (vtk_to_numpy(after.GetData()) - start) * flip


def reach(node, reference, count: int = 8000) -> float:
    """The 99th percentile of the displacements (mm) on about ``count`` evenly spread voxels of the volume node ``reference``."""
    grid = mrml.grid_of(reference)
    coarse = grid.resample(np.maximum(grid.spacing, (np.prod(grid.extent) / count) ** (1 / 3)))
    return float(np.percentile(np.linalg.norm(displacements(node, coarse.points().reshape(-1, 3)), axis=1), 99))


def show_deformation(node, reference, kind: str = "grid", visible_3d: bool = False, longest: float | None = None, cells: int = 20,
                     fineness: int = 5) -> None:
    """Draw a transform node over the volume node ``reference`` as 'grid', 'arrows' or 'contours' of displacement.

    The grid has ``cells`` along ``drawn_edge``, whose lines bend ``fineness`` times a cell (arrows are a little closer); colours go from
    grey at 0 to red at ``longest`` mm, the ``reach`` of the data where None. In three dimensions it is drawn where asked for: that takes a
    while.
    """
    if kind not in KINDS:
        raise InputError(f"a display of the deformation as '{kind}' was asked for; choose one of {', '.join(KINDS)}")
    import slicer

    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
    display, edge = node.GetDisplayNode(), drawn_edge(reference)
    longest = max(reach(node, reference) if longest is None else longest, 1e-3)
    with slicer.util.NodeModify(display):
        modes = {"grid": display.VIS_MODE_GRID, "arrows": display.VIS_MODE_GLYPH, "contours": display.VIS_MODE_CONTOUR}
        display.SetVisualizationMode(modes[kind])
        display.SetAndObserveRegionNode(reference)
        _set_sizes(display, edge, longest)
        display.SetGridSpacingMm(edge / cells)
        display.SetGridResolutionMm(edge / cells / fineness)
        set_longest(node, longest)
        display.SetVisibility(True)
        display.SetVisibility2D(True)
        display.SetVisibility3D(bool(visible_3d))


def drawn_edge(reference) -> float:
    """mm: the largest edge of the volume node, or a third of the largest field of view of the slice views where that is more: the scene
    draws the deformation in all of a view, which would take minutes with the detail of a volume that is small in it."""
    fields = [max(node.GetFieldOfView()[:2]) for node in views.nodes_of(reference.GetScene(), views.SLICE)]
    return max(float(mrml.grid_of(reference).extent.max()), *(field / 3 for field in fields), 0.0)


def _set_sizes(display, edge: float, longest: float) -> None:
    """Spacings and thicknesses for a volume whose largest edge is ``edge`` mm and for vectors up to ``longest`` mm."""
    display.SetGridLineDiameterMm(edge / 300)
    display.SetGridScalePercent(100)
    display.SetGridShowNonWarped(False)
    display.SetGlyphSpacingMm(edge / 24)
    display.SetGlyphDiameterMm(edge / 40)
    display.SetGlyphScalePercent(100)
    display.SetGlyphType(display.GLYPH_TYPE_ARROW)
    display.SetGlyphDisplayRangeMinMm(0.02 * longest)
    display.SetGlyphDisplayRangeMaxMm(10 * longest)
    display.SetContourResolutionMm(edge / 60)
    levels = [nice_step(longest / 6) * n for n in range(1, 10)]
    display.SetContourLevelsMmFromString(" ".join(f"{level:g}" for level in levels))


def nice_step(value: float) -> float:
    """1, 2 or 5 times a power of ten, near ``value`` > 0: steps that read well."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(power * min((1, 2, 5, 10), key=lambda m: abs(np.log(value / power / m))))


def set_longest(node, longest: float) -> None:
    """Stretch the colours of a transform's display from 0 to ``longest`` mm."""
    import vtk

    colors = vtk.vtkColorTransferFunction()
    for share, color in MAGNITUDE:
        colors.AddRGBPoint(share * longest, *color)
    node.GetDisplayNode().SetColorMap(colors)


def hide_deformation(node) -> None:
    """Draw nothing of a transform node."""
    if node.GetDisplayNode() is not None:
        node.GetDisplayNode().SetVisibility(False)
        node.GetDisplayNode().SetVisibility2D(False)
        node.GetDisplayNode().SetVisibility3D(False)


def show_log_jacobian(node, legend: bool = True, limit: float | None = None):
    """Display a log-Jacobian volume blue - white - red, symmetric about 0 up to ``limit`` (99 % of its values where None);
    returns the display node of the legend, None without one."""
    values = mrml.array_of(node)
    if limit is None:
        limit = magnitude_limit(values[values > FOLDED])
    display = node.GetDisplayNode()
    display.SetAndObserveColorNodeID(diverging_colors(node.GetScene()).GetID())
    display.SetAutoWindowLevel(0)
    display.SetWindowLevelMinMax(-limit, limit)
    return show_legend(node, "log Jacobian") if legend else None


def show_legend(node, title: str):
    """A colour legend with ``title`` for a volume, in all slice views; its display node."""
    import slicer

    views.introduce(node.GetScene(), "vtkMRMLColorLegendDisplayNode")
    legend = slicer.vtkSlicerColorLogic.AddDefaultColorLegendDisplayNode(node)
    legend.SetTitleText(title)
    legend.SetLabelFormat("%.3g")
    legend.SetNumberOfLabels(5)
    legend.SetMaxNumberOfColors(256)
    legend.SetVisibility(True)
    return legend


def fold_mask(values: np.ndarray) -> np.ndarray:
    """(z, y, x) True where log-Jacobian ``values`` are those of a fold (or are no numbers)."""
    return ~(values > FOLDED)


def folds_node(source, name: str):
    """(segmentation node, count of voxels, share in percent): the folds of a log-Jacobian volume (or of a label map of folds) as one red
    segment."""
    values = mrml.array_of(source)
    mask = values > 0 if source.IsA("vtkMRMLLabelMapVolumeNode") else fold_mask(values)
    node = red_segmentation(source.GetScene(), mask, mrml.grid_of(source), name, "folds")
    count = int(mask.sum())
    return node, count, 100.0 * count / mask.size


def red_segmentation(scene, mask: np.ndarray, grid, name: str, segment: str):
    """A segmentation node with one filled red segment that covers ``mask`` (z, y, x) on ``grid``."""
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    image = mrml.oriented_image(mrml.image_data(mask.astype(np.uint8)[..., None]), grid)
    identifier = node.AddSegmentFromBinaryLabelmapRepresentation(image, segment, RED)
    display = node.GetDisplayNode()
    display.SetSegmentOpacity2DFill(identifier, 1.0)
    display.SetOpacity2DFill(1.0)
    display.SetVisibility2DOutline(False)
    return node
