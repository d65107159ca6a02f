"""A U-Net that sees both images and says the deformation at once: VoxelMorph.

    u = g_p(moving o A, fixed),    T = A o (id + u)    or    T = A o exp(v),   v = g_p(...)   or its mean in the probabilistic form,

A the linear start. Training lowers, over pairs of images, the expectation of

    S(fixed, moving o T) + lambda |grad u|^2 + gamma (1 - Dice(labels, labels o T)),    S = MSE or LNCC,

the last term where label maps are there (``train/unet.py``); probabilistic: MSE / (2 s^2) + KL (``terms/prior.py``). Balakrishnan et al.,
CVPR 2018 and IEEE TMI 2019; Dalca et al., MedIA 2019. The weights say on their card what they were trained to see (spacing, orientation,
scaling) and the pair is brought to that. The method has no weights of its own: it takes a file, ours or VoxelMorph's (``networks/foreign.py``).
A refinement of the answer for this pair is that of the default method (``engines/compositive.py``).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from ..engines.compositive import CompositiveSettings, register
from ..engines.linear import LinearSettings, align_linear
from ..engines.network_pair import seen
from ..errors import InputError
from ..method import Card, Method, Preset, method
from ..networks import heads, weights
from ..parameters import parameter
from ..result import Result
from ..transforms import Affine
from ..transforms.base import Identity, linear_part, require_finite

VOXELMORPH = """@article{Balakrishnan2019,
  author = {Balakrishnan, Guha and Zhao, Amy and Sabuncu, Mert R. and Guttag, John and Dalca, Adrian V.},
  title = {{VoxelMorph}: A Learning Framework for Deformable Medical Image Registration},
  journal = {IEEE Transactions on Medical Imaging}, volume = {38}, number = {8}, pages = {1788--1800}, year = {2019}}"""

VOXELMORPH_2018 = """@inproceedings{Balakrishnan2018,
  author = {Balakrishnan, Guha and Zhao, Amy and Sabuncu, Mert R. and Guttag, John and Dalca, Adrian V.},
  title = {An Unsupervised Learning Model for Deformable Medical Image Registration},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition}, pages = {9252--9260}, year = {2018}}"""

PROBABILISTIC = """@article{Dalca2019,
  author = {Dalca, Adrian V. and Balakrishnan, Guha and Guttag, John and Sabuncu, Mert R.},
  title = {Unsupervised Learning of Probabilistic Diffeomorphic Registration for Images and Surfaces},
  journal = {Medical Image Analysis}, volume = {57}, pages = {226--236}, year = {2019}}"""

NO_WEIGHTS = ("the method 'voxelmorph-unet' needs the weights of a trained network and none are given; set the parameter 'weights' to a file "
              "(.safetensors of this program, .h5 or .pt of VoxelMorph, .trch of uniGradICON) or to a name on the method's card")


@method(Card(
    title="VoxelMorph U-Net",
    summary="One pass of a trained network: seconds on a CPU, for images like those it was trained on. Needs a file of weights.",
    task="deformable registration by a trained network",
    references=(VOXELMORPH_2018, VOXELMORPH, PROBABILISTIC),
    assumptions=("the images are of the kind that the network was trained on: anatomy, contrast, skull-stripped or not",
                 "after the linear start structures are as close as they were in training"),
    failure_modes=("other anatomy, contrast or field of view than in training: the answer may be anything, look at it",
                   "a displacement network may fold, the published weights in 1 to 2 % of the brain; velocity networks hardly do",
                   "large rotations and shifts without a linear start"),
    weights=("none are shipped; train your own, or fetch the published voxelmorph2018-brain3d-cc (adult T1 brains, 1 mm), unigradicon or multigradicon",),
    presets={
        "default": Preset("an affine start, then one pass of the network of the weights that are given"),
        "rigid": Preset("a rigid start: one person at two times", {"pre_alignment": "rigid"}),
        "aligned": Preset("the images are aligned already: no linear stage", {"pre_alignment": "none"}),
        "refined": Preset("the answer of the network, then a few steps for this pair; removes folds", {"refinement": (20, 10)}),
        "published-brain": Preset("the published VoxelMorph-2 for skull-stripped adult T1 brains", {"weights": "voxelmorph2018-brain3d-cc"}),
    },
))
@dataclass(frozen=True)
class VoxelMorphUNet(Method):
    weights: str = parameter("", "Weights", "A file of weights, or a name on the card; published files are used once they are in the cache.",
                             advanced=False)
    fetch: bool = parameter(False, "Fetch weights", "Fetch published weights into the cache; 'show' and the message tell their size and license.")
    pre_alignment: str = parameter("affine", "Linear start", "Where no initial transform is given: what comes before the network.",
                                   choices=("affine", "rigid", "none"), advanced=False)
    refinement: tuple[int, ...] = parameter((0, 0), "Refinement", "Steps for this pair after the network, at twice the finest spacing and at it.",
                                            minimum=0, maximum=1000, advanced=False)
    similarity: str = parameter("lncc", "Similarity", "What the refinement compares.", choices=("lncc", "mse", "mind"))

    def solve(self, problem, runtime):
        network, card = self._network(problem, runtime)
        monitor, device = runtime.monitor, runtime.torch_device()
        refines = sum(self.refinement) > 0
        start = self._start(problem, runtime, monitor.part(0.0, 0.3, "linear start"))
        part = monitor.part(0.3, 0.5 if refines else 1.0)
        deformation, maps = self._said(network.to(device), card, problem, start.to(device), device, part)
        transform, history = start @ deformation.to("cpu"), []
        require_finite(transform)
        if monitor.wants_preview:
            monitor.preview(transform)
        if refines:
            transform, history = self._refined(problem, start, transform, device, monitor.part(0.5, 1.0, "refinement"))
        provenance = {"weights": {key: value for key, value in asdict(card).items() if key in ("title", "sha256", "size", "licence")}}
        return Result(problem, transform, history=history, provenance=provenance, maps=maps)

    def _network(self, problem, runtime):
        """(network, card) of the weights that are given; InputError where there are none or they are for another dimension."""
        if not self.weights:
            raise InputError(NO_WEIGHTS)
        if len(self.refinement) != 2:
            raise InputError(f"refinement is {self.refinement}; two numbers of steps are needed, for twice the finest spacing and for it")
        if self.fetch and self.weights in weights.cards():
            weights.fetch(weights.cards()[self.weights], runtime, agreed=True)
        network, card = weights.load(self.weights, runtime)
        if network.dim != problem.dim:
            raise InputError(f"the weights '{card.title}' are for {network.dim}D images; the images are {problem.dim}D")
        if not hasattr(network, "output"):
            raise InputError(f"the weights '{card.title}' are of a {card.network}, which another method uses; give those of a U-Net")
        return network, card

    def _start(self, problem, runtime, monitor):
        if problem.initial is not None:
            return problem.initial
        if self.pre_alignment == "none":
            return Identity(problem.dim)
        return align_linear(problem, LinearSettings(freedom=self.pre_alignment), runtime, monitor)

    def _said(self, network, card, problem, start, device, monitor):
        """(transform, maps) of the network; a probabilistic one has a map of its deviation."""
        with torch.inference_mode(False), torch.no_grad():
            for step in monitor.steps(2, "network"):
                if step == 0:
                    fixed, moving = seen(problem.fixed.to(device), problem.moving.to(device), start, card, network.multiple)
                else:
                    said = network(fixed.data, moving.data)
        maps = {}
        if network.output == "probabilistic":
            lattice = heads.said_on(said, fixed.grid)
            maps["velocity_deviation"] = heads.deviation(said.chunk(2, 1)[1], lattice).cpu()
        return heads.transform(said, fixed.grid, network.output), maps

    def _refined(self, problem, start, begin, device, monitor):
        """(transform, history) after a few steps of the default method's engine from the network's answer."""
        linear = linear_part(start) if not isinstance(start, Identity) else Affine.identity(problem.dim)
        settings = CompositiveSettings(self.similarity, (2.0, 1.0), self.refinement)
        field, history, _ = register(problem.fixed.to(device), problem.moving.to(device), linear, settings, monitor, begin.to(device))
        return linear @ field.to("cpu"), history
