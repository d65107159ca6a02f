"""Where and how a run happens: device, precision, seed, cache folder and monitor; the only ambient state, passed by hand."""

from __future__ import annotations

import ctypes
import gc
import json
import math
import os
import platform
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .errors import Cancelled, InputError

MOST_FOR_ONE_THREAD = 65_536
"""Voxels: an image of 256 x 256."""


class Monitor:
    """Receives the progress of a run and can cancel it; this base class is silent.

    ``for k in monitor.steps(n, "level 2/3"): ...`` counts; ``log`` takes named figures; ``preview`` takes the current
    transform; ``part(a, b, text)`` is a monitor for the share from a to b of this one. After ``cancel()`` the next step
    raises ``Cancelled(best_so_far)``, so algorithms contain no test of their own.
    """

    def __init__(self):
        self.cancelled = False
        self.best_so_far = None

    def cancel(self) -> None:
        self.cancelled = True

    def steps(self, n: int, text: str = ""):
        for k in range(n):
            self.check()
            self.progress(k / max(n, 1), text, k, n)
            yield k
        self.check()
        self.progress(1.0, text, n, n)

    def check(self) -> None:
        if self.cancelled:
            raise Cancelled(self.best_so_far)

    def part(self, start: float, end: float, text: str = "") -> "Monitor":
        return _Part(self, start, end, text)

    def preview(self, transform) -> None:
        self.best_so_far = transform

    @property
    def wants_preview(self) -> bool:
        """False where making a preview would be wasted work."""
        return False

    def progress(self, share: float, text: str, step: int = 0, steps: int = 0) -> None:
        """Called with a share from 0 to 1; subclasses show it."""

    def log(self, **figures) -> None:
        """Called with named figures of the current step; subclasses show or store them."""


class Silent(Monitor):
    """Shows nothing; still counts and can be cancelled."""


class _Part(Monitor):
    def __init__(self, parent, start, end, text):
        self.parent, self.start, self.end, self.text = parent, start, end, text

    cancelled = property(lambda self: self.parent.cancelled)
    best_so_far = property(lambda self: self.parent.best_so_far)
    wants_preview = property(lambda self: self.parent.wants_preview)

    def cancel(self):
        self.parent.cancel()

    def progress(self, share, text, step=0, steps=0):
        joined = ", ".join(t for t in (self.text, text) if t)
        self.parent.progress(self.start + share * (self.end - self.start), joined, step, steps)

    def log(self, **figures):
        self.parent.log(**figures)

    def preview(self, transform):
        self.parent.preview(transform)


class Console(Monitor):
    """A progress bar on one line of a terminal; plain lines, one a stage, where the stream is not a terminal."""

    def __init__(self, stream=None):
        super().__init__()
        self.stream = stream or sys.stderr
        self.began, self.drawn, self.text = time.perf_counter(), 0.0, None

    def progress(self, share, text, step=0, steps=0):
        now = time.perf_counter()
        if not self.stream.isatty():
            stage = text.split(",")[0]
            if stage != self.text:
                self.text = stage
                self.stream.write(f"  {now - self.began:6.1f} s  {stage}\n")
                self.stream.flush()
            return
        if now - self.drawn < 0.1 and share < 1:
            return
        self.drawn = now
        left = (now - self.began) * (1 - share) / share if share > 0.02 else None
        bar = "#" * int(30 * share)
        tail = f"{left:4.0f} s left" if left is not None else ""
        self.stream.write(f"\r[{bar:<30}] {100 * share:3.0f} %  {text[:40]:<40} {tail:<12}")
        self.stream.write("\n" if share >= 1 else "")
        self.stream.flush()


class JsonLines(Monitor):
    """One JSON object a line: what a parent process reads. Figures that are no finite number, which JSON has not, are left out."""

    def __init__(self, stream=None):
        super().__init__()
        self.stream = stream or sys.stdout

    def _write(self, **event):
        self.stream.write(json.dumps(event) + "\n")
        self.stream.flush()

    def progress(self, share, text, step=0, steps=0):
        self._write(event="progress", share=round(share, 5), text=text, step=step, steps=steps)

    def log(self, **figures):
        self._write(event="log", **{k: float(v) for k, v in figures.items() if math.isfinite(v)})


@dataclass(frozen=True)
class Runtime:
    """device 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'; seed of every random choice; cache folder for weights.

    For methods that work on a cohort: ``workers`` processes, or those of the Dask ``scheduler`` at an address, and ``work``, the folder in which
    a stopped run finds its state again (None: a temporary one).
    """

    device: str = "auto"
    seed: int = 0
    threads: int = 0
    cache: Path = field(default_factory=lambda: default_cache())
    monitor: Monitor = field(default_factory=Silent)
    workers: int = 1
    work: Path | None = None
    scheduler: str = ""

    def torch_device(self):
        """The torch device; InputError where it is not there."""
        import torch

        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if name.split(":")[0] not in ("cpu", "cuda", "mps"):
            raise InputError(f"device '{name}' was asked for; expected auto, cpu, cuda or mps")
        if name.startswith("cuda") and not torch.cuda.is_available():
            raise InputError("device 'cuda' was asked for but torch finds no CUDA GPU; choose the device cpu or auto")
        if name == "mps" and not torch.backends.mps.is_available():
            raise InputError("device 'mps' was asked for but torch finds no Apple GPU; choose the device cpu or auto")
        return torch.device(name)

    def generator(self):
        """A torch generator (CPU) with this runtime's seed."""
        import torch

        return torch.Generator().manual_seed(self.seed)

    @contextmanager
    def active(self):
        """Process-wide settings for the length of a run: denormals flushed, memory kept, threads; restored afterwards."""
        import torch

        keep_memory()
        threads = torch.get_num_threads()
        if self.threads:
            torch.set_num_threads(self.threads)
        torch.set_flush_denormal(True)
        try:
            yield self
        finally:
            torch.set_flush_denormal(False)
            torch.set_num_threads(threads)


@contextmanager
def fewer_threads(count: int, most: int = MOST_FOR_ONE_THREAD):
    """One torch thread (and one of the compiled kernels, which follow) while at most ``most`` voxels or samples are worked on at a
    time: to wake and await a pool for operations of a fraction of a millisecond costs more than it saves, and many times more on
    a busy machine."""
    import torch

    threads = torch.get_num_threads()
    if count <= most:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def default_cache() -> Path:
    """The user's cache folder of this library (``DEEPREGISTRATION_CACHE`` overrides it)."""
    if "DEEPREGISTRATION_CACHE" in os.environ:
        return Path(os.environ["DEEPREGISTRATION_CACHE"])
    if platform.system() == "Windows":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "DeepRegistration"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "DeepRegistration"


def prepare_process() -> None:
    """Settings of a process of our own that make it start sooner, to be made before torch is imported: Python looks for garbage a hundred times
    less often, which takes a tenth of the time of every import, and torch does not search all installed packages for kinds of devices that
    ``Runtime`` does not know (unless the user wants that)."""
    gc.set_threshold(100 * gc.get_threshold()[0])
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")


def keep_memory() -> bool:
    """Ask glibc to keep freed blocks instead of unmapping them: mapping anew cost torch tools up to half of their time.

    Returns False where the C library has no ``mallopt`` (Windows, macOS, musl): nothing is changed there.
    """
    if platform.system() != "Linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    return all([mallopt(mmap_max, 0), mallopt(trim_threshold, 2**31 - 1), mallopt(top_pad, 64 << 20)])


def peak_memory_mib() -> float | None:
    """Peak resident memory of this process in MiB, or None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if platform.system() == "Darwin" else peak / 1024


def free_memory_mib(device=None) -> float | None:
    """MiB that a run can still take: of the accelerator ``device`` (torch.device), or of the computer; None where the system does not say."""
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0] / (1 << 20)
    try:
        with open("/proc/meminfo", encoding="ascii") as stream:
            return next(int(line.split()[1]) for line in stream if line.startswith("MemAvailable")) / 1024
    except (OSError, StopIteration):
        return _free_memory_on_windows()


def _free_memory_on_windows() -> float | None:
    if platform.system() != "Windows":
        return None
    values = (ctypes.c_uint64 * 8)()
    ctypes.memmove(values, ctypes.byref(ctypes.c_uint32(64)), 4)
    known = ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(values))
    return values[2] / (1 << 20) if known else None
