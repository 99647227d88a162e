"""Local data: what is read, and the errors for wrong files."""

import gzip
import json
from pathlib import Path

import pytest

from griffin.errors import GriffinError
from griffin.experiments.common.samples import FIELDS, read_samples
from tests.griffin.experiments.data import SAMPLES, write_data


def test_every_data_set_is_read(tmp_path: Path) -> None:
    """Plain or compressed. Blank lines, other fields and unusual line breaks in texts do no harm."""
    write_data(tmp_path)
    for name, samples in SAMPLES.items():
        assert read_samples(tmp_path, name) == samples
    sample = {"document": "one\u2028two\u0085three", "summary": "four", "id": 7}
    line = json.dumps(sample, ensure_ascii=False)
    (tmp_path / "xsum.jsonl").unlink()
    (tmp_path / "xsum.jsonl.gz").write_bytes(gzip.compress(f"\n{line}\n\n{line}".encode()))

    assert read_samples(tmp_path, "xsum") == [sample, sample]
    # Other tests make up these four: for texts, and for drafts.
    assert set(FIELDS) == {*SAMPLES, "wikitext", "books", "functions", "chats"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"document": "a", "summary": "b"}\n{"document": "a"}\n',
            "line 2: the field 'summary' is missing; it needs document",
        ),
        (b'{"document": 1, "summary": "b"}', "line 1: the field 'document' is not a text"),
        (b"not json", "line 1: no JSON object"),
        (b"[1, 2]", "line 1: no JSON object"),
        (b"\n\n", "holds no samples"),
        (b"\xff\xfe", "cannot read"),
    ],
)
def test_bad_files(content: bytes, message: str, tmp_path: Path) -> None:
    """One line names the file, the line and the field."""
    (tmp_path / "xsum.jsonl").write_bytes(content)

    with pytest.raises(GriffinError, match=message) as raised:
        read_samples(tmp_path, "xsum")
    assert "xsum.jsonl'" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_a_damaged_archive(tmp_path: Path) -> None:
    """Cut off, damaged, or no archive at all."""
    whole = gzip.compress(b'{"document": "a", "summary": "b"}\n' * 50)
    for content in (whole[:-9], b"plain", whole[:12] + b"xxxx" + whole[16:]):
        (tmp_path / "xsum.jsonl.gz").write_bytes(content)
        with pytest.raises(GriffinError, match=r"cannot read '.*xsum.jsonl.gz'"):
            read_samples(tmp_path, "xsum")


def test_labels_are_numbers_not_words(tmp_path: Path) -> None:
    """In Python true is also an integer; here it is refused."""
    (tmp_path / "boolq.jsonl").write_text(json.dumps({"passage": "a", "question": "b", "label": True}))

    with pytest.raises(GriffinError, match="the field 'label' is not a whole number"):
        read_samples(tmp_path, "boolq")
