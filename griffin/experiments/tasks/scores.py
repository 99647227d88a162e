"""Scores of tasks for each variant: the flags of a run, a table, a picture, and ratios to the full model's scores.

All experiments on tasks have results of the same form, see ``evaluation.evaluate``.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from griffin.experiments.common.kinds import count, sparsity, whole
from griffin.experiments.common.pictures import COLOURS, INK, MUTED, new_figure, panels
from griffin.experiments.common.results import Table, percent
from griffin.experiments.common.study import Study
from griffin.experiments.common.variants import Variant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Found = Mapping[str, Any]

TITLES = {
    "hellaswag": "HellaSwag", "piqa": "PIQA", "copa": "COPA", "arc_easy": "ARC-e", "arc_challenge": "ARC-c",
    "boolq": "BoolQ", "xsum": "XSum", "cnn_dm": "CNN/DailyMail", "coqa": "CoQA", "qasper": "QASPER",
    "humaneval": "HumanEval", "arithmetic": "Arithmetic",
}  # fmt: skip
ITEMS = (
    "Scores in %. ± is one standard error, computed as if all items were independent. The errors of CoQA and QASPER "
    "are too small, because their questions share conversations and papers."
)
CANNOT = "This run cannot judge the finding, because the full model is no better than guessing in any of these tasks."
METRICS = {
    "acc": "accuracy", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "f1": "F1", "em": "EM",
    "pass@1": "pass@1",
}  # fmt: skip


def add_task_arguments(
    parser: argparse.ArgumentParser, tasks: Sequence[str], standard: Sequence[str] | None = None
) -> None:
    """Add the flags of a run.

    Args:
        standard: the tasks that run by default; None runs all.
    """
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=tasks,
        metavar="TASK",
        default=list(standard or tasks),
        help=f"some of {', '.join(tasks)} ({' '.join(standard) if standard else 'all'})",
    )
    parser.add_argument(
        "--limit", type=lambda text: whole(text, 0), metavar="N",
        help="items of each task, 0 for all (25 to 200, fewer for tasks that cost more)",
    )  # fmt: skip
    parser.add_argument(
        "--max-length", type=count, metavar="N",
        help="longer prompts lose their beginning, as in lm-eval (the model's context)",
    )  # fmt: skip


def add_sparsity_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sparsity", type=sparsity, default=0.5, metavar="S", help="fraction of FF neurons removed (%(default)s)"
    )


def measure_tasks(study: Study, arguments: argparse.Namespace, variants: Sequence[Variant]) -> dict[str, Any]:
    """``evaluation.evaluate`` with the flags of ``add_task_arguments``."""
    # The import takes seconds, and a report that only shows scores does not need it.
    from griffin.experiments.tasks.evaluation import evaluate

    return evaluate(study, arguments.tasks, variants, arguments.limit, arguments.max_length)


def score_table(found: Found, caption: str = "") -> Table:
    """Scores in percent, one row for each variant. The full model's scores also have one standard error."""
    columns = [(task, metric) for task, facts in found["tasks"].items() for metric in facts["metrics"]]
    heads = ["", *[_head(task, metric, found["tasks"][task]) for task, metric in columns]]
    rows = [["items", *[str(found["tasks"][task]["items"]) for task, _ in columns]]]
    if any(facts.get("cut") for facts in found["tasks"].values()):
        length = next(iter(found["tasks"].values()))["max_length"]
        rows.append([f"prompts cut to {length} tokens", *[str(found["tasks"][task]["cut"]) for task, _ in columns]])
    for variant in found["variants"]:
        own = [found["scores"][task][variant["name"]] for task, _ in columns]
        with_error = variant["name"] == "full"
        cells = [_cell(scores, metric, with_error) for scores, (_, metric) in zip(own, columns, strict=True)]
        rows.append([variant["name"], *cells])
    return Table(heads, rows, caption)


def _head(task: str, metric: str, facts: Mapping[str, Any]) -> str:
    return TITLES[task] if facts["metrics"] == ["acc"] else f"{TITLES[task]} {METRICS[metric]}"


def _cell(scores: Mapping[str, float], metric: str, with_error: bool) -> str:
    error = scores.get(f"{metric}_stderr")
    return f"{scores[metric] * 100:.2f}" + (f" ± {error * 100:.1f}" if with_error and error is not None else "")


def relative(found: Found, task: str, variant: str) -> float:
    """The score over the full model's, in the task's first metric; NaN if that is 0."""
    metric = found["tasks"][task]["metrics"][0]
    score, full = found["scores"][task][variant][metric], found["scores"][task]["full"][metric]
    return score / full if full else math.nan


def relative_error(found: Found, task: str) -> float:
    """One standard error of the full model's score, over that score; 0 if either is unknown."""
    metric, full = found["tasks"][task]["metrics"][0], found["scores"][task]["full"]
    return full.get(f"{metric}_stderr", 0.0) / full[metric] if full[metric] else 0.0


def telling(found: Found) -> list[str]:
    """The tasks that can be judged: the full model scores above chance, or above 0 if there is no chance."""
    return [task for task in found["tasks"] if _is_telling(found, task)]


def _is_telling(found: Found, task: str) -> bool:
    facts, full = found["tasks"][task], found["scores"][task]["full"]
    metric = facts["metrics"][0]
    return beyond_chance(full[metric], facts.get("chance") or 0.0, facts.get("items"), full.get(f"{metric}_stderr"))


def beyond_chance(score: float, chance: float, items: int | None, error: float | None) -> bool:
    """Whether a score is two standard errors above chance. ``chance`` is 0 if answers are not choices.

    Args:
        error: the score's own standard error. It is used only if ``chance`` is 0.
    """
    if chance:
        error = math.sqrt(chance * (1 - chance) / (items or 1))
    return score > chance + 2 * (error or 0.0)


def mean_relative(found: Found, variant: str) -> float:
    """The mean of ``relative`` over the tasks that can be judged; NaN if there are none."""
    values = [relative(found, task, variant) for task in telling(found)]
    return sum(values) / len(values) if values else math.nan


def kept_error(found: Found, task: str, variant: str) -> float:
    """The standard error of ``relative``, from pairs of answers; 0 if it is unknown."""
    metric = found["tasks"][task]["metrics"][0]
    return float(found["scores"][task][variant].get(f"{metric}_kept_stderr", 0.0))


def mean_error(found: Found, variant: str) -> float:
    """The standard error of ``mean_relative``."""
    tasks = telling(found)
    return math.hypot(*[kept_error(found, task, variant) for task in tasks]) / len(tasks) if tasks else math.nan


def is_better(found: Found, one: str, other: str) -> bool | None:
    """Whether one variant's mean relative score is above another's. None: they differ by two standard errors or less.

    The errors are added as if the variants had answered different items, which makes them too large.
    """
    difference = mean_relative(found, one) - mean_relative(found, other)
    if abs(difference) <= 2 * math.hypot(mean_error(found, one), mean_error(found, other)):
        return None
    return difference > 0


def shown(found: Found, variant: str) -> str:
    """For claims: a variant's mean relative score and its standard error."""
    return f"{percent(mean_relative(found, variant))} ± {percent(mean_error(found, variant))}"


def where(found: Found) -> str:
    """For claims: the tasks over which a mean is taken."""
    tasks, there = telling(found), len(found["tasks"])
    return (
        f"over all {there} tasks"
        if len(tasks) == there
        else f"over the {len(tasks)} of {there} tasks that the full model can do"
    )


def draw_scores(found: Found) -> "Figure":
    """A group of bars for each metric, with a bar for each variant. Whiskers are one standard error."""
    columns = [(task, metric) for task, facts in found["tasks"].items() for metric in facts["metrics"]]
    names = [variant["name"] for variant in found["variants"]]
    figure = new_figure(max(5.0, 1.2 + 0.95 * len(columns)), 3.4)
    (axes,) = panels(figure, 1, 1)
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        places = [column + (number - (len(names) - 1) / 2) * width for column in range(len(columns))]
        own = [found["scores"][task][name] for task, _ in columns]
        heights = [scores[metric] * 100 for scores, (_, metric) in zip(own, columns, strict=True)]
        errors = [scores.get(f"{metric}_stderr", 0) * 100 for scores, (_, metric) in zip(own, columns, strict=True)]
        axes.bar(
            places, heights, width * 0.92, yerr=errors, label=name, color=COLOURS[number % len(COLOURS)], zorder=2,
            error_kw={"ecolor": MUTED, "elinewidth": 0.9},
        )  # fmt: skip
    for task, column in [(task, n) for n, (task, _) in enumerate(columns)]:
        if (chance := found["tasks"][task].get("chance")) is not None:
            axes.hlines(
                chance * 100, column - 0.45, column + 0.45, colors=INK, linewidth=1, linestyles="dotted", zorder=3
            )
    labels = [_head(task, metric, found["tasks"][task]).replace(" ", "\n", 1) for task, metric in columns]
    axes.set_xticks(range(len(columns)), labels)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("%", color=INK)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8, ncols=len(names), loc="upper left", bbox_to_anchor=(0, 1.12))
    return figure
