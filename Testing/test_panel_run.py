"""Apply, Cancel, progress, results, errors and bad use, by clicks in the panel; the computing follows a script, the worker is real at the end."""

import errno
import json
import os
import signal

import numpy as np
import pytest

pytest.importorskip("PySide6")
pytest.importorskip("slicer")

from panels import (  # noqa: E402, F401
    answer, application, landmarks, module_panel, no_slot_errors, pair, panel, scene, segmentation, settle, slicer, status, volume, wait_until)

from DeepRegistrationLib.errors import InputError  # noqa: E402
from DeepRegistrationUI import mrml, records  # noqa: E402
from DeepRegistrationUI.job import WorkerRunner  # noqa: E402


def apply(slicer, panel):
    """Click Apply; the page and the scripted runner."""
    page = panel.page("register")
    page.ui.applyButton.click()
    return page, panel.logic._runner


def finish(slicer, panel, page, runner, **changes):
    runner.say("done", result=answer(runner.jobs[-1].request) | changes)
    wait_until(slicer, lambda: not page.running, 20)
    settle(slicer)


def names(slicer):
    nodes = slicer.mrmlScene.GetNodes()
    return sorted(nodes.GetItemAsObject(k).GetName() or "" for k in range(nodes.GetNumberOfItems()))


# ------------------------------------------------------------------------------------------------------------- one run


def test_apply_progress_and_result(slicer, pair):
    pair.node.live = False
    page, runner = apply(slicer, pair)
    assert page.ui.applyButton.text == "Cancel" and not page.ui.progressWidget.isHidden() and not page.ui.inputsBox.enabled
    runner.say("progress", share=0.25, text="level 1/3", step=10, steps=100, seconds_left=75.0)
    runner.say("log", cost=0.125)
    wait_until(slicer, lambda: "level" in page.ui.stageLabel.text.lower(), 5)
    assert page.ui.stageLabel.text == "Level 1/3, iteration 10 of 100, 1 min 15 s left" and page.ui.progressBar.value == 250
    assert "cost 0.125" in page.ui.logEdit.plainText
    finish(slicer, pair, page, runner)
    assert page.ui.applyButton.text == "Apply" and page.ui.progressWidget.isHidden() and page.ui.inputsBox.enabled
    assert status(page).startswith("Registered in ") and "inverse" in status(page) and "'moving to fixed'" in status(page)
    assert records.is_record(pair.node.result)
    roles = records.roles_of(pair.node.result)
    assert {"linear", "deformation", "inverse", "linear_part", "warped", "log_jacobian", "metrics", "chart", "fixed", "moving"} <= set(roles)
    assert "folds" not in roles and roles["linear"].GetParentTransformNode() is roles["deformation"]
    assert roles["linear_part"].GetParentTransformNode() is None and roles["linear_part"].IsLinear()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    folders = {hierarchy.GetItemParent(hierarchy.GetItemByDataNode(roles[r])) for r in ("linear", "deformation", "inverse", "linear_part", "warped")}
    assert len(folders) == 1 and hierarchy.GetItemName(folders.pop()) == "moving to fixed"


def test_a_deformation_that_was_dropped_is_told(slicer, pair):
    pair.node.live = False
    page, runner = apply(slicer, pair)
    finish(slicer, pair, page, runner, provenance={"deformation_kept": False})
    assert status(page).startswith("Registered in ") and "the result is the linear start alone" in status(page)
    page, runner = apply(slicer, pair)
    finish(slicer, pair, page, runner, provenance={"linear_stretch": [0.9, 5.7]})
    assert "scales by 0.9 to 5.7 along its axes" in status(page) and "linear start alone" not in status(page)


def test_request_holds_the_choices(slicer, pair):
    node = pair.node
    node.live, node.method, node.values, node.seed, node.device = False, "affine:rigid", json.dumps({"start": "center"}), 3, "cpu"
    node.fixedLandmarks, node.movingLandmarks = (landmarks(slicer, side, [(0, 0, 0), (1, 2, 3)]) for side in "FM")
    node.folds, node.warped = True, False
    settle(slicer)
    page, runner = apply(slicer, pair)
    request = runner.jobs[-1].request
    assert (request["command"], request["method"], request["values"], request["seed"], request["device"]) == (
        "register", "affine:rigid", {"start": "center"}, 3, "cpu")
    assert sorted(request["outputs"]) == ["folds", "inverse", "log_jacobian"] and request["preview"] is None
    np.testing.assert_allclose(request["moving_points"].positions[1], [-1, -2, 3])
    page.ui.applyButton.click()
    wait_until(slicer, lambda: not page.running, 5)


def test_continue_and_to_quality(slicer, pair):
    pair.node.live = False
    page, runner = apply(slicer, pair)
    finish(slicer, pair, page, runner)
    assert not page.ui.nextWidget.isHidden()
    page.ui.continueButton.click()
    assert page.running and len(runner.jobs) == 1, "a start is read in ticks before anything is sent"
    wait_until(slicer, lambda: len(runner.jobs) == 2, 5)
    initial = runner.jobs[-1].request["initial"]
    np.testing.assert_allclose(initial[0].matrix[0, 3], 1.5)
    assert len(initial) == 2, "the deformation is part of the start"
    page.ui.applyButton.click()
    wait_until(slicer, lambda: not page.running, 5)
    page.ui.nextWidget.visible = True
    page.ui.toQualityButton.click()
    assert not pair.buttons["quality"].collapsed and pair.buttons["register"].collapsed


def test_masks_and_structures_are_read_in_ticks(slicer, pair):
    """Apply answers at once; what stands in the way is said when it is read; Cancel and a closed scene stop the reading."""
    node = pair.node
    node.live = False
    node.fixedMask = segmentation(slicer, node.fixedVolume, "mask")
    node.fixedStructures, node.movingStructures = (segmentation(slicer, getattr(node, f"{side}Volume"), "parts") for side in ("fixed", "moving"))
    settle(slicer)
    page, runner = apply(slicer, pair)
    assert page.running and page.ui.applyButton.text == "Cancel" and not runner.jobs
    wait_until(slicer, lambda: runner.jobs, 5)
    request = runner.jobs[-1].request
    assert request["fixed_mask"].array.sum() == request["moving_labels"].array.sum() == 4 * 5 * 5
    finish(slicer, pair, page, runner)
    assert status(page).startswith("Registered in ")
    page.ui.applyButton.click()
    page.ui.applyButton.click()
    settle(slicer)
    assert len(runner.jobs) == 1 and not page.running and "the scene is as it was before" in status(page)
    slicer.util.updateVolumeFromArray(node.fixedVolume, slicer.util.arrayFromVolume(node.fixedVolume))
    labels = slicer.util.addVolumeFromArray(slicer.util.arrayFromVolume(node.fixedVolume) + 0.5, name="fractions",
                                            nodeClassName="vtkMRMLLabelMapVolumeNode")
    node.fixedStructures = labels
    settle(slicer)
    page.ui.applyButton.click()
    wait_until(slicer, lambda: not page.running, 5)
    assert "'fractions' is no label map" in status(page) and len(runner.jobs) == 1
    node.fixedMask, node.fixedStructures = segmentation(slicer, node.fixedVolume, "mask again"), node.movingStructures
    settle(slicer)
    page.ui.applyButton.click()
    slicer.mrmlScene.Clear(0)
    settle(slicer)
    assert not page.running and len(runner.jobs) == 1


@pytest.mark.parametrize("recorded", [False, True])
def test_live_view_is_undone(slicer, pair, recorded):
    pair.node.iterations = recorded
    before = names(slicer)
    page, runner = apply(slicer, pair)
    preview = runner.jobs[-1].request["preview"]
    wait_until(slicer, lambda: page.run.live is not None, 5)
    assert pair.node.movingVolume.GetParentTransformNode() is not None and preview["interval_s"] <= 0.1
    shape = preview["lattice"]["shape"]
    for step in range(3):
        runner.say("preview", vectors=np.full((*shape, 3), 0.1 * step, np.float32), grid=None, linear=np.eye(4),
                   log_jacobian=np.zeros(shape, np.float32))
        wait_until(slicer, lambda step=step: page.run.live.refreshes > step, 10)
    page.ui.applyButton.click()
    wait_until(slicer, lambda: not page.running, 5)
    settle(slicer)
    assert pair.node.movingVolume.GetParentTransformNode() is None
    assert [n for n in names(slicer) if "live" in n] == [n for n in before if "live" in n] == []
    assert "the scene is as it was before" in status(page)


def test_iterations_can_be_scrubbed_and_change_nothing_else(slicer, pair):
    pair.node.live, pair.node.iterations = False, True
    page, runner = apply(slicer, pair)
    shape = runner.jobs[-1].request["preview"]["lattice"]["shape"]
    for step in range(3):
        runner.say("preview", vectors=np.full((*shape, 3), 0.1 * step, np.float32), grid=None, linear=np.eye(4),
                   log_jacobian=np.zeros(shape, np.float32), step=step)
    finish(slicer, pair, page, runner)
    roles = records.roles_of(pair.node.result)
    assert roles["browser"].GetNumberOfItems() == 3 and "iterations" in status(page)
    assert roles["iterations_volume"].GetParentTransformNode() is roles["iterations_linear"]
    assert pair.node.movingVolume.GetParentTransformNode() is None
    page, runner = apply(slicer, pair)
    assert page.running, status(page)
    page.ui.applyButton.click()
    wait_until(slicer, lambda: not page.running, 5)
    assert all(job.discarded for job in runner.jobs), "neither images nor results of a run that has ended are kept"


# --------------------------------------------------------------------------------------------------- errors and bad use


@pytest.mark.parametrize("kind, offers", [("memory", ["half_resolution", "cpu"]), ("crash", ["half_resolution"]), ("input", [])])
def test_failures_and_offers(slicer, pair, kind, offers):
    pair.node.live = False
    page, runner = apply(slicer, pair)
    runner.say("failed", kind=kind, message="what happened, in one sentence", offers=offers)
    wait_until(slicer, lambda: not page.running, 5)
    assert status(page) == "what happened, in one sentence" and page.ui.nextWidget.isHidden()
    shown = {name for name, button in (("half_resolution", page.ui.halfResolutionButton), ("cpu", page.ui.cpuButton))
             if not page.ui.offersWidget.isHidden() and not button.isHidden()}
    assert shown == set(offers)
    for offer in offers:
        (page.ui.halfResolutionButton if offer == "half_resolution" else page.ui.cpuButton).click()
        request = runner.jobs[-1].request
        assert request.get("coarsen") == 2.0 if offer == "half_resolution" else request["device"] == "cpu"
        page.ui.applyButton.click()
        wait_until(slicer, lambda: not page.running, 5)


def test_disk_full_and_other_refusals(slicer, pair):
    page, runner = pair.page("register"), pair.logic._runner
    for refusal in (InputError("the disk is full; free some space"), OSError(errno.ENOSPC, "No space left on device")):
        runner.refuses = refusal
        page.ui.applyButton.click()
        settle(slicer)
        assert str(refusal) in status(page) and page.ui.applyButton.text == "Apply" and page.ui.applyButton.enabled
        assert not [name for name in names(slicer) if "live" in name] and pair.node.movingVolume.GetParentTransformNode() is None


def test_volume_under_a_nonlinear_transform(slicer, pair):
    import vtk

    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "bent")
    spline = vtk.vtkThinPlateSplineTransform()
    spline.SetBasisToR()
    points = [vtk.vtkPoints(), vtk.vtkPoints()]
    for k, p in enumerate([(0, 0, 0), (9, 0, 0), (0, 9, 0), (0, 0, 9), (9, 9, 9)]):
        points[0].InsertNextPoint(p)
        points[1].InsertNextPoint([v + 0.3 * k for v in p])
    spline.SetSourceLandmarks(points[0])
    spline.SetTargetLandmarks(points[1])
    transform.SetAndObserveTransformFromParent(spline)
    pair.node.movingVolume.SetAndObserveTransformNodeID(transform.GetID())
    page, runner = apply(slicer, pair)
    assert "'moving' is under the non-linear transform 'bent'" in status(page) and not runner.jobs and not page.running


def test_color_image(slicer, pair):
    photo = volume(slicer, "photo", channels=3)
    slicer.util.updateVolumeFromArray(photo, slicer.util.arrayFromVolume(photo).astype(np.uint8))
    turned = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "turned")
    turned.SetMatrixTransformToParent(mrml.vtk_matrix([[0, -1, 0, 5], [1, 0, 0, 2], [0, 0, 1, 0], [0, 0, 0, 1]]))
    photo.SetAndObserveTransformNodeID(turned.GetID())
    pair.node.movingVolume = photo
    settle(slicer)
    page, _ = apply(slicer, pair)
    assert "'photo' is a color picture" in page.ui.missingLabel.text and not page.ui.applyButton.enabled and not page.ui.grayButton.isHidden()
    page.ui.grayButton.click()
    settle(slicer)
    gray = pair.node.movingVolume
    assert gray.GetName() == "photo gray" and page.ui.grayButton.isHidden() and page.ui.applyButton.enabled
    assert np.allclose(slicer.util.arrayFromVolume(gray), slicer.util.arrayFromVolume(photo) @ [0.299, 0.587, 0.114], atol=1e-3)
    placed = [mrml.grid_of(node).affine for node in (gray, photo)]
    assert np.array_equal(*placed) and gray.GetTransformNodeID() == photo.GetTransformNodeID()


@pytest.mark.parametrize("live", [False, True])
def test_node_deleted_during_the_run(slicer, pair, live):
    pair.node.live = live
    page, runner = apply(slicer, pair)
    slicer.mrmlScene.RemoveNode(pair.node.movingVolume)
    wait_until(slicer, lambda: not page.running, 5)
    settle(slicer)
    assert "'moving' was deleted during the registration" in status(page) and runner.jobs[-1].cancelled
    assert page.ui.missingLabel.text == "Choose a moving volume." and not [n for n in names(slicer) if "live" in n]
    pair.node.movingVolume = volume(slicer, "another")
    settle(slicer)
    assert page.ui.applyButton.enabled


@pytest.mark.parametrize("live", [False, True])
def test_scene_closed_during_the_run(slicer, pair, live):
    pair.node.live = live
    page, runner = apply(slicer, pair)
    slicer.mrmlScene.Clear(0)
    settle(slicer)
    assert not page.running and runner.jobs[-1].cancelled and page.ui.applyButton.text == "Apply"
    pair.node.fixedVolume, pair.node.movingVolume = volume(slicer, "a"), volume(slicer, "b")
    pair.node.live = False
    settle(slicer)
    page, runner = apply(slicer, pair)
    finish(slicer, pair, page, runner)
    assert status(page).startswith("Registered")


def test_module_left_and_closed_during_the_run(slicer, pair):
    page, runner = apply(slicer, pair)
    pair.leave()
    assert page.running, "a run goes on while another module is shown"
    pair.cleanup()
    assert not page.running and runner.stopped and runner.jobs[-1].cancelled


# ------------------------------------------------------------------------------------------------------ the real worker


@pytest.fixture(scope="module")
def worker():
    """One worker process for all tests that compute."""
    with WorkerRunner() as runner:
        yield runner


@pytest.fixture
def working(slicer, panel, worker):
    """The panel with a pair of volumes and the worker, which outlives it."""
    panel.logic._runner = worker
    panel.node.fixedVolume, panel.node.movingVolume = (volume(slicer, name, (32, 32, 32), shift) for shift, name in enumerate(("fixed", "moving")))
    panel.node.method, panel.node.values = "instance-optimisation:fast", json.dumps({"iterations": [30, 20, 10, 0]})
    settle(slicer)
    yield panel
    panel.logic.cancel_all("the test has ended")
    panel.logic._runner = None


def busy_machine():
    return os.getloadavg()[0] > os.cpu_count()


def test_worker_runs_cancels_and_survives(slicer, working):
    """A result, live refreshes, no long tick, Cancel within half a second, a killed worker, half resolution as offered."""
    page = working.page("register")
    working.logic.warm_up()
    working.wake()
    wait_until(slicer, lambda: working.logic.hello is not None and not working.timer.active, 120)
    assert "GB free" in page.ui.deviceLabel.text and working.logic.runner.jobs == []
    page.ui.applyButton.click()
    wait_until(slicer, lambda: not page.running, 120)
    assert status(page).startswith("Registered in "), status(page)
    assert page.run.live.refreshes >= 2
    assert 0 < working.longest_tick < 0.1, f"a tick took {working.longest_tick:.3f} s of the GUI thread"
    assert "PyTorch" in page.ui.deviceLabel.text and "CPU" in page.ui.deviceLabel.text
    quick, working.node.values = working.node.values, json.dumps({"iterations": [5000, 5000, 5000, 5000], "tolerance": 0.0})
    settle(slicer)
    page.ui.applyButton.click()
    wait_until(slicer, lambda: "level" in page.ui.stageLabel.text.lower(), 60)
    page.ui.applyButton.click()
    took = wait_until(slicer, lambda: not page.running, 5)
    assert took < 0.5 or busy_machine(), f"Cancel took {took:.2f} s"
    page.ui.applyButton.click()
    wait_until(slicer, lambda: "level" in page.ui.stageLabel.text.lower(), 60)
    os.kill(working.logic.runner.process_id, signal.SIGKILL)
    wait_until(slicer, lambda: not page.running, 10)
    assert "memory" in status(page) and not page.ui.halfResolutionButton.isHidden()
    assert working.node.movingVolume.GetParentTransformNode() is None
    page.run.choices = page.run.choices.with_(values=json.loads(quick))
    page.ui.halfResolutionButton.click()
    wait_until(slicer, lambda: not page.running, 120)
    assert status(page).startswith("Registered in "), status(page)
    assert slicer.util.arrayFromVolume(records.roles_of(working.node.result)["warped"]).shape == (32, 32, 32)


def test_scene_closed_while_the_worker_computes(slicer, working):
    working.node.values = json.dumps({"iterations": [5000, 5000, 5000, 5000], "tolerance": 0.0})
    settle(slicer)
    page, runner = working.page("register"), working.logic.runner
    page.ui.applyButton.click()
    wait_until(slicer, lambda: "level" in page.ui.stageLabel.text.lower(), 60)
    slicer.mrmlScene.Clear(0)
    assert not page.running and page.ui.applyButton.text == "Apply"
    took = wait_until(slicer, lambda: not runner.busy, 5)
    assert took < 0.5 or busy_machine(), f"the job went on for {took:.2f} s"
    assert runner.jobs == [] and not list(runner.folder.glob("job-*"))


def test_landmarks_pull_the_result(slicer, working):
    """Two images that agree already, and landmarks that say that they are 2 mm apart."""
    slicer.util.updateVolumeFromArray(working.node.movingVolume, slicer.util.arrayFromVolume(working.node.fixedVolume))
    points = np.array([(10, 10, 12), (20, 12, 14), (12, 20, 18), (22, 22, 16), (16, 16, 22)], float)
    working.node.live = False
    for side, shift in (("fixed", 0), ("moving", 2.0)):
        setattr(working.node, f"{side}Landmarks", landmarks(slicer, side, points + [shift, 0, 0]))
    settle(slicer)
    page = working.page("register")
    page.ui.applyButton.click()
    wait_until(slicer, lambda: not page.running, 120)
    assert status(page).startswith("Registered in "), status(page)
    figures = {row["name"]: row for row in records.figures_of(working.node.result)["rows"]}
    assert figures["TRE, mean"]["before"] == pytest.approx(2.0, abs=1e-3) and figures["TRE, mean"]["value"] < 1.2
