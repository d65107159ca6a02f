"""Descent on any objective: every model with every term lowers the cost, takes over what it is given, and stops where it should."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import truths
from pretended import gpu
from truths import distance, inner_points

from DeepRegistrationLib.engines.optimize import MODELS, DescentSettings, _parameters, descend
from DeepRegistrationLib.errors import Cancelled, ConvergenceError, InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.ops import fields
from DeepRegistrationLib.points import Points
from DeepRegistrationLib.problem import Pair
from DeepRegistrationLib.runtime import Silent
from DeepRegistrationLib.terms import (MSE, NCC, REGULARITIES, SIMILARITIES, Diffusion, GradientInverseConsistency, InverseConsistency,
                                       LandmarkDistance, SoftDice, Term)
from DeepRegistrationLib.transforms import Affine, BSpline, Displacement, Velocity

DIMS = pytest.mark.parametrize("dim", [2, 3])
EVERY_MODEL = pytest.mark.parametrize("model", MODELS)
OBJECTIVE = NCC() + 0.1 * Diffusion()


def pair_of(dim, angle=0.3, rate=0.3):
    return truths.known_pair(3, dim, (12, 15, 16) if dim == 3 else (24, 26), angle=angle, rate=rate)


def settings_for(model, spacings=(4.0, 2.0), iterations=(30, 15), **values):
    return DescentSettings(model, spacings, iterations, control=3.0, **values)


def solved(known, objective=OBJECTIVE, settings=None, linear=None, start=None, monitor=None, **guides):
    pair = Pair(known.fixed, known.moving, **guides)
    return descend(pair, linear or Affine.identity(pair.dim), objective, settings, monitor or Silent(), start=start)


@DIMS
@EVERY_MODEL
def test_a_known_warp_comes_back(model, dim):
    known = pair_of(dim)
    transform, history = solved(known, settings=settings_for(model, iterations=(50, 30)))
    points = inner_points(known.fixed.grid)
    before, after = distance(lambda x: x, known.truth, points), distance(transform, known.truth, points)
    assert after < 0.5 * before, f"{before:.2f} mm before, {after:.2f} mm after"
    assert {h["spacing"] for h in history} and all(np.isfinite(h["cost"]) for h in history)
    if model == "velocity":
        assert float(transform.jacobian_determinant(known.fixed.grid).min()) > 0
        assert float((transform.inverse()(transform(points)) - points).norm(dim=-1).mean()) < 0.1


@EVERY_MODEL
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("regulariser", REGULARITIES)
def test_three_steps_of_every_objective_lower_it(model, similarity, regulariser):
    known = pair_of(2, 0.2, 0.2)
    objective = SIMILARITIES[similarity]() + 0.1 * REGULARITIES[regulariser]()
    transform, history = solved(known, objective, DescentSettings(model, (4.0,), (3,), step=0.03))
    costs = [h["cost"] for h in history]
    assert len(costs) == 3 and costs[-1] < costs[0]
    assert float(transform.field(known.fixed.grid).abs().max()) > 0.01


@DIMS
@EVERY_MODEL
def test_moving_both_headers_conjugates_the_map(model, dim):
    known = pair_of(dim, 0.2, 0.2)
    settings = settings_for(model, iterations=(6, 3), step=0.05)
    transform, history = solved(known, MSE() + 0.1 * Diffusion(), settings)
    points = inner_points(known.fixed.grid)
    h = Affine(torch.as_tensor(truths.random_motion(11, dim)))
    other = replace(known, fixed=replace(known.fixed, grid=known.fixed.grid.moved(h.numpy())),
                    moving=replace(known.moving, grid=known.moving.grid.moved(h.numpy())))
    moved, same = solved(other, MSE() + 0.1 * Diffusion(), settings)
    assert same[0]["cost"] == pytest.approx(history[0]["cost"], rel=1e-3)
    assert float((moved(h(points)) - h(transform(points))).norm(dim=-1).mean()) < 0.05


@DIMS
def test_the_linear_start_is_folded_into_the_header(dim):
    known = pair_of(dim, 0.2, 0.2)
    h = Affine(torch.as_tensor(truths.random_motion(4, dim)))
    settings = settings_for("velocity", iterations=(8, 4))
    plain, history = solved(known, settings=settings)
    away = replace(known, moving=replace(known.moving, grid=known.moving.grid.moved(h.numpy())))
    other, same = solved(away, settings=settings, linear=h)
    assert distance(plain, other, inner_points(known.fixed.grid)) < 0.05
    assert same[0]["cost"] == pytest.approx(history[0]["cost"], rel=1e-3)


@DIMS
@EVERY_MODEL
def test_a_start_is_continued(model, dim):
    known = pair_of(dim)
    start, history = solved(known, settings=settings_for("displacement", iterations=(40, 30)))
    again, continued = solved(known, settings=settings_for(model, (2.0,), (6,), step=0.01), start=start)
    assert continued[0]["cost"] < history[0]["cost"] / 2
    assert min(h["cost"] for h in continued) <= continued[0]["cost"]
    points = inner_points(known.fixed.grid)
    assert distance(again, start, points) < 0.35 * distance(lambda x: x, start, points)


@DIMS
@EVERY_MODEL
def test_parameters_are_taken_over_between_lattices(model, dim):
    """A smooth map, read on a lattice and written again, is the same map."""
    coarse = Grid.from_parts((16, 18, 20)[-dim:], 2.0, [5.0, -3.0, 8.0][:dim], truths.rotation(np.random.default_rng(0), dim))
    swirl = truths.random_swirl(2, coarse, 0.3, 0.2)
    first = {"displacement": Displacement(swirl.field(coarse), coarse), "velocity": Velocity(swirl.velocity(coarse).float(), coarse)}
    previous = first.get(model, first["displacement"])
    for fine in (coarse, coarse.resample(1.3)):
        p, make = _parameters(model, previous, fine, 2.0, "cpu")
        points = inner_points(coarse)
        assert type(make(p)) is {"displacement": Displacement, "velocity": Velocity, "bspline": BSpline}[model]
        assert float((make(p)(points) - previous(points)).norm(dim=-1).mean()) < 0.06


@DIMS
def test_the_logarithm_of_a_flow(dim):
    """As close to the map as the true velocity, read on the lattice; the displacement taken for a velocity is far from it."""
    grid = Grid.from_parts((20, 22, 24)[-dim:])
    swirl = truths.random_swirl(2, grid, 1.0, 0.15)
    u = swirl.field(grid)
    velocities = fields.logarithm(u, grid), swirl.velocity(grid).float(), u
    found, true, naive = (float((fields.exp(v, grid) - u).square().sum(1).sqrt().max()) for v in velocities)
    assert found < 1.2 * true and found < 0.35 * naive
    assert torch.equal(fields.logarithm(torch.zeros_like(u), grid), torch.zeros_like(u))


@DIMS
def test_the_symmetric_form_is_swapped_by_swapping(dim):
    known = pair_of(dim, 0.2, 0.2)
    moving = truths.Phantom(3, known.moving.grid).image(known.fixed.grid)
    settings = settings_for("velocity", iterations=(20, 10), symmetric=True)
    one = replace(known, moving=moving)
    other = replace(known, fixed=moving, moving=known.fixed)
    forward, backward = (solved(k, settings=settings)[0] for k in (one, other))
    points = inner_points(known.fixed.grid)
    assert distance(forward.inverse(), backward, points) < 0.05
    assert distance(forward, lambda x: x, points) > 0.3


class Noting(Term):
    """A consistency term of small weight in an objective, noting the root mean square distance of R(T(p)) and p at every call."""

    def __init__(self, term):
        self.term, self.seen = term, []

    def __call__(self, alignment):
        self.seen.append(float(InverseConsistency()(alignment).detach()) ** 0.5)
        return self.term(alignment)


TIES = {"icon": 0.1 * InverseConsistency(), "gradicon": 0.5 * GradientInverseConsistency(1000)}


@pytest.mark.parametrize("name, model, dim", [("icon", "displacement", 2), ("gradicon", "displacement", 2), ("gradicon", "bspline", 2), ("icon", "bspline", 3)])
def test_two_maps_tied_by_their_consistency(name, model, dim):
    """Only the tie keeps the map smooth; the warp comes back, on images of different lattices."""
    known = pair_of(dim)
    transform, history = solved(known, NCC() + TIES[name], settings_for(model, (4.0,), (25,), step=0.2, paired=True))
    points = inner_points(known.fixed.grid)
    before, after = distance(lambda x: x, known.truth, points), distance(transform, known.truth, points)
    assert after < 0.8 * before, f"{before:.2f} mm before, {after:.2f} mm after"
    assert float((transform.jacobian_determinant(known.fixed.grid) <= 0).float().mean()) < 1e-3
    assert len(history) == 25 and isinstance(transform, {"displacement": Displacement, "bspline": BSpline}[model])


def test_the_tie_holds_and_a_start_is_continued_by_both_maps():
    known = pair_of(2)
    tied, free, again = Noting(TIES["gradicon"]), Noting(0.0 * InverseConsistency()), Noting(TIES["gradicon"])
    settings = settings_for("displacement", (4.0,), (25,), step=0.2, paired=True)
    transform, history = solved(known, NCC() + tied, settings)
    solved(known, NCC() + free, settings)
    assert tied.seen[0] == 0.0 and tied.seen[-1] < 0.5 * free.seen[-1]
    _, continued = solved(known, NCC() + again, replace(settings, iterations=(2,), step=0.01), start=transform)
    assert again.seen[0] < 0.1 * free.seen[-1] and continued[0]["cost"] < history[0]["cost"] / 2


@EVERY_MODEL
@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_masked_junk_has_no_influence(model, side):
    known = pair_of(2, 0.2, 0.2)
    transforms = []
    for seed in (0, 1):
        image = getattr(known, side)
        data, block = image.data.clone(), (..., slice(8, 14), slice(9, 15))
        data[block] = 50 * torch.rand(data[block].shape, generator=torch.Generator().manual_seed(seed))
        inner = torch.zeros(1, 1, *image.grid.shape, dtype=torch.bool)
        inner[..., 7:15, 8:16] = True
        changed = replace(known, **{side: replace(image, data=data, mask=~inner)})
        transforms.append(solved(changed, MSE() + 0.1 * Diffusion(), settings_for(model, (2.0,), (8,), step=0.02))[0])
    points = inner_points(known.fixed.grid)
    assert distance(*transforms, points) < 1e-3 < distance(transforms[0], lambda x: x, points)


@EVERY_MODEL
def test_landmarks_lead(model):
    """Two textureless discs apart by more than their size: the images say nothing, the landmarks do."""
    known = pair_of(2)
    points = inner_points(known.fixed.grid)[:, ::7]
    guides = {"fixed_points": Points(points), "moving_points": Points(known.truth(points.double()).float())}
    objective = 0.01 * NCC() + 0.02 * Diffusion() + 1.0 * LandmarkDistance()
    transform, _ = solved(known, objective, settings_for(model, iterations=(40, 40)), **guides)
    assert distance(transform, known.truth, points) < 0.25 * distance(lambda x: x, known.truth, points)


@EVERY_MODEL
def test_labels_lead(model):
    known = pair_of(2)
    guides = {"fixed_labels": known.fixed_labels, "moving_labels": known.moving_labels}
    settings = settings_for(model, (2.0,), (30,))
    objective = 0.01 * NCC() + 0.02 * Diffusion() + 1.0 * SoftDice()
    _, history = solved(known, objective, settings, **guides)
    assert min(h["cost"] for h in history) < 0.6 * history[0]["cost"]


@DIMS
@EVERY_MODEL
def test_one_slice_and_short_axes(model, dim):
    known = pair_of(2, 0.2, 0.2)
    lifted = {}
    for name in ("fixed", "moving"):
        image = getattr(known, name)
        affine = np.eye(4)
        affine[:2, :2], affine[:2, 3] = image.grid.matrix, image.grid.origin
        copies = 1 if dim == 2 else 2
        data = image.data[:, :, None].repeat(1, 1, copies, 1, 1)
        lifted[name] = replace(image, data=data, grid=Grid((copies, *image.grid.shape), affine))
    transform, history = solved(replace(known, **lifted), settings=settings_for(model, iterations=(8, 4)))
    assert min(h["cost"] for h in history) < history[0]["cost"]
    assert torch.isfinite(transform.field(lifted["fixed"].grid)).all()


def test_a_level_ends_early_and_keeps_the_best():
    known = pair_of(2)
    _, history = solved(known, settings=settings_for("displacement", (4.0,), (400,), tolerance=1e-2))
    assert 20 < len(history) < 400
    _, whole = solved(known, settings=settings_for("displacement", (4.0,), (30,), tolerance=0.0))
    assert len(whole) <= 30
    wild, costs = solved(known, settings=settings_for("displacement", (4.0,), (12,), step=1.5))
    after, repeated = solved(known, settings=settings_for("displacement", (4.0,), (1,)), start=wild)
    assert repeated[0]["cost"] == pytest.approx(min(h["cost"] for h in costs), rel=0.05)


class Stops(Silent):
    """Cancels at the given log entry."""

    wants_preview = True

    def __init__(self, at):
        super().__init__()
        self.left = at

    def log(self, **figures):
        self.left -= 1
        if self.left <= 0:
            self.cancel()


@EVERY_MODEL
@pytest.mark.parametrize("at", [1, 3, 5, 6])
def test_cancelled_at_any_step_with_the_best_so_far(model, at):
    known = pair_of(2)
    linear = Affine.translation([1.0, 0.0])
    with pytest.raises(Cancelled) as stopped:
        solved(known, settings=settings_for(model, iterations=(3, 3)), linear=linear, monitor=Stops(at))
    best = stopped.value.best_so_far
    assert torch.isfinite(best(inner_points(known.fixed.grid))).all()
    assert not any(p.requires_grad for p in best.parameters())


@EVERY_MODEL
def test_the_same_bits_twice(model):
    known = pair_of(3)
    one, other = (solved(known, settings=settings_for(model, iterations=(4, 3)))[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))


@pytest.mark.parametrize("settings, word", [
    (DescentSettings("spline"), "model 'spline'"), (DescentSettings("displacement", symmetric=True), "no exact inverse"),
    (DescentSettings("bspline", symmetric=True), "no exact inverse"),
    (DescentSettings("velocity", paired=True), "has an exact inverse"), (DescentSettings(spacings=(2.0,)), "one count per level"),
    (DescentSettings(iterations=(0, 0)), "no step at all")])
def test_what_does_not_fit_together_is_said(settings, word):
    with pytest.raises(InputError, match=word):
        solved(pair_of(2), settings=settings)


def test_a_batch_is_refused():
    known = pair_of(2)
    twice = {k: replace(getattr(known, k), data=getattr(known, k).data.repeat(2, 1, 1, 1)) for k in ("fixed", "moving")}
    with pytest.raises(InputError, match="batch of 2"):
        solved(replace(known, **twice), settings=settings_for("velocity"))


@EVERY_MODEL
def test_a_cost_that_is_not_finite_is_reported(model):
    known = pair_of(2)
    objective = float("nan") * MSE()
    with pytest.raises(ConvergenceError, match="smaller step"):
        solved(known, objective, settings_for(model))


@EVERY_MODEL
def test_on_a_gpu(model):
    known = pair_of(3)
    points = inner_points(known.fixed.grid)
    guides = {"fixed_points": Points(points.double()), "moving_points": Points(known.truth(points.double()))}
    pair = Pair(known.fixed, known.moving, **guides)
    objective = OBJECTIVE + 0.1 * LandmarkDistance()
    with gpu():
        transform, history = descend(pair, Affine.identity(3), objective, settings_for(model), Silent(), "cuda")
    assert transform.device.type == "cuda" and history[-1]["cost"] < history[0]["cost"]
