"""Contours of structures and distances of landmarks, before and after a registration."""

from __future__ import annotations

import numpy as np

from DeepRegistrationLib.errors import InputError

from . import mrml
from .records import carriers_of

FIXED_COLOR, BEFORE_COLOR, AFTER_COLOR = (0.20, 0.85, 0.30), (1.0, 0.60, 0.10), (0.95, 0.25, 0.85)
"""Outlines of the fixed structures (green), of the moving ones as they were (orange) and as they are mapped (magenta)."""
MOST_LINES = 60
"""Landmarks with the longest distances that get a line; more lines hide the image."""


def show_outlines(node, color, thickness: int = 2) -> None:
    """Draw all segments of a segmentation as outlines of one ``color``, without fill, in the slice views."""
    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    for identifier in node.GetSegmentation().GetSegmentIDs():
        display.SetSegmentOverrideColor(identifier, *color)
        display.SetSegmentVisibility(identifier, True)
        display.SetSegmentOpacity2DOutline(identifier, 1.0)
    display.SetVisibility2DFill(False)
    display.SetVisibility2DOutline(True)
    display.SetSliceIntersectionThickness(thickness)
    display.SetVisibility(True)
    display.SetVisibility2D(True)


def outline_copy(node, name: str, carriers=()):
    """A segmentation node with the structures of a segmentation or label map node, where that one is (without ``carriers``, see
    ``mrml.placement_of``); for display, not saved."""
    import slicer

    made = node.GetScene().AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    made.SetSaveWithScene(False)
    if node.IsA("vtkMRMLSegmentationNode"):
        made.GetSegmentation().DeepCopy(node.GetSegmentation())
    elif not (node.IsA("vtkMRMLLabelMapVolumeNode")
              and slicer.vtkSlicerSegmentationsModuleLogic.ImportLabelmapToSegmentationNode(node, made)):
        node.GetScene().RemoveNode(made)
        raise InputError(f"'{node.GetName()}' holds no structures to outline; choose a segmentation or a label map with at least one label")
    if mrml.is_carried(node, carriers):
        made.ApplyTransformMatrix(mrml.vtk_matrix(mrml.placement_of(node, carriers)))
    else:
        made.SetAndObserveTransformNodeID(node.GetTransformNodeID())
    made.CreateDefaultDisplayNodes()
    return made


def paired_points(fixed, moving, transforms: dict) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """(names, (N, 3), (N, 3)) LPS mm: the landmarks of two markups nodes that belong together, as for a registration (see ``mrml.paired_points``); of
    lists of different lengths those whose names are in both. Each where it is without the transforms of the result."""
    one, two = mrml.paired_points(fixed, moving, (carriers_of(transforms, "fixed"), carriers_of(transforms, "moving")))
    if len(one.positions) != len(two.positions):
        unique = all(len(set(points.names)) == len(points.names) for points in (one, two))
        shared = [name for name in one.names if name in two.names] if unique else []
        if not shared:
            raise InputError(f"'{fixed.GetName()}' has {len(one.positions)} and '{moving.GetName()}' {len(two.positions)} landmarks, and their names do "
                             "not say which belong together; give both the same names or the same number of points")
        one, two = (points.taken([points.names.index(name) for name in shared]) for points in (one, two))
    return one.names, one.positions, two.positions


def map_points(node, points: np.ndarray, inverse: bool = False) -> np.ndarray:
    """LPS ``points`` (N, 3) of fixed space in moving space by a transform node and its parents (the other way with ``inverse``)."""
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

    general, before, after = vtk.vtkGeneralTransform(), vtk.vtkPoints(), vtk.vtkPoints()
    after.SetDataTypeToDouble()
    (node.GetTransformToWorld if inverse else node.GetTransformFromWorld)(general)
    before.SetData(numpy_to_vtk(np.ascontiguousarray(points @ mrml.FLIP[:3, :3]), deep=True))
    general.TransformPoints(before, after)
    return vtk_to_numpy(after.GetData()).reshape(-1, 3) @ mrml.FLIP[:3, :3]


def landmark_rows(fixed, moving, transforms: dict) -> list[dict]:
    """One row a landmark: its name and the distance in mm of moving landmark and fixed one, before, and carried by the map, after (the
    target registration error, in the moving image as in the library's figures)."""
    names, one, two = paired_points(fixed, moving, transforms)
    before, after = np.linalg.norm(one - two, axis=1), np.linalg.norm(map_points(transforms["linear"], one) - two, axis=1)
    return [{"landmark": n, "before (mm)": float(b), "after (mm)": float(a)} for n, b, a in zip(names, before, after)]


def landmark_lines(fixed, moving, transforms: dict) -> list:
    """Line markups from fixed landmarks to the mapped moving ones, labelled with their distance; those of the ``MOST_LINES`` longest."""
    names, one, two = paired_points(fixed, moving, transforms)
    rows, mapped = landmark_rows(fixed, moving, transforms), map_points(transforms["linear"], two, inverse=True)
    order = np.argsort([-row["after (mm)"] for row in rows], kind="stable")[:MOST_LINES]
    return [_line(fixed.GetScene(), f"{names[n]} {rows[n]['after (mm)']:.1f} mm", one[n], mapped[n]) for n in sorted(order)]


def _line(scene, name: str, start: np.ndarray, end: np.ndarray):
    """A locked line markup with ``name`` as its label."""
    import vtk

    node = scene.AddNewNodeByClass("vtkMRMLMarkupsLineNode", name)
    node.CreateDefaultDisplayNodes()
    for point in (start, end):
        node.AddControlPointWorld(vtk.vtkVector3d(*(mrml.FLIP[:3, :3] @ point)))
    node.GetMeasurement("length").SetEnabled(False)
    node.SetLocked(True)
    display = node.GetDisplayNode()
    display.SetPointLabelsVisibility(False)
    display.SetPropertiesLabelVisibility(True)
    display.SetSelectedColor(*AFTER_COLOR)
    display.SetColor(*AFTER_COLOR)
    display.SetGlyphScale(1.5)
    display.SetSliceProjection(True)
    display.SetSliceProjectionOpacity(0.5)
    display.SetOccludedVisibility(True)
    return node
