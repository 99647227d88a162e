"""Advice: the largest sparsity that a user's prompts allow, and whether it is worth it.

With few prompts, a single one can change the mean much. So a sparsity is recommended only if the increase in perplexity
plus two standard errors over prompts stays within the tolerance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from griffin.experiments.tune.losses import Loss
from griffin.experiments.tune.speedup import Speed

# With fewer prompts than this, two standard errors mean little.
FEWEST_PROMPTS = 8
SMALLEST_SPEEDUP = 1.05


@dataclass(frozen=True, slots=True)
class Cell:
    """One sparsity on prompts of one length. Means are over tokens, in nats.

    prompt_tokens: prompts are cut to this many last tokens; None: whole prompts.
    prompts: how many were judged.
    excess: negative log-likelihood above the full model's.
    error: the standard error of excess over prompts; None if there is only one prompt.
    divergence: KL(full || pruned).
    agreement: share of tokens where both models have the same most probable token.
    """

    prompt_tokens: int | None
    sparsity: float
    prompts: int
    excess: float
    error: float | None
    divergence: float
    agreement: float
    speed: Speed

    @classmethod
    def of(cls, prompt_tokens: int | None, sparsity: float, found: Sequence[Loss], speed: Speed) -> "Cell":
        """From the losses of one or more prompts."""
        whole = sum(found, Loss.none(0))
        mean = whole.excess / whole.tokens
        return cls(
            prompt_tokens,
            sparsity,
            len(found),
            mean,
            _standard_error(found, mean, whole.tokens),
            whole.divergence / whole.tokens,
            whole.agreed / whole.tokens,
            speed,
        )

    @property
    def increase(self) -> float:
        """The increase in perplexity, as a fraction of the full model's."""
        return _increase(self.excess)

    @property
    def spread(self) -> tuple[float, float]:
        """The increase two standard errors below and above."""
        error = math.inf if self.error is None else self.error
        return _increase(self.excess - 2 * error), _increase(self.excess + 2 * error)

    @property
    def pays(self) -> bool:
        return self.speed.speedup >= SMALLEST_SPEEDUP


@dataclass(frozen=True, slots=True)
class Advice:
    """
    enough: whether some length has enough prompts for a recommendation.
    steps: cells that are surely within the tolerance. The first is the largest sparsity for all prompts, if there is
        one. Each next one is a larger sparsity, for prompts of at least ``prompt_tokens``.
    hint: if no length has enough prompts, the largest sparsity that these few allow. It is no recommendation.
    unsure: a larger sparsity for all prompts: its mean is within the tolerance, but two standard errors exceed it.
    best: the cell with the smallest increase.
    prompts: how many were judged.
    """

    enough: bool
    steps: tuple[Cell, ...]
    hint: Cell | None
    unsure: Cell | None
    best: Cell
    prompts: int


def advise(cells: Sequence[Cell], tolerance: float) -> Advice:
    """
    Args:
        cells: all sparsities above 0 at all lengths.
        tolerance: the largest increase in perplexity, as a fraction.
    """
    counted = [cell for cell in cells if cell.prompts >= FEWEST_PROMPTS]
    shown = counted or cells
    # Whole prompts first, then from short to long.
    lengths = sorted({cell.prompt_tokens for cell in shown}, key=lambda length: length or 0)
    steps: list[Cell] = []
    for length in lengths:
        here = [cell for cell in counted if cell.prompt_tokens == length and _allowed(cell, counted, tolerance)]
        largest = max(here, key=_sparsity, default=None)
        if largest and (not steps or largest.sparsity > steps[-1].sparsity):
            steps.append(largest)
    # Whole prompts, or else the shortest length: these are the most prompts.
    widest = [cell for cell in shown if cell.prompt_tokens == lengths[0]]
    allowed = max((cell for cell in widest if _allowed(cell, shown, tolerance)), key=_sparsity, default=None)
    surely = allowed.sparsity if allowed else 0.0
    within = [cell for cell in widest if cell.increase <= tolerance and cell.sparsity > surely]
    return Advice(
        enough=bool(counted),
        steps=tuple(steps),
        hint=None if counted else allowed,
        unsure=max(within, key=_sparsity, default=None),
        best=min(shown, key=lambda cell: cell.excess),
        prompts=max(cell.prompts for cell in shown),
    )


def _sparsity(cell: Cell) -> float:
    return cell.sparsity


def _allowed(cell: Cell, cells: Sequence[Cell], tolerance: float) -> bool:
    """Whether this sparsity is surely within the tolerance, at this length and at all longer ones."""
    same = [cell] if cell.prompt_tokens is None else [
        other for other in cells
        if other.sparsity == cell.sparsity and (other.prompt_tokens or 0) >= cell.prompt_tokens
    ]  # fmt: skip
    return all(other.spread[1] <= tolerance for other in same)


def _increase(excess: float) -> float:
    # A float cannot hold the result of a larger number.
    return math.expm1(min(excess, 700.0))


def _standard_error(found: Sequence[Loss], mean: float, tokens: int) -> float | None:
    """The standard error of a mean over tokens. It is a ratio of sums over prompts, linearised."""
    if len(found) < 2:
        return None
    residuals = sum((one.excess - mean * one.tokens) ** 2 for one in found)
    return math.sqrt(residuals * len(found) / (len(found) - 1)) / tokens


def sentences(advice: Advice, tolerance: float, tokens: int) -> list[str]:
    """The recommendation in words. ``tokens``: how many are generated for each prompt."""
    if not advice.enough:
        return _too_few(advice, tolerance)
    found = [_step(step, tokens) for step in advice.steps]
    if advice.unsure:
        found.append(_unsure(advice.unsure, tolerance))
    if not found:
        found.append(f"Serve this model dense on these prompts: {_nothing(advice.best, tolerance)}")
    paying = [step for step in advice.steps if step.pays]
    if paying:
        found.append(_how_to_apply(paying))
    elif advice.steps:
        found.append("Serve this model dense on these prompts and this machine.")
    return found


def _step(step: Cell, tokens: int) -> str:
    scope = f"for prompts of {step.prompt_tokens} tokens and more" if step.prompt_tokens else "for all these prompts"
    speed = step.speed
    faster = (
        f"{tokens} tokens come {speed.speedup:.2f} times as fast as from the full model "
        f"({speed.speedup_lowest:.2f} to {speed.speedup_highest:.2f} in single rounds)"
    )
    if step.pays:
        return f"Recommended {scope}: {_cost(step)}; {faster}."
    return f"Possible {scope}, but it does not pay: {_cost(step)}; {faster}."


def _unsure(cell: Cell, tolerance: float) -> str:
    return (
        f"These prompts cannot tell whether a tolerance of {_percent(tolerance)} allows {_cost(cell)}: "
        "more prompts would."
    )


def _nothing(best: Cell, tolerance: float) -> str:
    return f"nothing stays within {_percent(tolerance)} of perplexity. The best was {_cost(best)}."


def _too_few(advice: Advice, tolerance: float) -> list[str]:
    """What too few prompts show, by the same rule as enough prompts."""
    found = [
        f"Too few prompts for a recommendation: at least {FEWEST_PROMPTS} must be judged, but only "
        f"{advice.prompts} could be."
    ]
    if advice.hint:
        found.append(f"As far as they go, within the tolerance of {_percent(tolerance)}: {_cost(advice.hint)}.")
    if advice.unsure:
        found.append(_unsure(advice.unsure, tolerance))
    if len(found) == 1:
        found.append(f"As far as they go, {_nothing(advice.best, tolerance)}")
    return found


def _how_to_apply(paying: Sequence[Cell]) -> str:
    first, *others = paying
    if first.prompt_tokens is None:
        text = (
            f"To apply it: the server's flag --sparsity {first.sparsity:g}, "
            f'or "sparsity": {first.sparsity:g} in a request'
        )
    else:
        text = f'To apply it: "sparsity": {first.sparsity:g} in requests of {first.prompt_tokens} tokens and more'
    return text + "".join(f", {other.sparsity:g} from {other.prompt_tokens} tokens on" for other in others) + "."


def _cost(cell: Cell) -> str:
    low, high = cell.spread
    within = "" if cell.error is None else f" ({low * 100:.1f} to {high * 100:.1f})"
    return f"sparsity {cell.sparsity:g}, perplexity {cell.increase * 100:+.1f} %{within} on {_prompts(cell)}"


def _prompts(cell: Cell) -> str:
    cut = f" cut to their last {cell.prompt_tokens} tokens" if cell.prompt_tokens else ""
    return f"{cell.prompts} prompt{'s' if cell.prompts != 1 else ''}{cut}"


def _percent(fraction: float) -> str:
    return f"{fraction * 100:g} %"
