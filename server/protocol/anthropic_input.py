"""``messages`` and ``system`` of POST /v1/messages: texts, or blocks."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema

from server.protocol.conversation import Conversation, Turns, strangers
from server.protocol.fields import MAX_KEYS, MAX_NODES, few_keys, refuse, small
from server.protocol.message import MAX_MESSAGES, MAX_PARTS, part_text, text_field, text_of, unicode_at

TEXT = {"text": "text"}
# Valid on all blocks. Equal beginnings of prompts are reused, whether marked or not.
_COMMON = frozenset({"type", "cache_control"})
KNOWN = {
    "text": _COMMON | {"text", "citations"},
    "tool_use": _COMMON | {"id", "name", "input", "caller"},
    "tool_result": _COMMON | {"tool_use_id", "content", "is_error"},
    "thinking": _COMMON | {"thinking", "signature"},
    # Only Anthropic can read this block.
    "redacted_thinking": _COMMON,
}
# A line that Claude Code puts before its instructions, for Anthropic's accounting. It differs from request to request,
# so that no beginning of a prompt could be used again.
BILLING = "x-anthropic-billing-header:"
OF_ROLE = {"user": ("text", "tool_result"), "assistant": ("text", "tool_use", "thinking", "redacted_thinking")}


def _messages(value: Any) -> Conversation:
    if not isinstance(value, list):
        raise ValueError('must be a list of objects, such as [{"role": "user", "content": "Hi"}]')
    if not 0 < len(value) <= MAX_MESSAGES:
        raise ValueError(f"has {len(value)} messages; 1 to {MAX_MESSAGES} are supported")
    said = Messages()
    for index, message in enumerate(value):
        said.add(message, f"[{index}]")
    said.turns.end()
    if not said.turns.messages:
        raise ValueError("must have a message")
    return Conversation(said.turns.messages, said.ignored)


@dataclass(frozen=True, slots=True)
class Instructions:
    """The system's text, and paths of blocks that are left out."""

    text: str
    ignored: Sequence[str] = ()


class Messages:
    """Messages become turns: tool results become turns of their own, before the user's other text."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.ignored: list[str] = []

    def add(self, message: Any, where: str) -> None:
        """
        Raises:
            PydanticCustomError: it is not a message, or contains a block that is not supported.
        """
        if not isinstance(message, dict):
            refuse(where, 'must be an object with a role and a content, such as {"role": "user", "content": "Hi"}')
        few_keys(message)
        role, content = message.get("role"), message.get("content")
        if role not in ("user", "assistant", "system"):
            refuse(f"{where}.role", "must be user, assistant or system")
        self.ignored += strangers(message, frozenset({"role", "content"}), f"messages{where}")
        if role == "system":
            told = _instructions(content, f"{where}.content")
            self.ignored += [f"messages{path}" for path in told.ignored]
            if told.text or not told.ignored:
                self.turns.say("system", told.text)
            return
        if isinstance(content, str):
            self.turns.say(role, unicode_at(content, f"{where}.content"))
            return
        if not isinstance(content, list):
            refuse(f"{where}.content", "must be a text, or a list of blocks")
        if len(content) > MAX_PARTS:
            refuse(f"{where}.content", f"has {len(content)} blocks; at most {MAX_PARTS} are supported")
        self._blocks(role, content, f"{where}.content")

    def _blocks(self, role: str, blocks: list[Any], where: str) -> None:
        said: list[str] = []
        calls: list[Callable[[], None]] = []
        for index, block in enumerate(blocks):
            path = f"{where}[{index}]"
            kind = _kind(block)
            if kind not in OF_ROLE[role] or kind == "text":
                said.append(self._text(role, block, path))
            elif kind == "tool_result":
                self._result(block, path)
            elif kind == "tool_use":
                calls.append(self._call(block, path))
            elif kind == "thinking":
                self.turns.think(text_field(block, "thinking", path))
            if kind in KNOWN:
                self.ignored += strangers(block, KNOWN[kind], f"messages{path}")
        if role == "assistant":
            self.turns.say("assistant", "".join(said))
        elif said or not blocks:
            self.turns.say("user", "".join(said))
        for call in calls:
            call()

    def _text(self, role: str, block: Any, path: str) -> str:
        kind = _kind(block)
        if kind in KNOWN and kind not in OF_ROLE[role]:
            refuse(f"{path}.type", f"is {kind}, which a message of role {role} cannot contain")
        return part_text(block, path, TEXT)

    def _call(self, block: dict[str, Any], path: str) -> Callable[[], None]:
        id, name, given = _name(block, "id", path), _name(block, "name", path), block.get("input", {})
        if not isinstance(given, dict):
            refuse(f"{path}.input", "must be an object")
        small(given, MAX_NODES * 8)
        return lambda: self.turns.call(id, name, json.dumps(given, ensure_ascii=False), f"{path}.id")

    def _result(self, block: dict[str, Any], path: str) -> None:
        id, failed = _name(block, "tool_use_id", path), block.get("is_error")
        if failed not in (None, True, False):
            refuse(f"{path}.is_error", "must be true or false")
        text = text_of(block.get("content"), TEXT, f"{path}.content") or ""
        if failed and not text.lower().startswith("error"):
            # No template has another place for the error flag.
            text = f"Error: {text}"
        self.turns.answer(id, text, f"{path}.tool_use_id")


def _kind(block: Any) -> str:
    """The type of a block; empty if it has none."""
    kind = block.get("type") if isinstance(block, dict) else None
    return kind if isinstance(kind, str) else ""


def _name(block: Mapping[str, Any], name: str, where: str) -> str:
    return text_field(block, name, where) or refuse(f"{where}.{name}", "must not be empty")


def _system(value: Any) -> Instructions:
    return _instructions(value, "")


def _instructions(value: Any, where: str) -> Instructions:
    """The text of a system's content. Blocks become paragraphs."""
    if isinstance(value, str):
        texts = {where: unicode_at(value, where)}
    elif isinstance(value, list) and len(value) <= MAX_PARTS:
        texts = {f"{where}[{index}]": part_text(block, f"{where}[{index}]", TEXT) for index, block in enumerate(value)}
    else:
        refuse(where, f"must be a text, or a list of at most {MAX_PARTS} blocks of type text")
    left_out = [path for path, text in texts.items() if text.startswith(BILLING) and "\n" not in text.strip()]
    return Instructions("\n\n".join(filter(None, (texts[path] for path in texts if path not in left_out))), left_out)


def _block(kind: str, required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "title": kind,
        "type": "object",
        "properties": {"type": {"const": kind}, **properties},
        "required": ["type", *required],
    }


_STRING = {"type": "string"}
_ID = {"type": "string", "minLength": 1}
_TEXT_BLOCK = _block("text", ["text"], text=_STRING)
_TEXTS: dict[str, Any] = {"type": "array", "items": _TEXT_BLOCK, "maxItems": MAX_PARTS}
_OF_USER = [
    _TEXT_BLOCK,
    _block("tool_result", ["tool_use_id"], tool_use_id=_ID, is_error={"type": ["boolean", "null"]},
           content={"anyOf": [_STRING, _TEXTS, {"type": "null"}]}),
]  # fmt: skip
_OF_ASSISTANT = [
    _TEXT_BLOCK,
    _block("tool_use", ["id", "name"], id=_ID, name=_ID, input={"type": "object"}),
    _block("thinking", ["thinking"], thinking=_STRING),
    _block("redacted_thinking", []),
]


def _turn(role: str, blocks: list[dict[str, Any]]) -> dict[str, Any]:
    content = {"anyOf": [_STRING, {"type": "array", "items": {"anyOf": blocks}, "maxItems": MAX_PARTS}]}
    properties = {"role": {"const": role}, "content": content}
    return {"type": "object", "properties": properties, "required": ["role", "content"], "maxProperties": MAX_KEYS}


Said = Annotated[
    Conversation,
    PlainValidator(_messages),
    WithJsonSchema(
        {
            "type": "array",
            "items": {
                "anyOf": [_turn("user", _OF_USER), _turn("assistant", _OF_ASSISTANT), _turn("system", [_TEXT_BLOCK])]
            },
            "minItems": 1,
            "maxItems": MAX_MESSAGES,
        }
    ),
]
System = Annotated[Instructions, PlainValidator(_system), WithJsonSchema({"anyOf": [_STRING, _TEXTS]})]
