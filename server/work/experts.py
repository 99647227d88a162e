"""The neurons of recent requests, by the name (``expert_set``) in their answers."""

from collections import OrderedDict
from dataclasses import dataclass, replace

from griffin import Pruning, Selection

# With a model of 13 billion parameters: room for about sixty sets of the paper's method, or six of griffin+.
BUDGET_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class KnownExperts:
    """A choice of neurons, and the settings that led to it last time."""

    selection: Selection
    pruning: Pruning


class RecentExperts:
    """The latest sets that fit; the newest one is always kept. Used on the event loop only."""

    def __init__(self, budget_bytes: int = BUDGET_BYTES) -> None:
        self._budget = budget_bytes
        self._sets: OrderedDict[str, KnownExperts] = OrderedDict()

    def remember(self, selection: Selection | None, pruning: Pruning) -> None:
        """Keep a set as the newest one, even if it is known already."""
        if selection is None:
            return
        self._sets.pop(selection.expert_set, None)
        self._sets[selection.expert_set] = KnownExperts(selection, replace(pruning, reuse=None, seed=None))
        self._fit()

    def find(self, expert_set: str) -> KnownExperts | None:
        """A known set, which becomes the newest one."""
        if expert_set in self._sets:
            self._sets.move_to_end(expert_set)
        return self._sets.get(expert_set)

    def _fit(self) -> None:
        """Drop the oldest sets until the rest fits."""
        room, latest = self._budget, next(reversed(self._sets))
        for name in reversed(list(self._sets)):
            room -= self._sets[name].selection.chosen.bytes
            if room < 0 and name != latest:
                del self._sets[name]
