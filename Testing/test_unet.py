"""U-Nets, the affine encoder and what becomes of their answers: sizes, units, halves, the probabilistic head and its prior."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.networks import heads
from DeepRegistrationLib.networks.blocks import Convolution, of_doubled
from DeepRegistrationLib.networks.unet import AffineEncoder, Halving, UNet
from DeepRegistrationLib.ops import nd
from DeepRegistrationLib.terms import Alignment, Diffusion, VelocityPrior
from DeepRegistrationLib.transforms import Velocity
from DeepRegistrationLib.transforms.sampled import SampledVelocity

SIDES = {2: (16, 32), 3: (16, 16, 32)}


def small(dim: int, **changes) -> UNet:
    torch.manual_seed(1)
    return UNet(dim, **{"encoder": (4, 8), "decoder": (8, 8), "tail": (4,), **changes})


def images(dim: int, batch: int = 2):
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(batch, 1, *SIDES[dim], generator=generator) for _ in range(2)]


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("down", ["stride", "pool"])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("output", heads.OUTPUTS)
def test_sizes_channels_and_a_start_near_the_identity(dim, down, half, output):
    network = small(dim, down=down, half=half, output=output)
    said = network(*images(dim))
    shape = tuple(n // 2 for n in SIDES[dim]) if half else SIDES[dim]
    assert tuple(said.shape) == (2, heads.channels_of(output, dim), *shape)
    assert float(said[:, :dim].detach().abs().max()) < 1e-2, "an untrained network is close to no motion"
    grid = Grid.from_parts(SIDES[dim], 1.5, [3.0, -2.0, 5.0][:dim])
    field = heads.transform(said, grid, output).field(grid)
    assert field.shape == (2, dim, *SIDES[dim]) and bool(torch.isfinite(field).all())


def test_the_default_widths_are_those_of_voxelmorph_2():
    network = UNet(3)
    assert network.multiple == 16 and [tuple(m.weight.shape[:2]) for m in network.modules() if hasattr(m, "stride")] == [
        (16, 2), (32, 16), (32, 32), (32, 32), (32, 32), (32, 64), (32, 64), (32, 48), (32, 32), (16, 34), (16, 16), (3, 16)]


def test_halving_reads_each_block_from_its_first_voxel():
    layer = Halving(2, 1, 1)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 0, 0, 0] = 1.0
    x = torch.arange(48.0).reshape(1, 1, 6, 8)
    assert torch.equal(layer(x), x[:, :, ::2, ::2])


def test_repeat_is_the_nearest_neighbour():
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert torch.equal(nd.repeat(x)[0, 0], torch.tensor([[0.0, 0, 1, 1, 2, 2]] * 2 + [[3.0, 3, 4, 4, 5, 5]] * 2))


@pytest.mark.parametrize("dim", [2, 3])
def test_the_convolution_of_a_doubled_image_is_that_of_the_repeated_one(dim):
    torch.manual_seed(2)
    layer = Convolution(dim, 5, 4).double()
    torch.nn.init.normal_(layer.bias)
    x, kept = torch.rand(2, 3, *(3, 5, 4)[:dim], dtype=torch.float64), torch.rand(2, 2, *(6, 10, 8)[:dim], dtype=torch.float64)
    leaves = [x.requires_grad_(True), kept.requires_grad_(True), *layer.parameters()]
    fast, plain = of_doubled(layer, x, kept), layer(torch.cat([nd.repeat(x), kept], 1))
    weights = torch.rand_like(plain)
    assert torch.allclose(fast, plain, atol=1e-12)
    for one, other in zip(torch.autograd.grad((fast * weights).sum(), leaves), torch.autograd.grad((plain * weights).sum(), leaves)):
        assert torch.allclose(one, other, atol=1e-12)


def test_fixed_and_moving_are_not_the_same_to_a_network():
    network = small(2)
    torch.nn.init.normal_(network.flow.weight, 0, 0.1)
    fixed, moving = images(2)
    assert not torch.allclose(network(fixed, moving), network(moving, fixed))


def test_sides_and_widths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="multiples of 4"):
        small(2)(torch.rand(1, 1, 18, 16), torch.rand(1, 1, 18, 16))
    for wrong in ({"decoder": (8,)}, {"down": "skip"}, {"output": "velocities"}):
        with pytest.raises(ValueError):
            small(2, **wrong)


@pytest.mark.parametrize("dim", [2, 3])
def test_half_resolution_is_in_voxels_of_the_coarse_lattice(dim):
    """One voxel of blocks of two is two voxels of the images; spacing 1.5 mm makes that 3 mm, on oblique axes too."""
    turn = np.linalg.qr(np.random.default_rng(4).normal(size=(dim, dim)))[0]
    affine = np.eye(dim + 1)
    affine[:dim, :dim], affine[:dim, dim] = 1.5 * turn, 7.0
    grid = Grid(SIDES[dim], affine)
    said = torch.zeros(1, dim, *[n // 2 for n in SIDES[dim]])
    said[:, 0] = 1.0
    moved = heads.transform(said, grid, "displacement")
    centre = torch.as_tensor(grid.centre).float()[None, None]
    assert torch.allclose(moved(centre) - centre, torch.as_tensor(3.0 * turn[:, 0]).float(), atol=1e-4)
    assert moved.grid.same_as(heads.said_on(said, grid)) and np.allclose(moved.grid.corners(), grid.corners())


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("kind", ["translation", "rigid", "similarity", "affine"])
def test_an_affine_encoder_begins_with_the_identity_and_takes_any_sides(dim, kind):
    network = AffineEncoder(dim, (4, 8), kind)
    fixed = torch.rand(2, 1, *(13, 17, 11)[:dim])
    grid = Grid.from_parts(fixed.shape[2:], 2.0)
    said = network(fixed, fixed.flip(-1))
    assert torch.equal(heads.transform(said, grid, network.output).matrix, torch.eye(dim + 1).expand(2, -1, -1))


def test_an_affine_encoder_learns_shifts():
    """Training on shifts of random blobs, tested on shifts that it has not seen: more than half of the motion is found. A network that
    forgets where features are could not do it."""
    torch.manual_seed(0)
    grid = Grid.from_parts((32, 32))
    network = AffineEncoder(2, (8, 16, 16), "translation")
    adam = torch.optim.Adam(network.parameters(), lr=1e-2)

    def batch(generator):
        middle, shift = 12 + 8 * torch.rand(16, 2, generator=generator), 8 * torch.rand(16, 2, generator=generator) - 4
        points = torch.as_tensor(grid.points()).float()[None]
        draw = [torch.exp(-(points - m[:, None, None]).square().sum(-1) / 18)[:, None] for m in (middle, middle + shift)]
        return *draw, shift

    generator = torch.Generator().manual_seed(1)
    for _ in range(100):
        fixed, moving, shift = batch(generator)
        found = heads.transform(network(fixed, moving), grid, "translation").matrix[:, :2, 2]
        adam.zero_grad()
        (found - shift).square().mean().backward()
        adam.step()
    fixed, moving, shift = batch(torch.Generator().manual_seed(2))
    with torch.no_grad():
        left = heads.transform(network(fixed, moving), grid, "translation").matrix[:, :2, 2] - shift
    assert float(left.square().mean()) < 0.25 * float(shift.square().mean())


def test_a_probabilistic_answer_is_sampled_by_its_seed_and_gives_its_mean_without():
    network = small(2, output="probabilistic")
    torch.nn.init.normal_(network.flow.weight, 0, 0.05)
    grid = Grid.from_parts(SIDES[2], 2.0)
    said = network(*images(2, 1))
    mean, log_variance = said.chunk(2, 1)
    one, same, other = (heads.transform(said, grid, "probabilistic", seed) for seed in (5, 5, 6))
    assert torch.equal(one.velocity, same.velocity) and not torch.equal(one.velocity, other.velocity)
    plain = heads.transform(said, grid, "probabilistic")
    assert isinstance(plain, Velocity) and not isinstance(plain, SampledVelocity) and torch.allclose(plain.velocity, 2.0 * mean)
    many = torch.stack([heads.transform(said, grid, "probabilistic", seed).velocity for seed in range(400)]).detach() / 2.0
    deviation = many.std(0) / (log_variance.detach() / 2).exp()
    assert abs(float(deviation.mean()) - 1) < 0.01
    assert torch.allclose(heads.deviation(torch.zeros(1, 2, 4, 4), grid.crop((0, 0), (4, 4))), torch.tensor(2.0 * math.sqrt(2)))


def test_the_count_of_samples_is_part_of_the_state():
    network, other = small(2, output="probabilistic"), small(2, output="probabilistic")
    assert [network.next_draw() for _ in range(3)] == [1, 2, 3]
    other.load_state_dict(network.state_dict())
    assert other.next_draw() == 4


def prior_of(mean, log_variance, smoothness=5.0):
    return VelocityPrior(smoothness).divergence(mean, log_variance)


@pytest.mark.parametrize("dim", [2, 3])
def test_the_prior_is_least_at_a_constant_mean_and_its_own_variance(dim):
    shape = SIDES[dim]
    neighbours = torch.zeros(shape)
    for axis, n in enumerate(shape):
        line = 2.0 - (torch.arange(n) == 0).float() - (torch.arange(n) == n - 1).float()
        neighbours = neighbours + line.reshape([n if k == axis else 1 for k in range(dim)])
    best = -(5.0 * neighbours).log().expand(1, dim, *shape)
    mean = torch.full((1, dim, *shape), 3.0)
    assert float(prior_of(mean, best)) < 1e-4
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        noise = torch.randn(best.shape, generator=generator) * 0.1
        assert float(prior_of(mean, best + noise)) > 1e-3 and float(prior_of(mean + noise, best)) > 1e-3


def test_the_prior_is_the_divergence_of_kullback_and_leibler():
    """Differences between two predictions, against the formula for normal distributions with the precision written out as a matrix."""
    n, smoothness = 12, 5.0
    laplacian = np.zeros((n, n))
    index = np.arange(n).reshape(3, 4)
    for one, other in [*zip(index[:, 1:].ravel(), index[:, :-1].ravel()), *zip(index[1:].ravel(), index[:-1].ravel())]:
        laplacian[[one, other], [one, other]] += 1
        laplacian[one, other] -= 1
        laplacian[other, one] -= 1

    def exact(mean, log_variance):
        parts = [np.trace(smoothness * laplacian @ np.diag(np.exp(v))) - v.sum() + m @ (smoothness * laplacian) @ m for m, v in zip(mean, log_variance)]
        return sum(parts) / 2 / n

    draws = np.random.default_rng(3).normal(size=(2, 2, 2, n))
    ours = [float(prior_of(*(torch.as_tensor(x).reshape(1, 2, 3, 4) for x in draw), smoothness)) for draw in draws]
    assert ours[0] - ours[1] == pytest.approx(exact(*draws[0]) - exact(*draws[1]), abs=1e-9)


def test_the_prior_asks_for_a_distribution():
    grid = Grid.from_parts((4, 4))
    image = Image(torch.rand(1, 1, 4, 4), grid)
    plain = heads.velocity(torch.zeros(1, 2, 4, 4), grid)
    with pytest.raises(InputError, match="no distribution"):
        VelocityPrior()(Alignment(image, image, plain))
    drawn = heads.sampled_velocity(torch.zeros(1, 2, 4, 4), torch.full((1, 2, 4, 4), -3.0), grid, 0)
    both = 1.0 * VelocityPrior() + Diffusion()
    assert set(both.breakdown(Alignment(image, image, drawn))) == {"VelocityPrior", "Diffusion"}


def test_gradients_of_the_prior():
    generator = torch.Generator().manual_seed(1)
    mean, log_variance = (torch.randn(1, 2, 3, 4, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(VelocityPrior(3.0).divergence, (mean, log_variance))


def test_a_sampled_velocity_moves_to_another_precision():
    grid = Grid.from_parts((4, 4))
    drawn = heads.sampled_velocity(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), grid, 0).to(dtype=torch.float64)
    assert {x.dtype for x in (drawn.velocity, drawn.mean, drawn.log_variance)} == {torch.float64} and drawn.grid is grid
