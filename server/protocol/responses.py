"""POST /v1/responses. The server keeps nothing between requests."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from server.protocol.conversation import instructed
from server.protocol.elsewhere import REFUSED_IN_RESPONSES
from server.protocol.fields import (
    MAX_KEYS,
    MAX_LOGPROBS,
    MAX_NODES,
    PositiveLimit,
    Text,
    Whole,
    few_keys,
    refuse,
    small,
)
from server.protocol.request import GenerationRequest
from server.protocol.response_input import Input
from server.protocol.response_tool import FunctionChoice, FunctionTools
from server.protocol.strict import fault
from server.protocol.structured import Form, JsonSchema
from server.protocol.template import Effort, ReasoningTokens, TemplateOptions, effort_options
from server.protocol.tool import MAX_TOOLS, Choice, Offered, offered, require_distinct, require_no_least

LOGPROBS = "message.output_text.logprobs"
# Clients ask for it where a server keeps nothing, to send thoughts back. Here an item of reasoning has its text.
ENCRYPTED = "reasoning.encrypted_content"


class TextFormat(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    _few_keys = model_validator(mode="before")(few_keys)

    type: Literal["text", "json_object", "json_schema"] = Field(
        description="json_object: any JSON object; the input should ask for JSON"
    )
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")] | None = None
    description: Text | None = Field(default=None, description="accepted; has no effect")
    schema_: JsonSchema | None = Field(default=None, alias="schema")
    strict: bool | None = Field(
        default=None,
        description="true requires a schema of OpenAI's strict mode; the answer follows the schema in any case",
    )

    @model_validator(mode="after")
    def _rules(self) -> Self:
        given = {"name": self.name, "schema": self.schema_}
        for name, value in given.items():
            if self.type == "json_schema" and value is None:
                refuse(name, "is required with type json_schema", "missing_required_parameter")
            if self.type != "json_schema" and value is not None:
                refuse(name, "only with type json_schema")
        if self.strict and self.schema_ is not None and (found := fault(self.schema_)):
            refuse("", f"invalid schema for text.format '{self.name}': {found}")
        return self

    def form(self) -> Form | None:
        if self.type == "text":
            return None
        return Form(self.type, self.schema_, "text.format")


class TextOptions(BaseModel):
    """Options of an answer's text."""

    model_config = ConfigDict(strict=True, extra="forbid")

    _few_keys = model_validator(mode="before")(few_keys)

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = Field(default=None, description="only medium is supported")


class Reasoning(BaseModel):
    """How much a model thinks before it answers."""

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra={"maxProperties": MAX_KEYS})

    _few_keys = model_validator(mode="before")(few_keys)

    effort: Effort | None = Field(
        default=None,
        description="passed to the chat template as reasoning_effort; none also sets enable_thinking to false",
    )


class ResponsesStreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    _few_keys = model_validator(mode="before")(few_keys)

    include_obfuscation: bool | None = Field(default=None, description="accepted; has no effect")


def _included(names: list[str]) -> list[str]:
    for index, name in enumerate(names):
        if name not in (LOGPROBS, ENCRYPTED):
            why = f"is {name[:64]!r}: only {LOGPROBS} is supported; leave it out"
            refuse(f"[{index}]", why, "unsupported_parameter")
    return names


def _verbose(value: Any) -> Any:
    """No model here has levels of verbosity."""
    if isinstance(value, dict) and value.get("verbosity") not in (None, "medium"):
        refuse("verbosity", "is not supported; leave it out", "unsupported_parameter")
    return value


def _not_truncated(value: Any) -> Any:
    if value == "auto":
        refuse("", "is not supported; use truncate_prompt_tokens, which keeps the input's end", "unsupported_parameter")
    return value


class ResponsesRequest(TemplateOptions, GenerationRequest):
    """Body of POST /v1/responses."""

    refused: ClassVar = REFUSED_IN_RESPONSES
    thinking_field: ClassVar = "reasoning.effort"
    limits: ClassVar = ("max_output_tokens",)

    input: Input = Field(description="a text of the user, or items: messages, calls and their outputs, reasoning")
    instructions: Text | None = Field(default=None, description="a system message before the input")
    max_output_tokens: PositiveLimit | None = Field(
        default=None, description="default, and -1: the rest of the context"
    )
    tools: FunctionTools | None = Field(
        default=None,
        description=f"functions that the model may call, at most {MAX_TOOLS}; the chat template describes them to it",
    )
    tool_choice: FunctionChoice | None = Field(
        default=None,
        description="auto (the default with tools): the answer may call tools; none: the model does not see the tools; "
        "required: the answer calls at least one tool; or one tool by its name; or allowed_tools: some of the tools",
    )
    parallel_tool_calls: bool | None = Field(default=True, description="false: at most one call")
    text: Annotated[TextOptions | None, BeforeValidator(_verbose)] = Field(
        default=None, description="the form of the answer: text.format"
    )
    reasoning: Reasoning | None = Field(default=None, description="for models that think")
    max_reasoning_tokens: ReasoningTokens | None = Field(
        default=None, description="a thought is ended after so many tokens; for models that think"
    )
    include: Annotated[list[str], Field(max_length=16), AfterValidator(_included)] | None = Field(
        default=None,
        description=f"{LOGPROBS}: log-probabilities of each token of the text; {ENCRYPTED} has no effect: items of "
        "reasoning have their text",
        json_schema_extra={"items": {"enum": [LOGPROBS, ENCRYPTED]}},
    )
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS), Whole] | None = Field(
        default=None, description="also return this many most probable tokens each; above 0, include is not needed"
    )
    truncation: Annotated[Literal["disabled"] | None, BeforeValidator(_not_truncated)] = Field(
        default=None, description="disabled: an input that does not fit is refused; see truncate_prompt_tokens"
    )
    stream_options: ResponsesStreamOptions | None = None
    metadata: Annotated[dict[str, Any] | None, BeforeValidator(small)] = Field(
        default=None, description=f"repeated in the answer; at most {MAX_NODES} names and values"
    )

    @model_validator(mode="after")
    def _responses_rules(self) -> Self:
        require_distinct([tool.tool() for tool in self.tools or ()], "name")
        require_no_least(self.offered(), self.min_tokens, self.ignore_eos)
        if self.griffin and self.griffin.prompt_tokens is not None:
            refuse("griffin.prompt_tokens", "only in /v1/completions, with echo and logprobs")
        return self

    @property
    def said_in(self) -> str:
        return "input"

    @property
    def thinks(self) -> bool:
        return self.reasoning is not None and self.reasoning.effort not in (None, "none")

    def thinking_options(self) -> dict[str, Any]:
        return effort_options(self.reasoning.effort if self.reasoning else None)

    def thought_budget(self) -> tuple[int, str] | None:
        return None if self.max_reasoning_tokens is None else (self.max_reasoning_tokens, "max_reasoning_tokens")

    @property
    def choice(self) -> Choice:
        return self.tool_choice or Choice("auto")

    def offered(self) -> Offered | None:
        tools = [tool.tool() for tool in self.tools or ()]
        return offered(tools, self.choice, self.parallel_tool_calls is not False, "parameters")

    def conversation(self) -> list[dict[str, Any]]:
        return instructed(self.instructions or "", self.input.messages)

    def named_form(self) -> Form | None:
        return self.text.format.form() if self.text and self.text.format else None

    def default_limit(self, room: int, defaults: Mapping[str, float]) -> int:
        return min(room, int(defaults.get("max_tokens", room)))

    def field_name(self, param: str) -> str:
        names = {"prompt": "input", "max_tokens": "max_output_tokens"}
        return names.get(param, param)

    def ignored(self) -> list[str]:
        inside = [f"tools[{i}].{name}" for i, tool in enumerate(self.tools or ()) for name in tool.unknown()]
        reasoning = (self.reasoning.model_extra if self.reasoning else None) or {}
        thoughts = [f"reasoning.{name}" for name in sorted(reasoning) if reasoning[name] is not None]
        included = [f"include[{index}]" for index, name in enumerate(self.include or ()) if name == ENCRYPTED]
        return [*super().ignored(), *self.input.ignored, *included, *inside, *thoughts]

    def wanted_logprobs(self) -> int | None:
        return self.top_logprobs or (0 if LOGPROBS in (self.include or ()) else None)
