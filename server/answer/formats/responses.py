"""Answers of /v1/responses."""

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from server.answer.collected import Answer
from server.answer.formats.blocks import Began, Block, Blocks, Grew, Step
from server.answer.formats.format import event
from server.answer.generation import Generation
from server.answer.texts import Piece
from server.errors import ApiError
from server.jsonwire import encode
from server.protocol.report import FinishReason
from server.protocol.response_tool import echoed
from server.protocol.responses import ResponsesRequest
from server.text.logprobs import ScoredToken, chat_form

PREFIXES = {"thought": "rs_", "text": "msg_", "call": "fc_"}
# Names of the events that report a block's text.
NAMES = {"thought": "reasoning_text", "text": "output_text"}
# Status of a response for each way to end.
STATUSES: dict[FinishReason, str] = {"stop": "completed", "length": "incomplete"}
Event = tuple[str, dict[str, Any]]


class ResponsesFormat:
    """A ``Format``: each block of the answer is an item of the output; events are named and numbered."""

    def __init__(self, generation: Generation, body: ResponsesRequest) -> None:
        self._generation, self._body = generation, body
        self._blocks = Blocks(some=True)
        self._ids: dict[int, str] = {}
        self._call_ids: dict[int, str] = {}
        self._number = 0
        self._reason: FinishReason = "stop"
        self._frame = self._frame_of(body)

    def open(self) -> bytes:
        return self._written([(f"response.{name}", {"response": self._response("in_progress", [])})
                              for name in ("created", "in_progress")])  # fmt: skip

    def piece(self, piece: Piece) -> bytes:
        if piece.finish_reason:
            self._reason = piece.finish_reason
        return self._written([event for step in self._blocks.add(piece) for event in self._events(step)])

    def close(self) -> bytes:
        status = STATUSES[self._reason]
        return self._written([(f"response.{status}", {"response": self._ended(self._blocks.all, self._reason)})])

    def error(self, error: ApiError) -> bytes:
        told = {"code": error.code, "message": str(error), "param": error.param}
        failed = self._response("failed", self._blocks.all)
        failed["error"] = {"code": "server_error", "message": str(error)}
        return self._written([("error", told), ("response.failed", {"response": failed})])

    def whole(self, answers: Sequence[Answer]) -> bytes:
        [answer] = answers
        return encode(self._ended(Blocks.of(answer, some=True), answer.finish_reason or "stop"))

    def _written(self, events: Sequence[Event]) -> bytes:
        written = b""
        for name, data in events:
            written += event({"type": name, "sequence_number": self._number, **data}, name)
            self._number += 1
        return written

    def _events(self, step: Step) -> Iterator[Event]:
        block = step.block
        place = {"item_id": self._id(block), "output_index": block.index}
        if block.kind != "call":
            yield from self._text_events(step, {**place, "content_index": 0})
        else:
            yield from self._call_events(step, place)

    def _text_events(self, step: Step, place: dict[str, Any]) -> Iterator[Event]:
        block = step.block
        if isinstance(step, Began):
            yield self._item_event("added", block, {**self._item(block), "status": "in_progress", "content": []})
            yield "response.content_part.added", {**place, "part": self._part(block)}
        elif isinstance(step, Grew):
            scored = {} if block.kind == "thought" else {"logprobs": self._logprobs(step.tokens)}
            yield f"response.{NAMES[block.kind]}.delta", {**place, "delta": step.text, **scored}
        else:
            part = self._part(block)
            scored = {} if block.kind == "thought" else {"logprobs": part["logprobs"]}
            yield f"response.{NAMES[block.kind]}.done", {**place, "text": block.text, **scored}
            yield "response.content_part.done", {**place, "part": part}
            yield self._item_event("done", block, self._item(block))

    def _call_events(self, step: Step, place: dict[str, Any]) -> Iterator[Event]:
        block = step.block
        if isinstance(step, Began):
            yield self._item_event("added", block, {**self._item(block), "status": "in_progress"})
        elif isinstance(step, Grew):
            yield "response.function_call_arguments.delta", {**place, "delta": step.text}
        else:
            done = {"name": block.name, "arguments": block.text}
            yield "response.function_call_arguments.done", {**place, **done}
            yield self._item_event("done", block, self._item(block))

    def _item_event(self, what: str, block: Block, item: dict[str, Any]) -> Event:
        return f"response.output_item.{what}", {"output_index": block.index, "item": item}

    def _item(self, block: Block) -> dict[str, Any]:
        status = "completed" if block.complete else "incomplete"
        if block.kind == "thought":
            named = {"id": self._id(block), "type": "reasoning", "status": status, "summary": []}
            return {**named, "content": [self._part(block)]}
        if block.kind == "text":
            named = {"id": self._id(block), "type": "message", "status": status, "role": "assistant"}
            return {**named, "content": [self._part(block)]}
        call_id = self._call_ids.setdefault(block.index, f"call_{uuid.uuid4().hex[:24]}")
        named = {"id": self._id(block), "type": "function_call", "status": status, "call_id": call_id}
        return {**named, "name": block.name, "arguments": block.text}

    def _part(self, block: Block) -> dict[str, Any]:
        if block.kind == "thought":
            return {"type": "reasoning_text", "text": block.text}
        logprobs = self._logprobs(block.tokens)
        return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": logprobs}

    def _id(self, block: Block) -> str:
        return self._ids.setdefault(block.index, PREFIXES[block.kind] + uuid.uuid4().hex)

    def _logprobs(self, tokens: Sequence[ScoredToken]) -> list[dict[str, Any]]:
        return chat_form(self._generation.model.vocabulary, tokens)["content"] if tokens else []

    def _ended(self, blocks: Sequence[Block], reason: FinishReason) -> dict[str, Any]:
        """The whole response."""
        report, response = self._generation.report, self._response(STATUSES[reason], blocks)
        response["incomplete_details"] = {"reason": "max_output_tokens"} if reason == "length" else None
        response["completed_at"] = int(time.time()) if reason == "stop" else None
        usage = report.usage()
        details = usage.completion_tokens_details
        response["usage"] = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": usage.prompt_tokens_details.cached_tokens,
                "cache_write_tokens": 0,
            },
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": details.reasoning_tokens if details else 0},
            "total_tokens": usage.total_tokens,
        }
        return response | {"griffin": report.griffin().model_dump(), "metrics": report.timing().model_dump()}

    def _response(self, status: str, blocks: Sequence[Block]) -> dict[str, Any]:
        return {**self._frame, "status": status, "output": [self._item(block) for block in blocks]}

    def _frame_of(self, body: ResponsesRequest) -> dict[str, Any]:
        """The fields that stay the same in all states of a response. Others get a place, to keep one order."""
        sampling = self._generation.job.asks[0].samplings[0]
        format = body.text.format if body.text else None
        written = format.model_dump(by_alias=True, exclude_unset=True) if format else {"type": "text"}
        return {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": None,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": None,
            "metadata": body.metadata or {},
            "model": self._generation.delivery.model_name,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
            "service_tier": "default",
            "store": False,
            "temperature": sampling.temperature,
            "text": {"format": written, "verbosity": "medium"},
            "tool_choice": echoed(body.choice),
            "tools": [tool.echoed() for tool in body.tools or ()],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": sampling.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
        }
