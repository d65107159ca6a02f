"""Comparison by structure: indifferent to how the moving axes lie and to the contrast, and never worse than where it began."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import truths

from DeepRegistrationLib.engines import structure
from DeepRegistrationLib.engines.channels import _products, channels, folded, normalised_pair
from DeepRegistrationLib.engines.compositive import CompositiveSettings, register
from DeepRegistrationLib.engines.structure import SecondOpinion, structural_pair
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.ops import demons
from DeepRegistrationLib.runtime import Silent
from DeepRegistrationLib.transforms import Affine

DIMS = pytest.mark.parametrize("dim", [2, 3])
KINDS = pytest.mark.parametrize("kind", structure.STRUCTURAL)


def pair_of(dim, seed=3, inverted=(1, 3), noise=0.0):
    """A known pair in which some structures of the moving image are dark where the fixed ones are bright."""
    known = truths.known_pair(seed, dim, (28, 32, 36) if dim == 3 else (64, 72), angle=0.3, rate=0.3)
    phantom = truths.Phantom(seed, known.moving.grid)
    phantom.levels[list(inverted)] *= -1
    data = phantom.image(known.moving.grid).data
    data = data + noise * torch.randn(data.shape, generator=torch.Generator().manual_seed(seed))
    return replace(known, moving=Image(data, known.moving.grid))


def error(known, transform):
    grid = known.fixed.grid
    points = torch.as_tensor(grid.points()[known.fixed_labels.data[0, 0].numpy() > 0]).reshape(1, -1, grid.dim)
    return float((transform(points.float()) - known.truth(points)).norm(dim=-1).mean())


def solved(fixed, moving, kind, factors=(4.0, 2.0, 1.0), iterations=(60, 60, 20), linear=None):
    linear = linear or Affine.identity(fixed.dim)
    settings = CompositiveSettings(kind, factors, iterations, fluid=1.7, elastic=0.8)
    return linear @ register(fixed, moving, linear, settings, Silent())[0]


@DIMS
@KINDS
def test_structures_of_other_brightness_come_back(dim, kind):
    known = pair_of(dim)
    transform = solved(known.fixed, known.moving, kind)
    assert error(known, transform) < 0.45 * error(known, lambda x: x)
    assert float(transform.jacobian_determinant(known.fixed.grid).min()) > 0


@DIMS
@KINDS
def test_the_axes_of_the_moving_image_do_not_matter(dim, kind):
    """The same voxels stored with exchanged and reversed axes: the same answer."""
    known = pair_of(dim)
    grid = known.moving.grid
    order = np.eye(dim + 1)[:, [1, 0, *range(2, dim + 1)]]
    turned = Grid(grid.shape[:-2] + (grid.shape[-1], grid.shape[-2]), grid.affine @ order)
    flip = np.eye(dim + 1)
    flip[0, 0], flip[0, -1] = -1, turned.size[0] - 1
    stored = Image(known.moving.data.transpose(-1, -2).flip(-1).contiguous(), Grid(turned.shape, turned.affine @ flip))
    plain, other = (solved(known.fixed, image, kind, (2.0, 1.0), (15, 5)) for image in (known.moving, stored))
    points = torch.as_tensor(known.fixed.grid.points().reshape(1, -1, dim)).float()
    assert float((plain(points) - other(points)).norm(dim=-1).max()) < 0.02 < float((plain(points) - points).norm(dim=-1).max())


@DIMS
def test_products_of_gradients_know_no_sign(dim):
    """A negative has the same channels; two different directions differ by their angle: |n n^T - m m^T|^2 = |n|^4 + |m|^4 - 2 (n.m)^2."""
    image = pair_of(dim).fixed
    one, negative = channels(image, "ngf"), channels(replace(image, data=3 - 2 * image.data), "ngf")
    assert one.data.shape[1] == dim * (dim + 1) // 2
    torch.testing.assert_close(one.data, negative.data, rtol=1e-3, atol=1e-4)
    n, m = torch.randn(2, 1, dim, 5, 5, generator=torch.Generator().manual_seed(1)).unbind(0)
    left = (_products(n) - _products(m)).square().sum(1)
    torch.testing.assert_close(left, n.square().sum(1) ** 2 + m.square().sum(1) ** 2 - 2 * (n * m).sum(1) ** 2)


@DIMS
@KINDS
def test_both_channel_images_lie_on_parallel_axes(dim, kind):
    known = pair_of(dim)
    linear = truths.random_affine(3, dim, known.fixed.grid.centre, 0.1, 3.0)
    images = normalised_pair(known.fixed, known.moving)
    one, other = structural_pair(images[0], folded(images[1], linear), known.fixed.grid, 2.0, kind)
    assert np.allclose(one.grid.matrix, other.grid.matrix) and one.data.shape[1] == other.data.shape[1]
    shift = one.grid.world_to_index(other.grid.origin)
    assert np.allclose(shift, np.round(shift), atol=1e-6)


@DIMS
@pytest.mark.parametrize("better", [True, False])
def test_mutual_information_has_the_last_word(dim, better):
    """Of the true field and none, each once as the last accepted one and once as what a level found, the true one stays."""
    known = pair_of(dim)
    grid = known.fixed.grid
    truth, none = demons.from_world(known.truth.field(grid), grid), torch.zeros(1, dim, *grid.shape)
    accepted, found = ([none], [truth]) if better else ([truth], [none])
    opinion = SecondOpinion(normalised_pair(known.fixed, known.moving), (accepted, grid))
    kept = opinion.judged(found, grid, lambda state: state[0], True)
    assert float((kept[0] - truth).abs().max()) < 1e-4
    assert torch.equal(opinion.accepted[0][0], kept[0])
