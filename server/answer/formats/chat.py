"""Answers of /v1/chat/completions."""

import uuid
from collections.abc import Sequence
from typing import Any

from server.answer.collected import Answer
from server.answer.formats.chunks import ChunkFormat
from server.answer.generation import Generation
from server.answer.texts import Piece
from server.protocol.chat import ChatFinishReason, ChatRequest
from server.protocol.report import FinishReason
from server.text.logprobs import ScoredToken, chat_form
from server.text.reasoning import Thought
from server.text.tool_calls import Content, NoCall, Part


class ChatFormat(ChunkFormat):
    """Messages of an assistant; log-probabilities are listed token by token."""

    prefix = "chatcmpl-"
    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"

    def __init__(self, generation: Generation, body: ChatRequest) -> None:
        super().__init__(generation, body.stream_options)
        offered = body.offered()
        # As in OpenAI's API: a call of a named tool ends with "stop", not with "tool_calls".
        self._told_by_reason = offered is not None and offered.mode != "named"
        # For each answer, the calls that have begun.
        self._called: dict[tuple[int, int], set[int]] = {}

    def chunks(self, piece: Piece) -> Sequence[dict[str, Any]]:
        *deltas, last = self._deltas(piece)
        choice = {
            "index": piece.sample,
            "delta": last,
            "logprobs": self._logprobs(piece.tokens) if piece.tokens else None,
            "finish_reason": self._reason(piece.finish_reason, bool(self._called.get(piece.answer))),
        }
        before = [
            {"choices": [{**choice, "delta": delta, "logprobs": None, "finish_reason": None}]} for delta in deltas
        ]
        if not self._delivery.token_ids:
            return [*before, {"choices": [choice]}]
        with_ids = {"choices": [{**choice, "token_ids": piece.ids}]}
        return [*before, {**with_ids, **(self.extras() if piece.opening else {})}]

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        content, calls = answer.said()
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if thought := answer.thought:
            message["reasoning_content"] = thought
        if calls:
            message["content"] = content or None
            message["tool_calls"] = [_call(call.name, call.arguments) for call in calls]
        choice = {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(answer.tokens) if self._delivery.logprobs else None,
            "finish_reason": self._reason(answer.finish_reason, bool(calls)),
        }
        return {**choice, "token_ids": answer.ids} if self._delivery.token_ids else choice

    def _deltas(self, piece: Piece) -> Sequence[dict[str, Any]]:
        """At least one delta."""
        if piece.opening:
            return [{"role": "assistant", "content": ""}]
        if not self._delivery.reading:
            return [{"content": piece.text}]
        return [delta for part in piece.parts if (delta := self._delta(piece, part))] or [{}]

    def _delta(self, piece: Piece, part: Part) -> dict[str, Any]:
        called = self._called.setdefault(piece.answer, set())
        if isinstance(part, Content):
            return {"content": part.text}
        if isinstance(part, Thought):
            return {"reasoning_content": part.text}
        if isinstance(part, NoCall):
            called.discard(part.index)
            return {}
        if part.name is None:
            return {"tool_calls": [{"index": part.index, "function": {"arguments": part.arguments}}]}
        called.add(part.index)
        return {"tool_calls": [{"index": part.index, **_call(part.name, part.arguments)}]}

    def _reason(self, reason: FinishReason | None, called: bool) -> ChatFinishReason | None:
        return "tool_calls" if called and reason == "stop" and self._told_by_reason else reason

    def extras(self) -> dict[str, Any]:
        if not self._delivery.token_ids:
            return {}
        return {"prompt_token_ids": self._generation.job.asks[0].prompt_ids}

    def _logprobs(self, tokens: Sequence[ScoredToken]) -> dict[str, Any]:
        return chat_form(self._generation.model.vocabulary, tokens)


def _call(name: str, arguments: str) -> dict[str, Any]:
    return {
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
