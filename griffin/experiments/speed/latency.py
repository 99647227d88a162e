"""Speed of generation, full and pruned, beside transformers' generate and the memory's limit (the paper's Table 3).

All contestants run in turn in each round, in one process and on the same prompt. Shown are medians over the
rounds with the lowest and the highest: per token, and for a whole sequence.
"""

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from griffin import Engine, load
from griffin.errors import GriffinError
from griffin.experiments.common.arguments import count, file, positive, sparsity, whole
from griffin.experiments.common.memory import available_bytes, device_name
from griffin.experiments.common.progress import Progress
from griffin.experiments.common.results import Claim, Table
from griffin.experiments.common.study import Study, when
from griffin.experiments.speed.bandwidth import Bandwidth, measure_bandwidth
from griffin.experiments.speed.contestants import (
    Contestant,
    engine_contestants,
    generate_contestants,
    llama_cpp_contestant,
    profiles,
    run_rounds,
)
from griffin.experiments.speed.figures import Row, rows
from griffin.experiments.speed.plots import latency_figure, plot_latency, require_plot
from griffin.experiments.speed.shapes import SHAPES, random_model, shape_config
from griffin.experiments.speed.speed import speed_claims, speed_tables
from griffin.experiments.speed.tables import LEGEND, cost_table, paper_table, speed_table
from griffin.model.checkpoint.source import EMBEDDED_MODEL
from griffin.model.dtype import parse_dtype
from griffin.model.placement import parse_device
from griffin.request import STATISTICS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Speed of generation (Table 3)"
SEE = (
    "Each bar is the time of one token: GRIFFIN's should be as short as magnitude's at the same sparsity, and both "
    "shorter than the full model's."
)
# Of one token nothing is left between the second and the last.
SMALLEST_TOKENS = 3
DEFAULTS = {"prompt_tokens": 256, "tokens": 48, "rounds": 5}
SHORT = {"prompt_tokens": 64, "tokens": 16, "rounds": 2}
QUICK: Mapping[str, object] = SHORT

Lengths = tuple[int, int]
Found = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", default=EMBEDDED_MODEL, help="hub id, directory or .gguf file (%(default)s)")
    source.add_argument(
        "--shape", metavar="NAME", help=f"random weights instead: {', '.join(SHAPES)}, or the path of a config.json"
    )
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    parser.add_argument("--threads", type=count, metavar="N", help="of torch on a CPU (torch's own choice)")
    parser.add_argument("--prompt-tokens", type=count, metavar="N", help=f"({DEFAULTS['prompt_tokens']})")
    parser.add_argument("--tokens", type=_tokens, metavar="N", help=f"generated in each run ({DEFAULTS['tokens']})")
    parser.add_argument(
        "--lengths", type=_lengths, nargs="+", metavar="P+G",
        help="prompt and generated tokens, as 2048+128 2048+2048: instead of the two above, and several",
    )  # fmt: skip
    parser.add_argument(
        "--sparsities", type=sparsity, nargs="+", metavar="S", default=[0.5, 0.75],
        help="fractions of neurons removed, 0 to below 1 (0.5 0.75); the full model always runs",
    )  # fmt: skip
    parser.add_argument(
        "--statistics", choices=STATISTICS, nargs="+", default=["magnitude", "flocking"],
        help="what neurons are chosen by (magnitude flocking)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=count, metavar="N", help=f"({DEFAULTS['rounds']})")
    parser.add_argument("--minutes", type=positive, metavar="M", help="begin no round that would end later than this")
    parser.add_argument("--no-generate", action="store_true", help="leave transformers' generate out")
    parser.add_argument(
        "--compiled-generate", action="store_true", help="generate with a static cache, compiled, as well (CUDA)"
    )
    parser.add_argument(
        "--llama-cpp", type=Path, metavar="FILE", help="llama.cpp on this .gguf file as well (needs llama-cpp-python)"
    )
    parser.add_argument("--json", type=file, metavar="FILE", help="write the figures there, not to standard output")
    parser.add_argument("--plot", type=_plot_file, metavar="FILE", help="draw the figures: .svg or .png")
    parser.add_argument(
        "--profile", type=file, metavar="FILE", help="write there where the time of a token goes, for each contestant"
    )
    parser.add_argument("--quick", action="store_true", help="shorter, for a first look: 64+16 tokens, 2 rounds")


def run(arguments: argparse.Namespace) -> None:
    """Print tables, and one line of JSON unless that goes to a file; draw a plot if wanted."""
    started, load_average = time.monotonic(), os.getloadavg()[0]
    device = parse_device(arguments.device)
    # Once: what auto means is measured.
    dtype = parse_dtype(arguments.dtype, device)
    settings, rounds = _settings(arguments)
    if arguments.compiled_generate and (arguments.no_generate or device.type != "cuda"):
        raise ValueError("--compiled-generate: needs a CUDA device, and cannot go with --no-generate")
    _require_writable(arguments)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.shape:
        _require_context(settings, int(shape_config(arguments.shape).max_position_embeddings))
    try:
        model = _model(arguments, device, dtype)
        report, printed = _measure(arguments, model, settings, rounds, started)
        report["load_average"] = load_average
    except torch.OutOfMemoryError as error:
        raise GriffinError(f"not enough memory on {device}: {str(error).splitlines()[0]}") from error
    print(printed)
    if device.type == "cpu" and load_average > 1.2 * (os.cpu_count() or 1):
        # More than an earlier run of this very program leaves. Threads that wait for one another suffer most.
        print(
            f"\nThe machine was busy before this began (load average {load_average:.1f}); on an idle one these differ."
        )
    _write(arguments, report)


def measure(study: Study, arguments: argparse.Namespace) -> Found:
    """The engine alone, full and pruned. Times are measured anew in each run; nothing of them is in the ledger."""
    started, engine = time.monotonic(), study.engine
    settings, rounds = _settings(arguments)
    _require_context(settings, engine.context_length)
    bandwidth = measure_bandwidth(engine.device)
    contestants = engine_contestants(engine, [s for s in arguments.sparsities if s], arguments.statistics)
    with _whole_prompts(engine):
        measured = _timed(arguments, engine, bandwidth, contestants, settings, rounds, started)
    return {**_report(arguments, study.checkpoint.model, engine, bandwidth, None, measured), "model": study.name}


def tables(found: Found) -> list[Table]:
    return speed_tables(found)


def draw(found: Found) -> "Figure":
    return latency_figure(found)


def claims(found: Found) -> list[Claim]:
    return speed_claims(found)


@contextmanager
def _whole_prompts(engine: Engine) -> Iterator[None]:
    """Nothing of an earlier prompt is used or kept: each is read as if it were the first."""
    store = engine.prefixes
    budget, store.budget_bytes = store.budget_bytes, 0
    try:
        yield
    finally:
        store.budget_bytes = budget


def _measure(
    arguments: argparse.Namespace, model: PreTrainedModel, settings: list[Lengths], rounds: int, started: float
) -> tuple[Found, str]:
    weights = None
    own_copy = None
    if not arguments.no_generate:
        # The engine lays weights out anew; generate is to have the checkpoint's own layout, if a second copy fits.
        own_copy = copy.deepcopy(model) if _copy_fits(model) else None
        weights = "a copy of its own" if own_copy is not None else "the engine's weights"
    engine = Engine(model)
    _require_context(settings, engine.context_length)
    engine.warm_up()
    bandwidth = measure_bandwidth(engine.device)

    contestants = engine_contestants(engine, [s for s in arguments.sparsities if s], arguments.statistics)
    if weights:
        contestants += generate_contestants(own_copy or model, compiled=arguments.compiled_generate)
    if arguments.llama_cpp:
        longest = max(sum(lengths) for lengths in settings)
        contestants.append(llama_cpp_contestant(arguments.llama_cpp, longest, torch.get_num_threads()))
    measured = _timed(arguments, engine, bandwidth, contestants, settings, rounds, started)
    if arguments.profile:
        prompt_tokens, _ = settings[0]
        arguments.profile.write_text(profiles(contestants, _prompt(engine.vocabulary_size, prompt_tokens)))
    report = _report(arguments, model, engine, bandwidth, weights, measured)
    return report, _tables(report, bandwidth, measured)


def _timed(
    arguments: argparse.Namespace,
    engine: Engine,
    bandwidth: Bandwidth,
    contestants: list[Contestant],
    settings: list[Lengths],
    rounds: int,
    started: float,
) -> list[tuple[Lengths, list[Row]]]:
    measured: list[tuple[Lengths, list[Row]]] = []
    with Progress(len(settings) * len(contestants) * (rounds + 1)) as progress:
        for number, (prompt_tokens, tokens) in enumerate(settings, start=1):
            share = arguments.minutes * 60 * number / len(settings) if arguments.minutes else math.inf
            prompt = _prompt(engine.vocabulary_size, prompt_tokens)
            runs = run_rounds(contestants, prompt, tokens, rounds, progress, started + share)
            mean_context = prompt_tokens + tokens // 2
            found = rows(contestants, runs, engine.accounting, mean_context, bandwidth.read)
            measured.append(((prompt_tokens, tokens), found))
    return measured


def _model(arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    if arguments.shape:
        return random_model(arguments.shape, dtype, device)
    return load(arguments.model, dtype=str(dtype).removeprefix("torch."), device=arguments.device).model


def _copy_fits(model: PreTrainedModel) -> bool:
    """With room left for the engine's buffers, which are no larger than the weights."""
    available = available_bytes(model.device)
    return available is None or available > 2.2 * sum(parameter.nbytes for parameter in model.parameters())


def _prompt(vocabulary: int, tokens: int) -> list[int]:
    found: list[int] = torch.randint(vocabulary, (tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    return found


def _settings(arguments: argparse.Namespace) -> tuple[list[Lengths], int]:
    """Lengths and rounds: those given, and defaults for the others."""
    defaults = SHORT if arguments.quick else DEFAULTS
    if arguments.lengths and (arguments.prompt_tokens or arguments.tokens):
        raise ValueError("--lengths: cannot go with --prompt-tokens or --tokens, which say the same")
    single = (arguments.prompt_tokens or defaults["prompt_tokens"], arguments.tokens or defaults["tokens"])
    return arguments.lengths or [single], arguments.rounds or defaults["rounds"]


def _require_context(settings: list[Lengths], context: int) -> None:
    for prompt_tokens, tokens in settings:
        if prompt_tokens + tokens > context:
            raise ValueError(
                f"--prompt-tokens, --tokens, --lengths: {prompt_tokens}+{tokens} tokens do not fit into this model's "
                f"context of {context}"
            )


def _require_writable(arguments: argparse.Namespace) -> None:
    """Said before anything is measured, not after."""
    if arguments.plot:
        require_plot()
    for flag, path in (("--json", arguments.json), ("--plot", arguments.plot), ("--profile", arguments.profile)):
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        except OSError as error:
            raise ValueError(f"{flag}: cannot write '{path}': {error.strerror}") from error


def _report(
    arguments: argparse.Namespace,
    model: PreTrainedModel,
    engine: Engine,
    bandwidth: Bandwidth,
    weights: str | None,
    measured: list[tuple[Lengths, list[Row]]],
) -> Found:
    config = model.config.to_dict()
    dimensions = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    return {
        "experiment": "latency",
        "model": arguments.shape or arguments.model,
        "random_weights": bool(arguments.shape),
        "shape": {
            **{name: config[name] for name in dimensions if name in config},
            "num_key_value_heads": config.get("num_key_value_heads") or config.get("num_attention_heads"),
            "neurons_per_layer": engine.accounting.width,
            "parameters": engine.accounting.total,
        },
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(engine.device),
        "device_name": device_name(engine.device),
        "threads": torch.get_num_threads(),
        "step": engine.step,
        **when(),
        "generate_reads": weights,
        "bandwidth": {"copy": bandwidth.copy, "read": bandwidth.read},
        "settings": [
            {
                "prompt_tokens": prompt_tokens,
                "tokens": tokens,
                "rounds": len(found[0].runs),
                "rows": [row.as_json() for row in found],
            }
            for (prompt_tokens, tokens), found in measured
        ],
    }


def _tables(report: Found, bandwidth: Bandwidth, measured: list[tuple[Lengths, list[Row]]]) -> str:
    random = " (random weights)" if report["random_weights"] else ""
    threads = f", torch threads: {report['threads']}" if report["device"] == "cpu" else ""
    reads = f"; generate reads {report['generate_reads']}" if report["generate_reads"] else ""
    parts = [
        f"{report['model']}{random}, {report['dtype']}, {report['device_name']}{threads}, {report['step']} step\n"
        f"memory bandwidth: copy {bandwidth.copy / 1e9:.1f} GB/s, read {bandwidth.read / 1e9:.1f} GB/s{reads}"
    ]
    for (prompt_tokens, tokens), found in measured:
        rounds = len(found[0].runs)
        title = f"{prompt_tokens} + {tokens} tokens, {rounds} round{'s' * (rounds > 1)}"
        parts += [f"{title}\n{speed_table(found)}", cost_table(found)]
    parts += [LEGEND, paper_table([(f"{p}+{g}", found) for (p, g), found in measured])]
    return "\n\n".join(parts)


def _write(arguments: argparse.Namespace, report: Found) -> None:
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    else:
        print(json.dumps(report))
    if arguments.plot:
        plot_latency(report, arguments.plot)


_tokens = partial(whole, lowest=SMALLEST_TOKENS)


def _lengths(text: str) -> Lengths:
    prompt_tokens, plus, tokens = text.partition("+")
    if not plus:
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form P+G, as 2048+128")
    return count(prompt_tokens), _tokens(tokens)


def _plot_file(text: str) -> Path:
    path = file(text)
    if path.suffix not in (".svg", ".png"):
        raise argparse.ArgumentTypeError(f"'{text}' ends neither in .svg nor in .png")
    return path
