"""The cohort of the 'atlas' commands: a folder with images, or a list of them, as subjects that are read when they are needed.

A folder is searched as for 'train' (label maps by the usual names; files whose names say that they are label maps or masks, and that belong to no
image, are set aside); a list (.csv, .json) has one image a row: image, and optionally subject,
labels, mask, and a column for the age or another covariate. Paths are relative to the list.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError


@dataclass(frozen=True)
class Covariate:
    """Where the covariate of every subject is found: the column ``name`` of the list, or of a ``table`` (.csv, a subject a row)."""

    name: str = ""
    table: Path | None = None

    def of(self, names: list[str], columns: dict[str, dict[str, str]]) -> list[float | None]:
        """The numbers of the subjects ``names``, None where none is given; ``columns`` name -> {subject: text} are those of the list. InputError
        for a text that is no number, and where there is no such column."""
        if not self.name:
            return [None] * len(names)
        if self.table is not None:
            columns = covariates_of(self.table)
        if self.name not in columns:
            where = f"the table {self.table}" if self.table is not None else "the cohort"
            raise InputError(f"{where} has no column '{self.name}'; " + (f"it has {', '.join(columns)}" if columns else "give a table with --covariates"))
        return [self._number(name, columns[self.name].get(name, "")) for name in names]

    def _number(self, name: str, text: str) -> float | None:
        try:
            return float(text) if text.strip() else None
        except ValueError:
            raise InputError(f"'{self.name}' of the subject '{name}' is '{text}'; a number is needed, leave it empty where it is not known") from None


def read_group(path: Path, labels: str | None = None, covariate: Covariate = Covariate()):
    """The ``Group`` of a folder or list; ``labels`` is the rule for label maps in a folder. InputError where there is none."""
    from ..problem import Group, Subject

    scans = read_scans(path, labels)
    values = covariate.of([name for name, _ in scans], columns_of(scans))
    reasons = strays([scan.image for _, scan in scans]) if Path(path).is_dir() else {}
    return Group(tuple(Subject(name, scan.image, scan.labels, scan.mask, value, reasons.get(scan.image, ""))
                       for (name, scan), value in zip(scans, values)))


def require_apart(data: Path, out: Path) -> None:
    """InputError where an atlas would be written among the images of its cohort, whose subjects its files would be the next time."""
    if Path(data).is_dir() and Path(data).resolve() == Path(out).resolve():
        raise InputError(f"the atlas would be written among the images in {out}; choose another folder for it, for example {Path(out) / 'atlas'}")


def strays(images: list[Path]) -> dict[Path, str]:
    """Image of a folder -> why it is none, of those whose names say that they are label maps or masks; none where all names do."""
    from ..train.cohort import belongs_to_an_image

    found = [path for path in images if belongs_to_an_image(path)]
    text = "its name says that it is a label map or a mask, and it belongs to no image; name a label map like its image with _seg at the end, or give a list"
    return dict.fromkeys(found, text) if len(found) < len(images) else {}


def read_scans(path: Path, labels: str | None = None) -> list[tuple]:
    """(name, scan) of every subject of a folder or list. InputError where there is none."""
    from ..io.files import suffix
    from ..train.cohort import read_cohort

    cohort = read_cohort(path, labels, further=True)
    if cohort.pairs is not None:
        raise InputError(f"{path} lists pairs; a cohort needs one image a row (columns image, subject, labels, mask)")
    images = [scan.image.name for scan in cohort.scans]
    names = unique([scan.subject for scan in cohort.scans], [name[: len(name) - len(suffix(name))] for name in images])
    return list(zip(names, cohort.scans))


def columns_of(scans: list[tuple]) -> dict[str, dict[str, str]]:
    """Name -> {subject: text} of the further columns of a list."""
    columns: dict[str, dict[str, str]] = {}
    for name, scan in scans:
        for column, text in scan.further:
            columns.setdefault(column, {})[name] = text
    return columns


def unique(subjects: list[str], files: list[str]) -> list[str]:
    """Names that can be those of folders: the subject's, with the file's where a subject has several images, numbered where that occurs twice."""
    names = [subject if subjects.count(subject) == 1 else f"{subject}-{file}" for subject, file in zip(subjects, files)]
    names = [re.sub(r'[/\\:*?"<>|]', "-", name) for name in names]
    return [name if names.count(name) == 1 else f"{name} ({names[:k].count(name) + 1})" for k, name in enumerate(names)]


def read_table(path: Path) -> tuple[list[str], dict[str, list[str]]]:
    """(subjects, column -> texts) of a .csv file with a header; subjects are the column 'subject' or 'id', else the first one, without the ending of an
    image's file."""
    from ..io.files import suffix
    from ..io.images import READABLE
    from ..tables import read_rows

    path = Path(path)
    if not path.is_file():
        raise InputError(f"the table {path} does not exist; give a .csv file with a header line, one subject a row")
    header, rows = read_rows(path)
    if not rows:
        raise InputError(f"the table {path} has no rows; give one subject a row below a header line")
    key = next((name for name in header if name.lower() in ("subject", "id")), header[0])
    subjects = [row[key][: -len(suffix(row[key]))] if suffix(row[key]) in READABLE else row[key] for row in rows]
    twice = next((name for name in subjects if subjects.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"the subject '{twice}' occurs {subjects.count(twice)} times in {path}; give one row a subject")
    return subjects, {name: [row[name] for row in rows] for name in header if name != key}


def covariates_of(path: Path | None) -> dict[str, dict]:
    """Name -> {subject: text} of a table."""
    if path is None:
        return {}
    subjects, columns = read_table(path)
    return {name: dict(zip(subjects, texts)) for name, texts in columns.items()}
