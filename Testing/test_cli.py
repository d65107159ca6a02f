"""The command line: what register, warp, evaluate and batch write, and that a stop at any moment leaves nothing half-written."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import contract
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DeepRegistrationLib.commands.batch import line
from DeepRegistrationLib.evaluate import metrics, summary
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image, Labels
from DeepRegistrationLib.io import read_image, read_labels, read_points, read_transform, write_image, write_labels, write_points, write_transform
from DeepRegistrationLib.points import Points
from DeepRegistrationLib.transforms import Affine, Displacement

WRITTEN = {"transform.h5", "inverse.h5", "affine.tfm", "warped.nii.gz", "log_jacobian.nii.gz", "result.json"}
SLOW_METHOD = '''
import time
from dataclasses import dataclass
from DeepRegistrationLib.method import Card, Method, method
from DeepRegistrationLib.parameters import parameter

@method(Card(title="Slow", summary="Waits.", task="test", references=("@misc{none}",)))
@dataclass(frozen=True)
class Slow(Method):
    seconds: float = parameter(60.0, "Seconds", "How long it takes.", unit="s")

    def solve(self, problem, runtime):
        for _ in runtime.monitor.steps(int(100 * self.seconds), "waiting"):
            time.sleep(0.01)
'''


@pytest.fixture(params=(2, 3))
def pair(request, tmp_path):
    """Paths of the smallest truth on disk, and the truth."""
    truth = contract.smallest_pair(request.param)
    paths = tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz"
    for image, path in zip((truth.problem.fixed, truth.problem.moving), paths):
        write_image(image, path)
    return *paths, truth


@pytest.fixture
def registered(pair, cli, toy, tmp_path):
    """The folder of a finished run of the toy on the pair, with the pair."""
    fixed, moving, truth = pair
    answer = cli("register", "--fixed", fixed, "--moving", moving, "--method", toy, "--seed", 5, "--out", tmp_path / "out")
    assert answer.status == 0, answer.err
    return tmp_path / "out", fixed, moving, truth


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_register_writes_its_files_and_nothing_else(registered):
    out, *_ = registered
    assert names(out) == WRITTEN


def test_the_written_transform_is_the_answer_and_its_inverse_undoes_it(registered):
    out, _, _, truth = registered
    dim = truth.problem.dim
    transform, inverse = read_transform(out / "transform.h5", dim), read_transform(out / "inverse.h5", dim)
    assert truth.error(transform) < 0.25 * truth.error(lambda x: x)
    points = torch.as_tensor(truth.problem.fixed.grid.points()).reshape(1, -1, dim)
    assert float((inverse(transform(points)) - points).abs().max()) < 1e-3
    linear = read_transform(out / "affine.tfm", dim)
    assert float((linear(points) - transform(points)).abs().max()) < 1e-3, "the toy finds a shift: its linear part is all of it"


def test_record_states_what_was_done(registered):
    out, fixed, moving, truth = registered
    record = json.loads((out / "result.json").read_text())
    assert (record["method"], record["preset"], record["seed"], record["device"]) == ("toy-shift", "default", 5, "cpu")
    assert record["parameters"] == {"steps": 12, "spacing": 2.0} and len(record["history"]) == 12
    assert record["request"]["fixed"] == str(fixed.resolve()) and set(record["files"]) == WRITTEN
    assert {"torch", "numpy", "python", "DeepRegistrationLib"} <= set(record["versions"])
    wall = record["wall_seconds"]
    assert {"start", "imports", "reading", "registration", "scores", "writing", "total"} <= set(wall)
    assert 0 < sum(v for k, v in wall.items() if k != "total") <= wall["total"] + 0.01
    assert record["peak_memory_mib"] is None or 50 < record["peak_memory_mib"] < 8000
    assert record["similarity"]["after"] > 0.99 > record["similarity"]["before"]
    assert record["folds"] == 0 and record["sdlogj"] < 1e-4


def test_warped_image_is_made_with_the_saved_transform(registered, cli, tmp_path):
    out, fixed, moving, _ = registered
    answer = cli("warp", "--transform", out / "transform.h5", "--reference", fixed, "--input", moving, "--out", tmp_path / "again.nii.gz")
    assert answer.status == 0, answer.err
    again, warped = read_image(tmp_path / "again.nii.gz"), read_image(out / "warped.nii.gz")
    assert again.grid.same_as(read_image(fixed).grid) and warped.grid.same_as(again.grid)
    assert float((again.data - warped.data).abs().max()) < 1e-4 * float(again.data.abs().max())


def test_scores_of_the_record_equal_those_of_evaluate(registered, cli, tmp_path):
    out, fixed, moving, _ = registered
    record = json.loads((out / "result.json").read_text())
    answer = cli("evaluate", "--transform", out / "transform.h5", "--fixed", fixed, "--moving", moving, "--out", tmp_path / "scores.json")
    scores = answer.json()
    assert json.loads((tmp_path / "scores.json").read_text()) == scores
    for when in ("before", "after"):
        assert record["similarity"][when] == pytest.approx(scores["similarity"]["ncc"][when], abs=1e-5)
    assert record["folds"] == scores["jacobian"]["folds"]
    assert scores["inverse_consistency"]["max"] < 1e-2


@pytest.mark.parametrize("dim", (2, 3))
def test_slab_scores_equal_the_metrics_with_masks_and_folds(dim, monkeypatch):
    monkeypatch.setattr(summary, "SLAB_VOXELS", 700)
    truth = contract.smallest_pair(dim)
    fixed, moving = truth.problem.fixed, truth.problem.moving
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(fixed.data.shape, generator=generator) > 0.3
    fixed = Image(fixed.data, fixed.grid, mask)
    coarse = fixed.grid.resample(6.0)
    transform = Affine.translation([1.0] * dim) @ Displacement(3 * torch.randn((1, dim, *coarse.shape), generator=generator), coarse)
    scores = summary.summarise(transform, fixed, moving).scores
    expected = metrics.evaluate_pair(transform, fixed, moving)
    assert expected["jacobian"]["folds_count"] > 0
    assert scores["folds_count"] == expected["jacobian"]["folds_count"] and scores["voxels"] == expected["jacobian"]["voxels"]
    for name in ("sdlogj", "determinant_min", "determinant_max"):
        assert scores[name] == pytest.approx(expected["jacobian"][name], rel=1e-4, abs=1e-5)
    for when in ("before", "after"):
        assert scores["similarity"][when] == pytest.approx(expected["similarity"]["ncc"][when], abs=1e-5)


def test_write_limits_the_output_and_removes_what_belonged_to_an_earlier_run(registered, cli, toy):
    out, fixed, moving, _ = registered
    (out / "my notes.txt").write_text("keep me")
    answer = cli("register", "--fixed", fixed, "--moving", moving, "--method", toy, "--write", "warped,affine", "--out", out, "--quiet")
    assert answer.status == 0 and answer.out == "" and answer.err == ""
    assert names(out) == {"warped.nii.gz", "affine.tfm", "result.json", "my notes.txt"}
    assert json.loads((out / "result.json").read_text())["files"] == ["affine.tfm", "warped.nii.gz", "result.json"]


def test_scores_are_left_out_where_they_are_not_asked_for(pair, cli, toy, tmp_path):
    fixed, moving, _ = pair
    call = ("register", "--fixed", fixed, "--moving", moving, "--method", toy)
    answer = cli(*call, "--write", "transform", "--out", tmp_path / "bare")
    record = json.loads((tmp_path / "bare" / "result.json").read_text())
    assert answer.status == 0 and "correlation" not in answer.out and names(tmp_path / "bare") == {"transform.h5", "result.json"}
    assert not {"similarity", "folds", "sdlogj"} & set(record) and "scores" not in record["wall_seconds"]
    answer = cli(*call, "--write", "scores", "--out", tmp_path / "scored")
    record = json.loads((tmp_path / "scored" / "result.json").read_text())
    assert answer.status == 0 and "correlation" in answer.out and names(tmp_path / "scored") == {"result.json"} and record["folds"] == 0


def test_cite_names_the_terms_that_the_run_used(cli):
    plain = cli("cite", "instance-optimisation").out
    assert "Vercauteren2009" in plain and plain.count("title = ") == len(set(re.findall(r"title = (.*)", plain)))
    other = cli("cite", "instance-optimisation", "--set", "similarity=ngf", "--set", "regulariser=curvature").out
    assert "Haber2006" in other and "Fischer2003Curvature" in other and "Fischer2003Curvature" not in plain
    assert "Heinrich2013SSC" in cli("cite", "instance-optimisation", "--set", "similarity=mind").out and "Heinrich2013SSC" not in plain
    assert "did you mean 'similarity'" in cli("cite", "instance-optimisation", "--set", "similarty=ngf").sentence()


def test_json_progress_is_one_object_a_line(pair, cli, toy, tmp_path):
    fixed, moving, _ = pair
    answer = cli("register", "--fixed", fixed, "--moving", moving, "--method", toy, "--json-progress", "--out", tmp_path / "out")
    events = [json.loads(line) for line in answer.out.splitlines()]
    shares = [e["share"] for e in events if e["event"] == "progress"]
    assert shares == sorted(shares) and shares[-1] == 1.0 and any("cost" in e for e in events if e["event"] == "log")


def test_settings_presets_and_start_reach_the_method(pair, cli, toy, tmp_path):
    fixed, moving, truth = pair
    write_transform(Affine.translation([2.5, -2.0, 1.0][: truth.problem.dim]), tmp_path / "start.tfm")
    answer = cli("register", "--fixed", fixed, "--moving", moving, "--method", f"{toy}:careful", "--set", "steps=1", "--init", tmp_path / "start.tfm",
                 "--out", tmp_path / "out", "--quiet")
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert answer.status == 0 and record["parameters"]["steps"] == 1 and record["preset"] == "careful"
    assert record["scalars"]["shift_mm"] < 1.0, "the start was nearly right, so one step changes little"


@pytest.mark.parametrize("start", ("header", "center", "moments", "affine"))
def test_starts_by_name(pair, cli, toy, tmp_path, start):
    fixed, moving, truth = pair
    answer = cli("register", "--fixed", fixed, "--moving", moving, "--method", toy, "--init", start, "--out", tmp_path / "out", "--quiet")
    assert answer.status == 0, answer.err
    assert truth.error(read_transform(tmp_path / "out" / "transform.h5")) < 0.5 * truth.error(lambda x: x)


@pytest.mark.parametrize("channels, top", [(3, 255), (1, 255), (1, 65535)])
def test_a_picture_is_carried_into_a_picture(cli, tmp_path, channels, top):
    """8 or 16 bits, also in color, although the interpolated values are fractions."""
    colors = torch.randint(0, top + 1, (1, channels, 20, 30), generator=torch.Generator().manual_seed(0)).float()
    write_image(Image(colors, Grid.from_parts((20, 30))), tmp_path / "in.png")
    write_transform(Affine.translation([0.5, 0.0]), tmp_path / "half.tfm")
    cli("warp", "--transform", tmp_path / "half.tfm", "--reference", tmp_path / "in.png", "--input", tmp_path / "in.png", "--out", tmp_path / "out.png")
    carried = read_image(tmp_path / "out.png", channels="vector").data
    assert torch.allclose(carried[..., :-1], (colors[..., :-1] + colors[..., 1:]) / 2, atol=0.5)


def test_color_pictures_are_registered_by_their_luminance(cli, toy, tmp_path):
    truth = contract.smallest_pair(2)
    for name, image in (("f", truth.problem.fixed), ("m", truth.problem.moving)):
        gray = (255 * image.data / image.data.max()).round().clamp(0, 255)
        write_image(Image(torch.cat([gray] * 3, 1), Grid.from_parts(image.grid.shape)), tmp_path / f"{name}.png")
        write_image(Image(gray, Grid.from_parts(image.grid.shape)), tmp_path / f"{name}.nii.gz")
    pairs = {kind: ("--fixed", tmp_path / f"f{kind}", "--moving", tmp_path / f"m{kind}") for kind in (".png", ".nii.gz")}
    refused = cli("register", *pairs[".png"], "--method", toy, "--out", tmp_path / "no")
    assert refused.status == 2 and "--color gray" in refused.err and not (tmp_path / "no").exists()
    assert cli("register", *pairs[".png"], "--color", "gray", "--method", toy, "--out", tmp_path / "color", "--quiet").status == 0
    assert cli("register", *pairs[".nii.gz"], "--method", toy, "--out", tmp_path / "gray", "--quiet").status == 0
    found = [torch.as_tensor(read_transform(tmp_path / name / "transform.h5").numpy()) for name in ("color", "gray")]
    torch.testing.assert_close(*found, atol=1e-3, rtol=0)
    scored = cli("evaluate", "--transform", tmp_path / "color" / "transform.h5", *pairs[".png"], "--color", "gray")
    assert scored.status == 0 and "ncc" in scored.out.lower()
    write_manifest(tmp_path / "list.csv", [{"id": "one", "fixed": "f.png", "moving": "m.png", "color": "gray"}])
    assert cli("batch", tmp_path / "list.csv", "--method", toy, "--write", "transform", "--out", tmp_path / "batch").status == 0


def test_warp_brings_labels_and_points_of_the_moving_space_to_the_fixed_space_and_back(pair, cli, tmp_path):
    fixed, moving, truth = pair
    dim, grid = truth.problem.dim, truth.problem.moving.grid
    shift = Affine.translation([4.0, 2.0, -2.0][:dim])
    write_transform(shift, tmp_path / "t.tfm")
    labels = torch.zeros((1, 1, *grid.shape), dtype=torch.int32)
    labels[(..., *(slice(10, 16),) * dim)] = 7
    write_labels(Labels(labels, grid), tmp_path / "labels.nii.gz")
    in_moving = Points(torch.as_tensor(grid.index_to_world([[10.0] * dim, [15.0] * dim]))[None], names=("low", "high"))
    write_points(in_moving, tmp_path / "points.csv")
    common = ("--transform", tmp_path / "t.tfm")
    assert cli("warp", *common, "--reference", fixed, "--input", tmp_path / "labels.nii.gz", "--labels", "--out", tmp_path / "l.nii.gz").status == 0
    assert cli("warp", *common, "--reference", fixed, "--input", tmp_path / "points.csv", "--points", "--out", tmp_path / "p.csv").status == 0
    carried, moved = read_labels(tmp_path / "l.nii.gz"), read_points(tmp_path / "p.csv")
    assert moved.names == ("low", "high")
    torch.testing.assert_close(moved.positions, shift.inverse()(in_moving.positions), atol=1e-6, rtol=0)
    where = np.argwhere(carried.data[0, 0].numpy() == 7)[:, ::-1]
    corners = carried.grid.index_to_world(np.stack([where.min(0), where.max(0)]))
    assert np.abs(corners - moved.positions[0].numpy()).max() <= 0.51 * carried.grid.spacing.max(), "labels and points must land together"
    back = cli("warp", *common, "--reference", moving, "--input", tmp_path / "p.csv", "--points", "--inverse", "--out", tmp_path / "b.csv")
    assert back.status == 0
    torch.testing.assert_close(read_points(tmp_path / "b.csv").positions, in_moving.positions, atol=1e-6, rtol=0)


def test_evaluate_with_labels_and_points(pair, cli, tmp_path):
    fixed, moving, truth = pair
    dim = truth.problem.dim
    write_transform(truth_shift(dim), tmp_path / "t.tfm")
    points = truth.problem.fixed.grid.index_to_world([[8.0] * dim, [12.0] * dim, [10.0, 14.0, 9.0][:dim]])
    write_points(Points(torch.as_tensor(points)[None]), tmp_path / "fp.csv")
    write_points(Points(truth_shift(dim)(torch.as_tensor(points)[None])), tmp_path / "mp.csv")
    scores = cli("evaluate", "--transform", tmp_path / "t.tfm", "--fixed", fixed, "--moving", moving,
                 "--fixed-points", tmp_path / "fp.csv", "--moving-points", tmp_path / "mp.csv").json()
    assert scores["tre"]["mean"]["before"] == pytest.approx(np.linalg.norm([2.5, -2.0, 1.0][:dim]), abs=1e-4)
    assert scores["tre"]["max"]["after"] < 1e-4


def test_points_in_voxels_are_noticed(pair, cli, tmp_path):
    fixed, moving, truth = pair
    dim, identity = truth.problem.dim, Affine.identity(truth.problem.dim)
    write_transform(identity, tmp_path / "t.tfm")
    grid, call = truth.problem.fixed.grid, ("evaluate", "--transform", tmp_path / "t.tfm", "--fixed", fixed, "--moving", moving)
    inner = torch.as_tensor(grid.index_to_world(np.array([[4.0] * dim, [9.0] * dim, [12.0] * dim])))[None]
    for name, positions in (("mm", inner), ("far", inner + 1000.0)):
        write_points(Points(positions), tmp_path / f"{name}.csv")
    quiet = cli(*call, "--fixed-points", tmp_path / "mm.csv", "--moving-points", tmp_path / "mm.csv")
    told = cli(*call, "--fixed-points", tmp_path / "far.csv", "--moving-points", tmp_path / "mm.csv")
    assert quiet.status == told.status == 0 and "remark" not in quiet.err
    assert "3 of 3 fixed points lie outside" in told.err and "moving points" not in told.err


@pytest.mark.parametrize("scale, told", [(1.5, False), (3.0, True), (0.4, True)])
def test_a_linear_map_that_no_body_has_is_remarked_on(pair, cli, tmp_path, scale, told):
    """It is what a search ends at that went wrong, and what wrong voxel sizes look like."""
    fixed, moving, truth = pair
    grid, matrix = truth.problem.fixed.grid, np.eye(truth.problem.dim + 1)
    matrix[0, 0], matrix[0, -1] = scale, (1 - scale) * grid.centre[0]
    write_transform(Affine(torch.as_tensor(matrix)), tmp_path / "start.tfm")
    run = cli("register", "--fixed", fixed, "--moving", moving, "--out", tmp_path / "out", "--method", "affine", "--set", "freedom=none",
              "--init", tmp_path / "start.tfm")
    record = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))
    assert run.status == 0 and ("the linear part scales by" in run.err) == told
    assert record["linear_stretch"] == pytest.approx([min(scale, 1), max(scale, 1)])
    assert ("the linear part scales by" in line("pair", "done", "", tmp_path / "out")["remark"]) == told, "and in the summary of a batch"


def truth_shift(dim: int) -> Affine:
    return Affine.translation([2.5, -2.0, 1.0][:dim])


def write_manifest(path, rows) -> None:
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("pair", [2], indirect=True)
def test_batch_goes_on_after_a_failure_and_does_not_repeat_what_is_done(pair, cli, toy, tmp_path):
    fixed, moving, truth = pair
    write_manifest(tmp_path / "m.csv", [{"id": "good", "fixed": fixed.name, "moving": moving.name, "set": "steps=3;spacing=3"},
                                        {"id": "bad", "fixed": fixed.name, "moving": "absent.nii.gz", "set": ""},
                                        {"id": "swapped", "fixed": moving.name, "moving": fixed.name, "set": ""}])
    call = ("batch", tmp_path / "m.csv", "--method", toy, "--write", "transform", "--out", tmp_path / "out")
    answer = cli(*call)
    assert answer.status == 1 and "2 of 3 pairs registered" in answer.out and "bad" in answer.err
    rows = {row["id"]: row for row in csv.DictReader((tmp_path / "out" / "summary.csv").read_text().splitlines())}
    assert [rows[k]["status"] for k in ("good", "bad", "swapped")] == ["done", "failed", "done"]
    assert "absent.nii.gz does not exist" in rows["bad"]["remark"] and not (tmp_path / "out" / "bad").exists()
    assert json.loads((tmp_path / "out" / "good" / "result.json").read_text())["parameters"] == {"steps": 3, "spacing": 3.0}
    before = (tmp_path / "out" / "good" / "result.json").stat().st_mtime_ns
    write_image(truth.problem.moving, tmp_path / "absent.nii.gz")
    answer = cli(*call)
    rows = [row["status"] for row in csv.DictReader((tmp_path / "out" / "summary.csv").read_text().splitlines())]
    assert answer.status == 0 and rows == ["done before", "done", "done before"]
    assert (tmp_path / "out" / "good" / "result.json").stat().st_mtime_ns == before


def test_batch_repeats_a_pair_whose_request_changed(tmp_path, cli, toy):
    truth = contract.smallest_pair(2)
    for name, image in (("f", truth.problem.fixed), ("m", truth.problem.moving)):
        write_image(image, tmp_path / f"{name}.nii.gz")
    for steps in (2, 4):
        (tmp_path / "m.json").write_text(json.dumps([{"fixed": "f.nii.gz", "moving": "m.nii.gz", "set": {"steps": steps}}]))
        assert cli("batch", tmp_path / "m.json", "--method", toy, "--write", "transform", "--out", tmp_path / "out").status == 0
        assert json.loads((tmp_path / "out" / "pair001" / "result.json").read_text())["parameters"]["steps"] == steps


def test_batch_of_the_time_points_of_a_series(tmp_path, cli, toy):
    image = contract.smallest_pair(3).problem.fixed
    write_series([image.data[0, 0].roll(k, -1) for k in range(3)], image.grid.spacing, tmp_path / "s.nii.gz")
    write_manifest(tmp_path / "m.csv", [{"id": f"t{k}", "fixed": "s.nii.gz#0", "moving": f"s.nii.gz#{k}"} for k in (1, 2)])
    for expected in ("done", "done before"):
        assert cli("batch", tmp_path / "m.csv", "--method", toy, "--out", tmp_path / "out").status == 0
        rows = csv.DictReader((tmp_path / "out" / "summary.csv").read_text().splitlines())
        assert [row["status"] for row in rows] == [expected] * 2
    assert json.loads((tmp_path / "out" / "t2" / "result.json").read_text())["request"]["moving"].endswith("s.nii.gz#2")


def write_series(frames, spacing, path) -> None:
    """Tensors (z, y, x) as the time points of a 4D file."""
    whole = sitk.JoinSeries([sitk.GetImageFromArray(frame.numpy()) for frame in frames])
    whole.SetSpacing((*spacing, 1.0))
    sitk.WriteImage(whole, str(path))


@pytest.fixture
def slow(tmp_path, monkeypatch):
    """A method that takes a minute, and a pair on disk."""
    folder = tmp_path / "methods"
    folder.mkdir()
    (folder / "slow.py").write_text(SLOW_METHOD)
    truth = contract.smallest_pair(2)
    for name, image in (("f", truth.problem.fixed), ("m", truth.problem.moving)):
        write_image(image, tmp_path / f"{name}.nii.gz")
    return {"DEEPREGISTRATION_METHODS": str(folder)}


@pytest.mark.skipif(os.name != "posix", reason="signals are sent as POSIX has them")
@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM))
def test_a_signal_stops_the_run_and_leaves_nothing(slow, process, tmp_path, number):
    running = process("register", "--fixed", tmp_path / "f.nii.gz", "--moving", tmp_path / "m.nii.gz", "--method", "slow", "--json-progress",
                      "--out", tmp_path / "new" / "out", env=slow)
    assert "waiting" in running.stdout.readline()
    assert any(p.name.startswith(".partial-") for p in (tmp_path / "new" / "out").iterdir())
    began = time.monotonic()
    running.send_signal(number)
    _, errors = running.communicate(timeout=30)
    assert running.returncode == 130 and time.monotonic() - began < 20
    assert errors.strip() == "stopped: the run was cancelled, nothing half-written was left"
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.name != "posix", reason="signals are sent as POSIX has them")
def test_a_stopped_rerun_leaves_the_earlier_result_as_it_was(slow, process, cli, toy, tmp_path):
    pair = ("--fixed", tmp_path / "f.nii.gz", "--moving", tmp_path / "m.nii.gz", "--out", tmp_path / "out")
    assert cli("register", *pair, "--method", toy, "--quiet").status == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    running = process("register", *pair, "--method", "slow", "--json-progress", env=slow)
    assert "waiting" in running.stdout.readline()
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=30)
    assert running.returncode == 130
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.skipif(os.name != "posix", reason="signals are sent as POSIX has them")
def test_a_stopped_batch_stops_its_child(slow, process, tmp_path):
    (tmp_path / "m.json").write_text(json.dumps([{"id": "one", "fixed": "f.nii.gz", "moving": "m.nii.gz", "method": "slow"}]))
    running = process("batch", tmp_path / "m.json", "--out", tmp_path / "out", env=slow)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/one/.partial-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=30)
    assert running.returncode == 130 and not (tmp_path / "out" / "one").exists()


def test_help_needs_no_torch():
    code = "import sys; from DeepRegistrationLib.__main__ import build_parser; build_parser().format_help(); sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_help_is_written_for_users():
    """No markup of the source, and no files of it, in what any command or action says of itself ('serve' is for programs)."""
    from DeepRegistrationLib.__main__ import build_parser

    waiting, said = [build_parser()], []
    while waiting:
        parser = waiting.pop()
        said.append(parser.description)
        for action in parser._actions:
            said.append(action.help or "")
            waiting += [each for name, each in action.choices.items() if name != "serve"] if isinstance(action.choices, dict) else []
    assert len(said) > 150 and [text for text in said if "``" in text or ".py" in text] == []


def test_a_method_loads_torch_alone():
    """Every other package is loaded by the runs that need it: each costs all others its start."""
    code = ("import sys, DeepRegistrationLib.methods.instance_optimisation, DeepRegistrationLib.commands.register; "
            "sys.exit(' '.join({'scipy', 'SimpleITK', 'numba', 'sklearn'} & set(sys.modules)) or 0)")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_list_into_replaces_the_table_between_the_markers(cli, toy, tmp_path):
    from DeepRegistrationLib.commands.catalogue import BEGIN, END

    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert cli("list", "--into", page).status == 0
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n| method |") and text.endswith(f"{END}\nafter\n") and "old" not in text and "toy-shift" in text
    page.write_text("no markers")
    assert "has no lines" in cli("list", "--into", page).sentence()
    assert page.read_text() == "no markers" and names(tmp_path) == {"page.md"}


def test_oblique_and_anisotropic_images_keep_their_grids(cli, toy, tmp_path):
    truth = contract.smallest_pair(3)
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    matrix = np.eye(4)
    matrix[:3, :3] = turn if np.linalg.det(turn) > 0 else -turn
    matrix[:3, 3] = [40.0, -80.0, 120.0]
    for name, image in (("f", truth.problem.fixed), ("m", truth.problem.moving)):
        write_image(Image(image.data, image.grid.moved(matrix)), tmp_path / f"{name}.nrrd")
    assert cli("register", "--fixed", tmp_path / "f.nrrd", "--moving", tmp_path / "m.nrrd", "--method", toy, "--out", tmp_path / "out", "--quiet").status == 0
    expected: Grid = truth.problem.fixed.grid.moved(matrix)
    for name in ("warped.nii.gz", "log_jacobian.nii.gz"):
        assert read_image(tmp_path / "out" / name).grid.same_as(expected, tolerance=1e-2)
    inverse_motion = Affine(torch.as_tensor(np.linalg.inv(matrix)))
    found = inverse_motion @ read_transform(tmp_path / "out" / "transform.h5") @ Affine(torch.as_tensor(matrix))
    assert truth.error(found) < 0.25 * truth.error(lambda x: x)
