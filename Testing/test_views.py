"""Slice views: layers, blending, and the way back."""

from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("slicer")

import slicer
import vtk
from scenes import image, random_grid, scene, slice_grid, slice_node

from DeepRegistrationLib.geometry import Grid
from DeepRegistrationUI import mrml, views

assert scene  # a fixture


@pytest.fixture
def volumes(scene):
    made = [mrml.volume_from_image(scene, image(random_grid(n), n), f"volume {n}") for n in range(3)]
    for name in views.FIRST_ROW:
        for kind in (views.COMPOSITE, views.SLICE):
            scene.AddNewNodeByClass(kind).SetLayoutName(name)
    return made


class Application:
    """What ``slicer.app`` has of the real slice logics, without a main window."""

    def __init__(self, scene):
        self.logic = slicer.vtkSlicerApplicationLogic()
        self.logic.SetMRMLScene(scene)
        self.logic.SetSliceLogics(vtk.vtkCollection())
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
        self.slices = [slicer.vtkMRMLSliceLogic() for _ in range(3)]
        for one, name, orientation in zip(self.slices, views.FIRST_ROW, views.ORIENTATIONS):
            one.SetMRMLApplicationLogic(self.logic)
            self.logic.GetSliceLogics().AddItem(one)
            one.SetMRMLScene(scene)
            one.AddSliceNode(name).SetOrientation(orientation)
            one.ResizeSliceNode(100, 100)

    def applicationLogic(self):
        return self.logic

    def layoutManager(self):
        return None


@pytest.fixture
def application(scene, monkeypatch):
    made = Application(scene)
    monkeypatch.setattr(slicer, "app", made, raising=False)
    monkeypatch.setattr(slicer, "mrmlScene", scene, raising=False)
    return made


def layers(scene):
    return [(c.GetBackgroundVolumeID(), c.GetForegroundVolumeID(), c.GetLabelVolumeID(), c.GetForegroundOpacity(), c.GetCompositing(),
             c.GetLinkedControl(), c.GetHotLinkedControl()) for c in views.composites(scene)]


def test_layers_are_shown_and_given_back(scene, volumes):
    first = views.composites(scene)[0]
    first.SetBackgroundVolumeID(volumes[2].GetID())
    first.SetForegroundOpacity(0.7)
    for node in views.composites(scene):
        node.SetLinkedControl(1)
    before, state = layers(scene), views.ViewState(scene)
    views.show_layers(volumes[0], volumes[1], opacity=0.4)
    assert all(each[:2] == (volumes[0].GetID(), volumes[1].GetID()) and each[3] == 0.4 and each[5] == 1 for each in layers(scene))
    views.set_blend(scene, 3.0)
    assert all(each[3] == 1.0 for each in layers(scene))
    views.show_layers(volumes[1], names=("Red",))
    assert [each[0] for each in layers(scene)] == [volumes[1].GetID(), volumes[0].GetID(), volumes[0].GetID()]
    state.restore()
    assert layers(scene) == before
    state.restore()
    assert layers(scene) == before


def test_deleted_volumes_and_new_scenes_are_passed_over(scene, volumes):
    views.show_layers(volumes[0], volumes[1])
    state = views.ViewState(scene)
    views.show_layers(volumes[2])
    scene.RemoveNode(volumes[1])
    state.restore()
    assert all(each[:2] == (volumes[0].GetID(), None) for each in layers(scene))
    scene.Clear(1)
    node, other = scene.AddNewNodeByClass(views.COMPOSITE), slice_node(scene, slice_grid(), "of the next scene")
    node.SetBackgroundVolumeID(other.GetID())
    state.restore(slices=True, layout=True)
    assert node.GetBackgroundVolumeID() == other.GetID() and not views.is_in(volumes[0], scene) and not views.is_in(None, scene)


def test_slices_turn_into_the_plane_of_a_slanted_volume_and_back(scene, application):
    node = slice_node(scene, slice_grid(2, 0.3), "slanted")
    places = [mrml.matrix_values(n.GetSliceToRAS()) for n in views.nodes_of(scene, views.SLICE)]
    state = views.ViewState(scene)
    assert views.is_slanted(mrml.grid_of(node)) and views.slice_logics(scene) == application.slices
    views.show_layers(node, rotate=True)
    normal = mrml.matrix_values(application.slices[0].GetSliceNode().GetSliceToRAS())[:3, 2] * [-1, -1, 1]
    own = np.cross(*np.delete(mrml.grid_of(node).direction, list(mrml.grid_of(node).size).index(1), 1).T)
    assert abs(normal @ own) == pytest.approx(1.0, abs=1e-6)
    state.restore(slices=True)
    after = [mrml.matrix_values(n.GetSliceToRAS()) for n in views.nodes_of(scene, views.SLICE)]
    assert np.abs(np.array(after) - np.array(places)).max() < 1e-9
    drawings = views.drawings(scene)
    assert len(drawings) == len([logic for logic in application.slices if logic.GetImageDataConnection() is not None])
    for draw in drawings:
        draw()


def test_views_that_lie_beside_a_volume_are_brought_to_it(scene, application):
    """They would be black; a view that shows a part of it stays where the user has put it."""
    volume = mrml.volume_from_image(scene, image(Grid.from_parts((20, 30, 40), origin=(-540.0, -200.0, 300.0)), 1), "far away")
    assert views.show_layers(volume)
    found = {node.GetLayoutName(): node for node in views.nodes_of(scene, views.SLICE)}
    assert 300 <= found["Red"].GetSliceOffset() <= 320 and found["Yellow"].GetSliceToRAS().GetElement(0, 3) == 520.0
    found["Red"].SetSliceOffset(318.0)
    assert not views.show_layers(volume) and found["Red"].GetSliceOffset() == 318.0


def test_which_volumes_are_slanted():
    straight = Grid.from_parts((5, 6, 7), (1, 2, 3), direction=np.diag([-1.0, 1.0, 1.0])[:, [1, 0, 2]])
    assert not views.is_slanted(straight) and views.is_slanted(random_grid(1))
    assert views.is_slanted(Grid.from_parts((1, 6, 7), 1.0))


def test_another_scene_than_the_application_s_is_left_alone(application):
    other = slicer.vtkMRMLScene()
    assert views.slice_logics(other) == [] and views.layout_manager(other) is None and views.drawings(other) == []


def test_slices_go_to_a_point(scene, application):
    views.center_on(scene, (10.0, -20.0, 5.0))
    for node in views.nodes_of(scene, views.SLICE):
        assert np.allclose(mrml.matrix_values(node.GetSliceToRAS())[:3, 3], (-10.0, 20.0, 5.0))


def test_the_two_row_layout(scene, volumes):
    node = slicer.vtkMRMLLayoutNode()
    scene.AddNode(node)
    node.SetViewArrangement(node.SlicerLayoutConventionalView)
    state = views.ViewState(scene)
    views.show_two_rows({"background": volumes[0], "foreground": volumes[1]}, {"background": volumes[0], "foreground": volumes[2]})
    assert node.GetViewArrangement() == views.COMPARE_LAYOUT and node.IsLayoutDescription(views.COMPARE_LAYOUT)
    tags = [v.get("singletontag") for v in ElementTree.fromstring(views.layout_description()).iter("view")]
    assert tags == [*views.FIRST_ROW, *views.SECOND_ROW]
    state.restore(layout=True)
    assert node.GetViewArrangement() == node.SlicerLayoutConventionalView
    views.set_layout(scene, node.SlicerLayoutOneUpRedSliceView)
    assert node.GetViewArrangement() == node.SlicerLayoutOneUpRedSliceView


def test_removing_a_node_takes_what_it_made_with_it(scene, volumes):
    count = scene.GetNumberOfNodes()
    node = scene.AddNewNodeByClass("vtkMRMLTransformNode", "short-lived")
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetColorMap(vtk.vtkColorTransferFunction())
    assert scene.GetNumberOfNodes() > count + 1
    views.remove(node)
    assert scene.GetNumberOfNodes() == count


def test_a_class_is_introduced_once(scene):
    for _ in range(2):
        views.introduce(scene, "vtkMRMLColorLegendDisplayNode")
    made = scene.CreateNodeByClass("vtkMRMLColorLegendDisplayNode")
    assert made is not None
    made.UnRegister(None)
