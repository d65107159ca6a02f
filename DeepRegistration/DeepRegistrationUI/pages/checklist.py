"""A list of nodes of the scene with a check in front of each: which ones take part."""

from __future__ import annotations

import qt
import slicer


class CheckList:
    """The QListWidget ``widget`` as such a list; ``changed()`` is called when the user checks or unchecks a node. ``new_are_checked``: nodes that
    come into the scene take part until they are unchecked."""

    def __init__(self, widget, changed, new_are_checked: bool = False):
        self.widget, self.changed, self.new_are_checked = widget, changed, new_are_checked
        self.listed, self.filling = [], False
        widget.connect("itemChanged(QListWidgetItem*)", lambda item: None if self.filling else self.changed())

    def show(self, nodes, text=lambda node: node.GetName()) -> None:
        """List ``nodes`` by their ``text``; those that were listed before keep their check."""
        found = [(node.GetID(), text(node)) for node in nodes]
        if found == self.listed:
            return
        old, checked = {identifier for identifier, _ in self.listed}, {node.GetID() for node in self.checked()}
        self.listed, self.filling = found, True
        self.widget.clear()
        for identifier, shown in found:
            item = qt.QListWidgetItem(shown)
            item.setFlags(item.flags() | qt.Qt.ItemIsUserCheckable)
            item.setData(qt.Qt.UserRole, identifier)
            wanted = identifier in checked or (self.new_are_checked and identifier not in old)
            item.setCheckState(qt.Qt.Checked if wanted else qt.Qt.Unchecked)
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
