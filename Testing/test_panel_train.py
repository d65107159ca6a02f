"""The Train page by clicks: what it asks for, a run followed by script, a real run in the worker, stopped and gone on with; its layout."""

import json
import time

import cohorts
import numpy as np
import pytest
import torch

pytest.importorskip("PySide6")
pytest.importorskip("slicer")

from panels import (  # noqa: E402, F401
    application, check_fits, choose, module_panel, no_slot_errors, pair, panel, scene, segmentation, settle, show, slicer, status, volume, wait_until)

from DeepRegistrationLib.commands import jobs_train, train  # noqa: E402
from DeepRegistrationLib.exchange import LabelMap, Volume  # noqa: E402
from DeepRegistrationLib.geometry import Grid  # noqa: E402
from DeepRegistrationLib.io import read_image, read_labels  # noqa: E402
from DeepRegistrationLib.train.record import Record, rows  # noqa: E402
from DeepRegistrationUI import training  # noqa: E402


@pytest.fixture
def page(slicer, pair):
    pair.open("train")
    settle(slicer)
    return pair.page("train")


def test_the_panel_knows_the_recipes_as_they_are():
    assert json.loads(training.FILE.read_text("utf-8")) == train.catalogue(), "python run.py train list --json > " + str(training.FILE)


def test_it_says_what_is_missing(slicer, page, tmp_path):
    assert page.ui.trainMissingLabel.text == "Choose a folder with images or a list." and not page.ui.trainButton.enabled
    page.ui.trainDataEdit.currentPath = str(tmp_path)
    settle(slicer)
    assert page.node.trainData == str(tmp_path) and page.ui.trainMissingLabel.text == "Choose a folder for the run."
    page.ui.trainFolderEdit.currentPath = str(tmp_path / "run")
    settle(slicer)
    assert page.ui.trainButton.enabled and page.ui.trainButton.text == "Train" and page.ui.trainDimBox.isHidden()
    choose(page.ui.sourceBox, "scene")
    settle(slicer)
    assert page.ui.trainMissingLabel.text == "Check at least two volumes." and page.ui.trainNodesList.count == 2
    choose(page.ui.recipeBox, "general")
    settle(slicer)
    assert not page.ui.trainDimBox.isHidden() and page.ui.sourceBox.isHidden() and page.ui.trainAdvancedBox.isHidden() and page.ui.trainButton.enabled


def test_parameters_are_kept_where_they_differ(slicer, page):
    page.ui.trainAdvancedBox.collapsed = False
    page.form.entries["width"].setValue(24)
    settle(slicer)
    assert json.loads(page.node.trainValues) == {"width": 24} and page.ui.trainResetButton.enabled
    page.ui.trainResetButton.click()
    settle(slicer)
    assert page.node.trainValues == "{}" and page.form.entries["width"].value == 16


def started(slicer, page, tmp_path, **choices):
    for name, value in {"trainData": str(tmp_path), "trainFolder": str(tmp_path / "run"), "trainSteps": 40, **choices}.items():
        setattr(page.node, name, value)
    settle(slicer)
    page.ui.trainButton.click()
    return page.logic._runner


def test_a_run_is_followed(slicer, page, tmp_path):
    """Curves and the newest picture are shown; the end says how good it was; 'Use in Register' chooses method and weights."""
    runner = started(slicer, page, tmp_path)
    request = runner.jobs[-1].request
    assert request == {"command": "train", "recipe": "unet", "values": {}, "steps": 40, "seed": 0, "out": str(tmp_path / "run"), "device": "auto", "threads": 0,
                       "data": str(tmp_path), "patience_s": training.PATIENCE}
    assert page.ui.trainButton.text == "Stop" and not page.ui.trainProgressBar.isHidden() and not page.ui.trainForm.enabled
    for step in range(20):
        runner.say("log", cost=1.0 / (step + 1), rate=1e-3)
    runner.say("progress", share=0.5, text="training", step=20, steps=40, seconds_left=61.0)
    (tmp_path / "run").mkdir()
    Record(tmp_path / "run").add_picture(20, read_png())
    runner.say("log", validation_score=0.7, validation_dice=0.7)
    wait_until(slicer, lambda: not page.ui.trainPictureLabel.isHidden(), 5)
    assert page.ui.trainStageLabel.text == "Training, step 20, 1 min 01 s left" and page.ui.trainProgressBar.value == 500
    assert page.work.costs.points[-1] == (20, 0.05) and page.work.scores.points == [(20, 0.7)]
    assert page.ui.trainCurvesLabel.pixmap.width() == 340 == page.ui.trainPictureLabel.pixmap.width()
    weights = tmp_path / "run" / "run.safetensors"
    (tmp_path / "run" / "order.json").write_text("{}")
    (tmp_path / "run" / "summary.json").write_text(json.dumps({"ended": "done", "weights": str(weights)}))
    runner.say("done", result={"summary": {"steps": 40, "validation": {"dice": 0.71234, "score": 0.7}, "remarks": ["a.nii is damaged"]}})
    wait_until(slicer, lambda: not page.running, 5)
    assert status(page) == "40 steps are done; mean Dice of validation 0.712; set aside: a.nii is damaged"
    assert training.told({"steps": 20, "ordered": 40}) == "20 of 40 steps are done, no validation was better for a while."
    assert "is done; choose another folder" in page.ui.trainMissingLabel.text and not page.ui.trainButton.enabled
    page.ui.trainUseButton.click()
    assert page.node.method == "voxelmorph-unet:default" and json.loads(page.node.values) == {"weights": str(weights)}
    assert not page.panel.buttons["register"].collapsed


def read_png() -> bytes:
    """A small picture, as the worker makes them."""
    from DeepRegistrationLib.evaluate.report import overlay_picture
    from DeepRegistrationLib.image import Image

    grid = Grid.from_parts((8, 8))
    image = Image(torch.rand(1, 1, 8, 8), grid)
    return overlay_picture(image, image, image)


def test_a_failure_is_one_sentence_and_a_registration_may_follow(slicer, page, tmp_path):
    runner = started(slicer, page, tmp_path)
    runner.say("failed", kind="input", message="2D and 3D images are mixed", offers=[])
    wait_until(slicer, lambda: not page.running, 5)
    assert status(page) == "2D and 3D images are mixed" and page.ui.trainUseButton.isHidden() and page.ui.trainForm.enabled


def test_stop_and_go_on(slicer, page, tmp_path):
    """Stop asks once and waits; the folder then holds a run and the button says so; going on shows the curves so far."""
    runner = started(slicer, page, tmp_path)
    runner.say("log", cost=1.0)
    wait_until(slicer, lambda: page.work.step == 1, 5)
    page.ui.trainButton.click()
    assert runner.jobs[-1].cancelled and not page.ui.trainButton.enabled and page.ui.trainStageLabel.text == "Stopping after this step"
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "order.json").write_text(json.dumps({"recipe": "general"}))
    Record(folder).add(step=1, cost=1.0)
    Record(folder, 1).add_validation(step=1, score=0.3)
    wait_until(slicer, lambda: not page.running, 5)
    assert "stopped after 1 steps" in status(page) and page.ui.trainButton.text == "Go on" and page.ui.trainButton.enabled
    page.ui.trainButton.click()
    request = runner.jobs[-1].request
    assert request["resume"] and request["recipe"] == "general" and "data" not in request
    assert page.work.costs.points == [(1.0, 1.0)] and page.work.scores.points == [(1.0, 0.3)] and page.work.step == 1
    page.work.abandon("closed")
    assert not page.running


def test_volumes_of_the_scene_are_sent_with_their_segmentations(slicer, page, tmp_path):
    import qt

    segmentation(slicer, page.node.fixedVolume, "organs")
    choose(page.ui.sourceBox, "scene")
    for k in range(page.ui.trainNodesList.count):
        page.ui.trainNodesList.item(k).setCheckState(qt.Qt.Checked)
    runner = started(slicer, page, tmp_path)
    request = runner.jobs[-1].request
    assert [image.name for image in request["images"]] == ["fixed", "moving"] and "data" not in request
    assert request["labels"][0].names == ((1, "box"),) and request["labels"][1] is None
    runner.say("failed", kind="input", message="enough", offers=[])
    wait_until(slicer, lambda: not page.running, 5)


def test_images_of_the_scene_become_files_with_common_labels(tmp_path):
    grid = Grid.from_parts((4, 5, 6), (1, 2, 3), (7, 8, 9))
    images = [Volume(np.random.default_rng(k).random((4, 5, 6)).astype(np.float32), grid, f"v{k}") for k in range(2)]
    array = np.zeros((4, 5, 6), np.uint8)
    array[1], array[2] = 1, 2
    labels = [LabelMap(array, grid, ((1, "liver"), (2, "spleen")), "a"), LabelMap(array, grid, ((1, "spleen"), (2, "kidney")), "b")]
    listed = json.loads(jobs_train.write_images(images, labels, tmp_path / "images").read_text())
    made = [read_labels(tmp_path / "images" / row["labels"]).data[0, 0, :, 0, 0].tolist() for row in listed]
    assert made == [[0, 2, 3, 0], [0, 3, 1, 0]], "kidney, liver, spleen are 1, 2, 3 in every file"
    read = read_image(tmp_path / "images" / listed[1]["image"])
    assert read.grid.same_as(grid) and np.allclose(read.data[0, 0].numpy(), images[1].array)


def test_curves_lie_in_their_picture_and_are_thinned(slicer):
    from DeepRegistrationUI import curves

    curve = training.Curve()
    for step in range(5000):
        curve.add(step, float(step % 7))
    assert 300 <= len(curve.points) <= training.SHOWN and curve.points[0] == (0, 0.0)
    placed = curves.places([(0, 0.0), (5, 1.0), (10, float("nan")), (10, 0.5)], 10, 100, 60, 20)
    assert placed == [(6, 54), (50, 20), (94, 37)]
    assert curves.places([(0, 0.0), (10, 1.0)], 10, 100, 60, 20, [(0, -1.0), (3, 3.0), (5, float("nan"))]) == [(6, 46), (94, 37)]
    pixmap = curves.drawn(100, 60, ([(0, 0.0), (10, 1.0)], []), ("cost", "validation"))
    image = pixmap.toImage()
    assert any(image.pixelColor(x, y).blue() > image.pixelColor(x, y).red() + 50 for x in range(100) for y in range(40, 60))
    shared = curves.drawn(100, 60, ([(0, 0.0), (10, 8.0)], [(0, -1.0), (10, 1.0)]), ("x", "y"), together=True).toImage()
    assert shared.pixelColor(90, 52).name() == "#bebebe", "a line at 0, a ninth of the way from -1 to 8"


@pytest.mark.slow
def test_a_real_run_in_the_worker_of_its_own(slicer, page, tmp_path):
    """From a folder, in a real process beside that of the registrations; stopped by a click it leaves a checkpoint, then it goes on."""
    from DeepRegistrationUI.job import WorkerRunner

    folder = cohorts.write(tmp_path / "images", 4)
    page.logic._runner = WorkerRunner(parent_folder=tmp_path)
    page.logic._torch_is_there = True
    page.node.device, page.node.threads = "cpu", 1
    started(slicer, page, tmp_path, trainData=str(folder), trainSteps=100000, trainValues=json.dumps({"width": 2, "levels": 2, "validate": 3}))
    wait_until(slicer, lambda: page.work.step >= 6 and page.work.scores.points, 300)
    assert not page.ui.trainCurvesLabel.isHidden() and page.logic._runner.process_id is None, "the worker of registrations was not needed"
    began = time.perf_counter()
    page.ui.trainButton.click()
    wait_until(slicer, lambda: not page.running, 120)
    done = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["state"]["step"]
    assert done == len(rows(tmp_path / "run", "training")) >= 6 and time.perf_counter() - began < 120
    assert not page.ui.trainUseButton.isHidden() and page.ui.trainButton.text == "Go on"
    page.ui.trainButton.click()
    wait_until(slicer, lambda: page.work.step >= done + 2 or not page.running, 300)
    assert page.running, status(page)
    page.ui.trainButton.click()
    wait_until(slicer, lambda: not page.running, 120)
    assert len(rows(tmp_path / "run", "training")) >= done + 2
    page.logic._runner.stop()


@pytest.mark.parametrize("factor", [1.0, 1.6])
def test_the_other_recipe_fits_400_pixels_too(slicer, pair, factor):
    page = show(slicer, pair, "train")
    choose(page.ui.recipeBox, "general")
    settle(slicer)
    check_fits(slicer, pair, page, factor)
