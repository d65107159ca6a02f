"""What the similarities share: channels as batch entries, weights from masks, moments, and slabs of a volume."""

from __future__ import annotations

import torch


def counted(mask: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
    """mask (B or 1, 1, *S) -> weights (B, 1, *S) in the type of ``like``, or None where every voxel counts.

    Whether it does is asked on the CPU only: on a GPU the question would make the computation wait.
    """
    if mask is None or (mask.device.type == "cpu" and bool(mask.all())):
        return None
    return mask.to(like.dtype).expand(like.shape[0], *mask.shape[1:])


def folded(fixed: torch.Tensor, warped: torch.Tensor, mask: torch.Tensor | None):
    """fixed (B or 1, C, *S), warped (B, C, *S) and mask -> the same as (B C, 1, *S), weights or None."""
    weight = counted(mask, warped)
    if weight is not None and warped.shape[1] > 1:
        weight = weight.repeat_interleave(warped.shape[1], 0)
    shape = (-1, 1, *warped.shape[2:])
    return fixed.expand_as(warped).reshape(shape), warped.reshape(shape), weight


def unfolded(slope: torch.Tensor, warped: torch.Tensor) -> torch.Tensor:
    """The inverse of ``folded`` for one image."""
    return slope.reshape(warped.shape)


def moments(x: torch.Tensor, weight: torch.Tensor | None):
    """x (N, 1, *S) -> mean and standard deviation (N, 1, ...) over the voxels that count, and their number (N,)."""
    flat, shape = x.flatten(1), (-1, *[1] * (x.ndim - 1))
    tiny = torch.finfo(x.dtype).tiny
    if weight is None:
        variance, mean = torch.var_mean(flat, 1, correction=0)
        count = torch.full_like(mean, flat.shape[1])
    else:
        w = weight.flatten(1)
        count = w.sum(1).clamp_min(1)
        mean = torch.linalg.vecdot(flat, w) / count
        variance = torch.linalg.vecdot((flat - mean[:, None]).square(), w) / count
    return mean.reshape(shape), (variance + tiny).sqrt().reshape(shape), count


def slabs(x: torch.Tensor, halo: int, voxels: int):
    """Cut the first spatial axis of x (N, 1, *S): yields ((low, high), (start, length)).

    A slab holds slices low to high; the ``length`` slices from its own ``start`` are its share, the others are the halo
    that neighbourhoods of ``halo`` slices need. A share has about ``voxels`` voxels, which bounds the memory of what is computed
    from it, and is never thinner than twice the halo.
    """
    n = x.shape[2]
    plane = max(1, x.numel() // n)
    thickness = max(1, 2 * halo, voxels // plane)
    for begin in range(0, n, thickness):
        end = min(n, begin + thickness)
        low, high = max(0, begin - halo), min(n, end + halo)
        yield (low, high), (begin - low, end - begin)
