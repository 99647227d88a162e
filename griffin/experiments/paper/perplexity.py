"""Prompt length against generation length: the increase in perplexity over the full model (section 5.3).

The text is concatenated WikiText. The first P of P + G tokens are the prompt: the full model reads them, and they
choose the neurons. The other G tokens replace generated ones: GRIFFIN runs them through the kept neurons. The
perplexity is that of the outputs at these G tokens. Each output predicts the next token. (The output at the last
token of the prompt is always the full model's.)

In each window of the text, the G tokens start at the same place for all P, and a longer prompt starts earlier. So all
prompts are judged on the same text. The full model gets the same context.

Shapes: W windows, M the full model and GRIFFIN, P prompt lengths, G generation lengths, N lengths of either kind.
"""

import argparse
import math
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from griffin.experiments.common import kinds
from griffin.experiments.common.experiment import Found
from griffin.experiments.common.likelihood import target_losses
from griffin.experiments.common.pictures import INK, PAPER, new_figure, panels
from griffin.experiments.common.progress import Progress
from griffin.experiments.common.results import Claim, Table, percent
from griffin.experiments.common.study import Study
from griffin.experiments.common.teacher import Teacher
from griffin.experiments.common.texts import read_text
from griffin.experiments.common.variants import name_of
from griffin.experiments.paper.layers import colours
from griffin.request import Pruning

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Prompt length and generation length (Figure 5)"
SEE = "Each line is a generation length. If it falls, a longer prompt brings GRIFFIN closer to the full model."
QUICK = {"prompts": [64, 256], "generations": [64, 256], "windows": 2}

LENGTHS = [128, 256, 512, 1024]
# With fewer windows than this, two standard errors mean little.
FEWEST_WINDOWS = 4

Lengths = Literal["prompts", "generations"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for flag, what in (("--prompts", "P, lengths of the prompt"), ("--generations", "G, lengths of the generation")):
        parser.add_argument(
            flag, type=kinds.count, nargs="+", metavar="N", default=LENGTHS, help=f"{what} (128 256 512 1024)"
        )
    parser.add_argument("--windows", type=kinds.count, default=6, help="places in the text (%(default)s)")
    parser.add_argument(
        "--sparsity", type=kinds.sparsity, default=0.5, help="fraction of FF neurons removed (%(default)s)"
    )


def measure(study: Study, arguments: argparse.Namespace) -> Found:
    """
    Returns:
        ``full``, ``griffin``: perplexity over all windows, ``(P, G)``. ``losses``: natural negative log-likelihood,
        summed over the outputs of each window, ``(W, M, P, G)``.

    Raises:
        ValueError: the lengths exceed the context or the text; names the flags.
    """
    prompts, generations = sorted(set(arguments.prompts)), sorted(set(arguments.generations))
    longest, furthest = prompts[-1], generations[-1]
    text = read_text(study, "wikitext")
    limits = {"the context of this model": study.context_length, "the text but for its last token": len(text.ids) - 1}
    what = min(limits, key=limits.__getitem__)
    if longest + furthest > limits[what]:
        raise ValueError(
            f"--prompts, --generations: {longest} + {furthest} tokens, but {what} has {limits[what]}, "
            "the most they can be together"
        )
    # One more token than is read, because the last token that is read predicts it.
    windows = text.windows(longest + furthest + 1, arguments.windows, "--prompts, --generations", "--windows")
    pruning = Pruning(arguments.sparsity, method="griffin")
    losses_WMPG = torch.zeros(len(windows), 2, len(prompts), len(generations), dtype=torch.float64)
    with Progress(len(windows) * len(prompts)) as progress:
        for (number, window), (row, length) in product(enumerate(windows), enumerate(prompts)):
            progress.begin(f"window {number + 1} of {len(windows)}, a prompt of {length} tokens")
            prompt = text.begun(window[longest - length : longest])
            rest = window[longest:]
            question = {
                "perplexity": [name_of(prompt), name_of(rest)], "generations": generations, "sparsity": pruning.sparsity
            }  # fmt: skip
            compute = partial(losses_of_text, study.teacher, prompt, rest, generations, pruning)
            losses_WMPG[number, :, row] = torch.tensor(study.ledger.once(question, compute), dtype=torch.float64)
            progress.advance()
    full, griffin = (losses_WMPG.mean(dim=0) / torch.tensor(generations)).exp().tolist()
    return {
        "prompts": prompts,
        "generations": generations,
        "windows": len(windows),
        "sparsity": pruning.sparsity,
        "full": full,
        "griffin": griffin,
        "losses": losses_WMPG.tolist(),
    }


def losses_of_text(
    teacher: Teacher, prompt: Sequence[int], rest: Sequence[int], generations: Sequence[int], pruning: Pruning
) -> list[list[float]]:
    """The natural negative log-likelihood of the tokens after the first of ``rest``, summed over the outputs of each G.

    Args:
        rest: the tokens after the prompt, one more than the longest of ``generations``.

    Returns:
        The sums of the full model, then those of GRIFFIN, for each of ``generations``.
    """
    teacher.begin()
    for _ in teacher.read(prompt):
        pass
    mark, kept = teacher.mark(), teacher.choose(pruning)
    found = []
    for neurons in (None, kept):
        logits = teacher.follow(rest[:-1], neurons, wanted=len(rest) - 1)
        sums_G = target_losses(logits, rest[1:]).cumsum(dim=0)
        found.append([float(sums_G[length - 1]) for length in generations])
        teacher.back_to(mark)
    return found


def increases(found: Found) -> list[list[float]]:
    """The increase in perplexity for each prompt length and generation length."""
    return [
        [griffin - full for griffin, full in zip(*rows, strict=True)]
        for rows in zip(found["griffin"], found["full"], strict=True)
    ]


def tables(found: Found) -> list[Table]:
    """The increase, and the full model's perplexity. One row for each prompt length."""
    captions = {
        f"Increase in perplexity over the full model at {percent(found['sparsity'])} FF sparsity, "
        f"{found['windows']} windows of concatenated WikiText.": increases(found),
        "Perplexity of the full model.": found["full"],
    }
    heads = ("prompt", *(f"{length} generated" for length in found["generations"]))
    return [
        Table(
            heads,
            [
                (str(length), *(f"{value:.2f}" for value in row))
                for length, row in zip(found["prompts"], values, strict=True)
            ],
            caption,
        )
        for caption, values in captions.items()
    ]


def draw(found: Found) -> "Figure":
    """One line for each generation length, over the prompt length."""
    figure = new_figure(6.4, 4)
    (axes,) = panels(figure, 1, 1)
    prompts, generations = found["prompts"], found["generations"]
    columns = list(zip(*increases(found), strict=True))
    for length, column, colour in zip(generations, columns, colours(len(generations)), strict=True):
        axes.plot(prompts, column, color=colour, marker="o", markersize=5, linewidth=1.8, label=f"{length}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(prompts, [str(length) for length in prompts])
    axes.minorticks_off()
    axes.set_ylim(bottom=min(0, *(value for column in columns for value in column)))
    axes.set_xlabel("prompt length P, tokens")
    axes.set_ylabel("increase in perplexity")
    legend = axes.legend(
        title="generation length G", title_fontsize=8, labelcolor=INK, fontsize=8, ncols=2, facecolor=PAPER,
        edgecolor="none", framealpha=1,
    )  # fmt: skip
    legend.get_title().set_color(INK)
    return figure


def claims(found: Found) -> list[Claim]:
    """Section 5.3, "Prompt vs. Generation Length"."""
    rows = increases(found)
    columns = list(zip(*rows, strict=True))
    prompts, generations = found["prompts"], found["generations"]
    (by_prompt, prompt_trend), (by_generation, generation_trend) = trend(found, "prompts"), trend(found, "generations")
    return [
        Claim(
            "GRIFFIN gets closer to the full model when the prompt length increases.",
            None if by_prompt is None else by_prompt < 0,
            f"{prompt_trend} The increase over all windows, with a prompt of {prompts[0]} and of {prompts[-1]} tokens: "
            + _ends([(f"{length} generated", c[0], c[-1]) for length, c in zip(generations, columns, strict=True)]),
        ),
        Claim(
            "GRIFFIN gets closer to the full model when the generation length decreases.",
            None if by_generation is None else by_generation > 0,
            f"{generation_trend} The increase over all windows, with {generations[-1]} and {generations[0]} generated "
            "tokens: " + _ends([(f"prompt of {length}", r[-1], r[0]) for length, r in zip(prompts, rows, strict=True)]),
        ),
    ]


def doublings(found: Found, lengths: Lengths) -> Tensor:
    """The change of each window's increase in perplexity when a length doubles, by least squares: fp64 ``(W,)``.

    The increase is the mean over all lengths of the other kind.
    """
    losses_WMPG = torch.tensor(found["losses"], dtype=torch.float64)
    full_WPG, griffin_WPG = (losses_WMPG / torch.tensor(found["generations"])).exp().unbind(dim=1)
    increase_WN = (griffin_WPG - full_WPG).mean(dim=2 if lengths == "prompts" else 1)
    doublings_N = torch.tensor(found[lengths], dtype=torch.float64).log2()
    doublings_N -= doublings_N.mean()
    return increase_WN @ doublings_N / doublings_N.square().sum()


def trend(found: Found, lengths: Lengths) -> tuple[float | None, str]:
    """The mean of ``doublings`` over the windows, and a sentence about it. Windows count as independent texts.

    The mean is None if it is not larger than two standard errors.
    """
    # Results of earlier releases may have no losses.
    windows = len(found.get("losses", []))
    if len(found[lengths]) < 2:
        return None, "One length shows no trend."
    if windows < FEWEST_WINDOWS:
        return None, f"The losses of {windows} windows are too few for a trend; {FEWEST_WINDOWS} are needed."
    each_W = doublings(found, lengths)
    mean, error = float(each_W.mean()), float(each_W.std()) / math.sqrt(windows)
    told = abs(mean) > 2 * error
    return mean if told else None, (
        f"Each doubling of the {lengths.removesuffix('s')} length adds {mean:+.3f} to the increase in perplexity, "
        f"with a standard error of {error:.3f} over {windows} windows."
        + ("" if told else " This is at most two standard errors, so it may be chance.")
    )


def _ends(ends: Sequence[tuple[str, float, float]]) -> str:
    return ", ".join(f"{begin:.2f} and {end:.2f} ({where})" for where, begin, end in ends) + "."
