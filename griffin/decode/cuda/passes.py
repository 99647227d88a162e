"""GraphPasses: reads several tokens with one launch of a recorded pass, behind the interface of ``PassingStep``.

Shapes: T tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from griffin.decode.cuda.step import PASSES, FusedStep
from griffin.decode.decoder import PASS_TOKENS
from griffin.method.statistic import Activations
from griffin.model.cache import KVCache
from griffin.neurons import Chosen
from griffin.thresholds import Shares

Replay = Callable[[], None]


class GraphPasses:
    """One recorded pass for each length bucket and number of tokens in ``PASSES``. It serves all methods."""

    def __init__(
        self, step: FusedStep, cache: KVCache, buckets: Sequence[int], recorded: Mapping[tuple[int, int], Replay]
    ) -> None:
        """
        Args:
            step: decodes the same sequence, and must be told its position after a pass.
            cache: in the step's buffers.
            buckets: ascending; the last one is the context length.
            recorded: by bucket and number of tokens; it may be filled later.
        """
        self._step, self._cache, self._buckets, self._recorded = step, cache, buckets, recorded

    def keep(self, chosen: Chosen | None) -> None:
        """Read only this choice from here on, or all neurons (None). The step does the same."""
        self._step.keep(chosen)

    def shares(self) -> Shares | None:
        """See ``Step``. It waits for the device."""
        return self._step.shares()

    def __call__(self, id: int) -> Tensor:
        """See ``Step``."""
        return self.read((id,))[0]

    @torch.inference_mode()
    def read(self, ids: Sequence[int], *, full: bool = False) -> Tensor:
        """See ``PassingStep``: in the model's dtype. The host does not wait.

        Raises:
            IndexError: the tokens reach beyond the context.
        """
        self._step.have_passes_read(full=full)
        *first, last = self._pieces(ids)
        rows = [self._run(*piece).clone() for piece in first]
        own_TV = self._run(*last)
        return torch.cat((*rows, own_TV)) if rows else own_TV

    @torch.inference_mode()
    def observe(self, ids: Sequence[int], wanted: int) -> tuple[Tensor, list[Activations]]:
        """See ``PassingStep``: in the model's dtype, z in fp32. Both are valid until the next call.

        Raises:
            IndexError: the tokens reach beyond the context.
        """
        self._step.have_passes_read(full=True)
        *first, last = self._pieces(ids)
        rows, pieces = [], []
        for bucket, own in first:
            rows.append(self._run(bucket, own).clone())
            pieces.append([seen.copied() for seen in self._step.seen(len(own))])
        own_TV = self._run(*last)
        pieces.append(list(self._step.seen(len(last[1]))))
        logits_TV = torch.cat((*rows, own_TV)) if rows else own_TV
        return logits_TV[len(ids) - wanted :], [Activations.joined(layer) for layer in zip(*pieces, strict=True)]

    def _pieces(self, ids: Sequence[int]) -> Iterator[tuple[int, Sequence[int]]]:
        """The tokens of each pass, with its bucket.

        A step attends by the bucket of its own position. So a pass ends where a bucket ends, to have the same bits.
        """
        start = self._cache.length
        end = start + len(ids)
        if not ids or end > self._buckets[-1]:
            raise IndexError(f"a pass of {len(ids)} tokens does not fit a context of {self._buckets[-1]} after {start}")
        for first, bucket in pairwise((0, *self._buckets)):
            for begin in range(max(first, start), min(bucket, end), PASS_TOKENS):
                stop = min(begin + PASS_TOKENS, bucket, end)
                yield bucket, ids[begin - start : stop - start]

    def _run(self, bucket: int, ids: Sequence[int]) -> Tensor:
        step, count = self._step, len(ids)
        step.position.fill_(self._cache.length)
        step.count.fill_(count)
        step.ids_M[:count].copy_(torch.tensor(ids, dtype=torch.int64), non_blocking=True)
        self._recorded[bucket, next(tokens for tokens in PASSES if tokens >= count)]()
        self._cache.length += count
        return step.logits_MV[:count]
