"""batch: register every pair of a manifest, each in a process of its own; finished pairs are not done again.

MANIFEST is a .csv file with a header line (separated by commas, semicolons or tabs) or a .json file with a list of objects. The columns are
the options of 'register' without their dashes (fixed, moving, fixed_mask, method, init, set, ...); 'id' names the pair's folder in DIR, and
'set' may hold several KEY=VALUE separated by ';'. Paths are relative to the manifest; FILE#N is time point N (from 0) of a 4D file. Options
given to 'batch' fill the empty cells. A pair that fails is noted in summary.csv and does not stop the rest; the exit status is then 1.
"""

from __future__ import annotations

import csv
import difflib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ..errors import InputError
from . import options
from .output import RECORD, note, remark_on, say, staged
from .register import INPUTS, STARTS

COLUMNS = ("id", *INPUTS, "color", "method", "init", "set", "device", "seed", "threads", "write", "fill")
REMARK = "remark: "
SUMMARY = ("id", "status", "similarity_before", "similarity_after", "folds", "sdlogj", "seconds", "peak_memory_mib", "remark")


class Failed(Exception):
    """Some pairs could not be registered; the command ends with exit status 1."""


def add(commands) -> None:
    parser = commands.add_parser("batch", help="register many pairs, resumable", description=__doc__)
    parser.add_argument("manifest", type=Path, metavar="MANIFEST", help=".csv or .json")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="one folder a pair, and summary.csv")
    options.add_color(parser)
    options.add_method(parser)
    options.add_fill(parser)
    parser.set_defaults(run=run)


def run(arguments) -> None:
    """Register all pairs. Raises InputError for a manifest that cannot be used (before anything is run) and Failed."""
    rows = [complete(row, arguments) for row in read_manifest(arguments.manifest)]
    commands = [(row["id"], command_line(row, arguments.out / row["id"])) for row in rows]
    requests = [checked(name, command, register_parser()) for name, command in commands]
    table, earlier = [], earlier_remarks(arguments.out)
    for k, ((name, command), request) in enumerate(zip(commands, requests), 1):
        began = time.perf_counter()
        if is_done(request):
            status, remark = "done before", earlier.get(name, "")
        else:
            note(f"[{k}/{len(rows)}] {name} ...")
            code, remark = call(command)
            if code == 130:
                raise KeyboardInterrupt
            status = "failed" if code else "done"
        table.append(line(name, status, remark, request.out))
        remark = table[-1]["remark"]
        note(f"[{k}/{len(rows)}] {name}: {status}, {time.perf_counter() - began:.1f} s{f' ({remark})' if remark else ''}")
        write_summary(arguments.out, table)
    failed = [row["id"] for row in table if row["status"] == "failed"]
    say(f"{len(table) - len(failed)} of {len(table)} pairs registered; {arguments.out / 'summary.csv'}")
    if failed:
        raise Failed(f"{len(failed)} of {len(table)} pairs failed ({', '.join(failed[:5])}); summary.csv says why, "
                     "call the same command again to retry them")


def read_manifest(path: Path) -> list[dict]:
    """The rows as dicts of texts, checked: known columns, ids unique, files named. InputError says which row is wrong."""
    from ..tables import read_rows

    if not path.is_file():
        raise InputError(f"the manifest {path} does not exist; give a .csv or .json file")
    try:
        rows = json.loads(path.read_text("utf-8-sig")) if path.suffix.lower() == ".json" else read_rows(path)[1]
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"the manifest {path} cannot be read ({error}); give a .csv file with a header line or a .json list of objects") from None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"the manifest {path} names no pairs; give one row or object a pair, with at least fixed and moving")
    for number, row in enumerate(rows, 1):
        check_row(row, number, path)
    names = [row["id"] for row in rows]
    for name in names:
        same = [other for other in names if other.casefold() == name.casefold()]  # many systems have one folder for both
        if len(same) > 1:
            raise InputError(f"the id '{name}' occurs {len(same)} times in {path} ({', '.join(same)}); every pair needs its own")
    return rows


def check_row(row: dict, number: int, path: Path) -> None:
    """Complete the ``id`` of a row in place and raise InputError for columns that are unknown or missing."""
    for key in row:
        if key not in COLUMNS:
            near = difflib.get_close_matches(str(key), COLUMNS, n=1)
            raise InputError(f"{path}, row {number}: unknown column '{key}'; " + (f"did you mean '{near[0]}'?" if near else f"known are {', '.join(COLUMNS)}"))
    row["id"] = str(row.get("id") or f"pair{number:03d}")
    if row["id"] in (".", "..") or any(c in row["id"] for c in '/\\:*?"<>|'):
        raise InputError(f"{path}, row {number}: the id '{row['id']}' cannot be a folder name; use letters, digits, '-' and '_'")
    for key in ("fixed", "moving"):
        if not row.get(key):
            raise InputError(f"{path}, row {number} ({row['id']}): '{key}' is empty; name an image file")


def complete(row: dict, arguments) -> dict:
    """The row with the options of 'batch' in its empty cells and its paths relative to the manifest's folder."""
    out = {key: getattr(arguments, key) for key in ("color", "method", "init", "device", "seed", "threads", "fill")}
    out.update({key: value for key, value in row.items() if value not in (None, "")})
    out["set"] = arguments.set + setting_list(row.get("set"))
    write = row.get("write") or arguments.write
    out["write"] = write if isinstance(write, str) else ",".join(map(str, write))
    files = INPUTS if row.get("init") in (None, "", *STARTS) else (*INPUTS, "init")
    for key in files:
        if out.get(key):
            out[key] = str((arguments.manifest.parent / str(out[key])).resolve() if key == "init" else arguments.manifest.parent / str(out[key]))
    return out


def setting_list(value) -> list[str]:
    """'a=1;b=2', ['a=1'] or {'a': 1} -> ['a=1', ...]."""
    if isinstance(value, dict):
        return [f"{k}={','.join(map(str, v)) if isinstance(v, list) else v}" for k, v in value.items()]
    return [part.strip() for part in value.split(";") if part.strip()] if isinstance(value, str) else list(value or [])


def command_line(row: dict, out: Path) -> list[str]:
    """The arguments of 'register' for a row."""
    arguments = ["--out", str(out), "--quiet"]
    for key, value in row.items():
        if key in ("id", "set") or value is None or (key == "threads" and str(value) == "0"):
            continue
        arguments += ["--" + key.replace("_", "-"), str(value)]
    for setting in row["set"]:
        arguments += ["--set", setting]
    return arguments


def checked(name: str, command: list[str], parser: options.Parser):
    """The parsed request of the pair ``name``; InputError, with the name, for options, a method or parameters that are not known."""
    from ..method import find

    try:
        request = parser.parse_args(command)
        find(request.method, options.settings(request.set))
    except InputError as error:
        raise InputError(f"pair '{name}': {error}") from None
    return request


def register_parser() -> options.Parser:
    """The parser of 'register' alone, to check all rows before the first one runs."""
    from . import register

    parser = options.Parser(prog="register")
    register.add(holder := _Holder(parser))
    return holder.parser


class _Holder:
    """Stands where ``add`` expects the collection of commands, and keeps the one parser."""

    def __init__(self, parser):
        self.parser = parser

    def add_parser(self, name, **texts):
        return self.parser


def is_done(request) -> bool:
    """True where the pair's record answers this very request and no input file is newer."""
    from ..io.files import place_of
    from .register import request as requested

    record = request.out / RECORD
    try:
        if json.loads(record.read_text("utf-8"))["request"] != requested(vars(request)):
            return False
        inputs = [getattr(request, key) for key in INPUTS] + ([] if request.init in (None, *STARTS) else [request.init])
        return all(Path(place_of(path)[0]).stat().st_mtime <= record.stat().st_mtime for path in inputs if path is not None)
    except (OSError, ValueError, KeyError):
        return False


def call(arguments: list[str]) -> tuple[int, str]:
    """Run 'register' in its own process; (exit status, why it failed or what it remarked). An interruption is passed on to it."""
    package = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package.parent), *filter(None, [os.environ.get("PYTHONPATH")])])}
    command = [sys.executable, "-m", package.name, "register", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace", env=environment) as process:
        try:
            errors = process.communicate()[1]
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
    lines = [text for text in errors.splitlines() if text.strip()]
    if process.returncode < 0:
        return process.returncode, f"ended by signal {-process.returncode}, as happens when the memory runs out"
    if process.returncode:
        return process.returncode, lines[-1].removeprefix("error: ") if lines else ""
    return 0, "; ".join(text.removeprefix(REMARK) for text in lines if text.startswith(REMARK))


def earlier_remarks(folder: Path) -> dict[str, str]:
    """id -> remark of the pairs that a summary in ``folder`` tells to be done: what was said of their files stands nowhere else."""
    path = folder / "summary.csv"
    if not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8") as stream:
        return {row["id"]: row["remark"] for row in csv.DictReader(stream) if str(row.get("status")).startswith("done") and row.get("remark")}


def line(name: str, status: str, remark: str, folder: Path) -> dict:
    """A row of the summary, with the figures of the pair's record where there is one."""
    out = dict.fromkeys(SUMMARY, "") | {"id": name, "status": status, "remark": remark}
    if status != "failed":
        record = json.loads((folder / RECORD).read_text("utf-8"))
        if "folds" in record:  # --write without scores leaves these cells empty
            out |= {"similarity_before": record["similarity"]["before"], "similarity_after": record["similarity"]["after"],
                    "folds": record["folds"], "sdlogj": record["sdlogj"]}
        own = remark_on(record)
        out |= {"seconds": record["wall_seconds"]["total"], "peak_memory_mib": record["peak_memory_mib"],
                "remark": remark if own in remark else "; ".join(filter(None, (remark, own)))}
    return out


def write_summary(folder: Path, table: list[dict]) -> None:
    with staged(folder) as stage:
        with open(stage / "summary.csv", "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, SUMMARY)
            writer.writeheader()
            writer.writerows(table)
