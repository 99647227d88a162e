"""POST /v1/chat/completions"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from server.protocol.fields import MAX_LOGPROBS, Text, few_keys, refuse, small
from server.protocol.report import FinishReason, GriffinReport, TimingReport, Usage
from server.protocol.request import REFUSED, GenerationRequest

MAX_MESSAGES = 2048
MAX_PARTS = 1024
# What the rendering itself is told; a client's template, above all, would be a program of the client's.
NOT_THE_TEMPLATES = {
    "conversation", "tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message",
    "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict",
    "return_assistant_tokens_mask", "tokenizer_kwargs", "processor_kwargs", "messages", "self", "chat",
    "conversations",
}  # fmt: skip


def _text_or_parts(value: object) -> object:
    """Looked at before pydantic is, which would list all that is wrong with each of a million parts."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise ValueError("must be a text, or a list of parts of type text")
    if len(value) > MAX_PARTS:
        raise ValueError(f"has {len(value)} parts; at most {MAX_PARTS} are supported")
    return value


class TextPart(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    _few_keys = model_validator(mode="before")(few_keys)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        Text | Annotated[list[TextPart], Field(fail_fast=True)] | None, BeforeValidator(_text_or_parts)
    ] = Field(default=None, description="a text, or parts of type text")
    name: Text | None = None

    @model_validator(mode="after")
    def _said_something(self) -> Self:
        if (self.model_extra or {}).get("tool_calls"):
            refuse("messages", "messages: tool_calls are not supported", "unsupported_parameter")
        if self.content is None:
            refuse("messages", "messages: each needs a content")
        return self

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it: one text. developer is OpenAI's newer word for system."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())
        message = {"role": "system" if self.role == "developer" else self.role, "content": content}
        return {**message, "name": self.name} if self.name else message


class TemplateRequest(BaseModel):
    """How messages become a prompt; /tokenize does it too."""

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)]
    add_generation_prompt: bool | None = Field(default=True, description="end the prompt where the answer begins")
    continue_final_message: bool | None = Field(default=False, description="go on with the last message instead")
    chat_template_kwargs: Annotated[dict[str, Any] | None, BeforeValidator(small)] = Field(
        default=None, description="passed to the model's template"
    )

    @model_validator(mode="after")
    def _template_rules(self) -> Self:
        if reserved := NOT_THE_TEMPLATES & set(self.chat_template_kwargs or {}):
            refuse("chat_template_kwargs", f"chat_template_kwargs: {min(reserved)} is not the template's to know")
        if self.continue_final_message and "add_generation_prompt" not in self.model_fields_set:
            self.add_generation_prompt = False
        if self.continue_final_message and self.add_generation_prompt:
            refuse("continue_final_message", "continue_final_message: not together with add_generation_prompt")
        return self

    def conversation(self) -> list[dict[str, Any]]:
        return [message.for_template() for message in self.messages]

    def template_options(self) -> dict[str, Any]:
        return {
            **(self.chat_template_kwargs or {}),
            "add_generation_prompt": self.add_generation_prompt is not False,
            "continue_final_message": bool(self.continue_final_message),
        }


class ChatRequest(TemplateRequest, GenerationRequest):
    """Body of POST /v1/chat/completions."""

    refused: ClassVar = {
        **REFUSED,
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "audio": (),
        "reasoning_effort": (),
        "verbosity": (),
        "web_search_options": (),
        "chat_template": (),
        "echo": (False,),
        "best_of": (1,),
        "suffix": ("",),
    }

    max_tokens: Annotated[int, Field(ge=1)] | None = Field(default=None, description="max_completion_tokens, older")
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="default: the rest of the context"
    )
    logprobs: bool | None = Field(default=False, description="log-probabilities of each token")
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = Field(
        default=None, description="and of that many most probable ones; needs logprobs=true"
    )

    @model_validator(mode="after")
    def _chat_rules(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            refuse("top_logprobs", "top_logprobs: only with logprobs=true")
        if self.griffin and self.griffin.prompt_tokens is not None:
            refuse("griffin.prompt_tokens", "griffin.prompt_tokens: only in /v1/completions, with echo and logprobs")
        return self

    def token_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def default_limit(self, room: int, defaults: Mapping[str, float]) -> int:
        return min(room, int(defaults.get("max_tokens", room)))

    def field_name(self, param: str) -> str:
        limit = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        return {"prompt": "messages", "max_tokens": limit}.get(param, param)

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


class AssistantMessage(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
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
