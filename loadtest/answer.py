"""Answer: reads what a server sends, in pieces or at once. No I/O: bytes and times are given to it."""

import json
from typing import Any

BAD_ANSWER = "bad answer"
CUT_SHORT = "stream ended early"
# Characters of a server's message that tables show.
LONGEST_MESSAGE = 300


class Answer:
    """One response while it comes. ``error`` is None as long as all is well."""

    def __init__(self) -> None:
        self.text_s: list[float] = []
        self.last_s: float | None = None
        self.finish_reason: str | None = None
        self.error: str | None = None
        self.message = ""
        self._usage: dict[str, Any] = {}
        self._blocks: dict[str, dict[str, Any]] = {}
        self._rest = b""
        self._done = False

    def feed(self, data: bytes, at: float) -> int:
        """Take bytes of a stream that came at one time.

        Returns:
            The number of chunks with text that they complete.
        """
        # Not str.splitlines(): it also splits at U+2028, which a text may contain.
        *lines, self._rest = (self._rest + data).split(b"\n")
        return sum(self._line(line.decode(errors="replace").rstrip("\r"), at) for line in lines)

    def end(self) -> None:
        """The stream is over."""
        if not self._done and self.finish_reason is None:
            self.error = self.error or CUT_SHORT

    def whole(self, body: str) -> None:
        """Take an answer that is not a stream."""
        try:
            value = json.loads(body)
            self.finish_reason = value["choices"][0].get("finish_reason")
            self._take(value)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            self.error, self.message = BAD_ANSWER, body[:LONGEST_MESSAGE]

    def refused(self, status: int, body: str) -> None:
        """Take an HTTP status other than 200, with OpenAI's error code if the body has one."""
        code, self.message = _error_of(body)
        self.error = f"HTTP {status} {code}".strip()

    @property
    def tokens(self) -> int | None:
        return _whole_number(self._usage.get("completion_tokens"))

    @property
    def prompt_tokens(self) -> int | None:
        return _whole_number(self._usage.get("prompt_tokens"))

    @property
    def cached_tokens(self) -> int | None:
        details = self._usage.get("prompt_tokens_details")
        return _whole_number(details.get("cached_tokens")) if isinstance(details, dict) else None

    def block(self, name: str) -> dict[str, Any]:
        """The object ``metrics`` or ``griffin`` of the answer; empty if there is none."""
        return self._blocks.get(name, {})

    def _line(self, line: str, at: float) -> bool:
        # A comment, or a field without use here.
        if not line.startswith("data:"):
            return False
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            self._done = True
            return False
        try:
            return self._event(json.loads(data), at)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            self.error = self.error or BAD_ANSWER
            self.message = self.message or data[:LONGEST_MESSAGE]
            return False

    def _event(self, value: dict[str, Any], at: float) -> bool:
        if value.get("error"):
            code, self.message = _error_in(value)
            self.error = f"in stream: {code}" if code else "in stream"
            return False
        self._take(value)
        if not value.get("choices"):
            return False
        choice = value["choices"][0]
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        self.last_s = at
        delta = choice.get("delta") or {}
        # The first chunk of a chat has the role but no text.
        text = choice.get("text") or delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning")
        if text:
            self.text_s.append(at)
        return bool(text)

    def _take(self, value: dict[str, Any]) -> None:
        if isinstance(value.get("usage"), dict):
            self._usage = value["usage"]
        for name in ("metrics", "griffin"):
            if isinstance(value.get(name), dict):
                self._blocks[name] = value[name]


def _whole_number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _error_of(body: str) -> tuple[str, str]:
    try:
        return _error_in(json.loads(body))
    except (ValueError, TypeError, AttributeError):
        return "", " ".join(body.split())[:LONGEST_MESSAGE]


def _error_in(value: dict[str, Any]) -> tuple[str, str]:
    """The code (or type) and the message of OpenAI's error object. Older servers have them at the top level."""
    error = value.get("error", value)
    if not isinstance(error, dict):
        return "", " ".join(str(error).split())[:LONGEST_MESSAGE]
    # Some servers repeat the status as the code. Then the type says more.
    names = [name for name in (error.get("code"), error.get("type")) if isinstance(name, str) and not name.isdigit()]
    message = " ".join(str(error.get("message") or "").split())
    return (names[0][:60] if names else ""), message[:LONGEST_MESSAGE]
