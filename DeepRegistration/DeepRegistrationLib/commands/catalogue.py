"""list, show and cite: the methods, everything about one method, its references. All is read from cards and fields."""

from __future__ import annotations

import json
import re
import typing
from pathlib import Path

from ..errors import InputError
from .options import settings
from .output import say, staged

BEGIN, END = "<!-- methods: begin (python run.py list --markdown --into README.md) -->", "<!-- methods: end -->"


def add(commands) -> None:
    parser = commands.add_parser("list", help="the methods", description="List the methods with their presets.")
    parser.add_argument("--markdown", action="store_true", help="as the table of the README")
    parser.add_argument("--json", action="store_true", help="everything about all of them as JSON, as the panel in 3D Slicer reads it")
    parser.add_argument("--into", type=Path, metavar="FILE", help="write the Markdown table between the markers of FILE, or the JSON as FILE")
    parser.set_defaults(run=run_list)
    parser = commands.add_parser("show", help="everything about one method", description="Print everything about one method.")
    parser.add_argument("id", metavar="ID", help="a method of 'list'")
    parser.set_defaults(run=run_show)
    parser = commands.add_parser("cite", help="the references of a method as BibTeX",
                                 description="Print the references of a method and of the terms that its parameters name.")
    parser.add_argument("id", metavar="ID[:PRESET]", help="a method of 'list', with a preset where the run had one")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a parameter that the run had; may be repeated")
    parser.set_defaults(run=run_cite)


def run_list(arguments) -> None:
    from ..method import registry

    known = registry()
    if arguments.json and arguments.markdown:
        raise InputError("both --json and --markdown were given; choose one")
    if arguments.json and arguments.into:
        with staged(arguments.into.resolve().parent) as folder:
            (folder / arguments.into.name).write_text(catalogue_text(), "utf-8")
    elif arguments.json:
        say(catalogue_text().rstrip())
    elif arguments.into:
        replace_table(arguments.into, markdown(known))
    elif arguments.markdown:
        say(markdown(known))
    else:
        width = max(len(name) for name in (*known, *analyses()))
        for name, cls in known.items():
            say(f"{name:<{width}}  {cls.card.title} ({dims(cls)}); presets {', '.join(cls.card.presets)}")
        for name, cls in analyses().items():
            say(f"{name:<{width}}  {cls.card.title} ({dims(cls)}); '{cls.command}' runs it")


def run_show(arguments) -> None:
    say(card_text(lookup(arguments.id)))


def run_cite(arguments) -> None:
    from ..method import find

    found = analyses().get(arguments.id)
    say("\n\n".join(found.card.references if found else references(find(arguments.id, settings(arguments.set)))))


def references(method) -> list[str]:
    """BibTeX entries of a method and of the terms that its parameters name, each work once."""
    from ..terms import CONSISTENCIES, REGULARITIES, SIMILARITIES

    values, lists = method.values(), (("similarity", SIMILARITIES), ("regulariser", {**REGULARITIES, **CONSISTENCIES}))
    terms = [known[values[name]] for name, known in lists if values.get(name) in known]
    entries = {}
    for entry in (*method.card.references, *(term.reference for term in terms)):
        if entry.strip():
            entries.setdefault(work(entry), entry.strip())
    return list(entries.values())


def work(entry: str) -> str:
    """What an entry has in common with another one of the same work under another key: its title in plain lower case, or else all of it."""
    title = re.search(r"\btitle\s*=\s*\{(.*?)\}\s*(?:,|\}|$)", entry, re.DOTALL)
    return re.sub(r"[^a-z0-9]+", " ", (title[1] if title else entry).replace("{", "").replace("}", "").lower()).strip()


def catalogue() -> dict:
    """All methods as JSON types, for programs that have no torch: {"version", "methods": [{"id", "title", "summary", "task", "problem",
    "dims", "symmetric", "covariate", "licence", "weights", "assumptions", "failure_modes", "references", "presets" {name: {"help", "values"}},
    "parameters" [{"name", "type", "default", "label", "help", "unit", "minimum", "maximum", "choices", "advanced"}]}],
    "analyses": the same of what registers no pair}.

    type: 'int', 'float', 'bool', 'str', or 'list of' one of these.
    """
    from .. import __version__
    from ..method import registry

    return {"version": __version__, "methods": [entry(cls) for cls in registry().values()], "analyses": [entry(cls) for cls in analyses().values()]}


def catalogue_text() -> str:
    """The catalogue as the text of its file."""
    return json.dumps(catalogue(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def entry(cls) -> dict:
    """One method of the catalogue."""
    from ..parameters import describe

    card, out = cls.card, {"id": cls.id}
    for name in ("title", "summary", "task"):
        out[name] = getattr(card, name)
    out |= {"problem": card.problem.__name__, "dims": list(card.dims), "symmetric": card.symmetric, "covariate": card.covariate,
            "licence": card.licence}
    for name in ("weights", "assumptions", "failure_modes", "references"):
        out[name] = [each if isinstance(each, (str, dict)) else str(each) for each in getattr(card, name)]
    out["presets"] = {name: {"help": preset.help, "values": jsonable(preset.values)} for name, preset in card.presets.items()}
    out["parameters"] = [jsonable({**vars(p), "type": type_name(p.type)}) for p in describe(cls)]
    return out


def type_name(kind) -> str:
    inner = typing.get_args(kind)
    return f"list of {inner[0].__name__}" if inner else kind.__name__


def jsonable(value):
    """Tuples as lists, in dicts too."""
    if isinstance(value, dict):
        return {key: jsonable(each) for key, each in value.items()}
    return [jsonable(each) for each in value] if isinstance(value, (tuple, list)) else value


def lookup(name: str):
    """The class of a method or an analysis; InputError names the nearest id."""
    from ..method import find

    return analyses().get(name) or type(find(name))


def analyses() -> dict[str, type]:
    """What has a card and parameters as a method has, but registers no pair: id -> class, whose ``command`` runs it."""
    from ..evaluate.cohort import CohortTypes
    from ..train.plates import PlateTraining

    return {cls.id: cls for cls in (CohortTypes, PlateTraining)}


def dims(cls) -> str:
    return ", ".join(f"{d}D" for d in cls.card.dims)


def markdown(known: dict) -> str:
    """The table of methods for the README."""
    rows = ["| method | what it is | for | dims | presets |", "| --- | --- | --- | --- | --- |"]
    for name, cls in known.items():
        card = cls.card
        cells = [f"`{name}`", f"**{card.title}.** {card.summary}", card.task, dims(cls), ", ".join(f"`{p}`" for p in card.presets)]
        rows.append("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def replace_table(path: Path, table: str) -> None:
    """Put ``table`` between the markers of the file; InputError where they are missing."""
    text = path.read_text("utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise InputError(f"{path} has no lines '{BEGIN}' and '{END}'; add them where the table belongs")
    with staged(path.resolve().parent) as folder:
        (folder / path.name).write_text(f"{head}{BEGIN}\n{table}\n{END}{tail}", "utf-8")


def card_text(cls) -> str:
    """Card, presets and parameters of a method, readable."""
    from ..parameters import describe

    card = cls.card
    lines = [f"{cls.id}: {card.title}", "", card.summary, "", f"for        {card.task}", f"problem    {card.problem.__name__}, {dims(cls)}",
             f"symmetric  {'yes' if card.symmetric else 'no'}", f"license    {card.licence}"]
    lines += [f"command    {cls.command}"] if cls.id in analyses() else []
    lines += [f"weights    {weights}" for weights in card.weights]
    for title, items in (("assumes", card.assumptions), ("fails when", card.failure_modes)):
        lines += ["", title] + [f"  - {item}" for item in items] if items else []
    lines += ["", "presets"]
    for name, preset in card.presets.items():
        lines.append(f"  {name}: {preset.help}")
        lines += [f"      {key} = {shown(value)}" for key, value in preset.values.items()]
    lines += ["", "parameters (--set NAME=VALUE)"]
    for p in describe(cls):
        lines += [f"  {p.name} = {shown(p.default)}{f' {p.unit}' if p.unit else ''}{limits(p)}", f"      {p.label}: {p.help}"]
    return "\n".join(lines)


def shown(value) -> str:
    """A value as the command line takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def limits(p) -> str:
    """The range or the choices of a parameter, in brackets."""
    if p.choices:
        return f"  ({', '.join(map(str, p.choices))})"
    if p.minimum is None and p.maximum is None:
        return ""
    low, high = ("" if v is None else shown(v) for v in (p.minimum, p.maximum))
    return f"  (at least {low})" if not high else f"  (at most {high})" if not low else f"  ({low} to {high})"
