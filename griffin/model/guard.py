"""Notices when mapped files change while they are used, and refuses what was read from them.

A page that a file has lost reads as zeros instead of ending the process (``guard.c``). Without the compiled part, the
process ends with a bus error if a file is cut short while it is read.
"""

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from griffin.errors import LoadError, WeightsChanged
from griffin.library import compiled


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled part with its handler installed; None if it was not built."""
    path = compiled()
    try:
        library = ctypes.CDLL(str(path)) if path else None
        if library is None or library.griffin_guard():
            return None
        library.griffin_lost_pages.restype = ctypes.c_int64
    except (OSError, AttributeError):
        return None
    return library


def available() -> bool:
    """Whether lost pages are counted."""
    return _library() is not None


def lost_pages() -> int:
    """Number of pages of mapped files that could not be read since the process began."""
    library = _library()
    return int(library.griffin_lost_pages()) if library else 0


@contextmanager
def whole_while_read(source: str, files: Sequence[Path] = ()) -> Iterator[Callable[[], None]]:
    """A block that reads files. If they change during the block, that is its error, whatever else it raises.

    Args:
        files: the files that the block reads.

    Yields:
        A check that the block may call before it stores its result. It raises the same error.

    Raises:
        LoadError: one of these files, or any mapped file, was changed, removed or cut short during the block.
    """
    before, lost = [state(file.stat()) for file in files], lost_pages()

    def require_unchanged() -> None:
        if lost_pages() != lost or _states(files) != before:
            raise LoadError(f"'{source}' was changed while it was read; start again once it is written")

    try:
        yield require_unchanged
    except Exception:
        # Reading half of another file can fail in any way.
        require_unchanged()
        raise
    require_unchanged()


def _states(files: Sequence[Path]) -> list[tuple[int, int, int]] | None:
    """The states of all files; None if one is missing."""
    try:
        return [state(file.stat()) for file in files]
    except FileNotFoundError:
        return None


def state(found: os.stat_result) -> tuple[int, int, int]:
    """Values that change when a file is written to, even if its modification time is set back later."""
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


class Unchanged:
    """Remembers the state of a mapped file at its creation, and compares."""

    def __init__(self, path: Path, file: int) -> None:
        """
        Args:
            file: its descriptor, which must stay open as long as this object is used.
        """
        self._path, self._file = path, file
        self._state, self._lost = self._now(), lost_pages()

    def require(self) -> None:
        """
        Raises:
            WeightsChanged: the file has changed; nothing read since then can be trusted.
        """
        if self._now() != self._state or lost_pages() != self._lost:
            raise WeightsChanged(f"{self._path} was changed while it was served; start the server again")

    def _now(self) -> tuple[int, int]:
        # Not ctime: removing or renaming the file changes nothing that is mapped.
        found = os.fstat(self._file)
        return found.st_size, found.st_mtime_ns
