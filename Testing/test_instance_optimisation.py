"""The default method as a user meets it: starts, models, guides and refusals. Its engines have files of their own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import truths

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.method import find
from DeepRegistrationLib.points import Points
from DeepRegistrationLib.problem import Pair
from DeepRegistrationLib.runtime import Runtime
from DeepRegistrationLib.transforms import Affine, Displacement

MODELS = ("greedy", "displacement", "velocity", "bspline")
FEW = {"factors": (2, 1), "iterations": (12, 6), "start": "none"}


def known_pair(angle=0.2):
    return truths.known_pair(3, 2, (24, 26), angle=angle, rate=angle)


def points_of(grid):
    inner = tuple(slice(n // 6, n - n // 6) for n in grid.shape)
    return torch.as_tensor(grid.points()[inner].reshape(1, -1, grid.dim)).float()


def distance(one, other, points):
    return float((one(points) - other(points)).norm(dim=-1).mean())


def solved(problem, **values):
    return find("instance-optimisation", {**FEW, **values}).run(problem, Runtime("cpu"))


@pytest.mark.parametrize("model", MODELS)
def test_every_model_comes_closer(model):
    known = known_pair()
    result = solved(Pair(known.fixed, known.moving), model=model, similarity="ncc")
    points = points_of(known.fixed.grid)
    assert distance(result.transform, known.truth, points) < 0.8 * distance(lambda x: x, known.truth, points)
    assert result.scalars["cost"] == result.history[-1]["cost"] and len(result.history) <= 18


@pytest.mark.parametrize("model", ["greedy", "velocity"])
def test_the_symmetric_form_gives_both_directions(model):
    known = known_pair()
    result = solved(Pair(known.fixed, known.moving), model=model, similarity="mse", symmetric=True)
    points = points_of(known.fixed.grid)
    assert result.inverse_transform is not None
    assert float((result.inverse(result.transform(points)) - points).norm(dim=-1).mean()) < 0.15


@pytest.mark.parametrize("model", MODELS)
def test_a_linear_start_is_kept_and_a_deformation_continued(model):
    known = known_pair()
    linear = truths.random_affine(5, 2, known.fixed.grid.centre, 0.05, 1.0)
    field = (linear.inverse() @ known.truth).field(known.fixed.grid)
    points = points_of(known.fixed.grid)
    only_linear = solved(Pair(known.fixed, known.moving, linear), model=model, similarity="mse", iterations=(1, 0))
    assert torch.allclose(torch.as_tensor(only_linear.affine.numpy()), torch.as_tensor(linear.numpy()))
    begun = linear @ Displacement(field, known.fixed.grid)
    result = solved(Pair(known.fixed, known.moving, begun), model=model, similarity="mse", factors=(1,), iterations=(2,), step=0.01)
    assert torch.allclose(torch.as_tensor(result.affine.numpy()), torch.as_tensor(linear.numpy()))
    assert distance(result.transform, known.truth, points) < 0.4 * distance(lambda x: x, known.truth, points)


def test_the_unit_of_the_intensities_does_not_matter():
    """The weight of the regulariser means the same for values of thousands as for values of one."""
    known = known_pair()
    maps = []
    for gain in (1.0, 1500.0):
        images = [replace(image, data=gain * image.data) for image in (known.fixed, known.moving)]
        maps.append(solved(Pair(*images), model="displacement", similarity="mse").transform)
    points = points_of(known.fixed.grid)
    assert distance(*maps, points) < 0.02 < distance(maps[0], lambda x: x, points)


@pytest.mark.parametrize("kind", ["labels", "points"])
@pytest.mark.parametrize("model", MODELS)
def test_guides_help_or_are_refused(model, kind):
    known = known_pair(0.3)
    points = points_of(known.fixed.grid)
    if kind == "labels":
        guides = {"fixed_labels": known.fixed_labels, "moving_labels": known.moving_labels}
    else:
        some = points[:, ::5]
        guides = {"fixed_points": Points(some), "moving_points": Points(known.truth(some.double()).float())}
    problem = Pair(known.fixed, known.moving, **guides)
    values = {"model": model, "similarity": "ncc", "iterations": (30, 20)}
    if model == "greedy":
        with pytest.raises(InputError, match="choose model=velocity"):
            solved(problem, **values)
        return
    alone = solved(Pair(known.fixed, known.moving), **values)
    guided = solved(problem, **values)
    bar = 1.0 if kind == "points" else 1.1
    assert distance(guided.transform, known.truth, points) < bar * distance(alone.transform, known.truth, points)


@pytest.mark.parametrize("values, word", [
    ({"iterations": (5,)}, "one count per level"), ({"iterations": (0, 0)}, "no step at all"), ({"factors": (1, 2)}, "coarse to fine"),
    ({"model": "bspline", "symmetric": True}, "no exact inverse"), ({"similarity": "mi", "symmetric": True}, "symmetric form compares"),
    ({"model": "spline"}, "expected one of"), ({"similarity": "nmi"}, "expected one of"), ({"limit": 9.0}, "from 0.05 to 4")])
def test_what_does_not_fit_together_is_said(values, word):
    known = known_pair()
    with pytest.raises(InputError, match=word):
        solved(Pair(known.fixed, known.moving), **values)


@pytest.mark.parametrize("model", MODELS)
def test_a_batch_is_refused(model):
    known = known_pair()
    twice = [replace(image, data=image.data.repeat(2, 1, 1, 1)) for image in (known.fixed, known.moving)]
    with pytest.raises(InputError, match="batch"):
        solved(Pair(*twice), model=model)


@pytest.mark.parametrize("model", MODELS)
def test_the_linear_start_comes_first_and_inputs_stay(model):
    known = known_pair()
    h = Affine.translation([6.0, -4.0])
    moving = replace(known.moving, grid=known.moving.grid.moved(h.numpy()))
    kept = moving.data.clone()
    result = solved(Pair(known.fixed, moving), model=model, similarity="ncc", start="rigid", iterations=(8, 4))
    points = points_of(known.fixed.grid)
    truth = lambda x: h(known.truth(x))  # noqa: E731
    assert distance(result.transform, truth, points) < 0.5 * distance(lambda x: x, truth, points)
    assert torch.equal(moving.data, kept) and result.affine.numpy().shape == (3, 3)
