"""A U-Net for one kind of images, from the user's own: VoxelMorph's objectives (``train.unet``) on augmented pairs of a cohort."""

from __future__ import annotations

from dataclasses import dataclass

from ...networks.heads import OUTPUTS
from ...networks.unet import UNet
from ...parameters import parameter
from .. import unet
from ..from_images import FromImages, card_of, held_out
from ..recipe import Plan, RecipeCard, Request, recipe


@recipe(RecipeCard(
    title="U-Net from images",
    summary="A network for images like those in a folder or a list; label maps beside them help it and judge it",
    needs_data=True,
    method="voxelmorph-unet"))
@dataclass(frozen=True)
class UNetFromImages(FromImages):
    output: str = parameter("velocity", "Deformation", "What the network says; a velocity gives maps that hardly fold.", choices=OUTPUTS, advanced=False)
    weight: float = parameter(1.0, "Smoothness", "Weight of the smoothness of the deformation.", minimum=0.0, advanced=False)
    label_weight: float = parameter(1.0, "Weight of labels", "Weight of the overlap of label maps where every image has one.", minimum=0.0, advanced=False)
    levels: int = parameter(4, "Levels", "How often the network halves its images.", minimum=1, maximum=6)

    def plan(self, request: Request) -> Plan:
        data, settings = request.data, self.settings(request)
        labelled = self.label_weight > 0 and all(data.scans.scans[k].labels is not None for k in data.indices["train"].members)
        weights = unet.UNetRecipe(self.similarity, self.weight, self.label_weight * labelled, self.window, self.noise)
        arguments = {"dim": request.dim, "encoder": [self.width] + [2 * self.width] * (self.levels - 1),
                     "decoder": [2 * self.width] * self.levels, "tail": [self.width, self.width], "output": self.output}
        card = card_of(data, "U-Net", "UNet", arguments, f"recipe unet, {settings.steps} steps of {settings.pairs} pairs, seed {request.seed}")
        return Plan(UNet(**arguments), unet.view, unet.objective(weights, self.output), unet.between_voxels(self.drawing(data, labelled)),
                    settings, card, held_out(data, "validation"), held_out(data, "test"))

    @property
    def multiple(self) -> int:
        """Sides of the lattice have to be divisible by this."""
        return 2**self.levels
