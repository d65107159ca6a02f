"""The bridge to a 3D Slicer scene, on Slicer's own classes: volumes, labels, markups, transforms, parents, files."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

slicer = pytest.importorskip("slicer", reason="needs slicer-core, the scene of 3D Slicer")
import vtk  # noqa: E402
from scenes import RAS, blocks, bump, image, inner_points, library_map, linear_node, random_grid, scene_map, tilt, scene  # noqa: E402, F401

from DeepRegistrationLib.errors import InputError  # noqa: E402
from DeepRegistrationLib.geometry import Grid  # noqa: E402
from DeepRegistrationLib.image import Image, Labels  # noqa: E402
from DeepRegistrationLib.points import Points  # noqa: E402
from DeepRegistrationLib.transforms import Affine, BSpline, Displacement, Velocity  # noqa: E402
from DeepRegistrationUI import mrml, outputs  # noqa: E402

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
