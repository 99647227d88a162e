"""Answers of POST /v1/messages: a message, whole or in events. For the OpenAPI document."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from server.protocol.report import AnthropicError, GriffinReport, TimingReport
from server.protocol.stream import Stream

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class AnswerText(BaseModel):
    type: Literal["text"]
    text: str
    citations: None


class AnswerToolUse(BaseModel):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any] = Field(description="the call's arguments; {} if max_tokens cut them off")


class AnswerThinking(BaseModel):
    type: Literal["thinking"]
    thinking: str
    signature: str = Field(description="empty")


AnswerBlock = AnswerText | AnswerToolUse | AnswerThinking


class AnthropicUsage(BaseModel):
    input_tokens: int = Field(description="prompt tokens that were read for this request")
    cache_creation_input_tokens: int = Field(description="always 0; this server charges nothing")
    cache_read_input_tokens: int = Field(description="prompt tokens that were reused from an earlier prompt")
    output_tokens: int


class AnthropicMessage(BaseModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnswerBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: AnthropicUsage
    griffin: GriffinReport | None = None
    metrics: TimingReport | None = None


class _Event(BaseModel):
    model_config = ConfigDict(extra="forbid")


class MessageStart(_Event):
    type: Literal["message_start"]
    message: AnthropicMessage = Field(description="without content")


class Ping(_Event):
    type: Literal["ping"]


class BlockStart(_Event):
    type: Literal["content_block_start"]
    index: int
    content_block: AnswerBlock = Field(description="without text or input")


class TextDelta(BaseModel):
    type: Literal["text_delta"]
    text: str


class ThinkingDelta(BaseModel):
    type: Literal["thinking_delta"]
    thinking: str


class InputDelta(BaseModel):
    type: Literal["input_json_delta"]
    partial_json: str


class BlockDelta(_Event):
    type: Literal["content_block_delta"]
    index: int
    delta: TextDelta | InputDelta | ThinkingDelta


class BlockStop(_Event):
    type: Literal["content_block_stop"]
    index: int


class MessageEnd(BaseModel):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(_Event):
    type: Literal["message_delta"]
    delta: MessageEnd
    usage: AnthropicUsage
    griffin: GriffinReport
    metrics: TimingReport


class MessageStop(_Event):
    type: Literal["message_stop"]


ANTHROPIC_STREAM = Stream(
    (MessageStart, Ping, BlockStart, BlockDelta, BlockStop, MessageDelta, MessageStop, AnthropicError),
    "a line `event: ` with the type, a line `data: ` with the event; message_stop or error is the last. Lines that "
    "begin with a colon are comments.",
)
