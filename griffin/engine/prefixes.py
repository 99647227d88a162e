"""Beginnings of recent prompts, so that a prompt that shares one need not read it again.

Kept are whole chunks of the prompt phase, and each starts where the full prompt's chunk would: what is computed
behind them is bit for bit what it would be without them. With the keys and values goes the statistic up to that
point, which is a running sum; so the neurons chosen are the same too.
"""

import hashlib
import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from griffin.method.statistic import Sums


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """What reading one chunk of a prompt left, behind the chunks before it.

    keys_values: ``(layers, 2, G, chunk, S)``.
    sums: the statistic up to the chunk's end.
    """

    keys_values: Tensor
    sums: Sums

    @property
    def bytes(self) -> int:
        return self.keys_values.nbytes + self.sums.bytes


class PrefixStore:
    """Chunks of recent prompts within a budget of memory; those not used for longest go first.

    Several engines on one device may share it, from threads of their own.
    """

    def __init__(self, budget_bytes: int, chunk: int) -> None:
        """
        Args:
            budget_bytes: 0 keeps nothing.
            chunk: tokens in each chunk.
        """
        self.budget_bytes, self.chunk = budget_bytes, chunk
        self.bytes = 0
        self._chunks: OrderedDict[bytes, Chunk] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._chunks)

    def names(self, ids: Sequence[int]) -> list[bytes]:
        """A name for each whole chunk that stands for all tokens up to its end, equal for equal tokens only."""
        if not self.budget_bytes:
            return []
        names, digest, tokens = [], hashlib.sha256(), array("q", ids)
        for end in range(self.chunk, len(ids) + 1, self.chunk):
            digest.update(tokens[end - self.chunk : end].tobytes())
            names.append(digest.digest())
        return names

    def longest(self, names: Sequence[bytes]) -> list[Chunk]:
        """The chunks of these names, from the first on, as many as are known."""
        found = []
        with self._lock:
            for name in names:
                if name not in self._chunks:
                    break
                found.append(self._chunks[name])
            self._use(names[: len(found)])
        return found

    def wants(self, name: bytes) -> bool:
        """Whether a chunk is not there yet."""
        return name not in self._chunks

    def add(self, names: Sequence[bytes], chunk: Chunk) -> None:
        """Keep a chunk, the last of these names, which are all from the prompt's first on, if the memory allows."""
        if chunk.bytes > self.budget_bytes:
            return
        with self._lock:
            if names[-1] in self._chunks:
                return
            self._chunks[names[-1]] = chunk
            self.bytes += chunk.bytes
            self._use(names)
            while self.bytes > self.budget_bytes:
                self.bytes -= self._chunks.popitem(last=False)[1].bytes

    def clear(self) -> None:
        with self._lock:
            self._chunks.clear()
            self.bytes = 0

    def _use(self, names: Sequence[bytes]) -> None:
        # The first chunk is the last to go: without it, none behind it can be found.
        for name in reversed(names):
            if name in self._chunks:
                self._chunks.move_to_end(name)
