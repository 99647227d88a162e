"""The ``griffin`` object of a request: rarer choices about neurons, and how the answer is verified."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from griffin.request import MOST_DRAFT_TOKENS, DraftName, MethodName, ModeName, StatisticName, StrategyName
from server.protocol.fields import Clamped, Text, Whole, few_keys


class GriffinOptions(BaseModel):
    """Rarer choices about neurons. Which of them can be combined also depends on the server's defaults."""

    model_config = ConfigDict(strict=True, extra="forbid")

    _few_keys = model_validator(mode="before")(few_keys)

    method: MethodName | None = Field(
        default=None,
        description="griffin+: the prompt sets thresholds, and each token picks what it reads; griffin (the paper's "
        "method): the prompt chooses neurons, and all others are removed. Default: the server's --method",
    )
    selection: StrategyName | None = Field(
        default=None, description="for method griffin: how neurons are picked from the statistic; default top_k"
    )
    statistic: StatisticName | None = Field(
        default=None,
        description="for method griffin: flocking (the paper's, default) uses the prompt, magnitude only weights",
    )
    expert_set: Annotated[Text, Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="reuse the choice of an earlier answer: the expert_set of its report"
    )
    mode: ModeName | None = Field(
        default=None,
        description="fast: the sparse model generates; guarded: the full model replaces tokens that it finds too "
        "unlikely; lossless: the tokens are those of the full model (sparsity 0), on a CPU exactly, elsewhere until "
        "rounding decides between two nearly equal tokens. Default: the server's --mode",
    )
    draft: DraftName | None = Field(
        default=None,
        description="which drafts are checked in one pass. ngram: tokens that followed the latest tokens earlier; "
        "pruned: tokens of the sparse model, in guarded and lossless only; both; none: in fast only. "
        "Default: ngram in fast, both in other modes; on a server with --draft none: none in fast, else pruned",
    )
    draft_tokens: Annotated[int, Field(ge=1, le=MOST_DRAFT_TOKENS), Whole] | None = Field(
        default=None,
        description="how many drafted tokens are verified at once. A number also applies if drafts are rarely right, "
        "which is slower than no drafts. Default: as many as are likely to save time",
    )
    acceptance: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = Field(
        default=None,
        description="for guarded: a token stays if its probability in the full model is at least this fraction of "
        "the most probable token's; default 0.1",
    )
    refresh: bool | None = Field(
        default=None,
        description="for guarded and lossless: choose neurons again as the full model reads on; default true",
    )
    compare: bool | None = Field(
        default=False, description="also run the finished answer through the full model, and report how they differ"
    )
    prompt_tokens: Annotated[int, Field(ge=1), Clamped, Whole] | None = Field(
        default=None,
        description="with echo, logprobs and a sparsity: the full model reads this many tokens of the prompt, and "
        "the choice is made on them; the rest is read sparsely. Default: all but the last token, as in the paper's "
        "simulated generation for classification",
    )
