"""Reads one call as models write it: a JSON object with a name and arguments."""

import json
from collections.abc import Set
from dataclasses import dataclass

from server.text.json_value import SPACE, JsonValue, NoJson

NAMES = ("name", "function")
ARGUMENTS = ("arguments", "parameters")
# Other keys that models write beside them.
BESIDE = ("type", "id")


@dataclass(frozen=True, slots=True)
class CallPart:
    """What a piece of text adds to a call.

    index: number of the call in its answer.
    name: the tool's name, in the call's first part; None in all other parts.
    arguments: a piece of a JSON object.
    """

    index: int
    name: str | None
    arguments: str


class CallText:
    """Reads one call, character by character.

    name: once it is known. arguments: JSON so far, in the order of the text. complete: nothing is missing but the
    object's end.
    """

    def __init__(self, tools: Set[str], *, sure: bool, name: str | None = None) -> None:
        """
        Args:
            tools: names that a call may have.
            sure: a mark has said that this is a call. Otherwise it must have arguments, and no strange key before.
            name: of the tool, if the text is the arguments alone.
        """
        self.name = self.arguments = ""
        self.complete = self.ended = False
        self._tools, self._sure = tools, sure
        self._state = "object"
        self._key = ""
        self._value = JsonValue()
        self._nested = False
        if name is not None:
            self._named(name)
            self._key, self._state = ARGUMENTS[0], "value"
        self._alone = name is not None

    def take(self, character: str) -> bool:
        """Take a character. False: it follows the call.

        Raises:
            NoJson: the text is not a call of a tool.
        """
        if self.ended:
            return False
        if self._state == "value":
            return self._in_value(character)
        if self._state == "key" and (self._value.begun or character == '"'):
            self._in_key(character)
        elif character not in SPACE:
            self._structure(character)
        return True

    def finish(self) -> None:
        """The answer has ended. Braces that are missing at the end are forgiven.

        Raises:
            NoJson: the call lacks more.
        """
        if not self.complete:
            raise NoJson
        self.ended = True

    def _structure(self, character: str) -> None:
        state = self._state
        if character == "{" and state in ("object", "nested"):
            self._nested = state == "nested"
            self._expect_key()
        elif character == ":" and state == "colon":
            self._state, self._value = "value", JsonValue()
        elif character == "," and state == "more":
            self._expect_key()
        elif character == "}" and state in ("more", "key"):
            self._close()
        else:
            raise NoJson

    def _expect_key(self) -> None:
        self._state, self._value = "key", JsonValue()

    def _close(self) -> None:
        if self._nested:
            self._nested, self._state = False, "more"
            return
        if not self.name or not (self._sure or self.arguments):
            raise NoJson
        self.arguments = self.arguments or "{}"
        self.complete = self.ended = True

    def _in_key(self, character: str) -> None:
        self._value.take(character)
        if self._value.ended:
            self._key, self._state = json.loads(self._value.text), "colon"
            if self._key in ARGUMENTS and self.arguments:
                # It is unclear which of the two is meant.
                raise NoJson
            if not self._sure and not self.arguments and self._key not in (*NAMES, *ARGUMENTS, *BESIDE):
                raise NoJson

    def _in_value(self, character: str) -> bool:
        value = self._value
        if not value.begun and character == "{" and self._key == "function" and not self._nested:
            self._state = "nested"
            self._structure(character)
            return True
        taken = value.take(character)
        if self._key in ARGUMENTS and taken and value.first == "{":
            self.arguments += taken
        if value.ended:
            self._end_value()
            if taken is None:
                # A number ends with the character after it.
                return self.take(character)
        return True

    def _end_value(self) -> None:
        value, self._state = json.loads(self._value.text), "more"
        if self._key in ARGUMENTS:
            self._argued(value)
        elif self._key in NAMES and isinstance(value, str) and not self.name:
            self._named(value)
        if self._alone:
            self.ended = self.complete

    def _named(self, name: str) -> None:
        if name not in self._tools:
            raise NoJson
        self.name = name
        self.complete = bool(self.arguments)

    def _argued(self, value: object) -> None:
        if isinstance(value, str):
            self.arguments = object_text(value)
        elif value is None:
            self.arguments = "{}"
        elif not isinstance(value, dict):
            raise NoJson
        self.complete = bool(self.name)


def object_text(text: str) -> str:
    """JSON inside JSON: the text of an object, which may be missing.

    Raises:
        NoJson: it is not an object.
    """
    value, text = JsonValue(), text.strip() or "{}"
    for character in text:
        if value.take(character) is None:
            raise NoJson
    value.finish()
    if value.first != "{":
        raise NoJson
    try:
        value.text.encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair.
        raise NoJson from None
    return value.text
