"""The panel of AtlasBuilder by clicks, its jobs following a script: the table of the cohort, what is asked for, a build; its layout."""

import json

import numpy as np
import pytest

pytest.importorskip("PySide6")
pytest.importorskip("slicer")

from panels import (  # noqa: E402, F401
    ScriptedRunner, application, check_fits, choose, loaded_by_showing, module_panel, no_slot_errors, scene, segmentation, settle, show,
    slicer, status, volume, wait_until, without_help)
from panels_atlas import growing, page, panel, rows  # noqa: E402, F401

from DeepRegistrationLib.geometry import Grid  # noqa: E402
from DeepRegistrationUI.atlas_ages import columns_of  # noqa: E402
from DeepRegistrationUI.atlas_run import AtlasRun, is_begun, is_done, new_row, quality_text, solid  # noqa: E402

ROW = {
    "iteration": 1,
    "similarity": 0.9,
    "mean_displacement_left": 0.2,
    "gradient_energy": 3.0,
    "cohort_gradient_energy": 4.0,
}


# ------------------------------------------------------------------------------------------------------- build an atlas


def test_it_says_what_is_missing(slicer, page, tmp_path):
    assert (
        page.ui.atlasMissingLabel.text == "Choose a folder with images or a list." and not page.ui.atlasButton.enabled
    )
    assert not page.ui.atlasListButton.enabled and not page.ui.atlasRetryButton.enabled
    page.ui.atlasDataEdit.currentPath = str(tmp_path)
    settle(slicer)
    assert page.node.atlasData == str(tmp_path) and page.ui.atlasMissingLabel.text == "Choose a folder for the atlas."
    assert page.ui.atlasListButton.enabled
    page.ui.atlasFolderEdit.currentPath = str(tmp_path / "atlas")
    settle(slicer)
    assert page.ui.atlasButton.enabled and page.ui.atlasButton.text == "Build" and page.ui.atlasMissingLabel.text == ""
    choose(page.ui.atlasSourceBox, "scene")
    settle(slicer)
    assert page.ui.atlasMissingLabel.text == "Check at least two subjects." and page.ui.atlasDataEdit.isHidden()


def test_subjects_are_listed_and_left_out_by_their_check(slicer, page, tmp_path):
    import qt

    page.ui.atlasDataEdit.currentPath = str(tmp_path)
    page.ui.atlasFolderEdit.currentPath = str(tmp_path / "atlas")
    settle(slicer)
    page.ui.atlasListButton.click()
    runner = page.logic._runner
    assert runner.jobs[-1].request == {"command": "cohort", "data": str(tmp_path)} and not page.ui.atlasButton.enabled
    subjects = [{"name": name, "image": f"/data/{name}.nii", "labels": name == "b"} for name in "abc"]
    runner.say("done", result={"subjects": subjects})
    wait_until(slicer, lambda: page.job is None, 5)
    assert status(page) == "3 subjects, 1 with labels." and [row[:2] for row in rows(page)] == [
        [name, "waiting"] for name in "abc"
    ]
    page.ui.atlasTable.item(1, 0).setCheckState(qt.Qt.Unchecked)
    settle(slicer)
    assert json.loads(page.node.atlasLeftOut) == ["b"] and page.ui.atlasButton.enabled
    page.ui.atlasTable.item(2, 0).setCheckState(qt.Qt.Unchecked)
    settle(slicer)
    assert page.ui.atlasMissingLabel.text == "Check at least two subjects." and not page.ui.atlasButton.enabled
    page.ui.atlasDataEdit.currentPath = str(tmp_path / "other")
    settle(slicer)
    assert rows(page) == [] and page.node.atlasLeftOut == "[]", "another cohort: its subjects are not known"


def test_files_that_are_no_images_and_remarks_are_told_in_the_table(slicer, page, tmp_path):
    page.node.atlasData, page.node.atlasFolder = str(tmp_path), str(tmp_path / "atlas")
    settle(slicer)
    page.ui.atlasListButton.click()
    subjects = [{"name": name, "image": f"{name}.nii", "labels": False, "unusable": "it is a mask" if name == "m" else ""} for name in "abm"]
    runner = page.logic._runner
    runner.say("done", result={"subjects": subjects})
    wait_until(slicer, lambda: page.job is None, 5)
    assert status(page) == "2 subjects, 0 with labels. 1 files are no images, the table says why."
    assert rows(page)[2] == ["m", "set aside", "", "it is a mask"]
    place = tmp_path / "Müller" / "b.nii"
    whole = f"{place} is incomplete or damaged (its packed content ends too early or fails its checksum); copy or export the file again"
    page.keep([new_row({"name": "b", "image": str(place), "unusable": whole})])
    settle(slicer)
    assert rows(page)[0][3].startswith("b.nii is incomplete") and rows(page)[0][3].endswith(" ...") and page.ui.atlasTable.item(0, 3).toolTip() == whole
    page.keep([new_row(subject) for subject in subjects])
    settle(slicer)
    page.ui.atlasButton.click()
    runner.say("cohort", subjects=subjects)
    record = {"subjects": ["a", "b"], "set_aside": {"m": "it is a mask"}, "remarks": {"b": "a copy of a"}, "history": [ROW], "wall_seconds": 1.0, "dim": 2}
    runner.say("done", result={"record": record, "quality": [{"subject": "a", "similarity": 0.5}, {"subject": "b", "similarity": 0.5}]})
    wait_until(slicer, lambda: not page.running, 5)
    assert rows(page)[1][3] == "similarity 0.500; a copy of a" and rows(page)[2][3] == "it is a mask"
    assert "remarks on b" in status(page)


def test_stop_keeps_the_subjects_that_were_brought_before(slicer, page, tmp_path):
    (tmp_path / "atlas.json").write_text("{}", "utf-8")
    page.node.atlasData, page.node.atlasFolder = str(tmp_path / "new"), str(tmp_path)
    page.keep([new_row({"name": name, "image": f"{name}.nii"}) for name in "ab"])
    settle(slicer)
    assert not page.ui.atlasButton.enabled
    page.ui.atlasTable.selectAll()
    settle(slicer)
    page.ui.atlasRetryButton.click()
    runner = page.logic._runner
    assert page.ui.atlasButton.text == "Stop" and page.ui.atlasButton.enabled and not page.ui.atlasListButton.enabled
    runner.say("carried", subject="a", similarity=0.9, folds=0.0, remark="")
    wait_until(slicer, lambda: rows(page)[0][1] == "brought", 5)
    page.ui.atlasButton.click()
    assert runner.jobs[-1].cancelled
    wait_until(slicer, lambda: page.job is None, 5)
    assert [row[1] for row in rows(page)] == ["brought", "waiting"] and "are kept" in status(page) and page.ui.atlasRetryButton.enabled


@pytest.mark.parametrize("button", ["atlasListButton", "atlasRetryButton"])
def test_what_a_job_of_a_closed_scene_says_is_not_heard(slicer, page, tmp_path, button):
    (tmp_path / "atlas.json").write_text("{}", "utf-8")
    page.node.atlasData, page.node.atlasFolder = str(tmp_path / "new"), str(tmp_path)
    page.keep([new_row({"name": "a", "image": "a.nii"})])
    settle(slicer)
    page.ui.atlasTable.selectAll()
    settle(slicer)
    getattr(page.ui, button).click()
    job = page.job
    slicer.mrmlScene.Clear(0)
    settle(slicer)
    assert page.job is None and page.node is not None
    for event in ({"event": "carried", "subject": "a", "similarity": 0.9}, {"event": "done", "result": {"rows": [], "subjects": []}}):
        (page.on_list if button == "atlasListButton" else page.on_carried)(job, event)
    assert status(page) == "" and rows(page) == []


def test_a_folder_with_a_begun_build_says_that_it_has_its_own_settings(slicer, page, tmp_path):
    (tmp_path / "atlas" / "work").mkdir(parents=True)
    (tmp_path / "atlas" / "build.json").write_text("{}", "utf-8")
    page.node.atlasData, page.node.atlasFolder = str(tmp_path), str(tmp_path / "atlas")
    settle(slicer)
    assert page.ui.atlasButton.text == "Go on" and page.ui.atlasButton.enabled
    assert "its own cohort and settings" in page.ui.atlasMissingLabel.text and not page.ui.atlasMissingLabel.isHidden()


def test_presets_and_parameters_are_those_of_the_method(slicer, page):
    entry = page.logic.methods.entries["icon-atlas"]
    assert [page.ui.atlasPresetBox.itemData(k) for k in range(page.ui.atlasPresetBox.count)] == list(entry["presets"])
    page.ui.atlasAdvancedBox.collapsed = False
    page.form.entries["linear_iterations"].setValue(3)
    settle(slicer)
    assert json.loads(page.node.atlasValues) == {"linear_iterations": 3} and page.ui.atlasResetButton.enabled
    page.ui.atlasResetButton.click()
    settle(slicer)
    assert page.node.atlasValues == "{}" and page.form.entries["linear_iterations"].value == 2
    choose(page.ui.atlasPresetBox, "aligned")
    settle(slicer)
    assert page.node.atlasPreset == "aligned" and page.form.entries["linear"].currentText == "none"


def started(slicer, page, tmp_path):
    page.node.atlasData, page.node.atlasFolder, page.node.atlasLeftOut = str(tmp_path), str(tmp_path / "atlas"), '["c"]'
    settle(slicer)
    page.ui.atlasButton.click()
    return page.logic._runner


def test_a_build_is_followed(slicer, page, tmp_path):
    """Rows, curves and the live template while it runs; a subject that is set aside says why; Stop asks once."""
    runner = started(slicer, page, tmp_path)
    request = runner.jobs[-1].request
    assert (
        request["command"] == "atlas"
        and request["left_out"] == ["c"]
        and request["method"] == "icon-atlas:default"
        and request["workers"] == 1
    )
    assert page.ui.atlasButton.text == "Stop" and not page.ui.atlasForm.enabled
    runner.say("cohort", subjects=[{"name": "a", "image": "a.nii"}, {"name": "b", "image": "b.nii"}])
    work = tmp_path / "atlas" / "work"
    (work / "iteration-00").mkdir(parents=True)
    (work / "iteration-00" / "a.json").write_text(json.dumps({"similarity": 0.91, "folds": 0.0}))
    (work / "state.json").write_text(json.dumps({"set_aside": {"b": "it is damaged"}, "rows": [ROW]}))
    array = np.random.default_rng(0).random((1, 1, 5, 6)).astype(np.float32)
    np.savez(work / "template-01.npz", data=array, shape=(5, 6), affine=np.diag([2.0, 3.0, 1.0]))
    runner.say("log", **ROW)
    runner.say("progress", share=0.25, text="iteration 1/6, subject 2/2", step=0, steps=0, seconds_left=61.0)
    wait_until(
        slicer, lambda: len(rows(page)) == 2 and rows(page)[0][1] == "building" and rows(page)[1][1] == "set aside", 5
    )
    assert (
        rows(page)[0][3] == "similarity 0.910, folds 0 %"
        and rows(page)[1][3] == "it is damaged"
        and rows(page)[0][2] != ""
    )
    assert page.ui.atlasStageLabel.text == "Iteration 1/6, subject 2/2, 1 min 01 s left"
    assert page.work.curves["sharpness"].points == [(1, 0.75)] and page.ui.atlasCurvesLabel.pixmap.width() == 340
    shown = slicer.util.arrayFromVolume(page.template)
    assert np.array_equal(shown[0], array[0, 0]) and page.template.GetSpacing()[:2] == (2.0, 3.0)
    page.ui.atlasButton.click()
    assert runner.jobs[-1].cancelled and not page.ui.atlasButton.enabled
    (tmp_path / "atlas" / "build.json").write_text("{}")
    wait_until(slicer, lambda: not page.running, 5)
    assert "Go on takes up" in status(page) and page.ui.atlasButton.text == "Go on" and page.ui.atlasButton.enabled
    page.ui.atlasButton.click()
    assert runner.jobs[-1].request["resume"] and "data" not in runner.jobs[-1].request
    assert page.work.curves["similarity"].points == [(1, 0.9)], "the curves so far are shown"


def test_a_failure_is_one_sentence(slicer, page, tmp_path):
    runner = started(slicer, page, tmp_path)
    runner.say("failed", kind="input", message="1 of 2 subjects can be used and an atlas needs two", offers=[])
    wait_until(slicer, lambda: not page.running, 5)
    assert status(page).startswith("1 of 2 subjects") and page.ui.atlasForm.enabled


def test_the_scene_can_be_closed_while_it_builds(slicer, page, tmp_path):
    runner = started(slicer, page, tmp_path)
    runner.say("cohort", subjects=[{"name": "a", "image": ""}])
    slicer.mrmlScene.Clear(0)
    settle(slicer)
    assert runner.jobs[-1].cancelled and page.work is None and page.ui.atlasTable.rowCount == 0


def test_volumes_of_the_scene_are_sent_under_their_names(slicer, page, tmp_path):
    for k, name in enumerate(("one", "two", "two", "a/b")):
        made = volume(slicer, name, shift=k)
        if k == 0:
            segmentation(slicer, made, "organs")
    choose(page.ui.atlasSourceBox, "scene")
    page.node.atlasFolder, page.node.atlasLeftOut = str(tmp_path / "atlas"), json.dumps(["two (3)"])
    settle(slicer)
    assert [row[0] for row in rows(page)] == ["one", "two (2)", "two (3)", "a-b"]
    page.ui.atlasButton.click()
    request = page.logic._runner.jobs[-1].request
    assert (
        request["names"] == ["one", "two (2)", "a-b"]
        and len(request["images"]) == 3
        and request["labels"][0].names == ((1, "box"),)
    )


def test_an_atlas_over_age_asks_for_the_column_of_the_ages(slicer, page, tmp_path):
    data, ui = growing(tmp_path / "data"), page.ui
    page.node.atlasData, page.node.atlasFolder = str(data / "list.csv"), str(tmp_path / "atlas")
    settle(slicer)
    assert ui.atlasCovariateBox.isHidden() and ui.atlasCovariatesEdit.isHidden() and ui.atlasAgeForm.isHidden()
    page.node.atlasValues = '{"linear_iterations": 3}'
    choose(ui.atlasMethodBox, "spatiotemporal-atlas")
    settle(slicer)
    assert page.node.atlasValues == "{}" and "steps" in page.form.entries and not ui.atlasCovariateBox.isHidden()
    assert [ui.atlasCovariateBox.itemData(k) for k in range(ui.atlasCovariateBox.count)] == ["", "weeks", "sex"]
    assert ui.atlasMissingLabel.text == "Choose the column that holds the ages." and not ui.atlasButton.enabled
    choose(ui.atlasCovariateBox, "weeks")
    settle(slicer)
    assert ui.atlasMissingLabel.text == "" and ui.atlasButton.enabled
    choose(ui.atlasSourceBox, "scene")
    for k in range(2):
        volume(slicer, f"head {k}", shift=k)
    settle(slicer)
    assert ui.atlasMissingLabel.text == "Choose a table of ages (.csv, a subject a row)."
    (tmp_path / "people.csv").write_text("id,age,site\nhead 0,3,A\nhead 1,4,B\n", "utf-8")
    ui.atlasCovariatesEdit.currentPath = str(tmp_path / "people.csv")
    settle(slicer)
    choose(ui.atlasCovariateBox, "age")
    settle(slicer)
    ui.atlasButton.click()
    request = page.logic._runner.jobs[-1].request
    assert request["method"] == "spatiotemporal-atlas:default"
    assert request["covariate"] == "age" and request["covariates"] == str(tmp_path / "people.csv")


def test_columns_that_may_hold_ages(tmp_path):
    (tmp_path / "list.json").write_text('[{"image": "a.nii", "subject": "a", "age": 3}]', "utf-8")
    (tmp_path / "other.json").write_text("3", "utf-8")
    assert columns_of(str(tmp_path / "list.json")) == ["age"] and columns_of(str(tmp_path / "other.json")) == []
    assert columns_of("") == [] and columns_of(str(tmp_path)) == [] and columns_of(str(tmp_path / "none.csv")) == []


def test_quality_and_templates_as_the_panel_shows_them(tmp_path):
    assert (
        quality_text({"similarity": 0.5, "dice": 0.8, "folds": 0.001}) == "similarity 0.500, Dice 0.80, folds 0.1 %"
        and quality_text({}) == ""
    )
    flat = solid(np.zeros((4, 5)), Grid.from_parts((4, 5), (2.0, 3.0), (7.0, 8.0)))
    assert (
        flat.array.shape == (1, 4, 5)
        and np.allclose(flat.grid.affine[:3, 3], (7, 8, 0))
        and flat.grid.size == (5, 4, 1)
    )
    assert not is_begun("") and not is_begun(str(tmp_path)) and not is_done(str(tmp_path))
    run = AtlasRun(ScriptedRunner(), {"out": str(tmp_path)})
    assert run.template() is None and run.look() is None


# --------------------------------------------------------------------------------------------------------------- layout


@pytest.mark.parametrize("factor", [1.0, 1.6])
@pytest.mark.parametrize("name", ["build", "structure", "identify"])
def test_fits_400_pixels(slicer, panel, name, factor):
    check_fits(slicer, panel, show(slicer, panel, name), factor)


def test_every_control_has_help(slicer, panel):
    assert [without_help(panel.page(name)) for name in ("build", "structure", "identify")] == [[], [], []]


def test_the_panel_opens_without_torch():
    loaded = loaded_by_showing("AtlasBuilder", "structure", "identify")
    assert not {"torch", "sklearn"} & loaded and "DeepRegistrationLib" in loaded
