"""Speed of generation, full and pruned, beside transformers' generate and the memory's limit (the paper's Table 3).

All contestants run in turn in each round, in one process and on the same prompt. The figures are medians over the
rounds, with the lowest and the highest: for one token, and for a whole sequence.
"""

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from griffin import Engine, load
from griffin.errors import GriffinError
from griffin.experiments.common.experiment import Found
from griffin.experiments.common.kinds import count, file, positive, sparsity
from griffin.experiments.common.llama import LlamaCpp, add_llama_cpp_arguments, file_for_llama_cpp
from griffin.experiments.common.memory import available_bytes
from griffin.experiments.common.progress import Progress
from griffin.experiments.common.results import Claim, Table
from griffin.experiments.common.study import Study
from griffin.experiments.speed.bandwidth import Bandwidth, measure_bandwidth
from griffin.experiments.speed.beside import accounting_of_file, as_json
from griffin.experiments.speed.claims import speed_claims
from griffin.experiments.speed.contestants import (
    Contestant,
    engine_contestants,
    generate_contestants,
    llama_cpp_contestant,
    profiles,
    run_rounds,
)
from griffin.experiments.speed.findings import Findings
from griffin.experiments.speed.lengths import (
    DEFAULTS,
    SHORT,
    Lengths,
    asked_for,
    lengths,
    require_context,
    token_count,
)
from griffin.experiments.speed.plots import latency_figure, plot_latency, require_plot
from griffin.experiments.speed.rows import Row, rows
from griffin.experiments.speed.shapes import SHAPES, random_model, shape_config
from griffin.experiments.speed.tables import LEGEND, report_tables
from griffin.model.checkpoint.source import EMBEDDED_MODEL
from griffin.model.dtype import parse_dtype
from griffin.model.matrix.modules import matrices
from griffin.model.placement import parse_device
from griffin.request import METHOD_NAMES, STATISTICS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Speed of generation (Table 3)"
SEE = (
    "Each bar is the time of one token. At the same sparsity, GRIFFIN's bar should be as short as magnitude's. Both "
    "should be shorter than the full model's."
)
QUICK: Mapping[str, object] = SHORT
# The load of one core before the run. Above this, another program disturbs the times, mostly of threads that wait for
# each other. An earlier run of this program leaves a smaller load.
BUSY = 1.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_sequences(parser)
    _add_contestants(parser)
    _add_results(parser)
    parser.epilog = f"columns:\n{LEGEND}"


def _add_model(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", default=EMBEDDED_MODEL, help="hub id, directory or .gguf file (%(default)s)")
    source.add_argument(
        "--shape", metavar="NAME", help=f"random weights instead: {', '.join(SHAPES)}, or the path of a config.json"
    )
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16 or int8 (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    parser.add_argument("--threads", type=count, metavar="N", help="torch's threads on a CPU (torch's own choice)")


def _add_sequences(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prompt-tokens", type=count, metavar="N", help=f"length of the prompt ({DEFAULTS['prompt_tokens']})"
    )
    parser.add_argument("--tokens", type=token_count, metavar="N", help=f"tokens of each run ({DEFAULTS['tokens']})")
    parser.add_argument(
        "--lengths", type=lengths, nargs="+", metavar="P+G",
        help="one or more pairs of prompt tokens and generated tokens, as 2048+128 2048+2048; replaces the two above",
    )  # fmt: skip
    parser.add_argument("--rounds", type=count, metavar="N", help=f"rounds that count ({DEFAULTS['rounds']})")
    parser.add_argument("--minutes", type=positive, metavar="M", help="start no round that would end later than this")
    parser.add_argument("--quick", action="store_true", help="a first look: 64+16 tokens, 2 rounds")


def _add_contestants(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sparsities", type=sparsity, nargs="+", metavar="S", default=[0.5, 0.75],
        help="fractions of neurons removed, 0 to below 1 (0.5 0.75); the full model always runs",
    )  # fmt: skip
    parser.add_argument(
        "--statistics", choices=STATISTICS, nargs="+", default=["magnitude", "flocking"],
        help="the statistics that choose neurons, of the paper's method (magnitude flocking)",
    )  # fmt: skip
    parser.add_argument("--methods", choices=METHOD_NAMES, nargs="+", default=["griffin"], help="the methods (griffin)")
    parser.add_argument("--no-generate", action="store_true", help="leave transformers' generate out")
    parser.add_argument(
        "--compiled-generate", action="store_true", help="also time generate with a static cache, compiled (CUDA)"
    )
    add_llama_cpp_arguments(parser)


def _add_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=file, metavar="FILE", help="write the figures there, not to standard output")
    parser.add_argument("--plot", type=_plot_file, metavar="FILE", help="draw the figures: .svg or .png")
    parser.add_argument(
        "--profile", type=file, metavar="FILE", help="write there where each contestant spends the time of a token"
    )


def run(arguments: argparse.Namespace) -> None:
    """Print tables, and one line of JSON unless --json names a file. Draw a plot if --plot names one.

    Raises:
        GriffinError, ValueError: one line for the user.
    """
    started, load_average = time.monotonic(), os.getloadavg()[0]
    device = parse_device(arguments.device)
    asked, rounds = asked_for(arguments)
    if arguments.compiled_generate and (arguments.no_generate or device.type != "cuda"):
        raise ValueError("--compiled-generate: needs a CUDA device, and cannot go with --no-generate")
    peer_file = file_for_llama_cpp(arguments.llama_cpp, _own_model(arguments)) if arguments.llama_cpp else None
    _require_writable(arguments)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.shape:
        require_context(asked, int(shape_config(arguments.shape).max_position_embeddings))
    try:
        model, formats = _model(arguments, device)
        findings = _compare(arguments, model, formats, peer_file, asked, rounds, started)
    except torch.OutOfMemoryError as error:
        raise GriffinError(f"not enough memory on {device}: {str(error).splitlines()[0]}") from error
    print(findings.text())
    if device.type == "cpu" and load_average > BUSY * (os.cpu_count() or 1):
        print(
            f"\nThe machine was busy before this began (load average {load_average:.1f}); on an idle one these differ."
        )
    _write(arguments, {**findings.as_json(), "load_average": load_average})


def measure(study: Study, arguments: argparse.Namespace) -> Found:
    """Time the engine alone, full and pruned. Times are never taken from the ledger."""
    started, engine = time.monotonic(), study.engine
    asked, rounds = asked_for(arguments)
    require_context(asked, engine.context_length)
    bandwidth = measure_bandwidth(engine.device)
    contestants = engine_contestants(
        engine, [s for s in arguments.sparsities if s], arguments.statistics, arguments.methods
    )
    with _whole_prompts(engine):
        settings, bandwidth = _timed(arguments, engine, bandwidth, contestants, asked, rounds, started)
    model, formats = study.checkpoint.model, study.checkpoint.formats
    findings = Findings(study.name, bool(arguments.shape), model, formats, engine, bandwidth, None, None, settings)
    return findings.as_json()


def tables(found: Found) -> list[Table]:
    return report_tables(found)


def draw(found: Found) -> "Figure":
    return latency_figure(found)


def claims(found: Found) -> list[Claim]:
    return speed_claims(found)


@contextmanager
def _whole_prompts(engine: Engine) -> Iterator[None]:
    """Read each prompt as if it were the first: use and keep no beginnings of prompts."""
    store = engine.prefixes
    budget, store.budget_bytes = store.budget_bytes, 0
    try:
        yield
    finally:
        store.budget_bytes = budget


def _compare(
    arguments: argparse.Namespace,
    model: PreTrainedModel,
    formats: str,
    peer_file: Path | None,
    asked: list[Lengths],
    rounds: int,
    started: float,
) -> Findings:
    """Time the engine and everything the flags put beside it. ``peer_file``: llama.cpp's, if it runs."""
    generate_reads, own_copy, beside = None, None, None
    if not arguments.no_generate:
        # The engine changes the layout of the weights. If a second copy fits, generate keeps the checkpoint's layout.
        own_copy = copy.deepcopy(model) if _copy_fits(model) else None
        generate_reads = "a copy of its own" if own_copy is not None else "the engine's weights"
    engine = Engine(model)
    require_context(asked, engine.context_length)
    engine.warm_up()
    bandwidth = measure_bandwidth(engine.device)

    contestants = engine_contestants(
        engine, [s for s in arguments.sparsities if s], arguments.statistics, arguments.methods
    )
    if generate_reads:
        contestants += generate_contestants(own_copy or model, compiled=arguments.compiled_generate)
    with ExitStack() as stack:
        if peer_file is not None:
            longest, threads = max(map(sum, asked)), torch.get_num_threads()
            peer = stack.enter_context(LlamaCpp(peer_file, longest, threads, arguments.llama_cpp_python))
            peer.require_vocabulary(engine.vocabulary_size)
            accounting = accounting_of_file(engine.accounting, model.dtype, peer_file)
            contestants.append(llama_cpp_contestant(peer, accounting))
            beside = as_json(peer_file, accounting, peer.facts)
        settings, bandwidth = _timed(arguments, engine, bandwidth, contestants, asked, rounds, started)
        if arguments.profile:
            prompt_tokens, _ = asked[0]
            arguments.profile.write_text(profiles(contestants, _prompt(engine.vocabulary_size, prompt_tokens)))
    name, is_random = arguments.shape or arguments.model, bool(arguments.shape)
    return Findings(name, is_random, model, formats, engine, bandwidth, generate_reads, beside, settings)


def _timed(
    arguments: argparse.Namespace,
    engine: Engine,
    bandwidth: Bandwidth,
    contestants: list[Contestant],
    asked: list[Lengths],
    rounds: int,
    started: float,
) -> tuple[list[tuple[Lengths, list[Row]]], Bandwidth]:
    """The rows of each pair of lengths. All lengths share the minutes that --minutes allows.

    Returns:
        Also the bandwidth, measured again after all runs.
    """
    timed = []
    with Progress(len(asked) * len(contestants) * (rounds + 1)) as progress:
        for number, (prompt_tokens, tokens) in enumerate(asked, start=1):
            share = arguments.minutes * 60 * number / len(asked) if arguments.minutes else math.inf
            prompt = _prompt(engine.vocabulary_size, prompt_tokens)
            timed.append(run_rounds(contestants, prompt, tokens, rounds, progress, started + share))
    bandwidth = bandwidth.or_faster(measure_bandwidth(engine.device))
    settings = [
        (each, rows(contestants, runs, engine.accounting, each[0] + each[1] // 2, bandwidth.read))
        for each, runs in zip(asked, timed, strict=True)
    ]
    return settings, bandwidth


def _model(arguments: argparse.Namespace, device: torch.device) -> tuple[PreTrainedModel, str]:
    """The model, and how its weights are held."""
    if arguments.shape:
        # Called only once, because for auto this measures which dtype is fastest.
        dtype = parse_dtype(arguments.dtype, device)
        return random_model(arguments.shape, dtype, device), str(dtype).removeprefix("torch.")
    checkpoint = load(arguments.model, dtype=arguments.dtype, device=arguments.device)
    return checkpoint.model, checkpoint.formats


def _own_model(arguments: argparse.Namespace) -> str | None:
    """What --model names; None for random weights."""
    return None if arguments.shape else str(arguments.model)


def _copy_fits(model: PreTrainedModel) -> bool:
    """Whether memory has room for a second copy and the engine's buffers, which are no larger than the weights."""
    available = available_bytes(model.device)
    held = sum(parameter.nbytes for parameter in model.parameters()) + sum(matrix.bytes for matrix in matrices(model))
    return available is None or available > 2.2 * held


def _prompt(vocabulary: int, tokens: int) -> list[int]:
    """Random tokens, the same in each run."""
    found: list[int] = torch.randint(vocabulary, (tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    return found


def _require_writable(arguments: argparse.Namespace) -> None:
    """Fail before the measurement, not after it."""
    if arguments.plot:
        require_plot()
    for flag, path in (("--json", arguments.json), ("--plot", arguments.plot), ("--profile", arguments.profile)):
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        except OSError as error:
            raise ValueError(f"{flag}: cannot write '{path}': {error.strerror}") from error


def _write(arguments: argparse.Namespace, found: Found) -> None:
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    else:
        print(json.dumps(found))
    if arguments.plot:
        plot_latency(found, arguments.plot)


def _plot_file(text: str) -> Path:
    path = file(text)
    if path.suffix not in (".svg", ".png"):
        raise argparse.ArgumentTypeError(f"'{text}' ends neither in .svg nor in .png")
    return path
