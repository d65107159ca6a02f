"""The queue behind ``job``: requests written in small parts, events read from files, one job running at a time; see ``job``."""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
import threading
import time
import weakref
from collections import deque
from pathlib import Path

import numpy as np

from DeepRegistrationLib import exchange
from DeepRegistrationLib.errors import InputError

TICK = 0.015
"""Seconds of work of one ``tick``."""
ENDED = ("done", "failed", "cancelled")


def remove(folder: Path) -> None:
    """Take a folder away at once, and its files from the disk in a thread: freeing hundreds of megabytes would hold the interface up."""
    away = folder.with_name(f"removed-{folder.name}")
    try:
        folder.rename(away)
    except OSError:  # gone already, or a system that moves no folder of which a file is mapped
        shutil.rmtree(folder, ignore_errors=True)
        return
    threading.Thread(target=shutil.rmtree, args=(away, True)).start()


class Job:
    """One request: ``id``, ``request``, ``folder``, ``state`` ('uploading', 'running', 'done', 'failed' or 'cancelled'), ``result`` (after
    'done'), ``message``, ``kind`` and ``offers`` (after 'failed')."""

    def __init__(self, runner: "Runner", folder: Path, request: dict, on_event):
        self.runner, self.id, self.folder, self.request, self.on_event = runner, folder.name, folder, request, on_event
        self.state, self.result, self.message, self.kind, self.offers = "uploading", None, "", "", ()
        self.upload, self.started, self.deadline, self.discarded = _upload(request, folder), False, None, False

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def cancel(self) -> None:
        """Ask the job to stop; its event 'cancelled' follows within half a second of ticks. Does nothing where it has ended."""
        if not self.ended:
            self.runner.cancel(self)

    def discard(self) -> None:
        """Forget the job and remove its folder, with its results, from the disk; no more events. A job that runs is cancelled."""
        self.runner.discard(self)


class Runner:
    """A queue of jobs, one running at a time; base of ``WorkerRunner`` and ``InProcessRunner``.

    ``hello``: versions, devices (name, title, free_mib, total_mib), threads and catalogue of the worker, None before it has started.
    ``folder``: the session's folder, made at first use in ``parent_folder`` (default: the system's place for temporary files).
    As a context manager it stops at the end.
    """

    def __init__(self, parent_folder: Path | None = None):
        self.hello: dict | None = None
        self.jobs: list[Job] = []
        self._parent, self._folder, self._count = parent_folder, None, 0
        self._current: Job | None = None
        self._tail: Tail | None = None
        self._pending: deque = deque()
        self._ticking = False

    def submit(self, request: dict, on_event=None) -> Job:
        """Queue a request. Raises InputError where no folder can be made for it."""
        self._count += 1
        folder = self.folder / f"job-{self._count:04d}"
        try:
            folder.mkdir()
        except OSError as error:
            raise InputError(disk_sentence(error, folder)) from None
        self.jobs.append(Job(self, folder, dict(request), on_event or (lambda job, event: None)))
        return self.jobs[-1]

    @property
    def folder(self) -> Path:
        if self._folder is None:
            try:
                self._folder = Path(tempfile.mkdtemp(prefix="DeepRegistration-", dir=self._parent))
            except OSError as error:
                raise InputError(disk_sentence(error, Path(self._parent or tempfile.gettempdir()))) from None
            self._remover = weakref.finalize(self, shutil.rmtree, self._folder, True)
        return self._folder

    warming = False
    """True while a worker starts."""

    @property
    def busy(self) -> bool:
        """True while a job has not ended or an event has not been handed on."""
        return bool(self._pending) or any(not job.ended for job in self.jobs)

    def tick(self) -> None:
        """Do up to 15 ms of work: read what the worker says and hand it on, write a part of the next requests, start one."""
        if self._ticking:
            return  # called from within on_event
        self._ticking = True
        try:
            self._watch()
            self._hand_on()
            self._send(time.perf_counter() + TICK)
            if self._current is None:
                self._start_next()
            self._hand_on()
        finally:
            self._ticking = False

    def cancel(self, job: Job) -> None:
        """See ``Job.cancel``."""
        if job is self._current:
            self._ask_to_stop(job)
        if job is not self._current or not job.started:
            self._end(job, {"event": "cancelled"})

    def discard(self, job: Job) -> None:
        """See ``Job.discard``."""
        job.on_event, job.discarded = lambda job, event: None, True
        self._pending = deque((each, event) for each, event in self._pending if each is not job)
        if not job.ended:
            self.cancel(job)
        if job.ended:
            self._forget(job)

    def _forget(self, job: Job) -> None:
        job.request, job.result = {}, None  # some systems remove no file that is mapped
        remove(job.folder)
        self.jobs = [each for each in self.jobs if each is not job]

    def stop(self) -> None:
        """End the worker and remove all folders; unfinished jobs become 'cancelled' without an event. ``submit`` starts anew."""
        self._halt()
        for job in self.jobs:
            _close(job)
            job.state = job.state if job.ended else "cancelled"
        self.jobs, self._current, self._tail, self.hello = [], None, None, None
        self._pending.clear()
        if self._folder is not None:
            self._remover()
            self._folder = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stop()

    def _start(self, job: Job) -> None:
        """Let the worker begin with ``job``, whose request is written."""
        raise NotImplementedError

    def _ask_to_stop(self, job: Job) -> None:
        """Tell the worker to stop ``job``, the current one."""
        raise NotImplementedError

    def _halt(self) -> None:
        """End the worker, whatever it does."""
        raise NotImplementedError

    def _send(self, until: float) -> None:
        """Write parts of the waiting requests, in their order, until the time is over; at least one."""
        for job in [each for each in self.jobs if each.upload is not None]:
            share = _write_until(job, until)
            if isinstance(share, Exception):
                kind = "input" if isinstance(share, InputError) else "disk"
                self._end(job, {"event": "failed", "kind": kind, "message": disk_sentence(share, job.folder)})
            else:
                self._pending.append((job, {"event": "uploading", "share": share}))
            if job.upload is not None:
                break

    def _start_next(self) -> None:
        waiting = next((job for job in self.jobs if not job.ended), None)
        if waiting is not None and waiting.upload is None:
            waiting.state, self._current, self._tail = "running", waiting, Tail(waiting.folder / exchange.EVENTS)
            self._start(waiting)

    def _watch(self) -> None:
        """Read what the worker has written about the current job."""
        if self._tail is not None:
            self._receive(self._current, self._tail.read())

    def _receive(self, job: Job, events: list[dict]) -> None:
        newest = max((n for n, event in enumerate(events) if event["event"] == "preview"), default=-1)
        for n, event in enumerate(events):
            job.started = True
            if event["event"] in ENDED:
                self._end(job, event)
                return
            if event["event"] == "preview":
                event = _read_preview(job.folder, event, n == newest)
            if event is not None:
                self._pending.append((job, event))

    def _end(self, job: Job, event: dict) -> None:
        """Note how ``job`` ended and queue its last event; what it wrote is removed unless it is done."""
        if job.ended:
            return
        if event["event"] == "done":
            try:
                event = {"event": "done", "result": exchange.unpack(job.folder, event["result"])}
            except InputError as error:
                event = {"event": "failed", "kind": "fault", "message": str(error)}
        if event["event"] == "failed":
            event = {**event, "offers": self._offers(job, event["kind"])}
            job.kind, job.message, job.offers = event["kind"], event["message"], event["offers"]
        job.state, job.result = event["event"], event.get("result")
        _close(job)
        if job is self._current:
            self._current = self._tail = None
        if job.discarded:
            self._forget(job)
        elif job.state != "done":
            remove(job.folder)
        self._pending.append((job, event))

    def _offers(self, job: Job, kind: str) -> list[str]:
        if kind not in ("memory", "crash") or job.request.get("command") != "register":
            return []
        accelerated = any(device["name"] != "cpu" for device in (self.hello or {}).get("devices", ()))
        return ["half_resolution"] + (["cpu"] if accelerated and job.request.get("device", "auto") != "cpu" else [])

    def _hand_on(self) -> None:
        while self._pending:
            job, event = self._pending.popleft()
            job.on_event(job, event)


class Tail:
    """The JSON lines that are appended to a file: ``read`` gives the new complete ones and never waits."""

    def __init__(self, path: Path):
        self.path, self._position, self._rest = path, 0, b""

    def read(self) -> list[dict]:
        try:
            with open(self.path, "rb") as stream:
                stream.seek(self._position)
                data = stream.read()
        except FileNotFoundError:
            return []
        self._position += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines if line.strip()]


def disk_sentence(error: Exception, folder: Path) -> str:
    """What a user reads when ``folder`` cannot be written to."""
    if isinstance(error, InputError):
        return str(error)
    if getattr(error, "errno", None) in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return f"the disk with {folder} is full; free some space, or let the temporary folder be on another disk, and try again"
    return f"{folder} cannot be written to ({getattr(error, 'strerror', None) or error}); check the temporary folder and its permissions"


def _upload(request: dict, folder: Path):
    """Write the request; a generator of the share that is written."""
    total, sent, steps, packed = max(1, _bytes(request)), 0, exchange.pack_steps(folder, request), None
    while packed is None:
        try:
            sent += next(steps)
        except StopIteration as end:
            packed = end.value
        yield min(1.0, sent / total)
    exchange.write_json(folder / exchange.REQUEST, packed)


def _bytes(value) -> int:
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(_bytes, value))
    return getattr(value, exchange.ARRAYS[type(value)]).nbytes if type(value) in exchange.ARRAYS else 0


def _write_until(job: Job, until: float):
    """Go on with the upload of a job; the share that is written, or the error that ended it."""
    share = 0.0
    try:
        while True:
            share = next(job.upload)
            if time.perf_counter() > until:
                return share
    except StopIteration:
        job.upload = None
        return 1.0
    except (OSError, InputError) as error:
        return error


def _close(job: Job) -> None:
    if job.upload is not None:
        job.upload.close()
        job.upload = None


def _read_preview(folder: Path, event: dict, wanted: bool) -> dict | None:
    """The preview with its arrays, and its file removed; None where a newer one is there or the file is gone."""
    path = folder / event.pop("file")
    if not wanted:
        path.unlink(missing_ok=True)
        return None
    try:
        values = np.load(path)
    except (OSError, ValueError):
        return None
    path.unlink(missing_ok=True)
    if event["grid"] is None:
        return {**event, "linear": np.array(event["linear"]), "pictures": values}
    grid = exchange.read(folder, event["grid"])
    return {**event, "grid": grid, "linear": np.array(event["linear"]), "vectors": values[..., :3], "log_jacobian": values[..., 3]}
