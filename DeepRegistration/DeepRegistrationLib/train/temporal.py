"""An atlas over age and the registration network that belongs to it, in turn or together.

With A(a) the atlas of an age (``engines/ages.py``), v = network(A(a_i), I_i), phi_i = exp(v): atlas -> subject, the network lowers

    L_sim(A(a_i) o phi_i^-1, I_i)  +  g |mean of the last c phi|^2  +  m |phi_i^-1|^2  +  d |grad phi_i^-1|^2

over subjects in the order of their ages, forth and back, so that the last c fields (displacements in voxels of the atlas) are of subjects of about
one age; L_sim is 1 - the squared local correlation. Then, with m_k the weighted mean displacement at a knot,

    phi_i <- phi_i o (id + share m(a_i))^-1,    A_k <- weighted mean of I_i o phi_i

and all follow in turn until the atlas changes no more: the loss keeps the mean of the maps small, this takes out the rest of it. With a generator
(``networks/generator.py``) a network draws A(a) and is trained along with

    |A(a_i) - I_i o phi_i|^2 / 2 var  +  t |A(a - s) - 2 A(a) + A(a + s)|^2 / 2 var,   s the distance of two knots,

for which phi_i is held: its best answer is that mean too, and in the end its images are set so that it draws the means of the centred maps. The images
are seen through the linear maps of the members.
Bastiaansen et al., Towards a 4D spatio-temporal atlas of the embryonic and fetal brain, 2022; Dalca et al., NeurIPS 2019.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..engines import cohort_work as work
from ..engines.ages import Ages, add_to, blended, medians
from ..engines.cohort_store import SubjectMap
from ..engines.cohort_work import Place
from ..engines.groupwise import Built, inverted, length
from ..geometry import Grid
from ..image import Image
from ..networks import heads, weights
from ..networks.generator import AtlasGenerator
from ..networks.unet import UNet
from ..ops import fields
from ..problem import Pair
from ..runtime import Monitor, Runtime
from ..terms import LNCC, Alignment, Diffusion, Term
from . import processes
from .atlas import Images
from .checkpoint import initialise, write
from .loop import TrainingSettings, pair_number, train

NETWORK, GENERATOR = "network", "generator"
NOISE = 0.1
"""Deviation that counts as noise in the local correlation, as a share of that of the image: flat background is a match, not a quarrel."""
FEATURES = 6
"""Gaussians of age of a generator at least."""
JITTER = 0.5
"""Deviation of the noise on ages in the order of a pass, in units of the distance of two knots: batches differ from pass to pass."""


@dataclass(frozen=True)
class TemporalSettings:
    """group, magnitude, diffusion: g, m and d above; smoothness: of the atlas over age (``Ages.weights``; t of a generator); window mm of the
    local correlation; recent: c, 0 for the mean number of subjects a knot; generator: draw the atlas by a network; centering: share above; iterations at most
    of ``steps`` each, until the atlas changes by less than ``change`` (share); batch: subjects a step; memory: MiB of images that are kept."""

    group: float = 10.0
    magnitude: float = 0.01
    diffusion: float = 0.01
    smoothness: float = 0.0
    window: float = 4.0
    recent: int = 0
    generator: bool = False
    centering: float = 1.0
    iterations: int = 4
    change: float = 0.02
    steps: int = 500
    rate: float = 1e-3
    batch: int = 2
    width: int = 16
    levels: int = 3
    memory: float = 2048.0

    def network(self, dim: int) -> UNet:
        w, n = self.width, self.levels
        return UNet(dim, (w,) + (2 * w,) * (n - 1), (2 * w,) * n, (w,), output="velocity", half=True)


class AgeNetwork(nn.Module):
    """``network`` (a velocity on the half lattice), ``generator`` or None, and the last fields that were found, in voxels of the atlas."""

    def __init__(self, network: UNet, generator: AtlasGenerator | None, recent: int, grid: Grid):
        super().__init__()
        self.network, self.generator = network, generator
        self.register_buffer("recent", torch.zeros(recent, grid.dim, *(n // 2 for n in grid.shape)))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    def velocity(self, atlas: torch.Tensor, subjects: torch.Tensor, grid: Grid):
        """Atlas -> subjects as the flow of a velocity."""
        return heads.transform(self.network(atlas, subjects), grid, self.network.output)

    def mean_of_recent(self, found: torch.Tensor) -> torch.Tensor:
        """(1, dim, *S): the mean of ``found`` (B, dim, *S) and of the fields before it; in training the oldest ones make room for them."""
        others = self.recent[: max(min(int(self.filled), len(self.recent) - len(found)), 0)].clone()
        mean = (others.sum(0) + found.sum(0)) / (len(others) + len(found))
        if self.training:
            held = torch.cat([found.detach(), self.recent])[: len(self.recent)]
            self.recent.copy_(held)
            self.filled += len(found)
        return mean[None]


@dataclass(frozen=True, eq=False)
class AgedPair(Pair):
    """A batch of subjects (moving) and the atlas at their ages; ``share`` (B,): where the ages lie between the first and the last knot."""

    share: torch.Tensor | None = None


class AgedAlignment(Alignment):
    """Atlas and subjects; ``pull`` (B,) the squared mean of the last fields, ``drawing`` (B,) the cost of the generator, 0 without one."""

    pull: torch.Tensor
    drawing: torch.Tensor


@dataclass(frozen=True)
class TemporalCost(Term):
    """The cost of an ``AgedAlignment`` (equation above)."""

    settings: TemporalSettings

    def __call__(self, alignment):
        settings, back = self.settings, alignment.reverse
        moved = back.field / float(np.prod(back.grid.spacing)) ** (1 / back.grid.dim)
        return (LNCC(radius=settings.window, noise=NOISE)(back) + settings.group * alignment.pull + settings.magnitude * moved.square().flatten(1).mean(1)
                + settings.diffusion * Diffusion()(back) + alignment.drawing)


@dataclass(frozen=True)
class TemporalView:
    """How the answer of an ``AgeNetwork`` is scored, for ``loop.train``; ``step``: share of the ages between two knots; variance of the first
    atlas."""

    settings: TemporalSettings
    step: float
    variance: float

    def __call__(self, model: AgeNetwork, pair: AgedPair) -> list[tuple[float, Alignment]]:
        subjects, atlas = pair.moving, pair.fixed.data
        drawn = None if model.generator is None else model.generator(pair.share)
        atlas = atlas if drawn is None else drawn.detach()
        alignment = aligned(model, atlas, subjects)
        voxels = fields.to_index_units(alignment.transform.dense.displacement, subjects.grid).movedim(-1, 1)
        alignment.pull = model.mean_of_recent(voxels).square().mean().expand(len(voxels))
        alignment.drawing = torch.zeros_like(alignment.pull) if drawn is None else self._drawing(model, pair, drawn, alignment)
        return [(1.0, alignment)]

    def _drawing(self, model, pair, drawn, alignment) -> torch.Tensor:
        cost = (drawn - alignment.warped.detach()).square().flatten(1).mean(1)
        if self.settings.smoothness > 0:
            middle = pair.share.clamp(self.step, 1 - self.step)
            before, here, after = (model.generator(middle + k * self.step) for k in (-1, 0, 1))
            cost = cost + self.settings.smoothness * (before - 2 * here + after).square().flatten(1).mean(1)
        return cost / (2 * max(self.variance, 1e-6))


def aligned(model: AgeNetwork, atlas: torch.Tensor, subjects: Image) -> AgedAlignment:
    """Atlas (B, 1, *S) and subjects under the map that the network finds, and the way back."""
    flow = model.velocity(atlas, subjects.data, subjects.grid)
    template = Image(atlas, subjects.grid, name="atlas")
    alignment = AgedAlignment(template, subjects, flow)
    alignment.reverse = Alignment(subjects, template, flow.inverse(), reverse=alignment)
    return alignment


@dataclass(eq=False)
class Temporal:
    """The atlas over age in the making. ``built``: members, lattice and figures so far, whose store goes on after ``first`` linear iterations;
    ``linear``: name -> linear map; ``order`` as in ``groupwise.build``."""

    built: Built
    linear: dict[str, SubjectMap]
    first: int
    ages: Ages
    settings: TemporalSettings
    place: Place
    runtime: Runtime
    order: dict

    def __post_init__(self):
        self.images = Images(self.built.members, self.linear, self.built.grid, self.settings.memory)
        self.weights = self.ages.weights(self.settings.smoothness)
        self.basis = self.ages.basis(self.ages.known)
        self._shares = torch.as_tensor(self.ages.share(self.ages.knots), dtype=torch.float32)
        self.recent = self.settings.recent or max(2, round(len(self.ages.known) / len(self.ages.knots)))

    def build(self, monitor: Monitor) -> None:
        """Make atlases, maps and networks, as files; ``built`` says how it went. Goes on where an earlier run has stopped. Cancelled."""
        built, store, first = self.built, self.place.store, self.first
        most = 1 if self.settings.generator else self.settings.iterations
        with self.place.working(built.grid):
            with processes.one_first():
                if built.iterations == first and not store.has_atlases(first):
                    store.write_atlases(first, medians(self.images, self.basis, monitor.part(0.0, 0.1)))
            for n in range(built.iterations - first, most):
                if n and built.rows[-1]["template_change"] < self.settings.change:
                    break
                part = monitor.part(0.1 + 0.9 * n / most, 0.1 + 0.9 * (n + 1) / most, f"iteration {n + 1}/{most}")
                self._iterate(n, part)

    def _iterate(self, n: int, monitor: Monitor) -> None:
        k, store = self.first + n, self.place.store
        old = store.atlases(k)
        model = self._trained(n, old, monitor.part(0.0, 0.8, "network"))
        if processes.rank() > 0:
            self._follow()
            return
        seen = old if model.generator is None else drawn(model.generator, self._shares)
        passed = _Pass(self, k, model, seen)
        for number in self._in_order(monitor.part(0.8, 0.9, "subject")):
            passed.register(number)
        passed.centre(self.settings.centering)
        for number in self._in_order(monitor.part(0.9, 1.0, "template")):
            passed.add(number)
        new = passed.atlases
        if model.generator is not None:
            model.generator.cpu().settle(self._shares, new)
            write({"network": model.state_dict()}, self.training(n) / "model.pt")
            new = drawn(model.generator, self._shares)
        self._note(k, passed.row(old, new), passed, new)
        processes.meet()
        monitor.log(**{key: float(value) for key, value in self.built.rows[-1].items()})

    def _follow(self) -> None:
        """Of several processes that train together the first one makes the atlas; the others wait for it and read how it went."""
        processes.meet()
        state = self.place.store.state()
        self.built.rows, self.built.iterations = state["rows"], state["iterations"]

    def _in_order(self, monitor: Monitor):
        """The numbers of the members by rising age."""
        for _, number in zip(monitor.steps(len(self.built.members)), np.argsort(self.ages.known, kind="stable").tolist()):
            yield number

    def _note(self, k: int, row: dict, passed: "_Pass", new: torch.Tensor) -> None:
        built, store = self.built, self.place.store
        store.write_correction(k, SubjectMap(np.eye(built.grid.dim + 1), None, built.grid))
        store.write_atlases(k + 1, new)
        store.write_template(k + 1, Image(new[len(new) // 2][None], built.grid, name="template"))
        store.write_statistics(k + 1, **passed.statistics())
        built.rows.append(row)
        built.iterations = k + 1
        store.note({"order": self.order, "iterations": built.iterations, "rows": built.rows, "set_aside": built.set_aside, "energy": built.energy})
        store.forget(k)

    # -------------------------------------------------------------------------------------------------------- training

    def training(self, n: int) -> Path:
        """The folder of the n-th training."""
        return self.place.folder / f"training-{n:02d}"

    def _trained(self, n: int, atlases: torch.Tensor, monitor: Monitor) -> AgeNetwork:
        """The network after the n-th training, on the atlases of the iteration before; it begins with what the one before has learned."""
        settings, runtime = self.settings, replace(self.runtime, monitor=monitor)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(runtime.seed)
            model = self._model()
        if n:
            initialise(model, self.training(n - 1) / "model.pt")
        elif settings.generator:
            model.generator.begin_with(self._shares, atlases)
        view = TemporalView(settings, 1 / (len(self.ages.knots) - 1), float(atlases.var()))
        how = TrainingSettings(steps=settings.steps, rate=settings.rate)
        train(model, view, TemporalCost(settings), self._draw(atlases, runtime.seed), how, self.training(n), runtime)
        if processes.rank() == 0:
            write({"network": model.state_dict()}, self.training(n) / "model.pt")
        return model.eval()

    def _draw(self, atlases: torch.Tensor, seed: int):
        """generator -> AgedPair of the next few subjects in the order of their ages."""
        count = min(self.settings.batch, len(self.ages.known))
        share = self.ages.share(self.ages.known)

        def drawn_pair(generator: torch.Generator) -> AgedPair:
            first = pair_number(generator, seed) * count
            numbers = [self._turn(k // len(share), seed)[k % len(share)] for k in range(first, first + count)]
            subjects = Image(torch.cat([self.images[k] for k in numbers]), self.built.grid, name="subjects")
            fixed = Image(blended(self.basis[numbers], atlases), self.built.grid, name="atlas")
            return AgedPair(fixed, subjects, share=torch.as_tensor(share[numbers], dtype=torch.float32))

        return drawn_pair

    def _turn(self, turn: int, seed: int) -> np.ndarray:
        """The subjects of a pass in the order of their ages, back in every second one: neighbors are of about one age there too."""
        step = JITTER / (len(self.ages.knots) - 1)
        noise = torch.randn(len(self.ages.known), generator=torch.Generator().manual_seed(seed * 1_000_003 + turn)).numpy()
        order = np.argsort(self.ages.share(self.ages.known) + step * noise, kind="stable")
        return order[::-1] if turn % 2 else order

    def finished(self):
        """ages (M,) -> the atlases (M, 1, *S), after ``build``."""
        if self.settings.generator:
            generator = self._last_model().generator
            return lambda ages: drawn(generator, self.ages.share(ages))
        atlases = self.place.store.atlases(self.built.iterations)
        return lambda ages: blended(self.ages.basis(ages), atlases)

    def _model(self) -> AgeNetwork:
        settings, grid = self.settings, self.built.grid
        generator = AtlasGenerator(grid.shape, max(FEATURES, len(self.ages.knots))) if settings.generator else None
        return AgeNetwork(settings.network(grid.dim), generator, self.recent, grid)

    def _last_model(self) -> AgeNetwork:
        """The networks after the last training."""
        model = self._model()
        initialise(model, self.training(self.built.iterations - self.first - 1) / "model.pt")
        return model.eval()

    def judged(self) -> list[dict]:
        """The figures of every subject against the finished atlas of its age, after ``build``."""
        built, store, at, rows = self.built, self.place.store, self.finished(), []
        for member, age in zip(built.members, self.ages.known):
            atlas = Image(at([age]), built.grid)
            rows.append({"subject": member.name, "age": float(age), **work.judged(atlas, work.read(member), store.map(built.iterations - 1, member.name))})
        return rows

    def keep_weights(self, folder: Path) -> dict[str, Path]:
        """Write the trained networks as weights with their cards; name -> file."""
        settings, grid, model = self.settings, self.built.grid, self._last_model()
        said = f"spatiotemporal-atlas, {settings.steps} steps of {settings.batch} subjects, seed {self.runtime.seed}"
        w, levels = settings.width, settings.levels
        arguments = {"dim": grid.dim, "encoder": [w] + [2 * w] * (levels - 1), "decoder": [2 * w] * levels, "tail": [w], "output": "velocity", "half": True}
        card = weights.WeightsCard("", f"Network of an atlas over age, {grid.dim}D", "", "", 0, "that of the images",
                                   f"{len(self.built.members)} images of the user", "UNet", arguments, scaling="robust", training=said)
        weights.write(folder / f"{NETWORK}.safetensors", model.network, card)
        if model.generator is not None:
            title = f"Generator of an atlas over age, {grid.dim}D"
            card = replace(card, title=title, network="AtlasGenerator", arguments={"shape": list(grid.shape), "features": len(model.generator.centers)})
            weights.write(folder / f"{GENERATOR}.safetensors", model.generator, card)
        return {path.name: path for path in folder.iterdir()}


@torch.no_grad()
def drawn(generator: AtlasGenerator, shares) -> torch.Tensor:
    """(K, 1, *S) on the CPU: the atlases at ``shares`` (K,), one at a time."""
    return torch.cat([generator(share[None]).cpu() for share in torch.as_tensor(shares, dtype=torch.float32)])


class _Pass:
    """Two passes through the cohort with the trained network: maps and their means, then the centred maps, the new atlas and figures."""

    def __init__(self, flow: Temporal, iteration: int, model: AgeNetwork, atlases: torch.Tensor):
        self.flow, self.iteration, self.model, self.seen = flow, iteration, model.to(flow.runtime.torch_device()), atlases
        grid = flow.built.grid
        self.atlases = torch.zeros(len(atlases), 1, *grid.shape, dtype=torch.float64)
        self.moved = torch.zeros(len(atlases), grid.dim, *grid.shape)
        self.log, self.square = (torch.zeros(1, 1, *grid.shape, dtype=torch.float64) for _ in range(2))
        self.figures, self.losses, self.windows, self.recent = [], [], [], deque(maxlen=flow.recent)

    @torch.no_grad()
    def register(self, number: int) -> None:
        """Find the map of one subject and keep it; the losses of the equation."""
        flow, device = self.flow, self.flow.runtime.torch_device()
        name, grid = flow.built.members[number].name, flow.built.grid
        image = Image(flow.images[number], grid).to(device)
        alignment = aligned(self.model, blended(flow.basis[number][None], self.seen).to(device), image)
        self.recent.append(fields.to_index_units(alignment.transform.dense.displacement, grid).cpu())
        self.windows.append(float((sum(self.recent) / len(self.recent)).square().mean()))
        self.losses.append(float(LNCC(radius=flow.settings.window, noise=NOISE)(alignment.reverse)))
        u = alignment.field.cpu()
        add_to(self.moved, flow.weights[:, number], u)
        flow.place.store.write_map(self.iteration, name, SubjectMap(flow.linear[name].matrix, u, grid))

    def centre(self, share: float) -> None:
        """What all maps are preceded by: the inverse of the mean map at every knot. ConvergenceError where it has none."""
        grid = self.flow.built.grid
        self.before = np.array([length(m[None]) for m in self.moved])
        self.inverse = torch.cat([inverted(m[None], grid, share)[0].displacement for m in self.moved])
        self.moved.zero_()

    def add(self, number: int) -> None:
        """Centre the map of one subject, judge it, and add what it gives to all sums."""
        flow, store = self.flow, self.flow.place.store
        member, grid, basis = flow.built.members[number], flow.built.grid, flow.basis[number][None]
        made = store.map(self.iteration, member.name).after(SubjectMap(np.eye(grid.dim + 1), blended(basis, self.inverse), grid))
        image = work.read(member)
        figures = work.judged(Image(blended(basis, self.seen), grid), image, made)
        store.keep(self.iteration, member.name, made, figures)
        values, weight = work.on_atlas(image, made)
        log = fields.jacobian_determinant(made.displacement, grid).clamp_min(work.FLOOR).log().double()
        add_to(self.atlases, flow.weights[:, number], (values * weight).double())
        add_to(self.moved, flow.weights[:, number], made.displacement)
        self.log += log
        self.square += log.square()
        self.figures.append(figures)

    def row(self, old: torch.Tensor, new: torch.Tensor) -> dict:
        """Figures of the iteration, as in ``groupwise.convergence``; similarity_loss and group_loss (voxel^2): terms of the loss after training, the
        latter over c fields in the order of age; mean_displacement (mm) of the maps before they are centred, mean_displacement_left after."""
        flow, grid = self.flow, self.flow.built.grid
        kept = {key: float(np.mean([f[key] for f in self.figures])) for key in ("similarity", "folds")}
        energy = np.mean([work.gradient_energy(one[None].float(), grid) for one in new])
        return {"iteration": self.iteration + 1, "subjects": len(self.figures), **kept, "similarity_loss": float(np.mean(self.losses)),
                "group_loss": float(np.mean(self.windows[flow.recent - 1 :])), "mean_displacement": float(self.before.mean()),
                "template_change": float((new - old).norm() / new.norm().clamp_min(1e-12)), "gradient_energy": float(energy),
                "cohort_gradient_energy": flow.built.energy, "mean_displacement_left": float(np.mean([length(m[None]) for m in self.moved]))}

    def statistics(self) -> dict[str, np.ndarray]:
        """Mean and deviation of the log-Jacobian over all subjects, and the mean displacement at every knot (K,), mm."""
        count = len(self.figures)
        mean = self.log / count
        spread = (self.square / count - mean.square()).clamp_min(0).sqrt()
        return {"mean_log_jacobian": mean.float().numpy(), "sd_log_jacobian": spread.float().numpy(),
                "mean_displacement": np.array([length(m[None]) for m in self.moved])}
