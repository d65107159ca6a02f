"""The pairs of coming updates, drawn in threads while an accelerator works on the present ones."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Iterable, Iterator

import torch


def drawn(draw: Callable, seeds: Iterable[int], threads: int) -> Iterator:
    """The pair of each of ``seeds``, in their order. With 0 threads each is drawn when it is asked for, else up to two a thread are drawn
    before.

    ``draw(generator) -> Pair`` must depend on its generator only. Its errors are raised where their pair is asked for.
    """
    if not threads:
        yield from (draw(torch.Generator().manual_seed(seed)) for seed in seeds)
        return
    waiting: deque = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="pairs")
    try:
        for seed in seeds:
            waiting.append(pool.submit(lambda seed=seed: draw(torch.Generator().manual_seed(seed))))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
