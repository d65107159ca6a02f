"""What the pages share that have one job at a time: it is shown while it lasts, and its answer is taken in."""

from __future__ import annotations

from slicer.i18n import tr as _

from ..jobrun import JobRun
from .base import Page


class RunningPage(Page):
    """Widgets carry the name ``STATUS``: ``<name>ProgressBar``, ``<name>StageLabel``. ``work`` runs or ran last."""

    STOPPED = "The run was stopped; the scene is as it was."

    def __init__(self, panel, layout):
        super().__init__(panel, layout)
        self.work = None

    def widget_of(self, ending: str):
        return getattr(self.ui, self.STATUS + ending)

    def choice(self, box, chosen) -> None:
        """Call ``chosen`` when the user changes the item of a combo box."""
        box.connect("currentIndexChanged(int)", lambda index: None if self.filling else chosen())

    def guarded(self, act) -> None:
        super().guarded(act)
        self.refresh()

    # --------------------------------------------------------------------------------------------------------------- run

    @property
    def running(self) -> bool:
        return self.work is not None and self.work.running

    def tick(self) -> bool:
        return self.running

    def show_readiness(self) -> None:
        """Say what is missing, and what the button does now."""
        raise NotImplementedError

    def show_running(self, running: bool) -> None:
        self.widget_of("ProgressBar").visible = self.widget_of("StageLabel").visible = running
        self.widget_of("ProgressBar").value = 0
        if running:
            self.widget_of("StageLabel").text = _("Preparing")
        self.show_readiness()

    def begin(self, request: dict) -> None:
        """Submit a job of the page; its events come to ``on_event``."""
        self.work = JobRun(self.logic.runner, request, self.on_event)
        self.logic.work.append(self.work)
        self.show_running(True)
        self.panel.wake()

    def take_result(self) -> None:
        """Show what the job gave."""
        raise NotImplementedError

    def on_event(self, work, event: dict) -> None:
        """Called from the panel's timer, on the main thread."""
        if work is not self.work or self.node is None:
            return
        if event["event"] == "progress":
            self.show_progress(event)
        elif event["event"] in ("done", "failed", "cancelled"):
            self.show_running(False)
            if event["event"] == "done":
                self.guarded(self.take_result)
            else:
                self.say("error" if event["event"] == "failed" else "warning", work.message or _(self.STOPPED))
            self.refresh()
