"""What newer APIs' input comes to: the messages that a chat template takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from server.protocol.fields import refuse
from server.protocol.message import Message, Role
from server.protocol.tool import CalledFunction, Offered, ToolCall


class Templated(Protocol):
    """A body that a chat template makes a prompt of.

    said_in: its field with what was said. thinks: it asks for thoughts, by ``thinking_field``.
    """

    thinking_field: ClassVar[str]

    @property
    def thinks(self) -> bool: ...

    @property
    def said_in(self) -> str: ...

    def conversation(self) -> list[dict[str, Any]]:
        """As chat templates take it: each message has a role and a text."""

    def template_options(self) -> dict[str, Any]:
        """What else the template is told."""

    def offered(self) -> Offered | None:
        """The tools that an answer may call, if there are any."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, and paths of keys that have no meaning here."""

    messages: Sequence[Message]
    ignored: Sequence[str]


class Turns:
    """Messages as they are put together, one after the other. Each call has an answer after it."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._reasoning = ""
        # Calls without an answer so far, and the field that names each.
        self._pending: dict[str, str] = {}

    def say(self, role: Role, text: str) -> None:
        """A message of its own."""
        self._add(Message.model_construct(role=role, content=text))

    def think(self, text: str) -> None:
        """Before the assistant's next message: how it came to it."""
        self._reasoning += text

    def call(self, id: str, name: str, arguments: str, where: str) -> None:
        """In the assistant's message before it, or in a new one.

        Args:
            where: the field with the id.

        Raises:
            PydanticCustomError: a call before it has the same id, and no answer.
        """
        if id in self._pending:
            refuse(where, "two calls have the same")
        self._pending[id] = where
        last = self.messages[-1] if self.messages else None
        if last is None or last.role != "assistant" or self._reasoning:
            self.say("assistant", "")
            last = self.messages[-1]
        function = CalledFunction.model_construct(name=name, arguments=arguments)
        made = ToolCall.model_construct(id=id, type="function", function=function)
        last.tool_calls = [*(last.tool_calls or ()), made]

    def answer(self, id: str, text: str, where: str) -> None:
        """What a call gave.

        Raises:
            PydanticCustomError: there is no such call before it.
        """
        if self._pending.pop(id, None) is None:
            refuse(where, "answers no call before it")
        self._add(Message.model_construct(role="tool", content=text, tool_call_id=id))

    def require_answered(self) -> None:
        """Raises PydanticCustomError where a call has no answer."""
        for id, where in self._pending.items():
            refuse(where, f"nothing after it answers {id[:64]!r}; each call must have an answer")

    def _add(self, message: Message) -> None:
        if message.role == "assistant" and self._reasoning:
            message.reasoning_content, self._reasoning = self._reasoning, ""
        self.messages.append(message)


def instructed(instructions: str, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages for a template, after instructions. One of the system at their beginning goes on with these: many
    templates take a single one."""
    said = [message.for_template() for message in messages]
    if not instructions:
        return said
    first, rest = (said[0], said[1:]) if said[0]["role"] == "system" else (None, said)
    texts = [instructions, *([first["content"]] if first else [])]
    return [{"role": "system", "content": "\n\n".join(texts)}, *rest]


def strangers(value: Mapping[str, Any], known: frozenset[str], where: str) -> list[str]:
    """Paths of keys that are not known, if they have a value."""
    return [f"{where}.{name}" for name in sorted(set(value) - known) if value[name] not in (None, "", [], {}, False)]
