"""Log-probabilities in OpenAI's two forms, and the text and bytes of single tokens."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from griffin import Logprobs
from server.text.tokenizer import CONTEXT_TOKENS, REPLACEMENT, Tokenizer

# JSON has no infinity; other servers write this number instead.
LOWEST = -9999.0
CONTINUATION_BYTES = range(0x80, 0xC0)


@dataclass(frozen=True, slots=True)
class Spelling:
    """One token as text and bytes, and how many characters begin in it.

    special: a text may leave the token out.
    whole: its bytes are complete characters.
    """

    text: str
    bytes: bytes
    characters: int
    special: bool
    whole: bool


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of an answer. A prompt's first token has no log-probability.

    hidden: it is not part of the text.
    shown: it is part of the text, although special tokens are left out.
    """

    id: int
    logprobs: Logprobs | None
    hidden: bool = False
    shown: bool = False


class Vocabulary:
    """How each id is spelled after other text. Each id is looked up once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, Spelling] = {}
        self._special = frozenset(tokenizer.all_special_ids)
        # SentencePiece drops the space before a text's first token, so no token is decoded alone.
        self._anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        self._anchor_text = self._decode([])

    def __getitem__(self, id: int) -> Spelling:
        if (spelling := self._known.get(id)) is None:
            spelling = self._known[id] = self._spell(id)
        return spelling

    def spelled_after(self, ids: list[int], id: int, skip_special_tokens: bool) -> str | None:
        """The text that a token adds to the tokens before it; None if it is not a whole character."""
        text, longer = (
            self._tokenizer.decode(part, skip_special_tokens=skip_special_tokens) for part in (ids, [*ids, id])
        )
        spelled = longer.removeprefix(text)
        return None if REPLACEMENT in longer or not longer.startswith(text) else spelled

    def _spell(self, id: int) -> Spelling:
        # The decoder may leave out more tokens than the tokenizer lists as special.
        special = id in self._special or self._decode([id], skip_special_tokens=True) == self._anchor_text
        text = self._decode([id]).removeprefix(self._anchor_text)
        raw = text.encode() if REPLACEMENT not in text else self._bytes(id, text)
        whole = True
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            whole = False
            # OpenAI's notation for bytes that are not a character alone.
            text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
        return Spelling(text, raw, sum(byte not in CONTINUATION_BYTES for byte in raw), special, whole)

    def _bytes(self, id: int, text: str) -> bytes:
        token = self._tokenizer.convert_ids_to_tokens([id])[0] or ""
        if len(token) == 6 and token.startswith("<0x"):
            return bytes([int(token[3:5], 16)])
        if token and all(character in BYTE_OF for character in token):
            return bytes(BYTE_OF[character] for character in token)
        return text.encode()

    def _decode(self, ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return self._tokenizer.decode(self._anchor + ids, skip_special_tokens=skip_special_tokens)


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, other bytes for characters from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(others)}


BYTE_OF = _byte_level_alphabet()


@dataclass(frozen=True, slots=True)
class Part:
    """The text of one token within a text, and how many characters it takes.

    text: empty if the text leaves the token out.
    size: for a token that is not a whole character, the number of characters that begin in it.
    """

    token: ScoredToken
    text: str
    size: int


class LegacyForm:
    """The four arrays of /v1/completions, for one choice. Offsets continue from piece to piece.

    If all tokens are whole characters, joining them gives the text.
    """

    def __init__(self, vocabulary: Vocabulary, hide_special: bool, prompt_ids: Sequence[int] = ()) -> None:
        """
        Args:
            hide_special: special tokens are left out of the generated text.
            prompt_ids: ids that precede the generated ones.
        """
        self._vocabulary, self._hide_special = vocabulary, hide_special
        self._before = list(prompt_ids[-CONTEXT_TOKENS:])
        # Whether the last token was an ordinary one; after it, every token has its usual spelling.
        self._after_ordinary = False
        # Characters of the text so far, and of the parts listed so far.
        self._length = self._offset = 0
        self._pending: deque[Part] = deque()

    def echo(self, tokens: Sequence[ScoredToken], text: str) -> dict[str, Any]:
        """The arrays of a prompt. Each token is located in the echoed text, which may lack some tokens."""
        parts: list[Part] = []
        place = 0
        for special, run in groupby(tokens, lambda token: self._vocabulary[token.id].special):
            find = self._special if special else self._ordinary
            found = find(list(run), text, place)
            parts += found
            place = min(place + sum(part.size for part in found), len(text))
        arrays = self._listed(parts, len(text))
        self._length = self._offset = len(text)
        return arrays

    def _special(self, run: Sequence[ScoredToken], text: str, place: int) -> list[Part]:
        """Special tokens at a position in a text. The text lacks those that the tokenizer added."""
        parts: list[Part] = []
        for token in run:
            spelled = self._vocabulary[token.id].text
            there = spelled if text.startswith(spelled, place) else ""
            parts.append(Part(token, there, len(there)))
            place += len(there)
        return parts

    def _ordinary(self, run: Sequence[ScoredToken], text: str, place: int) -> list[Part]:
        """Tokens between special ones. SentencePiece may have put a space before them that the text lacks."""
        spelled = [self._vocabulary[token.id] for token in run]
        for first in (spelled[0].text, spelled[0].text.removeprefix(" ")):
            texts = [first, *(each.text for each in spelled[1:])]
            parts = [
                Part(token, text, len(text) if each.whole else each.characters)
                for token, text, each in zip(run, texts, spelled, strict=True)
            ]
            if _stands_at(place, parts, spelled, text):
                return parts
        # The tokenizer has changed the text.
        return [Part(token, each.text, each.characters) for token, each in zip(run, spelled, strict=True)]

    def generated(self, tokens: Sequence[ScoredToken], text: str, *, last: bool, stopped: bool) -> dict[str, Any]:
        """The arrays of generated tokens and their text. Tokens whose text is still held back are listed later.

        Args:
            last: no tokens follow, so all are listed.
            stopped: a stop string ended the text, perhaps before the end of its tokens or inside one.
        """
        self._pending += map(self._part, tokens)
        self._length += len(text)
        parts, end = [], self._offset
        while self._pending and (last or end + self._pending[0].size <= self._length):
            part = self._pending.popleft()
            parts.append(self._cut(part, self._length - end) if stopped else part)
            end += parts[-1].size
        return self._listed(parts, self._length)

    def _part(self, token: ScoredToken) -> Part:
        spelling = self._vocabulary[token.id]
        spelled = (
            None if self._after_ordinary else self._vocabulary.spelled_after(self._before, token.id, self._hide_special)
        )
        self._before = [*self._before[1 - CONTEXT_TOKENS :], token.id]
        if token.shown:
            return Part(token, spelling.text, len(spelling.text))
        if token.hidden or (self._hide_special and spelling.special):
            return Part(token, "", 0)
        self._after_ordinary = not spelling.special
        return (
            Part(token, spelling.text, spelling.characters) if spelled is None else Part(token, spelled, len(spelled))
        )

    @staticmethod
    def _cut(part: Part, room: int) -> Part:
        if part.size <= room:
            return part
        return Part(part.token, part.text[:room], room)

    def _listed(self, parts: Sequence[Part], length: int) -> dict[str, Any]:
        offsets: list[int] = []
        for part in parts:
            offsets.append(min(self._offset, length))
            self._offset += part.size
        scores = [part.token.logprobs for part in parts]
        return {
            "tokens": [part.text for part in parts],
            "token_logprobs": [finite(score.chosen) if score else None for score in scores],
            "top_logprobs": [
                self._top(part, score) if score else None for part, score in zip(parts, scores, strict=True)
            ],
            "text_offset": offsets,
        }

    def _top(self, part: Part, logprobs: Logprobs) -> dict[str, float]:
        # Two tokens may have the same text as key: the more probable one stays, and the chosen one always stays.
        # The chosen token has the same key as in the list of tokens, or its own spelling if the text leaves it out.
        top: dict[str, float] = {}
        for id, value in logprobs.top:
            if id != part.token.id:
                top.setdefault(self._vocabulary[id].text, finite(value))
        return {**top, part.text or self._vocabulary[part.token.id].text: finite(logprobs.chosen)}


def _stands_at(place: int, parts: Sequence[Part], spelled: Sequence[Spelling], text: str) -> bool:
    """Whether a text has these parts at a position. Parts that are not whole characters are not compared."""
    for part, each in zip(parts, spelled, strict=True):
        if each.whole and not text.startswith(part.text, place):
            return False
        place += part.size
    return True


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
