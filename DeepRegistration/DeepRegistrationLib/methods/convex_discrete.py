"""Coupled convex discrete registration with refinement: robust against large deformations, any contrast.

MIND-SSC features of both images are averaged on a control grid and compared at all displacements of a lattice, D(x, d) =
|F(x) - M(x + d)|^2. The field lowers

    E(v, u) = sum_x D(x, v(x)) + 1 / (2 theta) |v - u|^2 + alpha |grad u|^2

by turns of the exact best v and a box filter for u, with 1 / (2 theta) growing from 0.003 to 1 per squared cell. The fields of both
directions are made inverse to each other, then Adam refines the forward one on the features: elastic on a coarse lattice, 'fluid' or
elastic on a fine one.

Siebert and Heinrich, WBIR 2022; Heinrich et al., WBIR 2014; Siebert, Hansen, Heinrich, Learn2Reg 2021 (ConvexAdam). The texts give no
lattice for brains; control grid of 6 voxels, reach of 4 cells, coupling, features and 'elastic' refinement are those of ConvexAdam.
The 'fluid' refinement is this library's: Adam's steps are smoothed and composed, which folds less. ``engines/discrete.py``,
``feature_lattice.py`` and ``feature_descent.py`` hold the algorithm; ``soft_coupled_convex`` there is the version that backpropagates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..engines.discrete import search_both_ways
from ..engines.feature_descent import ELASTIC, Descent, nearest_flow, refine
from ..engines.feature_lattice import Spacings, between, feature_pair, shown, to_displacement
from ..engines.linear import align_linear
from ..errors import InputError
from ..method import Card, Method, Preset, method
from ..parameters import parameter
from ..result import Result
from ..transforms import Identity
from ..transforms.base import require_finite

SIEBERT = """@inproceedings{Siebert2022,
  author = {Siebert, Hanna and Heinrich, Mattias P.},
  title = {Learn to Fuse Input Features for Large-Deformation Registration with Differentiable Convex-Discrete Optimisation},
  booktitle = {Biomedical Image Registration (WBIR)}, series = {LNCS}, volume = {13386}, pages = {119--123}, year = {2022}}"""

HEINRICH = """@inproceedings{Heinrich2014,
  author = {Heinrich, Mattias P. and Papie{\\.z}, Bart{\\l}omiej W. and Schnabel, Julia A. and Handels, Heinz},
  title = {Non-parametric Discrete Registration with Convex Optimisation},
  booktitle = {Biomedical Image Registration (WBIR)}, series = {LNCS}, volume = {8545}, pages = {51--61}, year = {2014}}"""

CONVEX_ADAM = """@inproceedings{Siebert2021,
  author = {Siebert, Hanna and Hansen, Lasse and Heinrich, Mattias P.},
  title = {Fast {3D} Registration with Accurate Optimisation and Little Learning for {Learn2Reg} 2021},
  booktitle = {Biomedical Image Registration, Domain Generalisation and Out-of-Distribution Analysis}, series = {LNCS}, volume = {13166},
  pages = {174--179}, year = {2022}}"""


@method(Card(
    title="Convex discrete",
    summary="Exhaustive search over displacements with convex regularization, then refinement; for large deformations and any contrast.",
    task="deformable registration",
    references=(SIEBERT, HEINRICH, CONVEX_ADAM),
    assumptions=("edges and textures correspond locally; brightness need not",
                 "after the linear start no structure is further away than the search range",
                 "the images show the same anatomy, without pieces that one of them lacks (mask such pieces)"),
    failure_modes=("sliding surfaces: the field is smooth across them",
                   "large uniform regions, where features say nothing and the field is interpolated",
                   "structures thinner than the control spacing that move against their surroundings"),
    presets={
        "default": Preset("an affine start unless one is given, then search and fluid refinement; spacings from the image"),
        "aligned": Preset("the images are aligned already: no linear stage", {"initial_alignment": "none"}),
        "brain": Preset("heads at about 1 mm",
                        {"feature_spacing": 1.0, "refinement_spacing": 2.0, "control_spacing": 6.0, "search_range": 24.0}),
        "lung": Preset("inspiration and expiration CT: far and coarse, then fine",
                       {"feature_spacing": 1.5, "refinement_spacing": 3.0, "control_spacing": 7.5, "search_range": 45.0}),
        "abdomen": Preset("abdominal CT of different people",
                          {"feature_spacing": 2.0, "refinement_spacing": 4.0, "control_spacing": 8.0, "search_range": 32.0}),
        "paper": Preset("ConvexAdam's own refinement: 80 elastic iterations on the fine lattice",
                        {"update": "elastic", "iterations": (0, 80)}),
        "semantic": Preset("label maps of both images guide the search and the refinement", {"label_weight": 4.0}),
        "search-only": Preset("no refinement: seconds, and both directions inverse to each other", {"iterations": (0, 0)}),
    },
))
@dataclass(frozen=True)
class ConvexDiscrete(Method):
    initial_alignment: str = parameter("affine", "Linear start",
                                       "Where no initial transform is given: an affine registration, or the headers as they are.",
                                       choices=("affine", "none"), advanced=False)
    search_range: float = parameter(0.0, "Search range",
                                    "Largest displacement that is tried per axis; 0 takes an eighth of the longest edge.",
                                    unit="mm", minimum=0.0, advanced=False)
    control_spacing: float = parameter(0.0, "Control spacing",
                                       "Distance of control points and of the displacements tried; 0 takes up to 6 voxels.",
                                       unit="mm", minimum=0.0)
    refinement_spacing: float = parameter(0.0, "Refinement spacing", "Cell of the finest lattice; 0 takes up to 2 voxels.", unit="mm",
                                          minimum=0.0)
    feature_spacing: float = parameter(0.0, "Feature spacing",
                                       "Voxel at which features are computed; 0 takes the fixed image's, at most 8 million.",
                                       unit="mm", minimum=0.0)
    radius: int = parameter(1, "Patch radius", "Half width of the patches of MIND-SSC.", unit="voxels", minimum=0, maximum=5)
    dilation: int = parameter(2, "Patch distance", "Distance of the patches of MIND-SSC.", unit="voxels", minimum=1, maximum=8)
    inverse_consistency: bool = parameter(True, "Inverse consistency",
                                          "Search in both directions and make the two fields inverse to each other.")
    update: str = parameter("fluid", "Refinement", "On the fine lattice: composed smooth steps, or the smooth field of the reference.",
                            choices=("fluid", "elastic"))
    iterations: tuple[int, ...] = parameter((40, 25), "Iterations", "Of the refinement, on the coarse and on the fine lattice.",
                                            minimum=0, maximum=2000,
                                            advanced=False)
    smoothness: float = parameter(1.25, "Smoothness", "Weight of the diffusion term wherever the refinement is elastic.", minimum=0.0)
    label_weight: float = parameter(0.0, "Label weight",
                                    "How much label maps of the request count beside the intensities; 0 leaves them out.",
                                    minimum=0.0, advanced=False)
    diffeomorphic: bool = parameter(False, "Diffeomorphic", "Replace the field by the flow of a stationary velocity: exactly invertible.")
    memory: float = parameter(1.0, "Memory of the search", "Costs beyond it are computed several times instead of stored.", unit="GB",
                              minimum=0.01)

    def solve(self, problem, runtime):
        monitor = runtime.monitor
        if len(self.iterations) != 2:
            raise InputError(f"iterations is {self.iterations}; two numbers are needed, for the coarse and for the fine lattice")
        initial = self._start(problem, runtime, monitor.part(0.0, 0.15))
        with torch.no_grad():
            pair = self._features(problem, initial, runtime.torch_device(), monitor.part(0.15, 0.35))
            (field, backward), grid, history = self._search(pair, initial, monitor.part(0.35, 0.5)), pair.control[0].grid, []
            stages = ((pair.coarse, "elastic", monitor.part(0.5, 0.6)), (pair.fine, self.update, monitor.part(0.6, 0.95)))
            for count, (level, update, part) in zip(self.iterations, stages):
                if count:
                    descent = replace(ELASTIC, smoothness=self.smoothness) if update == "elastic" else Descent()
                    field, grid = between(field, grid, level[0].grid), level[0].grid
                    field, log = refine(*level, field, count, descent, part, shown(part, initial, grid))
                    history += log
            deformation = to_displacement(field, grid)
            if self.diffeomorphic:
                deformation = nearest_flow(deformation, monitor=monitor.part(0.95, 1.0))
        inverse = None
        if backward is not None and not any(self.iterations) and not self.diffeomorphic:
            inverse = to_displacement(backward, grid).to("cpu") @ initial.inverse()
        transform = initial @ deformation.to("cpu")
        require_finite(transform)
        scalars = {"feature_cost": history[-1]["feature_cost"]} if history else {}
        return Result(problem, transform, inverse, scalars=scalars, history=history)

    def _start(self, problem, runtime, monitor):
        if problem.initial is not None:
            return problem.initial
        if self.initial_alignment == "none":
            return Identity(problem.dim)
        return align_linear(problem, runtime=runtime, monitor=monitor)

    def _features(self, problem, initial, device, monitor):
        images = [image.to(device, torch.float32) for image in (problem.fixed, problem.moving)]
        labels = None
        if self.label_weight > 0:
            if problem.fixed_labels is None:
                raise InputError("a label weight was set but the request has no label maps; give both label maps or a label weight of 0")
            labels = [each.to(device) for each in (problem.fixed_labels, problem.moving_labels)]
        spacings = Spacings.of(problem.fixed.grid, self.feature_spacing, self.refinement_spacing, self.control_spacing, self.search_range)
        return feature_pair(*images, initial.to(device), spacings, (self.radius, self.dilation), labels, self.label_weight, monitor)

    def _search(self, pair, initial, monitor):
        preview = shown(monitor, initial, pair.control[0].grid)
        return search_both_ways(*pair.control, pair.reach, self.memory * 1e9, self.inverse_consistency, monitor, preview)
