"""How values of a parameter node are kept as texts and references of a ``vtkMRMLScriptedModuleNode``.

| type | kept as |
|---|---|
| int, float, str, bool | parameter ``name`` = '3', '2.5', 'text', 'True' |
| Enum, Path, QColor | the member's name, the path, '#aarrggbb' |
| node | node reference of role ``name``, and an empty parameter |
| list, dict | ``name.len`` and ``name.0`` ..., ``name.0.0`` (key) and ``name.0.1`` (value) ... |
| tuple, pack, range | ``name.0`` ..., ``name.field``, ``name._minimum`` and ``name._maximum`` |
| Union | the value under ``name.<position of its type>``; None as 'True' |
"""

from __future__ import annotations

import enum
import pathlib
import types
import typing


class Storage:
    """One type's way to be kept; ``check`` raises TypeError for a value of another type, and ValueError for None where that is none of them."""

    def __init__(self, kind):
        self.kind = kind

    def default(self):
        return self.kind()

    def check(self, value):
        if value is None:
            raise ValueError("a value was expected, not None")
        if not isinstance(value, self.kind) or (self.kind is int and isinstance(value, bool)):
            raise TypeError(f"a value of type {self.kind.__name__} was expected, not {value!r}")
        return value

    def present(self, node, name: str) -> bool:
        return node.GetParameter(name) is not None and name in node.GetParameterNames()

    def remove(self, node, name: str) -> None:
        node.UnsetParameter(name)

    def write(self, node, name: str, value) -> None:
        self.put(node, name, self.text(value))

    @staticmethod
    def put(node, name: str, text: str) -> None:
        """Nothing happens, and no event comes, where the text is there already."""
        if name not in node.GetParameterNames() or node.GetParameter(name) != text:
            node.SetParameter(name, text)

    def text(self, value) -> str:
        return str(value)

    def read(self, node, name: str, changed=None):
        """The value; containers call ``changed`` (no arguments) after they were changed in place."""
        return self.value(node.GetParameter(name))

    def value(self, text: str):
        return self.kind(text)


class Number(Storage):
    """int and float; a whole number is a float as well."""

    def check(self, value):
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        return Storage.check(self, value)


class Truth(Storage):
    def value(self, text):
        return text == "True"


class Member(Storage):
    """Members of an Enum."""

    def default(self):
        return next(iter(self.kind))

    def text(self, value):
        return value.name

    def value(self, text):
        return self.kind[text]


class FilePath(Storage):
    def check(self, value):
        if not isinstance(value, pathlib.PurePath):
            raise TypeError(f"a path was expected, not {value!r}")
        return value


class Color(Storage):
    def text(self, value):
        return value.name(self.kind.HexArgb)

    def default(self):
        return self.kind(0, 0, 0)


class Node(Storage):
    """One node of the scene, of one of several classes; None is always possible."""

    def __init__(self, kinds: tuple):
        Storage.__init__(self, kinds)

    def default(self):
        return None

    def check(self, value):
        if value is not None and not any(value.IsA(kind.__name__) for kind in self.kind if hasattr(value, "IsA")):
            raise TypeError(f"a node of class {' or '.join(kind.__name__ for kind in self.kind)} was expected, not {value!r}")
        return value

    def write(self, node, name, value):
        self.put(node, name, "")
        if node.GetNodeReferenceID(name) != (value.GetID() if value is not None else None):
            node.SetNodeReferenceID(name, value.GetID() if value is not None else None)

    def read(self, node, name, changed=None):
        return node.GetNodeReference(name)

    def remove(self, node, name):
        node.RemoveNodeReferenceIDs(name)
        node.UnsetParameter(name)


class Nothing(Storage):
    def default(self):
        return None

    def check(self, value):
        if value is not None:
            raise TypeError(f"None was expected, not {value!r}")

    def text(self, value):
        return "True"

    def value(self, text):
        return None


def observed(kind, *methods: str):
    """A container type that calls ``changed`` after each method that changes it."""

    def calling(name):
        def method(self, *arguments, **named):
            answer = getattr(kind, name)(self, *arguments, **named)
            if getattr(self, "changed", None) is not None:
                self.changed()
            return answer

        return method

    members = {name: calling(name) for name in methods}
    return type(f"Observed{kind.__name__.capitalize()}", (kind,), {**members, "changed": None})


ObservedList = observed(list, "append", "extend", "insert", "remove", "pop", "clear", "sort", "reverse", "__setitem__", "__delitem__", "__iadd__")
ObservedDict = observed(dict, "clear", "pop", "popitem", "setdefault", "update", "__setitem__", "__delitem__", "__ior__")


class Sequence(Storage):
    """list[item]"""

    def __init__(self, item: Storage):
        Storage.__init__(self, list)
        self.item = item

    def check(self, value):
        return [self.item.check(each) for each in Storage.check(self, value)]

    def present(self, node, name):
        return Storage.present(self, node, f"{name}.len")

    def _length(self, node, name) -> int:
        return int(node.GetParameter(f"{name}.len") or 0)

    def write(self, node, name, value):
        for k in range(len(value), self._length(node, name)):
            self.item.remove(node, f"{name}.{k}")
        self.put(node, f"{name}.len", str(len(value)))
        for k, each in enumerate(value):
            self.item.write(node, f"{name}.{k}", each)

    def read(self, node, name, changed=None):
        value = ObservedList(self.item.read(node, f"{name}.{k}", lambda *_: changed and changed(value)) for k in range(self._length(node, name)))
        value.changed = changed and (lambda: changed(value))
        return value

    def remove(self, node, name):
        self.write(node, name, [])
        node.UnsetParameter(f"{name}.len")


class Mapping(Sequence):
    """dict[key, value], kept as a list of pairs."""

    def __init__(self, key: Storage, item: Storage):
        Sequence.__init__(self, Fixed((key, item)))
        self.kind = dict

    def check(self, value):
        return dict(self.item.check(pair) for pair in Storage.check(self, value).items())

    def write(self, node, name, value):
        Sequence.write(self, node, name, list(value.items()))

    def read(self, node, name, changed=None):
        value = ObservedDict(self.item.read(node, f"{name}.{k}") for k in range(self._length(node, name)))
        value.changed = changed and (lambda: changed(value))
        return value


class Fixed(Storage):
    """tuple[a, b, ...]"""

    def __init__(self, items: tuple[Storage, ...]):
        Storage.__init__(self, tuple)
        self.items = items

    def default(self):
        return tuple(item.default() for item in self.items)

    def check(self, value):
        if len(Storage.check(self, value)) != len(self.items):
            raise TypeError(f"{len(self.items)} values were expected, not {value!r}")
        return tuple(item.check(each) for item, each in zip(self.items, value, strict=True))

    def present(self, node, name):
        return all(item.present(node, f"{name}.{k}") for k, item in enumerate(self.items))

    def write(self, node, name, value):
        for k, (item, each) in enumerate(zip(self.items, value, strict=True)):
            item.write(node, f"{name}.{k}", each)

    def read(self, node, name, changed=None):
        return tuple(item.read(node, f"{name}.{k}") for k, item in enumerate(self.items))

    def remove(self, node, name):
        for k, item in enumerate(self.items):
            item.remove(node, f"{name}.{k}")


class Alternatives(Storage):
    """Union of types; the first that takes the value keeps it."""

    def __init__(self, items: tuple[Storage, ...]):
        Storage.__init__(self, object)
        self.items = items

    def default(self):
        return None if any(isinstance(item, Nothing) for item in self.items) else self.items[0].default()

    def _of(self, value) -> int:
        for k, item in enumerate(self.items):
            try:
                item.check(value)
            except (TypeError, ValueError):
                continue
            return k
        raise TypeError(f"{value!r} is of none of the types that are possible here")

    def check(self, value):
        return self.items[self._of(value)].check(value)

    def present(self, node, name):
        return any(item.present(node, f"{name}.{k}") for k, item in enumerate(self.items))

    def write(self, node, name, value):
        chosen = self._of(value)
        for k, item in enumerate(self.items):
            if k != chosen and item.present(node, f"{name}.{k}"):
                item.remove(node, f"{name}.{k}")
        self.items[chosen].write(node, f"{name}.{chosen}", value)

    def read(self, node, name, changed=None):
        return next(item.read(node, f"{name}.{k}", changed) for k, item in enumerate(self.items) if item.present(node, f"{name}.{k}"))

    def remove(self, node, name):
        for k, item in enumerate(self.items):
            if item.present(node, f"{name}.{k}"):
                item.remove(node, f"{name}.{k}")


class Pack(Storage):
    """A class made by ``parameterPack`` or a range: named fields, see ``parameter_nodes.Field``."""

    def present(self, node, name):
        return all(field.storage.present(node, f"{name}.{key}") for key, field in self.kind.stored_fields().items())

    def check(self, value):
        return value if isinstance(value, getattr(self.kind, "plain", self.kind)) else Storage.check(self, value)

    def write(self, node, name, value):
        for key, field in self.kind.stored_fields().items():
            field.storage.write(node, f"{name}.{key}", getattr(value, key))

    def read(self, node, name, changed=None):
        made = self.kind.rebuild({k: f.storage.read(node, f"{name}.{k}", lambda *_: changed and changed(made))
                                  for k, f in self.kind.stored_fields().items()})
        if changed is not None and hasattr(self.kind, "allParameters"):
            made.__dict__["_changed"] = lambda: changed(made)
        return made

    def remove(self, node, name):
        for key, field in self.kind.stored_fields().items():
            field.storage.remove(node, f"{name}.{key}")


SCALARS = {int: Number, float: Number, str: Storage, bool: Truth}


def plain_type(annotation):
    """An annotation without ``Annotated``."""
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation


def is_node(kind) -> bool:
    import slicer

    return isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode)


def storage_of(annotation) -> Storage:
    """The storage of a type; raises TypeError for a type that cannot be kept."""
    import qt

    kind = plain_type(annotation)
    origin, items = typing.get_origin(kind), typing.get_args(kind)
    if any(typing.get_origin(each) is typing.Annotated for each in items):
        raise TypeError(f"this stand-in checks whole fields only, not the parts of {kind!r}")
    if origin in (typing.Union, types.UnionType):
        nodes = tuple(each for each in items if is_node(each))
        if nodes and len(nodes) + (type(None) in items) == len(items):
            return Node(nodes)
        return Alternatives(tuple(storage_of(each) for each in items))
    if origin in (list, tuple, dict):
        parts = tuple(storage_of(each) for each in items)
        return Fixed(parts) if origin is tuple else {list: Sequence, dict: Mapping}[origin](*parts)
    if kind in SCALARS:
        return SCALARS[kind](kind)
    if kind is type(None):
        return Nothing(kind)
    if is_node(kind):
        return Node((kind,))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return Member(kind)
    if isinstance(kind, type) and issubclass(kind, pathlib.PurePath):
        return FilePath(kind)
    if isinstance(kind, type) and issubclass(kind, qt.QColor):
        return Color(kind)
    if hasattr(kind, "stored_fields"):
        return Pack(kind)
    raise TypeError(f"a parameter node cannot keep values of type {kind!r}")
