"""Rigid motion between repeated scans, from a generative model of tissue maps and a likelihood of the noise.

Scan i is predicted as  y_i = P( (G x) o T_i ),  T_i(p) = R(theta_i) (p - c) + c + t_i  from points of the scan to points of the tissue maps:
G the maps (voxels x K), x their intensities, P a Gaussian point-spread function. Parameters maximize

    sum_i [ log p(observed_i | y_i, sigma) + log N(t_i; 0, s_t^2) + log N(theta_i; 0, s_r^2) ] + log N(x; mean, spread^2)

by Adam (beta 0 and 0.9) in turn: two steps of what all scans share (x, sigma, and the scale from units of x to those of the scans), on
batches of scans, then one step of each scan's own pose. Motion Correction in Low SNR MRI Using an Approximate Rician Log-Likelihood, WBIR 2022
(doi 10.1007/978-3-031-11203-4_16). There the scale comes from phantoms beside the head; here it is fitted where it is not given. One scan is in the
graph at a time, so the memory does not grow with the number of scans in a batch.

P begins wider, by a blur that goes to 0 over the first ``BLURRED`` of the rounds, since at a high noise the likelihood has many small peaks. Where
there are tissue maps, ``settle`` then takes each pose to a peak by a quasi-Newton search (``search.py``), from where Adam left it and from rest
through a narrowing blur, keeps the higher peak, and fits what is shared once more. Every voxel of every scan counts, whatever the pose: outside of
the maps the signal is that of their border. To count only the voxels that the maps cover rewards poses that move bright voxels, whose
noise has the larger entropy, out of the field of view.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..errors import InputError
from ..geometry import Grid
from ..image import Image
from ..ops.filters import gaussian
from ..ops.rice import fit_rice, gauss_log_likelihood, rice_log_likelihood
from ..ops.sample import apply_matrix, inside, resample, sample, world_points
from ..ops.spline import tensor_product
from ..runtime import Monitor
from ..transforms.linear import Affine
from .search import minimise

NOISES = {"rician": rice_log_likelihood, "gaussian": gauss_log_likelihood}
INTERPOLATIONS = ("nearest", "linear")
FWHM = 2.3548200450309493
TEMPLATE_SIGMA = 1.0
COARSE = 0.6
"""Maps coarser than this share of the scans' spacing are read from a lattice twice as fine: linear interpolation between their own voxels
blurs most half way, which draws every pose to where voxels lie on voxels."""
SLAB_VALUES = 4_000_000
"""Values of all scans that are put together at a time."""
BLURRED, SHARED_STEPS = 0.6, 20


@dataclass(frozen=True)
class MotionSettings:
    """``noise`` of ``NOISES``; rates of Adam: ``shared_rate`` in spreads of x and in logarithms of sigma and scale,
    ``motion_rate`` in rad and in halves of the longest edge, both falling to the share ``final_rate`` of themselves; ``batch`` scans a
    shared step; priors ``translation`` mm and ``rotation`` rad; ``psf`` mm, full width at half maximum; ``scale``: units of the scans in one
    of x, 0 where it is fitted; ``first_blur`` mm, standard deviation."""

    noise: str = "rician"
    shared_rate: float = 0.05
    motion_rate: float = 3e-3
    final_rate: float = 0.05
    batch: int = 5
    translation: float = 1.25
    rotation: float = 0.025
    psf: float = 0.0
    scale: float = 0.0
    first_blur: float = 10.0


class MotionModel:
    """The model of ``frames`` (N, 1, *S) on ``grid``, with ``tissues`` (1, K, *T), or (N, K, *T): maps for each scan; ``means`` and
    ``spreads`` (K,) are those of their intensities.

    ``poses`` (N, dim + 1 or 3): translations in halves of the longest edge, then rotations in rad.
    """

    def __init__(self, frames: torch.Tensor, grid: Grid, tissues: Image, means, spreads, settings: MotionSettings):
        self.frames, self.grid, self.tissues, self.settings = frames, grid, tissues, settings
        self.means, self.spreads = (torch.as_tensor(v, dtype=frames.dtype, device=frames.device) for v in (means, spreads))
        if self.means.numel() != tissues.data.shape[1] or self.spreads.numel() != self.means.numel():
            raise InputError(f"{tissues.data.shape[1]} tissue maps were given with {self.means.numel()} means and {self.spreads.numel()} spreads; "
                             "give one mean and one spread per map")
        self.unit = float(grid.extent.max()) / 2
        self.centre = torch.as_tensor(grid.centre.copy(), dtype=torch.float64)
        self.points = world_points(grid, torch.float32, frames.device).reshape(-1, grid.dim)
        self.blur = 0.0
        self.lattice, self.lines = finer(tissues.grid) if tissues.grid.mean_spacing > COARSE * grid.mean_spacing else (tissues.grid, None)
        sigma, scale = first_noise_and_scale(frames, resample(self._volume(0, torch.zeros_like(self.means)), tissues.grid, grid))
        self.offset = torch.zeros_like(self.means).requires_grad_(True)
        self.log_scale = torch.tensor(np.log(settings.scale or scale), dtype=frames.dtype, device=frames.device, requires_grad=True)
        self.log_sigma = torch.tensor(np.log(sigma), dtype=frames.dtype, device=frames.device, requires_grad=True)
        self.poses = torch.zeros(len(frames), grid.dim + (1 if grid.dim == 2 else 3), device=frames.device, requires_grad=True)

    def _volume(self, k, offset):
        maps = self.tissues.data[k:k + 1] if len(self.tissues.data) > 1 else self.tissues.data
        return (maps * (self.means + self.spreads * offset).reshape(1, -1, *[1] * self.tissues.dim)).sum(1, keepdim=True)

    def volume(self, k: int) -> torch.Tensor:
        """(1, 1, *L) signal of scan ``k`` without noise, on ``lattice``, in units of the scans."""
        signal = self._volume(k, self.offset) * self.log_scale.exp()
        return signal if self.lines is None else tensor_product(signal, self.lines)

    def matrix(self, pose: torch.Tensor) -> torch.Tensor:
        """pose (P,) -> (dim + 1, dim + 1) points of a scan, mm -> points of the tissue maps, mm."""
        dim = self.grid.dim
        values = torch.cat([pose[:dim] * self.unit, pose[dim:]])[None].double()
        return Affine.from_parameters("rigid", values.cpu(), self.centre).matrix[0]

    def log_likelihood(self, k: int, pose: torch.Tensor, volume: torch.Tensor) -> torch.Tensor:
        """Mean over the voxels of scan ``k``, for a ``pose`` and a signal ``volume``."""
        to_index = torch.as_tensor(self.lattice.inverse_affine.copy()) @ self.matrix(pose)
        index = apply_matrix(to_index.to(self.points), self.points).reshape(1, *self.grid.shape, self.grid.dim)
        signal = gaussian(sample(volume, index), np.hypot(self.settings.psf / FWHM, self.blur) / self.grid.spacing)
        return NOISES[self.settings.noise](self.frames[k:k + 1], signal.clamp_min(0), self.log_sigma.exp()).mean(dtype=torch.float64)

    def fit(self, monitor: Monitor, generator: torch.Generator, rounds: int) -> list[float]:
        """Update everything ``rounds`` times; returns the mean negative log-likelihood per voxel of every round."""
        shared = torch.optim.Adam(self._shared(), betas=(0.0, 0.9))
        motion = torch.optim.Adam([self.poses], betas=(0.0, 0.9))
        history = []
        for k in monitor.steps(rounds, "rounds"):
            motion.param_groups[0]["lr"] = self.settings.motion_rate * self._share_of_rate(k, rounds)
            self.blur = self.settings.first_blur * max(0.0, 1 - k / (BLURRED * rounds))
            for _ in range(2):
                self._shared_step(shared, generator, self._share_of_rate(k, rounds))
            history.append(self._motion_step(motion, self.grid.voxels))
            monitor.log(loss=history[-1])
        return history

    def fit_shared(self, monitor: Monitor, generator: torch.Generator, steps: int) -> None:
        """Update what all scans share, the poses as they are and the prediction as sharp as it is."""
        shared, self.blur = torch.optim.Adam(self._shared(), betas=(0.0, 0.9)), 0.0
        for k in monitor.steps(steps, "intensities and noise"):
            self._shared_step(shared, generator, self._share_of_rate(k, steps))

    def _shared(self) -> list:
        return [self.offset, self.log_sigma] + ([] if self.settings.scale else [self.log_scale])

    def _share_of_rate(self, k, rounds):
        return self.settings.final_rate + (1 - self.settings.final_rate) * 0.5 * (1 + np.cos(np.pi * k / rounds))

    def _shared_step(self, optimizer, generator, share):
        optimizer.param_groups[0]["lr"], voxels = self.settings.shared_rate * share, self.grid.voxels
        batch = torch.randperm(len(self.frames), generator=generator)[:self.settings.batch].tolist()
        optimizer.zero_grad()
        prior = 0.5 * self.offset.square().sum() / (voxels * len(self.frames))
        prior.backward()
        for k in batch:
            (-self.log_likelihood(k, self.poses[k].detach(), self.volume(k)) / len(batch)).backward()
        optimizer.step()

    def _motion_step(self, optimizer, voxels):
        optimizer.zero_grad()
        total, dim = 0.0, self.grid.dim
        for k in range(len(self.frames)):
            pose = self.poses[k]
            prior = (pose[:dim] * self.unit / self.settings.translation).square().sum() + (pose[dim:] / self.settings.rotation).square().sum()
            cost = -self.log_likelihood(k, pose, self.volume(k).detach())
            (cost + 0.5 * prior / voxels).backward()
            total += float(cost.detach())
        for parameter in (self.offset, self.log_scale, self.log_sigma):
            parameter.grad = None
        optimizer.step()
        return total / len(self.frames)

    def settle(self, monitor: Monitor, generator: torch.Generator) -> None:
        """Take every pose to the higher of the peaks of its posterior that are found from where it is and from rest; then update what all scans share,
        which knew poses short of their peaks, and take the poses to the peaks of that."""
        count, first, last = len(self.frames), monitor.part(0.0, 0.7), monitor.part(0.8, 1.0)
        for k in first.steps(count, "poses"):
            inner = first.part(k / count, k / count)
            here, other = self._peak(k, self._pose(k), 0.0, inner), (np.zeros_like(self._pose(k)), np.inf)
            for blur in (self.settings.first_blur, self.settings.first_blur / 2, 0.0):
                other = self._peak(k, other[0], blur, inner)
            self.poses.data[k] = torch.as_tensor(min(here, other, key=lambda peak: peak[1])[0]).to(self.poses)
        self.fit_shared(monitor.part(0.7, 0.8), generator, SHARED_STEPS)
        for k in last.steps(count, "poses"):
            self.poses.data[k] = torch.as_tensor(self._peak(k, self._pose(k), 0.0, last.part(k / count, k / count))[0]).to(self.poses)

    def _pose(self, k: int) -> np.ndarray:
        return self.poses.detach()[k].double().cpu().numpy()

    def _peak(self, k: int, pose: np.ndarray, blur: float, monitor) -> tuple[np.ndarray, float]:
        """(pose, cost) of the peak near ``pose`` (P,), the prediction blurred by ``blur`` mm; cost is minus the log-posterior of scan ``k``."""
        volume, dim, step = self.volume(k).detach(), self.grid.dim, self.grid.mean_spacing
        units = np.r_[np.full(dim, 1 / self.unit), np.full(len(pose) - dim, 2 / self.unit)]  # a step of 1 moves about 1 mm
        precision = np.r_[np.full(dim, (self.unit / self.settings.translation) ** 2), np.full(len(pose) - dim, self.settings.rotation**-2)]
        self.blur = blur

        def evaluate(values):
            there = torch.as_tensor(values, dtype=torch.float32, device=self.poses.device).requires_grad_(True)
            cost = -self.grid.voxels * self.log_likelihood(k, there, volume)
            (slope,) = torch.autograd.grad(cost, there)
            return float(cost.detach()) + 0.5 * float(precision @ values**2), units * (slope.double().cpu().numpy() + precision * values)

        return minimise(evaluate, pose, lambda values, move: values + units * move, np.eye(len(pose)), longest=step, tolerance=0.005 * step,
                        iterations=25, monitor=monitor, text="poses")

    def centre_poses(self) -> None:
        """Take the mean of all poses out of each; for the small rotations of a series that is the mean motion."""
        self.poses.data -= self.poses.data.mean(0)

    def transforms(self) -> list[Affine]:
        """For every scan the map from points of the tissue maps to points of the scan, mm."""
        return [Affine(torch.linalg.inv(self.matrix(pose))) for pose in self.poses.detach()]


def finer(grid: Grid) -> tuple[Grid, list[np.ndarray]]:
    """(lattice of half the spacing over the same field of view, one matrix an axis (x, y, z) of cubic spline interpolation to it)."""
    fine = grid.resample(grid.spacing / 2)
    return fine, [_interpolation(n, m) for n, m in zip(grid.size, fine.size)]


def _interpolation(n: int, m: int) -> np.ndarray:
    """(m, n): what every voxel of a line of n gives to each of m over the same length."""
    line = Grid.from_parts((1, n))
    units = torch.eye(n, dtype=torch.float64)[None, :, None]
    return resample(units, line, line.resample(np.array([n / m, 1.0])), "cubic")[0, :, 0].numpy().T


def first_noise_and_scale(frames: torch.Tensor, signal: torch.Tensor) -> tuple[float, float]:
    """A first sigma and scale for ``frames`` (N, 1, *S) of the ``signal`` (1, 1, *S) in its own units.

    sigma from the voxels without signal (mean(y^2) = 2 sigma^2 there), or, where there are few, from differences of successive scans;
    the scale from mean(y^2) = (scale signal)^2 + 2 sigma^2 over all voxels.
    """
    power = frames.square().mean(0, keepdim=True)
    empty = signal <= 0.01 * signal.max()
    if int(empty.sum()) >= max(500, 0.05 * empty.numel()):
        variance = float(power[empty].mean()) / 2
    else:
        variance = float((frames[1:] - frames[:-1]).square().mean()) / 2
    variance = max(variance, 1e-12 * float(power.mean()), 1e-30)
    scale = max(float(power.mean()) - 2 * variance, 0.01 * float(power.mean())) / max(float(signal.square().mean()), 1e-30)
    return float(np.sqrt(variance)), float(np.sqrt(scale))


def templates_of(frames: torch.Tensor, grid: Grid, transforms: list[Affine], sigma: float, noise: str) -> Image:
    """For every scan the signal of all others, realigned, as its one map (N, 1, *S) with a root mean square of 1.

    A scan has no part in its own map, whose noise would hold it where it is. Smoothed by one voxel; for 'rician' the floor of the noise is
    taken away: a^2 = mean(y^2) - 2 sigma^2.
    """
    values, weights = [], []
    for frame, transform in zip(frames, transforms):
        index = _index_of(grid, grid, transform, frames.device)
        known = inside(index, grid.shape)[:, None].to(frames)
        read = sample(frame[None], index)
        values.append((read.square() if noise == "rician" else read) * known)
        weights.append(known)
    values, weights = torch.cat(values), torch.cat(weights)
    total, count = gaussian(values.sum(0, keepdim=True) - values, TEMPLATE_SIGMA), gaussian(weights.sum(0, keepdim=True) - weights, TEMPLATE_SIGMA)
    mean = total / count.clamp_min(0.1)
    signal = (mean - 2 * sigma**2).clamp_min(0).sqrt() if noise == "rician" else mean
    return Image(signal / signal.square().mean().sqrt().clamp_min(1e-30), grid, name="template")


def combined(frames: torch.Tensor, source: Grid, transforms: list[Affine], target: Grid, interpolation: str, noise: str, monitor: Monitor):
    """(average, signal, sigma), each (1, 1, *T) on ``target``: of the scans that see a voxel, NaN where fewer than two do.

    ``transforms`` target mm -> scan mm. The average is that of the magnitudes; signal and sigma are fitted to every voxel (Rice, or mean
    and standard deviation). Done in slabs, so that the scans are never all resampled at once.
    """
    thick = max(1, SLAB_VALUES // (len(frames) * int(np.prod(target.shape[1:]))))
    parts = []
    for k in monitor.steps(-(-target.shape[0] // thick), "putting the scans together"):
        low, high = k * thick, min((k + 1) * thick, target.shape[0])
        slab = target.crop([*[0] * (target.dim - 1), low], [*target.size[:-1], high])
        values = torch.cat([_read(frame[None], source, transform, slab, interpolation) for frame, transform in zip(frames, transforms)])[:, 0]
        parts.append(torch.stack(_statistics(values, noise)))
    return [part[None, None] for part in torch.cat(parts, 1)]


def _read(frame, source, transform, target, interpolation):
    return sample(frame, _index_of(target, source, transform, frame.device), interpolation, fill=float("nan"))


def _index_of(grid, source, transform, device):
    to_index = torch.as_tensor(source.inverse_affine @ transform.numpy())
    points = world_points(grid, torch.float32, device)
    return apply_matrix(to_index.to(points), points.reshape(-1, grid.dim)).reshape(1, *grid.shape, grid.dim)


def _statistics(values, noise):
    """(average, signal, sigma) of (N, *S) values, NaN where a scan has none."""
    count = torch.isfinite(values).sum(0)
    few = count < 2
    mean = values.nansum(0) / count.clamp_min(1)
    average = mean.masked_fill(few, torch.nan)
    if noise == "rician":
        return average, *fit_rice(values)
    deviation = ((values - mean).square().nansum(0) / (count - 1).clamp_min(1)).sqrt()
    return average, average, deviation.masked_fill(few, torch.nan)
