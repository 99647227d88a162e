"""What a request leaves behind with the model: its neurons, and an answer to compare in idle time."""

from dataclasses import replace

from server.answer.counts import Counts
from server.work.comparisons import Comparisons
from server.work.experts import RecentExperts
from server.work.job import Ask, Made, Read


class Traces:
    """The traces of one request."""

    def __init__(self, ask: Ask, counts: Counts, experts: RecentExperts, comparisons: Comparisons) -> None:
        """
        Args:
            ask: the request's first prompt; at most the first answer to it is compared.
        """
        self._ask, self._counts, self._experts, self._comparisons = ask, counts, experts, comparisons
        # The ids of the first answer, if it was drawn for a comparison.
        self._ids: list[int] | None = [] if comparisons.draws(ask) else None

    def read(self, read: Read) -> None:
        """A prompt was read."""
        self._experts.remember(read.selection, read.pruning)

    def made(self, made: Made) -> None:
        """A token was made, and counted."""
        taken, own = made.token.selection, self._counts.prompts[made.prompt].selection
        # Neurons of a refresh have no name in the answer, unless they equal the prompt's.
        if taken is not None and own is not None and taken.expert_set == own.expert_set:
            self._experts.remember(taken, self._counts.pruning)
        if self._ids is not None and (made.prompt, made.sample) == (0, 0):
            self._ids.append(made.token.id)

    def answered(self) -> None:
        """The whole answer was made."""
        if self._ids is not None:
            answered = replace(self._ask, pruning=self._counts.pruning)
            self._comparisons.later(answered, self._counts.prompts[0].selection, self._ids)
