"""What followed when the last tokens of a sequence occurred before: drafts that read no weights (prompt lookup)."""

from collections.abc import Iterable

# Tokens that must have occurred before, the longest first: fewer than two match by chance.
LENGTHS = (3, 2)


class NGrams:
    """A sequence, and where each of its n-grams occurred last. A token costs a few look-ups, whatever is before it."""

    def __init__(self, ids: Iterable[int]) -> None:
        self._ids: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}
        self.extend(ids)

    def extend(self, ids: Iterable[int]) -> None:
        """The tokens that follow."""
        for id in ids:
            # Not before something stands behind it: an n-gram must not find itself.
            for length in LENGTHS:
                if len(self._ids) >= length:
                    self._behind[tuple(self._ids[-length:])] = len(self._ids)
            self._ids.append(id)

    def draft(self, most: int) -> list[int]:
        """``most`` tokens, those behind the latest earlier occurrence of the last ones; none if there is no such."""
        for length in LENGTHS:
            start = self._behind.get(tuple(self._ids[-length:]))
            if start is not None:
                # What runs into the present goes round: the repetition is thought to go on.
                period = len(self._ids) - start
                return [self._ids[start + place % period] for place in range(most)]
        return []
