"""A worker, a method that misbehaves on demand, and small requests for the tests of jobs."""

from __future__ import annotations

import numpy as np

from DeepRegistrationLib.exchange import LabelMap, PointSet, Volume
from DeepRegistrationLib.geometry import Grid

ODD_METHOD = '''
import os
import signal
import time
from dataclasses import dataclass

import torch

from DeepRegistrationLib.method import Card, Method, method
from DeepRegistrationLib.parameters import parameter
from DeepRegistrationLib.result import Result
from DeepRegistrationLib.transforms import Affine, Displacement


def known(grid):
    """A shift after a bump of 2 mm that is 0 on the border."""
    u = torch.ones(1, grid.dim, *grid.shape)
    for axis, n in enumerate(grid.shape, 2):
        shape = [n if k == axis else 1 for k in range(grid.dim + 2)]
        u = u * (torch.sin(torch.linspace(0, torch.pi, n)) ** 2).reshape(shape)
    return Affine.translation([1.0, -2.0, 0.5][: grid.dim]) @ Displacement(2.0 * u, grid)


@method(Card(title="Odd", summary="Does what is asked.", task="test", references=("@misc{none}",)))
@dataclass(frozen=True)
class Odd(Method):
    how: str = parameter("answer", "How", "What it does.", choices=(
        "answer", "wait", "stubborn", "memory", "torch", "kill", "exit", "fault", "show", "initial"))

    def solve(self, problem, runtime):
        monitor = runtime.monitor
        for k in monitor.steps(3, "first steps"):
            monitor.log(cost=1.0 / (k + 1))
        if self.how == "memory":
            raise MemoryError()
        if self.how == "torch":
            raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "exit":
            os._exit(7)
        if self.how == "fault":
            return 1 / 0
        if self.how == "stubborn":
            time.sleep(60)
        if self.how == "wait":
            for _ in monitor.steps(6000, "waiting"):
                time.sleep(0.01)
        if self.how == "show":
            for _ in monitor.steps(60, "showing"):
                time.sleep(0.01)
                if monitor.wants_preview:
                    monitor.preview(known(problem.fixed.grid))
        transform = problem.initial if self.how == "initial" else known(problem.fixed.grid)
        history = [{"cost": 1.0}, {"cost": 0.5}]
        return Result(problem, transform, scalars={"cost": 0.5, "voxels": float(problem.fixed.grid.voxels)}, history=history)
'''


def oblique(shape=(12, 14, 10), flipped=False, spacing=(2.0, 1.5, 3.0)):
    """An oblique, anisotropic grid around the origin."""
    direction = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    if flipped == (np.linalg.det(direction) > 0):
        direction[:, 0] *= -1
    grid = Grid.from_parts(shape, spacing, direction=direction)
    return Grid.from_parts(shape, spacing, -grid.centre, direction)


def ball(grid=None, shift=(0.0, 0.0, 0.0), kind=np.float32, name="ball"):
    """A smooth blob, ``shift`` mm from the middle of the grid."""
    grid = grid or oblique()
    x = grid.points() - grid.centre - np.array(shift)
    values = 100 * np.exp(-(x**2 / np.array([60.0, 90.0, 120.0])).sum(-1)) + 20 * np.exp(-((x - [4, 3, -2]) ** 2).sum(-1) / 20)
    return Volume(values.astype(kind), grid, name)


def halves(grid=None, names=((1, "left"), (2, "right")), name="halves"):
    """Two structures."""
    grid = grid or oblique()
    x = grid.points() - grid.centre
    return LabelMap((1 + (x[..., 0] > 0)).astype(np.uint8) * (np.abs(x).max(-1) < 6), grid, names, name)


def marks(shift=(0.0, 0.0, 0.0)):
    positions = np.random.default_rng(0).uniform(-5, 5, (5, 3)) + shift
    return PointSet(positions, tuple("abcde"), "marks")


def request(how="answer", **more):
    """A register request for the odd method."""
    return {"command": "register", "fixed": ball(name="fixed"), "moving": ball(shift=(1, -1, 0), name="moving"), "method": "odd",
            "values": {"how": how}, "device": "cpu", **more}
