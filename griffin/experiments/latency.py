"""Decode speed, dense and pruned, beside transformers' generate (the paper's Table 3, for one prompt length).

All contestants run in turn in each round, on the same prompt and for the same number of tokens, and medians
over the rounds are shown: what else the machine does meets all of them alike. A token's time is counted from
the first token to the last, without the prompt phase.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from griffin import Engine, Pruning, Sampling, load
from griffin.loading import EMBEDDED_MODEL
from griffin.selection import kept_count

Run = Callable[[], list[float]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="hub id, directory or .gguf file (%(default)s)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=256, help="(%(default)s)")
    parser.add_argument("--tokens", type=int, default=48, help="generated in each run (%(default)s)")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.0, 0.5, 0.75], help="(0 0.5 0.75)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Print a table, then one line of JSON."""
    if arguments.tokens < 2 or arguments.rounds < 1 or arguments.prompt_tokens < 1:
        raise ValueError("at least 2 tokens, 1 round and 1 prompt token are needed")
    reference = load(arguments.model, dtype=arguments.dtype, device=arguments.device)
    # A second copy: the engine lays its weights out anew, and generate is to have the checkpoint's own layout.
    ours = load(arguments.model, dtype=arguments.dtype, device=arguments.device)
    engine = Engine(ours.model)
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(engine.vocabulary_size, (arguments.prompt_tokens,), generator=generator).tolist()

    contestants: dict[str, Run] = {"generate": partial(_generate, reference.model, prompt, arguments.tokens)}
    for sparsity in arguments.sparsities:
        contestants[f"griffin {sparsity:g}"] = partial(_engine, engine, prompt, arguments.tokens, sparsity)
    medians = _interleaved(contestants, arguments.rounds)
    _report(arguments, engine, str(ours.model.dtype).removeprefix("torch."), medians)


def _interleaved(contestants: dict[str, Run], rounds: int) -> dict[str, tuple[float, float, float]]:
    """Seconds a token for each: median, lowest and highest over the rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    total = rounds + 1
    for number in range(total):
        for name, contestant in contestants.items():
            print(f"\rround {number} of {rounds}: {name:<20}", end="", file=sys.stderr, flush=True)
            times = contestant()
            # The first round warms caches and allocators up.
            if number:
                seconds[name].append((times[-1] - times[0]) / (len(times) - 1))
    print("\r" + " " * 50 + "\r", end="", file=sys.stderr)
    return {name: (statistics.median(values), min(values), max(values)) for name, values in seconds.items()}


def _engine(engine: Engine, prompt: list[int], tokens: int, sparsity: float) -> list[float]:
    sampling = Sampling(temperature=0, max_tokens=tokens, ignore_eos=True)
    times = []
    for _ in engine.generate(prompt, sampling, Pruning(sparsity)):
        times.append(time.perf_counter())
    # Selecting neurons is a cost of the request, not of each token; it lies between the first two.
    return times[1:] if len(times) > 2 else times


class _Clock(BaseStreamer):  # type: ignore[misc]  # untyped in transformers
    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def _generate(model: PreTrainedModel, prompt: list[int], tokens: int) -> list[float]:
    clock = _Clock()
    ids = torch.tensor([prompt], device=model.device)
    model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens,
        streamer=clock,
    )  # fmt: skip
    # The first put is the prompt itself; then as for the engine, from the second token on.
    return clock.times[2:] if len(clock.times) > 3 else clock.times[1:]


def _report(
    arguments: argparse.Namespace, engine: Engine, dtype: str, medians: dict[str, tuple[float, float, float]]
) -> None:
    reference = medians["generate"][0]
    print(f"{arguments.model}, {dtype}, {engine.device}, {torch.get_num_threads()} threads, "
          f"{arguments.prompt_tokens} + {arguments.tokens} tokens, {arguments.rounds} rounds")  # fmt: skip
    print(f"{'':<14}{'tokens/s':>10}{'ms/token':>10}{'lowest':>8}{'highest':>9}{'speed-up':>10}{'active':>14}")
    rows = []
    for name, (median, low, high) in medians.items():
        sparsity = 0.0 if name == "generate" else float(name.split()[1])
        active = engine.accounting.active(kept_count(engine.accounting.width, sparsity))
        print(f"{name:<14}{1 / median:>10.1f}{median * 1e3:>10.2f}{low * 1e3:>8.2f}{high * 1e3:>9.2f}"
              f"{reference / median:>9.2f}x{active:>14,}")  # fmt: skip
        rows.append(
            {
                "name": name,
                "tokens_per_second": round(1 / median, 2),
                "ms_per_token": round(median * 1e3, 3),
                "speedup": round(reference / median, 3),
                "active_parameters": active,
            }
        )
    print(json.dumps({"model": arguments.model, "dtype": dtype, "device": str(engine.device), "results": rows}))
