"""Verdict: of each task, how much of the full model's score is left at each sparsity, and whether that says anything.

A task is judged by its first metric. Standard errors of a change are of pairs, since both models answered the same
items; where no pair differs, they are taken as if the items had been different ones, which is too much.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from griffin.experiments.tasks.scores import beyond_chance

Grade = Literal["near", "tolerable", "broken", "mute"]

# Of the full model's score, lost.
NEAR, TOLERABLE = 0.01, 0.05
# Losses that are exactly at a limit are within it, however they were rounded.
ROUNDING = 1e-9
# The experiments on tasks, of which those with the same number of items find the same.
SOURCES = ("classification", "generation", "selection", "sparsity")


@dataclass(frozen=True, slots=True)
class Reading:
    """One task at one sparsity. Scores from 0 to 1.

    items: how many were answered; None where that was not kept.
    full, pruned: scores of the full model and of GRIFFIN.
    full_error, pruned_error: their standard errors; None where they are not known.
    kept_error: of ``kept``, from pairs; None where that is not known.
    chance: what guessing scores, or always saying the same; 0 where there is nothing to choose from.
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
        """The full model cannot be told from chance, by two standard errors: what pruning does cannot be seen."""
        return not beyond_chance(self.full, self.chance, self.items, self.full_error)

    @property
    def kept(self) -> float:
        """Of the full model's score; NaN where that is 0."""
        return self.pruned / self.full if self.full else math.nan

    @property
    def change(self) -> float:
        """Relative to the full model's score; below 0 is a loss."""
        return self.kept - 1

    @property
    def error(self) -> float | None:
        """The standard error of ``change``, or more; None where the scores' own are not known."""
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
        """Whether the change is no larger than that many standard errors, and so cannot be told from none."""
        return self.error is not None and abs(self.change) <= errors * self.error


@dataclass(frozen=True, slots=True)
class Reach:
    """How far one task goes: the largest sparsity up to which every measured one keeps within a limit.

    near, tolerable: for 1 % and for 5 %; None if already the smallest one measured does not.
    """

    task: str
    near: float | None
    tolerable: float | None


def readings(found: Mapping[str, Any]) -> list[Reading]:
    """All of one experiment on tasks: each task at each sparsity of GRIFFIN (statistic of the prompt, top-k)."""
    full = next(variant["name"] for variant in found["variants"] if not variant["sparsity"])
    pruned = [variant for variant in found["variants"] if variant["sparsity"] and _is_griffin(variant)]
    return [
        _reading(task, facts, variant["sparsity"], found["scores"][task][full], found["scores"][task][variant["name"]])
        for task, facts in found["tasks"].items()
        for variant in pruned
    ]


def of_all(founds: Mapping[str, Mapping[str, Any]]) -> list[Reading]:
    """Of every experiment on tasks that is there; where two measured the same, the one with more items."""
    best: dict[tuple[str, float], Reading] = {}
    for name in SOURCES:
        for reading in readings(founds[name]) if name in founds else ():
            known = best.get((reading.task, reading.sparsity))
            if known is None or (reading.items or 0) > (known.items or 0):
                best[reading.task, reading.sparsity] = reading
    return list(best.values())


def reaches(found: Iterable[Reading]) -> list[Reach]:
    """Of each task that says anything, from its readings at several sparsities."""
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
        # Ten percent three times is thirty.
        sparsity=round(sparsity, 6),
        items=facts.get("items"),
        full=full[metric],
        pruned=pruned[metric],
        full_error=full.get(f"{metric}_stderr"),
        pruned_error=pruned.get(f"{metric}_stderr"),
        chance=facts.get("chance") or 0.0,
        kept_error=pruned.get(f"{metric}_kept_stderr"),
    )
