"""Six radial 2D slices of quantitative MRI into a 3D volume: emulated slices, binary search about the axis, then all degrees of freedom.

With T the rigid map of the set (slice mm -> volume mm), p the pixels of all slices S, V the volume and E(T) its emulated slices (the mean over
the thickness, ``engines/slices.py``), T maximizes the mutual information of {S(p), E(T)(p)} over all slices together. The start is that of the
headers or of the visual hull of a segmented bone (``engines/slice_starts.py``); poses all around it are compared, and the best go through
the report's binary search, in which every slice votes for a turn of +-15, +-7.5, ... degrees about the common axis (``slice_search``).
2D/3D Quasi-Intramodal Registration of Quantitative Magnetic Resonance Images, WBIR 2022 (the report).

Beyond the report: the order and the directions of the slices are found, which it sets by hand (``slice_order``); a bounded motion of every slice,
and a bounded deformation (``slice_bends``);
the uncertainty of the pose and the evidence for it (``slice_evidence``). Where that is weak the result says so and is not registered. Where the
mirror image of the anatomy fits as well, left and right are those of the headers and the result says so, or, where the headers are not to be
believed or half of the slices were turned against them, the slices are not registered.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ..engines.global_rigid import SearchSettings
from ..engines.global_rigid import search as search_stack
from ..engines.slice_bends import BendSettings, bends
from ..engines.slice_evidence import axis_curve, doubts_of_sides, doubts_of_slices, evidence, mirror_lead, uncertainty
from ..engines.slice_order import TIE, Placement, check_placement, find_placement, groups_of_one_size, mirrors_the_set, moves_of, placed
from ..engines.slice_search import ONE_THREAD, SEARCHES, SliceSettings, longest_edge, search
from ..engines.slice_starts import hull_start, stack_of
from ..engines.slices import PROFILES, SIMILARITIES, is_stretched, values_of
from ..errors import InputError
from ..method import Card, Method, Preset, method
from ..parameters import parameter
from ..problem import Slices
from ..result import SlicesResult
from ..runtime import fewer_threads
from ..transforms.base import linear_part
from ..transforms.linear import Affine

REPORT = """@inproceedings{QuasiIntramodal2022,
  title = {{2D/3D} Quasi-Intramodal Registration of Quantitative Magnetic Resonance Images},
  booktitle = {Biomedical Image Registration (WBIR)}, year = {2022}}"""

MATTES = """@article{Mattes2003MI,
  author = {Mattes, David and Haynor, David R. and Vesselle, Hubert and Lewellen, Thomas K. and Eubank, William},
  title = {{PET-CT} Image Registration in the Chest Using Free-form Deformations},
  journal = {IEEE Transactions on Medical Imaging}, volume = {22}, number = {1}, pages = {120--128}, year = {2003}}"""

LAURENTINI = """@article{Laurentini1994,
  author = {Laurentini, Aldo}, title = {The Visual Hull Concept for Silhouette-Based Image Understanding},
  journal = {IEEE Transactions on Pattern Analysis and Machine Intelligence}, volume = {16}, number = {2}, pages = {150--162}, year = {1994}}"""

OTHER_SIDE = ("the slices as a whole fit only as their mirror image; check that they and the volume are of the same side of the body, or, where they were "
              "placed about an axis, its direction")
STRETCHED = ("a few values of the slices lie far from all others and take most of the range that is compared; mask them, as fits that failed, or say that they "
             "are no values")
STARTS = ("auto", "header", "hull", "stack")
PLACINGS = ("auto", "keep", "flips", "order", "both")


@method(Card(
    title="Slices into a volume (qMRI)",
    summary="Finds the pose of a set of 2D slices in a 3D volume of another contrast, and slices that are out of order or mirrored.",
    task="radial quantitative slices into a volume",
    references=(REPORT, MATTES, LAURENTINI),
    problem=Slices,
    dims=(3,),
    assumptions=("the slices show the anatomy of the volume, in one contrast among themselves",
                 "their planes lie to each other as the headers say, up to the order, the directions and small motions",
                 "the start is within 45 degrees and about 0.15 of the field of view, unless the reach is made larger"),
    failure_modes=("slices of another subject or of another part, which the evidence tells apart only where they differ clearly",
                   "round anatomy about the axis, which looks alike after a turn",
                   "symmetric anatomy with slices of unknown directions: left and right cannot be told, which is reported",
                   "slices that deform or move a lot against each other"),
    presets={
        "default": Preset("headers as the start, poses all around it, order and directions checked; 5 to 15 s of one core"),
        "published": Preset("as in the report: visual hull of the bone's label maps, then the binary search about the axis; nothing else moves",
                            {"start": "hull", "search": "axis", "placing": "keep", "steps": 0}),
        "motion": Preset("every slice may also move by 3 mm and 3 degrees on its own", {"own_shift": 3.0, "own_turn": 3.0}),
        "deformed": Preset("every slice may also deform by 5 mm in its plane and by 1.5 mm across it; kept where left-out pixels agree",
                           {"bend": 5.0, "bend_through": 1.5}),
        "unordered": Preset("order and directions are found whatever the headers say", {"placing": "both"}),
    },
))
@dataclass(frozen=True)
class SlicesToVolume(Method):
    start: str = parameter("auto", "Start", "The headers, the visual hull of the segments, or a stack made of the slices; auto takes the hull where "
                           "there are segments.", choices=STARTS, advanced=False)
    search: str = parameter("full", "Search", "All poses around the start, the binary search about the axis alone, or none.", choices=SEARCHES, advanced=False)
    placing: str = parameter("auto", "Order and directions", "Kept as given, only directions, only the order or both found; auto finds both where "
                             "what is given does not fit.", choices=PLACINGS, advanced=False)
    similarity: str = parameter("mi", "Similarity", "Mutual information, local correlation or gradient directions on the fine levels.", choices=SIMILARITIES)
    profile: str = parameter("box", "Slice profile", "How depths within the thickness are weighed.", choices=PROFILES)
    angle: float = parameter(45.0, "Reach, turn", "About every axis.", unit="degrees", minimum=0.0, maximum=180.0, advanced=False)
    shift: float = parameter(0.0, "Reach, shift", "Along every axis; 0 takes 0.15 of the slices' longer edge.", unit="mm", minimum=0.0, advanced=False)
    tried: int = parameter(2500, "Poses compared", "In the search of all poses.", minimum=1, maximum=1000000)
    first_turn: float = parameter(15.0, "First turn", "Of the binary search about the axis.", unit="degrees", minimum=0.5, maximum=90.0)
    finest: float = parameter(0.0, "Finest spacing", "0 takes a 128th of the slices' longer edge, never finer than the pixels.", unit="mm", minimum=0.0)
    steps: int = parameter(40, "Steps", "At most on each level; 0 leaves the pose where the search found it.", minimum=0, maximum=1000)
    own_shift: float = parameter(0.0, "Own shift of a slice", "Largest along each axis; 0 keeps the slices together.", unit="mm", minimum=0.0, maximum=20.0)
    own_turn: float = parameter(0.0, "Own turn of a slice", "Largest about each axis.", unit="degrees", minimum=0.0, maximum=20.0)
    bend: float = parameter(0.0, "Deformation in the plane", "Largest of a slice along each of its axes; 0 for none.", unit="mm", minimum=0.0, maximum=30.0)
    bend_through: float = parameter(0.0, "Deformation across the plane", "Largest of a slice along its normal; 0 for none.", unit="mm", minimum=0.0,
                                    maximum=10.0)
    bend_knots: float = parameter(0.0, "Fineness of the deformation", "Distance of control points; 0 takes a sixth of the slices' longer edge.", unit="mm",
                                  minimum=0.0)

    def solve(self, problem, runtime):
        _require_places(problem.slices)
        settings = SliceSettings(search=self.search, similarity=self.similarity, profile=self.profile, angle=self.angle, shift=self.shift, tried=self.tried,
                                 first_turn=self.first_turn, finest=self.finest, iterations=self.steps, own_shift=self.own_shift, own_turn=self.own_turn)
        monitor = runtime.monitor
        starts, name = self._starts(problem, runtime, monitor.part(0.0, 0.1))
        given = Placement(tuple(range(len(problem.slices))), ((False, False),) * len(problem.slices), starts[0], 1.0)
        placement, found = given, None
        if self.placing in ("auto", "keep"):
            found = search(problem, starts, settings, runtime, monitor.part(0.1, 0.5))
        proof = None if found is None else _proof(problem, found, settings)
        if found is None or self.placing == "auto" and self._doubtful(problem, found, proof[1], settings, runtime):
            tried = self._placed(problem, starts, found, settings, runtime, monitor.part(0.5, 1.0))
            if found is None or tried[1].cost < found.cost - TIE:
                placement, found = tried
                proof = _proof(placed(problem, placement), found, settings)
        there = placed(problem, placement)
        mirror = None if self.placing in ("keep", "order") else _mirror(there, found, settings)
        return self._result(problem, placement, found, proof, mirror, name, self._bent(there, found, monitor.part(1.0, 1.0)))

    def _bent(self, problem, found, monitor) -> list:
        """The deformation of every slice of the placed problem; none where none is asked for."""
        if not (self.bend or self.bend_through):
            return []
        level = found.levels[-1]
        grids = [image.grid.resample(np.maximum(level.spacing, image.grid.spacing)) for image in problem.slices]
        own = np.broadcast_to(np.eye(4), (level.count, 4, 4)) if found.own is None else found.own
        settings = BendSettings(self.bend, self.bend_through, self.bend_knots or longest_edge(problem) / 6)
        return bends(level, found.matrix @ own, grids, settings, monitor)

    def _starts(self, problem, runtime, monitor):
        """([(4, 4) slice mm -> volume mm], name)."""
        first = np.eye(4) if problem.initial is None else linear_part(problem.initial).numpy()
        kind = ("hull" if problem.segments is not None else "header") if self.start == "auto" else self.start
        if kind == "hull":
            if problem.segments is None:
                raise InputError("the start 'hull' was asked for without label maps; give segments of the bone on the slices and in the volume, "
                                 "or start from 'header'")
            return [hull_start(problem, monitor)[0], first], "hull"
        if kind == "stack":
            found = search_stack(stack_of(problem), problem.volume, SearchSettings(overlap=0.3), runtime, monitor, first)
            return [found.hypotheses[0].matrix, first], "stack"
        return [first], "header" if problem.initial is None else "given"

    def _doubtful(self, problem, found, proven, settings, runtime) -> bool:
        """True where slices fit better in another order or direction at the found pose, or the evidence is weak."""
        return bool(proven.reasons) or proven.agreeing < 1 or not check_placement(problem, found.matrix, True, True, settings, runtime).is_as_given

    def _placed(self, problem, starts, found, settings, runtime, monitor):
        some = len(groups_of_one_size(problem.slices)) < len(problem.slices)
        order = self.placing in ("order", "both") or self.placing == "auto" and some
        flips = self.placing in ("flips", "both", "auto")
        all_starts = starts if found is None else [*starts, found.matrix]
        half = replace(settings, tried=max(1, self.tried // 2))
        placement = find_placement(problem, all_starts, half, order, flips, runtime, monitor.part(0.0, 0.7))
        near = replace(settings, search="none")
        there, moves = placed(problem, placement), moves_of(problem, placement)
        return placement, search(there, [placement.matrix], near, runtime, monitor.part(0.7, 1.0), moves)

    def _result(self, problem, placement, found, proof, mirror, name, bent):
        spread, proven, curve = proof
        believed = self.placing == "auto" and 2 * sum(any(flip) for flip in placement.flips) < len(placement.flips)
        unsure, remarks = doubts_of_sides(mirror, believed)
        reasons, shown = (*proven.reasons, *unsure), {**proven.as_dict(), **({} if mirror is None else {"mirror": mirror})}
        reasons = (*reasons, STRETCHED) if reasons and is_stretched(values_of(problem.slices)) else reasons
        moves = moves_of(problem, placement)
        remarks = (*remarks, OTHER_SIDE) if mirrors_the_set(problem.slices, moves) else remarks
        remarks = remarks if reasons else (*remarks, *doubts_of_slices(curve))
        bent = tuple(each.before(move) for each, move in zip(bent, moves))
        own = np.broadcast_to(np.eye(4), moves.shape) if found.own is None else found.own
        scalars = {"similarity": 1 - found.cost, "distance_std_mm": spread.distance, **shown}
        return SlicesResult(problem, _affine(found.matrix), tuple(_affine(found.matrix @ o @ m) for o, m in zip(own, moves)), not reasons,
                            reasons, placement.plane, placement.flips, spread.shift, spread.turn, spread.distance, shown, curve,
                            found.votes, name, self.profile, bent, remarks, scalars, found.history)


def _require_places(slices) -> None:
    """InputError where slices lie on each other."""
    if all(image.grid == slices[0].grid for image in slices[1:]):
        raise InputError(f"all {len(slices)} slices lie on the same pixels, so their headers do not say how they lie to each other; place them "
                         "about an axis, the center and the normal of the localizer")
    for k, image in enumerate(slices):
        twin = next((other for other in slices[:k] if other.grid == image.grid), None)
        if twin is not None:
            raise InputError(f"{twin.name} and {image.name} lie on the same pixels; give one of them as a slice, the other one can go along as a map")


def _proof(problem, found, settings):
    with fewer_threads(found.levels[-1].points.shape[1], ONE_THREAD):
        spread = uncertainty(found.levels[-1], found.matrix)
        return spread, evidence(problem, found, settings, spread.distance), axis_curve(found)


def _mirror(problem, found, settings):
    with fewer_threads(found.levels[-1].points.shape[1], ONE_THREAD):
        return mirror_lead(problem, found, settings)


def _affine(matrix) -> Affine:
    return Affine(torch.as_tensor(np.array(matrix)))
