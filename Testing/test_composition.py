"""Networks made of networks: what each sees, how their maps are composed, and what nesting keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.networks.composition import Downsampled, MultiResolution, TwoStep, finer, halved
from DeepRegistrationLib.networks.heads import displacement
from DeepRegistrationLib.networks.unet import UNet
from DeepRegistrationLib.ops import nd
from DeepRegistrationLib.ops.sample import index_points, sample, world_points

DIMS = pytest.mark.parametrize("dim", [2, 3])
SHAPES = {2: (22, 26), 3: (10, 12, 14)}


class Says(nn.Module):
    """Answers with a linear displacement A x + b of the voxel index x of its own lattice, and keeps what it was shown."""

    def __init__(self, matrix, shift):
        super().__init__()
        self.matrix, self.shift = torch.as_tensor(matrix, dtype=torch.float32), torch.as_tensor(shift, dtype=torch.float32)

    def forward(self, fixed, moving):
        self.seen = fixed, moving
        index = index_points(Grid.from_parts(tuple(fixed.shape[2:])))
        return (index @ self.matrix.T + self.shift).movedim(-1, 1).expand(fixed.shape[0], -1, *fixed.shape[2:])


def images(dim, batch=2, channels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, batch, channels, *SHAPES[dim], generator=generator)


def linear(dim, seed, strength=0.02):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(dim, dim)) * strength, rng.normal(size=dim)


@DIMS
def test_half_resolution_sees_block_means_and_speaks_of_the_same_map(dim):
    """A map that is linear on the coarse lattice is the same map in mm on the fine one."""
    fixed, moving = images(dim)
    inner = Says(*linear(dim, 1))
    fine = Grid.from_parts(SHAPES[dim], 1.5, np.arange(dim) + 3.0)
    voxels = Downsampled(inner)(fixed, moving)
    assert torch.equal(inner.seen[0], nd.average_pool(fixed, 2)) and torch.equal(inner.seen[1], nd.average_pool(moving, 2))
    assert voxels.shape == (2, dim, *SHAPES[dim])
    coarse = displacement(inner(*inner.seen), halved(fine))
    inside = tuple(slice(1, -1) for _ in range(dim))
    points = world_points(fine)[0][inside].reshape(1, -1, dim)
    assert torch.allclose(displacement(voxels, fine)(points), coarse(points), atol=1e-4)


@pytest.mark.parametrize("shape, expected", [((7, 9), (3, 4)), ((1, 8), (1, 4)), ((5, 4, 1), (2, 2, 1))])
def test_the_lattice_of_blocks_is_the_one_of_pooling(shape, expected):
    """Coordinates averaged over blocks are the centres of the blocks, for odd and one-voxel axes too."""
    grid = Grid.from_parts(shape, 2.0, np.arange(len(shape)) - 4.0)
    centres = nd.average_pool(world_points(grid).movedim(-1, 1), 2)
    assert halved(grid).shape == expected
    assert torch.allclose(centres.movedim(1, -1), world_points(halved(grid)), atol=1e-5)


@DIMS
def test_two_steps_compose_and_the_second_sees_the_warped_image(dim):
    fixed, moving = images(dim)
    first, second = Says(*linear(dim, 2)), Says(*linear(dim, 3))
    grid = Grid.from_parts(SHAPES[dim])
    total = TwoStep(first, second)(fixed, moving)
    u = first(fixed, moving)
    assert torch.equal(second.seen[0], fixed)
    assert torch.allclose(second.seen[1], sample(moving, index_points(grid) + u.movedim(1, -1)))
    index = index_points(grid)
    middle = index + second(fixed, moving).movedim(1, -1)
    expected = middle + middle @ first.matrix.T + first.shift
    kept = ((middle >= 0) & (middle <= torch.tensor(grid.size) - 1.0)).all(-1)
    assert kept.float().mean() > 0.4
    assert torch.allclose((index + total.movedim(1, -1))[kept], expected[kept], atol=1e-4)


SMALL = {"encoder": (4,), "decoder": (4,), "tail": (4,)}


@DIMS
def test_a_silent_refinement_leaves_what_was_learned(dim):
    fixed, moving = images(dim)
    coarse = Says(*linear(dim, 4))
    network = finer(coarse, UNet(dim, **SMALL))
    assert torch.allclose(network(fixed, moving), Downsampled(coarse)(fixed, moving), atol=5e-3)


@DIMS
def test_three_resolutions_nest_and_every_part_learns(dim):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    fixed, moving = torch.rand(2, 2, 2, *(16, 8, 24)[:dim], generator=generator)
    network = MultiResolution(dim, 3, channels=2, **SMALL)
    assert network.multiple == 8
    found = network(fixed, moving)
    assert found.shape == (2, dim, *fixed.shape[2:]) and float(found.detach().abs().max()) < 0.1
    found.square().sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in network.parameters())
    alone = torch.cat([network(fixed[k : k + 1], moving[k : k + 1]) for k in range(2)])
    assert torch.allclose(alone, found, atol=1e-5)


@DIMS
def test_a_network_begins_as_the_one_of_one_resolution_less(dim):
    """Its finest U-Net is silent at first, so it answers as the rest does, at half the resolution; the parts are its own parameters."""
    torch.manual_seed(2)
    network = MultiResolution(dim, 3, **SMALL)
    one, two, three = network.by_resolution()
    for p in two.parameters():
        p.data += 0.05 * torch.randn(p.shape)
    fixed, moving = torch.rand(2, 1, 1, *(16, 8, 24)[:dim])
    said = network(fixed, moving)
    assert float(said.detach().abs().max()) > 0.05  # not the identity
    assert torch.allclose(said, Downsampled(two)(fixed, moving), atol=5e-3) and torch.equal(said, three(fixed, moving))
    kept = {id(p) for p in network.parameters()}
    counts = [sum(1 for _ in part.parameters()) for part in (one, two, three)]
    assert counts[0] < counts[1] < counts[2] and all(id(p) in kept for part in (one, two, three) for p in part.parameters())


def test_no_resolution_is_refused():
    with pytest.raises(ValueError, match="0 resolutions"):
        MultiResolution(2, 0)
