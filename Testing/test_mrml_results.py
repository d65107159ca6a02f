"""Results in a 3D Slicer scene, on Slicer's own classes: order, border, one-slice volumes, live update."""

import numpy as np
import pytest
import torch

slicer = pytest.importorskip("slicer", reason="needs slicer-core, the scene of 3D Slicer")
import vtk  # noqa: E402
from scenes import blocks, bump, image, inner_points, library_map, linear_node, random_grid, scene_map, slice_grid, slice_node, tilt, scene  # noqa: E402, F401

from DeepRegistrationLib.commands.jobs_pair import Frames  # noqa: E402
from DeepRegistrationLib.commands.jobs_register import sketch  # noqa: E402
from DeepRegistrationLib.errors import InputError  # noqa: E402
from DeepRegistrationLib.geometry import Grid  # noqa: E402
from DeepRegistrationLib.planes import Plane  # noqa: E402
from DeepRegistrationLib.points import Points  # noqa: E402
from DeepRegistrationLib.problem import Pair  # noqa: E402
from DeepRegistrationLib.result import Result  # noqa: E402
from DeepRegistrationLib.transforms import Affine, Displacement, Velocity  # noqa: E402
from DeepRegistrationLib.transforms.planar import flatten, lift  # noqa: E402
from DeepRegistrationUI import mrml, outputs  # noqa: E402
from DeepRegistrationUI.live import LiveView  # noqa: E402

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


# ---------------------------------------------------------------------------------------------------- one-slice volumes


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


def test_a_live_preview_of_a_slice(scene):
    """What the worker makes of a 2D transform for a preview is what the live view shows in the plane."""
    fixed, moving = slice_node(scene, slice_grid(2, 0.2), "fixed"), slice_node(scene, slice_grid(2, 0.2), "moving")
    planes, pair = outputs.planes_of(fixed, moving), outputs.pair_from_nodes(fixed, moving)
    wave = torch.zeros(1, 2, *pair.fixed.grid.shape)
    wave[..., 3:12, 5:15] = 1.3
    transform, lattice = Displacement(wave, pair.fixed.grid), mrml.grid_of(fixed)
    flat = planes[0].flat(lattice)
    matrix, values = sketch(*outputs.split(transform, flat), flat, lattice, Frames(lattice, mrml.grid_of(moving), *planes))
    with LiveView(fixed, moving, lattice_spacing=float(lattice.spacing.min())) as live:
        live.show({"linear": np.array(matrix), "vectors": values[..., :3], "log_jacobian": values[..., 3], "grid": lattice})
        points = pair.fixed.grid.points().reshape(-1, 2)[::5]
        expected = planes[0].to_world(transform(torch.as_tensor(points)[None])[0].numpy())
        assert np.abs(scene_map(live.nodes["linear"], planes[0].to_world(points)) - expected).max() < 1e-4


def test_the_bridge_imports_without_slicer_vtk_and_torch():
    import os
    import subprocess
    import sys
    from pathlib import Path

    code = ("import sys; sys.modules['slicer'] = None; sys.modules['vtk'] = None; sys.modules['torch'] = None; "
            "import DeepRegistrationUI.mrml, DeepRegistrationUI.outputs")
    environment = {**os.environ, "PYTHONPATH": str(Path(mrml.__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == 0


def test_a_large_grid_is_written_fast(scene):
    import time

    grid = Grid.from_parts((128, 128, 128), 1.0)
    dense = Displacement(torch.ones(1, 3, *grid.shape), grid)
    began = time.perf_counter()
    mrml.node_from_transform(scene, dense, "large")
    assert time.perf_counter() - began < 2.0
