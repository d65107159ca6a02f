"""Frames of a 4D sequence as rows of a batch: each one is registered to a reference, and the results are sequences again, to be played beside it.

A row has ``kind`` 'frame', ``moving`` the ID of the sequence node, ``frame`` from 0, ``fixed`` the ID of a volume or '' where the frame
``reference`` is the reference, and ``group``, the name of what is made: the sequences 'GROUP registered' (volumes on the lattice of the reference)
and 'GROUP transforms' (they carry a frame to the reference), with a browser 'GROUP'. The sequences know their group by an attribute, so a batch that
goes on later, also after the scene was saved, adds to them.
"""

from __future__ import annotations

import slicer

from DeepRegistrationLib.errors import InputError

from . import views

ATTRIBUTE = "DeepRegistration.Frames"
OUTPUTS = frozenset(("warped", "metrics"))
"""What a frame needs besides its transform."""
REGISTERED, TRANSFORMS = "registered", "transforms"


def plans_of(sequence, reference, taken=()) -> list[dict]:
    """What ``batch`` makes rows of, one a frame. reference: a volume node, or the number of a frame from 0; ``taken`` names of groups in use.

    InputError where the sequence holds no volumes or has no such frame.
    """
    count = 0 if sequence is None else sequence.GetNumberOfDataNodes()
    kinds = {sequence.GetNthDataNode(k).IsA("vtkMRMLVolumeNode") for k in range(count)}
    if kinds != {True}:
        what = "no sequence was chosen" if sequence is None else f"'{sequence.GetName()}' holds {'no frames' if not count else 'something else than volumes'}"
        raise InputError(f"{what}; choose a sequence of volumes")
    by_frame = isinstance(reference, int)
    if by_frame and not 0 <= reference < count:
        raise InputError(f"frame {reference + 1} was given as the reference and '{sequence.GetName()}' has {count} frames; choose one from 1 to {count}")
    if count < 2 and by_frame:
        raise InputError(f"'{sequence.GetName()}' has one frame, which cannot be registered to itself; choose a fixed volume as the reference")
    base = f"{sequence.GetName()} to {f'frame {reference + 1}' if by_frame else reference.GetName()}"
    group, number = base, 1
    while group in taken:
        number += 1
        group = f"{base} {number}"
    return [{"moving": sequence.GetID(), "fixed": "" if by_frame else reference.GetID(), "frame": k, "reference": reference if by_frame else -1,
             "group": group} for k in range(count)]


class Frame:
    """The frame of one row as volume nodes of the scene while it is registered: ``fixed`` and ``moving``. InputError where they are gone."""

    def __init__(self, row: dict):
        self.row, self.made = row, []
        self.sequence = slicer.mrmlScene.GetNodeByID(row["moving"])
        if self.sequence is None or row["frame"] >= self.sequence.GetNumberOfDataNodes():
            raise InputError("the sequence of this frame is not in the scene any more; remove the row or load the sequence again")
        self.moving = self._volume(row["frame"])
        self.fixed = slicer.mrmlScene.GetNodeByID(row["fixed"]) if row["fixed"] else self._volume(row["reference"])
        if self.fixed is None:
            self.close()
            raise InputError("the volume that was the reference is not in the scene any more; remove the row or load the volume again")

    @property
    def is_reference(self) -> bool:
        return self.row["frame"] == self.row["reference"]

    def _volume(self, number: int):
        """A frame as a node of its own that shares the voxels; it is not saved with the scene."""
        data = self.sequence.GetNthDataNode(number)
        node = slicer.mrmlScene.AddNewNodeByClass(data.GetClassName(), f"{self.sequence.GetName()} {self.value(number)}")
        node.CopyOrientation(data)
        node.SetAndObserveImageData(data.GetImageData())
        node.SetSaveWithScene(False)
        self.made.append(node)
        return node

    def value(self, number: int) -> str:
        """The index value of a frame: its time, or what else the sequence counts by."""
        return self.sequence.GetNthIndexValue(number)

    def deliver(self, nodes: dict) -> None:
        """Add the results of the registration with ``nodes`` (none for the reference itself) to the sequences of the group."""
        from .batch import whole_transform

        target = sequences_of(self.row["group"], self.sequence)
        value = self.value(self.row["frame"])
        transform = whole_transform(nodes)
        for role, node in ((TRANSFORMS, transform), (REGISTERED, nodes.get("warped", self.moving))):
            target[role].SetDataNodeAtValue(node, value)
        slicer.mrmlScene.RemoveNode(transform)
        browse(self.row["group"], target)

    def close(self) -> None:
        """Take the nodes of this frame out of the scene."""
        for node in self.made:
            if node.GetScene() is not None:
                slicer.mrmlScene.RemoveNode(node)
        self.made = []


def sequences_of(group: str, like=None) -> dict:
    """Role -> sequence node of a group; made with the index of the sequence ``like`` where one is given, else those that are there."""
    found = {}
    for node in slicer.util.getNodesByClass("vtkMRMLSequenceNode"):
        name, _, role = (node.GetAttribute(ATTRIBUTE) or "").rpartition("/")
        if name == group:
            found[role] = node
    for role in (REGISTERED, TRANSFORMS):
        if role not in found and like is not None:
            node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", f"{group} {role}")
            node.SetIndexName(like.GetIndexName())
            node.SetIndexUnit(like.GetIndexUnit())
            node.SetIndexType(like.GetIndexType())
            node.SetAttribute(ATTRIBUTE, f"{group}/{role}")
            found[role] = node
    return found


def browse(group: str, target: dict):
    """The browser of a group's sequences, whose proxies are a volume and a transform; made when the first frame is there."""
    scene = slicer.mrmlScene
    browsers = slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode")
    found = next((node for node in browsers if node.GetMasterSequenceNode() is target[REGISTERED]), None)
    if found is not None:
        return found
    views.introduce(scene, "vtkMRMLSequenceBrowserNode")
    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", group)
    with slicer.util.NodeModify(browser):  # at the end of it the application makes the proxies
        browser.SetAndObserveMasterSequenceNodeID(target[REGISTERED].GetID())
        browser.AddSynchronizedSequenceNode(target[TRANSFORMS])
        browser.SetSelectedItemNumber(0)
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    return browser
