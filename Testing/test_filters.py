"""Smoothing: constants, variance, borders, every path equal, gradients; and the block operations of nd."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import correlate1d

from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.ops import filters, nd
from DeepRegistrationLib.ops.filters import box, gaussian, gaussian_kernel, resolution_sigma, window_sum
from DeepRegistrationLib.ops.sample import resample

dims = pytest.mark.parametrize("dim", [2, 3])
borders = pytest.mark.parametrize("border", ["clamp", "renormalise", "zero"])
kernels = pytest.mark.parametrize("smooth", [lambda x, **k: gaussian(x, 1.7, **k), lambda x, **k: box(x, 2, **k)], ids=["gaussian", "box"])


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("sigma", [0.15, 0.3, 0.5, 0.8, 1.0, 2.5, 7.0, 30.0])
def test_the_impulse_has_mean_0_variance_sigma_squared_and_sum_1(sigma):
    kernel = gaussian_kernel(sigma)
    x = np.arange(len(kernel)) - len(kernel) // 2
    assert kernel.sum() == pytest.approx(1) and (kernel * x).sum() == pytest.approx(0, abs=1e-12)
    assert (kernel * x**2).sum() == pytest.approx(sigma**2, rel=1e-3)
    assert kernel.min() >= 0.9e-5 * kernel.max()


@dims
def test_the_variance_along_every_axis_is_the_one_asked_for(dim):
    sigma = np.array([0.6, 1.5, 2.2])[:dim]
    x = torch.zeros(1, 1, *[31] * dim, dtype=torch.float64)
    x[(0, 0, *[15] * dim)] = 1
    out = gaussian(x, sigma)[0, 0]
    assert float(out.sum()) == pytest.approx(1)
    position = torch.arange(31, dtype=torch.float64) - 15
    for component in range(dim):
        profile = out.movedim(-1 - component, -1).reshape(-1, 31).sum(0)
        assert float((profile * position**2).sum()) == pytest.approx(sigma[component] ** 2, rel=1e-3)


def test_two_gaussians_are_one():
    x = noise(1, 1, 60, 60)
    once, twice = gaussian(x, np.hypot(1.5, 0.7)), gaussian(gaussian(x, 1.5), 0.7)
    assert torch.allclose(once[..., 12:-12, 12:-12], twice[..., 12:-12, 12:-12], atol=2e-4)


@dims
@kernels
@pytest.mark.parametrize("border", ["clamp", "renormalise"])
def test_constants_stay_at_the_border_too(dim, smooth, border):
    for shape in ((4, 9, 20), (1, 2, 3), (3, 1, 30)):
        x = torch.full((2, 2, *shape[-dim:]), 3.25)
        assert torch.allclose(smooth(x, border=border), x, atol=1e-5)


@kernels
def test_zero_border_loses_what_lies_outside(smooth):
    x = torch.ones(1, 1, 40, 40, dtype=torch.float64)
    out = smooth(x, border="zero")[0, 0]
    assert float(out[20, 20]) == pytest.approx(1, abs=1e-4) and float(out[0, 0]) < 0.5 and torch.allclose(out, out.flip(0))


@dims
@borders
def test_gaussian_equals_a_plain_sum(dim, border):
    x = noise(2, 3, *(7, 12, 17)[-dim:])
    sigma = (1.3, 0.0, 2.1)[:dim]
    out = gaussian(x, sigma, border)
    expected = x
    for component, s in enumerate(sigma):
        if s > 0:
            expected = plain(expected, gaussian_kernel(s), -1 - component, border)
    assert torch.allclose(out, expected, atol=1e-10)


@dims
@borders
@pytest.mark.parametrize("radius", [1, 2, 3, 4, 11])
def test_box_equals_a_plain_mean(dim, border, radius):
    x = noise(2, 2, *(5, 8, 9)[-dim:])
    expected = x
    for component in range(dim):
        expected = plain(expected, np.full(2 * radius + 1, 1 / (2 * radius + 1)), -1 - component, border)
    assert torch.allclose(box(x, radius, border), expected, atol=1e-10)
    assert torch.equal(x, noise(2, 2, *(5, 8, 9)[-dim:])), "the input was changed"


def plain(x, kernel, axis, border):
    """The same by scipy."""
    array, ones = x.numpy(), np.ones_like(x.numpy())
    if border == "clamp":
        return torch.as_tensor(correlate1d(array, kernel, axis, mode="nearest"))
    out = correlate1d(array, kernel, axis, mode="constant")
    return torch.as_tensor(out / correlate1d(ones, kernel, axis, mode="constant") if border == "renormalise" else out)


@dims
@borders
def test_the_matrix_path_equals_the_convolution_path(dim, border, monkeypatch):
    x = noise(2, 2, *(9, 10, 64)[-dim:])
    by_matrix = gaussian(x, 2.4, border)
    monkeypatch.setattr(filters, "LONGEST_MATRIX", 0)
    assert torch.allclose(gaussian(x, 2.4, border), by_matrix, atol=1e-12)


@borders
def test_axes_longer_than_the_longest_matrix(border):
    x = noise(1, 2, 3, filters.LONGEST_MATRIX + 88)
    sigma = (9.0, 0.0)
    assert torch.allclose(gaussian(x, sigma, border), plain(x, gaussian_kernel(9.0), -1, border), atol=1e-10)
    if border == "clamp":
        wide = gaussian(torch.full((1, 1, 2, 700), 5.0), (300.0, 0.0))
        assert torch.allclose(wide, torch.tensor(5.0), atol=1e-4)


@dims
@pytest.mark.parametrize("n", [1, 2, 3])
@borders
def test_tiny_axes_with_wide_filters(dim, n, border):
    x = noise(1, 1, *[n] * dim)
    for out in (gaussian(x, 5.0, border), box(x, 4, border)):
        assert out.shape == x.shape and torch.isfinite(out).all()
        if border == "renormalise" and n > 1:
            assert float(out.std()) < float(x.std())
    if n == 1:
        assert torch.equal(gaussian(x, 5.0, border), x)


@borders
@kernels
def test_gradients_flow(smooth, border):
    x = noise(1, 2, 6, 5).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda v: smooth(v, border=border), (x,))


def test_a_volume_constant_in_z_gives_the_2d_answer():
    plane = noise(1, 2, 14, 15)
    for slices in (1, 5):
        volume = plane[:, :, None].expand(-1, -1, slices, -1, -1)
        assert torch.allclose(gaussian(volume, 1.4)[:, :, slices // 2], gaussian(plane, 1.4), atol=1e-10)
        assert torch.allclose(box(volume, 2)[:, :, slices // 2], box(plane, 2), atol=1e-10)


@pytest.mark.parametrize("width", range(1, 14))
def test_window_sum_is_the_sum_of_a_window(width):
    x = noise(2, 1, 3, 16)
    assert torch.allclose(window_sum(x, width, -1), x.unfold(-1, width, 1).sum(-1), atol=1e-12)
    assert torch.equal(x, noise(2, 1, 3, 16))
    leaf = noise(1, 1, 3, 16).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda v: window_sum(v, width, -1), (leaf,))


def test_what_is_not_supported_raises():
    with pytest.raises(ValueError, match="reflect"):
        gaussian(noise(1, 1, 5, 5), 1.0, "reflect")
    for smooth in (gaussian, box):
        with pytest.raises(ValueError, match="int64"):
            smooth(torch.ones(1, 1, 5, 5, dtype=torch.int64), 1)


def test_resolution_sigma_makes_up_the_difference():
    assert np.allclose(resolution_sigma((1, 1, 2), (1, 2, 2)), (0, 0.4 * np.sqrt(3), 0))
    assert (resolution_sigma((2, 2), (1, 1)) == 0).all()
    wave = torch.cos(torch.arange(256, dtype=torch.float64) * 2 * np.pi / 3)[None, None, None]
    left = gaussian(wave, (resolution_sigma((1,), (4,))[0], 0))[..., 40:-40]
    assert float(left.abs().max()) < 0.03, "a period of 3 voxels must not survive a step of 4"


@dims
def test_derivatives_of_lines_and_parabolas(dim):
    shape = (5, 6, 7)[-dim:]
    lattice = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in shape], indexing="ij")
    for component in range(dim):
        axis = nd.axis_of(component, dim)
        line = lattice[axis][None, None]
        assert torch.allclose(nd.derivative(2 * line + 1, axis), torch.tensor(2.0, dtype=torch.float64))
        inner = nd.derivative(line**2, axis).narrow(axis, 1, shape[axis] - 2)
        assert torch.allclose(inner, 2 * line.narrow(axis, 1, shape[axis] - 2))
    assert nd.index_gradient(lattice[0][None, None]).shape == (1, 1, dim, *shape)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_derivatives_have_gradients_on_every_length(n):
    x = noise(1, 2, 3, n).requires_grad_(True)
    assert torch.autograd.gradcheck(nd.index_gradient, (x,))
    assert torch.autograd.gradgradcheck(nd.index_gradient, (x,))


@dims
def test_halving_and_doubling_equal_their_plain_forms(dim):
    shape = (1, 6, 10)[-dim:]
    x = noise(2, 3, *shape)
    size = [2 if n > 1 else 1 for n in shape]
    torch.testing.assert_close(nd.average_pool(x, 2), (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[dim - 1](x, size), rtol=0, atol=1e-6)
    coarse = Grid.from_parts(shape)
    fine = coarse.resample(1 / np.array(size[::-1]))
    torch.testing.assert_close(nd.doubled(x, fine.shape), resample(x, coarse, fine), rtol=0, atol=1e-5)


@dims
def test_pools_convolutions_and_means(dim):
    x = noise(2, 3, *(1, 7, 8)[-dim:])
    assert nd.dim_of(x) == dim
    pooled = nd.average_pool(x, 2)
    assert pooled.shape[2:] == tuple(max(1, n // 2) for n in x.shape[2:])
    assert torch.allclose(pooled[..., 0, 0], x[..., :2, :2].mean((-1, -2)))
    assert torch.allclose(nd.max_pool(x[:, :, ...], 1), x)
    weight = noise(3, 3, *[1] * dim)
    assert torch.allclose(nd.conv(x, weight), torch.einsum("oi,bi...->bo...", weight.reshape(3, 3), x))
    mask = noise(2, 1, *x.shape[2:]) > 0.5
    mask[1] = False
    expected = x[0][:, mask[0, 0]].mean()
    assert torch.allclose(nd.spatial_mean(x, mask), torch.stack([expected, torch.zeros_like(expected)]))
    assert torch.allclose(nd.spatial_mean(x), x.mean(tuple(range(1, x.ndim))))
    with pytest.raises(ValueError, match="component"):
        nd.axis_of(dim, dim)
    if dim == 2:
        assert torch.allclose(nd.max_pool(x, 3, 1, 1), F.max_pool2d(x, 3, 1, 1))


@pytest.mark.parametrize("longest", [0, 512])
@pytest.mark.parametrize("size", [(16,), (17, 9), (20, 13, 5), (7, 30, 1)])
def test_coarsening_equals_smoothing_and_then_sampling(size, longest, monkeypatch):
    """``size`` is (x, y, z), from 30 voxels an axis, or one in the last case."""
    monkeypatch.setattr(filters, "LONGEST_MATRIX", longest)
    size = size if len(size) > 1 else (*size, 30)
    shape = tuple(30 if n > 1 else 1 for n in size[::-1])
    x = noise(1, 2, *shape)
    grid = Grid.from_parts(shape)
    coarse = grid.resample(grid.extent / np.array(size))
    sigma = resolution_sigma(grid.spacing, coarse.spacing)
    assert coarse.size == size
    torch.testing.assert_close(filters.coarsened(x, size, sigma), resample(gaussian(x, sigma), grid, coarse), rtol=0, atol=2e-5)
