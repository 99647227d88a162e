"""Generation (Table 2): summaries and answers written by the full model, by magnitude and by GRIFFIN.

XSum and CNN/DailyMail are 1-shot, with ROUGE-1/2/L. CoQA (F1, exact match) and QASPER (F1) are 0-shot. The full model
reads the prompts, and the server's own decode path generates greedily.
"""

import argparse
from typing import TYPE_CHECKING

from griffin.experiments.common.experiment import Found
from griffin.experiments.common.results import Claim, Table, percent
from griffin.experiments.common.study import Study
from griffin.experiments.common.variants import FULL, griffin, magnitude
from griffin.experiments.tasks.names import GENERATION
from griffin.experiments.tasks.scores import (
    CANNOT,
    ITEMS,
    TITLES,
    add_sparsity_argument,
    add_task_arguments,
    draw_scores,
    kept_error,
    measure_tasks,
    relative,
    score_table,
    telling,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Generation (Table 2)"
SEE = (
    "In the paper, magnitude's bars collapse and GRIFFIN's stay near the full model's. The neurons must therefore be "
    "chosen for each prompt."
)
QUICK = {"limit": 4, "tasks": ["xsum", "coqa"]}
# GRIFFIN preserves a score at this fraction of the full model's. Magnitude ruins it below this fraction of GRIFFIN's.
PRESERVED, RUINED = 0.9, 0.5
MOST = "The finding holds if these are more than half."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sparsity_argument(parser)
    add_task_arguments(parser, GENERATION)


def measure(study: Study, arguments: argparse.Namespace) -> Found:
    variants = [FULL, magnitude(arguments.sparsity), griffin(arguments.sparsity)]
    return measure_tasks(study, arguments, variants)


def tables(found: Found) -> list[Table]:
    return [score_table(found, ITEMS)]


def draw(found: Found) -> "Figure":
    return draw_scores(found)


def claims(found: Found) -> list[Claim]:
    """The claims count tasks. A mean over tasks would be wild if the full model scores near 0 in one of them."""
    tasks = telling(found)
    kept = {task: relative(found, task, "GRIFFIN") for task in tasks}
    ruined = [task for task in tasks if relative(found, task, "magnitude") < RUINED * kept[task]]
    above = [task for task in tasks if kept[task] > 1 + 2 * kept_error(found, task, "GRIFFIN")]
    preserved = [task for task in tasks if kept[task] >= PRESERVED]
    return [
        Claim(
            "The full model is as good as GRIFFIN or better.",
            not above if tasks else None,
            f"GRIFFIN is more than two standard errors better in {_of(above, tasks)}." if tasks else CANNOT,
        ),
        Claim(
            "GRIFFIN preserves most of the full model's performance in generation.",
            len(preserved) > len(tasks) / 2 if tasks else None,
            f"GRIFFIN keeps at least {percent(PRESERVED)} of the full model's score in {_of(preserved, tasks)}. {MOST}"
            if tasks
            else CANNOT,
        ),
        Claim(
            "Magnitude destroys the performance in most generation tasks, and GRIFFIN does not.",
            len(ruined) > len(tasks) / 2 if tasks else None,
            f"Magnitude scores less than half of GRIFFIN's score in {_of(ruined, tasks)}. {MOST}" if tasks else CANNOT,
        ),
    ]


def _of(some: list[str], tasks: list[str]) -> str:
    names = f" ({', '.join(TITLES[task] for task in some)})" if some else ""
    return f"{len(some)} of {len(tasks)} tasks{names}"
