"""Generation (Table 2): summaries and answers written by the full model, by magnitude and by GRIFFIN.

XSum and CNN/DailyMail 1-shot by ROUGE-1/2/L, CoQA 0-shot by F1 and exact match, QASPER 0-shot by F1. Texts are
generated greedily by the server's own decode path, prompts read by the full model.
"""

import argparse
from typing import TYPE_CHECKING

from griffin.experiments.arguments import sparsity
from griffin.experiments.experiment import Found
from griffin.experiments.results import Claim, Table, percent
from griffin.experiments.scores import add_task_arguments, draw_scores, mean_relative, score_table, telling, where
from griffin.experiments.study import Study
from griffin.experiments.tasknames import GENERATION
from griffin.experiments.variants import FULL, griffin, magnitude

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Generation (Table 2)"
SEE = "Magnitude's bars collapse where GRIFFIN's stay near the full model's: neurons must suit the prompt."
QUICK = {"limit": 4, "max_length": 1024}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sparsity", type=sparsity, default=0.5, metavar="S", help="of the FF neurons (%(default)s)")
    add_task_arguments(parser, GENERATION)


def measure(study: Study, arguments: argparse.Namespace) -> Found:
    from griffin.experiments.evaluation import evaluate

    variants = [FULL, magnitude(arguments.sparsity), griffin(arguments.sparsity)]
    return evaluate(study, arguments.tasks, variants, arguments.limit, arguments.max_length)


def tables(found: Found) -> list[Table]:
    return [score_table(found, "In %; ± one standard error")]


def draw(found: Found) -> "Figure":
    return draw_scores(found)


def claims(found: Found) -> list[Claim]:
    if not telling(found):
        return [Claim("GRIFFIN preserves generation", None, "The full model can do none of these tasks.")]
    ours, baseline = mean_relative(found, "GRIFFIN"), mean_relative(found, "magnitude")
    return [
        Claim(
            "Full is as good as GRIFFIN or better",
            ours <= 1,
            f"GRIFFIN has {percent(ours)} of the full model's score, mean {where(found)}.",
        ),
        Claim(
            "GRIFFIN preserves most of the full model's performance in generation",
            ours >= 0.9,
            f"{percent(ours)} of it, mean {where(found)}; yes is 90 % or more.",
        ),
        Claim(
            "Magnitude annihilates it in most generation settings; GRIFFIN is far better",
            ours > 2 * baseline,
            f"GRIFFIN has {percent(ours)} of the full model's score, magnitude {percent(baseline)}, mean "
            f"{where(found)}; yes is twice as much.",
        ),
    ]
