"""The panel of QMRIRegister by clicks: slices of the scene and of a folder, their order and directions, results in the scene, motion; its layout."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

pytest.importorskip("PySide6")
pytest.importorskip("slicer")

from panels import (  # noqa: E402, F401
    ScriptedRunner, application, check_fits, choose, module_panel, no_slot_errors, scene, settle, show, slicer, status, wait_until, without_help)
from test_jobs_qmri import QUICK, known, scans  # noqa: E402

import truths_hip  # noqa: E402

from DeepRegistrationLib import exchange  # noqa: E402
from DeepRegistrationLib.errors import InputError  # noqa: E402
from DeepRegistrationUI.job import InProcessRunner  # noqa: E402
from DeepRegistrationUI.qmri_check import SliceCheck, flat, mirror  # noqa: E402

ORDER, FLIPS = [1, 0, 2, 3, 4, 5], [(False, False)] * 3 + [(True, False)] + [(False, False)] * 2


@pytest.fixture
def panel(slicer, module_panel):
    """The panel of QMRIRegister with a runner that follows a script."""
    made = module_panel("QMRIRegister").panel
    made.logic._runner = ScriptedRunner()
    return made


@pytest.fixture
def page(panel):
    return panel.page("slices")


def load(slicer, truth) -> tuple[list, object]:
    """(nodes of the slices, node of the volume) of a known set."""
    from DeepRegistrationUI import mrml

    def add(image):
        return mrml.volume_node(slicer.mrmlScene, exchange.Volume(image.data[0, 0].numpy(), image.grid, image.name))

    return [add(image) for image in truth.problem.slices], add(truth.problem.volume)


def chosen(slicer, page, truth):
    """The nodes of a known set, chosen in the page."""
    nodes, volume = load(slicer, truth)
    page.node.qmriVolume, page.node.qmriValues = volume, json.dumps(QUICK)
    settle(slicer)
    return nodes, volume


def result_of(truth, registered: bool = True, plane=None, flips=None) -> dict:
    """What the worker would answer for a known set: the true maps, and the slices themselves as their emulation."""
    count = len(truth.problem.slices)
    plane, flips = plane or list(range(count)), flips or [(False, False)] * count
    rows = [{"name": image.name, "plane": plane[k], "flips": list(flips[k]), "similarity": 0.4, "inside": 0.9, "own_shift_mm": 0.0,
             "own_turn_degrees": 0.0, "matrix": exchange.Matrix(truth.each[k]),
             "emulated": exchange.Volume(image.data[0, 0].numpy(), image.grid, f"{image.name} emulated")}
            for k, image in enumerate(truth.problem.slices)]
    reasons = [] if registered else ["another pose far away is nearly as good; give a start closer to the truth"]
    remarks = ["the sides are those of the headers"] if registered else []
    return {"registered": registered, "reasons": reasons, "remarks": remarks, "matrix": exchange.Matrix(truth.truth), "slices": rows,
            "start": "header", "provenance": {},
            "std": {"distance_mm": 0.4, "shift_mm": [0.1, 0.2, 0.3], "turn_degrees": [0.4, 0.5, 0.6]},
            "evidence": {"contrast": 12.0, "lead": 0.5, "halves": 0.6, "measures": 0.4, "agreeing": 1.0, "overlap": 0.9},
            "curve": {"degrees": [-30.0, 0.0, 30.0], "set": [0.1, 0.3, 0.1]}}


def answered(slicer, page, truth, **how):
    """The page after a scripted registration of a known set."""
    nodes, volume = chosen(slicer, page, truth)
    page.ui.qmriButton.click()
    page.logic._runner.say("done", result=result_of(truth, **how))
    wait_until(slicer, lambda: not page.running, 5)
    settle(slicer)
    return nodes, volume


def corner(node) -> np.ndarray:
    """Where the first pixel of a volume node is in the scene, LPS mm."""
    from DeepRegistrationUI import mrml

    return mrml.grid_of(node).origin


def told(page) -> list[str]:
    return [page.ui.qmriCheckTable.item(k, 1).text() for k in range(page.ui.qmriCheckTable.rowCount)]


# ------------------------------------------------------------------------------------------------------------- choices


def test_it_says_what_is_missing(slicer, page, tmp_path):
    assert page.ui.qmriMissingLabel.text == "Check at least two slices." and not page.ui.qmriButton.enabled
    nodes, volume = load(slicer, known())
    settle(slicer)
    assert page.ui.qmriSlicesList.count == 6, "one-slice volumes only"
    assert page.ui.qmriMissingLabel.text == "Choose the volume."
    page.node.qmriVolume = volume
    settle(slicer)
    assert page.ui.qmriMissingLabel.text == "" and page.ui.qmriButton.enabled and page.ui.qmriButton.text == "Register"
    page.ui.qmriSegmentsBox.checked = True
    settle(slicer)
    assert page.ui.qmriMissingLabel.text.startswith("'slice 1' has no segmentation of the bone")
    choose(page.ui.qmriSourceBox, "folder")
    settle(slicer)
    assert page.ui.qmriMissingLabel.text.startswith("Choose the folder") and page.ui.qmriSlicesList.isHidden() and page.ui.qmriSegmentsBox.isHidden()
    page.ui.qmriDataEdit.currentPath = str(tmp_path)
    settle(slicer)
    assert page.ui.qmriButton.enabled and page.node.qmriData == str(tmp_path)


def test_the_request_is_what_was_chosen(slicer, page):
    import qt

    nodes, volume = chosen(slicer, page, known())
    page.ui.qmriSlicesList.item(5).setCheckState(qt.Qt.Unchecked)
    choose(page.ui.qmriPresetBox, "motion")
    settle(slicer)
    page.ui.qmriAdvancedBox.collapsed = False
    page.form.entries["tried"].setValue(100)
    page.ui.qmriThicknessBox.value = 3.5
    page.ui.qmriMapBox.checked = True
    settle(slicer)
    page.ui.qmriButton.click()
    request = page.logic._runner.jobs[-1].request
    assert [value.name for value in request["slices"]] == [f"slice {k}" for k in range(1, 6)] and request["volume"].name == volume.GetName()
    assert request["method"] == "qmri:motion" and request["values"] == {"tried": 100} and request["thickness"] == 3.5 and request["map"]
    assert request["placement"] is None and page.ui.qmriButton.text == "Cancel" and not page.ui.qmriSlicesList.enabled
    page.ui.qmriResetButton.click()
    settle(slicer)
    page.logic._runner.say("progress", share=0.4, text="all poses", step=0, steps=0, seconds_left=9.0)
    wait_until(slicer, lambda: page.ui.qmriStageLabel.text == "All poses, 9.0 s left", 5)
    page.ui.qmriButton.click()
    assert page.logic._runner.jobs[-1].cancelled
    wait_until(slicer, lambda: not page.running, 5)
    assert status(page) == "The registration was stopped; the scene is as it was." and page.ui.qmriCheckTable.isHidden()


def test_segments_that_were_drawn_go_along(slicer, page):
    from DeepRegistrationUI import mrml

    truth = known(segments=True)
    nodes, volume = chosen(slicer, page, truth)
    for node, labels in zip((*nodes, volume), (*truth.problem.segments, truth.problem.volume_segment)):
        made = mrml.segmentation_node(slicer.mrmlScene, exchange.LabelMap(labels.data[0, 0].numpy().astype(np.uint8), labels.grid, ((1, "femur"),)), "bone")
        made.SetReferenceImageGeometryParameterFromVolumeNode(node)
    page.ui.qmriSegmentsBox.checked = True
    settle(slicer)
    page.ui.qmriButton.click()
    request = page.logic._runner.jobs[-1].request
    assert len(request["segments"]) == 6 and np.array_equal(request["segments"][2].array > 0, truth.problem.segments[2].data[0, 0].numpy() > 0)
    assert request["segments"][2].grid == request["slices"][2].grid and (request["volume_segment"].array > 0).any()


def drawn_on(slicer, node, labels, names):
    """A segmentation on ``node`` with the values of a label map as segments."""
    from DeepRegistrationUI import mrml

    value = exchange.LabelMap(labels.data[0, 0].numpy().astype(np.uint8), labels.grid, tuple(enumerate(names, 1)))
    made = mrml.segmentation_node(slicer.mrmlScene, value, "strokes")
    made.SetReferenceImageGeometryParameterFromVolumeNode(node)
    return made


def test_bones_are_learned_from_strokes_and_then_used(slicer, page):
    from DeepRegistrationUI.qmri_scene import segmentation_of

    page.logic._runner = InProcessRunner()
    truth = known(segments=True)
    nodes, volume = chosen(slicer, page, truth)
    assert page.ui.qmriBonesButton.isHidden()
    page.ui.qmriSegmentsBox.checked = True
    settle(slicer)
    assert not page.ui.qmriBonesButton.isHidden() and not page.ui.qmriBonesButton.enabled
    strokes = drawn_on(slicer, nodes[0], truths_hip.strokes_on(truth.problem.segments[0]), ("bone", "other"))
    drawn_on(slicer, volume, truth.problem.volume_segment, ("femur",))
    settle(slicer)
    page.show_readiness()
    assert page.ui.qmriBonesButton.enabled and page.ui.qmriMissingLabel.text.startswith("'slice 2' has no segmentation of the bone")
    for _ in range(2):
        page.ui.qmriBonesButton.click()
        wait_until(slicer, lambda: not page.running, 60)
        settle(slicer)
        assert status(page).startswith("The bone was learned on 6 slices"), status(page)
        assert len(slicer.util.getNodesByClass("vtkMRMLSegmentationNode")) == 8, "an earlier answer is replaced"
    assert segmentation_of(nodes[0]) is not strokes and page.ui.qmriMissingLabel.text == ""
    page.logic._runner = ScriptedRunner()
    page.ui.qmriButton.click()
    for sent, true in zip(page.logic._runner.jobs[-1].request["segments"], truth.problem.segments):
        found, true = sent.array > 0, true.data[0, 0].numpy() > 0
        assert 2 * (found & true).sum() / (found.sum() + true.sum()) > 0.75


# ------------------------------------------------------------------------------------------------------------- results


def test_registered_slices_go_into_the_volume(slicer, page):
    truth = known()
    nodes, volume = chosen(slicer, page, truth)
    before = [corner(node) for node in nodes]
    page.ui.qmriButton.click()
    page.logic._runner.say("done", result=result_of(truth))
    wait_until(slicer, lambda: not page.running, 5)
    for k, node in enumerate(nodes):
        expected = truth.each[k][:3, :3] @ before[k] + truth.each[k][:3, 3]
        assert np.allclose(corner(node), expected, atol=1e-6), "the slice is where the volume shows it"
        assert np.allclose(corner(slicer.util.getNode(f"slice {k + 1} emulated")), expected, atol=1e-6)
    whole = slicer.util.getNode(f"Slices in {volume.GetName()}")
    assert nodes[0].GetParentTransformNode().GetParentTransformNode() is whole
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    folder = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(slicer.util.getNode("slice 3 emulated")))
    assert hierarchy.GetItemName(folder) == whole.GetName()
    said = "Registered; the position is known to 0.4 mm (one standard deviation). The sides are those of the headers."
    assert page.ui.qmriAnswerLabel.text == said
    assert page.ui.qmriCheckTable.rowCount == 6 and told(page)[0] == "slice 1\nsimilarity 0.40, 90 % inside"
    assert page.ui.qmriCurveLabel.pixmap.width() == 340 and page.ui.qmriFiguresTable.item(0, 1).text() == "0.4"
    table = slicer.util.getNode(f"{whole.GetName()}, slices")
    assert table.GetNumberOfRows() == 6 and table.GetTable().GetColumnByName("own shift (mm)") is not None
    page.ui.qmriCheckTable.selectRow(2)
    settle(slicer)
    background = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSliceCompositeNode").GetBackgroundVolumeID()
    assert background == nodes[2].GetID(), "the views show the selected slice"


def test_the_search_is_shown_while_it_runs(slicer, page):
    truth = known()
    nodes, volume = chosen(slicer, page, truth)
    page.ui.qmriButton.click()
    assert page.logic._runner.jobs[-1].request["live"] == {"interval_s": 0.2} and page.ui.qmriCheckTable.isHidden()
    shades = np.tile(np.linspace(0, 1, 64), (6, 64, 1))
    page.logic._runner.say("preview", pictures=shades, linear=np.eye(4), grid=None, step=1)
    wait_until(slicer, lambda: not page.ui.qmriCheckTable.isHidden(), 5)
    assert page.ui.qmriCheckTable.rowCount == 6 and told(page)[2] == "slice 3\nsearching"
    first = page.ui.qmriCheckTable.cellWidget(0, 0).pixmap.toImage()
    page.logic._runner.say("preview", pictures=shades[:, :, ::-1], linear=np.eye(4), grid=None, step=2)
    wait_until(slicer, lambda: page.ui.qmriCheckTable.cellWidget(0, 0).pixmap.toImage() != first, 5)
    page.ui.qmriButton.click()
    wait_until(slicer, lambda: not page.running, 5)
    assert page.ui.qmriCheckTable.isHidden(), "nothing is left of a search that was stopped"


def test_not_registered_says_why_and_leaves_the_scene(slicer, page):
    truth = known()
    nodes, volume = chosen(slicer, page, truth)
    count = slicer.mrmlScene.GetNumberOfNodes()
    page.ui.qmriButton.click()
    page.logic._runner.say("done", result=result_of(truth, registered=False))
    wait_until(slicer, lambda: not page.running, 5)
    assert page.ui.qmriAnswerLabel.text.startswith("NOT REGISTERED. Another pose far away is nearly as good")
    assert status(page).startswith("The slices are not registered") and slicer.mrmlScene.GetNumberOfNodes() == count
    assert all(node.GetParentTransformNode() is None for node in nodes) and page.ui.qmriCheckTable.rowCount == 6


def test_a_failure_is_one_sentence(slicer, page):
    chosen(slicer, page, known())
    page.ui.qmriButton.click()
    page.logic._runner.say("failed", kind="input", message="slice 1 has the constant value 0", offers=[])
    wait_until(slicer, lambda: not page.running, 5)
    assert status(page) == "slice 1 has the constant value 0" and page.ui.qmriButton.text == "Register"


@pytest.mark.parametrize("which", ["slice", "volume"])
def test_a_node_that_was_deleted_meanwhile(slicer, page, which):
    truth = known()
    nodes, volume = chosen(slicer, page, truth)
    page.ui.qmriButton.click()
    slicer.mrmlScene.RemoveNode(nodes[3] if which == "slice" else volume)
    page.logic._runner.say("done", result=result_of(truth))
    wait_until(slicer, lambda: not page.running, 5)
    assert f"'{'slice 4' if which == 'slice' else 'the volume'}' was deleted during the registration" in status(page)
    assert slicer.mrmlScene.GetFirstNodeByName("slice 1 emulated") is None


def test_slices_under_transforms_of_the_user_and_of_an_earlier_result(slicer, page):
    """A placement of one's own is part of where a slice is; an earlier result of this module is not."""
    truth = known()
    nodes, volume = chosen(slicer, page, truth)
    place = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "mine")
    matrix = np.eye(4)
    matrix[:3, 3] = (5, 0, 0)
    from DeepRegistrationUI import mrml

    place.SetMatrixTransformToParent(mrml.vtk_matrix(matrix))
    nodes[0].SetAndObserveTransformNodeID(place.GetID())
    start = corner(nodes[0])
    for _ in range(2):
        page.ui.qmriButton.click()
        assert np.allclose(page.logic._runner.jobs[-1].request["slices"][0].grid.origin, start, atol=1e-6)
        page.logic._runner.say("done", result=result_of(truth))
        wait_until(slicer, lambda: not page.running, 5)
        expected = truth.each[0][:3, :3] @ start + truth.each[0][:3, 3]
        assert np.allclose(corner(nodes[0]), expected, atol=1e-6), "once, not twice"
    assert place.GetParentTransformNode() is None, "the user's own transform stays where it is"


def test_a_deformation_comes_between_a_slice_and_its_pose_and_is_left_out_of_the_next_request(slicer, page):
    truth = known()
    nodes, volume = chosen(slicer, page, truth)
    start = corner(nodes[1])
    page.ui.qmriButton.click()
    made, plane = result_of(truth), truth.problem.slices[1].grid.pad([0, 0, 1])
    field = np.tile(np.array([3.0, 0.0, 0.0], np.float32), (*plane.shape, 1))
    made["slices"][1] |= {"deformation": exchange.Lattice(field, plane), "bend_mm": 3.0, "bend_gain": 0.1, "bend_gain_error": 0.01}
    page.logic._runner.say("done", result=made)
    wait_until(slicer, lambda: not page.running, 5)
    parent = nodes[1].GetParentTransformNode()
    assert parent.GetName().endswith("slice 2, deformation") and "deformed by up to 3.0 mm" in told(page)[1]
    import vtk

    middle = truth.problem.slices[1].grid.centre
    moved = vtk.vtkGeneralTransform()
    parent.GetTransformToWorld(moved)
    seen = np.array(moved.TransformPoint(*(middle * [-1, -1, 1]))) * [-1, -1, 1]
    assert np.allclose(seen, truth.each[1][:3, :3] @ (middle + [3, 0, 0]) + truth.each[1][:3, 3], atol=1e-3), "the slice is where its pixels were read"
    page.ui.qmriButton.click()
    assert np.allclose(page.logic._runner.jobs[-1].request["slices"][1].grid.origin, start, atol=1e-6)
    assert nodes[1].GetParentTransformNode() is parent, "where it was"


def test_values_on_the_surface_of_a_segmentation(slicer, page):
    from vtk.util.numpy_support import vtk_to_numpy

    page.logic._runner = InProcessRunner()
    truth = known(segments=True)
    nodes, volume = chosen(slicer, page, truth)
    page.node.qmriSurface = drawn_on(slicer, volume, truth.problem.volume_segment, ("femur",))
    page.ui.qmriSurfaceDistanceBox.value = 3.0
    settle(slicer)
    page.ui.qmriButton.click()
    wait_until(slicer, lambda: not page.running, 60)
    model = slicer.util.getNode(f"Slices in {volume.GetName()}, values on the surface")
    points = vtk_to_numpy(model.GetPolyData().GetPoints().GetData()) * [-1, -1, 1]
    away = np.abs(truths_hip.Hip(0).femur(points[np.abs(points).max(1) < 60]))
    values = vtk_to_numpy(model.GetPolyData().GetPointData().GetArray("value"))
    assert away.mean() < 1.5 and 0.2 < np.isfinite(values).mean() < 0.9 and 0 < np.nanmedian(values) < 60
    assert model.GetDisplayNode().GetScalarVisibility() and model.GetDisplayNode().GetActiveScalarName() == "value"


# -------------------------------------------------------------------------------------------------- order and directions


def test_corrections_are_shown_and_sent(slicer, page):
    truth = known()
    answered(slicer, page, truth)
    table = page.ui.qmriCheckTable
    assert not page.ui.qmriMirrorRowsButton.enabled and not page.ui.qmriAgainButton.enabled
    table.selectRow(3)
    settle(slicer)
    assert page.ui.qmriMirrorRowsButton.enabled and not page.ui.qmriExchangeButton.enabled
    page.ui.qmriMirrorRowsButton.click()
    assert told(page)[3] == "slice 4\nmirrored left-right\nchanged, not registered yet" and page.ui.qmriAgainButton.enabled
    page.ui.qmriMirrorColumnsButton.click()
    page.ui.qmriMirrorRowsButton.click()
    assert told(page)[3] == "slice 4\nmirrored up-down\nchanged, not registered yet"
    page.ui.qmriMirrorColumnsButton.click()
    assert not page.ui.qmriAgainButton.enabled, "as it was found"
    import qt

    table.clearSelection()
    model = table.selectionModel()
    for k in (0, 1):
        model.select(table.model().index(k, 0), qt.QItemSelectionModel.Select | qt.QItemSelectionModel.Rows)
    settle(slicer)
    page.ui.qmriExchangeButton.click()
    assert told(page)[0].startswith("slice 1\non plane 2\n") and told(page)[1].startswith("slice 2\non plane 1\n")
    page.ui.qmriAgainButton.click()
    assert page.logic._runner.jobs[-1].request["placement"] == {"plane": ORDER, "flips": [[False, False]] * 6}
    page.logic._runner.say("done", result=result_of(truth, plane=ORDER))
    wait_until(slicer, lambda: not page.running, 5)
    assert "Order or direction differ from the headers: slice 1, slice 2." in page.ui.qmriAnswerLabel.text
    page.ui.qmriSlicesList.item(0).setCheckState(qt.Qt.Unchecked)
    table.selectRow(1)
    settle(slicer)
    assert not page.ui.qmriMirrorRowsButton.enabled, "another set of slices than the one that is shown"


def test_the_check_shows_what_the_volume_would_show():
    pictures = [np.arange(6.0).reshape(1, 2, 3) + 10 * k for k in range(2)] + [np.zeros((1, 4, 3))]
    rows = [{"name": f"s{k}", "plane": (1, 0, 2)[k], "flips": (k == 0, False),
             "emulated": exchange.Volume(picture, truths_hip.Grid.from_parts(picture.shape, 1.0), "")} for k, picture in enumerate(pictures)]
    check = SliceCheck(rows, pictures)
    assert not check.changed and all(np.array_equal(check.expected(k), pictures[k][0]) for k in range(3))
    check.mirror([1], 1)
    assert check.changed and np.array_equal(check.expected(1), pictures[1][0, ::-1])
    check.exchange(0, 1)
    assert np.array_equal(check.expected(0), mirror(pictures[1][0], (True, False))) and check.placement["plane"] == [0, 1, 2]
    with pytest.raises(InputError, match="'s0' and 's2' have different numbers of pixels"):
        check.exchange(0, 2)
    assert flat(np.zeros((4, 1, 5))).shape == (4, 5)


# --------------------------------------------------------------------------------------------------- real runs, scripts


def test_a_script_registers_corrects_and_asks_for_motion(slicer):
    """No panel: an order that is set by hand, its transforms in the scene; what cannot be registered raises."""
    from DeepRegistrationUI.qmri_logic import QMRIRegisterLogic

    logic = QMRIRegisterLogic(runner=InProcessRunner())
    truth = known(order=ORDER, flips=FLIPS)
    nodes, volume = load(slicer, truth)
    before = [corner(node) for node in nodes]
    found = logic.register(nodes, volume, values=QUICK, placement={"plane": ORDER, "flips": FLIPS}, map=True, device="cpu", name="hip")
    assert found["registered"], found["reasons"]
    for k, node in enumerate(nodes):
        assert np.linalg.norm(corner(node) - (truth.each[k][:3, :3] @ before[k] + truth.each[k][:3, 3])) < 4, "mm, at the corner of the picture"
    values = slicer.util.arrayFromVolume(found["nodes"]["map"])
    assert found["nodes"]["set"].GetName() == "hip" and 0.01 < np.isfinite(values).mean() < 0.5
    with pytest.raises(InputError, match="1 slices were given"):
        logic.register(nodes[:1], volume)
    with pytest.raises(InputError, match="no preset 'none'"):
        logic.register(nodes, volume, preset="none")
    assert logic.getParameterNode().qmriPreset == "default"
    logic.shutdown()


def test_the_panel_registers_for_real(slicer, page):
    page.logic._runner = InProcessRunner()
    truth = known()
    nodes, volume = chosen(slicer, page, truth)
    page.ui.qmriButton.click()
    wait_until(slicer, lambda: not page.running, 60)
    assert page.work.state == "done" and page.found["registered"], page.ui.qmriAnswerLabel.text
    assert status(page).startswith("The slices lie in the volume") and nodes[5].GetParentTransformNode() is not None


@pytest.fixture
def motion(slicer, panel):
    panel.open("motion")
    settle(slicer)
    return panel.page("motion")


def test_motion_of_volumes_of_the_scene(slicer, motion):
    import qt

    from DeepRegistrationUI import mrml

    motion.logic._runner = InProcessRunner()
    assert motion.ui.motionMissingLabel.text == "Check at least two scans."
    for value in scans():
        mrml.volume_node(slicer.mrmlScene, value)
    settle(slicer)
    for k in range(motion.ui.motionScansList.count):
        motion.ui.motionScansList.item(k).setCheckState(qt.Qt.Checked)
    motion.ui.motionTransformsBox.checked = True
    motion.node.motionValues = json.dumps({"rounds": 45})
    settle(slicer)
    motion.ui.motionRunButton.click()
    wait_until(slicer, lambda: not motion.running, 60)
    settle(slicer)
    assert status(motion).startswith("4 scans moved by") and motion.ui.motionTable.rowCount == 4, status(motion)
    assert slicer.util.getNode("Motion average").GetImageData() is not None and slicer.util.getNode("Motion sigma") is not None
    average = slicer.util.arrayFromVolume(slicer.util.getNode("Motion average"))
    assert average.shape == (10, 14, 16) and slicer.util.getNode("Motion scan 4") is not None
    moved = [float(motion.ui.motionTable.item(k, 1).text().split(",")[0]) for k in range(4)]
    assert moved[0] > 1 and moved[3] < -1, "R is against L: the first scan lies to the left"
    assert motion.ui.motionScansList.count == 4, "results are no scans"
    assert motion.ui.motionShiftsLabel.pixmap.width() == 340 and motion.ui.motionTurnsLabel.pixmap.width() == 340


def test_a_sequence_of_scans_is_sent(slicer, motion):
    from DeepRegistrationUI import mrml

    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "series")
    for k, value in enumerate(scans(3)):
        node = mrml.volume_node(slicer.mrmlScene, value)
        sequence.SetDataNodeAtValue(node, str(k))
        slicer.mrmlScene.RemoveNode(node)
    choose(motion.ui.motionSourceBox, "series")
    settle(slicer)
    assert motion.ui.motionMissingLabel.text == "Choose a series." and motion.ui.motionScansList.isHidden()
    motion.ui.motionSeriesSelector.setCurrentNode(sequence)
    settle(slicer)
    motion.ui.motionRunButton.click()
    request = motion.logic._runner.jobs[-1].request
    assert len(request["scans"]) == 3 and request["method"] == "rician-motion:default" and np.array_equal(request["scans"][1].array, scans(3)[1].array)
    motion.logic._runner.say("failed", kind="input", message="the scans hold negative values", offers=[])
    wait_until(slicer, lambda: not motion.running, 5)
    assert status(motion) == "the scans hold negative values"


def test_the_scene_can_be_closed_while_it_runs(slicer, page):
    chosen(slicer, page, known())
    page.ui.qmriButton.click()
    slicer.mrmlScene.Clear(0)
    settle(slicer)
    assert page.logic._runner.jobs[-1].cancelled and page.work is None and page.ui.qmriSlicesList.count == 0


# --------------------------------------------------------------------------------------------------------------- layout


@pytest.mark.parametrize("factor", [1.0, 1.6])
@pytest.mark.parametrize("name", ["slices", "motion"])
def test_fits_400_pixels(slicer, panel, name, factor):
    if name == "slices":
        answered(slicer, panel.page("slices"), known())
    check_fits(slicer, panel, show(slicer, panel, name), factor)


def test_every_control_has_help(slicer, panel):
    assert [without_help(panel.page(name)) for name in ("slices", "motion")] == [[], []]


def test_the_panel_opens_without_torch():
    program = (
        "import sys; import harness; from harness.application import install, load; install();"
        f"w = load({str(ROOT / 'QMRIRegister' / 'QMRIRegister.py')!r}).createNewWidgetRepresentation(); w.show_module(True);"
        "p = w.self().panel; p.open('motion'); assert 'torch' not in sys.modules; w.self().cleanup()"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT / "Testing", timeout=120)
    assert answer.returncode == 0, answer.stderr
