"""Behaviour of the widgets that show parts of nodes (segments, control points) and items of the subject hierarchy; see ``hand_ctk``."""

from __future__ import annotations

import vtk
from PySide6 import QtWidgets

from .hand_ctk import inner, parent_of, row
from .hand_mrml import observe, scene_events


class qMRMLSegmentSelectorWidget:
    """A node combo box of segmentations and a list of the segments of the chosen one, of which one or several can be chosen."""

    def __init__(self, *arguments):
        QtWidgets.QWidget.__init__(self, parent_of(arguments))
        from .widgets import build

        state = inner(self)
        state.node, state.segment, state.several, state.none, state.multiple = "", "", [], False, False
        state.nodes = build("qMRMLNodeComboBox")(self)
        state.nodes.nodeTypes = ["vtkMRMLSegmentationNode"]
        state.nodes.addEnabled = state.nodes.removeEnabled = False
        state.box = QtWidgets.QComboBox(self)
        row(self, state.nodes, state.box)
        state.nodes.connect("currentNodeChanged(vtkMRMLNode*)", self._node_changed)
        state.box.activated.connect(lambda k: self.setCurrentSegmentID(state.box.itemData(k) or ""))

    def setMRMLScene(self, scene):
        if scene is not getattr(inner(self), "scene", None):
            inner(self).scene = scene
            inner(self).nodes.setMRMLScene(scene)
            self.mrmlSceneChanged.emit(scene)

    def _node_changed(self, node):
        observe(self, node.GetSegmentation() if node is not None else None, ("AnyEvent",) if node is not None else (), self._rebuild)
        self._rebuild()
        self.currentNodeChanged.emit(node)
        self.currentNodeChanged[bool].emit(node is not None)

    def _rebuild(self):
        state, known = inner(self), self.segmentIDs()
        state.box.clear()
        if state.none:
            state.box.addItem("None", "")
        for each in known:
            state.box.addItem(self.currentNode().GetSegmentation().GetSegment(each).GetName(), each)
        state.several = [each for each in state.several if each in known]
        wanted = state.segment if state.segment in known else "" if state.none or not known else known[0]
        state.box.setCurrentIndex(state.box.findData(wanted))
        self.setCurrentSegmentID(wanted)

    def currentNode(self):
        return inner(self).nodes.currentNode()

    def currentNodeID(self):
        return inner(self).nodes.currentNodeID

    def setCurrentNode(self, node):
        inner(self).nodes.setCurrentNode(node)

    def setCurrentNodeID(self, node_id):
        inner(self).nodes.setCurrentNode(node_id)

    def segmentIDs(self):
        node = self.currentNode()
        return tuple(node.GetSegmentation().GetSegmentIDs()) if node is not None else ()

    def currentSegmentID(self):
        return inner(self).segment

    def setCurrentSegmentID(self, segment_id):
        state = inner(self)
        if segment_id != state.segment:
            state.segment = segment_id
            state.box.setCurrentIndex(state.box.findData(segment_id))
            self.currentSegmentChanged.emit(segment_id)

    def selectedSegmentIDs(self):
        return tuple(inner(self).several)

    def setSelectedSegmentIDs(self, segment_ids):
        if list(segment_ids) != inner(self).several:
            inner(self).several = list(segment_ids)
            self.segmentSelectionChanged.emit(list(segment_ids))

    def get_noneEnabled(self):
        return inner(self).none

    def set_noneEnabled(self, value):
        inner(self).none = inner(self).nodes.noneEnabled = bool(value)
        self._rebuild()

    def get_segmentationNodeSelectorVisible(self):
        return not inner(self).nodes.isHidden()

    def set_segmentationNodeSelectorVisible(self, value):
        inner(self).nodes.setVisible(bool(value))


class qSlicerSimpleMarkupsWidget:
    """A node combo box of point lists and a table of the points of the chosen one."""

    def __init__(self, *arguments):
        QtWidgets.QWidget.__init__(self, parent_of(arguments))
        from .widgets import build

        state = inner(self)
        state.nodes, state.table = build("qMRMLNodeComboBox")(self), QtWidgets.QTableWidget(0, 4, self)
        state.nodes.nodeTypes = ["vtkMRMLMarkupsFiducialNode"]
        state.nodes.noneEnabled = True
        state.table.setHorizontalHeaderLabels(["Label", "R", "A", "S"])
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(state.nodes)
        layout.addWidget(state.table)
        state.nodes.connect("currentNodeChanged(vtkMRMLNode*)", self._node_changed)

    def setMRMLScene(self, scene):
        if scene is not getattr(inner(self), "scene", None):
            inner(self).scene = scene
            inner(self).nodes.setMRMLScene(scene)
            self.mrmlSceneChanged.emit(scene)

    def _node_changed(self, node):
        events = (vtk.vtkCommand.ModifiedEvent, node.PointModifiedEvent, node.PointAddedEvent, node.PointRemovedEvent) if node is not None else ()
        observe(self, node, events, self._fill)
        self._fill()
        self.markupsNodeChanged.emit()

    def _fill(self):
        node, table = self.currentNode(), inner(self).table
        table.setRowCount(0 if node is None else node.GetNumberOfControlPoints())
        for k in range(table.rowCount):
            texts = [node.GetNthControlPointLabel(k), *(f"{c:.3f}" for c in node.GetNthControlPointPosition(k))]
            for column, text in enumerate(texts):
                table.setItem(k, column, QtWidgets.QTableWidgetItem(text))
        self.updateFinished.emit()

    def currentNode(self):
        return inner(self).nodes.currentNode()

    getCurrentNode = currentNode

    def setCurrentNode(self, node):
        inner(self).nodes.setCurrentNode(node)

    def tableWidget(self):
        return inner(self).table

    def markupsSelectorComboBox(self):
        return inner(self).nodes

    def get_nodeSelectorVisible(self):
        return not inner(self).nodes.isHidden()

    def set_nodeSelectorVisible(self, value):
        inner(self).nodes.setVisible(bool(value))


class qMRMLSubjectHierarchyComboBox:
    """Items of the subject hierarchy that stand for nodes of the wanted types."""

    def __init__(self, *arguments):
        QtWidgets.QComboBox.__init__(self, parent_of(arguments))
        state = inner(self)
        state.scene, state.types, state.item, state.none, state.shown = None, [], 0, False, []
        self.activated.connect(lambda k: self.setCurrentItem(state.shown[k]))

    def setMRMLScene(self, scene):
        inner(self).scene = scene
        observe(self, scene, scene_events(scene) if scene is not None else (), self._rebuild)
        self._rebuild()

    def mrmlScene(self):
        return inner(self).scene

    def subjectHierarchyNode(self):
        import slicer

        return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(inner(self).scene)

    def _rebuild(self):
        state = inner(self)
        items = vtk.vtkIdList()
        self.subjectHierarchyNode().GetItemChildren(self.subjectHierarchyNode().GetSceneItemID(), items, True)
        found = [items.GetId(k) for k in range(items.GetNumberOfIds())]
        nodes = {item: self.subjectHierarchyNode().GetItemDataNode(item) for item in found}
        fitting = [item for item in found if nodes[item] is not None and (not state.types or any(nodes[item].IsA(t) for t in state.types))]
        state.shown = ([0] if state.none else []) + fitting
        self.clear()
        for item in state.shown:
            self.addItem(self.subjectHierarchyNode().GetItemName(item) if item else "None")
        self.setCurrentItem(state.item if state.item in state.shown else 0)

    def setCurrentItem(self, item):
        state = inner(self)
        self.setCurrentIndex(state.shown.index(item) if item in state.shown else -1)
        if item != state.item:
            state.item = item
            self.currentItemChanged.emit(item)

    def currentItem(self):
        return inner(self).item

    def currentNode(self):
        return self.subjectHierarchyNode().GetItemDataNode(inner(self).item) if inner(self).item else None

    def setCurrentNode(self, node):
        self.setCurrentItem(self.subjectHierarchyNode().GetItemByDataNode(node) if node is not None else 0)

    def clearSelection(self):
        self.setCurrentItem(0)

    def setNodeTypes(self, types):
        self.set_nodeTypes(types)

    def get_nodeTypes(self):
        return inner(self).types

    def set_nodeTypes(self, types):
        inner(self).types = list(types)
        if inner(self).scene is not None:
            self._rebuild()

    def get_noneEnabled(self):
        return inner(self).none

    def set_noneEnabled(self, value):
        inner(self).none = bool(value)
        if inner(self).scene is not None:
            self._rebuild()


CLASSES = {cls.__name__: cls for cls in (qMRMLSegmentSelectorWidget, qSlicerSimpleMarkupsWidget, qMRMLSubjectHierarchyComboBox)}
