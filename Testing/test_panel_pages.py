"""Transfer, Quality control, Compare and Batch by clicks."""

import json

import numpy as np
import pytest

pytest.importorskip("PySide6")
pytest.importorskip("slicer")

from panels import (  # noqa: E402, F401
    answer, application, check, choose, landmarks, module_panel, no_slot_errors, pair,
    panel, register, scene, segmentation, settle, slicer, status, volume, wait_until)

from DeepRegistrationUI import records  # noqa: E402


@pytest.fixture
def registered(slicer, pair):
    """The panel after one registration, computed by script."""
    return register(slicer, pair)


# ------------------------------------------------------------------------------------------------------------ transfer


def test_transfer_says_what_is_missing(slicer, pair):
    pair.open("transfer")
    page = pair.page("transfer")
    assert "Choose a registration" in page.ui.transferMissingLabel.text and not page.ui.transferButton.enabled


def test_transfer_of_landmarks(slicer, registered):
    points = landmarks(slicer, "nodules", [(4.5, 5.0, 5.0)])
    registered.open("transfer")
    page = registered.page("transfer")
    settle(slicer)
    assert page.ui.transferMissingLabel.text == "Check at least one node in the list."
    check(page, points)
    page.ui.transferButton.click()
    wait_until(slicer, lambda: page.work is None, 10)
    assert "Carried 1" in status(page)
    copies = [n for n in slicer.util.getNodesByClass("vtkMRMLMarkupsFiducialNode") if n is not points]
    assert len(copies) == 1
    assert copies[0].GetNthControlPointPositionWorld(0)[0] == pytest.approx(4.5 + 1.5, abs=0.05)
    registered.node.transferCarry = type(registered.node.transferCarry).LIVE
    settle(slicer)
    page.ui.transferButton.click()
    assert points.GetParentTransformNode() is not None and not page.ui.referenceSelector.enabled
    page.ui.releaseButton.click()
    assert points.GetParentTransformNode() is None


# ------------------------------------------------------------------------------------------------------------- quality


def test_every_display_can_be_shown_and_removed(slicer, registered):
    page = registered.page("quality")
    registered.open("quality")
    settle(slicer)
    ui = page.ui
    before = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")
    for mode in ("blend", "checkerboard", "difference", "absolute", "inverse", "flicker", "fade", ""):
        choose(ui.modeBox, mode)
        assert status(page) == "", mode
        assert ui.blendSlider.enabled == (mode == "blend") and page.flicker.active == (mode in ("flicker", "fade"))
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") > before
    for kind in ("grid", "arrows", "contours", ""):
        choose(ui.deformationBox, kind)
        display = records.roles_of(registered.node.result)["deformation"].GetDisplayNode()
        assert bool(display.GetVisibility2D() and display.GetVisibility()) == bool(kind)
    ui.logJacobianMapBox.click()
    ui.foldsMapBox.click()
    assert "No voxel folds" in status(page)
    ui.clearButton.click()
    settle(slicer)
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == before and not ui.foldsMapBox.checked


def test_flicker_and_fade_change_the_views(slicer, registered):
    """Flicker shows one image and then the other; fading goes there and back in small steps."""
    page, composite = registered.page("quality"), slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode()
    registered.open("quality")
    settle(slicer)

    def opacities(count):
        seen = []
        for _ in range(count):
            page.flick()
            seen.append(composite.GetForegroundOpacity())
        return np.array(seen)

    choose(page.ui.modeBox, "flicker")
    assert page.flicker.interval == 600 and set(opacities(4)) == {0.0, 1.0}
    choose(page.ui.modeBox, "fade")
    seen = opacities(25)
    assert page.flicker.interval == 100 and seen.min() < 0.01 and seen.max() > 0.99 and np.abs(np.diff(seen)).max() < 0.15
    page.ui.clearButton.click()
    assert not page.flicker.active


def test_flicker_ends_with_its_volume_and_with_the_module(slicer, registered):
    page = registered.page("quality")
    registered.open("quality")
    settle(slicer)
    choose(page.ui.modeBox, "flicker")
    registered.leave()
    assert not page.flicker.active and page.chosen(page.ui.modeBox) == "", "it can be chosen again"
    choose(page.ui.modeBox, "flicker")
    page.flicker.interval = 5
    slicer.mrmlScene.RemoveNode(registered.node.fixedVolume)
    wait_until(slicer, lambda: not page.flicker.active, 5)
    assert "the fixed volume of this registration was deleted" in status(page) and page.chosen(page.ui.modeBox) == ""


def test_structures_and_landmarks(slicer, registered):
    page, node = registered.page("quality"), registered.node
    registered.open("quality")
    settle(slicer)
    choose(page.ui.contoursBox, "after")
    assert "contours need a segmentation of both volumes" in status(page)
    page.ui.distancesBox.click()
    assert "distances need landmarks of both volumes" in status(page)
    node.qualityFixedStructures = segmentation(slicer, node.fixedVolume, "F")
    node.qualityMovingStructures = segmentation(slicer, node.movingVolume, "M", shift=1)
    node.qualityFixedLandmarks, node.qualityMovingLandmarks = (landmarks(slicer, side, [(4, 5, 5), (6, 6, 6)]) for side in "FM")
    settle(slicer)
    choose(page.ui.contoursBox, "before")
    assert status(page) == ""
    page.ui.distancesBox.click()
    page.ui.distancesBox.click()
    assert status(page) == "" and page.ui.metricsTable.rowCount >= 2


def test_a_display_that_cannot_be_shown_can_be_chosen_again(slicer, registered):
    """The control goes back to nothing, so that the same choice works once what was missing is there."""
    node, page = registered.node, registered.page("quality")
    registered.open("quality")
    settle(slicer)
    choose(page.ui.contoursBox, "after")
    assert "choose the fixed and the moving structures" in status(page) and page.chosen(page.ui.contoursBox) == ""
    node.qualityFixedStructures, node.qualityMovingStructures = (segmentation(slicer, getattr(node, f"{side}Volume"), side) for side in ("fixed", "moving"))
    settle(slicer)
    choose(page.ui.contoursBox, "after")
    assert status(page) == "" and len(page.quality.made["contours"]) == 2
    slicer.mrmlScene.RemoveNode(records.roles_of(node.result)["log_jacobian"])
    page.ui.logJacobianMapBox.click()
    assert "run it again with that output" in status(page) and not page.ui.logJacobianMapBox.checked


def test_evaluate_fills_the_table(slicer, registered, tmp_path, monkeypatch):
    import qt

    page, runner = registered.page("quality"), registered.logic._runner
    registered.open("quality")
    settle(slicer)
    assert page.ui.metricsTable.rowCount == 2, "the figures of the run are there"
    page.ui.evaluateButton.click()
    wait_until(slicer, lambda: len(runner.jobs) == 2, 5)
    assert page.ui.evaluateButton.text == "Cancel" and runner.jobs[-1].request["command"] == "evaluate"
    rows = [{"name": "Dice", "structure": "box", "unit": "0 to 1", "before": 0.4, "value": 0.8}]
    runner.say("done", result={"rows": rows})
    wait_until(slicer, lambda: page.evaluation is None, 5)
    assert page.ui.metricsTable.rowCount == 1 and page.ui.metricsTable.item(0, 0).text() == "Dice, box" and page.ui.evaluateButton.text == "Evaluate"
    path = tmp_path / "figures.csv"
    monkeypatch.setattr(qt.QFileDialog, "getSaveFileName", staticmethod(lambda *a: str(path)))
    page.ui.csvButton.click()
    assert "Dice" in path.read_text("utf-8-sig") and str(path) in status(page)
    page.ui.reportButton.click()
    wait_until(slicer, lambda: len(runner.jobs) == 3, 5)
    assert runner.jobs[-1].request["command"] == "report" and runner.jobs[-1].request["path"] == str(path)
    runner.say("failed", kind="disk", message="the disk is full", offers=[])
    wait_until(slicer, lambda: page.evaluation is None, 5)
    assert status(page) == "the disk is full"


def test_report_and_file_names(slicer, registered, tmp_path, monkeypatch):
    """One report at a time, which Cancel ends; names of files get their ending."""
    import qt

    page, runner = registered.page("quality"), registered.logic._runner
    registered.open("quality")
    settle(slicer)
    monkeypatch.setattr(qt.QFileDialog, "getSaveFileName", lambda *arguments: str(tmp_path / "Tabelle 1.5"))
    page.ui.csvButton.click()
    page.ui.csvButton.click()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Tabelle 1.5", "Tabelle 1.5.csv"], "nothing is written over unasked"
    page.ui.reportButton.click()
    wait_until(slicer, lambda: runner.jobs[-1].request["command"] == "report", 5)
    assert runner.jobs[-1].request["path"].endswith("Tabelle 1.5.html")
    assert page.ui.evaluateButton.text == "Cancel" and not page.ui.reportButton.enabled
    page.ui.evaluateButton.click()
    wait_until(slicer, lambda: page.evaluation is None, 5)
    assert page.ui.evaluateButton.text == "Evaluate" and page.ui.reportButton.enabled


def test_deleted_volumes_are_named(slicer, registered):
    page = registered.page("quality")
    slicer.mrmlScene.RemoveNode(registered.node.movingVolume)
    registered.open("quality")
    settle(slicer)
    choose(page.ui.modeBox, "blend")
    assert "moving volume of this registration was deleted" in status(page)
    page.ui.evaluateButton.click()
    assert "moving volume of this registration was deleted" in status(page) and page.evaluation is None


@pytest.mark.parametrize("shift, told", [(2, True), (5, False)])
def test_segments_that_overlap_are_told(slicer, registered, shift, told):
    """A label map holds one of them a voxel, so the Dice of the other one is not that of the whole segment."""
    node, page, runner = registered.node, registered.page("quality"), registered.logic._runner
    node.qualityFixedStructures, node.qualityMovingStructures = (segmentation(slicer, node.fixedVolume, name) for name in ("model", "organ"))
    other = segmentation(slicer, node.fixedVolume, "other", shift)
    node.qualityMovingStructures.GetSegmentation().CopySegmentFromSegmentation(other.GetSegmentation(), other.GetSegmentation().GetNthSegmentID(0))
    registered.open("quality")
    settle(slicer)
    page.ui.evaluateButton.click()
    wait_until(slicer, lambda: runner.jobs[-1].request["command"] == "evaluate", 5)
    runner.say("done", result={"rows": answer({**runner.jobs[-1].request, "outputs": []})["metrics"]})
    wait_until(slicer, lambda: page.evaluation is None, 5)
    assert ("segments of 'organ' overlap in 60 voxels, which count for the later segment alone" in status(page)) == told
    assert "'model' overlap" not in status(page)


# ------------------------------------------------------------------------------------------------------------- compare


def test_compare_two_registrations(slicer, registered):
    registered.open("compare")
    page = registered.page("compare")
    settle(slicer)
    assert page.ui.compareMissingLabel.text == "Choose two registrations."
    registered.open("register")
    register(slicer, registered, "second")
    registered.open("compare")
    settle(slicer)
    first, second = records.all_records(slicer.mrmlScene)
    assert (registered.node.compareFirst, registered.node.compareSecond) == (first, second) and page.ui.compareButton.enabled
    registered.node.compareFirst = registered.node.compareSecond = first
    settle(slicer)
    assert "chosen twice" in page.ui.compareMissingLabel.text
    registered.node.compareSecond = second
    settle(slicer)
    assert page.ui.compareButton.enabled and page.ui.compareTable.rowCount == 2
    page.ui.compareButton.click()
    assert status(page) == "" and page.ui.backButton.enabled
    page.ui.backButton.click()
    assert not page.ui.backButton.enabled


# --------------------------------------------------------------------------------------------------------------- batch


def test_batch_of_nodes(slicer, pair, tmp_path):
    """Three pairs; the second one fails and the rest goes on; a folder for each; Retry does the second one again."""
    runner = pair.logic._runner
    pair.open("batch")
    page, ui = pair.page("batch"), pair.page("batch").ui
    settle(slicer)
    assert ui.batchMissingLabel.text == "Add at least one pair."
    volumes = [pair.node.fixedVolume, pair.node.movingVolume, volume(slicer, "third", shift=2)]
    for moving in (volumes[1], volumes[2], volumes[1]):
        ui.batchFixedSelector.setCurrentNode(volumes[0])
        ui.batchMovingSelector.setCurrentNode(moving)
        ui.addPairButton.click()
    assert [row["id"] for row in page.rows] == ["moving-to-fixed", "third-to-fixed", "moving-to-fixed-2"]
    assert not ui.batchButton.enabled
    pair.node.batchToScene = True
    settle(slicer)
    ui.batchButton.click()
    for k in range(3):
        wait_until(slicer, lambda k=k: len(runner.jobs) == k + 1, 10)
        assert page.rows[k]["status"] == "running"
        if k == 1:
            runner.say("failed", kind="input", message="the fields of view do not overlap", offers=[])
        else:
            runner.say("done", result=answer(runner.jobs[-1].request))
    wait_until(slicer, lambda: not page.work.running, 20)
    settle(slicer)
    assert [row["status"] for row in page.rows] == ["done", "failed", "done"]
    assert "2 of 3 pairs registered, 1 failed" in status(page) and ui.pairsTable.item(1, 3).text() == "the fields of view do not overlap"
    assert not ui.batchButton.enabled and "No pair is waiting" in ui.batchMissingLabel.text
    assert ui.pairsTable.item(0, 3).text() == "similarity 0.50 to 0.90, folds 0 %"
    ui.pairsTable.selectRow(1)
    ui.retryPairsButton.click()
    assert page.rows[1]["status"] == "waiting" and ui.batchButton.enabled
    ui.batchButton.click()
    wait_until(slicer, lambda: len(runner.jobs) == 4, 10)
    ui.batchButton.click()
    settle(slicer)
    assert page.rows[1]["status"] == "cancelled" and "Run goes on" in status(page)
    ui.pairsTable.selectRow(2)
    ui.removePairsButton.click()
    assert len(json.loads(pair.node.batchPairs)) == 2


def test_results_of_another_patient_are_spared(slicer, pair, tmp_path):
    """The next patient's volumes are called as the ones before and go to the same folder; a retry of a pair writes over its own results only."""
    page, runner = pair.page("batch"), pair.logic._runner

    def registers_a_pair() -> list[str]:
        wait_until(slicer, lambda: runner.jobs or not page.work.running, 5)
        runner.say("done", result=answer(runner.jobs[-1].request))
        runner.jobs.clear()
        wait_until(slicer, lambda: not page.work.running, 10)
        assert page.rows[0]["status"] == "done", page.rows
        return [page.rows[0]["id"], *sorted(path.name for path in tmp_path.iterdir())]

    for expected in (["moving-to-fixed", "moving-to-fixed"], ["moving-to-fixed-2", "moving-to-fixed", "moving-to-fixed-2"]):
        pair.node.batchFolder = str(tmp_path)
        pair.open("batch")
        page.ui.batchFixedSelector.setCurrentNode(volume(slicer, "fixed"))
        page.ui.batchMovingSelector.setCurrentNode(volume(slicer, "moving", shift=1))
        settle(slicer)
        page.ui.addPairButton.click()
        page.ui.batchButton.click()
        assert registers_a_pair() == expected
        page.ui.pairsTable.selectRow(0)
        page.ui.retryPairsButton.click()
        page.ui.batchButton.click()
        assert registers_a_pair() == expected
        slicer.mrmlScene.Clear(0)
        settle(slicer)


def test_a_scene_closed_during_a_batch(slicer, pair, tmp_path):
    page, pair.node.batchFolder = pair.page("batch"), str(tmp_path)
    pair.open("batch")
    page.ui.batchFixedSelector.setCurrentNode(pair.node.fixedVolume)
    page.ui.batchMovingSelector.setCurrentNode(pair.node.movingVolume)
    settle(slicer)
    page.ui.addPairButton.click()
    page.ui.batchButton.click()
    settle(slicer)
    slicer.mrmlScene.Clear(0)
    settle(slicer)
    assert status(page) == "Stopped because the scene was closed." and page.rows == [] and page.ui.batchButton.text == "Run"
    slicer.mrmlScene.Clear(0)
    assert status(page) == "", "what was said of a scene ends with it"


def test_batch_writes_folders_and_is_kept_in_the_scene(slicer, pair, tmp_path):
    pair.open("batch")
    page, runner = pair.page("batch"), pair.logic._runner
    page.ui.batchFixedSelector.setCurrentNode(pair.node.fixedVolume)
    page.ui.batchMovingSelector.setCurrentNode(pair.node.movingVolume)
    page.ui.addPairButton.click()
    page.ui.batchFolderEdit.currentPath = str(tmp_path / "out")
    settle(slicer)
    page.ui.batchButton.click()
    wait_until(slicer, lambda: runner.jobs, 10)
    runner.say("done", result=answer(runner.jobs[-1].request))
    wait_until(slicer, lambda: not page.work.running, 20)
    written = {path.name for path in (tmp_path / "out" / "moving-to-fixed").iterdir()}
    assert {"transform.h5", "inverse.h5", "warped.nii.gz", "affine.tfm", "result.json"} <= written, status(page)
    assert records.all_records(slicer.mrmlScene) == [], "the nodes of the pair are not wanted in the scene"
    again = pair.logic.getParameterNode()
    assert json.loads(again.batchPairs)[0]["status"] == "done" and again.batchFolder == str(tmp_path / "out")


@pytest.mark.parametrize("text, expected", [("fixed,moving\na.nrrd,\n", "'moving' is empty"), ("fixed,moveing\na,b\n", "did you mean 'moving'"),
                                            ("[]", "names no pairs")])
def test_lists_that_cannot_be_used(slicer, pair, tmp_path, monkeypatch, text, expected):
    import qt

    path = tmp_path / ("list.json" if text.startswith("[") else "list.csv")
    path.write_text(text, "utf-8")
    monkeypatch.setattr(qt.QFileDialog, "getOpenFileName", staticmethod(lambda *a: str(path)))
    pair.open("batch")
    page = pair.page("batch")
    page.ui.addManifestButton.click()
    assert expected in status(page) and page.rows == []


def test_a_start_that_fits_one_pair_only_is_refused(slicer, pair):
    pair.node.start = type(pair.node.start).LANDMARKS
    pair.open("batch")
    page = pair.page("batch")
    page.ui.batchFixedSelector.setCurrentNode(pair.node.fixedVolume)
    page.ui.batchMovingSelector.setCurrentNode(pair.node.movingVolume)
    page.ui.addPairButton.click()
    pair.node.batchToScene = True
    settle(slicer)
    page.ui.batchButton.click()
    assert "fit one pair only" in status(page) and page.work is None


def test_a_list_of_files_needs_a_folder(slicer, pair, tmp_path, monkeypatch):
    import qt

    path = tmp_path / "list.csv"
    path.write_text("id,fixed,moving\none,a.nrrd,b.nrrd\n", "utf-8")
    monkeypatch.setattr(qt.QFileDialog, "getOpenFileName", staticmethod(lambda *a: str(path)))
    pair.open("batch")
    page = pair.page("batch")
    page.ui.addManifestButton.click()
    settle(slicer)
    assert page.rows[0]["kind"] == "files" and page.ui.batchMissingLabel.text == "Choose a folder for the results."
    page.ui.addManifestButton.click()
    assert "'one' is in the table already" in status(page)
