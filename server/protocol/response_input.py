"""``input`` of POST /v1/responses: a text, or items."""

from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema

from server.protocol.conversation import Conversation, Turns, strangers
from server.protocol.fields import MAX_KEYS, few_keys, refuse, require_unicode
from server.protocol.message import MAX_MESSAGES, MAX_PARTS, Role, text_field, text_of

ROLES: tuple[Role, ...] = ("user", "assistant", "system", "developer")
# Types of parts, and the key that holds the text of each.
SAID = {"input_text": "text", "output_text": "text"}
SAID_BY_ASSISTANT = {"output_text": "text", "input_text": "text", "refusal": "refusal"}
THOUGHTS = {"reasoning_text": "text"}
SUMMARY = {"summary_text": "text"}
# Fields of items that repeat names of earlier answers.
_NAMES = frozenset({"type", "id", "status"})
KNOWN = {
    "message": _NAMES | {"role", "content", "phase"},
    "function_call": _NAMES | {"call_id", "name", "arguments"},
    "function_call_output": _NAMES | {"call_id", "output"},
    "reasoning": _NAMES | {"summary", "content"},
}


def _input(value: Any) -> Conversation:
    turns = Turns()
    if isinstance(value, str):
        require_unicode(value)
        turns.say("user", value)
        return Conversation(turns.messages, ())
    if not isinstance(value, list):
        raise ValueError('must be a text, or a list of items, such as [{"role": "user", "content": "Hi"}]')
    if not 0 < len(value) <= MAX_MESSAGES:
        raise ValueError(f"has {len(value)} items; 1 to {MAX_MESSAGES} are supported")
    items = Items(turns)
    for index, item in enumerate(value):
        items.add(item, f"[{index}]")
    turns.end()
    return Conversation(turns.messages, items.ignored)


class Items:
    """Builds turns from items."""

    def __init__(self, turns: Turns) -> None:
        self.ignored: list[str] = []
        self._turns = turns

    def add(self, item: Any, where: str) -> None:
        """
        Raises:
            PydanticCustomError: it is not an item, or not a supported one.
        """
        if not isinstance(item, dict):
            refuse(where, 'must be an item, such as {"role": "user", "content": "Hi"}')
        few_keys(item)
        kind = item.get("type")
        if kind is None and "role" in item:
            kind = "message"
        match kind:
            case "message":
                self._message(item, where)
            case "function_call":
                self._call(item, where)
            case "function_call_output":
                self._answer(item, where)
            case "reasoning":
                self._turns.think(
                    _text(item, "content", where, THOUGHTS, optional=True)
                    or _text(item, "summary", where, SUMMARY, optional=True)
                )
            case None:
                refuse(f"{where}.type", f"is required: one of {', '.join(KNOWN)}", "missing_required_parameter")
            case "item_reference":
                why = "is item_reference: this server keeps no items; send the item itself"
                refuse(f"{where}.type", why, "unsupported_parameter")
            case _:
                why = f"is {str(kind)[:64]!r}: only {', '.join(KNOWN)} are supported"
                refuse(f"{where}.type", why, "unsupported_parameter")
        self.ignored += strangers(item, KNOWN[kind], f"input{where}")

    def _message(self, item: dict[str, Any], where: str) -> None:
        role = item.get("role")
        if role not in ROLES:
            refuse(f"{where}.role", f"must be one of {', '.join(ROLES)}")
        texts = SAID_BY_ASSISTANT if role == "assistant" else SAID
        self._turns.say(role, _text(item, "content", where, texts))

    def _call(self, item: dict[str, Any], where: str) -> None:
        id, name = _name(item, "call_id", where), _name(item, "name", where)
        self._turns.call(id, name, text_field(item, "arguments", where), f"{where}.call_id")

    def _answer(self, item: dict[str, Any], where: str) -> None:
        id, text = _name(item, "call_id", where), _text(item, "output", where, SAID)
        self._turns.answer(id, text, f"{where}.call_id")


def _name(item: dict[str, Any], name: str, where: str) -> str:
    return text_field(item, name, where) or refuse(f"{where}.{name}", "must not be empty")


def _text(item: dict[str, Any], name: str, where: str, texts: dict[str, str], *, optional: bool = False) -> str:
    """The text of a field that contains a text or parts."""
    path = f"{where}.{name}"
    if (value := item.get(name)) is None and not optional:
        refuse(path, "is required", "missing_required_parameter")
    return text_of(value, texts, path) or ""


def _parts(*kinds: str) -> dict[str, Any]:
    said = [
        {
            "type": "object",
            "properties": {"type": {"const": kind}, SAID_BY_ASSISTANT.get(kind, "text"): {"type": "string"}},
            "required": ["type", SAID_BY_ASSISTANT.get(kind, "text")],
        }
        for kind in kinds
    ]
    return {"type": "array", "items": {"anyOf": said}, "maxItems": MAX_PARTS}


def _item(kind: str, required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "title": kind,
        "type": "object",
        "properties": {"type": {"const": kind} if "type" in required else {"enum": [kind, None]}, **properties},
        "required": required,
        "maxProperties": MAX_KEYS,
    }


_TEXT = {"type": "string"}
_ID = {"type": "string", "minLength": 1}
_ITEMS = [
    _item("message", ["role", "content"], role={"enum": [role for role in ROLES if role != "assistant"]},
          content={"anyOf": [_TEXT, _parts(*SAID)]}),
    _item("message", ["role", "content"], role={"const": "assistant"},
          content={"anyOf": [_TEXT, _parts(*SAID_BY_ASSISTANT)]}),
    _item("function_call", ["type", "call_id", "name", "arguments"], call_id=_ID, name=_ID, arguments=_TEXT),
    _item("function_call_output", ["type", "call_id", "output"], call_id=_ID,
          output={"anyOf": [_TEXT, _parts(*SAID)]}),
    _item("reasoning", ["type"], content={"anyOf": [_TEXT, _parts(*THOUGHTS), {"type": "null"}]},
          summary={"anyOf": [_TEXT, _parts(*SUMMARY), {"type": "null"}]}),
]  # fmt: skip
Input = Annotated[
    Conversation,
    PlainValidator(_input),
    WithJsonSchema(
        {"anyOf": [_TEXT, {"type": "array", "items": {"anyOf": _ITEMS}, "minItems": 1, "maxItems": MAX_MESSAGES}]}
    ),
]
