"""Which nodes belong to one registration: references and figures on its main transform node, saved and restored with the scene.

The main node is the deformation, or the linear transform where there is none. It refers to the nodes of the other roles
(linear, inverse, warped, log_jacobian, folds, metrics, chart, ...), and its attribute holds the figures and the settings as JSON.
"""

from __future__ import annotations

import json

from .delivery import put_into

ATTRIBUTE = "DeepRegistration.Result"
ROLE = "DeepRegistration."
MAIN = "vtkMRMLTransformNode"


def remember(nodes: dict, fixed, moving, figures: dict):
    """Note that ``nodes`` (role -> node) are one registration of two volume nodes; returns its main node.

    ``figures`` is anything that JSON can hold: metrics, method, values, seconds.
    """
    main = nodes.get("deformation") or nodes["linear"]
    main.SetAttribute(ATTRIBUTE, json.dumps(figures))
    for role, node in {**nodes, "fixed": fixed, "moving": moving}.items():
        if node is not None:
            main.SetNodeReferenceID(ROLE + role, node.GetID())
    return main


def is_record(node) -> bool:
    return node is not None and node.GetAttribute(ATTRIBUTE) is not None


def roles_of(main) -> dict:
    """Role -> node of a registration, without those that were deleted."""
    found, names = {}, []
    main.GetNodeReferenceRoles(names)
    for name in names:
        node = main.GetNodeReference(name) if name.startswith(ROLE) else None
        if node is not None:
            found[name.removeprefix(ROLE)] = node
    return found


def figures_of(main) -> dict:
    return json.loads(main.GetAttribute(ATTRIBUTE) or "{}")


def update(main, **figures) -> None:
    """Add figures to a registration."""
    main.SetAttribute(ATTRIBUTE, json.dumps({**figures_of(main), **figures}))


def start_node(main):
    """The transform node that carries the moving volume of a registration: the innermost one."""
    return main.GetNodeReference(ROLE + "linear") or main


def add_role(main, role: str, node) -> None:
    """One more node that belongs to the registration."""
    main.SetNodeReferenceID(ROLE + role, node.GetID())


def all_records(scene) -> list:
    """The main nodes of all registrations in a scene, oldest first."""
    found = scene.GetNodesByClass(MAIN)
    found.UnRegister(None)
    nodes = [found.GetItemAsObject(k) for k in range(found.GetNumberOfItems())]
    return [node for node in nodes if is_record(node)]


def remove(nodes: dict) -> None:
    """Take the nodes of a registration out of the scene, with their folder where nothing else lies in it."""
    import slicer

    scene = nodes["linear"].GetScene()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    folder = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(nodes["linear"]))
    for node in nodes.values():
        hierarchy.RemoveItem(hierarchy.GetItemByDataNode(node), False, False)
        scene.RemoveNode(node)
    if folder != hierarchy.GetSceneItemID() and hierarchy.GetNumberOfItemChildren(folder) == 0:
        hierarchy.RemoveItem(folder)


def put_beside(node, others) -> None:
    """Put ``others`` into the subject-hierarchy folder of ``node``."""
    import slicer

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(node.GetScene())
    folder = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) or hierarchy.GetSceneItemID()
    put_into(node.GetScene(), folder, others)
