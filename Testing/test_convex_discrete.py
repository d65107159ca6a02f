"""Convex discrete registration: the engine's parts against plain definitions, and the method on known deformations."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
import truths

from DeepRegistrationLib.engines import discrete, feature_descent
from DeepRegistrationLib.engines.feature_lattice import Features, Spacings, between, feature_pair, to_displacement
from DeepRegistrationLib.errors import Cancelled, InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image, Labels
from DeepRegistrationLib.io import read_image, read_labels
from DeepRegistrationLib.method import find
from DeepRegistrationLib.ops.sample import index_points, sample, sample_rows
from DeepRegistrationLib.problem import Pair
from DeepRegistrationLib.result import warp
from DeepRegistrationLib.runtime import Monitor, Runtime
from DeepRegistrationLib.transforms import Displacement, Identity, Velocity

DIMS = (2, 3)


def random_features(seed, grid, channels=3, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return Features(torch.rand((1, channels, *grid.shape), generator=g, dtype=dtype), torch.ones((1, 1, *grid.shape), dtype=dtype), grid)


def small_grid(dim):
    return Grid.from_parts((5, 6, 7)[-dim:], (2.0, 1.5, 1.0)[:dim])


class Bump(truths.ClosedForm):
    """x -> x + shift exp(-|x - c|^2 / (2 width^2)); it does not fold while |shift| < 1.65 width."""

    def __init__(self, centre, shift, width):
        self.centre, self.shift, self.width, self.dim = centre, shift, width, len(centre)

    def __call__(self, points):
        offset = points - torch.as_tensor(self.centre, dtype=points.dtype)
        bump = (-0.5 * offset.square().sum(-1, keepdim=True) / self.width**2).exp()
        return points + bump * torch.as_tensor(self.shift, dtype=points.dtype)


@lru_cache(maxsize=None)
def large_deformation(dim, size=15.0):
    """Ellipsoids of 8 to 19 mm half axes in a body of 36 mm, moved by up to ``size`` mm."""
    grid = Grid.from_parts((96, 100) if dim == 2 else (46, 48, 50), 1.0 if dim == 2 else 2.0, [11.0, -20.0, 5.0][:dim])
    direction = np.array([0.8, -0.6, 0.5][:dim])
    truth = Bump(grid.centre, size * direction / np.linalg.norm(direction), 28.0)
    phantom = truths.Phantom(3, grid, ellipsoids=9)
    return (phantom.image(grid, truth), phantom.image(grid), truth, phantom.label_map(grid, truth), phantom.label_map(grid))


def error_mm(transform, truth, labels):
    """Mean distance of two maps in mm over the body (label > 0)."""
    points = torch.as_tensor(labels.grid.points()[labels.data[0, 0].numpy() > 0][None])
    return float((transform(points.float()).double() - truth(points)).norm(dim=-1).mean())


def run(problem, **values):
    return find("convex-discrete:aligned", values).run(problem, Runtime("cpu"))


# ------------------------------------------------------------------------------------------------ parts


@pytest.mark.parametrize("shape", [(5, 6, 7), (1, 6, 7), (6, 7), (1, 7)])
def test_gathering_rows_equals_plain_sampling(shape):
    g = torch.Generator().manual_seed(0)
    data = torch.rand((1, 4, *shape), generator=g, dtype=torch.float64)
    index = torch.randn((1, 60, len(shape)), generator=g, dtype=torch.float64) * 5 + 2
    rows = sample_rows(data[0].flatten(1).T.contiguous(), shape, index[0])
    assert torch.allclose(rows.T, sample(data, index)[0], atol=1e-12)


@pytest.mark.parametrize("dim", DIMS)
def test_cost_volume_is_the_sum_of_squared_differences(dim):
    grid = small_grid(dim)
    fixed, moving = random_features(0, grid), random_features(1, grid)
    reach = (1, 2, 1)[:dim]
    volume = discrete.CostVolume(fixed, moving, reach, aggregate=0)
    (_, _, costs), = volume.slabs()
    base = index_points(grid, dtype=torch.float64)
    for k in (0, len(volume.lattice) // 2, len(volume.lattice) - 2):
        there = base + volume.lattice[k]
        inside = ((there >= 0) & (there <= torch.tensor(grid.size) - 1)).all(-1)[0]
        expected = (fixed.data - sample(moving.data, there)).square().sum(1)[0]
        assert torch.allclose(costs[k].reshape(grid.shape)[inside], expected[inside], atol=1e-12)


@pytest.mark.parametrize("dim", DIMS)
def test_slabs_give_the_field_of_the_whole_volume(dim):
    grid = small_grid(dim)
    fixed, moving = random_features(0, grid), random_features(1, grid)
    whole = discrete.CostVolume(fixed, moving, (2,) * dim)
    parts = discrete.CostVolume(fixed, moving, (2,) * dim, memory=1.0)
    assert parts.rows == 1 and len(list(parts.slabs())) == grid.shape[0]
    assert torch.equal(discrete.coupled_convex(whole), discrete.coupled_convex(parts))


@pytest.mark.parametrize("dim", DIMS)
def test_a_whole_shift_is_found_exactly(dim):
    grid = Grid.from_parts((12, 13, 14)[-dim:])
    moving = random_features(0, grid)
    shift = (2, -1, 1)[:dim]
    fixed = Features(torch.roll(moving.data, [-s for s in shift[::-1]], list(range(2, dim + 2))), moving.weight, grid)
    field = discrete.coupled_convex(discrete.CostVolume(fixed, moving, (3,) * dim))
    inner = (0, slice(None), *[slice(4, -4)] * dim)
    expected = torch.tensor(shift, dtype=torch.float64).reshape(dim, *[1] * dim).expand_as(field[inner])
    assert torch.equal(field[inner], expected)


@pytest.mark.parametrize("dim", DIMS)
def test_softmin_search_backpropagates(dim):
    grid = Grid.from_parts((3, 3, 4)[-dim:])
    fixed, moving = random_features(0, grid, 2).data.requires_grad_(True), random_features(1, grid, 2).data.requires_grad_(True)

    def energy(f, m):
        return discrete.soft_coupled_convex(f, m, (1,) * dim, temperature=2.0, coupling=(0.1, 0.5))

    assert torch.autograd.gradcheck(energy, (fixed, moving), fast_mode=True)


@pytest.mark.parametrize("dim", DIMS)
def test_softmin_approaches_the_best_displacement(dim):
    grid = small_grid(dim)
    fixed, moving = random_features(0, grid), random_features(1, grid)
    volume = discrete.CostVolume(fixed, moving, (1,) * dim)
    (_, _, costs), = volume.slabs()
    best = discrete.best_displacement(volume)
    costs = costs.reshape(-1, *grid.shape)
    distances = [float((discrete.soft_displacement(costs, volume.lattice, t) - best).abs().mean()) for t in (1, 30, 1e5)]
    assert distances[0] > distances[1] > distances[2] and distances[2] < 1e-3


@pytest.mark.parametrize("dim", DIMS)
def test_inverse_consistency_shrinks_the_residual(dim):
    grid = Grid.from_parts((20,) * dim)
    x = index_points(grid, dtype=torch.float64) / 20 * 2 * np.pi
    one = (torch.sin(x) * 1.2).movedim(-1, 1)
    other = (-torch.sin(x + 0.4) * 0.8).movedim(-1, 1)

    def residual(a, b):
        return float((a + sample(b, index_points(grid, dtype=torch.float64) + a.movedim(1, -1))).abs()[(..., *[slice(3, -3)] * dim)].mean())

    better = discrete.make_inverse_consistent(one, other)
    assert residual(*better) < 0.05 * residual(one, other)
    swapped = discrete.make_inverse_consistent(other, one)
    assert torch.equal(better[0], swapped[1]) and torch.equal(better[1], swapped[0])


@pytest.mark.parametrize("dim", DIMS)
def test_slope_of_the_data_term(dim, monkeypatch):
    """On features that vary slowly the closed form equals autograd through the sampler, and slabs change nothing."""
    grid = Grid.from_parts((16, 18, 20)[-dim:])
    x = index_points(grid, dtype=torch.float64)[0]
    waves = ((0.1, 0.2, 0.05)[:dim], (0.2, -0.1, 0.15)[:dim])
    wave = torch.stack([torch.sin(x @ torch.tensor(k, dtype=torch.float64)) for k in waves])[None]
    weight = torch.ones((1, 1, *grid.shape), dtype=torch.float64)
    fixed, moving = Features(wave.roll(1, -1), weight, grid), Features(wave, weight, grid)
    table = torch.cat([moving.data, moving.weight], 1)[0].flatten(1).T.contiguous()
    field = torch.full((1, dim, *grid.shape), 0.5, dtype=torch.float64, requires_grad=True)
    warped = sample(moving.data, x[None] + field.movedim(1, -1))
    expected = (fixed.data - warped).square().sum(1).mean()
    (slope,) = torch.autograd.grad(expected, field)
    with torch.no_grad():
        cost, closed = feature_descent.feature_match(fixed, table, field, x.reshape(-1, dim))
        monkeypatch.setattr(feature_descent, "SLAB_CELLS", 1)
        in_slabs = feature_descent.feature_match(fixed, table, field, x.reshape(-1, dim))
    inner = (..., *[slice(2, -2)] * dim)
    assert torch.allclose(cost, expected)
    assert float((closed - slope)[inner].norm() / slope[inner].norm()) < 0.05
    assert torch.allclose(in_slabs[1], closed, atol=1e-15) and torch.allclose(in_slabs[0], cost)


@pytest.mark.parametrize("dim", DIMS)
def test_slope_of_the_diffusion_term(dim):
    field = torch.randn((1, dim, *(4, 1, 6)[-dim:]), dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    cost, slope = feature_descent.diffusion(field, (1.0, 2.0, 3.0)[:dim])
    assert torch.allclose(torch.autograd.grad(cost, field)[0], slope.detach())


def test_fields_keep_their_mm_between_lattices():
    grid = truths.random_grid(5, 3, (12, 12, 18))
    finer = grid.resample(grid.spacing / 2)
    field = torch.full((1, 3, *grid.shape), 0.7)
    one, other = to_displacement(field, grid), to_displacement(between(field, grid, finer), finer)
    points = torch.as_tensor(grid.centre)[None, None].float()
    assert torch.allclose(one(points), other(points), atol=1e-3)


# ------------------------------------------------------------------------------------------------ method


@pytest.mark.parametrize("dim, preset, bar", [(2, "search-only", 1.2), (2, "aligned", 0.9), (2, "paper", 0.7), (3, "search-only", 2.5),
                                                (3, "aligned", 1.2), (3, "paper", 0.9)])
def test_large_deformations_are_recovered(dim, preset, bar):
    fixed, moving, truth, labels, _ = large_deformation(dim)
    assert error_mm(lambda p: p, truth, labels) > 5
    values = {"search_range": 18.0, "control_spacing": 4.0 if dim == 2 else 6.0, "initial_alignment": "none"}
    result = find(f"convex-discrete:{preset}", values).run(Pair(fixed, moving), Runtime("cpu"))
    assert error_mm(result.transform, truth, labels) < bar
    assert float((result.transform.jacobian_determinant(fixed.grid) <= 0).float().mean()) < 5e-4


@pytest.mark.parametrize("dim", DIMS)
def test_moving_both_headers_conjugates_the_result(dim):
    pair = truths.known_pair(4, dim, (22, 24, 26)[-dim:])
    motion = truths.random_motion(3, dim)
    moved = Pair(*(replace(image, grid=image.grid.moved(motion)) for image in (pair.fixed, pair.moving)))
    one, other = run(Pair(pair.fixed, pair.moving), iterations=(3, 3)), run(moved, iterations=(3, 3))
    points = pair.fixed.grid.points().reshape(1, -1, dim)
    there = points @ motion[:dim, :dim].T + motion[:dim, dim]
    expected = one.transform(torch.as_tensor(points)).numpy() @ motion[:dim, :dim].T + motion[:dim, dim]
    got = other.transform(torch.as_tensor(there)).numpy()
    assert np.abs(got - expected).max() < 0.1


@pytest.mark.parametrize("dim", DIMS)
def test_storing_the_moving_image_backwards_changes_nothing(dim):
    pair = truths.known_pair(4, dim, (22, 24, 26)[-dim:])
    n = pair.moving.grid.size[0]
    flip = np.eye(dim + 1)
    flip[0, 0], flip[0, dim] = -1, n - 1
    backwards = Image(pair.moving.data.flip(-1), Grid(pair.moving.grid.shape, pair.moving.grid.affine @ flip))
    one, other = (run(Pair(pair.fixed, moving), iterations=(3, 3)).transform.field(pair.fixed.grid) for moving in (pair.moving, backwards))
    assert float((one - other).abs().max()) < 0.1


@pytest.mark.parametrize("dim", DIMS)
def test_swapping_the_images_swaps_the_transforms(dim):
    fixed, moving, *_ = large_deformation(dim)
    values = {"iterations": (0, 0), "search_range": 12.0}
    one, other = run(Pair(fixed, moving), **values), run(Pair(moving, fixed), **values)
    assert torch.equal(one.transform.displacement, other.inverse_transform.displacement)
    assert torch.equal(one.inverse_transform.displacement, other.transform.displacement)
    points = torch.as_tensor(fixed.grid.points()[(slice(12, -12),) * dim].reshape(1, -1, dim)).float()
    there_and_back = one.inverse_transform(one.transform(points))
    assert float((there_and_back - points).norm(dim=-1).mean()) < 0.25


def test_a_one_slice_volume_gives_the_answer_of_its_plane():
    fixed, moving, truth, labels, _ = large_deformation(2)
    grid = Grid.from_parts((1, *fixed.grid.shape), (1, 1, 4), (*fixed.grid.origin, 0.0))
    result = run(Pair(Image(fixed.data[:, :, None], grid), Image(moving.data[:, :, None], grid)), search_range=18.0, control_spacing=4.0)
    field = result.transform.field(grid)
    assert float(field[:, 2].abs().max()) == 0
    points = torch.as_tensor(grid.points()[labels.data.numpy()[0] > 0][None]).float()
    moved = result.transform(points)[..., :2].double()
    assert float((moved - truth(points[..., :2].double())).norm(dim=-1).mean()) < 0.8


@pytest.mark.parametrize("which", ["fixed", "moving"])
def test_masked_artefacts_do_not_count(which):
    fixed, moving, truth, labels, _ = large_deformation(2, 8.0)
    spoilt = {"fixed": fixed, "moving": moving}
    image = spoilt[which]
    data, mask = image.data.clone(), torch.ones_like(image.data, dtype=torch.bool)
    block = (..., slice(40, 64), slice(20, 80))
    data[block] = torch.rand(data[block].shape, generator=torch.Generator().manual_seed(0)) * 8
    mask[block] = False
    known = mask if which == "fixed" else warp(Image(mask.float(), image.grid), truth, image.grid).data > 0.99
    sound = Labels(labels.data * known, labels.grid)
    values = {"search_range": 12.0, "control_spacing": 4.0}
    errors = []
    for used in (None, mask):
        spoilt[which] = Image(data, image.grid, used)
        errors.append(error_mm(run(Pair(spoilt["fixed"], spoilt["moving"]), **values).transform, truth, sound))
    assert errors[1] < 0.7 * errors[0] and errors[1] < 0.7


def test_label_maps_improve_the_overlap_of_their_label():
    """A disc without contrast in either image moves by 8 mm; only the label maps show it."""
    fixed, moving, *_ = large_deformation(2, 0.0)
    x = fixed.grid.points()

    def disc(shift):
        return Labels(torch.as_tensor(np.linalg.norm(x - fixed.grid.centre - [shift, 0], axis=-1) < 10).int()[None, None], fixed.grid)

    pair = Pair(fixed, moving, fixed_labels=disc(8.0), moving_labels=disc(0.0))

    def overlap(result):
        warped = warp(pair.moving_labels, result.transform, fixed.grid).data > 0
        truth = pair.fixed_labels.data > 0
        return 2 * float((warped & truth).sum()) / float(warped.sum() + truth.sum())

    without, guided = run(pair), run(pair, label_weight=20.0)
    assert overlap(guided) > overlap(without) + 0.2


def test_the_diffeomorphic_option_gives_a_flow_near_the_field():
    fixed, moving, truth, labels, _ = large_deformation(2)
    values = {"search_range": 18.0, "control_spacing": 4.0}
    plain, flow = run(Pair(fixed, moving), **values), run(Pair(fixed, moving), diffeomorphic=True, **values)
    assert isinstance(flow.transform, Velocity) and float(flow.transform.jacobian_determinant(fixed.grid).min()) > 0
    assert error_mm(flow.transform, truth, labels) < error_mm(plain.transform, truth, labels) + 0.2
    points = torch.as_tensor(fixed.grid.points()[20:-20, 20:-20].reshape(1, -1, 2)).float()
    assert float((flow.inverse(flow.transform(points)) - points).norm(dim=-1).mean()) < 0.2


def test_a_deformable_start_is_kept_and_refined():
    fixed, moving, truth, labels, _ = large_deformation(2)
    grid = fixed.grid.resample(3.0)
    start = Displacement(truth.field(grid).float() * 0.9, grid)
    result = run(Pair(fixed, moving, initial=start), search_range=6.0)
    assert error_mm(result.transform, truth, labels) < 0.5 < error_mm(start, truth, labels)


def test_the_frame_follows_a_larger_moving_image():
    fixed, moving, *_ = large_deformation(2)
    small = fixed.grid.crop((30, 30), (70, 66))
    pair = feature_pair(fixed.at(small), moving, Identity(2), Spacings.of(small, reach=9.0))
    frame = pair.fine[0].grid
    assert (frame.extent >= small.extent + 16).all() and float(pair.fine[0].weight.mean()) < 0.7 < float(pair.fine[1].weight.mean())


class CancelsAt(Monitor):
    def __init__(self, text):
        super().__init__()
        self.text = text

    def progress(self, share, text, step=0, steps=0):
        if self.text in text and step == 3:
            self.cancel()


@pytest.mark.parametrize("text", ["discrete search", "refinement"])
def test_cancelling_gives_the_best_so_far(text):
    fixed, moving, *_ = large_deformation(2)
    with pytest.raises(Cancelled) as caught:
        find("convex-discrete:aligned").run(Pair(fixed, moving), Runtime("cpu", monitor=CancelsAt(text)))
    assert caught.value.best_so_far.dim == 2


def test_sentences():
    fixed, moving, _, labels, _ = large_deformation(2)
    with pytest.raises(InputError, match="two numbers are needed"):
        run(Pair(fixed, moving), iterations=(3,))
    with pytest.raises(InputError, match="has no label maps"):
        run(Pair(fixed, moving), label_weight=1.0)
    far = replace(moving, grid=moving.grid.moved(np.array([[1, 0, 500.0], [0, 1, 0], [0, 0, 1]])))
    with pytest.raises(InputError, match="do not overlap"):
        run(Pair(fixed, far))
    with pytest.raises(InputError, match="no label value in common"):
        run(Pair(fixed, moving, fixed_labels=labels, moving_labels=replace(labels, data=labels.data + 100)), label_weight=1.0)


def test_a_real_pair_of_brains(data):
    """Two subjects at 2 mm; the labels are looked at only here. Before: 0.52."""
    folder = data / "brain3d-pair-2mm"
    fixed, moving = read_image(folder / "fixed.nii.gz"), read_image(folder / "moving.nii.gz")
    labels = [read_labels(folder / f"{name}_seg.nii.gz") for name in ("fixed", "moving")]
    result = run(Pair(fixed, moving))
    warped = warp(labels[1], result.transform, fixed.grid).data
    overlaps = []
    for value in map(int, json.loads((data / "brain3d-pair-labelled" / "structures30.json").read_text())):
        one, other = labels[0].data == value, warped == value
        overlaps.append(2 * float((one & other).sum()) / float(one.sum() + other.sum()))
    assert np.mean(overlaps) > 0.62
    brain = labels[0].data > 0
    assert float((result.transform.jacobian_determinant(fixed.grid)[brain] <= 0).float().mean()) < 5e-4
