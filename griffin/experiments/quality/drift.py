"""Long generations: how much it helps to choose neurons again in the course of a long answer to a short prompt.

This is the paper's weakness (Figure 5): neurons chosen by a short prompt fit a long generation less and less. Here the
text after the prompt replaces the generation. Every few tokens the full model reads the last ones, as in the modes
guarded and lossless: it corrects their keys and values, and continues the statistic. All perplexities are those of the
pruned model's own predictions, because wrong predictions are not replaced here.

Shapes: W windows, M ways, B parts of the generation.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import torch

from griffin.experiments.common import kinds
from griffin.experiments.common.experiment import Found
from griffin.experiments.common.likelihood import target_losses
from griffin.experiments.common.pictures import COLOURS, INK, new_figure, panels
from griffin.experiments.common.progress import Progress
from griffin.experiments.common.results import Claim, Table, percent
from griffin.experiments.common.study import Study
from griffin.experiments.common.teacher import Teacher
from griffin.experiments.common.texts import read_text
from griffin.experiments.common.variants import name_of
from griffin.request import METHOD_NAMES, Pruning

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Long generations"
SEE = "Lower lines are closer to the full model. A line that rises means that the neurons fit the text less and less."
QUICK = {"generated": 256, "windows": 2}


@dataclass(frozen=True, slots=True)
class Way:
    """How the text after a prompt is read.

    pruning: None is the full model.
    block: the number of tokens that the kept neurons read before the full model reads them again. None: it never does.
    refresh: whether neurons are chosen again after each block.
    """

    name: str
    pruning: Pruning | None
    block: int | None = None
    refresh: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", type=kinds.count, default=64, help="tokens of the prompt (%(default)s)")
    parser.add_argument("--generated", type=kinds.count, default=1024, help="tokens after it (%(default)s)")
    parser.add_argument("--block", type=kinds.count, default=16, help="tokens between verifications (%(default)s)")
    parser.add_argument(
        "--parts", type=kinds.count, default=8, help="parts of the generation in the picture (%(default)s)"
    )
    parser.add_argument("--windows", type=kinds.count, default=6, help="places in the text (%(default)s)")
    parser.add_argument(
        "--sparsity", type=kinds.sparsity, default=0.5, help="fraction of FF neurons removed (%(default)s)"
    )


def ways(sparsity: float, block: int) -> list[Way]:
    found = [Way("full", None)]
    for method in METHOD_NAMES:
        pruning = Pruning(sparsity, method=method)
        found += [
            Way(method, pruning),
            Way(f"{method}, verified", pruning, block),
            Way(f"{method}, refreshed", pruning, block, refresh=True),
        ]
    return found


def measure(study: Study, arguments: argparse.Namespace) -> Found:
    """
    Returns:
        ``losses``: natural negative log-likelihood, the mean over each part, ``(W, M, B)``.

    Raises:
        ValueError: the lengths exceed the context or the text, or the parts are not equal; names the flags.
    """
    text = read_text(study, "wikitext")
    length = arguments.prompt + arguments.generated
    if length > study.context_length:
        raise ValueError(f"--prompt, --generated: {length} tokens, but the context has {study.context_length}")
    if arguments.generated % arguments.parts:
        raise ValueError(f"--parts: {arguments.generated} tokens do not divide into {arguments.parts} equal parts")
    # One more token than is read, because the last token that is read predicts it.
    windows = text.windows(length + 1, arguments.windows, "--generated", "--windows")
    compared = ways(arguments.sparsity, arguments.block)
    losses: list[list[list[float]]] = [[] for _ in windows]
    with Progress(len(windows) * len(compared)) as progress:
        for (number, window), way in product(enumerate(windows), compared):
            progress.begin(f"window {number + 1} of {len(windows)}, {way.name}")
            prompt = text.begun(window[: arguments.prompt])
            rest = window[arguments.prompt :]
            question = {
                "drift": [name_of(prompt), name_of(rest)], "way": [way.name, way.block, way.refresh],
                "sparsity": arguments.sparsity, "parts": arguments.parts,
            }  # fmt: skip
            compute = partial(losses_by_part, study.teacher, prompt, rest, way, arguments.parts)
            losses[number].append(study.ledger.once(question, compute))
            progress.advance()
    return {
        "prompt": arguments.prompt,
        "generated": arguments.generated,
        "block": arguments.block,
        "windows": len(windows),
        "sparsity": arguments.sparsity,
        "ways": [way.name for way in compared],
        "losses": losses,
    }


def losses_by_part(teacher: Teacher, prompt: Sequence[int], rest: Sequence[int], way: Way, parts: int) -> list[float]:
    """The mean negative log-likelihood of the tokens after the first of ``rest``, in equal parts."""
    losses = torch.cat(read_after(teacher, prompt, rest, way))
    return [float(part.mean()) for part in losses.chunk(parts)]


def read_after(teacher: Teacher, prompt: Sequence[int], rest: Sequence[int], way: Way) -> list[torch.Tensor]:
    """The negative log-likelihoods of the tokens after the first of ``rest``, block by block: fp64."""
    teacher.begin_with(prompt)
    kept = None if way.pruning is None else teacher.choose(way.pruning)
    found, block = [], way.block or len(rest) - 1
    for first in range(0, len(rest) - 1, block):
        inputs, targets = rest[first : min(first + block, len(rest) - 1)], rest[first + 1 : first + 1 + block]
        mark = teacher.mark()
        found.append(target_losses(teacher.follow(inputs, kept, wanted=len(inputs)), targets))
        if way.block is not None and way.pruning is not None:
            teacher.back_to(mark)
            for _ in teacher.read(inputs):
                pass
            kept = teacher.choose(way.pruning) if way.refresh else kept
    return found


def summary(found: Found) -> dict[str, dict[str, float]]:
    """For each way: perplexity, its gap to the full model's, and that gap over the same method's plain gap."""
    losses_M = torch.tensor(found["losses"], dtype=torch.float64).mean(dim=(0, 2))
    perplexities = dict(zip(found["ways"], losses_M.exp().tolist(), strict=True))
    full = perplexities["full"]
    return {
        name: {
            "perplexity": value,
            "gap": value - full,
            "of_plain": (value - full) / ((perplexities[name.partition(",")[0]] - full) or math.nan),
        }
        for name, value in perplexities.items()
    }


def tables(found: Found) -> list[Table]:
    rows = [
        (name, f"{of['perplexity']:.2f}", f"{of['gap']:.2f}", "" if name == "full" else percent(of["of_plain"]))
        for name, of in summary(found).items()
    ]
    caption = (
        f"Perplexity of {found['generated']} tokens after a prompt of {found['prompt']} at "
        f"{percent(found['sparsity'])} FF sparsity, over {found['windows']} windows of WikiText. Verified: every "
        f"{found['block']} tokens, the full model corrects keys and values. Refreshed: neurons are also chosen again. "
        "The last column is the gap relative to the same method without both."
    )
    return [Table(("", "perplexity", "gap to the full model", "relative gap"), rows, caption)]


def draw(found: Found) -> "Figure":
    """The excess loss over the full model's, along the generation."""
    figure = new_figure(6.8, 3.8)
    (axes,) = panels(figure, 1, 1)
    losses_MB = torch.tensor(found["losses"], dtype=torch.float64).mean(dim=0)
    part = found["generated"] / losses_MB.shape[1]
    places = [part * (number + 0.5) for number in range(losses_MB.shape[1])]
    for number, name in enumerate(found["ways"][1:], start=1):
        axes.plot(
            places, (losses_MB[number] - losses_MB[0]).tolist(), marker="o", markersize=3.5, linewidth=1.6,
            color=COLOURS[(number - 1) % 3], linestyle="solid" if number <= 3 else "dashed", label=name,
        )  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"tokens after a prompt of {found['prompt']}")
    axes.set_ylabel("excess negative log-likelihood, nats")
    axes.legend(frameon=False, labelcolor=INK, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def claims(found: Found) -> list[Claim]:
    of = summary(found)
    return [
        Claim(
            "Refresh removes at least half of the perplexity gap of long generations.",
            of[f"{method}, refreshed"]["of_plain"] <= 0.5,
            f"{method}: the gap is {of[method]['gap']:.2f} without refresh and "
            f"{of[f'{method}, refreshed']['gap']:.2f} with it.",
        )
        for method in METHOD_NAMES
    ]
