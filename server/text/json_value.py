"""Reads one JSON value from text that comes piece by piece. Text after the value is left alone."""

import json
import re

# The same depth as a request's own JSON.
DEEPEST = 100
SPACE = " \t\r\n"
ESCAPES = '"\\/bfnrtu'
HEXADECIMAL = "0123456789abcdefABCDEF"
PLAIN = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?|true|false|null")
OPENING = {"{": "key or }", "[": "value or ]"}


class NoJson(Exception):
    """The text is not a JSON value."""


class JsonValue:
    """Takes one character after the other. ``text``: the value so far, without space around it.

    A line end or tab inside a string, which JSON forbids but models write, becomes its escape.
    """

    def __init__(self) -> None:
        self._written: list[str] = []
        self._expected = "value"
        # The kinds of the open containers.
        self._open: list[str] = []
        self._plain = ""
        self._hexadecimal = 0

    @property
    def begun(self) -> bool:
        return bool(self._written)

    @property
    def first(self) -> str:
        """The value's first character, which tells its kind; empty before the value begins."""
        return self._written[0] if self._written else ""

    @property
    def ended(self) -> bool:
        return self._expected == "nothing"

    @property
    def text(self) -> str:
        return "".join(self._written)

    def take(self, character: str) -> str | None:
        """The character as JSON writes it; empty for space before the value. None: it follows the value's end.

        Raises:
            NoJson: with this character the text cannot be a JSON value.
        """
        if self.ended:
            return None
        if self._expected == "string":
            return self._write(self._in_string(character))
        if self._expected == "plain" and not self._goes_on(character):
            self._end()
            return self.take(character)
        if self._expected != "plain":
            if character in SPACE:
                return self._write(character) if self.begun else ""
            self._structure(character)
        return self._write(character)

    def finish(self) -> None:
        """The text has ended, which also ends a number.

        Raises:
            NoJson: the value is incomplete.
        """
        if self._expected == "plain":
            if not PLAIN.fullmatch(self._plain):
                raise NoJson
            self._end()
        if not self.ended:
            raise NoJson

    def _write(self, text: str) -> str:
        self._written.append(text)
        return text

    def _in_string(self, character: str) -> str:
        if self._hexadecimal:
            if character not in HEXADECIMAL:
                raise NoJson
            self._hexadecimal -= 1
        elif self._plain == "\\":
            if character not in ESCAPES:
                raise NoJson
            self._hexadecimal, self._plain = 4 * (character == "u"), ""
        elif character == "\\":
            self._plain = character
        elif character == '"':
            self._end()
        elif character < " ":
            return json.dumps(character)[1:-1]
        return character

    def _goes_on(self, character: str) -> bool:
        """Whether the character continues a number or a word."""
        if character.isalnum() or character in "+-.":
            self._plain += character
            if len(self._plain) > 1024:
                raise NoJson
            return True
        if not PLAIN.fullmatch(self._plain):
            raise NoJson
        return False

    def _structure(self, character: str) -> None:
        expected = self._expected
        if character in ("}", "]") and self._may_close(character):
            self._open.pop()
            self._end()
        elif character == "," and expected == "more":
            self._expected = "key" if self._open[-1] == "{" else "value"
        elif character == ":" and expected == "colon":
            self._expected = "value"
        elif character == '"' and expected in ("key", "key or }"):
            self._open.append('"')
            self._expected = "string"
        elif expected in ("value", "value or ]"):
            self._begin(character)
        else:
            raise NoJson

    def _may_close(self, character: str) -> bool:
        matching = bool(self._open) and self._open[-1] == ("{" if character == "}" else "[")
        return matching and self._expected in ("more", f"key or {character}", f"value or {character}")

    def _begin(self, character: str) -> None:
        if character == '"':
            self._expected = "string"
        elif character in OPENING:
            self._open.append(character)
            self._expected = OPENING[character]
            if len(self._open) > DEEPEST:
                raise NoJson
        elif character in "-0123456789tfn":
            self._expected, self._plain = "plain", character
        else:
            raise NoJson

    def _end(self) -> None:
        """A string, number, word or container has ended."""
        self._plain = ""
        if self._open and self._open[-1] == '"':
            self._open.pop()
            self._expected = "colon"
        else:
            self._expected = "more" if self._open else "nothing"
