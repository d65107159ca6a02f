"""An atlas of a cohort and the maps from it to every subject.

    template = mean_i I_i o T_i,   T_i = register(template, I_i),   T_i <- T_i o (id + share mean_i (T_i - id))^-1

in turn, coarse to fine, with any pairwise method of the registry as ``register`` (``engines/groupwise.py``). Greer, Niethammer et al.: ICON (ICCV
2021) is the inverse consistency that keeps the network's maps regular; Joshi et al., NeuroImage 2004: unbiased atlases.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..engines import groupwise
from ..engines.cohort_work import Member, Place
from ..engines.crew import Crew
from ..errors import InputError
from ..method import Card, Method, Preset, find, method
from ..parameters import describe, parameter
from ..problem import Group, Pair
from ..result import GroupResult
from ..train.data import common_lattice

REACH = 4.0
"""Levels of a pairwise method that an iteration runs, in units of its own: from 1 to this."""

GREER = """@inproceedings{Greer2021ICON,
  author = {Greer, Hastings and Kwitt, Roland and Vialard, Fran{\\c{c}}ois-Xavier and Niethammer, Marc},
  title = {{ICON}: Learning Regular Maps Through Inverse Consistency},
  booktitle = {IEEE/CVF International Conference on Computer Vision}, pages = {3376--3385}, year = {2021}}"""

JOSHI = """@article{Joshi2004,
  author = {Joshi, Sarang and Davis, Brad and Jomier, Matthieu and Gerig, Guido},
  title = {Unbiased Diffeomorphic Atlas Construction for Computational Anatomy},
  journal = {NeuroImage}, volume = {23}, pages = {S151--S160}, year = {2004}}"""


@dataclass(frozen=True)
class Pairwise:
    """A method of the registry as a function, for the processes of a crew: (fixed, moving, start, runtime) -> transform."""

    name: str
    values: tuple[tuple[str, object], ...] = ()
    from_start: bool = True

    def __call__(self, fixed, moving, start, runtime):
        result = find(self.name, dict(self.values)).run(Pair(fixed, moving, start if self.from_start else None), runtime)
        return result.transform


@method(Card(
    title="Atlas of a cohort",
    summary="A template and maps from it to every subject: by any pairwise method in turn with the template, or by a network trained with it.",
    task="atlas of a cohort",
    references=(GREER, JOSHI),
    problem=Group,
    assumptions=("all subjects show the same anatomy in one contrast",
                 "one template is enough: for a cohort of several kinds look at its structure first"),
    failure_modes=("few subjects: the template is theirs, not the population's",
                   "a random start for pairwise registration: nothing corresponds at first"),
    presets={
        "default": Preset("volumes: two affine iterations, then four deformable ones, coarse to fine"),
        "2d": Preset("slices, by the pairwise preset for slices", {"method": "instance-optimisation:2d"}),
        "mse": Preset("images on one intensity scale: the squared difference", {"similarity": "mse"}),
        "lncc": Preset("one contrast with shading: local correlation", {"similarity": "lncc"}),
        "aligned": Preset("subjects that are aligned linearly already", {"linear": "none"}),
    },
))
@dataclass(frozen=True)
class IconAtlas(Method):
    method: str = parameter("instance-optimisation", "Pairwise method", "ID or ID:PRESET of the method that registers the template to a subject.",
                            advanced=False)
    settings: str = parameter("", "Its settings", "Parameters of the pairwise method as KEY=VALUE, several separated by ';'.")
    similarity: str = parameter("auto", "Similarity", "What makes template and subject alike; 'auto' is the pairwise method's own.",
                                choices=("auto", "mse", "lncc", "mind"), advanced=False)
    start: str = parameter("mean", "First template", "What the first template is.", choices=groupwise.STARTS, advanced=False)
    reference: str = parameter("", "First subject", "Name of the subject that is the first template, for the start 'subject'.")
    linear: str = parameter("affine", "Linear stage", "Freedom of the linear iterations that come first.",
                            choices=("affine", "similarity", "rigid", "none"), advanced=False)
    linear_iterations: int = parameter(2, "Linear iterations", "How often template and linear maps are found in turn.", minimum=1, maximum=50)
    factors: tuple[float, ...] = parameter((4.0, 2.0, 1.0, 1.0), "Iterations", "One deformable iteration each: its spacing in units of the atlas's.",
                                           minimum=1.0, maximum=64.0, advanced=False)
    spacing: float = parameter(0.0, "Spacing", "Of the atlas; 0 takes the median of the cohort.", unit="mm", minimum=0.0, advanced=False)
    centering: float = parameter(1.0, "Centering", "Share of the mean map that is taken out of all maps after each iteration.",
                                 minimum=0.0, maximum=1.0)
    outliers: float = parameter(6.0, "Outliers", "A subject is set aside when its similarity is so many robust deviations below the others'; "
                                "0 keeps all.", minimum=0.0)

    def solve(self, problem, runtime):
        keeper = None if runtime.work else tempfile.TemporaryDirectory(prefix="atlas-")
        place = Place(Path(runtime.work or keeper.name), str(runtime.torch_device()), runtime.seed, runtime.threads)
        members, grid, set_aside = self._members(problem, runtime.monitor.part(0.0, 0.02, "headers"))
        settings = groupwise.GroupwiseSettings(self.start, self.reference, self.centering, self.outliers)
        with Crew(runtime.workers) as crew:
            built = groupwise.build(members, grid, self._stages(), settings, place, crew, runtime.monitor.part(0.02, 1.0),
                                    self._order(problem, runtime), set_aside)
        store, last = place.store, built.iterations - 1

        def transform_of(name, keeper=keeper):
            return store.corrected(last, name).transform

        return GroupResult(problem, store.template(built.iterations), tuple(m.name for m in built.members), transform_of, built.set_aside,
                           history=built.rows, scalars={"cohort_gradient_energy": built.energy})

    def _stages(self) -> tuple[groupwise.Stage, ...]:
        linear = () if self.linear == "none" else (groupwise.Stage(Pairwise("affine", (("freedom", self.linear),)), 2.0, True),) * self.linear_iterations
        return linear + tuple(self._stage(k, factor) for k, factor in enumerate(self.factors))

    def _stage(self, k: int, factor: float) -> groupwise.Stage:
        """A deformable iteration. A method with levels of its own runs those from ``factor`` up, after the first iteration only the nearest of
        these: a coarse level would take away what a finer one has found. Other methods get smoothed images."""
        values = self._values()
        chosen = find(self.method, values)
        levels, counts = (getattr(chosen, name, None) for name in ("factors", "iterations"))
        if not (isinstance(levels, tuple) and isinstance(counts, tuple) and len(levels) == len(counts)):
            return groupwise.Stage(Pairwise(self.method, tuple(values.items())), factor)
        used = [level >= factor and (k == 0 or level <= REACH * factor) for level in levels]
        if not any(n for n, use in zip(counts, used) if use):
            used = [True] * len(levels)
        values["iterations"] = tuple(n if use else 0 for n, use in zip(counts, used))
        return groupwise.Stage(Pairwise(self.method, tuple(values.items())), factor, smoothed=False)

    def _values(self) -> dict:
        """Parameters of the pairwise method. InputError for a text that is none, for unknown keys, and for a similarity that it cannot have."""
        values = {}
        for part in filter(None, (text.strip() for text in self.settings.split(";"))):
            key, equal, value = part.partition("=")
            if not equal:
                raise InputError(f"settings hold '{part}'; expected KEY=VALUE, several separated by ';'")
            values[key.strip()] = value.strip()
        chosen = find(self.method, values)
        if chosen.card.problem is not Pair:
            raise InputError(f"the method '{self.method}' does not register pairs of images; choose one that does")
        if self.similarity != "auto":
            known = {p.name: p.choices for p in describe(type(chosen))}.get("similarity", ())
            if self.similarity not in known:
                raise InputError(f"the method '{self.method}' has no similarity '{self.similarity}'; take 'auto', or another method")
            values["similarity"] = self.similarity
        find(self.method, values)
        return values

    def _members(self, problem, monitor):
        """(members, lattice of the atlas, name -> reason of the subjects without a usable header)."""
        grids, set_aside = {}, {}
        for _, subject in zip(monitor.steps(len(problem.subjects)), problem.subjects):
            try:
                grids[subject.name] = subject.grid()
            except InputError as error:
                set_aside[subject.name] = str(error)
        other = [name for name, grid in grids.items() if grid.dim != problem.dim]
        if other:
            raise InputError(f"2D and 3D images are mixed ({other[0]} is {grids[other[0]].dim}D); give a cohort of one dimension")
        if len(grids) < 2:
            raise InputError(f"{len(grids)} images of the cohort can be read and an atlas needs two; {next(iter(set_aside.values()), '')}")
        lattice = common_lattice(list(grids.values()), self.spacing or None, None, 1)
        first = next(iter(grids.values()))
        same = not self.spacing and all(grid.same_as(first) for grid in grids.values())
        members = []
        for subject in problem.subjects:
            if subject.name in grids:
                start = np.eye(problem.dim + 1)
                start[:-1, -1] = 0.0 if same else -lattice.shift(grids[subject.name])
                members.append(Member(subject, start))
        return tuple(members), first if same else lattice.grid, set_aside

    def _order(self, problem, runtime) -> dict:
        """What decides the numbers: a store made by another one is not gone on with."""
        def told(value):
            return str(value.resolve()) if isinstance(value, Path) else None if value is None else "in memory"

        subjects = [[s.name, told(s.image), told(s.labels), told(s.mask)] for s in problem.subjects]
        return json.loads(json.dumps({"method": self.id, "parameters": self.values(), "seed": runtime.seed, "subjects": subjects}))
