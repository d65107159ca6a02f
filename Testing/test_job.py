"""Runners: a worker process that is cancelled, killed and starved, and goes on; nothing is left behind."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from jobs_scene import ODD_METHOD, ball, halves, marks, request

from DeepRegistrationLib import exchange
from DeepRegistrationLib.errors import Cancelled, InputError, RegistrationError
from DeepRegistrationUI import job as jobs
from DeepRegistrationUI import jobqueue

PATIENCE = 120.0
"""Seconds for the start of a worker on a machine that is busy."""


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """The odd method, for this process and for workers that it starts."""
    folder = tmp_path_factory.mktemp("methods")
    (folder / "odd.py").write_text(ODD_METHOD, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPREGISTRATION_METHODS", str(folder))
        yield folder


@pytest.fixture(scope="module")
def shared(odd):
    """One worker for all tests; a test that kills it gets a new one by the runner itself."""
    with jobs.WorkerRunner() as runner:
        yield runner


@pytest.fixture
def worker(shared):
    """The worker, warm."""
    shared.warm_up()
    until(shared, lambda: shared.hello is not None)
    yield shared
    for job in list(shared.jobs):
        job.discard()
    until(shared, lambda: not shared.busy)


@pytest.fixture
def here(odd):
    with jobs.InProcessRunner() as runner:
        yield runner


def until(runner, condition, seconds=PATIENCE):
    """Tick until ``condition``; the longest tick in seconds."""
    end, longest = time.perf_counter() + seconds, 0.0
    while not condition():
        assert time.perf_counter() < end, "waited in vain"
        began = time.perf_counter()
        runner.tick()
        longest = max(longest, time.perf_counter() - began)
        time.sleep(0.002)
    return longest


def heard(events):
    return lambda job, event: events.append(event)


def names(events):
    return [event["event"] for event in events]


@pytest.mark.parametrize("kind", ["here", "worker"])
def test_a_registration_and_its_events(kind, request_of, kind_runner):
    runner, events = kind_runner(kind), []
    job = runner.submit(request_of(), heard(events))
    assert job.state == "uploading" and events == []
    result = jobs.wait(job, runner, PATIENCE)
    assert job.state == "done" and job.ended and not runner.busy
    order = list(dict.fromkeys(names(events)))
    assert order[:3] == ["uploading", "started", "progress"] and order[-1] == "done" and names(events).count("done") == 1
    assert [e["cost"] for e in events if e["event"] == "log"] == pytest.approx([1.0, 0.5, 1 / 3])
    shares = [e["share"] for e in events if e["event"] == "progress"]
    assert shares == sorted(shares) and all({"text", "step", "steps", "seconds_left"} <= set(e) for e in events if e["event"] == "progress")
    assert {"transform", "inverse", "warped", "log_jacobian", "folds", "metrics", "scalars", "history", "provenance"} <= set(result)
    assert job.folder.is_dir()
    job.discard()
    assert not job.folder.exists()


def test_images_that_came_apart_are_told(here):
    """In the words of the command line, from what the result says of itself."""
    from DeepRegistrationLib.commands.output import remark_on

    for share, told in ((0.2, False), (0.8, True)):
        asked = request() | {"method": "affine", "values": {"freedom": "none"}}
        matrix, grid = np.eye(4), asked["fixed"].grid
        matrix[:3, 3] = share * grid.extent[2] * grid.direction[:, 2]
        stated = jobs.wait(here.submit(asked | {"initial": [exchange.Matrix(matrix)]}), here, PATIENCE)["provenance"]
        assert ("of the fixed image lie in the moving one" in remark_on(stated)) == told, stated["overlap"]


def test_voxels_without_a_number_are_left_out_and_told(here):
    """As on the command line: a map whose background is NaN is registered, and nothing that comes out holds NaN."""
    from DeepRegistrationLib.commands.output import remark_on

    asked = request() | {"method": "affine", "values": {"freedom": "none"}}
    assert remark_on(jobs.wait(here.submit(asked), here, PATIENCE)["provenance"]) == ""
    asked["moving"].array[:, :2] = np.nan
    result, count = jobs.wait(here.submit(asked), here, PATIENCE), int(np.isnan(asked["moving"].array).sum())
    assert f"{count} of {asked['moving'].array.size} voxels of {asked['moving'].name}" in remark_on(result["provenance"])
    assert np.isfinite(result["warped"].array).all()


@pytest.fixture
def request_of():
    return request


@pytest.fixture
def kind_runner(request):
    return request.getfixturevalue


def test_both_runners_give_the_same(here, worker):
    results = [jobs.wait(runner.submit(request()), runner, PATIENCE) for runner in (here, worker)]
    assert np.array_equal(results[0]["transform"][1].vectors, results[1]["transform"][1].vectors)
    assert np.array_equal(results[0]["warped"].array, results[1]["warped"].array) and results[0]["metrics"] == results[1]["metrics"]


def test_jobs_wait_for_each_other_and_a_waiting_one_can_be_cancelled(worker):
    events = []
    first, second, third = (worker.submit(request(), heard(events)) for _ in range(3))
    second.cancel()
    assert second.state == "cancelled"
    until(worker, lambda: third.ended)
    assert first.state == third.state == "done" and names(events).count("cancelled") == 1 and not second.folder.exists()


@pytest.mark.parametrize("how,killed", [("wait", False), ("stubborn", True)])
def test_cancel_takes_less_than_half_a_second(worker, how, killed):
    events, process = [], worker.process_id
    job = worker.submit(request(how), heard(events))
    until(worker, lambda: sum(name == "log" for name in names(events)) == 3)
    began = time.perf_counter()
    job.cancel()
    until(worker, lambda: job.ended, 5.0)
    assert job.state == "cancelled" and time.perf_counter() - began < 0.5
    until(worker, lambda: "cancelled" in names(events), 5.0)
    assert (worker.process_id != process) == killed and not job.folder.exists()
    assert jobs.wait(worker.submit(request()), worker, PATIENCE)["transform"]


def test_cancel_during_the_upload_and_before_the_worker_begins(worker, monkeypatch):
    monkeypatch.setattr(exchange, "CHUNK", 2000)
    monkeypatch.setattr(jobqueue, "TICK", 0.0)
    job = worker.submit(request())
    worker.tick()
    assert job.state == "uploading" and job.upload is not None
    job.cancel()
    assert job.state == "cancelled" and not job.folder.exists()
    monkeypatch.undo()
    until(worker, lambda: not worker.busy)


def test_cancel_from_within_an_event_in_this_process(here):
    def stop(job, event):
        if event["event"] == "log":
            job.cancel()

    job = here.submit(request("wait"), stop)
    with pytest.raises(Cancelled):
        jobs.wait(job, here, 30)


@pytest.mark.parametrize("how,kind,words", [("memory", "memory", "memory ran out"), ("torch", "memory", "memory ran out"),
                                            ("fault", "fault", "ZeroDivisionError")])
def test_an_error_of_a_method_leaves_the_worker_alive(worker, how, kind, words):
    process = worker.process_id
    job = worker.submit(request(how))
    with pytest.raises(RegistrationError, match=words):
        jobs.wait(job, worker, PATIENCE)
    assert job.kind == kind and worker.process_id == process
    assert list(job.offers) == (["half_resolution"] if kind == "memory" else [])
    assert jobs.wait(worker.submit(request()), worker, PATIENCE)["transform"]


@pytest.mark.parametrize("how,kind,words", [("kill", "memory", "memory ran out"), ("exit", "crash", "ended unexpectedly")])
def test_a_worker_that_dies_is_replaced(worker, how, kind, words):
    process, events = worker.process_id, []
    job = worker.submit(request(how), heard(events))
    until(worker, lambda: job.ended)
    assert job.state == "failed" and job.kind == kind and words in job.message and job.offers == ["half_resolution"]
    assert not job.folder.exists()
    result = jobs.wait(worker.submit({**jobs.retry(job.request, "half_resolution"), "values": {}}), worker, PATIENCE)
    assert worker.process_id not in (process, None) and result["scalars"]["voxels"] < 12 * 14 * 10 / 4
    assert result["warped"].grid.same_as(ball().grid)


def test_a_signal_is_named(tmp_path, odd):
    """A worker that ends with a long list of modules, as Python prints after a segmentation fault: the sentence names the fault."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nprintf 'Fatal Python error: Segmentation fault\\n\\nCurrent thread (most recent call first):\\n'\n"
                      "printf 'Extension modules: numpy, torch\\n'\nexit 139\n")
    script.chmod(0o755)
    with jobs.WorkerRunner(python=str(script)) as runner:
        job = runner.submit(request())
        with pytest.raises(RegistrationError, match="Segmentation fault"):
            jobs.wait(job, runner, 20)


def test_a_worker_that_is_killed_from_outside(worker):
    job = worker.submit(request("wait"))
    until(worker, lambda: job.started)
    os.kill(worker.process_id, signal.SIGKILL)
    until(worker, lambda: job.ended, 10.0)
    assert (job.state, job.kind) == ("failed", "memory")


def test_bad_input_is_one_sentence(worker):
    empty = exchange.Volume(np.zeros((4, 5, 6), np.float32), exchange.Grid.from_parts((4, 5, 6)), "flat")
    holes = ball(name="holes")
    holes.array[:] = np.nan
    cases = [({"fixed": empty}, "flat has the constant value 0"), ({"fixed": holes}, "holes holds numbers in 0 of"), ({"method": "odb"}, "did you mean 'odd'"),
             ({"values": {"haw": 1}}, "did you mean 'how'"), ({"outputs": ["warp"]}, "the output 'warp'"), ({"device": "cuda:9"}, "CUDA|cuda"),
             ({"initial": [exchange.Matrix(np.array([[1.0, 0, 0, 1e5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))]}, "do not overlap"),
             ({"fixed_points": marks()}, "points were given for one image only"), ({"command": "regster"}, "the command 'regster'"),
             ({"fixed_labels": halves(names=((1, "a"),)), "moving_labels": halves(names=((1, "b"),))}, "no structure of the same name")]
    for changes, sentence in cases:
        job = worker.submit({**request(), **changes})
        with pytest.raises(InputError, match=sentence):
            jobs.wait(job, worker, PATIENCE)
        assert job.kind == "input" and "\n" not in job.message


def test_a_full_disk_during_the_upload_is_one_sentence(worker, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exchange.np.lib.format, "write_array_header_1_0", full)
    job = worker.submit(request())
    until(worker, lambda: job.ended)
    assert (job.state, job.kind) == ("failed", "disk") and "is full; free some space" in job.message and not job.folder.exists()


def test_ticks_are_short_and_folders_go_with_the_runner(odd):
    grid = exchange.Grid.from_parts((128, 128, 96))
    large = exchange.Volume(np.random.default_rng(0).random(grid.shape, np.float32), grid)
    runner = jobs.WorkerRunner()
    job = runner.submit({**request(), "fixed": large, "moving": large})
    folder = runner.folder
    durations = []
    while job.upload is not None:
        began = time.thread_time()
        runner.tick()
        durations.append(time.thread_time() - began)
    assert max(durations) < 0.1 and folder.is_dir()
    process = runner.process_id
    runner.stop()
    assert not folder.exists() and job.state == "cancelled" and runner.process_id is None
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_worker_that_cannot_start(odd, tmp_path):
    with jobs.WorkerRunner(python=str(tmp_path / "nothing")) as runner, pytest.raises(InputError, match="could not be started"):
        runner.submit(request())
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'torch'\" >&2\nexit 1\n")
    script.chmod(0o755)
    with jobs.WorkerRunner(python=str(script)) as runner:
        job = runner.submit(request())
        with pytest.raises(RegistrationError, match="could not start .*No module named 'torch'.*PyTorch"):
            jobs.wait(job, runner, 20)


def test_previews_lie_on_the_lattice_and_cost_little(worker):
    lattice, events = ball().grid.resample(3.0), []
    wanted = {"interval_s": 0.05, "lattice": {"shape": list(lattice.shape), "affine": lattice.affine.tolist()}}
    job = worker.submit(request("show", preview=wanted), heard(events))
    result = jobs.wait(job, worker, PATIENCE)
    previews = [e for e in events if e["event"] == "preview"]
    assert previews and result["previews"]["count"] >= len(previews)
    last = previews[-1]
    assert last["vectors"].shape == (*lattice.shape, 3) and last["log_jacobian"].shape == lattice.shape and last["grid"].same_as(lattice)
    assert np.allclose(last["linear"][:3, 3], [1.0, -2.0, 0.5])
    dense = result["transform"][1]
    index = np.rint(dense.grid.world_to_index(lattice.points())).astype(int)
    nearest = dense.vectors[index[..., 2], index[..., 1], index[..., 0]]
    assert np.abs(last["vectors"] - nearest).max() < 1.0 and np.abs(last["vectors"]).max() > 1.0
    assert not list(job.folder.glob("preview*")) or result["previews"]["count"] > len(previews)


def test_half_resolution_and_retry():
    assert jobs.half_resolution({"a": 1}) == {"a": 1, "coarsen": 2.0}
    assert jobs.retry({"coarsen": 2.0}, "half_resolution") == {"coarsen": 4.0} and jobs.retry({}, "cpu") == {"device": "cpu"}
    with pytest.raises(InputError, match="expected half_resolution or cpu"):
        jobs.retry({}, "faster")


def test_a_tail_reads_whole_lines_only(tmp_path):
    tail = jobqueue.Tail(tmp_path / "events.jsonl")
    assert tail.read() == []
    with open(tmp_path / "events.jsonl", "w") as stream:
        for text, expected in (('{"a": 1}\n{"b"', [{"a": 1}]), (': 2}', []), ("\n", [{"b": 2}]), ("", [])):
            stream.write(text)
            stream.flush()
            assert tail.read() == expected


def test_the_worker_says_what_it_is(worker):
    assert worker.hello["versions"]["torch"] and worker.hello["threads"] >= 1 and worker.hello["process"] == worker.process_id
    assert worker.hello["devices"][0]["name"] == "cpu" and {"affine", "odd"} <= {m["id"] for m in worker.hello["catalogue"]["methods"]}
    assert Path(worker.folder, "worker.log").is_file()
