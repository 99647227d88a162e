"""The tensors of a GGUF file, all checked to end inside the file, and the types that can be read."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from griffin.errors import LoadError
from griffin.model.checkpoint.gguf_bytes import MappedFile, shown
from griffin.model.checkpoint.gguf_header import Header, TableRow


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor, as the file stores it.

    type: the format of its values.
    shape: shape of its values, slowest dimension first.
    row_bytes: bytes of one row; a row is the last dimension, and contains whole blocks of its type.
    start: position of its first byte in the file.
    """

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    row_bytes: int
    start: int
    file: MappedFile

    @property
    def path(self) -> Path:
        """The file that contains it: one of the parts of a split model."""
        return self.file.path

    @property
    def size(self) -> int:
        """Its bytes in the file."""
        return prod(self.shape[:-1]) * self.row_bytes

    @property
    def data(self) -> NDArray[np.uint8]:
        """Its bytes, [*shape[:-1], row_bytes], mapped and read-only. The file stays mapped while they are used."""
        return self.file.view(self.start, self.size).reshape(*self.shape[:-1], self.row_bytes)


def tensors_of(file: MappedFile, header: Header) -> dict[str, GgufTensor]:
    """All tensors of a file by name.

    Raises:
        LoadError: one of them has an unknown type, a shape that its type cannot have, or lies outside the file.
    """
    return {row.name: _tensor(file, header, row) for row in header.table}


def _tensor(file: MappedFile, header: Header, row: TableRow) -> GgufTensor:
    try:
        kind = GGMLQuantizationType(row.kind)
        block, block_bytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise LoadError(
            f"{file.path.name}: tensor {shown(row.name)} has the type {row.kind}, which is unknown; "
            "take another quantisation of the same model"
        ) from None
    called = f"{file.path.name}: tensor {shown(row.name)} ({kind.name})"
    if 0 in row.shape:
        raise LoadError(f"{called} holds no values: its shape is {row.shape}; download or convert the file again")
    if row.shape[-1] % block:
        raise LoadError(
            f"{called} has rows of {row.shape[-1]} values, not a multiple of {block}; convert the file again"
        )
    if row.offset % header.alignment:
        raise LoadError(
            f"{called} begins at {row.offset}, not a multiple of the file's alignment {header.alignment}; "
            "download or convert the file again"
        )
    found = GgufTensor(
        row.name, kind, row.shape, row.shape[-1] // block * block_bytes, header.data_start + row.offset, file
    )
    if found.start + found.size > len(file):
        raise LoadError(
            f"{file.path.name} is not a complete GGUF file: tensor {shown(row.name)} ({kind.name}) ends at byte "
            f"{found.start + found.size} of {len(file)}; is the download complete?"
        )
    return found


def require_readable_types(
    name: str, tensors: Iterable[GgufTensor], readable: Collection[GGMLQuantizationType]
) -> None:
    """
    Args:
        name: the model's file, for the error.
        readable: the types that the caller can read.

    Raises:
        LoadError: a tensor has another type; names the first one, its type, and how many more there are.
    """
    others = [tensor for tensor in tensors if tensor.type not in readable]
    if not others:
        return
    first, more = others[0], len(others) - 1
    also = f", as have {more} more tensors" if more > 1 else ", as has one more tensor" if more else ""
    or_plain = ", or make its weights plain numbers: --dtype bfloat16" if _has_numbers(others) else ""
    raise LoadError(
        f"{name}: tensor {shown(first.name)} has the type {first.type.name}, which cannot be read here{also}; "
        f"take another quantisation of the same model ({', '.join(kind.name for kind in sorted(readable))}){or_plain}"
    )


def _has_numbers(tensors: Iterable[GgufTensor]) -> bool:
    """Whether the gguf package can turn all of them into plain numbers."""
    try:
        for kind in {tensor.type for tensor in tensors}:
            gguf.dequantize(np.zeros(GGML_QUANT_SIZES[kind][1], np.uint8), kind)
    except NotImplementedError:
        return False
    return True
