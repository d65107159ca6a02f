"""The panel before and around a run: start-up, parameter node both ways, what is missing, methods and parameters, landmarks, life cycle."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PySide6")
pytest.importorskip("slicer")

from panels import (  # noqa: E402, F401
    ScriptedRunner, application, choose, landmarks, module_panel, no_slot_errors, pair,
    panel, register, scene, segmentation, settle, slicer, status, volume, wait_until)

from DeepRegistrationUI import torchgate  # noqa: E402
from DeepRegistrationUI.job import WorkerRunner  # noqa: E402
from DeepRegistrationUI.methods import Methods  # noqa: E402

START = """
import sys, time
sys.path[:0] = [{testing!r}, {package!r}]
from harness.application import install, load
install()
took = []
for _ in range(3):
    began = time.process_time()
    widget = load({module!r}).createNewWidgetRepresentation()
    widget.show_module(True)
    took.append(time.process_time() - began)
    widget.show_module(False)
    widget.self().cleanup()
print('torch' in sys.modules, min(took))
"""


def test_starts_at_once_and_without_torch():
    root = Path(__file__).resolve().parents[1]
    package = root / "DeepRegistration"
    code = START.format(testing=str(root / "Testing"), package=str(package), module=str(package / "DeepRegistration.py"))
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), timeout=120)
    torch, seconds = answer.stdout.split()[-2:]
    assert torch == "False", answer.stderr
    assert float(seconds) < 0.3, f"the panel took {seconds} s of processor time"


# ------------------------------------------------------------------------------------------------------- parameter node


def test_parameter_node_both_ways(slicer, pair):
    ui, node = pair.page("register").ui, pair.node
    assert ui.fixedSelector.currentNode() is node.fixedVolume
    other = volume(slicer, "other")
    ui.fixedSelector.setCurrentNode(other)
    assert node.fixedVolume is other
    for box, name in (("inverseBox", "inverse"), ("foldsBox", "folds"), ("iterationsBox", "iterations"), ("liveBox", "live")):
        getattr(ui, box).checked = not getattr(ui, box).checked
        assert getattr(node, name) == getattr(ui, box).checked
        setattr(node, name, not getattr(node, name))
        assert getattr(node, name) == getattr(ui, box).checked
    node.seed = 7
    assert ui.seedSpinBox.value == 7
    ui.prefixEdit.text = "Day 2"
    assert node.prefix == "Day 2"


def test_selectors_of_several_classes_both_ways(slicer, pair):
    ui, node = pair.page("register").ui, pair.node
    first = segmentation(slicer, node.fixedVolume, "first")
    ui.fixedMaskSelector.setCurrentNode(first)
    settle(slicer)
    assert node.fixedMask is first
    assert [ui.fixedMaskSegmentBox.itemText(k) for k in range(ui.fixedMaskSegmentBox.count)] == ["All segments", "box"]
    choose(ui.fixedMaskSegmentBox, "box" if ui.fixedMaskSegmentBox.itemData(1) == "box" else ui.fixedMaskSegmentBox.itemData(1))
    assert node.fixedMaskSegment == ui.fixedMaskSegmentBox.itemData(1)
    node.fixedMask = None
    settle(slicer)
    assert ui.fixedMaskSelector.currentNode() is None and not ui.fixedMaskSegmentBox.enabled


def test_choices_are_saved_with_the_scene(slicer, pair):
    pair.node.method, pair.node.prefix, pair.node.threads = "affine:rigid", "Saved", 2
    again = pair.logic.getParameterNode()
    assert (again.method, again.prefix, again.threads) == ("affine:rigid", "Saved", 2)
    assert again.parameterNode.GetParameter("method") == "affine:rigid"


def test_a_scene_of_another_computer_and_version(slicer, pair):
    """A device that is not here is shown as what it is and can be replaced; a parameter that is not known any more does not stop the run."""
    page, node = pair.page("register"), pair.node
    node.method, node.device, node.values = "affine:rigid", "cuda:1", json.dumps({"samples": 5000, "gone": 3})
    settle(slicer)
    assert page.ui.deviceBox.currentText == "cuda:1"
    choose(page.ui.deviceBox, "auto")
    settle(slicer)
    assert node.device == "auto" and page.ui.deviceBox.count == 2
    assert json.loads(node.values) == {"samples": 5000} and "This version has no parameter 'gone'" in status(page)


# ---------------------------------------------------------------------------------------------------- what is missing


def test_apply_says_what_is_missing(slicer, panel):
    page = panel.page("register")
    assert not page.ui.applyButton.enabled
    assert page.ui.missingLabel.text == "Choose a fixed and a moving volume." == page.ui.applyButton.toolTip
    panel.node.fixedVolume = volume(slicer, "brain")
    settle(slicer)
    assert page.ui.missingLabel.text == "Choose a moving volume."
    panel.node.movingVolume = panel.node.fixedVolume
    settle(slicer)
    assert "'brain' is both the fixed and the moving volume" in page.ui.missingLabel.text and not page.ui.applyButton.enabled
    panel.node.movingVolume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "hollow")
    settle(slicer)
    assert "'hollow' holds no voxels" in page.ui.missingLabel.text
    panel.node.movingVolume = volume(slicer, "brain 2")
    settle(slicer)
    assert page.ui.applyButton.enabled and page.ui.missingLabel.isHidden()


def test_guides_come_in_pairs(slicer, pair):
    page, node = pair.page("register"), pair.node
    node.fixedLandmarks = landmarks(slicer, "F", [(0, 0, 0), (1, 1, 1)])
    settle(slicer)
    assert page.ui.missingLabel.text == "Choose the moving landmarks too, or none at all."
    node.movingLandmarks = landmarks(slicer, "M", [(0, 0, 0)])
    settle(slicer)
    assert "2 fixed and 1 moving landmarks" in page.ui.missingLabel.text and "place 1 more moving" in page.ui.landmarksLabel.text
    node.movingLandmarks.AddControlPoint(1, 2, 1)
    settle(slicer)
    assert page.ui.applyButton.enabled and "2 landmark pairs guide" in page.ui.landmarksLabel.text
    node.movingLandmarks = node.fixedLandmarks
    settle(slicer)
    assert "'F' is chosen as the landmarks of both volumes" in page.ui.missingLabel.text
    node.fixedLandmarks, node.movingLandmarks = (landmarks(slicer, side, []) for side in "FM")
    settle(slicer)
    assert "hold no placed point" in page.ui.missingLabel.text and not page.ui.applyButton.enabled
    node.fixedLandmarks = node.movingLandmarks = None
    node.fixedStructures = node.movingStructures = segmentation(slicer, node.fixedVolume, "S")
    settle(slicer)
    assert "'S' is chosen as the structures of both volumes" in page.ui.missingLabel.text


def test_a_start_by_node_needs_a_node(slicer, pair):
    page = pair.page("register")
    page.ui.startBox.setCurrentIndex(page.ui.startBox.count - 1)
    settle(slicer)
    assert page.ui.startTransformSelector.enabled and "Choose the transform to start from" in page.ui.missingLabel.text
    pair.node.startTransform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "start")
    settle(slicer)
    assert page.ui.applyButton.enabled
    assert page.choices().start is pair.node.startTransform


def test_a_start_from_landmarks(slicer, pair):
    """Three pairs, turned by a right angle about the third axis and shifted: the request begins there."""
    page, node = pair.page("register"), pair.node
    node.start = type(node.start).LANDMARKS
    settle(slicer)
    assert page.ui.missingLabel.text == "Choose the landmarks of both volumes to start from, or another start."
    node.live = False
    node.fixedLandmarks = landmarks(slicer, "F", [(0, 0, 0), (4, 0, 0), (0, 2, 0)])
    node.movingLandmarks = landmarks(slicer, "M", [(1, 2, 3), (1, 6, 3), (-1, 2, 3)])
    settle(slicer)
    assert page.ui.applyButton.enabled
    page.ui.applyButton.click()
    matrix = pair.logic._runner.jobs[-1].request["initial"][0].matrix
    assert np.allclose(matrix @ [-4, 0, 0, 1], [-1, -6, 3, 1]) and np.allclose(matrix @ [0, -2, 0, 1], [1, -2, 3, 1])
    page.ui.applyButton.click()
    wait_until(slicer, lambda: not page.running, 5)


def test_landmarks_of_the_same_names_in_another_order(slicer, pair):
    """They are paired by name, for the run, its start and the figures, and that is said; names that contradict the rows are told."""
    page, node, runner = pair.page("register"), pair.node, pair.logic._runner
    node.live, node.start = False, type(node.start).LANDMARKS
    node.fixedLandmarks = landmarks(slicer, "F", [(1, 0, 0), (5, 1, 2), (4, 6, 5)])
    node.movingLandmarks = landmarks(slicer, "M", [(4, 7, 5), (1, 1, 0), (5, 2, 2)])
    for markups, names in ((node.fixedLandmarks, ("nasion", "left", "right")), (node.movingLandmarks, ("right", "nasion", "left"))):
        settle(slicer)
        assert page.ui.landmarksLabel.text == "3 landmark pairs guide the registration."
        for k, name in enumerate(names):
            markups.SetNthControlPointLabel(k, name)
    settle(slicer)
    assert "have the same names in another order; they are paired by name." in page.ui.landmarksLabel.text
    register(slicer, pair)
    request = runner.jobs[-1].request
    np.testing.assert_allclose(request["moving_points"].positions - request["fixed_points"].positions, [[0, -1, 0]] * 3)
    assert request["moving_points"].names == ("nasion", "left", "right")
    np.testing.assert_allclose(request["initial"][0].matrix[:3, 3], [0, -1, 0], atol=1e-9)
    assert "they are paired by name" in status(page)
    node.movingLandmarks.SetNthControlPointLabel(2, "chin")
    settle(slicer)
    assert "point 'nasion' stands in different rows" in page.ui.landmarksLabel.text and "paired by their order" in page.ui.landmarksLabel.text


def test_landmarks_of_another_volume_are_told(slicer, pair):
    """Most of them lie outside of the chosen one: the lists were taken for each other, or their coordinates are no mm of this scene."""
    node = pair.node
    node.fixedLandmarks = landmarks(slicer, "F", [(3, 4, 5), (6, 4, 5), (5, 5, 5)])
    node.movingLandmarks = landmarks(slicer, "M", [(90, 4, 5), (6, 90, 5), (5, 5, 5)])
    register(slicer, pair)
    said = status(pair.page("register"))
    assert "2 of 3 moving points lie outside of 'moving' (14 x 12 x 10 mm)" in said and "fixed points lie outside" not in said


def test_the_second_click_of_a_double_click(slicer, pair, monkeypatch):
    """It does not stop the run that the first one has started; a later click does."""
    page, runner = pair.page("register"), pair.logic._runner
    monkeypatch.setattr("DeepRegistrationUI.pages.base.DOUBLE_CLICK_SECONDS", 30.0)
    for _ in range(2):
        page.ui.applyButton.click()
        settle(slicer)
    assert page.running and len(runner.jobs) == 1 and not runner.jobs[0].cancelled
    monkeypatch.setattr("DeepRegistrationUI.pages.base.DOUBLE_CLICK_SECONDS", 0.0)
    page.ui.applyButton.click()
    wait_until(slicer, lambda: not page.running, 5)
    assert "The registration was stopped" in status(page)


def test_what_was_just_typed_counts(slicer, pair):
    """A click on a button does not end the typing on a Mac, where buttons take no focus by it."""
    from PySide6 import QtTest

    page, node, runner = pair.page("register"), pair.node, pair.logic._runner
    node.method, node.live = "affine:rigid", False
    page.ui.advancedBox.collapsed = False
    settle(slicer)
    window = page.widget.window()
    window.show()
    window.activateWindow()
    box = page.form.entries["samples"]
    box.setFocus()
    box.selectAll()
    settle(slicer)
    QtTest.QTest.keyClicks(box, "1234")
    assert box.hasFocus() and json.loads(node.values) == {}, "still being typed"
    page.ui.applyButton.click()
    assert runner.jobs[-1].request["values"] == {"samples": 1234}
    page.ui.applyButton.click()
    wait_until(slicer, lambda: not page.running, 5)


def test_volumes_as_masks(slicer, pair):
    """Other programs save masks as images: what is above 0 counts, fractions and NaN are no fault."""
    page, node, runner = pair.page("register"), pair.node, pair.logic._runner
    values = np.zeros((10, 12, 14), np.float32)
    values[3:7, 3:8, 4:9], values[4, 4, 4], values[5, 5, 5], values[0, 0, 0] = 0.25, np.nan, -1, 1e-3
    node.fixedMask = slicer.util.addVolumeFromArray(values, name="brain mask")
    settle(slicer)
    assert page.ui.fixedMaskSelector.currentNode() is node.fixedMask and page.ui.fixedMaskSegmentBox.currentText == "Everything above 0"
    register(slicer, pair)
    np.testing.assert_array_equal(runner.jobs[-1].request["fixed_mask"].array, values > 0)
    node.fixedMask = volume(slicer, "picture", channels=3)
    settle(slicer)
    page.ui.applyButton.click()
    wait_until(slicer, lambda: not page.running, 5)
    assert "'picture' has 3 values per voxel, so it is no mask" in status(page)


# ------------------------------------------------------------------------------------------------ the worker before Apply


class QuietRunner(WorkerRunner):
    """Counts how often a worker would have been started."""

    def __init__(self):
        super().__init__()
        self.started = 0

    def warm_up(self):
        self.started += 1


@pytest.fixture
def choosing(slicer, panel, monkeypatch):
    """The panel outside of testing mode, with a runner that counts; ``wait`` is longer than the pause before the worker starts."""
    monkeypatch.setattr(slicer.app, "testing", False)
    panel.page("register").soon.interval = 50
    panel.logic._runner = QuietRunner()
    panel.wait = lambda: wait_until(slicer, lambda: not panel.page("register").soon.active and not panel.later.active, 5)
    return panel


def test_the_worker_starts_once_both_volumes_are_chosen(slicer, choosing):
    panel, runner = choosing, choosing.logic._runner
    settle(slicer)
    panel.wait()
    assert runner.started == 0, "nothing runs on entering the module"
    panel.node.fixedVolume = volume(slicer, "a")
    settle(slicer)
    panel.wait()
    assert runner.started == 0
    panel.node.movingVolume = volume(slicer, "b")
    settle(slicer)
    assert runner.started == 0 and panel.page("register").soon.active
    panel.wait()
    assert runner.started == 1 and runner.jobs == []
    panel.node.prefix = "another change"
    settle(slicer)
    panel.wait()
    assert runner.started == 1


@pytest.mark.parametrize("reason", ["taken back", "left", "closed", "testing", "no torch", "a scene that was opened"])
def test_the_worker_does_not_start(slicer, choosing, monkeypatch, reason):
    panel, runner = choosing, choosing.logic._runner
    if reason == "testing":
        monkeypatch.setattr(slicer.app, "testing", True)
    if reason == "no torch":
        monkeypatch.setattr(torchgate, "state", lambda: torchgate.TorchState("", ""))
    panel.node.fixedVolume, panel.node.movingVolume = volume(slicer, "a"), volume(slicer, "b")
    if reason == "a scene that was opened":
        panel.bind(panel.logic.getParameterNode())
    settle(slicer)
    if reason == "taken back":
        panel.node.movingVolume = None
    elif reason == "left":
        panel.leave()
    elif reason == "closed":
        slicer.mrmlScene.Clear(0)
    settle(slicer)
    panel.wait()
    assert runner.started == 0


# ------------------------------------------------------------------------------------------------ method and parameters


def test_task_method_and_preset(slicer, pair):
    page, methods = pair.page("register"), pair.logic.methods
    assert page.chosen(page.ui.methodNameBox) == "instance-optimisation" and page.chosen(page.ui.presetBox) == "default"
    choose(page.ui.taskBox, "linear alignment")
    assert pair.node.method == "affine:default"
    assert page.ui.presetBox.currentText == "Default"
    choose(page.ui.presetBox, "rigid")
    assert pair.node.method == "affine:rigid" and methods.split("affine:rigid")[0]["presets"]["rigid"]["help"] in page.ui.presetLabel.text
    assert "19" in page.ui.citationLabel.text or "20" in page.ui.citationLabel.text
    page.ui.citationLabel.linkActivated.emit("bibtex")
    assert "@article" in slicer.app.clipboard().text() and "BibTeX" in status(page)


def test_citations_name_the_first_author_with_its_accents():
    methods = Methods()
    texts = [text for identifier in methods.entries for text in methods.citations(f"{identifier}:default")]
    assert any(text.startswith("Öfverstedt et al. 2022, ") for text in texts) and any(text.startswith("Greer et al. 2023, ") for text in texts)
    assert not [text for text in texts if set(text) & set("\\{}") or text.startswith(("unknown", " "))]


@pytest.mark.parametrize("name, shown", [("default", "Default"), ("same-person", "Same person"), ("lung-ct", "Lung CT"), ("2d", "2D"), ("lncc", "LNCC")])
def test_presets_in_words(name, shown):
    assert Methods.presets({"presets": {name: {}}}) == [(name, shown)]


def test_every_parameter_has_its_widget(slicer, pair):
    page = pair.page("register")
    for identifier, entry in pair.logic.methods.entries.items():
        for preset in entry["presets"]:
            page.put_method(f"{identifier}:{preset}")
            assert set(page.form.entries) == {p["name"] for p in entry["parameters"]}
            assert pair.node.values == "{}", f"showing {identifier}:{preset} changed a value"
        for info in entry["parameters"]:
            widget = page.form.entries[info["name"]]
            assert info["help"] in widget.toolTip
            if info["unit"] and info["type"] in ("int", "float"):
                assert widget.suffix == f" {info['unit']}"


def test_changed_parameters_and_reset(slicer, pair):
    page = pair.page("register")
    page.ui.advancedBox.collapsed = False
    page.put_method("instance-optimisation:fast")
    entries, labels = page.form.entries, page.form.labels
    levels = entries["factors"].text
    entries["elastic"].value = 1.5
    entries["symmetric"].checked = True
    entries["similarity"].setCurrentIndex(entries["similarity"].findText("mind"))
    entries["factors"].text = "9, 4; 2"
    entries["factors"].editingFinished.emit()
    assert json.loads(pair.node.values) == {"elastic": 1.5, "symmetric": True, "similarity": "mind", "factors": [9.0, 4.0, 2.0]}
    assert labels["elastic"].font.bold() and not labels["window"].font.bold()
    assert page.choices().values["factors"] == [9.0, 4.0, 2.0]
    entries["elastic"].value = pair.logic.methods.preset_values(pair.node.method)["elastic"]
    assert "elastic" not in json.loads(pair.node.values), "a value of the preset is no change"
    page.ui.resetButton.click()
    assert pair.node.values == "{}" and entries["factors"].text == levels and not labels["symmetric"].font.bold()


@pytest.mark.parametrize("text, expected", [("a, b", "numbers separated by commas"), ("", "numbers separated by commas"), ("0.1, 2", "1 to 64")])
def test_lists_that_cannot_be_read(slicer, pair, text, expected):
    page = pair.page("register")
    entry = page.form.entries["factors"]
    levels = entry.text
    entry.text = text
    entry.editingFinished.emit()
    assert expected in status(page) and entry.text == levels and pair.node.values == "{}"


def test_a_method_of_another_version(slicer, pair):
    pair.node.method = "gone:default"
    settle(slicer)
    assert pair.node.method == "instance-optimisation:default" and "'gone' is not in this version" in status(pair.page("register"))


# ----------------------------------------------------------------------------------------------------------- landmarks


def test_placing_landmarks(slicer, pair):
    ui, node = pair.page("register").ui, pair.node
    interaction = slicer.app.applicationLogic().GetInteractionNode()
    ui.guidesBox.collapsed = False
    ui.placeFixedButton.click()
    assert node.fixedLandmarks is not None and interaction.GetCurrentInteractionMode() == interaction.Place
    ui.placeMovingButton.click()
    assert node.movingLandmarks is not None and not ui.placeFixedButton.checked
    assert interaction.GetCurrentInteractionMode() == interaction.Place
    ui.placeMovingButton.click()
    assert interaction.GetCurrentInteractionMode() == interaction.ViewTransform
    ui.placeMovingButton.click()
    pair.leave()
    assert interaction.GetCurrentInteractionMode() == interaction.ViewTransform and not ui.placeMovingButton.checked


# ---------------------------------------------------------------------------------------------------- sections and life


def test_one_section_is_open(slicer, panel):
    for name in ("transfer", "quality", "compare", "batch", "register"):
        panel.buttons[name].click()
        assert [other for other, button in panel.buttons.items() if not button.collapsed] == [name]


def test_scene_closed(slicer, pair):
    old = pair.node
    for name in ("transfer", "quality", "compare", "batch"):
        pair.open(name)
    slicer.mrmlScene.Clear(0)
    settle(slicer)
    assert pair.node is not None and pair.node is not old
    assert pair.node.fixedVolume is None and not pair.page("register").ui.applyButton.enabled
    pair.node.fixedVolume, pair.node.movingVolume = volume(slicer, "a"), volume(slicer, "b")
    settle(slicer)
    assert pair.page("register").ui.applyButton.enabled


def test_cleanup_leaves_nothing(slicer, panel):
    panel.logic._runner = runner = ScriptedRunner()
    panel.cleanup()
    assert runner.stopped and not panel.timer.active and panel.node is None and not panel.Observations
    slicer.mrmlScene.Clear(0)
    volume(slicer, "later")
    settle(slicer)


RELOAD = """
import sys
sys.path[:0] = [{testing!r}]
from pathlib import Path
from harness.application import install, load
slicer = install()
folder = Path({folder!r})
module = load(folder / "DeepRegistration.py")
holder = module.widgetRepresentation()
holder.show_module(True)
import panels
old, runner = holder.self(), panels.ScriptedRunner()
old.logic._runner = runner
page = folder / "DeepRegistrationUI" / "pages" / "register.py"
page.write_text(page.read_text("utf-8").replace('_("Apply")', '_("Align both")'), "utf-8")
errors = folder / "DeepRegistrationLib" / "errors.py"
errors.write_text(errors.read_text("utf-8") + "\\nEDITED = True\\n", "utf-8")
old.onReload()
new = holder.self()
assert new is not old and old.panel is None and runner.stopped
assert new.panel.page("register").ui.applyButton.text == "Align both", "the package was not read again"
from DeepRegistrationLib import errors
assert errors.EDITED
new.panel.node.fixedVolume, new.panel.node.movingVolume = (panels.volume(slicer, name) for name in "ab")
panels.settle(slicer)
assert new.panel.page("register").ui.applyButton.enabled and new.panel.node is not None
holder.show_module(False)
new.cleanup()
sys.stdout.write("reloaded")
"""


def test_reload_reads_the_packages_again(tmp_path):
    """The developer edits files of both packages and presses Reload: in a process of its own, since the packages of this one are in use."""
    root = Path(__file__).resolve().parents[1]
    folder = shutil.copytree(root / "DeepRegistration", tmp_path / "DeepRegistration", ignore=shutil.ignore_patterns("__pycache__"))
    code = RELOAD.format(testing=str(root / "Testing"), folder=str(folder))
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), timeout=120)
    assert answer.stdout.endswith("reloaded"), answer.stderr
