"""Chunks of recent prompts in files, so that a chat goes on after a restart without reading its history again.

A chunk is one file, named by the hash of all tokens up to its end. It is written under another name and then renamed,
so it is complete or missing. Its checksum shows damage. The folder is the only index: files are read when they are
needed, and several processes may share them.
"""

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from griffin.engine.prefix_chunk import Chunk
from griffin.errors import LoadError

logger = logging.getLogger("griffin")

# Raise it when the content of files changes. Older files are then never read, and are removed in time.
FORMAT = 1
ENDING = ".safetensors"
# Only folders and files with these names are ever removed, because the user's folder may hold other files.
FOLDER = "prefixes-"
OURS = re.compile(r"(probe|[0-9a-f]+)(-[0-9a-f-]+\.partial|\.safetensors)")
# The ending of a file that is being written. A file of this age was left by a process that has ended.
PARTIAL, STALE_S = ".partial", 600
# The least time between two lines in the log about files that cannot be written or read.
REPEAT_S = 60


@dataclass(eq=False)
class _Pending:
    """A chunk that waits to be written. ready: on CUDA, the event after which its values are complete."""

    name: bytes
    chunk: Chunk
    ready: torch.cuda.Event | None = field(default=None)

    @classmethod
    def of(cls, name: bytes, chunk: Chunk) -> "_Pending":
        if not chunk.keys_values.is_cuda:
            return cls(name, chunk)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(chunk.keys_values.device))
        return cls(name, chunk, event)

    def on_host(self) -> dict[str, Tensor]:
        """Its tensors in host memory. On CUDA they are copied while the engine works."""
        tensors = self.chunk.tensors
        if self.ready is None:
            return tensors
        self.ready.synchronize()
        beside = torch.cuda.Stream(self.chunk.keys_values.device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(beside):
            return {name: values.cpu() for name, values in tensors.items()}


class PrefixFiles:
    """A folder of chunks within a budget of disk space. The least recently used chunk is removed first.

    A separate thread writes chunks in the order in which they come. All models share the budget, and each model has its
    own folder.
    """

    def __init__(self, folder: Path, budget_bytes: int, pending_bytes: int, model: str) -> None:
        """
        Args:
            pending_bytes: the most bytes of chunks that wait to be written. Further chunks are dropped.
            model: names everything that the numbers in a chunk depend on: weights, formats, the size of chunks.

        Raises:
            LoadError: the folder cannot be made or written to.
        """
        self._root, self._budget_bytes, self._pending_bytes = folder, budget_bytes, pending_bytes
        made_of = f"{FORMAT} {torch.__version__} {model}"
        self._folder = folder / (FOLDER + hashlib.blake2b(made_of.encode(), digest_size=8).hexdigest())
        try:
            self._probe()
        except OSError as error:
            # A full disk is no error, because it may have room later.
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise LoadError(f"prefixes cannot be kept in {folder}: {error.strerror or error}") from None
        self._waiting: deque[_Pending] = deque()
        self._waiting_bytes, self._closed, self._complained = 0, False, float("-inf")
        self._changed = threading.Condition()
        self._writer = threading.Thread(target=self._write_all, name="prefix-files", daemon=True)
        self._writer.start()
        found = list(_files(self._root))
        mine = sum(file.path.parent == self._folder for file in found)
        logger.info("%s: %d chunks of prompts of this model, %.0f MiB in all", folder, mine, _total(found) / 2**20)

    def get(self, name: bytes) -> Chunk | None:
        """A chunk by its name; None if there is none or it is damaged. A damaged one is removed."""
        path = self._path(name)
        try:
            return _read(path, name)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._complain(f"{path.name} cannot be read: {error.strerror or error}")
            return None
        except (ValueError, KeyError, SafetensorError) as error:
            logger.warning("%s is damaged (%s) and is removed; the prompt is read again", path, error)
            with suppress(OSError):
                path.unlink()
            return None

    def use(self, names: Sequence[bytes]) -> None:
        """Make these the most recently used chunks, the first of them most: later ones cannot be found without it."""
        now = time.time_ns()
        for number, name in enumerate(reversed(names)):
            try:
                os.utime(self._path(name), ns=(now + number, now + number))
            except OSError:
                continue

    def add(self, name: bytes, chunk: Chunk) -> None:
        """Queue a chunk to be written. It is dropped if too many bytes wait already."""
        with self._changed:
            if self._closed:
                return
            if self._waiting_bytes + chunk.bytes > self._pending_bytes:
                self._complain("the disk is slower than the prompts")
                return
            self._waiting.append(_Pending.of(name, chunk))
            self._waiting_bytes += chunk.bytes
            self._changed.notify()

    def close(self, timeout_s: float) -> None:
        """Write the waiting chunks, for at most this time. No chunk can be added any more."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._writer.join(timeout_s)
        if self._writer.is_alive():
            logger.warning("%s: %d chunks of prompts were not written in time", self._root, len(self._waiting))

    def _path(self, name: bytes) -> Path:
        return self._folder / f"{name.hex()}{ENDING}"

    def _make_folder(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _probe(self) -> None:
        self._make_folder()
        place = self._folder / f"probe-{secrets.token_hex(4)}{PARTIAL}"
        _new_file(place).close()
        place.unlink()

    def _write_all(self) -> None:
        while (pending := self._next()) is not None:
            try:
                self._write(pending)
            except Exception as error:
                # Most likely the disk is full. The server goes on without the file.
                self._complain(getattr(error, "strerror", None) or error)
            with self._changed:
                self._waiting_bytes -= pending.chunk.bytes

    def _next(self) -> _Pending | None:
        """The chunk that has waited longest; None if no more will come."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            return self._waiting.popleft() if self._waiting else None

    def _write(self, pending: _Pending) -> None:
        path = self._path(pending.name)
        if path.exists():
            return
        if pending.chunk.bytes > self._budget_bytes:
            self._complain("a chunk is larger than the disk space that they may take")
            return
        content = _content(pending.on_host(), pending.name, pending.chunk.sums.tokens)
        partial = path.with_name(f"{path.stem}-{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")
        self._make_room(len(content))
        try:
            self._make_folder()
            with _new_file(partial) as file:
                file.write(content)
            # Not forced to the disk, because the checksum shows a file that a power cut left incomplete.
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _make_room(self, wanted: int) -> None:
        """Remove the least recently used files until ``wanted`` more bytes fit into the budget."""
        found = sorted(_files(self._root), key=lambda file: file.used_ns)
        total = _total(found) + wanted
        stale_ns = time.time_ns() - STALE_S * 10**9
        for file in found:
            left_over = file.path.suffix == PARTIAL and file.used_ns < stale_ns
            if left_over or (total > self._budget_bytes and file.path.suffix == ENDING):
                file.path.unlink(missing_ok=True)
                total -= file.bytes
        self._remove_empty_folders()

    def _remove_empty_folders(self) -> None:
        for folder in self._root.glob(f"{FOLDER}*/"):
            # rmdir fails if a folder is not empty.
            if folder != self._folder:
                with suppress(OSError):
                    folder.rmdir()

    def _complain(self, why: object) -> None:
        if time.monotonic() - self._complained >= REPEAT_S:
            self._complained = time.monotonic()
            logger.warning("%s: chunks of prompts are not kept or not found (%s); the server goes on", self._root, why)


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    bytes: int
    used_ns: int


def _files(root: Path) -> Iterator[_File]:
    """All files of all models, including those that are being written."""
    for path in root.glob(f"{FOLDER}*/*"):
        try:
            found = path.stat()
        except OSError:
            # Another process has just removed it.
            continue
        if OURS.fullmatch(path.name):
            yield _File(path, found.st_size, found.st_mtime_ns)


def _total(files: Iterable[_File]) -> int:
    return sum(file.bytes for file in files)


def _new_file(path: Path) -> BinaryIO:
    """A file that only its owner may read."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _content(tensors: Mapping[str, Tensor], name: bytes, tokens: int) -> bytes:
    about = {"name": name.hex(), "tokens": str(tokens)}
    whole = {key: values.contiguous() for key, values in tensors.items()}
    return save(whole, {**about, "checksum": _checksum(whole, about)})


def _checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    digest = hashlib.blake2b(repr(sorted(about.items())).encode(), digest_size=16)
    for key in sorted(tensors):
        values = tensors[key]
        digest.update(f"{key} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path: Path, name: bytes) -> Chunk:
    """
    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read.
        ValueError, KeyError, SafetensorError: it is damaged.
    """
    content = path.read_bytes()
    tensors = load(content)
    # The library's reader does not return a file's metadata.
    about = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    expected = about.pop("checksum")
    if about["name"] != name.hex() or _checksum(tensors, about) != expected:
        raise ValueError("its checksum is another one")
    return Chunk.of(tensors, int(about["tokens"]))
