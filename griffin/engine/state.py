"""SequenceState: everything an engine knows of the current sequence."""

from collections.abc import Callable

from griffin.decode.decoder import Decoder
from griffin.engine.pending import PendingSelection, Timer
from griffin.engine.throttle import KnownCosts
from griffin.engine.trees import Trees
from griffin.method.auto import Outlook
from griffin.method.chooser import Chooser
from griffin.method.statistic import PromptStatistic
from griffin.model.cache import KVCache
from griffin.request import Pruning


class SequenceState:
    """The keys and values of one sequence, its statistic, its decoder, and the neurons in use.

    cache: the keys and values of what the model has read.
    statistic: the counts over it.
    decoder: draws the next tokens.
    costs: measured costs of passes, see ``throttle``.
    latest: number of last tokens whose activations the sequence's method needs, see ``Method.latest_tokens``.
    """

    def __init__(self, trees: Trees, chooser: Chooser, make_decoder: Callable[[KVCache], Decoder]) -> None:
        held = trees.weights.cache_dtype if trees.weights else None
        self.cache = KVCache(len(trees.blocks), [block.down.device for block in trees.blocks], held)
        self.statistic = PromptStatistic(trees.blocks)
        self.latest, self.costs = 0, KnownCosts()
        self._trees, self._chooser = trees, chooser
        self.decoder = make_decoder(self.cache)

    @property
    def length(self) -> int:
        """Number of tokens in the cache."""
        return self.cache.length

    def reset(self, *prunings: Pruning) -> None:
        """Forget the sequence. The next one may be pruned in any of these ways."""
        self.cache.length = 0
        self.latest = max((self._chooser.latest_tokens(pruning) for pruning in prunings), default=0)
        self.statistic.reset(self.latest)

    def rewind(self, length: int) -> None:
        """Drop the keys and values after the first ``length`` tokens; the statistic stays."""
        self.cache.length = length

    def accept(self) -> None:
        """Keep the token after the cache's end, whose keys and values a pass has written there."""
        self.cache.length += 1

    def prunes(self, pruning: Pruning) -> bool:
        """Whether a generated token leaves out any neuron, see ``Pruning.prunes``."""
        return pruning.prunes(self._trees.accounting.width)

    def allows(self, pruning: Pruning) -> bool:
        """Whether enough is known of the sequence for this pruning."""
        return self._chooser.latest_tokens(pruning) <= self.latest

    def outlook(self, pruning: Pruning) -> Outlook | None:
        """What sparsity auto decides after what was read; None if the request names a sparsity."""
        return None if pruning.auto is None else self._chooser.outlook(self.statistic, pruning, self.length)

    def choose(self, pruning: Pruning, prompt_tokens: int) -> PendingSelection | None:
        """Choose neurons by the statistic so far; None if all stay.

        Args:
            prompt_tokens: number of tokens on which they are chosen, for the report.
        """
        if not self.prunes(pruning):
            return None
        timer = Timer(self._trees.device)
        if pruning.reuse is not None:
            prompt_tokens = pruning.reuse.prompt_tokens
        return PendingSelection(self._chooser.choose(self.statistic, pruning), prompt_tokens, timer)

    def decode_with(self, chosen: PendingSelection | None) -> None:
        """Decode with this choice from here on, or with all neurons."""
        self.decoder.keep(chosen.chosen if chosen else None)
        if chosen:
            chosen.timer.stop()

    def read_with(self, chosen: PendingSelection) -> None:
        """Prepare the twin, which reads several tokens at once, for this choice."""
        self._trees.twin.load(chosen.chosen)
        chosen.timer.stop()
