"""Tools that a request offers, its ``tool_choice``, and the calls of earlier answers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from server.protocol.fields import MAX_KEYS, Text, few_keys, refuse, small, unicode_text

MAX_TOOLS = 128
MAX_CALLS = 128
# Most names and values of one tool's parameters, counted together.
MAX_PARAMETER_NODES = 8192
NAME = r"^[a-zA-Z0-9_-]{1,64}$"
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}

# Put limits before it.
Unicode = BeforeValidator(unicode_text)
Mode = Literal["none", "auto", "required", "named"]


def a_function(value: Any) -> Any:
    """Refuse other kinds of tools by name, and show the form of a function."""
    if not isinstance(value, dict):
        raise ValueError('must be an object, such as {"type": "function", "function": {"name": ...}}')
    kind = value.get("type")
    if kind is None:
        refuse("type", "is required: function", "missing_required_parameter")
    if isinstance(kind, str) and kind != "function":
        refuse("type", f"is {kind[:64]!r}: only function is supported; leave it out", "unsupported_parameter")
    return few_keys(value)


def small_parameters(value: Any) -> Any:
    return small(value, MAX_PARAMETER_NODES)


class Extensible(BaseModel):
    """Unknown keys are ignored."""

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra={"maxProperties": MAX_KEYS})

    def unknown(self) -> list[str]:
        return sorted(self.model_extra or {})


class Function(Extensible):
    """A tool's name, description and parameters."""

    _few_keys = model_validator(mode="before")(few_keys)

    name: Annotated[str, Field(pattern=NAME), Unicode]
    description: Text | None = None
    parameters: Annotated[dict[str, Any], BeforeValidator(small_parameters)] | None = Field(
        default=None,
        description=f"a JSON schema of an object; at most {MAX_PARAMETER_NODES} names and values; absent: none",
    )
    strict: bool | None = Field(
        default=None,
        description="true holds calls to the schema also where none must come, with models whose calls begin with a "
        "token of their own",
    )

    @model_validator(mode="after")
    def _of_an_object(self) -> Self:
        """Arguments are always an object."""
        if self.parameters and self.parameters.get("type", "object") != "object":
            refuse("parameters.type", "must be object")
        return self

    def schema_of_arguments(self) -> dict[str, Any]:
        return NO_PARAMETERS if self.parameters is None else self.parameters


class Tool(Extensible):
    _is_function = model_validator(mode="before")(a_function)

    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """The form for chat templates."""
        one = self.function
        described = {} if one.description is None else {"description": one.description}
        function = {"name": one.name, **described, "parameters": one.schema_of_arguments()}
        return {"type": "function", "function": function}

    def ignored(self) -> list[str]:
        return [*self.unknown(), *(f"function.{name}" for name in self.function.unknown())]


@dataclass(frozen=True, slots=True)
class Choice:
    """Whether tools may or must be called.

    names: the tools that may be called; None means all.
    """

    mode: Mode
    names: tuple[str, ...] | None = None


def _choice(value: Any) -> Choice:
    """Reads each of OpenAI's forms."""
    if value in get_args(Mode) and value != "named":
        return Choice(value)
    if not isinstance(value, dict):
        raise ValueError('must be none, auto, required, or {"type": "function", "function": {"name": ...}}')
    kind = value.get("type")
    if kind == "function":
        return Choice("named", (_name(value, ""),))
    if kind != "allowed_tools":
        refuse("type", "must be function or allowed_tools")
    allowed = value.get("allowed_tools")
    tools = allowed.get("tools") if isinstance(allowed, dict) else None
    if not isinstance(allowed, dict) or allowed.get("mode") not in ("auto", "required"):
        refuse("allowed_tools.mode", "must be auto or required")
    if not isinstance(tools, list) or not 0 < len(tools) <= MAX_TOOLS:
        refuse("allowed_tools.tools", f"must be a list of 1 to {MAX_TOOLS} tools, each by its name")
    return Choice(allowed["mode"], tuple(_name(tool, f"allowed_tools.tools[{i}].") for i, tool in enumerate(tools)))


def _name(value: Any, where: str) -> str:
    if not isinstance(value, dict) or value.get("type") != "function":
        refuse(f"{where}type", "must be function")
    function = value.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        refuse(f"{where}function.name", "is required: the name of one of tools", "missing_required_parameter")
    return name


_NAMED = {
    "type": "object",
    "properties": {
        "type": {"const": "function"},
        "function": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    },
    "required": ["type", "function"],
}
_ALLOWED = {
    "type": "object",
    "properties": {
        "type": {"const": "allowed_tools"},
        "allowed_tools": {
            "type": "object",
            "properties": {
                "mode": {"enum": ["auto", "required"]},
                "tools": {"type": "array", "items": _NAMED, "minItems": 1, "maxItems": MAX_TOOLS},
            },
            "required": ["mode", "tools"],
        },
    },
    "required": ["type", "allowed_tools"],
}
ToolChoice = Annotated[
    Choice,
    PlainValidator(_choice),
    WithJsonSchema({"anyOf": [{"enum": ["none", "auto", "required"]}, _NAMED, _ALLOWED]}),
]
Tools = Annotated[list[Tool], Field(fail_fast=True, max_length=MAX_TOOLS)]


@dataclass(frozen=True, slots=True)
class Offered:
    """The tools that an answer may call.

    mode: auto: it may call; required: it must call at least once; named: it must call the only tool.
    places: indices of these tools in the request's list.
    single: at most one call.
    parameters: the key of a tool's schema in the request's list.
    """

    tools: Sequence[Tool]
    places: Sequence[int]
    mode: Literal["auto", "required", "named"]
    single: bool
    parameters: str = "function.parameters"

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool.function.name for tool in self.tools)

    def for_template(self) -> list[dict[str, Any]]:
        return [tool.for_template() for tool in self.tools]


def require_distinct(tools: Sequence[Tool], named_in: str = "function.name") -> None:
    """Raises PydanticCustomError if two tools have the same name.

    Args:
        named_in: the key of a tool's name in the request's list.
    """
    names = [tool.function.name for tool in tools]
    for index, name in enumerate(names):
        if name in names[:index]:
            refuse(f"tools[{index}].{named_in}", f"two tools are called {name}")


def offered(
    tools: Sequence[Tool], choice: Choice, parallel: bool, parameters: str = "function.parameters"
) -> Offered | None:
    """The tools that apply, from all fields of a request. None: the answer is a text.

    Raises:
        PydanticCustomError: the fields contradict each other.
    """
    if not tools and (choice.mode in ("required", "named") or choice.names):
        refuse("tool_choice", "only with tools, of which this request has none")
    if not tools or choice.mode == "none":
        return None
    known = {tool.function.name for tool in tools}
    if unknown := [name for name in choice.names or () if name not in known]:
        refuse("tool_choice", f"{unknown[0][:64]!r} is not one of tools")
    places = [i for i, tool in enumerate(tools) if choice.names is None or tool.function.name in choice.names]
    return Offered([tools[i] for i in places], places, choice.mode, choice.mode == "named" or not parallel, parameters)


def require_no_least(offered: Offered | None, min_tokens: int | None, ignore_eos: bool | None) -> None:
    """Raises PydanticCustomError if calls are forced, but the answer must not end after them."""
    for name, value in (("min_tokens", min_tokens), ("ignore_eos", ignore_eos)):
        if value and offered and offered.mode != "auto":
            refuse(name, "cannot be combined with forced calls (tool_choice), whose text has an end; leave it out")


class CalledFunction(Extensible):
    """A tool's name, and its arguments in JSON."""

    _few_keys = model_validator(mode="before")(few_keys)

    name: Annotated[str, Field(min_length=1), Unicode]
    arguments: Text


class ToolCall(Extensible):
    """A call of an earlier answer."""

    _is_function = model_validator(mode="before")(a_function)

    id: Annotated[str, Field(min_length=1), Unicode]
    type: Literal["function"]
    function: CalledFunction

    def for_template(self) -> dict[str, Any]:
        """The form for chat templates: arguments are an object, or the text if it is not valid."""
        name, arguments = self.function.name, parsed(self.function.arguments)
        return {"id": self.id, "type": "function", "function": {"name": name, "arguments": arguments}}


def parsed(arguments: str) -> dict[str, Any] | str:
    """Arguments of an earlier call. If the model did not write a JSON object, they stay a text."""
    if not arguments.strip():
        return {}
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


class MadeFunction(BaseModel):
    name: str
    arguments: str = Field(description="JSON, as the model wrote it; incomplete where finish_reason is length")


class MadeCall(BaseModel):
    """A call of this answer."""

    id: str
    type: Literal["function"]
    function: MadeFunction


class DeltaFunction(BaseModel):
    name: str | None = None
    arguments: str


class DeltaCall(BaseModel):
    """id, type and name come in a call's first chunk; its arguments follow piece by piece."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: DeltaFunction


Calls = Annotated[list[ToolCall], Field(fail_fast=True, max_length=MAX_CALLS)]
