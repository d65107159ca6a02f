"""Us and the peers on real pairs, alternately, one table.

    python run.py bench [--case ID ...] [--peer NAME ...] [--ours PRESET ...] [--repeat N] [--out FILE]
    python run.py bench --install            makes the environments of the peers (about 6 GB)
    python run.py bench --list               cases and peers
    python run.py bench --table FILE ...     tables of earlier runs

Each tool runs alone in a process of its own, with --threads threads, from process start to written transform; wall time,
CPU time and peak memory are the operating system's figures for that process (``wait4``). This driver imports the standard
library only, so that its own memory is not counted, and scores every result in yet another process by one code path.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from cases import CASES, DATA, ROOT  # noqa: E402
from peers import ENVIRONMENTS, GROUPS, PEERS, install, python_of  # noqa: E402
from table import BEFORE, machine, markdown  # noqa: E402

LIBRARY = ROOT / "DeepRegistration"


class Failure(Exception):
    """Stops with one sentence on stderr and exit status 2."""


def main(argv=None) -> int:
    given = sys.argv[1:] if argv is None else list(argv)
    if "--training" in given:
        return subprocess.call([sys.executable, str(HERE / "training.py"), *(word for word in given if word != "--training")])
    arguments = parse(given)
    try:
        if arguments.list:
            sys.stdout.write(catalogue(arguments))
        elif arguments.install:
            report_installation(arguments)
        elif arguments.table:
            sys.stdout.write(markdown(read_rows(arguments.table), CASES, arguments.profile))
        else:
            sys.stdout.write(markdown(measure(arguments), CASES, arguments.profile))
    except Failure as failure:
        sys.stderr.write(f"error: {failure}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; finished runs are in the file of --out\n")
        return 130
    return 0


def parse(argv):
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", default=["brain3d-pair-labelled"], metavar="ID", help="cases, or 'all' (default: %(default)s)")
    parser.add_argument("--peer", nargs="*", metavar="NAME", help="peers (default: all installed ones that take the case, without the slow; no NAME: none)")
    parser.add_argument("--ours", nargs="*", metavar="PRESET", help="PRESET of instance-optimisation, or METHOD:PRESET (default: the case's; no PRESET: none)")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="runs of each tool, in alternating order")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--limit", type=float, default=3600, metavar="SECONDS", help="a run is ended after this time")
    parser.add_argument("--out", type=Path, metavar="FILE", help="append one JSON line a run to this file")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep inputs, transforms and logs in this folder")
    parser.add_argument("--data", type=Path, default=DATA, metavar="DIR")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, metavar="DIR", help="where the peers are installed")
    parser.add_argument("--profile", action="store_true", help="also print the wall seconds of our stages")
    parser.add_argument("--install", action="store_true", help="install the environments of the peers and stop")
    parser.add_argument("--training", action="store_true", help="what the steps of the training recipes cost instead (training.py; see its --help)")
    parser.add_argument("--list", action="store_true", help="cases and peers")
    parser.add_argument("--table", nargs="+", type=Path, metavar="FILE", help="print the tables of these files and stop")
    return parser.parse_args(argv)


def catalogue(arguments) -> str:
    """Cases with their data's presence and peers with their environment's."""
    lines = ["cases"]
    for case in CASES.values():
        there = "" if (arguments.data / case.folder).is_dir() else "  (no data)"
        lines.append(f"  {case.id:32} {case.dim}D  linear stage: {case.stage:7} {case.title}{there}")
    lines.append("peers")
    for name, peer in PEERS.items():
        there = "" if python_of(peer.group, arguments.environments).exists() else "  (not installed)"
        lines.append(f"  {name:12} {peer.title}{' (slow, only by name)' if peer.slow else ''}{there}")
    return "\n".join(lines) + "\n"


def report_installation(arguments) -> None:
    names = arguments.peer or list(PEERS)
    check_names(names, PEERS, "peer")
    groups = [g for g in GROUPS if any(PEERS[n].group == g for n in names)]
    problems = install(groups, arguments.environments)
    if problems:
        raise Failure("; ".join(problems))
    sys.stdout.write(f"installed: {', '.join(groups)}\n")


def check_names(names, known, what) -> None:
    for name in names:
        if name not in known:
            raise Failure(f"unknown {what} '{name}'; known are {', '.join(known)}")


def measure(arguments) -> list[dict]:
    """Run everything that was asked for; the rows."""
    if not hasattr(os, "wait4"):
        raise Failure("CPU time and peak memory of a process are not available on this system; run the benchmark on Linux or macOS")
    names = list(CASES) if arguments.case == ["all"] else arguments.case
    check_names(names, CASES, "case")
    check_names(arguments.peer or [], PEERS, "peer")
    book = Book(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        work = arguments.keep or Path(temporary)
        for name in names:
            if not (arguments.data / CASES[name].folder).is_dir():
                sys.stderr.write(f"{name}: skipped, {arguments.data / CASES[name].folder} is not there\n")
                continue
            measure_case(CASES[name], work / name, arguments, book)
    if not book.rows:
        raise Failure(f"no case could run; give the folder with the cases by --data (looked in {arguments.data})")
    return book.rows


class Book:
    """The rows of this call; each is appended to the file of --out as soon as it is there."""

    def __init__(self, arguments):
        self.rows: list[dict] = []
        self.path = arguments.out
        self.stamp = {"date": datetime.date.today().isoformat(), "machine": machine(), "threads": arguments.threads}
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, row: dict) -> None:
        row = {**row, **self.stamp}
        self.rows.append(row)
        if self.path:
            with open(self.path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(row, allow_nan=False) + "\n")


def measure_case(case, work: Path, arguments, book: Book) -> None:
    """The identity once, then every tool ``repeat`` times; every second round in reverse order."""
    folder = work / "case"
    shutil.rmtree(folder, ignore_errors=True)
    call([sys.executable, str(HERE / "cases.py"), case.id, str(folder), str(arguments.data)], f"building case {case.id}")
    book.add({"case": case.id, "name": BEFORE, **scored(folder, work / "before")})
    tools = schedule(ours(case, arguments), peers(case, arguments))
    for repeat in range(arguments.repeat):
        for name, command in tools if repeat % 2 == 0 else reversed(tools):
            out = work / name.replace(":", "-")
            row = one_run(case, name, command(folder, out), out, arguments)
            row.update(repeat=repeat, **({} if row.get("error") else scored(folder, out)))
            book.add(row)
            say_row(row)


def schedule(one: list, other: list) -> list:
    """The two lists in turns, so that both meet the same state of the machine."""
    out = []
    for k in range(max(len(one), len(other))):
        out += one[k:k + 1] + other[k:k + 1]
    return out


def ours(case, arguments) -> list:
    """(name, command) of our presets."""
    wanted = [case.method] if arguments.ours is None else arguments.ours
    methods = [m if ":" in m or not case.deformable else f"instance-optimisation:{m}" for m in wanted]

    def command(method):
        start = ["--init", "header"] if case.stage == "none" else []
        return lambda folder, out: [sys.executable, "-m", "DeepRegistrationLib", "register", "--fixed", *inputs(folder, "fixed"), "--moving",
                                    *inputs(folder, "moving"), "--method", method, *start, "--device", "cpu", "--threads",
                                    str(arguments.threads), "--write", "transform", "--quiet", "--out", str(out)]

    return [(m, command(m)) for m in methods]


def peers(case, arguments) -> list:
    """(name, command) of the peers that take the case."""
    chosen = arguments.peer if arguments.peer is not None else [n for n, p in PEERS.items() if not p.slow and wanted_by_default(n, case)]
    out = []
    for name in chosen:
        peer = PEERS[name]
        python = python_of(peer.group, arguments.environments)
        if not python.exists():
            sys.stderr.write(f"{name}: skipped, not installed (python run.py bench --install --peer {name})\n")
        elif not peer.takes(case):
            sys.stderr.write(f"{name}: skipped, it does not take a {case.dim}D pair of {case.contrast} contrast like {case.id}\n")
        else:
            out.append((name, adapter_command(case, peer, python, arguments.threads)))
    return out


def wanted_by_default(name: str, case) -> bool:
    """SimpleITK's mutual information stands for itself on linear cases only, where it takes the place of demons."""
    return (name == "simpleitk") != case.deformable if name in ("simpleitk", "demons") else True


def adapter_command(case, peer, python, threads):
    def command(folder, out):
        line = [str(python), str(HERE / "adapters" / f"run_{peer.adapter}.py"), "--fixed", *inputs(folder, "fixed"), "--moving", *inputs(folder, "moving"),
                "--out", str(out), "--stage", case.stage, "--contrast", case.contrast, "--threads", str(threads), "--setting", peer.setting]
        return line if case.deformable else [*line, "--linear-only"]

    return command


def inputs(folder: Path, side: str) -> list[str]:
    return [str(folder / json.loads((folder / "case.json").read_text("utf-8"))[side])]


def one_run(case, name, command, out: Path, arguments) -> dict:
    """One tool on one case: wall and CPU seconds, peak memory; ``error`` where it failed."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    log = out.parent / f"{out.name}.log"
    load = os.getloadavg()[0]
    status, usage, wall = timed(command, environment(arguments.threads, name not in PEERS), log, arguments.limit)
    row = {"case": case.id, "name": name, "load_before": round(load, 2), "wall_seconds": round(wall, 2),
           "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2), "system_seconds": round(usage.ru_stime, 2),
           "peak_mib": round(usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1024)), "command": shlex.join(command)}
    for record in (out / "result.json", out / "transforms.json"):
        if record.exists():
            found = json.loads(record.read_text("utf-8"))
            row.update(versions=found.get("versions", {}))
            row.update({"stages": found["wall_seconds"]} if isinstance(found.get("wall_seconds"), dict) else {"registration_seconds": found.get("seconds")})
    if status != 0:
        ended = f"ended after {arguments.limit:g} s" if wall >= arguments.limit else f"exit status {status}"
        row["error"] = f"{ended}: {last_line(log)}"
    return row


def environment(threads: int, is_ours: bool) -> dict:
    """The caller's environment with the number of threads that every tool gets; only our process sees the library."""
    number = str(threads)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
    bare = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return {**bare, **{n: number for n in names}, **({"PYTHONPATH": str(LIBRARY)} if is_ours else {})}


def timed(command, env, log: Path, limit: float):
    """(exit status, resource usage, wall seconds) of a child process; its process group is ended after ``limit`` seconds."""
    with open(log, "w", encoding="utf-8") as stream:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=env, start_new_session=True)
        timer = threading.Timer(limit, os.killpg, (process.pid, signal.SIGKILL))
        timer.daemon = True
        timer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            timer.cancel()
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage, wall


def scored(folder: Path, result: Path) -> dict:
    """The figures of one result; ``error`` where it cannot be read."""
    done = subprocess.run([sys.executable, str(HERE / "score.py"), str(folder), str(result)], capture_output=True, text=True)
    if done.returncode:
        return {"error": "its result could not be scored: " + (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout)


def call(command, what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Failure(f"{what} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no message"


def say_row(row: dict) -> None:
    figures = ", ".join(f"{key} {row[key]:.4g}" for key in ("dice", "tre_mean", "ncc", "folds_percent", "wall_seconds", "cpu_seconds", "peak_mib")
                        if row.get(key) is not None)
    sys.stderr.write(f"{row['case']}  {row['name']}: {row.get('error') or figures}\n")


def read_rows(paths) -> list[dict]:
    """Rows of earlier runs. Raises Failure for a file that is not there or is none of ours."""
    try:
        return [json.loads(line) for path in paths for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise Failure(f"{error}; --table takes files that --out wrote") from None


if __name__ == "__main__":
    sys.exit(main())
