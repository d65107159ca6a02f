"""The tools that we are compared with, and their environments.

Their pins conflict with each other and with ours, so every group lives in an environment of its own,
``.venv-peers/<group>`` in the checkout; peers are no dependency of the product.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parents[1] / ".venv-peers"
GROUPS = ("itk", "torch")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True)
class Peer:
    """One tool in one setting: ``adapter`` script, ``group`` environment, the dimensions, contrasts and stages it takes."""

    group: str
    adapter: str
    title: str
    setting: str = ""
    dims: tuple[int, ...] = (2, 3)
    contrasts: tuple[str, ...] = ("same", "different")
    linear: bool = True
    slow: bool = False

    def takes(self, case) -> bool:
        """True where the tool can do what the case needs."""
        return case.dim in self.dims and case.contrast in self.contrasts and (case.deformable or self.linear)


PEERS = {
    "ants-quick": Peer("itk", "ants", "ANTs SyNQuick", "quick", linear=False),
    "ants-syn": Peer("itk", "ants", "ANTs SyN (ANTsPy default)", "syn"),
    "ants-cc": Peer("itk", "ants", "ANTs SyN, local correlation", "cc", linear=False, slow=True),
    "greedy": Peer("itk", "greedy", "greedy WNCC"),
    "elastix": Peer("itk", "elastix", "elastix default B-spline"),
    "demons": Peer("itk", "demons", "SimpleITK demons", contrasts=("same",)),
    "simpleitk": Peer("itk", "demons", "SimpleITK mutual information, linear"),
    "dipy": Peer("itk", "dipy", "DIPY SyN CC", linear=False),
    "convexadam": Peer("torch", "convexadam", "convexAdam MIND", dims=(3,), linear=False),
    "fireants": Peer("torch", "fireants", "FireANTs greedy, CPU", linear=False),
}


def python_of(group: str, environments: Path) -> Path:
    """The interpreter of a group's environment, there or not."""
    return environments / group / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def install(groups, environments: Path) -> list[str]:
    """Make the environments of ``groups`` one after the other; returns one line for each that failed."""
    problems = []
    for group in groups:
        interpreter = shutil.which("python3.11") or sys.executable
        sys.stderr.write(f"peers: installing group '{group}' into {environments / group}\n")
        failed = _run([interpreter, "-m", "venv", str(environments / group)]) or _fill(group, str(python_of(group, environments)))
        if failed:
            problems.append(f"group '{group}' could not be installed: {failed}")
    return problems


def _fill(group: str, python: str) -> str:
    wanted = HERE / f"requirements-{group}.txt"
    torch = re.search(r"^torch==\S+", wanted.read_text("utf-8"), re.MULTILINE)
    pip = [python, "-m", "pip", "install", "--quiet", "--prefer-binary"]
    if torch:  # the CPU build, from the configured source or from PyTorch's own index; the plain one where neither has it
        build = f"{torch[0]}+cpu"
        failed = _run([*pip, build]) and _run([*pip, build, "--index-url", CPU_INDEX]) and _run([*pip, torch[0]])
        if failed:
            return failed
    return _run([*pip, "--requirement", str(wanted)])


def _run(command) -> str:
    """'' or the last line of what went wrong."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        return str(error)
    lines = (done.stderr + done.stdout).strip().splitlines() or ["no message"]
    errors = [line for line in lines if line.startswith("ERROR")] or lines
    return errors[-1] if done.returncode else ""
