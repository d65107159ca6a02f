"""Rows of figures (lists of dicts) in a table widget."""

from __future__ import annotations

import qt

LAST, BEHIND = "unit", "structure"
"""The column that stands behind the numbers, and the one whose text stands behind the one of the first."""


def fill_table(table, rows, columns: tuple[str, ...] = ()) -> None:
    """Show ``rows`` (dicts) with the keys of the first one, or ``columns``, as the heading, units last; numbers with four digits. The structure stands
    behind the name ('Dice, lesion'); this first column takes the width that the others leave, in two lines where it must, and tooltips hold whole texts."""
    columns = columns or tuple(rows[0] if rows else ())
    columns = tuple(sorted((name for name in columns if name != BEHIND), key=lambda name: name == LAST))
    table.setRowCount(len(rows))
    table.setColumnCount(len(columns))
    table.setHorizontalHeaderLabels([name[:1].upper() + name[1:].replace("_", " ") for name in columns])
    for r, row in enumerate(rows):
        for c, name in enumerate(columns):
            text = shown(row.get(name)) + (f", {row[BEHIND]}" if c == 0 and row.get(BEHIND) else "")
            item = qt.QTableWidgetItem(text)
            item.setToolTip(text)
            table.setItem(r, c, item)
    table.verticalHeader().visible = False
    header = table.horizontalHeader()
    if not table.property("wraps"):  # once a table: long names take two lines, also when the panel is made narrower
        table.setProperty("wraps", True)
        header.connect("sectionResized(int,int,int)", lambda *_: table.resizeRowsToContents())
    for c in range(len(columns)):
        header.setSectionResizeMode(c, qt.QHeaderView.Stretch if c == 0 else qt.QHeaderView.ResizeToContents)
    table.resizeRowsToContents()


def shown(value) -> str:
    """A figure as text; nothing where there is none."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
