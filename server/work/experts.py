"""Which neurons recent requests ran with, by the name that their answers gave it."""

from collections import OrderedDict
from dataclasses import dataclass, replace

from griffin import Pruning, Selection

# Of a model of 13 billion parameters, some sixty sets of the paper's method; of a small one, many more than anybody
# looks at.
BUDGET_BYTES = 64 * 2**20
# Of method griffin+, what stands for the removed neurons is far larger: it is held of the latest set, and of more if
# they fit here, as those of small models do.
CORRECTION_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class KnownExperts:
    """Neurons, and the choices that led to them the last time.

    is_whole: whether a request can run with them as they were; else their correction has been given up.
    """

    selection: Selection
    pruning: Pruning
    is_whole: bool = True


class RecentExperts:
    """The latest sets, as many as fit, the latest of them whole; used on the event loop alone."""

    def __init__(self, budget_bytes: int = BUDGET_BYTES, correction_bytes: int = CORRECTION_BYTES) -> None:
        self._budget, self._correction_budget = budget_bytes, correction_bytes
        self._sets: OrderedDict[str, KnownExperts] = OrderedDict()

    def remember(self, selection: Selection | None, pruning: Pruning) -> None:
        """As the latest, whether or not it was known."""
        if selection is None:
            return
        self._sets.pop(selection.expert_set, None)
        self._sets[selection.expert_set] = KnownExperts(selection, replace(pruning, reuse=None, seed=None))
        self._fit()

    def find(self, expert_set: str) -> KnownExperts | None:
        """One that is asked for is the latest again."""
        if expert_set in self._sets:
            self._sets.move_to_end(expert_set)
        return self._sets.get(expert_set)

    def _fit(self) -> None:
        """From the latest on, as long as there is room; first the corrections go, then whole sets."""
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
