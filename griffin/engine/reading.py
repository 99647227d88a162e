"""Reading: runs given tokens through a prompt's kept neurons, as if these had generated them.

If the decoder's step takes several tokens in a pass, it reads them: a token's logits then have the same bits as in a
generation. Otherwise the decode twin reads many tokens at once, which rounds differently. Such a difference can decide
what a token reads, if a number lies at a threshold.

Shapes: C tokens of a piece, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from griffin.decode.decoder import PassingStep
from griffin.engine.prefill import Prefill, passes
from griffin.engine.prompt_neurons import PromptNeurons
from griffin.engine.state import SequenceState
from griffin.engine.trees import Trees
from griffin.model.forward import head


class Reading:
    """Reads tokens after those in the cache; their keys and values are added to it."""

    def __init__(
        self,
        trees: Trees,
        state: SequenceState,
        prefill: Prefill,
        neurons: PromptNeurons,
        cancelled: Callable[[], bool],
    ) -> None:
        """
        Args:
            neurons: must be chosen already.
            cancelled: asked before each pass, or before each of the twin's chunks.
        """
        self._trees, self._state, self._prefill = trees, state, prefill
        self._neurons, self._cancelled = neurons, cancelled

    def logits(self, ids: Sequence[int], start: int, logits_from: int) -> Iterator[Tensor]:
        """Read a prompt's tokens from ``start`` on, once the decoder or the twin has the neurons.

        Yields:
            After each pass or chunk, the logits ``(C, V)`` of its tokens from ``logits_from`` on; C may be 0. The next
            logits may overwrite them.

        Raises:
            Cancelled: between passes or chunks.
        """
        step = self._ready()
        if step is None:
            yield from self._prefill.read_sparse(ids, start, len(ids), logits_from, self._cancelled)
            return
        for first, after in passes(start, len(ids), self._cancelled):
            yield step.read(ids[first:after])[max(0, logits_from - first) :]

    def pieces(self, ids: Sequence[int], start: int, most: int) -> Iterator[Tensor]:
        """Like ``logits``, after going back to ``start``: the logits of all tokens, in pieces of at most ``most``."""
        step = self._ready()
        if step is None:
            hidden_TD = self._prefill.hidden(self._trees.twin.model, ids, start, self._cancelled)
            yield from (head(self._trees.full, hidden_CD) for hidden_CD in torch.split(hidden_TD, most))
            return
        self._state.rewind(start)
        for first in range(start, len(ids), most):
            pieces = passes(first, min(first + most, len(ids)), self._cancelled)
            yield torch.cat([step.read(ids[a:b]).clone() for a, b in pieces])

    def _ready(self) -> PassingStep | None:
        """The step that reads in passes, if there is one. It, or otherwise the twin, uses the neurons."""
        step = self._state.decoder.passes
        if step is not None:
            self._neurons.decode()
        elif (chosen := self._neurons.choose()) is not None:
            self._state.read_with(chosen)
        return step
