"""A GGUF file's bytes, mapped into memory, and a cursor over its header. No length in the file is trusted."""

import mmap
from pathlib import Path
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from griffin.errors import LoadError

# The longest headers of current models have 20 MB. Reading a damaged file stops here.
HEADER_LIMIT = 2**26
LENGTH = Struct("<Q")


class MappedFile:
    """A file's bytes, read-only. They stay mapped until ``close``, or until nothing refers to them."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            OSError: it cannot be opened.
            ValueError: the file is empty.
        """
        self.path = path
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._bytes)

    def view(self, start: int, size: int) -> NDArray[np.uint8]:
        """Some of the bytes, [size], not copied. The file cannot be closed while the result is used."""
        return np.frombuffer(self._bytes, np.uint8, size, start)

    def cursor(self) -> "Cursor":
        """A cursor at the beginning."""
        return Cursor(self._bytes, self.path.name)

    def close(self) -> None:
        """Release the mapping.

        Raises:
            BufferError: a view of it is still used.
        """
        self._bytes.close()


class Cursor:
    """Reads values one after the other. It first checks that the value's bytes exist.

    In every method ``what`` names the value, for errors: "the key general.name".
    """

    def __init__(self, data: bytes | mmap.mmap, name: str) -> None:
        """
        Args:
            data: the whole file.
            name: the file's name, for errors.
        """
        self._data, self._name = data, name
        self._end = min(len(data), HEADER_LIMIT)
        self.position = 0

    def number(self, form: Struct, what: str) -> Any:
        """One number."""
        start = self._skip(form.size, what)
        return form.unpack_from(self._data, start)[0]

    def numbers(self, dtype: str, count: int, what: str) -> NDArray[Any]:
        """Several numbers, [count], not copied."""
        start = self._skip(count * np.dtype(dtype).itemsize, what)
        return np.frombuffer(self._data, dtype, count, start)

    def text(self, what: str) -> str:
        """A string, after its length."""
        return self.texts(1, what)[0]

    def texts(self, count: int, what: str) -> list[str]:
        """Several strings, each after its length."""
        self.require(count * LENGTH.size, what)
        # A vocabulary has 10^5 of them, so this loop calls no other function.
        data, end, position, length_at = self._data, self._end, self.position, LENGTH.unpack_from
        found: list[str] = []
        try:
            for _ in range(count):
                start = position + 8
                if start > end:
                    raise self._too_short(what)
                position = start + length_at(data, position)[0]
                if position > end:
                    raise self._too_short(what)
                found.append(data[start:position].decode())
        except UnicodeDecodeError:
            raise self.damaged(f"{what} holds text that is not UTF-8") from None
        self.position = position
        return found

    def require(self, size: int, what: str) -> None:
        """
        Raises:
            LoadError: fewer bytes are left.
        """
        if size > self._end - self.position:
            raise self._too_short(what)

    def damaged(self, why: str) -> LoadError:
        """The error for content that an intact file cannot have."""
        return LoadError(f"{self._name} is damaged: {why}; download or convert it again")

    def _skip(self, size: int, what: str) -> int:
        """Advance by ``size`` bytes, and return where they begin."""
        self.require(size, what)
        start = self.position
        self.position += size
        return start

    def _too_short(self, what: str) -> LoadError:
        if self._end < len(self._data):
            return self.damaged(f"its header, read up to {what}, is longer than {HEADER_LIMIT >> 20} MiB")
        return LoadError(
            f"{self._name} is not a complete GGUF file: {what} runs past the end of the file; is the download complete?"
        )


def shown(name: str) -> str:
    """A name from a file, for an error: one line, not too long."""
    text = name if name.isprintable() else repr(name)
    return text if len(text) <= 80 else text[:77] + "..."
