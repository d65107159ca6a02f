"""Nodes under the transforms of a result, and out again: a node's own linear placement stays what it was."""

from __future__ import annotations

from . import mrml, outputs

PLACEMENT = "DeepRegistration.placement"
"""Reference of the node that holds the placement which a node had before it was put under a result, to that node."""


SHOWN = "DeepRegistration.shown"
"""Mark (see ``lend``) of a volume that Quality control shows under a result; a scene may be saved meanwhile."""


def lend(node, transforms: dict, mark: str) -> None:
    """``put_under``, with an attribute and a node reference ``mark`` that say, also in a saved scene, where the node was before."""
    parent = node.GetParentTransformNode()
    node.SetAttribute(mark, "none" if parent is None else parent.GetID())
    node.SetNodeReferenceID(mark, None if parent is None else parent.GetID())
    put_under(node, transforms)


def give_back(node, mark: str) -> bool:
    """Put a node back that ``lend`` has put under a result with this ``mark``; False where it was not."""
    if node.GetScene() is None or node.GetAttribute(mark) is None:
        return False
    take_out(node, node.GetNodeReference(mark))
    node.RemoveAttribute(mark)
    node.SetNodeReferenceID(mark, None)
    return True


def put_under(node, transforms: dict):
    """Put ``node`` under ``transforms['linear']`` (see ``outputs.apply_to``) unless it is there; returns its parent transform node."""
    linear = transforms["linear"]
    if not mrml.is_carried(node, (linear,)):
        outputs.apply_to(node, transforms)
        parent = node.GetParentTransformNode()
        if parent is not linear:
            parent.SetNodeReferenceID(PLACEMENT, node.GetID())
    return node.GetParentTransformNode()


def take_out(node, parent) -> None:
    """Put ``node`` back under ``parent`` (None: under none), and remove the placement node that was made for it."""
    between = node.GetParentTransformNode()
    node.SetAndObserveTransformNodeID(None if parent is None else parent.GetID())
    if between is not None and between is not parent and between.GetNodeReference(PLACEMENT) is node:
        node.GetScene().RemoveNode(between)
