"""A list of nodes of the scene with a check in front of each: which ones take part."""

from __future__ import annotations

import qt
import slicer


class CheckList:
    """The QListWidget ``widget`` as such a list; ``changed()`` is called when the user checks or unchecks a node, and with it all that are selected beside it.
    ``usual(nodes)``: those of the nodes that take part, when they come into the scene, until they are unchecked."""

    def __init__(self, widget, changed, usual=lambda nodes: ()):
        self.widget, self.changed, self.usual = widget, changed, usual
        self.listed, self.filling = [], False
        widget.setSelectionMode(qt.QAbstractItemView.ExtendedSelection)
        widget.connect("itemChanged(QListWidgetItem*)", self.item_changed)

    def item_changed(self, item) -> None:
        """All selected items get the check of the one that was changed, if it is one of them: nobody clicks sixty times."""
        if self.filling:
            return
        self.filling = True
        for other in self.widget.selectedItems() if item.isSelected() else ():
            other.setCheckState(item.checkState())
        self.filling = False
        self.changed()

    def show(self, nodes, text=lambda node: node.GetName()) -> None:
        """List ``nodes`` by their ``text``; those that were listed before keep their check."""
        found = [(node.GetID(), text(node)) for node in nodes]
        if found == self.listed:
            return
        old, checked = {identifier for identifier, _ in self.listed}, {node.GetID() for node in self.checked()}
        usual = {node.GetID() for node in self.usual(nodes)} - old
        self.listed, self.filling = found, True
        self.widget.clear()
        for identifier, shown in found:
            item = qt.QListWidgetItem(shown)
            item.setFlags(item.flags() | qt.Qt.ItemIsUserCheckable)
            item.setData(qt.Qt.UserRole, identifier)
            item.setCheckState(qt.Qt.Checked if identifier in checked | usual else qt.Qt.Unchecked)
            self.widget.addItem(item)
        self.filling = False

    def checked(self) -> list:
        """The nodes that are checked and still there, in the order of the list."""
        items = [self.widget.item(k) for k in range(self.widget.count)]
        nodes = [slicer.mrmlScene.GetNodeByID(item.data(qt.Qt.UserRole)) for item in items if item.checkState() == qt.Qt.Checked]
        return [node for node in nodes if node is not None]

    def clear(self) -> None:
        """Forget every node."""
        self.listed, self.filling = [], True
        self.widget.clear()
        self.filling = False
