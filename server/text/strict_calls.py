"""Calls of strict tools where the model may call or not: text is free until a call is opened, then held to a grammar.

``griffin.constraint``'s two interfaces for that. While no call is open, no mask is made.
"""

from collections.abc import Sequence

from griffin.constraint import Constraint, Grammar


class OpenedCalls:
    """``Grammar``: any text; after each token that opens a call what ``inside`` says, then any text again."""

    ends = False

    def __init__(self, opening_id: int, inside: Grammar) -> None:
        self.opening_id, self.inside = opening_id, inside

    def begin(self) -> "_Opened":
        return _Opened(self)


class _Opened:
    """``Constraint``. call: of the call that is open."""

    ended = done = False

    def __init__(self, grammar: OpenedCalls) -> None:
        self._grammar = grammar
        self._call: Constraint | None = None
        self._marked: Constraint | None = None

    @property
    def free(self) -> bool:
        return self._call is None

    def forced(self) -> Sequence[int]:
        return () if self._call is None else self._call.forced()

    def taken(self, ids: Sequence[int]) -> int:
        if self._call is not None:
            # Maybe more could follow its end: too few are as good.
            return self._call.taken(ids)
        opening = next((place for place, id in enumerate(ids, 1) if id == self._grammar.opening_id), len(ids))
        return opening + (self._grammar.inside.begin().taken(ids[opening:]) if opening < len(ids) else 0)

    def mask(self) -> bytes:
        assert self._call is not None, "any token may follow"
        return self._call.mask()

    def advance(self, id: int) -> None:
        if self._call is not None:
            self._call.advance(id)
            self._call = None if self._call.ended else self._call
        elif id == self._grammar.opening_id:
            self._call = self._grammar.inside.begin()

    def mark(self) -> None:
        self._marked = self._call
        if self._call is not None:
            self._call.mark()

    def back(self) -> None:
        self._call = self._marked
        if self._call is not None:
            self._call.back()


class AfterThought:
    """``Grammar``: a thought, then what another grammar says. A call in a thought is none."""

    ends = False

    def __init__(self, thought: Grammar, then: Grammar) -> None:
        """
        Args:
            thought: is done where the thought ends, or at the first token that begins none.
        """
        self.thought, self.then = thought, then

    def begin(self) -> "_After":
        return _After(self)


class _After:
    """``Constraint``"""

    ended = False

    def __init__(self, grammar: AfterThought) -> None:
        self._thought, self._then = grammar.thought.begin(), grammar.then.begin()

    @property
    def _at_hand(self) -> Constraint:
        return self._then if self._thought.done else self._thought

    @property
    def free(self) -> bool:
        return self._at_hand.free

    @property
    def done(self) -> bool:
        return self._thought.done and self._then.done

    def forced(self) -> Sequence[int]:
        return self._at_hand.forced()

    def taken(self, ids: Sequence[int]) -> int:
        # What opens a call in the thought is held here as if it stood after it: too few are as good.
        count = self._then.taken(ids)
        return count if self._thought.done else min(count, self._thought.taken(ids))

    def mask(self) -> bytes:
        return self._at_hand.mask()

    def advance(self, id: int) -> None:
        if not self._thought.done:
            self._thought.advance(id)
        # The token that shows that there is no thought may open a call.
        if self._thought.done:
            self._then.advance(id)

    def mark(self) -> None:
        self._thought.mark()
        self._then.mark()

    def back(self) -> None:
        self._thought.back()
        self._then.back()
