"""Networks of several resolutions tied by the gradient of inverse consistency, from the user's own images: GradICON.

    E_pair [ S(A, B o T) + S(B, A o R) + weight (|d (R o T - id)|^2 + |d (T o R - id)|^2) ] / 2,   T = network(A, B),  R = network(B, A)

The coarser resolutions are trained first, each in a folder of its own (``train.resolutions``), the last one on the full images. Tian, Greer
et al., CVPR 2023. Method 'gradicon' uses the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ...networks.composition import MultiResolution
from ...parameters import parameter
from ...runtime import Runtime
from ...terms import GradientInverseConsistency
from .. import unet
from ..from_images import FromImages, card_of, held_out
from ..recipe import Plan, RecipeCard, Request, recipe
from ..resolutions import both_ways, train_by_resolution


@recipe(RecipeCard(
    title="GradICON from images",
    summary="A network of several resolutions whose two directions undo each other, for images like those in a folder or a list",
    needs_data=True,
    method="gradicon"))
@dataclass(frozen=True)
class GradICONFromImages(FromImages):
    weight: float = parameter(1.5, "Consistency", "Weight of the gradient of inverse consistency.", minimum=0.0, advanced=False)
    resolutions: int = parameter(3, "Resolutions", "Networks, each at twice the resolution of the one before.", minimum=1, maximum=5, advanced=False)
    coarse: int = parameter(1000, "Coarse steps", "Updates of each coarser resolution before the last one.", unit="steps", minimum=1)
    levels: int = parameter(3, "Levels", "How often each network halves its images.", minimum=1, maximum=6)

    def plan(self, request: Request) -> Plan:
        data, settings = request.data, self.settings(request)
        arguments = {"dim": request.dim, "resolutions": self.resolutions, "encoder": [self.width] + [2 * self.width] * (self.levels - 1),
                     "decoder": [2 * self.width] * self.levels, "tail": [self.width]}
        objective = unet.objective(unet.UNetRecipe(self.similarity, 0.0, 0.0, self.window, self.noise)) + self.weight * GradientInverseConsistency()
        network, draw = MultiResolution(**arguments), self.drawing(data)

        def prepare(folder: Path, runtime: Runtime) -> None:
            """Train the coarser resolutions."""
            train_by_resolution(network, objective, draw, (replace(settings, steps=self.coarse, patience=0),) * (self.resolutions - 1), folder, runtime)

        steps = " + ".join([str(self.coarse)] * (self.resolutions - 1) + [str(settings.steps)])
        card = card_of(data, "GradICON", "MultiResolution", arguments, f"recipe gradicon, {steps} steps of {settings.pairs} pairs, seed {request.seed}")
        return Plan(network, both_ways, objective, draw, settings, card, held_out(data, "validation"), held_out(data, "test"),
                    prepare=prepare if self.resolutions > 1 else None)

    @property
    def multiple(self) -> int:
        """Sides of the lattice have to be divisible by this."""
        return 2 ** (self.levels + self.resolutions - 1)
