"""Figures and the report of one registration, computed in the worker from the transform nodes as they are in the scene now."""

from __future__ import annotations

from pathlib import Path

from DeepRegistrationLib.errors import InputError

from . import outputs, records
from .quality_tables import table_from_rows
from .steps import advance

STOPPED = "The evaluation was stopped."


class Evaluation:
    """One evaluation or report of the registration with the main node ``main``; ``on_end(self, event)`` is called once, with
    'done' (and ``rows``), 'failed' or 'cancelled' and one sentence."""

    def __init__(self, runner, main, on_end=None):
        if not records.is_record(main):
            raise InputError("a registration is needed; press Apply under Register first")
        self.runner, self.main, self.on_end = runner, main, on_end
        self.state, self.message, self.kind, self.job, self.rows, self.path = "new", "", "", None, [], None
        self.reading, self.more, self.remarks = None, {}, []

    @property
    def running(self) -> bool:
        return self.state == "running"

    def evaluate(self, fixed_labels=None, moving_labels=None, fixed_points=None, moving_points=None) -> None:
        """Ask for overlap, distances, folds and consistency. InputError where the nodes do not fit."""
        for first, second, what in ((fixed_labels, moving_labels, "structures"), (fixed_points, moving_points, "landmarks")):
            if (first is None) != (second is None):
                raise InputError(f"only the {'moving' if first is None else 'fixed'} {what} are chosen; choose both, or none")
            if first is not None and first is second:
                raise InputError(f"'{first.GetName()}' is chosen as the {what} of both volumes; choose those of each, or none")
        self._begin(self._request(fixed_labels=fixed_labels, moving_labels=moving_labels, fixed_points=fixed_points, moving_points=moving_points))

    def _request(self, **guides):
        """The request, and the remarks on what is compared; a generator."""
        request = yield from outputs.evaluate_steps(self._roles(), **guides)
        self.remarks = yield from outputs.remark_steps(request, **guides)
        return request

    def report(self, path) -> None:
        """Ask for one HTML file at ``path``."""
        self.path = Path(path)
        self._begin(outputs.evaluate_steps(self._roles()), command="report", path=str(self.path), figures=records.figures_of(self.main))

    def _roles(self) -> dict:
        roles = records.roles_of(self.main)
        records.require_whole(roles)
        return roles

    def _begin(self, steps, **more) -> None:
        """Read the request, which ``tick`` goes on with and then submits with ``more``."""
        self.reading, self.more, self.state = steps, more, "running"
        try:
            self._read(0.0)
        except InputError:
            self.state = "failed"
            raise

    def _read(self, *seconds: float) -> None:
        ended, request = advance(self.reading, *seconds)
        if ended:
            self.reading = None
            self.job = self.runner.submit({**request, **self.more}, self._event)

    def _event(self, job, event: dict) -> None:
        if not self.running:
            return
        kind = event["event"]
        if kind == "done":
            self._done(event["result"])
        elif kind == "failed":
            self._end("failed", event["message"], event.get("kind", ""))
        elif kind == "cancelled":
            self._end("cancelled", STOPPED)

    def _done(self, result: dict) -> None:
        if self.path is not None:
            self._end("done", f"Saved {self.path}.")
            return
        self.rows = list(result["rows"])
        if self.main.GetScene() is None:
            self._end("failed", "The registration was deleted during the evaluation; its figures are not in the scene.", "input")
            return
        if self.rows:
            records.update(self.main, rows=self.rows)
            known = records.roles_of(self.main).get("metrics")
            table = table_from_rows(self.rows, f"{self.main.GetName()} metrics", self.main.GetScene(), known)
            if known is None:
                records.add_role(self.main, "metrics", table)
                records.put_beside(self.main, [table])
        remark = "; ".join(filter(None, (*self.remarks, records.remark_on_places(self.main))))
        self._end("done", f"{len(self.rows)} figures; the table is in the scene too." + (f" Note: {remark}." if remark else ""))

    def tick(self) -> bool:
        """A slice of reading the request; nothing between the events of its job."""
        if self.running and self.reading is not None:
            try:
                self._read()
            except InputError as error:
                self._end("failed", str(error), "input")
        return self.running

    def cancel(self) -> None:
        if self.running and self.job is None:
            self._end("cancelled", STOPPED)
        elif self.running:
            self.job.cancel()

    def abandon(self, sentence: str) -> None:
        """End without touching the scene any more."""
        if self.running:
            self._end("cancelled", sentence)

    def _end(self, kind: str, sentence: str, cause: str = "") -> None:
        self.state, self.message, self.kind, self.reading = kind, sentence, cause, None
        if self.job is not None:
            self.job.discard()
        if self.on_end is not None:
            self.on_end(self, {"event": kind, "message": sentence, "rows": self.rows})
