"""What comes back from a registration of slices: nodes and transforms of the scene, the answer, corrections of order and direction."""

import numpy as np
import pytest

pytest.importorskip("PySide6")
pytest.importorskip("slicer")

from panels import application, module_panel, no_slot_errors, scene, settle, slicer, status, wait_until  # noqa: E402, F401
from panels_qmri import answered, beside, chosen, corner, drawn_on, page, panel, result_of, told  # noqa: E402, F401
from test_jobs_qmri import known  # noqa: E402

import truths_hip  # noqa: E402

from DeepRegistrationLib import exchange  # noqa: E402
from DeepRegistrationLib.errors import InputError  # noqa: E402
from DeepRegistrationUI.job import InProcessRunner  # noqa: E402
from DeepRegistrationUI.qmri_check import SliceCheck, flat, mirror  # noqa: E402

ORDER = [1, 0, 2, 3, 4, 5]


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


def test_a_second_result_has_a_name_of_its_own(slicer, page):
    answered(slicer, page, known())
    page.ui.qmriButton.click()
    page.logic._runner.say("done", result=result_of(known()))
    wait_until(slicer, lambda: not page.running, 5)
    assert slicer.util.getNode("Slices in volume").GetID() != slicer.util.getNode("Slices in volume (2)").GetID()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    assert hierarchy.GetItemChildWithName(hierarchy.GetSceneItemID(), "Slices in volume (2)")


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
    table, shown = slicer.util.getNode(f"Slices in {volume.GetName()}, regions"), page.ui.qmriRegionsTable
    assert table.GetNumberOfRows() == 1 and table.GetCellText(0, 1) == "femur" and float(table.GetTable().GetValueByName(0, "mean").ToDouble()) > 5
    assert not shown.isHidden() and [shown.item(0, k).text() for k in (0, 1)] == ["femur", "value"] and int(shown.item(0, 4).text()) > 100


def test_maps_that_go_along_follow_their_slices(slicer, page):
    nodes, volume = chosen(slicer, page, known())
    others = beside(slicer, nodes[:3], "T1", 10.0)
    settle(slicer)
    truth, before = known(), [corner(node) for node in others]
    page.ui.qmriButton.click()
    made = result_of(truth)
    size = truth.problem.volume.grid.shape
    made["maps"] = [exchange.Volume(np.full(size, k, np.float32), truth.problem.volume.grid, name) for k, name in enumerate(("value", "T1 (ms)"))]
    made["regions"] = [{"map": name, "unit": "ms", "label": 1, "region": "bone", "pixels": 9, "mean": 5.0, "sd": None, "median": 5.0, "p05": 4.0, "p95": 6.0,
                        "area_mm2": 10.0} for name in ("value", "T1")]
    page.logic._runner.say("done", result=made)
    wait_until(slicer, lambda: not page.running, 5)
    for k, node in enumerate(others):
        assert np.allclose(corner(node), truth.each[k][:3, :3] @ before[k] + truth.each[k][:3, 3], atol=1e-6)
    assert slicer.util.getNode(f"Slices in {volume.GetName()}, T1 (ms)") is not None and page.ui.qmriRegionsTable.rowCount == 2
    settle(slicer)
    assert page.list.checked() == nodes, "none of them becomes a slice after it has moved"
    page.ui.qmriButton.click()
    assert len(page.logic._runner.jobs[-1].request["maps"]) == 1 and page.logic._runner.jobs[-1].request["maps"][0]["images"][3] is None


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
