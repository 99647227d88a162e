"""Beginnings of recent prompts, so that a prompt that shares one need not read it again.

Whole chunks of the prompt phase are kept, each cut where any prompt's chunk would be. So everything after them is
computed bit for bit as it would be without them. A chunk has keys and values, and the statistic up to its end, which is
a running sum; so the neurons chosen are the same too.
"""

import hashlib
import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from griffin.engine.prefix_chunk import Chunk
from griffin.engine.prefix_files import PrefixFiles
from griffin.engine.state import SequenceState
from griffin.errors import is_out_of_memory


class Known(NamedTuple):
    """What is known of a prompt's beginning, in tokens.

    of_files: how many of them came from files, not from memory.
    """

    tokens: int
    of_files: int


class PrefixStore:
    """Chunks of recent prompts within a budget of memory. The chunk that was not used for longest goes first.

    What files hold is read from there when it is first needed. Several engines on one device may share a store, each in
    a thread of its own.
    """

    def __init__(self, budget_bytes: int, chunk: int, files: PrefixFiles | None = None) -> None:
        """
        Args:
            budget_bytes: 0 keeps nothing.
            chunk: tokens in each chunk.
            files: where chunks are kept beyond the process; None keeps them in memory only.
        """
        self.budget_bytes, self.chunk = budget_bytes, chunk
        self._files = files
        self.bytes = 0
        self._chunks: OrderedDict[bytes, Chunk] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._chunks)

    def names(self, ids: Sequence[int]) -> list[bytes]:
        """A name for each whole chunk: equal names mean that all tokens up to the chunk's end are equal."""
        if not self.budget_bytes:
            return []
        names, digest, tokens = [], hashlib.sha256(), array("q", ids)
        for end in range(self.chunk, len(ids) + 1, self.chunk):
            digest.update(tokens[end - self.chunk : end].tobytes())
            names.append(digest.digest())
        return names

    def longest(self, names: Sequence[bytes]) -> tuple[list[Chunk], int]:
        """The known chunks among these names, from the first on, up to one that is not known.

        Returns:
            The chunks, and how many of them came from files.
        """
        found: list[Chunk] = []
        of_files = 0
        for name in names:
            with self._lock:
                chunk = self._chunks.get(name)
            if chunk is None and self._files is not None and (chunk := self._files.get(name)) is not None:
                of_files += 1
                self._keep(names[: len(found) + 1], chunk)
            if chunk is None:
                break
            found.append(chunk)
        with self._lock:
            self._use(names[: len(found)])
        if self._files is not None:
            self._files.use(names[: len(found)])
        return found, of_files

    def wants(self, name: bytes) -> bool:
        """Whether a chunk is not there yet."""
        return name not in self._chunks

    def add(self, names: Sequence[bytes], chunk: Chunk) -> None:
        """Keep a chunk if the memory allows.

        Args:
            names: of all chunks of the prompt up to this one.
        """
        self._keep(names, chunk)
        if self._files is not None:
            self._files.add(names[-1], chunk)

    def _keep(self, names: Sequence[bytes], chunk: Chunk) -> None:
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
        """Forget what memory holds. Files stay."""
        with self._lock:
            self._chunks.clear()
            self.bytes = 0

    def _use(self, names: Sequence[bytes]) -> None:
        # The first chunk is the last to go: without it, no later one can be found.
        for name in reversed(names):
            if name in self._chunks:
                self._chunks.move_to_end(name)


class SharedPrefix:
    """What the prompt at hand has in common with recent ones, and what it leaves for later ones."""

    def __init__(self, store: PrefixStore, state: SequenceState) -> None:
        self._store, self._state = store, state
        # One for each whole chunk of the prompt.
        self._names: list[bytes] = []

    def resume(self, ids: Sequence[int], limit: int) -> Known:
        """Begin a prompt with what is known of its first ``limit`` tokens; returns how much that is."""
        self._names = self._store.names(ids)
        chunks, of_files = self._store.longest(self._names[: max(0, limit) // self._store.chunk])
        for chunk in chunks:
            self._state.cache.append(chunk.keys_values)
        if chunks:
            self._state.statistic.resume(chunks[-1].sums)
        return Known(len(chunks) * self._store.chunk, of_files * self._store.chunk)

    def remember(self, end: int) -> None:
        """Keep the chunk that ends there, if it is a whole one and there is room."""
        number, rest = divmod(end, self._store.chunk)
        if rest or number > len(self._names) or not self._store.wants(self._names[number - 1]):
            return
        try:
            keys_values = self._state.cache.copy(end - self._store.chunk, end)
            # Without the latest tokens' activations, which are larger than everything else about a token.
            chunk = Chunk(keys_values, self._state.statistic.sums(latest=False))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            # Keeping it is a convenience. The request goes on, and later requests have the room.
            self._store.clear()
            return
        self._store.add(self._names[:number], chunk)
