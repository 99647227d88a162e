"""Strategies to choose neurons by the statistic (Table 4): top-k, sampling weighted by it, and half of each.

Tasks, prompts and statistic are those of ``generation``, which shares the answers of the full model and of top-k.
"""

import argparse
from typing import TYPE_CHECKING

from griffin.experiments.common.experiment import Found
from griffin.experiments.common.results import Claim, Table
from griffin.experiments.common.study import Study
from griffin.experiments.common.variants import FULL, Variant
from griffin.experiments.tasks.names import GENERATION
from griffin.experiments.tasks.scores import (
    CANNOT,
    ITEMS,
    add_sparsity_argument,
    add_task_arguments,
    draw_scores,
    is_better,
    measure_tasks,
    score_table,
    shown,
    telling,
    where,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Selection strategies (Table 4)"
SEE = (
    "Top-k's bars should be highest and sampling's lowest, because sampling also takes neurons that the prompt hardly "
    "used."
)
QUICK = {"limit": 4, "tasks": ["xsum", "coqa"]}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sparsity_argument(parser)
    add_task_arguments(parser, GENERATION)


def measure(study: Study, arguments: argparse.Namespace) -> Found:
    variants = [
        FULL,
        Variant("top-k", arguments.sparsity),
        Variant("sampling", arguments.sparsity, selection="sample"),
        Variant("top-k + sampling", arguments.sparsity, selection="top_k_sample"),
    ]
    return measure_tasks(study, arguments, variants)


def tables(found: Found) -> list[Table]:
    return [score_table(found, ITEMS)]


def draw(found: Found) -> "Figure":
    return draw_scores(found)


def claims(found: Found) -> list[Claim]:
    told = bool(telling(found))
    here = ", ".join(f"{name} {shown(found, name)}" for name in ("top-k", "top-k + sampling", "sampling"))
    return [
        Claim(
            f"{better.capitalize()} is better than {worse}.",
            is_better(found, better, worse) if told else None,
            f"Fractions of the full model's score, as means {where(found)}: {here}." if told else CANNOT,
        )
        for better, worse in (("top-k", "top-k + sampling"), ("top-k + sampling", "sampling"), ("top-k", "sampling"))
    ]
