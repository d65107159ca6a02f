"""The same work on many items by the workers of a Dask scheduler, on this machine or on others: the interface of a ``Crew``.

    dask scheduler                                               once
    dask worker tcp://HOST:8786 --nworkers 4 --nthreads 1        on every machine
    run.py atlas build ... --scheduler tcp://HOST:8786

Workers need this library, and the folder of the atlas and the images under the same paths. A worker that dies in the middle loses its own item
only, which goes to another one; an item that has ended as many workers as the scheduler allows is ``Lost``. Rocklin, SciPy 2015.
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
AHEAD = 2
"""Items that are under way for every worker: none has to wait for the next one, and few orders are in memory."""


def crew_of(runtime: Runtime):
    """The workers of the runtime's scheduler, or its processes on this machine. InputError where the scheduler cannot be reached."""
    return Cluster(runtime.scheduler) if runtime.scheduler else Crew(runtime.workers)


class Cluster:
    """The workers of the scheduler at ``address``. Use it in a ``with`` block; the scheduler goes on after it."""

    def __init__(self, address: str):
        self.package = distributed()
        try:
            self.client = self.package.Client(address, timeout=PATIENCE, set_as_default=False)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"the Dask scheduler {address} cannot be reached ({reason}); start it with 'dask scheduler', or take --workers") from None

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *error) -> None:
        self.client.close()

    def run(self, function: Callable, items: list, monitor: Monitor, text: str) -> Iterator[tuple[int, object]]:
        """As ``Crew.run``."""
        waiting, running, done = list(range(len(items)))[::-1], {}, 0
        try:
            while waiting or running:
                monitor.check()
                while waiting and len(running) < AHEAD * max(1, sum(self.client.nthreads().values())):
                    k = waiting.pop()
                    running[self.client.submit(function, items[k], Silent(), pure=False)] = k
                ready = [future for future in running if future.done()]
                for future in ready:
                    k, done = running.pop(future), done + 1
                    monitor.progress(done / len(items), f"{text} {done}/{len(items)}", done, len(items))
                    yield k, self._result(future)
                if not ready:
                    time.sleep(PAUSE)
        finally:
            self.client.cancel(list(running))

    def _result(self, future):
        try:
            return future.result()
        except self.package.KilledWorker:
            return Lost("its workers ended before it was done, as happens when the memory runs out")
