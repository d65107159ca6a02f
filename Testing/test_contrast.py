"""The agreement of gradients: 1 for one contrast, low or negative for another, indifferent to units, orientation and masks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import truths

from DeepRegistrationLib.engines.contrast import SAME, SAME_AFTER, STRAIGHT, relation, straightness
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.transforms import Affine

DIMS = pytest.mark.parametrize("dim", [2, 3])


def phantom(dim, seed=3, inverted=(), noise=0.02):
    """Ellipsoids in a body; those of ``inverted`` are dark where they were bright."""
    shape = (40, 44, 48)[-dim:]
    grid = Grid.from_parts(shape, np.full(dim, 1.5))
    made = truths.Phantom(seed, grid)
    made.levels[list(inverted)] *= -1
    data = made(torch.as_tensor(grid.points())).float()[None, None]
    data = data + noise * torch.randn(data.shape, generator=torch.Generator().manual_seed(seed))
    return Image(data - data.min(), grid)


@DIMS
def test_one_contrast_agrees_and_a_negative_does_not(dim):
    image = phantom(dim)
    identity = Affine.identity(dim)
    assert relation(image, image, identity).agreement == pytest.approx(1.0)
    assert relation(image, replace(image, data=800 * image.data + 30), identity).agreement > 0.99
    assert relation(image, replace(image, data=image.data.max() - image.data), identity).agreement < -0.9


@DIMS
@pytest.mark.parametrize("seed", range(4))
def test_a_deformation_leaves_one_contrast_above_the_threshold(dim, seed):
    known = truths.known_pair(seed, dim, (40, 44, 48)[-dim:], angle=0.2, rate=0.2)
    assert relation(known.fixed, known.moving, Affine.identity(dim)).agreement > SAME


@DIMS
@pytest.mark.parametrize("seed", range(4))
def test_structures_of_other_brightness_fall_below_it(dim, seed):
    assert relation(phantom(dim, seed), phantom(dim, seed, inverted=(1, 2, 3, 4)), Affine.identity(dim)).agreement < SAME


@DIMS
def test_headers_do_not_matter(dim):
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(dim, dim)))[0]
    one, other = phantom(dim), phantom(dim, inverted=(1, 3))
    plain = relation(one, other, Affine.identity(dim)).agreement
    h = np.eye(dim + 1)
    h[:dim, :dim] = turn
    turned = relation(*(replace(image, grid=image.grid.moved(h)) for image in (one, other)), Affine.identity(dim)).agreement
    assert turned == pytest.approx(plain, abs=1e-3)


@DIMS
def test_masked_voxels_do_not_speak(dim):
    image, other = phantom(dim), phantom(dim)
    half = torch.zeros_like(image.data, dtype=torch.bool)
    half[..., : image.data.shape[-1] // 2] = True
    spoiled = replace(other, data=torch.where(half, other.data, other.data.max() - other.data))
    whole = relation(image, spoiled, Affine.identity(dim)).agreement
    masked = relation(image.with_mask(half), spoiled.with_mask(half), Affine.identity(dim)).agreement
    assert masked > 0.97 > whole


@DIMS
def test_a_map_of_one_part_is_another_contrast_although_every_edge_agrees(dim):
    grid = phantom(dim).grid
    distance = (torch.as_tensor(grid.points()) - torch.as_tensor(grid.centre)).norm(dim=-1).float()[None, None]
    body, core = torch.sigmoid((28 - distance) / 2), torch.sigmoid((16 - distance) / 2)
    found = relation(Image(body + 0.6 * core, grid), Image(core, grid), Affine.identity(dim))
    assert found.agreement > SAME_AFTER and not found.one_contrast(SAME_AFTER)


def test_straightness_knows_lines_from_curves():
    x = torch.rand(20000, generator=torch.Generator().manual_seed(1))
    noise = 0.1 * torch.randn(20000, generator=torch.Generator().manual_seed(2))
    assert straightness(x, (0.3 * x + 0.2 + noise).clamp(0, 1)) > 0.95
    assert straightness(x, 0.9 * x**1.4) > STRAIGHT
    assert straightness(x, (x > 0.8).float()) < STRAIGHT
    assert straightness(x, torch.full_like(x, 0.5)) == 1.0
