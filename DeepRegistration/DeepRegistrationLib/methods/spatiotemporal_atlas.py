"""An atlas over age: a template for every age, and maps from the template of its age to every subject.

    A_a = sum_i w_i(a) I_i o phi_i,   phi_i = exp(network(A_(a_i), I_i)),   mean of phi over subjects of about one age ~ the identity

in turn, begun at the voxelwise median of every age, until the atlas changes no more, or with a network that draws the atlas of an age and is trained
along. The network's phi_i is refined for its subject by the method 'instance-optimisation' before the mean is taken: few steps of training
align surfaces, not the texture inside, and maps that miss how it slides along the surface shrink the atlas. Loss: ``train/temporal_loss.py``;
weights w over age: ``engines/ages.py``.

Bastiaansen, Rousian, Steegers-Theunissen, Niessen, Koning and Klein, Towards a 4D Spatio-Temporal Atlas of the Embryonic and Fetal Brain using a Deep
Learning Approach for Groupwise Image Registration, WBIR 2022. The text has ten or more subjects on every day and takes the mean of each day. For
ages in between, and few subjects, this takes the linear spline of least squares over age, which is that mean where all ages lie on knots. Where the
text is silent: what is left of the mean map after training is taken out of all maps (as ``engines/groupwise.py`` does); the network is VoxelMorph's
U-Net with a velocity on the half lattice; maps are refined (not by the preset 'report'); the window of the correlation is a parameter; passes go
forth and back over age. Sizes are left as they are: growth is part of the atlas; the text scales every age to one field of view.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..engines import groupwise, growth
from ..engines.ages import Ages, age_name
from ..engines.channels import normalised
from ..engines.cluster import crew_of
from ..engines.cohort_outcome import Kept, keep_labels, labels_of, mean_dice, note_copies, note_other_labels
from ..engines.cohort_store import SubjectMap
from ..engines.cohort_work import UNUSABLE, Place
from ..errors import InputError
from ..image import Image
from ..method import Card, Method, Pairwise, Preset, method
from ..parameters import parameter
from ..problem import Group
from ..result import GrowthResult
from ..runtime import Runtime
from ..train import processes
from ..train.atlas import Trained
from ..train.members import header_start, members_of, order_of
from ..train.temporal import NETWORK, Temporal
from ..train.temporal_loss import TemporalSettings
from ..transforms import Affine, Transform

RIGID = Pairwise("affine", (("freedom", "rigid"),))
COARSE = 2.0
"""Spacing of the rigid iteration, in units of the atlas's."""
FACTORS, WINDOW = (4.0, 2.0, 1.0), 6.0
"""Levels of the refinement and the window of its local correlation, in units of the atlas's spacing."""

BASTIAANSEN = """@inproceedings{Bastiaansen2022,
  author = {Bastiaansen, Wietske A. P. and Rousian, Melek and Steegers-Theunissen, R{\\'e}gine P. M. and Niessen, Wiro J. and Koning, Anton H. J.
  and Klein, Stefan},
  title = {Towards a {4D} Spatio-Temporal Atlas of the Embryonic and Fetal Brain Using a Deep Learning Approach for Groupwise Image Registration},
  booktitle = {Biomedical Image Registration}, year = {2022}}"""

DALCA = """@inproceedings{Dalca2019Conditional,
  author = {Dalca, Adrian V. and Rakic, Marianne and Guttag, John and Sabuncu, Mert R.},
  title = {Learning Conditional Deformable Templates with Convolutional Networks},
  booktitle = {Advances in Neural Information Processing Systems}, year = {2019}}"""


@method(Card(
    title="Atlas over age",
    summary="A 4D atlas: a template for every age, or another number that subjects have, with growth curves and maps to every subject.",
    task="atlas of a cohort",
    references=(BASTIAANSEN, DALCA),
    problem=Group,
    covariate=True,
    assumptions=("every subject has an age, and about six or more subjects are of every age",
                 "subjects of one age show the same anatomy in one contrast and one orientation, at their true sizes"),
    failure_modes=("few subjects at the first and the last age: the template there is theirs, not the population's",
                   "growth between two knots of more than about a voxel blurs the ages in between: more knots",
                   "a groupwise weight that is too high for few subjects holds all maps back: the atlas stays as blurred as the median"),
    presets={
        "default": Preset("one rigid iteration, then network and atlas in turn"),
        "aligned": Preset("subjects that are aligned already", {"linear": "none"}),
        "generator": Preset("a network draws the atlas of every age: few or uneven ages", {"model": "generator", "smoothness": 0.1, "steps": 2000}),
        "report": Preset("as in the published text: ten or more subjects of every age, by the network alone", {
            "group": 10.0, "linear": "none", "refinement": (0, 0, 0)}),
    },
))
@dataclass(frozen=True)
class SpatiotemporalAtlas(Method):
    model: str = parameter("table", "Atlas", "Templates at knots over age, in turn with the network, or drawn by a network that is trained along.",
                           choices=("table", "generator"), advanced=False)
    ages: tuple[float, ...] = parameter((), "Ages", "Of which the atlas is written; none: those of the knots.", advanced=False)
    knots: int = parameter(0, "Knots", "Ages at which the atlas is held, at equal distances; 0: as many as there are subjects for.", minimum=0,
                           maximum=64, advanced=False)
    spacing: float = parameter(0.0, "Spacing", "Of the atlas; 0 takes the median of the cohort.", unit="mm", minimum=0.0, advanced=False)
    linear: str = parameter("rigid", "Linear stage", "What comes first; sizes are never changed, they are part of growth.", choices=("rigid", "none"),
                            advanced=False)
    group: float = parameter(1.0, "Groupwise weight", "Of the squared mean of the last fields, per voxel; the text takes 10.", minimum=0.0,
                             advanced=False)
    recent: int = parameter(0, "Fields in the mean", "How many last fields it is taken over; 0: the mean number of subjects a knot.", minimum=0,
                            maximum=1024)
    magnitude: float = parameter(0.01, "Magnitude weight", "Of the squared displacement, per voxel.", minimum=0.0)
    diffusion: float = parameter(0.01, "Diffusion weight", "Of its squared gradient.", minimum=0.0)
    smoothness: float = parameter(0.0, "Smoothness over age", "Weight of the squared second difference of the atlas over age.", minimum=0.0,
                                  advanced=False)
    centering: float = parameter(1.0, "Centering", "Share of the mean map of every age that is taken out of all maps after an iteration.",
                                 minimum=0.0, maximum=1.0)
    window: float = parameter(0.0, "Window", "Radius of the windows of the local correlation; 0 takes four voxels.", unit="mm", minimum=0.0)
    refinement: tuple[int, ...] = parameter((60, 40, 10), "Refinement", "Steps for every subject after the network, at 4, 2 and 1 times the spacing of the "
                                            "atlas; only 0 leaves the network's map.", minimum=0, maximum=10000, advanced=False)
    iterations: int = parameter(4, "Iterations", "Of network and atlas in turn, at most.", minimum=1, maximum=50, advanced=False)
    change: float = parameter(0.02, "Stable", "Change of the atlas (share) below which it is taken as stable.", minimum=0.0, maximum=1.0)
    steps: int = parameter(500, "Training steps", "Updates of the network in each iteration.", minimum=1, advanced=False)
    rate: float = parameter(3e-3, "Rate", "First step length of Adam.", minimum=1e-7, maximum=1.0)
    batch: int = parameter(8, "Subjects a step", "Drawn for each update.", minimum=1, maximum=256)
    width: int = parameter(16, "Width", "Channels of the network at its finest level.", minimum=2, maximum=128)
    levels: int = parameter(3, "Levels", "How often the network halves its lattice.", minimum=1, maximum=5)
    outliers: float = parameter(0.0, "Outliers", "A subject is set aside when its similarity after the rigid iteration is so many robust deviations below "
                                "the others'; 0 keeps all.", minimum=0.0)

    def solve(self, problem, runtime):
        processes.require_shared(runtime.work, True)
        keeper = None if runtime.work else tempfile.TemporaryDirectory(prefix="atlas-")
        place, monitor = Place(Path(runtime.work or keeper.name), str(runtime.torch_device()), runtime.seed, runtime.threads), runtime.monitor
        members, grid, set_aside = self._members(problem, monitor.part(0.0, 0.02, "headers"))
        stages = (groupwise.Stage(RIGID, COARSE, True),) if self.linear == "rigid" else ()
        order = order_of(self, problem, runtime.seed)
        with crew_of(runtime) as crew, processes.one_first():
            built = groupwise.build(members, grid, stages, groupwise.GroupwiseSettings(outliers=self.outliers), place, crew,
                                    monitor.part(0.02, 0.2, "rigid"), order, set_aside)
        ages = Ages.of([member.subject.covariate for member in built.members], self.knots)
        asked = np.array(self.ages) if self.ages else ages.knots
        ages.basis(asked)
        flow = Temporal(built, self._linear_maps(built, len(stages), place), len(stages), ages, self._settings(grid), place, runtime, order,
                        self._refine(grid))
        flow.build(monitor.part(0.2, 0.95))
        if processes.rank() > 0:
            return GrowthResult(problem, place.store.template(built.iterations), (), None, built.set_aside)
        return self._result(problem, flow, asked, keeper)

    def carry(self, atlas: Image, image: Image, runtime: Runtime, network: Path | None = None) -> Transform:
        """Mm of the ``atlas`` of an age -> mm of a subject of that age that was not in the cohort, as in the build. InputError without the
        ``network`` (file) that was trained with the atlas."""
        if network is None:
            raise InputError("the folder of the atlas holds no network.safetensors; build the atlas again")
        image, monitor = normalised(image), runtime.monitor
        start = Affine(torch.as_tensor(header_start(atlas.grid, image.grid)))
        if self.linear == "rigid":
            start = RIGID(atlas, image, None, replace(runtime, monitor=monitor.part(0.0, 0.5, "rigid")))
        said = Trained(network)(atlas, image, start, replace(runtime, monitor=monitor.part(0.5, 0.6, "network")))
        refine = self._refine(atlas.grid)
        return said if refine is None else refine(atlas, image, said, replace(runtime, monitor=monitor.part(0.6, 1.0, "refinement")))

    def _refine(self, grid) -> Pairwise | None:
        """What the network's maps are refined by on an atlas of ``grid``; None where they are not. InputError for another number of levels."""
        if len(self.refinement) != len(FACTORS):
            raise InputError(f"refinement is {self.refinement}; {len(FACTORS)} numbers of steps are needed, for 4, 2 and 1 times the spacing")
        if not any(self.refinement):
            return None
        window = float(np.clip(WINDOW * grid.spacing.min(), 0.5, 100.0))
        return Pairwise("instance-optimisation", (("similarity", "lncc"), ("factors", FACTORS), ("iterations", self.refinement), ("window", window)))

    def _members(self, problem, monitor):
        """Members with an age, the lattice, and who is set aside. InputError where fewer than two have one."""
        missing = {s.name: "no age is known of it" for s in problem.subjects if s.covariate is None or not np.isfinite(s.covariate)}
        if len(problem.subjects) - len(missing) < 2:
            raise InputError(f"an age is known of {len(problem.subjects) - len(missing)} of {len(problem.subjects)} subjects and an atlas over age needs "
                             "it of each; name the column that holds it (command line: --covariate), with the subjects' names as in the cohort")
        kept = Group(tuple(s for s in problem.subjects if s.name not in missing))
        members, grid, set_aside = members_of(kept, self.spacing, self._settings(None).network(problem.dim).multiple, monitor)
        return members, grid, {**missing, **set_aside}

    def _settings(self, grid) -> TemporalSettings:
        window = self.window or (4 * float(grid.spacing.min()) if grid is not None else 1.0)
        return TemporalSettings(self.group, self.magnitude, self.diffusion, self.smoothness, window, self.recent, self.model == "generator",
                                self.centering, self.iterations, self.change, self.steps, self.rate, self.batch, self.width, self.levels)

    @staticmethod
    def _linear_maps(built, first: int, place: Place) -> dict[str, SubjectMap]:
        """Name -> the linear map of every member: that of its header, or the linear part of what is in the store."""
        if built.iterations == 0:
            return {m.name: SubjectMap(m.start, None, built.grid) for m in built.members}
        last = built.iterations - 1
        maps = {m.name: place.store.corrected(last, m.name) if built.iterations == first else place.store.map(last, m.name) for m in built.members}
        return {name: SubjectMap(made.matrix, None, made.grid) for name, made in maps.items()}

    def _result(self, problem, flow: Temporal, asked, keeper) -> GrowthResult:
        built, store, grid = flow.built, flow.place.store, flow.built.grid
        last = built.iterations - 1

        def transform_of(name, keeper=keeper):
            return store.map(last, name).transform

        atlases = flow.finished()(asked)
        images = tuple(Image(one[None], grid, name=f"atlas at {age:g}") for one, age in zip(atlases, asked))
        statistics, basis = store.statistics(built.iterations), flow.ages.basis(asked)
        rows = [{"age": float(age), "subjects": float(b @ flow.basis.sum(0)), "mean_displacement": float(b @ statistics["mean_displacement"]), **row}
                for age, b, row in zip(asked, basis, growth.of_atlases(atlases, grid))]
        quality = flow.judged()
        labels, remarks = self._labels(flow, asked, quality, rows)
        note_copies(quality, remarks)
        maps = {name: Image(torch.from_numpy(statistics[name]), grid, name=name) for name in ("mean_log_jacobian", "sd_log_jacobian")}
        files = flow.keep_weights(flow.place.folder / NETWORK)
        return GrowthResult(problem, images[len(images) // 2], tuple(m.name for m in built.members), transform_of, built.set_aside, quality, labels, maps,
                            history=built.rows, files=files, scalars={"cohort_gradient_energy": built.energy}, remarks=remarks,
                            ages=tuple(float(a) for a in asked), atlases=images, growth=rows,
                            age_of={m.name: float(m.subject.covariate) for m in built.members})

    @staticmethod
    def _labels(flow: Temporal, asked, quality, rows) -> tuple[dict, dict]:
        """Consensus labels by age, and the remarks on subjects whose labels cannot be used; overlaps and sizes go into ``quality`` and ``rows``."""
        built, place = flow.built, flow.place
        kept, remarks = [], {}
        for member in built.members:
            try:
                kept += [member] if keep_labels(member, place.store.map(built.iterations - 1, member.name), place) else []
            except UNUSABLE as error:
                remarks[member.name] = " ".join(str(error).split())
        if not kept:
            return {}, remarks
        known, raters = np.array([m.subject.covariate for m in kept]), Kept(place.folder, tuple(m.name for m in kept))
        ages = Ages(flow.ages.knots, known)
        labels, sizes = growth.of_labels(raters, ages.basis(asked) @ ages.weights(flow.settings.smoothness), built.grid)
        for row, size in zip(rows, sizes):
            row |= size
        note_other_labels({name: labels_of(said) for name, said in zip(raters.names, raters())}, remarks)
        values = [int(v) for v in np.unique(np.concatenate([one.values() for one in labels])) if v]
        by_name = {row["subject"]: row for row in quality}
        for name, age, said in zip(raters.names, known, raters()):
            nearest = labels[int(np.abs(asked - age).argmin())]
            by_name[name]["dice"] = mean_dice(nearest.data.reshape(-1), said, values)
        return {age_name(age): one for age, one in zip(asked, labels)}, remarks
