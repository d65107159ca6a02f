"""Figures as tables of the scene: from rows, to CSV, and two results side by side."""

from __future__ import annotations

import csv
import math
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from DeepRegistrationLib.errors import InputError

KEYS = ("name", "structure", "unit")
"""Columns that say what a row is about; the number is in 'value'."""


def is_number(value) -> bool:
    """True for whole and decimal numbers, not for True and False."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def table_from_rows(rows, name: str, scene=None, node=None):
    """A vtkMRMLTableNode of ``rows`` (dictionaries; columns are their keys in the order of appearance); an existing ``node`` is rewritten.

    A column of numbers stays numeric, with NaN where a row has none (None or absent). Units are given in a column or in the heads.
    """
    import slicer
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk

    rows = [dict(row) for row in rows]
    if not rows:
        raise InputError(f"table '{name}' has no rows; compute the figures first")
    heads = list(dict.fromkeys(key for row in rows for key in row))
    data = vtk.vtkTable()
    for head in heads:
        values = [row.get(head) for row in rows]
        if all(v is None or is_number(v) for v in values) and any(v is not None for v in values):
            column = numpy_to_vtk(np.array([math.nan if v is None else v for v in values], float), deep=True)
        else:
            column = vtk.vtkStringArray()
            for value in values:
                column.InsertNextValue("" if value is None else str(value))
        column.SetName(head)
        data.AddColumn(column)
    if node is None:
        node = (scene or slicer.mrmlScene).AddNewNodeByClass("vtkMRMLTableNode", name)
        node.SetUseColumnTitleAsColumnHeader(True)
    node.SetAndObserveTable(data)
    node.SetLocked(True)
    return node


def rows_of(table) -> list[dict]:
    """The rows of a table node as dictionaries; NaN becomes None."""
    data = table.GetTable()
    heads = [data.GetColumnName(c) for c in range(data.GetNumberOfColumns())]
    rows = []
    for r in range(data.GetNumberOfRows()):
        values = [data.GetColumn(c).GetValue(r) for c in range(len(heads))]
        rows.append({h: None if is_number(v) and math.isnan(v) else v for h, v in zip(heads, values)})
    return rows


def export_csv(table, path) -> Path:
    """Write a table node to a CSV file (comma, decimal point, UTF-8 with a mark that spreadsheets read); the file appears whole or not at all."""
    path, rows = Path(path), rows_of(table)
    if not rows:
        raise InputError(f"table '{table.GetName()}' has no rows; compute the figures first")
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", newline="", encoding="utf-8-sig") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows([{k: "" if v is None else repr(v) if isinstance(v, float) else v for k, v in row.items()} for row in rows])
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise InputError(f"{path} could not be written ({error.strerror or error}); choose a folder that exists, may be written to and has "
                         "room") from error
    return path


def compare_rows(first, second, names=("first", "second")) -> list[dict]:
    """One row for each (name, structure, unit) of two lists of rows: both values and second - first, None where one is missing."""
    sides = [{tuple(str(row.get(k) or "") for k in KEYS): row.get("value") for row in rows} for rows in (first, second)]
    rows = []
    for key in dict.fromkeys([*sides[0], *sides[1]]):
        a, b = (side.get(key) for side in sides)
        both = is_number(a) and is_number(b)
        rows.append({**dict(zip(KEYS, key)), names[0]: a, names[1]: b, "difference": b - a if both else None})
    return rows


def compare_tables(first, second, name: str = "Comparison", node=None):
    """A table node that sets two metrics tables (with columns name, value and perhaps structure and unit) side by side."""
    for table in (first, second):
        if table.GetTable().GetColumnByName("value") is None or table.GetTable().GetColumnByName("name") is None:
            raise InputError(f"table '{table.GetName()}' has no columns 'name' and 'value'; choose the metrics table of a registration")
    one, two = first.GetName(), second.GetName()
    names = (one, two) if one != two else (f"{one} (1)", f"{two} (2)")
    return table_from_rows(compare_rows(rows_of(first), rows_of(second), names), name, first.GetScene(), node)
