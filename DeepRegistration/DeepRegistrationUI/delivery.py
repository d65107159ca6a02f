"""The result of a registration put into the scene, step by step, all of it or nothing.

T = A o phi with A linear: the node of A is put under the node of phi (affine inner, deformation outer), so that moving data under the node
of A are shown on the fixed image. Every transform node refers to the volumes it was made from, and all nodes lie in one folder of the
subject hierarchy. Arrays are copied into VTK's memory in small parts first; nodes are made when all are there, one a step.
"""

from __future__ import annotations

import math

from DeepRegistrationLib.errors import InputError

from . import mrml
from .colors import display_of, diverging_colors, look_like, magnitude_limit

FOLDS = "DeepRegistration folds"
ROLES = ("linear", "inverse", "warped", "log_jacobian", "folds", "metrics", "chart")
PANEL = {"linearPart": "linear", "inverse": "inverse", "warped": "warped", "logJacobian": "log_jacobian", "folds": "folds", "metrics": "metrics",
         "lossChart": "chart"}


def deliver(result: dict, fixed, moving, name: str = "Registration", wanted=ROLES):
    """Put the ``result`` of a register job (see commands/jobs.py) of the volume nodes ``fixed`` and ``moving`` into their scene: a generator
    of steps of a few hundredths of a second, which returns role -> node.

    Roles: 'linear' and 'deformation' (where there is one; the first under the second) always; of ``wanted`` and as far as the result has
    them 'inverse', 'warped', 'log_jacobian', 'folds' (a label map, red), 'metrics' (a table), 'chart' with its table 'loss'. InputError
    where a volume was deleted meanwhile. After an error, and where the generator is closed before its end, no new node is left.
    """
    scene, made = fixed.GetScene(), {}
    _require_volumes(scene, fixed, moving)
    steps = [(role, make) for role, make in _makers(result, fixed, moving, name) if role in (*wanted, "deformation", "linear")]
    try:
        ready = []
        for role, prepare in steps:
            data = yield from prepare(scene)
            ready.append((role, data))
        for role, add in ready:
            _require_volumes(scene, fixed, moving)
            with _Noted(scene, made):
                add(made)
            yield
        _require_volumes(scene, fixed, moving)
        nodes = {role: node for role, node in made.items() if isinstance(role, str)}
        if "deformation" in nodes:
            nodes["linear"].SetAndObserveTransformNodeID(nodes["deformation"].GetID())
        gather(scene, name, nodes.values())
        return nodes
    except BaseException:
        _remove(scene, made)
        raise


def deliver_steps(job, fixed, moving, name: str, outputs):
    """``deliver`` of a finished job with the names of the panel's choices, see ``PANEL``."""
    return deliver(job.result, fixed, moving, name, tuple(PANEL[each] for each in outputs if each in PANEL))


def _require_volumes(scene, *nodes) -> None:
    for node in nodes:
        if node is None or scene is None or node.GetScene() is not scene:
            name = "a volume" if node is None else f"'{node.GetName()}'"
            raise InputError(f"{name} was deleted during the registration, so its result was not put into the scene; choose both volumes again")


class _Noted:
    """Notes in ``made`` every node that is added to the scene inside the block, under its ID; roles are noted by the block itself."""

    def __init__(self, scene, made: dict):
        self.scene, self.made = scene, made

    def __enter__(self):
        self.before = _identifiers(self.scene)

    def __exit__(self, *error):
        for identifier in _identifiers(self.scene) - self.before:
            node = self.scene.GetNodeByID(identifier)
            if node is not None and not node.IsA("vtkMRMLColorNode") and not node.IsA("vtkMRMLSubjectHierarchyNode"):
                self.made[(identifier,)] = node


def _identifiers(scene) -> set:
    nodes = scene.GetNodes()
    return {nodes.GetItemAsObject(n).GetID() for n in range(nodes.GetNumberOfItems())}


def _remove(scene, made: dict) -> None:
    """Remove what a delivery that came to no end has made."""
    if scene is None:
        return
    for node in reversed([node for role, node in made.items() if not isinstance(role, str)]):
        if node.GetScene() is scene:
            scene.RemoveNode(node)


# ------------------------------------------------------------------------------------------------------------ the parts
#
# A maker is (role, prepare): ``prepare(scene)`` is a generator that copies and returns ``add``, and ``add(made)`` makes the node in one go.


def _makers(result: dict, fixed, moving, name: str):
    parts = list(result["transform"])
    for role, part in zip(("linear", "deformation"), parts):
        yield role, _transform([part], role, f"{name} {role}", fixed, moving)
    if "inverse" in result:
        yield "inverse", _transform(list(result["inverse"]), "inverse", f"{name} inverse", moving, fixed)
    if "warped" in result:
        yield "warped", _image(result["warped"], "warped", f"{name} warped", lambda node: look_like(node, moving))
    if "log_jacobian" in result:
        value = result["log_jacobian"]
        yield "log_jacobian", _image(value, "log_jacobian", f"{name} log-Jacobian", lambda node: show_diverging(node, value.array))
    if "folds" in result:
        yield "folds", _image(result["folds"], "folds", f"{name} folds", show_folds)
    if result.get("metrics"):
        yield "metrics", _table(result["metrics"], f"{name} metrics")
    if result.get("history"):
        yield "chart", _chart(result["history"], f"{name} loss")


def _transform(parts, role: str, name: str, fixed, moving):
    def prepare(scene):
        data = yield from mrml.vtk_steps(parts)

        def add(made):
            made[role] = mrml.node_of_vtk_transform(scene, data, name, fixed, moving)

        return add

    return prepare


def _image(value, role: str, name: str, show):
    def prepare(scene):
        data = yield from mrml.volume_steps(value)

        def add(made):
            made[role] = mrml.node_of_vtk_image(scene, data, value, name, display=False)
            show(made[role])

        return add

    return prepare


def _table(rows, name: str):
    def prepare(scene):
        yield

        def add(made):
            from .quality_tables import table_from_rows

            made["metrics"] = table_from_rows(rows, name, scene)

        return add

    return prepare


def _chart(history, name: str):
    def prepare(scene):
        yield

        def add(made):
            from .live_records import LossChart

            chart = LossChart(scene, name, lambda: -math.inf)
            for figures in history:
                chart.add(figures)
            chart.draw()
            made["chart"], made["loss"] = chart.nodes["chart"], chart.nodes["table"]

        return add

    return prepare


# ------------------------------------------------------------------------------------------------------- how they look


def show_diverging(node, values) -> None:
    """Display a map blue - white - red, symmetric about 0, to the 99th percentile of its magnitude."""
    limit, display = magnitude_limit(values), display_of(node)
    display.SetAndObserveColorNodeID(diverging_colors(node.GetScene()).GetID())
    display.SetWindowLevelMinMax(-limit, limit)


def show_folds(node) -> None:
    """Display a label map of folds: 1 is red, 0 is nothing."""
    scene = node.GetScene()
    colors = scene.GetFirstNodeByName(FOLDS)
    if colors is None:
        colors = scene.AddNewNodeByClass("vtkMRMLColorTableNode", FOLDS)
        colors.SetTypeToUser()
        colors.SetNumberOfColors(2)
        colors.SetColor(0, "no fold", 0.0, 0.0, 0.0, 0.0)
        colors.SetColor(1, "fold", 0.9, 0.05, 0.05, 1.0)
    display = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeDisplayNode")
    display.SetAndObserveColorNodeID(colors.GetID())
    node.SetAndObserveDisplayNodeID(display.GetID())


def free_name(scene, name: str) -> str:
    """``name``, or ``name (2)`` and so on where the scene has a result of that name already, so that both can be told apart."""
    import slicer

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    free, number = name, 1
    while scene.GetFirstNodeByName(f"{free} linear") or hierarchy and hierarchy.GetItemChildWithName(hierarchy.GetSceneItemID(), free):
        number += 1
        free = f"{name} ({number})"
    return free


def gather(scene, name: str, nodes) -> int:
    """Put ``nodes`` into the new subject-hierarchy folder ``name``; returns the folder's item."""
    import slicer

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), name)
    put_into(scene, folder, nodes)
    return folder


def put_into(scene, folder: int, nodes) -> None:
    """Put ``nodes`` into the ``folder`` (an item) of the subject hierarchy."""
    import slicer

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    for node in nodes:
        item = hierarchy.GetItemByDataNode(node)
        if item:
            hierarchy.SetItemParent(item, folder)
        else:
            hierarchy.CreateItem(folder, node)
