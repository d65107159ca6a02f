"""Refinement of one pair: a linear start, then a deformable map that is optimised for this pair alone, coarse to fine.

The map minimises S(fixed, moving o phi) + R(phi). Four models of phi:

* greedy: phi <- phi o (id + G_fluid * v), u <- G_elastic * u with the symmetric demons step v; smoothing is the regulariser,
  no gradient graph is kept, and every step is invertible (``engines/compositive.py``). Vercauteren et al., NeuroImage 2009.
* displacement, velocity, bspline: Adam on S + weight * R for any pair of terms (``engines/optimize.py``).

A starting transform (from a file, a network or another method) takes the place of the linear start; its linear part is kept
and its deformation is what the first level begins with. Nothing that is given is changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..engines.channels import normalised_pair
from ..engines.compositive import CompositiveSettings, content_box, finest_spacing, register
from ..engines.linear import LinearSettings, align_linear
from ..engines.optimize import MODELS, DescentSettings, descend
from ..errors import InputError
from ..method import Card, Method, Preset, method
from ..parameters import parameter
from ..result import Result
from ..terms import REGULARITIES, SIMILARITIES, LandmarkDistance, SoftDice
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

CACHIER = """@article{Cachier2003,
  author = {Cachier, Pascal and Bardinet, Eric and Dormont, Didier and Pennec, Xavier and Ayache, Nicholas},
  title = {Iconic Feature Based Nonrigid Registration: the {PASHA} Algorithm},
  journal = {Computer Vision and Image Understanding}, volume = {89}, number = {2-3}, pages = {272--298}, year = {2003}}"""


@method(Card(
    title="Instance optimisation",
    summary="The default: affine, then a smooth invertible deformation optimised for this pair over a pyramid of spacings.",
    task="deformable registration",
    references=(VERCAUTEREN, CACHIER, HEINRICH),
    assumptions=("both images show the same anatomy, in the same contrast for 'mse', locally so for 'lncc', any for 'mind', 'mi' and 'ngf'",
                 "every structure of one image has a counterpart in the other; mask what has none",
                 "the linear start brings corresponding structures to within about their own size"),
    failure_modes=("sliding organs and missing tissue: the map is smooth everywhere", "thin structures that move by more than their width",
                   "similarities 'mse' and 'lncc' between images of different contrast: use 'mind'"),
    symmetric=True,
    presets={
        "default": Preset("images of one contrast, with or without shading; T1 brains"),
        "fast": Preset("the same in about a third of the time, a little less exact", {"iterations": (60, 30, 2)}),
        "accurate": Preset("symmetric, with several times the steps: swapping the images swaps the result",
                           {"symmetric": True, "iterations": (200, 100, 30), "tolerance": 1e-4}),
        "same-units": Preset("both images on one intensity scale: the plain squared difference, a little faster", {"similarity": "mse"}),
        "brain-multimodal": Preset("brains of different contrast, for example T1 and T2 or PD",
                                   {"similarity": "mind", "iterations": (60, 40, 0), "elastic": 1.0}),
        "lung-ct": Preset("inspiration and expiration CT; give lung masks if there are any",
                          {"factors": (8, 4, 2), "iterations": (100, 60, 30), "shared_range": True}),
        "abdomen-ct": Preset("CT of different patients or days",
                             {"similarity": "mind", "factors": (8, 4, 2), "iterations": (60, 60, 20), "elastic": 1.0,
                              "shared_range": True}),
        "2d": Preset("single slices, photographs and histology",
                     {"factors": (16, 8, 4, 2, 1), "iterations": (100, 100, 100, 60, 30)}),
    },
))
@dataclass(frozen=True)
class InstanceOptimisation(Method):
    start: str = parameter("affine", "Linear start", "What comes first when no starting transform is given.",
                           choices=("affine", "rigid", "none"), advanced=False)
    model: str = parameter("greedy", "Model", "How the deformation is described and optimised.", choices=("greedy", *MODELS))
    similarity: str = parameter("lncc", "Similarity", "What makes the images alike.", choices=tuple(SIMILARITIES), advanced=False)
    factors: tuple[float, ...] = parameter((4.0, 2.0, 1.0), "Levels", "Spacing of each level in units of the finest, coarse to fine.",
                                          minimum=1.0, maximum=64.0)
    iterations: tuple[int, ...] = parameter((100, 60, 10), "Iterations", "Steps on each level.", minimum=0, maximum=10000, advanced=False)
    finest: float = parameter(0.0, "Finest spacing", "0 takes the voxel size, coarser where memory asks for it.", unit="mm", minimum=0.0)
    fluid: float = parameter(0.7, "Update smoothing", "Gaussian sigma of each step (greedy), in voxels of the level.",
                             unit="voxels", minimum=0.0, maximum=10.0)
    elastic: float = parameter(0.6, "Field smoothing", "Gaussian sigma of the whole field after each step (greedy): larger is stiffer.",
                               unit="voxels", minimum=0.0, maximum=10.0, advanced=False)
    limit: float = parameter(1.0, "Step limit", "Twice the longest step (greedy), in voxels of the level.",
                             unit="voxels", minimum=0.05, maximum=4.0)
    window: float = parameter(12.0, "Window", "Sigma of the local intensity fit of 'lncc' (greedy).", unit="mm", minimum=0.5, maximum=100.0)
    shared_range: bool = parameter(False, "Common units",
                                   "Both images are in the same units (CT); otherwise each is scaled by its own range.")
    symmetric: bool = parameter(False, "Symmetric", "Treat both images alike (greedy and velocity).")
    regulariser: str = parameter("diffusion", "Regulariser", "What is kept small (all models but greedy).", choices=tuple(REGULARITIES))
    weight: float = parameter(0.5, "Regulariser weight", "Its weight against the similarity (all models but greedy).", minimum=0.0)
    step: float = parameter(0.1, "Step length", "Of Adam (all models but greedy), in voxels of the level.",
                            unit="voxels", minimum=1e-4, maximum=2.0)
    control: float = parameter(4.0, "Control distance", "Between control points (bspline), in voxels of the level.",
                               unit="voxels", minimum=1.0, maximum=64.0)
    guide_weight: float = parameter(1.0, "Guide weight", "Weight of given labels (1 - Dice) and landmarks (mm^2) (all models but greedy).",
                                    minimum=0.0)
    tolerance: float = parameter(1e-3, "Tolerance", "A level ends when ten steps gain less than this share of its first cost.",
                                 minimum=0.0, maximum=1.0)

    def solve(self, problem, runtime):
        self._check_settings(problem)
        monitor = runtime.monitor
        linear, start = self._linear_start(problem, runtime, monitor.part(0.0, 0.2, "linear start"))
        part = monitor.part(0.2 if problem.initial is None and self.start != "none" else 0.0, 1.0, "deformation")
        solver = self._greedy if self.model == "greedy" else self._descent
        deformation, history, inverse = solver(problem, linear, start, runtime, part)
        back = None if inverse is None else inverse.to("cpu") @ linear.inverse()
        return Result(problem, linear @ deformation.to("cpu"), back, scalars={"cost": history[-1]["cost"]}, history=history)

    def _check_settings(self, problem):
        """What does not fit together is said before the linear start takes its time."""
        if len(self.factors) != len(self.iterations):
            raise InputError(f"{len(self.factors)} levels and {len(self.iterations)} iteration counts were given; give one count per level")
        if not sum(self.iterations) > 0:
            raise InputError(f"iterations {self.iterations} ask for no step at all; give at least one level a positive count, "
                             "or use the method 'affine'")
        if list(self.factors) != sorted(self.factors, reverse=True):
            raise InputError(f"the levels {self.factors} were given; order them from coarse to fine")
        if self.model == "greedy" and (problem.fixed_labels is not None or problem.fixed_points is not None):
            raise InputError("labels or landmarks were given as guides, and the model 'greedy' uses images only; "
                             "choose model=velocity, displacement or bspline")

    def _linear_start(self, problem, runtime, monitor):
        """(linear map, whole starting map or None where it is linear)."""
        if problem.initial is not None:
            linear = linear_part(problem.initial)
            is_linear = isinstance(problem.initial, (Affine, Identity))
            return linear, None if is_linear else problem.initial
        if self.start == "none":
            return Affine.identity(problem.dim), None
        return align_linear(problem, LinearSettings(freedom=self.start), runtime, monitor), None

    def _greedy(self, problem, linear, start, runtime, monitor):
        device = runtime.torch_device()
        return register(problem.fixed.to(device), problem.moving.to(device), linear, self._compositive(), monitor, start)

    def _compositive(self):
        return CompositiveSettings(self.similarity, self.factors, self.iterations, self.fluid, self.elastic, self.limit, self.window,
                                   self.finest, self.shared_range, self.symmetric, self.tolerance)

    def _descent(self, problem, linear, start, runtime, monitor):
        box = content_box(problem.fixed, problem.moving, linear)
        finest = finest_spacing(box, self._compositive())
        used = [(finest * f, n) for f, n in zip(self.factors, self.iterations) if n > 0]
        settings = DescentSettings(self.model, tuple(s for s, _ in used), tuple(n for _, n in used), self.step, self.control,
                                   self.symmetric, self.tolerance)
        fixed, moving = normalised_pair(problem.fixed, problem.moving, self.shared_range)
        objective = self._similarity(fixed) + self.weight * REGULARITIES[self.regulariser]()
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
