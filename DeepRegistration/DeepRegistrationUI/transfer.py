"""Carry segmentations, label maps, landmarks, curves, models and volumes through a registration, both ways, as copies or live.

A registration is T: fixed points -> moving points. What is carried moving -> fixed is an image read at T(x), or a point moved by the
inverse of T; what is carried fixed -> moving is the other way round.

* Copies of points, curves, models and closed surfaces are moved by the scene's transforms, point by point: exact.
* Copies of volumes, label maps and segmentations made of voxels are read by the library's own sampler, in the worker, on exactly the
  voxels of the reference volume: linearly, labels by nearest neighbour, each layer of overlapping segments for itself.
* Live means that the node itself is put under the transforms (towards moving: under the inverse), with its own linear placement kept;
  ``release`` takes it out again. A copy of a node that is live already is made of what it was before.

All or nothing: where anything fails, no new node is left and no node has moved.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from DeepRegistrationLib.errors import InputError, RegistrationError

from . import mrml, outputs, transfer_voxels, views
from .placement import give_back, lend
from .records import INVERSE_OF, carriers_of, made_inverse
from .steps import advance

TO_FIXED, TO_MOVING = "moving_to_fixed", "fixed_to_moving"
MODES = ("copy", "live")
BEFORE = "DeepRegistration.before"
"""Mark of a live node, see ``placement.lend``."""
STIFF = ("vtkMRMLMarkupsROINode", "vtkMRMLMarkupsPlaneNode")
"""Markups that the scene would only move and stretch under a deformation."""


def transfer(nodes, transforms: dict, direction: str = TO_FIXED, reference=None, mode: str = "copy", runner=None, *,
             outside_nan: bool = False, timeout: float = 600.0) -> list:
    """Carry ``nodes`` (one or several) to the other image and wait for it; the new nodes (mode 'copy') or the nodes themselves ('live').

    transforms: role -> node as ``outputs.add_result`` returns ('linear', and where there are 'deformation', 'inverse');
    direction 'moving_to_fixed' or 'fixed_to_moving'; reference: the volume node whose voxels images get and after which copies are
    named, default: the one that is noted on the transforms; runner: see ``job``, needed for copies of what is made of voxels;
    outside_nan: NaN (as float32) instead of 0 where a volume has no values; timeout seconds. InputError with one sentence.
    """
    work = Transfer(nodes, transforms, direction, reference, mode, runner, outside_nan=outside_nan)
    work.start()
    until = time.monotonic() + timeout
    while work.tick():
        runner.tick()
        if time.monotonic() > until:
            work.cancel()
            raise InputError(f"the transfer took longer than {timeout:g} s and was stopped; allow more time or use a coarser reference")
        time.sleep(0.002)
    if work.state != "done":
        raise InputError(work.message)
    return work.made


@dataclass(frozen=True)
class _Shape:
    """A node whose points are moved by the scene."""

    node: object


class Transfer:
    """``transfer`` without waiting: ``start`` it, and call ``tick()`` and ``runner.tick()`` from a timer while ``state`` is 'running'.

    ``on_end(transfer)`` is called once, when ``state`` is 'done' (``made``: the nodes), 'failed' (``message``) or 'cancelled'. An input that
    cannot be used raises InputError from the constructor or from ``start``, before anything was changed.
    """

    def __init__(self, nodes, transforms: dict, direction: str = TO_FIXED, reference=None, mode: str = "copy", runner=None, *,
                 outside_nan: bool = False, on_end=None):
        self.nodes = list(nodes) if isinstance(nodes, (list, tuple)) else [nodes]
        self.transforms, self.direction, self.mode, self.runner = dict(transforms), direction, mode, runner
        self.outside_nan, self._on_end = outside_nan, on_end
        self.state, self.message, self.made, self.job, self._live = "waiting", "", [], None, []
        self._steps = None
        self._require_sound(direction, mode)
        self.scene = self.transforms["linear"].GetScene()
        self.reference = reference or self._noted_reference()
        if mode == "copy" and not views.is_in(self.reference, self.scene):
            raise InputError("it is not known onto which volume the data are to be carried; choose a reference volume")

    def _require_sound(self, direction: str, mode: str) -> None:
        if direction not in (TO_FIXED, TO_MOVING) or mode not in MODES:
            raise InputError(f"a transfer '{direction}' as '{mode}' was asked for; expected '{TO_FIXED}' or '{TO_MOVING}', and 'copy' or 'live'")
        if not self.nodes:
            raise InputError("no node was given to carry; choose at least one")
        linear = self.transforms.get("linear")
        if linear is None or linear.GetScene() is None:
            raise InputError("the transforms of this registration are not in the scene any more; choose another result or run it again")
        for node in self.nodes:
            transfer_voxels.kind_of(node)

    def _noted_reference(self):
        """The volume that the transform nodes name as fixed (moving for the way to moving)."""
        side = "fixed" if self.direction == TO_FIXED else "moving"
        for node in (self.transforms.get(side), *(self._noted(self.transforms.get(role), side) for role in ("deformation", "linear"))):
            if views.is_in(node, self.scene):
                return node
        return None

    @staticmethod
    def _noted(node, side: str):
        if node is None:
            return None
        role = node.GetFixedNodeReferenceRole() if side == "fixed" else node.GetMovingNodeReferenceRole()
        return node.GetNodeReference(role)

    # --------------------------------------------------------------------------------------------------------------- run

    def start(self) -> None:
        """Do what the scene does at once, and send the rest to the worker."""
        self.state = "running"
        try:
            if self.mode == "live":
                self._go_live()
                self.made = list(self.nodes)
                self._end("done")
                return
            carriers = carriers_of(self.transforms, "moving" if self.direction == TO_FIXED else "fixed")
            tasks = [transfer_voxels.task_of(node, self.outside_nan, carriers) or _Shape(node) for node in self.nodes]
            voxels = [task for task in tasks if not isinstance(task, _Shape)]
            if voxels and self.runner is None:
                raise InputError(f"'{voxels[0].name}' is made of voxels, which are carried by the worker; give a runner")
            self._copy_shapes(tasks, carriers)
            if voxels:
                self._steps = self._send(voxels)
                self._advance(0.0)
            else:
                self._end("done")
        except BaseException:
            self._undo()
            self.state = "failed"
            raise

    def cancel(self) -> None:
        """Stop; the nodes made so far are removed and ``on_end`` is called with the state 'cancelled'."""
        if self.state != "running":
            return
        if self.job is not None:
            self.job.cancel()
        self._undo()
        self._end("cancelled")

    def tick(self) -> bool:
        """A slice of reading the transforms or of making nodes; True while the transfer runs."""
        if self.state == "running" and not views.is_in(self.transforms["linear"], self.scene):
            self.cancel()
        elif self.state == "running" and self._steps is not None:
            try:
                self._advance()
            except (RegistrationError, OSError) as error:
                self._fail(str(error))
        return self.state == "running"

    def _advance(self, *seconds: float) -> None:
        if advance(self._steps, *seconds)[0]:
            self._steps = None

    def _fail(self, sentence: str) -> None:
        self._undo()
        self.message = sentence
        self._end("failed")

    def _send(self, voxels):
        """One job for all that is made of voxels; a generator."""
        inputs = [value for task in voxels for value in task.inputs]
        parts = yield from self._parts()
        request = {"command": "warp", "parts": list(parts), "reference": self._lattice(), "inputs": inputs}
        self.job = self.runner.submit(request, lambda job, event: self._hear(job, event, voxels))

    def _lattice(self):
        """The voxels of the reference volume where it was registered, also while it is shown on the other image."""
        return mrml.grid_of(self.reference, carriers_of(self.transforms, "fixed" if self.direction == TO_FIXED else "moving"))

    def _parts(self):
        """The map of points of the reference image to the other one, as exchange values; a generator."""
        grid = self._lattice()
        if self.direction == TO_FIXED:
            return (yield from mrml.parts_steps(self.transforms["linear"], grid))
        inverse = self.transforms.get("inverse")
        if views.is_in(inverse, self.scene):
            return (yield from mrml.parts_steps(inverse, grid))
        return transfer_voxels.inverted((yield from mrml.parts_steps(self.transforms["linear"], grid)))

    def _hear(self, job, event: dict, voxels) -> None:
        """An event of the worker."""
        if self.state != "running" or event["event"] not in ("done", "failed", "cancelled"):
            return
        if event["event"] == "failed":
            self._fail(event["message"])
        elif event["event"] == "cancelled":
            self._undo()
            self._end("cancelled")
        else:
            self._steps = self._add_voxels(voxels, event["result"]["outputs"])

    def _add_voxels(self, voxels, answers):
        """The nodes of the worker's answers; a generator."""
        answers = list(answers)
        place = views.is_in(self.reference, self.scene) and self.reference.GetName() or "reference"
        for task in voxels:
            mine, answers = answers[:len(task.inputs)], answers[len(task.inputs):]
            self.made.append((yield from task.add(self.scene, mine, f"{task.name} on {place}")))
        self._end("done")

    def _end(self, state: str) -> None:
        if state == "done" and self.mode == "copy":
            gather_once(self.scene, f"On {self.reference.GetName()}", self.made)
        self.state, self._steps = state, None
        if self.job is not None:
            self.job.discard()
        if self._on_end is not None:
            self._on_end(self)

    def _undo(self) -> None:
        """Remove what was made and put back what was moved."""
        if self.mode == "copy":
            for node in self.made:
                if views.is_in(node, self.scene):
                    views.remove(node)
            self.made = []
        release(self._live)

    # ------------------------------------------------------------------------------------------------- by the scene itself

    def _copy_shapes(self, tasks, carriers) -> None:
        general = map_of(self.transforms["linear"], self.direction)
        for task in tasks:
            if isinstance(task, _Shape):
                require_movable(task.node, general)
                self.made.append(clone(task.node, f"{task.node.GetName()} on {self.reference.GetName()}", carriers))
                move(self.made[-1], general)

    def _go_live(self) -> None:
        above = self.transforms if self.direction == TO_FIXED else {"linear": self._inverse_node()}
        for node in self.nodes:
            if mrml.is_carried(node, (above["linear"],)):
                continue
            release([node])
            self._live.append(node)
            lend(node, above, BEFORE)

    def _inverse_node(self):
        """The explicit inverse where the result has one; otherwise a node whose to-parent transform is T, made once."""
        if views.is_in(self.transforms.get("inverse"), self.scene):
            return self.transforms["inverse"]
        linear = self.transforms["linear"]
        node = made_inverse(linear)
        if node is not None:
            return node
        node = self.scene.AddNewNodeByClass("vtkMRMLTransformNode", f"{linear.GetName()} inverse")
        node.SetAndObserveTransformToParent(map_of(linear, TO_MOVING))
        node.SetNodeReferenceID(INVERSE_OF, linear.GetID())
        return node


def release(nodes) -> list:
    """Undo mode 'live': the nodes are where they were before; others are left alone. Returns those that were live."""
    return [node for node in (nodes if isinstance(nodes, (list, tuple)) else [nodes]) if give_back(node, BEFORE)]


def map_of(linear, direction: str):
    """vtkGeneralTransform (RAS) that moves points moving -> fixed (the inverse of T) or fixed -> moving (T) by a result's transforms."""
    import vtk

    general = vtk.vtkGeneralTransform()
    if direction == TO_FIXED:
        linear.GetTransformToWorld(general)
    else:
        linear.GetTransformFromWorld(general)
    return general


def clone(node, name: str, carriers=()):
    """A new node with the content of ``node`` at its place in the world (without ``carriers``, see ``mrml.placement_of``), with a display of its
    own that looks the same."""
    scene = node.GetScene()
    made = scene.CreateNodeByClass(node.GetClassName())
    made.UnRegister(None)
    made.CopyContent(node, True)
    made.SetName(scene.GenerateUniqueName(name))
    scene.AddNode(made)
    made.CreateDefaultDisplayNodes()
    if made.GetDisplayNode() is not None and node.GetDisplayNode() is not None:
        made.GetDisplayNode().CopyContent(node.GetDisplayNode(), True)
    if mrml.is_carried(node, carriers):
        made.SetAndObserveTransformNodeID(None)
        made.ApplyTransformMatrix(mrml.vtk_matrix(mrml.placement_of(node, carriers)))
    else:
        made.SetAndObserveTransformNodeID(node.GetTransformNodeID())
        made.HardenTransform()
    return made


def move(node, general) -> None:
    """Move the points of a node without parent by a vtk transform (RAS)."""
    import slicer
    import vtk

    linear = vtk.vtkTransform()
    if slicer.vtkMRMLTransformNode.IsGeneralTransformLinear(general, linear):
        node.ApplyTransformMatrix(linear.GetMatrix())
    else:
        node.ApplyTransform(general)


def require_movable(node, general) -> None:
    """InputError where ``general`` bends and a node cannot."""
    import slicer
    import vtk

    bends = not slicer.vtkMRMLTransformNode.IsGeneralTransformLinear(general, vtk.vtkTransform())
    if bends and (not node.CanApplyNonLinearTransforms() or any(node.IsA(kind) for kind in STIFF)):
        raise InputError(f"'{node.GetName()}' is a {node.GetNodeTagName()}, which keeps its shape and cannot be deformed; carry landmarks, "
                         "curves, models or segmentations, or use a linear registration")


def gather_once(scene, name: str, nodes) -> None:
    """Put ``nodes`` into the subject-hierarchy folder ``name``, made where it is missing."""
    import slicer

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    folder = hierarchy.GetItemChildWithName(hierarchy.GetSceneItemID(), name)
    if not folder or hierarchy.GetItemLevel(folder) != "Folder":
        outputs.gather(scene, name, nodes)
        return
    outputs.put_into(scene, folder, nodes)
