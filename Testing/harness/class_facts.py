"""Members of every Qt class that a panel can use: the facts of the application's classes, Qt's own meta objects for the rest.

Needs PySide6 as it is: not for a process in which the harness is installed.
"""

from __future__ import annotations

import difflib
import enum
from dataclasses import dataclass, field

from PySide6 import QtCore, QtGui, QtNetwork, QtUiTools, QtWidgets

from .facts import arguments_of, qt6_only, slicer_classes

MODULES = (QtWidgets, QtGui, QtCore, QtNetwork, QtUiTools)
NOT_IN_PYSIDE = {"QDesktopWidget", "QRegExp", "QRegExpValidator", "QSignalMapper", "QStringList", "QTextCodec", "QWebEngineView", "QWebView", "Qt",
                 "QSvgWidget", "QSvgRenderer"}
ADDED_BY_PYTHONQT = {"connect", "disconnect", "delete", "className", "inherits", "help", "name", "objectName", "exec_", "setProperty", "property",
                     "deleteLater", "__class__", "__doc__", "__dict__", "parent", "children", "findChild", "findChildren", "isWidgetType"}


@dataclass
class Members:
    """What Python sees of a class: properties {name: (type, writable)}, signals and methods {name: argument types of each form, or None}."""

    properties: dict = field(default_factory=dict)
    signals: dict = field(default_factory=dict)
    methods: dict = field(default_factory=dict)
    enums: dict = field(default_factory=dict)
    cpp_only: dict = field(default_factory=dict)  # method -> property to use instead, or ''
    bases: list = field(default_factory=list)

    def add(self, other: Members) -> None:
        for name in ("properties", "signals", "methods", "enums", "cpp_only"):
            getattr(self, name).update(getattr(other, name))
        self.bases += other.bases

    def knows(self, name: str) -> bool:
        listed = any(name in values or name == enum_name for enum_name, values in self.enums.items())
        return listed or name in self.properties or name in self.signals or name in self.methods or name in ADDED_BY_PYTHONQT

    def all_names(self) -> list[str]:
        return [*self.properties, *self.signals, *self.methods]


_members: dict[str, Members] = {}


def qt_class(name: str):
    """The class of PySide6; None where it has none of that name."""
    found = next((getattr(module, name) for module in MODULES if hasattr(module, name)), None)
    return found if isinstance(found, type) else None


def known(name: str) -> bool:
    return name in slicer_classes() or qt_class(name) is not None or name in NOT_IN_PYSIDE or name == "Line"


def designable(name: str) -> bool:
    """True where a .ui file can create the class."""
    return name not in slicer_classes() or slicer_classes()[name].get("designable", False)


def closest(name: str, names) -> str:
    """' (closest: x)' for the name most like ``name``, '' where none is."""
    lower = {each.lower(): each for each in names}
    found = [lower[name.lower()]] if name.lower() in lower else difflib.get_close_matches(name, list(names), 1, 0.75)
    return f" (closest: {found[0]})" if found else ""


def members_of(name: str) -> Members:
    """All members of a class, inherited ones included."""
    if name not in _members:
        if name == "Line":
            made = Members()
            made.add(members_of("QFrame"))
            made.properties["orientation"] = ("Qt::Orientation", True)
        else:
            made = _of_slicer(name) if name in slicer_classes() else _of_qt(name)
        _members[name] = made
    return _members[name]


def _of_slicer(name: str) -> Members:
    facts, made = slicer_classes()[name], Members(bases=[name])
    for base in facts.get("bases", ["QObject"]):
        base = "QWidget" if base == "QVTKOpenGLNativeWidget" else base
        if base in slicer_classes() or qt_class(base) is not None:
            made.add(members_of(base))
    setters = {}
    for key, (kind, *rest) in facts.get("properties", {}).items():
        made.properties[key] = (kind, len(rest) > 1 and bool(rest[1]))
        setters.update({accessor: key for accessor in rest[:2] if accessor})
    for key, signatures in facts.get("signals", {}).items():
        made.signals[key] = [form for signature in signatures for form in arguments_of(signature)]
    for kind in ("slots", "invokables"):
        for key, signatures in facts.get(kind, {}).items():
            made.methods[key] = (made.methods.get(key) or []) + [form for signature in signatures for form in arguments_of(signature)]
    for key in facts.get("decorator_methods", []):
        made.methods.setdefault(key, None)
    made.enums.update(facts.get("enums", {}))
    hidden = {key: setters.get(key, "") for key in facts.get("cpp_only", []) if key not in made.all_names()}
    made.cpp_only = {**{k: v for k, v in made.cpp_only.items() if k not in made.all_names()}, **hidden}
    return made


def _of_qt(name: str) -> Members:
    cls = qt_class(name)
    if cls is None:
        return Members(bases=[name])
    made = Members(bases=[each.__name__ for each in cls.__mro__ if each is not object])
    if issubclass(cls, QtCore.QObject):
        meta = cls.staticMetaObject
        for k in range(meta.propertyCount()):
            made.properties[meta.property(k).name()] = (meta.property(k).typeName(), meta.property(k).isWritable())
        for k in range(meta.methodCount()):
            method = meta.method(k)
            types = [bytes(each).decode().replace("const", "").replace("&", "").replace(" ", "") for each in method.parameterTypes()]
            into = made.signals if method.methodType() == QtCore.QMetaMethod.MethodType.Signal else made.methods
            into.setdefault(bytes(method.name()).decode(), []).append(types)
    for base in cls.__mro__:
        for key, value in vars(base).items():
            if isinstance(value, type) and issubclass(value, enum.Enum):
                made.enums.setdefault(key, list(value.__members__))
    for key in dir(cls):
        if key not in made.properties and key not in made.signals:
            made.methods.setdefault(key, None)
    return made


def only_in_qt6(class_name: str, member: str) -> bool:
    """True for a member that Qt 5.15 lacks, with which Slicer is built."""
    if member in ADDED_BY_PYTHONQT or class_name in slicer_classes() and member in slicer_classes()[class_name].get("properties", ()):
        return False
    return any(member in qt6_only().get(base, ()) for base in members_of(class_name).bases)


def enumeration_error(text: str) -> str:
    """'' where every part of 'Qt::AlignLeft|Qt::AlignTop' exists, otherwise a sentence."""
    for part in text.split("|"):
        owner, *path = part.strip().split("::")
        if not path:
            continue
        if owner in slicer_classes():
            exists = any(path[-1] in values for values in members_of(owner).enums.values())
        else:
            cls = QtCore.Qt if owner == "Qt" else qt_class(owner)
            if cls is None:
                return f"unknown scope {owner}"
            enums = [e for base in cls.__mro__ for e in vars(base).values() if isinstance(e, type) and issubclass(e, enum.Enum)]
            exists = hasattr(cls, path[-1]) or any(path[-1] in e.__members__ for e in enums)
        if not exists:
            return f"{owner} has no enumerator {path[-1]}"
    return ""
