"""Transfer: the right direction each time, exactly, for every kind of node; all or nothing."""

import time

import numpy as np
import pytest
import torch

pytest.importorskip("slicer")

import slicer
import slicer.util
import vtk
from scenes import RAS, blocks, bump, image, inner_points, library_map, linear_node, random_grid, scene, tilt
from vtk.util.numpy_support import vtk_to_numpy

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.exchange import LabelMap, Lattice, Volume
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Labels
from DeepRegistrationLib.points import Points
from DeepRegistrationLib.result import warp
from DeepRegistrationLib.transforms import Affine
from DeepRegistrationUI import mrml, transfer_voxels, views
from DeepRegistrationUI.job import InProcessRunner
from DeepRegistrationUI.transfer import TO_FIXED, TO_MOVING, Transfer, release, transfer

assert scene  # a fixture


class Recorder:
    """Answers every warp request with values of the right kind on the reference, or with an error; notes what it was asked."""

    def __init__(self, fail=""):
        self.requests, self.fail, self._waiting = [], fail, []

    def submit(self, request, on_event):
        self.requests.append(request)
        self._waiting.append(on_event)
        return self

    def tick(self):
        for on_event in self._waiting:
            on_event(self, {"event": "started"})
            on_event(self, {"event": "failed", "message": self.fail} if self.fail else {"event": "done", "result": {"outputs": self.answers()}})
        self._waiting = []

    def answers(self):
        grid, made = self.requests[-1]["reference"], []
        for each in self.requests[-1]["inputs"]:
            value = each["value"]
            array = np.resize(value.array, grid.shape)
            made.append(LabelMap(array, grid, name=value.name) if isinstance(value, LabelMap) else Volume(array, grid, value.name))
        return made

    def cancel(self):
        self._waiting = []

    def discard(self):
        pass


class Case:
    """A known T = A o (id + u) in a scene, between two oblique grids, one of them flipped."""

    def __init__(self, scene, inverse=False):
        self.scene, self.grids = scene, (random_grid(1, (20, 22, 18)), random_grid(2, (18, 20, 24), flipped=True))
        self.map = Affine(tilt(0.1, (1.0, -2.0, 1.5))) @ bump(self.grids[0])
        self.volumes = [mrml.volume_from_image(scene, image(grid, n), name) for n, (grid, name) in enumerate(zip(self.grids, ("fixed", "moving")))]
        deformation = mrml.node_from_transform(scene, bump(self.grids[0]), "deformation", *self.volumes)
        linear = mrml.node_from_transform(scene, Affine(tilt(0.1, (1.0, -2.0, 1.5))), "linear", *self.volumes)
        linear.SetAndObserveTransformNodeID(deformation.GetID())
        self.transforms = {"linear": linear, "deformation": deformation}
        if inverse:
            self.transforms["inverse"] = mrml.node_from_transform(scene, self.map.inverse(), "inverse", *self.volumes[::-1])
        self.fixed = inner_points(self.grids[0], 12, margin=0.3)
        self.moving = library_map(self.map, self.fixed)

    def names(self):
        nodes = [self.scene.GetNthNode(n) for n in range(self.scene.GetNumberOfNodes())]
        return sorted(n.GetID() for n in nodes if not n.IsA("vtkMRMLSubjectHierarchyNode"))


@pytest.fixture
def case(scene):
    return Case(scene)


def markups(scene, points, name="marks", kind="Fiducial"):
    return mrml.markups_from_points(scene, Points(torch.as_tensor(points)[None], names=tuple(f"P{n}" for n in range(len(points)))), name, kind=kind)


def positions(node):
    return np.array([node.GetNthControlPointPositionWorld(n) for n in range(node.GetNumberOfControlPoints())]) * RAS


def model(scene, points, name="surface"):
    data, array = vtk.vtkPolyData(), vtk.vtkPoints()
    for point in points * RAS:
        array.InsertNextPoint(point)
    data.SetPoints(array)
    node = scene.AddNewNodeByClass("vtkMRMLModelNode", name)
    node.SetAndObservePolyData(data)
    node.CreateDefaultDisplayNodes()
    return node


def model_points(node):
    return vtk_to_numpy(node.GetPolyData().GetPoints().GetData()).reshape(-1, 3) * RAS


@pytest.mark.parametrize("direction", [TO_FIXED, TO_MOVING])
@pytest.mark.parametrize("placed", [False, True], ids=["plain", "nested parents"])
def test_points_curves_and_models_land_where_the_library_says(scene, case, direction, placed):
    start, end = (case.moving, case.fixed) if direction == TO_FIXED else (case.fixed, case.moving)
    place = tilt(0.5, (4, 4, 4)) @ tilt(-0.2)
    own = library_map(Affine(np.linalg.inv(place)), start) if placed else start
    nodes = [markups(scene, own), markups(scene, own, "curve", "Curve"), model(scene, own)]
    if placed:
        outer, inner = linear_node(scene, tilt(0.5, (4, 4, 4)), "outer"), linear_node(scene, tilt(-0.2), "inner")
        inner.SetAndObserveTransformNodeID(outer.GetID())
        for node in nodes:
            node.SetAndObserveTransformNodeID(inner.GetID())
    nodes[0].GetDisplayNode().SetSelectedColor(0.1, 0.9, 0.3)
    made = transfer(nodes, case.transforms, direction)
    name = "fixed" if direction == TO_FIXED else "moving"
    assert [n.GetName() for n in made] == [f"{n} on {name}" for n in ("marks", "curve", "surface")]
    assert [n.GetClassName() for n in made] == [n.GetClassName() for n in nodes]
    for got in (positions(made[0]), positions(made[1]), model_points(made[2])):
        assert np.abs(got - end).max() < 0.01
    assert made[0].GetNthControlPointLabel(3) == "P3" and np.allclose(made[0].GetDisplayNode().GetSelectedColor(), (0.1, 0.9, 0.3))
    assert all(n.GetTransformNodeID() is None for n in made) and np.abs(positions(nodes[0]) - start).max() < 1e-6


@pytest.mark.parametrize("with_inverse", [False, True], ids=["no inverse node", "inverse node"])
@pytest.mark.parametrize("direction", [TO_FIXED, TO_MOVING])
def test_live_nodes_go_under_the_transforms_and_out_again(scene, direction, with_inverse):
    case = Case(scene, with_inverse)
    start, end = (case.moving, case.fixed) if direction == TO_FIXED else (case.fixed, case.moving)
    parent = linear_node(scene, tilt(0.4), "own parent")
    plain, placed = markups(scene, start), markups(scene, library_map(Affine(np.linalg.inv(tilt(0.4))), start))
    placed.SetAndObserveTransformNodeID(parent.GetID())
    before = case.names()
    assert transfer([plain, placed], case.transforms, direction, mode="live") == [plain, placed]
    transfer([plain, placed], case.transforms, direction, mode="live")  # again: nothing changes
    for node in (plain, placed):
        assert np.abs(positions(node) - end).max() < (0.05 if with_inverse and direction == TO_MOVING else 0.01)
    release([plain, placed])
    assert plain.GetTransformNodeID() is None and placed.GetTransformNodeID() == parent.GetID()
    assert np.abs(positions(placed) - start).max() < 1e-6
    assert len(case.names()) - len(before) == (1 if direction == TO_MOVING and not with_inverse else 0)  # the explicit inverse stays for the next


@pytest.mark.parametrize("direction", [TO_FIXED, TO_MOVING])
@pytest.mark.parametrize("with_inverse", [False, True], ids=["no inverse node", "inverse node"])
def test_volumes_and_label_maps_are_read_by_the_library(scene, direction, with_inverse):
    case = Case(scene, with_inverse)
    k = 1 if direction == TO_FIXED else 0
    source, target = case.volumes[k], case.grids[1 - k]
    labels = mrml.volume_from_image(scene, blocks(case.grids[k]), "tissues")
    source.GetDisplayNode().SetAutoWindowLevel(0)
    source.GetDisplayNode().SetWindowLevelMinMax(5, 60)
    with InProcessRunner() as runner:
        volume, warped = transfer([source, labels], case.transforms, direction, runner=runner)
    pull = case.map if direction == TO_FIXED else case.map.inverse()
    expected = warp(image(case.grids[k], k), pull, target).data[0, 0].numpy()
    assert mrml.grid_of(volume).same_as(target) and np.abs(mrml.array_of(volume) - expected).max() < 0.02
    wanted = warp(blocks(case.grids[k]), pull, target).data[0, 0].numpy()
    assert warped.IsA("vtkMRMLLabelMapVolumeNode") and (mrml.array_of(warped) != wanted).mean() < 1e-3 and wanted.max() == 2
    assert volume.GetDisplayNode().GetWindowLevelMax() == 60
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    folder = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(volume))
    assert hierarchy.GetItemName(folder) == f"On {('fixed', 'moving')[1 - k]}"
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(warped)) == folder


def test_quantitative_maps_can_have_no_value_outside(scene, case):
    counts = mrml.volume_from_image(scene, image(case.grids[1]), "T1 map")
    slicer.util.updateVolumeFromArray(counts, (mrml.array_of(counts) * 10).astype(np.int16))
    with InProcessRunner() as runner:
        plain, honest = (transfer(counts, case.transforms, runner=runner, outside_nan=nan)[0] for nan in (False, True))
    missing = np.isnan(mrml.array_of(honest))
    assert mrml.array_of(plain).dtype == np.int16 and missing.any() and not missing.all()
    assert (mrml.array_of(plain)[missing] == 0).all()
    assert np.abs(mrml.array_of(plain)[~missing] - mrml.array_of(honest)[~missing]).max() <= 0.5


def overlapping(scene, grid, name="organs"):
    """Three segments, two of which overlap and thus lie in different layers."""
    data = np.zeros(grid.shape, np.int32)
    data[5:10, 6:14, 6:11], data[11:14, 8:16, 10:18] = 1, 2
    names = ((1, "left block"), (2, "right block"))
    node = mrml.segmentation_from_labels(scene, Labels(torch.from_numpy(data)[None, None], grid, names=names), name)
    extra = np.zeros(grid.shape, np.int32)
    extra[7:12, 8:12, 8:14] = 1
    other = mrml.segmentation_from_labels(scene, Labels(torch.from_numpy(extra)[None, None], grid, names=((1, "tumor"),)), "other")
    node.GetSegmentation().CopySegmentFromSegmentation(other.GetSegmentation(), other.GetSegmentation().GetNthSegmentID(0))
    scene.RemoveNode(other)
    node.GetSegmentation().GetNthSegment(2).SetColor(0.9, 0.8, 0.1)
    return node


def test_overlapping_segments_stay_whole_with_names_and_colors(scene, case):
    node = overlapping(scene, case.grids[1])
    assert node.GetSegmentation().GetNumberOfLayers("Binary labelmap") >= 2
    place = linear_node(scene, tilt(0.3), "parent")
    moved = overlapping(scene, case.grids[1].moved(np.linalg.inv(tilt(0.3))), "placed organs")
    moved.SetAndObserveTransformNodeID(place.GetID())
    with InProcessRunner() as runner:
        made = transfer([node, moved], case.transforms, runner=runner)
    for each in made:
        got = each.GetSegmentation()
        assert [got.GetNthSegment(n).GetName() for n in range(3)] == ["left block", "right block", "tumor"]
        assert np.allclose(got.GetNthSegment(2).GetColor(), (0.9, 0.8, 0.1))
        for n in range(3):
            source = mrml.labels_from_segmentation(node, case.volumes[1], segments=(node.GetSegmentation().GetNthSegmentID(n),))
            wanted = warp(source, case.map, case.grids[0]).data[0, 0].numpy() > 0
            values = mrml.labels_from_segmentation(each, case.volumes[0], segments=(got.GetNthSegmentID(n),)).data[0, 0].numpy() > 0
            assert wanted.sum() > 20 and (values != wanted).sum() <= 0.02 * wanted.sum(), n


def test_closed_surfaces_are_moved_as_surfaces(scene, case):
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "surfaces")
    sphere = vtk.vtkSphereSource()
    sphere.SetCenter(case.moving[0] * RAS)
    sphere.SetRadius(3.0)
    sphere.Update()
    node.GetSegmentation().SetSourceRepresentationName("Closed surface")
    node.AddSegmentFromClosedSurfaceRepresentation(sphere.GetOutput(), "ball")
    made = transfer(node, case.transforms)[0]
    surface = vtk.vtkPolyData()
    made.GetClosedSurfaceRepresentation(made.GetSegmentation().GetNthSegmentID(0), surface)
    before = vtk_to_numpy(sphere.GetOutput().GetPoints().GetData()) * RAS
    after = vtk_to_numpy(surface.GetPoints().GetData()) * RAS
    assert np.abs(library_map(case.map, after.astype(float)) - before).max() < 0.01 and made.GetSegmentation().GetNthSegment(0).GetName() == "ball"


def test_what_is_sent_to_the_worker(scene, case):
    recorder = Recorder()
    transfer([case.volumes[1], overlapping(scene, case.grids[1])], case.transforms, runner=recorder)
    request = recorder.requests[0]
    assert request["command"] == "warp" and len(recorder.requests) == 1 and request["reference"].same_as(case.grids[0])
    kinds = [type(each["value"]) for each in request["inputs"]]
    assert kinds[0] is Volume and set(kinds[1:]) == {LabelMap} and len(kinds) >= 3
    assert request["inputs"][0]["outside"] == "zero"
    layers = transfer_voxels.SegmentationTask.of(overlapping(scene, case.grids[1], "again"), False)
    assert all(each["value"].grid.contains(each["value"].grid.points()).all() for each in layers.inputs)


@pytest.mark.parametrize("fail", ["the worker ran out of memory; use the CPU", "nothing falls into the reference"])
def test_nothing_is_left_behind_when_the_worker_fails(scene, case, fail):
    nodes = [markups(scene, case.moving), case.volumes[1]]
    before, ended = case.names(), []
    with pytest.raises(InputError, match=fail):
        transfer(nodes, case.transforms, runner=Recorder(fail))
    assert case.names() == before
    runner = Recorder(fail)
    work = Transfer(nodes, case.transforms, runner=runner, on_end=ended.append)
    work.start()
    while work.tick():
        runner.tick()
    assert ended == [work] and work.state == "failed" and work.message == fail and case.names() == before


def test_cancel_leaves_nothing(scene, case):
    nodes, ended = [markups(scene, case.moving), case.volumes[1]], []
    before, runner = case.names(), Recorder()
    work = Transfer(nodes, case.transforms, runner=runner, on_end=ended.append)
    work.start()
    assert work.state == "running" and case.names() != before
    work.cancel()
    work.cancel()
    assert not work.tick()
    runner.tick()
    assert ended == [work] and work.state == "cancelled" and case.names() == before


def test_a_scene_closed_meanwhile(scene, case):
    runner, ended = Recorder(), []
    work = Transfer(case.volumes[1], case.transforms, runner=runner, on_end=ended.append)
    work.start()
    scene.Clear(0)
    while work.tick():
        runner.tick()
    assert work.state == "cancelled" and ended == [work] and scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 0


def test_large_results_are_put_into_the_scene_in_short_steps(scene):
    """A volume, a label map and a segmentation of four layers at 192^3: no tick takes a tenth of a second of this thread."""
    grid = Grid.from_parts((192, 192, 192), 1.0)
    values = np.zeros(grid.shape, np.uint8)
    values[20:60, 20:90, 30:120], values[70:120, 40:90, 30:120] = 1, 2
    parts = LabelMap(values, grid, ((1, "one"), (2, "two")), "parts")
    nodes = [mrml.volume_node(scene, Volume(values.astype(np.int16), grid, "volume")), mrml.volume_node(scene, parts), mrml.segmentation_node(scene, parts)]
    reference = mrml.volume_node(scene, Volume(values, grid, "reference"))
    vectors = Lattice(np.ones((*grid.shape, 3), np.float32), grid)
    transforms = {"linear": mrml.transform_node(scene, [vectors], "bent")}
    runner, longest = Recorder(), 0.0
    work = Transfer(nodes, transforms, reference=reference, runner=runner)
    work.start()
    ticks = 0
    while work.state == "running":
        began = time.thread_time()
        work.tick()
        longest, ticks = max(longest, time.thread_time() - began), ticks + 1
        runner.tick()
    assert work.state == "done" and len(work.made) == 3 and ticks > 3 and longest < 0.1
    assert [node.GetClassName() for node in work.made] == [node.GetClassName() for node in nodes]
    assert np.array_equal(mrml.array_of(work.made[1]), values)
    assert mrml.labels_from_segmentation(work.made[2], reference).data.amax() == 2


def test_shapes_that_cannot_bend_and_other_bad_input(scene, case):
    box = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "box")
    box.SetSize(4, 4, 4)
    marks = markups(scene, case.moving)
    empty = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "nothing")
    before = case.names()
    with pytest.raises(InputError, match="'box' .* cannot be deformed"):
        transfer([marks, box], case.transforms)
    with pytest.raises(InputError, match="'nothing' has no segment"):
        transfer([marks, empty], case.transforms)
    with pytest.raises(InputError, match="'linear' is a .* cannot be carried"):
        transfer(case.transforms["linear"], case.transforms)
    with pytest.raises(InputError, match="give a runner"):
        transfer([marks, case.volumes[1]], case.transforms)
    with pytest.raises(InputError, match="expected 'moving_to_fixed'"):
        transfer(marks, case.transforms, "sideways")
    with pytest.raises(InputError, match="at least one"):
        transfer([], case.transforms)
    assert case.names() == before
    scene.RemoveNode(case.volumes[0])
    with pytest.raises(InputError, match="choose a reference volume"):
        transfer(marks, case.transforms)
    scene.RemoveNode(case.transforms["linear"])
    with pytest.raises(InputError, match="not in the scene any more"):
        transfer(marks, case.transforms)


def test_a_linear_result_carries_boxes_too(scene):
    case = Case(scene)
    linear = mrml.node_from_transform(scene, Affine(tilt(0.0, (5.0, 0.0, -2.0))), "shift", *case.volumes)
    box = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "box")
    box.SetCenterWorld(1, 2, 3)
    made = transfer(box, {"linear": linear})[0]
    center = np.zeros(3)
    made.GetCenterWorld(center)
    assert np.abs(library_map(Affine(tilt(0.0, (5.0, 0.0, -2.0))), (center * RAS)[None])[0] - np.array([1, 2, 3]) * RAS).max() < 1e-6
    assert views.is_in(made, scene)
