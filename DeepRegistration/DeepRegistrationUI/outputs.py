"""Requests from the nodes of a scene, and results in it: what is sent to the worker, and what scripts put into the scene at once.

See mrml for the conventions, ``delivery`` for what a result looks like in the scene.
"""

from __future__ import annotations

import numpy as np

from DeepRegistrationLib import exchange, planes
from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.planes import Plane

from . import mrml, records
from .colors import DIVERGING
from .delivery import ROLES, deliver, deliver_steps, free_name, gather, put_into

__all__ = ["DIVERGING", "ROLES", "add_result", "apply_to", "deliver", "deliver_steps", "evaluate_request", "evaluate_steps", "free_name", "gather",
           "pair_from_nodes", "planes_of", "put_into", "request_from_nodes", "request_steps", "split"]
START_EDGE = 64
"""Nodes along the longest edge of the lattice on which a starting transform without one of its own (B-spline, thin plate) is read."""


def request_from_nodes(fixed, moving, **guides) -> dict:
    """``request_steps`` at once."""
    return exchange.finish(request_steps(fixed, moving, **guides))


def request_steps(fixed, moving, *, fixed_mask=None, moving_mask=None, fixed_mask_segment="", moving_mask_segment="", initial=None,
                  fixed_labels=None, moving_labels=None, fixed_points=None, moving_points=None, carriers=((), ())):
    """The 'register' request of two volume nodes for a worker, without torch; method, device and outputs are added by the caller. A generator
    that returns it; two volumes and landmarks alone take no step.

    fixed_mask, moving_mask: segmentation or volume nodes, see ``mrml.mask_steps``; fixed_mask_segment, moving_mask_segment: ID or IDs of the segments
    that count, all where empty. fixed_labels, moving_labels: segmentation or label map nodes. fixed_points, moving_points: markups nodes,
    sent row by row as they belong together. initial: a
    transform node (fixed -> moving is its from-parent transform), parts of a transform, or the name of a start. carriers: transform nodes without
    which the nodes of the fixed and of the moving side are read, see ``mrml.placement_of``. Arrays are views of the scene's memory. InputError for
    nodes that cannot be registered; voxels without a number are left to the worker.
    """
    _check_volumes(fixed, moving)
    request = {"command": "register", "fixed": mrml.volume_of(fixed, carriers[0]), "moving": mrml.volume_of(moving, carriers[1])}
    planes_of(fixed, moving, carriers)
    sides = ((fixed, "fixed", fixed_mask, fixed_mask_segment, fixed_labels, carriers[0]),
             (moving, "moving", moving_mask, moving_mask_segment, moving_labels, carriers[1]))
    if fixed_points is not None and moving_points is not None:
        request["fixed_points"], request["moving_points"] = mrml.paired_points(fixed_points, moving_points, carriers)
    for side, points, above in (("fixed", fixed_points, carriers[0]), ("moving", moving_points, carriers[1])):
        if points is not None and f"{side}_points" not in request:
            request[f"{side}_points"] = mrml.points_of(points, above)
    for volume, side, mask, segments, labels, above in sides:
        if mask is not None:
            chosen = tuple(s for s in ([segments] if isinstance(segments, str) else segments) if s)
            request[f"{side}_mask"] = yield from mrml.mask_steps(mask, volume, chosen, above)
        if labels is not None:
            request[f"{side}_labels"] = yield from mrml.labelmap_steps(labels, volume, carriers=above)
    if initial is not None and initial != "":
        request["initial"] = yield from _initial(initial, request["fixed"].grid)
    return request


def remark_steps(request: dict, fixed_labels, moving_labels, fixed_points, moving_points):
    """What the user should know of the structures and landmarks of a request, given as nodes or None: landmarks outside of their volume (not asked of
    slices, beside whose plane points may lie), how they are paired, segments that overlap. A generator that returns the sentences."""
    remarks = []
    for side in ("fixed", "moving"):
        if f"{side}_points" in request and 1 not in request[side].grid.size:
            remarks.append(exchange.far_points(request[f"{side}_points"].positions, request[side].grid, side, f"'{request[side].name}'"))
    remarks.append(mrml.pairing_remark(fixed_points, moving_points))
    for node in (fixed_labels, moving_labels):
        remarks.append((yield from mrml.overlap_steps(node)))
    return [remark for remark in remarks if remark]


def _initial(initial, grid):
    """A start's name or parts as they are, the parts of a transform node; a generator."""
    if not hasattr(initial, "GetTransformFromWorld"):
        return initial
    return (yield from mrml.parts_steps(initial, grid.resample(np.maximum(grid.extent / START_EDGE, grid.spacing))))


def _check_volumes(fixed, moving) -> None:
    """InputError, in the words of the scene, for two nodes that are not two grey volumes."""
    for node, side in ((fixed, "fixed"), (moving, "moving")):
        if node is None or not node.IsA("vtkMRMLScalarVolumeNode"):
            raise InputError(f"no {side} volume was given; choose one")
        if node.GetScene() is None:
            raise InputError(f"'{node.GetName()}' is not in the scene any more; choose another {side} volume")
    if fixed is moving:
        raise InputError(f"'{fixed.GetName()}' is both the fixed and the moving volume; choose two different volumes")
    for node in (fixed, moving):
        if mrml.is_color(node):
            raise InputError(color_sentence(node))


def color_sentence(node) -> str:
    """What to do with a color picture where gray values are needed."""
    return (f"'{node.GetName()}' is a color picture where one value per voxel is needed; press 'Convert to gray' (in Python: logic.gray(node)), "
            "register that, and carry the colors along with Transfer.")


def gray_node(node):
    """A new scalar volume node with the luminance of a color volume node, at its place and under its transform. InputError where it has none."""
    if not mrml.is_color(node):
        raise InputError(f"'{node.GetName()}' is no color picture; it is registered as it is")
    scene, matrix = node.GetScene(), mrml.vtk_matrix(np.eye(4))
    made = mrml.volume_node(scene, mrml.volume_of(node).luminance(), scene.GenerateUniqueName(f"{node.GetName()} gray"))
    node.GetIJKToRASMatrix(matrix)
    made.SetIJKToRASMatrix(matrix)
    made.SetAndObserveTransformNodeID(node.GetTransformNodeID())
    return made


def evaluate_request(roles: dict, **guides) -> dict:
    """``evaluate_steps`` at once."""
    return exchange.finish(evaluate_steps(roles, **guides))


def evaluate_steps(roles: dict, *, fixed_labels=None, moving_labels=None, fixed_points=None, moving_points=None):
    """The 'evaluate' request of a registration in the scene, role -> node with 'fixed', 'moving', 'linear' and, where there is one,
    'inverse'; the transform is the one that its nodes are now, and what lies under it is read as if it did not. A generator that returns it.
    InputError as ``request_steps``."""
    request = yield from request_steps(roles["fixed"], roles["moving"], fixed_labels=fixed_labels, moving_labels=moving_labels,
                                       fixed_points=fixed_points, moving_points=moving_points,
                                       carriers=(records.carriers_of(roles, "fixed"), records.carriers_of(roles, "moving")))
    parts = yield from mrml.parts_steps(roles["linear"], request["fixed"].grid)
    request |= {"command": "evaluate", "parts": parts}
    if roles.get("inverse") is not None:
        request["inverse"] = yield from mrml.parts_steps(roles["inverse"], request["moving"].grid)
    return request


def pair_from_nodes(fixed, moving, *, fixed_mask=None, moving_mask=None, initial=None, fixed_labels=None, moving_labels=None,
                    fixed_points=None, moving_points=None):
    """The request Pair of two volume nodes, see ``request_from_nodes``; needs torch. ``initial`` is a transform node. Two one-slice volumes
    become a 2D request in the planes of ``planes_of``."""
    from dataclasses import replace

    from DeepRegistrationLib.commands.jobs_pair import pair_of
    from DeepRegistrationLib.transforms.parts import from_parts

    request = request_from_nodes(fixed, moving, fixed_mask=fixed_mask, moving_mask=moving_mask, initial=initial, fixed_labels=fixed_labels,
                                 moving_labels=moving_labels, fixed_points=fixed_points, moving_points=moving_points)
    pair, frames = pair_of(request)
    return pair if initial is None else replace(pair, initial=frames.flattened(from_parts(request["initial"])))


def planes_of(fixed, moving, carriers=((), ())) -> tuple[Plane | None, Plane | None]:
    """The planes of two volume nodes, see ``DeepRegistrationLib.planes.planes_of``; ``carriers`` as in ``request_steps``."""
    grids = [mrml.grid_of(node, above) for node, above in zip((fixed, moving), carriers)]
    return planes.planes_of(*grids, (f"'{fixed.GetName()}'", f"'{moving.GetName()}'"))


def split(transform, grid):
    """(A, phi) with ``transform`` = A o phi, see ``transforms.parts.split``; needs torch."""
    from DeepRegistrationLib.transforms import parts

    return parts.split(transform, grid)


def add_result(result, fixed, moving, name: str = "Registration", *, inverse: bool = False, warped: bool = True,
               log_jacobian: bool = True) -> dict:
    """Put a Result of the volume nodes ``fixed`` and ``moving`` into their scene at once; returns role -> node as ``deliver``."""
    from DeepRegistrationLib.commands.jobs_pair import Frames
    from DeepRegistrationLib.transforms.parts import to_parts

    frames = Frames(mrml.grid_of(fixed), mrml.grid_of(moving), *planes_of(fixed, moving))
    affine, dense = split(result.transform, result.problem.fixed.grid)
    whole = affine if dense is None else affine @ dense
    entries: dict = {"transform": to_parts(frames.lifted(whole))}
    if inverse:
        entries["inverse"] = to_parts(frames.lifted(result.inverse, backward=True))
    if warped:
        entries["warped"] = frames.volume(result.warped.data, "warped")
    if log_jacobian:
        entries["log_jacobian"] = frames.volume(result.log_jacobian, "log-Jacobian")
    return exchange.finish(deliver(entries, fixed, moving, name))


def apply_to(node, nodes: dict) -> None:
    """Show a moving node (volume, segmentation, markups, model) on the fixed image: put it under the result's transforms.

    A node that already has a linear parent gets its placement as a node of its own between, so nothing else moves along.
    """
    placement = mrml.placement_node(node)
    if placement is not None:
        placement.SetAndObserveTransformNodeID(nodes["linear"].GetID())
        records.put_beside(nodes["linear"], [placement])
    node.SetAndObserveTransformNodeID((placement or nodes["linear"]).GetID())
