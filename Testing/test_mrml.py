"""The bridge to a 3D Slicer scene, on Slicer's own classes: directions, parents, order, border, files, slices, events."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

slicer = pytest.importorskip("slicer", reason="needs slicer-core, the scene of 3D Slicer")
import vtk  # noqa: E402

from DeepRegistrationLib.errors import InputError  # noqa: E402
from DeepRegistrationLib.geometry import Grid  # noqa: E402
from DeepRegistrationLib.image import Image, Labels  # noqa: E402
from DeepRegistrationLib.points import Points  # noqa: E402
from DeepRegistrationLib.problem import Pair  # noqa: E402
from DeepRegistrationLib.result import Result  # noqa: E402
from DeepRegistrationLib.transforms import Affine, BSpline, Displacement, Velocity  # noqa: E402
from DeepRegistrationUI import mrml, outputs  # noqa: E402
from DeepRegistrationUI.planes import Plane, flatten, lift  # noqa: E402

RAS = np.array([-1.0, -1.0, 1.0])


@pytest.fixture
def scene():
    made = slicer.vtkMRMLScene()
    slicer.vtkSlicerSegmentationsModuleLogic().SetMRMLScene(made)
    yield made
    made.Clear(1)


def random_grid(seed, shape=(12, 14, 10), flipped=False):
    """An oblique, anisotropic grid near the origin."""
    rng = np.random.default_rng(seed)
    direction = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    if flipped == (np.linalg.det(direction) > 0):
        direction[:, 0] *= -1
    spacing = rng.uniform(1.0, 3.0, 3)
    grid = Grid.from_parts(shape, spacing, direction=direction)
    affine = grid.affine.copy()
    affine[:3, 3] = rng.uniform(-5, 5, 3) - grid.centre
    return Grid(shape, affine)


def bump(grid, height=2.0, dtype=torch.float32):
    """A smooth displacement that is 0 on the border of the lattice."""
    axes = [torch.sin(torch.linspace(0, np.pi, n, dtype=dtype)) ** 2 if n > 1 else torch.ones(1, dtype=dtype) for n in grid.shape]
    weight = axes[0][:, None, None] * axes[1][:, None] * axes[2]
    for axis in range(3):
        if grid.shape[axis] > 1:
            weight.select(axis, 0).zero_(), weight.select(axis, -1).zero_()
    return Displacement(height * torch.tensor([1.0, -0.6, 0.4], dtype=dtype)[None, :, None, None, None] * weight, grid)


def image(grid, seed=0, name="image"):
    """Smooth random intensities."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.nn.functional.interpolate(torch.rand((1, 1, 4, 4, 4), generator=generator), grid.shape, mode="trilinear")
    return Image(100 * data, grid, name=name)


def tilt(angle=0.2, shift=(3.0, -2.0, 4.0)):
    m = np.eye(4)
    m[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    m[:3, :3] = m[:3, :3] @ np.diag([1.1, 0.95, 1.0])
    m[:3, 3] = shift
    return m


def scene_map(node, points):
    """LPS points (N, 3) through the from-world transform of a node, by VTK."""
    general = vtk.vtkGeneralTransform()
    node.GetTransformFromWorld(general)
    return np.array([general.TransformPoint(p) for p in points * RAS]) * RAS


def library_map(transform, points):
    return transform(torch.as_tensor(points)[None])[0].numpy()


def inner_points(grid, n=60, seed=1, margin=0.1):
    size = np.array(grid.size)
    return grid.index_to_world(np.random.default_rng(seed).uniform(margin, 1 - margin, (n, 3)) * (size - 1))


def linear_node(scene, matrix_lps, name="linear"):
    """A node that moves data by ``matrix_lps`` (to parent)."""
    node = scene.AddNewNodeByClass("vtkMRMLTransformNode", name)
    node.SetMatrixTransformToParent(mrml._vtk_matrix(mrml.FLIP @ matrix_lps @ mrml.FLIP))
    return node


# ------------------------------------------------------------------------------------------------------------ volumes


@pytest.mark.parametrize("seed,flipped", [(0, False), (1, True), (2, False), (3, True)])
def test_volume_round_trip_keeps_values_and_oblique_geometry(scene, seed, flipped):
    original = image(random_grid(seed, flipped=flipped), seed)
    node = mrml.volume_from_image(scene, original, "volume")
    back = mrml.image_from_volume(node)
    assert back.grid.same_as(original.grid, 1e-9)
    assert torch.equal(back.data, original.data)


angle = st.floats(-np.pi, np.pi)


@st.composite
def grids(draw, single=None):
    """Any rotation, handedness, spacing from 0.1 to 10 mm, position up to a metre away and 2 to 6 voxels an axis."""
    a, b, c = draw(angle), draw(angle), draw(angle)
    turn = [np.array([[np.cos(t), -np.sin(t), 0], [np.sin(t), np.cos(t), 0], [0, 0, 1]]) for t in (a, b, c)]
    direction = turn[0] @ np.roll(turn[1], 1, (0, 1)) @ turn[2] @ np.diag([draw(st.sampled_from([-1, 1])), 1, 1])
    shape = [draw(st.integers(2, 6)) for _ in range(3)]
    if single is not None:
        shape[draw(st.integers(0, 2))] = 1
    spacing = [draw(st.floats(0.1, 10.0)) for _ in range(3)]
    return Grid.from_parts(tuple(shape), spacing, [draw(st.floats(-1000, 1000)) for _ in range(3)], direction)


@given(grids())
def test_any_geometry_survives_the_scene(grid):
    made = slicer.vtkMRMLScene()
    data = torch.arange(grid.voxels, dtype=torch.float32).reshape(1, 1, *grid.shape)
    back = mrml.image_from_volume(mrml.volume_from_image(made, Image(data, grid), "any"))
    assert back.grid.same_as(grid, 1e-6) and torch.equal(back.data, data)
    dense = Displacement(torch.sin(torch.arange(3.0 * grid.voxels)).reshape(1, 3, *grid.shape), grid)
    node = mrml.node_from_transform(made, dense, "any")
    points = grid.points().reshape(-1, 3)
    assert np.abs(scene_map(node, points) - library_map(dense, points)).max() < 2e-3
    made.Clear(1)


@given(grids(single=True), grids(single=True))
def test_any_slice_survives_the_scene(fixed, moving):
    made = slicer.vtkMRMLScene()
    nodes = [mrml.volume_from_image(made, Image(torch.rand(1, 1, *g.shape), g), "any") for g in (fixed, moving)]
    planes = outputs.planes_of(*nodes)
    for node, plane, grid in zip(nodes, planes, (fixed, moving)):
        flat = mrml.image_from_volume(node, plane)
        centres = plane.to_world(flat.grid.points().reshape(-1, 2))
        assert np.abs(np.sort(centres, 0) - np.sort(grid.points().reshape(-1, 3), 0)).max() < 1e-6
        assert np.linalg.det(plane.frame) == pytest.approx(1.0)
    assert planes[0].frame[:3, 2] @ planes[1].frame[:3, 2] > -1e-9
    made.Clear(1)


def test_a_voxel_lies_where_slicer_says(scene):
    grid = random_grid(5)
    node = mrml.volume_from_image(scene, image(grid), "volume")
    ijk_to_ras = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(ijk_to_ras)
    ras = np.array(ijk_to_ras.MultiplyPoint((3, 7, 5, 1)))[:3]
    assert np.allclose(ras * RAS, grid.index_to_world([3, 7, 5]))
    value = node.GetImageData().GetScalarComponentAsDouble(3, 7, 5, 0)
    assert value == pytest.approx(float(mrml.image_from_volume(node).data[0, 0, 5, 7, 3]))


def test_vector_volume_has_channels(scene):
    grid = random_grid(1)
    original = Image(torch.rand(1, 3, *grid.shape), grid)
    back = mrml.image_from_volume(mrml.volume_from_image(scene, original, "colour"))
    assert torch.equal(back.data, original.data)


def test_reading_does_not_share_memory_with_the_scene(scene):
    node = mrml.volume_from_image(scene, image(random_grid(1)), "volume")
    before = mrml.image_from_volume(node)
    copy = before.data.clone()
    mrml.array_of(node)[...] = 7
    assert torch.equal(before.data, copy)


def test_linear_parents_are_folded_into_the_grid(scene):
    original = image(random_grid(2))
    node = mrml.volume_from_image(scene, original, "volume")
    inner, outer = linear_node(scene, tilt()), linear_node(scene, tilt(-0.4, (1, 2, 3)))
    node.SetAndObserveTransformNodeID(inner.GetID())
    inner.SetAndObserveTransformNodeID(outer.GetID())
    expected = original.grid.moved(tilt(-0.4, (1, 2, 3)) @ tilt())
    assert mrml.image_from_volume(node).grid.same_as(expected, 1e-6)
    node.HardenTransform()
    assert mrml.image_from_volume(node).grid.same_as(expected, 1e-6)


def test_non_linear_parent_of_a_volume_is_refused(scene):
    grid = random_grid(2)
    node = mrml.volume_from_image(scene, image(grid), "scan")
    node.SetAndObserveTransformNodeID(mrml.node_from_transform(scene, bump(grid), "warp").GetID())
    with pytest.raises(InputError, match="'scan' is under the non-linear transform 'warp'; harden"):
        mrml.image_from_volume(node)


def test_empty_volume_is_refused(scene):
    with pytest.raises(InputError, match="'nothing' holds no voxels"):
        mrml.image_from_volume(scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "nothing"))


# ------------------------------------------------------------------------------------------------- labels and markups


def blocks(grid):
    data = torch.zeros((1, 1, *grid.shape), dtype=torch.int32)
    data[..., 2:6, 3:8, 2:5] = 1
    data[..., 6:10, 5:12, 4:9] = 2
    return Labels(data, grid, names=((1, "left block"), (2, "right block")))


@pytest.mark.parametrize("seed,flipped", [(0, False), (4, True)])
def test_segmentation_round_trip(scene, seed, flipped):
    grid = random_grid(seed, flipped=flipped)
    labels = blocks(grid)
    node = mrml.segmentation_from_labels(scene, labels, "segments")
    back = mrml.labels_from_segmentation(node, mrml.volume_from_image(scene, image(grid), "reference"))
    assert torch.equal(back.data, labels.data)
    assert back.names == labels.names


def test_segmentation_is_read_on_another_grid_and_under_a_parent(scene):
    grid, labels = random_grid(3), blocks(random_grid(3))
    node = mrml.segmentation_from_labels(scene, labels, "segments")
    node.SetAndObserveTransformNodeID(linear_node(scene, tilt()).GetID())
    moved = labels.grid.moved(tilt())
    back = mrml.labels_from_segmentation(node, mrml.volume_from_image(scene, Image(torch.zeros(1, 1, *grid.shape), moved), "reference"))
    assert torch.equal(back.data, labels.data)
    fine = grid.moved(tilt()).resample(0.7)
    back = mrml.labels_from_segmentation(node, mrml.volume_from_image(scene, Image(torch.zeros(1, 1, *fine.shape), fine), "fine"))
    expected = Labels(labels.data, moved).at(fine)
    assert float((back.data == expected.data).float().mean()) > 0.97


def test_closed_surface_only_segmentation(scene):
    grid = Grid.from_parts((24, 24, 24), 1.0)
    inside = ((torch.as_tensor(grid.points()) - 11.5).norm(dim=-1) < 8).to(torch.int32)[None, None]
    node = mrml.segmentation_from_labels(scene, Labels(inside, grid), "ball")
    node.CreateClosedSurfaceRepresentation()
    node.GetSegmentation().SetSourceRepresentationName("Closed surface")
    node.RemoveBinaryLabelmapRepresentation()
    back = mrml.labels_from_segmentation(node, mrml.volume_from_image(scene, image(grid), "reference"))
    both = ((back.data > 0) & (inside > 0)).sum()
    assert float(2 * both / ((back.data > 0).sum() + inside.sum())) > 0.95


def test_empty_segmentation_is_refused(scene):
    reference = mrml.volume_from_image(scene, image(random_grid(1)), "reference")
    with pytest.raises(InputError, match="has no segment"):
        mrml.labels_from_segmentation(scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "empty"), reference)


def test_label_map_round_trip_and_refusal_of_fractions(scene):
    labels = blocks(random_grid(1))
    node = mrml.volume_from_image(scene, labels, "map")
    assert node.IsA("vtkMRMLLabelMapVolumeNode")
    assert torch.equal(mrml.labels_from_volume(node).data, labels.data)
    with pytest.raises(InputError, match="no label map"):
        mrml.labels_from_volume(mrml.volume_from_image(scene, image(random_grid(1)), "scan"))


@pytest.mark.parametrize("kind", ["Fiducial", "Curve"])
def test_markups_round_trip_at_world_positions(scene, kind):
    positions = torch.randn(1, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 40
    node = mrml.markups_from_points(scene, Points(positions, names=tuple("abcdef")), "points", kind=kind)
    back = mrml.points_from_markups(node)
    assert torch.allclose(back.positions, positions) and back.names == tuple("abcdef")
    node.SetAndObserveTransformNodeID(linear_node(scene, tilt()).GetID())
    assert np.allclose(mrml.points_from_markups(node).positions[0].numpy(), library_map(Affine(torch.as_tensor(tilt())), positions[0]))


def test_unplaced_points_are_left_out(scene):
    node = mrml.markups_from_points(scene, Points(torch.rand(1, 3, 3)), "points")
    node.UnsetNthControlPointPosition(1)
    assert len(mrml.points_from_markups(node)) == 2
    with pytest.raises(InputError, match="no placed point"):
        mrml.points_from_markups(scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "none"))


# --------------------------------------------------------------------------------------------------------- transforms


def test_from_parent_moves_content_against_the_vector(scene):
    """Fact 3: from-parent +3 R everywhere moves a control point by -3 R."""
    grid = Grid.from_parts((9, 9, 9), 10.0, (-40, -40, -40))
    three_right = torch.zeros(1, 3, 9, 9, 9)
    three_right[:, 0] = -3.0
    node = mrml.node_from_transform(scene, Displacement(three_right, grid), "shift")
    markups = mrml.markups_from_points(scene, Points(torch.tensor([[[-10.0, 0.0, 0.0]]])), "point")
    markups.SetAndObserveTransformNodeID(node.GetID())
    position = [0.0] * 3
    markups.GetNthControlPointPositionWorld(0, position)
    assert position == pytest.approx([7.0, 0.0, 0.0], abs=1e-3)


@pytest.mark.parametrize("seed,flipped", [(0, False), (1, True), (2, True), (3, False)])
def test_vtk_and_the_library_move_points_alike(scene, seed, flipped):
    grid = random_grid(seed, flipped=flipped)
    rough = Displacement(torch.randn(1, 3, *grid.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), grid)
    linear = Affine(torch.as_tensor(tilt()))
    for transform in (rough, linear, linear @ rough, rough @ linear):
        node = mrml.node_from_transform(scene, transform, "transform")
        points = inner_points(grid, margin=0.0)
        assert np.abs(scene_map(node, points) - library_map(transform, points)).max() < 1e-4  # VTK rounds its weights
        again = mrml.transform_from_node(node)
        assert np.abs(library_map(again, points) - library_map(transform, points)).max() < 1e-6


def test_outside_the_lattice_vtk_and_the_library_agree(scene):
    """Fact 5: without the ring of zeros VTK would repeat the border vector."""
    grid = Grid.from_parts((6, 6, 6), 2.0)
    node = mrml.node_from_transform(scene, Displacement(torch.ones(1, 3, 6, 6, 6), grid), "ones")
    points = np.array([[-20.0, 5, 5], [5, 31, 5], [11.0, 5, 5], [-1.0, 4, 4], [10.5, 10.5, 10.5], [5, 5, 5]])
    expected = library_map(Displacement(torch.ones(1, 3, 6, 6, 6, dtype=torch.float64), grid), points)
    assert np.abs(scene_map(node, points) - expected).max() < 1e-6
    assert np.allclose(expected[:2], points[:2]) and np.allclose(expected[-1], points[-1] + 1)


@pytest.mark.parametrize("kind", ["velocity", "spline"])
def test_dense_transforms_become_their_own_lattice(scene, kind):
    grid = random_grid(6)
    if kind == "velocity":
        transform = Velocity(bump(grid, 1.5).displacement, grid)
    else:
        transform = BSpline.zeros(grid, 8.0)
        transform.control.normal_(generator=torch.Generator().manual_seed(0))
    node = mrml.node_from_transform(scene, transform, kind)
    points = grid.points().reshape(-1, 3)[::17]
    assert np.abs(scene_map(node, points) - library_map(transform, points)).max() < 1e-3


def test_inverted_grid_and_unknown_kinds_are_read(scene):
    grid = Grid.from_parts((20, 20, 20), 2.0, (-19, -19, -19))
    forward = bump(grid, 3.0, torch.float64)
    node = mrml.node_from_transform(scene, forward, "forward")
    node.Inverse()
    points = inner_points(grid)
    read = mrml.transform_from_node(node)
    assert np.abs(library_map(read, points) - scene_map(node, points)).max() < 0.05
    plate = vtk.vtkThinPlateSplineTransform()
    source, target = vtk.vtkPoints(), vtk.vtkPoints()
    for corner in [(0, 0, 0), (10, 0, 0), (0, 10, 0), (0, 0, 10), (5, 5, 5)]:
        source.InsertNextPoint(corner)
        target.InsertNextPoint(np.array(corner) + (1 if corner == (5, 5, 5) else 0))
    plate.SetSourceLandmarks(source), plate.SetTargetLandmarks(target), plate.SetBasisToR()
    other = scene.AddNewNodeByClass("vtkMRMLTransformNode", "plate")
    other.SetAndObserveTransformFromParent(plate)
    with pytest.raises(InputError, match="'plate' holds a vtkThinPlateSplineTransform"):
        mrml.transform_from_node(other)
    read, points = mrml.transform_from_node(other, grid), grid.points().reshape(-1, 3)[::41]
    assert np.abs(library_map(read, points) - scene_map(other, points)).max() < 1e-4


def test_parents_of_a_transform_node_count(scene):
    grid = random_grid(1)
    child = mrml.node_from_transform(scene, Affine(torch.as_tensor(tilt())), "child")
    parent = mrml.node_from_transform(scene, bump(grid), "parent")
    child.SetAndObserveTransformNodeID(parent.GetID())
    read, points = mrml.transform_from_node(child), inner_points(grid)
    assert np.abs(library_map(read, points) - scene_map(child, points)).max() < 1e-5
    assert np.abs(library_map(read, points) - library_map(Affine(torch.as_tensor(tilt())) @ bump(grid), points)).max() < 1e-5


# ------------------------------------------------------------------------------------------------------------ results


def registered(scene, inverse=False, seed=0, shape=(24, 26, 22)):
    """A made-up result of two oblique volumes, in the scene."""
    fixed, moving = image(random_grid(seed, shape), 0, "fixed"), image(random_grid(seed + 1, shape, True), 1, "moving")
    transform = Affine(torch.as_tensor(tilt(0.1))) @ bump(fixed.grid, 3.0)
    result = Result(Pair(fixed, moving), transform)
    nodes = mrml.volume_from_image(scene, fixed, "fixed"), mrml.volume_from_image(scene, moving, "moving")
    return result, nodes, outputs.add_result(result, *nodes, "Case", inverse=inverse)


def test_order_of_affine_and_grid_brings_points_home(scene):
    """Fact 7: affine inner, grid outer; the moving position of a fixed point is shown at the fixed point."""
    result, (fixed, moving), nodes = registered(scene)
    start = inner_points(result.problem.fixed.grid, 20)
    markups = mrml.markups_from_points(scene, Points(torch.as_tensor(library_map(result.transform, start))[None]), "landmarks")
    outputs.apply_to(markups, nodes)
    assert np.abs(mrml.points_from_markups(markups).positions[0].numpy() - start).max() < 0.01
    assert nodes["linear"].IsLinear() and not nodes["deformation"].IsLinear()
    assert nodes["linear"].GetParentTransformNode() is nodes["deformation"]


def test_warped_image_equals_what_the_scene_shows(scene):
    """The warped image, voxel by voxel, against VTK's interpolation of the moving node at the points that the node gives."""
    result, (fixed, moving), nodes = registered(scene)
    grid = result.problem.fixed.grid
    points = scene_map(nodes["linear"], grid.points().reshape(-1, 3))
    index = mrml.grid_of(moving).world_to_index(points)
    inside = ((index > 0.01) & (index < np.array(mrml.grid_of(moving).size) - 1.01)).all(1)
    interpolator, data = vtk.vtkImageInterpolator(), moving.GetImageData()
    interpolator.Initialize(data)
    interpolator.SetInterpolationModeToLinear()
    shown = np.array([interpolator.Interpolate(*p, 0) for p in index[inside]])
    warped = mrml.array_of(nodes["warped"]).reshape(-1)[inside]
    assert inside.sum() > 2000
    assert np.abs(shown - warped).max() < 0.02


def test_hardened_volume_equals_the_warped_one(scene):
    result, (fixed, moving), nodes = registered(scene)
    outputs.apply_to(moving, nodes)
    slicer.vtkSlicerTransformLogic.hardenTransform(moving)
    hardened = mrml.image_from_volume(moving).at(result.problem.fixed.grid)
    valid = result.problem.moving.overlap(result.problem.fixed.grid)
    difference = (hardened.data - result.warped.data).abs()[result.warped.data > 0]
    assert bool(valid.any()) and float(difference.median()) < 1.0 and float(result.warped.data.std()) > 10


def test_references_hierarchy_and_units(scene):
    result, (fixed, moving), nodes = registered(scene, inverse=True)
    assert set(nodes) == {"linear", "deformation", "inverse", "warped", "log_jacobian"}
    for role in ("linear", "deformation"):
        assert nodes[role].GetNodeReference("spatialRegistrationFixed") is fixed
        assert nodes[role].GetNodeReference("spatialRegistrationMoving") is moving
    assert nodes["inverse"].GetNodeReference("spatialRegistrationFixed") is moving
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    folders = {hierarchy.GetItemParent(hierarchy.GetItemByDataNode(n)) for n in nodes.values()}
    assert len(folders) == 1 and hierarchy.GetItemName(folders.pop()) == "Case"
    assert mrml.image_from_volume(nodes["log_jacobian"]).grid.same_as(result.problem.fixed.grid)
    display = nodes["log_jacobian"].GetDisplayNode()
    assert display.GetWindowLevelMin() == pytest.approx(-display.GetWindowLevelMax())
    assert display.GetColorNode().GetName() == outputs.DIVERGING


def test_inverse_node_undoes_the_transform(scene):
    result, _, nodes = registered(scene, inverse=True)
    points = inner_points(result.problem.fixed.grid, 40)
    there = scene_map(nodes["linear"], points)
    assert np.abs(scene_map(nodes["inverse"], there) - points).max() < 0.1
    general = nodes["inverse"].GetTransformFromParent()
    parts = vtk.vtkCollection()
    slicer.vtkMRMLTransformNode.FlattenGeneralTransform(parts, general)
    grids = [p for p in (parts.GetItemAsObject(n) for n in range(parts.GetNumberOfItems())) if p.IsA("vtkOrientedGridTransform")]
    assert len(grids) == 1 and not grids[0].GetInverseFlag()


def test_a_moving_volume_under_a_parent_is_placed_without_moving_others(scene):
    fixed, moving = image(random_grid(0), 0), image(random_grid(1), 1)
    nodes = mrml.volume_from_image(scene, fixed, "fixed"), mrml.volume_from_image(scene, moving, "moving")
    parent = linear_node(scene, tilt())
    nodes[0].SetAndObserveTransformNodeID(parent.GetID()), nodes[1].SetAndObserveTransformNodeID(parent.GetID())
    pair = outputs.pair_from_nodes(*nodes)
    assert pair.moving.grid.same_as(moving.grid.moved(tilt()), 1e-6)
    result = Result(pair, Affine.translation([5.0, 0, 0]) @ bump(pair.fixed.grid))
    made = outputs.add_result(result, *nodes, warped=False, log_jacobian=False)
    outputs.apply_to(nodes[1], made)
    assert nodes[0].GetParentTransformNode() is parent
    chain = scene_map(nodes[1].GetParentTransformNode(), pair.fixed.grid.points().reshape(-1, 3)[::29])
    expected = Affine(torch.as_tensor(np.linalg.inv(tilt()))) @ mrml.transform_from_node(made["linear"])
    local = library_map(expected, pair.fixed.grid.points().reshape(-1, 3)[::29])
    assert np.abs(chain - local).max() < 1e-4


def test_linear_only_result_is_one_linear_node(scene):
    fixed, moving = image(random_grid(0), 0), image(random_grid(1), 1)
    nodes = mrml.volume_from_image(scene, fixed, "fixed"), mrml.volume_from_image(scene, moving, "moving")
    made = outputs.add_result(Result(Pair(fixed, moving), Affine(torch.as_tensor(tilt()))), *nodes, warped=False, log_jacobian=False)
    assert set(made) == {"linear"} and made["linear"].IsLinear()


def test_a_composition_of_deformations_equals_the_library_at_the_voxels():
    grid = random_grid(4)
    transform = Affine(torch.as_tensor(tilt())) @ bump(grid) @ Velocity(bump(grid, 1.0).displacement, grid.pad(0))
    affine, dense = outputs.split(transform, grid)
    points = grid.points().reshape(-1, 3)[::7]
    assert np.abs(library_map(affine @ dense, points) - library_map(transform, points)).max() < 1e-4


# -------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("extension", ["h5", "tfm", "nrrd", "nii.gz"])
def test_saved_grid_is_read_alike_by_simpleitk(scene, tmp_path, extension):
    sitk = pytest.importorskip("SimpleITK")
    grid = random_grid(2)
    transform = bump(grid, 2.0)
    node = mrml.node_from_transform(scene, transform, "grid")
    path = tmp_path / f"grid.{extension}"
    save(node, path)
    if extension in ("h5", "tfm"):
        read = sitk.ReadTransform(str(path))
    else:
        field = sitk.ReadImage(str(path), sitk.sitkVectorFloat64)
        if extension == "nii.gz" and field.GetDimension() != 3:
            pytest.skip("this SimpleITK reads the field as more than three axes")
        read = sitk.DisplacementFieldTransform(field)
    points = inner_points(grid, 30)
    moved = np.array([read.TransformPoint(p.tolist()) for p in points])
    assert np.abs(moved - library_map(transform, points)).max() < 1e-3


def test_saved_linear_part_is_read_alike_by_simpleitk(scene, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    node = mrml.node_from_transform(scene, Affine(torch.as_tensor(tilt())), "affine")
    save(node, tmp_path / "affine.tfm")
    read = sitk.ReadTransform(str(tmp_path / "affine.tfm"))
    point = (10.0, -20.0, 30.0)
    assert np.allclose(read.TransformPoint(point), library_map(Affine(torch.as_tensor(tilt())), np.array([point])))


@pytest.mark.parametrize("extension", ["h5", "nrrd", "nii.gz"])
def test_files_of_slicer_and_of_the_library_hold_the_same_map(scene, tmp_path, extension):
    library = pytest.importorskip("DeepRegistrationLib.io", reason="needs SimpleITK")
    grid = random_grid(8)
    transform = bump(grid, 2.0)
    points = inner_points(grid, 30)
    expected = library_map(transform, points)
    save(mrml.node_from_transform(scene, transform, "grid"), tmp_path / f"slicer.{extension}")
    assert np.abs(library_map(library.read_transform(tmp_path / f"slicer.{extension}"), points) - expected).max() < 1e-3
    library.write_transform(transform, tmp_path / f"library.{extension}")
    node = scene.AddNewNodeByClass("vtkMRMLTransformNode", "read")
    storage = slicer.vtkMRMLTransformStorageNode()
    storage.SetFileName(str(tmp_path / f"library.{extension}"))
    assert storage.ReadData(node)
    read = mrml.transform_from_node(node)
    assert np.abs(library_map(read, points) - expected).max() < 1e-3


def test_a_composition_written_by_the_library_is_read_by_slicer(scene, tmp_path):
    library = pytest.importorskip("DeepRegistrationLib.io", reason="needs SimpleITK")
    grid = random_grid(9)
    transform = Affine(torch.as_tensor(tilt())) @ bump(grid, 2.0)
    library.write_transform(transform, tmp_path / "transform.h5")
    node = scene.AddNewNodeByClass("vtkMRMLTransformNode", "read")
    storage = slicer.vtkMRMLTransformStorageNode()
    storage.SetFileName(str(tmp_path / "transform.h5"))
    assert storage.ReadData(node)
    points = grid.points().reshape(-1, 3)[::13]
    assert np.abs(scene_map(node, points) - library_map(transform, points)).max() < 1e-3


def save(node, path):
    storage = slicer.vtkMRMLTransformStorageNode()
    storage.SetFileName(str(path))
    assert storage.WriteData(node)


# ---------------------------------------------------------------------------------------------------- one-slice volumes


def slice_grid(normal_axis=2, angle=0.0, size=(20, 16), offset=30.0):
    """A one-slice 3D grid, turned out of its world plane by ``angle``."""
    axes = np.roll(np.eye(3), -normal_axis - 1, axis=1)
    c, s = np.cos(angle), np.sin(angle)
    direction = axes @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    origin = direction @ np.array([-size[0] * 0.75, -size[1] * 0.75, offset])
    return Grid.from_parts((1, size[1], size[0]), (1.5, 1.5, 5.0), origin, direction)


def slice_node(scene, grid, name):
    data = torch.rand((1, 1, *grid.shape), generator=torch.Generator().manual_seed(len(name)))
    return mrml.volume_from_image(scene, Image(data, grid), name)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("angle", [0.0, 0.3, 0.8])
def test_a_slice_becomes_2d_and_keeps_its_place(scene, axis, angle):
    grid = slice_grid(axis, angle)
    node = slice_node(scene, grid, "slice")
    flat, plane = mrml.image_from_volume(node), mrml.plane_of(node)
    assert flat.dim == 2 and flat.grid.shape == grid.shape[1:]
    assert np.allclose(np.linalg.det(plane.frame[:3, :3]), 1.0) and plane.thickness == pytest.approx(5.0)
    corner = plane.to_world(flat.grid.index_to_world([3, 4]))
    assert np.allclose(corner, grid.index_to_world([3, 4, 0]))
    assert plane.solid(flat.grid).same_as(grid) or np.allclose(plane.solid(flat.grid).centre, grid.centre)
    back = mrml.volume_from_image(scene, flat, "again", plane)
    assert torch.equal(mrml.image_from_volume(back).data, flat.data)


@pytest.mark.parametrize("single", [0, 1, 2])
def test_any_axis_may_be_the_single_one(scene, single):
    shape = [6, 7, 8]
    shape[single] = 1
    grid = random_grid(3, tuple(shape))
    node = slice_node(scene, grid, "slice")
    flat, plane = mrml.image_from_volume(node), mrml.plane_of(node)
    index = [2, 3, 4]
    index[2 - single] = 0
    kept = [i for i, n in zip(index, grid.size) if n > 1]
    assert np.allclose(plane.to_world(flat.grid.index_to_world(kept)), grid.index_to_world(index))
    assert float(flat.data[0, 0, kept[1], kept[0]]) == pytest.approx(float(mrml.array_of(node)[tuple(index[::-1])]))


def test_axial_slices_have_the_natural_frame_and_share_it(scene):
    one, other = slice_node(scene, slice_grid(2, 0.0), "one"), slice_node(scene, slice_grid(2, 0.0, (10, 12)), "other, smaller")
    first, second = outputs.planes_of(one, other)
    assert np.allclose(first.frame[:3, :3], np.eye(3)) and np.allclose(first.frame, second.frame)


@pytest.mark.parametrize("angle", [0.0, 0.4])
def test_a_2d_result_is_lifted_into_space(scene, angle):
    fixed = slice_node(scene, slice_grid(1, angle), "fixed")
    moving = slice_node(scene, slice_grid(1, angle + 0.1, (24, 20), 33.0), "moving")
    pair = outputs.pair_from_nodes(fixed, moving)
    planes = outputs.planes_of(fixed, moving)
    turn = np.eye(3)
    turn[:2, :2], turn[:2, 2] = [[0.98, -0.2], [0.2, 0.98]], [2.0, -1.0]
    profile = [torch.sin(torch.linspace(0, np.pi, n)) ** 2 for n in pair.fixed.grid.shape]
    wave = (1.3 * profile[0][:, None] * profile[1]).expand(1, 2, -1, -1)
    transform = Affine(torch.as_tensor(turn)) @ Displacement(wave, pair.fixed.grid)
    nodes = outputs.add_result(Result(pair, transform), fixed, moving, inverse=True)
    flat = pair.fixed.grid.points().reshape(-1, 2)
    expected = planes[1].to_world(transform(torch.as_tensor(flat)[None])[0].numpy())
    assert np.abs(scene_map(nodes["linear"], planes[0].to_world(flat)) - expected).max() < 1e-5
    above = planes[0].to_world(flat) + 4 * planes[0].frame[:3, 2]
    assert np.abs(scene_map(nodes["linear"], above) - expected - 4 * planes[1].frame[:3, 2]).max() < 1e-5
    assert np.abs(scene_map(nodes["inverse"], expected) - planes[0].to_world(flat)).max() < 0.05
    assert mrml.plane_of(nodes["warped"]) is not None


def test_lift_and_flatten_are_inverse():
    fixed, moving = Plane.of(slice_grid(0, 0.2)), Plane.of(slice_grid(0, 0.3, offset=10.0), Plane.of(slice_grid(0, 0.2)))
    turn = np.array([[0.9, -0.1, 3.0], [0.2, 1.0, -4.0], [0, 0, 1.0]])
    again = flatten(lift(Affine(torch.as_tensor(turn)), fixed, moving), fixed, moving, Grid.from_parts((4, 4)))
    assert np.allclose(again.numpy(), turn)


def test_a_slice_against_a_volume_is_refused(scene):
    flat, solid = slice_node(scene, slice_grid(), "slice"), mrml.volume_from_image(scene, image(random_grid(0)), "volume")
    with pytest.raises(InputError, match="'slice' is a single slice and 'volume' is a volume"):
        outputs.pair_from_nodes(flat, solid)


def test_pair_with_guides_and_initial(scene):
    grid = random_grid(0)
    nodes = mrml.volume_from_image(scene, image(grid, 0), "fixed"), mrml.volume_from_image(scene, image(grid, 1), "moving")
    segments = mrml.segmentation_from_labels(scene, blocks(grid), "segments")
    marks = mrml.markups_from_points(scene, Points(torch.rand(1, 4, 3)), "marks")
    start = mrml.node_from_transform(scene, Affine(torch.as_tensor(tilt())), "start")
    pair = outputs.pair_from_nodes(*nodes, fixed_mask=segments, initial=start, fixed_labels=segments, moving_labels=segments,
                                   fixed_points=marks, moving_points=marks)
    assert torch.equal(pair.fixed.mask, blocks(grid).data > 0) and pair.moving.mask is None
    assert np.allclose(pair.initial.numpy(), tilt()) and len(pair.fixed_points) == 4 and pair.fixed_labels.values() == [1, 2]


# --------------------------------------------------------------------------------------------------------- live update


def counted(node):
    seen = []
    node.AddObserver(slicer.vtkMRMLTransformableNode.TransformModifiedEvent, lambda *_: seen.append(1))
    return seen


def test_a_live_update_fires_exactly_one_event_and_changes_the_map(scene):
    grid = Grid.from_parts((20, 22, 18), 4.0, (-35, -40, -30))
    nodes = mrml.volume_from_image(scene, image(grid, 0), "fixed"), mrml.volume_from_image(scene, image(grid, 1), "moving")
    live = outputs.live_nodes(*nodes, spacing=4.0)
    address = mrml._vectors(live["deformation"].GetTransformFromParentAs("vtkOrientedGridTransform")).__array_interface__["data"]
    grids, matrices = counted(live["deformation"]), counted(live["linear"])
    transform = bump(grid, 3.0)
    outputs.show_preview(live, transform)
    assert len(grids) == 1
    points = inner_points(grid, 30)
    assert np.abs(scene_map(live["linear"], points) - library_map(transform, points)).max() < 1e-4
    matrices.clear()
    outputs.show_preview(live, Affine.translation([1.0, 2.0, 3.0]) @ transform)
    assert len(grids) == 2 and len(matrices) >= 1
    assert np.abs(scene_map(live["linear"], points) - library_map(transform, points) - [1, 2, 3]).max() < 1e-4
    after = mrml._vectors(live["deformation"].GetTransformFromParentAs("vtkOrientedGridTransform")).__array_interface__["data"]
    assert after == address


def test_a_live_update_of_a_slice(scene):
    fixed, moving = slice_node(scene, slice_grid(2, 0.2), "fixed"), slice_node(scene, slice_grid(2, 0.2), "moving")
    planes, pair = outputs.planes_of(fixed, moving), outputs.pair_from_nodes(fixed, moving)
    live = outputs.live_nodes(fixed, moving, spacing=1.5)
    wave = torch.zeros(1, 2, *pair.fixed.grid.shape)
    wave[..., 3:12, 5:15] = 1.3
    outputs.show_preview(live, Displacement(wave, pair.fixed.grid), planes)
    flat = pair.fixed.grid.points().reshape(-1, 2)[::5]
    expected = planes[0].to_world(Displacement(wave, pair.fixed.grid)(torch.as_tensor(flat)[None])[0].numpy())
    assert np.abs(scene_map(live["linear"], planes[0].to_world(flat)) - expected).max() < 1e-4


def test_the_bridge_imports_without_slicer_vtk_and_torch():
    import os
    import subprocess
    import sys
    from pathlib import Path

    code = ("import sys; sys.modules['slicer'] = None; sys.modules['vtk'] = None; sys.modules['torch'] = None; "
            "import DeepRegistrationUI.mrml, DeepRegistrationUI.outputs")
    environment = {**os.environ, "PYTHONPATH": str(Path(mrml.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == 0


def test_a_large_grid_is_written_fast(scene):
    import time

    grid = Grid.from_parts((128, 128, 128), 1.0)
    dense = Displacement(torch.ones(1, 3, *grid.shape), grid)
    began = time.perf_counter()
    mrml.node_from_transform(scene, dense, "large")
    assert time.perf_counter() - began < 2.0
