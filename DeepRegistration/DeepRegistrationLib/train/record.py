"""The log of a training run: one line an update in training.csv, one line a validation in validation.csv."""

from __future__ import annotations

import csv
from pathlib import Path


class Record:
    """Appends rows to the files of ``folder``; rows after ``step`` (of a run that was stopped later than its checkpoint) are dropped."""

    def __init__(self, folder: Path, step: int = 0):
        self.folder, self.rows = folder, []
        for name in ("training.csv", "validation.csv"):
            _cut(folder / name, step)

    def add(self, **row) -> None:
        self.rows.append(row)
        _append(self.folder / "training.csv", row)

    def add_validation(self, **row) -> None:
        _append(self.folder / "validation.csv", row)

    def close(self) -> None:
        """Nothing is held open between rows."""


def _append(path: Path, row: dict) -> None:
    new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, row)
        if new:
            writer.writeheader()
        writer.writerow({k: f"{v:.7g}" if isinstance(v, float) else v for k, v in row.items()})


def _cut(path: Path, step: int) -> None:
    if not path.exists():
        return
    with open(path, newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        kept = [row for row in reader if int(row["step"]) <= step]
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, reader.fieldnames or [])
        writer.writeheader()
        writer.writerows(kept)
