"""Drafts that read no weights: the tokens that followed the last tokens of a sequence earlier (prompt lookup)."""

from collections.abc import Sequence
from dataclasses import dataclass

# Numbers of tokens that must have occurred before, largest first. Fewer than two match by chance.
LENGTHS = (8, 5, 3, 2)
SHORTEST = LENGTHS[-1]
# A match is followed backwards for at most so many tokens. Longer matches are not more reliable.
LONGEST = 16

Place = dict[tuple[int, ...], int]


@dataclass(frozen=True, slots=True)
class Match:
    """An earlier occurrence of the last tokens.

    start: the position after it.
    length: number of tokens in common with the last ones, 2 to ``LONGEST``.
    """

    start: int
    length: int


def longest_next(match: Match | None) -> int:
    """The largest possible length of the match after one more token, whatever that token is.

    Another occurrence may share more tokens with the last ones than the latest occurrence does, but none shares as many
    as the next of ``LENGTHS``. With one more token it shares at most that many.
    """
    if match is None:
        return SHORTEST
    return next((length for length in reversed(LENGTHS) if length > match.length), LONGEST)


class PromptNGrams:
    """The last occurrence of each n-gram of a prompt. Made once, shared by the sequences that follow the prompt.

    ids: the prompt.
    after: for each of ``LENGTHS``, the position after each n-gram. The prompt's last tokens are missing, because no
        token follows them yet.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)
        self.after = [self._places(length) for length in LENGTHS]

    def _places(self, length: int) -> Place:
        shifted = (self.ids[first:] for first in range(length))
        return dict(zip(zip(*shifted, strict=False), range(length, len(self.ids)), strict=False))


class NGrams:
    """A prompt and the tokens after it. A token costs a few look-ups, however long the sequence is."""

    def __init__(self, prompt: PromptNGrams) -> None:
        self._ids = prompt.ids.copy()
        self._after: list[tuple[int, Place, Place]] = [
            (length, {}, places) for length, places in zip(LENGTHS, prompt.after, strict=True)
        ]

    def extend(self, id: int) -> None:
        """Add the token that follows."""
        ids = self._ids
        # An n-gram is added once a token follows it, so that it does not find itself.
        for length, places, _ in self._after:
            if len(ids) >= length:
                places[tuple(ids[-length:])] = len(ids)
        ids.append(id)

    def find(self) -> Match | None:
        """The latest earlier occurrence that shares the most last tokens."""
        for length, places, of_prompt in self._after:
            last = tuple(self._ids[-length:])
            start = places.get(last) or of_prompt.get(last)
            if start is not None:
                return Match(start, self._common(start, length))
        return None

    def following(self, match: Match, most: int) -> list[int]:
        """The ``most`` tokens after an occurrence. At the end of the sequence they start again from the occurrence.

        A repetition is expected to continue.
        """
        period = len(self._ids) - match.start
        return [self._ids[match.start + place % period] for place in range(most)]

    def _common(self, start: int, length: int) -> int:
        ids, end = self._ids, len(self._ids)
        most = min(LONGEST, start)
        while length < most and ids[start - 1 - length] == ids[end - 1 - length]:
            length += 1
        return length
