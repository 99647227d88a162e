"""A GGUF file with all its parts: metadata by key, tensors by name. Nothing is dequantised here."""

import glob
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType

from griffin.errors import LoadError
from griffin.model.checkpoint.gguf_bytes import MappedFile, shown
from griffin.model.checkpoint.gguf_header import MAGIC, read_header
from griffin.model.checkpoint.gguf_tensors import GgufTensor, require_readable_types, tensors_of
from griffin.model.checkpoint.refusals import listed, refuse_file

PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})")
MOST_PARTS = 99_999
# Values of general.type for files that do not contain a whole model.
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

    metadata: values by key; lists are Python lists.
    tensors: mapped from the files; all of them end inside their file.
    files: all parts. They stay mapped until ``close``, or until nothing refers to their tensors.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    files: Sequence[MappedFile] = ()

    @property
    def architecture(self) -> str:
        """llama.cpp's name for the model's type."""
        return str(self.metadata["general.architecture"])

    def own(self, key: str) -> Any:
        """A value under the architecture's name; None if it is missing."""
        return self.metadata.get(f"{self.architecture}.{key}")

    def require_readable(self, types: Collection[GGMLQuantizationType]) -> None:
        """
        Raises:
            LoadError: a tensor has another type than these; see ``require_readable_types``.
        """
        require_readable_types(self.path.name, self.tensors.values(), types)

    def close(self) -> None:
        """Release the files, after everything needed of the tensors was copied.

        Raises:
            BufferError: the data of a tensor is still used.
        """
        for file in self.files:
            file.close()


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do, whatever its name is."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read(path: Path) -> GgufFile:
    """Read a model's file. If it was split, read all parts; they must be in the same folder.

    Raises:
        LoadError: it is damaged, a part is missing, or it contains no model; names the file.
    """
    first, metadata, tensors = _open(path)
    _require_model(path, metadata)
    files = [first]
    for place in _other_parts(path, metadata):
        part, _, more = _open(place)
        if twice := [name for name in more if name in tensors]:
            raise LoadError(f"{place.name} holds the tensor {shown(twice[0])}, and so does another part of the model")
        tensors |= more
        files.append(part)
    expected = _whole_number(path, metadata, "split.tensors.count")
    if expected and len(tensors) != expected:
        raise LoadError(f"{path.name} and its parts hold {len(tensors)} tensors, but should hold {expected}")
    if not tensors:
        raise LoadError(f"{path.name} holds no tensors: it is a vocabulary without a model")
    return GgufFile(path, metadata, tensors, files)


def parts(path: Path) -> list[Path]:
    """The existing parts of a split model's file; only the file itself if it was not split."""
    name = PART.fullmatch(path.stem)
    found = sorted(path.parent.glob(f"{glob.escape(name[1])}-?????-of-{name[3]}{path.suffix}")) if name else []
    return found or [path]


def _open(path: Path) -> tuple[MappedFile, dict[str, Any], dict[str, GgufTensor]]:
    """A file, its keys and its tensors."""
    try:
        if not is_gguf(path):
            refuse_file(path, str(path))
        file = MappedFile(path)
    except (OSError, ValueError) as error:
        raise LoadError(f"{path.name} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    header = read_header(file)
    return file, header.metadata, tensors_of(file, header)


def _require_model(path: Path, metadata: Mapping[str, Any]) -> None:
    if "general.architecture" not in metadata:
        raise LoadError(f"{path.name} does not say what it is: general.architecture is missing")
    if not isinstance(metadata["general.architecture"], str):
        raise LoadError(f"{path.name} does not say what it is: general.architecture is not a text")
    kind = OTHER_TYPES.get(str(metadata.get("general.type")))
    kind = kind or OTHER_ARCHITECTURES.get(str(metadata["general.architecture"]))
    if kind:
        raise LoadError(f"{path.name} is {kind}, not a language model; name the model's own file")


def _other_parts(path: Path, metadata: Mapping[str, Any]) -> list[Path]:
    """All parts after the first; ``path`` is the first."""
    count = _whole_number(path, metadata, "split.count")
    if count < 2:
        return []
    if count > MOST_PARTS:
        raise LoadError(f"{path.name} claims to be one of {count} parts of a model; download it again")
    name = PART.fullmatch(path.stem)
    if name is None:
        raise LoadError(
            f"{path.name} is one of {count} parts of a model, but is not named so; "
            "give all parts their names back (NAME-00001-of-0000N.gguf), or join them: llama-gguf-split --merge"
        )
    parts = [path.with_name(f"{name[1]}-{number:05}-of-{count:05}{path.suffix}") for number in range(1, count + 1)]
    if absent := [part.name for part in parts if not part.is_file()]:
        raise LoadError(f"{path.name} is one of {count} parts, and {listed(absent)} is not beside it; download all")
    if _whole_number(path, metadata, "split.no"):
        raise LoadError(f"{path.name} is not the first part of the model; name {parts[0].name}")
    return parts[1:]


def _whole_number(path: Path, metadata: Mapping[str, Any], key: str) -> int:
    """A key's value; 0 if it is missing."""
    value = metadata.get(key, 0)
    if type(value) is not int or value < 0:
        raise LoadError(f"{path.name}: its key {key} is {shown(str(value))}, but must be a whole number")
    return value
