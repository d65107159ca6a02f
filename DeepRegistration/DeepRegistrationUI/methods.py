"""The catalogue of methods as the panel sees it: tasks, presets, parameters and citations, read from a JSON file without torch.

``python run.py list --json --into FILE`` writes the file from the cards and the fields of the methods.
"""

from __future__ import annotations

import json
import re
import unicodedata
from functools import cached_property
from pathlib import Path

from DeepRegistrationLib.errors import InputError

FILE = Path(__file__).resolve().parents[1] / "Resources" / "DeepRegistrationMethods.json"
ACRONYMS = ("2d", "ct", "lncc", "mse")
"""Words in the names of presets that are written in capitals."""


class Methods:
    """The methods of ``FILE`` that solve one kind of ``problem``; ``spec`` is always 'id:preset'."""

    def __init__(self, path: Path = FILE, problem: str = "Pair"):
        self.path, self.problem = path, problem

    @cached_property
    def entries(self) -> dict[str, dict]:
        """Method id -> its entry."""
        entries = json.loads(self.path.read_text("utf-8"))["methods"]
        return {entry["id"]: entry for entry in entries if entry["problem"] == self.problem}

    @cached_property
    def analyses(self) -> dict[str, dict]:
        """Analysis id -> its entry: what has a card and parameters but registers no pair."""
        return {entry["id"]: entry for entry in json.loads(self.path.read_text("utf-8"))["analyses"]}

    def tasks(self) -> list[str]:
        """Tasks in the order of their methods, the default method's first."""
        first = [self.entries[name]["task"] for name in ("instance-optimisation",) if name in self.entries]
        return list(dict.fromkeys(first + [entry["task"] for entry in self.entries.values()]))

    def of_task(self, task: str) -> list[dict]:
        return [entry for entry in self.entries.values() if entry["task"] == task]

    def split(self, spec: str) -> tuple[dict, str]:
        """(entry, preset name) of 'id:preset'. InputError where there is none such."""
        identifier, _, preset = spec.partition(":")
        entry = self.entries.get(identifier)
        if entry is None:
            raise InputError(f"the method '{identifier}' is not in this version; choose one of {', '.join(self.entries)}")
        preset = preset or "default"
        if preset not in entry["presets"]:
            raise InputError(f"the method '{identifier}' has no preset '{preset}'; choose one of {', '.join(entry['presets'])}")
        return entry, preset

    @staticmethod
    def presets(entry: dict) -> list[tuple[str, str]]:
        """(name, text to show) of every preset of an entry, as 'lung-ct' and 'Lung CT'."""
        return [(name, title(name)) for name in entry["presets"]]

    def preset_values(self, spec: str) -> dict:
        """All parameters of a preset: name -> value."""
        entry, preset = self.split(spec)
        return {p["name"]: p["default"] for p in entry["parameters"]} | entry["presets"][preset]["values"]

    def citations(self, spec: str) -> list[str]:
        """'Vercauteren et al. 2009, NeuroImage' for every reference of the method."""
        return [short_citation(entry) for entry in self.split(spec)[0]["references"]]

    def bibtex(self, spec: str) -> str:
        return "\n\n".join(self.split(spec)[0]["references"])


ACCENTS = {'"': "\u0308", "'": "\u0301", "`": "\u0300", "^": "\u0302", "~": "\u0303", "c": "\u0327", "v": "\u030c"}
ACCENT = re.compile(r"""\\(["'`^~]|[cv](?=\{))(?:\{(\w)\}|(\w))""")
"""How BibTeX writes the accents of letters."""


def title(name: str) -> str:
    """The name of a preset in words."""
    words = [word.upper() if word in ACRONYMS else word for word in name.split("-")]
    return " ".join([words[0][:1].upper() + words[0][1:], *words[1:]])


def short_citation(entry: str) -> str:
    """First author (the title where none is named), year and journal of a BibTeX entry."""
    entry = ACCENT.sub(lambda found: unicodedata.normalize("NFC", (found[2] or found[3]) + ACCENTS[found[1]]), entry)

    def field(name: str) -> str:
        found = re.search(rf"\b{name}\s*=\s*\{{((?:[^{{}}]|\{{[^{{}}]*\}})*)\}}", entry)
        return " ".join(found[1].replace("{", "").replace("}", "").split()) if found else ""

    authors = field("author").split(" and ")
    name = authors[0].partition(",")[0] or field("title")
    where = field("journal") or field("booktitle")
    return f"{name}{' et al.' if len(authors) > 1 else ''} {field('year')}{', ' + where if where else ''}"
