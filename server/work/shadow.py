"""Shadow quality: a share of pruned answers is compared with the full model, in idle time, for metrics alone.

Of an answer only token ids and neurons are held, in memory, until it is compared or newer ones take its place.
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

# Answers that wait at a time, and tokens of all of them.
MOST, MOST_TOKENS = 8, 2**16
# Comparisons that fail one after the other before no more are made.
FAILURES = 3


@dataclass(frozen=True, slots=True, eq=False)
class Shadow:
    """An answer that is to be read again, and the choices that it was generated with."""

    prompt_ids: list[int]
    ids: list[int]
    pruning: Pruning

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + len(self.ids)

    def compare(self, engine: EngineLike, cancelled: Callable[[], bool]) -> Comparison | None:
        """
        Raises:
            Cancelled: within a chunk once ``cancelled`` is true.
        """
        with engine.read(self.prompt_ids, self.pruning, None, cancelled) as read:
            return read.compare(self.ids, cancelled)


class Shadows:
    """Answers that wait for a comparison: the newest ones. Used under the queue's lock."""

    def __init__(self, share: float, metrics: Metrics, model_name: str) -> None:
        self._share, self._metrics, self._model_name = share, metrics, model_name
        self._waiting: deque[Shadow] = deque()
        self._failures = 0
        if share:
            metrics.begin_shadows(model_name)

    def __len__(self) -> int:
        return len(self._waiting)

    def draws(self, ask: Ask, width: int) -> bool:
        """Whether an answer to this is to be kept: at random, of the pruned answers that nothing has verified.

        Args:
            width: FF neurons in each layer.
        """
        unverified = ask.verification.mode == "fast" and ask.scoring is None
        return ask.pruning.prunes(width) and unverified and random.random() < self._share

    def put(self, ask: Ask, selection: Selection | None, ids: list[int]) -> None:
        """Keep an answer; the oldest ones go until all fit.

        An answer of one token is not kept: it came from the full model.

        Args:
            ask: with the choices that applied.
            selection: the neurons that the answer was generated with; None if it was the full model.
            ids: the answer.
        """
        if self._share and selection is not None and len(ids) > 1:
            pruning = replace(ask.pruning, reuse=selection)
            self._waiting.append(Shadow(ask.prompt_ids, ids, pruning))
            self._fit()

    def take(self) -> Shadow:
        """The oldest. There must be one."""
        return self._waiting.popleft()

    def interrupted(self, shadow: Shadow) -> None:
        """A comparison was given up for something more important; it is the next one again."""
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
        """A comparison failed, which costs an engine a rebuild. After some failures in a row no more are made."""
        self._count("dropped")
        self._failures += 1
        if self._failures == FAILURES:
            self._share = 0.0
            self._waiting.clear()
            logger.error("%d comparisons with the full model failed in a row; no more are made", FAILURES)

    def _fit(self) -> None:
        while len(self._waiting) > MOST or sum(shadow.tokens for shadow in self._waiting) > MOST_TOKENS:
            self._waiting.popleft()
            self._count("dropped")

    def _count(self, outcome: str) -> None:
        self._metrics.shadow_requests.labels(self._model_name, outcome).inc()
