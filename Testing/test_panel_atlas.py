"""The panel of AtlasBuilder by clicks: the table of the cohort, a build followed by script and a real one, the structure of a cohort; its layout."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from truths_cohort import SIDE, planted

pytest.importorskip("PySide6")
pytest.importorskip("slicer")

from panels import (  # noqa: E402, F401
    ScriptedRunner,
    application,
    check_fits,
    choose,
    module_panel,
    no_slot_errors,
    scene,
    segmentation,
    settle,
    show,
    slicer,
    status,
    volume,
    wait_until,
    without_help,
)

from DeepRegistrationLib.geometry import Grid  # noqa: E402
from DeepRegistrationLib.image import Image, Labels  # noqa: E402
from DeepRegistrationLib.io import read_image, write_image, write_labels  # noqa: E402
from DeepRegistrationUI.atlas_ages import columns_of  # noqa: E402
from DeepRegistrationUI.atlas_run import AtlasRun, is_begun, is_done, quality_text, solid  # noqa: E402
from DeepRegistrationUI.job import InProcessRunner  # noqa: E402

ROW = {
    "iteration": 1,
    "similarity": 0.9,
    "mean_displacement_left": 0.2,
    "gradient_energy": 3.0,
    "cohort_gradient_energy": 4.0,
}


@pytest.fixture
def panel(slicer, module_panel):
    """The panel of AtlasBuilder with a runner that follows a script."""
    made = module_panel("AtlasBuilder").panel
    made.logic._runner = ScriptedRunner()
    return made


@pytest.fixture
def page(panel):
    return panel.page("build")


def rows(page) -> list[list[str]]:
    table = page.ui.atlasTable
    return [[table.item(r, c).text() for c in range(4)] for r in range(table.rowCount)]


def cohort(folder, subjects: int = 4):
    """Slices of blobs that lie at different places, with label maps, and one file that is none."""
    folder.mkdir()
    grid = Grid.from_parts((24, 26), 2.0)
    x = torch.as_tensor(grid.points()).float()
    for k in range(subjects):
        middle = torch.tensor([24.0 + 2 * (k % 2), 22.0 + k])
        values = torch.exp(-((x - middle) ** 2).sum(-1) / 150) + 0.3 * torch.cos(x[..., 0] / 6) * torch.cos(
            x[..., 1] / 7
        )
        write_image(Image(values[None, None], grid), folder / f"s{k}.nii.gz")
        write_labels(Labels((values > 0.6).to(torch.int32)[None, None], grid), folder / f"s{k}_seg.nii.gz")
    (folder / "broken.nii.gz").write_text("no image")
    return folder


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


def built(slicer, page, tmp_path):
    """An atlas of three of four slices, with a damaged file among them; the folder of the images."""
    page.logic._runner = InProcessRunner()
    data, node = cohort(tmp_path / "data"), page.node
    node.atlasData, node.atlasFolder, node.atlasPreset = str(data), str(tmp_path / "brain"), "2d"
    node.atlasValues = json.dumps({"linear_iterations": 1, "factors": [2.0]})
    settle(slicer)
    page.ui.atlasListButton.click()
    wait_until(slicer, lambda: page.job is None, 60)
    assert [row[0] for row in rows(page)] == ["broken", "s0", "s1", "s2", "s3"]
    node.atlasLeftOut = json.dumps(["s3"])
    settle(slicer)
    page.ui.atlasButton.click()
    wait_until(slicer, lambda: not page.running, 120)
    assert page.work.state == "done", page.work.message
    return data


def test_an_atlas_of_files_in_the_worker_and_in_the_scene(slicer, page, tmp_path):
    built(slicer, page, tmp_path)
    assert status(page).startswith("An atlas of 3 subjects") and "1 set aside" in status(page)
    assert is_done(page.node.atlasFolder)
    table = {row[0]: row for row in rows(page)}
    assert table["broken"][1] == "set aside" and table["s0"][1] == "done" and "Dice" in table["s0"][3]
    assert table["s3"][1] == "left out"
    kinds = ("ScalarVolume", "Segmentation", "Table")
    names = {node.GetName(): node for kind in kinds for node in slicer.util.getNodesByClass(f"vtkMRML{kind}Node")}
    assert {"brain atlas", "brain mean log-Jacobian", "brain labels, STAPLE", "brain quality"} <= set(names)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    items = [hierarchy.GetItemByDataNode(node) for name, node in names.items() if name.startswith("brain")]
    parents = {hierarchy.GetItemParent(item) for item in items}
    assert len(parents) == 1 and hierarchy.GetItemName(parents.pop()) == "Atlas brain"
    assert "Template" not in names, "the live template goes when the atlas is there"
    assert page.ui.atlasMissingLabel.text.startswith("The atlas in this folder is done")
    assert not page.ui.atlasButton.enabled


def test_a_subject_that_was_left_out_is_brought_to_the_atlas(slicer, page, tmp_path):
    built(slicer, page, tmp_path)
    page.ui.atlasTable.selectRow(1)
    settle(slicer)
    assert not page.ui.atlasRetryButton.enabled, "s0 is part of the atlas"
    page.ui.atlasTable.selectRow([row[0] for row in rows(page)].index("s3"))
    settle(slicer)
    assert page.ui.atlasRetryButton.enabled
    page.ui.atlasRetryButton.click()
    wait_until(slicer, lambda: page.job is None, 60)
    assert status(page) == "1 subjects were brought to the atlas."
    found = {row[0]: row for row in rows(page)}
    assert found["s3"][1] == "brought" and "similarity" in found["s3"][3]
    assert (tmp_path / "brain" / "carried" / "s3" / "transform.h5").is_file()
    assert slicer.util.getNode("s3 on brain").GetImageData() is not None
    page.ui.atlasTable.selectRow([row[0] for row in rows(page)].index("broken"))
    settle(slicer)
    page.ui.atlasRetryButton.click()
    wait_until(slicer, lambda: page.job is None, 60)
    assert "1 could not be" in status(page)


def test_volumes_of_the_scene_stopped_and_gone_on_with(slicer, page, tmp_path):
    """3D volumes with segmentations: stopped after the first iteration, gone on with, their transforms in the scene."""
    from DeepRegistrationUI.pages.atlas_build import cohort_volumes

    page.logic._runner = InProcessRunner()
    for k in range(4):
        made = volume(slicer, f"head {k}", shift=k)
        segmentation(slicer, made, f"organs {k}", shift=k % 2)
    choose(page.ui.atlasSourceBox, "scene")
    node = page.node
    node.atlasLeftOut = json.dumps(["head 3"])
    node.atlasFolder, node.atlasTransforms = str(tmp_path / "heads"), True
    node.atlasValues = json.dumps({"linear": "none", "factors": [4.0, 2.0]})
    settle(slicer)
    page.ui.atlasButton.click()
    page.work.listener = lambda work, event: (page.on_event(work, event), event["event"] == "log" and work.cancel())
    wait_until(slicer, lambda: not page.running, 120)
    assert page.work.state == "cancelled", page.work.message
    assert is_begun(node.atlasFolder) and page.ui.atlasButton.text == "Go on"
    assert [row[1] for row in rows(page)] == ["waiting", "waiting", "waiting", "left out"]
    page.ui.atlasButton.click()
    wait_until(slicer, lambda: not page.running, 120)
    assert page.work.state == "done", page.work.message
    assert [row["iteration"] for row in page.work.record["history"]] == [1, 2]
    assert page.work.curves["similarity"].points[0][0] == 1 and len(page.work.curves["similarity"].points) == 2
    assert [row[0] for row in rows(page)] == ["head 0", "head 1", "head 2", "head 3"] and "Dice" in rows(page)[0][3]
    names = {each.GetName() for each in slicer.util.getNodesByClass("vtkMRMLTransformNode")}
    assert {name for name in names if "head" in name} == {"heads to head 0", "heads to head 1", "heads to head 2"}
    page.ui.atlasTable.selectRow(3)
    settle(slicer)
    page.ui.atlasRetryButton.click()
    wait_until(slicer, lambda: page.job is None, 60)
    assert rows(page)[3][1] == "brought" and slicer.util.getNode("head 3 on heads") is not None
    assert [each.GetName() for each in cohort_volumes()] == [f"head {k}" for k in range(4)], "outputs are no subjects"


def growing(folder):
    """Nine slices of blobs that grow with age, a list with their ages, and one whose age is not known."""
    folder.mkdir()
    grid, lines = Grid.from_parts((16, 16), 2.0), ["image,subject,weeks,sex"]
    x = torch.as_tensor(grid.points()).float()
    for k in range(9):
        middle = torch.tensor([15.0 + k % 2, 15.0])
        values = torch.sigmoid((5 + k // 3 - (x - middle).norm(dim=-1)) / 1.0) + 0.2 * torch.cos(x[..., 0] / 3)
        write_image(Image(values[None, None], grid), folder / f"s{k}.nii.gz")
        lines.append(f"s{k}.nii.gz,s{k},{'' if k == 4 else 8 + k // 3},f")
    (folder / "list.csv").write_text("\n".join(lines), "utf-8")
    return folder


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


def test_an_atlas_over_age_in_the_scene_with_its_slider(slicer, page, tmp_path):
    page.logic._runner = InProcessRunner()
    data, node = growing(tmp_path / "data"), page.node
    node.atlasData, node.atlasFolder, node.atlasCovariate = str(data / "list.csv"), str(tmp_path / "growth"), "weeks"
    node.atlasMethod, node.atlasPreset = "spatiotemporal-atlas", "aligned"
    node.atlasValues = json.dumps({"steps": 5, "width": 4, "levels": 2, "iterations": 1, "knots": 3})
    settle(slicer)
    page.ui.atlasButton.click()
    wait_until(slicer, lambda: not page.running, 120)
    assert page.work.state == "done", page.work.message
    assert "1 set aside" in status(page) and {row[0]: row[3] for row in rows(page)}["s4"] == "no age is known of it"
    browser, slider = node.atlasBrowser, page.ui.atlasAgeSlider
    assert not page.ui.atlasAgeForm.isHidden() and slider.maximum == 2 and page.ui.atlasAgeLabel.text == "Age shown: 8"
    shown = slicer.util.getNode("growth atlas of an age")
    assert slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode().GetBackgroundVolumeID() == shown.GetID()
    for number, age in ((1, 9), (2, 10), (0, 8)):
        slider.setValue(number)
        settle(slicer)
        truth = read_image(tmp_path / "growth" / f"atlas_age_{age}.nii.gz").data[0, 0].numpy()
        assert np.allclose(slicer.util.arrayFromVolume(shown)[0], truth, atol=1e-5) and page.ui.atlasAgeLabel.text == f"Age shown: {age}"
        assert browser.GetSelectedItemNumber() == number
    growth = slicer.util.getNode("growth growth")
    assert growth.GetNumberOfRows() == 3 and growth.GetTable().GetColumnByName("volume") is not None
    page.ui.atlasTable.selectRow([row[0] for row in rows(page)].index("s4"))
    settle(slicer)
    page.ui.atlasRetryButton.click()
    wait_until(slicer, lambda: page.job is None, 60)
    assert "no age is known of it" in {row[0]: row[3] for row in rows(page)}["s4"]
    slicer.mrmlScene.Clear(0)
    settle(slicer)
    assert page.ui.atlasAgeForm.isHidden() or page.node is None or page.node.atlasBrowser is None


def test_subjects_are_brought_to_an_atlas_over_age_from_its_folder(slicer, page, tmp_path):
    """The atlas was built by the command line; the ages are those of a table that is chosen now, whatever method the page is at."""
    from DeepRegistrationLib.__main__ import main

    page.logic._runner = InProcessRunner()
    data, node, atlas = growing(tmp_path / "data"), page.node, tmp_path / "atlas"
    order = ("atlas", "build", "--cohort", data / "list.csv", "--covariate", "weeks", "--method", "spatiotemporal-atlas:aligned", "--iterations", 1,
             "--set", "steps=5", "--set", "width=4", "--set", "levels=2", "--set", "knots=3", "--out", atlas, "--threads", 1, "--quiet")
    assert main([str(part) for part in order]) == 0
    node.atlasData, node.atlasFolder = str(data), str(atlas)
    settle(slicer)
    page.ui.atlasListButton.click()
    wait_until(slicer, lambda: page.job is None, 20)

    def bring(*names):
        page.ui.atlasTable.clearSelection()
        for name in names:
            page.ui.atlasTable.selectRow([row[0] for row in rows(page)].index(name))
        settle(slicer)
        page.ui.atlasRetryButton.click()
        wait_until(slicer, lambda: page.job is None, 60)

    assert node.atlasMethod == "icon-atlas" and not page.ui.atlasCovariateBox.isHidden()
    bring("s3")
    assert "depends on age; choose the column" in status(page)
    (tmp_path / "people.csv").write_text("subject,week\ns3,8.5\ns4,\n", "utf-8")
    page.ui.atlasCovariatesEdit.currentPath = str(tmp_path / "people.csv")
    settle(slicer)
    choose(page.ui.atlasCovariateBox, "week")
    bring("s3")
    assert {row[0]: row[1] for row in rows(page)}["s3"] == "brought" and (atlas / "carried" / "s3" / "transform.h5").is_file()
    bring("s4")
    assert "no age is known of it" in {row[0]: row[3] for row in rows(page)}["s4"]


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


# ----------------------------------------------------------------------------------------------------- cohort structure


@pytest.fixture
def structure(slicer, panel):
    panel.logic._runner = InProcessRunner()
    panel.open("structure")
    settle(slicer)
    return panel.page("structure")


def test_types_of_label_maps_of_a_folder(slicer, structure, tmp_path):
    """Answer, pictures, tables; a type goes to the other page; the table goes into the scene."""
    made = planted(3, 24, 2, 2)
    (tmp_path / "maps").mkdir()
    for k, row in enumerate(made.maps):
        write_labels(
            Labels(torch.as_tensor(row.reshape(1, 1, SIDE, SIDE) + 1), Grid.from_parts((SIDE, SIDE), 2.0)),
            tmp_path / "maps" / f"s{k:02d}.nii.gz",
        )
    (tmp_path / "people.csv").write_text("id,site\n" + "\n".join(f"s{k:02d},{'AB'[made.types[k]]}" for k in range(24)))
    page, node = structure, structure.node
    assert (
        page.ui.structureMissingLabel.text == "Choose a folder or a list." and page.ui.structureAnswerLabel.isHidden()
    )
    node.structureData, node.structureCovariates, node.structureFolder = (
        str(tmp_path / "maps"),
        str(tmp_path / "people.csv"),
        str(tmp_path / "out"),
    )
    node.structureValues = json.dumps({"permutations": 199, "draws": 199})
    settle(slicer)
    page.ui.structureRunButton.click()
    wait_until(slicer, lambda: not page.running, 60)
    assert page.ui.structureAnswerLabel.text.startswith(
        "One atlas is not enough: 24 subjects fall into 2 types of 12, 12"
    )
    assert status(page).startswith("24 subjects; labels: dimension") and (tmp_path / "out" / "report.html").is_file()
    for k in range(page.ui.structurePictureBox.count):
        page.ui.structurePictureBox.setCurrentIndex(k)
        assert page.ui.structurePictureLabel.pixmap.width() == 340
    assert (
        page.ui.structureEffectsTable.rowCount > 0
        and page.ui.structureTypesTable.rowCount == 2
        and not page.ui.structureBuildButton.enabled
    )
    page.ui.structureTypesTable.selectRow(1)
    settle(slicer)
    page.ui.structureBuildButton.click()
    settle(slicer)
    build = page.panel.page("build")
    second = {row["subject"] for row in page.found["subjects"] if row["type"] == 2}
    assert not page.panel.buttons["build"].collapsed and build.node.atlasData == str(tmp_path / "maps")
    assert (
        len(rows(build)) == 24
        and set(json.loads(build.node.atlasLeftOut)).isdisjoint(second)
        and len(json.loads(build.node.atlasLeftOut)) == 12
    )
    page.ui.structureTableButton.click()
    table = slicer.util.getNode("out subjects")
    assert table.GetNumberOfRows() == 24 and "Tables" in status(page)


def test_label_maps_of_the_scene_and_a_failure(slicer, structure):
    page = structure
    reference = volume(slicer, "reference")
    for k in range(8):
        segmentation(slicer, reference, f"subject {k}", shift=k % 3)
    choose(page.ui.structureSourceBox, "scene")
    settle(slicer)
    assert (
        page.ui.structureNodesList.count == 8
        and page.ui.structureRunButton.enabled
        and page.ui.structureDataEdit.isHidden()
    )
    page.node.structureValues = json.dumps({"draws": 99})
    page.ui.structureRunButton.click()
    wait_until(slicer, lambda: not page.running, 60)
    assert page.ui.structureAnswerLabel.text.startswith("One atlas is enough as far as 8 subjects"), status(page)
    page.node.structureSource, page.node.structureData = "features", "nothing.csv"
    settle(slicer)
    page.ui.structureRunButton.click()
    wait_until(slicer, lambda: not page.running, 60)
    assert "nothing.csv does not exist" in status(page)


# --------------------------------------------------------------------------------------------------------------- layout


@pytest.mark.parametrize("factor", [1.0, 1.6])
@pytest.mark.parametrize("name", ["build", "structure", "identify"])
def test_fits_400_pixels(slicer, panel, name, factor):
    check_fits(slicer, panel, show(slicer, panel, name), factor)


def test_every_control_has_help(slicer, panel):
    assert [without_help(panel.page(name)) for name in ("build", "structure", "identify")] == [[], [], []]


def test_the_panel_opens_without_torch():
    program = (
        "import sys; import harness; from harness.application import install, load; install();"
        f"w = load({str(ROOT / 'AtlasBuilder' / 'AtlasBuilder.py')!r}).createNewWidgetRepresentation(); w.show_module(True);"
        "p = w.self().panel; p.open('structure'); p.open('identify'); assert 'torch' not in sys.modules and 'sklearn' not in sys.modules; w.self().cleanup()"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT / "Testing", timeout=120
    )
    assert answer.returncode == 0, answer.stderr
