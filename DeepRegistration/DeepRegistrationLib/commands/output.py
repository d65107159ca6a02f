"""Writing without halves: files are made in a hidden folder beside their place and are moved there when all are complete."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError

RECORD = "result.json"
STRETCHED = 2.0
"""Scale along an axis, or its inverse, from which a linear map is remarked on: no two bodies of one kind differ so much."""

KEPT = 0.5
"""Share of the common field of view below which its loss is remarked on: the correlation is computed over what is left of it."""


@contextmanager
def staged(folder: Path, replaced: tuple[str, ...] = ()):
    """A temporary folder whose files land in ``folder`` together when the block ends, and not at all when it fails.

    ``replaced`` names files of an earlier run that go even if they are not written anew, so that what lies in the folder is
    always one result. The record (result.json) leaves first and arrives last: where it is, the rest is complete.
    Raises InputError where nothing can be written.
    """
    made: list[Path] = []
    stage = None
    try:
        with uninterrupted():
            made = _make_folders(folder)
            stage = _stage_in(folder)
        yield stage
        with uninterrupted():
            _publish(stage, folder, replaced)
            made = []
    except InputError as error:
        raise InputError(str(error).replace(str(stage), str(folder))) from error  # the user knows only the final name
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
        for path in reversed(made):
            _remove_if_empty(path)


def _make_folders(folder: Path) -> list[Path]:
    """Create ``folder`` with its parents; the ones that were new."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()][::-1]
    made: list[Path] = []
    try:
        for path in missing:
            path.mkdir()
            made.append(path)
    except OSError as error:
        for path in reversed(made):
            _remove_if_empty(path)
        raise InputError(f"the output folder {folder} cannot be made ({error.strerror}); choose another output folder") from None
    if not folder.is_dir():
        raise InputError(f"{folder} is a file, a folder is needed for the output; choose another output folder")
    return made


def _stage_in(folder: Path) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
    except OSError as error:
        raise InputError(f"nothing can be written to {folder} ({error.strerror}); choose another output folder") from None


def _publish(stage: Path, folder: Path, replaced) -> None:
    names = sorted((p.name for p in stage.iterdir()), key=lambda name: (name == RECORD, name))
    for name in names:
        if (folder / name).is_dir():
            raise InputError(f"{folder / name} is a folder where a file would be written; move it away or choose another output folder")
    for name in (RECORD, *replaced):
        if name in names or name in replaced:
            (folder / name).unlink(missing_ok=True)
    for name in names:
        os.replace(stage / name, folder / name)


def _remove_if_empty(path: Path) -> None:
    try:
        path.rmdir()
    except OSError:
        return  # something else lives there now


@contextmanager
def uninterrupted():
    """Ctrl-C and SIGTERM wait until the block has ended: for the moments in which folders and files appear or move."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    before = {number: signal.signal(number, lambda n, frame: waiting.append(n)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if waiting:
            signal.raise_signal(waiting[0])


def say(text: str = "") -> None:
    """One line on stdout: the answer of a command."""
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """One line on stderr: remarks and errors."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def missing_remark(image) -> str:
    """What is done with the voxels of an Image that hold no number (see ``Image.completed``), with their count; empty where all do."""
    count, total = int((~image.data.isfinite()).any(1).sum()), image.grid.voxels
    return (f"{count} of {total} voxels of {image.name} ({count / total:.1%}) hold no number (NaN or infinite); they are not compared and are read "
            f"as {image.background:.6g}") if count else ""


def remark_on(provenance: dict) -> str:
    """What the reader of a result should know of how it came about; empty where there is nothing."""
    low, high = provenance.get("linear_stretch") or (1.0, 1.0)
    remarks = list(provenance.get("missing", ()))
    if low < 1 / STRETCHED or high > STRETCHED:
        remarks.append(f"the linear part scales by {low:.2g} to {high:.2g} along its axes, which one body does not; if the voxel sizes are right, "
                       "the search went wrong: try another start or fewer degrees of freedom")
    overlap = provenance.get("overlap")
    if overlap is not None and overlap["after"] < KEPT * overlap["before"]:
        remarks.append(f"{overlap['after']:.0%} of the fixed image lie in the moving one, {overlap['before']:.0%} did before; the search may have moved "
                       "the images apart, as it can in stacks of few slices: look at the result, or begin as the headers place them (--init header)")
    if provenance.get("deformation_kept") is False:
        remarks.append("the deformation that was found does not clearly make the images tell more of each other, so the result is the linear start "
                       "alone; if the images do differ by a deformation, choose another preset or similarity")
    return "; ".join(remarks)
