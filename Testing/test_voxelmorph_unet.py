"""The method voxelmorph-unet, its lattice, the recipe that trains its networks, and the published weights on a real pair."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import trained

from DeepRegistrationLib.engines.network_pair import network_grid, oriented, scaled, seen
from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.evaluate import metrics
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.image import Image, Labels
from DeepRegistrationLib.method import find
from DeepRegistrationLib.networks import heads, weights
from DeepRegistrationLib.networks.unet import UNet
from DeepRegistrationLib.ops.filters import gaussian
from DeepRegistrationLib.problem import Pair
from DeepRegistrationLib.result import warp
from DeepRegistrationLib.runtime import Runtime
from DeepRegistrationLib.terms import Alignment
from DeepRegistrationLib.train.unet import UNetRecipe, all_pairs, between_voxels, objective, view
from DeepRegistrationLib.transforms import Affine, Velocity
from DeepRegistrationLib.transforms.base import Identity


def image(shape, spacing=1.0, seed=1, **changes) -> Image:
    data = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(seed))
    return Image(data, Grid.from_parts(shape, spacing, [5.0, -7.0, 11.0][: len(shape)]), **changes)


def smooth_noise(shape, width):
    """(1, 1, *shape) smooth noise of deviation 1."""
    data = gaussian(torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(0)), width)
    return data / data.std()


def constant_network(folder, dim, shift, output="displacement", **changes) -> str:
    """A file with a network that says the same everywhere: ``shift`` (x, y, z) in voxels of its lattice."""
    arguments = {"dim": dim, "encoder": [2, 2], "decoder": [2, 2], "tail": [], "output": output, "half": changes.pop("half", False)}
    network = UNet(**arguments)
    with torch.no_grad():
        for parameter in network.flow.parameters():
            parameter.zero_()
        network.flow.bias[:dim] = torch.tensor(shift)
    weights.write(folder / "constant.safetensors", network, trained.card(dim, arguments=arguments, **changes))
    return str(folder / "constant.safetensors")


# ---------------------------------------------------------------------------------------------------------- the lattice


@pytest.mark.parametrize("letters", ["LPS", "RAS", "LIA", "PSR", "IAL"])
def test_oriented_renames_voxels(letters):
    """The voxel centres are the same points, and the axes run as the letters say; also for an oblique image."""
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)) * 0.1 + np.eye(3))[0]
    turn = turn * np.sign(np.diag(turn))
    grid = Grid.from_parts((5, 6, 7), (1.0, 1.5, 2.0), (3.0, 4.0, 5.0), turn[:, [1, 0, 2]] * [1, -1, 1])
    found = oriented(grid, letters)
    points = [np.sort(np.round(g.points().reshape(-1, 3), 6).view("f8,f8,f8").ravel()) for g in (grid, found)]
    assert np.array_equal(*points)
    world = {"L": [1, 0, 0], "R": [-1, 0, 0], "P": [0, 1, 0], "A": [0, -1, 0], "S": [0, 0, 1], "I": [0, 0, -1]}
    assert all(found.direction[:, k] @ world[letter] > 0.8 for k, letter in enumerate(letters))


def test_the_lattice_of_a_network():
    grid = Grid.from_parts((33, 30, 41), (1.0, 1.005, 2.0), (3.0, 4.0, 5.0))
    own = network_grid(grid, trained.card(3), 16)
    assert own.shape == (48, 32, 48) and np.allclose(own.spacing, grid.spacing) and np.allclose(own.centre, grid.centre, atol=1.01)
    assert np.allclose(grid.world_to_index(own.origin) % 1, 0, atol=1e-9), "voxels are those of the image"
    found = network_grid(grid, trained.card(3, spacing=(1.0, 1.0, 1.0)), 16)
    assert np.allclose(found.spacing, 1.0, atol=0.03) and found.shape[0] == 80
    same = Grid.from_parts((32, 48, 16))
    assert network_grid(same, trained.card(3, spacing=(1.0,) * 3), 16).same_as(same)
    for card, match in ((trained.card(3, spacing=(1.0, 1.0)), "for 2D images"), (trained.card(3, orientation="LIQ"), "three letters")):
        with pytest.raises(InputError, match=match):
            network_grid(grid, card, 16)
    with pytest.raises(InputError, match="three letters"):
        network_grid(Grid.from_parts((8, 8)), trained.card(2, orientation="LIA"), 4)


def test_what_a_network_sees():
    moving = image((16, 16), seed=2)
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    mask[..., 4:12, 4:12] = True
    fixed = image((14, 16), seed=3, mask=mask[:, :, :14])
    one, other = seen(fixed, moving, Affine.translation([2.0, 0.0]), trained.card(2, scaling="minmax"), 8)
    assert one.grid.shape == (16, 16) and one.grid.same_as(other.grid)
    assert float(one.data[..., 1:15, :][~mask[:, :, :14]].abs().max()) == 0.0, "outside the mask"
    moved = (moving.data - moving.data.min()) / (moving.data.max() - moving.data.min())
    assert torch.allclose(other.data[..., 1:15, :14], moved[..., :14, 2:], atol=1e-5) and float(other.data[..., 14:].abs().max()) == 0
    with pytest.raises(InputError, match="3 channels"):
        seen(replace(moving, data=moving.data.expand(1, 3, 16, 16)), moving, Identity(2), trained.card(2), 8)


@pytest.mark.parametrize("kind, low, high, expected", [("minmax", -3.0, 7.0, (0.0, 1.0)), ("none", -3.0, 7.0, (-3.0, 7.0)), ("bytes", 0.0, 204.0, (0.0, 0.8)),
                                                       ("bytes", 0.0, 0.5, (0.0, 0.5)), ("bytes", -5.0, 300.0, (0.0, 1.0)), ("robust", 0.0, 9.0, (0.0, 1.0))])
def test_scaling(kind, low, high, expected):
    data = torch.linspace(low, high, 400).reshape(1, 1, 20, 20)
    found = scaled(Image(data, Grid.from_parts((20, 20))), kind).data
    assert (float(found.min()), float(found.max())) == pytest.approx(expected, abs=1e-6)


# ----------------------------------------------------------------------------------------------------------- the method


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("half", [False, True])
def test_voxels_of_the_card_become_millimetres_of_the_image(tmp_path, dim, half):
    """A network that says 1 voxel along its first axis, on a lattice of half the image's spacing with other axes than the image's."""
    shape = (24, 20, 28)[:dim]
    changes = {"spacing": (2.0,) * dim, "half": half, **({"orientation": "PSR"} if dim == 3 else {})}
    name = constant_network(tmp_path, dim, [1.0, 0.0, 0.0][:dim], **changes)
    problem = Pair(image(shape), image(shape, seed=2))
    result = find("voxelmorph-unet:aligned", {"weights": name}).run(problem, Runtime("cpu"))
    middle = torch.as_tensor(problem.fixed.grid.centre).float()[None, None]
    moved = (result.transform(middle) - middle)[0, 0]
    length = 4.0 if half else 2.0
    expected = [length, 0.0] if dim == 2 else [0.0, length, 0.0]  # the axis 'P' is y of the world
    assert torch.allclose(moved, torch.tensor(expected), atol=0.1)
    assert result.provenance["weights"]["sha256"] == weights.read_card(tmp_path / "constant.json").sha256


def test_a_start_comes_before_the_network(tmp_path):
    name = constant_network(tmp_path, 2, [1.0, 0.0])
    problem = Pair(image((16, 16)), image((16, 16), seed=2), Affine.translation([0.0, 3.0]))
    result = find("voxelmorph-unet", {"weights": name}).run(problem, Runtime("cpu"))
    middle = torch.as_tensor(problem.fixed.grid.centre).float()[None, None]
    assert torch.allclose((result.transform(middle) - middle)[0, 0], torch.tensor([1.0, 3.0]), atol=1e-4)
    assert np.allclose(result.affine.numpy()[:2, 2], [0.0, 3.0])


def test_velocities_have_exact_inverses_and_uncertain_ones_say_so(tmp_path):
    problem = Pair(image((16, 16), 2.0), image((16, 16), 2.0, seed=2))
    result = find("voxelmorph-unet:aligned", {"weights": constant_network(tmp_path, 2, [1.0, 0.5], "velocity")}).run(problem, Runtime("cpu"))
    assert isinstance(result.transform, Velocity) and isinstance(result.inverse, Velocity) and result.maps == {}
    name = constant_network(tmp_path, 2, [1.0, 0.5], "probabilistic")
    result = find("voxelmorph-unet:aligned", {"weights": name}).run(problem, Runtime("cpu"))
    assert result.maps["velocity_deviation"].shape == (1, 1, 16, 16)
    assert float(result.maps["velocity_deviation"].mean()) == pytest.approx(2 * 2**0.5, rel=1e-5)  # log-variance 0 of the zeroed layer


def test_what_does_not_fit_is_one_sentence(tmp_path):
    pair = Pair(image((16, 16)), image((16, 16), seed=2))
    name = constant_network(tmp_path, 3, [0.0, 0.0, 0.0])
    other = weights.write(tmp_path / "pyramid.safetensors", weights.build(trained.card(2, network="SymmetricPyramid", arguments={"dim": 2})),
                          trained.card(2, network="SymmetricPyramid", arguments={"dim": 2}))
    runtime = Runtime("cpu", cache=tmp_path / "cache")
    for values, match in (({}, "needs the weights of a trained network"), ({"weights": name}, "are for 3D images"),
                          ({"weights": str(tmp_path / other.file)}, "another method uses"), ({"weights": name, "refinement": (1,)}, "two numbers"),
                          ({"weights": "voxelmorph2018-brain3d-cc"}, r"are not here: .* \(1\.3 MB; not stated"), ({"weights": "none"}, "neither a file")):
        with pytest.raises(InputError, match=match):
            find("voxelmorph-unet", values).run(pair, runtime)


# ----------------------------------------------------------------------------------------------------------- the recipe


def test_objectives_of_the_recipe():
    names = lambda recipe, output="displacement": [(w, t.name) for w, t in objective(recipe, output).parts]  # noqa: E731
    assert names(UNetRecipe("mse", 0.5, noise=0.1)) == [(pytest.approx(50.0), "MSE"), (0.5, "Diffusion")]
    assert names(UNetRecipe("lncc", 2.0, label_weight=0.3)) == [(1.0, "LNCC"), (2.0, "Diffusion"), (0.3, "SoftDice")]
    assert names(UNetRecipe("mse", noise=0.02), "probabilistic") == [(pytest.approx(1250.0), "MSE"), (1.0, "VelocityPrior")]
    assert [name for _, name in names(UNetRecipe("mse"), "affine")] == ["MSE"]
    with pytest.raises(InputError, match="mse, lncc"):
        objective(UNetRecipe("mi"))


def test_every_ordered_pair_is_drawn_and_none_is_held():
    images = [image((4, 4), seed=k, name=str(k)) for k in range(4)]
    draw = all_pairs(images, [Labels(torch.ones(1, 1, 4, 4), images[0].grid, name=str(k)) for k in range(4)])
    pairs = [draw(torch.Generator().manual_seed(k)) for k in range(300)]
    assert {(p.fixed.name, p.moving.name) for p in pairs} == {(str(i), str(j)) for i in range(4) for j in range(4) if i != j}
    assert all(p.fixed_labels.name == p.fixed.name and p.moving_labels.name == p.moving.name for p in pairs)
    for wrong in ((images[:1], None), (images, [])):
        with pytest.raises(InputError):
            all_pairs(*wrong)


def test_the_moving_image_may_have_finer_voxels():
    """A network that says nothing yet: it sees both images on the fixed grid, the cost reads the moving one where it has its values."""
    fine = Grid.from_parts((16, 16))
    coarse = fine.resample(2.0)
    moving = Image(torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)), fine)
    network, shown = UNet(2, (4,), (4,), (4,)), []
    torch.nn.init.zeros_(network.flow.weight)
    network.register_forward_pre_hook(lambda module, images: shown.extend(images))
    ((_, alignment),) = view(network, Pair(replace(moving.at(coarse), data=1 - moving.at(coarse).data), moving))
    assert [tuple(each.shape) for each in shown] == [(1, 1, 8, 8)] * 2 and alignment.moving is moving
    assert torch.allclose(alignment.warped, moving.at(coarse).data, atol=1e-6)


def test_a_shift_by_a_part_of_a_voxel_is_not_paid_for():
    """Two noisy pictures of one object, and networks that shift everything: reading between voxels takes noise away, and that must not lower the cost."""
    smooth = 0.4 * smooth_noise((32, 32), 4.0)
    pair = Pair(*(Image(smooth + 0.1 * torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(k)), Grid.from_parts((32, 32))) for k in (1, 2)))
    fixed, moved = lambda generator: pair, between_voxels(lambda generator: pair)

    def cost(draw, shift):
        def network(fixed, moving):
            return torch.full((1, 2, *fixed.shape[2:]), shift)

        network.output = "displacement"
        pairs = [draw(torch.Generator().manual_seed(k)) for k in range(60)]
        assert len({tuple(p.fixed.grid.origin) for p in pairs}) == (60 if draw is moved else 1)
        return np.mean([float(objective(UNetRecipe("mse", 0.0))(view(network, p)[0][1])) for p in pairs])

    assert cost(fixed, 0.5) < 0.9 * cost(fixed, 0.0), "the reward that is to be taken away is there"
    assert cost(moved, 0.0) < 0.9 * min(cost(moved, -0.5), cost(moved, 0.5))


def test_a_probabilistic_network_is_sampled_while_it_trains_only():
    network = UNet(2, (2, 2), (2, 2), (), "probabilistic")
    pair = Pair(image((8, 8)), image((8, 8), seed=2))
    cost = objective(UNetRecipe("mse"), "probabilistic")
    ((weight, alignment),) = view(network.train(), pair)
    assert weight == 1.0 and isinstance(alignment, Alignment) and bool(torch.isfinite(cost(alignment)).all())
    network.eval()
    assert not hasattr(view(network, pair)[0][1].transform, "mean") and int(network.drawn) == 1


@pytest.mark.slow
@pytest.mark.parametrize("output", ["velocity", "probabilistic"])
def test_other_outputs_learn_too(output):
    """Trained on phantoms for seconds; on pairs that it has not seen the difference of the images falls by more than a quarter."""
    network, card = weights.load(trained.small_unet(2, output)["weights"], Runtime("cpu"))
    before = after = 0.0
    for seed in range(8):
        pair = trained.phantom_pair(seed, Grid.from_parts((44, 48)))
        fixed, moving = seen(pair.fixed, pair.moving, Identity(2), card, network.multiple)
        moved = heads.transform(network(fixed.data, moving.data), fixed.grid, output)
        before += float((moving.data - fixed.data).square().mean())
        after += float((Alignment(fixed, moving, moved).warped - fixed.data).square().mean())
    assert after < 0.75 * before


# ------------------------------------------------------------------------------------------------- the published weights


@pytest.mark.slow
def test_published_weights_on_the_labelled_pair(data):
    """Dice of 30 structures and folds as an independent implementation has them on the same files: 0.7146, 1.47 % of the fixed image's brain."""
    from DeepRegistrationLib.io import read_image, read_labels

    pytest.importorskip("h5py")
    name = str(data / "weights" / "voxelmorph2018-brain3d-cc.h5")
    case = data / "brain3d-pair-labelled"
    fixed, moving = (read_image(case / f"{side}.nii.gz") for side in ("fixed", "moving"))
    fixed_labels, moving_labels = (read_labels(case / f"{side}_seg.nii.gz") for side in ("fixed", "moving"))
    values = [int(v) for v in json.loads((case / "structures30.json").read_text("utf-8"))]
    began = time.process_time()
    result = find("voxelmorph-unet:aligned", {"weights": name}).run(Pair(fixed, moving), Runtime("cpu"))
    seconds = time.process_time() - began
    assert result.provenance["weights"]["title"] == weights.cards()["voxelmorph2018-brain3d-cc"].title, "the file is known by its hash"
    dice = metrics.dice_per_label(fixed_labels, warp(moving_labels, result.transform, fixed.grid), values)
    assert np.nanmean(list(dice.values())) == pytest.approx(0.7146, abs=0.005)
    assert 100 * metrics.jacobian_scores(result.transform, fixed.grid, fixed.data > 0)["folds"] == pytest.approx(1.47, abs=0.1)
    assert seconds < 30, f"{seconds:.1f} s; 6.9 on a quiet machine"
