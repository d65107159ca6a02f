"""The training loop: it learns, goes on to the same numbers, stops, watches itself, and is the same in several processes."""

from __future__ import annotations

import csv
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trainings import OBJECTIVE, CancelAt, blobs, run, small, view

from DeepRegistrationLib.errors import Cancelled, ConvergenceError, InputError
from DeepRegistrationLib.networks.composition import MultiResolution
from DeepRegistrationLib.ops.filters import gaussian
from DeepRegistrationLib.runtime import Monitor, Runtime
from DeepRegistrationLib.terms import Alignment, Term
from DeepRegistrationLib.train import loop, precision, processes
from DeepRegistrationLib.train.ahead import denormals_flushed, drawn
from DeepRegistrationLib.train.loop import Watch, pair_seed, rate_at, train
from DeepRegistrationLib.train.record import Record, rows


def equal(one, other) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return all(torch.equal(a[key], b[key]) for key in a)


def test_the_cost_falls(tmp_path):
    """Judged by pairs that training has not seen."""
    network, history = run(tmp_path, 100)
    pairs = [blobs(torch.Generator().manual_seed(seed)) for seed in range(20)]
    before, after = (sum(float(OBJECTIVE(alignment).detach()) for pair in pairs for _, alignment in view(each, pair)) for each in (small(), network))
    assert after < 0.65 * before
    assert all(0 < row["drawing"] < 1 and row["seconds"] > 0 for row in history)


def test_ten_steps_are_five_and_five_more(tmp_path):
    """A run that is cancelled half way and called again ends with the bits of one that was not; its log has every step once."""
    whole, history = run(tmp_path / "whole", 10, pairs=2)
    with pytest.raises(Cancelled):
        run(tmp_path / "parts", 10, pairs=2, monitor=CancelAt(5))
    assert torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)["state"]["step"] == 5
    resumed, rest = run(tmp_path / "parts", 10, network=small(seed=9), pairs=2)
    assert equal(whole, resumed) and [row["cost"] for row in rest] == [row["cost"] for row in history[5:]]
    logged = rows(tmp_path / "parts", "training")
    assert [row["step"] for row in logged] == list(range(1, 11))
    assert logged[-1]["cost"] == pytest.approx(history[-1]["cost"], rel=1e-6)


def test_rows_after_the_checkpoint_are_dropped(tmp_path):
    with pytest.raises(Cancelled):
        run(tmp_path, 6, monitor=CancelAt(3))
    Record(tmp_path, 3).add(step=4, rate=0.0, cost=9.0, gradient=0.0, seconds=0.0, drawing=0.0)
    run(tmp_path, 6)
    logged = rows(tmp_path, "training")
    assert [row["step"] for row in logged] == [1, 2, 3, 4, 5, 6] and all(row["cost"] < 9 for row in logged)


@pytest.mark.parametrize("change", [{"steps": 8}, {"seed": 4}, {"rate": 2e-2}])
def test_a_checkpoint_of_other_settings_is_refused(tmp_path, change):
    run(tmp_path, 2)
    with pytest.raises(InputError, match=f"made with other settings \\({next(iter(change))}\\)"):
        run(tmp_path, **{"steps": 2, **change})


def test_a_damaged_checkpoint_is_named(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="checkpoint.pt cannot be read as a checkpoint"):
        run(tmp_path, 2)


def test_long_gradients_are_cut(tmp_path):
    """The same pairs with and without a limit: Adam's first step is the same, the later ones differ."""
    short, cut = run(tmp_path / "cut", 3, clip=1e-4)
    free, uncut = run(tmp_path / "free", 3, clip=0.0)
    assert cut[0]["gradient"] == uncut[0]["gradient"] > 1e-4, "the figure is the length before the cut"
    assert not equal(short, free)
    with pytest.raises(Cancelled):
        run(tmp_path / "one", 3, network=(network := small()), clip=1e-4, monitor=CancelAt(1))
    moments = torch.load(tmp_path / "one" / "checkpoint.pt", weights_only=True)["adam"]["state"]
    length = sum(float((m["exp_avg"] / 0.1).square().sum()) for m in moments.values()) ** 0.5
    assert length == pytest.approx(1e-4, rel=1e-3) and network is not None


def test_the_rate_rises_and_falls():
    from trainings import settings

    rates = [rate_at(settings(100, warm_up=10), step) for step in range(100)]
    assert rates.index(max(rates)) == 9 and rates[0] == pytest.approx(1e-3) and rates[-1] == pytest.approx(0.02e-2, rel=0.1)
    assert all(a > b for a, b in zip(rates[9:], rates[10:]))


class Blind(Term):
    """A cost that is not a number."""

    def __call__(self, alignment: Alignment):
        return alignment.field.sum()[None] * float("nan")


def test_a_cost_that_is_no_number_ends_the_run(tmp_path):
    from trainings import settings

    network = small()
    with pytest.raises(ConvergenceError, match="became nan at step 0"):
        train(network, view, Blind(), blobs, settings(3), tmp_path)
    assert equal(network, small()), "no update was made of it"


def test_validation_keeps_the_best_and_ends_early(tmp_path):
    """Scores 1, 3, 2, 2, ...: the second is kept, and after two more without a gain training ends, also when it is called again."""
    scores, seen = iter((1.0, 3.0, 2.0, 2.0, 9.0)), []

    def validate(network):
        assert not network.training and not torch.is_grad_enabled()
        seen.append({key: value.clone() for key, value in network.state_dict().items()})
        return {"score": next(scores), "dice": 0.5}

    watch = Watch(validate, lambda network: b"picture", tensorboard=False)
    _, history = run(tmp_path, 20, watch=watch, validate=2, patience=2)
    assert len(history) == 8 and [row["score"] for row in rows(tmp_path, "validation")] == [1, 3, 2, 2]
    best = torch.load(tmp_path / "best.pt", weights_only=True)["network"]
    assert all(torch.equal(best[key], seen[1][key]) for key in best)
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [f"step-{n:06d}.png" for n in (2, 4, 6, 8)]
    assert run(tmp_path, 20, watch=watch, validate=2, patience=2)[1] == []


def test_progress_and_figures_reach_the_monitor(tmp_path):
    class Listener(Monitor):
        shares, figures = [], []

        def progress(self, share, text, step=0, steps=0):
            self.shares.append(share)

        def log(self, **figures):
            self.figures.append(figures)

    listener = Listener()
    run(tmp_path, 4, monitor=listener, watch=Watch(lambda network: {"score": 1.0}), validate=4)
    assert listener.shares == [0, 0.25, 0.5, 0.75, 1] and {"cost", "rate"} <= set(listener.figures[0])
    assert listener.figures[-1] == {"validation_score": 1.0}


def test_tensorboard_gets_every_figure(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, history = run(tmp_path, 3, watch=Watch(lambda network: {"score": 0.25}, tensorboard=True), validate=3)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in board.Scalars("training/cost")] == [1, 2, 3]
    assert board.Scalars("training/cost")[-1].value == pytest.approx(history[-1]["cost"], rel=1e-6)
    assert board.Scalars("validation/score")[0].value == 0.25


def test_tensorboard_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="pip install tensorboard"):
        run(tmp_path, 1, watch=Watch(tensorboard=True))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to"):
        run(tmp_path / "file" / "run", 1)


def test_pairs_drawn_ahead_are_the_same_in_the_same_order():
    values = [list(drawn(lambda g: int(torch.randint(10**6, (1,), generator=g)), range(20), threads)) for threads in (0, 3)]
    assert values[0] == values[1] and len(set(values[0])) > 15

    def broken(generator):
        raise InputError("this image is gone")

    with pytest.raises(InputError, match="this image is gone"):
        list(drawn(broken, range(3), 2))


def test_a_thread_that_draws_ahead_changes_no_bit(tmp_path, monkeypatch):
    """Also where the run treats denormal numbers as 0: the thread does, too."""
    networks = []
    for threads in (0, 1):
        monkeypatch.setattr(loop, "drawing_threads", lambda device, threads=threads: threads)
        with Runtime("cpu", threads=1).active():
            networks.append(run(tmp_path / str(threads), 8, pairs=2)[0])
            flags = list(drawn(lambda generator: denormals_flushed(), range(2), threads))
        assert flags == [True, True] and list(drawn(lambda generator: denormals_flushed(), range(2), threads)) == [False, False]
    assert equal(*networks)


def test_half_precision_stays_inside_the_network(monkeypatch, tmp_path):
    """The code path of the GPU on the CPU: 16 bits in the network, its answer in 32; the scaler is in the checkpoint."""
    monkeypatch.setattr(precision, "wanted", lambda half, device: half)
    network, kinds = small(), []
    network.body[0].register_forward_hook(lambda module, given, said: kinds.append(said.dtype))
    said = precision.Half(network)(torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 16))
    assert kinds == [torch.float16] and said[0].voxels.dtype == torch.float32 and said[0].factor == 1
    assert precision.Half(network).body is network.body
    _, half = run(tmp_path / "half", 40, half=True)
    _, full = run(tmp_path / "full", 40, half=False)
    assert half[-1]["cost"] == pytest.approx(full[-1]["cost"], rel=0.2) and half[-1]["cost"] != full[-1]["cost"]
    assert torch.load(tmp_path / "half" / "checkpoint.pt", weights_only=True)["scaler"]["scale"] > 1


def test_gradients_beyond_16_bits_make_no_update(monkeypatch, tmp_path):
    """The first steps are skipped until the scale has come down far enough; then the network learns."""
    from trainings import settings

    monkeypatch.setattr(precision, "wanted", lambda half, device: half)
    network = small()
    with pytest.raises(Cancelled):
        train(network, view, 1e4 * OBJECTIVE, blobs, settings(40, half=True), tmp_path, Runtime("cpu", monitor=CancelAt(1)))
    assert not math.isfinite(rows(tmp_path, "training")[0]["gradient"]) and equal(network, small())
    train(network, view, 1e4 * OBJECTIVE, blobs, settings(40, half=True), tmp_path, Runtime("cpu"))
    assert all(bool(torch.isfinite(value).all()) for value in network.state_dict().values())
    assert math.isfinite(rows(tmp_path, "training")[-1]["gradient"]) and not equal(network, small())


def test_networks_in_16_bits_place_in_single_precision():
    """A network of two resolutions reads the moving image where its first part says; positions near 1000 voxels would be rounded to half a voxel."""
    torch.manual_seed(0)
    network = MultiResolution(2, 2, (4, 4), (4, 4), (4,))
    for part in (network.network.first.network, network.network.second):
        torch.nn.init.normal_(part.flow.weight, 0, 0.1)
    fixed, moving = gaussian(torch.rand(2, 1, 8, 1024), 2.0).split(1)
    single, half = (each(fixed, moving).detach() for each in (network, precision.Half(network)))
    assert 1 < float(single.abs().max()) and 0 < float((half - single).abs().max()) < 0.004, "voxels"


# --------------------------------------------------------------------------------------------------- several processes


def together(folder: Path, *arguments) -> None:
    """Two processes of ``trainings.main`` that join each other as those of torchrun do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = Path(__file__).resolve().parents[1]
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
              "PYTHONPATH": os.pathsep.join([str(root / "DeepRegistration"), str(root / "Testing")])}
    command = [sys.executable, str(root / "Testing" / "trainings.py"), str(folder), *map(str, arguments)]
    started = [subprocess.Popen(command, env={**common, "RANK": str(k), "LOCAL_RANK": str(k)}, stderr=subprocess.PIPE, text=True) for k in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed engine")
def test_two_processes_with_a_pair_each_are_one_with_two_pairs(tmp_path):
    together(tmp_path, 5)
    mine, other = (torch.load(tmp_path / f"rank-{k}.pt", weights_only=True) for k in range(2))
    assert all(torch.equal(mine[key], other[key]) for key in mine), "both processes hold the same parameters"
    alone, history = run(tmp_path / "alone", 5, network=small(seed=0), pairs=2)
    for key, value in alone.state_dict().items():
        assert torch.allclose(value, mine[key], rtol=1e-5, atol=1e-7)
    start = small(seed=0).state_dict()
    assert any(float((mine[key] - start[key]).abs().max()) > 1e-3 for key in mine), "and they have learned"
    with open(tmp_path / "run" / "training.csv", newline="") as stream:
        logged = list(csv.DictReader(stream))
    assert [float(row["cost"]) for row in logged] == pytest.approx([row["cost"] for row in history], rel=1e-5)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed engine")
def test_cancelling_one_process_stops_both_at_the_same_step(tmp_path):
    together(tmp_path, 50, "--cancel")
    assert (tmp_path / "cancelled-0").exists() and (tmp_path / "cancelled-1").exists()
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["state"]["step"] == 2
    mine, other = (torch.load(tmp_path / f"rank-{k}.pt", weights_only=True) for k in range(2))
    assert all(torch.equal(mine[key], other[key]) for key in mine)


def test_processes_share_the_pairs_of_one(monkeypatch):
    """Process r of n draws the numbers r, r + n, ... that one process would draw one after the other."""
    alone = [pair_seed(7, number) for number in range(6)]
    monkeypatch.setattr(processes, "world", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        assert [pair_seed(7, number) for number in range(3)] == alone[rank::2]
