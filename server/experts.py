"""Which neurons recent requests ran with, by the name that their answers gave it."""

from collections import OrderedDict

from griffin import Selection

# Of a model of 13 billion parameters, some sixty sets; of a small one, many more than anybody looks at.
BUDGET_BYTES = 64 * 2**20


class RecentExperts:
    """The latest sets, as many as fit; used on the event loop alone."""

    def __init__(self, budget_bytes: int = BUDGET_BYTES) -> None:
        self._budget, self._bytes = budget_bytes, 0
        self._sets: OrderedDict[str, Selection] = OrderedDict()

    def remember(self, selection: Selection | None) -> None:
        """As the latest, whether or not it was known."""
        if selection is None:
            return
        self._forget(selection.expert_set)
        self._sets[selection.expert_set] = selection
        self._bytes += selection.bytes
        while self._bytes > self._budget:
            self._forget(next(iter(self._sets)))

    def find(self, expert_set: str) -> Selection | None:
        return self._sets.get(expert_set)

    def _forget(self, expert_set: str) -> None:
        if known := self._sets.pop(expert_set, None):
            self._bytes -= known.bytes
