"""Readings: how much of the full model's score each task keeps at each sparsity, and how sure that is.

A task is judged by its first metric. Both models answer the same items, so the standard error of a change comes from
pairs. Where no pair differs, it is computed as if the items were different ones, and is too large.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from griffin.experiments.tasks.scores import beyond_chance

Grade = Literal["near", "tolerable", "broken", "mute"]

# The largest losses of these grades, as fractions of the full model's score.
NEAR, TOLERABLE = 0.01, 0.05
# Added to the limits, so that rounding does not put a loss exactly at a limit outside it.
ROUNDING = 1e-9
# The experiments on tasks. With the same number of items they have the same results.
SOURCES = ("classification", "generation", "selection", "sparsity")


@dataclass(frozen=True, slots=True)
class Reading:
    """One task at one sparsity. Scores are from 0 to 1.

    items: how many were answered; None: unknown.
    full, pruned: the scores of the full model and of GRIFFIN.
    full_error, pruned_error: their standard errors; None: unknown.
    chance: the score of guessing, or of always giving the same answer; 0 if the task is no multiple choice.
    kept_error: the standard error of ``kept``, from pairs; None: unknown.
    """

    task: str
    metric: str
    sparsity: float
    items: int | None
    full: float
    pruned: float
    full_error: float | None
    pruned_error: float | None
    chance: float
    kept_error: float | None = None

    @property
    def mute(self) -> bool:
        """Whether the full model is at most two standard errors above chance. Such a task cannot judge pruning."""
        return not beyond_chance(self.full, self.chance, self.items, self.full_error)

    @property
    def kept(self) -> float:
        """The pruned score over the full model's; NaN if that is 0."""
        return self.pruned / self.full if self.full else math.nan

    @property
    def change(self) -> float:
        """The change relative to the full model's score. Below 0 is a loss."""
        return self.kept - 1

    @property
    def error(self) -> float | None:
        """The standard error of ``change``, or a larger number. None: the errors of the scores are unknown."""
        if self.kept_error is not None:
            return self.kept_error
        if self.full_error is None or self.pruned_error is None or not self.full:
            return None
        return math.hypot(self.full_error, self.pruned_error) / self.full

    @property
    def grade(self) -> Grade:
        if self.mute:
            return "mute"
        if -self.change <= NEAR + ROUNDING:
            return "near"
        return "tolerable" if -self.change <= TOLERABLE + ROUNDING else "broken"

    def within(self, errors: float) -> bool:
        """Whether the change is at most this many standard errors, and so may be chance."""
        return self.error is not None and abs(self.change) <= errors * self.error


@dataclass(frozen=True, slots=True)
class Reach:
    """The largest sparsity for which one task stays within a limit, at this and all smaller measured sparsities.

    near, tolerable: for limits of 1 % and 5 %. None: even the smallest measured sparsity exceeds the limit.
    """

    task: str
    near: float | None
    tolerable: float | None


def readings(found: Mapping[str, Any]) -> list[Reading]:
    """The readings of one experiment on tasks: each task at each sparsity of GRIFFIN (prompt's statistic, top-k)."""
    full = next(variant["name"] for variant in found["variants"] if not variant["sparsity"])
    pruned = [variant for variant in found["variants"] if variant["sparsity"] and _is_griffin(variant)]
    return [
        _reading(task, facts, variant["sparsity"], found["scores"][task][full], found["scores"][task][variant["name"]])
        for task, facts in found["tasks"].items()
        for variant in pruned
    ]


def of_all(founds: Mapping[str, Mapping[str, Any]]) -> list[Reading]:
    """The readings of all experiments on tasks. If a task was read twice at a sparsity, more items win."""
    best: dict[tuple[str, float], Reading] = {}
    for name in SOURCES:
        for reading in readings(founds[name]) if name in founds else ():
            known = best.get((reading.task, reading.sparsity))
            if known is None or (reading.items or 0) > (known.items or 0):
                best[reading.task, reading.sparsity] = reading
    return list(best.values())


def reaches(found: Iterable[Reading]) -> list[Reach]:
    """The reach of each task that is not mute, from its readings at several sparsities."""
    by_task: dict[str, list[Reading]] = {}
    for reading in sorted(found, key=lambda reading: reading.sparsity):
        if not reading.mute:
            by_task.setdefault(reading.task, []).append(reading)
    return [Reach(task, _reach(own, NEAR), _reach(own, TOLERABLE)) for task, own in by_task.items()]


def _reach(ascending: Sequence[Reading], limit: float) -> float | None:
    reached = None
    for reading in ascending:
        if -reading.change > limit + ROUNDING:
            break
        reached = reading.sparsity
    return reached


def _is_griffin(variant: Mapping[str, Any]) -> bool:
    return variant.get("statistic") == "flocking" and variant.get("selection") == "top_k"


def _reading(
    task: str, facts: Mapping[str, Any], sparsity: float, full: Mapping[str, float], pruned: Mapping[str, float]
) -> Reading:
    metric = facts["metrics"][0]
    return Reading(
        task=task,
        metric=metric,
        # 3 * 0.1 must equal 0.3.
        sparsity=round(sparsity, 6),
        items=facts.get("items"),
        full=full[metric],
        pruned=pruned[metric],
        full_error=full.get(f"{metric}_stderr"),
        pruned_error=pruned.get(f"{metric}_stderr"),
        chance=facts.get("chance") or 0.0,
        kept_error=pruned.get(f"{metric}_kept_stderr"),
    )
