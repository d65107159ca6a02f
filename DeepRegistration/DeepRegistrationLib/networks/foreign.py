"""Weights of other projects in networks of this one: VoxelMorph (Keras and torch) and uniGradICON.

VoxelMorph's arrays are read as nibabel gives them, so their first axis is x of the file, while tensors here are (z, y, x): kernels are
transposed, and then the components of the flow, which follow the axes of the array, are (x, y, z) as they should be. Files trained on arrays
in the order (row, column) or (z, y, x), as pictures and SimpleITK give them, keep their kernels and have their components reversed
(``order`` 'zyx'). Strided and pooled networks, half resolution, several convolutions a level and velocities are read from the file's own
description of the network. The nearest-neighbour doubling and the zero padding are the same; VoxelMorph's resizing of velocities between
lattices is not: it puts corners on corners, half a voxel off from a resampling of the field of view. Layouts: github.com/voxelmorph/voxelmorph
(Apache-2.0), github.com/uncbiag/uniGradICON (Apache-2.0); both are read, nothing of theirs is contained here.
"""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from .unet import UNet
from .weights import WeightsCard, fill, read_checkpoint

KERAS, TORCH = (".h5", ".hdf5"), (".pt", ".pth", ".trch", ".trach")
NEEDS_H5PY = "reading Keras weights (.h5) needs the package h5py; install it with: pip install h5py"
NEEDS_UNIGRADICON = "these weights belong to the package unigradicon, which is not installed; install it with: pip install unigradicon"
DEFAULT = ((16, 32, 32, 32), (32, 32, 32, 32), (32, 16, 16))
"""Widths of VoxelMorph's torch network where a checkpoint states none: encoder, decoder, tail."""


def load_foreign(path: Path, data: bytes, card: WeightsCard | None = None) -> tuple[torch.nn.Module, WeightsCard]:
    """(network, card) of the bytes of a foreign file; without a card one is made that says that nothing is known of the training.

    InputError for a format that is not known, a missing package, and a network that cannot be rebuilt here.
    """
    if path.suffix in KERAS:
        arguments, state = from_keras(data, path.name)
    elif path.suffix in TORCH:
        held = read_checkpoint(data, path.name)
        if _is_icon(held):
            card = card or unknown(path, "unigradicon", {}, shape=(175, 175, 175))
            return unigradicon_network(held, card.shape, path.name), card
        arguments, state = from_voxelmorph_torch(held, path.name)
    else:
        raise InputError(f"weights of the kind '{path.suffix}' are not known; .safetensors, {', '.join(KERAS + TORCH)} are")
    card = card or unknown(path, "UNet", arguments)
    return fill(UNet(**arguments), state, path.name), replace(card, network="UNet", arguments=arguments)


def unknown(path: Path, network: str, arguments: dict, shape=()) -> WeightsCard:
    """A card for a file that has none."""
    return WeightsCard(path.stem, path.stem, path.name, "", 0, "not stated", "not stated", network, arguments, shape=shape)


# ------------------------------------------------------------------------------------------------------------------ Keras


def from_keras(data: bytes, name: str, order: str = "xyz") -> tuple[dict, dict]:
    """(arguments of ``UNet``, its state) of a Keras 2 model file of VoxelMorph. ``order`` of the axes of its arrays: 'xyz' or 'zyx'."""
    try:
        import h5py
    except ImportError:
        raise InputError(NEEDS_H5PY) from None
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            text = file.attrs["model_config"]
            layers = json.loads(text if isinstance(text, str) else text.decode())["config"]["layers"]
            kernels = {name: _kernel(group) for name, group in file["model_weights"].items() if len(group.attrs["weight_names"])}
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{name} is no Keras model file with a description of its network ({str(error)[:60]})") from None
    steps = [(layer["class_name"], layer["config"]) for layer in layers]
    arguments, convolutions = _read_layers(steps, name)
    state = {}
    for (key, module), layer in zip(_convolutions(UNet(**arguments)), convolutions):
        kernel, bias = kernels[layer]
        state[f"{key}.weight"] = _oriented(torch.from_numpy(np.moveaxis(kernel, (-1, -2), (0, 1)).copy()), order)
        state[f"{key}.bias"] = torch.from_numpy(bias.copy())
    return arguments, _flow(state, order)


def _kernel(group):
    """(kernel (taps..., inputs, outputs), bias (outputs,)) of a layer's group."""
    names = [n.decode() if isinstance(n, bytes) else n for n in group.attrs["weight_names"]]
    values = {n.rsplit("/", 1)[-1].split(":")[0]: np.asarray(group[n], dtype=np.float32) for n in names}
    return values["kernel"], values["bias"]


def _read_layers(steps, name):
    """(arguments of ``UNet``, names of the convolutions in their order) from (class, configuration) of Keras layers.

    Before the first doubling a level ends with a stride or a pooling, after it every doubling ends one; what follows the last doubling is
    the tail and the flow. A velocity is told by the layer that integrates it.
    """
    blocks, convolutions, down, seen_up, halvings, doublings = [[]], [], "stride", False, 0, 0
    for kind, config in steps:
        if kind.startswith("Conv"):
            if max(config["strides"]) > 1:
                halvings += 1
                blocks += [[]] if blocks != [[]] else []
            blocks[-1].append(config["filters"])
            convolutions.append(config["name"])
        elif kind.startswith("MaxPooling"):
            down, halvings = "pool", halvings + 1
            blocks.append([])
        elif kind.startswith("UpSampling"):
            doublings += 1
            if not seen_up and down == "stride":  # the last level of the encoder and the first of the decoder follow each other
                blocks.insert(len(blocks) - 1, [blocks[-1].pop(0)])
            seen_up = True
            blocks.append([])
    if not (halvings and halvings - doublings in (0, 1) and len(blocks) == 2 * halvings + 1 - (halvings - doublings) and len(blocks[-1]) > 0):
        raise InputError(f"{name} describes a network with {halvings} halvings and {doublings} doublings, which is no U-Net of VoxelMorph")
    dim = int(steps[[kind.startswith("Conv") for kind, _ in steps].index(True)][0][4])
    half = doublings < halvings
    *levels, tail = blocks
    encoder, decoder = levels[:halvings], levels[halvings:]
    if half:  # without its last doubling the last level of the decoder runs on into the tail
        decoder, tail = decoder + [tail[:1]], tail[1:]
    output = "velocity" if any(kind == "VecInt" for kind, _ in steps) else "displacement"
    return {"dim": dim, "encoder": encoder, "decoder": decoder, "tail": tail[:-1], "output": output, "down": down, "half": half}, convolutions


def _convolutions(network: UNet):
    """(key, module) of the convolutions in the order in which they run."""
    return [(key, module) for key, module in network.named_modules() if hasattr(module, "weight") and hasattr(module, "bias")]


def _oriented(kernel: torch.Tensor, order: str) -> torch.Tensor:
    """(outputs, inputs, taps along the axes of the array) -> taps along (z, y, x)."""
    return kernel.permute(0, 1, *range(kernel.ndim - 1, 1, -1)).contiguous() if order == "xyz" else kernel


def _flow(state, order):
    """The components of the flow as (x, y, z); they follow the axes of the array."""
    if order != "xyz":
        state = {**state, **{key: state[key].flip(0) for key in ("flow.weight", "flow.bias")}}
    return state


# ------------------------------------------------------------------------------------------------------ VoxelMorph in torch


def from_voxelmorph_torch(held: dict, name: str, order: str = "xyz") -> tuple[dict, dict]:
    """(arguments of ``UNet``, its state) of a checkpoint {'config', 'model_state'} as the torch side of ``voxelmorph`` saves it.

    A checkpoint of tensors alone is taken to have the default widths. InputError where its tensors do not fit what it says.
    """
    config, tensors = (held.get("config", {}), held["model_state"]) if "model_state" in held else ({}, held)
    kernels = {key: value for key, value in tensors.items() if key.endswith("main.weight") or key == "flow.weight"}
    if "flow.weight" not in kernels:
        raise InputError(f"{name} holds no network of VoxelMorph: there is no tensor flow.weight")
    dim = kernels["flow.weight"].ndim - 2
    parts = {part: _widths(kernels, part) for part in ("encoder", "decoder", "remaining")}
    velocity, reduced = int(config.get("int_steps", 7)) > 0, int(config.get("int_downsize", 2))
    arguments = {"dim": dim, "encoder": parts["encoder"], "decoder": parts["decoder"], "tail": [w for level in parts["remaining"] for w in level],
                 "output": "velocity" if velocity else "displacement", "down": "pool", "half": bool(config.get("unet_half_res", False))}
    if arguments["half"] and not (velocity and reduced == 2):
        raise InputError(f"{name} has half resolution without a velocity at half resolution, which cannot be rebuilt here")
    try:
        modules = _convolutions(UNet(**arguments))
    except ValueError as error:
        raise InputError(f"{name} describes no U-Net of VoxelMorph: {error}") from None
    state = {}
    for (key, _), source in zip(modules, _running_order(kernels)):
        state[f"{key}.weight"] = _oriented(kernels[source], order)
        state[f"{key}.bias"] = tensors[source.removesuffix("weight") + "bias"]
    return arguments, _flow(state, order)


def _running_order(kernels):
    """Names of the kernels: encoder, decoder, remaining, flow, each by level and convolution."""
    rank = {"encoder": 0, "decoder": 1, "remaining": 2, "flow": 3}

    def place(key):
        words = key.removeprefix("unet_model.").split(".")
        return (rank.get(words[0], 9), *(int(w) for w in words if w.isdigit()))

    return sorted(kernels, key=place)


def _widths(kernels, part):
    """[[widths of a level], ...] of the encoder, the decoder or the remaining convolutions, from the shapes of their kernels."""
    levels: dict[int, list[int]] = {}
    for key in _running_order(kernels):
        words = key.removeprefix("unet_model.").split(".")
        if words[0] == part:
            levels.setdefault(int(words[1]), []).append(int(kernels[key].shape[0]))
    return [levels[k] for k in sorted(levels)]


# ------------------------------------------------------------------------------------------------------------- uniGradICON


class IconNetwork(torch.nn.Module):
    """A network of ``icon_registration`` as the networks here are called: (fixed, moving) (B, 1, *S) -> displacement (B, dim, *S) in voxels.

    Its map sends positions of the fixed lattice, in shares of the way from the first to the last voxel and in the order of the axes, to
    positions of the moving one.
    """

    def __init__(self, network: torch.nn.Module, shape):
        super().__init__()
        self.network, self.shape, self.dim, self.output = network, tuple(shape), len(shape), "displacement"

    @property
    def multiple(self) -> int:
        return 1

    def forward(self, fixed, moving):
        if tuple(fixed.shape[2:]) != self.shape:
            raise ValueError(f"images of {tuple(fixed.shape[2:])} voxels; this network sees {self.shape}")
        places = self.network.identity_map.to(fixed)
        shares = self.network.regis_net(moving, fixed)(places) - places
        voxels = torch.tensor([n - 1.0 for n in self.shape], dtype=fixed.dtype, device=fixed.device)
        return (shares * voxels.reshape(1, -1, *[1] * self.dim)).flip(1).expand(fixed.shape[0], -1, *self.shape)


def unigradicon_network(state: dict, shape, name: str) -> IconNetwork:
    """The network of the package ``unigradicon`` with the tensors of a checkpoint of uniGradICON or multiGradICON.

    InputError where the package is not installed and where the checkpoint is not of that network.
    """
    try:
        import unigradicon
    except ImportError:
        raise InputError(NEEDS_UNIGRADICON) from None
    network = unigradicon.make_network([1, 1, *shape], include_last_step=True)
    try:
        network.regis_net.load_state_dict(state)
    except RuntimeError:
        raise InputError(f"{name} does not fit the network of the installed package unigradicon; it belongs to another version") from None
    return IconNetwork(network.eval().requires_grad_(False), shape)


def _is_icon(held) -> bool:
    """True for the names that ``icon_registration`` gives to the parts of a composed registration."""
    return isinstance(held, dict) and any(key.startswith(("netPhi.", "netPsi.")) for key in held)
