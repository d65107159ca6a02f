"""The same work on many items by the workers of a Dask scheduler, on this machine or on others: the interface of a ``Crew``.

    dask scheduler                                               once
    dask worker tcp://HOST:8786 --nworkers 4 --nthreads 1        on every machine
    run.py atlas build ... --scheduler tcp://HOST:8786

Workers need this library, and the folder of the atlas and the images under the same paths. A worker that dies in the middle loses its own items
only, which go to another one. The scheduler blames the death on every item that the worker had, also on those that waited there; whatever was blamed
as often as it allows is therefore tried once more with nothing beside it, and is ``Lost`` only if that fails too. Rocklin, SciPy 2015.
"""

from __future__ import annotations

import time
from typing import Callable, Iterator

from ..errors import InputError
from ..runtime import Monitor, Runtime, Silent
from .crew import PAUSE, Crew, Lost
from .packages import distributed

PATIENCE = 30
"""Seconds in which the scheduler has to answer."""
ABSENCE = 120
"""Seconds for which a run waits for a scheduler that has no workers."""
AHEAD = 2
"""Items that are under way for every worker: none has to wait for the next one, and few orders are in memory."""


def crew_of(runtime: Runtime):
    """The workers of the runtime's scheduler, or its processes on this machine. InputError where the scheduler cannot be reached."""
    return Cluster(runtime.scheduler) if runtime.scheduler else Crew(runtime.workers)


class Cluster:
    """The workers of the scheduler at ``address``. Use it in a ``with`` block; the scheduler goes on after it."""

    def __init__(self, address: str):
        self.package, self.address = distributed(), f"the Dask scheduler {address}"
        try:
            self.client = self.package.Client(address, timeout=PATIENCE, set_as_default=False)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{self.address} cannot be reached ({reason}); start it with 'dask scheduler', or take --workers") from None

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *error) -> None:
        self.client.close()

    def run(self, function: Callable, items: list, monitor: Monitor, text: str) -> Iterator[tuple[int, object]]:
        """As ``Crew.run``."""
        chosen, alone, done = list(range(len(items))), False, 0
        while chosen:
            blamed = []
            for k, value in self._results(function, items, chosen, monitor, alone):
                if isinstance(value, Lost) and not alone:
                    blamed.append(k)
                    continue
                done += 1
                monitor.progress(done / len(items), f"{text} {done}/{len(items)}", done, len(items))
                yield k, value
            chosen, alone = blamed, True

    def _results(self, function: Callable, items: list, chosen: list[int], monitor: Monitor, alone: bool) -> Iterator[tuple[int, object]]:
        """(k, what ``function`` gives for item k, or Lost) of the ``chosen`` items, as they end; ``alone``: one after the other."""
        waiting, running, self.seen = chosen[::-1], {}, time.monotonic()
        try:
            while waiting or running:
                monitor.check()
                threads = self._threads()
                while waiting and len(running) < (1 if alone else AHEAD * max(1, threads)):
                    k = waiting.pop()
                    running[self.client.submit(function, items[k], Silent(), pure=False)] = k
                ready = [future for future in running if future.done()]
                for future in ready:
                    yield running.pop(future), self._result(future)
                if ready:
                    self.seen = time.monotonic()  # whoever takes the results may have taken long
                else:
                    time.sleep(PAUSE)
        finally:
            self.client.cancel(list(running))

    def _threads(self) -> int:
        """How many items the workers can do at once. InputError where the scheduler is gone or has long had none."""
        try:
            threads, now = sum(self.client.nthreads().values()), time.monotonic()
        except OSError:
            raise InputError(f"{self.address} ended, or cannot be reached any more; start it and its workers and call the same again") from None
        self.seen = now if threads else self.seen
        if now - self.seen > ABSENCE:
            raise InputError(f"{self.address} has had no workers for {ABSENCE} s; start some with "
                             "'dask worker' (see their messages if they ended) and call the same again")
        return threads

    def _result(self, future):
        try:
            return future.result()
        except self.package.KilledWorker:
            return Lost("its workers ended before it was done, as happens when the memory runs out")
