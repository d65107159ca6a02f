"""An atlas of a cohort and the maps from it to every subject.

    template = mean_i I_i o T_i,   T_i = register(template, I_i),   T_i <- T_i o (id + share mean_i (T_i - id))^-1

in turn, coarse to fine, with any pairwise method of the registry as ``register`` (``engines/groupwise.py``). Greer, Niethammer et al.: ICON (ICCV
2021) is the inverse consistency that keeps the network's maps regular; Joshi et al., NeuroImage 2004: unbiased atlases.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..engines import groupwise
from ..engines.channels import normalised
from ..engines.cluster import crew_of
from ..engines.cohort_outcome import Outcome, conclude
from ..engines.cohort_store import SubjectMap
from ..engines.cohort_work import Place
from ..errors import InputError
from ..image import Image
from ..method import Card, Method, Pairwise, Preset, find, method
from ..parameters import describe, parameter
from ..problem import Group, Pair
from ..result import GroupResult
from ..runtime import Runtime
from ..terms import CONSISTENCIES
from ..train import processes
from ..train.atlas import FOLDER, OBJECTIVES, JointSettings, Trained, train_joint
from ..train.members import header_start, members_of, order_of
from ..transforms import Affine, Transform

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
        "2d": Preset("slices in one contrast: few steps a subject in two iterations, sharpened", {
            "method": "instance-optimisation:2d", "similarity": "lncc", "settings": "iterations=20,20,20,15,5;cautious=false", "factors": (2.0, 1.0),
            "sharpening": 0.4}),
        "fast": Preset("volumes in one contrast: two deformable iterations, as sharp as the subjects; a third of the time, a little less exact", {
            "similarity": "lncc", "settings": "iterations=50,40,12,4;cautious=false", "factors": (2.0, 1.0), "sharpening": 1.0}),
        "mse": Preset("images on one intensity scale: the squared difference", {"similarity": "mse"}),
        "lncc": Preset("one contrast with shading: local correlation", {"similarity": "lncc"}),
        "network": Preset("a network trained with the atlas: hundreds of subjects at one pass each, new ones in a second", {"model": "network"}),
        "aligned": Preset("subjects that are aligned linearly already", {"linear": "none"}),
    },
))
@dataclass(frozen=True)
class IconAtlas(Method):
    model: str = parameter("pairwise", "How", "By a pairwise method in turn with the template, or by a network that is trained together with it.",
                           choices=("pairwise", "network"), advanced=False)
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
    volume: float = parameter(0.0, "Volume", "Share of the mean log-Jacobian that is taken out after that: tissue volumes are then the cohort's geometric "
                              "means, at the price of a mean displacement.", minimum=0.0, maximum=1.0)
    sharpening: float = parameter(0.0, "Sharpening", "Share of the gradient energy that the mean of subjects lacks and is given back by unsharp masking.",
                                  minimum=0.0, maximum=1.0)
    outliers: float = parameter(groupwise.OUTLIER, "Outliers", "A subject is set aside when its similarity is so many robust deviations below the others'; "
                                "0 keeps all.", minimum=0.0)

    objective: str = parameter("whole", "Atlas follows", "The whole objective, or its similarity alone (network).", choices=OBJECTIVES)
    regulariser: str = parameter("gradicon", "Regularizer", "What ties the network's maps there and back.", choices=tuple(CONSISTENCIES))
    weight: float = parameter(0.1, "Regularizer weight", "Against the similarity (network).", minimum=0.0)
    displacement: float = parameter(40.0, "Mean displacement penalty", "Weight of the squared mean displacement, as a share of the longest edge, of "
                                    "every voxel (network).", minimum=0.0, advanced=False)
    jacobian: float = parameter(0.0, "Mean Jacobian penalty", "Weight of the squared mean log-Jacobian of every voxel (network).", minimum=0.0)
    steps: int = parameter(1000, "Training steps", "Updates of network and atlas.", minimum=1, advanced=False)
    rate: float = parameter(1e-3, "Rate", "First step length of Adam (network).", minimum=1e-7, maximum=1.0)
    gain: float = parameter(20.0, "Atlas gain", "How much faster than the network the atlas changes.", minimum=0.0, maximum=1000.0)
    batch: int = parameter(4, "Subjects a step", "Drawn for each update.", minimum=1, maximum=256)
    resolutions: int = parameter(2, "Resolutions", "U-Nets of the network, each at twice the resolution of the one before.", minimum=1, maximum=4)
    width: int = parameter(16, "Width", "Channels of the network at its finest level.", minimum=2, maximum=128)
    window: float = parameter(4.0, "Window", "Radius of the windows of 'lncc' (network).", unit="mm", minimum=0.1)

    def solve(self, problem, runtime):
        processes.require_shared(runtime.work, self.model == "network")
        keeper = None if runtime.work else tempfile.TemporaryDirectory(prefix="atlas-")
        place = Place(Path(runtime.work or keeper.name), str(runtime.torch_device()), runtime.seed, runtime.threads)
        joint = self._joint() if self.model == "network" else None
        multiple = joint.network(problem.dim).multiple if joint else 1
        members, grid, set_aside = members_of(problem, self.spacing, multiple, runtime.monitor.part(0.0, 0.02, "headers"))
        settings = groupwise.GroupwiseSettings(self.start, self.reference, self.centering, self.outliers, self.sharpening, self.volume)
        order = order_of(self, problem, runtime.seed)
        with crew_of(runtime) as crew:
            def build(stages, begin, end):
                return groupwise.build(members, grid, stages, settings, place, crew, runtime.monitor.part(begin, end), order, set_aside)

            built = self._by_network(build, joint, place, runtime) if joint else build(self._linear() + self._deformable(), 0.02, 0.92)
            outcome = Outcome([], {}, {}) if processes.rank() > 0 else conclude(built, place, crew, runtime.monitor.part(0.92, 1.0))
        store, last = place.store, built.iterations - 1

        def transform_of(name, keeper=keeper):
            return store.corrected(last, name).transform

        files = {p.name: p for p in (place.folder / FOLDER).glob(f"{FOLDER}.*")}
        return GroupResult(problem, store.template(built.iterations), tuple(m.name for m in built.members), transform_of, built.set_aside,
                           outcome.quality, outcome.labels, outcome.maps, outcome.values, outcome.probability, history=built.rows, files=files,
                           scalars={"cohort_gradient_energy": built.energy}, remarks=outcome.remarks)

    def carry(self, atlas: Image, image: Image, runtime: Runtime, network: Path | None = None) -> Transform:
        """Atlas mm -> mm of a subject that was not in the cohort: linear as in the build, then the pairwise method with all its levels, or the
        ``network`` (file) that was trained with the atlas. InputError for another dimension."""
        image, monitor = normalised(image), runtime.monitor
        start = Affine(torch.as_tensor(header_start(atlas.grid, image.grid)))
        if self.linear != "none":
            linear = Pairwise("affine", (("freedom", self.linear),))
            start = linear(atlas, image, None, replace(runtime, monitor=monitor.part(0.0, 0.3, "linear")))
        rest = replace(runtime, monitor=monitor.part(0.3, 1.0, "deformation"))
        pairwise = Pairwise(self.method, tuple(self._values().items())) if network is None else Trained(network)
        return pairwise(atlas, image, start, rest)

    def _by_network(self, build, joint, place, runtime):
        """Linear iterations, then the network and the atlas together, then the network's map of every subject, centred."""
        linear, store = self._linear(), place.store
        with processes.one_first():
            built = build(linear, 0.02, 0.2)
        if built.iterations == len(linear):
            maps = {m.name: store.corrected(len(linear) - 1, m.name) if linear else SubjectMap(m.start, None, built.grid) for m in built.members}
            atlas = train_joint(built.members, maps, store.template(len(linear)), joint, place.folder / FOLDER,
                                replace(runtime, monitor=runtime.monitor.part(0.2, 0.85, "network and atlas")))
            if processes.rank() == 0:
                store.write_template(len(linear), atlas)
        trained = groupwise.Stage(Trained(place.folder / FOLDER / f"{FOLDER}.safetensors"), smoothed=False, keeps=True)
        with processes.one_first():
            return build(linear + (trained,), 0.85, 0.92)

    def _joint(self) -> JointSettings:
        similarity = "mse" if self.similarity == "auto" else self.similarity
        return JointSettings(similarity, self.objective, self.regulariser, self.weight, self.displacement, self.jacobian, self.gain, self.window,
                             self.batch, self.resolutions, self.width, self.steps, self.rate)

    def _linear(self) -> tuple[groupwise.Stage, ...]:
        stage = groupwise.Stage(Pairwise("affine", (("freedom", self.linear),)), 2.0, True)
        return () if self.linear == "none" else (stage,) * self.linear_iterations

    def _deformable(self) -> tuple[groupwise.Stage, ...]:
        return tuple(self._stage(k, factor) for k, factor in enumerate(self.factors))

    def _stage(self, k: int, factor: float) -> groupwise.Stage:
        """A deformable iteration. A method with levels of its own runs those from ``factor`` up, after the first iteration only the nearest of
        these: a coarse level would take away what a finer one has found. Other methods get smoothed images."""
        values = self._values()
        chosen = find(self.method, values)
        levels, counts = (getattr(chosen, name, None) for name in ("factors", "iterations"))
        if not (isinstance(levels, tuple) and isinstance(counts, tuple) and len(levels) == len(counts)):
            linear = chosen.card.task == "linear alignment"
            return groupwise.Stage(Pairwise(self.method, tuple(values.items())), factor, linear)
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
