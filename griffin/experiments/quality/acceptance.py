"""Verified modes: how many drafts they accept, how many parameters they read, and their speed at each sparsity.

The server's own decode path continues prompts of WikiText with each mode, method and sparsity. After each run, the full
model continues the same prompt, and the two speeds are compared.
"""

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from griffin import Pruning, Sampling, Verification, Verified
from griffin.experiments.common import kinds
from griffin.experiments.common.experiment import Found
from griffin.experiments.common.pictures import COLOURS, INK, new_figure, panels
from griffin.experiments.common.progress import Progress
from griffin.experiments.common.results import Claim, Table, percent
from griffin.experiments.common.study import Study
from griffin.experiments.common.texts import read_text
from griffin.experiments.common.variants import name_of
from griffin.request import METHOD_NAMES, MODES, MethodName, ModeName

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Acceptance and speed of verified modes"
SEE = "A mode is slower than the full model if its drafts are rejected so often that their lower cost does not help."
QUICK = {"prompts": 2, "sparsities": [0.5], "tokens": 32}
SPARSITIES = [0.25, 0.5, 0.75]
SEED = 1


@dataclass(frozen=True, slots=True)
class Way:
    """What one row measures. Temperature 0 is greedy."""

    method: MethodName
    sparsity: float
    verification: Verification
    temperature: float

    @property
    def name(self) -> str:
        kind = "sampled" if self.temperature else "greedy"
        if self.verification.draft == "ngram":
            return f"{self.verification.mode}, n-grams, {kind}"
        return f"{self.verification.mode}, {self.method}, {kind}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds.add_sparsities(parser, SPARSITIES, "0.25 0.5 0.75")
    parser.add_argument("--prompts", type=kinds.count, default=8, help="places in the text (%(default)s)")
    parser.add_argument("--prompt", type=kinds.count, default=256, help="tokens of each (%(default)s)")
    parser.add_argument("--tokens", type=kinds.count, default=96, help="tokens generated from each (%(default)s)")
    verified = MODES[1:]
    parser.add_argument("--modes", choices=verified, nargs="+", default=verified, help="modes (all that verify)")
    parser.add_argument(
        "--methods", choices=METHOD_NAMES, nargs="+", default=METHOD_NAMES, help="how neurons are chosen (all)"
    )
    parser.add_argument("--greedy", action="store_true", help="only greedy runs, without those at temperature 1")


def ways(
    sparsities: Sequence[float], modes: Sequence[ModeName], methods: Sequence[MethodName], greedy: bool
) -> list[Way]:
    found = []
    for temperature in (0.0,) if greedy else (0.0, 1.0):
        for method, mode, sparsity in product(methods, modes, sparsities):
            found.append(Way(method, sparsity, Verification(mode, "pruned"), temperature))
        if "lossless" in modes:
            found.append(Way("griffin", 0.0, Verification("lossless", draft="ngram"), temperature))
    return found


def measure(study: Study, arguments: argparse.Namespace) -> Found:
    """
    Returns:
        ``rows``: one for each way, over all prompts.

    Raises:
        ValueError: the text is too short for this many prompts; names the flag.
    """
    sparsities = kinds.removing(arguments.sparsities)
    text = read_text(study, "wikitext")
    windows = text.windows(arguments.prompt, arguments.prompts, "--prompt", "--prompts")
    compared = ways(sparsities, arguments.modes, arguments.methods, arguments.greedy)
    runs: dict[int, list[dict[str, Any]]] = {number: [] for number in range(len(compared))}
    with Progress(len(windows) * len(compared)) as progress:
        for place, window in enumerate(windows):
            prompt = text.begun(window)
            for number, way in enumerate(compared):
                progress.begin(f"prompt {place + 1} of {len(windows)}, {way.name} {percent(way.sparsity)}")
                question = {"acceptance": name_of(prompt), "way": asdict(way), "tokens": arguments.tokens}
                runs[number].append(
                    study.ledger.once(question, lambda: run_beside(study, prompt, way, arguments.tokens))  # noqa: B023
                )
                progress.advance()
    rows = [row(way, runs[number], study.accounting.total) for number, way in enumerate(compared)]
    return {"prompt": arguments.prompt, "tokens": arguments.tokens, "prompts": len(windows), "rows": rows}


def run_beside(study: Study, prompt: Sequence[int], way: Way, tokens: int) -> dict[str, Any]:
    """Run one way and, right after it, the full model. Seconds count from the first token on."""
    sampling = Sampling(temperature=way.temperature, seed=SEED, max_tokens=tokens, ignore_eos=True)
    pruning = Pruning(way.sparsity, method=way.method)
    with study.engine.read(prompt, pruning) as read:
        own_ids, own_s, verified = _timed(read.generate(sampling, verification=way.verification))
    with study.engine.read(prompt, Pruning()) as read:
        full_ids, full_s, _ = _timed(read.generate(sampling))
    return {
        "seconds": own_s,
        "full_seconds": full_s,
        "same": own_ids == full_ids,
        "verified": asdict(verified or Verified()),
    }


def _timed(tokens: Any) -> tuple[list[int], float, Verified | None]:
    ids, verified, began = [], None, 0.0
    for token in tokens:
        began = began or time.perf_counter()
        ids.append(token.id)
        verified = token.verified or verified
    return ids, time.perf_counter() - began, verified


def row(way: Way, runs: Sequence[Mapping[str, Any]], parameters: int) -> dict[str, Any]:
    names = ("tokens", "drafted", "accepted", "passes", "parameters_read")
    total = {name: sum(run["verified"][name] for run in runs) for name in names}
    return {
        "name": way.name,
        "mode": way.verification.mode,
        "method": way.method,
        "sparsity": way.sparsity,
        "temperature": way.temperature,
        "acceptance": total["accepted"] / total["drafted"] if total["drafted"] else None,
        "tokens_per_pass": total["tokens"] / total["passes"] if total["passes"] else None,
        "parameters_read": total["parameters_read"] / total["tokens"] / parameters,
        "speed": statistics.median(run["full_seconds"] / run["seconds"] for run in runs),
        "same": sum(run["same"] for run in runs) / len(runs),
    }


def tables(found: Found) -> list[Table]:
    heads = ("", "sparsity", "accepted", "tokens a pass", "parameters read", "speed", "as the full model")
    rows = [
        (
            each["name"],
            percent(each["sparsity"]) if each["sparsity"] else "-",
            "-" if each["acceptance"] is None else percent(each["acceptance"]),
            "-" if each["tokens_per_pass"] is None else f"{each['tokens_per_pass']:.2f}",
            f"{each['parameters_read']:.2f}x",
            f"{each['speed']:.2f}x",
            percent(each["same"]),
        )
        for each in found["rows"]
    ]
    caption = (
        f"{found['prompts']} prompts of {found['prompt']} tokens of WikiText, each continued by {found['tokens']} "
        "tokens. Parameters read for each token, and speed in tokens per second, are relative to the full model's. The "
        "last column counts the texts that equal the full model's, token by token."
    )
    return [Table(heads, rows, caption)]


def draw(found: Found) -> "Figure":
    """Acceptance on the left, speed on the right, over sparsity, for greedy runs."""
    figure = new_figure(8.4, 3.4)
    left, right = panels(figure, 1, 2)
    greedy = [each for each in found["rows"] if not each["temperature"] and each["sparsity"]]
    for number, name in enumerate(dict.fromkeys(each["name"] for each in greedy)):
        own = [each for each in greedy if each["name"] == name]
        places = [each["sparsity"] * 100 for each in own]
        for axes, key, factor in ((left, "acceptance", 100), (right, "speed", 1)):
            axes.plot(
                places, [(each[key] or 0) * factor for each in own], marker="o", markersize=4, linewidth=1.6,
                color=COLOURS[number % len(COLOURS)], label=name,
            )  # fmt: skip
    left.set_ylabel("drafts that stay, %")
    right.set_ylabel("tokens per second / full model's")
    right.axhline(1, color=INK, linewidth=0.8)
    for axes in (left, right):
        axes.set_xlabel("FF sparsity of the drafts, %")
        axes.set_ylim(bottom=0)
    left.legend(frameon=False, labelcolor=INK, fontsize=8)
    return figure


def claims(found: Found) -> list[Claim]:
    exact = [each for each in found["rows"] if each["mode"] == "lossless"]
    if not exact:
        return []
    return [
        Claim(
            "The mode lossless generates the same tokens as the full model.",
            all(each["same"] == 1 for each in exact),
            ", ".join(f"{percent(each['same'])} ({each['name']}, {percent(each['sparsity'])})" for each in exact),
        )
    ]
