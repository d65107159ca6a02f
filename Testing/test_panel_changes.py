"""What the pages do when the scene changes around them: transforms set, hardened and taken away, nodes under a result, renamed, deleted; a second run
of the same pair, a scene that is added to another one."""

import numpy as np
import pytest

pytest.importorskip("PySide6")
pytest.importorskip("slicer")

from panels import (  # noqa: E402, F401
    answer, application, check, choose, landmarks, module_panel, no_slot_errors, pair,
    panel, register, scene, segmentation, settle, slicer, status, volume, wait_until)

from DeepRegistrationUI import mrml, records  # noqa: E402


def shifted(slicer, millimetres: float, name: str = "shift"):
    """A linear transform node that carries what is under it to the right."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", name)
    matrix = np.eye(4)
    matrix[0, 3] = millimetres
    node.SetMatrixTransformToParent(mrml.vtk_matrix(matrix))
    return node


def bent(slicer, grid, name: str = "bend"):
    """A grid transform node."""
    from DeepRegistrationLib.exchange import Lattice

    vectors = np.random.default_rng(0).normal(size=(*grid.shape, 3)).astype(np.float32)
    return mrml.transform_node(slicer.mrmlScene, [Lattice(vectors, grid)], name)


def placed(node) -> np.ndarray:
    """(N, 3) RAS mm: where the points of a markups node are seen."""
    return np.array([node.GetNthControlPointPositionWorld(n) for n in range(node.GetNumberOfControlPoints())])


def go_live(slicer, panel, *nodes) -> None:
    """Carry nodes live by clicks on the page Transfer."""
    panel.node.transferCarry = type(panel.node.transferCarry).LIVE
    panel.open("transfer")
    settle(slicer)
    for node in nodes:
        check(panel.page("transfer"), node)
    panel.page("transfer").ui.transferButton.click()
    assert all(node.GetParentTransformNode() is not None for node in nodes), status(panel.page("transfer"))
    settle(slicer)


# ---------------------------------------------------------------------------------------------------------------- hints


def test_a_bent_volume_is_named_before_apply(slicer, pair):
    page, moving = pair.page("register"), pair.node.movingVolume
    bend = bent(slicer, mrml.grid_of(moving))
    outer = shifted(slicer, 2.0, "outer")
    outer.SetAndObserveTransformNodeID(bend.GetID())
    moving.SetAndObserveTransformNodeID(outer.GetID())
    settle(slicer)
    assert "'moving' is under the non-linear transform 'bend'" in page.ui.missingLabel.text and not page.ui.applyButton.enabled
    outer.SetAndObserveTransformNodeID(None)
    settle(slicer)
    assert page.ui.applyButton.enabled and page.ui.missingLabel.isHidden(), "what is above the volume is linear now"


def test_a_slice_against_a_volume_is_named_before_apply(slicer, pair):
    page = pair.page("register")
    slicer.util.updateVolumeFromArray(pair.node.movingVolume, np.zeros((1, 12, 14), np.float32))
    settle(slicer)
    assert "'moving' is a single slice and 'fixed' is a volume" in page.ui.missingLabel.text and not page.ui.applyButton.enabled
    slicer.util.updateVolumeFromArray(pair.node.fixedVolume, np.ones((1, 12, 14), np.float32))
    settle(slicer)
    assert page.ui.applyButton.enabled


def test_voxels_segments_and_names_that_come_later(slicer, pair):
    page, node = pair.page("register"), pair.node
    node.movingVolume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "later")
    node.fixedMask = segmentation(slicer, node.fixedVolume, "mask")
    settle(slicer)
    assert "'later' holds no voxels" in page.ui.missingLabel.text and page.ui.fixedMaskSegmentBox.count == 2
    slicer.util.updateVolumeFromArray(node.movingVolume, np.ones((5, 6, 7), np.float32))
    node.fixedMask.GetSegmentation().AddEmptySegment("tumour")
    pair.open("transfer")
    node.movingVolume.SetName("day 2")
    settle(slicer)
    assert page.ui.applyButton.enabled and page.ui.fixedMaskSegmentBox.count == 3
    listed = pair.page("transfer").ui.nodesList
    assert "day 2 (volume)" in [listed.item(k).text() for k in range(listed.count)]


def test_the_segment_of_another_mask_is_forgotten(slicer, pair):
    page, node = pair.page("register"), pair.node
    masks = [segmentation(slicer, node.fixedVolume, name) for name in ("first", "second")]
    masks[0].GetSegmentation().AddEmptySegment("lesion", "lesion")
    node.fixedMask = masks[0]
    settle(slicer)
    choose(page.ui.fixedMaskSegmentBox, "lesion")
    assert node.fixedMaskSegment == "lesion"
    node.fixedMask = masks[1]
    settle(slicer)
    assert page.ui.fixedMaskSegmentBox.currentText == "All segments" and node.fixedMaskSegment == ""


def test_changes_during_a_run_are_seen_at_its_end(slicer, pair):
    """The live view moves the volumes all the time, which does not bring the pages up to date each time."""
    page = pair.page("register")
    page.ui.applyButton.click()
    settle(slicer)
    shift = shifted(slicer, 1.0)
    settle(slicer)
    refreshed = []
    page.refresh, refresh = (lambda: refreshed.append(refresh())), page.refresh
    for k in range(3):
        pair.node.fixedVolume.SetAndObserveTransformNodeID(None if k % 2 else shift.GetID())
        settle(slicer)
    assert refreshed == []
    page.ui.applyButton.click()
    wait_until(slicer, lambda: not pair.timer.active and refreshed, 5)


def test_a_start_that_the_volume_is_under_already(slicer, pair):
    page, node = pair.page("register"), pair.node
    node.start, node.startTransform = type(node.start).NODE, shifted(slicer, 3.0, "by hand")
    settle(slicer)
    assert page.ui.applyButton.enabled
    node.movingVolume.SetAndObserveTransformNodeID(node.startTransform.GetID())
    settle(slicer)
    assert "'moving' is under 'by hand' already, which would count twice" in page.ui.missingLabel.text and not page.ui.applyButton.enabled
    node.movingVolume.SetAndObserveTransformNodeID(None)
    settle(slicer)
    assert page.ui.applyButton.enabled


# -------------------------------------------------------------------------------------------------------- what was carried


def test_nothing_is_carried_twice(slicer, pair):
    """Copies and figures of nodes that are live under the result, of a volume and a segmentation with a placement of their own."""
    node, runner = pair.node, pair.logic._runner
    structures, points = segmentation(slicer, node.movingVolume, "organ"), landmarks(slicer, "nodules", [(4, 5, 5), (6, 6, 4)])
    own = shifted(slicer, 0.5, "own")
    structures.SetAndObserveTransformNodeID(own.GetID())
    points.SetAndObserveTransformNodeID(own.GetID())
    node.qualityFixedStructures, node.qualityMovingStructures = segmentation(slicer, node.fixedVolume, "model"), structures
    node.qualityFixedLandmarks, node.qualityMovingLandmarks = landmarks(slicer, "targets", [(5, 5, 5), (7, 6, 4)]), points
    register(slicer, pair)
    page = pair.page("quality")

    def evaluated() -> dict:
        pair.open("quality")
        settle(slicer)
        page.ui.evaluateButton.click()
        wait_until(slicer, lambda: runner.jobs[-1].request["command"] == "evaluate", 5)
        request = runner.jobs.pop().request
        page.ui.evaluateButton.click()
        wait_until(slicer, lambda: page.evaluation is None, 5)
        return request

    def distances() -> list:
        return pair.page("quality").display().landmarks(node.qualityFixedLandmarks, points)[1]

    before, apart = evaluated(), distances()
    page.ui.clearButton.click()
    go_live(slicer, pair, structures, points, node.movingVolume)
    seen = placed(points)
    after = evaluated()
    np.testing.assert_allclose(after["moving_points"].positions, before["moving_points"].positions, atol=1e-9)
    np.testing.assert_array_equal(after["moving_labels"].array, before["moving_labels"].array)
    assert after["moving"].grid.same_as(before["moving"].grid) and distances() == apart
    node.transferCarry = type(node.transferCarry).COPIES
    settle(slicer)
    pair.page("transfer").ui.transferButton.click()
    wait_until(slicer, lambda: runner.jobs[-1].request["command"] == "warp", 5)
    sent = {each["value"].name: each["value"].grid for each in runner.jobs[-1].request["inputs"]}
    assert sent["moving"].same_as(before["moving"].grid)
    assert sent["organ 0"].affine[0, 3] == pytest.approx(-0.5), "where it was drawn, in LPS"
    copy = next(each for each in slicer.util.getNodesByClass("vtkMRMLMarkupsFiducialNode") if each.GetName() == "nodules on fixed")
    np.testing.assert_allclose(placed(copy), seen, atol=1e-3)
    pair.page("transfer").work.cancel()


def test_an_earlier_result_while_another_run_is_shown(slicer, pair):
    """The moving volume is under the live view then, and belongs where it was before."""
    register(slicer, pair)
    node, runner, page, grid = pair.node, pair.logic._runner, pair.page("register"), mrml.grid_of(pair.node.movingVolume)
    node.live = True
    settle(slicer)
    page.ui.applyButton.click()
    wait_until(slicer, lambda: page.run.live is not None, 5)
    assert node.movingVolume.GetParentTransformNode() is not None and records.remark_on_places(node.result) == ""
    pair.open("quality")
    settle(slicer)
    pair.page("quality").ui.evaluateButton.click()
    wait_until(slicer, lambda: runner.jobs[-1].request["command"] == "evaluate", 5)
    assert runner.jobs[-1].request["moving"].grid.same_as(grid)
    pair.page("quality").ui.evaluateButton.click()
    page.ui.applyButton.click()
    wait_until(slicer, lambda: not page.running and pair.page("quality").evaluation is None, 5)
    assert node.movingVolume.GetParentTransformNode() is None


def test_live_nodes_of_one_result_count_for_another_one(slicer, pair):
    """Two runs of a pair are compared while the structures are still shown under the first one."""
    points = landmarks(slicer, "nodules", [(4, 5, 5)])
    register(slicer, pair)
    go_live(slicer, pair, points)
    pair.open("register")
    register(slicer, pair)
    roles = records.roles_of(pair.node.result)
    np.testing.assert_allclose(mrml.points_of(points, records.carriers_of(roles, "moving")).positions, [[-4, -5, 5]])


def test_live_nodes_as_guides_of_the_next_run(slicer, pair):
    """Structures that are still shown on the fixed volume belong to the moving one, unless that is shown there as well."""
    node, runner = pair.node, pair.logic._runner
    points, mask = landmarks(slicer, "nodules", [(4, 5, 5)]), segmentation(slicer, node.movingVolume, "organ")
    register(slicer, pair)
    go_live(slicer, pair, points, mask)
    node.fixedLandmarks, node.movingLandmarks, node.movingMask = landmarks(slicer, "targets", [(5, 5, 5)]), points, mask
    for start in (type(node.start).METHOD, type(node.start).LANDMARKS):
        node.start = start
        register(slicer, pair)
        request = runner.jobs[-1].request
        np.testing.assert_allclose(request["moving_points"].positions, [[-4, -5, 5]])
        assert request["moving_mask"].array[3:7, 3:8, 4:9].all() and request["moving_mask"].array.sum() == 4 * 5 * 5
    np.testing.assert_allclose(request["initial"][0].matrix[:3, 3], [1, 0, 0])
    linear = records.all_records(slicer.mrmlScene)[0].GetNodeReference(records.ROLE + "linear")
    linear.SetAndObserveTransformNodeID(None)
    node.movingVolume.SetAndObserveTransformNodeID(linear.GetID())
    register(slicer, pair)
    np.testing.assert_allclose(runner.jobs[-1].request["moving_points"].positions[0, 0], -4 - 1.5)


def test_a_result_on_top_of_another_one(slicer, pair):
    """Rigid first, then the volume and its landmarks are left under that result for the next run: its transform is part of their place then."""
    points = landmarks(slicer, "nodules", [(4, 5, 5)])
    register(slicer, pair, "rigid")
    linear = records.roles_of(pair.node.result)["linear"]
    linear.SetAndObserveTransformNodeID(None)
    for node in (pair.node.movingVolume, points):
        node.SetAndObserveTransformNodeID(linear.GetID())
    seen, grid = mrml.points_of(points).positions, mrml.grid_of(pair.node.movingVolume)
    register(slicer, pair, "on top")
    roles = records.roles_of(pair.node.result)
    assert records.remark_on_places(pair.node.result) == ""
    for live in (False, True):
        if live:
            go_live(slicer, pair, points, pair.node.movingVolume)
        carriers = records.carriers_of(roles, "moving")
        np.testing.assert_allclose(mrml.points_of(points, carriers).positions, seen, atol=1e-6)
        assert mrml.grid_of(pair.node.movingVolume, carriers).same_as(grid) and records.remark_on_places(pair.node.result) == ""


def test_live_nodes_of_the_fixed_side(slicer, pair):
    """Without an inverse in the result, live transfer makes a node for it; what lies under that is read as it was drawn."""
    points = landmarks(slicer, "targets", [(4, 5, 5)])
    pair.node.inverse = False
    register(slicer, pair)
    pair.node.transferDirection = type(pair.node.transferDirection).FIXED_TO_MOVING
    go_live(slicer, pair, points)
    roles = records.roles_of(pair.node.result)
    assert abs(placed(points)[0, 0] - 4) > 1
    np.testing.assert_allclose(mrml.points_of(points, records.carriers_of(roles, "fixed")).positions, [[-4, -5, 5]])


def test_contours_before_are_those_of_before(slicer, pair):
    structures = segmentation(slicer, pair.node.movingVolume, "organ")
    model = segmentation(slicer, pair.node.fixedVolume, "model")
    register(slicer, pair)
    go_live(slicer, pair, structures)
    display = pair.page("quality").display()
    assert display.contours(model, structures, after=False)[1].GetParentTransformNode() is None
    assert display.contours(model, structures)[1].GetParentTransformNode() is records.roles_of(pair.node.result)["linear"]


def test_release_of_what_was_not_carried(slicer, pair):
    register(slicer, pair)
    points = landmarks(slicer, "nodules", [(4, 5, 5)])
    pair.open("transfer")
    settle(slicer)
    page = pair.page("transfer")
    check(page, points)
    page.ui.releaseButton.click()
    assert "None of the checked nodes is under a registration" in status(page)


@pytest.mark.parametrize("ending", [".h5", ".tfm", ""])
def test_the_whole_transform_in_one_file(slicer, pair, tmp_path, monkeypatch, ending):
    """Linear part and deformation, as another program reads them; a place of the scene that the file does not hold is told."""
    import qt

    SimpleITK = pytest.importorskip("SimpleITK")
    pair.node.movingVolume.SetAndObserveTransformNodeID(shifted(slicer, 0.5, "couch").GetID())
    register(slicer, pair)
    path, page = tmp_path / f"Größe 1.5{ending}", pair.page("register")
    monkeypatch.setattr(qt.QFileDialog, "getSaveFileName", staticmethod(lambda *a: str(path)))
    page.ui.saveTransformButton.click()
    written = path if ending else tmp_path / "Größe 1.5.h5"
    assert f"Saved {written}: it takes points of the fixed to the moving volume." in status(page) and "under transforms of the scene ('couch')" in status(page)
    read = SimpleITK.ReadTransform(str(written))
    for point in ((-6.0, -5.0, 5.0), (-3.0, -4.0, 2.0)):
        expected = np.array(point) + (1.5, 0.4, 0)
        np.testing.assert_allclose(read.TransformPoint(point), expected, atol=1e-4)
    assert not slicer.mrmlScene.GetFirstNodeByName("transform")
    monkeypatch.setattr(qt.QFileDialog, "getSaveFileName", staticmethod(lambda *a: str(tmp_path / "none" / "t.h5")))
    page.ui.saveTransformButton.click()
    assert "t.h5 could not be written" in status(page)


# ------------------------------------------------------------------------------------------------ before and after the run


def test_a_second_run_has_names_of_its_own(slicer, pair):
    register(slicer, pair)
    first = records.roles_of(pair.node.result)
    register(slicer, pair)
    second = records.roles_of(pair.node.result)
    made = [role for role in first if role not in ("fixed", "moving")]
    assert not {first[role].GetName() for role in made} & {second[role].GetName() for role in made}
    assert second["deformation"].GetName() == "moving to fixed (2) deformation" and "in the folder 'moving to fixed (2)'" in status(pair.page("register"))


def test_a_volume_that_moves_during_the_run_is_told(slicer, pair):
    page, runner = pair.page("register"), pair.logic._runner
    page.ui.applyButton.click()
    settle(slicer)
    pair.node.fixedVolume.SetAndObserveTransformNodeID(shifted(slicer, 3.0).GetID())
    pair.node.fixedVolume.HardenTransform()
    runner.say("done", result=answer(runner.jobs[-1].request))
    wait_until(slicer, lambda: not page.running, 20)
    assert status(page).startswith("Registered in ") and "'fixed' was moved, hardened or cropped since the registration began" in status(page)


def test_figures_of_a_volume_that_was_hardened_are_told(slicer, pair):
    """The first thing that many do with a result: put the volume under it and harden. It would count twice in the figures."""
    register(slicer, pair)
    assert records.remark_on_places(pair.node.result) == "" and "Note" not in status(pair.page("register"))
    moving = pair.node.movingVolume
    moving.SetAndObserveTransformNodeID(records.roles_of(pair.node.result)["linear"].GetID())
    assert records.remark_on_places(pair.node.result) == "", "under the result it is where it was"
    moving.HardenTransform()
    pair.open("quality")
    page, runner = pair.page("quality"), pair.logic._runner
    settle(slicer)
    page.ui.evaluateButton.click()
    wait_until(slicer, lambda: runner.jobs[-1].request["command"] == "evaluate", 5)
    runner.say("done", result={"rows": answer({**runner.jobs[-1].request, "outputs": []})["metrics"]})
    wait_until(slicer, lambda: page.evaluation is None, 5)
    assert "'moving' was moved, hardened or cropped since the registration began" in status(page)


def test_only_the_result_of_the_chosen_volumes_goes_on(slicer, pair):
    page, node = pair.page("register"), pair.node
    register(slicer, pair)
    settle(slicer)
    assert page.ui.continueButton.enabled
    moving = node.movingVolume
    node.movingVolume = volume(slicer, "another")
    settle(slicer)
    assert not page.ui.continueButton.enabled and "one of other volumes" in page.ui.continueButton.toolTip
    node.movingVolume = moving
    settle(slicer)
    assert page.ui.continueButton.enabled
    slicer.mrmlScene.RemoveNode(records.roles_of(node.result)["linear"])
    settle(slicer)
    assert not page.ui.continueButton.enabled and "not in the scene any more" in page.ui.continueButton.toolTip


def test_offers_end_with_another_volume(slicer, pair):
    page, runner = pair.page("register"), pair.logic._runner
    page.ui.applyButton.click()
    settle(slicer)
    runner.say("failed", message="The memory is full.", offers=["half_resolution"], kind="memory")
    wait_until(slicer, lambda: not page.running, 5)
    assert not page.ui.offersWidget.isHidden()
    pair.node.movingVolume = volume(slicer, "another")
    settle(slicer)
    assert page.ui.offersWidget.isHidden(), "half the resolution was offered for the volumes of before"


def test_a_result_without_its_linear_transform(slicer, pair):
    """Deleted by the user: no display of quality control can do without, and each says so."""
    register(slicer, pair)
    pair.open("quality")
    page = pair.page("quality")
    settle(slicer)
    choose(page.ui.modeBox, "blend")
    for role in ("linear", "warped"):
        slicer.mrmlScene.RemoveNode(records.roles_of(pair.node.result)[role])
    settle(slicer)
    for mode in ("checkerboard", "difference", "inverse"):
        choose(page.ui.modeBox, mode)
        assert "the linear transform of this registration was deleted" in status(page), mode
    page.ui.clearButton.click()
    assert pair.node.movingVolume.GetParentTransformNode() is None


def test_names_that_look_like_tags(slicer, pair):
    import qt

    pair.node.movingVolume.SetName("T1 <b>new</b> & Übersicht 1.5")
    register(slicer, pair)
    label = pair.page("register").ui.registerStatusLabel
    assert "'T1 <b>new</b> & Übersicht 1.5 to fixed'" in label.text and label.textFormat == qt.Qt.PlainText


# ----------------------------------------------------------------------------------------------------- scenes that are added


def test_pairs_of_a_scene_that_is_added_to_another_one(slicer, pair, tmp_path):
    """The nodes get other IDs then; the pairs of the batch follow them and do not take the volumes that have theirs."""
    pair.open("batch")
    page = pair.page("batch")
    page.ui.batchFixedSelector.setCurrentNode(pair.node.fixedVolume)
    page.ui.batchMovingSelector.setCurrentNode(pair.node.movingVolume)
    page.ui.addPairButton.click()
    before = page.rows[0]
    slicer.mrmlScene.SetRootDirectory(str(tmp_path))
    slicer.mrmlScene.Commit(str(tmp_path / "study.mrml"))
    slicer.mrmlScene.Clear(0)
    settle(slicer)
    others = [volume(slicer, name) for name in ("other person", "third person")]
    assert {node.GetID() for node in others} == {before["fixed"], before["moving"]}
    slicer.mrmlScene.SetURL(str(tmp_path / "study.mrml"))
    slicer.mrmlScene.Import()
    settle(slicer)
    row = page.rows[0]
    assert [slicer.mrmlScene.GetNodeByID(row[side]).GetName() for side in ("fixed", "moving")] == ["fixed", "moving"]
    page.ui.pairsTable.selectRow(0)
    page.ui.removePairsButton.click()
    roles = []
    pair.node.parameterNode.GetNodeReferenceRoles(roles)
    assert page.rows == [] and not [role for role in roles if role.startswith("batchPairs") and pair.node.parameterNode.GetNodeReferenceID(role)]


def test_an_inverse_of_another_scene_is_not_taken(slicer, pair, tmp_path):
    """A live transfer makes the inverse where a result has none; one that comes with a scene that is added belongs to the result of that scene, whatever the
    IDs of its nodes were there."""
    pair.node.inverse = False
    register(slicer, pair)
    pair.node.transferDirection = type(pair.node.transferDirection).FIXED_TO_MOVING
    go_live(slicer, pair, landmarks(slicer, "targets", [(4, 5, 5)]))
    slicer.mrmlScene.SetRootDirectory(str(tmp_path))
    slicer.mrmlScene.Commit(str(tmp_path / "study.mrml"))
    slicer.mrmlScene.Clear(0)
    settle(slicer)
    pair.node.fixedVolume, pair.node.movingVolume, pair.node.inverse = volume(slicer, "fixed"), volume(slicer, "moving"), False
    register(slicer, pair, "here")
    slicer.mrmlScene.SetURL(str(tmp_path / "study.mrml"))
    slicer.mrmlScene.Import()
    settle(slicer)
    first, second = (records.roles_of(main)["linear"] for main in records.all_records(slicer.mrmlScene))
    assert records.made_inverse(first) is None and records.made_inverse(second) is not None


@pytest.mark.parametrize("placed", [False, True])
def test_a_scene_that_was_saved_while_a_result_was_shown(slicer, pair, tmp_path, placed):
    """Without a warped volume the moving one itself is shown under the result; in the scene that is opened later it is where it was."""
    node = pair.node
    if placed:
        node.movingVolume.SetAndObserveTransformNodeID(shifted(slicer, 3.0, "couch").GetID())
    node.warped = False
    register(slicer, pair)
    pair.open("quality")
    settle(slicer)
    choose(pair.page("quality").ui.modeBox, "blend")
    assert node.movingVolume.GetParentTransformNode() is not None
    slicer.mrmlScene.SetRootDirectory(str(tmp_path))
    slicer.mrmlScene.Commit(str(tmp_path / "study.mrml"))
    choose(pair.page("quality").ui.modeBox, "")
    slicer.mrmlScene.Clear(0)
    settle(slicer)
    slicer.mrmlScene.SetURL(str(tmp_path / "study.mrml"))
    slicer.mrmlScene.Import()
    settle(slicer)
    assert not pair.page("register").ui.nextWidget.isHidden(), "a run can go on from a result of a scene that was opened"
    parent = slicer.util.getNode("moving").GetParentTransformNode()
    assert (parent.GetName() if placed else parent) == ("couch" if placed else None)
    assert "while Quality control showed 'moving' on the other image" in status(pair.page("register"))
    assert not slicer.mrmlScene.GetFirstNodeByName("moving placement")
