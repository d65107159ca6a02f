"""The build of an atlas in the worker, as the panel sees it: rows of subjects, curves, and the template as it becomes better.

The worker writes templates and the figures of finished subjects into DIR/work; they are read from there, a few files a look.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.exchange import Volume
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.tables import read_figures

from .training import Curve

PATIENCE = 120.0
"""Seconds that a stopped build has to end its step."""
LOOK = 0.5
"""Seconds between two looks at the files of the worker."""
CURVES = ("similarity", "mean_displacement_left", "sharpness")


class AtlasRun:
    """One build in ``request['out']``; ``listener(run, event)`` hears every event. ``rows``: {"name", "image", "status",
    "seconds", "quality", "message"} by subject; status 'waiting', 'running', 'done', 'aside', 'left' or 'carried'; seconds
    from the start to its newest map. ``kept``: the rows that were known before, also of those who are left out."""

    def __init__(self, runner, request: dict, listener=None, kept=()):
        self.runner, self.listener, self.request = (
            runner,
            listener,
            {**request, "command": "atlas", "patience_s": PATIENCE},
        )
        self.folder = Path(request["out"])
        self.state, self.message, self.kind, self.record, self.job = "new", "", "", {}, None
        self.kept, self.rows = list(kept), []
        self.curves = {name: Curve() for name in CURVES}
        self._began, self._looked, self._seen, self._shown = time.time(), 0.0, {}, None

    @property
    def running(self) -> bool:
        return self.state in ("running", "stopping")

    def start(self) -> None:
        """Begin. InputError where the worker cannot be started."""
        if self.request.get("resume"):
            for row in stored(self.folder).get("rows", []):
                self._add(row)
        self.job = self.runner.submit(self.request, self._event)
        self.state = "running"

    def tick(self) -> bool:
        """Look at the files of the worker now and then; True while it runs."""
        if self.running and self.rows and time.monotonic() - self._looked > LOOK:
            self._looked = time.monotonic()
            self.look()
        return self.running

    def cancel(self) -> None:
        """Stop after the present subject; all that is finished is kept."""
        if self.state == "running":
            self.state = "stopping"
            self.job.cancel()

    def abandon(self, sentence: str) -> None:
        """The scene closes or the module goes away."""
        if self.running:
            self.state, self.message = "cancelled", sentence
            self.job.cancel()

    def look(self) -> None:
        """Bring the rows up to date with the newest iteration."""
        folders = sorted((self.folder / "work").glob("iteration-*"))
        if not folders:
            return
        for row in self.rows:
            path = folders[-1] / f"{row['name']}.json"
            if row["status"] == "aside" or self._seen.get(row["name"]) == path or not path.is_file():
                continue
            self._seen[row["name"]] = path
            row.update(
                status="running",
                quality=quality_text(read_json(path)),
                message=f"iteration {int(folders[-1].name[-2:]) + 1}",
                seconds=max(0.0, path.stat().st_mtime - self._began),
            )

    def template(self) -> Volume | None:
        """The newest template that was not asked for yet, None where there is none; 2D templates as one slice."""
        found = sorted((self.folder / "work").glob("template-*.npz"))
        if not found or found[-1] == self._shown:
            return None
        try:
            with np.load(found[-1]) as held:
                array, grid = held["data"][0, 0], Grid(tuple(int(n) for n in held["shape"]), held["affine"])
        except (OSError, ValueError, KeyError):
            return None  # it is being replaced by the next one
        self._shown = found[-1]
        return solid(array, grid)

    def _event(self, job, event: dict) -> None:
        if not self.running:
            return
        kind = event["event"]
        if kind == "cohort":
            taking = {subject["name"]: subject for subject in event["subjects"]}
            known = [row["name"] for row in self.kept]
            self.rows = [new_row(taking[row["name"]]) if row["name"] in taking else {**new_row(row), "status": "left"} for row in self.kept]
            self.rows += [new_row(subject) for name, subject in taking.items() if name not in known]
        elif kind == "log" and "iteration" in event:
            self._add(event)
            self._judge()
        elif kind in ("done", "failed", "cancelled"):
            self._end(kind, event)
        if self.listener is not None:
            self.listener(self, event)

    def _add(self, row: dict) -> None:
        """Points of an iteration's figures."""
        sharpness = row["gradient_energy"] / row["cohort_gradient_energy"] if row.get("cohort_gradient_energy") else 0.0
        for name, value in (
            ("similarity", row["similarity"]),
            ("mean_displacement_left", row["mean_displacement_left"]),
            ("sharpness", sharpness),
        ):
            self.curves[name].add(row["iteration"], value)

    def _judge(self) -> None:
        """Who was set aside so far."""
        aside = stored(self.folder).get("set_aside", {})
        for row in self.rows:
            if row["name"] in aside:
                row.update(status="aside", quality="", message=aside[row["name"]])

    def _end(self, kind: str, event: dict) -> None:
        self.state = kind
        if kind == "done":
            self.record = event["result"]["record"]
            self._finish(event["result"]["quality"])
            self.message = told(self.record)
        else:
            self._judge()
            self.kind = event.get("kind", "")
            self.message = event.get("message") or "The build was stopped; Go on takes up what is finished."
            for row in self.rows:
                row["status"] = "waiting" if row["status"] == "running" else row["status"]

    def _finish(self, quality: list[dict]) -> None:
        for row in self.rows:
            if row["status"] != "left":
                row.update(outcome(row["name"], self.record, quality))


def outcome(name: str, record: dict, quality: list[dict]) -> dict:
    """Status, quality and message of a subject of a finished atlas: its row in the table ``quality``, or why it was set aside."""
    if name in record["set_aside"]:
        return {"status": "aside", "quality": "", "message": record["set_aside"][name]}
    figures = next((row for row in quality if row["subject"] == name), {})
    return {"status": "done", "quality": quality_text(figures), "message": record["remarks"].get(name, "")}


def finished(folder: Path) -> tuple[dict, list[dict]]:
    """(record, rows of all subjects) of the finished atlas in ``folder``. InputError where its files cannot be read."""
    record = read_json(folder / "atlas.json")
    try:
        quality = read_figures(folder / "quality.csv")
        names = [*record["subjects"], *record["set_aside"]]
        images = {name: image[0] if isinstance(image, list) else "" for name, image, *_ in record.get("cohort", [])}
        return record, [{**new_row({"name": name, "image": images.get(name, "")}), **outcome(name, record, quality)} for name in names]
    except (OSError, KeyError):
        raise InputError(f"the atlas in {folder} is not complete (atlas.json or quality.csv); copy its folder again, or build it again") from None


def new_row(subject: dict) -> dict:
    """The row of a subject of which nothing is known but its name, its image, and why it is ``unusable``, where it is."""
    reason = subject.get("unusable", "")
    return {
        "name": subject["name"],
        "image": subject.get("image", ""),
        "status": "aside" if reason else "waiting",
        "seconds": None,
        "quality": "",
        "message": reason,
    }


def solid(array: np.ndarray, grid: Grid) -> Volume:
    """A template as a Volume of the scene; a 2D one as an axial slice."""
    if grid.dim == 3:
        return Volume(np.ascontiguousarray(array), grid, "template")
    affine = np.eye(4)
    affine[:2, :2], affine[:2, 3] = grid.matrix, grid.origin
    return Volume(np.ascontiguousarray(array)[None], Grid((1, *grid.shape), affine), "template")


def quality_text(figures: dict) -> str:
    """'similarity 0.93, Dice 0.81, folds 0 %' of the figures that are there."""
    parts = []
    if isinstance(figures.get("similarity"), float):
        parts.append(f"similarity {figures['similarity']:.3f}")
    if isinstance(figures.get("dice"), float):
        parts.append(f"Dice {figures['dice']:.2f}")
    if isinstance(figures.get("folds"), float):
        parts.append(f"folds {100 * figures['folds']:.3g} %")
    return ", ".join(parts)


def told(record: dict) -> str:
    """The end of a build in one sentence."""
    last, aside, remarks = record["history"][-1], record["set_aside"], record["remarks"]
    text = (
        f"An atlas of {len(record['subjects'])} subjects: mean similarity {last['similarity']:.3f}, mean displacement "
        f"{last['mean_displacement_left']:.3g} mm, {record['wall_seconds']:.0f} s"
    )
    text += f"; {len(aside)} set aside, the table says why" if aside else ""
    return text + (f"; there are remarks on {', '.join(remarks)}, see the table." if remarks else ".")


def stored(folder: Path) -> dict:
    """What a build has noted of itself in ``folder``/work."""
    return read_json(folder / "work" / "state.json")


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def is_begun(folder: str) -> bool:
    """True where a folder holds a build that was begun and not finished."""
    return bool(folder) and (Path(folder) / "work").is_dir() and (Path(folder) / "build.json").is_file()


def is_done(folder: str) -> bool:
    """True where a folder holds a finished atlas."""
    return bool(folder) and (Path(folder) / "atlas.json").is_file()


def require_atlas(folder: str) -> Path:
    """The folder; InputError where it holds no finished atlas."""
    if not is_done(folder):
        raise InputError(f"{folder or 'the atlas folder'} holds no finished atlas; build one first")
    return Path(folder)
