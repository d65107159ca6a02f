"""16-bit arithmetic inside a network, single precision around it: the terms and the transforms never see a half. Micikevicius et al., ICLR 2018."""

from __future__ import annotations

import dataclasses

import torch


def wanted(half: bool, device: torch.device) -> bool:
    """True where 16-bit arithmetic is asked for and the device gains by it."""
    return half and device.type == "cuda"


class Half(torch.nn.Module):
    """``network`` with its convolutions and products in 16 bits; what it says is in single precision again.

    Everything else that is asked of it is asked of ``network``, a part of that which is called ``network`` too.
    """

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self._single = network

    def forward(self, *images, **settings):
        with torch.autocast(next(self._single.parameters()).device.type, torch.float16):
            return single(self._single(*images, **settings))

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("_single"), name)


def single(value):
    """Tensors of 16 bits in 32, in lists, tuples, dicts and dataclasses too."""
    if torch.is_tensor(value):
        return value.float() if value.dtype == torch.float16 else value
    if isinstance(value, (list, tuple)):
        return type(value)(single(each) for each in value)
    if isinstance(value, dict):
        return {key: single(each) for key, each in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{f.name: single(getattr(value, f.name)) for f in dataclasses.fields(value)})
    return value
