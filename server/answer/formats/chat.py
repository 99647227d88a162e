"""/v1/chat/completions"""

from collections.abc import Sequence
from typing import Any

from server.answer.collected import Answer
from server.answer.formats.chunks import ChunkFormat
from server.answer.generation import Generation
from server.answer.texts import Piece
from server.protocol.chat import ChatRequest
from server.text.logprobs import ScoredToken, chat_form


class ChatFormat(ChunkFormat):
    """Messages of an assistant; log-probabilities token by token."""

    prefix = "chatcmpl-"
    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"

    def __init__(self, generation: Generation, body: ChatRequest) -> None:
        super().__init__(generation, body.stream_options)

    def chunk(self, piece: Piece) -> dict[str, Any]:
        choice = {
            "index": piece.sample,
            "delta": {"role": "assistant", "content": ""} if piece.opening else {"content": piece.text},
            "logprobs": self._logprobs(piece.tokens) if piece.tokens else None,
            "finish_reason": piece.finish_reason,
        }
        if not self._delivery.token_ids:
            return {"choices": [choice]}
        return {"choices": [{**choice, "token_ids": piece.ids}], **(self.extras() if piece.opening else {})}

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        choice = {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": self._logprobs(answer.tokens) if self._delivery.logprobs else None,
            "finish_reason": answer.finish_reason,
        }
        return {**choice, "token_ids": answer.ids} if self._delivery.token_ids else choice

    def extras(self) -> dict[str, Any]:
        if not self._delivery.token_ids:
            return {}
        return {"prompt_token_ids": self._generation.job.asks[0].prompt_ids}

    def _logprobs(self, tokens: Sequence[ScoredToken]) -> dict[str, Any]:
        return chat_form(self._generation.model.vocabulary, tokens)
