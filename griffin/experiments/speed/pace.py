"""The time of a token for each method at equal sparsity, and for the full model.

One engine for each of them continues the same prompt of WikiText. They take turns in balanced order, a few tokens
each. So other load on the machine slows all of them equally, and each ratio compares two neighbouring times.
"""

import argparse
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from griffin import Engine, Pruning, Sampling, Token
from griffin.experiments.common import kinds
from griffin.experiments.common.experiment import Found
from griffin.experiments.common.pictures import COLOURS, INK, new_figure, panels
from griffin.experiments.common.progress import Progress
from griffin.experiments.common.results import Claim, Table, percent
from griffin.experiments.common.study import Study
from griffin.experiments.common.texts import read_text
from griffin.neurons import Chosen
from griffin.request import METHOD_NAMES
from griffin.thresholds import Shares

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Speed at equal sparsity"
SEE = "Both methods' dots of one sparsity should be equal: only the bytes that a token reads count, not the method."
QUICK = {"prompts": 2, "sparsities": [0.5], "tokens": 32}
SPARSITIES = [0.25, 0.5, 0.75]
# Tokens in one turn. Few, so that the compared times are near each other. More than one, because at the first token
# the caches hold the data of another engine.
BLOCK = 4
# The full model and two methods. Each runs once after each other one, and never after itself, because the caches would
# then hold its own data.
ORDER = (0, 1, 0, 2, 1, 2)
# Tokens before the timing. Neurons are chosen at the first pruned token, and the next tokens touch memory for the first
# time.
WARM_UP = 2 + 2 * BLOCK
# Two methods count as equally fast up to this relative difference.
TOLERANCE = 0.03

Seconds = list[list[float]]
# For each pruning: the seconds of a token in each turn, and the bytes of weights that a token reads.
Timed = tuple[Seconds, list[int]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds.add_sparsities(parser, SPARSITIES, "0.25 0.5 0.75")
    parser.add_argument("--prompts", type=kinds.count, default=8, help="places in the text (%(default)s)")
    parser.add_argument("--prompt", type=kinds.count, default=256, help="tokens of each (%(default)s)")
    parser.add_argument("--tokens", type=kinds.count, default=128, help="timed from each (%(default)s)")


def measure(study: Study, arguments: argparse.Namespace) -> Found:
    """
    Returns:
        ``rows``: one for each sparsity and method, over all prompts. The ledger keeps no times.
    """
    sparsities = kinds.removing(arguments.sparsities)
    text = read_text(study, "wikitext")
    windows = text.windows(arguments.prompt, arguments.prompts, "--prompt", "--prompts")
    rounds = -(-arguments.tokens // (BLOCK * ORDER.count(0)))
    compared = {sparsity: [Pruning(), *(Pruning(sparsity, method=m) for m in METHOD_NAMES)] for sparsity in sparsities}
    found: dict[float, list[Timed]] = {sparsity: [] for sparsity in sparsities}
    with Progress(len(windows) * len(sparsities)) as progress:
        for place, window in enumerate(windows):
            prompt = text.begun(window)
            for sparsity, prunings in compared.items():
                progress.begin(f"prompt {place + 1} of {len(windows)}, {percent(sparsity)}")
                found[sparsity].append(in_turn(study, prompt, prunings, rounds))
                progress.advance()
    rows = [row for sparsity in sparsities for row in rows_of(sparsity, found[sparsity])]
    tokens = rounds * ORDER.count(0) * BLOCK
    return {"prompt": arguments.prompt, "tokens": tokens, "prompts": len(windows), "rows": rows}


def in_turn(study: Study, prompt: Sequence[int], prunings: Sequence[Pruning], rounds: int) -> Timed:
    """Let one engine for each pruning continue the prompt, in turn.

    Engines are new for each prompt and share the weights, because the place of an engine's memory changes its speed by
    a few percent.

    Returns:
        See ``Timed``.
    """
    sampling = Sampling(max_tokens=WARM_UP + rounds * ORDER.count(0) * BLOCK, temperature=0, ignore_eos=True)
    seconds: Seconds = [[] for _ in prunings]
    with ExitStack() as stack:
        streams: list[Iterator[Token]] = []
        chosen: list[Chosen | None] = []
        shares: list[Shares | None] = [None for _ in prunings]
        for pruning in prunings:
            engine = Engine(study.checkpoint.model)
            streams.append(stack.enter_context(engine.read(prompt, pruning)).generate(sampling))
            selections = [token.selection for token in _take(streams[-1], WARM_UP) if token.selection]
            chosen.append(selections[-1].chosen if selections else None)
        for which in ORDER * rounds:
            began = time.perf_counter()
            tokens = _take(streams[which], BLOCK)
            seconds[which].append((time.perf_counter() - began) / BLOCK)
            shares[which] = tokens[-1].shares
    read = [study.accounting.bytes_per_token(*each) for each in zip(chosen, shares, strict=True)]
    return seconds, read


def _take(stream: Iterator[Token], tokens: int) -> list[Token]:
    return [next(stream) for _ in range(tokens)]


def rows_of(sparsity: float, prompts: Sequence[Timed]) -> list[dict[str, object]]:
    """A row for the full model and one for each method, from what ``in_turn`` returned for each prompt."""
    found = []
    for which, name in enumerate(("full", *METHOD_NAMES)):
        own = [seconds[which] for seconds, _ in prompts]
        ratios = [[mine / by for mine, by in zip(seconds[which], seconds[1], strict=True)] for seconds, _ in prompts]
        by_prompt = [statistics.median(of_one) for of_one in ratios]
        found.append(
            {
                "name": name,
                "sparsity": sparsity if which else 0.0,
                "beside": sparsity,
                "bytes_per_token": statistics.mean(read[which] for _, read in prompts),
                "seconds_per_token": statistics.median(s for of_one in own for s in of_one),
                "over_griffin": statistics.median(by_prompt),
                "error": statistics.stdev(by_prompt) / math.sqrt(len(by_prompt)) if len(by_prompt) > 1 else None,
                "lowest": min(by_prompt),
                "highest": max(by_prompt),
            }
        )
    return found


def tables(found: Found) -> list[Table]:
    heads = ("", "sparsity", "MB a token", "ms/token", "tokens/s", "x griffin's time", "lowest - highest")
    rows = [
        (
            each["name"],
            percent(each["beside"]) if each["sparsity"] else "-",
            f"{each['bytes_per_token'] / 1e6:.1f}",
            f"{each['seconds_per_token'] * 1e3:.2f}",
            f"{1 / each['seconds_per_token']:.1f}",
            _ratio(each),
            f"{each['lowest']:.3f} - {each['highest']:.3f}",
        )
        for each in found["rows"]
    ]
    caption = (
        f"Medians over {found['prompts']} prompts of {found['prompt']} tokens of WikiText, with {found['tokens']} "
        f"timed tokens each; the methods took turns of {BLOCK} tokens. x griffin's time: the median over the turns of "
        "a prompt, then the median over the prompts ± one standard error, and the lowest and highest prompt. The full "
        "model ran again beside each sparsity. MB a token: the weights that a token reads, on average."
    )
    return [Table(heads, rows, caption)]


def draw(found: Found) -> "Figure":
    """The time of a token over sparsity."""
    figure = new_figure(5.4, 3.4)
    (axes,) = panels(figure, 1, 1)
    for number, name in enumerate(("full", *METHOD_NAMES)):
        own = [each for each in found["rows"] if each["name"] == name]
        axes.plot(
            [each["beside"] * 100 for each in own], [each["seconds_per_token"] * 1e3 for each in own], marker="o",
            markersize=4, linewidth=1.6, color=COLOURS[number % len(COLOURS)], label=name,
        )  # fmt: skip
    axes.set_xlabel("FF sparsity, %")
    axes.set_ylabel("ms per token")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    return figure


def _ratio(row: Found) -> str:
    """With its standard error, if there is more than one prompt."""
    return f"{row['over_griffin']:.3f}" + (f" ± {row['error']:.3f}" if row["error"] is not None else "")


def _within(rows: Sequence[Found]) -> bool | None:
    """Whether each ratio is within the tolerance. None: unsure.

    It is unsure if a ratio exceeds the tolerance by less than two standard errors, or if its error is unknown.
    """
    beyond = [(each["over_griffin"] - 1 - TOLERANCE, each["error"]) for each in rows]
    if all(excess <= 0 for excess, _ in beyond):
        return True
    return False if any(error is not None and excess > 2 * error for excess, error in beyond) else None


def claims(found: Found) -> list[Claim]:
    papers, *others = METHOD_NAMES
    by_method = {method: [each for each in found["rows"] if each["name"] == method] for method in others}
    return [
        Claim(
            f"A token of {method} takes as long as one of {papers}, within {percent(TOLERANCE)}.",
            _within(rows),
            ", ".join(f"{_ratio(each)} at {percent(each['sparsity'])}" for each in rows),
        )
        for method, rows in by_method.items()
        if rows
    ]
