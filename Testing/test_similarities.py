"""Similarities: the least cost is at the truth, derivatives are right, masked voxels do not count, declared invariances hold."""

import numpy as np
import pytest
import torch
from truths import random_grid
from truths_terms import SMALL, phantom, values

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.terms import LNCC, MINDSSC, MSE, NCC, NGF, Alignment, MutualInformation, local_correlation, similarity
from DeepRegistrationLib.terms.base import Similarity
from DeepRegistrationLib.transforms import Affine, Identity

RANGE = (-0.2, 1.8)
SAME = {"mse": MSE(), "ncc": NCC(), "lncc-box": LNCC(radius=3.0), "lncc-gauss": LNCC(sigma=2.0), "lncc-rough": LNCC(radius=3.0, noise=0.3),
        "mi": MutualInformation(warped_range=RANGE), "nmi": MutualInformation(normalised=True, warped_range=RANGE),
        "ngf": NGF(), "ngf-eta": NGF(eta=0.3), "mind": MINDSSC()}


def images(dim, batch=2, channels=2, shape=None):
    """fixed, warped, mask and grid: small random images that have something in common."""
    shape = shape or SMALL[dim]
    fixed, other = values(0, batch, channels, *shape), values(1, batch, channels, *shape)
    return fixed, 0.5 * fixed + other, values(2, batch, 1, *shape) > 0.3, random_grid(6, dim, shape, spacing=1.0 + 0.3 * np.arange(dim))


def flipped(tensor, grid, component):
    """The same picture with one voxel axis counted from the other end."""
    affine = grid.affine.copy()
    affine[:-1, -1] += (grid.size[component] - 1) * affine[:-1, component]
    affine[:-1, component] = -affine[:-1, component]
    return tensor.flip(-1 - component), Grid(grid.shape, affine)


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("dim", [2, 3])
def test_least_cost_at_the_truth(dim, name):
    made, grid = phantom(dim)
    fixed, moving = made.image(grid, dtype=torch.float64), made.image(grid.pad(3), dtype=torch.float64)
    term, aligned = SAME[name], None
    if name == "lncc-gauss":
        term = LNCC(sigma=4.0)
    for share in (0.0, 0.5, -0.5, 1.5):
        for axis in range(dim) if share else (0,):
            shift = grid.direction[:, axis] * grid.spacing[axis] * share
            cost = term(Alignment(fixed, moving, Affine.translation(shift)))
            if aligned is None:
                aligned = cost
            else:
                assert float(cost) > float(aligned) >= -1e-9, (share, axis)


@pytest.mark.parametrize("name", ["mi", "nmi", "ngf", "mind"])
@pytest.mark.parametrize("dim", [2, 3])
def test_least_cost_at_the_truth_between_modalities(dim, name):
    made, grid = phantom(dim)
    fixed = made.image(grid, dtype=torch.float64)
    other = Image(1.5 - fixed.data.clamp(-0.5, 2) ** 2 / 2, grid)
    aligned = float(SAME[name](Alignment(other, fixed, Identity(dim))))
    for axis in range(dim):
        for share in (-1.5, -0.75, 0.75, 1.5):
            shift = Affine.translation(grid.direction[:, axis] * grid.spacing[axis] * share)
            assert float(SAME[name](Alignment(other, fixed, shift))) > aligned


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("dim", [2, 3])
def test_derivative_of_similarities(dim, name, masked):
    fixed, warped, mask, grid = images(dim)
    mask = mask if masked else None
    warped.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: SAME[name].compare(fixed, x, mask, grid), warped, fast_mode=True)
    cost, slope = SAME[name].gradient(fixed, warped, mask, grid)
    plain_cost, plain_slope = Similarity.gradient(SAME[name], fixed, warped, mask, grid)
    assert not cost.requires_grad and not slope.requires_grad
    assert torch.allclose(cost, plain_cost, atol=1e-12) and torch.allclose(slope, plain_slope, atol=1e-12)
    assert float(plain_slope.abs().max()) > 1e-4


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["lncc-box", "lncc-gauss", "mind"])
def test_slabs_do_not_show(name, masked, monkeypatch):
    fixed, warped, mask, grid = images(3, shape=(23, 4, 5))
    mask = mask if masked else None
    whole = SAME[name].gradient(fixed, warped, mask, grid)
    for module in (local_correlation, similarity):
        monkeypatch.setattr(module, "SLAB_VOXELS", 60)
    for one, other in zip(whole, SAME[name].gradient(fixed, warped, mask, grid)):
        assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("dim", [2, 3])
def test_masked_voxels_do_not_count(dim, name):
    fixed, warped, mask, grid = images(dim)
    cost, slope = SAME[name].gradient(fixed, warped, mask, grid)
    assert float((slope * ~mask).abs().max()) == 0
    other = [torch.where(mask, x, 30 * values(k, *x.shape)) for k, x in ((8, fixed), (9, warped))]
    assert torch.allclose(SAME[name].compare(*other, mask, grid), cost, atol=1e-12)
    assert torch.allclose(SAME[name].gradient(*other, mask, grid)[1] * mask, slope, atol=1e-12)


@pytest.mark.parametrize("name", SAME)
def test_batch_entries_and_channels_are_independent(name):
    fixed, warped, mask, grid = images(3)
    together, slope = SAME[name].gradient(fixed, warped, mask, grid)
    for b in range(2):
        alone, part = SAME[name].gradient(fixed[b:b + 1], warped[b:b + 1], mask[b:b + 1], grid)
        assert torch.allclose(alone, together[b:b + 1], atol=1e-12) and torch.allclose(part, slope[b:b + 1], atol=1e-12)
    channels = [SAME[name].compare(fixed[:, c:c + 1], warped[:, c:c + 1], mask, grid) for c in range(2)]
    assert torch.allclose(sum(channels) / 2, together, atol=1e-12)


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("dim", [2, 3])
def test_empty_mask_and_constant_images_stay_finite(dim, name):
    fixed, warped, mask, grid = images(dim)
    flat = torch.full_like(warped, 0.7)
    for image, m in ((warped, torch.zeros_like(mask)), (flat, None), (flat, mask)):
        cost, slope = SAME[name].gradient(fixed, image, m, grid)
        assert bool(torch.isfinite(cost).all()) and bool(torch.isfinite(slope).all()) and bool((cost >= -1e-9).all())


@pytest.mark.parametrize("name, gain, offset", [("ncc", 3.0, 2.0), ("lncc-box", 3.0, 2.0), ("lncc-gauss", 0.2, -5.0), ("ngf", -3.0, 1.0),
                                                ("mind", -2.0, 1.0), ("mind", 5.0, 0.0)])
@pytest.mark.parametrize("dim", [2, 3])
def test_linear_change_of_intensity(dim, name, gain, offset):
    fixed, warped, mask, grid = images(dim)
    for f, w in ((fixed, gain * warped + offset), (gain * fixed + offset, warped)):
        assert torch.allclose(SAME[name].compare(f, w, mask, grid), SAME[name].compare(fixed, warped, mask, grid), atol=1e-9)


@pytest.mark.parametrize("normalised", [False, True])
def test_mutual_information_and_a_monotone_remap(normalised):
    made, grid = phantom(2)
    fixed, warped = made.image(grid, dtype=torch.float64).data, made.image(grid, Affine.translation([4.0, 3.0]), torch.float64).data
    term = MutualInformation(normalised=normalised)
    free = term.compare(fixed, values(4, *fixed.shape))
    same = term.compare(fixed, warped)
    for remap, share in ((lambda x: 10 * x + 3, 1e-9), (lambda x: 5 - x, 1e-9), (lambda x: (0.6 * x).exp(), 0.15)):
        assert abs(float(term.compare(fixed, remap(warped)) - same)) < share * float(free - same)


def test_mutual_information_of_independent_and_of_equal_images():
    one, other = values(5, 1, 1, 300, 300), values(6, 1, 1, 300, 300)
    for normalised, worst in ((False, np.log(16)), (True, 1.0)):
        term = MutualInformation(bins=16, normalised=normalised)
        assert float(term.compare(one, other)) == pytest.approx(worst, abs=0.02 * worst)
        assert float(term.compare(one, one)) < 0.5 * worst
    with pytest.raises(InputError, match="at least 8"):
        MutualInformation(bins=4)


@pytest.mark.parametrize("name", ["mse", "ncc", "lncc-box", "lncc-gauss", "mind"])
def test_equal_images_cost_nothing_and_closed_values_hold(name):
    fixed, warped, mask, grid = images(3)
    assert torch.allclose(SAME[name].compare(fixed, fixed, mask, grid), torch.zeros(2, dtype=torch.float64), atol=1e-12)
    if name == "mse":
        assert torch.allclose(SAME[name].compare(fixed, fixed + 3, mask, grid), torch.full((2,), 9.0, dtype=torch.float64))
    if name == "ncc":
        expected = 1 - np.corrcoef(fixed[0, 0].ravel().numpy(), warped[0, 0].ravel().numpy())[0, 1]
        assert float(SAME[name].compare(fixed[:1, :1], warped[:1, :1])) == pytest.approx(expected, abs=1e-12)
        assert torch.allclose(SAME[name].compare(fixed, -fixed), torch.full((2,), 2.0, dtype=torch.float64))


def test_local_correlation_is_its_definition():
    fixed, warped, mask, _ = images(2, 1, 1)
    costs = []
    for y, x in mask[0, 0].nonzero().tolist():
        part = (0, 0, slice(max(0, y - 2), y + 3), slice(max(0, x - 2), x + 3))
        f, w = fixed[part][mask[part]].numpy(), warped[part][mask[part]].numpy()
        covariance = np.cov(f, w, bias=True)
        costs.append(1 - covariance[0, 1] ** 2 / (covariance[0, 0] * covariance[1, 1]))
    assert float(LNCC(radius=2, noise=0).compare(fixed, warped, mask)) == pytest.approx(np.mean(costs), abs=1e-9)


@pytest.mark.parametrize("name", [n for n in SAME if n != "mind"])
def test_a_volume_constant_in_z_costs_as_its_slice(name):
    fixed, warped, mask, _ = images(2)
    grid = Grid.from_parts((5, *SMALL[2]), (1.0, 1.3, 0.8))
    flat = Grid.from_parts(SMALL[2], (1.0, 1.3))
    term = SAME[name]
    if name in ("mi", "nmi"):
        term = MutualInformation(normalised=name == "nmi", fixed_range=(0, 1), warped_range=RANGE)
    for depth in (1, 5):
        tall = [x[:, :, None].expand(-1, -1, depth, -1, -1).contiguous() for x in (fixed, warped, mask)]
        lattice = Grid((depth, *grid.shape[1:]), grid.affine)
        assert torch.allclose(term.compare(*tall, lattice), term.compare(fixed, warped, mask, flat), atol=1e-9)


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("component", [0, 1, 2])
def test_counting_an_axis_from_the_other_end_changes_nothing(name, component):
    fixed, warped, mask, grid = images(3)
    other_fixed, other_grid = flipped(fixed, grid, component)
    found = SAME[name].compare(other_fixed, warped.flip(-1 - component), mask.flip(-1 - component), other_grid)
    assert torch.allclose(found, SAME[name].compare(fixed, warped, mask, grid), atol=1e-10)


def test_gradient_needs_a_grid():
    with pytest.raises(InputError, match="without a grid"):
        NGF().compare(torch.rand(1, 1, 4, 4), torch.rand(1, 1, 4, 4))
