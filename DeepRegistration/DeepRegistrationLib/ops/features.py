"""Voxel descriptors that do not depend on how bright a tissue is.

``mind_ssc``: self-similarity context. For two neighbours a, b of a voxel at distance ``dilation`` along different axes,
D_ab(x) = mean over a box at x of (I(x + a) - I(x + b))^2, and the channel is exp(-(D_ab - min D) / mean(D - min D)).
3D has 12 such pairs (the edges of an octahedron), 2D has 4 (the sides of a square). Heinrich et al., MICCAI 2013.

Pairs with the same b - a are shifts of one difference image, so only 6 (2D: 2) images are squared and box filtered.

``ngf``: the gradient direction, g / sqrt(|g|^2 + eta^2), g in world axes per mm. Haber and Modersitzki, MICCAI 2006.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F

from ..geometry import Grid
from . import nd
from .filters import window_sum


def mind_ssc(data: torch.Tensor, radius: int = 1, dilation: int = 2, mask: torch.Tensor | None = None,
             floor: torch.Tensor | None = None) -> torch.Tensor:
    """Self-similarity context of ``data`` (B, C, *S) -> (B, 12 C, *S) in 3D, (B, 4 C, *S) in 2D, values in [0, 1].

    radius of the patches and dilation (distance to the neighbours) in voxels; values outside the lattice repeat its
    border. mask (B, 1, *S) bool: patches are averaged over pairs of voxels inside it; a channel without any is 0.
    floor (B, C) is the least mean(D - min D), in squared intensities; by default ``mind_floor`` of the data (give that
    of the whole image where ``data`` is a part of it).
    Per axes pair (x, y), (x, z), (y, z) and neighbours (a, b) the channels are (+, +), (-, -), (+, -), (-, +).
    """
    batch, channels, *shape = data.shape
    margins = [radius + dilation] * (2 * len(shape))
    if floor is None:
        floor = mind_floor(data, dilation, mask)
    valid = None
    if mask is not None:
        valid = F.pad(mask.to(data.dtype).expand(batch, 1, *shape).repeat_interleave(channels, 0), margins)
    share = (2 * radius + 1.0) ** -len(shape)
    padded = F.pad((data * share**0.5).reshape(batch * channels, 1, *shape), margins, mode="replicate")
    floor = floor.reshape(-1, *[1] * (len(shape) + 1))
    return _SelfSimilarity.apply(padded, valid, floor, radius, dilation).reshape(batch, -1, *shape)


def mind_floor(data: torch.Tensor, dilation: int = 2, mask: torch.Tensor | None = None) -> torch.Tensor:
    """(B, C) a thousandth of the mean of (I(x) - I(x + dilation))^2 over axes, voxels and pairs inside ``mask``.

    Under this mean distance a patch is flat: noise there is not made into structure. Not differentiated.
    """
    data = data.detach()
    total = count = torch.zeros(data.shape[:2], dtype=data.dtype, device=data.device)
    for axis in range(-1, -1 - nd.dim_of(data), -1):
        n = data.shape[axis] - dilation
        if n < 1:
            continue
        square = (data.narrow(axis, dilation, n) - data.narrow(axis, 0, n)).square_()
        if mask is None:
            count = count + square[0, 0].numel()
        else:
            both = (mask.narrow(axis, dilation, n) & mask.narrow(axis, 0, n)).to(data.dtype)
            square, count = square.mul_(both), count + both.flatten(2).sum(2)
        total = total + square.flatten(2).sum(2)
    return 1e-3 * total / count.clamp_min(1) + torch.finfo(data.dtype).tiny ** 0.5


class _SelfSimilarity(torch.autograd.Function):
    """Descriptor of a padded image; works in place, and the backward pass is written out: with f the features and V the
    noise, dD_c = -g_c f_c / V + [V not at its floor] sum_k(g_k f_k (D_k - min D)) / (V^2 channels), less the sum of all dD at
    the smallest D."""

    @staticmethod
    def forward(ctx, padded, valid, floor, radius, dilation):
        ctx.radius, ctx.dilation = radius, dilation
        dim = nd.dim_of(padded)
        distances = _box_sums(lambda *image: _difference(padded, valid, *image, radius, dilation).square_(), dim, radius, dilation)
        count = None
        if valid is not None:
            count = _box_sums(lambda *image: torch.mul(*_pair(valid, *image, radius, dilation)), dim, radius, dilation)
            count.mul_((2 * radius + 1.0) ** -dim)
            distances.div_(count).nan_to_num_(nan=float("inf"))
        distances.sub_(distances.amin(1, keepdim=True).nan_to_num_(posinf=0.0))
        noise = torch.maximum(_channel_mean(distances, count), floor)
        features = distances.div_(noise).neg_().exp_()
        ctx.save_for_backward(padded, valid, floor, features, noise, count)
        return features

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        padded, valid, floor, features, noise, count = ctx.saved_tensors
        slope = (slope * features).div_(noise)
        spread = features.clamp_min(torch.finfo(features.dtype).tiny).log_().mul_(slope).sum(1, keepdim=True).mul_(noise > floor)
        channels = slope.shape[1] if count is None else (count > 0).sum(1, keepdim=True).clamp_min(1)
        total = slope.sum(1, keepdim=True).add_(spread)
        slope.add_(spread.div_(channels)).neg_()
        smallest = (features == 1).to(slope.dtype)
        slope.addcmul_(smallest, total.div_(smallest.sum(1, keepdim=True).clamp_min_(1)))
        if count is not None:
            slope.div_(count).masked_fill_(count == 0, 0)
        return _through_boxes(slope, padded, valid, ctx.radius, ctx.dilation), None, None, None, None


def _channel_mean(distances, count):
    """Mean over the channels that have any support; infinite distances have none."""
    if count is None:
        return distances.mean(1, keepdim=True)
    supported = count > 0
    return torch.where(supported, distances, 0).sum(1, keepdim=True) / supported.sum(1, keepdim=True).clamp_min(1)


def _images(dim):
    """The difference images: the two tensor axes of the neighbours, and whether these are on sides of opposite sign."""
    return [((-1 - a, -1 - b), opposite) for a, b in itertools.combinations(range(dim), 2) for opposite in (False, True)]


def _box_sums(image_of, dim, radius, dilation):
    """All channels (B, 12 or 4, *S): the two shifts of the box sums of every difference image."""
    channels = []
    for image in _images(dim):
        channels += _two_shifts(_window(image_of(*image), radius), *image, dilation)
    return torch.cat(channels, 1)


def _through_boxes(slope, padded, valid, radius, dilation):
    """Adjoint of the box sums of squared differences: d cost / d D (B, 12 or 4, *S) -> d cost / d padded."""
    out = torch.zeros_like(padded)
    for k, (axes, opposite) in enumerate(_images(nd.dim_of(padded))):
        change = _difference(padded, valid, axes, opposite, radius, dilation)
        image = change.new_zeros([n + 2 * radius if i > 1 else n for i, n in enumerate(change.shape)])
        inner = image
        for axis in range(2, image.ndim):
            inner = inner.narrow(axis, 2 * radius, image.shape[axis] - 4 * radius)
        for view, c in zip(_two_shifts(inner, axes, opposite, dilation), (2 * k, 2 * k + 1)):
            view.add_(slope[:, c:c + 1])
        change.mul_(_window(image, radius))
        one, other = _pair(out, axes, opposite, radius, dilation)
        one.add_(change, alpha=2)
        other.sub_(change, alpha=2)
    return out


def _difference(padded, valid, axes, opposite, radius, dilation):
    """I(y) - I(y + b - a) of one image, 0 where a mask leaves one of the two out."""
    one, other = _pair(padded, axes, opposite, radius, dilation)
    difference = one - other
    return difference if valid is None else difference.mul_(torch.mul(*_pair(valid, axes, opposite, radius, dilation)))


def _pair(padded, axes, opposite, radius, dilation):
    """The two shifted views whose difference holds D for (+, +) and (-, -), or for (+, -) and (-, +)."""
    one, other = padded, padded
    for axis in range(-1, -1 - nd.dim_of(padded), -1):
        n = padded.shape[axis] - 2 * (radius + dilation)
        if axis not in axes:
            one, other = (v.narrow(axis, dilation, n + 2 * radius) for v in (one, other))
            continue
        starts = (dilation, 0) if opposite or axis == axes[0] else (0, dilation)
        one, other = (v.narrow(axis, s, n + dilation + 2 * radius) for v, s in zip((one, other), starts))
    return one, other


def _two_shifts(image, axes, opposite, dilation):
    """D of the two neighbour pairs that share one difference image."""
    sizes = [image.shape[a] - dilation for a in axes]
    starts = ((dilation, 0), (0, dilation)) if opposite else ((dilation, dilation), (0, 0))
    return [image.narrow(axes[0], s[0], sizes[0]).narrow(axes[1], s[1], sizes[1]) for s in starts]


def _window(x, radius):
    for axis in range(-1, -1 - nd.dim_of(x), -1):
        x = window_sum(x, 2 * radius + 1, axis)
    return x


def ngf(data: torch.Tensor, grid: Grid, eta: float = 0.0, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Normalised gradient g / sqrt(|g|^2 + eta^2) of ``data`` (B, C, *S) -> (B, C, dim, *S), world axes, length < 1.

    eta in intensity per mm is the gradient that counts as noise, 0 to estimate it (``eta_square``). mask (B, 1, *S) bool: values
    outside it are not used (differences become one-sided).
    """
    gradient = world_gradient(data, grid, mask)
    square = gradient.square().sum(2, keepdim=True)
    return gradient / (square + eta_square(square, eta, mask)).sqrt()


def eta_square(square: torch.Tensor, eta: float = 0.0, mask: torch.Tensor | None = None, share: float = 0.25) -> torch.Tensor:
    """eta^2 as (B, C, 1, ...) from |g|^2 (B, C, 1, *S): that of ``eta``, or ``share`` of the mean |g|^2 inside the mask.

    The automatic value follows the image's contrast, so gain and offset of an image do not change its features.
    """
    if eta > 0:
        return torch.full((1,) * square.ndim, eta**2, dtype=square.dtype, device=square.device)
    flat = square.flatten(2)
    if mask is None:
        mean = flat.mean(2)
    else:
        weight = mask.to(square.dtype).flatten(2)
        mean = (flat * weight).sum(2) / weight.sum(2).clamp_min(1)
    return (share * mean + torch.finfo(square.dtype).tiny).reshape(*square.shape[:2], *[1] * (square.ndim - 2))


def world_gradient(data: torch.Tensor, grid: Grid, mask: torch.Tensor | None = None) -> torch.Tensor:
    """(B, C, *S) -> (B, C, dim, *S) derivatives along world x, y, z per mm; right for oblique and flipped grids."""
    dim = nd.dim_of(data)
    parts = [nd.derivative(data, -1 - c) if mask is None else _masked_derivative(data, -1 - c, mask) for c in range(dim)]
    to_index = torch.as_tensor(grid.inverse_affine[:-1, :-1].copy(), dtype=data.dtype, device=data.device)
    return torch.einsum("bck...,kj->bcj...", torch.stack(parts, 2), to_index)


def _masked_derivative(data, axis, mask):
    """Mean of the forward and backward differences whose two voxels are inside the mask, per voxel; 0 without any."""
    n = data.shape[axis]
    out, count = torch.zeros_like(data), torch.zeros_like(mask, dtype=data.dtype)
    if n > 1:
        both = (mask.narrow(axis, 1, n - 1) & mask.narrow(axis, 0, n - 1)).to(data.dtype)
        step = (data.narrow(axis, 1, n - 1) - data.narrow(axis, 0, n - 1)) * both
        for start in (0, 1):
            out.narrow(axis, start, n - 1).add_(step)
            count.narrow(axis, start, n - 1).add_(both)
    return out / count.clamp_min(1)
