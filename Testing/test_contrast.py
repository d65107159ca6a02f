"""The agreement of gradients: 1 for one contrast, low or negative for another, indifferent to units, orientation and masks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import truths

from DeepRegistrationLib.engines.contrast import SAME, gradient_agreement
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
    assert gradient_agreement(image, image, identity) == pytest.approx(1.0)
    assert gradient_agreement(image, replace(image, data=800 * image.data + 30), identity) > 0.99
    assert gradient_agreement(image, replace(image, data=image.data.max() - image.data), identity) < -0.9


@DIMS
@pytest.mark.parametrize("seed", range(4))
def test_a_deformation_leaves_one_contrast_above_the_threshold(dim, seed):
    known = truths.known_pair(seed, dim, (40, 44, 48)[-dim:], angle=0.2, rate=0.2)
    assert gradient_agreement(known.fixed, known.moving, Affine.identity(dim)) > SAME


@DIMS
@pytest.mark.parametrize("seed", range(4))
def test_structures_of_other_brightness_fall_below_it(dim, seed):
    assert gradient_agreement(phantom(dim, seed), phantom(dim, seed, inverted=(1, 2, 3, 4)), Affine.identity(dim)) < SAME


@DIMS
def test_headers_do_not_matter(dim):
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(dim, dim)))[0]
    one, other = phantom(dim), phantom(dim, inverted=(1, 3))
    plain = gradient_agreement(one, other, Affine.identity(dim))
    h = np.eye(dim + 1)
    h[:dim, :dim] = turn
    turned = gradient_agreement(*(replace(image, grid=image.grid.moved(h)) for image in (one, other)), Affine.identity(dim))
    assert turned == pytest.approx(plain, abs=1e-3)


@DIMS
def test_masked_voxels_do_not_speak(dim):
    image, other = phantom(dim), phantom(dim)
    half = torch.zeros_like(image.data, dtype=torch.bool)
    half[..., : image.data.shape[-1] // 2] = True
    spoiled = replace(other, data=torch.where(half, other.data, other.data.max() - other.data))
    whole = gradient_agreement(image, spoiled, Affine.identity(dim))
    masked = gradient_agreement(image.with_mask(half), spoiled.with_mask(half), Affine.identity(dim))
    assert masked > 0.97 > whole
