"""Is PyTorch there, which build, and how it gets there: asked without importing it, installed at the point of use only.

PyTorch is installed by the PyTorch extension, which chooses the build for the graphics card. The packages of
``Resources/requirements.txt`` are installed by ``slicer.packaging`` where the application has it, and by
``slicer.util.pip_install`` after a question otherwise. Every installation is constrained to the versions of numpy, scipy and
SimpleITK that the application runs with, so that none of them is ever changed.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from DeepRegistrationLib.errors import InputError

TORCH = ">=2.4"
SCIKIT_LEARN = "scikit-learn>=1.5"
KEPT = ("numpy", "scipy", "SimpleITK")
REQUIREMENTS = Path(__file__).resolve().parents[1] / "Resources" / "requirements.txt"
LONG_PATH = ("PyTorch could not be unpacked because Windows allows file paths of 260 characters (WinError 206); enable long paths in "
             "Windows or install Slicer into a short folder such as C:\\Slicer, then press Apply again")


@dataclass(frozen=True)
class TorchState:
    """What is known of PyTorch without importing it: ``version`` '2.6.0' or '', ``build`` 'CPU', 'CUDA 12.6', 'ROCm' or ''."""

    version: str
    build: str

    @property
    def present(self) -> bool:
        return bool(self.version)

    @property
    def enough(self) -> bool:
        """True where the version satisfies ``TORCH``."""
        return self.present and _numbers(self.version) >= _numbers(TORCH)

    def line(self) -> str:
        """For the device line of the panel."""
        if not self.present:
            return "PyTorch is not installed; Apply will offer to install it"
        if not self.enough:
            return f"PyTorch {self.version} is too old (needs {TORCH}); Apply will offer to update it"
        return f"PyTorch {self.version} ({self.build})" if self.build else f"PyTorch {self.version}"


def _numbers(text: str) -> tuple[int, ...]:
    """'>=2.4' or '2.13.0+cu126' -> (2, 4) or (2, 13, 0)."""
    return tuple(int(n) for n in re.findall(r"\d+", text.partition("+")[0]))


def state() -> TorchState:
    """What is installed now, read from the package's metadata and its version file."""
    importlib.invalidate_caches()
    try:
        version = importlib.metadata.version("torch")
        spec = importlib.util.find_spec("torch")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return TorchState("", "")
    if spec is None or not version:  # metadata without the package: what an interrupted installation leaves
        return TorchState("", "")
    return TorchState(version.partition("+")[0], _build(version, spec))


def _build(version: str, spec) -> str:
    """The kind of build, from the local part of the version ('+cu126', '+cpu', '+rocm6.2') or from the package's version file."""
    local = version.partition("+")[2]
    folders = spec.submodule_search_locations or []
    files = [Path(folder) / "version.py" for folder in folders]
    text = next((f.read_text("utf-8", errors="replace") for f in files if f.is_file()), "")
    cuda = re.search(r"^cuda\b[^=\n]*=\s*'([\d.]+)'", text, re.MULTILINE)
    if cuda:
        return f"CUDA {cuda[1]}"
    short = re.fullmatch(r"cu(\d+)(\d)", local)
    if short:
        return f"CUDA {short[1]}.{short[2]}"
    if local.startswith("rocm") or re.search(r"^hip\b[^=\n]*=\s*'", text, re.MULTILINE):
        return "ROCm"
    return "CPU" if local == "cpu" or text else ""


def ensure(requester: str = "DeepRegistration", others: bool = True) -> TorchState:
    """Make PyTorch and, with ``others``, the optional packages available, asking the user first; returns the new state.

    Called by Apply, never on entering the module. InputError says in one sentence what stands in the way.
    """
    now = state()
    if not now.enough:
        _install_torch()
        now = state()
        if not now.enough:
            raise InputError(f"{now.line().partition(';')[0]}; press Apply again to install it, or use the PyTorch Util module")
    if others:
        _install_others(requester)
    return now


def _install_torch() -> None:
    """Through the PyTorch extension; InputError where it is missing, refused or failed."""
    try:
        utilities = importlib.import_module("PyTorchUtils")
    except ImportError:
        raise InputError("PyTorch is not installed and the extension 'PyTorch' that installs it is missing; install 'PyTorch' with the "
                         "Extensions Manager, restart Slicer and press Apply again") from None
    try:
        utilities.PyTorchUtilsLogic().installTorch(askConfirmation=True, torchVersionRequirement=TORCH)
    except Exception as error:  # the extension raises whatever pip, the disk or the network raise
        raise InputError(explain(error)) from error


def explain(error: BaseException) -> str:
    """One sentence for what went wrong in an installation."""
    text = " ".join(str(part) for part in (error, getattr(error, "stderr", ""), getattr(error, "output", "")) if part)
    if getattr(error, "winerror", None) == 206 or "WinError 206" in text or "path too long" in text.lower():
        return LONG_PATH
    if re.search(r"no space left|errno 28", text, re.IGNORECASE):
        return "PyTorch could not be installed because the disk is full; free about 6 GB and press Apply again"
    if re.search(r"declined|cancel", text, re.IGNORECASE):
        return "PyTorch was not installed because the question was answered with Cancel; press Apply again to install it"
    reason = " ".join(text.split())[:160] or type(error).__name__
    return f"PyTorch could not be installed ({reason}); check the network connection and press Apply again"


def _install_others(requester: str) -> None:
    """The packages of requirements.txt. They only make runs faster, so a failure is noted in the log and the run goes on."""
    missing = missing_requirements()
    if missing:
        _install(missing, requester, f"{requester} runs faster with {', '.join(missing)}. Install now?")


def ensure_package(requirement: str, requester: str, purpose: str) -> None:
    """Make one package available that ``purpose`` cannot do without, asking the user first. InputError where it is not there afterwards."""
    if _satisfied(requirement):
        return
    _install([requirement], requester, f"{purpose} needs {requirement}. Install now?")
    importlib.invalidate_caches()
    if not _satisfied(requirement):
        raise InputError(f"{purpose} needs the package {requirement}, which was not installed; try again with a network connection, or install it "
                         f"in the Python console: slicer.util.pip_install('{requirement}')")


def _install(missing: list[str], requester: str, question: str) -> None:
    """Install packages without changing those of the application; what stands in the way is noted in the log."""
    import slicer

    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(kept_versions()) + "\n", "utf-8")
        try:
            packaging = importlib.import_module("slicer.packaging")
        except ImportError:
            packaging = None
        try:
            if packaging is not None:
                packaging.pip_ensure(missing, constraints=constraints, requester=requester)
            elif slicer.util.confirmOkCancelDisplay(question, requester):
                slicer.util.pip_install([*missing, "-c", str(constraints)])
        except Exception as error:  # refused, offline or no matching wheel: pip and its dialogs raise many kinds
            logging.info("%s goes on without %s: %s", requester, ", ".join(missing), error)


def missing_requirements() -> list[str]:
    """The lines of requirements.txt whose package is absent or older than asked for."""
    lines = [line.partition("#")[0].strip() for line in REQUIREMENTS.read_text("utf-8").splitlines()]
    return [line for line in lines if line and not _satisfied(line)]


def _satisfied(requirement: str) -> bool:
    name = re.match(r"[\w.-]+", requirement)[0]
    try:
        return _numbers(importlib.metadata.version(name)) >= _numbers(requirement[len(name):])
    except importlib.metadata.PackageNotFoundError:
        return False


def kept_versions() -> list[str]:
    """'numpy==2.4.6', ... : what an installation must not change."""
    lines = []
    for name in KEPT:
        try:
            lines.append(f"{name}=={importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return lines
