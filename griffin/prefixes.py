"""Beginnings of recent prompts, so that a prompt that shares one need not read it again.

Kept are whole chunks of the prompt phase, and each starts where the full prompt's chunk would: what is computed
behind them is bit for bit what it would be without them. With the keys and values goes the statistic up to that
point, which is a running sum; so the neurons chosen are the same too.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """What reading one chunk of a prompt left, behind the chunks before it.

    keys_values: ``(layers, 2, G, chunk, S)``.
    energy_LF: the statistic's running sum up to the chunk's end.
    """

    keys_values: Tensor
    energy_LF: Tensor

    @property
    def bytes(self) -> int:
        return self.keys_values.nbytes + self.energy_LF.nbytes


class PrefixStore:
    """Chunks of recent prompts within a budget of memory; those not used for longest go first.

    Several engines on one device may share it, from threads of their own.

    queried_tokens, hit_tokens: of all prompts that were looked up, and those of them that were found.
    """

    def __init__(self, budget_bytes: int, chunk: int) -> None:
        """
        Args:
            budget_bytes: 0 keeps nothing.
            chunk: tokens in each chunk.
        """
        self.budget_bytes, self.chunk = budget_bytes, chunk
        self.bytes = self.queried_tokens = self.hit_tokens = 0
        self._chunks: OrderedDict[bytes, Chunk] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._chunks)

    def longest(self, ids: Sequence[int], limit: int) -> list[Chunk]:
        """The chunks that a prompt begins with, as many as are known, of its first ``limit`` tokens."""
        if not self.budget_bytes:
            return []
        names, found = self._names(ids[:limit]), []
        with self._lock:
            for name in names:
                if name not in self._chunks:
                    break
                found.append(self._chunks[name])
            self._use(names[: len(found)])
            self.queried_tokens += len(ids)
            self.hit_tokens += len(found) * self.chunk
        return found

    def knows(self, ids: Sequence[int]) -> bool:
        """Whether the last chunk of these tokens, a whole number of chunks, is there; or may not be kept."""
        return not self.budget_bytes or self._names(ids)[-1] in self._chunks

    def add(self, ids: Sequence[int], chunk: Chunk) -> None:
        """Keep the last chunk of these tokens, if the memory allows."""
        if chunk.bytes > self.budget_bytes:
            return
        names = self._names(ids)
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

    def _names(self, ids: Sequence[int]) -> list[bytes]:
        """A name for each whole chunk that stands for all tokens up to its end, equal for equal tokens only."""
        names, digest = [], hashlib.sha256()
        for start in range(0, len(ids) - self.chunk + 1, self.chunk):
            digest.update(b"".join(id.to_bytes(4, "little") for id in ids[start : start + self.chunk]))
            names.append(digest.digest())
        return names
