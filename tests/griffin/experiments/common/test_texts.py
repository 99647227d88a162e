"""Texts become sequences of tokens: where they begin, what precedes them, and the errors for short texts."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from griffin.errors import GriffinError
from griffin.experiments.common.study import Study
from griffin.experiments.common.texts import Text, read_text, sequences, start_of
from griffin.model.loading import Checkpoint
from tests.griffin.experiments.words import BOS, random_ids, word_study, word_tokenizer


def test_windows_are_spread_evenly() -> None:
    """Three windows of three tokens in ten: at the beginning, in the middle, at the end."""
    text = Text("wikitext", list(range(10)), [])

    assert text.windows(3, 3, "--tokens", "--samples") == [[0, 1, 2], [3, 4, 5], [7, 8, 9]]
    assert text.windows(4, 1, "--tokens", "--samples") == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("length", "count", "said"),
    [
        (11, 1, "--tokens: 11 tokens of 'wikitext', which has only 10"),
        (3, 4, "--samples: 4 times 3 tokens of 'wikitext', which has only 10; the most is 3"),
    ],
)
def test_a_text_that_is_too_short(length: int, count: int, said: str) -> None:
    """The error has the flag and the largest possible value."""
    with pytest.raises(ValueError, match=f"^{said}$"):
        Text("wikitext", list(range(10)), []).windows(length, count, "--tokens", "--samples")


def test_documents_are_joined_before_they_are_tokenised(smollm2: Checkpoint, tmp_path: Path) -> None:
    """No text is put between them, and line ends are those of a file opened for reading."""
    lines = [json.dumps({"title": "", "text": text}) + "\n" for text in ("The tide rose to", "day.\r\nIt fell.")]
    (tmp_path / "wikitext2_raw_test.jsonl").write_text("".join(lines))
    text = read_text(Study(smollm2, tmp_path, tmp_path), "wikitext")

    assert text.ids == smollm2.tokenizer("The tide rose today.\nIt fell.").input_ids


def test_a_bos_token_where_the_tokenizer_puts_one(smollm2: Checkpoint) -> None:
    """SmolLM2 knows a BOS token, but puts none before a text."""
    assert start_of(word_tokenizer()) == [BOS]
    assert start_of(word_tokenizer(bos=False)) == []
    assert smollm2.tokenizer.bos_token_id is not None
    assert start_of(smollm2.tokenizer) == []


def test_each_sequence_begins_as_a_text_does(tmp_path: Path) -> None:
    """Six tokens: BOS and five of the text."""
    one, two = random_ids(1, 8), random_ids(2, 9)
    text = one + two

    assert sequences(word_study(tmp_path / "a", one, two), "books", 6, 2) == [[BOS, *text[:5]], [BOS, *text[-5:]]]
    assert sequences(word_study(tmp_path / "b", one, two, bos=False), "wikitext", 6) == [text[:6]]


def test_a_sequence_beyond_the_context(tmp_path: Path) -> None:
    """The tiny model's context is 256 tokens."""
    with pytest.raises(ValueError, match=r"^--tokens: 257 is more than the context of this model, 256$"):
        sequences(word_study(tmp_path, random_ids(1, 300)), "wikitext", 257)


def from_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, load_dataset: Any) -> list[list[int]]:
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    study = word_study(tmp_path)
    hub = Study(study.checkpoint, None, tmp_path / "out")
    return [read_text(hub, "wikitext").ids, read_text(hub, "books").ids]


def test_without_data_texts_come_from_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All lines of WikiText-2's test split, and only as many books as needed."""
    asked = []

    def load_dataset(*names: str, split: str, streaming: bool = False) -> Any:
        asked.append((*names, split))
        return ({"text": f" w{id} \n"} for id in range(3, 128)) if streaming else {"text": [" w5 \n", "", " w6 w7 \n"]}

    assert from_hub(monkeypatch, tmp_path, load_dataset) == [[5, 6, 7], [3, 4]]
    assert asked == [("Salesforce/wikitext", "wikitext-2-raw-v1", "test"), ("emozilla/pg19-test", "test")]


def test_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One line says why, and what to do."""

    def load_dataset(*names: str, **options: object) -> Any:
        raise ConnectionError("no route to the hub\nsome trace")

    with pytest.raises(GriffinError) as error:
        from_hub(monkeypatch, tmp_path, load_dataset)
    assert str(error.value) == (
        "cannot get 'wikitext' from the hub: no route to the hub; "
        "or give --data a directory with wikitext2_raw_test.jsonl"
    )


def test_no_library_for_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is an extra; one line says how to install it."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    study = Study(word_study(tmp_path).checkpoint, None, tmp_path)
    with pytest.raises(GriffinError, match=r"pip install datasets; or give --data a directory with books\.jsonl$"):
        read_text(study, "books")
