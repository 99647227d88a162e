"""Which neurons recent requests ran with, by the name that their answers gave it."""

from collections import OrderedDict
from dataclasses import dataclass, replace

from griffin import Pruning, Selection

# Room for some sixty sets of the paper's method with a model of 13 billion parameters; far more with a small one.
BUDGET_BYTES = 64 * 2**20
# The corrections of method griffin+ are far larger. The latest set keeps its correction in any case, and others as long
# as they fit here, as those of small models do.
CORRECTION_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class KnownExperts:
    """Neurons, and the choices that led to them the last time.

    is_whole: whether a request can run with them again. If not, their correction was dropped to save memory.
    """

    selection: Selection
    pruning: Pruning
    is_whole: bool = True


class RecentExperts:
    """The latest sets, as many as fit. The latest one is whole. Used on the event loop only."""

    def __init__(self, budget_bytes: int = BUDGET_BYTES, correction_bytes: int = CORRECTION_BYTES) -> None:
        self._budget, self._correction_budget = budget_bytes, correction_bytes
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
        """Drop the oldest corrections that have no room, and then the oldest sets."""
        room, correction_room, latest = self._budget, self._correction_budget, next(reversed(self._sets))
        for name in reversed(list(self._sets)):
            known = self._sets[name]
            correction = known.selection.kept.correction
            if correction is not None:
                correction_room -= correction.bytes
                if correction_room < 0 and name != latest:
                    # The rest of the compensation is of no use without it.
                    known = self._sets[name] = replace(known, selection=known.selection.indices(), is_whole=False)
            room -= known.selection.kept.bytes
            if room < 0:
                del self._sets[name]
