"""Two halves of the voxels: structure makes them agree, noise does not; and what the caution of a compositive registration makes of it."""

from __future__ import annotations

import pytest
import torch
import truths

from DeepRegistrationLib.engines.compositive import CompositiveSettings, register
from DeepRegistrationLib.engines.halves import LITTLE, MOST, STIFFER, smoothing
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.ops import demons
from DeepRegistrationLib.runtime import Silent
from DeepRegistrationLib.transforms import Affine

DIMS = pytest.mark.parametrize("dim", [2, 3])
FLOOR = 1e-4


def forces(dim, noise, edge=48):
    """Of a phantom and its warp on one lattice, with noise of their own."""
    known = truths.known_pair(4, dim, (edge,) * dim)
    images = [known.fixed.data, known.moving.at(known.fixed.grid).data]
    generator = torch.Generator().manual_seed(1)
    images = [data + noise * torch.randn(data.shape, generator=generator) for data in images]
    return demons.forces(*images, [1.0] * dim, 1.0)[0]


@DIMS
def test_structure_needs_no_more_smoothing(dim):
    assert smoothing(forces(dim, 0.0), 1.0, 0.6, FLOOR) == (1.0, 0.6)


@DIMS
def test_noise_needs_the_most(dim):
    noise = torch.randn(1, dim + 1, *(48,) * dim, generator=torch.Generator().manual_seed(2))
    noise[:, -1].abs_()
    assert smoothing(noise, 1.0, 0.6, FLOOR) == STIFFER[-1]


def test_what_was_asked_for_is_never_undercut():
    assert smoothing(forces(2, 0.0), 3.0, 2.0, FLOOR) == (3.0, 2.0)
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)).abs()
    fluid, elastic = smoothing(noise, 2.0, 1.8, FLOOR)
    assert fluid >= 2.0 and elastic >= 1.8


def test_a_large_lattice_is_judged_by_its_middle():
    edge = int(MOST**0.5) + 200
    sums = torch.zeros(1, 3, edge, edge)
    generator = torch.Generator().manual_seed(3)
    sums[:, :, : edge // 8] = torch.randn(1, 3, edge // 8, edge, generator=generator)
    sums[:, :, edge // 8 :] = 1.0
    assert LITTLE < 1 and smoothing(sums, 1.0, 0.6, FLOOR) == (1.0, 0.6)


@DIMS
def test_a_coarse_level_that_misleads_is_undone(dim):
    """Fields of view that cut the object differently mislead a lattice of few voxels; without it nothing is lost."""
    grid = Grid.from_parts((40,) * dim, 5.0)
    phantom = truths.Phantom(6, grid)
    truth = truths.random_swirl(6, grid, angle=0.1)
    fixed, moving = phantom.image(grid.crop([7] * dim, [38] * dim), truth), phantom.image(grid.crop([2] * dim, [33] * dim))
    generator = torch.Generator().manual_seed(5)
    fixed, moving = (Image(x.data + 0.02 * torch.randn(x.data.shape, generator=generator), x.grid) for x in (fixed, moving))
    points = torch.as_tensor(grid.crop([9] * dim, [31] * dim).points()).reshape(1, -1, dim)
    errors = []
    for cautious in (False, True):
        settings = CompositiveSettings(iterations=(100, 0, 20, 10), cautious=cautious)
        found = register(fixed, moving, Affine.identity(dim), settings, Silent())[0]
        errors.append(float((found(points.float()) - truth(points)).norm(dim=-1).mean()))
    assert errors[1] < errors[0]
