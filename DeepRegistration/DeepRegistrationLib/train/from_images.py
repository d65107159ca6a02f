"""What the recipes share that make a network from the user's own images: their settings, the pairs they draw and hold back, and the card.

A recipe adds its network and its objective: U-Nets (``recipes/unet.py``) and GradICON (``recipes/gradicon.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..networks.weights import WeightsCard
from ..parameters import parameter
from ..problem import Pair
from . import unet
from .augment import Augmentation, augmented
from .data import Data
from .loop import TrainingSettings
from .recipe import Recipe, Request

HELD_OUT, LABELS = 8, 8
"""Pairs of each of validation and test at most; labels that one pair is scored by while training."""


@dataclass(frozen=True)
class FromImages(Recipe):
    similarity: str = parameter("lncc", "Similarity", "What makes two images alike.", choices=unet.SIMILARITIES, advanced=False)
    augment: bool = parameter(True, "Augmentation", "Change pose, shape, brightness and sharpness of the images at random.", advanced=False)
    width: int = parameter(16, "Width", "Channels at the finest level; the others have twice as many.", minimum=2, maximum=128)
    window: float = parameter(4.0, "Window", "Radius of the windows of lncc.", unit="mm", minimum=0.1)
    noise: float = parameter(0.1, "Noise", "Deviation of the noise as a share of the range, for mse.", minimum=1e-3, maximum=1.0)
    rate: float = parameter(1e-3, "Rate", "First step length.", minimum=1e-7, maximum=1.0)
    pairs: int = parameter(1, "Pairs a step", "Pairs whose gradients are averaged.", minimum=1, maximum=256)
    validate: int = parameter(100, "Validate every", "How often the network is judged.", unit="steps", minimum=1)
    patience: int = parameter(0, "Patience", "Validations without a gain after which training ends; 0 for never.", minimum=0)
    half: bool = parameter(True, "16-bit arithmetic", "Inside the network, where a GPU is used.")

    def settings(self, request: Request) -> TrainingSettings:
        """How the loop trains."""
        return TrainingSettings(steps=request.steps or 2000, rate=self.rate, pairs=self.pairs, validate=self.validate, patience=self.patience,
                                half=self.half)

    def drawing(self, data: Data, labelled: bool = False):
        """generator -> pair of the training split, augmented; with a few of its labels where they are learned from."""
        settings = Augmentation()

        def draw(generator):
            pair = data.draw(generator)
            pair = few_labels(pair, LABELS, generator) if labelled else replace(pair, fixed_labels=None, moving_labels=None)
            changed = augmented(pair, settings, generator) if self.augment else pair
            lost = labelled and not (bool(changed.fixed_labels.data.any()) and bool(changed.moving_labels.data.any()))
            return pair if lost else changed

        return draw


def held_out(data: Data, name: str):
    """What gives the pairs of the split ``name`` when it is called; None where the split is empty."""
    return (lambda: data.some(name, HELD_OUT)) if len(data.indices[name]) else None


def card_of(data: Data, name: str, network: str, arguments: dict, training: str) -> WeightsCard:
    """The card of the weights: what a ``network`` (class) with ``arguments`` has seen; ``name`` of the kind, ``training`` in words."""
    grid, count = data.lattice.grid, len(data.indices["train"].members)
    return WeightsCard("", f"{name} from {count} images, {grid.dim}D", "", "", 0, "that of the images", f"{count} images of the user", network, arguments,
                       spacing=tuple(round(float(s), 4) for s in grid.spacing), orientation="LPS" if grid.dim == 3 else "", scaling="robust",
                       training=training)


def few_labels(pair: Pair, count: int, generator: torch.Generator) -> Pair:
    """The pair with at most ``count`` of the labels that both maps hold, drawn by ``generator``: each costs memory of its own."""
    both = sorted(set(pair.fixed_labels.values()) & set(pair.moving_labels.values()))
    if len(both) <= count:
        return pair
    kept = torch.tensor([both[k] for k in torch.randperm(len(both), generator=generator)[:count].tolist()])
    few = {side: replace(maps, data=torch.where(torch.isin(maps.data, kept.to(maps.data.dtype)), maps.data, 0))
           for side, maps in (("fixed_labels", pair.fixed_labels), ("moving_labels", pair.moving_labels))}
    return replace(pair, **few)
