"""The interface at 256^3: no piece of work of its thread takes a tenth of a second, from the click on Apply to the last node of the result.

The worker follows a script here, and its answer is read from files as the real one's; ``Benchmarks/panel.py`` measures the same with the worker.
"""

import time

import numpy as np
import pytest

pytest.importorskip("PySide6")
pytest.importorskip("slicer")

from panels import (  # noqa: E402, F401
    ScriptedRunner, answer, application, module_panel, no_slot_errors, panel, scene, settle, slicer, status)

from DeepRegistrationLib import exchange  # noqa: E402
from DeepRegistrationLib.geometry import Grid  # noqa: E402

pytestmark = pytest.mark.slow
SHAPE = (256, 256, 256)
LONGEST = 0.1
"""Seconds of the thread's own processor time, which other programs on the machine do not change."""


@pytest.fixture
def large(slicer, panel):
    """The panel with a chosen pair, a segmentation of four structures that serves as mask and as guide, and the scripted worker."""
    from DeepRegistrationUI import mrml

    grid = Grid.from_parts(SHAPE, 0.75)
    values = np.random.default_rng(0).integers(0, 1000, SHAPE, np.int16)
    parts = np.zeros(SHAPE, np.uint8)
    for n in range(1, 5):
        parts[40 * n : 40 * n + 60, 30:200, 40:160] = n
    panel.logic._runner = ScriptedRunner()
    node = panel.node
    node.fixedVolume, node.movingVolume = (mrml.volume_node(slicer.mrmlScene, exchange.Volume(values, grid, name)) for name in ("fixed", "moving"))
    labels = exchange.LabelMap(parts, grid, tuple((n, f"part {n}") for n in range(1, 5)), "parts")
    node.fixedStructures, node.movingStructures = (mrml.segmentation_node(slicer.mrmlScene, labels, side) for side in ("fixed parts", "moving parts"))
    node.fixedMask = node.fixedStructures
    node.folds = node.iterations = True
    settle(slicer)
    return panel


class Pieces:
    """Runs the event loop and keeps the longest piece of work of this thread."""

    def __init__(self, slicer):
        self.slicer, self.longest = slicer, 0.0

    def of(self, act) -> None:
        began = time.thread_time()
        act()
        self.longest = max(self.longest, time.thread_time() - began)

    def until(self, condition) -> None:
        end = time.monotonic() + 300
        while not condition():
            assert time.monotonic() < end, "the panel did not get there in time"
            self.of(self.slicer.app.processEvents)
            time.sleep(0.002)


def previews(runner, pieces, page, count: int) -> None:
    """Previews as the worker sends them, each waited for until it is shown."""
    shape, rng = runner.jobs[-1].request["preview"]["lattice"]["shape"], np.random.default_rng(1)
    for step in range(count):
        runner.say("preview", vectors=rng.normal(0, 1, (*shape, 3)).astype(np.float32), grid=None, linear=np.eye(4),
                   log_jacobian=rng.normal(0, 0.1, shape).astype(np.float32), step=step)
        pieces.until(lambda step=step: page.run.live.refreshes > step)


def result_from_files(request: dict, folder) -> dict:
    """The scripted answer with its arrays as memory maps, as the real worker's come."""
    folder.mkdir()
    return exchange.unpack(folder, exchange.pack(folder, answer(request)))


def test_no_piece_of_a_run_is_long(slicer, large, tmp_path):
    page, runner, pieces = large.page("register"), large.logic._runner, Pieces(slicer)
    pieces.of(page.ui.applyButton.click)
    pieces.until(lambda: runner.jobs and page.run.live is not None)
    previews(runner, pieces, page, 4)
    assert pieces.longest < LONGEST, f"reading, opening the live view and refreshing: {pieces.longest:.3f} s"
    result = result_from_files(runner.jobs[-1].request, tmp_path / "first")
    pieces.longest = 0.0
    runner.say("done", result=result)
    pieces.until(lambda: not page.running)
    pieces.of(lambda: settle(slicer))
    assert status(page).startswith("Registered in ") and pieces.longest < LONGEST, f"delivery: {pieces.longest:.3f} s"
    pieces.longest = 0.0
    pieces.of(page.ui.continueButton.click)
    pieces.until(lambda: len(runner.jobs) == 2)
    assert runner.jobs[-1].request["initial"][1].vectors.shape == (*SHAPE, 3)
    assert pieces.longest < LONGEST, f"continuing from the result: {pieces.longest:.3f} s"
    pieces.longest = 0.0
    pieces.of(page.ui.applyButton.click)
    pieces.until(lambda: not page.running)
    assert "the scene is as it was before" in status(page) and pieces.longest < LONGEST
