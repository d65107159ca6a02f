"""DeepRegistrationLogic without a panel: register, continue, transfer, evaluate and batch from a script, with the real computation."""

import numpy as np
import pytest

pytest.importorskip("PySide6")
pytest.importorskip("slicer")

from panels import (  # noqa: E402, F401
    ScriptedRunner, answer, application, landmarks, no_slot_errors, scene, segmentation, slicer, volume)

from DeepRegistrationLib.errors import InputError, RegistrationError  # noqa: E402
from DeepRegistrationUI import records  # noqa: E402

QUICK = {"iterations": [20, 10, 0, 0]}


@pytest.fixture
def logic(slicer):
    """A logic whose jobs run in this process."""
    from DeepRegistrationUI.job import InProcessRunner
    from DeepRegistrationUI.logic import DeepRegistrationLogic

    slicer.mrmlScene.Clear(0)
    made = DeepRegistrationLogic(runner=InProcessRunner())
    yield made
    made.shutdown()
    slicer.mrmlScene.Clear(0)


@pytest.fixture
def scripted(logic):
    logic._runner = ScriptedRunner()
    return logic


def test_register_transfer_evaluate(slicer, logic):
    fixed, moving = volume(slicer, "fixed", (24, 24, 24)), volume(slicer, "moving", (24, 24, 24), shift=1)
    nodes = logic.register(fixed, moving, preset="affine:rigid", outputs=("warped", "inverse", "metrics"), name="First")
    assert {"linear", "warped", "inverse", "metrics"} <= set(nodes) and "log_jacobian" not in nodes
    before, after = (np.abs(slicer.util.arrayFromVolume(each) - slicer.util.arrayFromVolume(fixed))[4:-4, 4:-4, 4:-4].mean()
                     for each in (moving, nodes["warped"]))
    assert after < 0.7 * before
    points = landmarks(slicer, "points", [(12.0, 12.0, 12.0)])
    there = logic.transfer([points], nodes, "fixed_to_moving")[0]
    back = logic.transfer([there], nodes, "moving_to_fixed")[0]
    assert np.allclose(back.GetNthControlPointPositionWorld(0), (12, 12, 12), atol=0.01)
    rows = logic.evaluate(nodes, fixedLandmarks=points, movingLandmarks=there)
    distance = next(row for row in rows if "landmark" in row["name"].lower() or row["name"].startswith("TRE"))
    assert distance["unit"] == "mm" and distance["value"] < 0.01 < distance["before"]
    again = logic.register(fixed, moving, preset="instance-optimisation:fast", values=QUICK, start=nodes, outputs=("metrics",), name="Second")
    assert "deformation" in again and len(records.all_records(slicer.mrmlScene)) == 2


def test_the_result_is_the_one_of_the_library(slicer, logic):
    """The map of the scene's nodes is the library's own for the same two images, method, values and seed."""
    from scenes import inner_points, library_map, scene_map

    from DeepRegistrationLib.method import find
    from DeepRegistrationLib.runtime import Runtime
    from DeepRegistrationUI import mrml, outputs

    fixed, moving = volume(slicer, "fixed", (24, 22, 26)), volume(slicer, "moving", (24, 22, 26), shift=1)
    nodes = logic.register(fixed, moving, preset="instance-optimisation:fast", values=QUICK, seed=3)
    result = find("instance-optimisation:fast", QUICK).run(outputs.pair_from_nodes(fixed, moving), Runtime(seed=3))
    points = inner_points(mrml.grid_of(fixed))
    expected = library_map(result.transform, points)
    assert np.abs(expected - points).max() > 0.3
    assert np.abs(scene_map(nodes["linear"], points) - expected).max() < 1e-3
    warped = result.warped.data[0, 0].numpy()
    assert np.abs(slicer.util.arrayFromVolume(nodes["warped"]) - warped)[2:-2, 2:-2, 2:-2].max() < 0.02 * np.ptp(warped)


def test_requests_without_a_wait(slicer, scripted):
    seen = []
    run = scripted.register(volume(slicer, "a"), volume(slicer, "b", shift=1), wait=False, listener=lambda run, event: seen.append(event["event"]))
    scripted.runner.say("progress", share=0.1, text="level", step=1, steps=2, seconds_left=None)
    scripted.tick()
    scripted.runner.say("done", result=answer(scripted.runner.jobs[-1].request))
    while run.running:
        scripted.tick()
    assert seen == ["progress", "done"] and run.state == "done" and records.is_record(run.main)


@pytest.mark.parametrize("arguments, sentence", [
    ({"preset": "gone"}, "'gone' is not in this version"), ({"preset": "affine:gone"}, "no preset 'gone'"), ({"same": True}, "is both"),
    ({"movingNode": None}, "Choose a moving volume"), ({"start": {"linear": None}}, "a registration is needed")])
def test_wrong_requests(slicer, scripted, arguments, sentence):
    nodes = {"fixedNode": volume(slicer, "a"), "movingNode": volume(slicer, "b")}
    nodes["movingNode"] = nodes["fixedNode"] if arguments.pop("same", False) else nodes["movingNode"]
    with pytest.raises(InputError, match=sentence):
        scripted.register(**{**nodes, **arguments})
    assert scripted.runner.jobs == []


def test_a_failed_run_raises_its_sentence(slicer, scripted):
    class Failing(ScriptedRunner):
        def submit(self, request, on_event=None):
            job = super().submit(request, on_event)
            self.say("failed", kind="memory", message="the memory ran out", offers=["half_resolution"])
            return job

    scripted._runner = Failing()
    with pytest.raises(RegistrationError, match="the memory ran out"):
        scripted.register(volume(slicer, "a"), volume(slicer, "b"))


def test_batch_of_files(slicer, logic, tmp_path):
    """A manifest as of the command 'batch': one pair is done, one fails, and a second call does neither again nor loses it."""
    for name, shift in (("f", 0), ("m", 1)):
        slicer.util.saveNode(volume(slicer, name, (16, 16, 16), shift), str(tmp_path / f"{name}.nrrd"))
    (tmp_path / "list.csv").write_text("id,fixed,moving\ngood,f.nrrd,m.nrrd\nbad,f.nrrd,missing.nrrd\n", "utf-8")
    rows = logic.batch(tmp_path / "list.csv", folder=tmp_path / "out", preset="affine:rigid")
    assert [row["status"] for row in rows] == ["done", "failed"] and "missing.nrrd" in rows[1]["message"]
    assert (tmp_path / "out" / "good" / "transform.h5").is_file() and "similarity" in rows[0]["quality"]
    stamp = (tmp_path / "out" / "good" / "result.json").stat().st_mtime
    rows = logic.batch(tmp_path / "list.csv", folder=tmp_path / "out", preset="affine:rigid")
    assert rows[0]["message"] == "done before" and (tmp_path / "out" / "good" / "result.json").stat().st_mtime == stamp
