"""Dense fields against closed forms: Jacobian, divergence, curl, composition, exponential, inverse, gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from truths import Logistic, Swirl, grid_kinds, random_affine, random_diffeomorphism, random_grid, random_motion, random_swirl

from DeepRegistrationLib.errors import ConvergenceError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.ops import fields
from DeepRegistrationLib.ops.sample import index_points, world_points
from DeepRegistrationLib.transforms import Displacement

dims = pytest.mark.parametrize("dim", [2, 3])
kinds = pytest.mark.parametrize("kind", grid_kinds(3))


def inner(x, margin=2):
    for axis in range(-1, -1 - (x.ndim - 2), -1):
        x = x.narrow(axis, margin, x.shape[axis] - 2 * margin) if x.shape[axis] > 2 * margin else x
    return x


@dims
@kinds
def test_index_units(dim, kind):
    grid = grid_kinds(dim)[kind]
    vectors = torch.rand(2, dim, *grid.shape, dtype=torch.float64)
    expected = vectors.movedim(1, -1).numpy() @ grid.inverse_affine[:-1, :-1].T
    assert np.allclose(fields.to_index_units(vectors, grid).numpy(), expected, atol=1e-12)


@dims
@kinds
def test_derivatives_of_an_affine_field_are_exact_everywhere(dim, kind):
    grid = grid_kinds(dim)[kind]
    affine = random_affine(3, dim, grid.centre)
    u = affine.field(grid, torch.float64)
    m = affine.numpy()[:-1, :-1]
    j = fields.jacobian(u, grid)
    assert torch.allclose(j, torch.as_tensor(m).reshape(1, dim, dim, *[1] * dim).expand_as(j), atol=1e-8)
    assert np.allclose(fields.jacobian_determinant(u, grid).numpy(), np.linalg.det(m), atol=1e-8)
    assert np.allclose(fields.divergence(u, grid).numpy(), np.trace(m) - dim, atol=1e-8)
    curl = [m[1, 0] - m[0, 1]] if dim == 2 else [m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]]
    got = fields.curl(u, grid)
    assert got.shape[1] == len(curl)
    assert np.allclose(got.numpy(), np.reshape(curl, (1, -1, *[1] * dim)), atol=1e-8)


@dims
@kinds
def test_derivatives_of_a_swirl_converge_to_the_closed_form(dim, kind):
    coarse = grid_kinds(dim)[kind]
    swirl = random_swirl(2, coarse, angle=0.5, width=0.3)
    errors = []
    for grid in (coarse.resample(coarse.spacing / 2), coarse.resample(coarse.spacing / 4)):
        u, exact = swirl.field(grid, torch.float64), swirl.jacobian_on(grid)
        errors.append(float(inner(fields.jacobian(u, grid) - exact).abs().max()))
        determinant = fields.jacobian_determinant(u, grid)
        assert torch.allclose(inner(determinant), torch.ones_like(inner(determinant)), atol=3 * errors[-1])
        trace = torch.diagonal(exact, dim1=1, dim2=2).sum(-1)[:, None] - dim
        assert float(inner(fields.divergence(u, grid) - trace).abs().max()) < 3 * errors[-1]
    assert errors[1] < 0.02 and errors[0] / errors[1] > 3, errors


@dims
def test_the_velocity_of_a_rotation_has_the_curl_of_the_rotation(dim):
    grid = grid_kinds(dim)["oblique-flipped"]
    axis = np.array([1.0, 2.0, -0.5])
    v = Swirl(grid.centre, 0.4, 1e6, axis).velocity(grid)
    expected = [2 * 0.4] if dim == 2 else 2 * 0.4 * axis / np.linalg.norm(axis)
    assert np.allclose(fields.curl(v, grid).numpy(), np.reshape(expected, (1, -1, *[1] * dim)), atol=1e-7)
    assert np.allclose(fields.divergence(v, grid).numpy(), 0, atol=1e-7)


@dims
def test_moving_both_headers_conjugates_the_derivatives(dim):
    grid = random_grid(3, dim, spacing=(1.0, 1.5, 2.0)[:dim])
    u = random_diffeomorphism(1, grid).field(grid, torch.float64)
    for flipped in (False, True):
        motion = random_motion(9, dim, flipped=flipped)
        r = torch.as_tensor(motion[:-1, :-1])
        moved_grid, moved = grid.moved(motion), torch.einsum("ij,bj...->bi...", r, u)
        assert torch.allclose(fields.jacobian_determinant(moved, moved_grid), fields.jacobian_determinant(u, grid), atol=1e-9)
        conjugated = torch.einsum("ij,bjk...,lk->bil...", r, fields.jacobian(u, grid), r)
        assert torch.allclose(fields.jacobian(moved, moved_grid), conjugated, atol=1e-9)
        for operation in (fields.exp, lambda f, g: fields.compose(f, 0.5 * f, g), lambda f, g: fields.invert(f, g, 1e-7)[0]):
            expected = torch.einsum("ij,bj...->bi...", r, operation(u, grid))
            assert torch.allclose(operation(moved, moved_grid), expected, atol=1e-5)
        curl = torch.einsum("ij,bj...->bi...", r, fields.curl(u, grid)) if dim == 3 else fields.curl(u, grid)
        assert torch.allclose(fields.curl(moved, moved_grid), (-1 if flipped else 1) * curl, atol=1e-9)


@dims
@kinds
def test_compose_of_affine_fields_is_exact_where_the_inner_map_stays_inside(dim, kind):
    grid = grid_kinds(dim)[kind].pad(6)
    a, b = (random_affine(k, dim, grid.centre, 0.03, 0.8) for k in (1, 2))
    got = fields.compose(a.field(grid, torch.float64), b.field(grid, torch.float64), grid)
    expected = (a @ b).field(grid, torch.float64)
    margin = 6
    assert torch.allclose(inner(got, margin), inner(expected, margin), atol=1e-8)


@dims
def test_compose_with_the_identity_and_associativity(dim):
    grid = random_grid(4, dim, (17, 18, 19)[-dim:], spacing=(1.0,) * dim)
    a, b, c = (random_diffeomorphism(k, grid, 0.2, 0.2).field(grid, torch.float64) for k in range(3))
    zero = torch.zeros_like(a)
    assert torch.allclose(fields.compose(a, zero, grid), a) and torch.allclose(fields.compose(zero, a, grid), a)
    left = fields.compose(fields.compose(a, b, grid), c, grid)
    right = fields.compose(a, fields.compose(b, c, grid), grid)
    assert float((left - right).abs().max()) < 0.2 and float((left - right).abs().mean()) < 0.01


@dims
@pytest.mark.parametrize("make", [lambda g: random_swirl(3, g, 0.7, 0.18), lambda g: Logistic(g, 0.8)], ids=["swirl", "logistic"])
def test_exp_is_the_closed_form_flow(dim, make):
    errors = []
    base = random_grid(7, dim, (15, 16, 17)[-dim:], spacing=(2.0,) * dim)
    for grid in (base, base._with_size((np.array(base.size) - 1) * 2 + 1)):
        flow = make(base)
        u, exact = fields.exp(flow.velocity(grid), grid), flow.field(grid, torch.float64)
        errors.append(float(inner(u - exact).norm(dim=1).max()))
    assert errors[1] < 0.12 and errors[1] < 0.75 * errors[0], errors


@dims
def test_exp_converges_with_the_first_order_of_its_first_step(dim):
    grid = random_grid(7, dim, (25, 26, 27)[-dim:], spacing=(1.0,) * dim)
    v = random_swirl(3, grid, 0.6, 0.2).velocity(grid)
    reference = fields.exp(v, grid, 14)
    errors = [float((fields.exp(v, grid, steps) - reference).abs().max()) for steps in (2, 3, 4)]
    assert 1.5 < errors[0] / errors[1] < 3 and 1.5 < errors[1] / errors[2] < 3, errors


@dims
def test_exp_of_v_after_exp_of_minus_v_is_the_identity(dim):
    grid = random_grid(9, dim, (26, 28, 30)[-dim:], spacing=(1.0,) * dim)
    v = random_swirl(1, grid, 0.5, 0.15).velocity(grid) + Logistic(grid, 0.5).velocity(grid)
    there, back = fields.exp(v, grid), fields.exp(-v, grid)
    error = fields.compose(there, back, grid).norm(dim=1)
    assert float(error.max()) < 0.15 and float(error.mean()) < 0.04 and float(there.norm(dim=1).max()) > 2
    assert torch.equal(fields.exp(torch.zeros_like(v), grid), torch.zeros_like(v))
    assert float(fields.jacobian_determinant(there, grid).min()) > 0


def test_exp_of_a_batch_is_the_batch_of_exps():
    grid = random_grid(2, 2, (20, 21), spacing=(1.0, 1.0))
    v = torch.cat([random_swirl(k, grid, 0.3 + 0.3 * k).velocity(grid) for k in range(2)])
    both = fields.exp(v, grid, 5)
    assert torch.allclose(both[1:], fields.exp(v[1:], grid, 5))


@dims
@pytest.mark.parametrize("angle, rate", [(0.3, 0.3), (1.0, 1.0), (2.0, 2.0)])
def test_the_inverse_of_strong_deformations(dim, angle, rate):
    grid = random_grid(12, dim, (26, 28, 30)[-dim:], spacing=(1.5,) * dim)
    truth = random_diffeomorphism(3, grid, angle, rate)
    u = truth.field(grid)
    inverse = Displacement(u, grid).inverse()
    assert inverse.residual <= 0.031
    w, residual = fields.invert(u, grid, 0.02)
    index = index_points(grid) + fields.to_index_units(w, grid)
    error = (w + fields.sample_field(u, grid, index)).norm(dim=1)
    inside = ((index > 0) & (index < torch.tensor(grid.size) - 1)).all(-1)
    assert float(error[inside].max()) <= residual + 1e-4 <= 0.021
    exact = truth.inverse().field(grid)
    assert float((w - exact).norm(dim=1).mean()) < 0.1 * max(1, angle**2)


@dims
@kinds
def test_the_inverse_of_fields_that_are_wide_at_the_border(dim, kind):
    grid = grid_kinds(dim)[kind]
    for affine in (random_affine(5, dim, grid.centre, 0.1, 12.0), random_affine(6, dim, grid.centre, 0.3, 0.0)):
        field = Displacement(affine.field(grid, torch.float64), grid)
        inverse = field.inverse(1e-6)
        points = world_points(grid, torch.float64).reshape(1, -1, dim)
        back = inverse(field(points))
        centre = torch.as_tensor(grid.index_to_world(np.array(grid.size) / 2 - 0.5))[None, None]
        assert inverse.residual < 1e-6
        assert torch.allclose(inverse(field(centre)), centre, atol=1e-5)
        assert float((back - points).norm(dim=-1).mean()) < 0.1 * float(grid.spacing.max())
        exact = affine.inverse().field(inverse.grid, torch.float64)
        index = torch.as_tensor(grid.world_to_index((inverse.grid.points() + exact[0].movedim(0, -1).numpy())))
        reached = ((index >= 0) & (index <= torch.tensor(grid.size) - 1)).all(-1)
        assert torch.allclose(inverse.displacement[0][:, reached], exact[0][:, reached], atol=1e-5)


def test_the_inverse_of_a_half_turn():
    grid = Grid.from_parts((30, 31), (1.0, 1.3))
    motion = -np.eye(3)
    motion[2, 2], motion[:2, 2] = 1, 2 * grid.centre
    points = torch.as_tensor(grid.points()).reshape(1, -1, 2)
    u = (torch.as_tensor(points.numpy() @ motion[:2, :2].T + motion[:2, 2]) - points).reshape(1, 30, 31, 2).movedim(-1, 1)
    field = Displacement(u, grid)
    assert torch.allclose(field.inverse()(field(points)), points, atol=0.03)


def test_the_tolerance_follows_the_spacing():
    grid = random_grid(4, 2, (24, 25), spacing=(0.001, 0.001), reach=0.1)
    truth = random_diffeomorphism(2, grid, 0.5, 0.5)
    inverse = Displacement(truth.field(grid, torch.float64), grid).inverse()
    assert inverse.residual <= 2.1e-5
    assert float((inverse.displacement - truth.inverse().field(inverse.grid, torch.float64)).abs().max()) < 3e-4


def test_inverses_of_a_batch_and_of_one_slice():
    grid = random_grid(4, 3, (1, 24, 25), spacing=(1.0, 1.0, 3.0), oblique=False)
    flat = Grid(grid.shape[1:], grid.affine[np.ix_([0, 1, 3], [0, 1, 3])])
    u = torch.cat([random_diffeomorphism(k, flat).field(flat) for k in range(2)])
    volume = torch.cat([u, torch.zeros_like(u[:, :1])], 1)[:, :, None]
    inverse, plane = Displacement(volume, grid).inverse(), Displacement(u, flat).inverse()
    assert inverse.grid.shape == (1, *plane.grid.shape)
    assert torch.allclose(inverse.displacement[:, :2, 0], plane.displacement, atol=0.05)
    for b in range(2):
        alone = Displacement(u[b : b + 1], flat).inverse(0.02)
        common = plane.displacement[b : b + 1] if alone.grid.shape == plane.grid.shape else None
        assert common is None or torch.allclose(alone.displacement, common, atol=0.1)


def test_fields_without_an_inverse_say_so():
    grid = random_grid(2, 2, (20, 20), spacing=(1.0, 1.0))
    bad = torch.zeros(1, 2, 20, 20)
    bad[0, 0, 3, 3] = float("nan")
    with pytest.raises(ConvergenceError, match="NaN or infinite"):
        Displacement(bad, grid).inverse()
    with pytest.raises(ConvergenceError, match="no finite inverse"):
        fields.invert(bad, grid)
    with pytest.raises(ConvergenceError, match="many times the size"):
        Displacement(torch.full((1, 2, 20, 20), 5e5) * torch.rand(1, 2, 20, 20), grid).inverse()
    fold = 8 * torch.randn(1, 2, 20, 20, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ConvergenceError, match="folds"):
        Displacement(fold, grid).inverse()


def test_folds_are_seen_as_negative_determinants():
    grid = Grid.from_parts((9, 9))
    u = torch.zeros(1, 2, 9, 9)
    u[0, 0] = -2 * (torch.arange(9.0) - 4)
    assert torch.allclose(fields.jacobian_determinant(u, grid), torch.tensor(-1.0))


@dims
def test_determinants_equal_linalg(dim):
    m = torch.randn(2, dim, dim, *(3, 4, 5)[-dim:], dtype=torch.float64)
    assert torch.allclose(fields.determinant(m)[:, 0], torch.linalg.det(m.movedim((1, 2), (-2, -1))))


def test_a_volume_constant_in_z_gives_the_2d_answer():
    flat = random_grid(3, 2, (22, 23), spacing=(1.0, 1.2), oblique=False)
    v = random_swirl(2, flat, 0.6, 0.15).velocity(flat)
    for slices in (1, 3):
        affine = np.eye(4)
        affine[np.ix_([0, 1, 3], [0, 1, 3])] = flat.affine
        grid = Grid((slices, *flat.shape), affine)
        volume = torch.cat([v, torch.zeros_like(v[:, :1])], 1)[:, :, None].expand(-1, -1, slices, -1, -1).contiguous()
        for name in ("exp", "jacobian_determinant", "divergence"):
            got, expected = getattr(fields, name)(volume, grid), getattr(fields, name)(v, flat)
            assert torch.allclose(got[:, : expected.shape[1], slices // 2], expected, atol=1e-9), name
        assert torch.allclose(fields.curl(volume, grid)[:, 2:, slices // 2], fields.curl(v, flat), atol=1e-9)


@dims
def test_gradients_flow_through_every_operation(dim):
    grid = random_grid(3, dim, (4, 3, 5)[-dim:], spacing=(1.0, 1.3, 0.8)[:dim])
    u = (0.3 * torch.rand(1, dim, *grid.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.05).requires_grad_(True)
    fast = dict(fast_mode=True)
    assert torch.autograd.gradcheck(lambda x: fields.compose(x, 0.4 * x, grid), (u,), **fast)
    assert torch.autograd.gradcheck(lambda x: fields.exp(x, grid, 2), (u,), **fast)
    for operation in (fields.jacobian_determinant, fields.divergence, fields.curl):
        assert torch.autograd.gradcheck(lambda x: operation(x, grid), (u,), **fast)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([2, 3]), st.booleans())
def test_random_lattices_and_fields_stay_finite_and_consistent(seed, dim, flipped):
    rng = np.random.default_rng(seed)
    grid = random_grid(seed, dim, rng.integers(1, 8, dim), flipped=flipped)
    u = torch.as_tensor(rng.normal(size=(1, dim, *grid.shape)), dtype=torch.float64)
    assert torch.isfinite(fields.exp(u, grid)).all()
    assert fields.jacobian(u, grid).shape == (1, dim, dim, *grid.shape)
    assert torch.allclose(fields.divergence(u + 3.0, grid), fields.divergence(u, grid), atol=1e-8)
    shifted = fields.compose(torch.zeros_like(u), u, grid)
    assert torch.equal(shifted, u)
    w, residual = fields.invert(0.05 * float(grid.spacing.min()) * u / u.abs().max(), grid, 1e-6)
    assert residual <= 1e-6 and torch.isfinite(w).all()
