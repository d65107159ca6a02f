"""The images that a network is trained with, as names of files: from a folder or from a list, with subjects and their split.

A folder is searched with everything below it, but for folders that hold results of this program. A file whose name follows a rule (``RULES``,
``{name}`` is that of an image without its ending, ``{case}`` without nnU-Net's number of the channel; places are relative to the image) is the label
map or the points of that image; so is the one label map beside the one image of a subject's own folder. The subject of an image is what
stands after ``sub-`` in its path, else the folder that it lies in where every subject has one, else its name.

A list (.csv with a header line, .json with a list of objects) names one image a row (``image``, ``labels``, ``points``, ``mask``) or one
pair a row with the columns of the command 'batch' (``fixed``, ``moving``, ``fixed_labels``, ...), and optionally ``subject`` and ``split``
('train', 'validation' or 'test'). Paths are relative to the list.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..errors import InputError
from ..io.files import suffix
from ..io.images import READABLE
from ..io.points import TYPES as POINT_TYPES
from ..tables import read_rows

RULES = tuple("{name}" + ending for ending in ("_seg", "_labels", "_label", "_segmentation", "_dseg", "-seg", "-label")) + (
    "labels/{name}", "../labels/{name}", "../labelsTr/{name}", "../labelsTr/{case}")
POINT_RULES = ("{name}", "{name}_points", "{name}_landmarks", "../points/{name}", "../landmarks/{name}")
IMAGE_COLUMNS = ("image", "labels", "points", "mask")
PAIR_COLUMNS = tuple(side + part for side in ("fixed", "moving") for part in ("", "_labels", "_points", "_mask"))
OTHER_COLUMNS = ("id", "subject", "fixed_subject", "moving_subject", "split")
HOW_COLUMNS = ("method", "init", "set", "device", "seed", "threads", "write")
"""Columns of 'batch' that say how to register; a network is not trained with them."""
SPLITS = ("train", "validation", "test")
NEAR = 0.8
"""Likeness (difflib) from which on the name of a further column is taken as a slip."""
DICOM = (".dcm", ".ima")
"""Endings of DICOM files, which many have none of."""
RESULTS = ({"atlas.json"}, {"build.json"}, {"result.json", "transform.h5"}, {"result.json", "plane.tfm"})
"""A folder below the one that is searched that holds all files of one of these holds results, which are no subjects."""
LABELS = re.compile(r"(?:^|[^a-z])(?:[ad]?seg|segmentation|labels?|labelmap|parcellation)(?:$|[^a-z])", re.IGNORECASE)
MASK = re.compile(r"mask|(?:^|[^a-z])roi(?:$|[^a-z])", re.IGNORECASE)
COMMON_FOLDERS = re.compile(r"(images|labels|train|val|test)", re.IGNORECASE)


@dataclass(frozen=True)
class Scan:
    """One image with what belongs to it; ``subject`` says whose it is, ``split`` is '' where it is left to chance, ``further`` are (name, text) of
    the columns of a list that mean nothing here."""

    image: Path
    labels: Path | None = None
    points: Path | None = None
    mask: Path | None = None
    subject: str = ""
    split: str = ""
    further: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Cohort:
    """``scans``, and the pairs of their numbers that were asked for, None for every ordered pair of two scans."""

    scans: tuple[Scan, ...]
    pairs: tuple[tuple[int, int], ...] | None = None


def read_cohort(path: Path, labels: str | None = None, further: bool = False) -> Cohort:
    """The cohort of a folder or of a list; ``labels`` is the rule for label maps in a folder; ``further``: a list may have columns of its own, unless
    their names are nearly those of known ones. InputError where there is none."""
    path = Path(path)
    if path.is_dir():
        return Cohort(_in_folder(path, labels))
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a folder with images, or a list (.csv or .json)")
    if labels:
        raise InputError(f"the rule '{labels}' for label maps was given with the list {path}; a list names them in its column 'labels'")
    return _in_list(path, further)


# -------------------------------------------------------------------------------------------------------------- folder


def _in_folder(folder: Path, rule: str | None) -> tuple[Scan, ...]:
    if rule is not None and "{name}" not in rule:
        raise InputError(f"the rule '{rule}' for label maps was given; it must hold {{name}}, for example {{name}}_seg")
    images, points = _files(folder)
    known, places = {_key(path): path for path in images}, {_key(path): path for path in points}
    found = {path: _first(path, (rule,) if rule else RULES, known) for path in images}
    if not rule:
        found |= _only_ones(found, folder)
    taken = {other for other in found.values() if other is not None}
    scans = [Scan(path, found[path], _first(path, POINT_RULES, places)) for path in images
             if path not in taken and suffix(path) != ".seg.nrrd"]
    if not scans:
        raise InputError(f"the folder {folder} holds no image; give a folder with NIfTI, NRRD, MetaImage, PNG, TIFF or DICOM files")
    if rule and not taken:
        raise InputError(f"no image in {folder} has a label map named '{rule}'; check the rule, or leave it away")
    subjects = _subjects([scan.image for scan in scans], folder)
    return tuple(replace(scan, subject=subject) for scan, subject in zip(scans, subjects))


def _files(folder: Path) -> tuple[list[Path], list[Path]]:
    """(images, points) below ``folder``, in the order of their names; a folder with DICOM files is one image."""
    images, points = [], []
    for place, folders, names in os.walk(folder):
        if Path(place) != folder and any(files <= set(names) for files in RESULTS):
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        visible = [Path(place) / name for name in sorted(names) if not name.startswith(".")]
        if any(_is_dicom(path) for path in visible):
            images.append(Path(place))
            visible = [path for path in visible if suffix(path) not in DICOM]
        images += [path for path in visible if suffix(path) in READABLE or suffix(path) == ".seg.nrrd"]
        points += [path for path in visible if suffix(path) in POINT_TYPES]
    return images, points


def _is_dicom(path: Path) -> bool:
    """By its ending, or, where that says nothing (scanners write IM0001, or the UID), by the mark in its head."""
    if suffix(path) in DICOM:
        return True
    if suffix(path) in READABLE or suffix(path) in POINT_TYPES or path.name.upper() == "DICOMDIR":
        return False
    try:
        with open(path, "rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _key(path: Path) -> str:
    return os.path.normpath(path.parent / _stem(path))


def _stem(path: Path) -> str:
    return path.name[: len(path.name) - len(suffix(path))] if not path.is_dir() else path.name


def belongs_to_an_image(path: Path) -> bool:
    """Does the name of a file say that it is a label map or a mask?"""
    return bool(LABELS.search(_stem(path)) or MASK.search(_stem(path)))


def _only_ones(found: dict[Path, Path | None], folder: Path) -> dict[Path, Path]:
    """Image -> the label map beside it, in the folders below ``folder`` that hold one image and one label map and nothing says that they belong together."""
    taken, places = {other for other in found.values() if other is not None}, {}
    for path in found:
        if path not in taken and path.parent != folder and not path.is_dir():
            places.setdefault(path.parent, []).append(path)
    pairs = {}
    for paths in places.values():
        images = [path for path in paths if not belongs_to_an_image(path)]
        labels = [path for path in paths if LABELS.search(_stem(path))]
        if len(images) == len(labels) == 1 and found[images[0]] is None:
            pairs[images[0]] = labels[0]
    return pairs


def _first(image: Path, rules, known: dict[str, Path]) -> Path | None:
    """The file that the first fitting rule names for an image."""
    for rule in rules:
        name = _stem(image)
        other = known.get(os.path.normpath(image.parent / rule.format(name=name, case=re.sub(r"_\d{4}$", "", name))))
        if other is not None and other != image:
            return other
    return None


def _subjects(images: list[Path], folder: Path) -> list[str]:
    inner = [path.relative_to(folder) for path in images]
    named = [re.search(r"sub-([A-Za-z0-9]+)", str(path)) for path in inner]
    if all(named):
        return [match[0] for match in named]
    first = [path.parts[0] if len(path.parts) > 1 else "" for path in inner]
    own_folders = all(first) and len(set(first)) > 1 and not any(COMMON_FOLDERS.match(name) for name in first)
    return first if own_folders else [str(path.parent / _stem(image)) for path, image in zip(inner, images)]


# ---------------------------------------------------------------------------------------------------------------- list


def _in_list(path: Path, further: bool) -> Cohort:
    rows = _rows(path)
    scans: dict[Path, tuple[int, Scan]] = {}
    pairs = []
    for number, row in enumerate(rows, 1):
        _check(row, number, path, further)
        if row.get("image"):
            _number(scans, _scan(row, IMAGE_COLUMNS, "subject", path), path)
        else:
            pairs.append(tuple(_number(scans, _scan(row, PAIR_COLUMNS[k : k + 4], f"{side}_subject", path), path)
                               for k, side in ((0, "fixed"), (4, "moving"))))
    if pairs and any(row.get("image") for row in rows):
        raise InputError(f"{path} mixes rows of one image with rows of a pair; use either the column image or the columns fixed and moving")
    return Cohort(tuple(scan for _, scan in scans.values()), tuple(pairs) if pairs else None)


def _rows(path: Path) -> list[dict]:
    try:
        rows = json.loads(path.read_text("utf-8-sig")) if suffix(path) == ".json" else read_rows(path)[1]
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"the list {path} cannot be read ({error}); give a .csv file with a header line or a .json list of objects") from None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"the list {path} names no images; give one row or object an image (image) or a pair (fixed, moving)")
    return rows


def _check(row: dict, number: int, path: Path, further: bool) -> None:
    known = IMAGE_COLUMNS + PAIR_COLUMNS + OTHER_COLUMNS
    for key in row:
        near = difflib.get_close_matches(str(key), known, n=1, cutoff=NEAR if further else 0.6)
        if key not in known + HOW_COLUMNS and (near or key is None or not further):
            raise InputError(f"{path}, row {number}: unknown column '{key}'; " + (f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"))
    if not row.get("image") and not (row.get("fixed") and row.get("moving")):
        raise InputError(f"{path}, row {number}: no file is named; fill the column image, or the columns fixed and moving")
    if row.get("split") and row["split"] not in SPLITS:
        raise InputError(f"{path}, row {number}: the split '{row['split']}' was given; expected one of {', '.join(SPLITS)}, or nothing")


def _scan(row: dict, columns, subject: str, path: Path) -> Scan:
    image, *others = (path.parent / str(row[column]) if row.get(column) else None for column in columns)
    by_column = dict(zip((column.split("_")[-1] for column in columns[1:]), others))
    whose = row.get(subject) or row.get("subject") or _stem(image)
    known = IMAGE_COLUMNS + PAIR_COLUMNS + OTHER_COLUMNS + HOW_COLUMNS
    further = tuple((str(key), str(text).strip()) for key, text in row.items() if key not in known)
    return Scan(image, by_column["labels"], by_column["points"], by_column["mask"], str(whose), row.get("split") or "", further)


def _number(scans: dict[Path, tuple[int, Scan]], scan: Scan, path: Path) -> int:
    """The number of a scan; one image has one label map and one split wherever it is named."""
    number, known = scans.setdefault(scan.image, (len(scans), scan))
    if known != scan:
        raise InputError(f"{path} names {scan.image} twice with different labels, points, masks, subjects or splits; make its rows equal")
    return number


# --------------------------------------------------------------------------------------------------------------- split


def split(scans, seed: int, shares: tuple[float, float] = (0.15, 0.1)) -> dict[str, list[int]]:
    """Split -> numbers of scans. All scans of a subject are in one split; subjects that name none are drawn by ``seed``.

    shares: of the subjects for validation (at least two of four or more) and for the test (none of fewer than twenty). InputError
    where one subject is in two splits.
    """
    named: dict[str, str] = {}
    for scan in scans:
        if named.setdefault(scan.subject, scan.split) != scan.split:
            raise InputError(f"the subject '{scan.subject}' is in the splits '{named[scan.subject]}' and '{scan.split}'; give all of its images the same")
    free = sorted(subject for subject, name in named.items() if not name)
    order = [free[k] for k in torch.randperm(len(free), generator=torch.Generator().manual_seed(seed)).tolist()]
    if len(free) == len(named):
        validation = max(2, round(shares[0] * len(order))) if len(order) >= 4 else 0
        test = round(shares[1] * len(order)) if len(order) >= 20 else 0
        named |= {subject: "validation" for subject in order[:validation]}
        named |= {subject: "test" for subject in order[validation : validation + test]}
    return {name: [k for k, scan in enumerate(scans) if (named[scan.subject] or "train") == name] for name in SPLITS}
