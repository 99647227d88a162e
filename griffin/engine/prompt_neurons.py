"""PromptNeurons: a prompt's neurons, chosen when they are first needed and reported once."""

from griffin.engine.pending import PendingSelection
from griffin.engine.state import SequenceState
from griffin.neurons import Selection
from griffin.request import Pruning


class PromptNeurons:
    """The neurons of one prompt.

    pruning: how they are chosen.
    chosen: the neurons; None until they are needed, and if all stay.
    selection: their report, once there is one.
    """

    def __init__(self, state: SequenceState, pruning: Pruning, tokens: int) -> None:
        """
        Args:
            tokens: number of tokens in the prompt.
        """
        self.pruning, self._state, self._tokens = pruning, state, tokens
        self.chosen: PendingSelection | None = None
        self.selection: Selection | None = None
        self._in_use = False

    def choose(self, tokens: int | None = None) -> PendingSelection | None:
        """Choose the neurons at the first call.

        Args:
            tokens: number of the prompt's tokens that were read, if not all.
        """
        if self.chosen is None:
            self.chosen = self._state.choose(self.pruning, tokens or self._tokens)
        return self.chosen

    def decode(self) -> None:
        """Switch the decoder to these neurons, if it does not use them yet."""
        if not self._in_use:
            self._state.decode_with(self.choose())
            self._in_use = True

    def release(self) -> None:
        """Stop deciding which neurons the decoder uses; something else decides from here on."""
        self._in_use = False

    def report(self, chosen: PendingSelection | None) -> Selection | None:
        """The report of these neurons, or of others that replaced them. The first call waits for the device."""
        if chosen is None:
            return None
        if chosen is not self.chosen:
            return chosen.selection()
        if self.selection is None:
            self.selection = chosen.selection()
        return self.selection
