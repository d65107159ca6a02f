"""A training run in a worker process of its own, so that registrations go on meanwhile: started, watched, stopped and gone on with."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.train import record

from . import mrml

FILE = Path(__file__).resolve().parents[1] / "Resources" / "DeepRegistrationRecipes.json"
PATIENCE = 120.0
"""Seconds that a stopped run has to end its step and to write checkpoint and weights."""
SHOWN = 600
"""Points of a curve that are kept; every second one goes when there are more."""


class Recipes:
    """The recipes of ``FILE``, which ``python run.py train list --json`` writes."""

    @cached_property
    def entries(self) -> dict[str, dict]:
        """Recipe id -> title, summary, needs_data, method, dims, parameters."""
        return {entry["id"]: entry for entry in json.loads(FILE.read_text("utf-8"))["recipes"]}


class Curve:
    """Points (step, value) for a plot, thinned evenly as they become many."""

    def __init__(self):
        self.points, self._stride, self._count = [], 1, 0

    def add(self, step: float, value: float) -> None:
        self._count += 1
        if (self._count - 1) % self._stride == 0:
            self.points.append((step, value))
        if len(self.points) > SHOWN:
            self.points, self._stride = self.points[::2], 2 * self._stride


class Training:
    """One run in ``folder``; ``listener(training, event)`` hears every event of its job. ``runner`` is its own where ``own``."""

    def __init__(self, runner, request: dict, listener=None, own: bool = False):
        self.runner, self.own, self.listener = runner, own, listener
        self.folder = Path(request["out"])
        self.request = {**request, "command": "train", "patience_s": PATIENCE}
        self.state, self.message, self.summary, self.job = "new", "", {}, None
        self.costs, self.scores, self.step = Curve(), Curve(), 0

    @property
    def running(self) -> bool:
        return self.state in ("running", "stopping")

    def start(self) -> None:
        """Begin. InputError where the worker cannot be started."""
        if self.request.get("resume"):
            for row in record.rows(self.folder, "training"):
                self.step = int(row["step"])
                self.costs.add(row["step"], row["cost"])
            for row in record.rows(self.folder, "validation"):
                self.scores.add(row["step"], row["score"])
        self.job = self.runner.submit(self.request, self._event)
        self.state = "running"

    def tick(self) -> bool:
        if self.own and self.running:
            self.runner.tick()
        return self.running

    def cancel(self) -> None:
        """Stop after the present step; the checkpoint and the weights so far are written."""
        if self.state == "running":
            self.state = "stopping"
            self.job.cancel()

    def abandon(self, sentence: str) -> None:
        """The scene closes or the module goes away: end the worker. The last checkpoint stays."""
        if self.running:
            self.state, self.message = "cancelled", sentence
            if self.own:
                self.runner.stop()
            else:
                self.job.cancel()

    def picture(self) -> Path | None:
        """The newest picture of the run."""
        found = sorted((self.folder / "pictures").glob("step-*.png")) if (self.folder / "pictures").is_dir() else []
        return found[-1] if found else None

    def weights(self) -> Path | None:
        """Where the weights of the run are, None before there are some."""
        try:
            return Path(json.loads((self.folder / "summary.json").read_text("utf-8"))["weights"])
        except (OSError, ValueError, KeyError):
            return None

    def _event(self, job, event: dict) -> None:
        if not self.running:
            return
        kind = event["event"]
        if kind == "log" and "cost" in event:
            self.step += 1
            self.costs.add(self.step, event["cost"])
        elif kind == "log" and "validation_score" in event:
            self.scores.add(self.step, event["validation_score"])
        elif kind in ("done", "failed", "cancelled"):
            self._end(kind, event)
        if self.listener is not None:
            self.listener(self, event)

    def _end(self, kind: str, event: dict) -> None:
        self.state = kind
        if kind == "done":
            self.summary = dict(event["result"]["summary"])
            self.message = told(self.summary)
        else:
            self.message = event.get("message", "") or f"Training was stopped after {self.step} steps; choose the same folder to go on."
        if self.own:
            self.runner.stop()


def told(summary: dict) -> str:
    """The end of a run in one sentence."""
    validation, steps, ordered = summary.get("validation") or {}, summary["steps"], summary.get("ordered", 0)
    text = f"{steps} of {ordered} steps are done, no validation was better for a while" if steps < ordered else f"{steps} steps are done"
    if "dice" in validation:
        text += f"; mean Dice of validation {validation['dice']:.3f}"
    elif validation:
        text += f"; score of validation {validation['score']:.3g}"
    remarks = summary.get("remarks") or []
    return text + (f"; set aside: {remarks[0]}" + (f" and {len(remarks) - 1} more" if len(remarks) > 1 else "") if remarks else ".")


def is_run(folder: str) -> bool:
    """True where a folder holds a training run."""
    return bool(folder) and (Path(folder) / "order.json").is_file()


def is_done(folder: str) -> bool:
    """True where the run in a folder has made all of its steps."""
    try:
        return json.loads((Path(folder) / "summary.json").read_text("utf-8"))["ended"] == "done"
    except (OSError, ValueError, KeyError):
        return False


def recipe_of(folder: str) -> str:
    """The recipe of the run in a folder; InputError where its order cannot be read."""
    try:
        return json.loads((Path(folder) / "order.json").read_text("utf-8"))["recipe"]
    except (OSError, ValueError, KeyError):
        raise InputError(f"the run in {folder} cannot be read; choose another folder") from None


def images_of(nodes, segmentations) -> dict:
    """'images' and 'labels' of a request from volume nodes; ``segmentations``: of a scene, those whose reference is one of the volumes go with
    it. InputError for nodes that cannot be read as images."""
    by_volume = {}
    for segmentation in segmentations:
        reference = segmentation.GetNodeReference(segmentation.GetReferenceImageGeometryReferenceRole())
        if reference is not None:
            by_volume.setdefault(reference.GetID(), segmentation)
    labels = [by_volume.get(node.GetID()) for node in nodes]
    return {"images": [mrml.volume_of(node) for node in nodes],
            "labels": [None if found is None else mrml.labelmap_of(found, node) for node, found in zip(nodes, labels)]}
