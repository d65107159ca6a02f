"""Self-similarity context and normalised gradients: against their definitions, masks, borders and derivatives."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from truths import grid_kinds, random_grid

from DeepRegistrationLib.ops.features import mind_floor, mind_ssc, ngf, world_gradient
from DeepRegistrationLib.ops.sample import world_points

SHAPES = {2: (12, 15), 3: (9, 10, 11)}


def noise(seed, dim, batch=1, channels=1, shape=None):
    return torch.rand(batch, channels, *(shape or SHAPES[dim]), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def definition(image, radius, dilation):
    """The descriptor of (1, 1, *S) written down pair by pair with average pooling."""
    dim, margin = image.ndim - 2, radius + dilation
    padded = F.pad(image, [margin] * (2 * dim), mode="replicate")
    pool = {2: F.avg_pool2d, 3: F.avg_pool3d}[dim]

    def shifted(component, sign):
        view = padded
        for c in range(dim):
            start = dilation + (sign * dilation if c == component else 0)
            view = view.narrow(-1 - c, start, image.shape[-1 - c] + 2 * radius)
        return view

    distances = []
    for a, b in itertools.combinations(range(dim), 2):
        for one, other in ((1, 1), (-1, -1), (1, -1), (-1, 1)):
            distances.append(pool((shifted(a, one) - shifted(b, other)) ** 2, 2 * radius + 1, 1))
    distance = torch.cat(distances, 1)
    distance = distance - distance.amin(1, keepdim=True)
    return torch.exp(-distance / distance.mean(1, keepdim=True))


@pytest.mark.parametrize("radius, dilation", [(1, 2), (2, 1), (1, 1), (2, 3)])
@pytest.mark.parametrize("dim", [2, 3])
def test_mind_is_its_definition(dim, radius, dilation):
    image = noise(0, dim)
    found = mind_ssc(image, radius, dilation)
    assert found.shape == (1, {2: 4, 3: 12}[dim], *image.shape[2:])
    assert torch.allclose(found, definition(image, radius, dilation), atol=1e-12)


@pytest.mark.parametrize("dim", [2, 3])
def test_mind_ignores_gain_offset_and_reversed_contrast(dim):
    image = noise(1, dim)
    for other in (3 * image + 7, 5 - 0.01 * image):
        assert torch.allclose(mind_ssc(image), mind_ssc(other), atol=1e-9)


def test_mind_channels_and_batch_are_independent():
    image = noise(2, 3, batch=2, channels=3)
    both = mind_ssc(image)
    assert both.shape[1] == 36
    assert torch.equal(both[1:, 24:], mind_ssc(image[1:, 2:]))


@pytest.mark.parametrize("shape", [(1, 12, 13), (2, 9, 9), (3, 1, 8)])
def test_mind_of_thin_volumes_is_finite(shape):
    image = noise(3, 3, shape=shape)
    found = mind_ssc(image)
    assert found.shape[2:] == shape and bool(torch.isfinite(found).all())
    tall = mind_ssc(image[:, :, :1].expand(-1, -1, 5, -1, -1))
    assert torch.allclose(tall[:, :, 2], mind_ssc(image[:, :, :1])[:, :, 0], atol=1e-12)


def test_mind_of_a_constant_is_one_and_has_no_slope():
    image = torch.full((1, 1, 8, 8, 8), 3.0, requires_grad=True)
    found = mind_ssc(image)
    found.square().sum().backward()
    assert bool((found == 1).all()) and float(image.grad.abs().max()) == 0


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dim", [2, 3])
def test_mind_derivative(dim, masked):
    image = noise(4, dim, batch=2, shape=(6, 7, 5)[-dim:]).requires_grad_(True)
    mask = noise(5, dim, batch=2, shape=image.shape[2:]) > 0.4 if masked else None
    weights = noise(6, dim, batch=2, channels={2: 4, 3: 12}[dim], shape=image.shape[2:])
    assert torch.autograd.gradcheck(lambda x: (mind_ssc(x, 1, 2, mask) * weights).sum(), image, fast_mode=True)


@pytest.mark.parametrize("dim", [2, 3])
def test_mind_does_not_see_masked_voxels(dim):
    image, other = noise(7, dim), noise(8, dim)
    mask = noise(9, dim) > 0.3
    mixed = torch.where(mask, image, 100 * other)
    assert torch.equal(mind_ssc(image, mask=mask), mind_ssc(mixed, mask=mask))
    everything = torch.ones_like(mask)
    inner = (..., *[slice(4, -4)] * dim)
    assert torch.allclose(mind_ssc(image, mask=everything)[inner], mind_ssc(image)[inner], atol=1e-12)


def test_mind_of_a_part_with_the_floor_of_the_whole():
    image = noise(10, 3, shape=(20, 8, 8))
    image[:, :, :10] *= 1e-4
    whole = mind_ssc(image)
    part = mind_ssc(image[:, :, 2:16], floor=mind_floor(image))
    assert torch.allclose(part[:, :, 3:-3], whole[:, :, 5:13], atol=1e-12)


@pytest.mark.parametrize("kind", grid_kinds(3))
@pytest.mark.parametrize("dim", [2, 3])
def test_gradient_of_a_ramp_is_in_world_axes(dim, kind):
    grid = grid_kinds(dim)[kind]
    slope = torch.tensor([0.7, -1.3, 0.4], dtype=torch.float64)[:dim]
    ramp = (world_points(grid, torch.float64) @ slope)[None]
    expected = slope.reshape(1, 1, dim, *[1] * dim)
    holes = noise(11, dim, shape=grid.shape) > 0.1
    assert torch.allclose(world_gradient(ramp, grid), expected.expand(1, 1, dim, *grid.shape), atol=1e-9)
    found = world_gradient(ramp, grid, holes)
    supported = torch.ones_like(holes)
    for axis in range(2, dim + 2):
        near = F.pad(holes, [v for a in range(dim + 1, 1, -1) for v in ((1, 1) if a == axis else (0, 0))])
        n = holes.shape[axis]
        supported &= holes & (near.narrow(axis, 0, n) | near.narrow(axis, 2, n))
    difference = (found - expected).abs().amax(2)
    assert bool(supported.any()) and float(difference[supported].max()) < 1e-9


@pytest.mark.parametrize("dim", [2, 3])
def test_normalised_gradient_is_bounded_and_ignores_gain_and_offset(dim):
    grid, image = random_grid(5, dim, SHAPES[dim]), noise(12, dim)
    found = ngf(image, grid)
    length = found.square().sum(2).sqrt()
    assert 0.5 < float(length.max()) < 1
    assert torch.allclose(found, ngf(40 * image - 3, grid), atol=1e-9)
    assert float(ngf(image, grid, eta=1e6).abs().max()) < 1e-5
    mask = noise(13, dim) > 0.3
    mixed = torch.where(mask, image, -50.0)
    assert torch.equal(ngf(image, grid, mask=mask) * mask[:, :, None], ngf(mixed, grid, mask=mask) * mask[:, :, None])
