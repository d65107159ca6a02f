"""Networks of several resolutions tied by the gradient of inverse consistency, from the user's own images: GradICON.

    E_pair [ S(A, B o T) + S(B, A o R) + weight (|d (R o T - id)|^2 + |d (T o R - id)|^2) ] / 2,   T = network(A, B),  R = network(B, A)

The coarser resolutions are trained first, each in a folder of its own (``train.resolutions``), the last one on the full images. Tian, Greer
et al., CVPR 2023. Method 'gradicon' uses the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ...networks.composition import MultiResolution
from ...networks.weights import WeightsCard
from ...parameters import parameter
from ...runtime import Runtime
from ...terms import GradientInverseConsistency
from .. import unet
from ..augment import Augmentation, augmented
from ..data import Data
from ..loop import TrainingSettings
from ..recipe import Plan, Recipe, RecipeCard, Request, recipe
from ..resolutions import both_ways, train_by_resolution

HELD_OUT = 8
"""Pairs of each of validation and test at most."""


@recipe(RecipeCard(
    title="GradICON from images",
    summary="A network of several resolutions whose two directions undo each other, for images like those in a folder or a list",
    needs_data=True,
    method="gradicon"))
@dataclass(frozen=True)
class GradICONFromImages(Recipe):
    similarity: str = parameter("lncc", "Similarity", "What makes two images alike.", choices=unet.SIMILARITIES, advanced=False)
    weight: float = parameter(1.5, "Consistency", "Weight of the gradient of inverse consistency.", minimum=0.0, advanced=False)
    resolutions: int = parameter(3, "Resolutions", "Networks, each at twice the resolution of the one before.", minimum=1, maximum=5, advanced=False)
    augment: bool = parameter(True, "Augmentation", "Change pose, shape, brightness and sharpness of the images at random.", advanced=False)
    coarse: int = parameter(1000, "Coarse steps", "Updates of each coarser resolution before the last one.", unit="steps", minimum=1)
    width: int = parameter(16, "Width", "Channels at the finest level of each network; the others have twice as many.", minimum=2, maximum=128)
    levels: int = parameter(3, "Levels", "How often each network halves its images.", minimum=1, maximum=6)
    window: float = parameter(4.0, "Window", "Radius of the windows of lncc.", unit="mm", minimum=0.1)
    noise: float = parameter(0.1, "Noise", "Deviation of the noise as a share of the range, for mse.", minimum=1e-3, maximum=1.0)
    rate: float = parameter(1e-3, "Rate", "First step length.", minimum=1e-7, maximum=1.0)
    pairs: int = parameter(1, "Pairs a step", "Pairs whose gradients are averaged.", minimum=1, maximum=256)
    validate: int = parameter(100, "Validate every", "How often the network is judged.", unit="steps", minimum=1)
    patience: int = parameter(0, "Patience", "Validations without a gain after which training ends; 0 for never.", minimum=0)
    half: bool = parameter(True, "16-bit arithmetic", "Inside the network, where a GPU is used.")

    def plan(self, request: Request) -> Plan:
        data = request.data
        arguments = {"dim": request.dim, "resolutions": self.resolutions, "encoder": [self.width] + [2 * self.width] * (self.levels - 1),
                     "decoder": [2 * self.width] * self.levels, "tail": [self.width]}
        settings = TrainingSettings(steps=request.steps or 2000, rate=self.rate, pairs=self.pairs, validate=self.validate, patience=self.patience,
                                    half=self.half)
        objective = unet.objective(unet.UNetRecipe(self.similarity, 0.0, 0.0, self.window, self.noise)) + self.weight * GradientInverseConsistency()
        held = {name: (lambda name=name: data.some(name, HELD_OUT)) if len(data.indices[name]) else None for name in ("validation", "test")}
        network, draw = MultiResolution(**arguments), self.drawing(data)

        def prepare(folder: Path, runtime: Runtime) -> None:
            """Train the coarser resolutions."""
            train_by_resolution(network, objective, draw, (replace(settings, steps=self.coarse, patience=0),) * (self.resolutions - 1), folder, runtime)

        return Plan(network, both_ways, objective, draw, settings, self.described(data, arguments, settings, request), held["validation"],
                    held["test"], prepare=prepare if self.resolutions > 1 else None)

    @property
    def multiple(self) -> int:
        """Sides of the lattice have to be divisible by this."""
        return 2 ** (self.levels + self.resolutions - 1)

    def drawing(self, data: Data):
        """generator -> pair of the training split without labels, augmented."""
        settings = Augmentation()

        def draw(generator):
            pair = replace(data.draw(generator), fixed_labels=None, moving_labels=None)
            return augmented(pair, settings, generator) if self.augment else pair

        return draw

    def described(self, data: Data, arguments: dict, settings, request: Request) -> WeightsCard:
        """The card of the weights: what the network has seen."""
        grid, count = data.lattice.grid, len(data.indices["train"].members)
        steps = " + ".join([str(self.coarse)] * (self.resolutions - 1) + [str(settings.steps)])
        return WeightsCard("", f"GradICON from {count} images, {grid.dim}D", "", "", 0, "that of the images", f"{count} images of the user",
                           "MultiResolution", arguments, spacing=tuple(round(float(s), 4) for s in grid.spacing),
                           orientation="LPS" if grid.dim == 3 else "", scaling="robust",
                           training=f"recipe gradicon, {steps} steps of {settings.pairs} pairs, seed {request.seed}")
