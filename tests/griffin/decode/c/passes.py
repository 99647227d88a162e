"""Checks that a pass of several tokens gives the same bits as single steps."""

from collections.abc import Iterable

import torch
from torch import Tensor

from griffin.decode.c.library import MOST_TOKENS
from griffin.decode.c.step import NativeStep
from griffin.neurons import Chosen

IDS = torch.randint(3, 120, (MOST_TOKENS,), generator=torch.Generator().manual_seed(5)).tolist()


def written(step: NativeStep, start: int, count: int) -> list[Tensor]:
    """The keys and values of ``count`` tokens."""
    end = start + count
    return [tensor[:, :, start:end].clone() for pair in step._cache.reserve(end) for tensor in pair]


def check(step: NativeStep, chosen: Chosen | None, counts: Iterable[int] = (2, 3, 7, MOST_TOKENS)) -> None:
    """Compare logits, keys, values and shares, from the end of the cache on. Afterwards the cache ends there again."""
    start = step._cache.length
    step.keep(chosen)
    rows = torch.stack([step(id).clone() for id in IDS])
    cached = written(step, start, MOST_TOKENS)
    for count in counts:
        step._cache.length = start
        step.keep(chosen)
        for id in IDS[:count]:
            step(id)
        shares, step._cache.length = step.shares(), start
        for tensor in (tensor for pair in step._cache.reserve(start + count) for tensor in pair):
            tensor[:, :, start:] = 99
        step.keep(chosen)
        assert torch.equal(step.read(IDS[:count]), rows[:count])
        assert all(map(torch.equal, written(step, start, count), (held[:, :, :count] for held in cached)))
        assert step.shares() == shares
        assert step._cache.length == start + count
    step._cache.length = start
