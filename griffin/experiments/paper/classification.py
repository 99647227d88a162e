"""Classification (Table 1): six multiple-choice tasks, full, magnitude and GRIFFIN, 0-shot, unnormalized accuracy.

lm-eval scores the answers. Generation is simulated as in 5.1: all input tokens except the last go through the full
model, the last one through the kept neurons. Tasks: HellaSwag, PIQA, COPA, ARC-easy, ARC-challenge, BoolQ.
"""

import argparse
from typing import TYPE_CHECKING

from griffin.experiments.common.experiment import Found
from griffin.experiments.common.results import Claim, Table, percent
from griffin.experiments.common.study import Study
from griffin.experiments.common.variants import FULL, griffin, magnitude
from griffin.experiments.tasks.names import CLASSIFICATION
from griffin.experiments.tasks.scores import (
    CANNOT,
    add_sparsity_argument,
    add_task_arguments,
    draw_scores,
    is_better,
    mean_relative,
    measure_tasks,
    score_table,
    shown,
    telling,
    where,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Classification (Table 1)"
SEE = (
    "GRIFFIN's bars should be as high as the full model's. Dotted lines are the score of guessing. Ignore a task if "
    "the full model's bar is near this line."
)
QUICK = {"limit": 20}
# The fraction of the full model's accuracy that counts as preserved.
PRESERVED = 0.95


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sparsity_argument(parser)
    add_task_arguments(parser, CLASSIFICATION)


def measure(study: Study, arguments: argparse.Namespace) -> Found:
    variants = [FULL, magnitude(arguments.sparsity), griffin(arguments.sparsity)]
    return measure_tasks(study, arguments, variants)


def tables(found: Found) -> list[Table]:
    return [score_table(found, "Accuracy in %, 0-shot. ± is one standard error.")]


def draw(found: Found) -> "Figure":
    return draw_scores(found)


def claims(found: Found) -> list[Claim]:
    told = bool(telling(found))
    keeps = f"GRIFFIN keeps {shown(found, 'GRIFFIN')} of the full model's accuracy"
    mean = f"These are means {where(found)}."
    return [
        Claim(
            "GRIFFIN preserves most of the full model's accuracy on classification.",
            mean_relative(found, "GRIFFIN") >= PRESERVED if told else None,
            f"{keeps}, as a mean {where(found)}. The finding holds from {percent(PRESERVED)} on." if told else CANNOT,
        ),
        Claim(
            "GRIFFIN is better than magnitude, which achieves reasonable results on classification.",
            is_better(found, "GRIFFIN", "magnitude") if told else None,
            f"{keeps}, and magnitude keeps {shown(found, 'magnitude')}. {mean}" if told else CANNOT,
        ),
    ]
