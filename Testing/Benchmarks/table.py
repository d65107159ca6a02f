"""Tables of measured rows: medians over repeats, one markdown table a case, and what they were measured on."""

from __future__ import annotations

import os
import platform
from statistics import median

COLUMNS = (("dice", "Dice", "{:.4f}"), ("hd95", "HD95 mm", "{:.2f}"), ("tre_mean", "TRE mm", "{:.3f}"), ("tre_p95", "TRE 95 %", "{:.3f}"),
           ("ncc", "NCC", "{:.4f}"), ("nmi", "NMI", "{:.4f}"), ("folds_percent", "folds %", "{:.4f}"), ("sdlogj", "SDlogJ", "{:.3f}"),
           ("wall_seconds", "wall s", "{:.1f}"), ("cpu_seconds", "CPU s", "{:.1f}"), ("peak_mib", "peak MiB", "{:.0f}"))
BEFORE = "(before)"


def machine() -> dict:
    """Processor, cores, memory and system of this machine."""
    model, memory = platform.processor(), None
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1)
    except (OSError, ValueError, AttributeError):
        pass  # not Linux: the name that Python knows is enough
    return {"processor": model, "cores": os.cpu_count(), "memory_gib": memory, "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version()}


def markdown(rows: list[dict], cases: dict, profile: bool = False) -> str:
    """One section a case, in the order in which rows came; failures are named with their reason."""
    parts = []
    for case in dict.fromkeys(r["case"] for r in rows):
        chosen = [r for r in rows if r["case"] == case]
        known = cases.get(case)
        head = f"### {case}" + (f": {known.title}" if known else "")
        if known:
            head += f"\n\n{known.dim}D, linear stage needed: {known.stage}; truth: {known.truth}; NCC, NMI, folds and SDlogJ in the {known.region}"
        parts.append(f"{head}\n\n{_table(chosen)}" + (_stages(chosen) if profile else ""))
    return "\n\n".join(parts) + "\n\n" + footnote(rows) + "\n"


def footnote(rows: list[dict]) -> str:
    """Date, machine, threads, versions and how busy the machine was."""
    last = rows[-1]
    box = last.get("machine", {})
    versions = {k: v for r in rows for k, v in r.get("versions", {}).items()}
    loads = [r["load_before"] for r in rows if r.get("load_before") is not None]
    text = (f"{last.get('date', '')}; {box.get('processor')}, {box.get('cores')} cores, {box.get('memory_gib')} GiB, {box.get('system')}; "
            f"{last.get('threads')} threads, one process start to written transform; medians over repeats (n). ")
    if loads and max(loads) > 0.5:
        text += f"The machine was not idle (load before a run up to {max(loads):.1f}): compare scores, not times. "
    return text + "Versions: " + ", ".join(f"{k} {v}" for k, v in sorted(versions.items())) + "."


def _table(rows) -> str:
    names = list(dict.fromkeys(r["name"] for r in rows))
    names.sort(key=lambda n: n != BEFORE)
    columns = [c for c in COLUMNS if any(r.get(c[0]) is not None for r in rows)]
    lines = ["| tool | " + " | ".join(c[1] for c in columns) + " | n |", "|---|" + "---:|" * (len(columns) + 1)]
    for name in names:
        mine = [r for r in rows if r["name"] == name]
        good = [r for r in mine if not r.get("error")]
        label = name if good else f"{name}: failed, {mine[-1]['error']}"
        cells = [_cell([r.get(key) for r in good], form) for key, _, form in columns]
        lines.append(f"| {label} | " + " | ".join(cells) + f" | {len(good) if name != BEFORE else ''} |")
    return "\n".join(lines)


def _cell(values, form) -> str:
    values = [v for v in values if v is not None]
    return form.format(median(values)) if values else ""


def _stages(rows) -> str:
    """Wall seconds of our stages, median over repeats."""
    lines = []
    for name in dict.fromkeys(r["name"] for r in rows if r.get("stages")):
        stages = [r["stages"] for r in rows if r["name"] == name and r.get("stages")]
        seconds = {k: median(s[k] for s in stages if k in s) for k in stages[0]}
        lines.append(f"- {name}: " + ", ".join(f"{k} {v:.2f} s" for k, v in seconds.items()))
    return "\n\nStages:\n\n" + "\n".join(lines) if lines else ""
