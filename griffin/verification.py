"""Verification: how sure a request wants to be of what the kept neurons generate, and what that took."""

from dataclasses import dataclass
from typing import Literal, get_args

ModeName = Literal["fast", "guarded", "lossless"]
DraftName = Literal["pruned", "ngram", "both"]
MODES: tuple[ModeName, ...] = get_args(ModeName)
DRAFTS: tuple[DraftName, ...] = get_args(DraftName)
# In one block; the full model reads them in one pass, whose logits are held at once.
MOST_DRAFT_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Verification:
    """One request's choices.

    mode: fast takes what the kept neurons generate (the paper). The others have the full model read every few
        tokens in one pass, which also puts right their keys and values. guarded keeps those of them that the full
        model finds acceptable and goes on from the first that it does not (Sirius, Zhou et al. 2024). lossless keeps
        those that the full model would have drawn too: what comes out is the full model's, token by token. In
        float32 these are sparsity 0's tokens. In bfloat16 a pass over several tokens rounds its sums differently, and
        answers part at a token where two are nearly equally likely.
    draft: what is verified: tokens of the kept neurons, what followed when the last tokens occurred before
        (n-grams), or the second where there is one, else the first. n-grams are held to lossless in either mode.
    draft_tokens: how many are verified at once, 1 to 64; None for what measured best in each mode.
    acceptance: of guarded: a token is acceptable if the full model finds it at least that many times as probable
        as its most probable one, above 0 and at most 1.
    refresh: whether neurons are chosen anew as the full model reads on, once they would be others.
    """

    mode: ModeName = "fast"
    draft: DraftName = "pruned"
    draft_tokens: int | None = None
    acceptance: float = 0.1
    refresh: bool = True

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, but is {self.mode!r}")
        if self.draft not in DRAFTS:
            raise ValueError(f"draft must be one of {', '.join(DRAFTS)}, but is {self.draft!r}")
        if self.draft_tokens is not None and not 1 <= self.draft_tokens <= MOST_DRAFT_TOKENS:
            raise ValueError(f"draft_tokens must be 1 to {MOST_DRAFT_TOKENS}, but is {self.draft_tokens}")
        if not 0 < self.acceptance <= 1:
            raise ValueError(f"acceptance must be above 0 and at most 1, but is {self.acceptance}")


@dataclass(frozen=True, slots=True)
class Verified:
    """What verification did for one sequence so far.

    tokens: generated, but for the first, which comes from the prompt's pass.
    drafted, accepted: tokens that were proposed, and those of them that stayed.
    passes: of the full model over a block.
    rollbacks: of these, after which some of the block was thrown away.
    refreshes: how often other neurons were taken.
    parameters_read: by all steps and passes; for each token, divide by ``tokens``.
    """

    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    passes: int = 0
    rollbacks: int = 0
    refreshes: int = 0
    parameters_read: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Kept neurons beside the full model on tokens that they generated, both given the same ones before.

    tokens: that were compared; all but the first, which is the full model's.
    kl: mean Kullback-Leibler divergence of the pruned distribution from the full one, in nats.
    top1_agreement: how often both find the same token most probable, 0 to 1.
    perplexity_ratio: the full model's perplexity on these tokens over the pruned model's; above 1, the full model
        finds them less likely.
    """

    tokens: int
    kl: float
    top1_agreement: float
    perplexity_ratio: float
