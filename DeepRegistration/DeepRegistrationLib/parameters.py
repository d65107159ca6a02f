"""Parameters of a method: dataclass fields that carry their label, unit, range and one-line help.

Panel, command line, presets and documentation are derived from these fields, so a parameter is described once.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing

from .errors import InputError


def parameter(default, label: str, help: str, *, unit: str = "", minimum=None, maximum=None, choices=None, advanced=True):
    """A dataclass field for a method's parameter; tuples are given a tuple default."""
    info = dict(label=label, help=help, unit=unit, minimum=minimum, maximum=maximum, choices=choices, advanced=advanced)
    return dataclasses.field(default=default, metadata=info)


@dataclasses.dataclass(frozen=True)
class ParameterInfo:
    """What a user sees of one parameter."""

    name: str
    type: type
    default: object
    label: str
    help: str
    unit: str
    minimum: float | None
    maximum: float | None
    choices: tuple | None
    advanced: bool


def describe(cls) -> list[ParameterInfo]:
    """The parameters of a method class, in the order of its fields."""
    hints = typing.get_type_hints(cls)
    return [ParameterInfo(f.name, hints[f.name], f.default, **f.metadata) for f in dataclasses.fields(cls)]


def from_values(cls, values: dict):
    """An instance of ``cls`` from a dict of values or strings; InputError names the nearest key, the range or the choices."""
    known = {p.name: p for p in describe(cls)}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.3)
            hint = f"did you mean '{near[0]}'?" if near else "known are " + ", ".join(known)
            raise InputError(f"unknown parameter '{key}'; {hint}")
    return cls(**{key: convert(known[key], value) for key, value in values.items()})


def check(instance) -> None:
    """Raise InputError for the first field of ``instance`` that is outside its range or choices."""
    for p in describe(type(instance)):
        convert(p, getattr(instance, p.name))


def require_coarse_to_fine(levels: tuple) -> None:
    """InputError unless the ``levels``, spacings or factors of one, fall."""
    if list(levels) != sorted(levels, reverse=True):
        raise InputError(f"the levels {levels} were given; order them from coarse to fine")


def require_counts(levels: tuple, iterations: tuple, instead: str = "") -> None:
    """InputError unless ``iterations`` has a count for each of the ``levels``, one of them above 0; ``instead``: what else there is to do."""
    if len(levels) != len(iterations):
        raise InputError(f"{len(levels)} levels and {len(iterations)} iteration counts were given; give one count per level")
    if not sum(iterations) > 0:
        raise InputError(f"iterations {iterations} ask for no step at all; give at least one level a positive count{instead}")


def convert(info: ParameterInfo, value):
    """``value`` (already typed, JSON or a string of the command line) as the parameter's type, checked."""
    try:
        value = _cast(info.type, value)
    except (TypeError, ValueError):
        raise InputError(f"parameter '{info.name}' is {value!r}; expected {_type_name(info.type)}") from None
    if info.choices is not None and value not in info.choices:
        raise InputError(f"parameter '{info.name}' is {value!r}; expected one of {', '.join(map(str, info.choices))}")
    for v in value if isinstance(value, tuple) else (value,):
        low, high = info.minimum, info.maximum
        if isinstance(v, (int, float)) and (v != v or (low is not None and v < low) or (high is not None and v > high)):
            limits = f"at least {low}" if high is None else f"at most {high}" if low is None else f"from {low} to {high}"
            raise InputError(f"parameter '{info.name}' is {v}; expected {limits}{' ' + info.unit if info.unit else ''}")
    return value


def _cast(kind, value):
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if isinstance(value, str):
            value = [part for part in value.replace("x", ",").split(",") if part.strip()]
        return tuple(_cast(item, v) for v in (value if isinstance(value, (list, tuple)) else [value]))
    if kind is bool:
        if isinstance(value, str):
            words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
            if value.lower() not in words:
                raise ValueError(value)
            return words[value.lower()]
        if isinstance(value, (bool, int)) and value in (0, 1):
            return bool(value)
        raise TypeError(value)
    if kind is int:
        if isinstance(value, bool) or (isinstance(value, float) and value != int(value)):
            raise TypeError(value)
        return int(value)
    if kind is float:
        if isinstance(value, bool):
            raise TypeError(value)
        return float(value)
    if kind is str and not isinstance(value, str):
        raise TypeError(value)
    return value


def _type_name(kind) -> str:
    if typing.get_origin(kind) is tuple:
        return f"a list of {_type_name(typing.get_args(kind)[0])}s"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}.get(kind, str(kind))
