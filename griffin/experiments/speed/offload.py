"""Speed of a model that is larger than the device: FF offload beside accelerate's device_map.

Three ways run from the same files, each in its own process. The first is the resident model, if it fits. The second is
GRIFFIN with ff_offload: FF weights are on the host, or in a file if the device is a CPU. The third is transformers'
generate with accelerate's offload of the same modules: to the host, or to disk if the device is a CPU.

To limit the memory, use --memory-gb on a GPU. On a CPU start the command in a group of processes with a limit:
systemd-run --user --scope -p MemoryMax=2G python -m griffin.experiments offload
"""

import argparse
import json
import logging
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from griffin import Engine, load
from griffin.errors import GriffinError
from griffin.experiments.common.memory import device_name
from griffin.experiments.common.progress import Progress
from griffin.experiments.speed.contestants import engine_contestants, generate_contestants
from griffin.experiments.speed.shapes import SHAPES, random_model
from griffin.model.checkpoint.source import EMBEDDED_MODEL
from griffin.model.dtype import parse_dtype
from griffin.model.mapped import Layout
from griffin.model.placement import parse_device

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", default=EMBEDDED_MODEL, help="hub id, directory or .gguf file (%(default)s)")
    source.add_argument("--shape", choices=SHAPES, metavar="NAME", help=f"random weights instead: {', '.join(SHAPES)}")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    parser.add_argument(
        "--memory-gb", type=float, metavar="N", help="memory of the CUDA device that a process may use (all)"
    )
    parser.add_argument(
        "--prompt-tokens", type=int, default=256, metavar="N", help="length of the prompt (%(default)s)"
    )
    parser.add_argument("--tokens", type=int, default=16, metavar="N", help="tokens of each run (%(default)s)")
    parser.add_argument(
        "--sparsities", type=float, nargs="+", default=[0.5, 0.0], metavar="S",
        help="fractions of neurons removed, 0 to below 1 (0.5 0)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="runs of each way that count (%(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Print a table, then one line of JSON.

    Raises:
        GriffinError, ValueError: one line for the user.
    """
    if arguments.tokens < 3 or arguments.rounds < 1 or arguments.prompt_tokens < 1:
        raise ValueError("at least 3 tokens, 1 round and 1 prompt token are needed")
    if any(not 0 <= sparsity < 1 for sparsity in arguments.sparsities):
        raise ValueError("--sparsities: numbers from 0 to below 1 are needed")
    device = parse_device(arguments.device)
    dtype = str(parse_dtype(arguments.dtype, device)).removeprefix("torch.")
    ways = [(way, sparsity) for way in ("resident", "offloaded") for sparsity in arguments.sparsities]
    with tempfile.TemporaryDirectory(prefix="griffin-offload-") as folder, Progress(len(ways) + 2) as progress:
        progress.begin("making the checkpoint")
        checkpoint = _alone(_prepare, arguments.model, arguments.shape, dtype, folder)
        progress.advance()
        rows = []
        for way, sparsity in (*ways, ("accelerate", 0.0)):
            progress.begin(f"{way} {sparsity:g}")
            task = (way, sparsity, checkpoint, dtype, str(device), arguments.memory_gb, folder)
            try:
                rows.append(_alone(_measure, *task, arguments.prompt_tokens, arguments.tokens, arguments.rounds))
            except BrokenProcessPool:
                # The system ended the process. Under a memory limit this is a result.
                rows.append({"way": way, "sparsity": sparsity, "failed": "killed, probably because memory ran out"})
            progress.advance()
    name = arguments.shape or arguments.model
    print(f"{name}, {dtype}, {device_name(device)}, {arguments.prompt_tokens} + {arguments.tokens} tokens")
    print(_table(rows))
    print(json.dumps({"model": name, "dtype": dtype, "device": str(device), "rows": rows}))


def _alone(function: Any, *arguments: Any) -> Any:
    """Run a function in a fresh process, which shares no memory and no caches with the others."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def _prepare(model: str, shape: str | None, dtype: str, folder: str) -> str:
    """A directory with safetensors, or a hub id. Every way can read both."""
    if shape is None and not model.endswith(".gguf") and model.lower() != EMBEDDED_MODEL.lower():
        return model
    checkpoint = load(model, dtype=dtype, device="cpu")
    made = random_model(shape, getattr(torch, dtype), torch.device("cpu")) if shape else checkpoint.model
    target = Path(folder) / "model"
    made.save_pretrained(target)
    # A model of random weights needs no tokenizer, but a checkpoint does.
    checkpoint.tokenizer.save_pretrained(target)
    return str(target)


def _measure(
    way: str, sparsity: float, checkpoint: str, dtype: str, device: str, memory_gb: float | None, folder: str,
    prompt_tokens: int, tokens: int, rounds: int,
) -> Row:  # fmt: skip
    logging.disable(logging.WARNING)
    row: Row = {"way": way, "sparsity": sparsity}
    place = torch.device(device)
    if memory_gb is not None and place.type == "cuda":
        total = torch.cuda.get_device_properties(place).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_gb * 1e9 / total), place)
    try:
        started = time.perf_counter()
        if way == "accelerate":
            model = _accelerate(checkpoint, getattr(torch, dtype), place)
            (contestant,) = generate_contestants(model, compiled=False)
        else:
            cache, offloaded = Path(folder) / "cache", way == "offloaded"
            loaded = load(checkpoint, dtype=dtype, device=device, cache_dir=cache, ff_offload=offloaded)
            model = loaded.model
            contestant = engine_contestants(Engine(model), [sparsity], ["flocking"])[1 if sparsity else 0]
        row["load_seconds"] = round(time.perf_counter() - started, 2)
        generator = torch.Generator().manual_seed(0)
        prompt = torch.randint(model.config.vocab_size, (prompt_tokens,), generator=generator).tolist()
        # The first run warms up and does not count.
        runs = [contestant.run(prompt, tokens) for _ in range(rounds + 1)][1:]
    except (torch.OutOfMemoryError, MemoryError, GriffinError) as error:
        # Under a memory limit this is a result.
        return {**row, "failed": str(error).splitlines()[0]}
    peaks = [run.peak_bytes for run in runs if run.peak_bytes is not None]
    return {
        **row,
        "prompt_seconds": round(statistics.median(run.prefill for run in runs), 3),
        "ms_per_token": round(statistics.median(run.per_token for run in runs) * 1e3, 2),
        "peak_gb": round(max(peaks) / 1e9, 3) if peaks else None,
        "own_gb": _own_gb() if place.type == "cpu" else None,
    }


def _accelerate(checkpoint: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The model with its FF projections offloaded by ``device_map``, and everything else on the device."""
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint))
    away = {name for names in Layout.of(empty, dtype).names for name in names}
    host = "cpu" if device.type == "cuda" else "disk"
    places = {
        name: host if name in away else str(device)
        for name, module in empty.named_modules()
        if not list(module.children())
    }
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, device_map=places).eval()


def _own_gb() -> float | None:
    """Memory that holds no file's content, so the system cannot take it back."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return round(int(line.split()[1]) * 1024 / 1e9, 3)
    return None


def _table(rows: Sequence[Row]) -> str:
    lines = [f"{'':<12}{'sparsity':>9}{'load s':>9}{'prompt s':>10}{'ms/token':>10}{'peak GB':>9}{'own GB':>8}"]
    for row in rows:
        shown = (
            f"  {row['failed']}"
            if "failed" in row
            else (
                f"{row['load_seconds']:>9.1f}{row['prompt_seconds']:>10.2f}{row['ms_per_token']:>10.1f}"
                f"{_or_dash(row['peak_gb']):>9}{_or_dash(row['own_gb']):>8}"
            )
        )
        lines.append(f"{row['way']:<12}{row['sparsity']:>9g}{shown}")
    return "\n".join(lines)


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
