"""atlas structure: is one atlas enough? Distances between subjects, a map of them, types, and what these depend on.

DIR gets result.json, subjects.csv (type, certainty and coordinates of every subject), effects.csv (covariates), a
.csv of every matrix of distances, pictures, and report.html; where there are several types of images also type-1.csv, ..., which 'atlas build
--cohort' takes. Several sources are combined: subjects that all of them
have are taken, by name.
"""

from __future__ import annotations

import csv
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..runtime import Runtime
from . import options
from .output import RECORD, note, say, staged

SOURCES = {
    "labels": "label maps in a common space (folder or list): 1 - NMI of their co-occurrence",
    "maps": "images on a common lattice (folder or list): root mean square difference",
    "atlas": "a finished atlas (folder): difference of the log-Jacobians of its subjects",
    "profiles": "table of profiles of at least 0, e.g. connectivity (.csv, a subject a row): Hellinger's distance",
    "features": "table of features (.csv, a subject a row): distance of the scaled columns",
    "distances": "table of distances (.csv, a row and a column a subject)",
}
PICTURES = {
    "map.png": "Map of the subjects",
    "distances.png": "Distances, in the order of types",
    "dimension.png": "Correlation dimension",
    "types.png": "Numbers of components",
}

REPLACED = ("effects.csv", *PICTURES, *(f"type-{k}.csv" for k in range(1, 51)))
"""Files of an earlier run that go, although this one may not write them."""


@dataclass(frozen=True)
class Order:
    """What is asked for: ``sources``: kind (of ``SOURCES``) -> path, or a list of ``structure_sources.Item``;
    ``covariates``: a table; ``values``: parameters of the analysis."""

    sources: dict
    covariates: Path | None
    values: dict


def add(actions) -> None:
    parser = actions.add_parser(
        "structure", help="is one atlas enough? types of subjects and what they depend on", description=__doc__
    )
    for name, text in SOURCES.items():
        parser.add_argument(
            f"--{name}",
            type=Path,
            metavar="DIR"
            if name == "atlas"
            else "FILE"
            if name in ("profiles", "features", "distances")
            else "FOLDER|LIST",
            help=text,
        )
    parser.add_argument(
        "--covariates", type=Path, metavar="FILE", help="table of covariates (.csv, a subject a row; numbers or words)"
    )
    options.add_settings(parser, "a parameter of cortical-types")
    options.add_seed(parser)
    options.add_results(parser)
    options.add_voice(parser)
    parser.set_defaults(run=run)


def run(arguments) -> None:
    """Analyze and write. Raises InputError or Cancelled; then nothing is written."""
    monitor = options.monitor(arguments)
    given = {name: getattr(arguments, name) for name in SOURCES if getattr(arguments, name) is not None}
    order = Order(given, arguments.covariates, options.settings(arguments.set))
    with staged(arguments.out, REPLACED) as folder:
        record = carry_out(order, folder, Runtime("cpu", arguments.seed, monitor=monitor))
    if not (arguments.quiet or arguments.json_progress):
        tell(record, arguments.out)


def carry_out(order: Order, folder: Path, runtime: Runtime) -> dict:
    """Analyze, write all files into ``folder`` and return the record."""
    from ..evaluate.cohort import CohortTypes
    from ..parameters import from_values
    from .atlas_cohort import covariates_of

    analysis = from_values(CohortTypes, order.values)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        sources, aside, files = collect(order.sources, Path(scratch), runtime.monitor.part(0, 0.7))
    covariates = covariates_of(order.covariates)
    require_known(covariates, sources[0].names, order.covariates)
    found = analysis.analyze(sources, Runtime("cpu", runtime.seed, monitor=runtime.monitor.part(0.7, 0.95)), covariates)
    runtime.monitor.progress(0.95, "pictures")
    write_lists(found, files, folder)
    return write(found, analysis, aside, runtime.seed, folder)


def require_known(covariates: dict, names: tuple[str, ...], table: Path | None) -> None:
    """InputError where the table of covariates names nobody of the cohort."""
    known = list(next(iter(covariates.values()), {}))
    if known and not set(known) & set(names):
        raise InputError(f"no subject of {table} is in the cohort: it names '{known[0]}', ..., the cohort '{names[0]}', ...; "
                         "give the table the names of the cohort")


def collect(given: dict, scratch: Path, monitor) -> tuple[list, dict, dict]:
    """(Distances of every source, {"kind: subject": reason} of what was set aside, {subject: row for 'atlas build'})."""
    from . import structure_sources as read

    if not given:
        raise InputError(f"no cohort was given; give one or more of {', '.join('--' + name for name in SOURCES)}")
    sources, aside, files = [], {}, {}
    for k, (kind, where) in enumerate(given.items()):
        part = monitor.part(k / len(given), (k + 1) / len(given), kind)
        if kind in ("profiles", "features", "distances"):
            made, lost = read.of_table(where, kind)
        else:
            items = (
                where
                if isinstance(where, list)
                else {"labels": read.label_items, "maps": read.map_items, "atlas": read.atlas_items}[kind](where)
            )
            files |= {item.name: item.files for item in items if item.files is not None}
            name = "deformation" if kind == "atlas" else kind
            made, lost = (read.of_labels if kind == "labels" else read.of_maps)(items, scratch, part, name)
        aside |= {f"{kind}: {subject}": reason for subject, reason in lost.items()}
        if made is None:
            raise InputError(
                f"no subject of {where} can be used"
                + (f"; the first one: {next(iter(lost.values()))}" if lost else "; it holds none")
            )
        sources.append(made)
    return sources, aside, files


# -------------------------------------------------------------------------------------------------------------- writing


def write(found, analysis, aside: dict, seed: int, folder: Path) -> dict:
    """All files of a structure; returns the record."""
    import dataclasses
    import importlib.util

    from .. import __version__

    record = {
        "analysis": analysis.id,
        **found.record(),
        "set_aside": aside,
        "seed": seed,
        "parameters": dataclasses.asdict(analysis),
        "version": __version__,
    }
    write_rows(folder / "subjects.csv", found.rows())
    if found.effects:
        write_rows(folder / "effects.csv", [vars(effect) for effect in found.effects])
    for view in found.views:
        rows = [
            {"subject": name, **{n: f"{d:.6g}" for n, d in zip(found.names, line)}}
            for name, line in zip(found.names, view.distances.matrix)
        ]
        write_rows(folder / f"distances_{view.distances.kind}.csv", rows)
    drawn = {}
    if importlib.util.find_spec("matplotlib"):
        from ..evaluate.cohort_pictures import pictures

        drawn = pictures(found)
        for name, png in drawn.items():
            (folder / name).write_bytes(png)
    write_report(record, found, drawn, folder / "report.html")
    record["pictures"] = list(drawn)
    (folder / RECORD).write_text(json.dumps(record, indent=1, allow_nan=False), "utf-8")
    return record


def write_lists(found, files: dict, folder: Path) -> None:
    """One list a type for 'atlas build', where there are several and their images are known."""
    for label in range(found.types.count) if found.types.count > 1 else ():
        names = [name for name, own in zip(found.names, found.types.labels) if own == label and name in files]
        if names:
            write_rows(folder / f"type-{label + 1}.csv", [files[name] for name in names])


def write_report(record: dict, found, drawn: dict, path: Path) -> None:
    from ..evaluate.report import Table, report_html

    tables = [
        Table(
            "Types",
            ("type", "subjects", "most central subject"),
            tuple((k + 1, n, c) for k, (n, c) in enumerate(zip(record["sizes"], record["centers"]))),
        ),
        Table(
            "Dimension",
            ("distances of", "dimension", "error", "coordinates", "variance they explain", "graph parts"),
            tuple(
                (v["kind"], v["dimension"], v["dimension_error"], v["coordinates"], sum(v["explained"]), v["parts"])
                for v in record["views"]
            ),
        ),
    ]
    if found.effects:
        tables.append(
            Table(
                "What dimensions and types depend on (p-values by permutation, corrected for their number)",
                ("dimension", "covariate", "share of variance", "slope", "p", "corrected p"),
                tuple((e.target, e.covariate, e.share, e.slope, e.p, e.corrected) for e in found.effects),
            )
        )
    remarks = [*record["remarks"], *(f"set aside: {name}: {reason}" for name, reason in record["set_aside"].items())]
    if remarks:
        tables.append(Table("Remarks", ("remark",), tuple((text,) for text in remarks)))
    path.write_text(
        report_html(
            "Structure of the cohort", record["answer"], tables, {PICTURES[name]: png for name, png in drawn.items()}
        ),
        "utf-8",
    )


def write_rows(path: Path, rows: list[dict]) -> None:
    """Rows of one kind as a .csv file with a header line."""
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def tell(record: dict, out: Path) -> None:
    """A few lines for the reader of a terminal."""
    for name, reason in record["set_aside"].items():
        note(f"set aside: {name}: {reason}")
    for text in record["remarks"]:
        note(text)
    for view in record["views"]:
        dimension = (
            "not known"
            if view["dimension"] is None
            else f"{view['dimension']:.2f}"
            + ("" if view["dimension_error"] is None else f" ± {view['dimension_error']:.2f}")
        )
        say(
            f"{view['kind']}: dimension {dimension}, {view['coordinates']} coordinates explain "
            f"{100 * sum(view['explained']):.0f} % of the variance"
        )
    for effect in record["effects"]:
        if effect["corrected"] < 0.05:
            say(
                f"{effect['target']} and {effect['covariate']}: {100 * effect['share']:.0f} % of the variance, "
                f"corrected p {effect['corrected']:.2g}"
            )
    say(record["answer"])
    say(f"{out}: report.html, subjects.csv, {RECORD}")
