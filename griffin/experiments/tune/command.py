"""Find the sparsity that your own prompts allow: what it costs in quality, and how much faster it is.

The full model continues each prompt, unless the prompt brings its own completion. The pruned model then predicts the
same continuation, token by token, and its predictions are compared with the full model's. Prompts are measured whole
and also cut to their last tokens, because a longer prompt chooses better neurons (the paper's Figure 5).

The result is a table, a recommendation and, with matplotlib, a picture. The losses are also kept for requests with
sparsity "auto": the server finds them in its cache directory at its next start. (Not with --quick.)

The full model generates once for each prompt and length, and each sparsity reads the result once. With 30 prompts and
the default model (135 million parameters) this takes some minutes on two CPU cores; with ten times the parameters, ten
times as long. A stopped run goes on when it is started again, except that speeds are timed anew.

examples:
  python -m griffin tune --prompts my_prompts.jsonl --quick
  python -m griffin tune --prompts my_prompts.jsonl --model Qwen/Qwen3-0.6B --sparsities 0.25 0.5
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

from griffin.experiments.common.kinds import add_cache_dir, count, file, positive, sparsity, whole
from griffin.experiments.common.pictures import NEEDED, redraw
from griffin.experiments.common.results import write_json, write_whole
from griffin.experiments.common.study import Study, add_model_arguments, open_model
from griffin.experiments.tune.advice import Cell, advise, sentences
from griffin.experiments.tune.measurement import Length, Measurement, left_out, measure, require_fit
from griffin.experiments.tune.presentation import LEGEND, draw, table
from griffin.experiments.tune.prompts import Case, encode, read_entries
from griffin.experiments.tune.regression import fit, sentence
from griffin.method.auto import LossTable
from griffin.method.methods import METHODS
from griffin.method.preparation import losses_path
from griffin.model.identity import identity
from griffin.request import DEFAULT_METHOD, METHOD_NAMES, MethodName, Pruning

ALL = "all"
DEFAULTS: dict[str, Any] = {"tokens": 64, "limit": None, "rounds": 5}
QUICK: dict[str, Any] = {"tokens": 16, "limit": 12, "rounds": 2}
# The load of one core before the run. Above this, another program disturbs the speeds.
BUSY = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    _add_prompts(parser)
    _add_judgement(parser)
    _add_results(parser)


def _add_prompts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prompts", type=file, required=True, metavar="FILE",
        help='30 or more real prompts, at least 8. .jsonl: one object a line with "prompt" (a text) or "messages" (for '
        'chat, as in OpenAI\'s API). "completion" is optional: the continuation to judge on; messages may end with the '
        "assistant's instead. "
        ".txt: one prompt a line, or prompts of several lines with a line --- between them",
    )  # fmt: skip
    parser.add_argument("--limit", type=count, metavar="N", help="only the first N prompts of the file (all)")
    parser.add_argument(
        "--prompt-lengths", type=_length, nargs="+", metavar="P", default=[64, 256, None],
        help="cut prompts to their last P tokens (after the model's start token, if it has one); shorter prompts are "
        "left out. all: whole prompts (64 256 all)",
    )  # fmt: skip
    parser.add_argument(
        "--tokens", type=partial(whole, lowest=2), metavar="N",
        help=f"most tokens to generate and judge for each prompt; about the length of your answers "
        f"({DEFAULTS['tokens']})",
    )  # fmt: skip
    parser.add_argument(
        "--temperature", type=_temperature, metavar="T", default=1.0,
        help="temperature at which the full model continues prompts without a completion; 0 is greedy. At 1 the "
        "expected log-ratio of the perplexities is the KL divergence (%(default)g)",
    )  # fmt: skip


def _add_judgement(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sparsities", type=sparsity, nargs="+", metavar="S", default=[0.25, 0.5, 0.75],
        help="fractions of feed-forward weights that tokens do not read, 0 to below 1 (0.25 0.5 0.75); the full model "
        "always runs",
    )  # fmt: skip
    parser.add_argument(
        "--method", choices=METHOD_NAMES, default=DEFAULT_METHOD, help="how neurons are chosen (%(default)s)"
    )
    parser.add_argument(
        "--tolerance", type=positive, metavar="PERCENT", default=5.0,
        help="the recommendation allows this much perplexity above the full model's (%(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true",
        help=f"a first look: {QUICK['limit']} prompts, {QUICK['tokens']} tokens, fewer rounds of timing",
    )  # fmt: skip


def _add_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("results"),
        help="directory for results. It gets a folder with the model's name, with tune.json, tune.svg and what a "
        "stopped run needs to continue (%(default)s)",
    )  # fmt: skip
    add_cache_dir(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print a table and a recommendation. Write both, with a picture if matplotlib is installed.

    Raises:
        GriffinError, ValueError: one line for the user. Everything computed so far is kept.
    """
    load_average = os.getloadavg()[0]
    _settle(arguments)
    entries = read_entries(arguments.prompts)[: arguments.limit]
    model, dtype, device = arguments.model, arguments.dtype, arguments.device
    study = open_model(model, dtype, device, None, arguments.out, arguments.cache_dir, arguments.quantize)
    study.engine.require(Pruning(0.5, method=arguments.method))
    cases = [encode(entry, study.tokenizer) for entry in entries]
    require_fit(study, cases, arguments.prompt_lengths, arguments.tokens)
    found = {**_found(study, cases, arguments, measure(study, cases, arguments)), "load_average": load_average}
    if found["auto"]:
        path = _keep_for_auto(study, arguments.method, LossTable(**found["auto"]), arguments.cache_dir)
        found["advice"].append(f"It is in {path}; the server finds it there at its next start.")
    write_json(study.folder / "tune.json", found)
    picture = study.folder / "tune.svg"
    drawn = redraw(picture, partial(draw, found))
    print(_heading(found, cases), table(found).text(), LEGEND, "\n".join(found["advice"]), sep="\n\n")
    if study.checkpoint.model.device.type == "cpu" and load_average > BUSY * (os.cpu_count() or 1):
        print(
            f"\nThe machine was busy before this began (load average {load_average:.1f}); speeds differ on an idle one."
        )
    if drawn:
        print(f"\nresults: {study.folder / 'tune.json'}, {picture}")
    else:
        print(f"\nresults: {study.folder / 'tune.json'}; no picture was drawn: {NEEDED}")


def _settle(arguments: argparse.Namespace) -> None:
    """Give missing flags their defaults. Sort lists and drop repeated values."""
    for name, value in (QUICK if arguments.quick else DEFAULTS).items():
        if getattr(arguments, name, None) is None:
            setattr(arguments, name, value)
    arguments.sparsities = sorted({s for s in arguments.sparsities if s})
    if not arguments.sparsities:
        raise ValueError("--sparsities: 0 is the full model, which always runs; name one above 0")
    arguments.prompt_lengths = sorted(set(arguments.prompt_lengths), key=lambda length: (length is None, length or 0))


def _found(study: Study, cases: Sequence[Case], arguments: argparse.Namespace, measured: Measurement) -> dict[str, Any]:
    """The contents of tune.json."""
    tolerance = arguments.tolerance / 100
    advice = advise([cell for cell in measured.cells if cell.sparsity], tolerance)
    auto = None if arguments.quick else fit(measured.losses, arguments.method)
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
        "rows": [_row(study, cell, arguments.method) for cell in measured.cells],
        "recommended": [
            {"sparsity": step.sparsity, "from_prompt_tokens": step.prompt_tokens} for step in advice.steps if step.pays
        ],
        "auto": None if auto is None else asdict(auto),
        "advice": [
            *left_out(cases, measured.ended),
            *sentences(advice, tolerance, arguments.tokens),
            *([] if arguments.quick else [sentence(auto)]),
        ],
    }


def _row(study: Study, cell: Cell, method: MethodName) -> dict[str, Any]:
    active, _ = METHODS[method].reads(cell.sparsity, study.accounting)
    low, high = (None, None) if cell.error is None else cell.spread
    return {
        "prompt_tokens": cell.prompt_tokens,
        "sparsity": cell.sparsity,
        "prompts": cell.prompts,
        **asdict(cell.speed),
        "active_parameters": active,
        "parameters": study.accounting.total,
        "perplexity_percent": cell.increase * 100,
        "low_percent": None if low is None else low * 100,
        "high_percent": None if high is None else high * 100,
        "kl": cell.divergence,
        "agreement": cell.agreement,
    }


def _keep_for_auto(study: Study, method: MethodName, losses: LossTable, cache_dir: Path | None) -> Path:
    """Write the table for sparsity auto where the server looks for it."""
    model = study.checkpoint.model
    path = losses_path(model, method, cache_dir)
    write_whole(path, losses.packed(identity(model)))
    return path


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
