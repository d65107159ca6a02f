"""Maps beside the slices: other volumes of one slice on the same pixels, such as T1 beside T2, put together by quantity; and the axis of a set."""

from __future__ import annotations

import re

import numpy as np
import slicer
import vtk

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.exchange import PICTURES
from DeepRegistrationLib.geometry import Grid

from . import mrml
from .qmri_scene import our_transform, taken_out

OWN = "value"
"""What the values of the slices are called where nothing else tells."""


def on_same_pixels(nodes) -> list[int]:
    """For each of the ``nodes`` (volumes) the position of the first one that lies on the same pixels, results of this module aside."""
    grids = [pixels_of(node) for node in nodes]
    return [next(n for n, other in enumerate(grids) if other == grid) for grid in grids]


def pixels_of(node) -> Grid:
    """Where the voxels of a volume node are (LPS mm) under the transforms of the user, without those of this module; the scene stays untouched."""
    inner, ijk = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    slicer.vtkMRMLTransformNode.GetMatrixTransformBetweenNodes(node.GetParentTransformNode(), our_transform(node), inner)
    node.GetIJKToRASMatrix(ijk)
    return Grid(node.GetImageData().GetDimensions()[::-1], mrml.FLIP @ mrml.matrix_values(inner) @ mrml.matrix_values(ijk))


def usual_slices(nodes) -> list:
    """Of volumes of one slice those that a set is made of: the first on each plane, all of them where they all have one and the same header."""
    first = on_same_pixels(nodes)
    return [node for k, node in enumerate(nodes) if first[k] == k or not any(first)]


def maps_beside(slices, others) -> dict[str, list]:
    """quantity -> [a node or None a slice] of the ``others`` that lie on the pixels of one of the ``slices``.

    The words of a name that the slice's own name has not are the quantity ('T1' of 'T1 slice 3' beside 'T2 slice 3'); where these do not tell
    quantities apart, the maps of a slice are numbered. Empty where slices lie on each other, so that nobody knows which one a map belongs to.
    """
    slices, others = list(slices), [node for node in others if node not in slices]
    first = on_same_pixels([*slices, *others])
    if first[:len(slices)] != list(range(len(slices))):
        return {}
    beside = [[node for node, n in zip(others, first[len(slices):]) if n == k] for k in range(len(slices))]
    named, numbered = {}, {}
    for k, nodes in enumerate(beside):
        for n, node in enumerate(nodes):
            named.setdefault(_more_words(node, slices[k]), []).append((k, node))
            numbered.setdefault(f"map {n + 1}", []).append((k, node))
    clear = "" not in named and all(len({k for k, _ in each}) == len(each) for each in named.values())
    return {name: [dict(each).get(k) for k in range(len(slices))] for name, each in (named if clear else numbered).items()}


def maps_request(slices, maps: dict[str, list]) -> dict:
    """What a 'qmri' request says of the values of the ``slices`` and of ``maps`` (quantity -> [a node or None a slice]), with the units that the nodes
    have; ``slices`` None where they are files, which have no maps. InputError for maps of another number."""
    if slices is None and maps:
        raise InputError("maps were given with a folder of files; load the slices and their maps into the scene")
    wrong = next((name for name, nodes in maps.items() if len(nodes) != len(slices)), None)
    if wrong is not None:
        raise InputError(f"the maps '{wrong}' are {len(maps[wrong])} for {len(slices)} slices; give one a slice, or None where there is none")
    there = [node for nodes in maps.values() for node in nodes if node is not None]
    with taken_out(there):
        sent = [{"name": name, "unit": next((unit_of(node) for node in nodes if node is not None), ""),
                 "images": [None if node is None else mrml.volume_of(node) for node in nodes]} for name, nodes in maps.items()]
    own = _more_words(slices[0], there[0]) if there else ""
    return {"quantity": {"name": own if own and own not in maps else OWN, "unit": unit_of(slices[0]) if slices else ""}, "maps": sent}


def unit_of(node) -> str:
    """The unit of the voxels of a volume node as it is written ('ms'), '' where the node does not say."""
    units = node.GetVoxelValueUnits()
    return "" if units is None else units.GetCodeValue() or ""


def _more_words(node, other) -> str:
    """The words of the name of ``node`` that are not in that of ``other``."""
    words, known = (re.split(r"[\s_\-]+", each.GetName()) for each in (node, other))
    return " ".join(word for word in words if word not in known)


def axis_request(node, degrees: float, pixel: float = 0.0) -> dict:
    """What a 'qmri' request says of the axis that all planes share, a markups plane (the localizer) or line, and of the ``degrees`` between slices that are
    placed about it, with pixels of ``pixel`` mm, 0 for those of their headers; no axis without a node. InputError where it is not placed yet."""
    placing = {"degrees": degrees, "pixel_mm": [pixel, pixel] if pixel else None}
    return placing if node is None else {"axis": axis_of(node), **placing}


def picture_among(nodes):
    """The first of the volume ``nodes`` that was read from a picture, which does not say how large its pixels are; None where there is none."""
    return next((node for node in nodes if node.GetStorageNode() is not None
                 and (node.GetStorageNode().GetFileName() or "").lower().endswith(PICTURES)), None)


def axis_of(node) -> tuple[list[float], list[float]]:
    """(point, direction) in LPS mm of a markups plane, its center and its normal, or of a markups line. InputError where it is not placed yet."""
    plane = node.IsA("vtkMRMLMarkupsPlaneNode")
    if not (node.GetIsPlaneValid() if plane else node.IsA("vtkMRMLMarkupsLineNode") and node.GetNumberOfDefinedControlPoints() == 2):
        raise InputError(f"'{node.GetName()}' is no plane and no line that has been placed; place the localizer's plane, or a line along the axis")
    if plane:
        signs = np.diag(mrml.FLIP)[:3]
        return (signs * node.GetCenterWorld()).tolist(), (signs * node.GetNormalWorld()).tolist()
    ends = mrml.points_of(node).positions
    return ends.mean(0).tolist(), (ends[1] - ends[0]).tolist()
