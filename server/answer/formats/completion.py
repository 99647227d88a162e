"""Answers of /v1/completions."""

from collections.abc import Sequence
from typing import Any

from server.answer.collected import Answer
from server.answer.formats.chunks import ChunkFormat
from server.answer.generation import Generation
from server.answer.texts import Piece
from server.protocol.completion import CompletionRequest
from server.protocol.report import FinishReason
from server.text.logprobs import LegacyForm, ScoredToken


class CompletionFormat(ChunkFormat):
    """Texts; log-probabilities are four arrays."""

    prefix = "cmpl-"
    object_name = chunk_name = "text_completion"

    def __init__(self, generation: Generation, body: CompletionRequest) -> None:
        super().__init__(generation, body.stream_options)
        self._logprobs = body.logprobs is not None
        # Answers that have begun. Their arrays of log-probabilities continue from piece to piece.
        self._begun: dict[tuple[int, int], LegacyForm | None] = {}

    def chunks(self, piece: Piece) -> Sequence[dict[str, Any]]:
        first = piece.answer not in self._begun
        if first:
            self._begun[piece.answer] = self._legacy_form(piece.prompt) if self._logprobs else None
        choice = {
            "index": piece.prompt * self._delivery.choices + piece.sample,
            "text": piece.text,
            "logprobs": self._arrays(piece),
            "finish_reason": piece.finish_reason,
        }
        if self._delivery.token_ids:
            choice["token_ids"] = piece.ids
        if self._delivery.token_ids and first:
            choice["prompt_token_ids"] = self._prompt_ids(piece.prompt)
        return [{"choices": [choice]}]

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        choice = {
            "index": index,
            "text": answer.text,
            "logprobs": self._all_arrays(answer) if self._logprobs else None,
            "finish_reason": answer.finish_reason,
        }
        if self._delivery.token_ids:
            choice |= {"token_ids": answer.ids, "prompt_token_ids": self._prompt_ids(answer.prompt)}
        return choice

    def _legacy_form(self, prompt: int) -> LegacyForm:
        hides_special = self._delivery.skip_special_tokens
        return LegacyForm(self._generation.model.vocabulary, hides_special, self._prompt_ids(prompt))

    def _arrays(self, piece: Piece) -> dict[str, Any] | None:
        form, reason = self._begun[piece.answer], piece.finish_reason
        if form is None:
            return None
        if piece.opening:
            return form.echo(piece.tokens, piece.text)
        return form.generated(piece.tokens, piece.text, last=reason is not None, stopped=_stopped(reason, piece.tokens))

    def _all_arrays(self, answer: Answer) -> dict[str, Any]:
        form, echo = self._legacy_form(answer.prompt), answer.echo
        prompt = form.echo(echo.tokens, echo.text) if echo else {}
        text, stopped = answer.text[len(echo.text) if echo else 0 :], _stopped(answer.finish_reason, answer.tokens)
        generated = form.generated(answer.tokens, text, last=True, stopped=stopped)
        return {name: prompt.get(name, []) + values for name, values in generated.items()}

    def _prompt_ids(self, prompt: int) -> list[int]:
        return self._generation.job.asks[prompt].prompt_ids


def _stopped(reason: FinishReason | None, tokens: Sequence[ScoredToken]) -> bool:
    """Whether a stop string ended the text, and not a hidden token."""
    return reason == "stop" and not (tokens and tokens[-1].hidden)
