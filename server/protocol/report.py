"""What every answer says of itself: tokens used, what GRIFFIN applied, how long things took; and errors."""

from typing import Any, Literal

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer

from griffin.request import MethodName, ModeName, StatisticName, StrategyName
from server.protocol.fields import SparsityChoice

FinishReason = Literal["stop", "length"]
Reason = Literal[
    "requested", "server_default", "expert_set", "ngram_drafts", "finished_at_first_token", "nothing_generated",
    "rounded_to_dense", "auto",
]  # fmt: skip


class PromptTokensDetails(BaseModel):
    cached_tokens: int = Field(description="that an earlier prompt began with too, and that were not read again")


class CompletionTokensDetails(BaseModel):
    reasoning_tokens: int = Field(description="of thoughts, their marks counted")


class Usage(BaseModel):
    """Each prompt counts once; every generated token counts, those of best_of too."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | None = Field(
        default=None, description="where answers have thoughts"
    )

    @model_serializer(mode="wrap")
    def _without_nothing(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Details that there are not are left out."""
        written: dict[str, Any] = write(self)
        return {name: value for name, value in written.items() if value is not None}


class VerificationReport(BaseModel):
    """What became of drafts, over all sequences of the request."""

    drafted_tokens: int
    accepted_tokens: int
    acceptance_rate: float | None = Field(description="accepted over drafted; null where nothing was drafted")
    rollbacks: int = Field(description="passes after which some of a block was thrown away")
    passes: int = Field(description="over a block of drafts")
    forced_tokens: int = Field(description="that the answer's form forced, and that took no step of their own")
    refreshes: int = Field(description="how often the choice was made anew")
    active_parameters_per_token: int | None = Field(
        description="that all steps and passes read, over the tokens after the first of each answer"
    )
    bytes_per_token: int | None = Field(description="of weights, that they read over the same tokens")


class ComparisonReport(BaseModel):
    """The sparse beside the full model on the tokens that were generated, both given the same ones before."""

    tokens: int = Field(description="that were compared, of all sequences; the figures are their means")
    kl: float = Field(description="of the pruned distribution from the full one, in nats")
    top1_agreement: float = Field(description="how often both find the same token most probable")
    perplexity_ratio: float = Field(description="the full model's perplexity on these tokens over the pruned one's")


class AutoReport(BaseModel):
    """The largest sparsity whose predicted loss is within the server's limit."""

    sparsity: float = Field(description="that was found; 0 where even the smallest is predicted to lose more")
    predicted_perplexity_percent: float = Field(
        description="that the perplexity of the answer rises above the full model's"
    )
    tolerance_percent: float = Field(description="that it may rise by: the server's --auto-tolerance")


class SharesReport(BaseModel):
    """Fractions of the weights of each kind of feed-forward matrix, 0 to 1."""

    gate: float = Field(description="of the gate's; in models without a gate, of the first projection's")
    up: float | None = Field(description="null in models without a gate")
    down: float


class GriffinReport(BaseModel):
    """What was applied. Neurons are counted over all layers."""

    sparsity: float = Field(
        description="of the tokens after the first of each answer, and of those that are scored sparsely"
    )
    requested_sparsity: SparsityChoice | None
    reason: Reason
    auto: AutoReport | None = Field(description="if sparsity auto was asked for, by the request or the server")
    method: MethodName
    mode: ModeName
    selection: StrategyName | None = Field(description="how neurons were picked by the statistic; null by griffin+")
    statistic: StatisticName | None = Field(description="what they were picked by; null by griffin+")
    neurons_kept: int = Field(description="all of them by method griffin+")
    neurons_total: int
    shares_read: SharesReport = Field(
        description="of the feed-forward weights, that a token after the first read on average; by method griffin+ "
        "each token picks them, and in mode fast they were counted"
    )
    active_parameters: int = Field(description="that take part in each token after the first")
    total_parameters: int
    bytes_per_token: int = Field(
        description="of weights that each token after the first reads, on average; keys and values come on top"
    )
    prompt_tokens: int | None = Field(description="that the choice was made on; of several prompts the sum")
    selection_ms: float | None = Field(
        description="from the finished prompt to the first token's step; of several prompts the sum"
    )
    expert_set: str | None = Field(description="a name for exactly this choice; of several prompts the first's")
    expert_sets: list[str | None] | None = Field(description="one for each prompt, when there are several")
    verification: VerificationReport | None = Field(description="null where nothing is drafted")
    comparison: ComparisonReport | None = Field(description="if compare was asked for and anything was left out")
    max_tokens: int = Field(
        description="limit that applied to the answer: the request's, the default, or the rest of the context; 0 if "
        "nothing was to be generated; of several prompts the first's"
    )
    max_tokens_each: list[int] | None = Field(description="one for each prompt, when there are several")


class TimingReport(BaseModel):
    """vLLM's names, in milliseconds; null where there is nothing to measure."""

    time_to_first_token_ms: float | None = Field(description="from the request's arrival")
    generation_time_ms: float | None = Field(description="from the first token to the last")
    queue_time_ms: float | None
    prefill_time_ms: float | None = Field(description="from leaving the queue to the first token")
    mean_itl_ms: float | None = Field(description="mean inter-token latency within a sequence")
    tokens_per_second: float | None = Field(description="its reciprocal")


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = Field(description="the field at fault")
    code: str | None


class ErrorResponse(BaseModel):
    """OpenAI's error object, for every status from 400 on."""

    error: ErrorDetail


class AnthropicErrorDetail(BaseModel):
    type: str
    message: str


class AnthropicError(BaseModel):
    """Anthropic's error object, for every status from 400 on."""

    type: Literal["error"]
    error: AnthropicErrorDetail
