"""How close the served model is to the checkpoint's own values in fp32; also for llama.cpp on the same file.

The reference is the library's own forward pass over the checkpoint's values in fp32; quantised values are dequantised.
All sides read the same windows of WikiText-2. Each window begins with a prompt, which does not count. The tokens after
it run through the decode step one by one, as generated tokens do, or through the prompt pass (``--passes``). All
neurons act.

Shapes: C tokens of a chunk, W windows.
"""

import argparse
import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import get_args

import torch

from griffin import load
from griffin.errors import GriffinError
from griffin.experiments.common import kinds
from griffin.experiments.common.experiment import Found
from griffin.experiments.common.llama import LlamaCpp, add_llama_cpp_arguments, described, file_for_llama_cpp
from griffin.experiments.common.progress import Progress
from griffin.experiments.common.results import Claim, Table, percent
from griffin.experiments.common.study import Study
from griffin.experiments.common.texts import read_text
from griffin.experiments.quality.passes import Pass, PassName, Peer, Reference, Served
from griffin.experiments.quality.tally import Tally, logprobs

TITLE = "Fidelity to the checkpoint's values"
SEE = "KL and the change of perplexity should be no larger than the effect of rounding to 16 bits."
QUICK = {"windows": 4, "tokens": 32}
# No picture: all figures are in tables.
draw = None
# Logits of this many tokens are held at once, from all sides.
CHUNK = 32
# The goals: the largest KL of a token in nats, the smallest fraction of tokens where both sides find the same one most
# probable, and the largest change of perplexity.
MOST_KL, LEAST_SAME, MOST_CHANGE = 1e-4, 0.995, 0.002


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--windows", type=kinds.count, default=20, help="places in the text (%(default)s)")
    parser.add_argument("--prompt", type=kinds.count, default=64, help="tokens that do not count (%(default)s)")
    parser.add_argument("--tokens", type=kinds.count, default=128, help="tokens after them that do (%(default)s)")
    parser.add_argument(
        "--passes", choices=get_args(PassName), nargs="+", default=["steps"],
        help="how tokens are read: one decode step each, as a prompt, or both (steps)",
    )  # fmt: skip
    add_llama_cpp_arguments(parser)


def measure(study: Study, arguments: argparse.Namespace) -> Found:
    """
    Returns:
        ``rows``: the reference and each pass beside it, see ``Tally.row``. The ledger does not keep them.
    """
    length = arguments.prompt + arguments.tokens + 1
    if length > study.context_length:
        raise ValueError(f"--prompt, --tokens: {length} tokens, but the context has {study.context_length}")
    text = read_text(study, "wikitext")
    windows = [text.begun(one) for one in text.windows(length, arguments.windows, "--tokens", "--windows")]
    with ExitStack() as stack:
        served = [Served(study.checkpoint.model, by, length) for by in arguments.passes]
        # Each pass needs its own process, because all passes read at the same time.
        peers = [
            Peer(_llama_cpp(study, arguments, length, stack), by) for by in arguments.passes if arguments.llama_cpp
        ]
        reference = _reference(arguments)
        tallies = _tallies(reference, [*served, *peers], windows, arguments.prompt)
    return {
        "prompt": arguments.prompt,
        "tokens": arguments.tokens,
        "windows": len(windows),
        "step": served[0].step,
        "threads": torch.get_num_threads(),
        "llama_cpp": peers[0].facts if peers else None,
        "rows": [tally.row(name) for name, tally in tallies.items()],
    }


def _llama_cpp(study: Study, arguments: argparse.Namespace, length: int, stack: ExitStack) -> LlamaCpp:
    file = file_for_llama_cpp(arguments.llama_cpp, arguments.model)
    found = stack.enter_context(LlamaCpp(file, length, torch.get_num_threads(), arguments.llama_cpp_python))
    found.require_vocabulary(int(study.checkpoint.model.config.vocab_size))
    return found


def _reference(arguments: argparse.Namespace) -> Reference:
    """The checkpoint's values in fp32."""
    checkpoint = load(arguments.model, dtype="float32", device=arguments.device)
    if checkpoint.formats != "float32":
        raise GriffinError(f"the reference must be in float32 throughout, but is {checkpoint.formats}")
    return Reference(checkpoint.model)


def _tallies(
    reference: Reference, passes: Sequence[Pass], windows: Sequence[Sequence[int]], prompt: int
) -> dict[str, Tally]:
    """Let all sides read the windows, chunk by chunk, so that few logits are held at once."""
    every: list[Pass] = [reference, *passes]
    tallies = {each.name: Tally() for each in every}
    with Progress(len(windows)) as progress:
        for number, ids in enumerate(windows, start=1):
            progress.begin(f"window {number} of {len(windows)}")
            for each in every:
                each.begin(ids[:prompt])
                tallies[each.name].begin()
            for first in range(prompt, len(ids) - 1, CHUNK):
                read, targets = ids[first : min(first + CHUNK, len(ids) - 1)], ids[first + 1 : first + 1 + CHUNK]
                expected_CV = logprobs(reference.read(read))
                tallies[reference.name].add(expected_CV, expected_CV, targets)
                for each in passes:
                    tallies[each.name].add(expected_CV, logprobs(each.read(read)).to(expected_CV.device), targets)
            progress.advance()
    return tallies


def tables(found: Found) -> list[Table]:
    reference, *others = found["rows"]
    peers = [row for row in others if row["name"].startswith("llama.cpp")]
    rows = [
        (
            row["name"],
            f"{row['kl']:.2e}" if row is not reference else "-",
            f"{row['kl_highest']:.1e}" if row is not reference else "-",
            percent(row["same"], 2) if row is not reference else "-",
            f"{row['perplexity']:.4f}",
            _change(row, reference) if row is not reference else "-",
            _change(row, peers[0]) if peers and row is not peers[0] else "-",
        )
        for row in found["rows"]
    ]
    heads = ("", "KL a token", "highest", "same token", "perplexity", "over fp32's", "over llama.cpp's")
    both = f"Served: {found['dtype']}, {found['threads']} threads, {found['step']} step."
    programs = [both, f"{described(found['llama_cpp'])}."] if found["llama_cpp"] else [both]
    caption = (
        f"{found['tokens']} tokens after each of {found['windows']} prompts of {found['prompt']} tokens of WikiText-2. "
        "KL is in nats, KL(reference || row). Same token: how often both find the same token most probable. Changes of "
        "perplexity have one standard error (±) over paired windows. " + " ".join(programs)
    )
    return [Table(heads, rows, caption)]


def change(row: Found, other: Found) -> tuple[float, float]:
    """The change of perplexity from the other row to this one, and its standard error, as fractions."""
    own_W, others_W = (torch.tensor(each["windows"]["loss"], dtype=torch.float64) for each in (row, other))
    excess_W = own_W - others_W
    error = float(excess_W.std()) / math.sqrt(len(excess_W)) if len(excess_W) > 1 else math.nan
    return math.expm1(float(excess_W.mean())), error


def _change(row: Found, other: Found) -> str:
    value, error = change(row, other)
    return f"{value * 100:+.3f} ± {error * 100:.3f} %"


def claims(found: Found) -> list[Claim]:
    others = found["rows"][1:]
    peer = next((row for row in others if row["name"].startswith("llama.cpp")), None)
    judged = []
    for row in (row for row in others if not row["name"].startswith("llama.cpp")):
        judged.append(
            Claim(
                f"KL is at most {MOST_KL:g} a token, and {percent(LEAST_SAME, 1)} of the most probable tokens are the "
                "same.",
                row["kl"] <= MOST_KL and row["same"] >= LEAST_SAME,
                f"{row['name']}: {row['kl']:.2e}, {percent(row['same'], 2)}.",
            )
        )
        if peer:
            judged.append(
                Claim(
                    f"The perplexity of the file is within {percent(MOST_CHANGE, 1)} of llama.cpp's.",
                    abs(change(row, peer)[0]) <= MOST_CHANGE,
                    f"{row['name']}: {_change(row, peer)}.",
                )
            )
    return judged
