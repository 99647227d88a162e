"""Shadow quality: a share of pruned answers is compared with the full model in idle time, for metrics only.

Only token ids and neurons of an answer are kept, in memory, until it is compared or newer answers replace it.
"""

import logging
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from griffin import Comparison, Pruning, Selection
from server.metrics import Metrics, sparsity_label
from server.work.job import Ask, EngineLike

logger = logging.getLogger("griffin")

# Answers that may wait, and tokens of all of them together.
MOST, MOST_TOKENS = 8, 2**16
# After so many failed comparisons in a row, no further ones are made.
FAILURES = 3


@dataclass(frozen=True, slots=True, eq=False)
class Shadow:
    """An answer to read again, and the choices with which it was generated."""

    prompt_ids: list[int]
    ids: list[int]
    pruning: Pruning

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + len(self.ids)

    def compare(self, engine: EngineLike, cancelled: Callable[[], bool]) -> Comparison | None:
        """
        Raises:
            Cancelled: ``cancelled`` became true; raised within a chunk.
        """
        with engine.read(self.prompt_ids, self.pruning, None, cancelled) as read:
            return read.compare(self.ids, cancelled)


class Shadows:
    """The newest answers that wait for a comparison. Used while holding the queue's lock."""

    def __init__(self, share: float, metrics: Metrics, model_name: str) -> None:
        self._share, self._metrics, self._model_name = share, metrics, model_name
        self._waiting: deque[Shadow] = deque()
        self._failures = 0
        if share:
            metrics.begin_shadows(model_name)

    def __len__(self) -> int:
        return len(self._waiting)

    def draws(self, ask: Ask, width: int) -> bool:
        """Whether to keep an answer to this prompt: drawn at random from pruned answers that were not verified.

        Args:
            width: FF neurons in each layer.
        """
        unverified = ask.verification.mode == "fast" and ask.scoring is None
        return ask.pruning.prunes(width) and unverified and random.random() < self._share

    def put(self, ask: Ask, selection: Selection | None, ids: list[int]) -> None:
        """Keep an answer; drop the oldest ones until all fit.

        An answer of one token is not kept, because the full model made it.

        Args:
            ask: the prompt with the choices that applied.
            selection: the neurons of the answer; None if the full model generated it.
            ids: the answer's token ids.
        """
        if self._share and selection is not None and len(ids) > 1:
            pruning = replace(ask.pruning, reuse=selection)
            self._waiting.append(Shadow(ask.prompt_ids, ids, pruning))
            self._fit()

    def take(self) -> Shadow:
        """The oldest answer. There must be one."""
        return self._waiting.popleft()

    def interrupted(self, shadow: Shadow) -> None:
        """A comparison was stopped for more important work; its answer is the next one again."""
        self._waiting.appendleft(shadow)
        self._fit()

    def compared(self, shadow: Shadow, comparison: Comparison | None) -> None:
        self._failures = 0
        if comparison is None:
            self._count("dropped")
            return
        self._count("compared")
        labels = self._model_name, sparsity_label(shadow.pruning.sparsity)
        self._metrics.shadow_kl.labels(*labels).observe(comparison.kl)
        self._metrics.shadow_top1_agreement.labels(*labels).observe(comparison.top1_agreement)
        self._metrics.shadow_perplexity_ratio.labels(*labels).observe(comparison.perplexity_ratio)

    def failed(self) -> None:
        """A comparison failed, so an engine must be rebuilt. After some failures in a row no more are made."""
        self._count("dropped")
        self._failures += 1
        if self._failures == FAILURES:
            self._share = 0.0
            self._waiting.clear()
            logger.error("%d comparisons with the full model failed in a row; comparisons are switched off", FAILURES)

    def _fit(self) -> None:
        while len(self._waiting) > MOST or sum(shadow.tokens for shadow in self._waiting) > MOST_TOKENS:
            self._waiting.popleft()
            self._count("dropped")

    def _count(self, outcome: str) -> None:
        self._metrics.shadow_requests.labels(self._model_name, outcome).inc()
