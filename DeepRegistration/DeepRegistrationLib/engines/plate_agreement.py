"""How well the atlas agrees with a slice on planes, and planes improved by that.

With G means over Gaussian windows of a few pixels in which the slice's tissue alone counts, so that what was torn away says nothing,

    score(plane) = mean over the tissue of  G(s a) - G(s) G(a) / sqrt((G(s^2) - G(s)^2) (G(a^2) - G(a)^2))  -  unlikely(plane)

for the slice s and the atlas a on the plane: local correlation (Cachier et al., CVIU 2003), which shading and another curve of brightness leave
alone. ``unlikely`` grows with the squares of tilt, turn and scales (``USUAL``) and of the bend. The NUMBERS of a plane: shift along u, v, w mm; turn
about u, v, w degrees; logarithms of two scales; then where the CONTROLS x CONTROLS knots of a cubic spline over the picture are moved to, pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from ..ops import nd
from ..ops.filters import gaussian
from ..ops.sample import sample
from .plates import SHOWN, Plates, Query

NUMBERS, CONTROLS = 8, 6
FLOOR = 1e-4
"""Smallest variance that counts."""
USUAL, DOUBT, STIFFNESS = (8.0, 8.0, 15.0, 0.15, 0.15), 0.01, 0.02
"""Tilt about u and v, turn (degrees) and log scales of a slice; what each costs where it is that large; what a bend by one pixel costs."""


def motions(numbers: torch.Tensor) -> torch.Tensor:
    """(N, 4, 4) float64 of shifts (mm) and turns (degrees) in the first six of ``numbers`` (N, 6 or more), differentiable."""
    numbers = numbers.double()
    x, y, z = torch.deg2rad(numbers[:, 3:6]).unbind(1)
    zero = torch.zeros_like(x)
    skew = torch.stack([torch.stack(row, 1) for row in ((zero, -z, y), (z, zero, -x), (-y, x, zero))], 1)
    top = torch.cat([torch.matrix_exp(skew), numbers[:, :3, None]], 2)
    return torch.cat([top, torch.tensor([0.0, 0, 0, 1], dtype=top.dtype).expand(len(top), 1, 4)], 1)


def frames_of(frames: np.ndarray, numbers) -> np.ndarray:
    """(N, 4, 4) frames turned about their own origins and moved along their own axes by the first six ``numbers``; the rest is left to the caller."""
    return frames @ motions(torch.as_tensor(numbers)).numpy()


@dataclass(frozen=True, eq=False)
class Agreement:
    """Of a slice with planes of ``plates``: its ``picture`` and ``tissue`` (1, 1, size, size) in pixels of theirs; ``window``: sigma of G in pixels."""

    plates: Plates
    picture: torch.Tensor
    tissue: torch.Tensor
    window: float

    @classmethod
    def of(cls, query: Query, plates: Plates, factor: int, window: float) -> "Agreement":
        """In pixels ``factor`` times as large as those of ``plates``."""
        picture = gaussian(query.picture, 0.7)
        if factor > 1:
            plates = replace(plates, volume=plates.volume.smoothed_to(factor * plates.pixel), size=plates.size // factor, pixel=factor * plates.pixel)
            picture = nd.average_pool(picture, factor)
        return cls(plates, picture, (picture > SHOWN).float(), window)

    def local(self, values: torch.Tensor) -> torch.Tensor:
        """G of pictures (N, 1, size, size)."""
        return gaussian(values * self.tissue, self.window, "zero") / self._weight

    @cached_property
    def _weight(self) -> torch.Tensor:
        return gaussian(self.tissue, self.window, "zero").clamp_min(1e-6)

    @cached_property
    def _own(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance of the slice."""
        mean = self.local(self.picture)
        return mean, (self.local(self.picture**2) - mean**2).clamp_min(FLOOR)

    @cached_property
    def bends(self) -> torch.Tensor:
        """(size^2, CONTROLS^2) of the cubic spline."""
        line = torch.linspace(-1, 1, self.plates.size)[:, None] - torch.linspace(-0.85, 0.85, CONTROLS)
        distance = (line * (CONTROLS - 1) / 1.7).abs()
        one = torch.where(distance < 1, 2 / 3 - distance**2 + distance**3 / 2, (2 - distance).clamp_min(0) ** 3 / 6)
        return torch.einsum("vi,uj->vuij", one, one).reshape(len(line) ** 2, -1)

    def correlation(self, frames, numbers: torch.Tensor, bending: bool) -> torch.Tensor:
        """(N,) mean over the tissue, at most 1, of planes moved by ``numbers`` from ``frames`` (N, 4, 4)."""
        points = self.plates.lattice() * numbers[:, None, 6:NUMBERS].exp()
        if bending:
            moved = numbers[:, NUMBERS:].reshape(len(numbers), 2, -1)
            points = points + self.plates.pixel * (self.bends @ moved.transpose(1, 2))
        seen = self.plates.values(torch.as_tensor(frames) @ motions(numbers), points).reshape(-1, 1, *self.picture.shape[2:])
        mean, (own, spread) = self.local(seen), self._own
        variance = (self.local(seen**2) - mean**2).clamp_min(0) + FLOOR
        together = (self.local(seen * self.picture) - mean * own) / (variance * spread).sqrt()
        return (together * self.tissue).sum((1, 2, 3)) / self.tissue.sum().clamp_min(1)

    def share(self, frames: np.ndarray, scales: np.ndarray) -> torch.Tensor:
        """(N,) the tissue of the slice over what the atlas shows on planes."""
        shown = (self.plates.pictures(frames) > SHOWN).sum((1, 2, 3)).clamp_min(1)
        return self.tissue.sum() * torch.as_tensor(scales.prod(1), dtype=torch.float32) / shown

    def laid_over(self, frames: np.ndarray, turns) -> tuple[torch.Tensor, torch.Tensor]:
        """Of every frame (N, 4, 4) the best agreement (N,) over all shifts and the ``turns`` (degrees), and the numbers (N, ...) of the plane there."""
        pictures = self.plates.pictures(frames)
        size, shape = self.plates.size, (2 * self.plates.size,) * 2
        theirs = torch.fft.rfft2(_normalized(pictures, torch.ones_like(pictures), self.window), s=shape)[:, 0]
        fit, numbers = torch.full((len(frames),), -np.inf), torch.zeros(len(frames), NUMBERS + 2 * CONTROLS**2)
        for turn in turns:
            picture, tissue = self._turned(turn)
            own = torch.fft.rfft2(_normalized(picture, tissue, self.window), s=shape)[:, 0]
            value, place = (torch.fft.irfft2(theirs * own.conj(), s=shape).flatten(1) / tissue.sum().clamp_min(1)).max(1)
            row, column = ((part + size) % shape[0] - size for part in (place // shape[1], place % shape[1]))
            better = value > fit
            fit[better] = value[better]
            numbers[better, 0], numbers[better, 1] = self.plates.pixel * column[better].float(), self.plates.pixel * row[better].float()
            numbers[better, 5] = -turn
        return fit, numbers

    def _turned(self, turn: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Picture and tissue turned about the middle by degrees."""
        angle, middle = np.deg2rad(turn), (self.plates.size - 1) / 2
        rotation = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], dtype=torch.float32)
        index = (self.plates.lattice() / self.plates.pixel @ rotation.T + middle).reshape(1, self.plates.size, self.plates.size, 2)
        return sample(self.picture, index, fill=0.0), sample(self.tissue, index, "nearest", fill=0.0)


def _normalized(pictures: torch.Tensor, tissue: torch.Tensor, window: float) -> torch.Tensor:
    """Pictures with a local mean of 0 and a local variance of at most 1; 0 outside of the ``tissue``."""
    weight = gaussian(tissue, window, "zero").clamp_min(1e-6)
    mean = gaussian(pictures * tissue, window, "zero") / weight
    variance = (gaussian(pictures**2 * tissue, window, "zero") / weight - mean**2).clamp_min(0)
    return (pictures - mean) / (variance + 10 * FLOOR).sqrt() * tissue


def improved(agreement: Agreement, frames: np.ndarray, numbers: torch.Tensor, steps: int, rate: float, bending: bool,
             monitor) -> tuple[torch.Tensor, torch.Tensor]:
    """(numbers (N, ...), scores (N,)) of the best planes on the way of Adam from ``numbers``, ``rate`` its first step in units of the reach of each."""
    pixel, spacing = agreement.plates.pixel, agreement.plates.spacing
    reach = torch.tensor([1.5 * pixel, 1.5 * pixel, 2 * spacing, 5.0, 5.0, 6.0, 0.06, 0.06] + [1.0] * (2 * CONTROLS**2))
    at = (numbers / reach).requires_grad_()
    adam = torch.optim.Adam([at], lr=rate, betas=(0.8, 0.95))
    best, scores = at.detach().clone(), torch.full((len(at),), -np.inf)
    usual = torch.tensor(USUAL)
    for k in monitor.steps(steps, "pose"):
        adam.param_groups[0]["lr"] = rate * max(1 - k / steps, 0.02) ** 0.7
        now = at * reach
        unlikely = DOUBT * (now[:, 3:NUMBERS] / usual).square().sum(1) + STIFFNESS * now[:, NUMBERS:].square().sum(1) / CONTROLS**2
        score = agreement.correlation(frames, now, bending) - unlikely
        better = score.detach() > scores
        scores, best = torch.where(better, score.detach(), scores), torch.where(better[:, None], at.detach(), best)
        adam.zero_grad()
        (-score.sum()).backward()
        adam.step()
    return best * reach, scores
