"""Decides where the compiled kernels of ``kernels.py`` stand in for torch: float32 on the CPU, no gradient, numba there.

Without numba (or with ``DEEPREGISTRATION_KERNELS=off``) every caller takes its plain torch path: same results, slower.
"""

from __future__ import annotations

import os
from functools import lru_cache

import torch


@lru_cache(maxsize=1)
def _load():
    if os.environ.get("DEEPREGISTRATION_KERNELS", "on").lower() == "off":
        return None
    try:
        from . import kernels
    except (ImportError, RuntimeError):  # numba raises the latter where no folder for its cache can be written
        return None
    for kernel in vars(kernels).values():
        _read_straight(getattr(kernel, "_cache", None), kernels.numba.core.runtime.rtsys)
    return kernels


def _read_straight(cache, memory) -> None:
    """Let numba's ``cache`` of a kernel read its files without filling numba's tables of all types and functions first (and loading SciPy's linear
    algebra for them): two thirds of the time of a start. Only compiling needs the tables, and fills them itself. ``memory`` is what compiled
    functions allocate from. What is no cache, or that of a numba which is made otherwise, is left alone."""
    if not (hasattr(cache, "_load_overload") and hasattr(cache, "_guard_against_spurious_io_errors")):
        return

    def load(signature, context):
        memory.initialize(context)
        with cache._guard_against_spurious_io_errors():
            return cache._load_overload(signature, context)

    cache.load_overload = load


def kernels_for(*tensors: torch.Tensor):
    """The kernel module, or None where one of ``tensors`` needs torch (device, precision, batch or gradient)."""
    for t in tensors:
        if t.device.type != "cpu" or t.dtype != torch.float32 or (torch.is_grad_enabled() and t.requires_grad):
            return None
    module = _load()
    if module is not None:
        threads = torch.get_num_threads()
        module.numba.set_num_threads(max(1, min(threads, module.numba.config.NUMBA_NUM_THREADS)))
        if torch.get_num_threads() != threads:  # numba's first launch sets the OpenMP pool that torch shares to all cores
            torch.set_num_threads(threads)
    return module


@lru_cache(maxsize=1)
def concurrent() -> bool:
    """May the compiled kernels run in several threads at once? numba's own pool ('workqueue'), which it takes where it finds no OpenMP
    or TBB, may not: it would end the process."""
    module = kernels_for(torch.empty(0))
    if module is None:
        return True
    one = torch.zeros(1, 1, 1, 1)
    module.linear(one.numpy(), torch.zeros(1, 3).numpy(), False, torch.zeros(1, 1).numpy())  # the pool is chosen by the first launch
    return module.numba.threading_layer() != "workqueue"


def volumes(x: torch.Tensor):
    """(1, C, *S) tensor -> numpy (C, z, y, x) that shares its memory where it is contiguous; a 2D image gets one slice."""
    array = x.detach().contiguous().numpy()
    return array.reshape(array.shape[1], *(1,) * (5 - array.ndim), *array.shape[2:])
