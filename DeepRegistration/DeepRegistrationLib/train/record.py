"""The log of a training run: one line an update in training.csv, one line a validation in validation.csv, pictures, and TensorBoard's files."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from ..errors import InputError


class Record:
    """Appends rows to the files of ``folder``; rows after ``step`` (of a run that was stopped later than its checkpoint) are dropped.

    tensorboard: also write its event files. InputError where the package is missing.
    """

    def __init__(self, folder: Path, step: int = 0, tensorboard: bool = False):
        self.folder = folder
        self.board = _board(folder / "tensorboard", step) if tensorboard else None
        for name in ("training.csv", "validation.csv"):
            _cut(folder / name, step)

    def add(self, **row) -> None:
        _append(self.folder / "training.csv", row)
        self._show("training", row)

    def add_validation(self, **row) -> None:
        _append(self.folder / "validation.csv", row)
        self._show("validation", row)

    def add_picture(self, step: int, png: bytes) -> None:
        """Keep a picture as pictures/step-NNNNNN.png; it appears when it is complete."""
        folder = self.folder / "pictures"
        folder.mkdir(exist_ok=True)
        partial = folder / ".partial"
        partial.write_bytes(png)
        partial.replace(folder / f"step-{step:06d}.png")

    def _show(self, group: str, row: dict) -> None:
        if self.board is not None:
            for name, value in row.items():
                if name != "step" and math.isfinite(value):
                    self.board.add_scalar(f"{group}/{name}", value, row["step"])

    def close(self) -> None:
        """Complete TensorBoard's files; nothing else is held open between rows."""
        if self.board is not None:
            self.board.close()


def rows(folder: Path, name: str) -> list[dict]:
    """The rows of 'training' or 'validation' in a run's folder as numbers; none where nothing was noted yet."""
    path = folder / f"{name}.csv"
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as stream:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(stream)]


def _board(folder: Path, step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("TensorBoard's files were asked for but its package is not installed; install it with 'pip install tensorboard', "
                         "or read training.csv and validation.csv") from None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


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
