"""Rigid, similarity and affine registration by mutual information over a pyramid of spacings.

T(x) = A (x - c) + c + t is found as a product of small steps that lower

    C(T) = 1 - 2 I(F(x_i), M(T x_i)) / (H_F + H_M),

the entropy correlation coefficient of the joint histogram of N sample points x_i spread over the fixed mask or field of view
(Parzen windows, Mattes et al., IEEE TMI 2003; independence of the overlap, Studholme et al., Pattern Recognition 1999). The
start is the best of several after a short search at the coarsest spacing; 'global' adds a covering of all rotations. The
algorithm is in ``engines/linear.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..engines.linear import FINE_SAMPLES, FREEDOMS, SIMILARITIES, LinearSettings, solve_linear
from ..engines.starts import STARTS
from ..method import Card, Method, Preset, method
from ..parameters import parameter
from ..result import Result

MATTES = """@article{Mattes2003,
  author = {Mattes, David and Haynor, David R. and Vesselle, Hubert and Lewellen, Thomas K. and Eubank, William},
  title = {{PET-CT} Image Registration in the Chest Using Free-form Deformations},
  journal = {IEEE Transactions on Medical Imaging}, volume = {22}, number = {1}, pages = {120--128}, year = {2003}}"""

STUDHOLME = """@article{Studholme1999,
  author = {Studholme, Colin and Hill, Derek L. G. and Hawkes, David J.},
  title = {An Overlap Invariant Entropy Measure of {3D} Medical Image Alignment},
  journal = {Pattern Recognition}, volume = {32}, number = {1}, pages = {71--86}, year = {1999}}"""

ALEXA = """@inproceedings{Alexa2022,
  author = {Alexa, Marc},
  title = {Super-Fibonacci Spirals: Fast, Low-Discrepancy Sampling of {SO(3)}},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition}, pages = {8291--8300}, year = {2022}}"""


@method(Card(
    title="Affine",
    summary="Rigid, similarity or affine alignment of two images of the same or of different contrast, with a choice of starts.",
    task="linear alignment",
    references=(MATTES, STUDHOLME, ALEXA),
    assumptions=("both images show the same anatomy, and most of the smaller field of view lies in the larger one",
                 "the brightness of one image says something about that of the other",
                 "no mirror image: left stays left"),
    failure_modes=("rotations of more than about 40 degrees without the preset 'global'",
                   "images that show little more than noise or a thin structure; give masks",
                   "a small piece of a large repetitive structure"),
    presets={
        "default": Preset("rigid, similarity, then affine from the best of three starts; about 4 s of one core for a 1 mm head"),
        "rigid": Preset("six degrees of freedom (three in 2D): one subject, any contrast", {"freedom": "rigid"}),
        "similarity": Preset("rigid and one scale", {"freedom": "similarity"}),
        "global": Preset("any rotation: 1000 are tried (72 in 2D), the best are refined; a few seconds more", {"start": "global"}),
        "rigid-global": Preset("any rotation, six degrees of freedom", {"start": "global", "freedom": "rigid"}),
        "bias-field": Preset("local correlation for one contrast with strong shading; slower", {"similarity": "lncc"}),
    },
))
@dataclass(frozen=True)
class AffineRegistration(Method):
    start: str = parameter("auto", "Start", "Best of headers, centers and centers of mass, or one of them, or any rotation as well.",
                           choices=STARTS, advanced=False)
    freedom: str = parameter("affine", "Degrees of freedom", "The last stage; 'none' keeps the start.", choices=FREEDOMS, advanced=False)
    similarity: str = parameter("mi", "Similarity", "Mutual information, correlation, squared difference or local correlation.",
                                choices=SIMILARITIES, advanced=False)
    coarsest: float = parameter(0.0, "Coarsest spacing", "Where the search begins; 0 takes 32 voxels along the longest edge.",
                                unit="mm", minimum=0.0)
    finest: float = parameter(0.0, "Finest spacing", "Where the search ends; 0 takes the voxel size of the coarser image.",
                              unit="mm", minimum=0.0)
    samples: int = parameter(FINE_SAMPLES, "Samples", "Points at which the images are compared on the finest level.", minimum=500, maximum=2000000)
    iterations: int = parameter(40, "Iterations", "At most so many steps per stage and level.", minimum=1, maximum=1000)
    bins: int = parameter(32, "Histogram bins", "Gray levels of the joint histogram of mutual information.", minimum=8, maximum=256)
    radius: float = parameter(0.0, "Window", "Radius of the local correlation; 0 takes two voxels of each level.", unit="mm", minimum=0.0)
    rotations: int = parameter(1000, "Rotations", "How many rotations the start 'global' tries in 3D.", minimum=10, maximum=100000)
    kept: int = parameter(6, "Rotations kept", "How many of them are refined.", minimum=1, maximum=100)

    def solve(self, problem, runtime):
        found = solve_linear(problem, LinearSettings(**self.values()), runtime)
        scalars = {"similarity_after": 1 - found.after, "overlap": found.overlap}
        if found.before is not None:
            scalars = {"similarity_before": 1 - found.before, **scalars}
        return Result(problem, found.transform, scalars=scalars, history=found.history, provenance={"start": found.start})
