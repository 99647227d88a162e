"""What every answer reports: tokens used, what GRIFFIN applied, how long it took. Also the error objects."""

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
    cached_tokens: int = Field(description="prompt tokens that were reused from an earlier prompt")


class CompletionTokensDetails(BaseModel):
    reasoning_tokens: int = Field(description="tokens of thoughts, including their marks")


class Usage(BaseModel):
    """Each prompt counts once. Every generated token counts, including those of best_of."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | None = Field(
        default=None, description="only if answers have thoughts"
    )

    @model_serializer(mode="wrap")
    def _without_nothing(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out details that do not exist."""
        written: dict[str, Any] = write(self)
        return {name: value for name, value in written.items() if value is not None}


class VerificationReport(BaseModel):
    """What became of drafts, over all sequences of the request."""

    drafted_tokens: int
    accepted_tokens: int
    acceptance_rate: float | None = Field(description="accepted over drafted; null if nothing was drafted")
    rollbacks: int = Field(description="passes that rejected part of their block")
    passes: int = Field(description="passes over a block of drafts")
    forced_tokens: int = Field(description="tokens that the answer's form forced, without a step of their own")
    refreshes: int = Field(description="how often neurons were chosen again")
    active_parameters_per_token: int | None = Field(
        description="parameters read by all steps and passes, divided by the tokens after the first of each answer"
    )
    bytes_per_token: int | None = Field(description="bytes of weights, divided in the same way")


class ComparisonReport(BaseModel):
    """The sparse model beside the full model on the generated tokens, each with the same preceding tokens."""

    tokens: int = Field(description="tokens compared, of all sequences; the figures are means over them")
    kl: float = Field(description="divergence of the pruned distribution from the full one, in nats")
    top1_agreement: float = Field(description="how often both models find the same token most probable")
    perplexity_ratio: float = Field(description="the full model's perplexity on these tokens over the pruned model's")


class AutoReport(BaseModel):
    """The largest sparsity whose predicted loss is within the server's limit."""

    sparsity: float = Field(description="the sparsity found; 0 if even the smallest is predicted to lose more")
    predicted_perplexity_percent: float = Field(
        description="predicted rise of the answer's perplexity above the full model's"
    )
    tolerance_percent: float = Field(description="allowed rise: the server's --auto-tolerance")


class SharesReport(BaseModel):
    """Fractions (0 to 1) that were read of the weights of each kind of feed-forward matrix."""

    gate: float = Field(description="the gate projection; in models without a gate, the first projection")
    up: float | None = Field(description="null in models without a gate")
    down: float


class GriffinReport(BaseModel):
    """What was applied. Neurons are counted over all layers."""

    sparsity: float = Field(
        description="sparsity of the tokens after the first of each answer, and of tokens that are scored sparsely"
    )
    requested_sparsity: SparsityChoice | None
    reason: Reason
    auto: AutoReport | None = Field(description="if the request or the server asked for sparsity auto")
    method: MethodName
    mode: ModeName
    selection: StrategyName | None = Field(description="how neurons were picked from the statistic; null with griffin+")
    statistic: StatisticName | None = Field(description="the statistic they were picked from; null with griffin+")
    neurons_kept: int = Field(description="neurons kept; with method griffin+ all of them")
    neurons_total: int
    shares_read: SharesReport = Field(
        description="shares of the feed-forward weights that a token after the first read on average; with griffin+ "
        "each token picks its own, and in mode fast the shares are counted",
    )
    active_parameters: int = Field(description="parameters that each token after the first uses")
    total_parameters: int
    bytes_per_token: int = Field(
        description="bytes of weights that each token after the first reads, on average, without keys and values"
    )
    prompt_tokens: int | None = Field(description="tokens on which the choice was made; for several prompts the sum")
    selection_ms: float | None = Field(
        description="time from the finished prompt to the first token's step; for several prompts the sum"
    )
    expert_set: str | None = Field(description="a name for exactly this choice; for several prompts, the first's")
    expert_sets: list[str | None] | None = Field(description="one for each prompt, if there are several")
    verification: VerificationReport | None = Field(description="null if nothing is drafted")
    comparison: ComparisonReport | None = Field(description="if compare was requested and something was left out")
    max_tokens: int = Field(
        description="limit that applied to the answer: the request's, the default, or the rest of the context; 0 if "
        "nothing was to be generated; for several prompts, the first's"
    )
    max_tokens_each: list[int] | None = Field(description="one for each prompt, if there are several")


class TimingReport(BaseModel):
    """Times in milliseconds, under vLLM's names; null if there is nothing to measure."""

    time_to_first_token_ms: float | None = Field(description="from the request's arrival")
    generation_time_ms: float | None = Field(description="from the first token to the last")
    queue_time_ms: float | None
    prefill_time_ms: float | None = Field(description="from leaving the queue to the first token")
    mean_itl_ms: float | None = Field(description="mean inter-token latency within a sequence")
    tokens_per_second: float | None = Field(description="its reciprocal")


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = Field(description="the field that is wrong")
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
