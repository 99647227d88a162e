"""Drafts that read no weights: what followed when the last tokens of a sequence occurred before (prompt lookup)."""

from collections.abc import Sequence
from dataclasses import dataclass

# How many tokens must have occurred before, the longest first. Fewer than two match by chance.
LENGTHS = (8, 5, 3, 2)
SHORTEST = LENGTHS[-1]
# A match is followed backwards to at most so many tokens. Longer ones are not more certain.
LONGEST = 16

Place = dict[tuple[int, ...], int]


@dataclass(frozen=True, slots=True)
class Match:
    """An earlier occurrence of the last tokens.

    start: the place after it.
    length: how many tokens it has in common with the last ones, 2 to ``LONGEST``.
    """

    start: int
    length: int


def longest_next(match: Match | None) -> int:
    """How long the match after one more token can be, whatever token that is.

    Another occurrence may have more tokens in common with the last ones than the latest has, but none has as many as
    the next of ``LENGTHS``. With one token more it has at most that many.
    """
    if match is None:
        return SHORTEST
    return next((length for length in reversed(LENGTHS) if length > match.length), LONGEST)


class PromptNGrams:
    """Where each n-gram of a prompt occurred last. Made once, shared by the sequences that follow the prompt.

    ids: the prompt.
    after: for each of ``LENGTHS``, the place after each n-gram. The prompt's last tokens are not there: no token has
        followed them yet.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)
        self.after = [self._places(length) for length in LENGTHS]

    def _places(self, length: int) -> Place:
        shifted = (self.ids[first:] for first in range(length))
        return dict(zip(zip(*shifted, strict=False), range(length, len(self.ids)), strict=False))


class NGrams:
    """A prompt and what has followed it. A token costs a few look-ups at any length."""

    def __init__(self, prompt: PromptNGrams) -> None:
        self._ids = prompt.ids.copy()
        self._after: list[tuple[int, Place, Place]] = [
            (length, {}, places) for length, places in zip(LENGTHS, prompt.after, strict=True)
        ]

    def extend(self, id: int) -> None:
        """Add the token that follows."""
        ids = self._ids
        # An n-gram is noted once a token follows it, because it must not find itself.
        for length, places, _ in self._after:
            if len(ids) >= length:
                places[tuple(ids[-length:])] = len(ids)
        ids.append(id)

    def find(self) -> Match | None:
        """The latest earlier occurrence of as many of the last tokens as possible."""
        for length, places, of_prompt in self._after:
            last = tuple(self._ids[-length:])
            start = places.get(last) or of_prompt.get(last)
            if start is not None:
                return Match(start, self._common(start, length))
        return None

    def following(self, match: Match, most: int) -> list[int]:
        """The ``most`` tokens after an occurrence. At the end of the sequence they go round.

        A repetition is expected to go on.
        """
        period = len(self._ids) - match.start
        return [self._ids[match.start + place % period] for place in range(most)]

    def _common(self, start: int, length: int) -> int:
        ids, end = self._ids, len(self._ids)
        most = min(LONGEST, start)
        while length < most and ids[start - 1 - length] == ids[end - 1 - length]:
            length += 1
        return length
