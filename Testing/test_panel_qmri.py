"""The panel of QMRIRegister by clicks: slices of the scene and of a folder, what is asked for, the search, scripts, motion; its layout."""

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("PySide6")
pytest.importorskip("slicer")

from panels import (  # noqa: E402, F401
    ScriptedRunner, application, check_fits, choose, loaded_by_showing, module_panel, no_slot_errors, scene, settle, show, slicer, status,
    wait_until, without_help)
from panels_qmri import answered, beside, chosen, corner, drawn_on, load, page, panel, told  # noqa: E402, F401
from test_jobs_qmri import QUICK, known, scans  # noqa: E402

import truths_hip  # noqa: E402

from DeepRegistrationLib import exchange  # noqa: E402
from DeepRegistrationLib.errors import InputError  # noqa: E402
from DeepRegistrationLib.geometry import Grid  # noqa: E402
from DeepRegistrationUI.job import InProcessRunner  # noqa: E402

ORDER, FLIPS = [1, 0, 2, 3, 4, 5], [(False, False)] * 3 + [(True, False)] + [(False, False)] * 2


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


def test_other_maps_on_the_pixels_of_the_slices_go_along(slicer, page):
    import qt

    nodes, volume = chosen(slicer, page, known())
    assert page.ui.qmriBesideBox.isHidden(), "nothing to take along"
    for node in nodes:
        node.SetName(f"T2 {node.GetName()}")
    beside(slicer, nodes, "T1", 10.0, "ms")
    beside(slicer, nodes[:5], "T2*", 0.5)
    settle(slicer)
    assert page.ui.qmriSlicesList.count == 17 and page.list.checked() == nodes and not page.ui.qmriBesideBox.isHidden()
    page.ui.qmriButton.click()
    request = page.logic._runner.jobs[-1].request
    assert request["quantity"] == {"name": "T2", "unit": ""} and [(each["name"], each["unit"]) for each in request["maps"]] == [("T1", "ms"), ("T2*", "")]
    assert request["maps"][0]["images"][2].name == "T1 slice 3" and request["maps"][1]["images"][5] is None
    page.ui.qmriButton.click()
    wait_until(slicer, lambda: not page.running, 5)
    page.ui.qmriBesideBox.checked = False
    settle(slicer)
    page.ui.qmriButton.click()
    assert page.logic._runner.jobs[-1].request["maps"] == [] and not page.ui.qmriBesideBox.isHidden()
    page.ui.qmriButton.click()
    wait_until(slicer, lambda: not page.running, 5)
    page.ui.qmriSlicesList.item(6).setCheckState(qt.Qt.Checked)
    settle(slicer)
    assert page.ui.qmriMissingLabel.text.startswith("'T2 slice 1' and 'T1 slice 1' lie on the same pixels; uncheck one") and not page.ui.qmriButton.enabled


@pytest.mark.parametrize("names, found", [(("s1 T2", "s1 T1", "s1 PD"), ["T1", "PD"]), (("t2map_001", "t1map_001", "t1map_001"), ["map 1", "map 2"]),
                                          (("T2", "T2", "T1"), ["map 1", "map 2"])])
def test_quantities_are_named_by_what_a_slice_is_not_called(slicer, names, found):
    from DeepRegistrationUI import mrml
    from DeepRegistrationUI.qmri_maps import maps_beside

    image = known().problem.slices[0]
    nodes = [mrml.volume_node(slicer.mrmlScene, exchange.Volume(image.data[0, 0].numpy(), image.grid, name)) for name in names]
    assert list(maps_beside(nodes[:1], nodes)) == found


@pytest.mark.parametrize("kind", ["Plane", "Line"])
def test_slices_without_places_lie_about_an_axis(slicer, page, kind):
    truth = known()
    header = truth.problem.slices[0].grid
    slices = tuple(replace(image, grid=header) for image in truth.problem.slices)
    nodes, volume = chosen(slicer, page, replace(truth, problem=replace(truth.problem, slices=slices)))
    assert page.list.checked() == nodes
    assert page.ui.qmriMissingLabel.text.startswith("'slice 1' and 'slice 2' lie on the same pixels")
    page.ui.qmriAngleBox.value = 30.0
    settle(slicer)
    assert page.ui.qmriMissingLabel.text == "Choose the axis about which the slices are placed."
    node = slicer.mrmlScene.AddNewNodeByClass(f"vtkMRMLMarkups{kind}Node", "localizer")
    settle(slicer)
    page.ui.qmriAxisSelector.setCurrentNode(node)
    settle(slicer)
    page.ui.qmriButton.click()
    assert status(page).startswith("'localizer' is no plane and no line that has been placed")
    if kind == "Plane":
        node.SetCenter([1.0, 2.0, 3.0])
        node.SetNormal([0.0, 0.6, 0.8])
    else:
        node.AddControlPoint([1.0, 1.4, 2.2])
        node.AddControlPoint([1.0, 2.6, 3.8])
    page.ui.qmriButton.click()
    request = page.logic._runner.jobs[-1].request
    point, direction = (np.array(part) for part in request["axis"])
    assert request["degrees"] == 30.0 and np.allclose(point, [-1, -2, 3]) and np.allclose(direction / np.linalg.norm(direction), [0, -0.6, 0.8])


def test_pictures_are_asked_for_the_size_of_their_pixels_and_end_as_large_as_they_are(slicer, page):
    """PNG files, as the application reads them: no place, and pixels of 1 mm that nobody has said."""
    from DeepRegistrationUI import mrml

    truth = known()
    for node in chosen(slicer, page, truth)[0]:
        slicer.mrmlScene.RemoveNode(node)
    nodes = []
    for k, image in enumerate(truth.problem.slices):
        gray = np.clip(2.5 * image.data[0, 0].numpy(), 0, 255).astype(np.uint8)
        nodes.append(mrml.volume_node(slicer.mrmlScene, exchange.Volume(gray, Grid.from_parts(gray.shape), f"slice {k}")))
        storage = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
        storage.SetFileName(f"slice {k}.PNG")
        nodes[-1].SetAndObserveStorageNodeID(storage.GetID())
    axis = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsPlaneNode", "localizer")
    axis.SetCenter([-8.0, 0.0, -8.0])
    axis.SetNormal([-0.76, -0.1, -0.64])
    settle(slicer)
    assert page.ui.qmriPixelBox.isHidden(), "their headers say it where they say where they are"
    page.ui.qmriAngleBox.value = 30.0
    page.ui.qmriAxisSelector.setCurrentNode(axis)
    settle(slicer)
    assert page.ui.qmriMissingLabel.text.startswith("'slice 0' is a picture, which does not say how large its pixels are")
    page.ui.qmriPixelBox.value = pixel = float(truth.problem.slices[0].grid.spacing[0])
    page.ui.qmriZeroBox.checked = True
    page.node.qmriThickness, page.node.qmriValues = 3.0, json.dumps({**QUICK, "tried": 2500, "angle": 60.0})
    settle(slicer)
    assert page.ui.qmriMissingLabel.text == "" and not page.ui.qmriPixelBox.isHidden()
    page.logic._runner = InProcessRunner()
    page.ui.qmriButton.click()
    wait_until(slicer, lambda: not page.running, 90)
    sent = page.work.request
    assert np.allclose(sent["pixel_mm"], pixel, atol=1e-4) and sent["no_value"] == 0.0
    assert page.found["registered"], (status(page), page.ui.qmriAnswerLabel.text)
    for k, (node, image) in enumerate(zip(nodes, truth.problem.slices)):
        assert np.linalg.norm(corner(node) - (truth.each[k] @ np.r_[image.grid.origin, 1])[:3]) < 4, "mm, at the corner of the picture"


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


# ---------------------------------------------------------------------------------------------------------- the search


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


def test_files_are_shown_beside_the_volume_while_they_are_searched(slicer, page, tmp_path):
    chosen(slicer, page, known())
    page.node.qmriSource, page.node.qmriData = "folder", str(tmp_path)
    settle(slicer)
    page.ui.qmriButton.click()
    shades = np.tile(np.linspace(0, 1, 64), (2, 6, 64, 1))
    page.logic._runner.say("preview", pictures=shades, linear=np.eye(4), grid=None, step=1)
    wait_until(slicer, lambda: not page.ui.qmriCheckTable.isHidden(), 5)
    assert page.ui.qmriCheckTable.rowCount == 6 and told(page)[0] == "searching"
    pixmap = page.ui.qmriCheckTable.cellWidget(0, 0).pixmap
    assert pixmap.width() > 1.9 * pixmap.height(), "two pictures side by side"


def test_a_failure_is_one_sentence(slicer, page):
    chosen(slicer, page, known())
    page.ui.qmriButton.click()
    page.logic._runner.say("failed", kind="input", message="slice 1 has the constant value 0", offers=[])
    wait_until(slicer, lambda: not page.running, 5)
    assert status(page) == "slice 1 has the constant value 0" and page.ui.qmriButton.text == "Register"


# --------------------------------------------------------------------------------------------------- real runs, scripts


def test_a_script_registers_in_an_order_that_is_set_by_hand(slicer):
    """No panel: the transforms are in the scene; what cannot be registered raises."""
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
    with pytest.raises(InputError, match="one slice was given"):
        logic.register(nodes[:1], volume)
    with pytest.raises(InputError, match="no preset 'none'"):
        logic.register(nodes, volume, preset="none")
    assert logic.getParameterNode().qmriPreset == "default"
    logic.shutdown()


def test_a_script_asks_for_motion(slicer):
    """No panel: the average and the transforms of scans are in the scene; one scan alone raises."""
    from DeepRegistrationUI import mrml
    from DeepRegistrationUI.qmri_logic import QMRIRegisterLogic

    logic = QMRIRegisterLogic(runner=InProcessRunner())
    nodes = [mrml.volume_node(slicer.mrmlScene, value) for value in scans(3)]
    found = logic.motion(nodes, values={"rounds": 45}, transforms=True, device="cpu", name="knee")
    assert slicer.util.getNode("knee average") in found["nodes"].values()
    shifts = [slicer.util.arrayFromTransformMatrix(slicer.util.getNode(f"knee scan {k}"))[0, 3] for k in (1, 3)]
    assert abs(shifts[0] - shifts[1]) == pytest.approx(3.0, abs=0.5), "mm, between the first and the last scan"
    with pytest.raises(InputError, match="1 scan"):
        logic.motion(nodes[:1])
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
    table = slicer.util.getNode("Motion table").GetTable()
    assert [table.GetColumnByName("name").GetValue(k) for k in range(4)] == [value.name for value in scans()]
    assert table.GetColumnByName("since the scan before (mm)").GetValue(0) == 0 < table.GetColumnByName("since the scan before (mm)").GetValue(1)
    assert motion.ui.motionShiftsLabel.pixmap.width() == 340 and motion.ui.motionTurnsLabel.pixmap.width() == 340


def test_many_scans_are_checked_at_once(slicer, motion):
    import qt

    from DeepRegistrationUI import mrml

    for value in scans(4):
        mrml.volume_node(slicer.mrmlScene, value)
    settle(slicer)
    items = [motion.ui.motionScansList.item(k) for k in range(4)]
    for item in items[1:]:
        item.setSelected(True)
    items[2].setCheckState(qt.Qt.Checked)
    assert [node.GetName() for node in motion.list.checked()] == ["scan 2", "scan 3", "scan 4"] and motion.ui.motionRunButton.enabled
    items[0].setCheckState(qt.Qt.Checked)
    items[3].setCheckState(qt.Qt.Unchecked)
    assert [node.GetName() for node in motion.list.checked()] == ["scan 1"], "an item that is not selected changes alone"


def test_tissue_maps_go_along_with_the_scans(slicer, motion):
    import qt

    from DeepRegistrationUI import mrml

    for value in scans():
        mrml.volume_node(slicer.mrmlScene, value)
    settle(slicer)
    assert motion.ui.motionTissuesBox.collapsed and motion.ui.motionTissuesList.count == 4
    for k in range(3):
        motion.ui.motionScansList.item(k).setCheckState(qt.Qt.Checked)
    motion.ui.motionTissuesList.item(2).setCheckState(qt.Qt.Checked)
    settle(slicer)
    assert motion.ui.motionMissingLabel.text == "'scan 3' is checked as a scan and as a tissue map; uncheck one."
    motion.ui.motionScansList.item(2).setCheckState(qt.Qt.Unchecked)
    settle(slicer)
    motion.ui.motionRunButton.click()
    request = motion.logic._runner.jobs[-1].request
    assert [value.name for value in request["scans"]] == ["scan 1", "scan 2"] and [value.name for value in request["tissues"]] == ["scan 3"]


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
    loaded = loaded_by_showing("QMRIRegister", "motion")
    assert "torch" not in loaded and "DeepRegistrationLib" in loaded
