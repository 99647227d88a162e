"""Files that are mapped into memory and change while they are used: this is noticed, and what was read is refused.

A page that a file no longer has reads as zeros instead of ending the process (``guard.c``). Without the compiled part,
a file that is cut short while it is read ends the process with a bus error.
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
    """The compiled part, with its handler in place; None where it was not built."""
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
    """How many pages of mapped files could not be read since the process began."""
    library = _library()
    return int(library.griffin_lost_pages()) if library else 0


@contextmanager
def whole_while_read(source: str, files: Sequence[Path] = ()) -> Iterator[Callable[[], None]]:
    """A block that reads files. If they change meanwhile, that is its error, whatever else it raises.

    Args:
        files: what the block reads.

    Yields:
        A check that the block may call before it keeps what it made. It raises the same error.

    Raises:
        LoadError: one of them, or any that is mapped, was changed, removed or cut short while the block ran.
    """
    before, lost = [state(file.stat()) for file in files], lost_pages()

    def require_unchanged() -> None:
        if lost_pages() != lost or _states(files) != before:
            raise LoadError(f"'{source}' was changed while it was read; start again once it is written")

    try:
        yield require_unchanged
    except Exception:
        # A reader of half of another file fails in any way.
        require_unchanged()
        raise
    require_unchanged()


def _states(files: Sequence[Path]) -> list[tuple[int, int, int]] | None:
    """Of all files; None if one of them is gone."""
    try:
        return [state(file.stat()) for file in files]
    except FileNotFoundError:
        return None


def state(found: os.stat_result) -> tuple[int, int, int]:
    """Values that change when a file is written to, even if its time of writing is set back later."""
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


class Unchanged:
    """Remembers a mapped file's state when it was made, and compares."""

    def __init__(self, path: Path, file: int) -> None:
        """
        Args:
            file: its descriptor, open as long as this object is used.
        """
        self._path, self._file = path, file
        self._state, self._lost = self._now(), lost_pages()

    def require(self) -> None:
        """
        Raises:
            WeightsChanged: it is not the same file any more; nothing that was read since can be trusted.
        """
        if self._now() != self._state or lost_pages() != self._lost:
            raise WeightsChanged(f"{self._path} was changed while it was served; start the server again")

    def _now(self) -> tuple[int, int]:
        # Not ctime: removing or renaming the file changes nothing that is mapped.
        found = os.fstat(self._file)
        return found.st_size, found.st_mtime_ns
