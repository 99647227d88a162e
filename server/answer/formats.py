"""Pieces as OpenAI's objects: chunks of a stream, or whole answers. One class for each of the two APIs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from server.answer.generation import Generation, Piece
from server.protocol.report import FinishReason
from server.text.logprobs import LegacyForm, ScoredToken, chat_form


@dataclass(slots=True)
class Answer:
    """All pieces of one sequence."""

    prompt: int
    echo: Piece | None = None
    texts: list[str] = field(default_factory=list)
    tokens: list[ScoredToken] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    logprob_sum: float = 0.0

    def add(self, piece: Piece) -> None:
        if piece.opening:
            self.echo = piece
        else:
            self.tokens += piece.tokens
        self.texts.append(piece.text)
        self.ids += piece.ids
        self.finish_reason = piece.finish_reason
        if not piece.opening:
            self.logprob_sum += sum(token.logprobs.chosen for token in piece.tokens if token.logprobs)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def mean_logprob(self) -> float:
        return self.logprob_sum / max(1, len(self.ids))


def best(answers: Sequence[Answer], choices: int) -> list[Answer]:
    """Of each prompt's answers the ones of the highest mean log-probability; as generated when all are wanted."""
    chosen: list[Answer] = []
    for prompt in sorted({answer.prompt for answer in answers}):
        own = [answer for answer in answers if answer.prompt == prompt]
        chosen += own if len(own) <= choices else sorted(own, key=lambda a: -a.mean_logprob)[:choices]
    return chosen


class Format(Protocol):
    """What streaming needs to know of an API."""

    prefix: str
    whole: str
    part: str

    def chunk(self, piece: Piece) -> dict[str, Any]: ...
    def choice(self, index: int, answer: Answer) -> dict[str, Any]: ...
    def extras(self) -> dict[str, Any]: ...


class CompletionFormat:
    """/v1/completions"""

    prefix = "cmpl-"
    whole = part = "text_completion"

    def __init__(self, generation: Generation, logprobs: bool) -> None:
        self._generation, self._logprobs = generation, logprobs
        self._delivery = generation.delivery
        self._begun: set[tuple[int, int]] = set()
        self._legacy: dict[tuple[int, int], LegacyForm] = {}

    def chunk(self, piece: Piece) -> dict[str, Any]:
        key = piece.prompt, piece.sample
        first = key not in self._begun
        self._begun.add(key)
        choice = {
            "index": piece.prompt * self._delivery.choices + piece.sample,
            "text": piece.text,
            "logprobs": self._arrays(key, piece),
            "finish_reason": piece.finish_reason,
        }
        if self._delivery.token_ids:
            choice["token_ids"] = piece.ids
        if self._delivery.token_ids and first:
            choice["prompt_token_ids"] = self._prompt_ids(piece.prompt)
        return {"choices": [choice]}

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

    def extras(self) -> dict[str, Any]:
        return {}

    def _legacy_form(self, prompt: int) -> LegacyForm:
        hides_special = self._delivery.skip_special_tokens
        return LegacyForm(self._generation.model.vocabulary, hides_special, self._prompt_ids(prompt))

    def _arrays(self, key: tuple[int, int], piece: Piece) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        if key not in self._legacy:
            self._legacy[key] = self._legacy_form(piece.prompt)
        form = self._legacy[key]
        if piece.opening:
            return form.echo(piece.tokens, piece.text)
        reason = piece.finish_reason
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
    """Whether the text ends at a stop string; a token that ends it is hidden."""
    return reason == "stop" and not (tokens and tokens[-1].hidden)


class ChatFormat:
    """/v1/chat/completions"""

    prefix = "chatcmpl-"
    whole = "chat.completion"
    part = "chat.completion.chunk"

    def __init__(self, generation: Generation) -> None:
        self._generation, self._delivery = generation, generation.delivery

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
