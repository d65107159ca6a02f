"""serve: do jobs for another process, the 3D Slicer side, one after the other, and stay warm between them.

Commands come on stdin, one JSON object a line: {"job": FOLDER} does the job that FOLDER/request.json describes (see jobs.py), {"cancel":
FOLDER} (or {"cancel": true}: the latest) stops one, {"quit": true} ends the process. The end of stdin ends it as well, at once and in the
middle of a job, so that it never outlives its parent.

What happens is appended, one JSON object a line, to FOLDER/events.jsonl (and for the process itself to SESSION/events.jsonl): 'started',
'progress', 'log', 'preview', and last one of 'done', 'failed', 'cancelled'. Values in these events and in the request are entries of
``exchange``; FOLDER/result.json holds the result of a finished job for later ones that refer to it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import queue
import shutil
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from ..errors import Cancelled, InputError, sentence
from ..runtime import keep_memory


def add(commands) -> None:
    parser = commands.add_parser("serve", help="do jobs for 3D Slicer", description=__doc__)
    parser.add_argument("session", type=Path, metavar="SESSION", help="an existing folder for the events of the process")
    parser.add_argument("--remove", action="store_true", help="remove SESSION when the parent process has gone")
    parser.set_defaults(run=run)


def run(arguments) -> None:
    """Serve until told to stop. InputError where the folder is missing."""
    if not arguments.session.is_dir():
        raise InputError(f"the session folder {arguments.session} does not exist; make it first")
    work: queue.Queue = queue.Queue()
    leftovers = arguments.session if arguments.remove else None
    threading.Thread(target=listen, args=(sys.stdin.buffer, work, leftovers), daemon=True).start()
    session = Events(arguments.session)
    session.write("hello", **hello())
    for ticket in iter(work.get, None):
        if not ticket.cancelled:
            perform(ticket)
            return_memory()
            session.write("idle", devices=devices())


@dataclass
class Ticket:
    """A job that was asked for; ``cancelled`` may be set from another thread."""

    folder: Path
    cancelled: bool = False


def listen(stream, work: queue.Queue, leftovers: Path | None) -> None:
    """Turn lines into tickets until the stream ends, and then end the process, whatever its main thread does."""
    tickets: list[Ticket] = []
    for line in stream:
        command = json.loads(line)
        if "job" in command:
            tickets.append(Ticket(Path(command["job"])))
            work.put(tickets[-1])
        elif "cancel" in command:
            wanted = [t for t in tickets if command["cancel"] is True or t.folder == Path(command["cancel"])]
            for ticket in wanted[-1:]:
                ticket.cancelled = True
        elif "quit" in command:
            break
    if leftovers is not None:
        shutil.rmtree(leftovers, ignore_errors=True)
    os._exit(0)


class Events:
    """Appends events to a folder's file; ``listener`` is called after each."""

    def __init__(self, folder: Path, listener=None):
        from ..exchange import EVENTS

        self.path, self.listener = folder / EVENTS, listener
        self.stream = open(self.path, "ab", buffering=0)

    def write(self, event: str, **values) -> None:
        """One line; the file system's refusal is raised as OSError."""
        self.stream.write(json.dumps({"event": event, **values}, allow_nan=False).encode() + b"\n")
        if self.listener is not None:
            self.listener()


def perform(ticket: Ticket, listener=None) -> None:
    """Do one job from its folder. Every error becomes an event; only a file system that takes no event at all raises OSError."""
    from .. import exchange
    from . import jobs
    from .watching import JobMonitor

    events = Events(ticket.folder, listener)
    events.write("started", job=ticket.folder.name)
    try:
        packed = json.loads((ticket.folder / exchange.REQUEST).read_text("utf-8"))
        request = exchange.unpack(ticket.folder, packed)
        monitor = JobMonitor(events, ticket)
        result = jobs.do(request, monitor, ticket.folder)
        entries = exchange.finish(exchange.pack_steps(ticket.folder, result, "result"))
        monitor.check()
        exchange.write_json(ticket.folder / exchange.RESULT, entries)
    except Cancelled:
        events.write("cancelled")
    except Exception as error:
        events.write("failed", **failure(error))
    else:
        events.write("done", result=entries)
    finally:
        events.stream.close()


def failure(error: Exception) -> dict:
    """'kind' ('input', 'memory', 'disk' or 'fault') and 'message', one sentence, of an error."""
    if is_memory(error):
        kind = "memory"
    elif isinstance(error, OSError):
        kind = "disk"
    else:
        kind = "input" if sentence(error)[1] == 2 else "fault"
    return {"kind": kind, "message": " ".join(sentence(error)[0].split())}


def is_memory(error: BaseException) -> bool:
    """True for every way in which Python and torch say that the memory ran out."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error).lower())


def hello() -> dict:
    """What the parent should know of this process: versions, devices, threads, the methods, and that all of it could be loaded."""
    import torch

    from .. import __version__
    from ..ops import native
    from .catalogue import catalogue

    native.kernels_for()
    return {"versions": {"DeepRegistrationLib": __version__, "torch": torch.__version__, "python": platform.python_version()},
            "devices": devices(), "threads": torch.get_num_threads(), "process": os.getpid(), "catalogue": catalogue()}


def devices() -> list[dict]:
    """Name (as ``Runtime`` takes it), title and free and total memory in MiB (None where the system does not say) of each device."""
    import torch

    free, total = system_memory_mib()
    found = [{"name": "cpu", "title": platform.processor() or platform.machine() or "CPU", "free_mib": free, "total_mib": total}]
    for n in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = (value / (1 << 20) for value in torch.cuda.mem_get_info(n))
        found.append({"name": f"cuda:{n}", "title": torch.cuda.get_device_name(n), "free_mib": free, "total_mib": total})
    if torch.backends.mps.is_available():
        found.append({"name": "mps", "title": "Apple GPU", "free_mib": None, "total_mib": None})
    return found


def system_memory_mib() -> tuple[float | None, float | None]:
    """(available, total) main memory in MiB; None where the system does not say it without another package."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        values = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if ":" in line}
        return values["MemAvailable"], values["MemTotal"]
    except (OSError, KeyError, ValueError):
        pass
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
    except (AttributeError, ValueError, OSError):
        return None, None
    return None, total


def return_memory() -> None:
    """Give what a job has used back to the system and to the accelerator."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if keep_memory():  # true where the C library is glibc, whose freed blocks were kept for the run
        ctypes.CDLL(None).malloc_trim(0)
