"""The state of a training run on disk: what it takes to go on and end with the same numbers."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..errors import InputError
from . import processes

CHECKPOINT, BEST = "checkpoint.pt", "best.pt"
FREE = ("checkpoint", "patience", "validate")
"""Settings that may differ from those of the checkpoint: the numbers of the updates do not depend on them."""


@dataclass(eq=False)
class State:
    """updates done, the best score so far and its step, whether training has ended before its last step, the update after which the network was
    last looked at."""

    step: int = 0
    best: float = -math.inf
    best_step: int = 0
    ended: bool = False
    looked: int = 0


def save(path: Path, network, adam, scaler, settings, state: State, seed: int) -> None:
    """Write a checkpoint: under another name first, so that a stop in the middle leaves the old one."""
    write({"network": network.state_dict(), "adam": adam.state_dict(), "scaler": scaler.state_dict(), "settings": asdict(settings),
           "state": asdict(state), "seed": seed, "processes": processes.world()}, path)


def write(content: dict, path: Path) -> None:
    """Tensors and plain values as a file that ``torch.load`` reads with ``weights_only``."""
    temporary = path.with_suffix(".part")
    torch.save(content, temporary)
    os.replace(temporary, path)


def load(path: Path, network, adam, scaler, settings, seed: int) -> State:
    """Fill network, optimiser and scaler from a checkpoint where there is one. InputError where it is of another run or cannot be read."""
    if not path.exists():
        return State()
    held = _read(path)
    changed = [k for k, v in asdict(settings).items() if held["settings"].get(k, v) != v and k not in FREE]
    changed += [k for k, v in (("seed", seed), ("processes", processes.world())) if held.get(k, v) != v]
    if changed:
        raise InputError(f"{path} was made with other settings ({', '.join(changed)}); take the same, or another folder")
    try:
        network.load_state_dict(held["network"])
    except RuntimeError:
        raise InputError(f"{path} belongs to another network; give another folder") from None
    adam.load_state_dict(held["adam"])
    if held.get("scaler"):
        scaler.load_state_dict(held["scaler"])
    return State(**{"looked": held["state"]["step"], **held["state"]})


def initialise(network: torch.nn.Module, path: Path) -> None:
    """Give ``network`` the parameters in a .pt file of a training run. InputError where it does not fit."""
    try:
        network.load_state_dict(_read(path)["network"])
    except RuntimeError:
        raise InputError(f"{path} belongs to another network; give weights of this recipe and dimension") from None


def _read(path: Path) -> dict:
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise InputError(f"{path} cannot be read as a checkpoint ({str(error).splitlines()[0][:120]}); remove it or give another folder") from None
    if not isinstance(held, dict) or "network" not in held:
        raise InputError(f"{path} is no checkpoint of a training run; give another file or folder")
    return held
