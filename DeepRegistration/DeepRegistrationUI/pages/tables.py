"""Rows of figures (lists of dicts) in a table widget."""

from __future__ import annotations

import qt


def fill_table(table, rows, columns: tuple[str, ...] = ()) -> None:
    """Show ``rows`` (dicts) with the keys of the first one, or ``columns``, as the heading; numbers with five digits."""
    columns = columns or tuple(rows[0] if rows else ())
    table.setRowCount(len(rows))
    table.setColumnCount(len(columns))
    table.setHorizontalHeaderLabels([name[:1].upper() + name[1:].replace("_", " ") for name in columns])
    for r, row in enumerate(rows):
        for c, name in enumerate(columns):
            item = qt.QTableWidgetItem(shown(row.get(name)))
            item.setToolTip(shown(row.get(name)))
            table.setItem(r, c, item)
    table.verticalHeader().visible = False
    table.horizontalHeader().stretchLastSection = True
    table.resizeColumnsToContents()


def shown(value) -> str:
    """A figure as text; nothing where there is none."""
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)
