"""The ``griffin`` object of a request: the rarer choices about neurons, and how sure its answer is to be."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from griffin.request import MOST_DRAFT_TOKENS, DraftName, MethodName, ModeName, StatisticName, StrategyName
from server.protocol.fields import Clamped, Text, Whole, few_keys


class GriffinOptions(BaseModel):
    """The rarer choices about neurons. Which of them go together depends on the server's defaults, too."""

    model_config = ConfigDict(strict=True, extra="forbid")

    _few_keys = model_validator(mode="before")(few_keys)

    method: MethodName | None = Field(
        default=None,
        description="griffin+: the prompt sets thresholds, by which each token picks what it reads; griffin, the paper "
        "to the letter: the prompt chooses neurons, and all others are removed; absent, the server's default",
    )
    selection: StrategyName | None = Field(
        default=None, description="of griffin: how neurons are picked from the statistic; default top_k"
    )
    statistic: StatisticName | None = Field(
        default=None,
        description="of griffin: flocking, of the prompt (the paper's, and the default), or of the weights alone",
    )
    expert_set: Annotated[Text, Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="take what was chosen for an earlier answer, by the expert_set of its report"
    )
    mode: ModeName | None = Field(
        default=None,
        description="fast takes what the sparse model generates; guarded has the full model replace what it finds too "
        "unlikely; lossless is what the full model generates: sparsity 0's tokens, on a CPU exactly, elsewhere "
        "until rounding decides between two nearly equally likely ones. Absent, the server's default",
    )
    draft: DraftName | None = Field(
        default=None,
        description="what is checked in one pass: ngram, what followed the latest tokens when they occurred before; "
        "pruned, tokens of the sparse model, in guarded and lossless only; both of these; or none, in fast only. "
        "Absent, ngram in fast and both elsewhere, or without n-grams what the server's --draft says",
    )
    draft_tokens: Annotated[int, Field(ge=1, le=MOST_DRAFT_TOKENS), Whole] | None = Field(
        default=None,
        description="how many are verified at once. A number holds also where drafts are rarely right, which takes "
        "longer than none; absent, as many as are likely to save time",
    )
    acceptance: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = Field(
        default=None,
        description="of guarded: a token stays if the full model finds it at least that many times as probable as its "
        "most probable one; default 0.1",
    )
    refresh: bool | None = Field(
        default=None,
        description="of guarded and lossless: choose anew as the full model reads on; default true",
    )
    compare: bool | None = Field(
        default=False, description="afterwards, run the answer through the full model too, and report how they differ"
    )
    prompt_tokens: Annotated[int, Field(ge=1), Clamped, Whole] | None = Field(
        default=None,
        description="with echo, logprobs and a sparsity: the full model reads that many tokens of the prompt and "
        "the choice is made on them; the rest is read sparsely. Default: all but the last input, the paper's simulated "
        "generation for classification",
    )
