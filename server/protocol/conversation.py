"""The messages of a chat template, built from the input of newer APIs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from server.protocol.fields import refuse
from server.protocol.message import Message, Role
from server.protocol.tool import CalledFunction, Offered, ToolCall


class Templated(Protocol):
    """A body from which a chat template makes a prompt.

    said_in: the field with the conversation. thinks: the request asks for thoughts, in the field ``thinking_field``.
    """

    thinking_field: ClassVar[str]

    @property
    def thinks(self) -> bool: ...

    @property
    def said_in(self) -> str: ...

    def conversation(self) -> list[dict[str, Any]]:
        """Messages for chat templates: each has a role and a text."""

    def template_options(self) -> dict[str, Any]:
        """Further options for the template."""

    def offered(self) -> Offered | None:
        """The tools that an answer may call; None if there are none."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, and paths of unknown keys."""

    messages: Sequence[Message]
    ignored: Sequence[str]


class Turns:
    """Builds messages one after the other. Each call must be followed by its result."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._reasoning = ""
        # Ids of calls without a result so far, each with the field that names it.
        self._pending: dict[str, str] = {}

    def say(self, role: Role, text: str) -> None:
        """Add a message."""
        self._add(Message.model_construct(role=role, content=text))

    def think(self, text: str) -> None:
        """Add a thought that precedes the assistant's next message. If none follows, it is a message by itself."""
        self._reasoning += text

    def call(self, id: str, name: str, arguments: str, where: str) -> None:
        """Add a call to the assistant's last message, or to a new one.

        Args:
            where: the field that contains the id.

        Raises:
            PydanticCustomError: an earlier call without a result has the same id.
        """
        if id in self._pending:
            refuse(where, "two calls have the same id")
        self._pending[id] = where
        last = self.messages[-1] if self.messages else None
        if last is None or last.role != "assistant" or self._reasoning:
            self.say("assistant", "")
            last = self.messages[-1]
        function = CalledFunction.model_construct(name=name, arguments=arguments)
        made = ToolCall.model_construct(id=id, type="function", function=function)
        last.tool_calls = [*(last.tool_calls or ()), made]

    def answer(self, id: str, text: str, where: str) -> None:
        """Add the result of a call.

        Raises:
            PydanticCustomError: no earlier call has this id.
        """
        if self._pending.pop(id, None) is None:
            refuse(where, "answers no call before it")
        self._add(Message.model_construct(role="tool", content=text, tool_call_id=id))

    def end(self) -> None:
        """The input has ended.

        Raises:
            PydanticCustomError: a call has no result.
        """
        self._settle()
        for id, where in self._pending.items():
            refuse(where, f"nothing after it answers {id[:64]!r}; each call must be followed by its result")

    def _add(self, message: Message) -> None:
        if message.role == "assistant" and self._reasoning:
            message.reasoning_content, self._reasoning = self._reasoning, ""
        elif message.role != "tool":
            self._settle()
        self.messages.append(message)

    def _settle(self) -> None:
        """A thought that no message of the assistant followed, as of an answer that ended inside its thought."""
        if self._reasoning:
            self.say("assistant", "")


def instructed(instructions: str, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages for a template, after the instructions. A first message of role system is joined to the instructions,
    because many templates take a single one."""
    said = [message.for_template() for message in messages]
    if not instructions:
        return said
    first, rest = (said[0], said[1:]) if said[0]["role"] == "system" else (None, said)
    texts = [instructions, *([first["content"]] if first else [])]
    return [{"role": "system", "content": "\n\n".join(texts)}, *rest]


def strangers(value: Mapping[str, Any], known: frozenset[str], where: str) -> list[str]:
    """Paths of keys that are not known and have a value."""
    return [f"{where}.{name}" for name in sorted(set(value) - known) if value[name] not in (None, "", [], {}, False)]
