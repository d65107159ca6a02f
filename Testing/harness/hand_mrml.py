"""Behaviour of the widgets that show nodes of the scene; see ``hand_ctk`` for the conventions."""

from __future__ import annotations

import shiboken6
import vtk
from PySide6 import QtCore, QtWidgets

from .hand_ctk import inner, parent_of, row

ADD, DELETE, RENAME = "add:", "delete:", "rename:"  # data of the entries of a node combo box that are no nodes


def observe(widget, subject, events, call, concerns=None) -> None:
    """Observe a VTK object for as long as the widget lives; the previous observation of the widget ends. With ``concerns``, a function of
    a node, a scene's events about one node are passed on where it is true of that node."""
    state = inner(widget)
    for observed, tag in getattr(state, "observations", []):
        observed.RemoveObserver(tag)
    state.observations = []

    def react(caller, event):
        if shiboken6.isValid(widget):
            call()
        else:  # the widget died without a word: take its observers along
            for observed, tag in state.observations:
                observed.RemoveObserver(tag)
            state.observations = []

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def react_to_node(caller, event, node):
        if not shiboken6.isValid(widget) or concerns(node):
            react(caller, event)

    if subject is not None:
        about_nodes = () if concerns is None else (subject.NodeAddedEvent, subject.NodeRemovedEvent)
        state.observations = [(subject, subject.AddObserver(event, react_to_node if event in about_nodes else react)) for event in events]


def scene_events(scene):
    return (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndCloseEvent, scene.EndImportEvent, scene.EndBatchProcessEvent)


class qMRMLWidget:
    def setMRMLScene(self, scene):
        if scene is not getattr(inner(self), "scene", None):
            inner(self).scene = scene
            self.mrmlSceneChanged.emit(scene)

    def mrmlScene(self):
        return getattr(inner(self), "scene", None)


class qMRMLSliderWidget:
    def setMRMLScene(self, scene):
        inner(self).scene = scene

    def mrmlScene(self):
        return getattr(inner(self), "scene", None)


class qMRMLNodeComboBox:
    """The first node is chosen when the scene is set and None is not allowed; nodes that come later are not chosen by themselves."""

    def __init__(self, *arguments):
        QtWidgets.QWidget.__init__(self, parent_of(arguments))
        state = inner(self)
        state.scene, state.current, state.wanted, state.attributes, state.labels, state.rebuilding = None, "", "", [], {}, False
        state.nodeTypes, state.hideChildNodeTypes, state.baseName, state.noneDisplay = [], [], "", "None"
        state.noneEnabled, state.addEnabled, state.removeEnabled, state.editEnabled, state.renameEnabled = False, True, True, False, False
        state.showChildNodeTypes, state.showHidden, state.selectNodeUponCreation = True, False, True
        state.box = QtWidgets.QComboBox(self)
        state.box.setSizePolicy(QtWidgets.QSizePolicy.Policy.Expanding, QtWidgets.QSizePolicy.Policy.Fixed)
        state.box.setSizeAdjustPolicy(QtWidgets.QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        state.box.setMinimumContentsLength(8)
        row(self, state.box)
        state.box.activated.connect(self._activated)
        self.setEnabled(False)  # until it has a scene
        self._rebuild()

    def setMRMLScene(self, scene):
        state = inner(self)
        if scene is state.scene:
            return
        state.scene = scene
        observe(self, scene, scene_events(scene) if scene is not None else (), self._rebuild, self._of_my_kind)
        self.setEnabled(scene is not None)
        wanted, state.wanted = state.wanted, ""
        self._rebuild(first=True)
        if wanted:
            self.setCurrentNode(wanted)

    def mrmlScene(self):
        return inner(self).scene

    def _of_my_kind(self, node) -> bool:
        return any(node.IsA(kind) for kind in inner(self).nodeTypes)

    def _fits(self, node) -> bool:
        state = inner(self)
        if not state.showChildNodeTypes and node.GetClassName() not in state.nodeTypes:
            return False
        if (node.GetHideFromEditors() and not state.showHidden) or any(node.IsA(kind) for kind in state.hideChildNodeTypes):
            return False
        return all(node.GetAttribute(name) is not None and value in (None, node.GetAttribute(name))
                   for kind, name, value in state.attributes if node.IsA(kind))

    def _nodes(self) -> list:
        """The nodes that can be chosen, in the order of the scene; those of the first kind first where there are several."""
        state, found = inner(self), {}
        for kind in state.nodeTypes if state.scene is not None else ():
            nodes = state.scene.GetNodesByClass(kind)
            nodes.UnRegister(None)
            found.update((node.GetID(), node) for node in map(nodes.GetItemAsObject, range(nodes.GetNumberOfItems())) if self._fits(node))
        return list(found.values())

    def _entries(self, nodes) -> list[tuple[str, str]]:
        """(text, data) of all lines."""
        state = inner(self)
        lines = [(state.noneDisplay, "")] if state.noneEnabled else []
        lines += [(node.GetName() or "", node.GetID()) for node in nodes]
        lines += [(f"Create new {self.nodeTypeLabel(kind)}...", ADD + kind) for kind in state.nodeTypes] if state.addEnabled else []
        lines += [("Rename current...", RENAME)] if state.renameEnabled else []
        return lines + ([("Delete current", DELETE)] if state.removeEnabled else [])

    def _rebuild(self, first=False):
        state = inner(self)
        if state.rebuilding:
            return
        state.rebuilding = True
        nodes = self._nodes()
        known = [node.GetID() for node in nodes]
        state.box.blockSignals(True)
        state.box.clear()
        for text, data in self._entries(nodes):
            state.box.addItem(text, data)
        chosen = state.current if state.current in known else known[0] if known and first and not state.noneEnabled else ""
        state.box.setCurrentIndex(state.box.findData(chosen) if chosen or state.noneEnabled else -1)
        state.box.blockSignals(False)
        state.rebuilding = False
        self._choose(chosen)

    def _choose(self, node_id: str):
        if node_id != inner(self).current:
            inner(self).current = node_id
            node = self.currentNode()
            self.currentNodeChanged.emit(node)
            self.currentNodeChanged[bool].emit(node is not None)
            self.currentNodeIDChanged.emit(node_id)

    def _activated(self, index):
        data = inner(self).box.itemData(index) or ""
        if data.startswith(ADD):
            self.addNode(data.removeprefix(ADD))
        elif data == DELETE:
            self.removeCurrentNode()
        elif data != RENAME:
            self._choose(data)
        self._rebuild()

    def addNode(self, kind=None):
        state = inner(self)
        node = state.scene.CreateNodeByClass(kind or state.nodeTypes[0])
        node.UnRegister(None)
        node.SetName(state.scene.GenerateUniqueName(state.baseName or self.nodeTypeLabel(node.GetClassName())))
        for wanted, name, value in state.attributes:
            if node.IsA(wanted):
                node.SetAttribute(name, value or "")
        node = state.scene.AddNode(node)
        self._rebuild()
        self.nodeAddedByUser.emit(node)
        if state.selectNodeUponCreation:
            self.setCurrentNode(node)
        return node

    def removeCurrentNode(self):
        if self.currentNode() is not None:
            inner(self).scene.RemoveNode(self.currentNode())

    def currentNode(self):
        state = inner(self)
        return state.scene.GetNodeByID(state.current) if state.scene is not None and state.current else None

    def currentNodeId(self):
        return inner(self).current

    def setCurrentNode(self, node):
        node_id = node if isinstance(node, str) else node.GetID() if node is not None else ""
        state = inner(self)
        if state.scene is None:
            state.wanted = node_id
            return
        index = state.box.findData(node_id) if node_id else -1
        if index < 0:
            node_id, index = "", 0 if state.noneEnabled else -1
        state.box.blockSignals(True)
        state.box.setCurrentIndex(index)
        state.box.blockSignals(False)
        self._choose(node_id)

    def setCurrentNodeID(self, node_id):
        self.setCurrentNode(node_id)

    def setCurrentNodeIndex(self, index):
        nodes = self._nodes()
        self.setCurrentNode(nodes[index] if 0 <= index < len(nodes) else None)

    def nodeCount(self):
        return len(self._nodes())

    def nodeFromIndex(self, index):
        nodes = self._nodes()
        return nodes[index] if 0 <= index < len(nodes) else None

    def addAttribute(self, kind, name, value=None):
        inner(self).attributes.append((kind, name, value))
        self._rebuild()

    def removeAttribute(self, kind, name):
        inner(self).attributes = [each for each in inner(self).attributes if each[:2] != (kind, name)]
        self._rebuild()

    def setNodeTypeLabel(self, label, kind):
        inner(self).labels[kind] = label
        self._rebuild()

    def nodeTypeLabel(self, kind):
        scene = inner(self).scene
        return inner(self).labels.get(kind) or (scene.GetTagByClassName(kind) if scene is not None else None) or kind


def _kept(name: str, convert):
    """Accessors of a property that the rebuilt list depends on."""

    def put(self, value):
        setattr(inner(self), name, convert(value))
        self._rebuild()

    return lambda self: getattr(inner(self), name), put


for _name, _convert in {"noneEnabled": bool, "addEnabled": bool, "removeEnabled": bool, "editEnabled": bool, "renameEnabled": bool, "showHidden": bool,
                        "showChildNodeTypes": bool, "selectNodeUponCreation": bool, "noneDisplay": str, "baseName": str, "nodeTypes": list,
                        "hideChildNodeTypes": list}.items():
    _get, _put = _kept(_name, _convert)
    setattr(qMRMLNodeComboBox, f"get_{_name}", _get)
    setattr(qMRMLNodeComboBox, f"set_{_name}", _put)
for _name in ("currentNodeID", "currentNodeId"):
    setattr(qMRMLNodeComboBox, f"get_{_name}", lambda self: inner(self).current)
    setattr(qMRMLNodeComboBox, f"set_{_name}", lambda self, value: self.setCurrentNode(value))


class qMRMLCheckableNodeComboBox:
    """Nodes with a check mark; which are checked is kept by ID, so that it survives a rebuilt list."""

    def _checked(self) -> set:
        state = inner(self)
        if not hasattr(state, "checked"):
            state.checked = set()
        return state.checked

    def checkedNodes(self):
        return tuple(node for node in self._nodes() if node.GetID() in self._checked())

    def uncheckedNodes(self):
        return tuple(node for node in self._nodes() if node.GetID() not in self._checked())

    def allChecked(self):
        return not self.uncheckedNodes()

    def noneChecked(self):
        return not self.checkedNodes()

    def checkState(self, node):
        return QtCore.Qt.CheckState.Checked if node.GetID() in self._checked() else QtCore.Qt.CheckState.Unchecked

    def setCheckState(self, node, value):
        checked = value == QtCore.Qt.CheckState.Checked or value == 2
        if checked != (node.GetID() in self._checked()):
            (self._checked().add if checked else self._checked().discard)(node.GetID())
            self.checkedNodesChanged.emit()

    def check(self, node):
        self.setCheckState(node, QtCore.Qt.CheckState.Checked)

    def uncheck(self, node):
        self.setCheckState(node, QtCore.Qt.CheckState.Unchecked)


CLASSES = {cls.__name__: cls for cls in (qMRMLWidget, qMRMLSliderWidget, qMRMLNodeComboBox, qMRMLCheckableNodeComboBox)}
CLASSES["qSlicerWidget"] = qMRMLWidget
