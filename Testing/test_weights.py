"""Files of weights and their cards, foreign layouts built here, and what is refused: tampered files, code in checkpoints, fetching unasked."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import types
import urllib.error
import urllib.request
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.networks import foreign, weights
from DeepRegistrationLib.networks.unet import AffineEncoder, UNet
from DeepRegistrationLib.networks.weights import WeightsCard
from DeepRegistrationLib.runtime import Runtime

SMALL = {"dim": 2, "encoder": [4, 8], "decoder": [8, [8, 8]], "tail": [4]}


def card(**changes) -> WeightsCard:
    return WeightsCard(**{"name": "", "title": "a small network", "file": "", "sha256": "", "size": 0, "licence": "Apache-2.0", "trained_on": "phantoms",
                          "network": "UNet", "arguments": SMALL, **changes})


def random_network(seed=1, **changes) -> UNet:
    torch.manual_seed(seed)
    network = UNet(**{**SMALL, **changes}).eval()
    torch.nn.init.normal_(network.flow.weight, 0, 0.1)
    return network


def pair(*shape, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(1, 1, *shape, generator=generator) for _ in range(2)]


def same(one, other, *shape, tolerance=0.0) -> bool:
    with torch.no_grad():
        a, b = one(*pair(*shape)), other(*pair(*shape))
    assert float(a.abs().max()) > 1e-3, "nothing is compared"
    return torch.allclose(a, b, atol=tolerance, rtol=tolerance)


@pytest.fixture
def runtime(tmp_path) -> Runtime:
    return Runtime("cpu", cache=tmp_path / "cache")


# ------------------------------------------------------------------------------------------------------------- our files


@pytest.mark.parametrize("half", [False, True])
def test_a_network_comes_back_from_its_file(tmp_path, runtime, half):
    network = random_network()
    written = weights.write(tmp_path / "made-2d.safetensors", network, card(spacing=(1.0, 1.0)), half)
    assert written.size == (tmp_path / "made-2d.safetensors").stat().st_size and written.name == "made-2d"
    read, found = weights.load(str(tmp_path / "made-2d.safetensors"), runtime)
    assert found == written == weights.read_card(tmp_path / "made-2d.json") and found.spacing == (1.0, 1.0)
    assert same(read, network, 16, 16, tolerance=2e-2 if half else 0.0)
    assert not read.training and not any(p.requires_grad for p in read.parameters()) and next(read.parameters()).dtype == torch.float32


def test_half_precision_takes_half_of_the_room(tmp_path):
    network = random_network(encoder=[32, 32], decoder=[32, 32])
    sizes = [weights.write(tmp_path / f"{half}.safetensors", network, card(), half).size for half in (False, True)]
    assert 0.5 < sizes[1] / sizes[0] < 0.52


def test_other_networks_and_counters_come_back_too(tmp_path, runtime):
    encoder = AffineEncoder(2, (4, 8))
    torch.nn.init.normal_(encoder.last.weight)
    made = weights.write(tmp_path / "a.safetensors", encoder, card(network="AffineEncoder", arguments={"dim": 2, "widths": [4, 8]}))
    assert same(weights.load(str(tmp_path / "a.safetensors"), runtime)[0], encoder, 16, 16) and made.network == "AffineEncoder"
    drawn = random_network(output="probabilistic")
    drawn.next_draw()
    weights.write(tmp_path / "p.safetensors", drawn, card(arguments={**SMALL, "output": "probabilistic"}))
    assert same(weights.load(str(tmp_path / "p.safetensors"), runtime)[0], drawn, 16, 16)
    from DeepRegistrationLib.networks.pyramid import SymmetricPyramid
    assert isinstance(weights.build(card(network="SymmetricPyramid", arguments={"dim": 2})), SymmetricPyramid)


def test_a_tampered_file_is_refused_before_it_is_read(tmp_path, runtime, monkeypatch):
    path = tmp_path / "made.safetensors"
    weights.write(path, random_network(), card())
    data = bytearray(path.read_bytes())
    data[-5] ^= 1  # one bit of one weight
    path.write_bytes(data)
    monkeypatch.setattr(weights, "read", lambda *_: pytest.fail("the file was read before it was checked"))
    with pytest.raises(InputError, match=r"are not the file that their card describes \(sha256 [0-9a-f]{12}\.\.\., the card says"):
        weights.load(str(path), runtime)


def test_a_missing_or_wrong_card_and_a_wrong_file_are_one_sentence(tmp_path, runtime):
    path = tmp_path / "made.safetensors"
    made = weights.write(path, random_network(), card())
    beside = path.with_suffix(".json")

    def refused(match, **changes):
        beside.write_text(weights.card_text(replace(made, **changes)))
        with pytest.raises(InputError, match=match):
            weights.load(str(path), runtime)

    refused("names the network 'Transformer'", network="Transformer")
    refused("does not describe a UNet", arguments={**SMALL, "depth": 3})
    refused("does not fit the network of its card", arguments={**SMALL, "tail": [8]})
    refused("does not fit the network of its card", arguments={**SMALL, "tail": [4, 4]})
    refused("scaling 'log'", scaling="log")
    beside.write_text("[1, 2]")
    with pytest.raises(InputError, match="is no card of weights"):
        weights.load(str(path), runtime)
    beside.unlink()
    with pytest.raises(InputError, match="made.json must stand beside it"):
        weights.load(str(path), runtime)
    path.write_bytes(b"no tensors")
    beside.write_text(weights.card_text(replace(made, sha256="")))
    with pytest.raises(InputError, match="is no .safetensors file"):
        weights.load(str(path), runtime)
    with pytest.raises(InputError, match="written as .safetensors"):
        weights.write(tmp_path / "made.pt", random_network(), card())


def test_the_package_is_asked_for_where_it_is_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(InputError, match="pip install safetensors"):
        weights.write(tmp_path / "made.safetensors", random_network(), card())
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match="pip install h5py"):
        foreign.from_keras(b"", "x.h5")
    monkeypatch.setitem(sys.modules, "unigradicon", None)
    with pytest.raises(InputError, match="pip install unigradicon"):
        foreign.unigradicon_network({}, (8, 8, 8), "x.trch")


def test_cards_of_what_is_shipped_and_published():
    known = weights.cards()
    assert {"voxelmorph2018-brain3d-cc", "unigradicon", "multigradicon"} <= set(known)
    for name, each in known.items():
        assert (weights.MODELS / f"{name}.json").is_file() and each.licence and each.trained_on and each.size > 0
        here = weights.MODELS / each.file
        if each.file.startswith("https://"):
            assert each.size / 1e6 < 500 and each.line().endswith(f"({each.size / 1e6:.1f} MB; {each.licence})")
        else:
            assert hashlib.sha256(here.read_bytes()).hexdigest() == each.sha256 and here.stat().st_size == each.size <= 30e6


# ------------------------------------------------------------------------------------------------------ names and fetching


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A published file: its card in a folder of models, and an address that gives it and counts how often it is asked."""
    folder = tmp_path / "models"
    made = weights.write(tmp_path / "source" / "net.safetensors", random_network(), card())
    there = replace(made, file="https://example.org/net.safetensors")
    folder.mkdir()
    (folder / "net.json").write_text(weights.card_text(there))
    asked = []

    def urlopen(address, timeout):
        asked.append(address)
        return io.BytesIO((tmp_path / "source" / "net.safetensors").read_bytes())

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return folder, there, asked


def test_nothing_is_fetched_without_being_asked(published, runtime):
    folder, there, asked = published
    with pytest.raises(InputError, match=r"a small network \(0\.0 MB; Apache-2\.0\); they are at https://example.org/net.safetensors"):
        weights.load("net", runtime, folder)
    with pytest.raises(InputError, match="agree to that first"):
        weights.fetch(there, runtime)
    assert asked == []
    path = weights.fetch(there, runtime, agreed=True)
    assert weights.fetch(there, runtime) == path and asked == [there.file], "what is there is not fetched again"
    assert weights.load("net", runtime, folder)[1].sha256 == there.sha256


def test_a_fetched_file_of_another_hash_leaves_nothing(published, runtime, monkeypatch):
    _, there, _ = published
    with pytest.raises(InputError, match="were changed or damaged"):
        weights.fetch(replace(there, sha256="0" * 64), runtime, agreed=True)
    for wrong in (replace(there, file="http://example.org/net.safetensors"), replace(there, sha256="")):
        with pytest.raises(InputError, match="no https address with a hash"):
            weights.fetch(wrong, runtime, agreed=True)

    def offline(address, timeout):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(InputError, match=r"cannot be fetched \(no route\)"):
        weights.fetch(there, runtime, agreed=True)
    assert [p for p in runtime.cache.rglob("*") if p.is_file()] == []


def test_an_unknown_name_says_what_is_known(published, runtime):
    with pytest.raises(InputError, match="neither a file nor known by that name; known are net"):
        weights.load("nett", runtime, published[0])


# ------------------------------------------------------------------------------------------------------- foreign layouts


def keras_layers(style: str, dim: int, velocity: bool = False):
    """[(name, class, configuration)] of a network with widths (4, 8), (8, (8, 8)), (4,) as VoxelMorph's Keras models have them."""
    layers, count = [("input_1", "InputLayer", {}), ("concatenate_1", "Concatenate", {})], iter(range(1, 99))

    def conv(width, stride=1, name=None):
        layers.append((name or f"conv{dim}d_{next(count)}", f"Conv{dim}D", {"filters": width, "strides": [stride] * dim}))
        layers.append((f"leaky_re_lu_{next(count)}", "LeakyReLU", {"alpha": 0.2}))

    def up():
        layers.extend([(f"up_sampling{dim}d_{next(count)}", f"UpSampling{dim}D", {"size": [2] * dim}), (f"concatenate_{next(count)}", "Concatenate", {})])

    for width in (4, 8):
        conv(width, 2 if style == "stride" else 1)
        if style == "pool":
            layers.append((f"max_pooling{dim}d_{next(count)}", f"MaxPooling{dim}D", {"pool_size": [2] * dim}))
    conv(8)
    up()
    conv(8)
    conv(8)
    up()
    conv(4)
    conv(dim, name="flow")
    layers.pop()
    return layers + ([("integrate", "VecInt", {"int_steps": 7})] if velocity else [])


def keras_file(path, layers, network: UNet):
    """A Keras 2 model file that holds the tensors of ``network`` (its axes in the order of nibabel's arrays)."""
    import h5py

    modules = iter([m for m in network.modules() if hasattr(m, "weight") and hasattr(m, "bias")])
    with h5py.File(path, "w") as file:
        described = [{"class_name": kind, "name": name, "config": {**config, "name": name}, "inbound_nodes": []} for name, kind, config in layers]
        file.attrs["model_config"] = json.dumps({"class_name": "Model", "config": {"layers": described}})
        top = file.create_group("model_weights")
        for name, kind, _ in layers:
            group = top.create_group(name)
            group.attrs["weight_names"] = np.array([], dtype="S1")
            if kind.startswith("Conv"):
                module = next(modules)
                group.attrs["weight_names"] = np.array([f"{name}_7/kernel:0", f"{name}_7/bias:0"], dtype="S")
                inner = group.create_group(f"{name}_7")
                inner["kernel:0"] = module.weight.detach().permute(*range(module.weight.ndim - 1, 1, -1), 1, 0).numpy()
                inner["bias:0"] = module.bias.detach().numpy()


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("style", ["stride", "pool"])
def test_keras_weights_of_both_styles(tmp_path, runtime, dim, style):
    pytest.importorskip("h5py")
    network = random_network(dim=dim, down=style, output="velocity")
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0, 0.2)
    path = tmp_path / "model.h5"
    keras_file(path, keras_layers(style, dim, velocity=True), network)
    found, made = weights.load(str(path), runtime)
    assert found.output == "velocity" and found.down == style and made.licence == "not stated"
    assert same(found, network, *(16, 8, 12)[:dim])


def test_keras_arrays_in_the_other_order(tmp_path):
    """Trained on arrays (row, column), the kernels stay and the flow's components are exchanged: the transposed problem."""
    pytest.importorskip("h5py")
    network = random_network()
    path = tmp_path / "model.h5"
    keras_file(path, keras_layers("stride", 2), network)
    arguments, state = foreign.from_keras(path.read_bytes(), "model.h5", "zyx")
    other = weights.fill(UNet(**arguments), state, "model.h5")
    fixed, moving = pair(16, 8)
    with torch.no_grad():
        assert torch.allclose(other(fixed.mT, moving.mT), network(fixed, moving).mT.flip(1), atol=1e-6)


def test_what_is_no_keras_model_of_voxelmorph_is_refused(tmp_path, runtime):
    pytest.importorskip("h5py")
    path = tmp_path / "model.h5"
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="is no Keras model file"):
        weights.load(str(path), runtime)
    layers = [layer for layer in keras_layers("stride", 2) if not layer[1].startswith("UpSampling")]
    keras_file(path, layers, random_network())
    with pytest.raises(InputError, match="2 halvings and 0 doublings"):
        weights.load(str(path), runtime)


class Block(torch.nn.Module):
    """A convolution under the names that the torch side of VoxelMorph gives it."""

    def __init__(self, dim, inputs, outputs):
        super().__init__()
        self.main = (torch.nn.Conv2d, torch.nn.Conv3d)[dim - 2](inputs, outputs, 3, 1, 1)

    def forward(self, x):
        return torch.nn.functional.leaky_relu(self.main(x), 0.2)


class Layout(torch.nn.Module):
    """A pooled U-Net with two levels and two convolutions a level under the names of VoxelMorph's torch checkpoints, run here by hand."""

    def __init__(self, dim, half):
        super().__init__()
        self.half, body = half, torch.nn.Module()
        body.encoder = self.levels(dim, [[(2, 4), (4, 4)], [(4, 8), (8, 8)]])
        body.decoder = self.levels(dim, [[(8, 8), (8, 8)], [(16, 8), (8, 8)]])
        body.remaining = torch.nn.ModuleList([Block(dim, 8 if half else 12, 4)])
        self.unet_model = body
        self.flow = (torch.nn.Conv2d, torch.nn.Conv3d)[dim - 2](4, dim, 3, 1, 1)

    @staticmethod
    def levels(dim, widths):
        return torch.nn.ModuleList([torch.nn.ModuleList([Block(dim, *w) for w in level]) for level in widths])

    def forward(self, source, target):
        x, kept = torch.cat([source, target], 1), []
        for level in self.unet_model.encoder:
            for block in level:
                x = block(x)
            kept.append(x)
            x = (torch.nn.functional.max_pool2d, torch.nn.functional.max_pool3d)[x.ndim - 4](x, 2)
        for k, level in enumerate(self.unet_model.decoder):
            for block in level:
                x = block(x)
            if not (self.half and k == 1):
                x = torch.cat([torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest"), kept.pop()], 1)
        return self.flow(self.unet_model.remaining[0](x))


@pytest.mark.parametrize("dim, half", [(2, False), (2, True), (3, False)])
def test_torch_checkpoints_of_voxelmorph(tmp_path, runtime, dim, half):
    torch.manual_seed(3)
    theirs = Layout(dim, half).eval()
    state = OrderedDict(theirs.state_dict(), **{"transformer.grid": torch.zeros(1, dim, *[8] * dim)})
    config = {"inshape": (16,) * dim, "int_steps": 7, "int_downsize": 2, "unet_half_res": half, "nb_unet_features": [[4, 4, 8, 8], [8, 8, 8, 8, 4]]}
    torch.save({"config": config, "model_state": state}, tmp_path / "vxm.pt")
    ours, made = weights.load(str(tmp_path / "vxm.pt"), runtime)
    assert ours.output == "velocity" and ours.half == half and made.arguments["encoder"] == [[4, 4], [8, 8]]
    fixed, moving = pair(*(16, 8, 12)[:dim])
    axes = (0, 1, *range(dim + 1, 1, -1))  # their arrays are (x, y, z), ours (z, y, x)
    with torch.no_grad():
        expected = theirs(moving.permute(*axes), fixed.permute(*axes)).permute(*axes)
        assert float(expected.abs().max()) > 1e-2 and torch.allclose(ours(fixed, moving), expected, atol=1e-5)


def test_a_checkpoint_that_could_run_code_is_not_loaded(tmp_path, runtime):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    torch.save({"model_state": {"flow.weight": torch.zeros(2, 4, 3, 3)}, "config": Harm()}, tmp_path / "vxm.pt")
    with pytest.raises(InputError, match="more than tensors and plain values"):
        weights.load(str(tmp_path / "vxm.pt"), runtime)
    assert not (tmp_path / "harm").exists()
    torch.save({"other": torch.zeros(1)}, tmp_path / "vxm.pt")
    with pytest.raises(InputError, match="holds no network of VoxelMorph"):
        weights.load(str(tmp_path / "vxm.pt"), runtime)
    (tmp_path / "vxm.onnx").write_bytes(b"")
    with pytest.raises(InputError, match="'.onnx' are not known"):
        weights.load(str(tmp_path / "vxm.onnx"), runtime)


# ------------------------------------------------------------------------------------------------------------ uniGradICON


class IconParts(torch.nn.Module):
    """A registration of the same call surface: (moving, fixed) -> a function of positions in shares of the lattice."""

    def __init__(self):
        super().__init__()
        self.netPhi, self.netPsi = (torch.nn.Conv3d(2, 3, 3, 1, 1) for _ in range(2))

    def forward(self, image_A, image_B):
        moved = self.netPhi(torch.cat([image_A, image_B], 1)) + self.netPsi(torch.cat([image_A, image_B], 1))
        return lambda places: places + 0.1 * moved


def test_checkpoints_of_unigradicon_through_its_package(tmp_path, runtime, monkeypatch):
    def make_network(input_shape, include_last_step=False):
        assert include_last_step and list(input_shape[:2]) == [1, 1]
        network = torch.nn.Module()
        network.regis_net = IconParts()
        axes = [torch.linspace(0, 1, n) for n in input_shape[2:]]
        network.register_buffer("identity_map", torch.stack(torch.meshgrid(*axes, indexing="ij"))[None], persistent=False)
        return network

    monkeypatch.setitem(sys.modules, "unigradicon", types.SimpleNamespace(make_network=make_network))
    torch.manual_seed(5)
    parts = IconParts()
    torch.save(parts.state_dict(), tmp_path / "Step_2_final.trch")
    held = weights.read_checkpoint((tmp_path / "Step_2_final.trch").read_bytes(), "x")
    network = foreign.unigradicon_network(held, (8, 10, 12), "x")
    fixed, moving = pair(8, 10, 12)
    with torch.no_grad():
        said = network(fixed, moving)
        shares = parts(moving, fixed)(torch.zeros(()))
    for component, (axis, n) in enumerate(((2, 12), (1, 10), (0, 8))):
        assert torch.allclose(said[:, component], shares[:, axis] * (n - 1), atol=1e-5)
    with pytest.raises(ValueError, match="this network sees"):
        network(fixed[:, :, :4], moving[:, :, :4])
    made = foreign.load_foreign(tmp_path / "Step_2_final.trch", (tmp_path / "Step_2_final.trch").read_bytes(), card(shape=(4, 4, 4)))
    assert isinstance(made[0], foreign.IconNetwork) and made[0].shape == (4, 4, 4)
    with pytest.raises(InputError, match="belongs to another version"):
        foreign.unigradicon_network({"netPhi.weight": torch.zeros(1)}, (4, 4, 4), "x")


def test_the_lattice_of_a_card_covers_the_image():
    from DeepRegistrationLib.engines.network_pair import network_grid

    grid = Grid.from_parts((20, 30, 40), (1.0, 1.1, 2.0))
    found = network_grid(grid, card(shape=(8, 10, 12)), 1)
    assert found.shape == (8, 10, 12) and np.allclose(found.extent, grid.extent)
