"""What the worker computes for each command, and the process itself: stdin, its end, cancelling, figures against the library's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import LIBRARY, ROOT
from jobs_scene import ODD_METHOD, ball, halves, marks, oblique, request

from DeepRegistrationLib import exchange
from DeepRegistrationLib.commands import jobs_pair, serve, watching
from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.evaluate import metrics
from DeepRegistrationLib.exchange import Matrix, Volume
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.ops.filters import gaussian
from DeepRegistrationLib.transforms import Affine, BSpline, Displacement, Velocity
from DeepRegistrationLib.transforms.parts import from_parts, to_parts


@pytest.fixture(autouse=True)
def odd(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("methods")
    (folder / "odd.py").write_text(ODD_METHOD, "utf-8")
    monkeypatch.setenv("DEEPREGISTRATION_METHODS", str(folder))


@pytest.fixture
def do(tmp_path):
    """Do a request in this process: ``do(request) -> (last event with its values, folder)``."""
    count = iter(range(1000))

    def perform(wanted, listener=None, ticket=None):
        folder = tmp_path / f"job-{next(count)}"
        folder.mkdir()
        exchange.write_json(folder / "request.json", exchange.pack(folder, wanted))
        ticket = ticket or serve.Ticket(folder)
        ticket.folder = folder
        serve.perform(ticket, listener)
        lines = [json.loads(line) for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]
        assert lines[0]["event"] == "started" and lines[-1]["event"] in ("done", "failed", "cancelled")
        return exchange.unpack(folder, lines[-1]), folder

    return perform


def done(answer):
    event, folder = answer
    assert event["event"] == "done", event
    return event["result"], folder


def test_everything_that_is_handed_over_belongs_to_one_transform(do):
    """The moving image is made from the method's own map, so the right warped image, map and figures are known."""
    fixed = ball(name="fixed")
    result, _ = done(do(request(fixed_points=marks(), moving_points=marks((1, -2, 0.5)), fixed_labels=halves(), moving_labels=halves())))
    transform = from_parts(result["transform"])
    points = torch.as_tensor(fixed.grid.points()[2:-2, 2:-2, 2:-2].reshape(1, -1, 3))
    inverse = from_parts(result["inverse"])
    assert float((inverse(transform(points)) - points).norm(dim=-1).mean()) < 0.1
    assert np.array_equal(result["folds"].array > 0, result["log_jacobian"].array <= np.log(1e-6) + 1e-3)
    expected = transform.log_jacobian(fixed.grid)[0, 0].numpy()
    assert np.abs(result["log_jacobian"].array - expected).max() < 1e-4
    rows = {(r["name"], r["structure"]): r for r in result["metrics"]}
    assert rows["TRE, mean", "landmarks"]["before"] == pytest.approx(np.linalg.norm([1, -2, 0.5]))
    moved = metrics.tre(jobs_pair.points_of(marks()), jobs_pair.points_of(marks((1, -2, 0.5))), transform)
    assert rows["TRE, mean", "landmarks"]["value"] == pytest.approx(float(moved.mean()), abs=1e-6)
    assert {"Dice", "HD95"} <= {name for name, _ in rows} and rows["Dice", "left"]["before"] == 1.0 and rows["Dice", "mean"]["value"] < 1
    assert all(set(r) == {"name", "structure", "unit", "before", "value"} for r in result["metrics"])
    assert rows["Folded voxels", ""]["unit"] == "%" and rows["HD95", "left"]["unit"] == "mm"


@pytest.mark.parametrize("kind", [np.int16, np.uint8, np.float32])
def test_a_warped_volume_keeps_its_type_and_only_wanted_outputs_are_made(do, kind):
    result, folder = done(do(request(moving=ball(shift=(1, 0, 0), kind=kind), outputs=["warped"])))
    assert result["warped"].array.dtype == kind and {"inverse", "folds", "log_jacobian"}.isdisjoint(result)
    assert {p.name for p in folder.glob("result.*")} >= {"result.json", "result.warped.npy"} and not list(folder.glob(".*"))


@pytest.mark.parametrize("initial", ["header", "center", "moments"])
def test_starts_by_name(do, initial):
    result, _ = done(do(request("initial", initial=initial, outputs=[])))
    assert len(result["transform"]) == 1
    shift = result["transform"][0].matrix[:3, 3]
    assert np.array_equal(shift, np.zeros(3)) if initial != "moments" else np.linalg.norm(shift - [1, -1, 0]) < 1.0


def test_a_result_to_go_on_from_comes_back_as_it_was(do):
    first, _ = done(do(request()))
    again, _ = done(do(request("initial", initial=first["transform"])))
    assert np.array_equal(again["transform"][0].matrix, first["transform"][0].matrix)
    assert np.array_equal(again["transform"][1].vectors, first["transform"][1].vectors)
    assert np.array_equal(again["warped"].array, first["warped"].array)


def test_a_slice_is_registered_in_its_plane_and_lifted_back(do):
    grid = oblique((1, 20, 24), spacing=(1.5, 1.5, 4.0))
    fixed, moving = (Volume(ball(oblique((3, 20, 24)), shift, name="x").array[1:2], grid, name) for shift, name in (((0, 0, 0), "a"), ((1, 1, 0), "b")))
    result, _ = done(do(request(fixed=fixed, moving=moving, preview={"interval_s": 0.01, "spacing_mm": 3.0})))
    assert result["warped"].array.shape == (1, 20, 24) and result["log_jacobian"].grid.same_as(grid)
    transform, normal = from_parts(result["transform"]), grid.direction[:, 2]
    points = grid.points().reshape(-1, 3)
    moved = transform(torch.as_tensor(points)[None])[0].numpy()
    assert np.abs((moved - points) @ normal).max() < 1e-5 and np.abs(moved - points).max() > 1.0
    back = from_parts(result["inverse"])(torch.as_tensor(moved)[None])[0].numpy()
    assert np.median(np.abs(back - points).max(-1)) < 0.05


def test_a_slice_against_a_volume_is_one_sentence(do):
    flat = Volume(ball().array[:1], Grid(((1, 14, 10)), oblique().affine), "flat")
    event, _ = do(request(fixed=flat))
    assert event["kind"] == "input" and event["message"].startswith("'flat' is a single slice and 'moving' is a volume")


# ---------------------------------------------------------------------------------------------------------------- warp


@pytest.fixture
def registered(do):
    return done(do(request()))


def test_warp_of_all_kinds_both_ways(do, registered):
    result, folder = registered
    transform, labels, points = from_parts(result["transform"]), halves(name="seg"), marks()
    inputs = [{"value": ball(shift=(1, -1, 0), name="moving")}, {"value": labels}, {"value": points}]
    there, _ = done(do({"command": "warp", "result": str(folder), "direction": "moving_to_fixed", "inputs": inputs}))
    assert np.abs(there["outputs"][0].array - result["warped"].array).max() < 1e-3
    assert there["outputs"][1].names == labels.names and there["outputs"][1].array.dtype == np.uint8
    back, _ = done(do({"command": "warp", "result": str(folder), "direction": "fixed_to_moving", "inputs": [there["outputs"][2]]}))
    assert np.abs(back["outputs"][0].positions - points.positions).max() < 0.1
    expected = transform(torch.tensor(there["outputs"][2].positions)[None])[0].numpy()
    assert np.abs(back["outputs"][0].positions - expected).max() < 1e-3
    parts, _ = done(do({"command": "warp", "parts": result["transform"], "reference": ball().grid, "inputs": inputs[:1]}))
    assert np.array_equal(parts["outputs"][0].array, there["outputs"][0].array)


@pytest.mark.parametrize("mode", ["linear", "cubic", "nearest"])
@pytest.mark.parametrize("flipped", [False, True])
def test_warp_lands_on_the_exact_grid_with_the_right_outside(do, mode, flipped):
    grid, shift = oblique(flipped=flipped), np.eye(4)
    shift[:3, 3] = 3 * grid.matrix[:, 0]
    volume = ball(grid, kind=np.int16)
    task = {"command": "warp", "parts": [Matrix(shift)], "reference": grid, "inputs": [{"value": volume, "interpolation": mode, "outside": -7}]}
    result, _ = done(do(task))
    out, valid = result["outputs"][0], result["validity"][0]
    assert out.array.dtype == np.int16 and np.array_equal(out.array[..., :-3], volume.array[..., 3:]) and (out.array[..., -3:] == -7).all()
    assert (valid.array[..., :-3] == 1).all() and (valid.array[..., -3:] == 0).all() and out.grid.same_as(grid)
    task["inputs"][0]["outside"] = "nan"
    result, _ = done(do(task))
    assert np.isnan(result["outputs"][0].array[..., -3:]).all() and result["outputs"][0].array.dtype == np.float32


def test_warp_does_not_spread_voxels_without_a_number(do):
    grid, shift = oblique(), np.eye(4)
    shift[:3, 3] = 0.4 * grid.matrix[:, 0]
    volume = ball(grid)
    volume.array[3, 3, 3] = np.nan
    result, _ = done(do({"command": "warp", "parts": [Matrix(shift)], "reference": grid, "inputs": [{"value": volume, "outside": 0}]}))
    assert np.argwhere(np.isnan(result["outputs"][0].array)).tolist() == [[3, 3, 3]]


def test_labels_of_another_region_are_an_empty_map(do):
    far = Matrix(np.diag([1.0, 1, 1, 1]) + 1e4 * np.eye(4, k=3))
    result, _ = done(do({"command": "warp", "parts": [far], "reference": oblique(), "inputs": [halves()]}))
    assert not result["outputs"][0].array.any() and not result["validity"][0].array.any()


@pytest.mark.parametrize("changes,sentence", [
    ({"inputs": []}, "nothing was given"), ({"parts": None}, "no transform or no reference"), ({"result": "nowhere"}, "is not there any more"),
    ({"inputs": [{"value": halves(), "interpolation": "linear"}]}, "label maps are read with nearest"),
    ({"inputs": [{"value": ball(), "outside": "air"}]}, "expected 'zero', 'nan' or a number"),
    ({"parts": [Matrix(np.diag([1.0, 1, 1, 1]) + 1e4 * np.eye(4, k=3))]}, "falls into the field of view")])
def test_warp_refuses_in_one_sentence(do, changes, sentence):
    event, _ = do({"command": "warp", "parts": [Matrix(np.eye(4))], "reference": oblique(), "inputs": [ball()], **changes})
    assert event["event"] == "failed" and event["kind"] == "input" and sentence in event["message"]


# ------------------------------------------------------------------------------------------------- evaluate and report


def test_evaluate_gives_the_figures_of_the_library(do, registered):
    result, folder = registered
    rows, _ = done(do({"command": "evaluate", "result": str(folder), "fixed_labels": halves(), "moving_labels": halves(names=((2, "left"), (1, "right")))}))
    by_name = {(r["name"], r["structure"]): r for r in rows["rows"]}
    first = {(r["name"], r["structure"]): r for r in result["metrics"]}
    assert by_name["Correlation", ""] == first["Correlation", ""] and by_name["SDlogJ", ""] == first["SDlogJ", ""]
    assert by_name["Dice", "left"]["before"] == 0.0
    parts, _ = done(do({"command": "evaluate", "fixed": ball(name="fixed"), "moving": ball(shift=(1, -1, 0), name="moving"), "parts": result["transform"]}))
    inverse = next(r for r in parts["rows"] if r["name"] == "Inverse consistency, mean")
    assert 0 <= inverse["value"] < 0.1 and inverse["unit"] == "mm"


def test_report_is_one_page(do, registered, tmp_path):
    pytest.importorskip("matplotlib")
    result, folder = registered
    done(do({"command": "report", "result": str(folder), "path": str(tmp_path / "report.html"), "title": "Case <1>"}))
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "Case &lt;1&gt;" in page and "Correlation" in page and page.count("<img") >= 5 and "parameters.how" in page
    event, _ = do({"command": "report", "result": str(folder), "path": str(tmp_path / "none" / "report.html")})
    assert event["kind"] == "input" and "choose a file in a folder that exists" in event["message"]


def test_parts_hold_every_kind_of_transform():
    grid = oblique((8, 9, 10))
    flow = Velocity(torch.randn(1, 3, *grid.shape, generator=torch.Generator().manual_seed(0)), grid)
    spline = BSpline.zeros(grid, 8.0)
    spline.control.normal_(generator=torch.Generator().manual_seed(1))
    points = torch.as_tensor(grid.points().reshape(1, -1, 3))
    for transform in (flow, spline, Affine.translation([1.0, 2, 3]) @ flow @ Affine.translation([1.0, 0, 0]), flow.inverse() @ spline):
        assert float((from_parts(to_parts(transform))(points) - transform(points)).norm(dim=-1).max()) < 1e-3
    smooth = Displacement(gaussian(torch.randn(1, 3, *grid.shape, generator=torch.Generator().manual_seed(2)), 2.0), grid).with_zero_ring()
    part, = to_parts(smooth)
    back = from_parts([exchange.Lattice(part.vectors, part.grid, True)])(smooth(points))
    assert float((back - points).norm(dim=-1).mean()) < 0.05 < float((smooth(points) - points).norm(dim=-1).mean())
    with pytest.raises(InputError, match="lift it with the planes"):
        to_parts(Displacement(torch.zeros(1, 2, 4, 4), Grid.from_parts((4, 4))))


# ---------------------------------------------------------------------------------------------------------- the process


def test_a_cancelled_ticket_stops_at_any_stage(do):
    for stage in ("started", "progress", "log"):
        ticket = serve.Ticket(None)

        def listen():
            lines = (ticket.folder / "events.jsonl").read_text("utf-8").splitlines()
            ticket.cancelled |= json.loads(lines[-1])["event"] == stage

        event, folder = do(request("wait"), listen, ticket)
        assert event["event"] == "cancelled" and not (folder / "result.json").exists()


def test_a_disk_that_is_full_while_the_result_is_written(do, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "result.warped.npy")

    monkeypatch.setattr(exchange, "write_json", full)
    with pytest.raises(OSError):
        do(request())
    monkeypatch.undo()
    assert serve.failure(OSError(28, "No space left on device"))["kind"] == "disk"


def test_previews_cost_what_they_may(tmp_path, monkeypatch):
    """A clock in place of the time: an algorithm of 10 s with steps of 10 ms, previews of 80 ms each."""
    now = [0.0]
    monkeypatch.setattr(watching.time, "perf_counter", lambda: now[0])
    monitor = watching.JobMonitor(serve.Events(tmp_path), serve.Ticket(tmp_path))

    def sketch(transform):
        now[0] += 0.08
        return np.eye(4).tolist(), np.zeros((2, 2, 2, 4), np.float32)

    monitor.sketch, monitor.lattice = sketch, {}
    for _ in range(1000):
        now[0] += 0.01
        if monitor.wants_preview:
            monitor.preview(None)
    assert 3 <= monitor.count <= 7 and monitor.cost < 0.05
    assert len(list(tmp_path.glob("preview-*.npy"))) <= watching.KEPT


@pytest.fixture
def session(tmp_path):
    folder = tmp_path / "session"
    folder.mkdir()
    process = subprocess.Popen([sys.executable, "-m", LIBRARY.name, "serve", "--remove", str(folder)], stdin=subprocess.PIPE,
                               env={**os.environ, "PYTHONPATH": str(LIBRARY.parent)})
    yield process, folder
    process.kill()
    process.wait()


def waited(path, word, seconds=120):
    end = time.monotonic() + seconds
    while not (path.exists() and word in path.read_text("utf-8")):
        assert time.monotonic() < end, f"no '{word}' in {path.name}"
        time.sleep(0.02)


def test_the_end_of_stdin_ends_the_process_in_the_middle_of_a_job(session):
    process, folder = session
    job = folder / "job"
    job.mkdir()
    exchange.write_json(job / "request.json", exchange.pack(job, request("stubborn")))
    process.stdin.write(json.dumps({"job": str(job)}).encode() + b"\n")
    process.stdin.flush()
    waited(job / "events.jsonl", '"log"')
    process.stdin.close()
    began = time.monotonic()
    assert process.wait(10) == 0 and time.monotonic() - began < 2 and not folder.exists()


def test_serve_needs_its_folder(cli, tmp_path):
    assert "does not exist; make it first" in cli("serve", tmp_path / "none").sentence()


# ------------------------------------------------------------------------------------------------------------ catalogue


def test_the_catalogue_of_the_panel_is_fresh(monkeypatch, cli, tmp_path):
    monkeypatch.delenv("DEEPREGISTRATION_METHODS")
    from DeepRegistrationLib.commands.catalogue import catalogue, catalogue_text

    path = ROOT / "DeepRegistration" / "Resources" / "DeepRegistrationMethods.json"
    assert path.read_text("utf-8") == catalogue_text(), "the catalogue is old; python run.py list --json --into " + path.relative_to(ROOT).as_posix()
    assert cli("list", "--json", "--into", tmp_path / "made.json").status == 0
    assert (tmp_path / "made.json").read_text("utf-8") == catalogue_text()
    assert "choose one" in cli("list", "--json", "--markdown").sentence()
    found = {m["id"]: m for m in catalogue()["methods"]}["instance-optimisation"]
    kinds = {p["name"]: p["type"] for p in found["parameters"]}
    assert kinds["factors"] == "list of float" and kinds["symmetric"] == "bool" and "accurate" in found["presets"]
    assert found["references"][0].startswith("@article") and found["problem"] == "Pair"
