"""Jobs in a worker process: sent, watched, cancelled and read back without a thread and without ever blocking the interface.

    runner = WorkerRunner()
    job = runner.submit({"command": "register", "fixed": volume, "moving": volume, "method": "affine", ...}, on_event)
    # from a timer, every 20 to 50 ms:
    runner.tick()

A request is a dict of plain values and of the values of ``DeepRegistrationLib.exchange``; ``outputs.request_from_nodes`` makes one. What each
command takes and gives back is said in ``DeepRegistrationLib/commands/jobs.py``.

Events are dicts ``{"event": name, ...}`` that reach ``on_event(job, event)`` from ``tick``, never from ``submit`` or ``cancel``:

    uploading   share (0 to 1) of the request that has been written
    started     job
    progress    share (0 to 1), text, step, steps, seconds_left (None where it is not known yet)
    log         the figures of one step, by name
    preview     vectors (z, y, x, 3) LPS mm, grid (Grid), linear (4, 4) LPS, log_jacobian (z, y, x), all arrays
                or, of slices in a volume, pictures (S, rows, columns), what the volume shows on each, and linear
    done        result: what the command gives back, arrays as memory maps of files in ``job.folder``
    failed      kind 'input', 'memory', 'disk', 'crash' or 'fault'; message (one sentence); offers: those of 'half_resolution' and 'cpu'
                that may help, see ``retry``
    cancelled

The last three end a job, and exactly one of them is given. Events come through files that the worker appends to, so nothing waits on a pipe.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import DeepRegistrationLib
from DeepRegistrationLib import exchange
from DeepRegistrationLib.errors import Cancelled, InputError, RegistrationError

from .jobqueue import Job, Runner, Tail, disk_sentence

__all__ = ["InProcessRunner", "Job", "Runner", "WorkerRunner", "half_resolution", "retry", "wait"]

PATIENCE = 0.3
"""Seconds that the worker has to stop by itself before it is killed, where the request says nothing else by ``patience_s``."""
STARVED = ("out of memory", "bad_alloc", "cannot allocate memory", "not enough memory")
"""Words of a worker's last output that mean that the memory ran out."""
FATAL = "Fatal Python error"
"""Begin of the line in which Python says which signal ended it; a list of functions and modules follows."""
MEMORY = "the memory ran out and the registration was stopped; try again at half resolution, with smaller images, or close other programs"


class WorkerRunner(Runner):
    """Jobs in a process of their own, ``python -m DeepRegistrationLib serve``; started at the first ``submit`` (or by ``warm_up``) and
    kept warm. ``python``: the interpreter, by default PythonSlicer inside 3D Slicer and this one elsewhere."""

    def __init__(self, python: str | None = None, parent_folder: Path | None = None):
        super().__init__(parent_folder)
        self._python, self._process, self._session, self._dying = python, None, None, []

    def submit(self, request: dict, on_event=None) -> Job:
        job = super().submit(request, on_event)
        self.warm_up()
        return job

    def warm_up(self) -> None:
        """Start the worker where none runs; the call takes some milliseconds and the worker a few seconds. InputError where it cannot."""
        if self._process is not None:
            return
        events, log = self.folder / exchange.EVENTS, self.folder / "worker.log"
        events.unlink(missing_ok=True)
        command = [self._python or python_of_worker(), "-X", "faulthandler", "-m", DeepRegistrationLib.__name__, "serve", "--remove", str(self.folder)]
        flags = {"creationflags": subprocess.CREATE_NO_WINDOW} if os.name == "nt" else {"start_new_session": True}
        try:
            with open(log, "wb") as stream:
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stream, stderr=subprocess.STDOUT, bufsize=0,
                                                 env=worker_environment(), **flags)
        except OSError as error:
            raise InputError(f"the worker process could not be started with {command[0]} ({error.strerror}); "
                             "check the installation of Python") from None
        self._session, self.hello = Tail(events), None

    @property
    def warming(self) -> bool:
        """True while a worker starts: until it has said what it is, or has died."""
        return self._process is not None and self.hello is None

    @property
    def process_id(self) -> int | None:
        """Of the worker, None where none runs."""
        return None if self._process is None else self._process.pid

    def _start(self, job: Job) -> None:
        self.warm_up()
        self._say({"job": str(job.folder)})

    def _say(self, command: dict) -> None:
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
        except OSError:
            return  # the worker has died; the next look at the process finds that

    def _ask_to_stop(self, job: Job) -> None:
        self._say({"cancel": str(job.folder)})
        job.deadline = job.deadline or time.perf_counter() + job.request.get("patience_s", PATIENCE)

    def _watch(self) -> None:
        self._dying = [process for process in self._dying if process.poll() is None]
        ended = self._process is not None and self._process.poll() is not None
        if self._session is not None:
            for event in self._session.read():
                self.hello = {**(self.hello or {}), **event}
        super()._watch()
        job = self._current
        if ended:
            code, self._process = self._process.returncode, None
            if job is not None:
                self._end(job, {"event": "cancelled"} if job.deadline else self._crash(code))
        elif job is not None and job.deadline and time.perf_counter() > job.deadline:
            self._kill()
            self._end(job, {"event": "cancelled"})

    def _kill(self) -> None:
        process, self._process = self._process, None
        process.kill()
        process.stdin.close()
        self._dying.append(process)

    def _crash(self, code: int) -> dict:
        """The event for a worker that has died."""
        text = self._log()
        lines = text.strip().splitlines() or [f"exit status {code}"]
        last = next((line for line in lines if line.startswith(FATAL)), lines[-1])[:200]
        if shutil.disk_usage(self.folder).free < 1 << 20 or "no space left" in text.lower():
            return {"event": "failed", "kind": "disk", "message": disk_sentence(OSError(errno.ENOSPC, "full"), self.folder)}
        if code in (-9, 137) or any(word in text.lower() for word in STARVED):
            return {"event": "failed", "kind": "memory", "message": MEMORY}
        if self.hello is None:
            return {"event": "failed", "kind": "crash", "message": f"the worker process could not start ({last}); check that PyTorch is installed"}
        return {"event": "failed", "kind": "crash", "message": f"the worker process ended unexpectedly ({last}); the scene is unharmed, try again"}

    def _log(self) -> str:
        try:
            return (self.folder / "worker.log").read_bytes()[-20000:].decode("utf-8", "replace")
        except OSError:
            return ""

    def _halt(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            process.stdin.close()  # the worker ends at the end of its input
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                process.kill()
                self._dying.append(process)
        for process in self._dying:
            process.wait()
        self._dying, self._session = [], None


class InProcessRunner(Runner):
    """The same jobs in this process, for tests and scripts: ``tick`` returns when the job has ended. Needs torch here."""

    def __init__(self, parent_folder: Path | None = None):
        super().__init__(parent_folder)
        self._ticket = None

    def _start(self, job: Job) -> None:
        from DeepRegistrationLib.commands import serve

        self.hello = self.hello or serve.hello()
        self._ticket = serve.Ticket(job.folder)

        def listen():
            self._watch()
            self._hand_on()

        serve.perform(self._ticket, listen)
        self._watch()

    def _ask_to_stop(self, job: Job) -> None:
        self._ticket.cancelled = True

    def _halt(self) -> None:
        if self._ticket is not None:
            self._ticket.cancelled = True


def wait(job: Job, runner: Runner, timeout: float | None = None):
    """Tick until ``job`` has ended and return its result, for scripts; the application, where there is one, stays alive meanwhile.

    Raises RegistrationError with the sentence of a failure, Cancelled, and RegistrationError after ``timeout`` seconds (the job is
    cancelled then).
    """
    began, late = time.perf_counter(), False
    while not job.ended:
        runner.tick()
        _process_events()
        if not late and timeout is not None and time.perf_counter() - began > timeout:
            late = True
            job.cancel()
        if not job.ended:
            time.sleep(0.005)
    runner.tick()
    if job.state == "done":
        return job.result
    if late:
        raise RegistrationError(f"the job took more than {timeout:g} s and was stopped; give it more time or a faster preset")
    if job.state == "cancelled":
        raise Cancelled()
    raise InputError(job.message) if job.kind == "input" else RegistrationError(job.message)


def retry(request: dict, offer: str) -> dict:
    """The request that follows an ``offer`` of a failed job: 'half_resolution' or 'cpu'."""
    if offer not in ("half_resolution", "cpu"):
        raise InputError(f"'{offer}' was chosen; expected half_resolution or cpu")
    return half_resolution(request) if offer == "half_resolution" else {**request, "device": "cpu"}


def half_resolution(request: dict) -> dict:
    """The same request with images of twice the voxel size for the registration itself: an eighth of the memory (a quarter in 2D).
    The results still lie on the voxels of the fixed image."""
    return {**request, "coarsen": 2.0 * request.get("coarsen", 1.0)}


def python_of_worker() -> str:
    """The interpreter for the worker: PythonSlicer inside 3D Slicer, this one elsewhere."""
    application = getattr(sys.modules.get("slicer"), "app", None)
    name = "PythonSlicer.exe" if os.name == "nt" else "PythonSlicer"
    home = getattr(application, "slicerHome", None)
    found = Path(str(home)) / "bin" / name if home else None
    return str(found) if found is not None and found.is_file() else shutil.which(name) or sys.executable


def worker_environment() -> dict[str, str]:
    """This process's environment with the library on the path of Python."""
    library = str(Path(DeepRegistrationLib.__file__).resolve().parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [library, os.environ.get("PYTHONPATH")]))}


def _process_events() -> None:
    """Let the application, where there is one, draw and react."""
    application = getattr(sys.modules.get("slicer"), "app", None)
    if application is not None and hasattr(application, "processEvents"):
        application.processEvents()
