"""``tools`` and ``tool_choice`` of POST /v1/responses: a function's fields are not nested in ``function``."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator

from server.protocol.fields import refuse
from server.protocol.tool import MAX_TOOLS, Choice, Function, Tool, a_function

MODES = ("none", "auto", "required")


class FunctionTool(Function):
    """A function that the model may call."""

    _is_function = model_validator(mode="before")(a_function)

    type: Literal["function"]

    def tool(self) -> Tool:
        return Tool.model_construct(type="function", function=self)

    def echoed(self) -> dict[str, Any]:
        """The tool as the answer repeats it."""
        return {
            "type": "function",
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
            "strict": self.strict,
        }


FunctionTools = Annotated[list[FunctionTool], Field(fail_fast=True, max_length=MAX_TOOLS)]


def _choice(value: Any) -> Choice:
    if isinstance(value, str) and value in MODES:
        return Choice(value)  # type: ignore[arg-type]  # it is one of them
    if not isinstance(value, dict):
        raise ValueError('must be none, auto, required, or {"type": "function", "name": ...}')
    if value.get("type") == "function":
        return Choice("named", (_name(value, ""),))
    if value.get("type") != "allowed_tools":
        refuse("type", "must be function or allowed_tools")
    if (mode := value.get("mode")) not in ("auto", "required"):
        refuse("mode", "must be auto or required")
    tools = value.get("tools")
    if not isinstance(tools, list) or not 0 < len(tools) <= MAX_TOOLS:
        refuse("tools", f"must be a list of 1 to {MAX_TOOLS} tools, each by its name")
    return Choice(mode, tuple(_name(tool, f"tools[{index}].") for index, tool in enumerate(tools)))


def _name(value: Any, where: str) -> str:
    if not isinstance(value, Mapping) or value.get("type") != "function":
        refuse(f"{where}type", "must be function")
    if not isinstance(name := value.get("name"), str):
        refuse(f"{where}name", "is required: the name of one of tools", "missing_required_parameter")
    return name


def echoed(choice: Choice) -> Any:
    """The choice as the answer repeats it."""
    if choice.mode == "named":
        return {"type": "function", "name": (choice.names or ("",))[0]}
    if choice.names is None:
        return choice.mode
    return {
        "type": "allowed_tools",
        "mode": choice.mode,
        "tools": [{"type": "function", "name": name} for name in choice.names],
    }


_NAMED = {
    "type": "object",
    "properties": {"type": {"const": "function"}, "name": {"type": "string"}},
    "required": ["type", "name"],
}
_ALLOWED = {
    "type": "object",
    "properties": {
        "type": {"const": "allowed_tools"},
        "mode": {"enum": ["auto", "required"]},
        "tools": {"type": "array", "items": _NAMED, "minItems": 1, "maxItems": MAX_TOOLS},
    },
    "required": ["type", "mode", "tools"],
}
FunctionChoice = Annotated[
    Choice, PlainValidator(_choice), WithJsonSchema({"anyOf": [{"enum": list(MODES)}, _NAMED, _ALLOWED]})
]
