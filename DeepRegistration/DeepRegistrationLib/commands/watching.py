"""The monitor of a job: progress, figures and previews as events, with the cost of the previews kept small.

A preview is the current map T = A o (id + u): the matrix A, u (mm) on the lattice that was asked for, and log det dT there, as one file
(z, y, x, 4) under a fresh name. Previews are made no more often than asked for, and so seldom that what they cost, measured from the
moment the algorithm begins to prepare one, stays under ``SHARE`` of the run.
"""

from __future__ import annotations

import math
import os
import time

from ..runtime import Monitor

SHARE = 0.035
"""Of the time of a run that previews may take; what is promised is 5 %, and a preview may take longer than the last one did."""
PAUSE = 0.05
"""Seconds between two progress events with the same text."""
KEPT = 4
"""Preview files that may lie unread; older ones are removed."""


class JobMonitor(Monitor):
    """Writes events of ``serve.Events``; ``ticket.cancelled`` cancels it.

    Previews are made while there is a ``sketch``, a function of a transform that gives (A (4, 4) as a list, the values), at most every
    ``interval`` s; ``lattice`` is the exchange entry of their grid.
    """

    def __init__(self, events, ticket):
        self.events, self.ticket, self.best_so_far = events, ticket, None
        self.interval, self.sketch, self.lattice = 0.1, None, None
        self.began, self.last = time.perf_counter(), (-math.inf, "")
        self.asked, self.shown, self.spent, self.dearest, self.count = None, -math.inf, 0.0, 0.0, 0

    cancelled = property(lambda self: self.ticket.cancelled)

    def cancel(self) -> None:
        self.ticket.cancelled = True

    def progress(self, share, text, step=0, steps=0):
        now = time.perf_counter()
        if now - self.last[0] < PAUSE and text == self.last[1] and share < 1:
            return
        self.last = now, text
        elapsed = now - self.began
        left = elapsed * (1 - share) / share if share > 0.03 and elapsed > 0.3 else None
        self.events.write("progress", share=round(min(max(share, 0.0), 1.0), 5), text=text, step=step, steps=steps,
                          seconds_left=None if left is None else round(left, 2))

    def log(self, **figures):
        numbers = {name: float(value) for name, value in figures.items()}
        self.events.write("log", **{name: value for name, value in numbers.items() if math.isfinite(value)})

    @property
    def wants_preview(self) -> bool:
        now = time.perf_counter()
        if self.sketch is None or now - self.shown < self.interval:
            return False
        if self.spent + self.dearest > SHARE * (now - self.began) + (self.count == 0):  # the first one is shown at once
            return False
        self.asked = self.asked or now
        return True

    def preview(self, transform):
        self.best_so_far = transform
        if self.sketch is None or (self.asked is None and not self.wants_preview):
            return
        import numpy as np

        linear, values = self.sketch(transform)
        self.count += 1
        name, partial = f"preview-{self.count:06d}.npy", self.events.path.with_name(".preview.partial")
        with open(partial, "wb") as stream:
            np.save(stream, values)
        os.replace(partial, self.events.path.with_name(name))
        self.events.path.with_name(f"preview-{self.count - KEPT:06d}.npy").unlink(missing_ok=True)
        self.events.write("preview", file=name, grid=self.lattice, linear=linear, step=self.count, share_of_time=round(self.cost, 4))
        now = time.perf_counter()
        cost, self.asked = now - self.asked, None
        self.spent, self.dearest, self.shown = self.spent + cost, max(self.dearest * 0.9, cost), now

    @property
    def cost(self) -> float:
        """Share of the time so far that went into previews."""
        return self.spent / max(time.perf_counter() - self.began, 1e-9)
