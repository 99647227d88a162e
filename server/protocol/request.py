"""What completions and chat completions have in common."""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from griffin import Sampling, Scoring
from griffin.errors import ContextLengthExceeded
from server.protocol.fields import (
    MAX_CHOICES,
    MAX_STOP_STRINGS,
    Fraction,
    LogitBias,
    Penalty,
    SparsityChoice,
    Stop,
    TokenId,
    asks_for_nothing,
    few_keys,
    refuse,
)
from server.protocol.options import GriffinOptions

# Read by nobody, and no answer depends on them: whom to blame, where to store, how to bill.
HARMLESS = {
    "user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "prediction", "parallel_tool_calls", "stream_obfuscation",
}  # fmt: skip
# Fields of OpenAI's and vLLM's APIs that would change the answer and are not supported, each with the values that
# ask for nothing. Any other value is refused: ignoring it would answer another question.
REFUSED: dict[str, tuple[Any, ...]] = {
    "response_format": ({"type": "text"},),
    "prompt_logprobs": (),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "prompt_embeds": (),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "json_schema": (),
    "grammar": (),
    "regex": (),
    "ebnf": (),
    "logits_processors": ([],),
    "return_tokens_as_token_ids": (False,),
    "spaces_between_special_tokens": (True,),
    "typical_p": (1, 1.0),
}


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    _few_keys = model_validator(mode="before")(few_keys)

    include_usage: bool | None = Field(
        default=False, description="end the stream with a chunk of usage, griffin and metrics"
    )
    continuous_usage_stats: bool | None = Field(
        default=False, description="with include_usage: the usage so far in every chunk"
    )
    include_obfuscation: bool | None = Field(default=None, description="accepted for OpenAI's SDK; has no effect")


class GenerationRequest(BaseModel):
    """Fields of every request that generates. null is the same as leaving a field out."""

    model_config = ConfigDict(strict=True, extra="allow")
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = REFUSED

    model: str | None = Field(
        default=None, description="the served model's name, or NAME@sparsity=0.5; may be left out"
    )
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = Field(
        default=None, description="0 is greedy; default: the model's, else 1"
    )
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = Field(default=None, description="0 or -1 keeps all tokens")
    min_p: Fraction | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = Field(
        default=1, description="answers to each prompt, one after the other, from one reading of it"
    )
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] | None = Field(
        default=None, description="1 is none; counts the prompt's tokens too"
    )
    logit_bias: LogitBias = Field(default_factory=dict)
    seed: int | None = Field(
        default=None, description="the same seed draws the same tokens; answer i of several draws with seed + i"
    )
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = Field(
        default=0, description="no end-of-sequence and no stop before that many"
    )
    stop: Stop = Field(
        default_factory=list, description=f"up to {MAX_STOP_STRINGS}; the text ends before the first that appears"
    )
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True)] | None = Field(default=None, max_length=128)
    include_stop_str_in_output: bool | None = Field(default=False, description="the text ends behind it instead")
    ignore_eos: bool | None = Field(default=False, description="go on to max_tokens, for runs of a fixed length")
    skip_special_tokens: bool | None = Field(default=True, description="leave special tokens out of the text")
    add_special_tokens: bool | None = Field(default=None, description="put a begin-of-sequence token before texts")
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = Field(
        default=None, description="keep that many tokens of the prompt's end; -1: as many as fit"
    )
    return_token_ids: bool | None = Field(default=False, description="add token_ids and prompt_token_ids")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None, description="seconds until the request is given up; the server's own limit holds in any case"
    )
    user: Any = Field(default=None, description="accepted; has no effect")
    sparsity: SparsityChoice | None = Field(
        default=None,
        description="fraction of feed-forward neurons removed while generating; 0 is the dense model; auto is the "
        "largest whose predicted loss on this prompt stays within the server's limit",
    )
    griffin: GriffinOptions | None = None

    _few_keys = model_validator(mode="before")(few_keys)

    @model_validator(mode="after")
    def _rules(self) -> Self:
        extra = self.model_extra or {}
        for name, nothing in self.refused.items():
            if not asks_for_nothing(extra.get(name), nothing):
                refuse(name, f"{name} is not supported; leave it out", "unsupported_parameter")
        if self.stream_options and not self.stream:
            refuse("stream_options", "stream_options: only with stream=true")
        if self.truncate_prompt_tokens == 0:
            refuse("truncate_prompt_tokens", "truncate_prompt_tokens: must be 1 or more, or -1 for as many as fit")
        limit = self.token_limit()
        if self.min_tokens and limit is not None and 0 <= limit < self.min_tokens:
            refuse("min_tokens", f"min_tokens: must not be more than the limit of {limit} tokens")
        return self

    def ignored(self) -> list[str]:
        """Keys that no field answers to, such as a misspelt one."""
        return sorted(set(self.model_extra or {}) - set(self.refused) - HARMLESS)

    def token_limit(self) -> int | None:
        """Tokens that an answer may have, as the request says; -1 is the rest of the context, None says nothing."""
        return self.max_tokens

    def default_limit(self, room: int, defaults: Mapping[str, float]) -> int:
        """Tokens that an answer may have if the request names no limit; see ``limit_within``."""
        raise NotImplementedError

    def limit_within(self, room: int, defaults: Mapping[str, float], *, clamp: bool) -> int:
        """Tokens that an answer may have after a certain prompt; 0 if nothing is to be generated.

        Args:
            room: tokens that fit after the prompt; 0 or less if the prompt fills the context.
            defaults: the model's own, see ``griffin.Checkpoint``.
            clamp: a limit beyond the room becomes the room.

        Raises:
            ContextLengthExceeded: ``min_tokens`` do not fit, or the limit does not and there is no ``clamp``.
        """
        named, least = self.token_limit(), self.min_tokens or 0
        if named == 0:
            return 0
        if room < 1:
            # The engine refuses the prompt.
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

        An answer without a limit, or with one of the whole context or more, gets a quarter of the context. With
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
        """What the client calls what the engine calls so."""
        return param

    def wanted_logprobs(self) -> int | None:
        """How many alternatives to report for each token; None is nothing at all."""
        raise NotImplementedError

    @property
    def choices(self) -> int:
        """Answers returned for each prompt."""
        return self.n or 1

    @property
    def sequences(self) -> int:
        """Answers generated for each prompt."""
        return self.choices

    @property
    def echoes(self) -> bool:
        """Whether the answer begins with the prompt."""
        return False

    def samplings(self, limit: int, defaults: Mapping[str, float]) -> Sequence[Sampling]:
        """One for each sequence; none when nothing is to be generated.

        Args:
            limit: tokens of each, see ``limit_within``.
            defaults: the model's own, for fields that the request leaves out.
        """
        if limit == 0:
            return ()

        def chosen(field: str, otherwise: float) -> float:
            value = getattr(self, field)
            return float(defaults.get(field, otherwise) if value is None else value)

        top_p = chosen("top_p", 1.0)
        first = Sampling(
            # Within no probability at all there is still the most probable token.
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
        )
        if self.seed is None:
            return (first,) * self.sequences
        return tuple(replace(first, seed=self.seed + index) for index in range(self.sequences))

    def require_few_scores(self, prompt_tokens: int) -> None:
        """Raises ValueError when prompts of that many tokens would be scored into too large an answer."""

    def scoring(self) -> Scoring | None:
        """How the prompt's own tokens are scored, if they are."""
        return None
