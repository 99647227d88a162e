"""``tools`` and ``tool_choice`` of POST /v1/messages."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema, model_validator

from server.protocol.fields import Text, few_keys, refuse
from server.protocol.tool import (
    MAX_PARAMETER_NODES,
    MAX_TOOLS,
    NAME,
    Choice,
    Extensible,
    Function,
    Mode,
    Tool,
    Unicode,
    small_parameters,
)

MODES: dict[str, Mode] = {"none": "none", "auto": "auto", "any": "required", "tool": "named"}
# Accepted without effect: they do not change any answer.
HARMLESS = frozenset({"cache_control", "eager_input_streaming"})


def _a_tool(value: Any) -> Any:
    """Refuse tools that Anthropic's servers run themselves, by name."""
    if not isinstance(value, dict):
        raise ValueError('must be an object, such as {"name": ..., "input_schema": {"type": "object"}}')
    if (kind := value.get("type")) not in (None, "custom"):
        refuse("type", f"is {str(kind)[:64]!r}: only custom is supported; leave it out", "unsupported_parameter")
    return few_keys(value)


class ClientTool(Extensible):
    """A tool that the client runs."""

    _is_tool = model_validator(mode="before")(_a_tool)

    type: Literal["custom"] | None = None
    name: Annotated[str, Field(pattern=NAME), Unicode]
    description: Text | None = None
    input_schema: Annotated[dict[str, Any], BeforeValidator(small_parameters)] = Field(
        description=f"a JSON schema of an object; at most {MAX_PARAMETER_NODES} names and values"
    )
    strict: bool | None = Field(
        default=None,
        description="true holds calls to the schema also where none must come, with models whose calls begin with a "
        "token of their own",
    )

    @model_validator(mode="after")
    def _of_an_object(self) -> Self:
        if self.input_schema.get("type", "object") != "object":
            refuse("input_schema.type", "must be object")
        return self

    def tool(self) -> Tool:
        function = Function.model_construct(
            name=self.name, description=self.description, parameters=self.input_schema, strict=self.strict
        )
        return Tool.model_construct(type="function", function=function)

    def unknown(self) -> list[str]:
        return [name for name in super().unknown() if name not in HARMLESS]


ClientTools = Annotated[list[ClientTool], Field(fail_fast=True, max_length=MAX_TOOLS)]


@dataclass(frozen=True, slots=True)
class ClientChoice:
    """Whether tools must be called, and whether several may be."""

    choice: Choice
    parallel: bool


def _choice(value: Any) -> ClientChoice:
    if not isinstance(value, dict):
        raise ValueError('must be an object, such as {"type": "auto"}')
    kind, alone = value.get("type"), value.get("disable_parallel_tool_use")
    if not isinstance(kind, str) or kind not in MODES:
        refuse("type", f"must be one of {', '.join(MODES)}")
    if not (alone is None or isinstance(alone, bool)):
        refuse("disable_parallel_tool_use", "must be true or false")
    name = value.get("name")
    if name is not None and not isinstance(name, str):
        refuse("name", "must be a text")
    if kind != "tool":
        return ClientChoice(Choice(MODES[kind]), not alone)
    if name is None:
        refuse("name", "is required: the name of one of tools", "missing_required_parameter")
    return ClientChoice(Choice("named", (name,)), not alone)


ClientToolChoice = Annotated[
    ClientChoice,
    PlainValidator(_choice),
    WithJsonSchema(
        {
            "type": "object",
            "properties": {
                "type": {"enum": list(MODES)},
                "name": {"type": ["string", "null"]},
                "disable_parallel_tool_use": {"type": ["boolean", "null"]},
            },
            "required": ["type"],
        }
    ),
]
