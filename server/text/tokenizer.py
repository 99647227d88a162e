"""Text to ids, and ids back to text piece by piece. No I/O."""

import json
from collections.abc import Sequence
from typing import Any, Protocol

from jinja2 import TemplateError

# Tokens of the prompt's end, which decide how the first token is spelled. No whole character has more tokens.
CONTEXT_TOKENS = 8
# A UTF-8 character has at most 4 bytes, so at most 4 byte tokens; more than that cannot be an incomplete character.
LONGEST_CHARACTER = 4
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Tokenizer(Protocol):
    """What the service needs of a tokenizer; tokenizers of transformers have it."""

    chat_template: Any
    all_special_ids: list[int]

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any: ...
    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str: ...
    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]: ...
    def apply_chat_template(self, conversation: list[dict[str, Any]], *, tokenize: bool, **options: Any) -> str: ...


class TemplateFailed(Exception):
    """The chat template refused the messages; the text is the template's own message."""


def encode(tokenizer: Tokenizer, text: str, add_special_tokens: bool = True) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
    return ids


def render_chat(tokenizer: Tokenizer, conversation: list[dict[str, Any]], options: dict[str, Any]) -> str:
    """The messages as one text, in the form that the model was trained on.

    Raises:
        TemplateFailed: the model's template cannot be filled with these messages.
    """
    try:
        return tokenizer.apply_chat_template(conversation, tokenize=False, **options)
    except TemplateError as error:
        # The template's own message, written for the author of the messages.
        raise TemplateFailed(str(error)[:300]) from error
    except Exception as error:
        # Templates are programs and can fail as programs do.
        raise TemplateFailed("it cannot be filled with them") from error


def tokenizer_info(tokenizer: Tokenizer) -> dict[str, Any]:
    """Its special tokens and chat template, as in a tokenizer_config.json."""
    names = ("bos_token", "eos_token", "pad_token", "unk_token", "chat_template")
    values = {name: getattr(tokenizer, name, None) for name in names}
    if isinstance(templates := values["chat_template"], dict):
        # A tokenizer may have several templates with names. Clients expect one text: the one for conversations.
        values["chat_template"] = templates.get("default")
    texts = {name: value if isinstance(value, str) else None for name, value in values.items()}
    return {"tokenizer_class": type(tokenizer).__name__, **texts}


class Detokenizer:
    """Ids in, text out. An incomplete character is held back until it is complete.

    Each token is decoded together with the tokens of the last released text, and the new text is returned. The reason:
    a token's spelling can depend on the token before it, and a byte token needs the bytes before it. (The decode stream
    of the tokenizers package cannot be flushed, and it raises on sequences that are not UTF-8. Strongly pruned models
    do produce such sequences.)
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], skip_special_tokens: bool = True) -> None:
        self._tokenizer, self._skip_special_tokens = tokenizer, skip_special_tokens
        self._held: list[int] = []
        known = list(prompt_ids[-CONTEXT_TOKENS:])
        # A prompt of ids may end inside a character, which the first generated token then completes.
        while len(self._held) < LONGEST_CHARACTER and self._decode(known).endswith(REPLACEMENT):
            self._held.insert(0, known.pop())
        self._learn(known)

    @property
    def holding(self) -> bool:
        """Whether an incomplete character is held back."""
        return bool(self._held)

    def feed(self, id: int) -> str:
        self._held.append(id)
        text = self._decode(self._known + self._held)
        if text == self._known_text:
            # A special token has no text and completes no character.
            self._held.clear()
            return ""
        if text.endswith(REPLACEMENT) and len(self._held) < LONGEST_CHARACTER:
            return ""
        return self._release(text)

    def flush(self) -> str:
        """The text that is still held back, even if it is incomplete."""
        return self._release(self._decode(self._known + self._held)) if self._held else ""

    def _release(self, text: str) -> str:
        new = text[len(self._known_text) :]
        self._learn(self._held)
        self._held = []
        return new

    def _learn(self, ids: list[int]) -> None:
        self._known, self._known_text = ids, self._decode(ids)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens)


class StopStrings:
    """Text in, text out, up to the first stop string. Text that may begin a stop string is held back."""

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._stops, self._include = stops, include
        self._held = ""
        # The stop string that was found first.
        self.found: str | None = None

    def feed(self, text: str) -> str:
        if not self._stops or self.found is not None:
            return text if self.found is None else ""
        self._held += text
        found = [(start, stop) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if found:
            start, self.found = min(found)
            return self._take(start + len(self.found) if self._include else start)
        return self._take(len(self._held) - self._undecided())

    def flush(self) -> str:
        return self._take(len(self._held)) if self.found is None else ""

    def _undecided(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = min(len(self._held), max(len(stop) for stop in self._stops) - 1)
        return next(
            (n for n in range(longest, 0, -1) if any(stop.startswith(self._held[-n:]) for stop in self._stops)), 0
        )

    def _take(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        return taken


def template_text(tokenizer: Tokenizer) -> str:
    """The chat template; all templates joined if there are several with names."""
    template = tokenizer.chat_template or ""
    return template if isinstance(template, str) else json.dumps(template, default=str)


def special_tokens(tokenizer: Tokenizer) -> dict[int, str]:
    """All special tokens by id. Decoding without special tokens gives them an empty text."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    ids = {*tokenizer.all_special_ids, *(id for id, token in added.items() if token.special)}
    return dict(zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True))


def special_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[int, str]:
    """The texts that are special tokens, by id."""
    wanted = set(texts)
    return {id: text for id, text in special_tokens(tokenizer).items() if text in wanted} if wanted else {}


class TextStream:
    """Generated ids in, printable text out, up to a stop string, which may be a special token."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        stops: Sequence[str],
        *,
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        shown: Sequence[str] = (),
        min_tokens: int = 0,
    ) -> None:
        """
        Args:
            include_stop: end the text after the stop string instead of before it.
            shown: special tokens that are not left out.
            min_tokens: stop strings within so many first tokens do not count.
        """
        self._detokenizer = Detokenizer(tokenizer, prompt_ids, skip_special_tokens)
        self._stops = StopStrings(stops, include_stop)
        self._special_stops = special_ids(tokenizer, stops)
        self._shown = special_ids(tokenizer, shown) if skip_special_tokens else {}
        self._include = include_stop
        self._unstoppable, self._bypassed = min_tokens, False
        # Whether the text ends with a special token that would otherwise be left out.
        self.shows_special = False
        self.begins_in_character = self._detokenizer.holding

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text; None if none did."""
        return self._stops.found

    def feed(self, id: int) -> str:
        if id in self._special_stops and not self._unstoppable:
            return self._stop_at(id)
        text = self._detokenizer.flush() + self._shown[id] if id in self._shown else self._detokenizer.feed(id)
        self._bypassed = self._unstoppable > 0
        if self._bypassed:
            self._unstoppable -= 1
            return text
        return self._stops.feed(text)

    def _stop_at(self, id: int) -> str:
        """The text of a special token that is a stop string, whether or not the text shows it."""
        text = self.flush()
        # The text that was held back may contain another stop string, which came earlier.
        if self._stops.found is None:
            self._stops.found = self._special_stops[id]
            self.shows_special = self._include
            text += self._special_stops[id] if self._include else ""
        self._bypassed = False
        return text

    def flush(self) -> str:
        text = self._detokenizer.flush()
        return text if self._bypassed else self._stops.feed(text) + self._stops.flush()
