"""Which nodes belong to one registration: references and figures on its main transform node, saved and restored with the scene.

The main node is the deformation, or the linear transform where there is none. It refers to the nodes of the other roles
(linear, inverse, warped, log_jacobian, folds, metrics, chart, ...), and its attribute holds the figures and the settings as JSON.
"""

from __future__ import annotations

import json

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.geometry import Grid

from . import mrml, views
from .delivery import put_into

ATTRIBUTE = "DeepRegistration.Result"
ROLE = "DeepRegistration."
PLACES = "DeepRegistration.Places"
"""Attribute of the main node: the grids that the fixed and the moving volume had, as JSON."""
FRAMES = "DeepRegistration.ShownFrames"
"""Attribute of the main node: the frames of sequences that the fixed and the moving volume showed, as JSON; see ``shown_frame``."""
MAIN = "vtkMRMLTransformNode"
UNDER = "DeepRegistrationUnder."
"""With a side, role of the main node: the transform nodes that were above this volume when it was registered, which are part of its place."""
INVERSE_OF = "DeepRegistration.inverseOf"
"""Reference of the inverse node that a live transfer made to the transform; an ID by itself would mean another node in a scene that is added."""


LIVE = "DeepRegistration.live"
"""Attribute of the transform nodes of a live view: a moving volume that is under them belongs where it was before."""


def remember(nodes: dict, fixed, moving, figures: dict, grids=(), above=((), ()), frames=()):
    """Note that ``nodes`` (role -> node) are one registration of two volume nodes; returns its main node.

    ``figures`` is anything that JSON can hold: metrics, method, values, seconds; ``grids`` those of both volumes when they were registered,
    ``above`` the transform nodes above each, and ``frames`` of sequences that they showed.
    """
    main = nodes.get("deformation") or nodes["linear"]
    main.SetAttribute(ATTRIBUTE, json.dumps(figures))
    for side, parents in zip(("fixed", "moving"), above):
        for k, node in enumerate(node for node in parents if node.GetScene() is not None):
            main.SetNthNodeReferenceID(UNDER + side, k, node.GetID())
    main.SetAttribute(PLACES, json.dumps([{"shape": list(grid.shape), "affine": grid.affine.tolist()} for grid in grids]))
    main.SetAttribute(FRAMES, json.dumps(frames))
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


def require_whole(roles: dict) -> None:
    """InputError where a volume or the linear transform of a registration was deleted."""
    for name in ("fixed", "moving", "linear"):
        if name not in roles:
            raise InputError(f"the {name} {'transform' if name == 'linear' else 'volume'} of this registration was deleted; choose another registration")


def figures_of(main) -> dict:
    return json.loads(main.GetAttribute(ATTRIBUTE) or "{}")


def update(main, **figures) -> None:
    """Add figures to a registration."""
    main.SetAttribute(ATTRIBUTE, json.dumps({**figures_of(main), **figures}))


def start_node(main):
    """The transform node that carries the moving volume of a registration: the innermost one."""
    return main.GetNodeReference(ROLE + "linear") or main


def carriers_of(transforms: dict, side: str) -> tuple:
    """The transform nodes that show nodes of one ``side``, 'fixed' or 'moving', of a result (role -> node) on another image: its own, and those of
    other results of the same volume. What lies under one of them has been carried already, and is read without it (``mrml.placement_of``), so
    that nothing is carried twice. A result that the volume was under when it was registered is part of its place and none of them."""
    main = transforms.get("deformation") or transforms["linear"]
    under = [main.GetNthNodeReference(UNDER + side, k) for k in range(main.GetNumberOfNodeReferences(UNDER + side))]
    found = (*_carriers(transforms, side), *_carriers_of_volume(transforms.get(side), side))
    return tuple(node for node in found if not any(node is each for each in under))


def places_under(main) -> list[str]:
    """Names of the transform nodes that the volumes of a registration were under when it was made: their places are not those of their files."""
    nodes = [main.GetNthNodeReference(UNDER + side, k) for side in ("fixed", "moving") for k in range(main.GetNumberOfNodeReferences(UNDER + side))]
    return [f"'{node.GetName()}'" for node in nodes if node is not None]


def carriers_around(volume, side: str) -> tuple:
    """The same for the masks, structures and landmarks that go with a ``volume`` to be registered; none where the volume is under one of them itself,
    because they are seen together then."""
    found = _carriers_of_volume(volume, side)
    return () if mrml.is_carried(volume, found) else found


def _carriers_of_volume(volume, side: str) -> tuple:
    """Those of all results of a volume, and of a live view."""
    if volume is None:
        return ()
    results = [roles_of(main) for main in all_records(volume.GetScene())]
    live = [node for node in views.nodes_of(volume.GetScene(), MAIN) if node.GetAttribute(LIVE) is not None]
    return tuple(node for result in results if result.get(side) is volume for node in _carriers(result, side)) + tuple(live)


def _carriers(result: dict, side: str) -> tuple:
    if side == "moving":
        found = [result.get(role) for role in ("linear", "deformation", "linear_part")]
    else:
        found = [result.get("inverse"), made_inverse(result.get("linear"))]
    return tuple(node for node in found if node is not None)


def made_inverse(linear):
    """The inverse node that a live transfer has made for a result without one, None where there is none."""
    nodes = [] if linear is None else views.nodes_of(linear.GetScene(), MAIN)
    return next((node for node in nodes if node.GetNodeReference(INVERSE_OF) is linear), None)


def shown_frame(volume) -> dict | None:
    """Which frame of a sequence a volume node shows: {"number" from 1, "value" of the index, "text"}; None where it is no proxy of a browser."""
    for browser in views.nodes_of(volume.GetScene(), "vtkMRMLSequenceBrowserNode"):
        sequence = browser.GetSequenceNode(volume)
        if sequence is not None and 0 <= browser.GetSelectedItemNumber() < sequence.GetNumberOfDataNodes():
            number = browser.GetSelectedItemNumber()
            value = sequence.GetNthIndexValue(number)
            index = f"{sequence.GetIndexName()} {value} {sequence.GetIndexUnit()}".strip()
            return {"number": number + 1, "value": value, "text": f"frame {number + 1} ({index})"}
    return None


def remark_on_places(main) -> str:
    """What the user of a registration should know of volumes that were moved, hardened or cropped since it was made, or show another frame of their
    sequence; '' where there are none."""
    return "; ".join(filter(None, (_moved(main), _other_frames(main))))


def _other_frames(main) -> str:
    """The volumes that show another frame now than the one that was registered."""
    roles, remarks = roles_of(main), []
    for side, then in zip(("fixed", "moving"), json.loads(main.GetAttribute(FRAMES) or "[]")):
        now = shown_frame(roles[side]) if then is not None and side in roles else None
        if now is not None and now["value"] != then["value"]:
            remarks.append(f"'{roles[side].GetName()}' shows {now['text']} of its sequence now, the registration is one of {then['text']}")
    return "; ".join(remarks)


def _moved(main) -> str:
    """The volumes that are not where they were."""
    roles, moved = roles_of(main), []
    for side, place in zip(("fixed", "moving"), json.loads(main.GetAttribute(PLACES) or "[]")):
        if side in roles and "linear" in roles and not _stands(roles[side], Grid(place["shape"], place["affine"]), carriers_of(roles, side)):
            moved.append(f"'{roles[side].GetName()}'")
    if not moved:
        return ""
    verb = "was" if len(moved) == 1 else "were"
    return f"{' and '.join(moved)} {verb} moved, hardened or cropped since the registration began; its result fits what was there then"


def _stands(node, grid: Grid, carriers) -> bool:
    """True where a volume node has this grid without ``carriers``."""
    try:
        return mrml.grid_of(node, carriers).same_as(grid)
    except InputError:
        return False


def add_role(main, role: str, node) -> None:
    """One more node that belongs to the registration."""
    main.SetNodeReferenceID(ROLE + role, node.GetID())


def all_records(scene) -> list:
    """The main nodes of all registrations in a scene, oldest first."""
    return [node for node in views.nodes_of(scene, MAIN) if is_record(node)]


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
