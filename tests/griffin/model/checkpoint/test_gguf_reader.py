"""The reader of GGUF files: what it reads, and that every damaged file gives an error."""

import random
import struct
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader, GGUFWriter

from griffin.errors import LoadError
from griffin.model.checkpoint import gguf_bytes, gguf_file

STRING, ARRAY, U8, U32, BOOL = 8, 9, 0, 4, 7
ROWS, WIDTH = 3, 256


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return u64(len(data)) + data


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return string(name) + u32(kind) + value


def tensor(
    name: str = "t", shape: Sequence[int] = (WIDTH, ROWS), kind: int = Kind.F32, offset: int = 0, dimensions: int = -1
) -> bytes:
    """An entry of the table. ``shape`` is in the file's order: the fastest dimension first."""
    sizes = b"".join(u64(size) for size in shape)
    return string(name) + u32(len(shape) if dimensions < 0 else dimensions) + sizes + u32(kind) + u64(offset)


MODEL = key("general.architecture", STRING, string("llama"))


def whole(
    keys: Sequence[bytes] = (MODEL,),
    tensors: Sequence[bytes] = (tensor(),),
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    data: int = ROWS * WIDTH * 4,
) -> bytes:
    """A file with these keys and tensors. ``counts``: how many tensors and keys it claims to have."""
    claimed = counts or (len(tensors), len(keys))
    header = b"GGUF" + u32(version) + u64(claimed[0]) + u64(claimed[1]) + b"".join([*keys, *tensors])
    return header + bytes(-len(header) % 32) + bytes(data)


def nested(depth: int) -> bytes:
    """Nested arrays with one element each, and a number in the innermost."""
    return (u32(ARRAY) + u64(1)) * (depth - 1) + u32(U8) + u64(1) + b"\x07"


def numbered(name: str, value: int) -> bytes:
    return key(name, U32, u32(value))


def with_keys(*more: bytes) -> bytes:
    return whole([MODEL, *more])


def with_tensors(*tensors: bytes) -> bytes:
    return whole(tensors=tensors)


HUGE = 2**63
FAULTS: dict[str, tuple[bytes, str]] = {
    "cut in the counts": (whole()[:20], r"the number of keys runs past the end of the file"),
    "cut in a key": (whole()[:40], r"the name of its key 1 of 1 runs past the end of the file"),
    "cut in a value": (whole()[:58], r"key general\.architecture runs past the end of the file"),
    "cut in the table": (whole()[:90], r"entry of tensor t runs past the end of the file"),
    "cut in the data": (whole()[:-1], r"tensor t \(F32\) ends at byte 3200 of 3199"),
    "a name's length": (whole([u64(HUGE) + b"x"]), "the name of its key 1 of 1 runs past the end of the file"),
    "a text's length": (with_keys(key("a", STRING, u64(2**64 - 1))), "its key a runs past the end of the file"),
    "an array's length": (with_keys(key("a", ARRAY, u32(U32) + u64(HUGE))), "its key a runs past the end of the file"),
    "a length of texts": (
        with_keys(key("a", ARRAY, u32(STRING) + u64(2**40))),
        "its key a runs past the end of the file",
    ),
    "a length of arrays": (
        with_keys(key("a", ARRAY, u32(ARRAY) + u64(2**40))),
        "its key a runs past the end of the file",
    ),
    "a text in an array": (with_keys(key("a", ARRAY, u32(STRING) + u64(2) + string("x") + u64(HUGE))), "key a runs"),
    "an inner array's length": (
        with_keys(key("a", ARRAY, u32(ARRAY) + u64(1) + u32(U8) + u64(HUGE))),
        "its key a runs past the end of the file",
    ),
    "arrays without end": (with_keys(key("a", ARRAY, nested(5000))), "its key a is an array of arrays, more than 4"),
    "a value's type": (with_keys(key("a", 13, bytes(8))), "its key a has the value type 13"),
    "an element's type": (with_keys(key("a", ARRAY, u32(99) + u64(1) + bytes(8))), "its key a has the value type 99"),
    "a key twice": (with_keys(numbered("a", 1), numbered("a", 1)), "its key a is there twice"),
    "a key that is no text": (with_keys(key(b"\xff\xfe", U32, u32(1))), "the name of its key 2 of 2 .* not UTF-8"),
    "a value that is no text": (with_keys(key("a", STRING, string(b"\xc3"))), "its key a holds text that is not UTF-8"),
    "a name of two lines": (with_keys(key("a\nb", 13, b"")), r"its key 'a\\nb' has the value type 13"),
    "too many keys": (whole(counts=(1, 2**40)), "claims to have 1099511627776 keys"),
    "too many tensors": (whole(counts=(2**64 - 1, 1)), "claims to have 18446744073709551615 tensors"),
    "more keys than there are": (whole(counts=(1, 3)), "its key"),
    "no dimensions": (with_tensors(tensor(shape=())), "tensor t has 0 dimensions, not 1 to 4"),
    "five dimensions": (with_tensors(tensor(shape=(256, 1, 1, 1, 1))), "tensor t has 5 dimensions"),
    "dimensions without end": (with_tensors(tensor(dimensions=2**32 - 1)), "tensor t has 4294967295 dimensions"),
    "no rows": (with_tensors(tensor(shape=(256, 0))), r"tensor t \(F32\) holds no values: its shape is \(0, 256\)"),
    "a product that overflows": (with_tensors(tensor(shape=(2**32, 2**32, 1, 1))), r"t \(F32\) ends at byte"),
    "a product that overflows to nothing": (with_tensors(tensor(shape=(HUGE, 2, HUGE))), r"t \(F32\) ends at byte"),
    "a width of part of a block": (with_tensors(tensor(shape=(100, 3), kind=Kind.Q4_K)), "rows of 100 .* of 256"),
    "a type": (with_tensors(tensor(kind=99)), "tensor t has the type 99, which is unknown"),
    "a type that was removed": (with_tensors(tensor(kind=4)), "tensor t has the type 4, which is unknown"),
    "an offset past the end": (with_tensors(tensor(offset=64)), r"tensor t \(F32\) ends at byte 3264 of 3200"),
    "an offset that overflows": (with_tensors(tensor(offset=2**64 - 32)), r"tensor t \(F32\) ends at byte"),
    "an offset between": (with_tensors(tensor(offset=8)), r"t \(F32\) begins at 8, not a multiple .* alignment 32"),
    "a tensor twice": (with_tensors(tensor(), tensor()), "its tensor t is there twice"),
    "no alignment": (with_keys(numbered("general.alignment", 0)), "general.alignment is 0, but must be a power of two"),
    "an odd alignment": (with_keys(numbered("general.alignment", 48)), "general.alignment is 48, but must be"),
    "an alignment in words": (
        with_keys(key("general.alignment", STRING, string("32"))),
        "general.alignment is 32, but",
    ),
    "an alignment beyond all": (with_keys(key("general.alignment", 10, u64(HUGE))), r"t \(F32\) ends at byte"),
    "the first version": (whole(version=1), "has version 1 of the GGUF format, and 2 and 3 are read"),
    "a version of the future": (whole(version=4), "has version 4 of the GGUF format"),
    "the other byte order": (whole(version=3 << 24), "a GGUF file for big-endian machines"),
    "an architecture that is no text": (whole([numbered("general.architecture", 1)]), "architecture is not a text"),
    "no architecture": (whole([]), "general.architecture is missing"),
    "no tensors": (whole(tensors=()), "holds no tensors"),
    "parts in words": (with_keys(key("split.count", STRING, string("two"))), "its key split.count is two"),
    "parts below nothing": (with_keys(key("split.count", 5, struct.pack("<i", -2))), "its key split.count is -2"),
    "parts without end": (
        with_keys(key("split.count", 10, u64(HUGE))),
        "claims to be one of 9223372036854775808 parts",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault: str, tmp_path: Path) -> None:
    """One line, with the file and the key or tensor."""
    content, words = FAULTS[fault]
    path = tmp_path / "m-00001-of-00002.gguf"
    path.write_bytes(content)
    with pytest.raises(LoadError, match=words) as failure:
        gguf_file.read(path)

    text = str(failure.value)
    assert path.name in text
    assert "\n" not in text
    assert len(text) < 300


def test_the_file_that_the_faults_are_made_of(tmp_path: Path) -> None:
    """It is read in both versions, with arrays of every kind, empty names and a larger alignment."""
    keys = [
        MODEL,
        key("numbers", ARRAY, u32(2) + u64(3) + struct.pack("<3H", 1, 2, 65535)),
        key("answers", ARRAY, u32(BOOL) + u64(3) + bytes([0, 1, 2])),
        key("texts", ARRAY, u32(STRING) + u64(3) + string("") + string("\u00e4") + string("b\nc")),
        key("nothing", ARRAY, u32(STRING) + u64(0)),
        key("inner", ARRAY, u32(ARRAY) + u64(2) + (u32(U8) + u64(2) + b"\1\2") + (u32(STRING) + u64(1) + string("x"))),
        key("deepest", ARRAY, nested(4)),
        key("half", 6, struct.pack("<f", 0.5)),
        key("below", 11, struct.pack("<q", -(2**62))),
        numbered("general.alignment", 8),
        key("", BOOL, b"\1"),
    ]
    path = tmp_path / "model.gguf"
    for version in (2, 3):
        path.write_bytes(whole(keys, version=version))
        file = gguf_file.read(path)
        assert list(file.metadata.values()) == [
            "llama", [1, 2, 65535], [False, True, True], ["", "\u00e4", "b\nc"], [], [[1, 2], ["x"]], [[[[7]]]], 0.5,
            -(2**62), 8, True,
        ]  # fmt: skip
        assert file.tensors["t"].shape == (ROWS, WIDTH)


def test_a_header_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the file is, the header may have only so many bytes."""
    monkeypatch.setattr(gguf_bytes, "HEADER_LIMIT", 2**10)
    path = tmp_path / "model.gguf"
    path.write_bytes(with_keys(key("a", ARRAY, u32(U8) + u64(2**10) + bytes(2**10))))
    with pytest.raises(LoadError, match="its header, read up to its key a, is longer than"):
        gguf_file.read(path)


def written(path: Path, architecture: str = "llama") -> Path:
    """A file that llama.cpp's own package writes: a vocabulary, and tensors of several types."""
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_rope_freq_base(10_000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"token{number}" for number in range(6)])
    writer.add_token_scores([0.5 * number for number in range(6)])
    writer.add_token_types([1] * 6)
    writer.add_token_merges(["t o", "k e"])
    writer.add_chat_template("{{ messages }}")
    values = np.linspace(-1, 1, ROWS * WIDTH, dtype=np.float32).reshape(ROWS, WIDTH)
    writer.add_tensor("plain", values)
    writer.add_tensor("norm", values[0])
    for kind in (Kind.Q4_0, Kind.Q8_0, Kind.F16):
        writer.add_tensor(kind.name, gguf.quantize(values, kind), raw_dtype=kind)
    blocks = np.arange(ROWS * gguf.GGML_QUANT_SIZES[Kind.IQ4_XS][1], dtype=np.uint8).reshape(ROWS, -1)
    writer.add_tensor("IQ4_XS", blocks, raw_dtype=Kind.IQ4_XS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_same_as_the_packages_reader(tmp_path: Path) -> None:
    """Keys, types, shapes and bytes are the same."""
    path = written(tmp_path / "model.gguf")
    file, theirs = gguf_file.read(path), GGUFReader(path)
    keys = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}

    assert file.metadata == keys
    assert list(file.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        ours = file.tensors[tensor.name]
        assert (ours.type, ours.shape, ours.path) == (tensor.tensor_type, tuple(reversed(tensor.shape.tolist())), path)
        assert ours.data.dtype == np.uint8
        assert not ours.data.flags.writeable
        assert ours.data.tobytes() == tensor.data.tobytes()
        assert np.array_equal(gguf.dequantize(ours.data, ours.type), gguf.dequantize(tensor.data, tensor.tensor_type))


def test_a_file_can_be_closed_once_unused(tmp_path: Path) -> None:
    """It cannot be closed while a tensor's bytes are in use."""
    file = gguf_file.read(written(tmp_path / "model.gguf"))
    held = file.tensors["plain"].data
    with pytest.raises(BufferError):
        file.close()
    del held
    file.close()
    with pytest.raises(ValueError, match="closed"):
        _ = file.tensors["plain"].data


def test_types_that_cannot_be_read(tmp_path: Path) -> None:
    """The error names the first tensor, its type, and how many others there are."""
    path = written(tmp_path / "model.gguf")
    file = gguf_file.read(path)
    file.require_readable(frozenset(Kind))
    file.require_readable({Kind.F32, Kind.F16, Kind.Q4_0, Kind.Q8_0, Kind.IQ4_XS})
    with pytest.raises(
        LoadError, match=r"model\.gguf: tensor IQ4_XS has the type IQ4_XS, which cannot be read here; take"
    ):
        file.require_readable({Kind.F32, Kind.F16, Kind.Q4_0, Kind.Q8_0})
    with pytest.raises(
        LoadError, match=r"tensor Q4_0 .* as has one more tensor; .* the same model \(F32, F16, Q8_0\), or make"
    ):
        file.require_readable({Kind.Q8_0, Kind.F16, Kind.F32})
    with pytest.raises(LoadError, match=r"tensor plain has the type F32, which cannot be read here, as have 4 more"):
        file.require_readable({Kind.Q4_0})


def test_a_tensor_in_two_parts(tmp_path: Path) -> None:
    """It is not known which of them counts."""
    paths = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    for number, path in enumerate(paths):
        path.write_bytes(with_keys(numbered("split.no", number), numbered("split.count", 2)))
    with pytest.raises(LoadError, match=r"m-00002-of-00002\.gguf holds the tensor t, and so does another part"):
        gguf_file.read(paths[0])


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (b"", r"m-00002-of-00002\.gguf' is empty; download it again"),
        (b"<html>", r"m-00002-of-00002\.gguf' is not a GGUF file, despite its name"),
        (None, r"one of 2 parts, and m-00002-of-00002\.gguf is not beside it; download all"),
    ],
)
def test_an_invalid_part(second: bytes | None, words: str, tmp_path: Path) -> None:
    """The error names the part itself, not a tensor that is missing because of it."""
    paths = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    paths[0].write_bytes(with_keys(numbered("split.no", 0), numbered("split.count", 2)))
    if second is not None:
        paths[1].write_bytes(second)
    with pytest.raises(LoadError, match=words):
        gguf_file.read(paths[0])


def test_a_later_part_without_the_first(tmp_path: Path) -> None:
    """The error names the first part, which is missing."""
    path = tmp_path / "m-00002-of-00002.gguf"
    path.write_bytes(with_keys(numbered("split.no", 1), numbered("split.count", 2)))
    with pytest.raises(LoadError, match=r"one of 2 parts, and m-00001-of-00002\.gguf is not beside it; download all"):
        gguf_file.read(path)


def mutations(content: bytes) -> Sequence[Callable[[random.Random], bytes]]:
    """Ways to damage a file, mostly in the header, because the data may be any bytes."""
    # Places of numbers that look like lengths, counts, dimensions or offsets.
    lengths = [
        place for place in range(4, len(content) - 8) if 0 < int.from_bytes(content[place : place + 8], "little") < 999
    ]
    header = lengths[-1] + 8

    def flipped(chance: random.Random) -> bytes:
        damaged = bytearray(content)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(4, header)] = chance.randrange(256)
        return bytes(damaged)

    def cut(chance: random.Random) -> bytes:
        return content[: chance.randrange(4, len(content))]

    def overstated(chance: random.Random) -> bytes:
        place = chance.choice(lengths)
        value = chance.choice(
            [0, 2**31, 2**32 - 1, 2**32, 2**40, 2**63, 2**64 - 1, chance.randrange(2**64), len(content)]
        )
        return content[:place] + u64(value) + content[place + 8 :]

    def inserted(chance: random.Random) -> bytes:
        place = chance.randrange(4, header)
        return content[:place] + chance.randbytes(chance.randint(1, 16)) + content[place:]

    def removed(chance: random.Random) -> bytes:
        place = chance.randrange(4, header)
        return content[:place] + content[place + chance.randint(1, 16) :]

    def repeated(chance: random.Random) -> bytes:
        place = chance.randrange(4, header)
        return content[:place] + content[chance.randrange(4, place + 1) : place] + content[place:]

    return flipped, cut, overstated, inserted, removed, repeated


def test_ten_thousand_damaged_files(tmp_path: Path) -> None:
    """Each is read, or refused with one line, and little memory is used."""
    path = written(tmp_path / "model.gguf")
    chance, refusals, read = random.Random(24), list[str](), 0
    ways = mutations(path.read_bytes())
    tracemalloc.start()
    try:
        # One file is overwritten each time: to create a file, some file systems wait for the disk.
        with path.open("r+b") as place:
            for _ in range(10_000):
                place.seek(0)
                place.write(chance.choice(ways)(chance))
                place.truncate()
                place.flush()
                try:
                    file = gguf_file.read(path)
                except LoadError as error:
                    refusals.append(str(error))
                else:
                    read += 1
                    assert all(tensor.data.nbytes == tensor.size for tensor in file.tensors.values())
                    assert sum(int(tensor.data.reshape(-1)[-1]) for tensor in file.tensors.values()) >= 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert len(refusals) > 4000
    assert read > 500
    assert all(path.name in text and "\n" not in text for text in refusals)
    assert peak < 4 * 2**20
