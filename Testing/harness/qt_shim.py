"""The modules ``qt`` and ``PythonQt`` on top of PySide6.

PythonQt differs from PySide6 in what this file changes, in place because ``isinstance``, ``type(widget) ==`` and children that come from
C++ must go on working: a Qt property is an attribute (and hides the getter of its name), ``connect("signal(types)", f)`` exists and
hands over as many arguments as ``f`` takes, unknown attributes cannot be set on C++ objects, children are attributes by their name,
``name`` is the object name, file dialogs answer with the path alone.
"""

from __future__ import annotations

import ctypes
import inspect
import re
import sys
import types

import shiboken6
from PySide6 import QtCore, QtGui, QtNetwork, QtUiTools, QtWidgets

SOURCES = (QtCore, QtGui, QtWidgets, QtNetwork, QtUiTools)
# Getters that are virtual in C++: Shiboken would take a Python attribute of that name for an override and call itself for ever.
VIRTUAL = {"sizeHint", "minimumSizeHint", "spacing", "duration"}
LOADING: list[object] = []  # forms that are being loaded: PySide6's loader sets every child as attribute of its parent
CONNECTIONS: dict[int, list] = {}  # address of the sender -> [(signal name, callback, bound signal, wrapper)]
_qobject_disconnect = QtCore.QObject.disconnect


class QtProperty:
    """A Qt property as Python attribute; on the class it gives what the class had before under that name."""

    __slots__ = ("name", "before")

    def __init__(self, name: str, before=None):
        self.name, self.before = name, before

    def __get__(self, instance, owner=None):
        if instance is None:
            return self if self.before is None else self.before.__get__(None, owner)
        return instance.property(self.name)

    def __set__(self, instance, value):
        meta = instance.metaObject()
        found = meta.property(meta.indexOfProperty(self.name))
        if found.isValid() and not found.isWritable():
            raise AttributeError(f"Property '{self.name}' of {type(instance).__name__} object is not writable")
        if found.isEnumType() and type(value) is int:
            value = type(instance.property(self.name))(value)
        if not instance.setProperty(self.name, value):
            raise AttributeError(f"Property '{self.name}' of type '{found.typeName()}' does not accept {value!r}")


def split_signature(text: str) -> tuple[str, list[str] | None]:
    """'valueChanged(const QString&)' -> ('valueChanged', ['QString']); the types are None without parentheses."""
    match = re.match(r"^[12]?(\w+)\((.*)\)$", text.replace("const ", "").replace(" ", ""))
    if match is None:
        return text.strip(), None
    return match[1], [each for each in match[2].replace("&", "").split(",") if each]


def _declared(instance, name: str) -> list[list[str]]:
    """Argument types of all overloads of a signal, as in C++; the generated classes know the C++ names of pointer types."""
    listed = getattr(type(instance), "signal_signatures", {}).get(name)
    if listed is not None:
        return listed
    meta = instance.metaObject()
    methods = [meta.method(i) for i in range(meta.methodCount())]
    signals = [m for m in methods if m.methodType() == QtCore.QMetaMethod.MethodType.Signal and bytes(m.name()).decode() == name]
    return [[bytes(t).decode() for t in m.parameterTypes()] for m in signals]


def _bound_signal(instance, signature: str):
    """(signal of PySide6, number of arguments or None); raises ValueError when that signature does not exist literally."""
    name, arguments = split_signature(signature)
    declared = _declared(instance, name)
    if not declared or (arguments is not None and arguments not in declared):
        raise ValueError(f"{type(instance).__name__} has no signal {signature}" + (f"; it has {declared}" if declared else ""))
    bound = getattr(instance, name)
    if arguments is None:
        return bound, None
    if declared.index(arguments) > 0 and name in getattr(type(instance), "signal_signatures", {}):
        bound = bound[_overload(arguments)]
    elif len(declared) > 1 and arguments:
        try:
            bound = bound[",".join(arguments)]
        except (IndexError, KeyError):  # a clone with default arguments, which PySide6 knows under the long form only
            pass
    return bound, len(arguments)


def _overload(arguments: list[str]):
    known = {"bool": bool, "int": int, "double": float, "QString": str}
    found = tuple(known.get(each, object) for each in arguments)
    return found[0] if len(found) == 1 else found


def accepted(callback) -> int | None:
    """How many positional arguments a callable takes; None for any number."""
    try:
        parameters = inspect.signature(callback).parameters.values()
    except (ValueError, TypeError):
        return None
    if any(p.kind == p.VAR_POSITIONAL for p in parameters):
        return None
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def connect(instance, *arguments) -> bool:
    """``sender.connect(signal, callable)``, ``sender.connect(signal, receiver, slot)`` and ``QObject.connect(sender, signal, callable)``."""
    if len(arguments) == 3 and isinstance(arguments[0], str):
        return connect(instance, arguments[0], getattr(arguments[1], split_signature(arguments[2])[0]))
    if len(arguments) == 3:
        return connect(arguments[0], *arguments[1:])
    if len(arguments) != 2 or not isinstance(arguments[0], str) or not callable(arguments[1]):
        raise TypeError(f"connect takes a signal as text and a callable, not {arguments!r}")
    signal, callback = arguments
    bound, given = _bound_signal(instance, signal)
    takes = accepted(callback)
    count = takes if given is None else given if takes is None else min(takes, given)

    def wrapper(*values):
        callback(*(values if count is None else values[:count]))

    address = shiboken6.getCppPointer(instance)[0]
    if address not in CONNECTIONS:
        CONNECTIONS[address] = []
        QtCore.QObject.__dict__["destroyed"].__get__(instance, type(instance)).connect(lambda *_: CONNECTIONS.pop(address, None))
    CONNECTIONS[address].append((split_signature(signal)[0], callback, bound, wrapper))
    bound.connect(wrapper)
    return True


def disconnect(instance, *arguments) -> bool:
    """``sender.disconnect(signal, callable)``; True when there was such a connection."""
    if not arguments:
        return _qobject_disconnect(instance)
    name, callback = split_signature(arguments[0])[0], arguments[1] if len(arguments) > 1 else None
    entries = CONNECTIONS.get(shiboken6.getCppPointer(instance)[0], [])
    found = [entry for entry in entries if entry[0] == name and (callback is None or entry[1] == callback)]
    for entry in found[:1] if callback is not None else found:
        entries.remove(entry)
        entry[2].disconnect(entry[3])
    return bool(found)


def _dynamic(instance, name: str) -> bool:
    return name.encode() in [bytes(each) for each in instance.dynamicPropertyNames()]


def _set_declared(instance, name: str, value) -> None:
    """Set an attribute that the class knows."""
    known = inspect.getattr_static(type(instance), name, None)
    if isinstance(known, QtCore.Signal):
        raise AttributeError(f"Signal '{name}' can not be overwritten on {type(instance).__name__} object")
    setter = getattr(type(instance), "property_setters", {}).get(name)
    if isinstance(known, QtCore.Property) and setter:
        setter(instance, value)
    elif isinstance(known, QtCore.Property) or (name in VIRTUAL and instance.metaObject().indexOfProperty(name) >= 0):
        instance.setProperty(name, value)
    elif hasattr(type(known), "__set__"):
        known.__set__(instance, value)
    else:
        instance.__dict__[name] = value


def strict_setattr(instance, name: str, value) -> None:
    """Attributes of C++ objects are properties only; Python subclasses may have others."""
    owner = type(instance)
    if isinstance(value, QtCore.SignalInstance):  # PySide6 caches bound signals so
        instance.__dict__[name] = value
    elif name.startswith("__") or hasattr(owner, name):
        _set_declared(instance, name, value)
    elif _dynamic(instance, name):
        instance.setProperty(name, value)
    elif LOADING and isinstance(value, QtCore.QObject):
        return  # the child is found by its name
    elif getattr(owner, "stands_for_cpp", owner.__module__.startswith("PySide6")):
        raise AttributeError(f"'{name}' does not exist on {owner.__name__} and creating new attributes on C++ objects is not allowed")
    else:
        instance.__dict__[name] = value


def _late_getattr(instance, name: str):
    """What PythonQt looks for after the members of the class: ``exec_``, properties, dynamic properties, children by name."""
    if not name.startswith("__") and shiboken6.isValid(instance):
        if name.endswith("_") and hasattr(type(instance), name[:-1]):
            return getattr(instance, name[:-1])
        if instance.metaObject().indexOfProperty(name) >= 0 or _dynamic(instance, name):
            return instance.property(name)
        for child in instance.children():
            if child.property("objectName") == name:
                return child
    raise AttributeError(f"{type(instance).__name__} has no attribute named '{name}'")


def _getattribute(original):
    """The attribute access of a class, extended; QObject's own hard-codes ``connect``, hence the slot is replaced."""

    def __getattribute__(self, name):
        if name == "connect":
            return types.MethodType(connect, self)
        if name == "disconnect":
            return types.MethodType(disconnect, self)
        try:
            return original(self, name)
        except AttributeError:
            if name.startswith("__") or isinstance(inspect.getattr_static(type(self), name, None), (property, QtProperty)):
                raise
            return _late_getattr(self, name)

    return __getattribute__


def _patch_class(cls) -> None:
    """Give one Qt class properties as attributes, and the two attribute slots where it has its own."""
    meta = cls.staticMetaObject
    for i in range(meta.propertyOffset(), meta.propertyCount()):
        name = meta.property(i).name()
        if name not in VIRTUAL:
            before = cls.__dict__.get(name)
            static = cls is QtCore.QTimer and name == "singleShot"  # the static function hides behind the property of the same name
            setattr(cls, name, QtProperty(name, staticmethod(cls.singleShot) if static else None if static else _plain(before)))
    if cls is QtCore.QObject or "__getattribute__" in cls.__dict__:
        cls.__getattribute__ = _getattribute(cls.__getattribute__)
    if cls is QtCore.QObject or "__setattr__" in cls.__dict__:
        cls.__setattr__ = strict_setattr


def _plain(before):
    """The unbound getter, so that ``QWidget.width(widget)`` still works in code of this harness; None where there was none."""
    return before if hasattr(before, "__get__") and not isinstance(before, QtProperty) else None


def _patch_values() -> None:
    """Members of classes that are no QObjects."""
    color_name = QtGui.QColor.name
    QtGui.QColor.name = lambda self, form=None: color_name(self) if form is None else color_name(self, QtGui.QColor.NameFormat(form))
    for name in ("getOpenFileName", "getSaveFileName", "getOpenFileNames"):
        asked = getattr(QtWidgets.QFileDialog, name)
        setattr(QtWidgets.QFileDialog, name, staticmethod(lambda *a, _asked=asked, **k: _asked(*a, **k)[0]))
    base = QtCore.QObject
    base.name = QtProperty("objectName")
    base.className = lambda self: type(self).__name__
    base.inherits = lambda self, name: any(each.__name__ == name for each in type(self).__mro__)
    base.delete = lambda self: shiboken6.delete(self)


def _python_qt() -> types.ModuleType:
    module = types.ModuleType("PythonQt")

    class BoolResult:
        """A bool that a C++ function writes into."""

        def __init__(self, value=False):
            self.value = value

        def __bool__(self):
            return self.value

    module.BoolResult = BoolResult
    for part in ("QtCore", "QtGui", "private"):
        sys.modules[f"PythonQt.{part}"] = types.ModuleType(f"PythonQt.{part}")
        setattr(module, part, sys.modules[f"PythonQt.{part}"])
    return module


def _keep_constants() -> None:
    """Keep None, True and False alive: PySide6 gives one reference too many away with each signal that carries one of them, and before
    Python 3.12, which counts none of theirs, the interpreter dies when they run out."""
    if sys.version_info < (3, 12):
        for constant in (None, True, False):
            ctypes.c_ssize_t.from_address(id(constant)).value += 1 << 40


def install() -> types.ModuleType:
    """Patch PySide6, start a QApplication, and put ``qt`` and ``PythonQt`` into ``sys.modules``; returns ``qt``."""
    if "qt" in sys.modules:
        return sys.modules["qt"]
    _keep_constants()
    qt = types.ModuleType("qt")
    for source in SOURCES:
        for name in dir(source):
            if name.startswith("Q") or name in ("Qt", "Signal", "Slot", "Property"):
                setattr(qt, name, getattr(source, name))
    classes = {c for c in vars(qt).values() if isinstance(c, type) and issubclass(c, QtCore.QObject)}
    for cls in sorted(classes, key=lambda c: len(c.__mro__)):
        _patch_class(cls)
    _patch_values()
    from .ui_loader import UiLoader

    qt.QUiLoader = UiLoader
    sys.modules["qt"], sys.modules["PythonQt"] = qt, _python_qt()
    application = QtWidgets.QApplication.instance() or QtWidgets.QApplication(["Slicer"])
    application.setStyle("Fusion")
    return qt
