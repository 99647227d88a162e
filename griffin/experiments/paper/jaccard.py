"""Similarity between samples: how many of the top-k neurons of two WikiText samples are the same (section 4.1).

In each layer, a sample takes the k neurons with the highest statistic s (equation 1). The Jaccard similarity of two
such sets is the size of their intersection over the size of their union. The figure is the mean over all pairs of
samples.
"""

import argparse
import base64
import statistics
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from griffin.experiments.common import kinds
from griffin.experiments.common.experiment import Found
from griffin.experiments.common.pictures import INK, MUTED, new_figure, panels
from griffin.experiments.common.progress import Progress
from griffin.experiments.common.results import Claim, Table, percent
from griffin.experiments.common.study import Study
from griffin.experiments.common.texts import sequences
from griffin.experiments.common.variants import name_of
from griffin.experiments.paper.layers import colourbar, draw_layers
from griffin.neurons import kept_count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Jaccard similarity between samples (Figure 2)"
SEE = (
    "Low lines mean that texts differ in their top neurons. All lines end at 1, where every neuron is in the sets. The "
    "dashed line is for random sets."
)
QUICK = {"samples": 8, "tokens": 256}

FRACTIONS = [number / 20 for number in range(1, 20)]
# Fractions of the neurons: the claim is judged at the size nearest to SMALL, if that is at most SMALL_ENOUGH.
SMALL, SMALL_ENOUGH = 0.1, 0.2
# Samples have little in common in a layer below this similarity. This fraction of the layers is the vast majority.
LITTLE, VAST_MAJORITY = 0.5, 0.8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--samples", type=partial(kinds.whole, lowest=2), default=32, help="number of samples (%(default)s)"
    )
    parser.add_argument("--tokens", type=kinds.count, default=512, help="length of each sample (%(default)s)")
    parser.add_argument(
        "--fractions", type=fraction, nargs="+", metavar="K", default=FRACTIONS,
        help="sizes of the sets as fractions of all FF neurons, above 0 and up to 1 (0.05 to 0.95)",
    )  # fmt: skip


def fraction(text: str) -> float:
    """The type of a flag: a fraction of the neurons."""
    value = kinds.positive(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not above 0 and up to 1")
    return value


def measure(study: Study, arguments: argparse.Namespace) -> Found:
    samples = sequences(study, "wikitext", arguments.tokens, arguments.samples, "--samples")
    fractions = sorted(set(arguments.fractions))
    ranks = []
    with Progress(len(samples)) as progress:
        for ids in samples:
            progress.begin(f"statistic of {len(ids)} tokens")
            question = {"ranks": name_of(ids)}
            text = study.ledger.once(question, partial(_ranks_of_text, study, ids))
            ranks.append(decoded(text, study.accounting.layers, study.accounting.width))
            progress.advance()
    counts = [kept_count(study.accounting.width, 1 - fraction) for fraction in fractions]
    return {
        "samples": len(samples),
        "tokens": arguments.tokens,
        "fractions": fractions,
        "counts": counts,
        "jaccard": jaccard(torch.stack(ranks), counts).tolist(),
    }


def ranking(statistic_LF: Tensor) -> Tensor:
    """The rank of each neuron in its layer ``(L, F)``: 0 is the highest. If values are equal, the lower index wins."""
    order_LF = statistic_LF.argsort(dim=1, descending=True, stable=True)
    return order_LF.argsort(dim=1)


def jaccard(ranks_SLF: Tensor, counts: Sequence[int]) -> Tensor:
    """The mean similarity over all pairs of the samples S, for each size of the sets: fp64 ``(L, len(counts))``."""
    samples, layers, _ = ranks_SLF.shape
    first_P, second_P = torch.triu_indices(samples, samples, offset=1)
    means = torch.empty(layers, len(counts), dtype=torch.float64)
    for layer in range(layers):
        for column, k in enumerate(counts):
            sets_SF = (ranks_SLF[:, layer] < k).float()
            common_P = (sets_SF @ sets_SF.T)[first_P, second_P].double()
            means[layer, column] = (common_P / (2 * k - common_P)).mean()
    return means


def _ranks_of_text(study: Study, ids: list[int]) -> str:
    teacher = study.teacher
    teacher.begin()
    for _ in teacher.read(ids):
        pass
    return encoded(ranking(teacher.statistic()))


def encoded(ranks_LF: Tensor) -> str:
    """Ranks as text, for the ledger."""
    return base64.b64encode(ranks_LF.cpu().numpy().astype(_rank_type(ranks_LF.shape[1])).tobytes()).decode()


def decoded(text: str, layers: int, width: int) -> Tensor:
    """Ranks ``(layers, width)`` from ``encoded``."""
    ranks_LF = np.frombuffer(base64.b64decode(text), _rank_type(width))
    return torch.from_numpy(ranks_LF.astype(np.int32).reshape(layers, width))


def _rank_type(width: int) -> type[np.unsignedinteger[Any]]:
    return np.uint16 if width <= 2**16 else np.uint32


def by_chance(fraction: float) -> float:
    """The similarity of two random sets of a fraction f of the neurons: f^2 are in both, 2f - f^2 in at least one."""
    return fraction / (2 - fraction)


def tables(found: Found) -> list[Table]:
    """One row for each size of the sets."""
    rows = []
    for column, (part, k) in enumerate(zip(found["fractions"], found["counts"], strict=True)):
        values = _column(found, column)
        figures = (min(values), statistics.median(values), max(values), by_chance(part))
        rows.append((f"{part:.3g}", str(k), *(f"{value:.3f}" for value in figures)))
    caption = (
        f"Jaccard similarity of the top-k neurons of {found['samples']} WikiText samples of {found['tokens']} tokens, "
        "as the mean over all pairs. The last column is the similarity of random sets."
    )
    return [Table(("k / F", "k", "lowest layer", "median layer", "highest layer", "random sets"), rows, caption)]


def _column(found: Found, column: int) -> list[float]:
    """The similarities of all layers at one size of the sets."""
    return [row[column] for row in found["jaccard"]]


def draw(found: Found) -> "Figure":
    """One line for each layer, coloured by depth."""
    figure = new_figure(7, 4.4)
    (axes,) = panels(figure, 1, 1)
    fractions = found["fractions"]
    draw_layers(axes, fractions, found["jaccard"])
    axes.plot(fractions, [by_chance(part) for part in fractions], color=INK, linewidth=1.5, linestyle=(0, (4, 3)))
    middle = fractions[len(fractions) // 2]
    axes.annotate(
        "random sets", (middle, by_chance(middle)), xytext=(8, -10), textcoords="offset points", color=MUTED,
        fontsize=8, va="top",
    )  # fmt: skip
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("k / F: fraction of the FF neurons in each set")
    axes.set_ylabel("Jaccard similarity, mean over pairs")
    colourbar(figure, axes, len(found["jaccard"]))
    return figure


def claims(found: Found) -> list[Claim]:
    """Section 4.1, on Figure 2. Large sets always have much in common, so only small ones are judged."""
    column = min(range(len(found["fractions"])), key=lambda column: abs(found["fractions"][column] - SMALL))
    part, values = found["fractions"][column], _column(found, column)
    few = sum(value < LITTLE for value in values)
    return [
        Claim(
            "In the vast majority of layers, samples do not generally share their top neurons, as long as the sets are "
            "small.",
            few >= VAST_MAJORITY * len(values) if part <= SMALL_ENOUGH else None,
            f"With k = {percent(part)} of the neurons, the mean Jaccard similarity is below {LITTLE:g} in {few} of "
            f"{len(values)} layers (median {statistics.median(values):.2f}, random sets {by_chance(part):.2f}). The "
            f"finding holds if this is so in at least {percent(VAST_MAJORITY)} of the layers. It is judged at the size "
            f"nearest to {percent(SMALL)} of the neurons, but not above {percent(SMALL_ENOUGH)}. {_large_sets(found)}",
        )
    ]


def _large_sets(found: Found) -> str:
    """The size at which the median layer reaches LITTLE, and the similarity at the largest size, in words."""
    medians = [statistics.median(_column(found, column)) for column in range(len(found["fractions"]))]
    reached = (part for part, median in zip(found["fractions"], medians, strict=True) if median >= LITTLE)
    turning = next((f"reaches {LITTLE:g} at {percent(part)} of the neurons" for part in reached), "")
    largest = found["fractions"][-1]
    return (
        f"The median layer {turning or f'stays below {LITTLE:g} at all sizes'}. At {percent(largest)} it is "
        f"{medians[-1]:.2f} (random sets {by_chance(largest):.2f})."
    )
