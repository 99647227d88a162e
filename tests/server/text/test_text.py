"""Ids become text piece by piece, with the real tokenizer and with hand-made pieces."""

from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders

from griffin import Checkpoint
from server.text.tokenizer import Detokenizer, StopStrings, TextStream, encode
from tests.server.scripted import CharacterTokenizer

TEXT = "Grüße aus Köln — 日本語のテキスト, emoji 🙂👩‍👩‍👧, and\n\n\tcode: f(x) = x²"


def test_pieces_join_to_the_text(smollm2: Checkpoint) -> None:
    """Characters of several tokens come whole, and no character is lost between pieces."""
    ids = encode(smollm2.tokenizer, TEXT)
    stream = Detokenizer(smollm2.tokenizer, encode(smollm2.tokenizer, "Before. "))
    pieces = [stream.feed(id) for id in ids]

    assert "".join(pieces) + stream.flush() == TEXT
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    assert "" in pieces


class ByteFallbackTokenizer:
    """Decodes like Llama 2's: a run of byte tokens is text as a whole or not at all. Ids below 256 are bytes."""

    def __init__(self, *words: str) -> None:
        self._words = words
        self._decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )

    chat_template = None
    all_special_ids: ClassVar[list[int]] = []

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [f"<0x{id:02X}>" if id < 256 else self._words[id - 256] for id in ids]

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return str(self._decoder.decode(self.convert_ids_to_tokens(ids)))


@pytest.mark.parametrize("text", ["🦙🦙🦙", "é🦙語🦙", "aé", "👩‍👩‍👧 ok", "語" * 20])
def test_byte_tokens_come_out_whole(text: str) -> None:
    """Each character is a run of byte tokens, and decoding never cuts a run."""
    tokenizer = ByteFallbackTokenizer()
    stream = Detokenizer(tokenizer, encode(tokenizer, "before 🦙"))

    assert "".join([stream.feed(id) for id in encode(tokenizer, text)]) == text


def test_spaces_at_the_start_of_words_stay() -> None:
    """The decoder strips the first space of its input; in the middle of a text the space must stay."""
    stream = Detokenizer(ByteFallbackTokenizer("▁Hello", "▁world", "</s>"), [256])

    assert [stream.feed(id) for id in (257, 257, 10, 257)] == [" world", " world", "\n", " world"]


def test_a_prompt_that_ends_inside_a_character_is_completed(smollm2: Checkpoint) -> None:
    """The token that completes the character brings it."""
    ids = encode(smollm2.tokenizer, "see: 🙂")
    stream = Detokenizer(smollm2.tokenizer, ids[:-1])

    assert stream.feed(ids[-1]).strip() == "🙂"


def test_special_tokens_leave_no_trace(smollm2: Checkpoint) -> None:
    """They have no text and do not change the text after them."""
    special, word = 2, encode(smollm2.tokenizer, " word")[0]
    stream = Detokenizer(smollm2.tokenizer, [word])

    assert [stream.feed(id) for id in [*[special] * 50, word, special, word]] == ["" for _ in range(50)] + [
        " word", "", " word"
    ]  # fmt: skip


def test_half_a_character_at_the_end_is_shown_as_such(smollm2: Checkpoint) -> None:
    """The text ends with a replacement character instead of dropping bytes silently."""
    ids = encode(smollm2.tokenizer, "🙂")
    stream = Detokenizer(smollm2.tokenizer, [])
    pieces = [stream.feed(id) for id in ids[:-1]]

    assert "".join(pieces) == ""
    assert set(stream.flush()) == {"\N{REPLACEMENT CHARACTER}"}
    assert stream.flush() == ""


def test_bytes_that_are_no_text_do_not_hold_the_stream_up(smollm2: Checkpoint) -> None:
    """A pruned model may repeat lone continuation bytes; they are shown, a few at a time."""
    lone = encode(smollm2.tokenizer, "🙂")[-1]
    stream = Detokenizer(smollm2.tokenizer, [])
    pieces = [stream.feed(lone) for _ in range(20)]

    assert any(pieces[:5])
    assert stream.feed(encode(smollm2.tokenizer, " word")[0]).endswith(" word")


@given(st.data())
def test_any_ids_stream_to_what_they_decode_to(smollm2: Checkpoint, data: st.DataObject) -> None:
    """For random text in any script the pieces join to the decoded whole."""
    text = data.draw(st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cn", "Co")), max_size=40))
    ids = encode(smollm2.tokenizer, "x" + text)
    stream = Detokenizer(smollm2.tokenizer, ids[:1])

    streamed = "".join([stream.feed(id) for id in ids[1:]]) + stream.flush()
    assert streamed == smollm2.tokenizer.decode(ids)[len(smollm2.tokenizer.decode(ids[:1])) :]


@pytest.mark.parametrize(
    ("stops", "pieces", "expected", "found"),
    [
        (["END"], ["one E", "N", "D two"], ["one ", "", ""], True),
        (["END"], ["one E", "NX"], ["one ", "ENX"], False),
        (["\n", "\n\n"], ["a\n", "b"], ["a", ""], True),
        (["bc", "abcd"], ["xab", "cd"], ["x", ""], True),
        (["aab"], ["aa", "aab"], ["", "aa"], True),
        ([], ["all", " of it"], ["all", " of it"], False),
    ],
)
def test_stop_strings(stops: list[str], pieces: list[str], expected: list[str], found: bool) -> None:
    """The text ends before the first stop string; a possible beginning of one is held back."""
    stop = StopStrings(stops)

    assert [stop.feed(piece) for piece in pieces] == expected
    assert (stop.found is not None) == found
    assert stop.found in (None, *stops)


@given(st.lists(st.text("ab", min_size=1, max_size=3), max_size=3), st.lists(st.text("ab", max_size=3), max_size=12))
def test_no_stop_string_gets_through(stops: list[str], pieces: list[str]) -> None:
    """However the text is cut, all of it comes, or all before the first stop string."""
    stream, whole = StopStrings(stops), "".join(pieces)
    out = "".join([stream.feed(piece) for piece in pieces]) + stream.flush()

    assert (stream.found is not None) == any(stop in whole for stop in stops)
    if stream.found is None:
        assert out == whole
    else:
        assert not any(stop in out for stop in stops)
        assert any(whole.startswith(out + stop) for stop in stops)


def test_held_back_text_is_flushed() -> None:
    """A beginning of a stop string that was not completed comes at the end."""
    stream = TextStream(CharacterTokenizer(), [], ["END"])

    assert [stream.feed(ord(c)) for c in "xEN"] == ["x", "", ""]
    assert stream.flush() == "EN"


def stopped_at(
    tokenizer: Checkpoint | CharacterTokenizer, ids: list[int], stops: list[str], **options: Any
) -> tuple[str, int]:
    """The text of the ids until the stream stops, and the number of ids it took."""
    stream = TextStream(getattr(tokenizer, "tokenizer", tokenizer), [], stops, **options)
    text = ""
    for count, id in enumerate(ids, start=1):
        text += stream.feed(id)
        if stream.stopped:
            return text + stream.flush(), count
    return text + stream.flush(), len(ids)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("include", [True, False])
def test_a_special_token_as_stop_string(smollm2: Checkpoint, skip: bool, include: bool) -> None:
    """Editors stop at <|endoftext|>. It matches although special tokens are left out of the text."""
    words = encode(smollm2.tokenizer, "One two")
    end = smollm2.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    other = smollm2.tokenizer.convert_tokens_to_ids("<|im_start|>")
    stops = ["never", "<|endoftext|>"]
    found, count = stopped_at(
        smollm2, [*words, other, end, *words], stops, skip_special_tokens=skip, include_stop=include
    )

    assert count == len(words) + 2
    assert found == "One two" + ("" if skip else "<|im_start|>") + ("<|endoftext|>" if include else "")


def test_a_special_stop_waits_for_min_tokens(smollm2: Checkpoint) -> None:
    """So does any other stop string."""
    word = encode(smollm2.tokenizer, "One")[0]

    assert stopped_at(smollm2, [0, word, 0, word], ["<|endoftext|>"], min_tokens=1) == ("One", 3)


def test_a_stop_string_that_was_held_back_comes_first(smollm2: Checkpoint) -> None:
    """The special token ends the text, but a stop string before it may have ended it earlier."""
    assert stopped_at(CharacterTokenizer(), [97, 98, 0x110000], ["abc", "<end>"]) == ("ab", 3)
    assert stopped_at(CharacterTokenizer(), [97, 98, 99, 0x110000], ["bc", "<end>"]) == ("a", 3)


def test_text_that_spells_a_special_token_matches_too(smollm2: Checkpoint) -> None:
    """The text comes character by character, without the special token."""
    ids = [ord(character) for character in "ab<end>c"]

    assert stopped_at(CharacterTokenizer(), ids, ["<end>"]) == ("ab", 7)
