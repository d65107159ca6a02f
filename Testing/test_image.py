"""Images, labels and points: shapes, masks, pyramids that keep the field of view, and what is refused."""

import numpy as np
import pytest
import torch
from truths import Phantom, grid_kinds, known_pair, random_affine, random_grid

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.image import Image, Labels
from DeepRegistrationLib.points import Points
from DeepRegistrationLib.result import warp, warp_points

dims = pytest.mark.parametrize("dim", [2, 3])


@dims
@pytest.mark.parametrize("kind", grid_kinds(3))
@pytest.mark.parametrize("factor", [1.5, 2.0, 3.3])
def test_a_coarser_image_keeps_field_of_view_and_mean(dim, kind, factor):
    grid = grid_kinds(dim)[kind].resample(grid_kinds(dim)[kind].spacing / 2)
    image = Phantom(3, grid).image(grid)
    coarse = image.smoothed_to(factor * grid.spacing)
    assert np.allclose(coarse.grid.corners(), grid.corners(), atol=1e-6)
    assert coarse.data.shape[2:] == coarse.grid.shape and coarse.grid.voxels < grid.voxels / 1.5
    assert float(coarse.data.mean()) == pytest.approx(float(image.data.mean()), abs=0.02)
    exact = Phantom(3, grid).image(coarse.grid)
    assert float((coarse.data - exact.data).abs().mean()) < 0.12
    constant = Image(torch.full((1, 2, *grid.shape), 7.0), grid).smoothed_to(factor * grid.spacing)
    assert torch.allclose(constant.data, torch.tensor(7.0), atol=1e-4)


@dims
def test_images_are_never_upsampled(dim):
    grid = random_grid(1, dim, spacing=(1.0, 2.0, 4.0)[:dim])
    image = Phantom(3, grid).image(grid)
    assert image.smoothed_to(0.5) is image and image.smoothed_to(1.0) is image
    coarse = image.smoothed_to(2.0)
    assert coarse.grid.size[1:] == grid.size[1:] and coarse.grid.size[0] < grid.size[0]
    with pytest.raises(InputError, match="spacing"):
        image.smoothed_to(np.nan)


@dims
def test_one_slice_stays_one_slice(dim):
    shape = (1, 12, 14)[-dim:] if dim == 3 else (1, 14)
    grid = random_grid(2, dim, shape, spacing=(1.0, 1.0, 5.0)[:dim])
    image = Phantom(1, grid).image(grid)
    assert image.smoothed_to(3.0).grid.shape[0] == 1
    assert image.at(grid.resample(2.0)).data.shape[2] == 1


@dims
def test_another_lattice_and_back(dim):
    grid = grid_kinds(dim)["oblique-flipped"]
    phantom = Phantom(5, grid)
    fine = grid.resample(grid.spacing / 2)
    image = phantom.image(fine)
    assert float((image.at(grid).data - phantom.image(grid).data).abs().mean()) < 0.03
    assert float((image.at(grid, "cubic").data - phantom.image(grid).data).abs().mean()) < 0.03
    outside = image.at(fine.pad(2), fill=-5.0)
    assert float(outside.data[(0, 0, *[0] * dim)]) == -5.0
    assert image.overlap(fine.pad(2)).float().mean() == pytest.approx(fine.voxels / fine.pad(2).voxels, rel=1e-3)


@dims
def test_masks_travel_and_are_checked(dim):
    grid = random_grid(4, dim)
    image = Phantom(1, grid).image(grid)
    labels = Phantom(1, grid).label_map(grid.resample(grid.spacing * 0.7))
    masked = image.with_mask(labels)
    assert masked.mask.dtype == torch.bool and masked.mask.shape == (1, 1, *grid.shape) and bool(masked.mask.any())
    expected = Phantom(1, grid).label_map(grid).data > 0
    assert float((masked.mask == expected).float().mean()) > 0.9
    assert masked.smoothed_to(grid.spacing * 2).mask.shape[2:] == grid.resample(grid.spacing * 2).shape
    assert masked.at(grid.pad(1)).mask.sum() == masked.mask.sum()
    assert image.with_mask(masked.mask.float()).mask.dtype == torch.bool
    inside = np.argwhere(masked.mask[0, 0].numpy())
    assert masked.region() == grid.crop(inside.min(0)[::-1], inside.max(0)[::-1] + 1) and image.region() == grid
    assert masked.with_mask(None).mask is None and masked.to(dtype=torch.float64).mask.dtype == torch.bool
    with pytest.raises(InputError, match="no voxel inside the image"):
        image.with_mask(Labels(torch.zeros_like(labels.data), labels.grid))
    with pytest.raises(InputError, match="one channel is needed"):
        image.with_mask(Image(torch.ones(1, 3, *grid.shape), grid))
    other = random_grid(1, 5 - dim)
    with pytest.raises(InputError, match=f"{dim}D with one channel"):
        image.with_mask(Image(torch.ones(1, 1, *other.shape), other))
    with pytest.raises(InputError, match="resample the mask"):
        Image(image.data, grid, torch.ones(1, 1, *[2] * dim, dtype=torch.bool))
    with pytest.raises(InputError, match="true and false"):
        Image(image.data, grid, torch.ones(1, 1, *grid.shape))


@dims
def test_labels_stay_whole_numbers(dim):
    grid = random_grid(6, dim)
    labels = Phantom(2, grid).label_map(grid)
    assert labels.values() == sorted(set(labels.data.flatten().tolist()) - {0})
    for other in (labels.at(grid.resample(grid.spacing * 1.4)), labels.smoothed_to(grid.spacing * 1.4)):
        assert isinstance(other, Labels) and other.data.dtype == torch.int64 and set(other.values()) <= set(labels.values())
        assert float((other.data > 0).float().mean()) == pytest.approx(float((labels.data > 0).float().mean()), abs=0.1)
    assert labels.smoothed_to(0.1) is labels
    with pytest.raises(InputError, match="labels cannot be resampled"):
        labels.at(grid, "linear")
    big = Labels(torch.full((1, 1, *grid.shape), 14175, dtype=torch.int32), grid, names=((14175, "gyrus"),))
    assert big.at(grid.pad(1)).values() == [14175] and big.at(grid.pad(1)).names == big.names


@pytest.mark.parametrize("shape", [(1, 4, 5), (1, 1, 5, 4), (1, 1, 3, 4, 5), (4, 5)])
def test_values_that_do_not_fit_the_lattice(shape):
    with pytest.raises(InputError, match="do not fit a grid"):
        Image(torch.zeros(shape), random_grid(1, 2, (4, 5)))


@dims
def test_a_warp_by_the_truth_gives_the_fixed_image(dim):
    pair = known_pair(3, dim, affine=0.1)
    warped = warp(pair.moving, pair.truth, pair.fixed.grid)
    before = pair.moving.at(pair.fixed.grid)
    inner = (0, 0) + (slice(4, -4),) * dim
    error, start = ((w.data - pair.fixed.data)[inner].abs().mean() for w in (warped, before))
    assert float(error) < 0.03 and float(error) < 0.15 * float(start)
    labels = warp(pair.moving_labels, pair.truth, pair.fixed.grid)
    assert isinstance(labels, Labels) and labels.data.dtype == torch.int64
    assert float((labels.data == pair.fixed_labels.data).float().mean()) > 0.96
    wrong = warp(pair.moving, pair.truth.inverse(), pair.fixed.grid)
    assert float((wrong.data - pair.fixed.data)[inner].abs().mean()) > 3 * float(error), "the direction matters"


@dims
def test_points_move_with_the_transform(dim):
    positions = torch.rand(1, 6, dim, dtype=torch.float64)
    points = Points(positions, torch.rand(1, 6, 4), torch.rand(1, 6), tuple("abcdef"))
    affine = random_affine(1, dim)
    moved = warp_points(points, affine)
    assert torch.allclose(moved.positions, affine(positions)) and moved.names == points.names and len(moved) == 6
    assert moved.features is points.features and moved.dim == dim


@pytest.mark.parametrize("arguments, words", [
    ((torch.zeros(4, 3),), r"\(B, N, 2\)"), ((torch.zeros(1, 4, 4),), r"\(B, N, 3\)"), ((torch.full((1, 2, 3), np.nan),), "NaN"),
    ((torch.full((1, 2, 3), np.inf),), "infinite"), ((torch.zeros(1, 2, 3), torch.zeros(1, 3, 2)), "features"),
    ((torch.zeros(1, 2, 3), None, torch.zeros(1, 2, 1)), "weights"),
])
def test_points_that_are_none(arguments, words):
    with pytest.raises(InputError, match=words):
        Points(*arguments)


@dims
def test_voxels_without_a_number_are_left_out_and_read_as_the_background(dim):
    grid = random_grid(1, dim, (8, 9, 10)[-dim:])
    data = torch.rand(1, 2, *grid.shape) - 1000
    assert Image(data, grid).completed().mask is None
    holes = data.clone()
    holes[0, 1, 2, 3], holes[0, 0, 4, 4] = torch.nan, -torch.inf
    made = Image(holes, grid, name="map").completed()
    missing = ~holes.isfinite().all(1, keepdim=True)
    assert torch.equal(made.mask, ~missing) and made.data.isfinite().all() and bool((made.data[missing.expand_as(data)] == made.background).any())
    assert -1000 < made.background < -999.7 and torch.equal(made.data[~missing.expand_as(data)], data[~missing.expand_as(data)])
    mask = torch.zeros_like(missing)
    mask[..., 4:] = True
    assert torch.equal(Image(holes, grid, mask).completed().mask, mask & ~missing)
    with pytest.raises(InputError, match=f"map holds numbers in 0 of {grid.voxels} voxels that count"):
        Image(torch.full_like(data, torch.nan), grid, name="map").completed()


@dims
def test_the_background_is_0_unless_the_border_lies_below_it(dim):
    grid = random_grid(1, dim, (8, 9, 10)[-dim:])
    air = torch.full((1, 1, *grid.shape), -1000.0)
    air[(..., *(slice(2, -2),) * dim)] = 40.0
    assert Image(air, grid).background == -1000 and Image(air + 1000, grid).background == 0
    inside = torch.zeros_like(air)
    inside[(..., *(slice(2, -2),) * dim)] = -5.0
    assert Image(inside, grid).background == 0 and Image(inside.masked_fill(inside == 0, torch.nan), grid).background == 0
    assert Labels(air.int(), grid).background == 0
