"""An atlas and a registration network that are trained together on a cohort.

With A the atlas, an image of its own parameters, T_i = network(A, I_i) and R_i = network(I_i, A), each step lowers for a few subjects

    S(A, I_i o T_i) + S(I_i, A o R_i)  +  weight (tie(T_i, R_i) + tie(R_i, T_i))  +  p mean |m|^2 / L^2  +  q mean j^2

over the network and A. I_i o T_i is read from the cubic spline of I_i at half its spacing: linear interpolation between its voxels takes a fifth of
the gradient energy of a brain slice, which A would lack too. S is MSE over twice the variance of the first template, LNCC or MIND; tie is ICON or
GradICON; m(x) is the mean over the cohort of T_i(x) - x and j(x) that of log det dT_i, L the longest edge. 'whole': A follows all of it;
'similarity': A follows S alone. m and j are running means: every few steps they are taken over one pass through the cohort, subject by subject, with
the network as it then is (theta'), and in between they follow the drawn subjects b as m = m' + mean_b (T_b(theta) - T_b(theta')): what moves all
subjects alike is seen at once and with next to no noise (Johnson and Zhang, NIPS 2013), so no more than a few subjects are ever in memory and a
strong penalty does not hold the network back. The slope of |m|^2 in the parameters is 2 <m, d mean_i T_i>, for which the drawn subjects give an
estimate without bias.

Greer et al., ICON, ICCV 2021; Tian, Greer et al., GradICON, CVPR 2023. The images are seen through the linear maps of the members.
"""

from __future__ import annotations

import copy
import math
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ..engines import cohort_work as work
from ..engines.cohort_store import SubjectMap
from ..engines.network_pair import through
from ..errors import InputError
from ..geometry import Grid
from ..image import Image
from ..networks import heads, weights
from ..networks.composition import MultiResolution
from ..networks.heads import displacement, to_millimetres
from ..ops import fields
from ..ops.spline import doubled
from ..problem import Pair
from ..runtime import Runtime
from ..terms import CONSISTENCIES, LNCC, MINDSSC, MSE, Alignment, GradientInverseConsistency, Term
from ..transforms.base import require_finite
from . import processes
from .loop import TrainingSettings, pair_number, train

OBJECTIVES = ("whole", "similarity")
SIMILARITIES = ("mse", "lncc", "mind")
NETWORK, FOLDER = "MultiResolution", "network"
BETWEEN = 2.0
"""Passes of training between two passes for the means over the cohort."""
POINTS = 2048
"""Random points of GradICON in every step."""
FLOOR = 0.05
"""Determinants below go on along the tangent of the logarithm."""


@dataclass(frozen=True)
class JointSettings:
    """similarity and objective: words of ``SIMILARITIES`` and ``OBJECTIVES``; tie: 'icon' or 'gradicon' with its weight; displacement, jacobian:
    p and q above; gain: how much faster than the network the atlas moves; window mm of 'lncc'; batch: subjects a step; memory: MiB of
    images that are kept."""

    similarity: str = "mse"
    objective: str = "whole"
    tie: str = "gradicon"
    weight: float = 1.0
    displacement: float = 40.0
    jacobian: float = 0.0
    gain: float = 5.0
    window: float = 4.0
    batch: int = 4
    resolutions: int = 2
    width: int = 16
    steps: int = 1000
    rate: float = 1e-3
    memory: float = 2048.0

    def network(self, dim: int) -> MultiResolution:
        w = self.width
        return MultiResolution(dim, self.resolutions, (w, 2 * w, 2 * w), (2 * w, 2 * w, 2 * w), (w,))


class AtlasNetwork(nn.Module):
    """``network`` and the atlas = first + gain change; ``before``, ``atlas_before`` and the means of displacement (mm) and log-Jacobian over the
    cohort are those of the last pass."""

    def __init__(self, network: nn.Module, first: torch.Tensor, dim: int, gain: float):
        super().__init__()
        self.network, self.gain = network, gain
        self.before = copy.deepcopy(network).requires_grad_(False)
        self.register_buffer("atlas_before", first.clone())
        self.change = nn.Parameter(torch.zeros_like(first))
        self.register_buffer("first", first)
        self.register_buffer("displacement", torch.zeros(1, dim, *first.shape[2:]))
        self.register_buffer("log_jacobian", torch.zeros_like(first))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def atlas(self) -> torch.Tensor:
        """(1, 1, *S)."""
        return self.first + self.gain * self.change

    def maps(self, atlas: torch.Tensor, subjects: torch.Tensor, grid: Grid):
        """(T, R): atlas -> subjects and back, both of a batch."""
        atlas = atlas.expand_as(subjects)
        return displacement(self.network(atlas, subjects), grid), displacement(self.network(subjects, atlas), grid)

    def field_before(self, subjects: torch.Tensor, grid: Grid) -> torch.Tensor:
        """(B, dim, *S) mm: atlas -> subjects by the network and the atlas of the last pass."""
        return to_millimetres(self.before(self.atlas_before.expand_as(subjects), subjects), grid)


class JointAlignment(Alignment):
    """Atlas and subjects under their maps; ``tied`` is the alignment whose maps are tied, ``pull`` (B,) the cost of the running means,
    ``step`` the number of steps before, which the random points of GradICON follow from: a run that goes on sees those that it would have."""

    tied: Alignment
    pull: torch.Tensor
    step: int


@dataclass(frozen=True)
class JointCost(Term):
    """The cost of a ``JointAlignment``; both directions count alike."""

    similarity: Term
    tie: Term
    weight: float

    def __call__(self, alignment):
        same = self.similarity(alignment) + self.similarity(alignment.reverse)
        tie = replace(self.tie, seed=alignment.step) if isinstance(self.tie, GradientInverseConsistency) else self.tie
        return same + self.weight * (tie(alignment.tied) + tie(alignment.tied.reverse)) + alignment.pull


@dataclass(frozen=True)
class JointView:
    """How the answer of an ``AtlasNetwork`` is scored, for ``loop.train``. ``images`` has ``len`` and gives (1, 1, *S) of every subject; a pass for
    the means is made every ``every`` steps."""

    settings: JointSettings
    images: object
    every: int

    def __call__(self, model: AtlasNetwork, pair: Pair) -> list[tuple[float, Alignment]]:
        subjects, atlas = pair.moving, model.atlas
        if model.training and self._penalized and int(model.steps) % self.every == 0:
            self._pass(model, subjects.grid)
        fine = Image(doubled(subjects.data), subjects.grid.resample(spacing=subjects.grid.spacing / 2), name=subjects.name)
        alignment = _aligned(model, atlas, subjects, fine)
        whole = self.settings.objective == "whole"
        alignment.tied = alignment if whole else _aligned(model, atlas.detach(), subjects, fine)
        alignment.pull = self._pull(model, alignment.tied) if self._penalized else torch.zeros(subjects.data.shape[0], device=subjects.device)
        alignment.step = int(model.steps)
        model.steps += int(model.training)
        return [(1.0, alignment)]

    @property
    def _penalized(self) -> bool:
        return self.settings.displacement > 0 or self.settings.jacobian > 0

    @torch.no_grad()
    def _pass(self, model, grid: Grid) -> None:
        """The means over the cohort, by the network and the atlas as they are."""
        model.before.load_state_dict(model.network.state_dict())
        model.atlas_before.copy_(model.atlas)
        model.displacement.zero_()
        model.log_jacobian.zero_()
        for k in range(len(self.images)):
            u = model.field_before(self.images[k].to(model.first.device), grid)
            model.displacement += u / len(self.images)
            model.log_jacobian += tangent_log(fields.jacobian_determinant(u, grid)) / len(self.images)

    def _pull(self, model, alignment) -> torch.Tensor:
        """(B,) the penalties with their slopes in the maps of the drawn subjects."""
        grid, settings = alignment.grid, self.settings
        with torch.no_grad():
            before = model.field_before(alignment.reverse.fixed.data, grid)
        cost = penalty(model.displacement, alignment.field, before, settings.displacement / float(grid.extent.max()) ** 2)
        if settings.jacobian > 0:
            logs = tangent_log(alignment.determinant), tangent_log(fields.jacobian_determinant(before, grid))
            cost = cost + penalty(model.log_jacobian, *logs, settings.jacobian)
        return cost


def penalty(mean: torch.Tensor, values: torch.Tensor, before: torch.Tensor, weight: float) -> torch.Tensor:
    """(B,) weight |m|^2 per voxel with its slope in ``values`` (B, C, *S); m = ``mean`` (1, C, *S) of the cohort by the network that gave
    ``before`` for the same subjects, plus the mean change of these."""
    m = mean + processes.mean_of((values.detach() - before).mean(0, keepdim=True))
    slope = 2 * (m * (values - values.detach())).sum(1).flatten(1).mean(1)
    return weight * (m.square().sum(1).mean() + slope)


def _aligned(model: AtlasNetwork, atlas: torch.Tensor, subjects: Image, fine: Image) -> JointAlignment:
    """Atlas and ``subjects``; what is pulled onto the atlas are the same subjects at a finer spacing."""
    there, back = model.maps(atlas, subjects.data, subjects.grid)
    template = Image(atlas.expand_as(subjects.data), subjects.grid, name="atlas")
    alignment = JointAlignment(template, fine, there)
    alignment.reverse = Alignment(subjects, template, back, reverse=alignment)
    return alignment


def tangent_log(determinant: torch.Tensor) -> torch.Tensor:
    """log, and under ``FLOOR`` its tangent: finite, with a slope, where a map folds."""
    tangent = math.log(FLOOR) + (determinant - FLOOR) / FLOOR
    return torch.where(determinant > FLOOR, determinant.clamp_min(FLOOR).log(), tangent)


class Images:
    """The members' images on the atlas lattice, through their linear maps; the latest ones stay in memory as far as ``memory`` MiB reach.
    Pairs are drawn from them in one thread while another one looks at them."""

    def __init__(self, members, maps: dict[str, SubjectMap], grid: Grid, memory: float):
        self.members, self.maps, self.grid = members, maps, grid
        self.most = max(1, int(memory * (1 << 20) / (4 * grid.voxels)))
        self.held: OrderedDict[int, torch.Tensor] = OrderedDict()
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, k: int) -> torch.Tensor:
        with self.lock:
            if k not in self.held:
                values, weight = work.on_atlas(work.read(self.members[k]), self.maps[self.members[k].name], "cubic")
                self.held[k] = values * weight
                if len(self.held) > self.most:
                    self.held.popitem(last=False)
            self.held.move_to_end(k)
            return self.held[k]

    def draw(self, count: int, seed: int):
        """generator -> Pair whose images are both a batch of ``count`` subjects. Every pass goes through the cohort once, in an order of its own,
        so that running means over passes are hardly noisy."""
        n = len(self.members)

        def drawn(generator: torch.Generator) -> Pair:
            first = pair_number(generator, seed) * count
            batch = Image(torch.cat([self[_order(k // n, n, seed)[k % n]] for k in range(first, first + count)]), self.grid, name="subjects")
            return Pair(batch, batch)

        return drawn


def _order(turn: int, n: int, seed: int) -> list[int]:
    """The order of ``n`` subjects in a pass."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + turn)).tolist()


def objective(settings: JointSettings, variance: float) -> JointCost:
    """The cost of the settings; ``variance`` is that of the first template. InputError for unknown words."""
    terms = {"mse": lambda: (0.5 / max(variance, 1e-6)) * MSE(), "lncc": lambda: LNCC(radius=settings.window), "mind": MINDSSC}
    if settings.similarity not in terms or settings.objective not in OBJECTIVES:
        raise InputError(f"similarity '{settings.similarity}' and objective '{settings.objective}' were asked for; expected one of "
                         f"{', '.join(SIMILARITIES)} and one of {', '.join(OBJECTIVES)}")
    tie = GradientInverseConsistency(POINTS) if settings.tie == "gradicon" else CONSISTENCIES[settings.tie]()
    return JointCost(terms[settings.similarity](), tie, settings.weight)


def train_joint(members, maps: dict[str, SubjectMap], template: Image, settings: JointSettings, folder: Path, runtime: Runtime) -> Image:
    """The trained atlas; the network's weights are in ``folder``/network.safetensors. Goes on from the checkpoint in ``folder``.

    InputError for settings that do not fit, ConvergenceError, Cancelled (after a checkpoint).
    """
    grid = template.grid
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(runtime.seed)
        network = settings.network(grid.dim)
    model = AtlasNetwork(network, template.data.float(), grid.dim, settings.gain)
    count = min(settings.batch, len(members))
    images = Images(members, maps, grid, settings.memory)
    how = TrainingSettings(steps=settings.steps, rate=settings.rate, clip=0.0)
    view = JointView(settings, images, max(1, round(BETWEEN * len(members) / count)))
    train(model, view, objective(settings, float(template.data.var())), images.draw(count, runtime.seed), how, folder, runtime)
    model = model.to("cpu").eval()
    if processes.rank() > 0:
        return Image(model.atlas.detach().clone(), grid, name="template")
    card = weights.WeightsCard("", f"Atlas network, {grid.dim}D", "", "", 0, "that of the images", f"{len(members)} images of the user", NETWORK,
                               {"dim": grid.dim, "resolutions": settings.resolutions, **network.shape}, scaling="robust",
                               training=f"icon-atlas, {settings.steps} steps of {count} subjects, seed {runtime.seed}")
    weights.write(folder / f"{FOLDER}.safetensors", network, card)
    return Image(model.atlas.detach().clone(), grid, name="template")


@dataclass(frozen=True)
class Trained:
    """The network in a file as a pairwise method: (fixed, moving, start, runtime) -> start o network, ``fixed`` being the atlas."""

    path: Path

    def __call__(self, fixed: Image, moving: Image, start, runtime: Runtime):
        (network, _), device = weights.load(str(self.path), runtime), runtime.torch_device()
        seen = through(moving, start, fixed.grid)
        with torch.no_grad():
            said = network.to(device)(fixed.data.to(device), seen.data.to(device))
        transform = start @ heads.transform(said.to("cpu"), fixed.grid, network.output)
        require_finite(transform)
        return transform
