"""Events of OpenAI's two older streams: chunks of an answer, or the error that ended it. For the OpenAPI document."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from server.protocol.chat import ChatFinishReason, ChatLogprobs
from server.protocol.completion import CompletionChoice
from server.protocol.report import ErrorResponse, GriffinReport, TimingReport, Usage
from server.protocol.stream import Stream
from server.protocol.tool import DeltaCall


class Chunk(BaseModel):
    """Fields that chunks of both endpoints have."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(description="the same in all chunks of an answer")
    created: int
    model: str
    usage: Usage | None = Field(
        default=None,
        description="with include_usage: the usage of the whole request in the last chunk, whose choices are empty; "
        "null in other chunks, or the usage so far with continuous_usage_stats",
    )
    griffin: GriffinReport | None = Field(default=None, description="in the last chunk, with include_usage")
    metrics: TimingReport | None = Field(default=None, description="in the last chunk, with include_usage")


class CompletionChunk(Chunk):
    """An event of POST /v1/completions with stream=true."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice] = Field(description="one choice; empty in the last chunk with include_usage")


class Delta(BaseModel):
    """The role comes in an answer's first chunk; then thought, content and calls come piece by piece."""

    role: Literal["assistant"] | None = None
    reasoning_content: str | None = None
    content: str | None = None
    tool_calls: list[DeltaCall] | None = None


class ChatChunkChoice(BaseModel):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None
    token_ids: list[int] | None = Field(default=None, description="if return_token_ids")


class ChatChunk(Chunk):
    """An event of POST /v1/chat/completions with stream=true."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice] = Field(description="one choice; empty in the last chunk with include_usage")
    prompt_token_ids: list[int] | None = Field(default=None, description="in the first chunk, if return_token_ids")


FRAMING = (
    "lines `data: ` with a chunk, or with an error that ends the answer; `data: [DONE]` is the last. Lines that begin "
    "with a colon are comments."
)
COMPLETION_STREAM = Stream((CompletionChunk, ErrorResponse), FRAMING)
CHAT_STREAM = Stream((ChatChunk, ErrorResponse), FRAMING)
