"""Facts about classes that are not Python: members of the application's Qt classes, and members of Qt that only version 6 has."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


@lru_cache(maxsize=None)
def slicer_classes() -> dict[str, dict]:
    """Class name -> bases, properties {name: [type, getter, setter, signal]}, signals, slots, invokables, enums, decorator_methods,
    cpp_only (public in C++, not visible from Python), designable (a .ui file can create it)."""
    return json.loads((FOLDER / "slicer_classes.json").read_text("utf-8"))["classes"]


@lru_cache(maxsize=None)
def qt6_only() -> dict[str, frozenset[str]]:
    """Qt class name -> members that Qt 5.15 does not have; Slicer is built with 5.15."""
    return {name: frozenset(members) for name, members in json.loads((FOLDER / "qt6_only.json").read_text("utf-8")).items()}


def arguments_of(signature: str) -> list[list[str]]:
    """'addAttribute(QString,QString,QVariant) [min 2]' -> the argument types of the full form and of each shorter one, longest first."""
    inside = signature[signature.index("(") + 1:signature.index(")")]
    full = [each for each in inside.split(",") if each]
    fewest = int(signature.rpartition("[min ")[2].rstrip("]")) if "[min " in signature else len(full)
    return [full[:count] for count in range(len(full), fewest - 1, -1)]
