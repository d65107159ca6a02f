"""Gradient inverse consistency: two networks that undo each other up to a shift, for one pair or, once trained, for all of a kind.

With T: fixed -> moving and R: moving -> fixed the whole regulariser is

    L(T, R) = S(f, m o T) + S(m, f o R) + weight (mean |d (R o T - id)|^2 + mean |d (T o R - id)|^2).

Without ``weights`` T and R are coordinate networks, position -> displacement, fitted to this pair alone at random points, the derivative
by automatic differentiation (``engines/pointwise.py``). With the weights of a network that was trained on such pairs
(``train/resolutions.py``, three resolutions) its answer is the result, and nothing is fitted. Tian, Greer et al., CVPR 2023.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import torch

from ..engines.channels import CHANNELS, normalised_pair
from ..engines.linear import LinearSettings, align_linear
from ..engines.network_pair import seen
from ..engines.pointwise import PointwiseSettings, fit
from ..errors import InputError
from ..method import Card, Method, Preset, method
from ..networks import weights
from ..networks.composition import MultiResolution
from ..networks.coordinates import CoordinateMap, CoordinateNetwork, FourierFeatures, HashGrid
from ..networks.heads import displacement
from ..parameters import parameter, require_coarse_to_fine, require_counts
from ..result import Result
from ..terms import MSE, SIMILARITIES, GradientInverseConsistency
from ..transforms import Affine
from ..transforms.base import Identity, linear_part, require_finite

NETWORK = "MultiResolution"
"""The name of the network on the card of its weights."""

TANCIK = """@inproceedings{Tancik2020Fourier,
  author = {Tancik, Matthew and Srinivasan, Pratul P. and Mildenhall, Ben and Fridovich-Keil, Sara and Raghavan, Nithin and Singhal, Utkarsh
            and Ramamoorthi, Ravi and Barron, Jonathan T. and Ng, Ren},
  title = {Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains},
  booktitle = {Advances in Neural Information Processing Systems}, volume = {33}, year = {2020}}"""

MUELLER = """@article{Mueller2022Hash,
  author = {M{\\"u}ller, Thomas and Evans, Alex and Schied, Christoph and Keller, Alexander},
  title = {Instant Neural Graphics Primitives with a Multiresolution Hash Encoding},
  journal = {ACM Transactions on Graphics}, volume = {41}, number = {4}, pages = {102:1--102:15}, year = {2022}}"""


@method(Card(
    title="Gradient inverse consistency",
    summary="Two networks that undo each other up to a shift: fitted to one pair, or trained once and given as weights.",
    task="deformable registration",
    references=(GradientInverseConsistency.reference, TANCIK, MUELLER),
    assumptions=("both images show the same anatomy; in one contrast for 'mse' and 'ncc', in any for 'mi' and 'mind'",
                 "the linear start brings corresponding structures to within about their own size",
                 "weights: the images are like those that the network was trained on"),
    failure_modes=("detail finer than the encoding can follow: more waves or levels, and more steps, help",
                   "sliding organs and missing tissue: the map is smooth everywhere",
                   "a regularizer weight near 0: nothing else keeps the map from folding"),
    weights=("none are shipped; give the file of a network that you trained",),
    presets={
        "default": Preset("one pair, by coordinate networks on Fourier features"),
        "fourier": Preset("the same by name: smooth maps, few parameters", {"encoding": "fourier"}),
        "hash": Preset("features on hashed lattices of several resolutions: follows finer detail", {"encoding": "hash"}),
        "aligned": Preset("the images are aligned already: no linear stage", {"start": "none"}),
        "multimodal": Preset("images of different contrast, by self-similarity", {"similarity": "mind"}),
    },
))
@dataclass(frozen=True)
class GradICON(Method):
    weights: str = parameter("", "Weights", "File of a trained network of several resolutions; empty fits coordinate networks to this pair.",
                             advanced=False)
    start: str = parameter("affine", "Linear start", "What comes first when no starting transform is given.",
                           choices=("affine", "rigid", "none"), advanced=False)
    similarity: str = parameter("ncc", "Similarity", "What makes the images alike, at random points.", choices=("ncc", "mse", "mi", "mind"),
                                advanced=False)
    encoding: str = parameter("fourier", "Encoding", "How positions enter the coordinate networks.", choices=("fourier", "hash"), advanced=False)
    weight: float = parameter(0.05, "Regularizer weight", "Of the gradient of inverse consistency against the similarity.", minimum=0.0,
                              advanced=False)
    factors: tuple[float, ...] = parameter((4.0, 2.0, 1.0), "Levels", "Sharpness of the images in units of the finest spacing, coarse to fine.",
                                           minimum=1.0, maximum=64.0)
    iterations: tuple[int, ...] = parameter((60, 60, 60), "Iterations", "Steps on each level.", minimum=0, maximum=100000, advanced=False)
    finest: float = parameter(0.0, "Finest spacing", "0 takes the voxel size.", unit="mm", minimum=0.0)
    rate: float = parameter(5e-3, "Rate", "First step length of Adam.", minimum=1e-6, maximum=1.0)
    samples: int = parameter(2048, "Samples", "Random points of each image in every step.", minimum=16, maximum=1 << 22)
    tied: int = parameter(1024, "Tied points", "Random points of the regularizer in each direction and step.", minimum=16, maximum=1 << 22)
    width: int = parameter(48, "Width", "Units of each layer of the coordinate networks.", minimum=4, maximum=1024)
    depth: int = parameter(2, "Depth", "Layers between the encoding and the displacement.", minimum=1, maximum=16)
    waves: int = parameter(48, "Waves", "Number of Fourier features.", minimum=1, maximum=4096)
    frequency: float = parameter(0.8, "Frequency", "Standard deviation of the waves' frequencies, per half of the longest edge.",
                                 minimum=0.0, maximum=100.0)
    levels: int = parameter(5, "Hash levels", "Lattices of the hash encoding, from 4 cells an edge, each 1.6 times finer.", minimum=1, maximum=16)

    def solve(self, problem, runtime):
        network = self._network(problem, runtime)
        if network is None:
            require_coarse_to_fine(self.factors)
            require_counts(self.factors, self.iterations)
        start = self._start(problem, runtime, runtime.monitor.part(0.0, 0.2, "linear start"))
        begin = 0.2 if problem.initial is None and self.start != "none" else 0.0
        solver = self._fitted if network is None else self._said
        return solver(problem, start, runtime, runtime.monitor.part(begin, 1.0, "networks"), network)

    def _network(self, problem, runtime):
        """(network, card) of the weights, or None where none are given. InputError for those of another network or dimension."""
        if not self.weights:
            return None
        path, card = weights.locate(self.weights, runtime)
        if card is None or card.network != NETWORK:
            raise InputError(f"{path} has no card that names a {NETWORK}; give the weights of a network that was trained by resolution")
        data = weights.checked(path, card)
        try:
            network = MultiResolution(**card.arguments)
        except (TypeError, ValueError) as error:
            raise InputError(f"the card '{card.title}' does not describe a {NETWORK}: {error}") from None
        if network.dim != problem.dim:
            raise InputError(f"the weights '{card.title}' are for {network.dim}D images; the images are {problem.dim}D")
        return weights.fill(network, weights.read(data, path.name), path.name), card

    def _start(self, problem, runtime, monitor):
        if problem.initial is not None:
            return problem.initial
        if self.start == "none":
            return Affine.identity(problem.dim)
        return align_linear(problem, LinearSettings(freedom=self.start), runtime, monitor)

    def _fitted(self, problem, start, runtime, monitor, _):
        """Coordinate networks for this pair, after the start: its linear part is folded into the header, a deformation is sampled."""
        if not isinstance(start, (Affine, Identity)):
            raise InputError("a deformation was given to start from, but coordinate networks begin from a linear map; give a linear start, "
                             "or refine the deformation by 'instance-optimisation'")
        linear, dim = linear_part(start), problem.dim
        fixed, moving = normalised_pair(problem.fixed, problem.moving)
        frames = fixed.grid, moving.grid.moved(linear.inverse().numpy())
        generator = runtime.generator()
        maps = tuple(CoordinateMap(self._untrained(dim, generator), frame) for frame in frames)
        (there, back), history = fit(replace(problem, fixed=fixed, moving=moving), linear, maps, self._term(), self._settings(fixed),
                                     monitor, runtime.torch_device(), runtime.seed)
        points = torch.as_tensor(fixed.grid.points().reshape(1, -1, dim)[:, :: max(1, fixed.grid.voxels // 20000)]).float()
        error = torch.linalg.vector_norm(back.to("cpu")(there.to("cpu")(points)) - points, dim=-1)
        scalars = {"cost": history[-1]["cost"], "inverse_consistency_mm": float(error.median())}
        return Result(problem, linear @ there.to("cpu"), scalars=scalars, history=history)

    def _untrained(self, dim, generator):
        if self.encoding == "hash":
            encoding = HashGrid(dim, self.levels, generator=generator)
        else:
            encoding = FourierFeatures(dim, self.waves, self.frequency, generator)
        return CoordinateNetwork(dim, encoding, self.width, self.depth, generator)

    def _term(self):
        return MSE() if self.similarity == "mind" else SIMILARITIES[self.similarity]()

    def _settings(self, fixed):
        """The squared difference is weighed in units of twice the fixed variance, so that the weight means the same for all similarities."""
        finest = max(self.finest, float(fixed.grid.spacing[fixed.grid.wide].min()))
        weight = self.weight * (2 * max(float(fixed.data.var()), 1e-6) if self.similarity == "mse" else 1.0)
        return PointwiseSettings(tuple(finest * f for f in self.factors), self.iterations, self.rate, weight, self.samples, self.tied,
                                 channels="mind" if self.similarity == "mind" else CHANNELS[0])

    def _said(self, problem, start, runtime, monitor, loaded):
        """The answer of a trained network."""
        (network, card), device = loaded, runtime.torch_device()
        network = network.to(device)
        with torch.no_grad():
            for step in monitor.steps(2, "network"):
                if step == 0:
                    fixed, moving = seen(problem.fixed.to(device), problem.moving.to(device), start.to(device), card, network.multiple)
                else:
                    deformation = displacement(network(fixed.data, moving.data), fixed.grid)
        transform = start @ deformation.to("cpu")
        require_finite(transform)
        if monitor.wants_preview:
            monitor.preview(transform)
        kept = {key: value for key, value in asdict(card).items() if key in ("title", "sha256", "size", "licence")}
        return Result(problem, transform, provenance={"weights": kept})
