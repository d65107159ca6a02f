"""Long work in slices: generators that yield every few milliseconds, run a little at every tick of the panel's timer."""

from __future__ import annotations

import time

SLICE_SECONDS = 0.02
"""Seconds of work of one tick."""


def advance(steps, seconds: float = SLICE_SECONDS):
    """Go on with a generator for ``seconds``: (True, its value) at its end, (False, None) before."""
    until = time.perf_counter() + seconds
    try:
        while True:
            next(steps)
            if time.perf_counter() > until:
                return False, None
    except StopIteration as end:
        return True, end.value
