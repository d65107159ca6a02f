"""The recursive network: exact symmetry by construction, consistency of its two maps, one path for 2D and 3D."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.networks import heads
from DeepRegistrationLib.networks.blocks import parameter_count
from DeepRegistrationLib.networks.pyramid import SymmetricPyramid
from DeepRegistrationLib.ops import fields
from DeepRegistrationLib.ops.filters import gaussian

SHAPES = {2: (48, 32), 3: (24, 32, 16)}


def blobs(shape, seed):
    image = gaussian(torch.randn((1, 1, *shape), generator=torch.Generator().manual_seed(seed)), 2.5)
    return (image - image.min()) / (image.max() - image.min())


def network(dim, seed=0):
    torch.manual_seed(seed)
    made = SymmetricPyramid(dim)
    with torch.no_grad():  # its last layers start near 0; the symmetry must hold for any weights
        for parameter in made.step[-1].parameters():
            parameter.normal_(0, 0.05)
    return made


@pytest.mark.parametrize("dim", [2, 3])
def test_swapped_images_give_the_swapped_maps(dim):
    one, other = blobs(SHAPES[dim], 1), blobs(SHAPES[dim], 2)
    made = network(dim)
    with torch.no_grad():
        there = made(one, other, 3, (2, 2, 2))
        back = made(other, one, 3, (2, 2, 2))
    for a, b in zip(there, back):
        assert a.forward.abs().max() > 0.1, "the maps must move something for the question to mean anything"
        torch.testing.assert_close(a.forward, b.backward, atol=1e-4, rtol=0)
        torch.testing.assert_close(a.backward, b.forward, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dim", [2, 3])
def test_forward_and_backward_undo_each_other(dim):
    with torch.no_grad():
        maps = network(dim)(blobs(SHAPES[dim], 1), blobs(SHAPES[dim], 2), 3, (2, 2, 2))[-1]
    grid = Grid(SHAPES[dim], np.eye(dim + 1))
    left = fields.compose(maps.backward, maps.forward, grid, "border")
    assert left.abs().mean() < 0.05 * maps.forward.abs().mean()


@pytest.mark.parametrize("dim", [2, 3])
def test_equal_images_are_left_where_they_are(dim):
    image = blobs(SHAPES[dim], 3)
    with torch.no_grad():
        maps = network(dim)(image, image, 3, (2, 2, 2))
    assert max(float(level.forward.abs().max()) for level in maps) == 0.0


def test_levels_halve_the_lattice_and_a_batch_is_its_parts():
    one, other = torch.cat([blobs(SHAPES[2], 1), blobs(SHAPES[2], 4)]), torch.cat([blobs(SHAPES[2], 2), blobs(SHAPES[2], 5)])
    made = network(2)
    with torch.no_grad():
        together, first = made(one, other, 2, (1, 1)), made(one[:1], other[:1], 2, (1, 1))
    assert [tuple(level.forward.shape[2:]) for level in together] == [(24, 16), (48, 32)] and [level.factor for level in together] == [2, 1]
    torch.testing.assert_close(together[-1].forward[:1], first[-1].forward, atol=1e-4, rtol=1e-3)


def test_gradients_reach_every_parameter():
    made = network(3)
    made(blobs(SHAPES[3], 1), blobs(SHAPES[3], 2), 2, (1, 1))[-1].forward.square().mean().backward()
    assert parameter_count(made) > 10_000
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in made.parameters())


def test_heads_turn_voxels_into_millimetres():
    grid = Grid.from_parts((6, 5, 4), (2.0, 1.0, 3.0), (10, 20, 30), [[0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    voxels = torch.zeros(1, 3, *grid.shape)
    voxels[:, 0] = 1.5
    moved = heads.displacement(voxels, grid)(torch.as_tensor(grid.centre).float()[None, None])
    expected = grid.index_to_world(grid.world_to_index(grid.centre) + [1.5, 0, 0])
    np.testing.assert_allclose(moved[0, 0].numpy(), expected, atol=1e-4)


def test_a_coarse_answer_is_read_on_the_finer_lattice_in_its_voxels():
    finer = Grid.from_parts((8, 12), 1.0)
    coarse = finer.resample(2.0)
    ramp = torch.as_tensor(coarse.points()).float().movedim(-1, 0)[None] * 0.1
    found = heads.on_lattice(ramp, coarse, finer)
    inner = torch.as_tensor(finer.points()).float().movedim(-1, 0)[None] * 0.2
    torch.testing.assert_close(found[..., 1:-1, 1:-1], inner[..., 1:-1, 1:-1], atol=1e-5, rtol=0)
