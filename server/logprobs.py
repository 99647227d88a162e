"""Log-probabilities in OpenAI's two forms, and the text and bytes of single tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from griffin import Logprobs
from server.text import REPLACEMENT, Tokenizer

# JSON has no infinity; this is what other servers write for it.
LOWEST = -9999.0
CONTINUATION_BYTES = range(0x80, 0xC0)


@dataclass(frozen=True, slots=True)
class Spelling:
    """One token as text, as bytes, and how many characters begin in it."""

    text: str
    bytes: bytes
    characters: int


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of an answer; no log-probabilities on a prompt's first token."""

    id: int
    logprobs: Logprobs | None


class Vocabulary:
    """How each id is spelled, behind other text. Looked up once for each id."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, Spelling] = {}
        self._special = frozenset(tokenizer.all_special_ids)
        # SentencePiece drops the space before a text's first token: none is spelled alone.
        self._anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        self._anchor_text = self._decode([])

    def __getitem__(self, id: int) -> Spelling:
        if (spelling := self._known.get(id)) is None:
            spelling = self._known[id] = self._spell(id)
        return spelling

    def is_special(self, id: int) -> bool:
        return id in self._special

    def _spell(self, id: int) -> Spelling:
        text = self._decode([id]).removeprefix(self._anchor_text)
        raw = text.encode() if REPLACEMENT not in text else self._bytes(id, text)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            # OpenAI's way to write what is no character by itself.
            text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
        return Spelling(text, raw, sum(byte not in CONTINUATION_BYTES for byte in raw))

    def _bytes(self, id: int, text: str) -> bytes:
        token = self._tokenizer.convert_ids_to_tokens([id])[0] or ""
        if len(token) == 6 and token.startswith("<0x"):
            return bytes([int(token[3:5], 16)])
        if token and all(character in BYTE_OF for character in token):
            return bytes(BYTE_OF[character] for character in token)
        return text.encode()

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(self._anchor + ids, skip_special_tokens=False)


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's: printable bytes stand for themselves, the others for characters from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(others)}


BYTE_OF = _byte_level_alphabet()


class LegacyForm:
    """The four arrays of /v1/completions, for one choice; offsets go on from piece to piece."""

    def __init__(self, vocabulary: Vocabulary, hide_special: bool) -> None:
        self._vocabulary, self._hide_special = vocabulary, hide_special
        self._offset = 0

    def echo(self, tokens: Sequence[ScoredToken], text: str) -> dict[str, Any]:
        """Of a prompt, each token found again in the text that is echoed: special ones may be spelled there or not,
        and SentencePiece's first has no space there."""
        arrays = self._spelled(tokens)
        place, offsets = 0, []
        for token, spelled in zip(tokens, arrays["tokens"], strict=True):
            offsets.append(min(place, len(text)))
            if text.startswith(spelled, place):
                place += len(spelled)
            elif not place and text.startswith(spelled.lstrip(" ")):
                place = len(spelled.lstrip(" "))
            elif not self._vocabulary.is_special(token.id):
                place += self._vocabulary[token.id].characters
        self._offset = len(text)
        return {**arrays, "text_offset": offsets}

    def arrays(self, tokens: Sequence[ScoredToken]) -> dict[str, Any]:
        """Of generated tokens."""
        offsets: list[int] = []
        for token in tokens:
            offsets.append(self._offset)
            if not (self._hide_special and self._vocabulary.is_special(token.id)):
                self._offset += self._vocabulary[token.id].characters
        return {**self._spelled(tokens), "text_offset": offsets}

    def _spelled(self, tokens: Sequence[ScoredToken]) -> dict[str, Any]:
        texts: list[str] = []
        chosen: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        for token in tokens:
            spelling = self._vocabulary[token.id]
            texts.append(spelling.text)
            chosen.append(finite(token.logprobs.chosen) if token.logprobs else None)
            tops.append(self._top(spelling.text, token.logprobs) if token.logprobs else None)
        return {"tokens": texts, "token_logprobs": chosen, "top_logprobs": tops}

    def _top(self, text: str, logprobs: Logprobs) -> dict[str, float]:
        # Keyed by text, two tokens may fall together: the more probable one stays, the chosen one always.
        top: dict[str, float] = {}
        for id, value in logprobs.top:
            top.setdefault(self._vocabulary[id].text, finite(value))
        return {**top, text: finite(logprobs.chosen)}


def chat_form(vocabulary: Vocabulary, tokens: Sequence[ScoredToken]) -> dict[str, Any]:
    """Entries of /v1/chat/completions."""
    return {
        "content": [
            {
                **_entry(vocabulary, token.id, token.logprobs.chosen),
                "top_logprobs": [_entry(vocabulary, id, value) for id, value in token.logprobs.top],
            }
            for token in tokens
            if token.logprobs
        ],
        "refusal": None,
    }


def _entry(vocabulary: Vocabulary, id: int, logprob: float) -> dict[str, Any]:
    spelling = vocabulary[id]
    return {"token": spelling.text, "logprob": finite(logprob), "bytes": list(spelling.bytes)}


def finite(value: float) -> float:
    return max(value, LOWEST) if value == value else LOWEST
