"""Answers of POST /v1/responses: a response, whole or in events. For the OpenAPI document."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from server.protocol.chat import TokenLogprob
from server.protocol.report import GriffinReport, TimingReport
from server.protocol.stream import Stream

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(BaseModel):
    type: Literal["output_text"]
    text: str
    annotations: list[Any] = Field(description="none")
    logprobs: list[TokenLogprob] = Field(description="of the text's tokens, if requested")


class MessageItem(BaseModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: ItemStatus
    content: list[OutputText]


class FunctionCallItem(BaseModel):
    id: str
    type: Literal["function_call"]
    status: ItemStatus = Field(description="incomplete: it was cut off, or it was not a call after all")
    call_id: str
    name: str
    arguments: str = Field(description="JSON, as the model wrote it")


class ReasoningText(BaseModel):
    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(BaseModel):
    """The thought before the answer."""

    id: str
    type: Literal["reasoning"]
    status: ItemStatus
    summary: list[Any] = Field(description="none")
    content: list[ReasoningText]


OutputItem = MessageItem | FunctionCallItem | ReasoningItem


class InputTokensDetails(BaseModel):
    cached_tokens: int = Field(description="prompt tokens that were reused from an earlier prompt")
    cache_write_tokens: int = Field(description="always 0; this server charges nothing")


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseFault(BaseModel):
    code: Literal["server_error"]
    message: str


class IncompleteDetails(BaseModel):
    reason: Literal["max_output_tokens"]


class ResponseObject(BaseModel):
    """Repeats the request's fields; fields that it left out have the value that applied."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    background: Literal[False]
    error: ResponseFault | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None
    metadata: dict[str, Any]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: dict[str, Any]
    service_tier: Literal["default"]
    store: Literal[False]
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[Any]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None = Field(description="null until the answer has ended")
    user: Any
    griffin: GriffinReport | None = Field(default=None, description="once the answer has ended")
    metrics: TimingReport | None = Field(default=None, description="once the answer has ended")


class Event(BaseModel):
    """``type`` is also the event's name; ``sequence_number`` counts from 0."""

    model_config = ConfigDict(extra="forbid")

    sequence_number: int


class ResponseEvent(Event):
    """The first two events and the last one."""

    type: Literal[
        "response.created", "response.in_progress", "response.completed", "response.incomplete", "response.failed"
    ]
    response: ResponseObject


class ItemEvent(Event):
    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputItem


class PartEvent(Event):
    type: Literal["response.content_part.added", "response.content_part.done"]
    item_id: str
    output_index: int
    content_index: int
    part: OutputText | ReasoningText


class TextDeltaEvent(Event):
    type: Literal["response.output_text.delta"]
    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: Sequence[TokenLogprob]


class TextDoneEvent(Event):
    type: Literal["response.output_text.done"]
    item_id: str
    output_index: int
    content_index: int
    text: str
    logprobs: Sequence[TokenLogprob]


class ReasoningDeltaEvent(Event):
    type: Literal["response.reasoning_text.delta"]
    item_id: str
    output_index: int
    content_index: int
    delta: str


class ReasoningDoneEvent(Event):
    type: Literal["response.reasoning_text.done"]
    item_id: str
    output_index: int
    content_index: int
    text: str


class ArgumentsDeltaEvent(Event):
    type: Literal["response.function_call_arguments.delta"]
    item_id: str
    output_index: int
    delta: str


class ArgumentsDoneEvent(Event):
    type: Literal["response.function_call_arguments.done"]
    item_id: str
    output_index: int
    name: str
    arguments: str


class FaultEvent(Event):
    """The event before response.failed."""

    type: Literal["error"]
    code: str | None
    message: str
    param: str | None


RESPONSE_STREAM = Stream(
    (
        ResponseEvent, ItemEvent, PartEvent, TextDeltaEvent, TextDoneEvent, ArgumentsDeltaEvent, ArgumentsDoneEvent,
        ReasoningDeltaEvent, ReasoningDoneEvent,
        FaultEvent,
    ),
    "a line `event: ` with the type, a line `data: ` with the event; response.completed, response.incomplete or "
    "response.failed is the last. Lines that begin with a colon are comments.",
)  # fmt: skip
