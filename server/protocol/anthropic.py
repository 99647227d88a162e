"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from server.protocol.anthropic_input import Said, System
from server.protocol.anthropic_tool import ClientToolChoice, ClientTools
from server.protocol.conversation import instructed
from server.protocol.elsewhere import REFUSED_IN_ANTHROPIC
from server.protocol.fields import MAX_KEYS, ModelName, PositiveLimit, Stop, few_keys, refuse
from server.protocol.request import TWINS, GenerationRequest
from server.protocol.structured import Form, JsonSchema
from server.protocol.template import ReasoningTokens, TemplateOptions
from server.protocol.tokenization import Extensible
from server.protocol.tool import MAX_TOOLS, Choice, Offered, offered, require_distinct, require_no_least


class OutputFormat(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    _few_keys = model_validator(mode="before")(few_keys)

    type: Literal["json_schema"]
    schema_: JsonSchema = Field(alias="schema")


class OutputConfig(BaseModel):
    """The form of an answer, and how much is thought and said."""

    model_config = ConfigDict(strict=True, extra="forbid")

    _few_keys = model_validator(mode="before")(few_keys)

    format: OutputFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        default=None, description="passed to the chat template as reasoning_effort, unless thinking is disabled"
    )


class Thinking(BaseModel):
    """Whether a model thinks before it answers."""

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra={"maxProperties": MAX_KEYS})

    _few_keys = model_validator(mode="before")(few_keys)

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: ReasoningTokens | None = Field(default=None, description="a thought is ended after so many tokens")


class Asked(TemplateOptions):
    """The fields from which the prompt is made."""

    thinking_field: ClassVar = "thinking"

    messages: Said = Field(
        description="messages of the user, the assistant and the system: texts, tool calls and their results"
    )
    system: System | None = Field(default=None, description="a text, or blocks of type text")
    tools: ClientTools | None = Field(
        default=None,
        description=f"tools that the model may call, at most {MAX_TOOLS}; the chat template describes them to it",
    )
    tool_choice: ClientToolChoice | None = Field(
        default=None,
        description="auto (the default with tools): the answer may call tools; none: the model does not see the tools; "
        "any: the answer calls at least one tool; tool: it calls the named tool",
    )
    thinking: Thinking | None = Field(
        default=None, description="passed to the chat template as enable_thinking; if absent, the template decides"
    )
    output_config: OutputConfig | None = Field(
        default=None, description="the form of the answer: output_config.format; how much is thought: effort"
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        require_distinct([tool.tool() for tool in self.tools or ()], "name")
        self.offered()
        return self

    @property
    def said_in(self) -> str:
        return "messages"

    def offered(self) -> Offered | None:
        tools = [tool.tool() for tool in self.tools or ()]
        choice = self.tool_choice.choice if self.tool_choice else Choice("auto")
        return offered(tools, choice, self.tool_choice is None or self.tool_choice.parallel, "input_schema")

    def conversation(self) -> list[dict[str, Any]]:
        return instructed(self.system.text if self.system else "", self.messages.messages)

    def template_options(self) -> dict[str, Any]:
        """If the last message is an assistant's, it is the beginning of the answer."""
        begun = self.messages.messages[-1].role == "assistant"
        return {**super().template_options(), "add_generation_prompt": not begun, "continue_final_message": begun}

    @property
    def thinks(self) -> bool:
        """Whether the request asks for thoughts; adaptive leaves that to the model."""
        return self.thinking is not None and self.thinking.type == "enabled"

    def thought_budget(self) -> tuple[int, str] | None:
        tokens = self.thinking.budget_tokens if self.thinking and self.thinking.type != "disabled" else None
        return None if tokens is None else (tokens, "thinking.budget_tokens")

    def thinking_options(self) -> dict[str, Any]:
        if self.thinking and self.thinking.type == "disabled":
            return {"enable_thinking": False}
        effort = self.output_config.effort if self.output_config else None
        wanted = {"enable_thinking": True} if self.thinking else {}
        return {**wanted, "reasoning_effort": effort} if effort else wanted

    def ignored_inside(self) -> list[str]:
        tools = [f"tools[{i}].{name}" for i, tool in enumerate(self.tools or ()) for name in tool.unknown()]
        thoughts = [f"thinking.{name}" for name in sorted((self.thinking and self.thinking.model_extra) or {})]
        system = [f"system{path}" for path in (self.system.ignored if self.system else ())]
        return [*system, *self.messages.ignored, *tools, *thoughts]


class MessagesRequest(Asked, GenerationRequest):
    """Body of POST /v1/messages."""

    refused: ClassVar = REFUSED_IN_ANTHROPIC
    limits: ClassVar = ("max_tokens",)
    twins: ClassVar = {**TWINS, "stop_sequences": "stop"}

    max_tokens: PositiveLimit = Field(description="required, as in Anthropic's API; -1: as many as fit")
    temperature: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = Field(
        default=None, description="0 is greedy; default: the model's own value, else 1"
    )
    stop_sequences: Stop | None = Field(default=None, description="Anthropic's name for stop")

    @model_validator(mode="after")
    def _messages_rules(self) -> Self:
        require_no_least(self.offered(), self.min_tokens, self.ignore_eos)
        if self.griffin and self.griffin.prompt_tokens is not None:
            refuse("griffin.prompt_tokens", "only in /v1/completions, with echo and logprobs")
        return self

    def named_form(self) -> Form | None:
        format = self.output_config.format if self.output_config else None
        return Form("json_schema", format.schema_, "output_config.format") if format else None

    def default_limit(self, room: int, defaults: Mapping[str, float]) -> int:
        return room

    def field_name(self, param: str) -> str:
        return "messages" if param == "prompt" else super().field_name(param)

    def ignored(self) -> list[str]:
        return [*super().ignored(), *self.ignored_inside()]

    def wanted_logprobs(self) -> int | None:
        return None


class CountTokensRequest(Asked, Extensible):
    """Body of POST /v1/messages/count_tokens."""

    refused: ClassVar = REFUSED_IN_ANTHROPIC

    model: ModelName = None

    def ignored(self) -> list[str]:
        return [*super().ignored(), *self.ignored_inside()]


class CountedTokens(BaseModel):
    input_tokens: int
