"""A GPU that is not there: tensors that say that they lie on one and compute on the CPU, for tests on machines without a GPU.

Within ``pretended_gpu()`` torch.cuda.is_available() is true, and what is made on or sent to "cuda" is a ``Remote``: it holds a tensor of the
CPU, which every operation works on. An operation that mixes it with tensors of the CPU fails as a GPU makes it fail, and so does asking for
its values as an array. What a GPU computes differently (rounding, order of sums, half precision, speed) is not shown.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, nullcontext
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map_only

MEMORY = (60 << 30, 80 << 30)
"""Free and total bytes of the pretended GPU."""
GPU = torch.device("cuda:0")
BETWEEN = ("_to_copy", "copy_")
"""Operations that may see tensors of both devices: they move values from one to the other."""
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")
"""Operations of a GPU that take positions from the CPU too."""


class Remote(torch.Tensor):
    """A tensor of the pretended GPU; ``held`` has its values on the CPU."""

    making = False

    @staticmethod
    def __new__(cls, real: torch.Tensor):
        remote = torch.Tensor._make_wrapper_subclass(cls, real.shape, strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype,
                                                     device=real.device, requires_grad=real.requires_grad)
        remote.held = real
        return remote

    def __repr__(self):
        return f"Remote({self.held!r})"

    def numpy(self, **_):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")

    def __array__(self, *_, **__):
        self.numpy()

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self):
        return GPU.index

    def __reduce_ex__(self, protocol):
        return self.held.__reduce_ex__(protocol)  # a file of it is read where there is no GPU, as with map_location

    def tolist(self):
        return self.cpu().tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl  # what comes back is of the kind that it is

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return computed(function, args, kwargs or {})


@contextmanager
def inside(there: bool):
    """A function of torch on tensors of the GPU: what it makes on its way lies there too, although it takes their device for the CPU."""
    Remote.making, before = there, Remote.making
    try:
        yield
    finally:
        Remote.making = before


def moved(function, tensor, *others, **kwargs):
    """What the functions of MOVING give: the values on the device that was asked for, with the dtype that was asked for."""
    kwargs = {k: v for k, v in kwargs.items() if k not in ("non_blocking", "memory_format")}
    device, dtype, copy = kwargs.pop("device", None), kwargs.pop("dtype", None), kwargs.pop("copy", False)
    if function in (torch.Tensor.cpu, torch.Tensor.cuda):
        device, others = function.__name__, ()
    for other in (*others, *kwargs.values()):
        if isinstance(other, torch.Tensor):
            device, dtype = other.device, other.dtype
        elif isinstance(other, torch.dtype):
            dtype = other
        elif isinstance(other, (str, int, torch.device)) and not isinstance(other, bool):
            device = other
    if function is torch.Tensor.type_as:
        device, dtype = others[0].device, others[0].dtype
    device, dtype = torch.device(tensor.device if device is None else device), dtype or tensor.dtype
    if device.type == tensor.device.type:
        return tensor if dtype == tensor.dtype and not copy else torch.ops.aten._to_copy(tensor, dtype=dtype)
    return Transfer.apply(tensor, dtype, device.type == "cuda")


class Transfer(torch.autograd.Function):
    """Values go to the other device, and their gradients come back."""

    @staticmethod
    def forward(ctx, tensor, dtype, there):
        ctx.dtype, ctx.there = tensor.dtype, not there
        return Transfer.sent(tensor, dtype, there)

    @staticmethod
    def backward(ctx, gradient):
        return Transfer.sent(gradient, ctx.dtype, ctx.there), None, None

    @staticmethod
    def sent(tensor, dtype, there):
        with inside(False):
            return torch.ops.aten._to_copy(tensor, dtype=dtype, device=GPU if there else torch.device("cpu"))


MOVING = (torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda, torch.Tensor.type_as, torch.as_tensor, torch.asarray)
"""Functions that torch would end at once where it takes both devices for the CPU."""


def tensors_in(values):
    """Every tensor in nested tuples and lists."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from tensors_in(value)


def held(value):
    """``value`` with what the tensors of the GPU in its tuples and lists hold."""
    if isinstance(value, Remote):
        return value.held
    return type(value)(held(each) for each in value) if type(value) in (tuple, list) else value


def computed(function, args, kwargs):
    """What ``function`` of torch gives, with the devices of a GPU's machine. RuntimeError where tensors of both are mixed."""
    name = function._schema.name.removeprefix("aten::")
    tensors = list(tensors_in((*args, *kwargs.values())))
    remote = any(isinstance(x, Remote) for x in tensors)
    if remote and name not in BETWEEN:
        strict = [x for x in tensors if not isinstance(x, Remote) and x.dim() > 0]
        if name in INDEXING:  # positions may lie on the CPU, values may not
            strict = [x for x in (args[0], *args[2:3]) if isinstance(x, torch.Tensor) and not isinstance(x, Remote) and x.dim() > 0]
        if strict or (name in INDEXING and not isinstance(args[0], Remote)):
            raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({function})")
    device = kwargs.get("device")
    there = remote if device is None else torch.device(device).type == "cuda" or Remote.making
    if name == "copy_":
        there = isinstance(args[0], Remote)
    real_args, real_kwargs = held(args), {k: held(v) for k, v in kwargs.items()}
    if "device" in real_kwargs and real_kwargs["device"] is not None:
        real_kwargs = {**real_kwargs, "device": torch.device("cpu")}
    if real_kwargs.get("pin_memory"):
        real_kwargs = {**real_kwargs, "pin_memory": False}
    result = function(*real_args, **real_kwargs)
    if there:
        known = {id(x.held): x for x in tensors if isinstance(x, Remote)}
        result = tree_map_only(torch.Tensor, lambda x: known[id(x)] if id(x) in known else Remote(x), result)
    if remote and there:
        return return_and_correct_aliasing(function, args, kwargs, result)
    return result


class Functions(TorchFunctionMode):
    """Sees every function of torch that is called, with the devices that its tensors say they are on."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in MOVING and isinstance(args[0], torch.Tensor):
            return moved(function, *args, **kwargs)
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
            kwargs = {**kwargs, "device": GPU}
        remote = any(isinstance(x, Remote) for x in tensors_in((*args, *kwargs.values())))
        with inside(remote and kwargs.get("device") is None):
            return function(*args, **kwargs)


class Machine(TorchDispatchMode):
    """Sees what is made on "cuda" or sent there from the CPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return computed(function, args, kwargs or {})


@contextmanager
def pretended_gpu():
    """A block in which one GPU seems to be there."""
    kept = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a network that is sent there gets new parameters
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor makes its values on the CPU and sends them
    try:
        with ExitStack() as stack:
            for name, answer in (("_lazy_init", None), ("is_available", True), ("device_count", 1), ("mem_get_info", MEMORY), ("empty_cache", None),
                                 ("get_device_name", "pretended"), ("synchronize", None)):
                stack.enter_context(mock.patch(f"torch.cuda.{name}", lambda *_, answer=answer: answer))
            stack.enter_context(Machine())
            stack.enter_context(Functions())
            yield GPU
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
        torch.__future__.set_overwrite_module_params_on_conversion(kept)


def gpu():
    """A block with the GPU of this machine, or with a pretended one."""
    return nullcontext() if torch.cuda.is_available() else pretended_gpu()
