"""How well the atlas agrees with a slice on planes, and planes improved by that.

With G means over Gaussian windows of a few pixels in which the slice's tissue alone counts, so that what was torn away says nothing,

    score(plane) = mean over the tissue of  G(s a) - G(s) G(a) / sqrt((G(s^2) - G(s)^2) (G(a^2) - G(a)^2))  -  unlikely(plane)

for the slice s and the atlas a on the plane: local correlation (Cachier et al., CVIU 2003), which shading and another curve of brightness leave
alone. ``unlikely`` grows with the squares of tilt, turn and scales (``USUAL``). The NUMBERS of a plane: shift along u, v, w mm; turn about u, v, w
degrees; logarithms of two scales. Its slope in a, h, is exact; with J the slope of a in the numbers, steps are those of Levenberg and Marquardt,

    (sum_x G(c / (n V(a))) J'^T J' + damping) step = sum_x h J,    c the local correlation, n pixels of tissue, J' = J - G J

since close to its best the score falls like a sum of squares of what a lacks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ..ops import nd
from ..ops.filters import gaussian
from ..ops.sample import sample
from .plates import SHOWN, Plates, Query

NUMBERS = 8
FLOOR = 1e-4
"""Smallest variance that counts."""
DENOISED = 0.7
"""Pixels by which the slice is smoothed."""
USUAL, DOUBT = (8.0, 8.0, 15.0, 0.15, 0.15), 0.01
"""Tilt about u and v, turn (degrees) and log scales of a slice; what each costs where it is that large."""
REACH = (1.5, 1.5, 2.0, 5.0, 5.0, 6.0, 0.06, 0.06)
"""The longest step: pixels, pixels, plates, degrees, log scales."""
DAMPING, EASED, RAISED = 0.02, 0.3, 5.0
"""Damping at first, for numbers in units of their reach; its factors after a step that raises the score, and after one that does not."""
LEAST = 0.2
"""Local correlation that counts at least in the curvature."""


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
    def of(cls, query: Query, plates: Plates, window: float) -> "Agreement":
        """In the pixels of ``plates``."""
        factor = query.picture.shape[-1] // plates.size
        picture = nd.average_pool(gaussian(query.picture, DENOISED), factor) if factor > 1 else gaussian(query.at(plates), DENOISED)
        return cls(plates, picture, (picture > SHOWN).float(), window)

    def local(self, values: torch.Tensor) -> torch.Tensor:
        """G of pictures (N, 1, size, size)."""
        return gaussian(values * self.tissue, self.window, "zero") / self._weight

    @cached_property
    def _shown(self) -> torch.Tensor:
        """(M,) the numbers of the pixels of tissue."""
        return self.tissue.flatten().nonzero()[:, 0]

    def _image(self, values: torch.Tensor) -> torch.Tensor:
        """Pictures (N, 1, size, size) of values (N, M) at the tissue, 0 elsewhere."""
        out = torch.zeros(len(values), self.tissue.numel())
        return out.index_copy_(1, self._shown, values).reshape(-1, *self.tissue.shape[1:])

    @cached_property
    def _weight(self) -> torch.Tensor:
        return gaussian(self.tissue, self.window, "zero").clamp_min(1e-6)

    @cached_property
    def _own(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance of the slice."""
        mean = self.local(self.picture)
        return mean, (self.local(self.picture**2) - mean**2).clamp_min(FLOOR)

    def correlation(self, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of what planes show at the tissue (N, M): the mean over it (N,), its slope (N, M) in ``seen``, and the weight (N, M) of squares of what
        ``seen`` lacks."""
        seen = self._image(seen)
        mean, (own, spread), count = self.local(seen), self._own, self.tissue.sum().clamp_min(1)
        variance = (self.local(seen**2) - mean**2).clamp_min(0) + FLOOR
        both = (variance * spread).sqrt()
        agreement = (self.local(seen * self.picture) - mean * own) / both
        share = self.tissue / (count * self._weight)
        together, alone = share / both, share * agreement / variance
        slope = self.picture * self._spread(together) - self._spread(together * own) - seen * self._spread(alone) + self._spread(alone * mean)
        weight = self._spread(share * agreement.clamp_min(LEAST) / variance)
        return (agreement * self.tissue).sum((1, 2, 3)) / count, *(x.flatten(1)[:, self._shown] for x in (slope, weight))

    def _spread(self, values: torch.Tensor) -> torch.Tensor:
        """To every pixel of tissue the ``values`` of the windows that hold it."""
        return gaussian(values, self.window, "zero") * self.tissue

    def seen(self, frames: np.ndarray, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What planes moved by ``numbers`` (N, NUMBERS) from ``frames`` (N, 4, 4) show at the tissue, (N, M), and its slope (N, M, NUMBERS); that in the
        turns is one of small turns."""
        moved = motions(numbers).float()
        flat = self.plates.lattice()[self._shown] * numbers[:, None, 6:].exp()
        turned = flat @ moved[:, :3, :2].transpose(1, 2)
        values, slope = self.plates.slopes(frames, turned + moved[:, None, :3, 3])
        along, degree = slope @ moved[:, :3, :2], np.pi / 180
        by_turn = torch.linalg.cross(turned, slope) * degree
        return values, torch.cat([slope, by_turn, along * flat], -1)

    def rise(self, frames: np.ndarray, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scores (N,) of planes, their slope (N, NUMBERS) and curvature (N, NUMBERS, NUMBERS)."""
        values, slope = self.seen(frames, numbers)
        score, by_value, weight = self.correlation(values)
        hard = torch.zeros(NUMBERS)
        hard[3:] = 2 * DOUBT / torch.tensor(USUAL) ** 2
        images = self._image(slope.transpose(1, 2).flatten(0, 1))
        centered = (images - self.local(images)).flatten(1)[:, self._shown].reshape(len(values), NUMBERS, -1)
        curvature = (centered * weight[:, None]) @ centered.transpose(1, 2) + torch.diag(hard)
        return score - (hard * numbers**2).sum(1) / 2, (by_value[:, None] @ slope)[:, 0] - hard * numbers, curvature

    def share(self, frames: np.ndarray, scales: np.ndarray) -> torch.Tensor:
        """(N,) the tissue of the slice over what the atlas shows on planes."""
        shown = (self.plates.pictures(frames) > SHOWN).sum((1, 2, 3)).clamp_min(1)
        return self.tissue.sum() * torch.as_tensor(scales.prod(1), dtype=torch.float32) / shown

    def laid_over(self, frames: np.ndarray, turns) -> tuple[torch.Tensor, torch.Tensor]:
        """Of every frame (N, 4, 4) the best agreement (N,) over all shifts and the ``turns`` (degrees), and the numbers (N, ...) of the plane there."""
        pictures = self.plates.pictures(frames)
        size, shape = self.plates.size, (2 * self.plates.size,) * 2
        theirs = torch.fft.rfft2(_normalized(pictures, torch.ones_like(pictures), self.window), s=shape)[:, 0]
        fit, numbers = torch.full((len(frames),), -np.inf), torch.zeros(len(frames), NUMBERS)
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


def improved(agreement: Agreement, frames: np.ndarray, numbers: torch.Tensor, steps: int, monitor) -> tuple[torch.Tensor, torch.Tensor]:
    """(numbers (N, NUMBERS), scores (N,)) after ``steps`` from ``numbers``; none is worse than before."""
    plates = agreement.plates
    reach = torch.tensor(REACH) * torch.tensor([plates.pixel, plates.pixel, plates.spacing] + [1.0] * (NUMBERS - 3))
    score, slope, curvature = agreement.rise(frames, numbers)
    damping = torch.full((len(numbers),), DAMPING)
    for _ in monitor.steps(steps, "pose"):
        step = torch.linalg.solve(curvature + torch.diag_embed(damping[:, None] / reach**2), slope)
        there = numbers + step / (step / reach).abs().amax(1, keepdim=True).clamp_min(1)
        found = agreement.rise(frames, there)
        better = found[0] > score
        numbers = torch.where(better[:, None], there, numbers)
        score, slope = torch.where(better, found[0], score), torch.where(better[:, None], found[1], slope)
        curvature = torch.where(better[:, None, None], found[2], curvature)
        damping = torch.where(better, damping * EASED, damping * RAISED)
    return numbers, score
