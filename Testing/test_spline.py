"""Cubic B-splines: through the data, exact on cubics, a partition of unity, gradients; free-form fields from control points."""

import numpy as np
import pytest
import torch
from truths import grid_kinds, random_grid

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.ops.sample import sample, world_points
from DeepRegistrationLib.ops.spline import cubic_coefficients, cubic_sample, cubic_weights, doubled, tensor_product, upsampling_matrix
from DeepRegistrationLib.transforms import BSpline

dims = pytest.mark.parametrize("dim", [2, 3])


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lattice(shape):
    axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in shape], indexing="ij")
    return torch.stack(axes[::-1], -1)[None]


def test_weights_are_a_partition_of_unity_with_the_right_mean():
    t = torch.linspace(0, 0.999, 50, dtype=torch.float64)
    w = cubic_weights(t)
    assert torch.allclose(w.sum(-1), torch.ones_like(t)) and (w >= 0).all()
    assert torch.allclose(w @ torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64), t)


@dims
@pytest.mark.parametrize("n", [1, 2, 3, 4, 9])
def test_the_spline_passes_through_the_data(dim, n):
    data = noise(2, 2, *(n, 5, 6)[-dim:] if dim == 3 else (n, 6))
    assert torch.allclose(cubic_sample(cubic_coefficients(data), lattice(data.shape[2:])), data, atol=1e-10)


@dims
def test_cubic_polynomials_are_reproduced_away_from_the_mirrored_border(dim):
    shape = (40,) * dim
    x = lattice(shape) / 10 - 2
    polynomial = lambda p: (1 + p[..., 0] - 0.5 * p[..., 0] ** 3) * (2 - p[..., 1] ** 2 + 0.3 * p[..., 1] ** 3)  # noqa: E731
    data = polynomial(x)[None]
    rng = np.random.default_rng(0)
    index = torch.as_tensor(rng.uniform(15, 24, (1, 60, dim)))
    out = sample(data, index, "cubic")[0, 0]
    assert torch.allclose(out, polynomial(index[0] / 10 - 2), atol=1e-5)
    assert (sample(data, index)[0, 0] - out).abs().max() > 1e-3, "linear interpolation should be worse"


@dims
def test_the_error_falls_with_the_fourth_power_of_the_spacing(dim):
    errors = []
    for n in (16, 32):
        data = torch.sin(2 * np.pi * lattice((n,) * dim) / n).prod(-1)[None]
        index = torch.as_tensor(np.random.default_rng(1).uniform(0.35 * n, 0.65 * n, (1, 200, dim)))
        errors.append(float((sample(data, index, "cubic")[0, 0] - torch.sin(2 * np.pi * index[0] / n).prod(-1)).abs().max()))
    assert errors[0] / errors[1] > 10


def test_beyond_the_border_the_spline_is_mirrored():
    data = noise(1, 1, 5, 7)
    inner, outer = (torch.tensor([[[a, 2.0], [b, 2.0]]], dtype=torch.float64) for a, b in ((0.3, 5.6), (-0.3, 6.4)))
    assert torch.allclose(sample(data, outer, "cubic"), sample(data, inner, "cubic"))


@dims
def test_gradients_by_coefficients_and_positions(dim):
    coefficients = noise(1, 2, *(4, 3, 5)[-dim:]).requires_grad_(True)
    index = (noise(1, 4, dim, seed=2) * torch.tensor((5, 3, 4)[:dim]) * 0.7).requires_grad_(True)
    assert torch.autograd.gradcheck(cubic_sample, (coefficients, index), fast_mode=dim == 3)


def test_upsampling_equals_pointwise_evaluation():
    control = noise(1, 1, 9)
    matrix = upsampling_matrix(20, 9, -3.5, 3.5)
    index = (torch.arange(20, dtype=torch.float64) + 3.5) / 3.5
    weights, low = cubic_weights(index - index.floor()), index.floor().long()
    expected = sum(weights[:, o] * control[0, 0][(low - 1 + o).clamp(0, 8)] for o in range(4))
    assert torch.allclose(tensor_product(control, [matrix])[0, 0], expected)
    assert np.allclose(matrix.sum(1), 1)


@dims
@pytest.mark.parametrize("kind", grid_kinds(3))
@pytest.mark.parametrize("spacing", [3.0, 7.3, 100.0])
def test_a_free_form_field_equals_the_map_at_every_voxel(dim, kind, spacing):
    grid = grid_kinds(dim)[kind]
    transform = BSpline.zeros(grid, spacing, dtype=torch.float64)
    transform = BSpline(noise(*transform.control.shape) - 0.5, grid, transform.step)
    points = world_points(grid, torch.float64).reshape(1, -1, dim)
    field = transform.field(grid, torch.float64)
    moved = (transform(points) - points).reshape(1, *grid.shape, dim).movedim(-1, 1)
    assert torch.allclose(field, moved, atol=1e-8) and float(field.abs().max()) > 0.05
    assert torch.allclose(transform.field(grid), field.float(), atol=1e-4)
    assert torch.equal(BSpline.zeros(grid, spacing).field(grid), torch.zeros(1, dim, *grid.shape))


@dims
def test_constant_control_points_shift_and_the_map_ends_one_voxel_outside(dim):
    grid = random_grid(4, dim, spacing=(1.0,) * dim)
    transform = BSpline.zeros(grid, 3.0, dtype=torch.float64)
    transform = BSpline(torch.full_like(transform.control, 2.0), grid, transform.step)
    centre = torch.as_tensor(grid.centre)[None, None]
    assert torch.allclose(transform(centre), centre + 2.0)
    far = torch.as_tensor(grid.index_to_world([-1.01] + [3.0] * (dim - 1)))[None, None]
    assert torch.allclose(transform(far), far)


def test_one_slice_grids_and_batches():
    grid = random_grid(6, 3, (1, 9, 10))
    transform = BSpline.zeros(grid, 4.0, batch=2, dtype=torch.float64)
    assert transform.control.shape[2] == 1
    transform = BSpline(noise(*transform.control.shape), grid, transform.step)
    points = world_points(grid, torch.float64).reshape(1, -1, 3)
    field = transform.field(grid, torch.float64).movedim(1, -1).reshape(2, -1, 3)
    assert torch.allclose(transform(points) - points, field, atol=1e-9)


@dims
def test_gradients_through_field_and_map(dim):
    grid = random_grid(5, dim, (4, 4, 5)[-dim:], spacing=(1.0,) * dim)
    start = BSpline.zeros(grid, 2.0, dtype=torch.float64)
    control = (noise(*start.control.shape) * 0.2).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda c: BSpline(c, grid, start.step).field(grid, torch.float64), (control,), fast_mode=True)
    points = torch.as_tensor(grid.index_to_world(np.random.default_rng(0).uniform(0.1, 2.8, (1, 3, dim))))
    assert torch.autograd.gradcheck(lambda c: BSpline(c, grid, start.step)(points), (control,), fast_mode=True)


def test_control_points_that_do_not_fit_are_refused():
    grid = random_grid(5, 2)
    with pytest.raises(InputError, match="control points of shape"):
        BSpline(torch.zeros(1, 2, 3, 3), grid, (2.0, 2.0))
    for step in ((0.0, 2.0), (-1.0, 2.0), (2.0,)):
        with pytest.raises(InputError, match="positive distances"):
            BSpline(torch.zeros(1, 2, 3, 3), grid, step)


@pytest.mark.parametrize("shape", [(7,), (6, 9), (1, 5, 6)])
def test_doubling_reads_the_spline_at_half_the_spacing(shape):
    data = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lines = [(torch.arange(2 * n, dtype=torch.float64) + 0.5) / 2 - 0.5 for n in shape]
    index = torch.stack(torch.meshgrid(*lines, indexing="ij")[::-1], -1)[None]
    assert torch.allclose(doubled(data), cubic_sample(cubic_coefficients(data), index))
