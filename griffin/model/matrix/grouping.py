"""Formats with codes in groups: their kinds, and the place of each part in a record."""

import ctypes
from dataclasses import dataclass

# A superblock: so many numbers share the second level of scales.
SUPER = 256
# Bytes that a processor reads at once.
LINE = 64
# A matrix with groups across rows consists of tiles of so many columns.
COLUMN_UNIT = 64
# Numbers in a block, the smallest part of a row with groups along it.
BLOCK = 32


@dataclass(frozen=True, slots=True)
class Grouping:
    """A number is scale (code - zero) + minimum; ``size`` neighbours share scale and minimum.

    bits: bits of a code: 4, 6 or 8.
    size: 16 or 32.
    two_levels: scales and minimums are int8, times a float16 for each 256 numbers. Otherwise they are float16.
    minimums: whether there are minimums.
    zero: the code of the number 0 if there are no minimums.
    """

    bits: int
    size: int = 32
    two_levels: bool = False
    minimums: bool = False
    zero: int = 0

    @property
    def name(self) -> str:
        """The format's name, as the C step knows it."""
        return f"grouped{self.bits}"

    @property
    def scale_bytes(self) -> int:
        return 1 if self.two_levels else 2

    @property
    def unit(self) -> int:
        """The number of values along groups must be a multiple of this."""
        return SUPER if self.two_levels else BLOCK

    def half_bytes(self, numbers: int) -> int:
        """Bytes of the float16 factors of so many numbers along groups."""
        return numbers // (SUPER if self.two_levels else self.size) * 2 * (1 + self.minimums)

    def code_bytes(self, numbers: int) -> int:
        return numbers * self.bits // 8


class Layout(ctypes.Structure):
    """Where the parts of a record are, in bytes: ``Layout`` of grouped.c."""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            "bits", "size", "bytes", "two_levels", "has_minimums", "zero", "scales", "minimums", "supers",
            "super_minimums", "row_stride", "record_stride", "super_stride",
        )
    )  # fmt: skip

    @classmethod
    def of_rows(cls, grouping: Grouping, columns: int) -> "Layout":
        """Groups along rows: a record follows the codes of each row."""
        scales = grouping.code_bytes(columns)
        each = columns // grouping.size * grouping.scale_bytes
        supers = scales + each * (1 + grouping.minimums)
        super_each = columns // SUPER * 2 * grouping.two_levels
        end = supers + super_each * (1 + grouping.minimums)
        return cls(*_kind(grouping), scales, scales + each, supers, supers + super_each, _padded(end), 0, 0)

    @classmethod
    def of_columns(cls, grouping: Grouping, columns: int) -> "Layout":
        """Groups across rows: a record for each group of rows, and another for the second level."""
        each, parts = columns * grouping.scale_bytes, 1 + grouping.minimums
        supers = 2 * columns * parts * grouping.two_levels
        codes = grouping.code_bytes(columns)
        return cls(*_kind(grouping), 0, each, 0, 2 * columns, codes, each * parts, supers)


def _kind(grouping: Grouping) -> tuple[int, ...]:
    kind = (grouping.bits, grouping.size, grouping.scale_bytes, grouping.two_levels, grouping.minimums, grouping.zero)
    return tuple(int(value) for value in kind)


def _padded(size: int) -> int:
    """A row size: a multiple of the processor's cache line if that costs little, else of eight bytes."""
    whole = -(-size // LINE) * LINE
    return whole if whole <= 1.03 * size else -(-size // 8) * 8
