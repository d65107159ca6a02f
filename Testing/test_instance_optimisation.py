"""The default method as a user meets it: starts, models, guides and refusals. Its engines have files of their own."""

from __future__ import annotations

from dataclasses import replace

import contract
import pytest
import torch
import truths
from truths import distance, inner_points
from truths_sections import sections

from DeepRegistrationLib.commands.catalogue import references
from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.evaluate.metrics import dice_per_label
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.method import find
from DeepRegistrationLib.points import Points
from DeepRegistrationLib.problem import Pair
from DeepRegistrationLib.result import warp
from DeepRegistrationLib.runtime import Runtime
from DeepRegistrationLib.transforms import Affine, Displacement

MODELS = ("greedy", "displacement", "velocity", "bspline")
FEW = {"factors": (2, 1), "iterations": (12, 6), "start": "none"}


def known_pair(angle=0.2):
    return truths.known_pair(3, 2, (24, 26), angle=angle, rate=angle)


def overlap(known, result):
    """Mean Dice of the structures."""
    return sum(scores := dice_per_label(known.fixed_labels, warp(known.moving_labels, result.transform, known.fixed.grid)).values()) / len(scores)


def solved(problem, **values):
    return find("instance-optimisation", {**FEW, **values}).run(problem, Runtime("cpu"))


@pytest.mark.parametrize("model", MODELS)
def test_every_model_comes_closer(model):
    known = known_pair()
    result = solved(Pair(known.fixed, known.moving), model=model, similarity="ncc")
    points = inner_points(known.fixed.grid)
    assert distance(result.transform, known.truth, points) < 0.8 * distance(lambda x: x, known.truth, points)
    assert result.scalars["cost"] == result.history[-1]["cost"] and len(result.history) <= 18


@pytest.mark.parametrize("model", ["greedy", "velocity"])
def test_the_symmetric_form_gives_both_directions(model):
    known = known_pair()
    result = solved(Pair(known.fixed, known.moving), model=model, similarity="mse", symmetric=True)
    points = inner_points(known.fixed.grid)
    assert result.inverse_transform is not None
    assert float((result.inverse(result.transform(points)) - points).norm(dim=-1).mean()) < 0.15


@pytest.mark.parametrize("model", MODELS)
def test_a_linear_start_is_kept_and_a_deformation_continued(model):
    known = known_pair()
    linear = truths.random_affine(5, 2, known.fixed.grid.centre, 0.05, 1.0)
    field = (linear.inverse() @ known.truth).field(known.fixed.grid)
    points = inner_points(known.fixed.grid)
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
    points = inner_points(known.fixed.grid)
    assert distance(*maps, points) < 0.02 < distance(maps[0], lambda x: x, points)


@pytest.mark.parametrize("kind", ["labels", "points"])
@pytest.mark.parametrize("model, symmetric", [*((model, False) for model in MODELS), ("greedy", True)])
def test_guides_help(model, symmetric, kind):
    known = known_pair(0.3)
    points = inner_points(known.fixed.grid)
    if kind == "labels":
        guides = {"fixed_labels": known.fixed_labels, "moving_labels": known.moving_labels}
    else:
        some = points[:, ::5]
        guides = {"fixed_points": Points(some), "moving_points": Points(known.truth(some.double()).float())}
    problem = Pair(known.fixed, known.moving, **guides)
    values = {"model": model, "similarity": "lncc" if model == "greedy" else "ncc", "iterations": (30, 20), "symmetric": symmetric}
    alone = solved(Pair(known.fixed, known.moving), **values)
    guided = solved(problem, **values)
    if model == "greedy" and kind == "labels":  # edges of labels have stairs: overlap is what they give
        assert overlap(known, guided) > overlap(known, alone) + 0.02
        assert distance(guided.transform, known.truth, points) < 0.3 * distance(lambda x: x, known.truth, points)
        return
    bar = 1.0 if kind == "points" else 1.1
    assert distance(guided.transform, known.truth, points) < bar * distance(alone.transform, known.truth, points)


@pytest.mark.parametrize("values, word", [
    ({"iterations": (5,)}, "one count per level"), ({"iterations": (0, 0)}, "no step at all"), ({"factors": (1, 2)}, "coarse to fine"),
    ({"model": "bspline", "symmetric": True}, "no exact inverse"), ({"similarity": "mi", "symmetric": True}, "symmetric form compares"),
    ({"similarity": "mi", "model": "greedy"}, "steer the similarities"),
    ({"model": "spline"}, "expected one of"), ({"similarity": "nmi"}, "expected one of"), ({"limit": 9.0}, "from 0.05 to 4")])
def test_what_does_not_fit_together_is_said(values, word):
    known = known_pair()
    guides = {"fixed_labels": known.fixed_labels, "moving_labels": known.moving_labels} if "steer" in word else {}
    with pytest.raises(InputError, match=word):
        solved(Pair(known.fixed, known.moving, **guides), **values)


@pytest.mark.parametrize("symmetric", [False, True])
def test_landmarks_win_where_the_images_say_nothing(symmetric):
    """Two flat images with one bright corner: only the landmarks tell of the shift, and they come together within a fraction."""
    known = known_pair(0.3)
    flat = [replace(image, data=torch.where(image.data == image.data.max(), 1.0, 0.0) + 1e-3 * image.data) for image in (known.fixed, known.moving)]
    middle = torch.as_tensor(known.fixed.grid.centre).float()
    fixed = middle + torch.tensor([[-4.0, -3.0], [4.0, 3.0], [-4.0, 4.0], [3.0, -4.0]])[None]
    moving = fixed + torch.tensor([[2.0, 1.0], [2.0, 1.0], [2.0, 1.0], [2.0, 1.0]])[None]
    result = solved(Pair(*flat, fixed_points=Points(fixed), moving_points=Points(moving)), similarity="mse", symmetric=symmetric,
                    iterations=(60, 60), guide_weight=10.0)
    assert float((result.transform(fixed) - moving).norm(dim=-1).max()) < 0.5
    assert float(result.transform.jacobian_determinant(known.fixed.grid).min()) > 0


@pytest.mark.parametrize("inverted", [False, True])
def test_the_similarity_follows_the_contrast(inverted):
    """The default notices a negative and compares structure there; with the local intensity map it would go astray."""
    known = known_pair()
    moving = replace(known.moving, data=5 - known.moving.data) if inverted else known.moving
    result = solved(Pair(known.fixed, moving), iterations=(40, 30))
    points = inner_points(known.fixed.grid)
    assert result.provenance["chosen_similarity"] == ("ngf" if inverted else "lncc")
    assert (result.scalars["gradient_agreement"] > 0.9) != inverted
    assert distance(result.transform, known.truth, points) < 0.6 * distance(lambda x: x, known.truth, points)


def test_sections_whose_texture_does_not_correspond_want_stiffness():
    fixed, moving, u, tissue = sections(1)
    inside = torch.as_tensor(tissue.ravel())
    points = torch.as_tensor(fixed.grid.points()).reshape(1, -1, 2)
    truth = points + torch.as_tensor(u[::-1].copy()).reshape(2, -1).T

    def error(name):
        moved = find(name).run(Pair(fixed, moving), Runtime()).transform(points)
        return float((moved - truth).norm(dim=-1)[0, inside].mean())

    stiff = error("instance-optimisation:histology")
    assert stiff < 0.7 * error("instance-optimisation:2d") and stiff < 0.4 * error("affine")


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
    points = inner_points(known.fixed.grid)
    truth = lambda x: h(known.truth(x))  # noqa: E731
    assert distance(result.transform, truth, points) < 0.5 * distance(lambda x: x, truth, points)
    assert torch.equal(moving.data, kept) and result.affine.numpy().shape == (3, 3)


@pytest.mark.parametrize("model, name", [("greedy", "gradicon"), ("velocity", "icon")])
def test_a_tie_of_two_maps_needs_a_model_with_two(model, name):
    with pytest.raises(InputError, match=f"'{name}' ties two maps, and the model '{model}' has one"):
        find("instance-optimisation", {"model": model, "regulariser": name}).run(contract.smallest_pair(2).problem, Runtime("cpu"))


def test_gradient_inverse_consistency_as_regulariser_beats_no_registration_and_is_cited():
    truth = contract.smallest_pair(2)
    method = find("instance-optimisation", {"model": "displacement", "regulariser": "gradicon", "similarity": "ncc", "start": "none",
                                            "factors": (4.0, 2.0), "iterations": (40, 20)})
    result = method.run(truth.problem, Runtime("cpu"))
    assert truth.error(result.transform) < 0.5 * truth.error(lambda x: x)
    assert any("Gradient Inverse Consistency" in entry for entry in references(method))


@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 3), (1, 3, 3)])
def test_images_of_a_few_voxels_are_registered(shape):
    """The coarsest level is a single voxel."""
    grid, draw = Grid.from_parts(shape, 2.0), torch.Generator().manual_seed(0)
    fixed, moving = (Image(torch.rand(1, 1, *shape, generator=draw), grid, name=name) for name in ("fixed", "moving"))
    result = find("instance-optimisation:fast").run(Pair(fixed, moving), Runtime("cpu"))
    assert bool(torch.isfinite(result.transform.field(grid)).all())
