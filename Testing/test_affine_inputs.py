"""Linear registration of hard inputs: starts far away, fields of view that do not meet, masks, one-slice volumes; a result or a sentence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import truths
from truths import distance
from truths_linear import known_map, linear_pair, moved_grid, register

from DeepRegistrationLib.engines.linear import LinearSettings, align_linear, solve_linear
from DeepRegistrationLib.engines.starts import centre_of_mass
from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.problem import Pair
from DeepRegistrationLib.transforms import Affine, Displacement

BOTH = pytest.mark.parametrize("dim", (2, 3))


# ------------------------------------------------------------------------------------------------------------------ starts


@BOTH
def test_global_start_finds_a_turn_of_120_degrees(dim):
    turned = known_map(2, "rigid", np.zeros(dim), 0.0, 1e-9).numpy()
    angle = 2 * np.pi / 3
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    case = linear_pair(15, dim, "rigid", "inverted", truth=Affine(torch.as_tensor(turned)))
    assert case.error(register(case.pair, freedom="rigid").transform) > 3
    found = register(case.pair, preset="rigid-global")
    assert case.error(found.transform) < 0.5
    assert found.provenance["start"].startswith("turn")


@BOTH
def test_starts_alone(dim):
    case = linear_pair(16, dim, "translation")
    fixed, moving = case.pair.fixed.grid, case.pair.moving.grid
    centre = register(case.pair, start="center", freedom="none").transform.numpy()
    assert np.allclose(centre[:dim, dim], moving.centre - fixed.centre) and np.allclose(centre[:dim, :dim], np.eye(dim))
    moments = register(case.pair, start="moments", freedom="none").transform
    assert case.error(moments) < 1.5
    assert np.array_equal(register(case.pair, start="header", freedom="none").transform.numpy(), np.eye(dim + 1))


@BOTH
def test_an_initial_transform_is_where_the_search_begins(dim):
    case = linear_pair(17, dim, "rigid")
    far = np.eye(dim + 1)
    far[:2, :2] = [[-1, 0], [0, -1]]
    truth = Affine(torch.as_tensor(far)) @ case.truth
    pair = replace(case.pair, moving=moved_grid(case.pair.moving, far))
    near = Affine(torch.as_tensor(far))
    result = register(replace(pair, initial=near), freedom="rigid")
    assert distance(result.transform, truth, case.points) < 0.1 * case.voxel
    assert result.provenance["start"] == "initial"


@pytest.mark.parametrize("seeds", [(7, 8), (3, 4), (11, 12)])
def test_stacks_of_few_slices_of_two_people_stay_on_each_other(seeds):
    """Over the rest of two stacks that have been moved apart the similarity is high by chance; the search must not end there."""
    whole, stack = Grid.from_parts((48, 64, 60), 3.0), Grid.from_parts((5, 64, 60), 3.0, [0.0, 0.0, 66.0])
    pair = Pair(*(truths.Phantom(seed, whole).image(stack) for seed in seeds))
    assert solve_linear(pair, LinearSettings(freedom="rigid")).overlap > 0.6


def test_fields_of_view_of_quite_other_sizes_are_told_with_these():
    large, tiny = (Image(torch.rand(1, 1, 20, 20), Grid.from_parts((20, 20), spacing)) for spacing in (9.0, 0.01))
    with pytest.raises(InputError, match=r"\(0.2 x 0.2 mm\) do not overlap enough at any start \(header, center, moments\)"):
        register(Pair(large, tiny))


def test_fields_of_view_that_do_not_meet():
    case = linear_pair(18, 3, "rigid")
    away = np.eye(4)
    away[:3, 3] = 1000.0
    pair = replace(case.pair, moving=moved_grid(case.pair.moving, away))
    with pytest.raises(InputError, match="do not overlap.*'header'.*'center' or 'moments'"):
        register(pair, start="header")
    expected = Affine(torch.as_tensor(away)) @ case.truth
    result = register(pair, freedom="rigid")
    assert distance(result.transform, expected, case.points) < 0.1 * case.voxel
    assert "similarity_before" not in result.scalars


def test_sentences():
    case = linear_pair(19, 2, "rigid")
    field = Displacement(torch.zeros(1, 2, *case.pair.fixed.grid.shape), case.pair.fixed.grid)
    with pytest.raises(InputError, match="initial transform is a Displacement"):
        register(replace(case.pair, initial=field))
    with pytest.raises(InputError, match="one of auto, header, center"):
        register(case.pair, start="centr")
    with pytest.raises(InputError, match="expected one of none, translation, rigid"):
        LinearSettings(freedom="full")
    batch = replace(case.pair.fixed, data=case.pair.fixed.data.expand(2, -1, -1, -1))
    with pytest.raises(InputError, match="batch of 2 images"):
        align_linear(Pair(batch, replace(case.pair.moving, data=case.pair.moving.data.expand(2, -1, -1, -1))))


# ------------------------------------------------------------------------------------------------------- masks and slices


def with_blocks(pair, values):
    """The pair with a block of ``values`` in each image at places that do not correspond, and masks that leave the blocks out."""
    images = []
    for image, offset in ((pair.fixed, [22.0, 0.0, 0.0]), (pair.moving, [-20.0, 10.0, 0.0])):
        points = torch.as_tensor(image.grid.points() - image.grid.centre - np.asarray(offset)[:pair.dim])
        block = (points.abs() < 16).all(-1)[None, None]
        images.append(replace(image, data=torch.where(block, values(image.data), image.data), mask=~block))
    return Pair(*images)


@BOTH
def test_masks_hide_what_moves_differently(dim):
    case = linear_pair(20, dim, "rigid", "same")
    masked = with_blocks(case.pair, lambda data: torch.full_like(data, 2.5))
    plain = Pair(*(replace(i, mask=None) for i in (masked.fixed, masked.moving)))
    guarded, spoiled = (case.error(register(p, freedom="rigid", similarity="mse").transform) for p in (masked, plain))
    assert guarded < 0.2 and spoiled > 0.5, (guarded, spoiled)


@pytest.mark.parametrize("similarity", ("mi", "ncc", "lncc"))
def test_what_lies_outside_the_masks_changes_nothing(similarity):
    case = linear_pair(20, 2, "rigid", "same")
    found = [register(with_blocks(case.pair, values), similarity=similarity).transform.matrix
             for values in (lambda data: torch.full_like(data, 1e4), lambda data: -data)]
    assert torch.equal(*found)


@BOTH
def test_the_centre_of_mass_takes_mask_and_background(dim):
    grid = truths.random_grid(1, dim, (14, 15, 16)[-dim:])
    data = torch.full((1, 1, *grid.shape), 200.0)
    index = tuple(slice(3, 6) for _ in range(dim))
    data[(0, 0, *index)] = 20.0
    assert np.allclose(centre_of_mass(Image(data, grid)), grid.index_to_world(np.full(dim, 4.0)))
    mask = torch.zeros(data.shape, dtype=torch.bool)
    mask[(0, 0, *(slice(8, 11) for _ in range(dim)))] = True
    assert np.allclose(centre_of_mass(Image(data, grid, mask)), grid.index_to_world(np.full(dim, 9.0)))


def test_a_one_slice_volume_gives_the_2d_answer_and_keeps_its_plane():
    case = linear_pair(21, 2, "affine", "inverted")

    def lifted(image):
        affine = np.eye(4)
        affine[:2, :2], affine[:2, 3] = image.grid.matrix, image.grid.origin
        affine[2, 2], affine[2, 3] = 5.0, 30.0
        return Image(image.data[:, :, None], Grid((1, *image.grid.shape), affine))

    turn = np.eye(4)
    turn[:3, :3] = truths.rotation(np.random.default_rng(4), 3)
    fixed, moving = (moved_grid(lifted(i), turn) for i in (case.pair.fixed, case.pair.moving))
    found = np.linalg.inv(turn) @ register(Pair(fixed, moving)).transform.numpy() @ turn
    assert np.allclose(found[2, :2], 0, atol=1e-9) and found[2, 2] * 30 + found[2, 3] == pytest.approx(30)
    flat = np.eye(3)
    flat[:2, :2], flat[:2, 2] = found[:2, :2], found[:2, 3] + found[:2, 2] * 30.0
    assert case.error(Affine(torch.as_tensor(flat))) < 0.5


def test_a_one_slice_pair_is_turned_in_its_plane_only():
    half, side = -0.5, np.sqrt(0.75)
    turn = torch.as_tensor([[half, -side, 0.0], [side, half, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    case = linear_pair(15, 2, "rigid", truth=Affine(turn))

    def lifted(image):
        affine = np.diag([0.0, 0.0, 0.0, 1.0])
        affine[np.ix_([0, 2], [0, 1])], affine[[0, 2], 3] = image.grid.matrix, image.grid.origin
        affine[:3, 2] = [0.0, 3.0, 0.0]
        return Image(image.data[:, :, None], Grid((1, *image.grid.shape), affine))

    found = register(Pair(lifted(case.pair.fixed), lifted(case.pair.moving)), preset="rigid-global").transform.numpy()
    flat = np.eye(3)
    flat[:2, :2], flat[:2, 2] = found[np.ix_([0, 2], [0, 2])], found[[0, 2], 3]
    assert np.allclose(found[1], [0, 1, 0, 0], atol=1e-9) and case.error(Affine(torch.as_tensor(flat))) < 0.1


@BOTH
def test_a_small_mask_is_searched_at_its_own_scale(dim):
    case = linear_pair(29, dim, "translation", "inverted", truth=Affine.translation(np.r_[5.0, -4.0, 3.0][:dim]))
    fixed = case.pair.fixed
    near = np.linalg.norm(fixed.grid.points() - fixed.grid.centre, axis=-1) < 26
    masked = replace(fixed, mask=torch.as_tensor(near)[None, None])
    result = register(replace(case.pair, fixed=masked, initial=Affine.identity(dim)), freedom="translation")
    assert case.error(result.transform) < 0.5


def test_a_slice_finds_its_place_in_a_volume():
    case = linear_pair(22, 3, "rigid")
    grid = case.pair.fixed.grid
    middle = grid.size[2] // 2
    plane = case.pair.fixed.at(grid.crop([0, 0, middle], [*grid.size[:2], middle + 1]))
    points = torch.as_tensor(plane.grid.points().reshape(1, -1, 3))
    start = known_map(1, "rigid", grid.centre, 3.0, 0.05)
    result = register(Pair(plane, case.pair.moving, initial=case.truth @ start), freedom="rigid")
    assert distance(result.transform, case.truth, points) < 0.3 * case.voxel
