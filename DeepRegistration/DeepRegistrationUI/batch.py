"""Many pairs, one after the other: nodes of the scene, frames of a sequence or files of a manifest; resumable, and one failed pair does not stop the rest.

A row is a dict: ``id``, ``kind`` ('nodes', 'files', or 'frame', see ``frames``), ``fixed`` and ``moving`` (node IDs or file names), ``status``
('waiting', 'running', 'done', 'failed', 'cancelled'), ``seconds``, ``quality``, ``message``; rows of files hold the manifest's row in ``row`` and
its path in ``manifest``, others in ``written`` the folder with their results, if there is one. Pairs of files are registered by the command line in a
process of their own, so that reading them blocks nothing; pairs of nodes go the way of the panel.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from pathlib import Path

import slicer

import DeepRegistrationLib
from DeepRegistrationLib.commands import batch as command
from DeepRegistrationLib.errors import InputError

from . import frames, records

PACKAGE = DeepRegistrationLib.__name__
UNFINISHED = ("waiting", "cancelled", "running")
STOPPED = "The batch was stopped; Run goes on with the pairs that are left."


def rows_of(pairs) -> list[dict]:
    """Rows of a list of (fixed, moving) volume nodes, or of the path of a manifest. InputError where a manifest cannot be used."""
    if isinstance(pairs, (str, os.PathLike)):
        path = Path(pairs)
        return [_row(row["id"], "files", str(row["fixed"]), str(row["moving"]), row=row, manifest=str(path)) for row in command.read_manifest(path)]
    return [row_of_nodes(fixed, moving, []) for fixed, moving in pairs]


def row_of_nodes(fixed, moving, others: list[dict]) -> dict:
    """A row for two volume nodes, with an id that none of the ``others`` has. InputError for the same node twice."""
    if fixed is moving:
        raise InputError(f"'{fixed.GetName()}' is both the fixed and the moving volume; choose two different volumes")
    name = _free(f"{moving.GetName()}-to-{fixed.GetName()}", {row["id"] for row in others})
    return _row(name, "nodes", fixed.GetID(), moving.GetID())


def rows_of_sequence(sequence, reference, others: list[dict]) -> list[dict]:
    """Rows for the frames of a sequence node; ``reference`` is a volume node, or the number of a frame from 0. InputError where that cannot be."""
    plans, taken = frames.plans_of(sequence, reference, {row.get("group") for row in others}), {row["id"] for row in others}
    return [_row(_free(f"{plan['group']}-{plan['frame'] + 1}", taken), "frame", **plan) for plan in plans]


def _free(text: str, taken: set) -> str:
    """A name for a folder that is not in ``taken``."""
    base = "".join(c if c.isalnum() or c in "-_." else "_" for c in text)
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}-{number}"
    return name


def _row(name: str, kind: str, fixed: str, moving: str, **more) -> dict:
    return {"id": name, "kind": kind, "fixed": fixed, "moving": moving, "status": "waiting", "seconds": None, "quality": "", "message": "", **more}


class Batch:
    """Works through ``rows`` with the settings of ``template`` (Choices without volumes); ``listener(self, row)`` after every change of a
    row, with None at the end. ``folder``: where results are written, needed for files."""

    def __init__(self, logic, rows: list[dict], template, folder=None, to_scene: bool = False, listener=None):
        self.logic, self.rows, self.template, self.listener = logic, rows, template, listener
        self.folder, self.to_scene = (Path(folder) if folder else None), to_scene
        self.state, self.message, self.kind = "new", "", ""
        self.row, self.current, self.frame = None, None, None

    @property
    def running(self) -> bool:
        return self.state == "running"

    @property
    def share(self) -> float:
        """From 0 to 1: how many pairs have ended."""
        return sum(row["status"] in ("done", "failed") for row in self.rows) / max(1, len(self.rows))

    def start(self) -> None:
        """Begin with the first pair that is not done. InputError where a folder is needed or cannot be made."""
        if self.folder is None and any(row["kind"] == "files" for row in self.rows):
            raise InputError("the pairs of a list are files, and their results need a folder; choose one")
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"the folder {self.folder} cannot be made ({error.strerror}); choose another one") from None
        for row in self.rows:
            if row["status"] in UNFINISHED:
                row.update(status="waiting", message="")
        self.state = "running"

    def tick(self) -> bool:
        """Start the next pair when there is none; look after a process; True while pairs are left."""
        if not self.running:
            return False
        if self.current is None:
            self._next()
        elif isinstance(self.current, FileRun) and self.current.ended():
            self._ended(*self.current.answer())
        return self.running

    def _next(self) -> None:
        self.row = next((row for row in self.rows if row["status"] == "waiting"), None)
        if self.row is None:
            self._finish()
            return
        self.row["status"], self.row["began"] = "running", time.monotonic()
        if self.folder is not None and self.row["kind"] != "files":
            self._spare_others()
        self._tell()
        try:
            self.current = {"files": self._files, "nodes": self._nodes, "frame": self._frame}[self.row["kind"]]()
        except InputError as error:
            self._ended("failed", str(error))
            return
        if self.current is None and self.frame is not None:
            self.frame.deliver({})
            self._ended("done", "the reference")
        elif self.current is None:
            self._ended("done", "done before", self._figures(self.folder / self.row["id"]))

    def _files(self):
        """The process of a pair of files; None where its folder already holds the answer."""
        arguments = argparse.Namespace(
            manifest=Path(self.row["manifest"]), color="refuse", method=self.template.method, init=self.template.start or None, device=self.template.device,
            seed=self.template.seed, threads=self.template.threads, set=command.setting_list(self.template.values),
            write=("transform", "inverse", "affine", "warped", "jacobian", "scores"), fill=None)
        line = command.command_line(command.complete(self.row["row"], arguments), self.folder / self.row["id"])
        if command.is_done(command.register_parser().parse_args(line)):
            return None
        return FileRun(line)

    def _spare_others(self) -> None:
        """Give the row of nodes that runs a name of its own where its folder has another pair's results: volumes of one patient are often called as those
        of the one before."""
        taken = {row["id"] for row in self.rows if row is not self.row}
        if self.row.get("written") != str(self.folder / self.row["id"]):
            self.row["id"] = _free(self.row["id"], taken | {path.name for path in self.folder.iterdir()})

    def _nodes(self):
        """The registration of two nodes. InputError where they are gone or something else is wrong."""
        pair = {side: slicer.mrmlScene.GetNodeByID(self.row[side]) for side in ("fixed", "moving")}
        for side, node in pair.items():
            if node is None:
                raise InputError(f"the {side} volume is not in the scene any more; remove this pair or load the volume again")
        return self.logic.start(self.template.with_(**pair, prefix=self.row["id"]), self._event)

    def _frame(self):
        """The registration of a frame; None where it is the reference itself."""
        self.frame = frames.Frame(self.row)
        if self.frame.is_reference:
            return None
        wanted = frames.OUTPUTS | (self.template.outputs if self.folder is not None else set())
        return self.logic.start(self.template.with_(fixed=self.frame.fixed, moving=self.frame.moving, outputs=wanted, prefix=self.row["id"]), self._event)

    def _event(self, run, event: dict) -> None:
        if event["event"] not in ("done", "failed", "cancelled") or run is not self.current:
            return
        quality = {}
        if event["event"] == "done":
            quality = quality_of(run.figures["rows"])
            try:
                self._keep(run)
            except (OSError, RuntimeError) as error:
                self._ended("failed", f"the results cannot be written into {self.folder} ({error}); choose another folder")
                return
        self._ended(event["event"], event["message"], quality)

    def _keep(self, run) -> None:
        """Write the nodes of a pair into its folder, and take them out of the scene where they are not wanted there."""
        if self.folder is not None:
            save(run, self.folder / self.row["id"])
            self.row["written"] = str(self.folder / self.row["id"])
        if self.frame is not None:
            self.frame.deliver(run.nodes)
        if self.frame is not None or not self.to_scene and self.folder is not None:
            records.remove(run.nodes)

    def _close_frame(self) -> None:
        if self.frame is not None:
            self.frame.close()
            self.frame = None

    def _figures(self, folder: Path) -> dict:
        try:
            return json.loads((folder / command.RECORD).read_text("utf-8"))
        except (OSError, ValueError):
            return {}

    def _ended(self, status: str, message: str, figures: dict | None = None) -> None:
        row, self.current, self.row = self.row, None, None
        self._close_frame()
        if row["kind"] == "files" and status == "done":
            figures = figures or self._figures(self.folder / row["id"])
            if self.to_scene:
                load(self.folder / row["id"], row["id"])
        row.update(status=status, message=message, seconds=round(time.monotonic() - row.pop("began"), 1), quality=quality_text(figures or {}))
        self._tell(row)

    def _finish(self) -> None:
        done, failed = (sum(row["status"] == status for row in self.rows) for status in ("done", "failed"))
        self.state = "done"
        self.message = f"{done} of {len(self.rows)} pairs registered" + (f", {failed} failed; Retry does them again." if failed else ".")
        self._tell(None)

    def cancel(self, sentence: str = STOPPED) -> None:
        """Stop after ending the pair that runs; what is done stays done."""
        if not self.running:
            return
        self.state, self.message = "cancelled", sentence
        current, row, self.current, self.row = self.current, self.row, None, None
        if current is not None:
            current.cancel()
        self._close_frame()
        if row is not None:
            row.pop("began", None)
            row.update(status="cancelled", message="")
        self._tell(None)

    def abandon(self, sentence: str) -> None:
        """End without touching the scene any more."""
        self.cancel(sentence)

    def _tell(self, row="same") -> None:
        if self.listener is not None:
            self.listener(self, self.row if row == "same" else row)


class FileRun:
    """The command 'register' in a process of its own; its last words are kept in a file, so nothing waits on a pipe."""

    def __init__(self, arguments: list[str]):
        import tempfile

        from .job import python_of_worker, worker_environment

        self.words = tempfile.TemporaryFile()
        self.process = subprocess.Popen([python_of_worker(), "-m", PACKAGE, "register", *arguments], stderr=self.words,
                                        stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env=worker_environment())

    def ended(self) -> bool:
        return self.process.poll() is not None

    def answer(self) -> tuple[str, str]:
        """(status, sentence) after the end."""
        self.words.seek(0)
        lines = [line for line in self.words.read().decode("utf-8", "replace").splitlines() if line.strip()]
        self.words.close()
        if self.process.returncode == 0:
            return "done", ""
        if self.process.returncode < 0:
            return "failed", "the process was ended by the system, as happens when the memory runs out; try fewer or smaller levels"
        return "failed", lines[-1].removeprefix("error: ") if lines else "the process ended without a word; run it in a terminal to see why"

    def cancel(self) -> None:
        self.process.kill()
        self.process.wait()
        self.words.close()


def quality_of(rows: list[dict]) -> dict:
    """The figures of a registration's ``rows`` that ``quality_text`` shows, under the names that the command line gives them."""
    found = {row["name"]: row for row in rows}
    figures = {}
    if "Correlation" in found and None not in (found["Correlation"]["before"], found["Correlation"]["value"]):
        figures["similarity"] = {"before": found["Correlation"]["before"], "after": found["Correlation"]["value"]}
    if "Folded voxels" in found:
        figures["folds"] = found["Folded voxels"]["value"] / 100
    return figures


def quality_text(figures: dict) -> str:
    """'similarity 0.61 to 0.93, folds 0 %' from a record or from figures."""
    similarity, parts = figures.get("similarity") or {}, []
    if similarity:
        parts.append(f"similarity {similarity['before']:.2f} to {similarity['after']:.2f}")
    folds = figures.get("folds")
    if folds is not None:
        parts.append(f"folds {100 * folds:.3g} %")
    return ", ".join(parts)


def save(run, folder: Path) -> None:
    """Write the transforms and volumes of a registration into ``folder``, and its figures as the record."""
    folder.mkdir(parents=True, exist_ok=True)
    save_whole(run.nodes, folder / "transform.h5")
    names = {"inverse": "inverse.h5", "warped": "warped.nii.gz", "log_jacobian": "log_jacobian.nii.gz",
             "folds": "folds.nii.gz", "linear": "affine.tfm"}
    for role, name in names.items():
        node = run.nodes.get(role)
        if node is not None and not slicer.util.saveNode(node, str(folder / name)):
            raise OSError(f"'{node.GetName()}' could not be saved as {name}")
    (folder / command.RECORD).write_text(json.dumps(run.figures, indent=1), "utf-8")


def save_whole(nodes: dict, path) -> None:
    """Write the whole map of a registration (role -> node) into one file; OSError where that cannot be."""
    whole = whole_transform(nodes)
    try:
        if not slicer.util.saveNode(whole, str(path)):
            raise OSError(f"the transform could not be saved as {path}")
    finally:
        slicer.mrmlScene.RemoveNode(whole)


def whole_transform(nodes: dict):
    """A new transform node that holds the whole map of a registration, linear part and deformation, in one; the identity of no nodes."""
    import vtk

    whole = vtk.vtkGeneralTransform()
    if nodes:
        nodes["linear"].GetTransformFromWorld(whole)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "transform")
    node.SetAndObserveTransformFromParent(whole)
    return node


def load(folder: Path, name: str) -> dict:
    """Put what the command line has written into ``folder`` into the scene."""
    nodes = {}
    for role, file in (("deformation", "transform.h5"), ("inverse", "inverse.h5"), ("linear", "affine.tfm")):
        if (folder / file).is_file():
            nodes[role] = slicer.util.loadNodeFromFile(str(folder / file), "TransformFile", {"name": f"{name} {role}"})
    if (folder / "warped.nii.gz").is_file():
        nodes["warped"] = slicer.util.loadVolume(str(folder / "warped.nii.gz"), {"name": f"{name} warped"})
    if (folder / "log_jacobian.nii.gz").is_file():
        nodes["log_jacobian"] = slicer.util.loadVolume(str(folder / "log_jacobian.nii.gz"), {"name": f"{name} log-Jacobian"})
    return nodes
