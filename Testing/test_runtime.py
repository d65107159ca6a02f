"""Runtime and monitors: progress that nests, cancelling that needs no test in an algorithm, settings that are restored."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

from DeepRegistrationLib.errors import Cancelled, InputError
from DeepRegistrationLib.runtime import Console, JsonLines, Monitor, Runtime, Silent, default_cache, fewer_threads, keep_memory, peak_memory_mib


class Recorder(Monitor):
    def __init__(self):
        super().__init__()
        self.seen = []

    def progress(self, share, text, step=0, steps=0):
        self.seen.append((round(share, 6), text))


def test_steps_count_from_zero_to_one():
    monitor = Recorder()
    assert list(monitor.steps(4, "level")) == [0, 1, 2, 3]
    assert monitor.seen == [(0.0, "level"), (0.25, "level"), (0.5, "level"), (0.75, "level"), (1.0, "level")]


def test_parts_nest_and_join_their_texts():
    monitor = Recorder()
    inner = monitor.part(0.5, 1.0, "deformable").part(0.0, 0.5, "level 1/2")
    assert list(inner.steps(2, "step")) == [0, 1]
    assert monitor.seen == [(0.5, "deformable, level 1/2, step"), (0.625, "deformable, level 1/2, step"), (0.75, "deformable, level 1/2, step")]


def test_no_steps_is_no_division_by_zero():
    monitor = Recorder()
    assert list(monitor.steps(0)) == [] and monitor.seen == [(1.0, "")]


@pytest.mark.parametrize("nested", (False, True))
def test_cancel_raises_with_the_best_so_far(nested):
    monitor = Silent()
    used = monitor.part(0, 1, "part") if nested else monitor
    done = []
    with pytest.raises(Cancelled) as caught:
        for k in used.steps(10):
            done.append(k)
            used.preview(f"transform {k}")
            if k == 2:
                used.cancel()
    assert done == [0, 1, 2] and caught.value.best_so_far == "transform 2" and monitor.cancelled


def test_cancel_during_the_last_step_is_not_lost():
    monitor = Silent()
    with pytest.raises(Cancelled):
        for _ in monitor.steps(1):
            monitor.cancel()


def test_console_draws_a_bar_on_a_terminal_and_a_line_a_stage_elsewhere():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        console = Console(stream)
        for stage, (start, end) in (("affine", (0, 0.5)), ("deformable", (0.5, 1))):
            list(console.part(start, end, stage).steps(50, "step"))
    assert "100 %" in terminal.getvalue() and terminal.getvalue().endswith("\n") and terminal.getvalue().count("\n") == 1
    lines = [line.split("s  ")[-1] for line in pipe.getvalue().splitlines()]
    assert lines == ["affine", "deformable"]


def test_json_lines_are_json():
    stream = io.StringIO()
    monitor = JsonLines(stream)
    for _ in monitor.steps(2, "x"):
        monitor.log(cost=torch.tensor(0.5), gradient=float("inf"))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [e["event"] for e in events] == ["progress", "log", "progress", "log", "progress"]
    assert events[1] == {"event": "log", "cost": 0.5} and events[-1]["share"] == 1.0


def test_active_sets_and_restores_the_process():
    tiny = torch.full((4,), 1e-38) * 1e-3
    assert float(tiny.max()) > 0, "denormals exist before"
    before = torch.get_num_threads()
    with Runtime("cpu", threads=1).active():
        assert torch.get_num_threads() == 1
        flushed = float((torch.full((4,), 1e-38) * 1e-3).max())
    assert torch.get_num_threads() == before
    assert float((torch.full((4,), 1e-38) * 1e-3).max()) > 0, "and after"
    assert flushed == 0.0 or not torch.set_flush_denormal(False), "flushed inside, where the processor can"


def test_active_restores_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), Runtime("cpu", threads=1).active():
        raise KeyError
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("name", ("toaster", "cpux", ""))
def test_unknown_devices(name):
    with pytest.raises(InputError, match="expected auto, cpu, cuda or mps"):
        Runtime(name).torch_device()


def test_devices_that_are_not_there_are_named():
    for name, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())):
        if there:
            assert Runtime(name).torch_device().type == name
        else:
            with pytest.raises(InputError, match=f"device '{name}' was asked for but torch finds no"):
                Runtime(name).torch_device()


def test_generator_is_the_seed():
    draws = [torch.rand(5, generator=Runtime(seed=s).generator()) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_cache_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("DEEPREGISTRATION_CACHE", str(tmp_path))
    assert default_cache() == Path(tmp_path) == Runtime().cache


def test_memory_figures():
    peak = peak_memory_mib()
    assert peak is None or 20 < peak < 1e6
    assert keep_memory() in (True, False)


def test_few_voxels_are_left_to_one_thread():
    """Small work takes one thread and gives the others back, also after an error and inside itself; large work keeps them."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with fewer_threads(10_000):
            assert torch.get_num_threads() == 1
            with fewer_threads(10_000_000):
                assert torch.get_num_threads() == 1
        with pytest.raises(KeyError), fewer_threads(1):
            raise KeyError
        assert torch.get_num_threads() == 2
        with fewer_threads(10_000_000):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
