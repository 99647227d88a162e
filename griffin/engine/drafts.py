"""Drafts: cheap guesses at the next tokens, which a model then checks."""

from collections.abc import Callable, Iterable

from griffin.decode.decoder import PASS_TOKENS
from griffin.decode.sampler import Drawn
from griffin.engine.ngrams import SHORTEST, Match, NGrams, longest_next
from griffin.engine.state import SequenceState
from griffin.engine.throttle import Throttle
from griffin.request import ModeName, Verification

# Drafts of kept neurons in a block, unless the request names a number.
PRUNED_TOKENS: dict[ModeName, int] = {"fast": 0, "guarded": 6, "lossless": 3}


class Drafts:
    """Drafts for one sequence, from its n-grams or from the decoder's kept neurons.

    With a grammar, drafts that the grammar refuses are not proposed.

    steps: number of decoder steps that the drafts took so far.
    """

    def __init__(
        self,
        state: SequenceState,
        verification: Verification,
        ngrams: NGrams | None,
        throttle: Throttle,
        end_ids: frozenset[int],
    ) -> None:
        """
        Args:
            ngrams: of the sequence so far; None if n-grams are not used.
            throttle: decides how many n-gram drafts are worth a pass, unless the request names a number.
            end_ids: a draft ends after any of these.
        """
        self.steps = 0
        self._state, self._decoder, self._end_ids = state, state.decoder, end_ids
        self._ngrams, self._throttle = ngrams, throttle
        self._match = ngrams.find() if ngrams else None
        self._ngram_tokens = verification.draft_tokens
        self._pruned_tokens = verification.draft_tokens or PRUNED_TOKENS[verification.mode]

    def extend(self, ids: Iterable[int]) -> None:
        """Add the tokens that followed. Each shows whether the n-grams would have been right here."""
        if (ngrams := self._ngrams) is None:
            return
        for id in ids:
            if self._match:
                self._throttle.saw(self._match.length, ngrams.following(self._match, 1) == [id])
            ngrams.extend(id)
            self._match = ngrams.find()

    def forced(self, room: int) -> list[int]:
        """At most ``room`` tokens that the grammar forces next, so many that one pass can read them."""
        constraint = self._decoder.constraint
        return [] if constraint is None or room < 1 else list(constraint.forced()[: min(room, PASS_TOKENS - 1)])

    def looked_up(self, room: int) -> list[int]:
        """At most ``room`` drafts from n-grams, as many as are worth a pass."""
        if self._ngrams is None or self._match is None or room < 1:
            return []
        ids = self._ngrams.following(self._match, self._most(self._match, room))
        ends = (number for number, id in enumerate(ids, 1) if id in self._end_ids)
        ids, constraint = ids[: next(ends, len(ids))], self._decoder.constraint
        return ids if constraint is None else ids[: constraint.taken(ids)]

    def may_follow(self, room: int) -> bool:
        """Whether n-gram drafts may be worth a pass after the next token, whatever that token is."""
        if self._ngrams is None or room < 1:
            return False
        if self._ngram_tokens is not None:
            return True
        lengths = range(SHORTEST, longest_next(self._match) + 1)
        return any(self._throttle.worth(length, room) for length in lengths)

    def _most(self, match: Match, room: int) -> int:
        if self._ngram_tokens is not None:
            return min(room, self._ngram_tokens)
        return self._throttle.worth(match.length, room)

    def generated(self, room: int) -> list[int]:
        """At most ``room`` drafts of the kept neurons. The full model overwrites their keys and values."""
        most, ids = min(room, self._pruned_tokens), list[int]()
        if most < 1:
            return ids
        length = self._state.length
        self._decoder.mark()
        pending = self.advance()
        while True:
            following = self.advance() if self._decoder.ahead and len(ids) + 1 < most else None
            ids.append(pending().id)
            constraint = self._decoder.constraint
            if len(ids) == most or ids[-1] in self._end_ids or (constraint is not None and constraint.ended):
                break
            pending = following or self.advance()
        self._decoder.back()
        self._state.rewind(length)
        return ids

    def advance(self) -> Callable[[], Drawn]:
        """One step of the decoder."""
        self.steps += 1
        return self._decoder.advance()
