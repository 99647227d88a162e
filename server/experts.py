"""Which neurons recent requests ran with, by the name that their answers gave it."""

from collections import OrderedDict
from dataclasses import dataclass, replace

from griffin import Pruning, Selection

# Of a model of 13 billion parameters, some sixty sets; of a small one, many more than anybody looks at.
BUDGET_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class KnownExperts:
    """Neurons, and the choices that led to them the last time."""

    selection: Selection
    pruning: Pruning


class RecentExperts:
    """The latest sets, as many as fit; used on the event loop alone."""

    def __init__(self, budget_bytes: int = BUDGET_BYTES) -> None:
        self._budget, self._bytes = budget_bytes, 0
        self._sets: OrderedDict[str, KnownExperts] = OrderedDict()

    def remember(self, selection: Selection | None, pruning: Pruning) -> None:
        """As the latest, whether or not it was known."""
        if selection is None:
            return
        self._forget(selection.expert_set)
        self._sets[selection.expert_set] = KnownExperts(selection, replace(pruning, reuse=None, seed=None))
        self._bytes += selection.bytes
        while self._bytes > self._budget:
            self._forget(next(iter(self._sets)))

    def find(self, expert_set: str) -> KnownExperts | None:
        """One that is asked for is the latest again."""
        if expert_set in self._sets:
            self._sets.move_to_end(expert_set)
        return self._sets.get(expert_set)

    def _forget(self, expert_set: str) -> None:
        if known := self._sets.pop(expert_set, None):
            self._bytes -= known.selection.bytes
