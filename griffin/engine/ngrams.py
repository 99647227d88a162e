"""Drafts that read no weights: what followed when the last tokens of a sequence occurred before (prompt lookup)."""

from collections.abc import Iterable

# How many tokens must have occurred before, the longest first. Fewer than two match by chance.
LENGTHS = (3, 2)


class NGrams:
    """A sequence, and where each of its n-grams occurred last. A token costs a few look-ups at any length."""

    def __init__(self, ids: Iterable[int]) -> None:
        self._ids: list[int] = []
        # For each n-gram, the place after its latest occurrence.
        self._after: dict[tuple[int, ...], int] = {}
        self.extend(ids)

    def extend(self, ids: Iterable[int]) -> None:
        """Add the tokens that follow."""
        for id in ids:
            # An n-gram is noted once a token follows it, because it must not find itself.
            for length in LENGTHS:
                if len(self._ids) >= length:
                    self._after[tuple(self._ids[-length:])] = len(self._ids)
            self._ids.append(id)

    def draft(self, most: int) -> list[int]:
        """The ``most`` tokens after the latest earlier occurrence of the last tokens; empty if there is none."""
        for length in LENGTHS:
            start = self._after.get(tuple(self._ids[-length:]))
            if start is not None:
                # A draft that reaches the end of the sequence goes round: it expects the repetition to go on.
                period = len(self._ids) - start
                return [self._ids[start + place % period] for place in range(most)]
        return []
