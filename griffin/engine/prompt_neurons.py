"""PromptNeurons: chosen when they are first needed, put to use, and reported once."""

from griffin.engine.pending import PendingSelection
from griffin.engine.state import SequenceState
from griffin.neurons import Selection
from griffin.request import Pruning


class PromptNeurons:
    """The neurons of one prompt.

    pruning: how they are chosen.
    chosen: the neurons; None before they are needed, and where all stay.
    selection: the report of them, once there is one.
    """

    def __init__(self, state: SequenceState, pruning: Pruning, tokens: int) -> None:
        """
        Args:
            tokens: how many the prompt has.
        """
        self.pruning, self._state, self._tokens = pruning, state, tokens
        self.chosen: PendingSelection | None = None
        self.selection: Selection | None = None
        self._in_use = False

    def choose(self, tokens: int | None = None) -> PendingSelection | None:
        """Choose the neurons at the first call.

        Args:
            tokens: how many of the prompt's tokens have been read, if not all.
        """
        if self.chosen is None:
            self.chosen = self._state.choose(self.pruning, tokens or self._tokens)
        return self.chosen

    def decode(self) -> None:
        """Have the decoder use these neurons, if it does not yet."""
        if not self._in_use:
            self._state.decode_with(self.choose())
            self._in_use = True

    def release(self) -> None:
        """From now on something else decides which neurons the decoder uses."""
        self._in_use = False

    def report(self, chosen: PendingSelection | None) -> Selection | None:
        """The report of these neurons, or of others that took their place. Waits for the device at the first call."""
        if chosen is None:
            return None
        if chosen is not self.chosen:
            return chosen.selection()
        if self.selection is None:
            self.selection = chosen.selection()
        return self.selection
