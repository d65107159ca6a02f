"""Several processes that train one network by torch's own distributed engine, as ``torchrun`` starts them; one process needs none of it.

    torchrun --nproc-per-node 2 -m DeepRegistrationLib train RECIPE --out DIR

Every process draws pairs of its own and DistributedDataParallel averages their gradients, so n processes with one pair each make the
update of one process with n pairs. Files, validation and progress are the first process's business. Li et al., VLDB 2020.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from ..errors import Cancelled, InputError
from ..runtime import Monitor

PATIENCE = timedelta(days=7)
"""How long processes wait for one that works alone, for example at the linear maps of a cohort."""


def rank() -> int:
    """The number of this process, 0 where it is the only one."""
    return distributed.get_rank() if _several() else 0


def world() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if _several() else 1


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()


@contextmanager
def joined(device: str):
    """Inside, this process is one of those that ``torchrun`` has started; yields the name of its device. Alone it is as it was.

    InputError where torch has no distributed engine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield device
        return
    if not distributed.is_available():
        raise InputError("several processes were asked for but this torch has no distributed engine; start one process")
    several_gpus = device in ("auto", "cuda") and torch.cuda.is_available()
    if several_gpus:
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
        torch.cuda.set_device(torch.device(device))
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE)
    try:
        yield device
        meet()  # the first process keeps what the others talk through
    finally:
        distributed.destroy_process_group()


def parallel(module: torch.nn.Module) -> torch.nn.Module:
    """``module`` with averaged gradients where there are several processes; it starts everywhere with the first one's parameters."""
    return DistributedDataParallel(module, broadcast_buffers=False) if world() > 1 else module


def shared(value, device: torch.device):
    """The first process's ``value``, in all of them."""
    if world() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, 0, device=device if device.type == "cuda" else None)
    return box[0]


def meet() -> None:
    """Every process waits here for all others."""
    if world() > 1:
        distributed.barrier()


def require_shared(work, trains: bool) -> None:
    """InputError where several processes were started for what trains no network, or that share no folder ``work``."""
    if world() > 1 and not trains:
        raise InputError(f"{world()} processes were started together and nothing is trained; start one, and take --workers for several subjects at a time")
    if world() > 1 and work is None:
        raise InputError(f"{world()} processes were started together without a folder that they share; name one (Runtime.work)")


@contextmanager
def one_first():
    """The first process does what is inside before the others do, which find its results in files."""
    if rank() > 0:
        meet()
    yield
    if rank() == 0:
        meet()


def mean_of(values: torch.Tensor) -> torch.Tensor:
    """The mean of tensors, one a process; without a slope."""
    if world() == 1:
        return values
    total = values.detach().clone()
    distributed.all_reduce(total)
    return total / world()


def mean(value: float, device: torch.device) -> float:
    """The mean of a figure over the processes."""
    if world() == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device)
    distributed.all_reduce(total)
    return float(total) / world()


class Together(Monitor):
    """The monitor of one of several processes: cancelling one of them stops all at the same step, and the first one reports."""

    def __init__(self, monitor: Monitor, device: torch.device):
        super().__init__()
        self.monitor, self.device = monitor, device

    def cancel(self) -> None:
        self.monitor.cancel()

    def check(self) -> None:
        """Cancelled in all processes where one was cancelled; every process has to call it equally often."""
        flag = torch.tensor(float(self.monitor.cancelled), device=self.device)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
        if float(flag):
            raise Cancelled(self.best_so_far)

    def progress(self, share, text, step=0, steps=0):
        if rank() == 0:
            self.monitor.progress(share, text, step, steps)

    def log(self, **figures):
        if rank() == 0:
            self.monitor.log(**figures)
