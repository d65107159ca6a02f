"""Slices and repeated scans of the scene as requests of the worker, and what comes of them in folders of the subject hierarchy.

The transform of the set carries the transforms of the slices, and those carry the slices: a slice goes from where it was to where the volume
shows it. A slice that lies under the transforms of an earlier result is read, and put, from where it was before.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.exchange import Matrix

from . import mrml, views
from .colors import color_by_values, display_of, look_like
from .delivery import free_name, gather
from .quality_tables import table_from_rows

MARK = "QMRIRegister.role"
"""Attribute of nodes that this module has made; they are no slices and no scans."""
LABELS = ("vtkMRMLSegmentationNode", "vtkMRMLLabelMapVolumeNode")
AXES = (("x", "left-right"), ("y", "anterior-posterior"), ("z", "inferior-superior"))


# ------------------------------------------------------------------------------------------------------------- requests


def is_slice(node) -> bool:
    """True for a volume of one slice that is no result of this module."""
    return not node.GetAttribute(MARK) and node.GetImageData() is not None and list(node.GetImageData().GetDimensions()).count(1) == 1


def slices_request(slices, volume, segments: bool = False) -> dict:
    """The values of a 'qmri' request: ``slices`` are volume nodes or the path of a folder; ``segments``: those that were drawn on the slices and on
    the volume go with them. InputError where nodes are gone or have no segmentation."""
    if volume is None or volume.GetScene() is None:
        raise InputError("no volume was given; choose the volume in which the slices are to be found")
    request = {"command": "qmri", "volume": mrml.volume_of(volume)}
    if isinstance(slices, (str, bytes)) or hasattr(slices, "__fspath__"):
        if segments:
            raise InputError("segments were asked for with a folder of files; load the slices into the scene and draw the bone on them")
        return {**request, "dicom": str(slices)}
    gone = next((node for node in slices if node.GetScene() is None), None)
    if gone is not None:
        raise InputError(f"'{gone.GetName()}' is not in the scene any more; choose other slices")
    drawn = [drawn_on(node) for node in slices] if segments else []
    with taken_out([*slices, *drawn]):
        request["slices"] = [mrml.volume_of(node) for node in slices]
        if segments:
            request["segments"] = [mrml.labelmap_of(mark, node) for mark, node in zip(drawn, slices)]
    if segments:
        request["volume_segment"] = mrml.labelmap_of(drawn_on(volume), volume)
    return request


def structures_request(segmentation, volume, distance: float) -> dict:
    """What a 'qmri' request says of the structures of a ``segmentation`` of the ``volume`` node; nothing where there is none."""
    return {} if segmentation is None else {"structures": mrml.labelmap_of(segmentation, volume), "surface_mm": distance}


def drawn_on(volume):
    """The segmentation whose source volume is ``volume``. InputError where there is none."""
    found = segmentation_of(volume)
    if found is None:
        raise InputError(f"no segmentation was drawn on '{volume.GetName()}'; draw the bone on it in the Segment Editor, or start without segments")
    return found


def segmentation_of(volume):
    """The same, None where there is none; one that was learned comes before the strokes that it was learned from."""
    found = segmentations_of(volume)
    return next((node for node in found if node.GetAttribute(MARK)), found[0] if found else None)


def strokes_on(volume):
    """The segmentation that was drawn on a slice by hand, None where there is none."""
    return next((node for node in segmentations_of(volume) if not node.GetAttribute(MARK)), None)


def segmentations_of(volume) -> list:
    """All whose source volume is ``volume``."""
    return [node for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
            if node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()) is volume]


def bones_request(slices) -> dict:
    """The values of a 'bones' request: what was drawn by hand on the ``slices``, the first segment bone, the second anything else. InputError for
    more segments."""
    drawn = [strokes_on(node) for node in slices]
    many = next((node for node in drawn if node is not None and node.GetSegmentation().GetNumberOfSegments() > 2), None)
    if many is not None:
        raise InputError(f"'{many.GetName()}' has {many.GetSegmentation().GetNumberOfSegments()} segments; strokes have two, first the bone, then "
                         "anything else")
    with taken_out([*slices, *(mark for mark in drawn if mark is not None)]):
        strokes = [None if mark is None else mrml.labelmap_of(mark, node) for mark, node in zip(drawn, slices)]
        return {"command": "bones", "slices": [mrml.volume_of(node) for node in slices], "strokes": strokes}


def deliver_bones(result: dict, slices) -> list:
    """Segmentations of the ``slices`` with what was learned, in the place of those of an earlier call. InputError where a slice was deleted meanwhile."""
    if any(node.GetScene() is None for node in slices):
        raise InputError("a slice was deleted while the bone was learned, so nothing was put into the scene; try again")
    made = []
    for node, value in zip(slices, result["segments"]):
        scene = node.GetScene()
        for earlier in segmentations_of(node):
            if earlier.GetAttribute(MARK):
                scene.RemoveNode(earlier)
        made.append(_marked(mrml.segmentation_node(scene, value, f"Bone on {node.GetName()}"), "bone"))
        ours = our_transform(node)
        if ours is not None:
            made[-1].SetAndObserveTransformNodeID(ours.GetID())
        made[-1].SetReferenceImageGeometryParameterFromVolumeNode(node)
    return made


@contextmanager
def taken_out(nodes):
    """Within it the ``nodes`` are where they were before any result of this module, their own transforms aside."""
    before = []
    for node in nodes:
        inner = node
        while inner.GetParentTransformNode() is not None and not inner.GetParentTransformNode().GetAttribute(MARK):
            inner = inner.GetParentTransformNode()
        if inner.GetParentTransformNode() is not None:
            before.append((inner, inner.GetParentTransformNode()))
            inner.SetAndObserveTransformNodeID(None)
    try:
        yield
    finally:
        for inner, ours in before:
            inner.SetAndObserveTransformNodeID(ours.GetID())


def our_transform(node):
    """The innermost transform of this module above ``node``, None where there is none."""
    parent = node.GetParentTransformNode()
    while parent is not None and not parent.GetAttribute(MARK):
        parent = parent.GetParentTransformNode()
    return parent


def scans_request(scans, tissues=()) -> dict:
    """The values of a 'motion' request: ``scans`` are volume nodes on one lattice, one volume with a scan a component, or a sequence of volumes;
    ``tissues`` the same for tissue maps."""
    request = {"command": "motion", "scans": [mrml.volume_of(node) for node in _volumes(scans)]}
    return request | ({"tissues": [mrml.volume_of(node) for node in _volumes(tissues)]} if tissues else {})


def _volumes(given) -> list:
    """The volume nodes of a list of them, or of one volume or sequence. InputError for other nodes."""
    nodes = list(given) if isinstance(given, (list, tuple)) else [given]
    if len(nodes) == 1 and nodes[0].IsA("vtkMRMLSequenceNode"):
        nodes = [nodes[0].GetNthDataNode(k) for k in range(nodes[0].GetNumberOfDataNodes())]
    other = next((node for node in nodes if not node.IsA("vtkMRMLVolumeNode")), None)
    if other is not None:
        raise InputError(f"'{other.GetName()}' is no volume; choose volumes, or a sequence of volumes")
    return nodes


# -------------------------------------------------------------------------------------------------------------- results


def deliver_slices(result: dict, slices, volume, name: str = "", emulated: bool = True, maps=()) -> dict:
    """Put a registered ``result`` of the job 'qmri' into the scene of ``volume``. slices: their nodes, None where the result brings them; ``maps``: nodes of
    further maps, each a list with a node or None a slice, that go where the slices go.

    Returns role -> node: 'set', 'slice 1', ... (transforms), 'measured 1', ..., 'emulated 1', ..., 'map' and 'map 2', ..., 'surface', 'slices', 'pose'
    and 'regions' (tables). InputError where the volume or a slice was deleted meanwhile.
    """
    scene, rows = volume.GetScene(), result["slices"]
    names = ["the volume", *(row["name"] for row in rows)]
    lost = next((each for each, node in zip(names, (volume, *(slices or ()))) if node.GetScene() is not scene or scene is None), None)
    if lost is not None:
        raise InputError(f"'{lost}' was deleted during the registration, so its result was not put into the scene; register again")
    name = free_name(scene, name or f"Slices in {volume.GetName()}")
    slices = [mrml.volume_node(scene, row["measured"], row["name"]) for row in rows] if slices is None else slices
    back, nodes, maps = np.linalg.inv(result["matrix"].matrix), {}, list(maps)
    nodes["set"] = _marked(mrml.transform_node(scene, [Matrix(back)], name, volume), "set")
    for k, (row, node) in enumerate(zip(rows, slices), 1):
        own = _marked(mrml.transform_node(scene, [Matrix(np.linalg.inv(back @ row["matrix"].matrix))], f"{name}, {row['name']}", volume, node), "slice")
        own.SetAndObserveTransformNodeID(nodes["set"].GetID())
        nodes[f"slice {k}"] = own
        if "deformation" in row:  # the slice shows at p what lies at p + u(p): that is the way to the parent
            inverse = replace(row["deformation"], inverted=True)
            nodes[f"deformation {k}"] = _marked(mrml.transform_node(scene, [inverse], f"{name}, {row['name']}, deformation", volume, node), "deformation")
            nodes[f"deformation {k}"].SetAndObserveTransformNodeID(own.GetID())
            own = nodes[f"deformation {k}"]
        for each in (node, segmentation_of(node), *(nodes_of_map[k - 1] for nodes_of_map in maps)):
            placement = None if each is None or each.GetScene() is not scene else _put(each, own)
            if placement is not None:
                nodes[f"placement of {each.GetName()}"] = placement
        nodes[f"measured {k}"] = node
        if emulated:
            nodes[f"emulated {k}"] = _marked(mrml.volume_node(scene, row["emulated"], display=False), "emulated")
            look_like(nodes[f"emulated {k}"], volume)
            nodes[f"emulated {k}"].SetAndObserveTransformNodeID(own.GetID())
    for k, value in enumerate(result.get("maps", ())):
        role = f"map {k + 1}" if k else "map"
        nodes[role] = _marked(mrml.volume_node(scene, value, f"{name}, {value.name}", display=False), "map")
        look_like(nodes[role], next((node for node in maps[k - 1] if node is not None), slices[0]) if k else slices[0])
    if "surface" in result:
        nodes["surface"] = _marked(model_with_values(scene, result["surface"], f"{name}, values on the surface"), "surface")
    if result.get("regions"):
        nodes["regions"] = table_from_rows(region_rows(result), f"{name}, regions", scene)
    nodes["slices"] = table_from_rows(slice_rows(result), f"{name}, slices", scene)
    nodes["pose"] = table_from_rows(pose_rows(result), f"{name}, pose", scene)
    gather(scene, name, [node for role, node in nodes.items() if not role.startswith("measured")])
    return nodes


def model_with_values(scene, path: str, name: str):
    """A model node of a .vtp file in LPS mm, colored by its scalars; gray where a point has no value."""
    reader, turn = vtk.vtkXMLPolyDataReader(), vtk.vtkTransformPolyDataFilter()
    reader.SetFileName(path)
    flip = vtk.vtkTransform()
    flip.SetMatrix(mrml.vtk_matrix(mrml.FLIP))
    turn.SetTransform(flip)
    turn.SetInputConnection(reader.GetOutputPort())
    turn.Update()
    node = scene.AddNewNodeByClass("vtkMRMLModelNode", name)
    node.SetAndObservePolyData(turn.GetOutput())
    node.CreateDefaultDisplayNodes()
    display, values = node.GetDisplayNode(), vtk_to_numpy(turn.GetOutput().GetPointData().GetScalars())
    color_by_values(display, values[np.isfinite(values)])
    return node


def deliver_motion(result: dict, name: str = "Motion", transforms: bool = False) -> dict:
    """Put a result of the job 'motion' into the scene; role -> node: 'average', 'signal', 'sigma', 'motion' (a table), and 'scan 1', ... with
    ``transforms``, whose from-parent transform leads from the average to the scan."""
    scene, nodes, name = slicer.mrmlScene, {}, free_name(slicer.mrmlScene, name)
    for role in ("average", "signal", "sigma"):
        nodes[role] = _marked(mrml.volume_node(scene, result[role], f"{name} {role}", display=False), role)
        values = result[role].array[np.isfinite(result[role].array)]
        if values.size:
            display_of(nodes[role]).SetWindowLevelMinMax(0.0, float(np.percentile(values, 99.5)))
    for k, part in enumerate(result["transforms"] if transforms else (), 1):
        nodes[f"scan {k}"] = _marked(mrml.transform_node(scene, [part], f"{name} scan {k}"), "scan")
    nodes["motion"] = table_from_rows(motion_rows(result), f"{name} table", scene)
    gather(scene, name, nodes.values())
    slicer.util.setSliceViewerLayers(background=nodes["average"], foreground=None, fit=True)
    return nodes


def show_slice(node, volume) -> None:
    """Show a slice in its own plane with the volume over it, half and half, where both are in the scene."""
    scene = slicer.mrmlScene
    if views.is_in(node, scene) and views.is_in(volume, scene):
        views.show_layers(node, volume, opacity=0.5, rotate=True)


def _marked(node, role: str):
    node.SetAttribute(MARK, role)
    return node


def _put(node, transform):
    """Put ``node`` under ``transform``, in the place of an earlier result; a node with a placement of its own gets a copy of it between, which
    is returned."""
    inner = node
    while inner.GetParentTransformNode() is not None and not inner.GetParentTransformNode().GetAttribute(MARK):
        inner = inner.GetParentTransformNode()
    placement = None
    if inner is not node and inner.GetParentTransformNode() is None:  # of the user, for other nodes as well
        inner = placement = mrml.placement_node(node)
        node.SetAndObserveTransformNodeID(inner.GetID())
    inner.SetAndObserveTransformNodeID(transform.GetID())
    return placement


# -------------------------------------------------------------------------------------------------------------- figures


def slice_rows(result: dict) -> list[dict]:
    """A row a slice, units in the heads."""
    return [{"slice": row["name"], "plane": row["plane"] + 1, "mirrored": mirrored(row["flips"]), "similarity": row["similarity"],
             "inside (%)": 100 * row["inside"], "own shift (mm)": row["own_shift_mm"], "own turn (degrees)": row["own_turn_degrees"],
             **({"largest deformation (mm)": row["bend_mm"]} if "bend_mm" in row else {})} for row in result["slices"]]


def region_rows(result: dict) -> list[dict]:
    """A row a map and structure, units in a column; none where no structures were given."""
    heads = {"map": "map", "region": "region", "unit": "unit", "pixels": "pixels", "area (mm2)": "area_mm2", "mean": "mean", "SD": "sd", "median": "median",
             "5 %": "p05", "95 %": "p95"}
    return [{head: row[key] for head, key in heads.items()} for row in result.get("regions", ())]


def mirrored(flips) -> str:
    """'left-right', 'up-down', both or '' of (along rows, along columns)."""
    return ", ".join(text for text, on in zip(("left-right", "up-down"), flips) if on)


def pose_rows(result: dict) -> list[dict]:
    """How well the pose of the set is known, in standard deviations (SD) at the middle of the slices, and the evidence for it."""
    std, found = result["std"], result["evidence"]
    rows = [{"figure": "SD of the position", "value": std["distance_mm"], "unit": "mm"}]
    rows += [{"figure": f"SD of the shift {text}", "value": value, "unit": "mm"} for (_, text), value in zip(AXES, std["shift_mm"])]
    rows += [{"figure": f"SD of the turn about {text}", "value": value, "unit": "degrees"} for (_, text), value in zip(AXES, std["turn_degrees"])]
    rows += [{"figure": "similarity above random poses", "value": found["contrast"], "unit": "SD"},
             {"figure": "lead over the next best pose", "value": found["lead"], "unit": ""},
             {"figure": "halves of the slices apart", "value": found["halves"], "unit": "mm"},
             {"figure": "gradients and mutual information apart", "value": found["measures"], "unit": "mm"},
             {"figure": "slices that agree", "value": _percent(found["agreeing"]), "unit": "%"},
             {"figure": "pixels in the volume", "value": _percent(found["overlap"]), "unit": "%"}]
    rows += [{"figure": "lead over the mirror image", "value": found["mirror"], "unit": ""}] if "mirror" in found else []
    return rows


def _percent(share):
    return None if share is None else 100 * share


def motion_rows(result: dict) -> list[dict]:
    """A row a scan, against the average: shifts along and rotations about the scene's axes R, A and S, units in the heads, and how far it lies from the scan
    before."""
    signs = dict(zip("xyz", np.diag(mrml.FLIP)[:3]))
    return [{"scan": row["scan"] + 1, "name": row["name"],
             **{f"shift {to} (mm)": float(signs[axis] * row[f"shift_{axis}_mm"]) for axis, to in zip("xyz", "RAS")},
             **{f"rotation {to} (degrees)": float(signs[axis] * row[f"rotation_{axis}_deg"]) for axis, to in zip("xyz", "RAS")},
             "distance (mm)": row["displacement_mm"], "since the scan before (mm)": row["step_mm"]} for row in result["motion"]]
