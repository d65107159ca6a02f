"""Points from and to files: .mrk.json and .fcsv of 3D Slicer, and .csv. In memory they are LPS mm (see geometry).

.mrk.json names its coordinate system (LPS or RAS); .fcsv names it or numbers it (0 RAS, 1 LPS), RAS where it says
nothing; .csv is LPS with the columns label,x,y,z or x,y,z (or label,x,y and x,y in 2D), with or without a header, or a table that
3D Slicer exports, whose columns l,p,s or r,a,s name the system. In a table with semicolons 12,5 is 12.5.
Sources: Slicer's markups schema 1.0.3 and the Slicer user guide, "Markups fiducial storage" and "Export markups to table".
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..points import Points
from ..tables import DECIMAL_COMMA, decoded
from .files import atomic, require_file, require_suffix, suffix

TYPES = (".mrk.json", ".fcsv", ".csv")
FLIP = np.array([-1.0, -1.0, 1.0])
SYSTEMS = {"LPS": "LPS", "RAS": "RAS", "0": "RAS", "1": "LPS"}
SCHEMA = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/markups-schema-v1.0.3.json#"


def read_points(path) -> Points:
    """Points (1, N, dim) float64 mm with their names.

    path: .mrk.json (the control points of one markup of any type), .fcsv, or .csv.
    Raises InputError for a missing or damaged file, another type, a point without a position, or no point at all.
    """
    path = require_file(path, "points")
    kind = ".mrk.json" if suffix(path) == ".json" else suffix(path)
    if kind not in TYPES:
        raise InputError(f"{path} has the type '{kind}', which holds no points that can be read; use one of {', '.join(TYPES)}")
    content = path.read_bytes()
    if b"\0" in content:
        raise InputError(f"{path} is not a text file; export the points again as .mrk.json or .csv")
    text = decoded(content)
    names, rows = {".mrk.json": _from_json, ".fcsv": _from_fcsv, ".csv": _from_csv}[kind](text, path)
    if not rows:
        raise InputError(f"{path} holds no points; place points and save them again")
    if len({len(row) for row in rows}) > 1:
        raise InputError(f"{path} mixes points of 2 and 3 coordinates; give every point the same number")
    try:
        return Points(torch.tensor(np.array(rows, float))[None], names=tuple(names))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _from_json(text: str, path):
    try:
        markups = json.loads(text)["markups"]
        if len(markups) != 1:
            raise InputError(f"{path} holds {len(markups)} markups where one is needed; save each in a file of its own")
        markup = markups[0]
        flip = _flip(str(markup.get("coordinateSystem", "LPS")), path)
        _require_millimetres(markup.get("coordinateUnits", "mm"), path)
        names, rows = [], []
        for k, point in enumerate(markup.get("controlPoints", [])):
            name = str(point.get("label") or k + 1)
            if point.get("positionStatus", "defined") != "defined" or len(point.get("position") or ()) != 3:
                raise _unplaced(name, path)
            names.append(name)
            rows.append(np.array(point["position"], float) * flip)
        return names, rows
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a markups file of 3D Slicer ({type(error).__name__}: {error}); "
                         "save the points again as .mrk.json") from None


def _unplaced(name: str, path) -> InputError:
    return InputError(f"point '{name}' in {path} has no position; place it or remove it, so that the points correspond")


def _flip(system: str, path) -> np.ndarray:
    name = SYSTEMS.get(system.strip().upper())
    if name is None:
        raise InputError(f"{path} has the coordinate system '{system}'; LPS or RAS is needed, save it again from 3D Slicer")
    return FLIP if name == "RAS" else np.ones(3)


def _require_millimetres(units, path) -> None:
    found = set(units if isinstance(units, list) else [units])
    if found - {"mm", None, ""}:
        units = ", ".join(sorted(map(str, found)))
        raise InputError(f"{path} has coordinates in {units}; millimeters are needed, convert them")


def _from_fcsv(text: str, path):
    system, columns, rows, names = "RAS", ["id", "x", "y", "z"], [], []
    for line in text.splitlines():
        if line.startswith("#"):
            key, _, value = line.lstrip("# ").partition("=")
            if key.strip().lower() == "coordinatesystem":
                system = value
            elif key.strip().lower() == "columns":
                columns = [c.strip() for c in value.split(",")]
        elif line.strip():
            cells = dict(zip(columns, next(csv.reader([line]))))
            rows.append([_number(cells.get(c), line, path) for c in "xyz"])
            names.append(cells.get("label") or cells.get("id") or str(len(rows)))
    flip = _flip(system, path)
    return names, [np.array(row) * flip for row in rows]


def _from_csv(text: str, path):
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    separator = next((s for s in (";", "\t", ",") if lines and s in lines[0]), None)
    table = [[cell.strip() for cell in row] for row in (csv.reader(lines, delimiter=separator) if separator else map(str.split, lines))]
    if not table:
        return [], []
    if separator == ";":
        table = [[DECIMAL_COMMA.sub(r"\1.\2", cell) for cell in row] for row in table]
    label, columns, flip = _columns(table[0], path)
    defined = table[0].index("defined") if "defined" in table[0] else None
    names, rows = [], []
    for line, row in zip(lines, table):
        if row is table[0] and not _is_number(row[columns[-1]]):
            continue
        rows.append([_number(row[c] if c < len(row) else None, line, path) for c in columns])
        names.append(row[label] if label is not None and label < len(row) and row[label] else str(len(rows)))
        if defined is not None and row[defined : defined + 1] == ["0"]:
            raise _unplaced(names[-1], path)
    return names, [np.array(row) * flip[: len(columns)] for row in rows]


def _columns(first: list[str], path):
    """(column of the label or None, columns of the coordinates, their factors to LPS) from the first row, a header or a point."""
    lower = [cell.lower() for cell in first]
    system = next((s for s in ("xyz", "lps", "ras") if set(s[: 2 if s == "xyz" else 3]) <= set(lower)), None)
    if system is not None:
        label = next((lower.index(n) for n in ("label", "name", "id", "") if n in lower), None)
        return label, [lower.index(c) for c in system if c in lower], FLIP if system == "ras" else np.ones(3)
    numbers = [_is_number(cell) for cell in first]
    if all(numbers) and len(first) in (2, 3):
        return None, list(range(len(first))), np.ones(3)
    if len(first) in (3, 4) and all(numbers[1:]):
        return 0, list(range(1, len(first))), np.ones(3)
    raise InputError(f"{path} begins with '{','.join(first)[:60]}'; "
                     "expected the columns label,x,y,z or x,y,z in mm (LPS), or label,x,y in 2D")


def _is_number(cell) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True


def _number(cell, line, path) -> float:
    if not _is_number(cell):
        raise InputError(f"{path} has the line '{line.strip()[:60]}', in which a coordinate is no number; correct or remove it")
    return float(cell)


def write_points(points: Points, path) -> None:
    """Write Points (1, N, dim) mm with their names as .mrk.json (LPS), .fcsv (LPS) or .csv (LPS, label,x,y,z).

    Raises InputError for an unknown suffix, a batch, or 2D points in a format of 3D Slicer.
    """
    kind = require_suffix(path, TYPES, "points")
    if points.positions.shape[0] != 1:
        raise InputError(f"{points.positions.shape[0]} point sets in one batch were given for {path}; write them one by one")
    rows = points.positions[0].detach().cpu().double().numpy().tolist()
    if points.dim == 2 and kind != ".csv":
        raise InputError(f"{path} holds 3D points; 2D points were given, write them as .csv")
    names = points.names if len(points.names) == len(rows) else [str(k + 1) for k in range(len(rows))]
    text = {".mrk.json": _to_json, ".fcsv": _to_fcsv, ".csv": _to_csv}[kind](names, rows)
    with atomic(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8", newline="\n")


def _to_json(names, rows) -> str:
    control = [{"id": str(k + 1), "label": name, "description": "", "associatedNodeID": "", "position": row,
                "orientation": [-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0], "selected": True, "locked": False,
                "visibility": True, "positionStatus": "defined"} for k, (name, row) in enumerate(zip(names, rows))]
    markup = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "locked": False, "fixedNumberOfControlPoints": False,
              "labelFormat": "%N-%d", "lastUsedControlPointNumber": len(rows), "controlPoints": control, "measurements": []}
    return json.dumps({"@schema": SCHEMA, "markups": [markup]}, indent=1, ensure_ascii=False) + "\n"


def _to_fcsv(names, rows) -> str:
    head = "# Markups fiducial file version = 4.11\n# CoordinateSystem = LPS\n"
    head += "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
    return head + _table([[k + 1, *row, 0, 0, 0, 1, 1, 1, 0, name, "", ""] for k, (name, row) in enumerate(zip(names, rows))])


def _to_csv(names, rows) -> str:
    return _table([["label", *"xyz"[: len(rows[0]) if rows else 3]], *([name, *row] for name, row in zip(names, rows))])


def _table(rows) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()
