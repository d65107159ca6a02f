"""Lattices in world space: round trips, field of view, header surgery, SimpleITK's numbers, sentences for bad input."""

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from truths import grid_kinds, random_grid, random_motion

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.geometry import Grid

few = settings(deadline=None, max_examples=25)


@st.composite
def grids(draw, dims=(2, 3), smallest=1, largest=6):
    dim = draw(st.sampled_from(dims))
    shape = draw(st.lists(st.integers(smallest, largest), min_size=dim, max_size=dim))
    spacing = draw(st.lists(st.floats(1e-3, 50), min_size=dim, max_size=dim))
    return random_grid(draw(st.integers(0, 10**6)), dim, shape, np.array(spacing), flipped=draw(st.booleans()), reach=1000)


@few
@given(grids())
def test_index_and_world_are_inverse(grid):
    index = np.random.default_rng(0).uniform(-3, 10, (7, grid.dim))
    assert np.allclose(grid.world_to_index(grid.index_to_world(index)), index, atol=1e-6)
    assert np.allclose(grid.affine @ grid.inverse_affine, np.eye(grid.dim + 1), atol=1e-6)


@few
@given(grids())
def test_points_hold_every_voxel_centre_in_tensor_order(grid):
    points = grid.points()
    assert points.shape == (*grid.shape, grid.dim)
    voxel = tuple(n - 1 for n in grid.shape)
    assert np.allclose(points[voxel], grid.index_to_world(np.array(voxel[::-1])))
    assert np.allclose(points.reshape(-1, grid.dim).mean(0), grid.centre, atol=1e-6)
    assert grid.contains(points).all()


@few
@given(grids(), st.floats(0.3, 8))
def test_resample_keeps_the_field_of_view(grid, factor):
    new = grid.resample(grid.spacing * factor)
    assert np.allclose(new.corners(), grid.corners(), atol=1e-6 * grid.extent.max())
    assert np.allclose(new.direction, grid.direction)
    assert all(m == 1 for n, m in zip(grid.shape, new.shape) if n == 1)
    wanted = np.array(grid.size) / factor
    assert (np.abs(np.array(new.size) - np.maximum(wanted, 1)) <= 0.5 + 1e-9)[np.array(grid.size) > 1].all()


@few
@given(grids(), st.integers(0, 4))
def test_pad_then_crop_is_the_grid(grid, margin):
    padded = grid.pad(margin)
    assert padded.shape == tuple(n + 2 * margin for n in grid.shape)
    again = padded.crop(np.full(grid.dim, margin), np.array(padded.size) - margin)
    assert again == grid and np.allclose(again.affine, grid.affine, atol=1e-9 * max(1, np.abs(grid.affine).max()))


@few
@given(grids(), st.integers(0, 99), st.booleans())
def test_moved_moves_every_point(grid, seed, flipped):
    motion = random_motion(seed, grid.dim, flipped=flipped)
    moved = grid.moved(motion)
    expected = grid.points() @ motion[:-1, :-1].T + motion[:-1, -1]
    assert np.allclose(moved.points(), expected, atol=1e-8)
    assert np.allclose(moved.spacing, grid.spacing)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("kind", grid_kinds(3))
def test_numbers_equal_simpleitk(dim, kind):
    grid = grid_kinds(dim)[kind]
    image = sitk.Image([int(n) for n in grid.size], sitk.sitkFloat32)
    image.SetOrigin(grid.origin.tolist())
    image.SetSpacing(grid.spacing.tolist())
    image.SetDirection(grid.direction.ravel().tolist())
    index = np.random.default_rng(1).uniform(-2, 12, dim)
    assert np.allclose(image.TransformContinuousIndexToPhysicalPoint(index.tolist()), grid.index_to_world(index), atol=1e-9)
    point = grid.index_to_world(index) + 0.3
    assert np.allclose(image.TransformPhysicalPointToContinuousIndex(point.tolist()), grid.world_to_index(point), atol=1e-9)
    again = Grid.from_parts(grid.shape, image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    assert np.allclose(again.affine, grid.affine, atol=1e-9)


@pytest.mark.parametrize("dim", [2, 3])
def test_contains_ends_at_the_outer_faces(dim):
    grid = random_grid(8, dim, (4, 5, 6)[-dim:])
    middle = (np.array(grid.size) - 1) / 2
    for axis in range(dim):
        for end, out in ((-0.5, -1), (grid.size[axis] - 0.5, 1)):
            index = middle.copy()
            index[axis] = end
            assert grid.contains(grid.index_to_world(index))
            index[axis] = end + 0.01 * out
            assert not grid.contains(grid.index_to_world(index))
    assert not grid.contains(np.full(dim, np.nan))


def test_equality_has_the_tolerance_of_a_header():
    grid = random_grid(3, 3)
    nudged = grid.affine.copy()
    nudged[:3, 3] += 1e-5
    assert Grid(grid.shape, nudged) == grid
    nudged[:3, 3] += 0.1 * grid.spacing.min()
    assert Grid(grid.shape, nudged) != grid
    assert grid != "a grid" and grid != random_grid(3, 2)


def test_axes_of_one_voxel_have_no_say_in_the_spacing():
    slab = Grid.from_parts((5, 1, 7), [1.0, 9.0, 4.0])
    assert slab.wide.tolist() == [True, False, True] and slab.mean_spacing == pytest.approx(2.0)
    assert slab.flat().shape == (5, 7) and slab.flat().spacing.tolist() == [1.0, 4.0]
    assert Grid.from_parts((1, 1), [2.0, 3.0]).wide.all(), "a single voxel has no other axes"


def test_a_grid_cannot_be_changed():
    affine = np.eye(3)
    grid = Grid((3, 4), affine)
    affine[0, 0] = 5
    assert grid.affine[0, 0] == 1
    with pytest.raises(ValueError):
        grid.affine[0, 0] = 2
    with pytest.raises(AttributeError):
        grid.shape = (1, 1)


def _affine(**changes):
    affine = np.eye(4)
    for place, value in changes.items():
        affine[int(place[1]), int(place[2])] = value
    return affine


@pytest.mark.parametrize("shape, affine, words", [
    ((3, 4, 5), np.eye(3), "4 x 4"),
    ((3,), np.eye(2), "2 or 3 axes"),
    ((2, 3, 4, 5), np.eye(5), "2 or 3 axes"),
    ((), np.eye(1), "2 or 3 axes"),
    ((0, 4, 5), np.eye(4), "at least one voxel"),
    ((3, -4, 5), np.eye(4), "at least one voxel"),
    ((3, 2.5, 5), np.eye(4), "at least one voxel"),
    ((3, float("nan"), 5), np.eye(4), "at least one voxel"),
    ((3, "four", 5), np.eye(4), "numbers"),
    ((3, 4, 5), _affine(a00=np.nan), "finite"),
    ((3, 4, 5), _affine(a03=np.inf), "finite"),
    ((3, 4, 5), _affine(a11=0.0), "span no volume"),
    ((3, 4, 5), _affine(a11=0.0, a01=1.0), "span no volume"),
    ((3, 4, 5), _affine(a30=0.5), "last row"),
    ((3, 4, 5), _affine(a33=2.0), "last row"),
    ((3, 4, 5), "matrix", "numbers"),
    ((3, 4, 5), None, "matrix"),
])
def test_degenerate_lattices_are_refused_with_a_sentence(shape, affine, words):
    with pytest.raises(InputError, match=words):
        Grid(shape, affine)


@pytest.mark.parametrize("parts, words", [
    (dict(spacing=(1, 2)), "spacing"), (dict(spacing=(1, 0, 1)), "span no volume"), (dict(spacing=(1, np.nan, 1)), "finite"),
    (dict(origin=(1, 2)), "origin"), (dict(origin=(1, 2, np.inf)), "finite"), (dict(direction=np.eye(2)), "direction"),
    (dict(direction=np.ones((3, 3))), "span no volume"), (dict(direction="RAS"), "numbers"),
])
def test_bad_parts_are_refused_with_a_sentence(parts, words):
    with pytest.raises(InputError, match=words):
        Grid.from_parts((3, 4, 5), **parts)


@pytest.mark.parametrize("spacing", [0, -1, np.nan, np.inf, (1, 2), (1, 2, -3), "fine"])
def test_bad_spacings_are_refused(spacing):
    with pytest.raises(InputError, match="spacing"):
        random_grid(1, 3).resample(spacing)


def test_empty_crops_are_refused():
    with pytest.raises(InputError, match="keeps no voxel"):
        random_grid(1, 2).crop((3, 3), (3, 5))
    with pytest.raises(InputError, match="keeps no voxel"):
        random_grid(1, 2, (5, 5)).pad(-3)
