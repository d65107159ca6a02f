"""The demons step: where it points, how long it may be, where it is silent; smoothing and composition against their references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import truths

from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.ops import demons, fields
from DeepRegistrationLib.ops.filters import gaussian
from DeepRegistrationLib.ops.nd import index_gradient
from DeepRegistrationLib.ops.sample import index_points

DIMS = pytest.mark.parametrize("dim", [2, 3])


def lattice(dim):
    return Grid.from_parts((16, 18, 20)[-dim:])


def ramp(grid, direction, shift=0.0):
    """(1, 1, *S) values that grow along ``direction`` (index units), displaced by ``shift`` voxels along it."""
    axis = np.asarray(direction, float) / np.linalg.norm(direction)
    index = index_points(grid).reshape(*grid.shape, grid.dim)
    return ((index @ torch.as_tensor(axis, dtype=torch.float32) - shift) * 0.05)[None, None]


@DIMS
@pytest.mark.parametrize("component", [0, 1, -1])
@pytest.mark.parametrize("spacing", [1.0, 2.5])
def test_a_shifted_ramp_is_matched_in_one_step(dim, component, spacing):
    """Without a bound the step is Gauss-Newton: on a ramp it is the whole shift, in the right direction and in voxels."""
    grid, direction = lattice(dim), np.eye(dim)[component]
    fixed, warped = ramp(grid, direction, -1.5), ramp(grid, direction)
    v, cost = demons.update(fixed, warped, np.full(dim, spacing), 1e6, 0.0)
    expected = torch.as_tensor(1.5 * direction, dtype=torch.float32).reshape(1, dim, *[1] * dim).expand_as(v)
    torch.testing.assert_close(v, expected, rtol=1e-4, atol=1e-4)
    assert cost == pytest.approx((1.5 * 0.05) ** 2, rel=1e-4)


@DIMS
def test_the_shift_is_in_voxels_of_each_axis(dim):
    grid, spacing = lattice(dim), np.array([0.5, 2.0, 4.0])[:dim]
    direction = np.ones(dim)
    v, _ = demons.update(ramp(grid, direction, -0.3), ramp(grid, direction), spacing, 1e6, 0.0)
    # the shortest step in mm that makes up the difference lies along the gradient per mm
    gradient = direction / spacing
    expected = 0.3 * np.sqrt(dim) * gradient / (gradient @ gradient) / spacing
    assert np.allclose(v[0].flatten(1).mean(1).numpy(), expected, rtol=1e-3)


@DIMS
def test_a_blob_is_pulled_towards_the_fixed_one(dim):
    grid = lattice(dim)
    index = index_points(grid)
    centre = torch.tensor([(n - 1) / 2 for n in grid.size])
    moved = centre + torch.eye(dim)[0] * 2
    blob = lambda at: (-(index - at).square().sum(-1) / 18).exp()[:, None]  # noqa: E731
    fixed, moving = blob(centre), blob(moved)
    u = torch.zeros(1, dim, *grid.shape)
    for _ in range(30):
        warped = demons.pull(moving, None, np.eye(dim + 1), u, fixed, None)
        v, _ = demons.update(fixed, warped, np.ones(dim), 1.0, 1e-4)
        u = demons.compose(u, demons.smooth(v, 1.5)[0])
    at_centre = u[(0, slice(None), *[n // 2 for n in grid.shape])]
    assert float(at_centre[0]) == pytest.approx(2, abs=0.3)
    assert float(at_centre[1:].abs().max()) < 0.2


@DIMS
@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("limit", [0.3, 1.0, 4.0])
def test_no_step_is_longer_than_half_the_limit(dim, channels, limit):
    generator = torch.Generator().manual_seed(4)
    shape, spacing = (9, 10, 11)[-dim:], np.array([0.6, 1.7, 3.1])[:dim]
    for scale in (0.01, 1.0, 100.0):
        fixed = torch.randn(1, channels, *shape, generator=generator) * scale
        warped = torch.randn(1, channels, *shape, generator=generator) * scale
        v, _ = demons.update(fixed, warped, spacing, limit, 0.0)
        length = (v * torch.as_tensor(spacing, dtype=torch.float32).reshape(1, -1, *[1] * dim)).square().sum(1).sqrt()
        assert float(length.max()) <= limit / 2 * (1 + 1e-5)
        assert float(length.max()) > 0.2 * limit / 2, "the bound is used"


@DIMS
def test_channels_are_summed_above_and_below(dim):
    generator = torch.Generator().manual_seed(5)
    fixed, warped = (torch.randn(1, 2, *(8, 9, 10)[-dim:], generator=generator) for _ in range(2))
    v, cost = demons.update(fixed, warped, np.ones(dim), 1.3, 0.1)
    d, g = fixed - warped, index_gradient((fixed + warped) / 2)
    expected = (d[:, :, None] * g).sum(1) / (g.square().sum((1, 2)) + d.square().sum(1) / 1.3**2 + 0.1)[:, None]
    torch.testing.assert_close(v, expected, rtol=1e-4, atol=1e-5)
    assert cost == pytest.approx(float(d.square().mean()), rel=1e-5)


@DIMS
@pytest.mark.parametrize("why", ["moving mask", "fixed mask", "outside"])
def test_what_cannot_be_compared_exerts_no_force(dim, why):
    grid = lattice(dim)
    generator = torch.Generator().manual_seed(6)
    fixed, moving = (torch.randn(1, 1, *grid.shape, generator=generator) for _ in range(2))
    half = index_points(grid)[..., 0][:, None] < 10
    matrix, masks = np.eye(dim + 1), [None, None]
    if why == "outside":
        matrix[0, dim] = 10.0
    else:
        masks[why == "fixed mask"] = half
    warped = demons.pull(moving, masks[0], matrix, torch.zeros(1, dim, *grid.shape), fixed, masks[1])
    assert torch.equal(warped == fixed, ~half.expand_as(fixed))
    v, cost = demons.update(fixed, warped, np.ones(dim), 1.0, 0.01)
    silent = (~half).expand_as(v)
    assert float(v[silent].abs().max()) == 0 and float(v[~silent].abs().min()) >= 0 and float(v.abs().max()) > 0.01
    assert cost == pytest.approx(float((fixed - warped).square().mean()), rel=1e-5)


def test_half_a_voxel_outside_still_counts():
    fixed, moving = torch.zeros(1, 1, 4, 5), torch.ones(1, 1, 4, 5)
    for shift, seen in ((0.5, 5), (0.51, 4), (-0.5, 5), (-0.51, 4)):
        matrix = np.eye(3)
        matrix[0, 2] = shift
        warped = demons.pull(moving, None, matrix, torch.zeros(1, 2, 4, 5), fixed, None)
        assert int(warped[0, 0, 0].sum()) == seen, shift


@DIMS
def test_compose_is_that_of_fields_inside(dim):
    """Both agree where id + v stays on the lattice; outside one is clamped and the other falls to 0."""
    grid = Grid.from_parts((14, 15, 16)[-dim:])
    generator = torch.Generator().manual_seed(7)
    u, v = (gaussian(torch.randn(1, dim, *grid.shape, generator=generator) * 3, 1.5) for _ in range(2))
    inner = (slice(None), slice(None), *[slice(4, -4)] * dim)
    torch.testing.assert_close(demons.compose(u, v)[inner], fields.compose(u, v, grid)[inner], rtol=0, atol=2e-5)


@DIMS
def test_compose_clamps_at_the_border(dim):
    u, v = torch.full((1, dim, *(5, 6, 7)[-dim:]), 2.0), torch.full((1, dim, *(5, 6, 7)[-dim:]), -9.0)
    torch.testing.assert_close(demons.compose(u, v), torch.full_like(u, -7.0))


@DIMS
@pytest.mark.parametrize("sigma", [0.6, 1.7, 4.0])
def test_smooth_is_the_gaussian_of_filters(dim, sigma):
    u = torch.randn(1, dim, *(12, 13, 14)[-dim:], generator=torch.Generator().manual_seed(8))
    torch.testing.assert_close(demons.smooth(u, sigma)[0], gaussian(u, sigma, smallest=demons.TAIL), rtol=0, atol=1e-5)
    torch.testing.assert_close(demons.smooth(u, sigma)[0], gaussian(u, sigma), rtol=0, atol=0.01)
    constant = torch.full_like(u, 3.0)
    torch.testing.assert_close(demons.smooth(constant, sigma)[0], constant)


@DIMS
@pytest.mark.parametrize("kind", ["plain", "anisotropic", "flipped", "oblique", "oblique-flipped"])
def test_world_and_voxels(dim, kind):
    grid = truths.grid_kinds(dim)[kind]
    u = torch.randn(1, dim, *grid.shape, generator=torch.Generator().manual_seed(9))
    world = demons.to_world(u, grid)
    first = (0, slice(None), *[0] * dim)
    expected = grid.index_to_world(u[first].numpy()) - grid.origin
    assert np.allclose(world[first].numpy(), expected, atol=1e-4)
    torch.testing.assert_close(demons.from_world(world, grid), u, rtol=1e-4, atol=1e-4)
