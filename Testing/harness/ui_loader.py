"""``qt.QUiLoader`` that makes the widgets of ctk, MRML and Slicer and their connections.

Connections are taken out of the file and made in Python, because C++ types such as ``vtkMRMLScene*`` cannot cross signals of PySide6;
values of enumerations of generated classes are set afterwards, because QUiLoader cannot convert them.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree

from PySide6 import QtCore, QtUiTools

from .qt_shim import LOADING, connect, split_signature

WIDGETS: dict[str, type] = {}  # class name -> class; filled by harness.widgets


class UiLoader(QtUiTools.QUiLoader):
    """Loads a .ui file as Slicer does; anything in it that does not exist raises."""

    stands_for_cpp = False

    def createWidget(self, class_name, parent=None, name=""):
        if class_name in WIDGETS:
            widget = WIDGETS[class_name](parent) if parent is not None else WIDGETS[class_name]()
            widget.setObjectName(name)
            return widget
        if class_name.startswith(("ctk", "qMRML", "qSlicer")):
            raise RuntimeError(f"unknown widget class {class_name}")
        return super().createWidget(class_name, parent, name)

    def load(self, device, parent=None):
        root = ElementTree.fromstring(bytes(device.readAll()))
        connections = [tuple(c.findtext(tag) for tag in ("sender", "signal", "receiver", "slot")) for c in root.iter("connection")]
        for element in root.findall("connections"):
            root.remove(element)
        later = _take_enumerations(root)
        buffer = QtCore.QBuffer()
        buffer.setData(ElementTree.tostring(root))
        buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
        LOADING.append(self)
        try:
            top = super().load(buffer, parent)
        finally:
            LOADING.pop()
        if top is None:
            return None
        named = {child.property("objectName"): child for child in top.findChildren(QtCore.QObject)}
        named[top.property("objectName")] = top
        for name, attribute, text in later:
            setattr(named[name], attribute, _enumeration(text))
        for sender, signal, receiver, slot in connections:
            connect(named[sender], signal, getattr(named[receiver], split_signature(slot)[0]))
        return top


def _take_enumerations(root) -> list[tuple[str, str, str]]:
    """(widget, property, text) of the enumerations of generated classes; they are removed from the tree."""
    taken = []
    for element in root.iter("widget"):
        for value in element.findall("property") if element.get("class") in WIDGETS else ():
            given = value.find("enum") if value.find("enum") is not None else value.find("set")
            if given is not None:
                taken.append((element.get("name"), value.get("name"), given.text))
                element.remove(value)
    return taken


def _enumeration(text: str):
    """'QSizePolicy::Expanding' or 'Qt::AlignLeft|Qt::AlignTop' -> its value."""
    result = None
    for part in text.split("|"):
        found = sys.modules["qt"]
        for name in part.split("::"):
            found = WIDGETS[name] if name in WIDGETS else getattr(found, name)
        result = found if result is None else result | found
    return result
