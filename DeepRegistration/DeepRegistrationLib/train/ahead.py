"""The pairs of coming updates, drawn in threads while the network works on the present ones."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Iterable, Iterator

import torch


def drawn(draw: Callable, seeds: Iterable[int], threads: int) -> Iterator:
    """The pair of each of ``seeds``, in their order. With 0 threads each is drawn when it is asked for, else up to two a thread are drawn
    before.

    ``draw(generator) -> Pair`` must depend on its generator only; its threads treat denormal numbers as the calling one does, so that the
    pairs are the same to the last bit. Its errors are raised where their pair is asked for.
    """
    if not threads:
        yield from (draw(torch.Generator().manual_seed(seed)) for seed in seeds)
        return
    waiting: deque = deque()
    pool = ThreadPoolExecutor(threads, "pairs", torch.set_flush_denormal, (denormals_flushed(),))
    try:
        for seed in seeds:
            waiting.append(pool.submit(lambda seed=seed: draw(torch.Generator().manual_seed(seed))))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def denormals_flushed() -> bool:
    """Do denormal numbers count as 0 in this thread?"""
    return float(torch.full((1,), 1e-39) * 1.0) == 0.0
