"""What all tests share: settings of hypothesis, the folder of real data, the command line as a function, a small pair on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:  # a process a core: second threads of torch would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "DeepRegistration" / "DeepRegistrationLib"

settings.register_profile("project", deadline=None, derandomize=True, max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", 40)))
settings.load_profile("project")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder with real cases beside the checkout; tests that need it are skipped where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder.name}/ is not beside the checkout")
    return folder


class Answer:
    """Exit status, stdout and stderr of a command."""

    def __init__(self, status: int, out: str, err: str):
        self.status, self.out, self.err = status, out, err

    def json(self):
        return json.loads(self.out)

    def sentence(self) -> str:
        """The one sentence of a command that refused its input; asserts that nothing else was said."""
        assert self.status == 2, (self.status, self.err)
        lines = [text for text in self.err.splitlines() if text.startswith("error: ")]
        assert len(lines) == 1 and "Traceback" not in self.err, self.err
        return lines[0].removeprefix("error: ")


@pytest.fixture
def cli(capfd):
    """The command line in this process: ``cli("list", "--markdown") -> Answer``."""
    from DeepRegistrationLib.__main__ import main

    def call(*arguments) -> Answer:
        capfd.readouterr()
        status = main([str(a) for a in arguments])
        captured = capfd.readouterr()
        return Answer(status, captured.out, captured.err)

    return call


@pytest.fixture
def process():
    """The command line in a process of its own: ``process(*arguments, **options of Popen) -> Popen``."""
    started = []

    def start(*arguments, env=None, **options) -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": str(LIBRARY.parent), **(env or {})}
        command = [sys.executable, "-m", "DeepRegistrationLib", *map(str, arguments)]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options))
        return started[-1]

    yield start
    for each in started:
        if each.poll() is None:
            each.kill()
            each.communicate()


@pytest.fixture
def toy(monkeypatch) -> str:
    """The id of the example method, made known through DEEPREGISTRATION_METHODS."""
    monkeypatch.setenv("DEEPREGISTRATION_METHODS", str(Path(__file__).parent / "examples"))
    return "toy-shift"
