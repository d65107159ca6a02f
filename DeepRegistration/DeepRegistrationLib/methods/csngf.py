"""Global rigid alignment of any two contrasts: the similarity of gradient directions for every shift by FFT, for many rotations.

The similarity of a map is the mean over the common voxels of <n_F, n_M>^2, where n is the normalized gradient of an image: parallel
and opposite directions count alike, so that what is bright in one image may be dark in the other. Its values for all shifts at once
come from products in the frequency domain (``ops/fft.py``); rotations from the whole group are tried on a coarse lattice and the
best of them made better on finer ones (``engines/global_rigid.py``). Öfverstedt, Lindblad and Sladoje, WBIR 2022.

The published search ends with its best map, on whole voxels and tried angles. Here the search keeps several maps that are far from each other and,
unless ``refine`` is 'none', the best starts of a global search by mutual information join them; a local search of mutual information takes each to a fraction
of a voxel (both in ``engines/linear.py``, not part of the publication), and the answer is the one of lowest cost among those that keep the least overlap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ..engines.global_rigid import SAMPLINGS, Hypothesis, SearchSettings, search
from ..engines.linear import SIMILARITIES, LinearSettings, likely_starts, solve_linear
from ..errors import InputError
from ..method import Card, Method, Preset, method
from ..parameters import parameter
from ..result import Result
from ..transforms.base import Identity, linear_part
from ..transforms.linear import Affine

OFVERSTEDT = """@inproceedings{Ofverstedt2022,
  author = {{\\"O}fverstedt, Johan and Lindblad, Joakim and Sladoje, Nata{\\v{s}}a},
  title = {{Cross-Sim-NGF}: {FFT}-Based Global Rigid Multimodal Alignment of Image Volumes Using Normalized Gradient Fields},
  booktitle = {Biomedical Image Registration (WBIR)}, year = {2022}}"""

HABER = """@inproceedings{Haber2006,
  author = {Haber, Eldad and Modersitzki, Jan},
  title = {Intensity Gradient Based Registration and Fusion of Multi-modal Images},
  booktitle = {Medical Image Computing and Computer-Assisted Intervention}, pages = {726--733}, year = {2006}}"""

ALEXA = """@inproceedings{Alexa2022,
  author = {Alexa, Marc},
  title = {Super-Fibonacci Spirals: Fast, Low-Discrepancy Sampling of {SO(3)}},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition}, pages = {8291--8300}, year = {2022}}"""

FURTHER = 4
"""Starts of a global search by the measure of the last step that join what the search by gradient directions kept."""

PUBLISHED = {"sampling": "random", "factors": (4.0, 2.0, 2.0, 1.0), "tried": (5000, 3000, 300, 0), "kept": (20, 3, 1, 1),
             "apart": 3.0, "turns": (10.0, 3.0, 0.0), "blur": (1.25, 1.5, 1.0, 1.5), "finest": 0.001, "refine": "none"}


@method(Card(
    title="Global rigid search by gradient directions (CSNGF)",
    summary="Finds any rotation and shift between two images of the same or of different contrast, without a start.",
    task="global rigid alignment",
    references=(OFVERSTEDT, HABER, ALEXA),
    assumptions=("the images show the same body up to a rotation and a shift, at the same scale",
                 "edges of one image are edges of the other, whichever side is brighter",
                 "at least the least overlap of the smaller image lies in the other, 50 % unless changed",
                 "no mirror image: left stays left"),
    failure_modes=("images whose edges differ, such as vessels alone against a whole head",
                   "round or repetitive shapes, which look alike after a turn",
                   "a small piece of a much larger image; crop or mask it",
                   "single slices of volumes; give two 2D images"),
    presets={
        "default": Preset("1000 rotations on a coarse lattice (360 in 2D), the best made better and joined by those of a search by mutual "
                          "information, which then tells which is right; 6 to 22 s of one core"),
        "search-only": Preset("without the last step: a start for another method, good to about a voxel of a 64th of the image",
                              {"refine": "none"}),
        "thorough": Preset("5000 rotations and a third of their best; about 40 s of one core", {"tried": (5000, 1000, 96), "kept": (40, 8, 8)}),
        "published": Preset("numbers of rotations, levels and random turns as published, at full resolution; for a GPU, and more than "
                            "an hour on a CPU for a 1 mm head", PUBLISHED),
    },
))
@dataclass(frozen=True)
class CrossSimilarity(Method):
    refine: str = parameter("mi", "Last step", "What a local rigid search compares in the end; 'none' keeps what the search found.",
                            choices=("none", *SIMILARITIES), advanced=False)
    overlap: float = parameter(0.5, "Least overlap", "Share of the smaller image that must lie in the other.", minimum=0.05, maximum=1.0,
                               advanced=False)
    sampling: str = parameter("covering", "Rotations", "An even covering of all rotations, the same in every run, or random ones.",
                              choices=SAMPLINGS)
    tried: tuple[int, ...] = parameter((1000, 300, 48), "Rotations tried", "On each level; the first level takes at most 360 in 2D.",
                                       minimum=0, maximum=1000000)
    kept: tuple[int, ...] = parameter((10, 4, 4), "Rotations kept", "After each level; the last step tells which of the last is right.", minimum=1,
                                      maximum=1000)
    apart: float = parameter(15.0, "Rotations apart", "Least angle between two that are kept.", unit="degrees", minimum=0.0, maximum=180.0)
    turns: tuple[float, ...] = parameter((8.0, 2.0), "Turns", "Largest turn about each axis on every level after the first.", unit="degrees",
                                         minimum=0.0, maximum=90.0)
    factors: tuple[float, ...] = parameter((2.0, 2.0, 1.0), "Spacing factors", "Spacing of each level over the finest.", minimum=1.0, maximum=64.0)
    blur: tuple[float, ...] = parameter((1.25, 1.25, 1.0), "Smoothing", "Gaussian sigma of each level, in voxels of the level.",
                                        minimum=0.0, maximum=10.0)
    finest: float = parameter(0.0, "Finest spacing", "Of the last level; 0 takes a 64th of the longer edge, never finer than the voxels.",
                              unit="mm", minimum=0.0)
    epsilon: float = parameter(1e-5, "Noise", "Gradient per voxel, of images scaled to [0, 1], that counts as noise; 0 estimates it.", minimum=0.0)

    def solve(self, problem, runtime):
        settings = SearchSettings(**{k: v for k, v in self.values().items() if k != "refine"})
        share = 1.0 if self.refine == "none" else 0.7
        start = _initial(problem)
        found = search(problem.fixed, problem.moving, settings, runtime, runtime.monitor.part(0.0, share, "search"), start)
        best, fine = found.hypotheses[0], None
        if self.refine != "none":
            best, fine = self._refined(problem, found, runtime, runtime.monitor.part(share, 1.0, "refinement"))
        transform = Affine(torch.as_tensor(best.matrix)) if fine is None else fine.transform
        history = [{"stage": "search", "step": 0, "loss": 1 - best.similarity}, *([] if fine is None else fine.history)]
        return Result(problem, transform, scalars={"similarity": best.similarity, "lead": found.lead(best.turn)}, history=history,
                      provenance={"search": found.hypotheses[0].matrix.tolist()})

    def _refined(self, problem, found, runtime, monitor):
        """(Hypothesis, LinearSolution) of the lowest cost after a local search from each, of those that keep the least overlap."""
        settings = LinearSettings(freedom="rigid", similarity=self.refine)
        hypotheses = [*found.hypotheses, *_further(problem, found.level, settings, runtime, monitor.part(0.0, 0.4, "further starts"))]
        solutions, count, part = [], len(hypotheses), monitor.part(0.4, 1.0)
        for k, hypothesis in enumerate(hypotheses):
            start = replace(problem, initial=Affine(torch.as_tensor(hypothesis.matrix)))
            solutions.append(solve_linear(start, settings, runtime, part.part(k / count, (k + 1) / count, f"{k + 1}/{count}")))
        overlapping = [k for k, s in enumerate(solutions) if found.level.similarity(s.transform.numpy()) > -np.inf]
        k = min(overlapping or range(count), key=lambda k: solutions[k].after)
        return hypotheses[k], solutions[k]


def _further(problem, level, settings, runtime, monitor):
    """The best starts of a global search by the measure of the last step, as Hypotheses; those that keep too little overlap are left out."""
    try:
        starts = likely_starts(replace(problem, initial=None), replace(settings, start="global"), runtime, monitor)
    except InputError:  # no start of that search has overlap; the other search has found some
        return []
    every = [Hypothesis(matrix[:-1, :-1], matrix, level.similarity(matrix)) for matrix in starts]
    return [h for h in every if h.similarity > -np.inf][:FURTHER]


def _initial(problem):
    """(dim + 1, dim + 1) of the initial transform, None without one; its rotation is tried besides all others."""
    if problem.initial is None:
        return None
    if not isinstance(problem.initial, (Identity, Affine)):
        raise InputError(f"the initial transform is a {type(problem.initial).__name__}; the global search starts from a linear one or from none, "
                         "give its linear part or choose a deformable method")
    return linear_part(problem.initial).numpy()
