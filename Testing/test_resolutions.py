"""Training from coarse to fine, and the method that uses what was trained: both directions, stages that go on, weights that are checked."""

from __future__ import annotations

from dataclasses import replace

import contract
import pytest
import torch
from truths_shapes import hollow, hollow_pairs

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image, Labels
from DeepRegistrationLib.method import find
from DeepRegistrationLib.networks import weights
from DeepRegistrationLib.networks.composition import Downsampled, MultiResolution
from DeepRegistrationLib.networks.weights import WeightsCard
from DeepRegistrationLib.ops import nd
from DeepRegistrationLib.ops.sample import world_points
from DeepRegistrationLib.problem import Pair
from DeepRegistrationLib.runtime import Runtime
from DeepRegistrationLib.terms import MSE, Alignment, GradientInverseConsistency
from DeepRegistrationLib.train.loop import TrainingSettings
from DeepRegistrationLib.train.resolutions import both_ways, coarser, pooled, train_by_resolution
from DeepRegistrationLib.transforms import Displacement

GRID = Grid.from_parts((32, 32), 1.5, (-10.0, 4.0))
SHAPE = {"encoder": (8, 8), "decoder": (8, 8), "tail": (8,)}
OBJECTIVE = MSE() + 0.02 * GradientInverseConsistency(200)


def draw(generator):
    return hollow_pairs(GRID, 4, generator)


def small(seed=0, resolutions=1, dim=2):
    torch.manual_seed(seed)
    return MultiResolution(dim, resolutions, **SHAPE)


def settings(steps, **values):
    return TrainingSettings(steps=steps, rate=2e-3, warm_up=1, **values)


def test_hollow_shapes_are_outlines_of_both_kinds():
    shapes = hollow(Grid.from_parts((64, 64)), 40, torch.Generator().manual_seed(0)).data
    again = hollow(Grid.from_parts((64, 64)), 40, torch.Generator().manual_seed(0)).data
    assert torch.equal(shapes, again) and 0 <= float(shapes.min()) and float(shapes.max()) <= 1
    centre = shapes.flatten(1) @ world_points(Grid.from_parts((64, 64))).reshape(-1, 2) / shapes.flatten(1).sum(1, keepdim=True)
    middle = torch.stack([shapes[k, 0, int(c[1]), int(c[0])] for k, c in enumerate(centre.round())])
    assert float(middle.max()) < 0.1 and float(shapes.amax((1, 2, 3)).min()) > 0.9
    radius = [(world_points(Grid.from_parts((64, 64)))[0] - c).norm(dim=-1)[image[0] > 0.5] for image, c in zip(shapes, centre)]
    unevenness = torch.stack([r.std() / r.mean() for r in radius])
    assert 5 < int((unevenness < 0.1).sum()) < 35


def test_both_directions_are_each_others_reverse():
    pair = draw(torch.Generator().manual_seed(1))
    network = small()
    with torch.no_grad():
        network.network.flow.weight.add_(0.05 * torch.randn(network.network.flow.weight.shape))
        (one, back), (other, there) = both_ways(network, pair)
        _, (_, swapped) = both_ways(network, replace(pair, fixed=pair.moving, moving=pair.fixed))
    assert one == other == 0.5 and there.reverse is back and back.reverse is there
    assert torch.equal(swapped.field, back.field) and float(there.field.abs().max()) > 0.1
    assert torch.equal(there.field, network(pair.fixed.data, pair.moving.data).detach() * 1.5)


def test_images_of_a_coarser_stage_are_block_means_of_the_same_field_of_view():
    pair = coarser(draw, 4)(torch.Generator().manual_seed(2))
    whole = draw(torch.Generator().manual_seed(2))
    assert torch.allclose(pair.fixed.data, nd.average_pool(whole.fixed.data, 4), atol=1e-6)
    assert pair.fixed.grid.shape == (8, 8) and abs(pair.fixed.grid.corners() - GRID.corners()).max() < 1e-9
    labels = Labels(torch.ones(1, 1, *GRID.shape, dtype=torch.int32), GRID)
    with pytest.raises(InputError, match="leave these out"):
        pooled(Pair(whole.fixed, whole.moving, None, labels, labels), 2)


def test_every_stage_begins_with_what_the_one_before_learned(tmp_path):
    runtime = Runtime("cpu")
    still = [replace(settings(steps), rate=1e-6) for steps in (2, 1)]
    network = small(resolutions=3)
    rows = train_by_resolution(network, OBJECTIVE, draw, (settings(40), *still), tmp_path, runtime)
    assert [len(r) for r in rows] == [40, 2, 1]
    assert sum(r["cost"] for r in rows[0][-5:]) < 0.97 * sum(r["cost"] for r in rows[0][:5])
    first = small().network
    first.load_state_dict(torch.load(tmp_path / "stage-1" / "checkpoint.pt", weights_only=True)["network"])
    pair = draw(torch.Generator().manual_seed(3))
    expected = Downsampled(Downsampled(first))(pair.fixed.data, pair.moving.data)
    assert float(expected.detach().abs().max()) > 0.3 and torch.allclose(network(pair.fixed.data, pair.moving.data), expected, atol=0.02)


def test_a_finished_recipe_is_read_and_not_trained_again(tmp_path):
    stages = (settings(2), settings(2))
    one, other = small(resolutions=2), small(seed=5, resolutions=2)
    rows, again = (train_by_resolution(network, OBJECTIVE, draw, stages, tmp_path, Runtime("cpu")) for network in (one, other))
    assert [len(r) for r in rows] == [2, 2] and [len(r) for r in again] == [0, 0]
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))


@pytest.mark.parametrize("resolutions, stages", [(1, (settings(1), settings(1))), (1, ())])
def test_stages_that_do_not_fit_the_network_are_refused(resolutions, stages, tmp_path):
    with pytest.raises(InputError, match="one stage for each resolution"):
        train_by_resolution(small(resolutions=resolutions), OBJECTIVE, draw, stages, tmp_path)


def card_of(network, /, **values):
    arguments = {"dim": network.dim, "resolutions": network.resolutions, **SHAPE}
    made = WeightsCard(name="shapes", title="shapes", file="", sha256="", size=0, licence="CC0", trained_on="hollow shapes",
                       network="MultiResolution", arguments=arguments, scaling="none")
    return replace(made, **values)


def test_a_trained_network_is_used_by_the_method(tmp_path):
    network = small(resolutions=2)
    train_by_resolution(network, OBJECTIVE, draw, (settings(40), settings(1)), tmp_path, Runtime("cpu"))
    path = tmp_path / "shapes.safetensors"
    weights.write(path, network, card_of(network))
    pair = hollow_pairs(GRID, 1, torch.Generator().manual_seed(4))
    result = find("gradicon", {"weights": str(path), "start": "none"}).run(pair, Runtime("cpu"))
    expected = network.eval()(pair.fixed.data, pair.moving.data).detach() * 1.5
    assert torch.allclose(result.transform.field(GRID), expected, atol=1e-4) and float(expected.abs().max()) > 0.3
    assert result.provenance["weights"]["sha256"] == weights.read_card(path.with_suffix(".json")).sha256
    odd = Grid.from_parts((29, 35), 1.5, (-10.0, 4.0))
    images = [Image(image.at(odd).data, odd) for image in (pair.fixed, pair.moving)]
    other = find("gradicon", {"weights": str(path), "start": "none"}).run(Pair(*images), Runtime("cpu")).transform
    assert torch.isfinite(other.field(odd)).all() and float(other.field(odd).abs().max()) > 0.3


@pytest.mark.parametrize("change, word", [({"network": "UNet"}, "no card that names a MultiResolution"), ({"arguments": {"wrong": 1}}, "does not describe"),
                                          ({"arguments": {"dim": 3, "resolutions": 1, **SHAPE}}, "are for 3D images")])
def test_weights_of_something_else_are_refused(change, word, tmp_path):
    network = small()
    weights.write(tmp_path / "w.safetensors", network, card_of(network, **change))
    with pytest.raises(InputError, match=word):
        find("gradicon", {"weights": str(tmp_path / "w.safetensors")}).run(contract.smallest_pair(2).problem, Runtime("cpu"))


@pytest.mark.parametrize("values, word", [({"factors": (1.0, 4.0), "iterations": (5, 5)}, "from coarse to fine"),
                                          ({"iterations": (5, 5)}, "one count per level")])
def test_settings_of_the_fit_that_do_not_fit_together_are_refused(values, word):
    with pytest.raises(InputError, match=word):
        find("gradicon", values).run(contract.smallest_pair(2).problem, Runtime("cpu"))


def test_a_deformation_to_start_from_is_refused():
    problem = contract.smallest_pair(2).problem
    start = Displacement(torch.zeros(1, 2, *problem.fixed.grid.shape), problem.fixed.grid)
    with pytest.raises(InputError, match="begin from a linear map"):
        find("gradicon").run(replace(problem, initial=start), Runtime("cpu"))


@pytest.mark.parametrize("similarity", ["ncc", "mse", "mi", "mind"])
def test_every_similarity_brings_the_pair_together(similarity):
    truth = contract.smallest_pair(2)
    values = {"similarity": similarity, "start": "none", "factors": (4.0, 2.0), "iterations": (25, 25), "samples": 1000, "tied": 200, "rate": 1e-2}
    result = find("gradicon", values).run(truth.problem, Runtime("cpu"))
    assert truth.error(result.transform) < 0.5 * truth.error(lambda x: x)
    assert result.scalars["inverse_consistency_mm"] < 1.0
    grid = truth.problem.fixed.grid
    costs = [float(MSE()(Alignment(truth.problem.fixed, truth.problem.moving, t))) for t in (lambda x: x, result.transform)]
    assert costs[1] < 0.5 * costs[0] and float(result.transform.jacobian_determinant(grid).min()) > 0
