"""The contract of every method (the questions of test_contract.py), with the smallest truth that it is asked on.

The truth is made by construction (truths.py): the moving image is a phantom m, T a known map from fixed to moving points, and the
fixed image m(T(x)) is computed from the formula, so nothing is interpolated and the right answer is known.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, replace

import torch
import trained
import truths
import truths_hip
from truths_linear import known_map

from DeepRegistrationLib.errors import Cancelled, InputError
from DeepRegistrationLib.geometry import Grid
from DeepRegistrationLib.method import find
from DeepRegistrationLib.parameters import describe, from_values
from DeepRegistrationLib.ops.rice import add_rice_noise
from DeepRegistrationLib.problem import Group, Pair, Series, Slices, Subject
from DeepRegistrationLib.runtime import Runtime, Silent
from DeepRegistrationLib.transforms import Affine, Transform

SECONDS = 30.0
"""Processor time that a run on the smallest truth may take."""


@dataclass(frozen=True)
class Truth:
    """A problem, the true transform (fixed mm -> moving mm), and guides for presets that cannot do without."""

    problem: Pair
    transform: Transform
    guides: dict

    @property
    def grid(self) -> Grid:
        """Where the map is looked at."""
        return self.problem.fixed.grid

    def inputs(self) -> tuple:
        """The images that a run must leave as they are."""
        return self.problem.fixed, self.problem.moving

    def answer(self, result) -> Transform:
        """The map of a result that is compared with the true one."""
        return result.transform

    def error(self, transform) -> float:
        """Mean distance in mm from the true map over the inner part of the fixed image."""
        grid = self.grid
        inner = tuple(slice(n // 5, n - n // 5) for n in grid.shape)
        points = torch.as_tensor(grid.points()[inner].reshape(1, -1, grid.dim)).float()
        return float(torch.linalg.vector_norm(transform(points).detach().cpu() - self.transform(points), dim=-1).mean())


def smallest_pair(dim: int) -> Truth:
    """A phantom of 48 x 44 (x 40) mm after a shift of 3 mm, a small affine map and a small swirl."""
    grid = Grid.from_parts((44, 48) if dim == 2 else (20, 22, 24), 1.0 if dim == 2 else 2.0, [3.0, -5.0, 7.0][:dim])
    shift = Affine.translation([2.5, -2.0, 1.0][:dim])
    truth = shift @ truths.random_affine(7, dim, grid.centre, 0.03, 0.0) @ truths.random_swirl(7, grid, angle=0.1)
    moving_grid = grid.pad(3)
    phantom = truths.Phantom(7, grid)
    labels = {"fixed_labels": phantom.label_map(grid, truth), "moving_labels": phantom.label_map(moving_grid)}
    return Truth(Pair(phantom.image(grid, truth), phantom.image(moving_grid)), truth, labels)


@dataclass(frozen=True)
class CohortTruth(Truth):
    """A cohort in memory; the map is that from its first subject to its second, through the atlas."""

    grid = property(lambda self: self.problem.subjects[0].image.grid)

    def inputs(self) -> tuple:
        return tuple(subject.image for subject in self.problem.subjects)

    def answer(self, result) -> Transform:
        return result.bridge("s0", "s1")


def smallest_cohort(dim: int) -> CohortTruth:
    """One phantom, shifted, turned a little and swirled in four ways, two of each age."""
    grid = Grid.from_parts((48, 48) if dim == 2 else (24, 24, 24), 1.0 if dim == 2 else 2.0, [3.0, -5.0, 7.0][:dim])
    phantom, maps = truths.Phantom(7, grid), []
    for k, shift in enumerate(([2.5, -2.0, 1.0], [-2.0, 1.5, 0.0], [1.0, 2.0, -2.0], [-1.5, -1.5, 1.0])):
        maps.append(Affine.translation(shift[:dim]) @ truths.random_affine(k, dim, grid.centre, 0.03, 0.0) @ truths.random_swirl(k, grid, angle=0.1))
    group = Group(tuple(Subject(f"s{k}", phantom.image(grid, truth), covariate=k // 2) for k, truth in enumerate(maps)))
    return CohortTruth(group, maps[1].inverse() @ maps[0], {})


@dataclass(frozen=True)
class SeriesTruth(Truth):
    """Repeated scans; the map is that from the first scan to the second, through the reference."""

    grid = property(lambda self: self.problem.frames[0].grid)

    def inputs(self) -> tuple:
        return self.problem.frames

    def answer(self, result) -> Transform:
        return result.transforms[1] @ result.transforms[0].inverse()


def smallest_series(dim: int) -> SeriesTruth:
    """Five noisy magnitude scans of one phantom, each turned and shifted a little."""
    grid = Grid.from_parts((44, 48) if dim == 2 else (20, 22, 24), 1.0 if dim == 2 else 2.0, [3.0, -5.0, 7.0][:dim])
    phantom, generator = truths.Phantom(7, grid), torch.Generator().manual_seed(3)
    maps = [known_map(k, "rigid", grid.centre, shift=2.0, angle=0.05) for k in range(5)]
    frames = tuple(phantom.image(grid, truth) for truth in maps)
    noisy = tuple(replace(f, data=add_rice_noise(f.data.clamp_min(0), 0.1, generator), name=f"scan {k}") for k, f in enumerate(frames))
    return SeriesTruth(Series(noisy), maps[1].inverse() @ maps[0], {})


@dataclass(frozen=True)
class SlicesTruth(Truth):
    """Six slices of a hip whose headers are turned and shifted; looked at where the slices are."""

    grid = property(lambda self: self.problem.slices[0].grid)

    def inputs(self) -> tuple:
        return (*self.problem.slices, self.problem.volume)

    def error(self, transform) -> float:
        points = torch.as_tensor(truths_hip.pixels(self.problem)[None]).float()
        return float(torch.linalg.vector_norm(transform(points) - self.transform(points), dim=-1).mean())


def smallest_slices(dim: int) -> SlicesTruth:
    """Six slices of 40 x 40 pixels of a hip, 12 degrees and 6 mm away from their headers."""
    hip = truths_hip.Hip(0)
    known = truths_hip.known_set(1, 12.0, 6.0, hip=hip, volume=truths_hip.hip_volume(hip, truths_hip.volume_grid(40)), size=40,
                                 segments=True)
    bones = {"segments": known.problem.segments, "volume_segment": known.problem.volume_segment}
    return SlicesTruth(replace(known.problem, segments=None, volume_segment=None), truths_hip.affine(known.truth), bones)


SMALLEST = {Pair: smallest_pair, Series: smallest_series, Group: smallest_cohort, Slices: smallest_slices}


def smallest(cls, dim: int) -> Truth:
    """The smallest truth for a method; a new kind of problem needs an entry in ``SMALLEST``."""
    assert cls.card.problem in SMALLEST, f"contract.py has no smallest truth for {cls.card.problem.__name__}; add one"
    return SMALLEST[cls.card.problem](dim)


TRAINED = {"voxelmorph-unet": trained.small_unet}
"""Methods that have no weights of their own: id -> (dim -> parameter values that give them small ones, trained in seconds, once a session).
A method that works without belongs nowhere here: ``refuses_without_weights`` asks."""


AGED = {"steps": 60, "width": 4, "rate": 1e-2, "iterations": 1, "group": 0.1, "batch": 2}
QUICK = {"rician-motion:published": {"templates": 1},
         "icon-atlas:network": {"steps": 80, "width": 8, "start": "subject", "reference": "s2"},
         **{f"spatiotemporal-atlas:{preset}": AGED for preset in ("default", "generator")},
         **{f"spatiotemporal-atlas:{preset}": {**AGED, "steps": 150, "width": 8} for preset in ("aligned", "report")}}
"""Presets that train a network of their own or do hundreds of rounds more than once: id:preset -> values with which that takes seconds."""


def asked(cls, dim: int, preset: str = "default", **values):
    """The method with a preset and ``values``, with weights where it has none of its own, and with a short training where it trains."""
    weights = TRAINED[cls.id](dim) if cls.id in TRAINED else {}
    return find(f"{cls.id}:{preset}", {**weights, **QUICK.get(f"{cls.id}:{preset}", {}), **values})


def refuses_without_weights(cls, dim: int) -> None:
    """A method of ``TRAINED`` says in one sentence that it needs weights, and how to give them."""
    try:
        find(cls.id).run(smallest(cls, dim).problem, Runtime("cpu"))
    except InputError as error:
        assert "needs the weights" in str(error) and "'weights'" in str(error), error
        return
    raise AssertionError(f"{cls.id} ran without weights; take it out of TRAINED")


def card_is_complete(cls) -> None:
    card = cls.card
    for name in ("title", "summary", "task", "licence"):
        assert getattr(card, name).strip(), f"{name} is empty"
    assert card.references, "a method has a source"
    assert all(r.strip().startswith("@") and r.count("{") == r.count("}") for r in card.references), "references are BibTeX entries"
    assert set(card.dims) <= {2, 3} and card.dims
    assert card.assumptions and card.failure_modes, "say what the method assumes and when it fails"
    assert all(preset.help.strip() for preset in card.presets.values()), "every preset says what it is for"
    for p in describe(cls):
        assert p.label.strip() and p.help.strip().endswith("."), f"{p.name} needs a label and a sentence of help"


BRITISH = re.compile(r"\b\w*(?:isation|isations|ising|mised|nised|lised|rised|iser|isers|[cl]our|centre|centres|grey|licence|neighbour|neighbours|metres)\b",
                     re.IGNORECASE)
"""Endings and words of British spelling; ids, names of presets and of parameters are not looked at."""


def texts_are_american(cls) -> None:
    """Title, summary, assumptions, failure modes, presets' and parameters' texts, as the panel and ``show`` print them."""
    card = cls.card
    texts = [card.title, card.summary, card.task, *card.assumptions, *card.failure_modes, *(p.help for p in card.presets.values())]
    for p in describe(cls):
        texts += [p.label, p.help]
    found = [word for text in texts for word in BRITISH.findall(text)]
    assert not found, found


def presets_are_valid(cls) -> None:
    for name, preset in cls.card.presets.items():
        instance = find(f"{cls.id}:{name}")
        assert all(_json(getattr(instance, k)) == _json(v) for k, v in preset.values.items()), name


def parameters_round_trip(cls) -> None:
    for name in cls.card.presets:
        instance = find(f"{cls.id}:{name}")
        assert from_values(cls, json.loads(json.dumps(instance.values()))) == instance
        as_text = {k: ",".join(map(str, v)) if isinstance(v, tuple) else str(v) for k, v in instance.values().items()}
        assert from_values(cls, as_text) == instance, "the command line gives texts"


def beats_identity(cls, dim: int, preset: str = "default") -> None:
    truth, method = smallest(cls, dim), asked(cls, dim, preset)
    began = time.process_time()
    result = run_with_what_it_needs(method, truth)
    seconds = time.process_time() - began
    before, after = truth.error(lambda x: x), truth.error(truth.answer(result))
    assert after < 0.8 * before, f"{before:.2f} mm before, {after:.2f} mm after"
    assert seconds < SECONDS, f"{seconds:.1f} s on the smallest truth"
    assert result.provenance["method"] == cls.id and result.provenance["parameters"] == method.values()


def run_with_what_it_needs(method, truth: Truth, device: str = "cpu"):
    """The result on the bare pair; a preset that says in a sentence that it needs labels gets them."""
    try:
        return method.run(truth.problem, Runtime(device))
    except InputError as error:
        assert "label" in str(error), error
        return method.run(replace(truth.problem, **truth.guides), Runtime(device))


def is_repeatable_and_leaves_inputs(cls, dim: int) -> None:
    truth = smallest(cls, dim)
    before = [image.data.clone() for image in truth.inputs()]
    fields = [truth.answer(asked(cls, dim).run(truth.problem, Runtime("cpu", seed=3))).field(truth.grid) for _ in range(2)]
    assert torch.equal(*fields), "the same seed gave two results"
    assert all(torch.equal(a, b.data) for a, b in zip(before, truth.inputs())), "an input was changed"


class CancelsAtFirstStep(Silent):
    """Cancels as soon as the first progress arrives, as a user does who sees the wrong images."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def progress(self, share, text, step=0, steps=0):
        self.calls += 1
        self.cancel()


def stops_at_first_step(cls, dim: int) -> None:
    truth, method = smallest(cls, dim), asked(cls, dim)
    monitor = CancelsAtFirstStep()
    began = time.process_time()
    try:
        method.run(truth.problem, Runtime("cpu", monitor=monitor))
    except Cancelled:
        assert monitor.calls == 1 and time.process_time() - began < SECONDS / 3
        return
    raise AssertionError("the run went on after it was cancelled")


def _json(value):
    return json.loads(json.dumps(value))
