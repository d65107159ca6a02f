"""The same work on many items, one after the other or in several processes, so that the end of one process costs its own item only.

Every process is a pool of one from ``concurrent.futures``: one that dies (out of memory, killed) breaks no other. Its item is given
to a fresh process once more; after that it is ``Lost``. Results come as they are ready; what is computed must not depend on that.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from typing import Callable, Iterator

from ..runtime import Monitor, Silent

TRIES = 2
PAUSE = 0.2
"""Seconds between two looks at whether the user has cancelled."""


@dataclass(frozen=True)
class Lost:
    """What is given in place of a result: why there is none."""

    reason: str


class Crew:
    """``workers`` processes (1: this process alone). Use it in a ``with`` block: its end ends the processes, whatever they are doing."""

    def __init__(self, workers: int = 1):
        self.workers = max(1, int(workers))
        self.lanes: list[ProcessPoolExecutor | None] = [None] * self.workers
        self.pids: list[int] = [0] * self.workers

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *error) -> None:
        for number in range(self.workers):
            self._dismiss(number)

    def run(self, function: Callable, items: list, monitor: Monitor, text: str) -> Iterator[tuple[int, object]]:
        """Yields (number of the item, function(item, monitor)) for every item, in the order in which they are done.

        With several processes ``function`` and items are pickled and the monitor is a silent one. Errors of ``function`` are raised here.
        Cancelled where ``monitor`` was cancelled.
        """
        if self.workers == 1 or len(items) < 2:
            yield from self._here(function, items, monitor, text)
        else:
            yield from self._in_processes(function, items, monitor, text)

    def _here(self, function, items, monitor, text):
        for k, item in enumerate(items):
            monitor.check()
            yield k, function(item, monitor.part(k / len(items), (k + 1) / len(items), f"{text} {k + 1}/{len(items)}"))

    def _in_processes(self, function, items, monitor, text):
        waiting, running, done = deque((k, 1) for k in range(len(items))), {}, 0
        while waiting or running:
            monitor.check()
            for number in sorted(set(range(self.workers)) - {lane for lane, _, _ in running.values()}):
                if waiting:
                    k, tries = waiting.popleft()
                    running[self._begun(number, function, items[k])] = number, k, tries
            for future in wait(running, PAUSE, FIRST_COMPLETED).done:
                number, k, tries = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    self._dismiss(number)
                    if tries < TRIES:
                        waiting.appendleft((k, tries + 1))
                        continue
                    result = Lost(f"its process ended {TRIES} times before it was done, as happens when the memory runs out")
                done += 1
                monitor.progress(done / len(items), f"{text} {done}/{len(items)}", done, len(items))
                yield k, result

    def _begun(self, number: int, function, item) -> Future:
        """The future of an item in a process, a fresh one where there is none or where the last one died while it had nothing to do."""
        if self.lanes[number] is not None:
            try:
                return self.lanes[number].submit(function, item, Silent())
            except BrokenProcessPool:
                self._dismiss(number)
        self.lanes[number] = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        self.pids[number] = self.lanes[number].submit(os.getpid).result()
        return self.lanes[number].submit(function, item, Silent())

    def _dismiss(self, number: int) -> None:
        """End a process, also in the middle of its work."""
        lane, self.lanes[number] = self.lanes[number], None
        if lane is None:
            return
        with suppress(OSError):  # it may have ended by itself
            os.kill(self.pids[number], signal.SIGTERM)
        lane.shutdown(wait=True, cancel_futures=True)
