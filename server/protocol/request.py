"""Fields that all generating requests share, and fields that the two older APIs share."""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from griffin import Sampling, Scoring
from griffin.constraint import Grammar
from griffin.errors import ContextLengthExceeded
from server.protocol.elsewhere import REFUSED, Refused, documented, require_supported, require_untuned, unknown
from server.protocol.fields import (
    MAX_CHOICES,
    MAX_KEYS,
    MAX_STOP_STRINGS,
    Clamped,
    Count,
    Fraction,
    Kept,
    Limit,
    LogitBias,
    ModelName,
    Penalty,
    Seed,
    SparsityChoice,
    Stop,
    TokenIds,
    Whole,
    few_keys,
    refuse,
)
from server.protocol.options import GriffinOptions
from server.protocol.structured import Form, ResponseFormat, StructuredOutputs, refuse_beside

TWINS = {"repeat_penalty": "repetition_penalty", "no_stop_trim": "include_stop_str_in_output"}
# llama.cpp's count of last tokens that a penalty looks at; here a penalty looks at all tokens.
PENALTY_WINDOWS = ("repeat_last_n", "repetition_penalty_range")

RepetitionPenalty = Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)]


def with_refused(schema: dict[str, Any], request: type[Any]) -> None:
    documented(schema, request.refused)
    schema["maxProperties"] = MAX_KEYS


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    _few_keys = model_validator(mode="before")(few_keys)

    include_usage: bool | None = Field(
        default=False, description="end the stream with a chunk of usage, griffin and metrics"
    )
    continuous_usage_stats: bool | None = Field(
        default=False, description="with include_usage: every chunk has the usage so far"
    )
    include_obfuscation: bool | None = Field(default=None, description="accepted for OpenAI's SDK; has no effect")


class GenerationRequest(BaseModel):
    """Fields of every request that generates. null means the same as a missing field."""

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra=with_refused)
    # Fields that this endpoint refuses.
    refused: ClassVar[Mapping[str, Refused]] = REFUSED
    # Fields that name the limit of tokens; the first one given counts. Those in ``overridden`` may differ.
    limits: ClassVar[Sequence[str]] = ()
    overridden: ClassVar[Sequence[str]] = ()
    # Other servers' names for our fields, apart from those of the limit.
    twins: ClassVar[Mapping[str, str]] = TWINS

    model: ModelName = Field(default=None, description="the served model's name, or NAME@sparsity=0.5; optional")
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = Field(
        default=None, description="0 is greedy; default: the model's own value, else 1"
    )
    top_p: Fraction | None = Field(default=None, description="default 1; 0 is greedy")
    top_k: Annotated[int, Field(ge=-1), Clamped, Whole] | None = Field(
        default=None, description="0, -1, or more than the vocabulary keeps all tokens"
    )
    min_p: Fraction | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = Field(
        default=None, description="1 has no effect; tokens of the prompt count too"
    )
    repeat_penalty: RepetitionPenalty | None = Field(
        default=None, description="llama.cpp's and LM Studio's name for repetition_penalty"
    )
    logit_bias: LogitBias = Field(default_factory=dict)
    seed: Seed | None = Field(
        default=None,
        description="the same seed draws the same tokens; the i-th of several answers uses seed + i; -1: no seed",
    )
    min_tokens: Count | None = Field(default=0, description="the answer does not end before so many tokens")
    stop: Stop = Field(
        default_factory=list, description=f"up to {MAX_STOP_STRINGS}; the text ends before the first one that appears"
    )
    stop_token_ids: Annotated[TokenIds, Field(max_length=128)] | None = None
    include_stop_str_in_output: bool | None = Field(
        default=False, description="end the text after the stop string instead of before it"
    )
    no_stop_trim: bool | None = Field(default=None, description="SGLang's name for include_stop_str_in_output")
    ignore_eos: bool | None = Field(default=False, description="generate up to max_tokens, for runs of a fixed length")
    skip_special_tokens: bool | None = Field(default=True, description="leave special tokens out of the text")
    truncate_prompt_tokens: Kept | None = Field(
        default=None, description="keep so many tokens at the prompt's end; -1: as many as fit"
    )
    structured_outputs: StructuredOutputs | None = Field(
        default=None, description="the form of the answer, as in vLLM; excludes every other field for the form"
    )
    stream: bool | None = False
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None, description="seconds that the request may take; the server's own limit applies too"
    )
    user: Any = Field(default=None, description="accepted; has no effect")
    sparsity: SparsityChoice | None = Field(
        default=None,
        description="fraction of the feed-forward weights that generated tokens do not read; 0 is the dense model; "
        "auto: the largest whose predicted loss stays within the server's limit",
    )
    griffin: GriffinOptions | None = None

    _few_keys = model_validator(mode="before")(few_keys)

    @model_validator(mode="after")
    def _rules(self) -> Self:
        require_supported(self._sent(), self.refused)
        require_untuned(self._sent())
        self._settle_twins()
        limit = self.token_limit()
        if self.min_tokens and limit is not None and 0 <= limit < self.min_tokens:
            refuse("min_tokens", f"must not be more than the limit of {limit} tokens")
        self._require_one_form()
        return self

    def _require_one_form(self) -> None:
        if (form := self.form()) is None:
            return
        named = self.named_form()
        if named and self.structured_outputs and self.structured_outputs.form():
            refuse("structured_outputs", f"cannot be combined with {named.param}; leave one of them out")
        if self.min_tokens:
            refuse_beside(form, "min_tokens", "whose text may end before")
        if self.ignore_eos:
            refuse_beside(form, "ignore_eos", "whose text has an end")

    def form(self) -> Form | None:
        """The form that every answer must have; None if any text is allowed."""
        return self.named_form() or (self.structured_outputs.form() if self.structured_outputs else None)

    def named_form(self) -> Form | None:
        """The form in the API's own field."""
        return None

    def longest_s(self, limit_s: float) -> float:
        """Seconds that the request may take; ``limit_s`` is the server's limit."""
        return min(self.timeout or limit_s, limit_s)

    def thought_budget(self) -> tuple[int, str] | None:
        """The largest number of tokens of a thought, and the field that sets it."""
        return None

    def _sent(self) -> dict[str, Any]:
        """Keys that are not our fields, without settings of a penalty that is off."""
        sent = self.model_extra or {}
        penalties = (self.presence_penalty or 0, self.frequency_penalty or 0)
        factors = (self.repetition_penalty or 1, self.repeat_penalty or 1)
        if penalties != (0, 0) or factors != (1, 1):
            return sent
        return {name: value for name, value in sent.items() if name not in PENALTY_WINDOWS}

    def _settle_twins(self) -> None:
        """Join fields with the same meaning. If two of them differ, refuse: neither is dropped in silence."""
        given = self._given_limits()
        for name, value in given[1:]:
            if value != given[0][1] and name not in self.overridden:
                refuse(name, f"differs from {given[0][0]}; leave one of them out")
        for name, own in self.twins.items():
            foreign, value = getattr(self, name), getattr(self, own)
            if foreign is None:
                continue
            if own in self.model_fields_set and value not in (None, foreign):
                refuse(name, f"differs from {own}; leave one of them out")
            setattr(self, own, foreign)

    def ignored(self) -> list[str]:
        """Unknown keys, such as a misspelt one."""
        return unknown(self.model_extra or {}, self.refused)

    def _given_limits(self) -> list[tuple[str, int]]:
        given = ((name, getattr(self, name)) for name in self.limits)
        return [(name, value) for name, value in given if value is not None]

    def token_limit(self) -> int | None:
        """The limit of tokens in the request; -1 is the rest of the context, None: the request sets no limit."""
        given = self._given_limits()
        return given[0][1] if given else None

    def default_limit(self, room: int, defaults: Mapping[str, float]) -> int:
        """The limit of tokens if the request sets none; see ``limit_within``."""
        raise NotImplementedError

    def limit_within(self, room: int, defaults: Mapping[str, float], *, clamp: bool) -> int:
        """The limit of tokens for an answer after a certain prompt; 0 if nothing is to be generated.

        Args:
            room: tokens that fit after the prompt; 0 or less if the prompt fills the context.
            defaults: the model's own values, see ``griffin.Checkpoint``.
            clamp: reduce a limit that exceeds the room to the room.

        Raises:
            ContextLengthExceeded: ``min_tokens`` do not fit; or the limit does not fit and ``clamp`` is False.
        """
        named, least = self.token_limit(), self.min_tokens or 0
        if named == 0:
            return 0
        if room < 1:
            # The engine will refuse the prompt.
            return max(1, least)
        if least > room:
            self._refuse_length("min_tokens", least, room)
        if named is None:
            return max(1, least, self.default_limit(room, defaults))
        if named > room and not clamp:
            self._refuse_length("max_tokens", named, room)
        return room if named < 0 else min(named, room)

    def _refuse_length(self, name: str, tokens: int, room: int) -> NoReturn:
        raise ContextLengthExceeded(
            f"{self.field_name(name)}: {reprlib.repr(tokens)} do not fit into this model's context after the prompt; "
            f"ask for at most {room}",
            name,
        )

    def longest_prompt(self, context: int, defaults: Mapping[str, float], *, clamp: bool) -> int:
        """Tokens of a prompt that ``truncate_prompt_tokens`` -1 keeps: as many as fit beside the answer.

        If the answer has no limit, or one of the whole context or more, it gets a quarter of the context. With
        ``clamp``, a prompt gets at least a quarter too.
        """
        named, least, quarter = self.token_limit(), self.min_tokens or 0, max(1, context // 4)
        wanted = max(self.default_limit(context, defaults) if named is None else named, least)
        if named is not None and named >= 0 and not clamp:
            return max(1, context - wanted)
        if (named or 0) < 0 or wanted >= context:
            wanted = max(quarter, least)
        return max(1, context - wanted, min(quarter, context - least))

    def field_name(self, param: str) -> str:
        """The client's name for a field, given the engine's name."""
        given = self._given_limits()
        return given[0][0] if param == "max_tokens" and given else param

    def wanted_logprobs(self) -> int | None:
        """How many alternatives to report for each token; None: no log-probabilities."""
        raise NotImplementedError

    @property
    def choices(self) -> int:
        """Answers that are returned for each prompt."""
        return 1

    @property
    def sequences(self) -> int:
        """Answers that are generated for each prompt."""
        return self.choices

    @property
    def tells_ids(self) -> bool:
        """Whether the answer contains the ids of its tokens."""
        return False

    @property
    def fills(self) -> bool:
        """Whether the answer is a text between two others."""
        return False

    @property
    def echoes(self) -> bool:
        """Whether the answer begins with the prompt."""
        return False

    def samplings(
        self, limit: int, defaults: Mapping[str, float], grammar: Grammar | None = None
    ) -> Sequence[Sampling]:
        """One sampling for each sequence; empty if nothing is to be generated.

        Args:
            limit: most tokens of each sequence, see ``limit_within``.
            defaults: the model's own values, for fields that the request leaves out.
            grammar: of the request's ``form``.
        """
        if limit == 0:
            return ()

        def chosen(field: str, otherwise: float) -> float:
            value = getattr(self, field)
            return float(defaults.get(field, otherwise) if value is None else value)

        top_p = chosen("top_p", 1.0)
        first = Sampling(
            # Even top_p 0 keeps the most probable token.
            temperature=chosen("temperature", 1.0) if top_p else 0.0,
            top_p=top_p or 1.0,
            top_k=max(0, int(defaults.get("top_k", 0) if self.top_k is None else self.top_k)),
            min_p=chosen("min_p", 0.0),
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=chosen("repetition_penalty", 1.0),
            logit_bias=self.logit_bias,
            seed=self.seed,
            max_tokens=limit,
            min_tokens=self.min_tokens or 0,
            stop_token_ids=frozenset(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            logprobs=self.wanted_logprobs(),
            grammar=grammar,
        )
        if self.seed is None:
            return (first,) * self.sequences
        return tuple(replace(first, seed=self.seed + index) for index in range(self.sequences))

    def require_few_scores(self, prompt_tokens: int) -> None:
        """Raises ValueError if scores of a prompt of so many tokens make the answer too large."""

    def scoring(self) -> Scoring | None:
        """How the prompt's own tokens are scored; None if they are not."""
        return None


class ChoicesRequest(GenerationRequest):
    """Fields that OpenAI's two older endpoints share: answers are ``choices``, one or more."""

    limits: ClassVar[Sequence[str]] = ("max_tokens", "n_predict", "max_new_tokens")

    n: Annotated[int, Field(ge=1, le=MAX_CHOICES), Whole] | None = Field(
        default=1, description="answers to each prompt; the prompt is read once"
    )
    max_tokens: Limit | None = None
    n_predict: Limit | None = Field(default=None, description="llama.cpp's name for max_tokens")
    max_new_tokens: Limit | None = Field(default=None, description="TGI's name for max_tokens")
    add_special_tokens: bool | None = Field(default=None, description="put a begin-of-sequence token before texts")
    return_token_ids: bool | None = Field(default=False, description="add token_ids and prompt_token_ids")
    response_format: ResponseFormat | None = Field(
        default=None, description="the form of the answer, as in OpenAI's API"
    )
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _stream_rules(self) -> Self:
        options = self.stream_options
        if options and not self.stream and (options.include_usage or options.continuous_usage_stats):
            refuse("stream_options", "only with stream=true")
        return self

    def named_form(self) -> Form | None:
        return self.response_format.form() if self.response_format else None

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def tells_ids(self) -> bool:
        return bool(self.return_token_ids)
