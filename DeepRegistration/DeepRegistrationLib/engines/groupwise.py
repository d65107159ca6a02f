"""An atlas of a cohort: a template and a map from it to every subject, in turn, until both agree.

With I_i the subjects (robust range scaled to [0, 1]) and s_i the maps of their headers, every iteration does

    T_i     <- register(template, I_i), begun at the T_i before          any pairwise method, at a spacing that falls over the iterations
    m(x)     = mean_i s_i^-1 T_i(x) - x                                   where the cohort pulls the template to
    T_i     <- T_i o (id + share m)^-1                                    so that the mean of all maps is the identity again
    template = mean_i I_i o T_i                                           one interpolation (cubic), never of an earlier template
    T_i     <- T_i o (id + v),  div v = - share mean_i log det dT_i       if asked for: the mean volume instead of the mean place
    template = template + a (template - G template)                       if asked for: a restores a share of the gradient energy that a mean loses

Joshi et al., NeuroImage 2004 (unbiased atlas); Guimond et al., CVIU 2000 and Avants et al., NeuroImage 2010 (the inverse mean map). Subjects
are read one at a time and sums alone are kept, so memory does not depend on their number. A subject that cannot be read or registered, or
that is far less like the template than the others, is set aside with a reason. All state is in files (``cohort_store``): a run that was
stopped goes on with every subject that was finished.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Callable

import numpy as np
import torch

from ..errors import ConvergenceError, InputError
from ..geometry import Grid
from ..image import Image
from ..ops import fields, nd
from ..ops.filters import gaussian
from ..ops.poisson import with_divergence
from ..runtime import Monitor
from . import cohort_work as work
from .cohort_store import Store, SubjectMap
from .cohort_work import CHUNK, Member, Place, Registration, Several, Sums
from .crew import Crew, Lost

STARTS = ("mean", "median", "random", "subject")
HALVINGS = 8
"""Passes over the cohort for its median: each halves the interval of every voxel."""
FEWEST = 5
"""Subjects that it takes to call one of them an outlier."""
OUTLIER = 6.0
"""Robust deviations below the median from which a subject is one."""
SPREAD = 0.01
"""Smallest deviation of the similarities that counts, so that a cohort of equals has no outliers."""


@dataclass(frozen=True)
class Stage:
    """One iteration: pairwise(fixed, moving, start, runtime) -> Transform; ``factor``: how coarse it is, in units of the lattice's spacing;
    ``linear``: it gives affine maps; ``smoothed``: images are brought to that spacing first (a method with levels of its own sees them whole);
    ``keeps``: the template was learned and is only centred, not made anew from the images."""

    pairwise: Callable
    factor: float = 1.0
    linear: bool = False
    smoothed: bool = True
    keeps: bool = False


@dataclass(frozen=True)
class GroupwiseSettings:
    """start: a word of ``STARTS`` (``reference`` names the subject of 'subject'); centering: share of the mean map that is taken out;
    outliers: deviations (from the median, in units of the robust spread) below which a similarity is an outlier's, 0 for none; sharpening:
    share of the gradient energy that the template lacks against its subjects and is given back."""

    start: str = "mean"
    reference: str = ""
    centering: float = 1.0
    outliers: float = OUTLIER
    sharpening: float = 0.0
    volume: float = 0.0

    def __post_init__(self):
        if self.reference and self.start != "subject":
            raise InputError(f"the subject '{self.reference}' was named to start from and the start is '{self.start}'; set it to 'subject', or name none")


@dataclass(eq=False)
class Built:
    """Where a build stands: the members that take part, rows of convergence figures, who was set aside and why, the cohort's mean
    gradient energy, and the sums of the last iteration (None before the first)."""

    members: tuple[Member, ...]
    grid: Grid
    rows: list[dict]
    set_aside: dict[str, str]
    energy: float
    iterations: int


def build(members: tuple[Member, ...], grid: Grid, stages: tuple[Stage, ...], settings: GroupwiseSettings, place: Place, crew: Crew, monitor: Monitor,
          order: dict, set_aside: dict[str, str] | None = None) -> Built:
    """Carry out the ``stages``; the maps and templates are in ``place.store``. ``order`` describes the request (JSON): what is in the
    store must have been made by the same one.

    InputError where fewer than two subjects remain, where the store belongs to another order; ConvergenceError where the mean map
    cannot be inverted; Cancelled.
    """
    flow = _Flow(members, grid, stages, settings, place, crew, order, dict(set_aside or {}))
    with place.working(grid):
        flow.begin(monitor.part(0.0, 0.05, "reading"))
        for k in range(flow.built.iterations, len(stages)):
            part = monitor.part(0.05 + 0.95 * k / len(stages), 0.05 + 0.95 * (k + 1) / len(stages), f"iteration {k + 1}/{len(stages)}")
            flow.iterate(k, part)
    return flow.built


@dataclass(eq=False)
class _Flow:
    members: tuple[Member, ...]
    grid: Grid
    stages: tuple[Stage, ...]
    settings: GroupwiseSettings
    place: Place
    crew: Crew
    order: dict
    set_aside: dict[str, str]

    @property
    def store(self) -> Store:
        return self.place.store

    # ------------------------------------------------------------------------------------------------------- the beginning

    def begin(self, monitor: Monitor) -> None:
        """The first template, or what an earlier run of the same order has left."""
        state = self.store.state()
        if state:
            if state["order"] != self.order:
                raise InputError(f"{self.store.folder} holds the state of another atlas (different: {', '.join(different(self.order, state['order']))}); "
                                 "give the same settings and cohort, or another folder")
            kept = tuple(member for member in self.members if member.name not in state["set_aside"])
            self.built = Built(kept, self.grid, state["rows"], state["set_aside"], state["energy"], state["iterations"])
            return
        total = self._sums(self.members, None, monitor.part(0.0, 0.5))
        self.built = Built(self.members, self.grid, [], self.set_aside, 0.0, 0)
        self._drop(total.unusable)
        self.built.energy = float(np.mean(list(total.energies.values())))
        self.store.write_template(0, self._first(total, monitor.part(0.5, 1.0)))
        self._note()

    def _first(self, total: Sums, monitor: Monitor) -> Image:
        start = self.settings.start
        if start == "mean":
            return _mean(total, self.grid)
        if start == "median":
            return self._median(total, monitor)
        if start == "random":
            noise = torch.rand(1, 1, *self.grid.shape, generator=torch.Generator().manual_seed(self.place.seed))
            return Image(noise, self.grid, name="template")
        if start != "subject":
            raise InputError(f"start '{start}' was asked for; expected one of {', '.join(STARTS)}")
        chosen = next((member for member in self.built.members if member.name == self.settings.reference), None)
        if chosen is None:
            raise InputError(f"the subject '{self.settings.reference}' to start from is not among those that can be used; "
                             f"name one of {', '.join(member.name for member in self.built.members[:5])}, ...")
        values, weight = work.on_atlas(work.read(chosen), SubjectMap(chosen.start, None, self.grid), "cubic")
        return Image(values * weight, self.grid, weight > 0, "template")

    def _median(self, total: Sums, monitor: Monitor) -> Image:
        """Of every voxel, by halving its interval: each pass counts the subjects below the middle, so that no list of values is held."""
        low, high = torch.zeros_like(total.data), torch.ones_like(total.data)
        for _ in monitor.steps(HALVINGS, "median"):
            middle = (low + high) / 2
            under, seen = (torch.zeros_like(low) for _ in range(2))
            for _, (more_under, more_seen) in self._map(work.below, self._several(self.built.members, None, middle), Monitor(), "median"):
                under, seen = under + more_under, seen + more_seen
            reached = under >= seen / 2
            high, low = torch.where(reached, middle, high), torch.where(reached, low, middle)
        return Image(((low + high) / 2 * (total.weight > 0)).float(), self.grid, _where_seen(total), "template")

    # ----------------------------------------------------------------------------------------------------- an iteration

    def iterate(self, k: int, monitor: Monitor) -> None:
        """Register all subjects to template ``k``, centre the maps, make template ``k + 1`` and note how it went."""
        began, stage = time.perf_counter(), self.stages[k]
        figures = self._register(k, stage, monitor.part(0.0, 0.85))
        self._drop(outliers(figures, self.settings.outliers))
        before, share = self._centre(k, stage, monitor.part(0.85, 0.9, "mean map"))
        total = self._sums(self.built.members, k, monitor.part(0.9, 1.0, "template"))
        self._drop(total.unusable)
        old = self.store.template(k)
        new = self._moved(k, old) if stage.keeps else sharpened(_mean(total, self.grid), self.built.energy, self.settings.sharpening)
        self.store.write_template(k + 1, new)
        self.store.write_statistics(k + 1, **logarithms(total))
        kept = [figures[member.name] for member in self.built.members]
        row = {"iteration": k + 1, "subjects": len(kept), "factor": stage.factor, "linear": int(stage.linear), **convergence(old, new, total, kept),
               "cohort_gradient_energy": self.built.energy, "mean_displacement": before, "centered": share, "seconds": time.perf_counter() - began}
        self.built.rows.append(row)
        self.built.iterations = k + 1
        self._note()
        self.store.forget(k)
        monitor.log(**{key: float(value) for key, value in row.items()})

    def _register(self, k: int, stage: Stage, monitor: Monitor) -> dict[str, dict]:
        factor = stage.factor if stage.smoothed else 1.0
        orders = [Registration(member, k, stage.pairwise, factor, self.place) for member in self.built.members]
        found, lost = {}, {}
        for number, outcome in self.crew.run(work.registered, orders, monitor, "subject"):
            name = orders[number].member.name
            if isinstance(outcome, Lost):
                lost[name] = f"could not be registered: {outcome.reason}"
            else:
                found[name] = outcome
        self._drop(lost)
        return found

    def _centre(self, k: int, stage: Stage, monitor: Monitor) -> tuple[float, float]:
        """Write the correction of an iteration; (root mean square of the mean displacement in mm, the share of it that is taken out)."""
        members, total = self.built.members, 0.0
        for _, part in self._map(work.displaced, self._several(members, k), monitor, "maps"):
            total = total + part
        mean = (total / len(members)).float()
        size = length(mean)
        if stage.linear:
            correction, share = self._linear_correction(k), self.settings.centering
        else:
            correction, share = inverted(mean, self.grid, self.settings.centering)
        self.store.write_correction(k, correction)
        if self.settings.volume > 0 and not stage.linear:
            self.store.write_correction(k, correction.after(self._level(k, monitor)))
        return size, share

    def _level(self, k: int, monitor: Monitor) -> SubjectMap:
        """id + v with div v = - share times the mean log-Jacobian of the centred maps: to first order log det d(id + v) takes that out."""
        total = torch.zeros(1, 1, *self.grid.shape, dtype=torch.float64)
        for _, part in self._map(work.grown, self._several(self.built.members, k), monitor, "volumes"):
            total += part
        mean = total / len(self.built.members)
        return SubjectMap(np.eye(self.grid.dim + 1), with_divergence(-self.settings.volume * mean, self.grid).float(), self.grid)

    def _moved(self, k: int, template: Image) -> Image:
        """A template that goes where the maps of its iteration were centred to."""
        frame = SubjectMap(np.eye(self.grid.dim + 1), None, self.grid).after(self.store.correction(k))
        values, _ = work.on_atlas(template, frame, "cubic")
        return Image(values, self.grid, name="template")

    def _linear_correction(self, k: int) -> SubjectMap:
        """The inverse of the mean matrix: linear maps stay linear."""
        mean = np.mean([np.linalg.inv(member.start) @ self.store.map(k, member.name).matrix for member in self.built.members], 0)
        eye = np.eye(self.grid.dim + 1)
        return SubjectMap(np.linalg.inv(eye + self.settings.centering * (mean - eye)), None, self.grid)

    # ------------------------------------------------------------------------------------------------------------ helpers

    def _several(self, members, iteration: int | None, threshold=None) -> list[Several]:
        return [Several(members[n : n + CHUNK], iteration, self.grid, self.place, threshold) for n in range(0, len(members), CHUNK)]

    def _sums(self, members, iteration: int | None, monitor: Monitor) -> Sums:
        total = Sums.zero(self.grid)
        for _, part in self._map(work.summed, self._several(members, iteration), monitor, "subjects"):
            total.add(part)
        return total

    def _map(self, function, orders, monitor, text):
        """The results of all orders in their order: sums of floating point numbers depend on it."""
        ready, turn = {}, 0
        for number, outcome in self.crew.run(function, orders, monitor, text):
            if isinstance(outcome, Lost):
                raise ConvergenceError(f"a sum over the subjects was not finished: {outcome.reason}; use fewer workers, or a coarser lattice")
            ready[number] = outcome
            while turn in ready:
                yield turn, ready.pop(turn)
                turn += 1

    def _drop(self, reasons: dict[str, str]) -> None:
        """Set subjects aside. InputError where fewer than two are left."""
        self.built.set_aside |= reasons
        self.built.members = tuple(member for member in self.built.members if member.name not in self.built.set_aside)
        if len(self.built.members) < 2:
            name, reason = next(iter({**reasons, **self.built.set_aside}.items()))
            raise InputError(f"{len(self.built.members)} of {len(self.members)} subjects can be used and an atlas needs two; "
                             f"set aside: {name}, {reason}")

    def _note(self) -> None:
        built = self.built
        self.store.note({"order": self.order, "iterations": built.iterations, "rows": built.rows, "set_aside": built.set_aside,
                         "energy": built.energy})


def different(one: dict, other: dict) -> list[str]:
    """The keys whose values are not the same; those of the inner dict where the values are dicts."""
    found = []
    for key in sorted({*one, *other}):
        a, b = one.get(key), other.get(key)
        if a != b:
            found += different(a, b) if isinstance(a, dict) and isinstance(b, dict) else [key]
    return found


def outliers(figures: dict[str, dict], limit: float) -> dict[str, str]:
    """Name -> reason of the subjects whose similarity lies more than ``limit`` robust deviations below the median; none among few subjects."""
    if limit <= 0 or len(figures) < FEWEST:
        return {}
    middle, spread = spread_of([f["similarity"] for f in figures.values()])
    return {name: f"outlier: its similarity to the template is {f['similarity']:.3f}, that of the others {middle:.3f} (spread {spread:.3f})"
            for name, f in figures.items() if f["similarity"] < middle - limit * spread}


def spread_of(similarities: list[float]) -> tuple[float, float]:
    """(median, robust deviation, at least ``SPREAD``)."""
    middle = float(np.median(similarities))
    return middle, max(1.4826 * float(np.median(np.abs(np.array(similarities) - middle))), SPREAD)


def sharpened(image: Image, energy: float, share: float) -> Image:
    """The image with detail of about a voxel (what a Gaussian of that width takes away) made stronger until the gap between its mean |grad|^2 and
    ``energy`` is smaller by ``share``; as it is where there is no gap."""
    detail = image.data - gaussian(image.data, 1.0)
    slopes = [nd.index_gradient(x)[0, 0] / torch.as_tensor(image.grid.spacing.copy(), dtype=x.dtype).reshape(-1, *[1] * image.dim)
              for x in (image.data, detail)]
    image_slope, detail_slope = slopes
    square, mixed, own = (float((a * b).sum(0).mean()) for a, b in ((image_slope, image_slope), slopes, (detail_slope, detail_slope)))
    gap = share * (energy - square)
    if gap <= 0 or own <= 0:
        return image
    strength = (-mixed + (mixed**2 + own * gap) ** 0.5) / own
    return replace(image, data=image.data + strength * detail)


def convergence(old: Image, new: Image, total: Sums, figures: list[dict]) -> dict[str, float]:
    """Figures of an iteration: mean similarity of the subjects to the old template, change (share) and gradient energy of the new one, root mean
    squares of the mean displacement that is left (mm) and of the mean log-Jacobian, mean share of folds, subjects that kept their map."""
    count = max(total.count, 1)
    return {"similarity": float(np.mean([f["similarity"] for f in figures])),
            "template_change": float((new.data - old.data).norm() / new.data.norm().clamp_min(1e-12)),
            "gradient_energy": work.gradient_energy(new.data, new.grid), "mean_displacement_left": length(total.moved / count),
            "mean_log_jacobian": length(total.log / count), "folds": float(np.mean([f["folds"] for f in figures])),
            "not_improved": sum(f["kept"] for f in figures)}


def logarithms(total: Sums) -> dict[str, np.ndarray]:
    """Mean and standard deviation over the subjects of the log-Jacobian of their maps, (1, 1, *S) float32."""
    mean = total.log / max(total.count, 1)
    spread = (total.square / max(total.count, 1) - mean.square()).clamp_min(0).sqrt()
    return {"mean_log_jacobian": mean.float().numpy(), "sd_log_jacobian": spread.float().numpy()}


def length(field: torch.Tensor) -> float:
    """Root mean square of the vectors of a field (1, dim, *S), in its unit."""
    return float(field.square().sum(1).mean().sqrt())


def inverted(mean: torch.Tensor, grid: Grid, share: float) -> tuple[SubjectMap, float]:
    """((id + share mean)^-1, the share): ``mean`` (1, dim, *S) mm; a share that cannot be undone to a tenth of a voxel is halved.

    ConvergenceError where an eighth cannot be undone either.
    """
    for _ in range(4):
        w, residual = fields.invert(share * mean, grid, 0.02 * float(grid.spacing.min()), target=grid)
        if residual <= 0.1 * float(grid.spacing.max()) or share == 0:
            return SubjectMap(np.eye(grid.dim + 1), w, grid), share
        share /= 2
    raise ConvergenceError(f"the mean of the maps cannot be inverted (error {residual:.2f} mm); the subjects are too far apart for one atlas, "
                           "or need a linear stage")


def _mean(total: Sums, grid: Grid) -> Image:
    return Image((total.data / total.weight.clamp_min(1e-6)).float(), grid, _where_seen(total), "template")


def _where_seen(total: Sums) -> torch.Tensor | None:
    """Where at least half of the subjects have something to say; None where they have it everywhere."""
    seen = total.weight >= max(total.count, 1) / 2
    return None if bool(seen.all()) else seen
