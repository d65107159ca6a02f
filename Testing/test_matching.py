"""The local intensity map: known slopes and offsets come back under outliers, shading moves nothing, and where there is nothing to fit it is the identity."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import truths

from DeepRegistrationLib.engines import matching
from DeepRegistrationLib.engines.channels import channels, limits_of, normalised
from DeepRegistrationLib.engines.compositive import CompositiveSettings, register
from DeepRegistrationLib.engines.matching import IntensityMap, local_map
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.io import read_image
from DeepRegistrationLib.ops.filters import gaussian
from DeepRegistrationLib.ops.sample import index_points
from DeepRegistrationLib.runtime import Silent
from DeepRegistrationLib.train.template import template_files
from DeepRegistrationLib.transforms import Affine

DIMS = pytest.mark.parametrize("dim", [2, 3])


def scene(dim, outliers=0.0, seed=0):
    """(fixed, warped, slope, offset, grid): warped = slope * fixed + offset, both smooth, and a share of blobs of nonsense."""
    grid = Grid.from_parts((28, 60, 64)[-dim:], 1.5)
    generator = torch.Generator().manual_seed(seed)
    texture = gaussian(torch.randn(1, 1, *grid.shape, generator=generator), 1.0)
    fixed = (0.5 + 0.2 * texture / texture.std()).clamp(0.05, 0.95)
    x = index_points(grid)[..., 0][:, None] / grid.size[0]
    y = index_points(grid)[..., 1][:, None] / grid.size[1]
    slope, offset = 0.7 + 0.4 * x, 0.15 * y - 0.05
    warped = slope * fixed + offset
    if outliers:
        blobs = gaussian(torch.randn(1, 1, *grid.shape, generator=generator), 2.0)
        bad = blobs > torch.quantile(blobs.flatten(), 1 - outliers)
        warped = torch.where(bad, torch.rand(1, 1, *grid.shape, generator=generator) * 0.2 + 0.8 * (fixed < 0.5), warped)
    return fixed, warped, slope, offset, grid


def brain(dim):
    """The MNI template in [0, 1], a slice of 1 mm or the volume at 4 mm."""
    image = read_image(template_files()["t1"])
    image = replace(image, data=image.data.float() / 255)
    return image.smoothed_to(4.0) if dim == 3 else Image(image.data[:, :, 92], Grid.from_parts(image.data.shape[3:], 1.0))


def fitted(fixed, warped, grid, window=15.0, rounds=6):
    map_, mapped = None, fixed
    for _ in range(rounds):
        map_ = local_map(fixed, warped, mapped, grid, window)
        mapped = map_(fixed)
    return map_, mapped


def error(map_, fixed, slope, offset):
    """Mean difference of the mapped intensities from the true ones, inside."""
    inner = (slice(None), slice(None), *[slice(4, -4)] * (fixed.ndim - 2))
    return float((map_(fixed) - (slope * fixed + offset))[inner].abs().mean())


@DIMS
@pytest.mark.parametrize("outliers, bar", [(0.0, 0.015), (0.3, 0.02)])
def test_a_smooth_map_is_recovered(dim, outliers, bar):
    fixed, warped, slope, offset, grid = scene(dim, outliers)
    map_, _ = fitted(fixed, warped, grid)
    before = float((slope * fixed + offset - fixed).abs().mean())
    assert error(map_, fixed, slope, offset) < bar < before / 2
    assert float((map_.slope - slope).abs().mean()) < 0.1


def test_the_weights_take_the_outliers_out():
    """Plain least squares in the same windows is pulled by bright nonsense on 30 % of the voxels; the weighted fit is not."""
    fixed, _, _, _, grid = scene(2)
    generator = torch.Generator().manual_seed(1)
    blobs = gaussian(torch.randn(1, 1, *grid.shape, generator=generator), 2.0)
    warped = torch.where(blobs > torch.quantile(blobs.flatten(), 0.7), torch.full_like(fixed, 0.9), 0.8 * fixed + 0.1)
    robust, _ = fitted(fixed, warped, grid)
    mean = lambda x: gaussian(x, 10.0, "renormalise")  # noqa: E731
    slope = (mean(fixed * warped) - mean(fixed) * mean(warped)) / (mean(fixed * fixed) - mean(fixed).square())
    plain = IntensityMap(slope, mean(warped) - slope * mean(fixed))
    truth = torch.full_like(fixed, 0.8), torch.full_like(fixed, 0.1)
    assert error(robust, fixed, *truth) < 0.25 * error(plain, fixed, *truth)


def test_a_majority_of_outliers_cannot_be_told_apart():
    fixed, warped, slope, offset, grid = scene(2, 0.8)
    map_, _ = fitted(fixed, warped, grid)
    assert error(map_, fixed, slope, offset) > 0.05


@DIMS
def test_flat_windows_keep_the_slope_of_the_whole(dim):
    fixed, _, _, _, grid = scene(dim)
    flat = index_points(grid)[..., 0][:, None] > grid.size[0] / 2
    fixed = torch.where(flat, torch.full_like(fixed, 0.6), fixed)
    warped = 0.8 * fixed + 0.1
    map_, mapped = fitted(fixed, warped, grid, window=6.0)
    deep = index_points(grid)[..., 0][:, None] > grid.size[0] - 8
    assert float((map_.slope[deep] - 0.8).abs().max()) < 0.05
    assert float((mapped - warped).abs().max()) < 0.02


@DIMS
def test_voxels_that_cannot_be_compared_have_no_say(dim):
    """They arrive as copies of the mapped fixed image; the map of the rest is as if they were not there."""
    fixed, warped, slope, offset, grid = scene(dim)
    hidden = index_points(grid)[..., 1][:, None] < grid.size[1] // 3
    map_, mapped = None, fixed
    for _ in range(4):
        map_ = local_map(fixed, torch.where(hidden, mapped, warped), mapped, grid, 10.0)
        mapped = map_(fixed)
    seen = (index_points(grid)[..., 1][:, None] > grid.size[1] // 3 + 2).expand_as(fixed)
    assert float((mapped - (slope * fixed + offset))[seen].abs().mean()) < 0.02


@DIMS
def test_background_keeps_its_value(dim):
    fixed, warped, _, _, grid = scene(dim)
    empty = index_points(grid)[..., 0][:, None] < 10
    fixed = torch.where(empty, torch.full_like(fixed, 0.005), fixed)
    _, mapped = fitted(fixed, torch.where(empty, torch.zeros_like(warped), warped), grid)
    assert torch.equal(mapped[empty.expand_as(mapped)], fixed[empty.expand_as(fixed)])
    bright = 1 - fixed
    map_ = local_map(bright, 1 - warped, bright, grid, 10.0, background=1.0)
    assert torch.equal(map_(bright, 1.0)[empty.expand_as(bright)], bright[empty.expand_as(bright)])


@DIMS
def test_a_shaded_copy_of_a_brain_is_left_where_it_is(dim):
    """One fit in a window left so much of this shading that 1.4 mm (2D) and 2.9 mm (3D) of motion were made up."""
    t1 = brain(dim)
    generator = torch.Generator().manual_seed(0)
    places = torch.as_tensor(t1.grid.points()).float()[None]
    shading = (0.5 * torch.cos(2 * np.pi * places / 160 + torch.arange(dim)).mean(-1)).exp()[:, None]
    fixed, moving = (replace(t1, data=t1.data * s + 0.02 * torch.randn(t1.data.shape, generator=generator) * (t1.data > 0.05)) for s in (1, shading))
    displacement, _, _ = register(fixed, moving, Affine.identity(dim), CompositiveSettings(cautious=True), Silent())
    points = places[0][t1.data[0, 0] > 0.15][None]
    moved = float((displacement(points) - points).norm(dim=-1).mean())
    assert moved < 0.4, f"{moved:.2f} mm"


@DIMS
def test_misaligned_anatomy_is_no_shading(dim):
    """Without a shading the map is the local fit alone, to the last bit, so that the images keep what tells them apart."""
    t1 = brain(dim)
    fixed, warped = t1.data, t1.data.roll(2, -1) + 0.01
    with pytest.MonkeyPatch.context() as patch:
        seen = local_map(fixed, warped, fixed, t1.grid, 12.0)
        patch.setattr(matching, "SHADED", float("inf"))
        alone = local_map(fixed, warped, fixed, t1.grid, 12.0)
        patch.setattr(matching, "SHADED", 0.0)
        forced = local_map(fixed, warped, fixed, t1.grid, 12.0)
    assert torch.equal(seen.slope, alone.slope) and torch.equal(seen.offset, alone.offset)
    assert not torch.equal(forced.slope, alone.slope)


def test_nothing_to_fit_gives_the_identity():
    grid = Grid.from_parts((20, 20))
    empty = torch.zeros(1, 1, 20, 20)
    map_ = local_map(empty, empty, empty, grid, 5.0)
    assert isinstance(map_, IntensityMap) and float(map_.offset.abs().max()) == 0
    assert float(map_.slope.min()) == 1 == float(map_.slope.max())
    fixed = torch.rand(1, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    same = local_map(fixed, fixed, fixed, grid, 5.0)
    torch.testing.assert_close(same(fixed), fixed)


@pytest.mark.parametrize("shape, spacing", [((1, 40, 44), (1.5, 1.5, 5.0)), ((6, 40, 44), (0.8, 1.2, 6.0)), ((41, 39), (0.4, 2.0))])
def test_anisotropic_and_one_slice_lattices(shape, spacing):
    grid = Grid.from_parts(shape, spacing)
    generator = torch.Generator().manual_seed(3)
    fixed = torch.rand(1, 1, *shape, generator=generator) * 0.8 + 0.1
    warped = 0.6 * fixed + 0.2
    map_, mapped = fitted(fixed, warped, grid, 8.0)
    assert map_.slope.shape == fixed.shape
    assert float((mapped - warped).abs().max()) < 0.01


def test_channels_have_maps_of_their_own():
    grid = Grid.from_parts((40, 44))
    fixed = torch.rand(1, 2, 40, 44, generator=torch.Generator().manual_seed(3)) * 0.8 + 0.1
    gain = torch.tensor([0.5, 1.2]).reshape(1, 2, 1, 1)
    warped = gain * fixed + 0.01 * torch.randn(1, 2, 40, 44, generator=torch.Generator().manual_seed(4))
    _, mapped = fitted(fixed, warped, grid, 8.0)
    assert float((mapped - gain * fixed).abs().mean()) < 0.01


def test_a_channel_that_is_equal_already_stays_as_it_is():
    """No voxel of it has weight; 0 / 0 must not reach the map."""
    grid = Grid.from_parts((40, 44))
    fixed = torch.rand(1, 2, 40, 44, generator=torch.Generator().manual_seed(3)) * 0.8 + 0.1
    warped = fixed * torch.tensor([1.0, 0.7]).reshape(1, 2, 1, 1)
    mapped = local_map(fixed, warped, fixed, grid, 8.0)(fixed)
    torch.testing.assert_close(mapped[:, 0], fixed[:, 0])
    assert float((mapped - warped)[:, 1].abs().mean()) < 0.02


def test_inputs_are_left_alone():
    fixed, warped, _, _, grid = scene(2, 0.3)
    kept = fixed.clone(), warped.clone()
    fitted(fixed, warped, grid, rounds=2)
    assert torch.equal(fixed, kept[0]) and torch.equal(warped, kept[1])


@DIMS
def test_the_robust_range_is_scaled_to_one(dim):
    grid = truths.grid_kinds(dim)["oblique"]
    data = torch.rand(1, 1, *grid.shape, generator=torch.Generator().manual_seed(0)) * 900 + 100
    data.view(-1)[3] = 1e6
    image = Image(data, grid)
    low, high = limits_of(image)
    assert 90 < low < 130 and 900 < high < 1010, "one hot voxel does not set the range"
    scaled = normalised(image).data
    assert float(scaled.min()) == 0 and float(scaled.max()) == 1 and 0.4 < float(scaled.mean()) < 0.6
    assert float(image.data.max()) == 1e6, "the input is left alone"


def test_the_range_is_that_of_the_mask_and_of_whole_numbers():
    grid = Grid.from_parts((30, 30))
    data = torch.arange(900).reshape(1, 1, 30, 30)
    mask = data < 300
    low, high = limits_of(Image(data, grid, mask))
    assert 0 <= low < 10 and 285 < high < 300
    assert normalised(Image(data, grid, mask)).data.dtype == torch.float32


def test_a_small_bright_object_on_a_wide_background():
    """The range is that of the object: the background is most of the voxels and must not be the whole range."""
    data = torch.zeros(1, 1, 100, 100)
    data[..., 48:52, 48:52] = 7.0
    low, high = limits_of(Image(data, Grid.from_parts((100, 100))))
    assert low == pytest.approx(0) and high == pytest.approx(7.0)


@DIMS
def test_mind_channels_do_not_see_contrast(dim):
    grid = Grid.from_parts((10, 20, 22)[-dim:])
    data = torch.rand(1, 1, *grid.shape, generator=torch.Generator().manual_seed(0))
    one, other = (channels(Image(x, grid), "mind").data for x in (data, 1 - 0.5 * data))
    assert one.shape[1] > 1 and float((one - other).abs().max()) < 1e-3
    assert channels(Image(data, grid), "mse").data is data
    two = channels(Image(data.repeat(1, 2, *[1] * dim), grid), "mind").data
    assert two.shape[1] == 2 * one.shape[1] and np.allclose(two[:, : one.shape[1]], one)
