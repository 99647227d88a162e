"""POST /v1/completions"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema, model_validator

from griffin import Scoring
from server.protocol.elsewhere import REFUSED, REFUSED_IN_COMPLETIONS
from server.protocol.fields import (
    EMPTY_PROMPT,
    MAX_CHOICES,
    MAX_LOGPROBS,
    MAX_PROMPTS,
    Limit,
    Prompts,
    Text,
    Whole,
    refuse,
)
from server.protocol.report import FinishReason, GriffinReport, TimingReport, Usage
from server.protocol.request import ChoicesRequest

DEFAULT_MAX_TOKENS = 16
# Most log-probabilities of prompts in one answer, alternatives included. They take about a second of work.
MAX_SCORES = 2**20


class CompletionRequest(ChoicesRequest):
    """Body of POST /v1/completions."""

    refused: ClassVar = {**REFUSED, **REFUSED_IN_COMPLETIONS}

    prompt: Prompts = Field(
        description=f"a text, a list of texts, token ids, or a list of lists of them; up to {MAX_PROMPTS}"
    )
    suffix: Text | None = Field(
        default=None,
        description="the text after the answer, for models that fill in the middle; an empty text counts as absent",
    )
    max_tokens: Limit | None = Field(
        default=None, description=f"default {DEFAULT_MAX_TOKENS}; 0 only with echo; -1: the rest of the context"
    )
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES), Whole] | None = Field(
        default=None, description="generate so many answers, and return the n of the highest mean log-probability"
    )
    logprobs: Annotated[
        Annotated[int, Field(ge=0, le=MAX_LOGPROBS), Whole] | None,
        BeforeValidator(lambda value: None if value is False else value),
        WithJsonSchema(
            {"anyOf": [{"type": "integer", "minimum": 0, "maximum": MAX_LOGPROBS}, {"enum": [None, False]}]}
        ),
    ] = Field(
        default=None,
        description="return log-probabilities of each token and of so many most probable ones; false: none, as in chat",
    )
    echo: bool | None = Field(default=False, description="begin the answer with the prompt; logprobs then score it too")

    @model_validator(mode="after")
    def _infill_rules(self) -> Self:
        if not self.suffix:
            if "" in self.prompt:
                refuse("prompt", EMPTY_PROMPT)
            return self
        if not all(isinstance(prompt, str) for prompt in self.prompt):
            refuse("suffix", "only with a prompt of text, not of token ids")
        if self.echo:
            refuse("echo", "cannot be combined with suffix; leave one of them out")
        if self.truncate_prompt_tokens:
            refuse("truncate_prompt_tokens", "cannot be combined with suffix: shorten the prompt and the suffix")
        return self

    @model_validator(mode="after")
    def _completion_rules(self) -> Self:
        if self.token_limit() == 0 and not self.echo:
            refuse(self.field_name("max_tokens"), "must be 1 or more, unless echo=true")
        if self.best_of is not None and self.best_of < self.choices:
            refuse("best_of", f"must be n={self.choices} or more")
        if self.stream and self.sequences > self.choices:
            refuse("best_of", "the best answer is known only at the end; leave out stream or best_of")
        if self.griffin and self.griffin.prompt_tokens is not None and self.scoring() is None:
            refuse("griffin.prompt_tokens", "only with echo=true and logprobs")
        return self

    def default_limit(self, room: int, defaults: Mapping[str, float]) -> int:
        return min(DEFAULT_MAX_TOKENS, room)

    def wanted_logprobs(self) -> int | None:
        # The best answers cannot be chosen without log-probabilities.
        return 0 if self.logprobs is None and self.sequences > self.choices else self.logprobs

    @property
    def sequences(self) -> int:
        return self.best_of or self.choices

    @property
    def fills(self) -> bool:
        return bool(self.suffix)

    @property
    def echoes(self) -> bool:
        return bool(self.echo)

    def require_few_scores(self, prompt_tokens: int) -> None:
        """Check the size of the echoed scores; each of n answers repeats those of its prompt.

        Raises:
            ValueError: the answer would be too large; the text says why.
        """
        for_each = (self.logprobs or 0) + 1 if self.scoring() else 1
        if self.echo and prompt_tokens * self.sequences * for_each > MAX_SCORES:
            raise ValueError(
                f"{prompt_tokens} tokens of prompts, n={self.sequences} and logprobs={self.logprobs} make an answer "
                f"of more than {MAX_SCORES} tokens or log-probabilities; ask for less of one of them"
            )

    def scoring(self) -> Scoring | None:
        if not self.echo or self.logprobs is None:
            return None
        return Scoring(self.logprobs, self.griffin.prompt_tokens if self.griffin else None)


class LegacyLogprobs(BaseModel):
    """One entry for each token, including the prompt's tokens if it is echoed."""

    tokens: list[str]
    token_logprobs: list[float | None] = Field(description="null for the prompt's first token, which has no prediction")
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int] = Field(description="where each token begins in the text, in characters")


class CompletionChoice(BaseModel):
    index: int = Field(description="counts the n answers to the first prompt, then those to the next prompt")
    text: str
    logprobs: LegacyLogprobs | None
    finish_reason: FinishReason | None
    token_ids: list[int] | None = Field(default=None, description="if return_token_ids")
    prompt_token_ids: list[int] | None = Field(default=None, description="if return_token_ids")


class CompletionResponse(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    griffin: GriffinReport
    metrics: TimingReport
