"""The statistic, sorted: the entries of s (equation 1) in each layer, from the largest to the smallest (section 7).

The paper calls s the gating statistic. As there, the entries of a layer are normalised to 0 to 1: here as
(s - min s) / (max s - min s). The text is one sequence from the books.
"""

import argparse
import statistics
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from griffin.experiments.common import kinds
from griffin.experiments.common.experiment import Found
from griffin.experiments.common.pictures import new_figure, panels
from griffin.experiments.common.progress import Progress
from griffin.experiments.common.results import Claim, Table, percent
from griffin.experiments.common.study import Study
from griffin.experiments.common.texts import CORPORA, sequences
from griffin.experiments.common.variants import name_of
from griffin.experiments.paper.layers import colourbar, draw_layers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "The gating statistic (Figure 7)"
SEE = "If a line falls steeply at the left, a few neurons hold most of s."
QUICK = {"tokens": 256}

# The number of points of a curve that are kept. They are closer where the curve is steep.
POINTS = 200
TOPS = (0.05, 0.1, 0.25, 0.5)
# Both are fractions. A layer is concentrated if fewer than HANDFUL of its neurons are in the upper half of the range.
# The claim holds if NEARLY_ALL of the layers are.
HANDFUL, NEARLY_ALL = 0.05, 0.9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--corpus", choices=CORPORA, default="books", help="source of the text (%(default)s)")
    parser.add_argument("--tokens", type=kinds.count, default=1024, help="length of the text (%(default)s)")


def measure(study: Study, arguments: argparse.Namespace) -> Found:
    (ids,) = sequences(study, arguments.corpus, arguments.tokens)
    with Progress(1) as progress:
        progress.begin(f"statistic of {len(ids)} tokens")
        curves = study.ledger.once({"gating": name_of(ids)}, partial(_curves_of_text, study, ids))
    return {"corpus": arguments.corpus, "tokens": len(ids), **curves}


def _curves_of_text(study: Study, ids: list[int]) -> Found:
    teacher = study.teacher
    teacher.begin()
    for _ in teacher.read(ids):
        pass
    return curves(teacher.statistic())


def curves(statistic_LF: Tensor) -> Found:
    """Figures of s ``(L, F)``.

    Returns:
        ``normalised``: for each layer the entries with the ``ranks`` given; rank 0 is the largest.
        ``upper``: for each layer the fraction of neurons in the upper half of the normalised range.
        ``shares``: for each layer the fraction of the sum of s^2 that its largest entries hold. ``tops`` says how many
        entries these are, as fractions of the neurons.
    """
    sorted_LF = statistic_LF.double().cpu().sort(dim=1, descending=True).values
    highest_L1, lowest_L1 = sorted_LF[:, :1], sorted_LF[:, -1:]
    # If all are equal, there is no curve, and the span would be 0.
    span_L1 = (highest_L1 - lowest_L1).clamp(min=torch.finfo(torch.float64).tiny)
    normalised_LF = (sorted_LF - lowest_L1) / span_L1
    width = sorted_LF.shape[1]
    ranks = sorted({round((width - 1) * (point / (POINTS - 1)) ** 2) for point in range(POINTS)})
    energy_LF = sorted_LF.square().cumsum(dim=1)
    ends = [max(1, round(top * width)) - 1 for top in TOPS]
    return {
        "ranks": ranks,
        "normalised": [[round(value, 5) for value in row] for row in normalised_LF[:, ranks].tolist()],
        "upper": (normalised_LF > 0.5).double().mean(dim=1).tolist(),
        "tops": TOPS,
        "shares": (energy_LF[:, ends] / energy_LF[:, -1:]).tolist(),
    }


def tables(found: Found) -> list[Table]:
    """One row for each size of the top."""
    rows = []
    for column, top in enumerate(found["tops"]):
        shares = [row[column] for row in found["shares"]]
        figures = (min(shares), statistics.median(shares), max(shares))
        rows.append((f"top {percent(top)}", *(percent(value, 1) for value in figures)))
    caption = (
        "Fraction of the sum of s squared that the largest entries of a layer hold, for a text of "
        f"{found['tokens']} tokens ({found['corpus']})."
    )
    return [Table(("neurons", "lowest layer", "median layer", "highest layer"), rows, caption)]


def draw(found: Found) -> "Figure":
    """One line for each layer, coloured by depth."""
    figure = new_figure(7, 4.4)
    (axes,) = panels(figure, 1, 1)
    draw_layers(axes, found["ranks"], found["normalised"])
    axes.set_xlim(-0.01 * found["ranks"][-1], found["ranks"][-1])
    axes.set_ylim(0, 1.01)
    axes.set_xlabel("FF neurons of a layer, sorted by s")
    axes.set_ylabel("s, normalised between 0 and 1")
    colourbar(figure, axes, len(found["normalised"]))
    return figure


def claims(found: Found) -> list[Claim]:
    """Section 7."""
    upper = found["upper"]
    steep = sum(part < HANDFUL for part in upper)
    tenth = statistics.median(row[found["tops"].index(0.1)] for row in found["shares"])
    return [
        Claim(
            "The values of s are heavily concentrated in a handful of neurons.",
            steep >= NEARLY_ALL * len(upper),
            f"In {steep} of {len(upper)} layers, fewer than {percent(HANDFUL)} of the neurons are in the upper half of "
            f"the normalised range (median {percent(statistics.median(upper), 2)}). The finding holds if this is so in "
            f"at least {percent(NEARLY_ALL)} of the layers. In the median layer, the top {percent(0.1)} of the neurons "
            f"hold {percent(tenth)} of the sum of s squared.",
        )
    ]
