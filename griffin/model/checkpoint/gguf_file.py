"""A GGUF file, or all of its parts: metadata by key, tensors by name. Nothing is dequantised here."""

import glob
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFReader, ReaderTensor

from griffin.errors import LoadError
from griffin.model.checkpoint.refusals import first_words, listed, refuse_file

MAGIC = b"GGUF"
PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})")
# Values of general.type for files that do not hold a whole model.
OTHER_TYPES = {
    "adapter": "a LoRA adapter",
    "mmproj": "the vision or audio part of a model",
    "imatrix": "an importance matrix, which quantising uses",
    "vocab": "a vocabulary without a model",
}
OTHER_ARCHITECTURES = {
    "clip": "the vision or audio part of a model",
    "controlvector": "a control vector",
    "imatrix": "an importance matrix, which quantising uses",
}


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The content of a file, with its parts joined.

    metadata: all keys but those of the format itself; lists are Python lists.
    tensors: as the reader gives them, mapped from the file.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, ReaderTensor]

    @property
    def architecture(self) -> str:
        """llama.cpp's name for the model's type."""
        return str(self.metadata["general.architecture"])

    def own(self, key: str) -> Any:
        """A value under the architecture's name; None if it is not there."""
        return self.metadata.get(f"{self.architecture}.{key}")


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do, whatever it is called."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read(path: Path) -> GgufFile:
    """Read a model's file; if it was split, all parts, which lie beside the first.

    Raises:
        LoadError: it is damaged, a part is missing, or it holds no model; names the file.
    """
    if not is_gguf(path):
        refuse_file(path, str(path))
    first = _open(path)
    metadata = {name: field.contents() for name, field in first.fields.items() if not name.startswith("GGUF.")}
    _require_model(path, metadata)
    tensors = {tensor.name: tensor for tensor in first.tensors}
    for part in _other_parts(path, metadata):
        tensors |= {tensor.name: tensor for tensor in _open(part).tensors}
    expected = metadata.get("split.tensors.count")
    if expected and len(tensors) != expected:
        raise LoadError(f"{path.name} and its parts hold {len(tensors)} tensors, and should hold {expected}")
    if not tensors:
        raise LoadError(f"{path.name} holds no tensors: it is a vocabulary without a model")
    return GgufFile(path, metadata, tensors)


def parts(path: Path) -> list[Path]:
    """The files that a model's file was split into, those that are there; the file alone if it was not split."""
    name = PART.fullmatch(path.stem)
    found = sorted(path.parent.glob(f"{glob.escape(name[1])}-?????-of-{name[3]}{path.suffix}")) if name else []
    return found or [path]


def _open(path: Path) -> GGUFReader:
    try:
        return GGUFReader(path)
    except Exception as error:
        # The reader trusts every length that it finds. Its errors on damaged files are no messages for people.
        raise LoadError(
            f"{path.name} is no whole GGUF file ({first_words(error)}); is the download complete?"
        ) from error


def _require_model(path: Path, metadata: Mapping[str, Any]) -> None:
    if "general.architecture" not in metadata:
        raise LoadError(f"{path.name} does not say what it is: general.architecture is missing")
    kind = OTHER_TYPES.get(str(metadata.get("general.type")))
    kind = kind or OTHER_ARCHITECTURES.get(str(metadata["general.architecture"]))
    if kind:
        raise LoadError(f"{path.name} is {kind}, not a language model; name the model's own file")


def _other_parts(path: Path, metadata: Mapping[str, Any]) -> list[Path]:
    """All parts after the first; ``path`` is the first."""
    count = int(metadata.get("split.count") or 0)
    if count < 2:
        return []
    name = PART.fullmatch(path.stem)
    if name is None:
        raise LoadError(
            f"{path.name} is one of {count} parts of a model, but is not named so; "
            "give all parts their names back (NAME-00001-of-0000N.gguf), or join them: llama-gguf-split --merge"
        )
    parts = [path.with_name(f"{name[1]}-{number:05}-of-{count:05}{path.suffix}") for number in range(1, count + 1)]
    if int(metadata.get("split.no") or 0):
        raise LoadError(f"{path.name} is not the first part of the model; name {parts[0].name}")
    if absent := [part.name for part in parts if not part.is_file()]:
        raise LoadError(f"{path.name} is one of {count} parts, and {listed(absent)} is not beside it; download all")
    return parts[1:]
