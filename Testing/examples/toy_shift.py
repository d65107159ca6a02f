"""Translation by Gauss-Newton on the mean squared difference of two smoothed images.

With r(x) = moving(x + t) - fixed(x) and g = grad moving at x + t, one step is t <- t - (sum g g^T)^-1 sum g r.
Lucas and Kanade, IJCAI 1981. This file is the example of CONTRIBUTING.md and the proof that one file makes a method.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from DeepRegistrationLib.method import Card, Method, Preset, method
from DeepRegistrationLib.parameters import parameter
from DeepRegistrationLib.result import Result
from DeepRegistrationLib.terms.base import Alignment
from DeepRegistrationLib.transforms import Affine, Identity

REFERENCE = """@inproceedings{lucas1981,
  author = {Lucas, Bruce D. and Kanade, Takeo},
  title = {An Iterative Image Registration Technique with an Application to Stereo Vision},
  booktitle = {International Joint Conference on Artificial Intelligence},
  year = {1981}
}"""


@method(Card(
    title="Toy shift",
    summary="Finds a translation, nothing else; the example for authors of methods.",
    task="example",
    references=(REFERENCE,),
    assumptions=("the images differ by a small shift",),
    failure_modes=("anything but a shift",),
    presets={"default": Preset("smoothed to 2 mm"), "careful": Preset("more steps, about twice the time", {"steps": 24})},
))
@dataclass(frozen=True)
class ToyShift(Method):
    steps: int = parameter(12, "Steps", "Gauss-Newton steps.", minimum=1, maximum=100)
    spacing: float = parameter(2.0, "Spacing", "The images are smoothed to this voxel size.", unit="mm", minimum=0.1)

    def solve(self, problem, runtime):
        device = runtime.torch_device()
        fixed, moving = (image.to(device).smoothed_to(self.spacing) for image in (problem.fixed, problem.moving))
        start = problem.initial or Identity(problem.dim)
        shift, history = torch.zeros(problem.dim, dtype=torch.float64), []
        for _ in runtime.monitor.steps(self.steps, "shift"):
            residual, slopes = self._linearised(fixed, moving, start, shift)
            matrix = slopes @ slopes.T + 1e-9 * torch.eye(problem.dim, dtype=slopes.dtype) * slopes.square().sum()
            shift = shift - torch.linalg.solve(matrix, slopes @ residual)
            history.append({"cost": float(residual.square().mean())})
            runtime.monitor.log(**history[-1])
        return Result(problem, Affine.translation(shift.numpy()) @ start, scalars={"shift_mm": float(shift.norm())}, history=history)

    @staticmethod
    def _linearised(fixed, moving, start, shift):
        """Residual (N,) and its derivative (dim, N) along each axis, by central differences of half a voxel."""
        def values(offset):
            a = Alignment(fixed, moving, Affine.translation((shift + offset).numpy()) @ start)
            return ((a.warped - fixed.data) * a.mask).flatten().double().cpu()

        step = 0.5 * float(moving.grid.spacing.min())
        unit = step * torch.eye(len(shift), dtype=torch.float64)
        return values(0 * unit[0]), torch.stack([(values(u) - values(-u)) / (2 * step) for u in unit])
