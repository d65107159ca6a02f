"""What a registration leaves in the scene: transforms, warped volume, log-Jacobian map, in one folder, with their origins noted.

T = A o phi with A linear: the node of A is put under the node of phi (affine inner, deformation outer), so that moving data
under the node of A are shown on the fixed image. See mrml for the conventions.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from DeepRegistrationLib.errors import InputError

from . import mrml
from .planes import Plane, flatten, lift

DIVERGING = "DeepRegistration diverging"


def pair_from_nodes(fixed, moving, *, fixed_mask=None, moving_mask=None, initial=None, fixed_labels=None, moving_labels=None,
                    fixed_points=None, moving_points=None):
    """The request Pair of two volume nodes; masks and labels are segmentation or label map nodes, points are markups nodes,
    ``initial`` is a transform node. Two one-slice volumes become a 2D request in the planes of ``planes_of``."""
    from DeepRegistrationLib.problem import Pair

    planes = planes_of(fixed, moving)
    start = None if initial is None else mrml.transform_from_node(initial, mrml.grid_of(fixed))
    images = [mrml.image_from_volume(node, plane) for node, plane in zip((fixed, moving), planes)]
    if start is not None and planes[0] is not None:
        start = flatten(start, *planes, images[0].grid)
    images = [image if mask is None else image.with_mask(_labels(mask, node, plane))
              for image, mask, node, plane in zip(images, (fixed_mask, moving_mask), (fixed, moving), planes)]
    labels = [None if n is None else _labels(n, node, plane)
              for n, node, plane in zip((fixed_labels, moving_labels), (fixed, moving), planes)]
    points = [None if n is None else mrml.points_from_markups(n, plane) for n, plane in zip((fixed_points, moving_points), planes)]
    return Pair(*images, start, *labels, *points)


def planes_of(fixed, moving) -> tuple[Plane | None, Plane | None]:
    """The planes of two volume nodes, (None, None) for true volumes. The moving frame is the fixed one turned as little as
    possible, so the headers' relation is kept. InputError for a slice against a volume."""
    fixed_plane = mrml.plane_of(fixed)
    moving_plane = mrml.plane_of(moving, fixed_plane)
    if (fixed_plane is None) != (moving_plane is None):
        one, other = (fixed, moving) if fixed_plane else (moving, fixed)
        raise InputError(f"'{one.GetName()}' is a single slice and '{other.GetName()}' is a volume; choose two slices or two volumes")
    return fixed_plane, moving_plane


def _labels(node, reference, plane):
    if node.IsA("vtkMRMLSegmentationNode"):
        return mrml.labels_from_segmentation(node, reference, plane)
    return mrml.labels_from_volume(node, plane)


def split(transform, grid):
    """(A, phi) with ``transform`` = A o phi: the leading linear factors, and the rest as one Displacement (None where there is
    none), on its own lattice where it has one and read on ``grid`` otherwise."""
    from DeepRegistrationLib.transforms import Affine, Composite, Displacement, Identity
    from DeepRegistrationLib.transforms.base import linear_part

    rest = [item for item in (transform.items if isinstance(transform, Composite) else (transform,)) if not isinstance(item, Identity)]
    while rest and isinstance(rest[0], Affine):
        rest.pop(0)
    if not rest:
        return linear_part(transform), None
    dense = getattr(rest[0], "dense", rest[0])
    if len(rest) > 1 or not isinstance(dense, Displacement):
        dense = Displacement(Composite.of(*rest).field(grid), grid)
    return linear_part(transform), dense


def add_result(result, fixed, moving, name: str = "Registration", *, inverse: bool = False, warped: bool = True,
               log_jacobian: bool = True) -> dict:
    """Put a Result of the volume nodes ``fixed`` and ``moving`` into their scene; returns role -> node.

    'linear' and 'deformation' (where there is one; the first under the second), 'inverse' with its grid made explicit,
    'warped' and 'log_jacobian' on the fixed grid. All lie in one folder of the subject hierarchy.
    """
    scene, planes = fixed.GetScene(), planes_of(fixed, moving)
    nodes = _add_transforms(scene, _in_space(result.transform, *planes), mrml.grid_of(fixed), name, fixed, moving)
    if inverse:
        backward = _in_space(result.inverse, *planes[::-1])
        nodes["inverse"] = mrml.node_from_transform(scene, backward, f"{name} inverse", fixed=moving, moving=fixed)
    if warped:
        nodes["warped"] = mrml.volume_from_image(scene, result.warped, f"{name} warped", planes[0])
        if moving.GetDisplayNode() and nodes["warped"].GetDisplayNode():
            nodes["warped"].GetDisplayNode().CopyContent(moving.GetDisplayNode())
    if log_jacobian:
        image = replace(result.problem.fixed, data=result.log_jacobian, mask=None)
        nodes["log_jacobian"] = mrml.volume_from_image(scene, image, f"{name} log-Jacobian", planes[0])
        show_diverging(nodes["log_jacobian"], result.log_jacobian)
    gather(scene, name, nodes.values())
    return nodes


def _in_space(transform, fixed: Plane | None, moving: Plane | None):
    return transform if fixed is None else lift(transform, fixed, moving)


def _add_transforms(scene, transform, grid, name, fixed, moving) -> dict:
    affine, dense = split(transform, grid)
    nodes = {"linear": mrml.node_from_transform(scene, affine, f"{name} linear", fixed, moving)}
    if dense is not None:
        nodes["deformation"] = mrml.node_from_transform(scene, dense, f"{name} deformation", fixed, moving)
        nodes["linear"].SetAndObserveTransformNodeID(nodes["deformation"].GetID())
    return nodes


def apply_to(node, nodes: dict) -> None:
    """Show a moving node (volume, segmentation, markups, model) on the fixed image: put it under the result's transforms.

    A node that already has a linear parent gets its placement as a node of its own between, so nothing else moves along.
    """
    placement = mrml.placement_node(node)
    if placement is not None:
        placement.SetAndObserveTransformNodeID(nodes["linear"].GetID())
        _place_beside(placement, nodes["linear"])
    node.SetAndObserveTransformNodeID((placement or nodes["linear"]).GetID())


def live_nodes(fixed, moving, name: str = "Live", spacing: float = 4.0) -> dict:
    """Transform nodes 'linear' and 'deformation' of the identity for ``show_preview``; the lattice covers the fixed image at
    about ``spacing`` mm, with a ring of zeros."""
    import torch

    from DeepRegistrationLib.transforms import Affine, Displacement

    scene, planes = fixed.GetScene(), planes_of(fixed, moving)
    whole = mrml.grid_of(fixed)
    grid = whole.resample(spacing) if planes[0] is None else planes[0].solid(planes[0].flat(whole).resample(spacing))
    grid = grid.pad([1 if n > 1 else 0 for n in grid.size])
    dense = Displacement(torch.zeros((1, 3, *grid.shape)), grid)
    nodes = {"linear": mrml.node_from_transform(scene, Affine.identity(3), f"{name} linear", fixed, moving),
             "deformation": mrml.node_from_transform(scene, dense, f"{name} deformation", fixed, moving)}
    nodes["linear"].SetAndObserveTransformNodeID(nodes["deformation"].GetID())
    return nodes


def show_preview(nodes: dict, transform, planes: tuple = (None, None)) -> None:
    """Write the current ``transform`` of a run into ``live_nodes``: the matrix where it changed, and the lattice in place."""
    from DeepRegistrationLib.transforms import Identity

    lattice = mrml.lattice_of(nodes["deformation"].GetTransformFromParentAs("vtkOrientedGridTransform"))
    affine, dense = split(_in_space(transform, *planes), lattice)
    mrml.update_linear(nodes["linear"], affine)
    mrml.update_grid(nodes["deformation"], Identity(3) if dense is None else dense)


def gather(scene, name: str, nodes) -> int:
    """Put ``nodes`` into the new subject-hierarchy folder ``name``; returns the folder's item."""
    import slicer

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), name)
    for node in nodes:
        item = hierarchy.GetItemByDataNode(node)
        if item:
            hierarchy.SetItemParent(item, folder)
        else:
            hierarchy.CreateItem(folder, node)
    return folder


def _place_beside(node, other) -> None:
    """Put ``node`` into the subject-hierarchy folder of ``other``."""
    import slicer

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(node.GetScene())
    folder = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(other)) or hierarchy.GetSceneItemID()
    hierarchy.CreateItem(folder, node)


def show_diverging(node, values) -> None:
    """Display a map blue - white - red, symmetric about 0, to the 99th percentile of its magnitude."""
    display = node.GetDisplayNode()
    if display is None:
        return
    sample = values.detach().flatten()
    sample = sample[:: max(1, len(sample) // 100_000)].abs().cpu().numpy()
    limit = max(float(np.percentile(sample, 99)), 0.1)
    display.SetAndObserveColorNodeID(_diverging(node.GetScene(), limit).GetID())
    display.SetAutoWindowLevel(0)
    display.SetWindowLevelMinMax(-limit, limit)


def _diverging(scene, limit: float):
    """A procedural colour node of this extension, made once a scene for a range of -1 to 1 (Slicer scales it to the window)."""
    found = scene.GetFirstNodeByName(DIVERGING)
    if found is not None:
        return found
    node = scene.AddNewNodeByClass("vtkMRMLProceduralColorNode", DIVERGING)
    colors = node.GetColorTransferFunction()
    for position, color in ((-1.0, (0.02, 0.19, 0.70)), (0.0, (1.0, 1.0, 1.0)), (1.0, (0.70, 0.02, 0.05))):
        colors.AddRGBPoint(position, *color)
    return node
