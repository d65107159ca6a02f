"""Frames of a 4D sequence, registered to one of them or to a volume: from a script with the real computation, and in the panel with scripted jobs."""

import json

import numpy as np
import pytest

pytest.importorskip("PySide6")
pytest.importorskip("slicer")

from panels import (  # noqa: E402, F401
    answer, application, choose, module_panel, no_slot_errors, pair, panel, register, scene, segmentation, settle, slicer, status, volume, wait_until)
from test_logic import logic  # noqa: E402, F401

from DeepRegistrationLib.errors import InputError  # noqa: E402

SHAPE, REFERENCE = (24, 24, 24), 1


def series(slicer, shifts=(2, 0, 1), name: str = "Breathing"):
    """A sequence of volumes whose blob is shifted, at 0, 0.5, ... s."""
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", name)
    sequence.SetIndexName("time")
    sequence.SetIndexUnit("s")
    for k, shift in enumerate(shifts):
        node = volume(slicer, "frame", SHAPE, shift)
        sequence.SetDataNodeAtValue(node, f"{0.5 * k:g}")
        slicer.mrmlScene.RemoveNode(node)
    return sequence


def voxels(slicer, sequence, number: int):
    return slicer.util.arrayFromVolume(sequence.GetNthDataNode(number)).astype(float)


def left_behind(slicer) -> set:
    """Names of volumes, transforms and tables of the scene, and of folders in the subject hierarchy."""
    import vtk

    nodes = {node.GetName() for kind in ("ScalarVolume", "Transform", "Table") for node in slicer.util.getNodesByClass(f"vtkMRML{kind}Node")}
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    items = vtk.vtkIdList()
    hierarchy.GetItemChildren(hierarchy.GetSceneItemID(), items, True)
    found = [items.GetId(k) for k in range(items.GetNumberOfIds())]
    return nodes | {hierarchy.GetItemName(item) for item in found if hierarchy.GetItemDataNode(item) is None}


def test_frames_come_to_one_of_them(slicer, logic):
    sequence = series(slicer)
    before = left_behind(slicer)
    made = logic.registerSequence(sequence, REFERENCE, preset="affine:rigid", outputs=())
    registered, transforms = made["registered"], made["transforms"]
    assert [row["status"] for row in made["rows"]] == ["done"] * 3 and made["rows"][REFERENCE]["message"] == "the reference"
    for result in (registered, transforms):
        assert [result.GetNthIndexValue(k) for k in range(3)] == ["0", "0.5", "1"]
        assert result.GetIndexName() == "time" and result.GetIndexUnit() == "s"
    reference, inner = voxels(slicer, sequence, REFERENCE), (slice(4, -4),) * 3
    assert np.array_equal(voxels(slicer, registered, REFERENCE), reference)
    for k in (0, 2):
        there, back = (np.abs(voxels(slicer, each, k) - reference)[inner].mean() for each in (sequence, registered))
        assert back < 0.5 * there
    at = np.array(transforms.GetNthDataNode(REFERENCE).GetTransformToParent().TransformPoint(3.0, 4.0, 5.0))
    assert np.allclose(at, (3, 4, 5))
    browser = made["browser"]
    assert browser.GetMasterSequenceNode() is registered and browser.IsSynchronizedSequenceNode(transforms, True)
    proxies = {browser.GetProxyNode(each).GetName() for each in (registered, transforms)}
    assert left_behind(slicer) - before == proxies, "the nodes of single frames and their folders are gone"


def test_a_transform_carries_its_frame(slicer, logic):
    """A registered voxel is what its frame shows where the transform takes it from."""
    import vtk
    from scipy.ndimage import map_coordinates

    sequence = series(slicer, (2, 0))
    made = logic.registerSequence(sequence, 1, preset="instance-optimisation:fast", values={"iterations": [20, 10, 0, 0]}, outputs=())
    frame, moved = sequence.GetNthDataNode(0), made["registered"].GetNthDataNode(0)
    to_world, to_voxel = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    moved.GetIJKToRASMatrix(to_world)
    frame.GetRASToIJKMatrix(to_voxel)
    source = made["transforms"].GetNthDataNode(0).GetTransformFromParent()
    ijk = np.random.default_rng(0).integers(5, 19, (40, 3))
    places = [to_voxel.MultiplyPoint((*source.TransformPoint(to_world.MultiplyPoint((*map(float, p), 1.0))[:3]), 1.0))[:3] for p in ijk]
    kept = np.all((np.array(places) >= 0) & (np.array(places) <= np.array(SHAPE) - 1), 1)  # the others lie outside of the frame
    places, ijk = np.array(places)[kept], ijk[kept]
    expected = map_coordinates(voxels(slicer, sequence, 0), places.T[::-1], order=1)
    found = voxels(slicer, made["registered"], 0)[tuple(ijk.T[::-1])]
    assert kept.sum() > 20
    assert np.abs(found - expected).max() < 0.02 * np.ptp(expected)
    assert np.abs(found - voxels(slicer, sequence, 0)[tuple(ijk.T[::-1])]).max() > 0.1 * np.ptp(expected), "the frame did move"


def test_frames_come_to_a_volume_and_into_folders(slicer, logic, tmp_path):
    sequence, target = series(slicer, (2, 1)), volume(slicer, "plan", SHAPE)
    made = logic.registerSequence(sequence, target, folder=tmp_path, preset="affine:rigid", outputs=("inverse",))
    assert made["registered"].GetName() == "Breathing to plan registered" and made["registered"].GetNumberOfDataNodes() == 2
    for number in (1, 2):
        assert {"transform.h5", "warped.nii.gz", "result.json"} <= {path.name for path in (tmp_path / f"Breathing_to_plan-{number}").iterdir()}


@pytest.mark.parametrize("shifts, reference, expected", [((), 0, "holds no frames"), ((1,), 0, "cannot be registered to itself"),
                                                         ((1, 2), 2, "has 2 frames; choose one from 1 to 2")])
def test_sequences_that_cannot_be_used(slicer, logic, shifts, reference, expected):
    with pytest.raises(InputError, match=expected):
        logic.registerSequence(series(slicer, shifts), reference)


def test_a_sequence_of_something_else_is_refused(slicer, logic):
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "moves")
    sequence.SetDataNodeAtValue(slicer.vtkMRMLLinearTransformNode(), "0")
    with pytest.raises(InputError, match="something else than volumes"):
        logic.registerSequence(sequence, 0)


# --------------------------------------------------------------------------------------------------------------- panel


def page_with_frames(slicer, pair):
    pair.open("batch")
    page, sequence = pair.page("batch"), series(slicer)
    settle(slicer)
    assert not page.ui.addFramesButton.enabled
    page.ui.batchSequenceSelector.setCurrentNode(sequence)
    assert page.ui.batchReferenceSpin.maximum == 3
    page.ui.batchReferenceSpin.value = REFERENCE + 1
    page.ui.addFramesButton.click()
    settle(slicer)
    return page, sequence


def test_frames_in_the_panel(slicer, pair):
    """One frame fails and is tried again; the rows and the sequences are kept with the scene; a run that is stopped leaves no frame behind."""
    from DeepRegistrationUI import frames

    runner, before = pair.logic._runner, left_behind(slicer)
    page, sequence = page_with_frames(slicer, pair)
    assert [row["id"] for row in page.rows] == [f"Breathing_to_frame_2-{k}" for k in (1, 2, 3)] and page.ui.batchButton.enabled
    page.ui.batchButton.click()
    wait_until(slicer, lambda: len(runner.jobs) == 1, 10)
    assert np.array_equal(runner.jobs[0].request["fixed"].array, voxels(slicer, sequence, REFERENCE).astype(np.float32))
    runner.say("failed", kind="input", message="the fields of view do not overlap", offers=[])
    wait_until(slicer, lambda: len(runner.jobs) == 2, 10)
    runner.say("done", result=answer(runner.jobs[-1].request))
    wait_until(slicer, lambda: not page.work.running, 20)
    settle(slicer)
    assert [row["status"] for row in page.rows] == ["failed", "done", "done"], status(page)
    made = frames.sequences_of(page.rows[0]["group"])
    assert [made["registered"].GetNthIndexValue(k) for k in range(2)] == ["0.5", "1"]
    assert json.loads(pair.node.batchPairs)[0]["group"] == "Breathing to frame 2"
    page.ui.pairsTable.selectRow(0)
    page.ui.retryPairsButton.click()
    page.ui.batchButton.click()
    wait_until(slicer, lambda: len(runner.jobs) == 3, 10)
    page.ui.batchButton.click()
    settle(slicer)
    assert page.rows[0]["status"] == "cancelled" and {name for name in left_behind(slicer) - before if "Breathing 0" in name} == set()
    page.ui.batchButton.click()
    wait_until(slicer, lambda: len(runner.jobs) == 4, 10)
    runner.say("done", result=answer(runner.jobs[-1].request))
    wait_until(slicer, lambda: not page.work.running, 20)
    assert sorted(made["registered"].GetNthIndexValue(k) for k in range(3)) == ["0", "0.5", "1"]


def test_the_fixed_volume_is_the_reference(slicer, pair):
    page, _ = page_with_frames(slicer, pair)
    page.ui.batchReferenceSpin.value = 0
    assert not page.ui.addFramesButton.enabled and "Choose the fixed volume" in page.ui.addFramesButton.toolTip
    page.ui.batchFixedSelector.setCurrentNode(pair.node.fixedVolume)
    assert page.ui.addFramesButton.enabled
    page.ui.addFramesButton.click()
    assert [row["fixed"] for row in page.rows[3:]] == [pair.node.fixedVolume.GetID()] * 3


def test_a_sequence_that_is_gone_fails_with_a_sentence(slicer, pair):
    page, sequence = page_with_frames(slicer, pair)
    slicer.mrmlScene.RemoveNode(sequence)
    page.ui.batchButton.click()
    wait_until(slicer, lambda: page.work is not None and not page.work.running, 10)
    assert [row["status"] for row in page.rows] == ["failed"] * 3 and "not in the scene any more" in page.rows[0]["message"]
    assert not slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode")


def test_the_scene_can_be_closed_while_frames_are_registered(slicer, pair):
    page, _ = page_with_frames(slicer, pair)
    page.ui.batchButton.click()
    wait_until(slicer, lambda: pair.logic._runner.jobs, 10)
    slicer.mrmlScene.Clear(0)
    settle(slicer)
    assert pair.logic._runner.jobs[-1].cancelled and page.rows == []


def test_a_frame_that_is_shown_no_more(slicer, pair):
    """A result of the frame that a 4D volume showed says so, and what is seen or computed of another frame is told."""
    from DeepRegistrationUI import records, views

    views.introduce(slicer.mrmlScene, "vtkMRMLSequenceBrowserNode")
    sequence, browser = series(slicer), slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "player")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    browser.SetSelectedItemNumber(1)
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    pair.node.movingVolume = browser.GetProxyNode(sequence)
    register(slicer, pair)
    result, page, runner = pair.node.result, pair.page("quality"), pair.logic._runner
    assert "in the folder 'Breathing frame 2 to fixed'" in status(pair.page("register")) and "Note" not in status(pair.page("register"))
    pair.open("quality")
    settle(slicer)
    choose(page.ui.modeBox, "blend")
    assert status(page) == "" == records.remark_on_places(result)
    browser.SetSelectedItemNumber(2)
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    settle(slicer)
    said = "'Breathing' shows frame 3 (time 1 s) of its sequence now, the registration is one of frame 2 (time 0.5 s)"
    choose(page.ui.modeBox, "checkerboard")
    assert said in status(page)
    page.ui.evaluateButton.click()
    wait_until(slicer, lambda: runner.jobs[-1].request["command"] == "evaluate", 5)
    runner.say("done", result={"rows": answer({**runner.jobs[-1].request, "outputs": []})["metrics"]})
    wait_until(slicer, lambda: page.evaluation is None, 5)
    assert said in status(page)
    browser.SetSelectedItemNumber(1)
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    assert records.remark_on_places(result) == ""
