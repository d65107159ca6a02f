"""The page of AtlasBuilder that finds a slice in an atlas: by clicks, with a short training of its own."""

import numpy as np
import pytest

pytest.importorskip("PySide6")
pytest.importorskip("slicer")

from panels import application, module_panel, no_slot_errors, scene, settle, slicer, status, wait_until  # noqa: E402, F401
from panels_atlas import panel  # noqa: E402, F401

from DeepRegistrationLib.geometry import Grid  # noqa: E402
from DeepRegistrationLib.io import write_image  # noqa: E402
from DeepRegistrationUI.job import InProcessRunner  # noqa: E402


@pytest.fixture
def identify(slicer, panel, monkeypatch, tmp_path):
    """The page, with a training of few steps and a cache of its own."""
    monkeypatch.setenv("DEEPREGISTRATION_CACHE", str(tmp_path / "cache"))
    runner = InProcessRunner()
    monkeypatch.setattr(panel.logic, "_runner", runner)
    monkeypatch.setattr(
        runner, "submit", lambda request, listener, send=runner.submit: send({**request, "values": {"steps": 40, "batch": 16}}, listener)
    )
    panel.open("identify")
    settle(slicer)
    return panel.page("identify")


def bent_head(slicer):
    """(volume node, Image) of the head of test_plates."""
    from test_plates import head

    from DeepRegistrationLib.exchange import Volume
    from DeepRegistrationUI import mrml

    made = head()
    return mrml.volume_node(slicer.mrmlScene, Volume(made.data[0, 0].numpy(), made.grid, "head")), made


def test_a_picture_is_found_and_rows_move_the_red_view(slicer, identify, tmp_path):
    """Identify, list, nodes; the red view goes to the plane, then to a plate."""
    from test_plates import section

    from DeepRegistrationLib.engines.plates import AXES
    from DeepRegistrationUI import mrml, views

    page = identify
    assert page.ui.identifyMissingLabel.text == "Choose the volume of the atlas." and page.ui.identifyTable.isHidden()
    atlas, image = bent_head(slicer)
    made = section(image, AXES["coronal"], float(image.grid.centre[1]) + 4, np.random.default_rng(4), "s", partial=False, spoil=False)
    write_image(made.image, tmp_path / "slice.mha")
    page.ui.identifyAtlasSelector.setCurrentNode(atlas)
    settle(slicer)
    assert page.ui.identifyMissingLabel.text == "Choose the file of the slice." and page.ui.identifySliceSelector.isHidden()
    page.ui.identifyFileEdit.currentPath = str(tmp_path / "slice.mha")
    page.ui.identifyTopBox.setValue(3)
    settle(slicer)
    page.ui.identifyButton.click()
    assert page.ui.identifyButton.text == "Cancel" and not page.ui.identifyForm.enabled
    wait_until(slicer, lambda: not page.running, 60)
    table = page.ui.identifyTable
    assert table.rowCount == 4 and table.item(0, 1).text().startswith("found plane\nat "), status(page)
    assert abs(page.found["record"]["plane"]["position_mm"] - made.position) < 3 and "tilted by" in page.ui.identifyAnswerLabel.text
    red = next(each for each in views.nodes_of(slicer.mrmlScene, views.SLICE) if each.GetLayoutName() == "Red")
    normal = mrml.matrix_values(red.GetSliceToRAS())[:3, 2] * [-1, -1, 1]
    assert abs(normal @ made.frame[:3, 2]) > np.cos(np.deg2rad(4)), "the view lies in the section"
    table.selectRow(2)
    settle(slicer)
    placed = mrml.matrix_values(red.GetSliceToRAS())
    assert np.allclose(np.abs(placed[:3, 2]), (0, 1, 0)) and -placed[1, 3] == pytest.approx(page.found["record"]["top"][1]["position_mm"])
    assert np.allclose(placed[:3, 1], (0, 0, 1)), "superior is up"
    there, plane = (mrml.array_of(slicer.util.getNode(name)).ravel() for name in ("slice in the atlas", "Plane of slice"))
    assert np.corrcoef(there, plane)[0, 1] > 0.9
    matrix = mrml.matrix_values(slicer.util.getNode("slice to the atlas").GetMatrixTransformToParent())
    assert np.allclose(np.diag([-1, -1, 1, 1]) @ matrix @ np.diag([-1, -1, 1, 1]), page.found["matrix"].matrix)


def test_a_slice_of_the_scene_by_its_header_or_as_a_picture(slicer, identify):
    """A coronal slice among coronal plates; and the same voxels under an axial header, as the application reads pictures."""
    from DeepRegistrationLib.exchange import Volume
    from DeepRegistrationUI import mrml

    page, node = identify, identify.node
    atlas, image = bent_head(slicer)
    array, grid = image.data[0, 0].numpy(), image.grid
    one = Grid((grid.shape[0], 1, grid.shape[2]), grid.affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 20], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    cut = mrml.volume_node(slicer.mrmlScene, Volume(np.ascontiguousarray(array[:, 20:21]), one, "cut"))
    flat = Grid.from_parts((1, grid.shape[0], grid.shape[2]), (grid.spacing[0], grid.spacing[2], 1.0))
    picture = mrml.volume_node(slicer.mrmlScene, Volume(np.ascontiguousarray(array[::-1, 20][None]), flat, "picture"))
    node.identifyAtlas, node.identifySource = atlas, "scene"
    settle(slicer)
    assert page.ui.identifyMissingLabel.text == "Choose the slice." and page.ui.identifyPixelBox.isHidden()
    place = float((grid.affine @ np.array([0, 20, 0, 1]))[1])
    for each, by_header in ((cut, True), (picture, False)):
        node.identifySlice = each
        settle(slicer)
        page.ui.identifyButton.click()
        wait_until(slicer, lambda: not page.running, 60)
        assert page.found["by_header"] is by_header and abs(page.found["record"]["plane"]["position_mm"] - place) < 2, status(page)
    assert "taken as a picture" in page.ui.identifyAnswerLabel.text and not page.found["record"]["weights"]["trained_now"]
    node.identifySlice = atlas
    settle(slicer)
    page.ui.identifyButton.click()
    wait_until(slicer, lambda: not page.running, 60)
    assert "is no slice" in status(page)
    colors = np.repeat(array[::-1, 20][None, ..., None], 3, -1)
    stain = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "stain")
    slicer.util.updateVolumeFromArray(stain, np.ascontiguousarray(colors))
    stain.SetSpacing(picture.GetSpacing())
    node.identifySlice = stain
    settle(slicer)
    page.ui.identifyButton.click()
    wait_until(slicer, lambda: not page.running, 60)
    assert page.found["record"]["slice"] == "stain" and abs(page.found["record"]["plane"]["position_mm"] - place) < 2, status(page)
    picture.SetSpacing(1, 1, 1)
    picture.AddDefaultStorageNode()
    picture.GetStorageNode().SetFileName("/data/section.png")
    node.identifySlice = picture
    settle(slicer)
    page.ui.identifyButton.click()
    settle(slicer)
    assert "does not say how large its pixels are" in status(page) and not page.running
    slicer.mrmlScene.Clear(0)
    settle(slicer)
    assert page.found is None and page.ui.identifyTable.isHidden()
