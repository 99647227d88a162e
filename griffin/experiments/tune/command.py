"""A user's own prompts: which sparsity they allow, what it costs, and how much faster it is.

Each prompt is continued by the full model (or by its own completion). The kept neurons then predict the same
continuation, token by token, and are compared with the full model. A prompt is taken whole, and cut to its last
tokens, for neurons are chosen better on longer prompts (the paper's Figure 5). A run that was stopped goes on.

What is found is kept for requests with sparsity "auto" too, in the user's cache, where the server finds it at its next
start; but not by --quick.
"""

import argparse
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from griffin.errors import GriffinError, InvalidRequest
from griffin.experiments.common.arguments import add_cache_dir, count, file, positive, sparsity, whole
from griffin.experiments.common.pictures import require_matplotlib, save
from griffin.experiments.common.progress import Progress
from griffin.experiments.common.results import write_json, write_whole
from griffin.experiments.common.study import Study, add_model_arguments, open_model
from griffin.experiments.tune.advice import Cell, advise, sentences
from griffin.experiments.tune.auto import Measured, fit, sentence
from griffin.experiments.tune.figures import LEGEND, draw, length_name, table
from griffin.experiments.tune.losses import Loss, losses
from griffin.experiments.tune.prompts import Case, encode, read_entries
from griffin.experiments.tune.speed import measure_speeds
from griffin.method.auto import LossTable
from griffin.method.preparation import losses_path, measured_as
from griffin.request import METHOD_NAMES, Pruning

ALL = "all"
DEFAULTS: dict[str, Any] = {"tokens": 64, "limit": None, "rounds": 5}
QUICK: dict[str, Any] = {"tokens": 16, "limit": 12, "rounds": 2}
# Of each length, so many are timed in turn.
TIMED_PROMPTS = 3
# Load of each core before the run, beyond which its speeds are not this machine's.
BUSY = 0.5

Length = int | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prompts", type=file, required=True, metavar="FILE",
        help='.jsonl: one object a line with "prompt" (a text) or "messages" (OpenAI\'s, put to the model by its chat '
        'template), and perhaps "completion", the continuation to judge on (messages that end with the assistant\'s '
        "have it there). .txt: prompts of several lines with a line --- between them, or one prompt a line. Use real "
        "ones, 30 or more",
    )  # fmt: skip
    add_model_arguments(parser)
    parser.add_argument(
        "--sparsities", type=sparsity, nargs="+", metavar="S", default=[0.25, 0.5, 0.75],
        help="fractions of neurons removed, 0 to below 1 (0.25 0.5 0.75); the full model always runs",
    )  # fmt: skip
    add_cache_dir(parser)
    parser.add_argument("--method", choices=METHOD_NAMES, default="griffin", help="of choosing neurons (%(default)s)")
    parser.add_argument(
        "--prompt-lengths", type=_length, nargs="+", metavar="P", default=[64, 256, None],
        help="cut prompts to P tokens, their last ones behind the model's start token if it has one, to see which "
        "lengths allow more; shorter ones are left out there. all leaves them whole (64 256 all)",
    )  # fmt: skip
    parser.add_argument(
        "--tokens", type=partial(whole, lowest=2), metavar="N",
        help=f"to generate and judge for each prompt, at most; as long as your answers are ({DEFAULTS['tokens']})",
    )  # fmt: skip
    parser.add_argument(
        "--tolerance", type=positive, metavar="PERCENT", default=5.0,
        help="of perplexity above the full model's, for the recommendation (%(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--temperature", type=_temperature, metavar="T", default=1.0,
        help="at which the full model continues prompts without a completion; 0 is greedy. At 1 the expected "
        "log-ratio of the perplexities is the KL divergence (%(default)g)",
    )  # fmt: skip
    parser.add_argument("--limit", type=count, metavar="N", help="take the first N prompts of the file only (all)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("results"),
        help="tune.json and tune.svg go to a folder of the model's name in it, and what is found is kept there "
        "(%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true",
        help=f"a first look: {QUICK['limit']} prompts, {QUICK['tokens']} tokens, fewer rounds of timing",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Print a table and a recommendation, and write both with a picture.

    Raises:
        GriffinError, ValueError: with one line for the user; what was computed is kept.
    """
    require_matplotlib()
    load_average = os.getloadavg()[0]
    _settle(arguments)
    entries = read_entries(arguments.prompts)[: arguments.limit]
    study = open_model(arguments.model, arguments.dtype, arguments.device, None, arguments.out)
    study.engine.require(Pruning(0.5, method=arguments.method))
    cases = [encode(entry, study.tokenizer) for entry in entries]
    require_fit(study, cases, arguments.prompt_lengths, arguments.tokens)
    found = {**measure(study, cases, arguments), "load_average": load_average}
    if found["auto"]:
        model, method = study.checkpoint.model, arguments.method
        path, name = losses_path(model, method), measured_as(model, method, study.preparation.calibration)
        write_whole(path, LossTable(**found["auto"]).packed(name))
        found["advice"].append(f"It is in {path}, where the server finds it at its next start.")
    write_json(study.folder / "tune.json", found)
    save(draw(found), study.folder / "tune.svg")
    print(_heading(found, cases), table(found).text(), LEGEND, "\n".join(found["advice"]), sep="\n\n")
    if study.checkpoint.model.device.type == "cpu" and load_average > BUSY * (os.cpu_count() or 1):
        print(
            f"\nThe machine was busy before this began (load average {load_average:.1f}); speeds differ on an idle one."
        )
    print(f"\nresults: {study.folder / 'tune.json'}, {study.folder / 'tune.svg'}")


def measure(study: Study, cases: Sequence[Case], arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures, as JSON holds them."""
    by_length = _by_length(cases, arguments.prompt_lengths)
    runs = (arguments.rounds + 1) * (len(arguments.sparsities) + 1)
    cells: list[Cell] = []
    measured: list[Measured] = []
    with Progress(sum(map(len, by_length.values())) + len(by_length) * runs) as progress:
        for length, group in by_length.items():
            cells += _cells(study, length, group, arguments, progress, measured)
    if not cells:
        raise GriffinError(f"--prompts: each prompt of '{arguments.prompts}' is answered by a single token, the end")
    tolerance = arguments.tolerance / 100
    advice = advise([cell for cell in cells if cell.sparsity], tolerance)
    auto = None if arguments.quick else fit(measured, arguments.method)
    return {
        "experiment": "tune",
        **study.facts(),
        "data": arguments.prompts.name,
        "prompts": len(cases),
        "completions": sum(bool(case.completion) for case in cases),
        "method": arguments.method,
        "tokens": arguments.tokens,
        "temperature": arguments.temperature,
        "tolerance_percent": arguments.tolerance,
        "rounds": arguments.rounds,
        "threads": torch.get_num_threads(),
        "rows": [_row(study, cell) for cell in cells],
        "recommended": [
            {"sparsity": step.sparsity, "from_prompt_tokens": step.prompt_tokens} for step in advice.steps if step.pays
        ],
        "auto": None if auto is None else asdict(auto),
        "advice": [
            *sentences(advice, tolerance, arguments.tokens),
            *([] if arguments.quick else [sentence(auto)]),
        ],
    }


def require_fit(study: Study, cases: Sequence[Case], lengths: Sequence[Length], tokens: int) -> None:
    """
    Raises:
        ValueError, GriffinError: no prompt is long enough, or one does not fit; names the flag, or file and line.
    """
    context, longest = study.context_length, max(len(case.ids) for case in cases)
    for length in lengths:
        if length is not None and length + tokens > context:
            raise ValueError(
                f"--prompt-lengths: {length} and --tokens {tokens} do not fit into this model's context of {context}"
            )
    if all(length is not None and length > longest for length in lengths):
        raise ValueError(f"--prompt-lengths: the longest prompt has {longest} tokens; take shorter lengths, or all")
    for case in cases:
        if None in lengths and len(case.ids) + tokens > context:
            raise GriffinError(
                f"{case.where}: the prompt has {len(case.ids)} tokens, which with --tokens {tokens} exceeds this "
                f"model's context of {context}; shorten it, or leave all out of --prompt-lengths"
            )
        ids = [*case.ids, *case.completion]
        try:
            # The lowest and the highest, for their length has been looked at.
            study.engine.check([min(ids), max(ids)])
        except InvalidRequest as error:
            raise GriffinError(f"{case.where}: {error}") from None


def _settle(arguments: argparse.Namespace) -> None:
    """Flags that were not given get their defaults; lists are put in order, each value once."""
    for name, value in (QUICK if arguments.quick else DEFAULTS).items():
        if getattr(arguments, name, None) is None:
            setattr(arguments, name, value)
    arguments.sparsities = sorted({s for s in arguments.sparsities if s})
    if not arguments.sparsities:
        raise ValueError("--sparsities: 0 is the full model, which always runs; name one above 0")
    arguments.prompt_lengths = sorted(set(arguments.prompt_lengths), key=lambda length: (length is None, length or 0))


def _by_length(cases: Sequence[Case], lengths: Sequence[Length]) -> dict[Length, list[Case]]:
    """For each length that some prompt has, the prompts cut to it, those that are then the same once."""
    cut = {length: [short for case in cases if (short := case.last(length))] for length in lengths}
    return {length: list(dict.fromkeys(group)) for length, group in cut.items() if group}


def _cells(
    study: Study,
    length: Length,
    group: Sequence[Case],
    arguments: argparse.Namespace,
    progress: Progress,
    measured: list[Measured],
) -> list[Cell]:
    """Of one length: the full model, then each sparsity. None if no prompt has anything to judge.

    Args:
        measured: what is found of each prompt is added to it.
    """
    judged = []
    for number, case in enumerate(group, start=1):
        progress.begin(f"{length_name(length)}, prompt {number} of {len(group)}")
        settings = arguments.sparsities, arguments.tokens, arguments.temperature, arguments.method
        if found := losses(study, case, *settings):
            measured += [Measured(case.where, len(case.ids), s, loss) for s, loss in found.items()]
            judged.append({0.0: Loss.none(found[arguments.sparsities[0]].tokens), **found})
        progress.advance()
    if not judged:
        return []
    timed = [case.ids for case in group[:: max(1, len(group) // TIMED_PROMPTS)][:TIMED_PROMPTS]]
    speeds = measure_speeds(
        study.engine, timed, arguments.sparsities, arguments.tokens, arguments.rounds, progress, arguments.method
    )
    return [Cell.of(length, s, [found[s] for found in judged], speed) for s, speed in speeds.items()]


def _row(study: Study, cell: Cell) -> dict[str, Any]:
    accounting = study.accounting
    low, high = (None, None) if cell.error is None else cell.spread
    return {
        "prompt_tokens": cell.prompt_tokens,
        "sparsity": cell.sparsity,
        "prompts": cell.prompts,
        **asdict(cell.speed),
        "active_parameters": accounting.active(accounting.kept(cell.sparsity)),
        "parameters": accounting.total,
        "perplexity_percent": cell.increase * 100,
        "low_percent": None if low is None else low * 100,
        "high_percent": None if high is None else high * 100,
        "kl": cell.divergence,
        "agreement": cell.agreement,
    }


def _heading(found: dict[str, Any], cases: Sequence[Case]) -> str:
    sizes = [len(case.ids) for case in cases]
    written = found["prompts"] - found["completions"]
    return (
        f"{found['model']}, {found['dtype']}, {found['device_name']}\n"
        f"{found['data']}: {len(sizes)} prompts of {min(sizes)} to {max(sizes)} tokens (median "
        f"{statistics.median_low(sizes)}), each continued by up to {found['tokens']} tokens: {written} by the full "
        f"model at temperature {found['temperature']:g}, {found['completions']} by their completions"
    )


def _length(text: str) -> Length:
    return None if text == ALL else count(text)


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of 0 or more")
    return value
