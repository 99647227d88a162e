"""Which neurons recent requests ran with, by the name that their answers gave it."""

from collections import OrderedDict
from dataclasses import dataclass, replace

from griffin import Pruning, Selection

# With a model of 13 billion parameters, room for some sixty sets of the paper's method, or six of griffin+.
BUDGET_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class KnownExperts:
    """What was chosen, and the choices that led to it the last time."""

    selection: Selection
    pruning: Pruning


class RecentExperts:
    """The latest sets, as many as fit, and the latest in any case. Used on the event loop only."""

    def __init__(self, budget_bytes: int = BUDGET_BYTES) -> None:
        self._budget = budget_bytes
        self._sets: OrderedDict[str, KnownExperts] = OrderedDict()

    def remember(self, selection: Selection | None, pruning: Pruning) -> None:
        """Keep a set as the latest one, even if it was known before."""
        if selection is None:
            return
        self._sets.pop(selection.expert_set, None)
        self._sets[selection.expert_set] = KnownExperts(selection, replace(pruning, reuse=None, seed=None))
        self._fit()

    def find(self, expert_set: str) -> KnownExperts | None:
        """A known set, which becomes the latest one again."""
        if expert_set in self._sets:
            self._sets.move_to_end(expert_set)
        return self._sets.get(expert_set)

    def _fit(self) -> None:
        """Drop the oldest sets that have no room."""
        room, latest = self._budget, next(reversed(self._sets))
        for name in reversed(list(self._sets)):
            room -= self._sets[name].selection.chosen.bytes
            if room < 0 and name != latest:
                del self._sets[name]
