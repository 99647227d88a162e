"""Beginnings of recent prompts, so that a prompt with the same beginning need not read it again.

Whole chunks of the prompt phase are kept, cut at the same positions for every prompt. So everything after them is
computed with the same bits as without them. A chunk has keys and values, and the statistic up to its end. The statistic
is a running sum, so the chosen neurons are the same too.
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

    of_files: how many of the tokens came from files, not from memory.
    """

    tokens: int
    of_files: int


class PrefixStore:
    """Chunks of recent prompts within a memory budget. The least recently used chunk is dropped first.

    Chunks in files are read when they are first needed. Several engines on one device may share a store, each in its
    own thread.
    """

    def __init__(self, budget_bytes: int, chunk: int, files: PrefixFiles | None = None) -> None:
        """
        Args:
            budget_bytes: 0 keeps nothing.
            chunk: tokens in each chunk.
            files: keeps chunks after the process ends; None: chunks are kept in memory only.
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
        """The known chunks among these names, from the first one on, up to the first unknown one.

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
        """Whether a chunk is still missing."""
        return name not in self._chunks

    def add(self, names: Sequence[bytes], chunk: Chunk) -> None:
        """Keep a chunk if the memory allows.

        Args:
            names: the names of all chunks of the prompt up to this one.
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
        """Drop the chunks in memory. Files stay."""
        with self._lock:
            self._chunks.clear()
            self.bytes = 0

    def _use(self, names: Sequence[bytes]) -> None:
        # The first chunk is dropped last, because later ones cannot be found without it.
        for name in reversed(names):
            if name in self._chunks:
                self._chunks.move_to_end(name)


class SharedPrefix:
    """What the current prompt shares with recent ones, and what it leaves for later ones."""

    def __init__(self, store: PrefixStore, state: SequenceState) -> None:
        self._store, self._state = store, state
        # One for each whole chunk of the prompt.
        self._names: list[bytes] = []

    def resume(self, ids: Sequence[int], limit: int) -> Known:
        """Begin a prompt with what is known of its first ``limit`` tokens; returns how many are known."""
        self._names = self._store.names(ids)
        chunks, of_files = self._store.longest(self._names[: max(0, limit) // self._store.chunk])
        for chunk in chunks:
            self._state.cache.append(chunk.keys_values)
        if chunks:
            self._state.statistic.resume(chunks[-1].sums)
        return Known(len(chunks) * self._store.chunk, of_files * self._store.chunk)

    def remember(self, end: int) -> None:
        """Keep the chunk that ends at ``end``, if it is a whole chunk and there is room."""
        number, rest = divmod(end, self._store.chunk)
        if rest or number > len(self._names) or not self._store.wants(self._names[number - 1]):
            return
        try:
            keys_values = self._state.cache.copy(end - self._store.chunk, end)
            # Without the latest tokens' activations, which are much larger than the rest.
            chunk = Chunk(keys_values, self._state.statistic.sums(latest=False))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            # Keeping a chunk is optional: the request continues, and later requests get the memory.
            self._store.clear()
            return
        self._store.add(self._names[:number], chunk)
