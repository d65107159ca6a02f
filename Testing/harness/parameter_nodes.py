"""Stand-in for ``slicer.parameterNodeWrapper``: typed attributes over a ``vtkMRMLScriptedModuleNode``, bound to widgets on request.

Written from the facts of the storage format (``parameter_storage``) and of the widgets that can be connected (``connectors``).

It keeps the types that the panels of this extension use, and more: numbers, texts, truth values, enumerations, paths, colours, nodes, lists,
dictionaries, tuples, unions, packs and ranges, with defaults and validators of whole fields. What it lacks: serializers and connectors that an
extension registers, ``typing.Any``, ``Annotated`` types inside lists, tuples, dictionaries and unions (all refused with a TypeError), the
serializer classes under their names, ``isCached``, and the making of a form from the fields (``createGui``). Most of the application's own tests
of its wrapper that do not pass here use one of these.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass

from .connectors import Decimals, Label, SingleStep, connector_for
from .parameter_storage import ObservedList, Storage, plain_type, storage_of

__all__ = ["Choice", "Decimals", "Default", "Exclude", "FloatRange", "IsInstance", "Label", "Maximum", "Minimum", "NotNone", "RangeBounds",
           "SingleStep", "SlicerParameterNamePropertyName", "Validator", "WithinRange", "isParameterNodeWrapper", "parameterNodeWrapper",
           "parameterPack"]
SlicerParameterNamePropertyName = "SlicerParameterName"
MODIFIED = "ModifiedEvent"


class Default:
    """The value of a field that was never set, or what makes it."""

    def __init__(self, value=None, *, generator=None):
        self.make = generator if generator is not None else lambda: value


class Validator:
    """Refuses values: ``validate`` raises ValueError."""

    def validate(self, value) -> None:
        raise NotImplementedError


def _validator(name: str, condition, sentence: str):
    """A validator class whose arguments are what ``condition(value, *arguments)`` compares with."""

    def initialise(self, *arguments):
        self.arguments = arguments

    def validate(self, value):
        if not condition(value, *self.arguments):
            raise ValueError(f"the value {sentence.format(*self.arguments)}, not {value!r}")

    return type(name, (Validator,), {"__init__": initialise, "validate": validate, "__module__": __name__})


NotNone = _validator("NotNone", lambda value: value is not None, "must not be None")
Minimum = _validator("Minimum", lambda value, low: value >= low, "must be at least {0}")
Maximum = _validator("Maximum", lambda value, high: value <= high, "must be at most {0}")
WithinRange = _validator("WithinRange", lambda value, low, high: low <= value <= high, "must be within [{0}, {1}]")
Choice = _validator("Choice", lambda value, choices: value in choices, "must be one of {0}")
Exclude = _validator("Exclude", lambda value, excluded: value not in excluded, "must be none of {0}")


class IsInstance(Validator):
    """Refuses values of other classes with a TypeError; None passes."""

    def __init__(self, kind):
        self.kind = kind

    def validate(self, value):
        if value is not None and not isinstance(value, self.kind):
            raise TypeError(f"the value must be of type {self.kind}, not {value!r}")


@dataclass(frozen=True)
class RangeBounds:
    """Limits of a ``FloatRange``."""

    minimum: float
    maximum: float


@dataclass(frozen=True)
class Field:
    """One field of a parameter node or pack."""

    name: str
    annotation: object
    storage: Storage
    default: Default

    @property
    def extras(self) -> tuple:
        return typing.get_args(self.annotation)[1:] if typing.get_origin(self.annotation) is typing.Annotated else ()

    def check(self, value):
        """The value as it is kept; raises TypeError or ValueError."""
        value = self.storage.check(value)
        for extra in self.extras:
            rule = extra() if isinstance(extra, type) and issubclass(extra, Validator) else extra
            if isinstance(rule, Validator):
                rule.validate(value)
        return value

    def initial(self):
        value = self.default.make()
        return self.check(value) if value is not None else None


class FloatRange:
    """Two numbers of which the first is not above the second."""

    def __init__(self, minimum: float = 0.0, maximum: float = 0.0):
        if minimum > maximum:
            raise ValueError(f"a range from {minimum} to {maximum} is empty")
        self._minimum, self._maximum = float(minimum), float(maximum)

    minimum = property(lambda self: self._minimum)
    maximum = property(lambda self: self._maximum)

    def __eq__(self, other):
        return isinstance(other, FloatRange) and (self.minimum, self.maximum) == (other.minimum, other.maximum)

    def __hash__(self):
        return hash((self._minimum, self._maximum))

    @staticmethod
    def stored_fields() -> dict[str, Field]:
        return {name: Field(name, float, storage_of(float), Default(0.0)) for name in ("_minimum", "_maximum")}

    @classmethod
    def rebuild(cls, values: dict):
        return cls(*values.values())


def _fields(cls) -> dict[str, Field]:
    """The annotated fields of a class; their defaults come from ``=``, from ``Default``, or from the type."""
    found = {}
    for name, annotation in typing.get_type_hints(cls, include_extras=True).items():
        storage = storage_of(annotation)
        extras = typing.get_args(annotation)[1:] if typing.get_origin(annotation) is typing.Annotated else ()
        given = next((extra for extra in extras if isinstance(extra, Default)), Default(generator=storage.default))
        found[name] = Field(name, annotation, storage, Default(getattr(cls, name)) if hasattr(cls, name) else given)
    return found


def _field_at(owner, path: str) -> Field:
    """The field at 'a' or 'pack.a'; raises ValueError for a name that does not exist."""
    top, _, rest = path.partition(".")
    fields = getattr(owner, "allParameters", {})
    if top not in fields:
        raise ValueError(f"there is no field '{path}'; there are {', '.join(fields)}")
    return _field_at(plain_type(fields[top].annotation), rest) if rest else fields[top]


class _Paths:
    """Access by dotted names, shared by nodes and packs."""

    def getValue(self, name):
        _field_at(type(self), name)
        value = self
        for part in name.split("."):
            value = getattr(value, part)
        return value

    def setValue(self, name, value):
        _field_at(type(self), name)
        *path, last = name.split(".")
        setattr(self.getValue(".".join(path)) if path else self, last, value)

    @classmethod
    def dataType(cls, name):
        return _field_at(cls, name).annotation


class _Node(_Paths):
    """What the decorator adds to a class."""

    def __init__(self, node, prefix: str | None = None):
        self.__dict__.update(parameterNode=node, _prefix=f"{prefix}." if prefix else "", _bound={}, _updating=False)
        for name, field in self.allParameters.items():
            if not field.storage.present(node, self._prefix + name):
                field.storage.write(node, self._prefix + name, field.initial())

    def _read(self, name: str):
        def changed(value):
            self._write(name, list(value) if isinstance(value, ObservedList) else value)

        return self.allParameters[name].storage.read(self.parameterNode, self._prefix + name, changed)

    def _write(self, name: str, value) -> None:
        field = self.allParameters[name]
        value = field.check(value)
        before = self.parameterNode.StartModify()
        try:
            field.storage.write(self.parameterNode, self._prefix + name, value)
        finally:
            self.parameterNode.EndModify(before)

    def default(self, name):
        return _field_at(type(self), name).default

    def connectGui(self, gui) -> int:
        """Bind every widget that names a field; returns a tag for ``disconnectGui``."""
        import qt

        widgets = gui.findChildren(qt.QWidget) if hasattr(gui, "findChildren") else vars(gui).values()
        named = {widget.property(SlicerParameterNamePropertyName): widget for widget in widgets}
        return self.connectParametersToGui({name: widget for name, widget in named.items() if name})

    def connectParametersToGui(self, mapping: dict) -> int:
        links = {name: connector_for(widget, _field_at(type(self), name)) for name, widget in mapping.items()}
        tag = max(self._bound, default=0) + 1
        for name, link in links.items():
            link.write(self.getValue(name))
            link.listen(lambda *_, name=name, link=link: self._from_gui(name, link))
        self._bound[tag] = (links, self.AddObserver(MODIFIED, lambda *_: self._to_gui()))
        return tag

    def _from_gui(self, name, link) -> None:
        if not self._updating:
            self.setValue(name, link.read())

    def _to_gui(self) -> None:
        if self._updating:
            return
        self.__dict__["_updating"] = True
        before = self.StartModify()
        try:
            for links, _ in list(self._bound.values()):
                for name, link in links.items():
                    link.write(self.getValue(name))
        finally:
            self.EndModify(before)
            self.__dict__["_updating"] = False

    def disconnectGui(self, tag: int) -> None:
        links, observer = self._bound.pop(tag, ({}, None))
        for link in links.values():
            link.stop()
        if observer is not None:
            self.RemoveObserver(observer)

    def StartModify(self):
        return self.parameterNode.StartModify()

    def EndModify(self, before):
        return self.parameterNode.EndModify(before)

    def AddObserver(self, event, callback, priority=0.0):
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag):
        self.parameterNode.RemoveObserver(tag)

    def Modified(self):
        self.parameterNode.Modified()


def _attribute(name: str):
    return property(lambda self: self._read(name), lambda self, value: self._write(name, value))


def _adopt(cls, base, fields: dict[str, Field]):
    """Give a decorated class the members of ``base``; a field may not hide one of them."""
    for name, member in {**vars(_Paths), **vars(base)}.items():
        if name.startswith("__") and name not in ("__init__", "__eq__", "__setattr__", "__hash__", "__repr__"):
            continue
        if name in fields:
            raise ValueError(f"'{name}' is the name of a function of parameter nodes and cannot be a field")
        setattr(cls, name, member)
    cls.allParameters = fields
    for name in fields:
        setattr(cls, name, _attribute(name))
    return cls


def parameterNodeWrapper(cls=None):
    """Class decorator: annotated fields become attributes that live in a parameter node."""
    if cls is None:
        return parameterNodeWrapper
    return _adopt(cls, _Node, _fields(cls))


def isParameterNodeWrapper(thing) -> bool:
    """True for decorated classes and their instances."""
    return hasattr(thing, "allParameters") and hasattr(thing, "connectGui")


class _Pack(_Paths):
    """What ``parameterPack`` adds to a class: fields with checked values; a pack that was read from a node writes its changes back."""

    def __init__(self, *arguments, **named):
        if len(arguments) > len(self.allParameters):
            raise TypeError(f"{len(arguments)} values for {len(self.allParameters)} fields")
        values = dict(zip(self.allParameters, arguments, strict=False))
        if set(values) & set(named) or set(named) - set(self.allParameters):
            raise TypeError(f"fields given twice or unknown: {', '.join(named)}")
        self.__dict__.update(_values={name: field.initial() for name, field in self.allParameters.items()}, _changed=None)
        for name, value in {**values, **named}.items():
            self._write(name, value)

    def __setattr__(self, name, value):
        if name not in self.allParameters:
            raise AttributeError(f"{type(self).__name__} has no field '{name}'; it has {', '.join(self.allParameters)}")
        self._write(name, value)

    def __eq__(self, other):
        return isinstance(other, type(self)) and self._values == other._values

    __hash__ = None

    def __repr__(self):
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self._values.items())})"

    def _read(self, name):
        return self._values[name]

    def _write(self, name, value):
        self._values[name] = self.allParameters[name].check(value)
        if self._changed is not None:
            self._changed()

    @classmethod
    def stored_fields(cls) -> dict[str, Field]:
        return cls.allParameters

    @classmethod
    def rebuild(cls, values: dict):
        return cls(**values)


def parameterPack(cls=None):
    """Class decorator: a group of fields that is one value of a parameter node."""
    if cls is None:
        return parameterPack
    fields = _fields(cls)
    if not fields:
        raise ValueError(f"{cls.__name__} has no annotated fields")
    return _adopt(cls, _Pack, fields)
