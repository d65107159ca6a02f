"""AtlasBuilder with real jobs: an atlas of files and of the scene, one over age, subjects brought to them, the structure of a cohort."""

import json

import numpy as np
import pytest
import torch
from truths_cohort import SIDE, planted

pytest.importorskip("PySide6")
pytest.importorskip("slicer")

from panels import (  # noqa: E402, F401
    application, choose, module_panel, no_slot_errors, scene, segmentation, settle, slicer, status, volume, wait_until)
from panels_atlas import growing, page, panel, rows  # noqa: E402, F401

from DeepRegistrationLib.geometry import Grid  # noqa: E402
from DeepRegistrationLib.image import Image, Labels  # noqa: E402
from DeepRegistrationLib.io import read_image, write_image, write_labels  # noqa: E402
from DeepRegistrationUI.atlas_run import is_begun, is_done  # noqa: E402
from DeepRegistrationUI.job import InProcessRunner  # noqa: E402

# ------------------------------------------------------------------------------------------------------- build an atlas


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


def test_labels_of_the_atlas_come_on_a_subject_that_is_brought(slicer, page, tmp_path):
    """A subject unlike the atlas is brought with a remark."""
    data = built(slicer, page, tmp_path)
    noise = np.random.default_rng(0).random((1, 1, 24, 26)).astype(np.float32)
    write_image(Image(torch.as_tensor(noise), Grid.from_parts((24, 26), 2.0)), data / "s9.nii.gz")
    page.ui.atlasListButton.click()
    wait_until(slicer, lambda: page.job is None, 60)
    for name in ("s3", "s9"):
        page.ui.atlasTable.clearSelection()
        page.ui.atlasTable.selectRow([row[0] for row in rows(page)].index(name))
        settle(slicer)
        page.ui.atlasRetryButton.click()
        wait_until(slicer, lambda: page.job is None, 60)
    labels = slicer.util.getNode("labels of brain on s3")
    assert labels.IsA("vtkMRMLSegmentationNode") and labels.GetSegmentation().GetNumberOfSegments() == 1
    found = {row[0]: row for row in rows(page)}
    assert found["s9"][1] == "brought" and "unlike the atlas" in found["s9"][3] and "unlike" not in found["s3"][3]
    assert "1 are unlike the atlas" in status(page)


def test_a_finished_atlas_is_shown_again_from_its_folder(slicer, page, tmp_path):
    built(slicer, page, tmp_path)
    before = [row[:2] + row[3:] for row in rows(page) if row[1] != "left out"]
    folder = page.node.atlasFolder
    slicer.mrmlScene.Clear(0)
    settle(slicer)
    assert page.ui.atlasShowButton.isHidden()
    page.node.atlasFolder = folder
    settle(slicer)
    assert not page.ui.atlasShowButton.isHidden() and rows(page) == []
    page.ui.atlasShowButton.click()
    settle(slicer)
    assert slicer.util.getNode("brain atlas") is not None and slicer.util.getNode("brain labels, STAPLE") is not None
    assert sorted(row[:2] + row[3:] for row in rows(page)) == sorted(before) and "in the scene" in status(page)
    (tmp_path / "brain" / "quality.csv").unlink()
    page.ui.atlasShowButton.click()
    assert "is not complete" in status(page)


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
    assert growth.GetNumberOfRows() == 3 and growth.GetTable().GetColumnByName("volume (mm^2)") is not None
    page.ui.atlasTable.selectRow([row[0] for row in rows(page)].index("s4"))
    settle(slicer)
    page.ui.atlasRetryButton.click()
    wait_until(slicer, lambda: page.job is None, 60)
    assert "no age is known of it" in {row[0]: row[3] for row in rows(page)}["s4"]
    slicer.mrmlScene.Clear(0)
    settle(slicer)
    assert page.ui.atlasAgeForm.isHidden() or page.node is None or page.node.atlasBrowser is None
    page.node.atlasFolder = str(tmp_path / "growth")
    settle(slicer)
    page.ui.atlasShowButton.click()
    settle(slicer)
    assert not page.ui.atlasAgeForm.isHidden() and slider.maximum == 2 and slicer.util.getNode("growth growth").GetNumberOfRows() == 3


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
