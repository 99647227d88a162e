"""Sparsity (Figure 4): scores of tasks relative to the full model, over a range of sparsities.

The tasks are those of ``classification`` (simulated generation) and ``generation``. Answers that these two have in the
ledger are used again.
"""

import argparse
from typing import TYPE_CHECKING

from griffin.experiments.common import kinds
from griffin.experiments.common.experiment import Found
from griffin.experiments.common.pictures import INK, MUTED, new_figure, panels
from griffin.experiments.common.results import Claim, Table, percent
from griffin.experiments.common.study import Study
from griffin.experiments.common.variants import FULL, Variant
from griffin.experiments.tasks.names import CLASSIFICATION, GENERATION
from griffin.experiments.tasks.scores import (
    CANNOT,
    TITLES,
    add_task_arguments,
    measure_tasks,
    relative,
    score_table,
    telling,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Scores over sparsity (Figure 4)"
SEE = "Each line is a task. The model begins to lose on it at the sparsity where its line falls below 1."
QUICK = {"limit": 10, "sparsities": [0.25, 0.5, 0.75], "tasks": [*CLASSIFICATION, "xsum", "coqa"]}
PAPER = "GRIFFIN preserves most of the full model's performance at 50 % FF sparsity."
# The fraction of the full model's score that counts as preserved.
PRESERVED = 0.9
DEFAULTS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds.add_sparsities(parser, DEFAULTS, "0.1 to 0.9")
    add_task_arguments(parser, CLASSIFICATION + GENERATION)


def measure(study: Study, arguments: argparse.Namespace) -> Found:
    sparsities = kinds.removing(arguments.sparsities)
    variants = [FULL, *[Variant(f"GRIFFIN {value * 100:g} %", value) for value in sparsities]]
    return measure_tasks(study, arguments, variants)


def tables(found: Found) -> list[Table]:
    return [score_table(found, "Scores in %. ± is one standard error.")]


def draw(found: Found) -> "Figure":
    from matplotlib import colormaps

    figure = new_figure(6.8, 3.8)
    (axes,) = panels(figure, 1, 1)
    pruned = [variant for variant in found["variants"] if variant["sparsity"]]
    places = [0.0, *[variant["sparsity"] * 100 for variant in pruned]]
    colours = colormaps["tab10"]
    told = telling(found)
    for number, task in enumerate(found["tasks"]):
        values = [1.0, *[relative(found, task, variant["name"]) for variant in pruned]]
        axes.plot(
            places, values, marker="o", markersize=3, linewidth=1.4, color=colours(number % 10), zorder=2,
            linestyle="solid" if task in told else "dotted",
            label=TITLES[task] + ("" if task in told else " (at chance)"),
        )  # fmt: skip
    axes.axhline(1, color=MUTED, linewidth=1, zorder=1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("FF sparsity, %", color=INK)
    axes.set_ylabel("score / full model's", color=INK)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def claims(found: Found) -> list[Claim]:
    nearest = min((v for v in found["variants"] if v["sparsity"]), key=lambda v: abs(v["sparsity"] - 0.5), default=None)
    if nearest is None:
        return []
    values = {task: relative(found, task, nearest["name"]) for task in telling(found)}
    if not values:
        return [Claim(PAPER, None, CANNOT)]
    kept = [task for task, value in values.items() if value >= PRESERVED]
    names = f" ({', '.join(TITLES[task] for task in kept)})" if kept else ""
    return [
        Claim(
            PAPER,
            len(kept) > len(values) / 2,
            f"At {percent(nearest['sparsity'])}, GRIFFIN keeps at least {percent(PRESERVED)} of the full model's score "
            f"in {len(kept)} of {len(values)} tasks{names}. The finding holds if these are more than half.",
        )
    ]
