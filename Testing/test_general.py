"""The general network as a method: what ships is what its card says, any contrast, never worse than its start, tampering refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
import truths

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image
from DeepRegistrationLib.method import find
from DeepRegistrationLib.networks import weights
from DeepRegistrationLib.points import Points
from DeepRegistrationLib.problem import Pair
from DeepRegistrationLib.runtime import Runtime
from DeepRegistrationLib.transforms import Affine, Identity


def case(dim, contrast="same", seed=11):
    """A phantom, its copy after a known swirl, and that map; 'reversed' turns the moving image's brightness round."""
    grid = Grid.from_parts((72, 80) if dim == 2 else (44, 48, 40), 2.0)
    truth = Affine.translation([2.0, -3.0, 1.0][:dim]) @ truths.random_swirl(seed, grid, angle=0.15)
    phantom = truths.Phantom(seed, grid)
    fixed, moving = phantom.image(grid, truth), phantom.image(grid.pad(2))
    if contrast == "reversed":
        moving = Image(moving.data.max() - moving.data, moving.grid, None, "moving")
    return Pair(fixed, moving, initial=Identity(dim)), truth


def error(transform, truth, grid):
    inner = tuple(slice(n // 5, n - n // 5) for n in grid.shape)
    points = torch.as_tensor(grid.points()[inner].reshape(1, -1, grid.dim)).float()
    return float(torch.linalg.vector_norm(transform(points) - truth(points), dim=-1).mean())


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("contrast", ["same", "reversed"])
def test_the_network_alone_halves_the_error_in_any_contrast(dim, contrast):
    problem, truth = case(dim, contrast)
    result = find("general:network-only").run(problem, Runtime("cpu"))
    before = error(lambda x: x, truth, problem.fixed.grid)
    assert error(result.transform, truth, problem.fixed.grid) < 0.6 * before
    assert float(result.transform.jacobian_determinant(problem.fixed.grid).min()) > 0


@pytest.mark.parametrize("dim", [2, 3])
def test_refinement_improves_on_the_network(dim):
    problem, truth = case(dim)
    alone, refined = (find(f"general:{preset}").run(problem, Runtime("cpu")) for preset in ("network-only", "default"))
    assert error(refined.transform, truth, problem.fixed.grid) < error(alone.transform, truth, problem.fixed.grid)
    assert sum(find("general").iterations) <= 20, "the promise of the card"


@pytest.mark.parametrize("dim", [2, 3])
def test_refinement_leaves_a_network_that_misleads(dim, monkeypatch):
    problem, truth = case(dim)
    module = sys.modules[find("general").__class__.__module__]
    monkeypatch.setattr(module, "predict", lambda *_: (Affine.translation([-2.0, 3.0, -1.0][:dim]), {}))
    monkeypatch.setattr(module.Judge, "gain", lambda *_: 1.0)
    result = find("general").run(problem, Runtime("cpu"))
    assert result.provenance["network_kept"] is False and "rival" in result.history[0]
    before = error(lambda x: x, truth, problem.fixed.grid)
    assert error(result.transform, truth, problem.fixed.grid) < 0.6 * before


def test_swapped_images_give_the_inverse_map():
    problem, _ = case(3)
    there = find("general:network-only").run(problem, Runtime("cpu")).transform
    back = find("general:network-only").run(Pair(problem.moving, problem.fixed, initial=Identity(3)), Runtime("cpu")).transform
    grid = problem.fixed.grid
    points = torch.as_tensor(grid.points()[8:-8, 8:-8, 8:-8].reshape(1, -1, 3)).float()
    left, moved = (back(there(points)) - points).norm(dim=-1), (there(points) - points).norm(dim=-1)
    assert left.mean() < 0.15 * moved.mean(), "the lattices of both runs differ a little, the maps may too"


@pytest.mark.parametrize("dim", [2, 3])
def test_what_ships_is_what_its_card_says(dim):
    path = weights.MODELS / f"general-{dim}d.safetensors"
    card = weights.read_card(path.with_suffix(".json"))
    data = path.read_bytes()
    assert hashlib.sha256(data).hexdigest() == card.sha256 and len(data) == card.size <= 30_000_000
    assert card.licence == "Apache-2.0" and card.trained_on and "run.py train general" in card.training and card.limits


def test_a_tampered_file_is_refused_in_a_sentence(tmp_path):
    for ending in (".safetensors", ".json"):
        shutil.copy(weights.MODELS / f"general-2d{ending}", tmp_path)
    path = tmp_path / "general-2d.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    problem, _ = case(2)
    with pytest.raises(InputError, match="not the file that their card describes"):
        find("general", {"weights": str(path)}).run(problem, Runtime("cpu"))


def test_weights_of_another_dimension_are_refused_in_a_sentence():
    problem, _ = case(2)
    with pytest.raises(InputError, match="3D"):
        find("general", {"weights": "general-3d"}).run(problem, Runtime("cpu"))


def test_the_result_says_which_weights_made_it():
    problem, _ = case(2)
    noted = find("general:network-only").run(problem, Runtime("cpu")).provenance
    assert noted["weights_sha256"] == json.loads((weights.MODELS / "general-2d.json").read_text("utf-8"))["sha256"]
    assert noted["lattice_spacing"]


def test_a_starting_deformation_is_built_upon():
    problem, truth = case(2)
    near = find("general:network-only").run(Pair(problem.fixed, problem.moving, initial=truth), Runtime("cpu"))
    assert error(near.transform, truth, problem.fixed.grid) < 0.7


def test_landmarks_steer_the_refinement_and_are_not_ignored_without_it():
    problem, truth = case(2)
    positions = torch.tensor([[[40.0, 50.0], [70.0, 60.0], [90.0, 90.0]]])
    pulled = Points(truth(positions) + torch.tensor([0.0, 6.0]))
    guided = replace(problem, fixed_points=Points(positions), moving_points=pulled)
    plain, steered = (find("general").run(p, Runtime("cpu")).transform for p in (problem, guided))
    assert (steered(positions) - pulled.positions).norm(dim=-1).mean() < (plain(positions) - pulled.positions).norm(dim=-1).mean() - 1
    with pytest.raises(InputError, match="no iterations"):
        find("general:network-only").run(guided, Runtime("cpu"))
