"""An atlas over age and the registration network that belongs to it, in turn or together.

With A_k the atlas at a knot over age, A(a) that of an age (``engines/ages.py``), phi_i the map that the network finds from A(a_i) to the subject
I_i, trained by the loss of ``temporal_loss.py``, and m_k the weighted mean displacement at a knot,

    phi_i <- refine(A(a_i), I_i), begun at phi_i                    any pairwise method, if asked for
    phi_i <- phi_i o (id + share m(a_i))^-1,    A_k <- weighted mean of I_i o phi_i

and all follow in turn until the atlas changes no more: the loss keeps the mean of the maps small, this takes out the rest of it. A generator
(``networks/generator.py``), trained along, is in the end set so that it draws the means of the centered maps. The images are seen through the linear
maps of the members.
Bastiaansen et al., Towards a 4D spatio-temporal atlas of the embryonic and fetal brain, 2022; Dalca et al., NeurIPS 2019.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable

import numpy as np
import torch

from ..engines import cohort_work as work
from ..engines.ages import Ages, add_to, blended, medians, seen_mean
from ..engines.cohort_store import Store, SubjectMap
from ..engines.cohort_work import Place
from ..engines.groupwise import Built, inverted, length
from ..image import Image
from ..networks import weights
from ..networks.generator import AtlasGenerator
from ..ops import fields
from ..runtime import Monitor, Runtime
from ..terms import LNCC
from ..transforms import Affine
from . import processes
from .atlas import Images
from .checkpoint import initialise, write
from .loop import TrainingSettings, pair_number, train
from .temporal_loss import NOISE, AgedPair, AgeNetwork, TemporalCost, TemporalSettings, TemporalView, aligned

NETWORK, GENERATOR = "network", "generator"
FEATURES = 6
"""Gaussians of age of a generator at least."""
FOUND = "found"
"""Folder of the maps that were refined and not centered yet: a run that goes on takes them from there."""
JITTER = 0.5
"""Deviation of the noise on ages in the order of a pass, in units of the distance of two knots: batches differ from pass to pass."""


@dataclass(eq=False)
class Temporal:
    """The atlas over age in the making. ``built``: members, lattice and figures so far, whose store goes on after ``first`` linear iterations;
    ``linear``: name -> linear map; ``order`` as in ``groupwise.build``; refine(fixed, moving, start, runtime) -> Transform."""

    built: Built
    linear: dict[str, SubjectMap]
    first: int
    ages: Ages
    settings: TemporalSettings
    place: Place
    runtime: Runtime
    order: dict
    refine: Callable | None = None

    def __post_init__(self):
        self.found = Store(self.place.folder / FOUND)
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
        for number, part in self._in_order(monitor.part(0.8, 0.95), "subject"):
            passed.register(number, part)
        passed.centre(self.settings.centering)
        for number, _ in self._in_order(monitor.part(0.95, 1.0), "template"):
            passed.add(number)
        new = passed.atlases()
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

    def _in_order(self, monitor: Monitor, text: str):
        """The numbers of the members by rising age, each with its part of the ``monitor``."""
        n = len(self.built.members)
        for k, number in enumerate(np.argsort(self.ages.known, kind="stable").tolist()):
            monitor.check()
            monitor.progress(k / n, f"{text} {k + 1}/{n}", k, n)
            yield number, monitor.part(k / n, (k + 1) / n, f"{text} {k + 1}/{n}")

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
        self.found.forget(k + 1)

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
        self.total, self.unseen = (torch.zeros(len(atlases), 1, *grid.shape, dtype=torch.float64) for _ in range(2))
        self.moved = torch.zeros(len(atlases), grid.dim, *grid.shape)
        self.log, self.square = (torch.zeros(1, 1, *grid.shape, dtype=torch.float64) for _ in range(2))
        self.figures, self.losses, self.windows, self.recent = [], [], [], deque(maxlen=flow.recent)

    def register(self, number: int, monitor: Monitor) -> None:
        """Find the map of one subject and keep it."""
        flow, member = self.flow, self.flow.built.members[number]
        made = SubjectMap(flow.linear[member.name].matrix, self._by_network(number), flow.built.grid)
        if flow.refine is not None:
            made = self._refined(number, made, monitor)
        add_to(self.moved, flow.weights[:, number], made.displacement)
        flow.place.store.write_map(self.iteration, member.name, made)

    @torch.no_grad()
    def _by_network(self, number: int) -> torch.Tensor:
        """(1, dim, *S) mm: what the network says of one subject; notes the losses of the equation."""
        flow, device, grid = self.flow, self.flow.runtime.torch_device(), self.flow.built.grid
        image = Image(flow.images[number], grid).to(device)
        alignment = aligned(self.model, blended(flow.basis[number][None], self.seen).to(device), image)
        self.recent.append(fields.to_index_units(alignment.transform.dense.displacement, grid).cpu())
        self.windows.append(float((sum(self.recent) / len(self.recent)).square().mean()))
        self.losses.append(float(LNCC(radius=flow.settings.window, noise=NOISE)(alignment.reverse)))
        return alignment.field.cpu()

    def _refined(self, number: int, made: SubjectMap, monitor: Monitor) -> SubjectMap:
        """The map of one subject, begun at ``made``; one that was kept before a stop is taken as it is."""
        flow, member, grid = self.flow, self.flow.built.members[number], self.flow.built.grid
        if not flow.found.has_map(self.iteration, member.name):
            atlas = Image(blended(flow.basis[number][None], self.seen), grid, name="atlas")
            transform = flow.refine(atlas, work.read(member), made.transform, replace(flow.runtime, monitor=monitor, work=None))
            back = Affine(torch.as_tensor(np.linalg.inv(made.matrix)))
            flow.found.write_map(self.iteration, member.name, SubjectMap(made.matrix, (back @ transform).field(grid).float(), grid))
        return flow.found.map(self.iteration, member.name)

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
        values, weight = work.on_atlas(image, made, "cubic")
        log = fields.jacobian_determinant(made.displacement, grid).clamp_min(work.FLOOR).log().double()
        add_to(self.total, flow.weights[:, number], (values * weight).double())
        add_to(self.unseen, flow.weights[:, number], 1 - weight.double())
        add_to(self.moved, flow.weights[:, number], made.displacement)
        self.log += log
        self.square += log.square()
        self.figures.append(figures)

    def atlases(self) -> torch.Tensor:
        """(K, 1, *S) float64: the new atlas of every knot, after all members were added."""
        return seen_mean(self.total, self.unseen)

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
