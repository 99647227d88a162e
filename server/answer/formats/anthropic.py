"""Answers of /v1/messages."""

import json
import sys
import uuid
from collections.abc import Sequence
from typing import Any

from server.answer.collected import Answer
from server.answer.formats.blocks import Began, Block, Blocks, Grew, Step
from server.answer.formats.format import event
from server.answer.generation import Generation
from server.answer.texts import Piece
from server.errors import ANTHROPIC, ApiError
from server.jsonwire import encode


class AnthropicFormat:
    """A ``Format``: a message made of blocks; the stream has named events."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._blocks = Blocks()
        self._ids: dict[int, str] = {}
        self._last = Piece(0, 0, "")
        self._frame = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": generation.delivery.model_name,
        }

    def open(self) -> bytes:
        return b""

    def piece(self, piece: Piece) -> bytes:
        self._last = piece
        if piece.opening:
            # Which tokens of the prompt were read is known from here on.
            begun: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": self._usage()}
            return _written("message_start", message={**self._frame, **begun})
        return b"".join(map(self._event, self._blocks.add(piece)))

    def close(self) -> bytes:
        ending = self._ending(self._last, self._blocks.all)
        return _written("message_delta", delta=ending, **self._reports()) + _written("message_stop")

    def error(self, error: ApiError) -> bytes:
        return event(ANTHROPIC.body(error), "error")

    def whole(self, answers: Sequence[Answer]) -> bytes:
        [answer] = answers
        blocks = Blocks.of(answer)
        content = [{**self._block(block), **_filled(block)} for block in blocks]
        ending = self._ending(answer.pieces[-1], blocks)
        return encode({**self._frame, "content": content, **ending, **self._reports()})

    def _event(self, step: Step) -> bytes:
        index, block = step.block.index, step.block
        if isinstance(step, Began):
            start = _written("content_block_start", index=index, content_block=self._block(block))
            return start if index else start + _written("ping")
        if isinstance(step, Grew):
            return _written("content_block_delta", index=index, delta=_delta(block, step.text))
        return _written("content_block_stop", index=index)

    def _block(self, block: Block) -> dict[str, Any]:
        """A block without its text or input."""
        if block.kind == "text":
            return {"type": "text", "text": "", "citations": None}
        if block.kind == "thought":
            return {"type": "thinking", "thinking": "", "signature": ""}
        id = self._ids.setdefault(block.index, f"toolu_{uuid.uuid4().hex[:24]}")
        return {"type": "tool_use", "id": id, "name": block.name, "input": {}}

    def _ending(self, last: Piece, blocks: Sequence[Block]) -> dict[str, Any]:
        if last.finish_reason == "length":
            reason = "max_tokens"
        elif last.stop is not None:
            reason = "stop_sequence"
        else:
            reason = "tool_use" if any(block.kind == "call" and block.complete for block in blocks) else "end_turn"
        return {"stop_reason": reason, "stop_sequence": last.stop}

    def _reports(self) -> dict[str, Any]:
        report = self._generation.report
        return {
            "usage": self._usage(),
            "griffin": report.griffin().model_dump(),
            "metrics": report.timing().model_dump(),
        }

    def _usage(self) -> dict[str, int]:
        usage = self._generation.report.usage()
        cached = usage.prompt_tokens_details.cached_tokens
        return {
            "input_tokens": usage.prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": usage.completion_tokens,
        }


def _written(name: str, **data: Any) -> bytes:
    return event({"type": name, **data}, name)


def _delta(block: Block, text: str) -> dict[str, Any]:
    if block.kind == "text":
        return {"type": "text_delta", "text": text}
    if block.kind == "thought":
        return {"type": "thinking_delta", "thinking": text}
    return {"type": "input_json_delta", "partial_json": text}


def _filled(block: Block) -> dict[str, Any]:
    if block.kind == "text":
        return {"text": block.text}
    if block.kind == "thought":
        return {"thinking": block.text}
    # A call that was cut off is not an object.
    return {"input": _object(block.text) if block.complete else {}}


def _object(arguments: str) -> dict[str, Any]:
    """A call's arguments as an object. They were valid JSON when the call was read.

    Never fails, because the rest of the answer is worth more. A number beyond the range of floats becomes the largest
    float, half a surrogate pair the replacement character, and a value that is not an object an empty object.
    """
    try:
        found = json.loads(arguments, strict=False, parse_float=_finite)
        text = json.dumps(found, ensure_ascii=False, allow_nan=False)
        found = json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _finite(digits: str) -> float:
    return max(-sys.float_info.max, min(sys.float_info.max, float(digits)))
