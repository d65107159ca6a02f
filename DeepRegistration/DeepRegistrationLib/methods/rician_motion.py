"""Motion correction of repeated scans with little signal, by the likelihood of the noise that magnitude images have.

Every scan is predicted from tissue maps G and their intensities x, moved rigidly and blurred by the point-spread function, and compared by

    log p(y | a, sigma) = log y - 2 log sigma - (y - a)^2 / (2 sigma^2) + log i0e(y a / sigma^2),

the Rice distribution (``ops/rice.py``; exact at any noise, one value per voxel). Maximum a posteriori with normal priors on the
intensities, shifts and rotations; the search is in ``engines/motion.py``. Motion Correction in Low SNR MRI Using an
Approximate Rician Log-Likelihood, WBIR 2022.

Not in the publication: without tissue maps the realigned scans themselves, freed of the floor of the noise, are the one map, made
anew ``templates`` times; the scale of the intensities is fitted where it is not known (there phantoms show it); the prediction begins blurred,
the rates fall to a share of themselves, and, with tissue maps, a quasi-Newton search follows, so that an eighth of the published rounds is enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from ..engines.motion import INTERPOLATIONS, NOISES, MotionModel, MotionSettings, combined, templates_of
from ..errors import InputError
from ..image import Image
from ..method import Card, Method, Preset, method
from ..parameters import parameter
from ..problem import Series
from ..result import SeriesResult
from ..runtime import fewer_threads
from ..transforms import Affine

RICE = """@inproceedings{RicianMotion2022,
  title = {Motion Correction in Low {SNR} {MRI} Using an Approximate {Rician} Log-Likelihood},
  booktitle = {Biomedical Image Registration (WBIR)}, year = {2022}, doi = {10.1007/978-3-031-11203-4_16}}"""

GUDBJARTSSON = """@article{Gudbjartsson1995,
  author = {Gudbjartsson, H{\\'a}kon and Patz, Samuel},
  title = {The {Rician} Distribution of Noisy {MRI} Data},
  journal = {Magnetic Resonance in Medicine}, volume = {34}, number = {6}, pages = {910--914}, year = {1995}}"""

PUBLISHED = {"rounds": 300, "shared_rate": 0.02, "motion_rate": 0.001, "final_rate": 1.0, "first_blur": 0.0, "settle": False}


@method(Card(
    title="Motion of repeated scans (Rician)",
    summary="Rigid motion between repeated scans with little signal, their average, and the noise at every voxel.",
    task="motion correction",
    references=(RICE, GUDBJARTSSON),
    problem=Series,
    assumptions=("all scans show the same head or body with the same contrast, on one lattice",
                 "magnitude images: no value is negative and the noise is the same everywhere",
                 "rigid motion between scans, none within a scan",
                 "tissue maps, where they are given, lie in the space of the scans and have known intensities up to one scale"),
    failure_modes=("large motion at a high noise without tissue maps: the first average is too blurred to start from",
                   "motion far above the priors; widen them or use the preset 'restless'",
                   "parallel imaging, whose noise changes over the image",
                   "few thick slices: motion across them is known only as well as the priors say"),
    presets={
        "default": Preset("Rician noise, 35 rounds and a last search; about 20 s of one core for eight scans of 40 x 40 x 32"),
        "restless": Preset("priors of twice the width, for long scans and sleeping subjects", {"translation": 2.5, "rotation": 0.05}),
        "gaussian": Preset("normal noise, for scans with much signal and for comparison", {"noise": "gaussian"}),
        "published": Preset("rounds and rates as published, no last search; takes three times as long", PUBLISHED),
    },
))
@dataclass(frozen=True)
class RicianMotion(Method):
    noise: str = parameter("rician", "Noise", "Distribution of the noise of a voxel.", choices=tuple(NOISES), advanced=False)
    translation: float = parameter(1.25, "Shift expected", "Standard deviation of the shifts along each axis.", unit="mm", minimum=1e-3, maximum=100.0,
                                   advanced=False)
    rotation: float = parameter(0.025, "Rotation expected", "Standard deviation of the rotations about each axis.", unit="rad", minimum=1e-4,
                                maximum=3.0, advanced=False)
    psf: float = parameter(0.0, "Point-spread function", "Full width at half maximum of the blur of the scanner; 0 for none.", unit="mm", minimum=0.0)
    means: tuple[float, ...] = parameter((40.0, 30.0, 140.0, 50.0, 50.0), "Intensities", "Mean of each tissue map, in any unit.", minimum=0.0)
    spreads: tuple[float, ...] = parameter((4.0, 4.0, 6.0, 10.0, 10.0), "Spreads", "Standard deviation of each intensity, in the same unit.",
                                           minimum=1e-9)
    templates: int = parameter(3, "Templates", "How often the average takes the place of tissue maps, where none are given.", minimum=1, maximum=20)
    scale: float = parameter(0.0, "Scale", "Units of the scans in one unit of the intensities, as phantoms beside the head show it; 0 fits it.", minimum=0.0)
    first_blur: float = parameter(10.0, "Blur at the start", "Standard deviation; the prediction is blurred less and less, and not at all in the end.",
                                  unit="mm", minimum=0.0, maximum=100.0)
    rounds: int = parameter(35, "Rounds", "Updates of all parameters, for every template where there are no tissue maps.", minimum=1, maximum=10000)
    settle: bool = parameter(True, "Last search", "With tissue maps, take every pose to a peak, from where the rounds left it and from rest.")
    shared_rate: float = parameter(0.05, "Rate of shared parameters", "Step of intensities, in spreads, and of log sigma and log scale.", minimum=1e-6,
                                   maximum=1.0)
    motion_rate: float = parameter(3e-3, "Rate of motion", "Step of rotations, in rad, and of shifts, in halves of the longest edge.", minimum=1e-6,
                                   maximum=1.0)
    final_rate: float = parameter(0.05, "Final rate", "Share of the rates that is left in the last round.", minimum=0.0, maximum=1.0)
    batch: int = parameter(5, "Batch", "Scans for each step of the shared parameters.", minimum=1, maximum=1000)
    interpolation: str = parameter("nearest", "Interpolation", "Of the scans when they are put together; linear changes the noise.",
                                   choices=INTERPOLATIONS)

    def solve(self, problem, runtime):
        with fewer_threads(math.prod(problem.frames[0].grid.shape)):
            return self._solve(problem, runtime)

    def _solve(self, problem, runtime):
        device = runtime.torch_device()
        device = torch.device("cpu") if device.type == "mps" else device
        grid, frames = problem.frames[0].grid, torch.cat([f.data.to(device, torch.float32) for f in problem.frames])
        if self.noise == "rician" and float(frames.min()) < 0:
            raise InputError(f"the scans hold negative values ({float(frames.min()):g}); magnitude images have none, "
                             "export magnitudes or choose the preset 'gaussian'")
        settings = MotionSettings(**{f.name: getattr(self, f.name) for f in fields(MotionSettings)})
        generator, monitor = runtime.generator(), runtime.monitor
        if problem.tissues is not None:
            model = MotionModel(frames, grid, problem.tissues.to(device, torch.float32), self.means, self.spreads, settings)
            history = [model.fit(monitor.part(0.0, 0.6, "motion"), generator, self.rounds)]
            if self.settle:
                model.settle(monitor.part(0.6, 0.95), generator)
        else:
            model, history = self._without_maps(frames, grid, settings, generator, monitor)
        transforms = model.transforms()
        images = combined(frames, grid, transforms, grid, self.interpolation, self.noise, monitor.part(0.95, 1.0))
        average, signal, sigma = (Image(data.cpu(), grid, name=name) for data, name in zip(images, ("average", "signal", "sigma")))
        scalars = {"sigma": float(model.log_sigma.detach().exp()), "scale": float(model.log_scale.detach().exp()),
                   "mean_voxel_sigma": float(images[2].nanmean())}
        rows = [{"stage": f"template {k + 1}" if problem.tissues is None else "tissue maps", "step": step, "loss": loss}
                for k, losses in enumerate(history) for step, loss in enumerate(losses)]
        return SeriesResult(problem, transforms, average, signal, sigma, motion_table(transforms, signal), scalars, rows)

    def _without_maps(self, frames, grid, settings, generator, monitor):
        """(model, history of every template): the realigned scans take the place of tissue maps. What all scans have in common moves the
        template with them and is no motion: it is taken out."""
        model, history = None, []
        transforms, sigma = [Affine.identity(grid.dim)] * len(frames), 0.0
        for k in range(self.templates):
            template = templates_of(frames, grid, transforms, sigma, self.noise)
            wide = settings if model is None else replace(settings, first_blur=0.0)
            following = MotionModel(frames, grid, template, (1.0,), (1.0,), wide)
            if model is not None:
                following.poses.data.copy_(model.poses.data)
            model = following
            part = monitor.part(0.95 * k / self.templates, 0.95 * (k + 1) / self.templates, f"template {k + 1}/{self.templates}")
            history.append(model.fit(part, generator, self.rounds))
            model.centre_poses()
            transforms, sigma = model.transforms(), float(model.log_sigma.detach().exp())
        return model, history


def motion_table(transforms, signal: Image) -> list[dict]:
    """One dict a scan: where the center of the lattice goes (shift along x, y, z, mm, LPS), the rotation vector (degrees) and the mean
    distance (mm) that the voxels with more than the mean signal move; all from the reference to the scan. ``step_mm``: that distance from the scan before.
    """
    grid, dim = signal.grid, signal.dim
    values = signal.data[0, 0].nan_to_num()
    points = grid.points()[(values > values.mean()).numpy()]
    points = points if len(points) else grid.corners()
    rows, before = [], None
    for k, transform in enumerate(transforms):
        m = transform.numpy()
        shift = m[:dim, :dim] @ grid.centre + m[:dim, dim] - grid.centre
        turn = np.rad2deg(rotation_vector(m[:dim, :dim]))
        there = points @ m[:dim, :dim].T + m[:dim, dim]
        moved, step = (float(np.linalg.norm(there - other, axis=1).mean()) for other in (points, there if before is None else before))
        before = there
        rows.append({"scan": k, **{f"shift_{a}_mm": float(v) for a, v in zip("xyz", shift)},
                     **{f"rotation_{a}_deg": float(v) for a, v in zip("xyz" if dim == 3 else "z", turn)}, "displacement_mm": moved, "step_mm": step})
    return rows


def rotation_vector(matrix: np.ndarray) -> np.ndarray:
    """(1,) or (3,) rad of a rotation (2, 2) or (3, 3) of less than half a turn."""
    if len(matrix) == 2:
        return np.array([np.arctan2(matrix[1, 0], matrix[0, 0])])
    skew = np.array([matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]]) / 2
    sine = np.linalg.norm(skew)
    angle = np.arctan2(sine, (np.trace(matrix) - 1) / 2)
    return skew * (angle / sine) if sine > 1e-12 else skew
