"""One job in the worker, as a page or a waiting script sees it."""

from __future__ import annotations


class JobRun:
    """Submitted when it is made. ``state`` is 'running', 'done', 'failed' or 'cancelled'; ``result`` what a finished one gave, ``message`` and
    ``kind`` what a failed one says. ``listener(run, event)`` hears every event."""

    def __init__(self, runner, request: dict, listener=None):
        self.request, self.listener = request, listener
        self.state, self.message, self.kind, self.result = "running", "", "", None
        self.job = runner.submit(request, self._event)

    @property
    def running(self) -> bool:
        return self.state == "running"

    def tick(self) -> bool:
        return self.running

    def cancel(self) -> None:
        """Stop; the event 'cancelled' follows."""
        if self.running:
            self.job.cancel()

    def abandon(self, sentence: str) -> None:
        """The scene closes or the module goes away."""
        if self.running:
            self.state, self.message = "cancelled", sentence
            self.job.cancel()

    def _event(self, job, event: dict) -> None:
        if not self.running:
            return
        if event["event"] in ("done", "failed", "cancelled"):
            self.state, self.message, self.kind = event["event"], event.get("message", ""), event.get("kind", "")
            self.result = event.get("result")
        if self.listener is not None:
            self.listener(self, event)
