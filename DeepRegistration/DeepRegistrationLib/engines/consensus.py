"""One label map of many: how often a label was given, the majority, and STAPLE, from raters that are read one at a time.

STAPLE (Warfield, Zou and Wells, IEEE TMI 2004), for several labels: rater i says d where the truth is t with probability P_i(d | t). In turn

    W(x, t) ~ prior(t) prod_i P_i(d_i(x) | t)          P_i(d | t) = sum over x with d_i(x) = d of W(x, t) / sum over x of W(x, t)

What is held are the weights W of the voxels about which the raters disagree, for all labels, however many raters there are; where all say the same,
one row a label stands for all such voxels. A rater that does not see a voxel (``UNSEEN``) has no say in it.
"""

from __future__ import annotations

from typing import Callable, Iterator

import torch

ROUNDS = 30
CLOSE = 1e-4
"""Change of the raters' probabilities at which the rounds end."""
BLOCK = 1 << 26
"""Counts that are held at a time; more labels than fit are counted in several passes."""
SURE = 1e-6

UNSEEN = -(2**31)
"""What a rater gives for a voxel outside of its field of view."""

Raters = Callable[[], Iterator[torch.Tensor]]
"""Gives every rater's label map (voxels,) of whole numbers, in the same order each time it is called."""


def shares(raters: Raters, values: list[int]) -> Iterator[tuple[int, torch.Tensor]]:
    """(label, share (voxels,) float32 of the raters that gave it among those that see the voxel) of each of ``values``, some labels a pass."""
    first = next(raters())
    block = max(1, BLOCK // max(first.numel(), 1))
    for start in range(0, len(values), block):
        part = values[start : start + block]
        counts, seen = torch.zeros(len(part), first.numel(), dtype=torch.int32), torch.zeros(first.numel(), dtype=torch.int32)
        for said in raters():
            for k, value in enumerate(part):
                counts[k] += said == value
            seen += said != UNSEEN
        yield from ((value, counts[k].float() / seen.clamp_min(1)) for k, value in enumerate(part))


def majority(parts: Iterator[tuple[int, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(label (voxels,) that most raters gave, the share of these), from ``shares`` of all labels with 0; the smaller label where two have as many."""
    best, label = None, None
    for value, share in parts:
        if best is None:
            best, label = share.clone(), torch.full(share.shape, value, dtype=torch.int32)
            continue
        better = (share > best) | ((share == best) & (label > value))
        best, label = torch.where(better, share, best), torch.where(better, torch.tensor(value, dtype=torch.int32), label)
    return label, best


def staple(raters: Raters, values: list[int], agreed: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """The label (voxels,) with the largest weight; ``agreed`` and ``share`` are those of ``majority``, ``values`` all labels with 0."""
    disputed, table = ((share < 1) & (share > 0)).nonzero()[:, 0], torch.tensor(values)
    if len(disputed) == 0:
        return agreed
    one_each = torch.arange(len(values))
    alike = torch.bincount(torch.bucketize(agreed[share >= 1].long(), table), minlength=len(values)).float()
    times = torch.cat([torch.ones(len(disputed)), alike])[:, None]

    def codes(said):
        """(number of the label, 1 where the rater sees the voxel) of all rows."""
        said = said[disputed]
        return torch.cat([torch.bucketize(said.long(), table), one_each]), torch.cat([(said != UNSEEN).float(), torch.ones(len(values))])[:, None]

    weights, n = torch.zeros(len(times), len(values)), torch.zeros(len(times), 1)
    for said in raters():
        code, sees = codes(said)
        weights.scatter_add_(1, code[:, None], sees)
        n += sees
    weights /= n
    prior, before = ((weights * times).sum(0) / times.sum()).clamp_min(SURE).log(), None
    for _ in range(ROUNDS):
        total, skills, counted = prior.expand_as(weights).clone(), [], weights * times
        for said in raters():
            code, sees = codes(said)
            seen = counted * sees
            given = torch.zeros(len(values), len(values)).index_add_(0, code, seen) / seen.sum(0).clamp_min(SURE)
            skills.append(torch.diagonal(given).clone())
            total += given.clamp_min(SURE).log()[code] * sees
        weights, now = torch.softmax(total, 1), torch.stack(skills)
        if before is not None and float((now - before).abs().max()) < CLOSE:
            break
        before = now
    result = agreed.clone()
    result[disputed] = table[weights[: len(disputed)].argmax(1)].to(torch.int32)
    return result
