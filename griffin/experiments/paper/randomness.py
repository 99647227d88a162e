"""Flocking in random inputs: a WikiText sequence, the same tokens in random order, and random tokens (section 5.3).

Random tokens are drawn uniformly from the vocabulary without special tokens. Flocking is measured as in ``flocking``.
"""

import argparse
import statistics
from typing import TYPE_CHECKING

import torch
from torch import Generator

from griffin.experiments.common import kinds
from griffin.experiments.common.experiment import Found
from griffin.experiments.common.pictures import BLUE, GREEN, ORANGE, new_figure, style
from griffin.experiments.common.progress import Progress
from griffin.experiments.common.results import Claim, Table
from griffin.experiments.common.study import Study
from griffin.experiments.common.texts import sequences, start_of
from griffin.experiments.paper.flocking import FAINT_BELOW, STRENGTH, flocking_layers, how_many, look
from griffin.experiments.paper.heatmaps import colourbar, draw_heatmaps
from griffin.experiments.paper.layers import draw_by_layer, layer_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Flocking in random inputs (Figure 6)"
SEE = "Look for streaks in all three heatmaps: they stay if a text's tokens are permuted, and if all tokens are random."
QUICK = {"tokens": 256}

COLOURS = {"original": BLUE, "permuted": ORANGE, "random": GREEN}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens", type=kinds.count, default=512, help="length of the sequences (%(default)s)")
    parser.add_argument(
        "--neurons", type=kinds.count, default=512, help="neurons of the layer to draw, from the first on (%(default)s)"
    )
    parser.add_argument(
        "--layer", type=lambda text: kinds.whole(text, 0), metavar="N",
        help="layer to draw, counted from 0 (as deep as layer 18 of 28, which the paper shows)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of the order and of the random tokens (%(default)s)")


def measure(study: Study, arguments: argparse.Namespace) -> Found:
    count = study.accounting.layers
    wanted = None if arguments.layer is None else [arguments.layer]
    layers = layer_numbers(wanted, count, [max(0, round(count * 18 / 28) - 1)], "--layer")
    neurons = min(arguments.neurons, study.accounting.width)
    inputs = make_inputs(study, arguments.tokens, arguments.seed)
    seen = {}
    with Progress(len(inputs)) as progress:
        for name, ids in inputs.items():
            progress.begin(f"activations of {len(ids)} tokens, {name}")
            seen[name] = look(study, ids, neurons, layers)
            progress.advance()
    return {"tokens": arguments.tokens, "layer": layers[0], "seed": arguments.seed, "inputs": seen}


def make_inputs(study: Study, tokens: int, seed: int) -> dict[str, list[int]]:
    """Three sequences of equal length. A BOS token stays first."""
    (original,) = sequences(study, "wikitext", tokens)
    start = start_of(study.tokenizer)
    text_T = torch.tensor(original[len(start) :])
    # torch takes 64 bits; a flag can be any integer.
    generator = Generator().manual_seed(seed % 2**63)
    permuted_T = text_T[torch.randperm(len(text_T), generator=generator)]
    ordinary_V = torch.tensor(ordinary_ids(study))
    random_T = ordinary_V[torch.randint(len(ordinary_V), text_T.shape, generator=generator)]
    return {
        "original": original,
        "permuted": [*start, *permuted_T.tolist()],
        "random": [*start, *random_T.tolist()],
    }


def ordinary_ids(study: Study) -> list[int]:
    """The vocabulary without special tokens, sorted."""
    tokenizer = study.tokenizer
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = set(tokenizer.get_vocab().values()) - special - set(tokenizer.all_special_ids)
    return sorted(id for id in ids if id < study.checkpoint.model.config.vocab_size)


def tables(found: Found) -> list[Table]:
    """One row for each layer."""
    inputs = found["inputs"]
    rows = [
        (str(number), *(f"{strength:.3f}" for strength in strengths))
        for number, strengths in enumerate(zip(*(seen["strength"] for seen in inputs.values()), strict=True))
    ]
    medians = ("median", *(f"{statistics.median(seen['strength']):.3f}" for seen in inputs.values()))
    caption = (
        f"Flocking strength of {found['tokens']} tokens of WikiText, of the same tokens permuted, and of random "
        f"tokens. {STRENGTH}"
    )
    return [Table(("layer", *inputs), [*rows, medians], caption)]


def draw(found: Found) -> "Figure":
    """The heatmaps of one layer side by side, and the strengths of all layers below them."""
    inputs = found["inputs"]
    figure = new_figure(10, 5.6)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[3.3, 2.3], hspace=0.02)[:, 0]
    panels = list(above.subplots(1, len(inputs)))
    for axes in panels:
        style(axes)
    heatmaps = [seen["heatmaps"][0] for seen in inputs.values()]
    draw_heatmaps(panels, heatmaps, [f"{name}, layer {found['layer']}" for name in inputs], len(inputs))
    colourbar(above, panels, 1)
    lines = {name: (seen["strength"], COLOURS[name]) for name, seen in inputs.items()}
    draw_by_layer(below.subplots(), lines, "flocking strength")
    return figure


def claims(found: Found) -> list[Claim]:
    """Section 5.3, "Sparsity in Random Sequences"."""
    strengths = {name: seen["strength"] for name, seen in found["inputs"].items()}
    shuffled = {name: strengths[name] for name in ("permuted", "random")}
    stronger = {name: _stronger(values, strengths["original"]) for name, values in shuffled.items()}
    layers = len(strengths["original"])
    medians = ", ".join(f"{statistics.median(values):.2f} {name}" for name, values in strengths.items())
    return [
        Claim(
            "Flocking exists in permuted and in random inputs.",
            all(2 * flocking_layers(values) > layers for values in shuffled.values()),
            " ".join(f"{name.capitalize()}: {how_many(values)}." for name, values in shuffled.items())
            + f" A layer flocks if its strength is {FAINT_BELOW:g} or more. The finding holds if more than half of the "
            "layers flock in both.",
        ),
        Claim(
            "Flocking is perhaps even more consistent in permuted and random inputs than in the original text.",
            all(2 * many > layers for many in stronger.values()),
            f"Of {layers} layers, {stronger['permuted']} flock more strongly with permuted tokens than with the "
            f"original, and {stronger['random']} with random tokens. The finding holds if both are more than half. "
            f"Medians: {medians}.",
        ),
    ]


def _stronger(values: list[float], than: list[float]) -> int:
    """The number of layers where the first is larger."""
    return sum(one > other for one, other in zip(values, than, strict=True))
