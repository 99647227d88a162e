"""One message of a conversation, and the parts of its content."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from server.protocol.elsewhere import REFUSED_IN_MESSAGES, require_supported
from server.protocol.fields import MAX_KEYS, Text, few_keys, refuse, require_unicode
from server.protocol.tool import Calls

Role = Literal["system", "developer", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = get_args(Role)
MAX_MESSAGES = 2048
MAX_PARTS = 1024
# Content parts that are not supported, by type.
MEDIA = {
    "image_url": "images", "image": "images", "input_image": "images", "image_file": "images",
    "input_audio": "audio", "audio_url": "audio", "audio": "audio", "video_url": "videos", "video": "videos",
    "file": "files", "input_file": "files", "document": "documents",
}  # fmt: skip
# An assistant's types of parts, and the key that holds the text of each.
TEXTS = {"text": "text", "refusal": "refusal"}


def _role(value: object) -> object:
    if value not in ROLES:
        raise ValueError(f"must be one of {', '.join(ROLES)}")
    return value


def _content(value: object, info: ValidationInfo) -> str | None:
    """The content as one text."""
    return text_of(value, TEXTS if info.data.get("role") == "assistant" else {"text": "text"})


def text_of(value: object, texts: Mapping[str, str], where: str = "") -> str | None:
    """The text of a content, which is a text or a list of parts. None stays None.

    The parts are checked here, because pydantic would list every error of a million parts.

    Args:
        texts: the allowed types of parts, the usual one first, and the key of each type's text.

    Raises:
        PydanticCustomError: it is neither; names the part at fault, with a path that begins with ``where``.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return unicode_at(value, where)
    usual = next(iter(texts))
    if not isinstance(value, list):
        refuse(where, f"must be a text, or a list of parts of type {usual}")
    if len(value) > MAX_PARTS:
        refuse(where, f"has {len(value)} parts; at most {MAX_PARTS} are supported")
    return "".join(part_text(part, f"{where}[{index}]", texts) for index, part in enumerate(value))


def part_text(part: object, where: str, texts: Mapping[str, str]) -> str:
    """The text of one part; see ``text_of``."""
    usual = next(iter(texts))
    if not isinstance(part, dict):
        refuse(where, f'must be a part, such as {{"type": "{usual}", "text": "Hi"}}')
    kind = part.get("type")
    if kind is None:
        refuse(f"{where}.type", f"is required: {usual}", "missing_required_parameter")
    if isinstance(kind, str) and kind in MEDIA:
        why = f"is of type {kind}: {MEDIA[kind]} are not supported; this server serves text models: send parts of "
        refuse(where, f"{why}type {usual}", "unsupported_parameter")
    if not isinstance(kind, str) or kind not in texts:
        refuse(f"{where}.type", f"must be {usual}")
    return text_field(part, texts[kind], where)


def text_field(value: Mapping[str, Any], name: str, where: str) -> str:
    """A required text.

    Raises:
        PydanticCustomError: it is missing or not a text.
    """
    path = f"{where}.{name}" if where else name
    if (text := value.get(name)) is None:
        refuse(path, "is required", "missing_required_parameter")
    if not isinstance(text, str):
        refuse(path, "must be a text")
    return unicode_at(text, path)


def unicode_at(text: str, where: str) -> str:
    """Raises PydanticCustomError with the field's name; see ``require_unicode``."""
    try:
        require_unicode(text)
    except ValueError as error:
        refuse(where, str(error))
    return text


def _part_schema(kind: str) -> dict[str, Any]:
    text = TEXTS[kind]
    properties = {"type": {"const": kind}, text: {"type": "string"}}
    return {"type": "object", "properties": properties, "required": ["type", text]}


def _content_schema(*kinds: str) -> dict[str, Any]:
    parts = [_part_schema(kind) for kind in kinds]
    items = {"anyOf": parts} if len(parts) > 1 else parts[0]
    return {
        "anyOf": [{"type": "string"}, {"type": "array", "items": items, "maxItems": MAX_PARTS}],
        "description": "a text, or parts of type text",
    }


def _by_role(schema: dict[str, Any]) -> None:
    """In the schema: only an assistant's message may lack content and have calls; only a tool's message answers one."""
    properties = schema.pop("properties")
    calls, answered = properties["tool_calls"], properties["tool_call_id"]
    common = {name: properties[name] for name in ("name", "reasoning_content", "reasoning")}
    common |= {name: {"enum": [None, *field.nothing]} for name, field in REFUSED_IN_MESSAGES.items()}
    said = _content_schema(*TEXTS)
    said["anyOf"].append({"type": "null"})
    no_calls: dict[str, Any] = {"tool_calls": {"enum": [None, []]}}
    no_answer: dict[str, Any] = {"tool_call_id": {"enum": [None, ""]}}
    text = _content_schema("text")
    others = {"role": {"enum": ["system", "developer", "user"]}, "content": text, **no_calls, **no_answer}
    tool = {"role": {"const": "tool"}, "content": text, **no_calls}
    tool["tool_call_id"] = {"type": "string", "minLength": 1, "description": answered["description"]}
    assistant = {"role": {"const": "assistant"}, "content": said, "refusal": {"type": ["string", "null"]}}
    assistant |= {"tool_calls": calls, **no_answer}
    schema |= {
        "maxProperties": MAX_KEYS,
        "anyOf": [
            {"title": "Turn", "properties": {**others, **common}, "required": ["role", "content"]},
            {"title": "ToolTurn", "properties": {**tool, **common}, "required": ["role", "content", "tool_call_id"]},
            {"title": "AssistantTurn", "properties": {**assistant, **common}, "required": ["role"]},
        ],
    }
    schema.pop("required", None)


class Message(BaseModel):
    """One message. ``content`` is a text; its parts have been joined."""

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra=_by_role)

    role: Annotated[Role, BeforeValidator(_role)]
    content: Annotated[str | None, PlainValidator(_content), WithJsonSchema({})] = None
    name: Text | None = None
    reasoning_content: Text | None = Field(
        default=None, description="thought of an earlier answer; passed to the chat template, which may leave it out"
    )
    reasoning: Text | None = Field(default=None, description="vLLM's and OpenRouter's name for reasoning_content")
    tool_calls: Calls | None = Field(
        default=None, description="calls of an earlier answer; messages of role tool answer them"
    )
    tool_call_id: Text | None = Field(default=None, description="for role tool: the call that this message answers")

    @model_validator(mode="before")
    @classmethod
    def _is_one(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError('must be an object with a role and a content, such as {"role": "user", "content": "Hi"}')
        if "role" not in value:
            refuse("role", f"is required: one of {', '.join(ROLES)}", "missing_required_parameter")
        return few_keys(value)

    @model_validator(mode="after")
    def _said_something(self) -> Self:
        require_supported(self.model_extra or {}, REFUSED_IN_MESSAGES)
        if self.role != "assistant" and self.content is None:
            refuse("content", "is required", "missing_required_parameter")
        if self.reasoning and self.reasoning_content not in (None, "", self.reasoning):
            refuse("reasoning", "differs from reasoning_content; leave one of them out")
        self.reasoning_content = self.reasoning_content or self.reasoning
        if self.role == "assistant":
            refusal = self._refusal()
            self.content = self.content or refusal
        if self.role == "tool" and not self.tool_call_id:
            refuse("tool_call_id", "is required: the id of the call that it answers", "missing_required_parameter")
        if self.role != "tool" and self.tool_call_id:
            refuse("tool_call_id", "only in messages of role tool")
        if self.role != "assistant" and self.tool_calls:
            refuse("tool_calls", "only in messages of role assistant")
        return self

    def _refusal(self) -> str:
        """The text with which the assistant declined, which then is its content; or an empty text."""
        refusal = (self.model_extra or {}).get("refusal")
        if refusal is not None and not isinstance(refusal, str):
            refuse("refusal", "must be a text")
        require_unicode(refusal)
        return refusal or ""

    def for_template(self) -> dict[str, Any]:
        """The form for chat templates, with one text. developer is OpenAI's newer word for system."""
        message = {"role": "system" if self.role == "developer" else self.role, "content": self.content}
        others = {
            "name": self.name,
            "reasoning_content": self.reasoning_content,
            "tool_calls": [call.for_template() for call in self.tool_calls or ()],
            "tool_call_id": self.tool_call_id,
        }
        return message | {name: value for name, value in others.items() if value}

    def ignored(self) -> list[str]:
        """Unknown keys that have a value."""
        sent = {name for name, value in (self.model_extra or {}).items() if value not in (None, "", [], {}, False)}
        return sorted(sent - set(REFUSED_IN_MESSAGES) - {"refusal"})


def require_answered(messages: Sequence[Message]) -> None:
    """Refuse a call without an answer and an answer without a call. Answers directly follow the calls, in any order.

    Raises:
        PydanticCustomError: names the message at fault.
    """
    asked, pending = 0, set[str]()
    for index, message in enumerate(messages):
        if message.role == "tool":
            if message.tool_call_id not in pending:
                refuse(f"messages[{index}].tool_call_id", "answers no call of the assistant's message before it")
            pending.discard(message.tool_call_id)
            continue
        _require_none(pending, asked)
        asked, pending = index, {call.id for call in message.tool_calls or ()}
        if len(pending) < len(message.tool_calls or ()):
            refuse(f"messages[{index}].tool_calls", "two calls have the same id")
    _require_none(pending, asked)


def _require_none(pending: set[str], asked: int) -> None:
    if pending:
        why = f"no message of role tool after it answers {min(pending)[:64]!r}; each call must have one"
        refuse(f"messages[{asked}].tool_calls", why)
