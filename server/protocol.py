"""OpenAI's request and response shapes, with the griffin extension."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from griffin import Pruning, Sampling
from griffin.selection import SelectionName
from griffin.statistic import StatisticName

MAX_STOP_STRINGS = 16
DEFAULT_MAX_TOKENS = 16

# Fields of OpenAI's API (and common extensions) that change the answer and are not built yet, each with
# the value that asks for nothing. Any other value is refused: ignoring it would answer another question.
NOT_BUILT: dict[str, Any] = {
    "suffix": "",
    "max_completion_tokens": None,
    "n": 1,
    "best_of": 1,
    "logprobs": None,
    "echo": False,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
    "logit_bias": {},
    "min_tokens": 0,
    "stop_token_ids": [],
    "response_format": None,
}
# Read by nobody: user only tells OpenAI whom to blame.
HARMLESS = {"user"}


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = Field(
        default=False, description="end the stream with a chunk of usage, griffin and metrics"
    )
    include_obfuscation: bool | None = Field(default=None, description="accepted for OpenAI's SDK; has no effect")


class GriffinOptions(BaseModel):
    """The rarer choices about neurons."""

    model_config = ConfigDict(strict=True, extra="forbid")

    selection: SelectionName | None = Field(default="top_k", description="how neurons are picked from the statistic")
    statistic: StatisticName | None = Field(
        default="flocking", description="of the prompt (the paper's), or of the weights alone"
    )


class CompletionRequest(BaseModel):
    """Body of POST /v1/completions. null is the same as leaving a field out."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str | None = Field(default=None, description="the served model's name; may be left out")
    prompt: str | list[int] = Field(description="a text, or one list of token ids")
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(default=None, description=f"default {DEFAULT_MAX_TOKENS}")
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = Field(
        None, description="0 is greedy; default 1"
    )
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = Field(default=None, description="0 or -1 keeps all tokens")
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    seed: int | None = Field(default=None, description="the same seed draws the same tokens")
    stop: str | list[str] | None = Field(
        default=None, description=f"up to {MAX_STOP_STRINGS}; the text ends before them"
    )
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = Field(default=False, description="go on to max_tokens, for runs of a fixed length")
    sparsity: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] | None = Field(
        None, description="fraction of feed-forward neurons removed while generating; 0 is the dense model"
    )
    griffin: GriffinOptions | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompt_form(cls, value: object) -> object:
        is_ids = isinstance(value, list) and all(type(item) is int for item in value)
        if not isinstance(value, str) and not is_ids:
            raise ValueError("must be a string or one list of token ids; lists of prompts are not supported yet")
        if not value:
            raise ValueError("must not be empty")
        _require_unicode(value)
        return value

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_form(cls, value: object) -> object:
        listed = [value] if isinstance(value, str) else [] if value is None else value
        if not isinstance(listed, list) or not all(isinstance(item, str) and item for item in listed):
            raise ValueError("must be a non-empty string or a list of them")
        if len(listed) > MAX_STOP_STRINGS:
            raise ValueError(f"at most {MAX_STOP_STRINGS} stop strings are supported")
        _require_unicode(*listed)
        return value

    def not_built(self) -> str | None:
        """A field that asks for something this server cannot do yet."""
        extra = self.model_extra or {}
        return next((name for name, none in NOT_BUILT.items() if extra.get(name, none) not in (none, None)), None)

    def ignored(self) -> list[str]:
        """Keys that no field answers to, such as a misspelt one."""
        return sorted(set(self.model_extra or {}) - set(NOT_BUILT) - HARMLESS)

    def stop_strings(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def sampling(self, room: int) -> Sampling:
        """``room``: tokens that fit behind the prompt, the limit when the request sets none."""
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(0, self.top_k or 0),
            min_p=self.min_p or 0.0,
            seed=self.seed,
            max_tokens=self.max_tokens or max(1, min(DEFAULT_MAX_TOKENS, room)),
            ignore_eos=bool(self.ignore_eos),
        )

    def pruning(self, default_sparsity: float) -> Pruning:
        options = self.griffin or GriffinOptions()
        return Pruning(
            sparsity=default_sparsity if self.sparsity is None else self.sparsity,
            selection=options.selection or "top_k",
            statistic=options.statistic or "flocking",
            seed=self.seed,
        )


def _require_unicode(*values: object) -> None:
    """JSON can spell half a surrogate pair, which is no character and has no UTF-8."""
    try:
        for value in values:
            if isinstance(value, str):
                value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has a lone surrogate at position {error.start}, which is not a character") from None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class GriffinReport(BaseModel):
    """What was applied. Neurons are counted over all layers."""

    sparsity: float = Field(description="of the generated tokens; the first always comes from the full model")
    requested_sparsity: float | None
    reason: Literal["requested", "server_default", "finished_at_first_token", "rounded_to_dense"]
    selection: SelectionName
    statistic: StatisticName
    neurons_kept: int
    neurons_total: int
    active_parameters: int = Field(description="that take part in each token after the first")
    total_parameters: int
    selection_ms: float | None = Field(description="from the finished prompt to decode-ready weights")
    expert_set: str | None = Field(description="a name for exactly these neurons")


class TimingReport(BaseModel):
    """vLLM's names, in milliseconds; null where there is nothing to measure."""

    time_to_first_token_ms: float | None = Field(description="from the request's arrival")
    generation_time_ms: float | None = Field(description="from the first token to the last")
    queue_time_ms: float | None
    prefill_time_ms: float | None = Field(description="from leaving the queue to the first token")
    mean_itl_ms: float | None = Field(description="mean inter-token latency")
    tokens_per_second: float | None = Field(description="after the first token")


class Choice(BaseModel):
    index: int = 0
    text: str
    logprobs: None = None
    finish_reason: Literal["stop", "length"] | None


class CompletionResponse(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    griffin: GriffinReport
    metrics: TimingReport


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "griffin"
    max_model_len: int


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    error: ErrorDetail
