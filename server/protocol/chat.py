"""POST /v1/chat/completions"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from server.protocol.elsewhere import REFUSED, REFUSED_IN_CHAT
from server.protocol.fields import MAX_LOGPROBS, PositiveLimit, Whole, refuse
from server.protocol.message import MAX_MESSAGES, Message, require_answered
from server.protocol.report import FinishReason, GriffinReport, TimingReport, Usage
from server.protocol.request import ChoicesRequest
from server.protocol.template import Effort, ReasoningTokens, TemplateOptions, effort_options
from server.protocol.tool import (
    MAX_TOOLS,
    Choice,
    MadeCall,
    Offered,
    ToolChoice,
    Tools,
    offered,
    require_distinct,
    require_no_least,
)


def _a_list(value: object) -> object:
    if not isinstance(value, list):
        raise ValueError('must be a list of objects, such as [{"role": "user", "content": "Hi"}]')
    return value


class TemplateRequest(TemplateOptions):
    """The fields that turn messages into a prompt; /tokenize has them too."""

    messages: Annotated[
        list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES), BeforeValidator(_a_list)
    ]
    tools: Tools | None = Field(
        default=None,
        description=f"functions that the model may call, at most {MAX_TOOLS}; the chat template describes them to it",
    )
    add_generation_prompt: bool | None = Field(default=True, description="end the prompt where an answer begins")
    continue_final_message: bool | None = Field(default=False, description="continue the last message instead")

    @model_validator(mode="after")
    def _template_rules(self) -> Self:
        if self.continue_final_message and "add_generation_prompt" not in self.model_fields_set:
            self.add_generation_prompt = False
        if self.continue_final_message and self.add_generation_prompt:
            refuse("continue_final_message", "cannot be combined with add_generation_prompt")
        require_answered(self.messages)
        require_distinct(self.tools or ())
        return self

    @property
    def said_in(self) -> str:
        return "messages"

    def ignored_inside(self) -> list[str]:
        """Paths of unknown keys in messages and tools."""
        said = [f"messages[{index}].{name}" for index, one in enumerate(self.messages) for name in one.ignored()]
        return said + [f"tools[{index}].{name}" for index, one in enumerate(self.tools or ()) for name in one.ignored()]

    def offered(self) -> Offered | None:
        """The tools that an answer may call; None if there are none."""
        return offered(self.tools or (), Choice("auto"), parallel=True)

    def conversation(self) -> list[dict[str, Any]]:
        return [message.for_template() for message in self.messages]

    def template_options(self) -> dict[str, Any]:
        return {
            **super().template_options(),
            "add_generation_prompt": self.add_generation_prompt is not False,
            "continue_final_message": bool(self.continue_final_message),
        }


class ChatRequest(TemplateRequest, ChoicesRequest):
    """Body of POST /v1/chat/completions."""

    refused: ClassVar = {**REFUSED, **REFUSED_IN_CHAT}
    thinking_field: ClassVar = "reasoning_effort"
    limits: ClassVar = ("max_completion_tokens", "max_tokens", "n_predict", "max_new_tokens")
    # OpenAI's older field may differ from its newer one; the newer one counts, as in vLLM.
    overridden: ClassVar = ("max_tokens",)

    max_tokens: PositiveLimit | None = Field(default=None, description="max_completion_tokens, older")
    max_completion_tokens: PositiveLimit | None = Field(
        default=None, description="default, and -1: the rest of the context"
    )
    n_predict: PositiveLimit | None = Field(default=None, description="llama.cpp's name for max_tokens")
    max_new_tokens: PositiveLimit | None = Field(default=None, description="TGI's name for max_tokens")
    logprobs: bool | None = Field(default=False, description="return the log-probability of each token")
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS), Whole] | None = Field(
        default=None, description="also return this many most probable tokens each; needs logprobs=true"
    )

    tool_choice: ToolChoice | None = Field(
        default=None,
        description="auto (the default with tools): the answer may call tools; none: the model does not see the tools; "
        "required: the answer calls at least one tool; or one tool by its name; or allowed_tools: some of the tools",
    )
    parallel_tool_calls: bool | None = Field(default=True, description="false: at most one call")
    reasoning_effort: Effort | None = Field(
        default=None, description="passed to the chat template; none also sets enable_thinking to false"
    )
    max_reasoning_tokens: ReasoningTokens | None = Field(
        default=None, description="a thought is ended after so many tokens; for models that think"
    )

    @model_validator(mode="after")
    def _chat_rules(self) -> Self:
        require_no_least(self.offered(), self.min_tokens, self.ignore_eos)
        if self.top_logprobs and not self.logprobs:
            refuse("top_logprobs", "only with logprobs=true")
        if self.griffin and self.griffin.prompt_tokens is not None:
            refuse("griffin.prompt_tokens", "only in /v1/completions, with echo and logprobs")
        return self

    def offered(self) -> Offered | None:
        return offered(self.tools or (), self.tool_choice or Choice("auto"), self.parallel_tool_calls is not False)

    @property
    def thinks(self) -> bool:
        return self.reasoning_effort not in (None, "none")

    def thinking_options(self) -> dict[str, Any]:
        return effort_options(self.reasoning_effort)

    def thought_budget(self) -> tuple[int, str] | None:
        return None if self.max_reasoning_tokens is None else (self.max_reasoning_tokens, "max_reasoning_tokens")

    def default_limit(self, room: int, defaults: Mapping[str, float]) -> int:
        return min(room, int(defaults.get("max_tokens", room)))

    def ignored(self) -> list[str]:
        return [*super().ignored(), *self.ignored_inside()]

    def field_name(self, param: str) -> str:
        return "messages" if param == "prompt" else super().field_name(param)

    def wanted_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: Sequence[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None


ChatFinishReason = FinishReason | Literal["tool_calls"]


class AssistantMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None = Field(description="null if the answer has only calls")
    refusal: None
    reasoning_content: str | None = Field(
        default=None, description="the thought before the answer, if the model thinks"
    )
    tool_calls: list[MadeCall] | None = Field(default=None, description="the calls, if there are any")


class ChatChoice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason
    token_ids: list[int] | None = Field(default=None, description="if return_token_ids")


class ChatResponse(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    prompt_token_ids: list[int] | None = Field(default=None, description="if return_token_ids")
    usage: Usage
    griffin: GriffinReport
    metrics: TimingReport
