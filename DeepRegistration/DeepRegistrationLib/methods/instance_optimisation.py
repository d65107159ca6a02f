"""Refinement of one pair: a linear start, then a deformable map that is optimised for this pair alone, coarse to fine.

The map minimises S(fixed, moving o phi) + R(phi). Four models of phi:

* greedy: phi <- phi o (id + G_fluid * v), u <- G_elastic * u with the symmetric demons step v; smoothing is the regulariser,
  no gradient graph is kept, and every step is invertible (``engines/compositive.py``). Vercauteren et al., NeuroImage 2009.
* displacement, velocity, bspline: Adam on S + weight * R for any pair of terms (``engines/optimize.py``). The regularizers 'icon' and
  'gradicon' ask that a second map, moving to fixed, undoes the first one; displacement and bspline then optimize both.

A starting transform (from a file, a network or another method) takes the place of the linear start; its linear part is kept
and its deformation is what the first level begins with. Nothing that is given is changed.

The similarity 'auto' looks at the pair after the linear start: where the gradients of both images agree in sign, if need be
after a coarse deformation (``engines/contrast.py``), it is 'lncc', else 'ngf', structure that is seen on the finest lattice and
averaged on the coarser ones (``engines/structure.py``), with at least ``STIFF`` voxels of smoothing; the result says which. With
'ngf' and 'mind' a level that lowers the mutual information of the images is undone. Where 'auto' has found two contrasts, and without
guides, the whole deformation is dropped unless it raises it clearly (``engines/judge.py``), so that a start is not made worse. Images of one
contrast err by a tenth of a voxel where nothing is to be found, and a quarter of a voxel may be a finding: nothing is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..engines.channels import normalised_pair
from ..engines.compositive import CompositiveSettings, content_box, finest_spacing, register
from ..engines.contrast import STIFF, one_contrast
from ..engines.guides import Guides, steered
from ..engines.judge import Judge
from ..engines.linear import FINE_SAMPLES, LinearSettings, align_linear
from ..engines.optimize import MODELS, DescentSettings, descend
from ..errors import InputError
from ..method import Card, Method, Preset, method
from ..parameters import parameter, require_coarse_to_fine, require_counts
from ..result import Result
from ..terms import CONSISTENCIES, REGULARITIES, SIMILARITIES, LandmarkDistance, SoftDice
from ..transforms import Affine, Displacement
from ..transforms.base import Identity, linear_part

VERCAUTEREN = """@article{Vercauteren2009,
  author = {Vercauteren, Tom and Pennec, Xavier and Perchant, Aymeric and Ayache, Nicholas},
  title = {Diffeomorphic Demons: Efficient Non-parametric Image Registration},
  journal = {NeuroImage}, volume = {45}, number = {1}, pages = {S61--S72}, year = {2009}}"""

HEINRICH = """@article{Heinrich2012,
  author = {Heinrich, Mattias P. and Jenkinson, Mark and Bhushan, Manav and Matin, Tahreema
            and Gleeson, Fergus V. and Brady, Michael and Schnabel, Julia A.},
  title = {{MIND}: Modality Independent Neighbourhood Descriptor for Multi-modal Deformable Registration},
  journal = {Medical Image Analysis}, volume = {16}, number = {7}, pages = {1423--1435}, year = {2012}}"""

HABER = """@inproceedings{Haber2006,
  author = {Haber, Eldad and Modersitzki, Jan},
  title = {Intensity Gradient Based Registration and Fusion of Multi-modal Images},
  booktitle = {Medical Image Computing and Computer-Assisted Intervention}, pages = {726--733}, year = {2006}}"""

CACHIER = """@article{Cachier2003,
  author = {Cachier, Pascal and Bardinet, Eric and Dormont, Didier and Pennec, Xavier and Ayache, Nicholas},
  title = {Iconic Feature Based Nonrigid Registration: the {PASHA} Algorithm},
  journal = {Computer Vision and Image Understanding}, volume = {89}, number = {2-3}, pages = {272--298}, year = {2003}}"""


@method(Card(
    title="Instance optimization",
    summary="The default: affine, then a smooth invertible deformation optimized for this pair over a pyramid of spacings.",
    task="deformable registration",
    references=(VERCAUTEREN, CACHIER, HEINRICH, HABER),
    assumptions=("both images show the same anatomy, in the same units for 'mse', in one contrast for 'lncc' and 'ncc', "
                 "in any for 'auto', 'mind', 'mi' and 'ngf'",
                 "every structure of one image has a counterpart in the other; mask what has none",
                 "the linear start brings corresponding structures to within about their own size"),
    failure_modes=("sliding organs and missing tissue: the map is smooth everywhere", "thin structures that move by more than their width",
                   "similarities 'mse', 'lncc' and 'ncc' between images of different contrast: use 'auto' or 'mind'",
                   "images that are shaded differently, but by less than a tenth: up to a voxel of motion is made up where there is none; "
                   "correct the bias field first"),
    symmetric=True,
    presets={
        "default": Preset("any two volumes; brains of two people in one contrast best of all"),
        "fast": Preset("the same in about half of the time, a little less exact", {"iterations": (50, 40, 12, 1)}),
        "accurate": Preset("symmetric, with several times the steps: swapping the images swaps the result",
                           {"symmetric": True, "iterations": (200, 200, 100, 30), "tolerance": 1e-4}),
        "same-person": Preset("one person at two times: smooth displacements, small differences",
                              {"fluid": 1.7, "elastic": 0.7, "iterations": (100, 100, 60, 20)}),
        "same-units": Preset("both images on one intensity scale: the plain squared difference, a little faster", {"similarity": "mse"}),
        "brain-multimodal": Preset("brains of different contrast, for example T1 and T2 or PD",
                                   {"similarity": "ngf", "iterations": (100, 100, 60, 10), "fluid": 1.7, "elastic": 0.8}),
        "lung-ct": Preset("inspiration and expiration CT; give lung masks if there are any",
                          {"similarity": "lncc", "iterations": (100, 100, 60, 20), "fluid": 1.7, "elastic": 0.7, "shared_range": True}),
        "abdomen-ct": Preset("CT of different patients or days",
                             {"similarity": "mind", "factors": (8, 4, 2), "iterations": (100, 100, 40), "fluid": 1.7, "elastic": 1.0,
                              "shared_range": True}),
        "2d": Preset("single slices and photographs", {"factors": (16, 8, 4, 2, 1), "iterations": (100, 100, 100, 60, 30)}),
        "histology": Preset("neighboring sections in one or two stains: stiff, since their fine texture does not correspond",
                            {"factors": (16, 8, 4, 2, 1), "iterations": (100, 100, 100, 60, 30), "fluid": 2.5, "elastic": 1.5}),
    },
))
@dataclass(frozen=True)
class InstanceOptimisation(Method):
    start: str = parameter("affine", "Linear start", "What comes first when no starting transform is given.",
                           choices=("affine", "rigid", "none"), advanced=False)
    model: str = parameter("greedy", "Model", "How the deformation is described and optimized.", choices=("greedy", *MODELS))
    similarity: str = parameter("auto", "Similarity", "What makes the images alike; 'auto' chooses by their contrast.",
                                choices=("auto", *SIMILARITIES), advanced=False)
    factors: tuple[float, ...] = parameter((8.0, 4.0, 2.0, 1.0), "Levels", "Spacing of each level in units of the finest, coarse to fine.",
                                          minimum=1.0, maximum=64.0)
    iterations: tuple[int, ...] = parameter((100, 100, 60, 10), "Iterations", "Steps on each level.", minimum=0, maximum=10000, advanced=False)
    finest: float = parameter(0.0, "Finest spacing", "0 takes the voxel size, coarser where memory asks for it.", unit="mm", minimum=0.0)
    fluid: float = parameter(1.0, "Update smoothing", "Gaussian sigma of each step (greedy), in voxels of the level.",
                             unit="voxels", minimum=0.0, maximum=10.0)
    elastic: float = parameter(0.6, "Field smoothing", "Gaussian sigma of the whole field after each step (greedy): larger is stiffer.",
                               unit="voxels", minimum=0.0, maximum=10.0, advanced=False)
    limit: float = parameter(1.0, "Step limit", "Twice the longest step (greedy), in voxels of the level.",
                             unit="voxels", minimum=0.05, maximum=4.0)
    window: float = parameter(12.0, "Window", "Sigma of the local intensity fit of 'lncc' (greedy).", unit="mm", minimum=0.5, maximum=100.0)
    shared_range: bool = parameter(False, "Common units",
                                   "Both images are in the same units (CT); otherwise each is scaled by its own range.")
    cautious: bool = parameter(True, "Cautious", "Undo a coarse level that makes the images tell less of each other, and smooth more where "
                               "two halves of the voxels disagree (greedy).")
    symmetric: bool = parameter(False, "Symmetric", "Treat both images alike (greedy and velocity).")
    regulariser: str = parameter("diffusion", "Regularizer", "What is kept small (all models but greedy); 'icon' and 'gradicon' also need "
                                 "a model with a second map, displacement or bspline.", choices=(*REGULARITIES, *CONSISTENCIES))
    weight: float = parameter(0.5, "Regularizer weight", "Its weight against the similarity (all models but greedy).", minimum=0.0)
    step: float = parameter(0.1, "Step length", "Of Adam (all models but greedy), in voxels of the level.",
                            unit="voxels", minimum=1e-4, maximum=2.0)
    control: float = parameter(4.0, "Control distance", "Between control points (bspline), in voxels of the level.",
                               unit="voxels", minimum=1.0, maximum=64.0)
    guide_weight: float = parameter(1.0, "Guide weight", "Weight of given labels and landmarks against the images.",
                                    minimum=0.0)
    tolerance: float = parameter(1e-3, "Tolerance", "A level ends when ten steps gain less than this share of its first cost.",
                                 minimum=0.0, maximum=1.0)

    def solve(self, problem, runtime):
        self._check_settings()
        monitor = runtime.monitor
        linear, start = self._linear_start(problem, runtime, monitor.part(0.0, 0.2, "linear start"))
        begin = 0.2 if problem.initial is None and self.start != "none" else 0.0
        chosen, agreement = self._for_contrast(problem, linear, start, runtime, monitor.part(begin, begin + 0.05, "contrast"))
        part = monitor.part(begin + (0.05 if self.similarity == "auto" else 0.0), 1.0, "deformation")
        solver = chosen._greedy if self.model == "greedy" else chosen._descent
        deformation, history, inverse = solver(problem, linear, start, runtime, part)
        transform, back = linear @ deformation.to("cpu"), None if inverse is None else inverse.to("cpu") @ linear.inverse()
        doubted = self.similarity == "auto" and chosen.similarity == "ngf" and not steered(problem)
        kept = not doubted or Judge.of(problem.fixed, problem.moving).clearly_better(start or linear, transform)
        if not kept:
            transform, back = start or linear, None
        scalars = {"cost": history[-1]["cost"]} | ({} if agreement is None else {"gradient_agreement": agreement})
        return Result(problem, transform, back, scalars, history, {"chosen_similarity": chosen.similarity, "deformation_kept": kept})

    def _for_contrast(self, problem, linear, start, runtime, monitor):
        """(the method with its similarity chosen, the agreement of gradients or None where nothing was to be chosen)."""
        if self.similarity != "auto":
            return self, None
        device = runtime.torch_device()
        same, agreement = one_contrast(problem.fixed.to(device), problem.moving.to(device), linear, start, monitor)
        if same:
            return replace(self, similarity="lncc"), agreement
        return replace(self, similarity="ngf", fluid=max(self.fluid, STIFF[0]), elastic=max(self.elastic, STIFF[1])), agreement

    def _check_settings(self):
        """What does not fit together is said before the linear start takes its time."""
        require_counts(self.factors, self.iterations, ", or use the method 'affine'")
        require_coarse_to_fine(self.factors)
        if self._paired and self.model not in ("displacement", "bspline"):
            raise InputError(f"the regularizer '{self.regulariser}' ties two maps, and the model '{self.model}' has one; "
                             "use the model 'displacement' or 'bspline'")

    @property
    def _paired(self):
        """Two maps, which the regularizer ties, are optimised together."""
        return self.regulariser in CONSISTENCIES

    def _linear_start(self, problem, runtime, monitor):
        """(linear map, whole starting map or None where it is linear)."""
        if problem.initial is not None:
            linear = linear_part(problem.initial)
            is_linear = isinstance(problem.initial, (Affine, Identity))
            return linear, None if is_linear else problem.initial
        if self.start == "none":
            return Affine.identity(problem.dim), None
        return align_linear(problem, LinearSettings(freedom=self.start, samples=FINE_SAMPLES), runtime, monitor), None

    def _greedy(self, problem, linear, start, runtime, monitor):
        device = runtime.torch_device()
        fixed, moving = problem.fixed.to(device), problem.moving.to(device)
        return register(fixed, moving, linear, self._compositive(), monitor, start, Guides.of(problem, device, self.guide_weight))

    def _compositive(self):
        return CompositiveSettings(self.similarity, self.factors, self.iterations, self.fluid, self.elastic, self.limit, self.window,
                                   self.finest, self.shared_range, self.symmetric, self.tolerance, cautious=self.cautious)

    def _descent(self, problem, linear, start, runtime, monitor):
        box = content_box(problem.fixed, problem.moving, linear)
        finest = finest_spacing(box, self._compositive())
        used = [(finest * f, n) for f, n in zip(self.factors, self.iterations) if n > 0]
        settings = DescentSettings(self.model, tuple(s for s, _ in used), tuple(n for _, n in used), self.step, self.control,
                                   self.symmetric, self.tolerance, self._paired)
        fixed, moving = normalised_pair(problem.fixed, problem.moving, self.shared_range)
        objective = self._similarity(fixed) + self.weight * {**REGULARITIES, **CONSISTENCIES}[self.regulariser]()
        if problem.fixed_labels is not None:
            objective = objective + self.guide_weight * SoftDice()
        if problem.fixed_points is not None:
            objective = objective + self.guide_weight * LandmarkDistance()
        begin = None if start is None else Displacement((linear.inverse() @ start).field(problem.fixed.grid), problem.fixed.grid)
        problem = replace(problem, fixed=fixed, moving=moving)
        transform, history = descend(problem, linear, objective, settings, monitor, runtime.torch_device(), begin)
        return transform, history, transform.inverse() if self.symmetric else None

    def _similarity(self, fixed):
        """The chosen term; the squared difference in units of twice the fixed variance, so that the weight of the regulariser
        means the same for 'mse' as for 'ncc', whatever the intensities are."""
        term = SIMILARITIES[self.similarity]()
        if self.similarity != "mse":
            return 1.0 * term
        values = fixed.data if fixed.mask is None else fixed.data[fixed.mask.expand_as(fixed.data)]
        return (0.5 / max(float(values.var()), 1e-6)) * term
