"""The modules' Qt classes: every ctk*, qMRML* and qSlicer* class of the facts as a subclass of PySide6's, with exactly its members.

Properties, signals and slots are those that Python sees in the application, so a use of anything else fails here as it does there.
Behaviour is made by hand for the classes of ``hand_ctk``, ``hand_mrml`` and ``hand_parts``; everywhere else a property keeps its value and
announces changes, and other methods record their call in ``CALLS`` and return None.
"""

from __future__ import annotations

import types

import shiboken6
from PySide6 import QtCore, QtGui, QtWidgets

from . import hand_ctk, hand_mrml, hand_parts, qt_shim
from .facts import arguments_of, slicer_classes
from .ui_loader import WIDGETS

PYTHON_TYPES = {"bool": bool, "int": int, "double": float, "float": float, "QString": str, "unsigned int": int, "uint": int}
DEFAULTS = {"bool": False, "int": 0, "double": 0.0, "float": 0.0, "QString": "", "QStringList": []}
HAND_MADE = {**hand_ctk.CLASSES, **hand_mrml.CLASSES, **hand_parts.CLASSES}
CALLS: list[tuple[str, str, str, tuple]] = []  # (class, object name, method, arguments) of methods without behaviour
_built: dict[str, type] = {}


def _base_of(name: str):
    """The Python class that the class ``name`` derives from."""
    if hasattr(HAND_MADE.get(name), "base"):
        return HAND_MADE[name].base
    for each in slicer_classes()[name].get("bases", ()):
        if each in slicer_classes():
            return build(each)
        for source in qt_shim.SOURCES:
            if hasattr(source, each):
                return getattr(source, each)
        if each == "QVTKOpenGLNativeWidget":
            return QtWidgets.QWidget
    return QtCore.QObject


def _signals(facts: dict, base, members: dict) -> None:
    """Signals, with the C++ signatures kept for ``connect("...")``; pointers travel as Python objects."""
    known = dict(getattr(base, "signal_signatures", {}))
    for name, signatures in facts.get("signals", {}).items():
        known[name] = [form for signature in signatures for form in arguments_of(signature)[:1]]
        known[name] += [form for signature in signatures for form in arguments_of(signature)[1:]]
        overloads = list(dict.fromkeys(tuple(PYTHON_TYPES.get(t, object) for t in arguments_of(s)[0]) for s in signatures))
        members[name] = QtCore.Signal(*overloads) if len(overloads) > 1 else QtCore.Signal(*overloads[0])
    members["signal_signatures"] = known


def _property(name: str, kind: str, notify: str, getter, setter):
    """(property, setter): a value that is kept and announced, or the hand-made getter and setter."""
    python_type = PYTHON_TYPES.get(kind, "QVariant")
    key = f"_property_{name}"

    def get(self):
        value = getter(self) if getter else self.__dict__.get(key, DEFAULTS.get(kind))
        return tuple(value) if kind == "QStringList" and value is not None else value  # PythonQt gives tuples

    def put(self, value):
        if setter:
            return setter(self, value)
        before = get(self)
        if isinstance(python_type, type):
            value = python_type(value) if value is not None else DEFAULTS.get(kind)
        self.__dict__[key] = list(value) if kind == "QStringList" and value is not None else value
        if notify and hasattr(self, notify) and before != value:
            getattr(self, notify).emit(value)

    return QtCore.Property(python_type, get, put), put


def _properties(facts: dict, base, members: dict, hand_made: dict) -> dict[str, str]:
    """Adds the properties; returns C++ setter -> property."""
    members["property_setters"] = dict(getattr(base, "property_setters", {}))
    setters = {}
    for name, (kind, *rest) in facts.get("properties", {}).items():
        read, write, notify = [*rest, "", "", ""][:3]
        made, put = _property(name, kind, notify, hand_made.pop(f"get_{name}", None), hand_made.pop(f"set_{name}", None))
        members[name], members["property_setters"][name] = made, put
        if write:
            setters[write] = name
    return setters


def _recorder(class_name: str, method: str):
    def record(self, *arguments, **named):
        CALLS.append((class_name, self.property("objectName"), method, arguments))

    record.__name__ = method
    return record


def _setter_slot(name: str):
    def assign(self, value=None):
        setattr(self, name, value)

    return assign


def _methods(name: str, facts: dict, base, members: dict, setters: dict) -> None:
    """Slots and invokables; a setter that is a slot sets its property, the others record their call."""
    for method in [*facts.get("slots", {}), *facts.get("invokables", {}), *facts.get("decorator_methods", [])]:
        if method in members:
            continue
        if method in setters:
            members[method] = _setter_slot(setters[method])
        elif not hasattr(base, method):
            members[method] = _recorder(name, method)


def _look(name: str, base, members: dict) -> None:
    """A widget without behaviour shows its class name in a frame, so that a screenshot tells what would be there."""
    if base is not QtWidgets.QWidget or "paintEvent" in members or name in ("qMRMLWidget", "qSlicerWidget", "ctkExpandableWidget"):
        return

    def paintEvent(self, event):
        if QtWidgets.QWidget.layout(self) is None:
            painter = QtGui.QPainter(self)
            painter.setPen(QtGui.QColor(160, 160, 160))
            painter.drawRect(self.rect.adjusted(0, 0, -1, -1))
            painter.drawText(self.rect, QtCore.Qt.AlignmentFlag.AlignCenter, f"<{name}>")

    members["paintEvent"] = paintEvent
    members.setdefault("sizeHint", lambda self: base.sizeHint(self) if base.layout(self) else QtCore.QSize(160, 24))


def build(name: str) -> type:
    """The class ``name`` of the facts, made on first use."""
    if name in _built:
        return _built[name]
    facts, base = slicer_classes()[name], _base_of(name)
    hand_made = dict(vars(HAND_MADE[name])) if name in HAND_MADE else {}
    members = {"stands_for_cpp": True, "__module__": "slicer"}
    _signals(facts, base, members)
    setters = _properties(facts, base, members, hand_made)
    members.update({k: v for k, v in hand_made.items() if k not in ("__dict__", "__weakref__", "__module__", "base")})
    _methods(name, facts, base, members, setters)
    for values in facts.get("enums", {}).values():
        for number, value in enumerate(values):
            members.setdefault(value, number)
    if "__init__" not in members:
        def __init__(self, *arguments):
            base.__init__(self, *[each for each in arguments if each is not None])

        members["__init__"] = __init__
    _look(name, base, members)
    made = type(base)(name, (base,), members)
    _built[name] = made
    if issubclass(made, QtWidgets.QWidget):
        WIDGETS[name] = made
    return made


def install() -> tuple[types.ModuleType, dict[str, type]]:
    """The module ``ctk`` and the classes that belong into ``slicer``."""
    ctk, others = types.ModuleType("ctk"), {}
    for name in slicer_classes():
        if name.startswith("ctk"):
            setattr(ctk, name, build(name))
        elif not name.startswith("_") and name not in ("qSlicerApplication", "qSlicerLayoutManager"):
            others[name] = build(name)
    return ctk, others


def alive(widget) -> bool:
    """False once the C++ object is gone."""
    return shiboken6.isValid(widget)
