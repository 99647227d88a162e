"""Grammars of token ids for tests of the library, which does not know texts."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Slots:
    """A grammar with one token for each place, from the ids that are allowed there. A place with one id is forced.

    end_id: this token may end the sequence after ``least`` places and takes no place. None: the last place ends it.
    goes_on: after the last place any token may follow, and the constraint need not be told.
    ends: see ``Grammar``.
    """

    places: tuple[frozenset[int], ...]
    least: int = 10**9
    end_id: int | None = None
    goes_on: bool = False
    ends: bool = True

    def begin(self) -> "Filling":
        return Filling(self)


class Filling:
    """A sequence that fills the places. ``begun``: its tokens so far."""

    free = False

    def __init__(self, slots: Slots) -> None:
        self._slots, self.begun, self._marked = slots, list[int](), 0

    @property
    def ended(self) -> bool:
        return not self.done and self._allowed(self.begun) == frozenset()

    @property
    def done(self) -> bool:
        return self._slots.goes_on and len(self.begun) >= len(self._slots.places)

    def forced(self) -> Sequence[int]:
        found: list[int] = []
        while len(allowed := self._allowed([*self.begun, *found])) == 1:
            found += allowed
        return [id for id in found if id != self._slots.end_id]

    def taken(self, ids: Sequence[int]) -> int:
        for count, id in enumerate(ids):
            if self._slots.goes_on and len(self.begun) + count >= len(self._slots.places):
                break
            if id not in self._allowed([*self.begun, *ids[:count]]):
                return count
        return len(ids)

    def mask(self) -> bytes:
        bits = sum(1 << id for id in self._allowed(self.begun))
        return bits.to_bytes(bits.bit_length() // 8 + 1, "little")

    def advance(self, id: int) -> None:
        assert id in self._allowed(self.begun)
        self.begun.append(id)

    def mark(self) -> None:
        self._marked = len(self.begun)

    def back(self) -> None:
        del self.begun[self._marked :]

    def _allowed(self, ids: list[int]) -> frozenset[int]:
        slots = self._slots
        if len(ids) >= len(slots.places) or (ids and ids[-1] == slots.end_id):
            return frozenset()
        ends = {slots.end_id} if slots.end_id is not None and len(ids) >= slots.least else set()
        return slots.places[len(ids)] | ends
