"""Flocking: which FF neurons each token activates, as heatmaps, and how alike the tokens are in each layer.

The paper shows relative activation magnitudes |z_ti| / |z_t| (section 4.1). Neurons that are strong for many tokens of
a text are vertical streaks. As a number, flocking is the mean cosine similarity of the magnitudes of two tokens, over
all pairs of tokens. It is compared with the similarity after each token's magnitudes are shuffled over the neurons.
"""

import argparse
import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from griffin.experiments.common import kinds
from griffin.experiments.common.experiment import Found
from griffin.experiments.common.pictures import BLUE, MUTED, new_figure, style
from griffin.experiments.common.progress import Progress
from griffin.experiments.common.results import Claim, Table, percent
from griffin.experiments.common.study import Study
from griffin.experiments.common.texts import CORPORA, sequences
from griffin.experiments.common.variants import name_of
from griffin.experiments.paper.activations import Flocking, relative_magnitudes, visit_activations
from griffin.experiments.paper.activations import flocking as flocking_of
from griffin.experiments.paper.heatmaps import colourbar, draw_heatmaps, encode
from griffin.experiments.paper.layers import draw_by_layer, layer, layer_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Flocking (Figures 1, 8 to 11)"
SEE = "Look for vertical streaks: a neuron that is strong for one token is strong for most tokens of the text."
QUICK = {"tokens": 256}

COLUMNS = 5
# Streaks below this strength are hard to see: the layer does not count as flocking, even if it is above chance.
FAINT_BELOW = 0.1
STRENGTH = "A strength of 0 means that tokens are alike only by chance, and 1 that all tokens are the same."
# This fraction of the layers counts as virtually all.
VIRTUALLY_ALL = 0.9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--corpus", choices=CORPORA, default="books", help="source of the text (%(default)s)")
    parser.add_argument("--tokens", type=kinds.count, default=512, help="length of the text (%(default)s)")
    parser.add_argument(
        "--neurons",
        type=kinds.count,
        default=512,
        help="neurons of each layer to draw, from the first on (%(default)s)",
    )
    parser.add_argument(
        "--layers", type=layer, nargs="+", metavar="N",
        help="layers to draw, counted from 0 (the paper counts from 1), or all (three, spread over the depth)",
    )  # fmt: skip


def measure(study: Study, arguments: argparse.Namespace) -> Found:
    count = study.accounting.layers
    layers = layer_numbers(arguments.layers, count, [(2 * third + 1) * count // 6 for third in range(3)], "--layers")
    (ids,) = sequences(study, arguments.corpus, arguments.tokens)
    neurons = min(arguments.neurons, study.accounting.width)
    with Progress(1) as progress:
        progress.begin(f"activations of {len(ids)} tokens")
        seen = look(study, ids, neurons, layers)
    return {"corpus": arguments.corpus, "tokens": len(ids), **seen}


def look(study: Study, ids: list[int], neurons: int, layers: list[int]) -> Found:
    """Flocking and heatmaps of a text, from the study's ledger if it has them.

    Args:
        neurons: how many neurons the heatmaps show, from the first on.
        layers: those of the heatmaps.

    Returns:
        ``similarity``, ``shuffled`` and ``strength`` of all layers, see ``activations.Flocking``; ``heatmaps``, see
        ``heatmaps.encode``.
    """
    question = {"flocking": name_of(ids), "neurons": neurons, "layers": layers}
    found: Found = study.ledger.once(question, lambda: _look(study, ids, neurons, layers))
    return found


def _look(study: Study, ids: list[int], neurons: int, layers: list[int]) -> Found:
    heatmaps: list[dict[str, Any]] = []
    found: list[Flocking] = []

    def visit(layer: int, z_TF: Tensor) -> None:
        relative_TF = relative_magnitudes(z_TF)
        found.append(flocking_of(relative_TF))
        if layer in layers:
            heatmaps.append({"layer": layer, **encode(relative_TF[:, :neurons])})

    visit_activations(study.checkpoint.model, ids, visit)
    return {
        "similarity": [one.similarity for one in found],
        "shuffled": [one.shuffled for one in found],
        "strength": [one.strength for one in found],
        "heatmaps": heatmaps,
    }


def tables(found: Found) -> list[Table]:
    """One row for each layer."""
    rows = [
        (str(number), *(f"{value:.3f}" for value in values))
        for number, values in enumerate(zip(found["similarity"], found["shuffled"], found["strength"], strict=True))
    ]
    caption = (
        "Similarity: the mean cosine similarity of the activation magnitudes of two tokens, over all pairs of "
        f"{found['tokens']} tokens ({found['corpus']}). Shuffled: the similarity by chance, which is left after each "
        f"token's magnitudes are shuffled over the neurons. {STRENGTH}"
    )
    return [Table(("layer", "similarity", "shuffled", "strength"), rows, caption)]


def draw(found: Found) -> "Figure":
    """The heatmaps, and the similarities of all layers below them."""
    heatmaps = found["heatmaps"]
    columns = min(COLUMNS, len(heatmaps))
    rows = math.ceil(len(heatmaps) / columns)
    height = 9 / columns
    figure = new_figure(10, rows * height + 2.2)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[rows * height, 2.2], hspace=0.02)[:, 0]
    panels = list(above.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        style(axes)
    panels = draw_heatmaps(panels, heatmaps, [f"layer {heatmap['layer']}" for heatmap in heatmaps], columns)
    colourbar(above, panels, rows)
    lines = {
        "two tokens of the text": (found["similarity"], BLUE),
        "shuffled over the neurons": (found["shuffled"], MUTED),
    }
    draw_by_layer(below.subplots(), lines, "cosine similarity")
    return figure


def claims(found: Found) -> list[Claim]:
    """Section 4.1: "we observe this in virtually all FF layers"."""
    return [
        Claim(
            "The tokens of a text share their relative activation magnitudes (flocking) in virtually all FF layers.",
            flocking_layers(found["strength"]) >= VIRTUALLY_ALL * len(found["strength"]),
            f"{how_many(found['strength'])}. {STRENGTH} A layer flocks if its strength is {FAINT_BELOW:g} or more. The "
            f"finding holds if at least {percent(VIRTUALLY_ALL)} of the layers flock.",
        )
    ]


def flocking_layers(strengths: Sequence[float]) -> int:
    """The number of layers that flock, see ``FAINT_BELOW``."""
    return sum(strength >= FAINT_BELOW for strength in strengths)


def how_many(strengths: Sequence[float]) -> str:
    """How many layers flock, in words."""
    faint = sum(0 < strength < FAINT_BELOW for strength in strengths)
    return (
        f"{flocking_layers(strengths)} of {len(strengths)} layers flock, and {faint} more are above chance but faint "
        f"(strength {min(strengths):.2f} to {max(strengths):.2f}, median {statistics.median(strengths):.2f})"
    )
