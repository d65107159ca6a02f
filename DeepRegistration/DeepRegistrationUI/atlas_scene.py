"""An atlas in the scene: its template while it is built, and what comes of it in one folder of the subject hierarchy."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import slicer

from DeepRegistrationLib.exchange import Matrix

from . import mrml, views
from .atlas_ages import SEQUENCE, deliver_sequence
from .delivery import gather, put_into
from .quality_tables import table_from_rows

MARK = "AtlasBuilder.role"
"""Attribute of volumes that this module has made; they are no subjects."""
VOLUMES = {
    "atlas.nii.gz": "atlas",
    "mean_log_jacobian.nii.gz": "mean log-Jacobian",
    "sd_log_jacobian.nii.gz": "deviation of the log-Jacobian",
}
LABELS = {"labels_staple.nii.gz": "labels, STAPLE", "labels_majority.nii.gz": "labels, majority"}


def show_template(volume, node=None):
    """Put the template of a build into the scene, or rewrite its ``node``, and show it in the slice views the first time. Returns the node."""
    if node is not None and node.GetScene() is None:
        node = None
    made = mrml.volume_node(slicer.mrmlScene, volume, "Template", node)
    if node is None:
        made.SetAttribute(MARK, "template")
        slicer.util.setSliceViewerLayers(background=made, fit=True)
    return made


def deliver_atlas(folder: Path, record: dict, rows: list[dict], transforms: bool, live=None) -> dict:
    """Load the files of a finished atlas; its template node ``live`` goes. Returns role -> node, subjects' transforms under their names."""
    nodes = {}
    for file, role in VOLUMES.items():
        if (folder / file).is_file():
            nodes[role] = slicer.util.loadVolume(str(folder / file), {"name": f"{folder.name} {role}", "show": False})
            nodes[role].SetAttribute(MARK, role)
    for file, role in LABELS.items():
        if (folder / file).is_file():
            nodes[role] = slicer.util.loadSegmentation(str(folder / file), {"name": f"{folder.name} {role}"})
    if (folder / SEQUENCE).is_file():
        nodes |= deliver_sequence(folder)
        nodes["atlas of an age"].SetAttribute(MARK, "atlas")
        nodes["growth"] = table_from_rows([with_units(row, record["dim"]) for row in record["growth"]], f"{folder.name} growth")
    if transforms and record["dim"] == 3:
        for name in record["subjects"]:
            path = folder / "subjects" / name / "transform.h5"
            nodes[name] = slicer.util.loadNodeFromFile(str(path), "TransformFile", {"name": f"{folder.name} to {name}"})
    nodes["quality"] = table_from_rows(
        [
            {"subject": row["name"], "status": row["status"], "quality": row["quality"], "remark": row["message"]}
            for row in rows
        ],
        f"{folder.name} quality",
    )
    if live is not None and live.GetScene() is not None:
        slicer.mrmlScene.RemoveNode(live)
    gather(slicer.mrmlScene, f"Atlas {folder.name}", nodes.values())
    shown = nodes.get("atlas of an age") or nodes.get("atlas")
    if shown is not None:
        slicer.util.setSliceViewerLayers(background=shown, fit=True)
    return nodes


def with_units(row: dict, dim: int) -> dict:
    """A row of growth with the units of its numbers in the heads; ages have that of the user's list."""
    units = {"volume": f"mm^{dim}", "length": "mm", "mean": "mm"}
    return {f"{key} ({units[key.split('_')[0]]})" if key.split("_")[0] in units else key: value for key, value in row.items()}


def deliver_carried(folder: Path, names: list[str], transforms: bool = False) -> dict:
    """Load what comes of subjects that were brought to the atlas in ``folder``: each image on the atlas, the labels of the atlas on the subject, and, if
    wanted, the map to it; (name, role) -> node."""
    nodes = {}
    for name in names:
        place = folder / "carried" / name
        if (place / "warped.nii.gz").is_file():
            nodes[name, "warped"] = slicer.util.loadVolume(str(place / "warped.nii.gz"), {"name": f"{name} on {folder.name}", "show": False})
            nodes[name, "warped"].SetAttribute(MARK, "carried")
        if (place / "labels.nii.gz").is_file():
            nodes[name, "labels"] = slicer.util.loadSegmentation(str(place / "labels.nii.gz"), {"name": f"labels of {folder.name} on {name}"})
        if transforms and (place / "transform.h5").is_file() and nodes[name, "warped"].GetImageData().GetDimensions()[2] > 1:
            nodes[name, "transform"] = slicer.util.loadNodeFromFile(str(place / "transform.h5"), "TransformFile", {"name": f"{folder.name} to {name}"})
    if nodes:
        title, hierarchy = f"Subjects on {folder.name}", slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        item = hierarchy.GetItemByName(title) or hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), title)
        put_into(slicer.mrmlScene, item, nodes.values())
    return nodes


def deliver_plane(result: dict, atlas) -> dict:
    """Put a slice that was found in the volume node ``atlas`` (None where it is gone) into the scene at its place, what the atlas shows there, and the
    transform that brings the slice as it was there; the views show slice over atlas. Returns role -> node."""
    scene, name = slicer.mrmlScene, result["slice"].name.partition(" in the atlas")[0]
    nodes = {role: mrml.volume_node(scene, result[role]) for role in ("slice", "plane")}
    nodes["transform"] = mrml.transform_node(scene, [Matrix(np.linalg.inv(result["matrix"].matrix))], f"{name} to the atlas")
    for role, node in nodes.items():
        node.SetAttribute(MARK, role)
    gather(scene, f"{name} in the atlas", nodes.values())
    if views.is_in(atlas, scene):
        views.show_layers(atlas, nodes["slice"], opacity=0.5, fit=True)
    return nodes


def named(nodes) -> dict:
    """Name -> node, names that can be those of folders; one that occurs more than once gets the number of its volume."""
    names = [re.sub(r'[/\\:*?"<>|]', "-", node.GetName()).strip(". ") or "volume" for node in nodes]
    return {
        name if names.count(name) == 1 else f"{name} ({k + 1})": node
        for k, (name, node) in enumerate(zip(names, nodes))
    }
