"""A general network finds the deformation in one pass over a pyramid; a few iterations of instance optimisation sharpen it.

The network (``networks/pyramid.py``) was trained on synthetic pairs of random contrast and on the MNI template only, so it knows no
organ and no modality. It works in voxels, on a lattice of about 64 voxels an axis over what the images show, after an affine
start; its map is inverse consistent by construction. Refinement is the greedy model of ``instance-optimisation`` on the finest levels,
begun at the network's map or, in one contrast, at the start where the first level ends with a lower cost from there (``engines/compositive.py``).
Both answers are judged by mutual information, which neither has raised (``engines/judge.py``): what does not make the images tell more of each
other than the start does, in two contrasts clearly more, is dropped.

Greer et al., MICCAI 2023 (consistency by construction); Tian et al., GradICON, CVPR 2023 and uniGradICON, MICCAI 2024 (one network for all
organs, refined per pair); Hoffmann et al., SynthMorph, IEEE TMI 2022 (synthetic training).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..engines.compositive import CompositiveSettings, register
from ..engines.contrast import SAME_AFTER, STIFF, relation
from ..engines.guides import Guides, steered
from ..engines.judge import Judge
from ..engines.linear import FINE_SAMPLES, LinearSettings, align_linear
from ..engines.predict import PredictionSettings, predict
from ..errors import InputError
from ..method import Card, Method, Preset, method
from ..networks.pyramid import SymmetricPyramid
from ..networks.weights import load
from ..parameters import parameter
from ..result import Result
from ..transforms import Affine
from ..transforms.base import linear_part

FACTORS = (8.0, 4.0, 2.0, 1.0)
LIMIT = 1.5
"""Step limit of the refinement in voxels: few and long steps; on warped copies of the MNI template 2 was still better than 1."""

GREER = """@inproceedings{Greer2023,
  author = {Greer, Hastings and Tian, Lin and Vialard, Fran{\\c{c}}ois-Xavier and Kwitt, Roland and Bouix, Sylvain and
  San Jos{\\'e} Est{\\'e}par, Ra{\\'u}l and Rushmore, Richard and Niethammer, Marc},
  title = {Inverse Consistency by Construction for Multistep Deep Registration},
  booktitle = {Medical Image Computing and Computer Assisted Intervention}, series = {LNCS}, volume = {14229}, pages = {688--698}, year = {2023}}"""

TIAN = """@inproceedings{Tian2024uniGradICON,
  author = {Tian, Lin and Greer, Hastings and Kwitt, Roland and Vialard, Fran{\\c{c}}ois-Xavier and San Jos{\\'e} Est{\\'e}par, Ra{\\'u}l and
  Bouix, Sylvain and Rushmore, Richard and Niethammer, Marc},
  title = {{uniGradICON}: A Foundation Model for Medical Image Registration},
  booktitle = {Medical Image Computing and Computer Assisted Intervention}, series = {LNCS}, volume = {15002}, pages = {749--760}, year = {2024}}"""

HOFFMANN = """@article{Hoffmann2022,
  author = {Hoffmann, Malte and Billot, Benjamin and Greve, Douglas N. and Iglesias, Juan Eugenio and Fischl, Bruce and Dalca, Adrian V.},
  title = {{SynthMorph}: Learning Contrast-Invariant Registration without Acquired Images},
  journal = {IEEE Transactions on Medical Imaging}, volume = {41}, number = {3}, pages = {543--558}, year = {2022}}"""


@method(Card(
    title="General network",
    summary="A network trained on synthetic images of any contrast finds the deformation in seconds; a few iterations sharpen it.",
    task="deformable registration",
    references=(GREER, TIAN, HOFFMANN),
    assumptions=("both images show the same anatomy in any contrast",
                 "after the linear start no structure is further away than about a fifth of the image",
                 "one channel of intensities"),
    failure_modes=("structures finer than the network's lattice: leave the refinement on",
                   "sliding organs and missing tissue: the map is smooth everywhere",
                   "images that are shaded differently, but by less than a tenth: up to a voxel of motion is made up where there is none; "
                   "correct the bias field first"),
    weights=("general-2d", "general-3d"),
    symmetric=False,
    presets={
        "default": Preset("the network, then 20 iterations for this pair"),
        "quick": Preset("a coarser lattice and fewer steps for the network, then 20 iterations, few of them at the voxel size and with a field of half of "
                        "its resolution",
                        {"edge": 40, "repeats": (2, 1, 1), "iterations": (0, 7, 8, 5), "halved": True, "cautious": False}),
        "network-only": Preset("the network alone: inverse consistent, seconds", {"edge": 96, "iterations": (0, 0, 0, 0)}),
        "fine-lattice": Preset("a finer lattice for the network: more memory and time", {"edge": 96}),
    },
))
@dataclass(frozen=True)
class General(Method):
    start: str = parameter("affine", "Linear start", "What comes first when no starting transform is given.",
                           choices=("affine", "rigid", "none"), advanced=False)
    edge: int = parameter(64, "Lattice", "The network works on a lattice as large as a cube (square) of this edge, never finer than the image.",
                          unit="voxels", minimum=16, maximum=256)
    repeats: tuple[int, ...] = parameter((3, 2, 2), "Repeats", "Steps of the network on each level, finest last; the first counts for all coarser.",
                                         minimum=1, maximum=20)
    iterations: tuple[int, ...] = parameter((0, 6, 8, 6), "Refinement", "Iterations at 8, 4, 2 and 1 times the voxel size; only 0 leaves the network's map.",
                                            minimum=0, maximum=1000, advanced=False)
    halved: bool = parameter(False, "Half the field", "The last refinement compares every voxel, but its field has half of their resolution: half of the "
                             "time and an eighth of the file.")
    cautious: bool = parameter(True, "Cautious", "Undo a coarse level of the refinement that makes the images tell less of each other, and smooth more "
                               "where two halves of the voxels disagree.")
    shared_range: bool = parameter(False, "Common units",
                                   "Both images are in the same units (CT); otherwise each is scaled by its own range.")
    weights: str = parameter("", "Weights", "A weights file of your own training; empty takes the network that ships.")

    def solve(self, problem, runtime):
        if len(self.iterations) != len(FACTORS):
            raise InputError(f"iterations is {self.iterations}; {len(FACTORS)} numbers are needed, for {', '.join(map(str, FACTORS))} times the voxel size")
        if not any(self.iterations) and steered(problem):
            raise InputError("labels or landmarks steer the refinement, and no iterations were asked for; give some, or leave the guides out")
        monitor = runtime.monitor
        start = self._start(problem, runtime, monitor.part(0.0, 0.3, "linear start"))
        settings = PredictionSettings(self.edge, self.repeats, self.shared_range)
        network, card = self._network(problem.dim, runtime)
        u, how = predict(network, problem.fixed, problem.moving, start, settings, runtime.torch_device(), monitor.part(0.3, 0.6))
        judge, guided = Judge.of(problem.fixed, problem.moving), steered(problem)
        transform, history = start @ u if judge.gain(start, start @ u) > 0 else start, []
        how |= {"weights": card.title, "weights_sha256": card.sha256, "network_kept": transform is not start}
        if any(self.iterations):
            rival = start if how["network_kept"] and not guided else None
            refined, history, how["chosen_similarity"] = self._refined(problem, transform, rival, runtime, monitor.part(0.6, 1.0, "refinement"))
            how["network_kept"] &= not history[0].get("rival")
            how["refinement_kept"] = guided or judge.gain(transform, refined) > 0
            transform = refined if how["refinement_kept"] else transform
        better = judge.gain(start, transform) > 0 if how.get("chosen_similarity") == "lncc" else judge.clearly_better(start, transform)
        how["deformation_kept"] = guided or bool(better)
        transform = transform if how["deformation_kept"] else start
        return Result(problem, transform, history=history, provenance=how)

    def _network(self, dim, runtime):
        """(network, card): the shipped one, or that of a file, which must be of the same kind and dimension."""
        network, card = load(self.weights or f"general-{dim}d", runtime)
        if not isinstance(network, SymmetricPyramid) or network.dim != dim:
            what = f"a {network.dim}D network" if isinstance(network, SymmetricPyramid) else f"a {card.network}"
            raise InputError(f"the weights '{self.weights}' are those of {what}; weights of a {dim}D network of 'run.py train general' are needed")
        return network, card

    def _start(self, problem, runtime, monitor):
        if problem.initial is not None:
            return problem.initial
        if self.start == "none":
            return Affine.identity(problem.dim)
        return align_linear(problem, LinearSettings(freedom=self.start, samples=FINE_SAMPLES), runtime, monitor)

    def _refined(self, problem, transform, rival, runtime, monitor):
        device = runtime.torch_device()
        fixed, moving, linear = problem.fixed.to(device), problem.moving.to(device), linear_part(transform)
        same = relation(fixed, moving, transform).one_contrast(SAME_AFTER)
        kind, fluid, elastic = ("lncc", 1.0, 0.6) if same else ("ngf", *STIFF)
        settings = CompositiveSettings(kind, FACTORS, self.iterations, fluid, elastic, limit=LIMIT, shared_range=self.shared_range,
                                       halved=self.halved, cautious=self.cautious)
        deformation, history, _ = register(fixed, moving, linear, settings, monitor, transform, Guides.of(problem, device), rival if same else None)
        return linear @ deformation.to("cpu"), history, settings.similarity
