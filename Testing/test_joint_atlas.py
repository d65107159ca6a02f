"""An atlas and a network that are trained together: what the atlas follows, the penalties on cohort means, going on, and use for others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_groupwise import SHIFTS, StopsAt, place, shifted

from DeepRegistrationLib.engines.cohort_store import SubjectMap
from DeepRegistrationLib.engines.cohort_work import gradient_energy
from DeepRegistrationLib.errors import Cancelled, InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.method import find
from DeepRegistrationLib.problem import Pair
from DeepRegistrationLib.runtime import Runtime, Silent
from DeepRegistrationLib.terms import Alignment
from DeepRegistrationLib.train.atlas import AtlasNetwork, JointSettings, JointView, objective, penalty, tangent_log, train_joint
from DeepRegistrationLib.train.members import members_of
from DeepRegistrationLib.transforms import Displacement

SMALL = JointSettings(width=4, steps=6, batch=2, resolutions=1)
NETWORK = {"width": 4, "steps": 60, "batch": 5, "resolutions": 1, "linear": "none"}


def cohort(dim: int = 2):
    """(members, maps, lattice, mean image)."""
    members, grid, _ = members_of(shifted(dim), 0.0, 8, Silent())
    data = torch.cat([member.subject.image.data for member in members])
    return members, {m.name: SubjectMap(m.start, None, grid) for m in members}, grid, Image(data.mean(0, keepdim=True), grid)


def moving_network(dim: int = 2, **changes) -> tuple[AtlasNetwork, Pair]:
    """An untrained model whose network moves something, and all subjects as one batch."""
    torch.manual_seed(0)
    members, _, grid, mean = cohort(dim)
    model = AtlasNetwork(replace(SMALL, **changes).network(dim), mean.data, dim, 5.0)
    for parameter in model.network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    batch = Image(torch.cat([member.subject.image.data for member in members]), grid)
    return model, Pair(batch, batch)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("changes", [{"displacement": 40.0}, {"displacement": 0.0, "jacobian": 3.0}], ids=["displacement", "jacobian"])
def test_the_slope_of_a_penalty_is_that_of_the_mean_over_the_cohort(dim, changes):
    """Also after the network has changed since the last pass: what all subjects share is seen at once."""
    settings = replace(SMALL, tie="icon", weight=0.0, **changes)
    model, pair = moving_network(dim)
    view = JointView(settings, list(pair.moving.data.split(1)), 1000)
    view(model, pair)
    for parameter in model.network.parameters():
        parameter.data *= 1.1
    (_, alignment), = view(model, pair)
    length = float(pair.fixed.grid.extent.max())
    truth = settings.displacement / length**2 * alignment.field.mean(0, keepdim=True).square().sum(1).mean()
    if settings.jacobian:
        truth = settings.jacobian * tangent_log(alignment.determinant).mean(0, keepdim=True).square().mean()
    parameters = list(model.network.parameters())
    wanted = torch.autograd.grad(truth, parameters, retain_graph=True)
    found = torch.autograd.grad(alignment.pull.mean(), parameters)
    assert float(alignment.pull.mean()) == pytest.approx(float(truth), rel=1e-3) and float(truth) > 0
    assert all(torch.allclose(a, b, rtol=5e-3, atol=1e-7) for a, b in zip(wanted, found))


def test_drawn_subjects_stand_for_the_cohort_where_all_move_alike():
    """Two of five subjects, after a common shift: the penalty is that of all five, not that of the two."""
    mean, before = torch.full((1, 2, 4, 4), 1.0), torch.randn(2, 2, 4, 4)
    values = (before + 0.5).requires_grad_(True)
    found = penalty(mean, values, before, 3.0)
    assert found.detach().numpy() == pytest.approx(3.0 * 2 * 1.5**2)
    (slope,) = torch.autograd.grad(found.sum(), values)
    assert torch.allclose(slope, torch.full_like(slope, 3.0 * 2 * 1.5 / 16))


def test_an_atlas_that_follows_the_similarity_does_not_feel_the_regularizer():
    slopes = {}
    for kind in ("whole", "similarity"):
        for weight in (0.0, 5.0):
            settings = replace(SMALL, objective=kind, weight=weight, tie="icon", displacement=0.0)
            model, pair = moving_network()
            (_, alignment), = JointView(settings, [], 1)(model, pair)
            objective(settings, 0.1)(alignment).mean().backward()
            slopes[kind, weight] = model.change.grad
            assert any(p.grad is not None and float(p.grad.abs().max()) > 0 for p in model.network.parameters())
    assert torch.allclose(slopes["similarity", 0.0], slopes["similarity", 5.0], atol=1e-7)
    assert torch.allclose(slopes["similarity", 0.0], slopes["whole", 0.0], atol=1e-7)
    assert float((slopes["whole", 5.0] - slopes["whole", 0.0]).abs().max()) > 1e-3 * float(slopes["whole", 0.0].abs().max())


def test_subjects_are_read_from_a_finer_lattice():
    """Half a voxel off its lattice, a texture keeps more of its gradient energy than linear interpolation between its voxels leaves."""
    grid = Grid.from_parts((32, 32))
    subject = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    model = AtlasNetwork(SMALL.network(2), subject, 2, 5.0)
    half = torch.full((1, 2, 32, 32), 0.5)
    model.maps = lambda atlas, subjects, grid: (Displacement(half, grid), Displacement(-half, grid))
    subjects = Image(subject, grid)
    (_, alignment), = JointView(replace(SMALL, displacement=0.0), [], 1)(model, Pair(subjects, subjects))
    linear = Alignment(subjects, subjects, Displacement(half, grid)).warped
    inner = slice(4, -4)
    energy, plain, whole = (gradient_energy(x[..., inner, inner], grid) for x in (alignment.warped, linear, subject))
    assert plain < 0.4 * whole and 1.5 * plain < energy < whole


def test_the_logarithm_goes_on_where_a_map_folds():
    determinant = torch.tensor([-1.0, 0.0, 0.05, 0.5, 1.0], requires_grad=True)
    value = tangent_log(determinant)
    value.sum().backward()
    assert bool(torch.isfinite(value).all()) and bool((determinant.grad > 0).all())
    assert float(value[-1]) == 0 and float(value[-2]) == pytest.approx(np.log(0.5))


def test_a_stopped_training_goes_on_to_the_same_numbers(tmp_path):
    members, maps, grid, mean = cohort()
    whole = train_joint(members, maps, mean, SMALL, tmp_path / "whole", Runtime("cpu", threads=1))
    seen = StopsAt("training")
    seen.progress = lambda share, text, step=0, steps=0: seen.cancel() if step >= 3 else None
    with pytest.raises(Cancelled):
        train_joint(members, maps, mean, SMALL, tmp_path / "parts", Runtime("cpu", threads=1, monitor=seen))
    parts = train_joint(members, maps, mean, SMALL, tmp_path / "parts", Runtime("cpu", threads=1))
    assert torch.equal(whole.data, parts.data) and not torch.equal(whole.data, mean.data)


@pytest.mark.parametrize("similarity", ["mse", "lncc", "mind"])
def test_the_network_finds_the_mean_pose_with_its_penalty(similarity):
    """From one subject's image: the penalty brings the atlas to the middle of the cohort."""
    group = shifted()
    values = {**NETWORK, "similarity": similarity, "rate": 5e-3, "displacement": 500.0, "steps": 100 if similarity != "mind" else 20}
    result = find("icon-atlas:network", values).run(group, Runtime("cpu", threads=1))
    row = result.history[-1]
    assert np.isfinite(row["similarity"]) and row["folds"] < 0.05
    assert set(result.files) == {"network.safetensors", "network.json"}
    if similarity == "mind":
        return  # few steps: it runs and ends with a valid answer
    assert row["similarity"] > 0.85
    middle = group.subjects[0].image.grid.centre + np.mean(SHIFTS, 0)[:2]
    assert np.abs(place(result.atlas) - middle).max() < 1.0


def test_the_penalty_makes_the_mean_displacement_small():
    found = {}
    for penalty in (0.0, 2000.0):
        values = {**NETWORK, "start": "subject", "reference": "s0", "rate": 5e-3, "displacement": penalty, "centering": 0.0}
        result = find("icon-atlas:network", values).run(shifted(), Runtime("cpu", threads=1))
        found[penalty] = result.history[-1]["mean_displacement"]
    assert found[2000.0] < 0.5 * found[0.0], found


def test_words_that_the_training_does_not_know():
    with pytest.raises(InputError, match="objective 'both'"):
        objective(replace(SMALL, objective="both"), 1.0)


def test_the_lattice_is_one_that_the_network_can_halve():
    group = shifted(2, side=21)
    result = find("icon-atlas:network", {**NETWORK, "steps": 2}).run(group, Runtime("cpu", threads=1))
    assert result.atlas.grid.shape == (24, 24)
    assert result.atlas.grid.same_as(Grid.from_parts((21, 21)).crop([-1, -1], [23, 23]))
