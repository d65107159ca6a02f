#!/usr/bin/env python3
"""The one command of the repository: makes ``.venv`` on first use, then runs COMMAND in it.

    python run.py COMMAND ...        (python run.py without a command lists them)

Standard library only; Python 3.11 or 3.12 on Windows, macOS and Linux. What is installed is in ``pyproject.toml``, the
exact versions are in ``constraints.txt``. A marker in ``.venv`` holds a fingerprint of both: a change of the pins installs
again, and an interrupted installation goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
MARKER = VENV / "installed.json"
LIBRARY = ROOT / "DeepRegistration"
EXPERIMENTS = ROOT / "Testing" / "Experiments"
COMPILE = "from DeepRegistrationLib.ops import kernels; kernels.compile_all()"
SHARED_OUT = ("-n", "auto", "--maxprocesses", "4", "--dist", "worksteal")
"""Options of pytest-xdist: the whole suite runs in a process a core, up to four; one that has nothing left takes tests from the others."""
CPU_INDEX = "https://download.pytorch.org/whl/cpu"

USAGE = """usage: python run.py COMMAND [arguments]

  demo [--out DIR]           register a real volume in a real scene; pictures and a report in DIR
  test [pytest arguments]    the test suite
{extra}  list | show ID | cite ID   the methods, one method, its references
  register ...               two images in, a transform out
  warp ...                   carry an image, labels or points along a transform
  transform ...              look at a transform, convert, invert or join transforms
  evaluate ...               score a transform: overlap, landmark error, folds
  batch MANIFEST --out DIR   many pairs, resumable
  train RECIPE --out DIR     make a network from synthetic pairs or from your images
  atlas ACTION ...           build an atlas of a cohort and use it; is one atlas enough?
  motion --scans FILE ...    motion between repeated scans, their average and noise
  qmri ACTION ...            quantitative 2D slices into a 3D volume
Each command explains itself with --help. The first use installs the environment into .venv.
"""


class Failure(Exception):
    """Stops with one sentence on stderr and exit status 2."""


def main(argv: list[str]) -> int:
    """Run the command line ``argv`` and return the exit status."""
    if not argv or argv[0] in ("-h", "--help", "help") or argv in (["experiment", "-h"], ["experiment", "--help"]):
        sys.stdout.write(usage())
        return 0
    try:
        arguments = command_line(argv[0], argv[1:])
        prepare()
        return run(arguments)
    except Failure as failure:
        sys.stderr.write(f"error: {failure}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; call the same command again to go on\n")
        return 130


def usage() -> str:
    """The help text; it names only what this checkout has."""
    extra = ""
    if bench_script().is_file():
        extra += "  bench [--case ID]          us and the installed peers, one table\n"
    if experiments():
        extra += "  experiment ID [--full]     one published claim in miniature: " + ", ".join(experiments()) + "\n"
    return USAGE.format(extra=extra)


def bench_script() -> Path:
    return ROOT / "Testing" / "Benchmarks" / "bench.py"


def experiments() -> list[str]:
    """Ids of the experiments in the folder."""
    return sorted(path.stem.replace("_", "-") for path in EXPERIMENTS.glob("[a-z]*.py") if path.stem != "common")


def command_line(command: str, rest: list[str]) -> list[str]:
    """What the environment's Python is called with."""
    library = ("list", "show", "cite", "register", "warp", "transform", "evaluate", "batch", "train", "atlas", "motion", "qmri")
    if command in library:
        return ["-m", "DeepRegistrationLib", command, *rest]
    if command == "demo":
        return ["-m", "DeepRegistrationUI.demo", *rest]
    if command == "test":
        named = any(Path(a.split("::")[0]).exists() for a in rest if not a.startswith("-"))
        where = [] if named else [*SHARED_OUT, str(ROOT / "Testing")]
        return ["-m", "pytest", "--rootdir", str(ROOT), "--config-file", str(ROOT / "pyproject.toml"), *where, *rest]
    if command == "bench" and bench_script().is_file():
        return [str(bench_script()), *rest]
    if command == "experiment" and experiments():
        if not rest or rest[0] not in experiments():
            raise Failure(f"experiment '{' '.join(rest[:1])}' is not known; give one of {', '.join(experiments())}")
        return [str(EXPERIMENTS / (rest[0].replace("-", "_") + ".py")), *rest[1:]]
    raise Failure(f"unknown command '{command}'; python run.py --help lists the commands")


def run(arguments: list[str]) -> int:
    """Run the environment's Python; on POSIX it takes the place of this process, so that signals reach it."""
    python = str(venv_python())
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "DEEPREGISTRATION_PROGRAM": "python run.py"}
    if os.name == "posix":
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(python, [python, *arguments], environment)
    process = subprocess.Popen([python, *arguments], env=environment)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the console sends Ctrl-C to the child as well; its answer is the exit status


def venv_python() -> Path:
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def prepare() -> None:
    """Make or complete ``.venv``; does nothing where the marker fits."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        raise Failure(f"this is Python {platform.python_version()}; call run.py with Python 3.11 or 3.12, for example python3.12 run.py")
    torch = torch_requirement()
    if is_complete(torch):
        return
    with only_one_installer():
        if is_complete(torch):
            return
        began = time.monotonic()
        say("The pinned versions or the machine have changed: bringing .venv up to date." if MARKER.exists()
            else "First use: installing the environment into .venv (about 3 GB on disk, a few minutes).")
        make_venv()
        install(torch)
        MARKER.write_text(json.dumps({"fingerprint": fingerprint(), "torch": torch}), "utf-8")
        say(f"The environment is ready ({time.monotonic() - began:.0f} s).")


def fingerprint() -> str:
    """Changes with the pins, the Python version and the place of the checkout."""
    parts = [(ROOT / "pyproject.toml").read_text("utf-8"), (ROOT / "constraints.txt").read_text("utf-8"), platform.python_version(), str(ROOT)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def recorded() -> dict:
    """What the last finished installation noted."""
    try:
        return json.loads(MARKER.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def is_complete(torch: str) -> bool:
    """True where the finished installation fits; a build for GPUs also serves a machine without one (shared home folders)."""
    marker = recorded()
    enough = marker.get("torch") == torch or marker.get("torch") == torch.removesuffix("+cpu")
    return enough and marker.get("fingerprint") == fingerprint() and venv_python().exists()


def torch_requirement() -> str:
    """What to ask pip for: the small CPU build on Linux without an NVIDIA GPU, else the platform's own build.

    ``DEEPREGISTRATION_TORCH`` overrides it with any requirement, for example ``torch==2.13.0``.
    """
    if os.environ.get("DEEPREGISTRATION_TORCH"):
        return os.environ["DEEPREGISTRATION_TORCH"]
    version = re.search(r"^torch==([\w.]+)", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    if version is None:
        raise Failure("constraints.txt names no torch version; restore the line torch==...")
    return f"torch=={version[1]}+cpu" if platform.system() == "Linux" and not has_nvidia_gpu() else f"torch=={version[1]}"


def has_nvidia_gpu() -> bool:
    """True where the NVIDIA driver answers."""
    if Path("/proc/driver/nvidia/version").exists():
        return True
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    try:
        return b"GPU" in subprocess.run([tool, "-L"], capture_output=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False


def make_venv() -> None:
    """Create ``.venv`` unless a working one with this Python version is there; a broken one is replaced."""
    wanted = f"{sys.version_info[0]}.{sys.version_info[1]}"
    check = "import sys, pip; print('%d.%d' % sys.version_info[:2])"
    try:
        found = subprocess.run([str(venv_python()), "-c", check], capture_output=True, text=True).stdout.strip()
    except OSError:
        found = ""
    if found == wanted:
        return
    if VENV.exists() and not (VENV / "pyvenv.cfg").exists() and any(VENV.iterdir()):
        raise Failure(f"{VENV} exists but is no Python environment; move it away and try again")
    say(f"  creating .venv with Python {platform.python_version()}")
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True)
    if made.returncode:
        raise Failure(f"Python could not create .venv ({last_line(made.stdout + made.stderr)}); "
                      "install Python's venv module (on Debian and Ubuntu: apt install python3-venv) or free some disk space")


def install(torch: str) -> None:
    """torch first, since its build depends on the machine; then everything else; then the library itself by reference."""
    import tomllib

    if recorded().get("torch", torch) != torch:
        pip("uninstall", "--yes", "torch")
    MARKER.unlink(missing_ok=True)
    install_torch(torch)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = dict.fromkeys(project["dependencies"] + [r for group in project["optional-dependencies"].values() for r in group])
    say("  installing " + ", ".join(re.split(r"[<>=~! ]", r)[0] for r in wanted if not r.startswith("torch")))
    problem = pip_install(*wanted)
    if problem:
        raise Failure(f"pip could not install the packages ({problem}); check the network and the disk space, then call the same command "
                      "again: it goes on where it stopped")
    site = subprocess.run([str(venv_python()), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                          capture_output=True, text=True, check=True).stdout.strip()
    (Path(site) / "deepregistration.pth").write_text(str(LIBRARY) + "\n", "utf-8")
    compile_kernels()


def compile_kernels() -> None:
    """Compile the fast loops once, so that the first registration starts at once; without them the library is slower, not wrong."""
    say("  compiling the fast loops")
    done = subprocess.run([str(venv_python()), "-c", COMPILE], capture_output=True, text=True, errors="replace")
    if done.returncode:
        say(f"  the fast loops could not be compiled ({last_line(done.stdout + done.stderr)}); the library works without them, only slower")


def install_torch(requirement: str) -> None:
    """From the package source that pip is configured with; a CPU build that is not there comes from PyTorch's own index."""
    say(f"  installing {requirement} (the largest part)")
    problem = pip_install(requirement)
    if problem and "+cpu" in requirement:
        say(f"  not in the configured package source; asking {CPU_INDEX}")
        problem = pip_install(requirement, "--extra-index-url", CPU_INDEX, "--timeout", "20", "--retries", "1")
    if problem:
        plain = requirement.split("+")[0]
        other = f", or set DEEPREGISTRATION_TORCH={plain} to take the large build for GPUs" if "+cpu" in requirement else ""
        raise Failure(f"pip could not install {requirement} ({problem}); check the network and the disk space and call the same command again{other}")


def pip_install(*arguments: str) -> str:
    """Install under the pins; returns '' or the line that says what went wrong."""
    return pip("install", "--prefer-binary", "--constraint", str(ROOT / "constraints.txt"), *arguments)


def pip(*arguments: str) -> str:
    """Run the environment's pip quietly; returns '' or the line that says what went wrong."""
    command = [str(venv_python()), "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", *arguments]
    environment = {**os.environ, "PYTHONNOUSERSITE": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment) as process:
        output = wait_with_notes(process)
    return last_line(output) if process.returncode else ""


def wait_with_notes(process) -> str:
    """The output of ``process``; a line every 30 s says that it is still at work."""
    began = time.monotonic()
    while True:
        try:
            return process.communicate(timeout=30)[0]
        except subprocess.TimeoutExpired:
            say(f"    still installing, {time.monotonic() - began:.0f} s")


def last_line(text: str) -> str:
    """The last error line of pip or venv, shortened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.upper().startswith("ERROR")] or lines or ["no message"]
    return errors[-1].removeprefix("ERROR: ")[:300]


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@contextlib.contextmanager
def only_one_installer():
    """A second run.py waits here while the first one installs."""
    with open(ROOT / ".venv.lock", "w") as lock:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(lock.fileno(), msvcrt.LK_LOCK, 1)
        else:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
