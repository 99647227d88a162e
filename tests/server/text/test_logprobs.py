"""How tokens are listed with their log-probabilities, with the real tokenizer and with byte tokens."""

from typing import Any, ClassVar

import pytest

from griffin import Checkpoint, Logprobs
from server.text.logprobs import LegacyForm, ScoredToken, Vocabulary, chat_form
from tests.server.text.test_text import TEXT, ByteFallbackTokenizer


def scored(ids: list[int]) -> list[ScoredToken]:
    return [ScoredToken(id, Logprobs(-1.0)) for id in ids]


def arrays(form: LegacyForm, tokens: list[ScoredToken], text: str = "") -> dict[str, Any]:
    """The arrays of an answer with these tokens."""
    return form.generated(tokens, text, last=True, stopped=False)


def test_bytes_of_tokens_join_to_the_text(smollm2: Checkpoint) -> None:
    """Some tokens are only a part of a character."""
    vocabulary = Vocabulary(smollm2.tokenizer)
    ids = smollm2.tokenizer(TEXT).input_ids

    assert b"".join(vocabulary[id].bytes for id in ids).decode() == TEXT
    assert any(vocabulary[id].text.startswith("bytes:\\x") for id in ids)


def test_offsets_are_where_tokens_begin(smollm2: Checkpoint) -> None:
    """Offsets count characters and go on from piece to piece."""
    vocabulary = Vocabulary(smollm2.tokenizer)
    ids = smollm2.tokenizer("Grüße 🙂 aus Köln").input_ids
    form = LegacyForm(vocabulary, hide_special=True)
    text = "Grüße 🙂 aus Köln"
    listed = [
        form.generated(scored(part), new, last=new != text[:2], stopped=False)
        for part, new in ((ids[:2], text[:2]), (ids[2:], text[2:]))
    ]
    offsets = [offset for part in listed for offset in part["text_offset"]]

    assert offsets == sorted(offsets)
    for id, offset in zip(ids, offsets, strict=True):
        if not vocabulary[id].text.startswith("bytes:"):
            assert "Grüße 🙂 aus Köln"[offset:].startswith(vocabulary[id].text)


def test_hidden_special_tokens_take_no_room(smollm2: Checkpoint) -> None:
    """They are listed with an empty text, and the next token has the same offset."""
    vocabulary = Vocabulary(smollm2.tokenizer)
    end = smollm2.tokenizer.eos_token_id
    (word,) = smollm2.tokenizer(" word").input_ids
    hidden = arrays(LegacyForm(vocabulary, hide_special=True), scored([end, word]), " word")
    shown = arrays(LegacyForm(vocabulary, hide_special=False), scored([end, word]), "<|im_end|> word")

    assert (hidden["tokens"], shown["tokens"]) == (["", " word"], ["<|im_end|>", " word"])
    assert hidden["top_logprobs"] == [{"<|im_end|>": -1.0}, {" word": -1.0}]
    assert hidden["text_offset"] == [0, 0]
    assert shown["text_offset"] == [0, len("<|im_end|>")]


def test_offsets_of_an_echoed_prompt_are_those_of_its_text(smollm2: Checkpoint) -> None:
    """Special tokens in the prompt's text count; generated tokens begin after the prompt."""
    text = "<|im_start|>user\nHello there"
    vocabulary = Vocabulary(smollm2.tokenizer)
    ids = smollm2.tokenizer(text).input_ids
    form = LegacyForm(vocabulary, hide_special=True)
    echoed = form.echo(scored(ids), text)
    for token, offset in zip(echoed["tokens"], echoed["text_offset"], strict=True):
        assert text.startswith(token, offset)
    assert arrays(form, scored(ids[-1:]), " there")["text_offset"] == [len(text)]


def test_offsets_of_sentencepiece_prompts() -> None:
    """The first word has no space in the text, and a begin-of-sequence token has no text."""

    class WithStart(ByteFallbackTokenizer):
        all_special_ids: ClassVar[list[int]] = [258]

    vocabulary = Vocabulary(WithStart("\u2581Hello", "\u2581there", "<s>"))
    echoed = LegacyForm(vocabulary, hide_special=True).echo(scored([258, 256, 257]), "Hello there")

    assert echoed["tokens"] == ["", "Hello", " there"]
    assert echoed["text_offset"] == [0, 0, 5]


def test_sentencepiece_tokens_keep_their_space() -> None:
    """A word that is decoded alone would lose it. A byte token is one byte."""
    vocabulary = Vocabulary(ByteFallbackTokenizer("▁Hello", "▁world"))

    assert vocabulary[257].text == " world"
    assert (vocabulary[0xF0].bytes, vocabulary[0xF0].text) == (b"\xf0", "bytes:\\xf0")


def test_two_tokens_of_one_spelling() -> None:
    """The chosen token's value wins; between others the more probable one's."""
    vocabulary = Vocabulary(ByteFallbackTokenizer("A", "B"))
    token = ScoredToken(65, Logprobs(-3.0, ((256, -0.5), (257, -1.0), (66, -2.0))))
    listed = arrays(LegacyForm(vocabulary, hide_special=True), [token], "A")

    assert listed["top_logprobs"] == [{"A": -3.0, "B": -1.0}]


@pytest.mark.parametrize("value", [float("-inf"), float("nan"), -1e9])
def test_json_knows_no_infinity(value: float) -> None:
    """The value is -9999 then, as with other servers."""
    vocabulary = Vocabulary(ByteFallbackTokenizer())
    token = ScoredToken(65, Logprobs(value, ((66, value),)))

    assert arrays(LegacyForm(vocabulary, hide_special=True), [token], "A")["token_logprobs"] == [-9999.0]
    assert chat_form(vocabulary, [token])["content"][0]["top_logprobs"][0]["logprob"] == -9999.0
