"""A U-Net for one kind of images, from the user's own: VoxelMorph's objectives (``train.unet``) on augmented pairs of a cohort."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ...networks.heads import OUTPUTS
from ...networks.unet import UNet
from ...networks.weights import WeightsCard
from ...parameters import parameter
from ...problem import Pair
from .. import unet
from ..augment import Augmentation, augmented
from ..data import Data
from ..loop import TrainingSettings
from ..recipe import Plan, Recipe, RecipeCard, Request, recipe

HELD_OUT, LABELS = 8, 8
"""Pairs of each of validation and test at most; labels that one pair is scored by while training."""


@recipe(RecipeCard(
    title="U-Net from images",
    summary="A network for images like those in a folder or a list; label maps beside them help it and judge it",
    needs_data=True,
    method="voxelmorph-unet"))
@dataclass(frozen=True)
class UNetFromImages(Recipe):
    output: str = parameter("velocity", "Deformation", "What the network says; a velocity gives maps that hardly fold.", choices=OUTPUTS, advanced=False)
    similarity: str = parameter("lncc", "Similarity", "What makes two images alike.", choices=unet.SIMILARITIES, advanced=False)
    weight: float = parameter(1.0, "Smoothness", "Weight of the smoothness of the deformation.", minimum=0.0, advanced=False)
    label_weight: float = parameter(1.0, "Weight of labels", "Weight of the overlap of label maps where every image has one.", minimum=0.0, advanced=False)
    augment: bool = parameter(True, "Augmentation", "Change pose, shape, brightness and sharpness of the images at random.", advanced=False)
    width: int = parameter(16, "Width", "Channels at the finest level; the others have twice as many.", minimum=2, maximum=128)
    levels: int = parameter(4, "Levels", "How often the network halves its images.", minimum=1, maximum=6)
    window: float = parameter(4.0, "Window", "Radius of the windows of lncc.", unit="mm", minimum=0.1)
    noise: float = parameter(0.1, "Noise", "Deviation of the noise as a share of the range, for mse.", minimum=1e-3, maximum=1.0)
    rate: float = parameter(1e-3, "Rate", "First step length.", minimum=1e-7, maximum=1.0)
    pairs: int = parameter(1, "Pairs a step", "Pairs whose gradients are averaged.", minimum=1, maximum=256)
    validate: int = parameter(100, "Validate every", "How often the network is judged.", unit="steps", minimum=1)
    patience: int = parameter(0, "Patience", "Validations without a gain after which training ends; 0 for never.", minimum=0)
    half: bool = parameter(True, "16-bit arithmetic", "Inside the network, where a GPU is used.")

    def plan(self, request: Request) -> Plan:
        data = request.data
        labelled = self.label_weight > 0 and all(data.scans.scans[k].labels is not None for k in data.indices["train"].members)
        weights = unet.UNetRecipe(self.similarity, self.weight, self.label_weight * labelled, self.window, self.noise)
        arguments = {"dim": request.dim, "encoder": [self.width] + [2 * self.width] * (self.levels - 1),
                     "decoder": [2 * self.width] * self.levels, "tail": [self.width, self.width], "output": self.output}
        settings = TrainingSettings(steps=request.steps or 2000, rate=self.rate, pairs=self.pairs, validate=self.validate, patience=self.patience,
                                    half=self.half)
        held = {name: (lambda name=name: data.some(name, HELD_OUT)) if len(data.indices[name]) else None for name in ("validation", "test")}
        return Plan(UNet(**arguments), unet.view, unet.objective(weights, self.output), self.drawing(data, labelled), settings,
                    self.described(data, arguments, settings, request), held["validation"], held["test"])

    @property
    def multiple(self) -> int:
        """Sides of the lattice have to be divisible by this."""
        return 2**self.levels

    def drawing(self, data: Data, labelled: bool):
        """generator -> pair of the training split, augmented, with a few of its labels where they are learned from."""
        settings = Augmentation()

        def draw(generator):
            pair = data.draw(generator)
            pair = few_labels(pair, LABELS, generator) if labelled else replace(pair, fixed_labels=None, moving_labels=None)
            changed = augmented(pair, settings, generator) if self.augment else pair
            lost = labelled and not (bool(changed.fixed_labels.data.any()) and bool(changed.moving_labels.data.any()))
            return pair if lost else changed

        return draw

    def described(self, data: Data, arguments: dict, settings, request: Request) -> WeightsCard:
        """The card of the weights: what the network has seen."""
        grid, count = data.lattice.grid, len(data.indices["train"].members)
        return WeightsCard("", f"U-Net from {count} images, {grid.dim}D", "", "", 0, "that of the images", f"{count} images of the user", "UNet", arguments,
                           spacing=tuple(round(float(s), 4) for s in grid.spacing), orientation="LPS" if grid.dim == 3 else "", scaling="robust",
                           training=f"recipe unet, {settings.steps} steps of {settings.pairs} pairs, seed {request.seed}")


def few_labels(pair: Pair, count: int, generator: torch.Generator) -> Pair:
    """The pair with at most ``count`` of the labels that both maps hold, drawn by ``generator``: each costs memory of its own."""
    both = sorted(set(pair.fixed_labels.values()) & set(pair.moving_labels.values()))
    if len(both) <= count:
        return pair
    kept = torch.tensor([both[k] for k in torch.randperm(len(both), generator=generator)[:count].tolist()])
    few = {side: replace(maps, data=torch.where(torch.isin(maps.data, kept.to(maps.data.dtype)), maps.data, 0))
           for side, maps in (("fixed_labels", pair.fixed_labels), ("moving_labels", pair.moving_labels))}
    return replace(pair, **few)
