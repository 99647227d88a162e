"""The header of a GGUF file: its keys and values, then its table of tensors. Format: ggml, docs/gguf.md."""

from dataclasses import dataclass
from struct import Struct
from typing import Any

from griffin.errors import LoadError
from griffin.model.checkpoint.gguf_bytes import Cursor, MappedFile, shown

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = "general.alignment"
DEFAULT_ALIGNMENT = 32
# No real model comes near these: damaged counts are found before anything is built from them.
MOST_KEYS = MOST_TENSORS = 2**16
MOST_DIMENSIONS = 4
MOST_NESTED = 4

U32, U64 = Struct("<I"), Struct("<Q")
BOOL, STRING, ARRAY = 7, 8, 9
# Value types by their names in numpy.
NUMBERS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", BOOL: "<u1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
# The fewest bytes of a value: those of a number, of a string's length, of an array's type and length.
SMALLEST = {**{kind: int(name[2]) for kind, name in NUMBERS.items()}, STRING: 8, ARRAY: 12}


@dataclass(frozen=True, slots=True)
class TableRow:
    """A tensor as the file's table describes it; nothing was compared with the file's size yet.

    shape: slowest dimension first, as in numpy. The file has the reverse order.
    kind: the number of its type.
    offset: distance from the beginning of the tensors' data.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """All that precedes the data of the tensors.

    metadata: values by key; arrays are lists, nested where the file's are.
    alignment: offsets of tensors are multiples of it.
    data_start: where the tensors' data begins.
    """

    metadata: dict[str, Any]
    table: list[TableRow]
    alignment: int
    data_start: int


def read_header(file: MappedFile) -> Header:
    """Read a file's header.

    Raises:
        LoadError: it is cut short or damaged, or of another version; names the file and the key or tensor.
    """
    cursor = file.cursor()
    cursor.numbers("<u1", len(MAGIC), "the file's beginning")
    _require_version(cursor.number(U32, "the format's version"), file.path.name)
    tensors = _count(cursor, "tensors", MOST_TENSORS)
    keys = _count(cursor, "keys", MOST_KEYS)
    metadata = _metadata(cursor, keys)
    table = _table(cursor, tensors)
    alignment = _alignment(cursor, metadata)
    return Header(metadata, table, alignment, -(-cursor.position // alignment) * alignment)


def _require_version(version: int, name: str) -> None:
    if version and not version & 0xFFFF:
        raise LoadError(f"{name} is a GGUF file for big-endian machines; take or convert one that is little-endian")
    if version not in VERSIONS:
        raise LoadError(
            f"{name} has version {version} of the GGUF format, and {VERSIONS[0]} and {VERSIONS[1]} are read here; "
            "convert the model again"
        )


def _count(cursor: Cursor, what: str, most: int) -> int:
    count = int(cursor.number(U64, f"the number of {what}"))
    if count > most:
        raise cursor.damaged(f"it claims to have {count} {what}")
    return count


def _metadata(cursor: Cursor, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number in range(1, count + 1):
        key = cursor.text(f"the name of its key {number} of {count}")
        if key in found:
            raise cursor.damaged(f"its key {shown(key)} is there twice")
        what = f"its key {shown(key)}"
        found[key] = _value(cursor, int(cursor.number(U32, what)), what)
    return found


def _value(cursor: Cursor, kind: int, what: str, depth: int = 0) -> Any:
    if kind == STRING:
        return cursor.text(what)
    if kind == ARRAY:
        return _array(cursor, what, depth + 1)
    return _numbers(cursor, kind, 1, what)[0]


def _array(cursor: Cursor, what: str, depth: int) -> list[Any]:
    if depth > MOST_NESTED:
        raise cursor.damaged(f"{what} is an array of arrays, more than {MOST_NESTED} deep")
    kind, count = int(cursor.number(U32, what)), int(cursor.number(U64, what))
    # An unknown type is refused below.
    cursor.require(count * SMALLEST.get(kind, 1), what)
    if kind == STRING:
        return cursor.texts(count, what)
    if kind == ARRAY:
        return [_array(cursor, what, depth + 1) for _ in range(count)]
    return _numbers(cursor, kind, count, what)


def _numbers(cursor: Cursor, kind: int, count: int, what: str) -> list[Any]:
    if kind not in NUMBERS:
        raise cursor.damaged(f"{what} has the value type {kind}, which the format does not know")
    values = cursor.numbers(NUMBERS[kind], count, what)
    return list((values != 0 if kind == BOOL else values).tolist())


def _table(cursor: Cursor, count: int) -> list[TableRow]:
    found: dict[str, TableRow] = {}
    for number in range(1, count + 1):
        name = cursor.text(f"the name of its tensor {number} of {count}")
        if name in found:
            raise cursor.damaged(f"its tensor {shown(name)} is there twice")
        found[name] = _row(cursor, name)
    return list(found.values())


def _row(cursor: Cursor, name: str) -> TableRow:
    what = f"the table's entry of tensor {shown(name)}"
    dimensions = int(cursor.number(U32, what))
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise cursor.damaged(f"its tensor {shown(name)} has {dimensions} dimensions, not 1 to {MOST_DIMENSIONS}")
    shape = tuple(reversed(cursor.numbers("<u8", dimensions, what).tolist()))
    return TableRow(name, shape, int(cursor.number(U32, what)), int(cursor.number(U64, what)))


def _alignment(cursor: Cursor, metadata: dict[str, Any]) -> int:
    alignment = metadata.get(ALIGNMENT, DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise cursor.damaged(f"its key {ALIGNMENT} is {shown(str(alignment))}, but must be a power of two")
    return alignment
