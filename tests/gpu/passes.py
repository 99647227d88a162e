"""How long passes take on this device, in steps: a line of JSON for each model and method.

``python -m tests.gpu.passes [--shapes llama-3-8b,llama-1.1b] [--rounds 20] [--groups 8=2,16=8]``, run in the
repository's root.

Weights are random. A line has the time of a step, and the times of passes of 1, 2, 4, 8 and 16 tokens, also in steps.
It says whether the passes' logits equal those of steps bit by bit, and how long the engine took to make. --groups sets
how many tokens one program multiplies at a time, see ``kernels.GROUPED``.
"""

import argparse
import json
import statistics
import time
from typing import Any

import torch

from griffin import Engine, Pruning
from griffin.decode.cuda import kernels
from griffin.experiments.speed.drafts.passes import SIZES, Reader
from griffin.experiments.speed.shapes import random_model

PROMPT = 256
WAYS = {
    "full": Pruning(),
    "griffin 50%": Pruning(0.5, method="griffin"),
    "griffin+ 50%": Pruning(0.5, method="griffin+"),
}


@torch.inference_mode()
def equal(engine: Engine, ids: list[int]) -> bool:
    """Whether a pass over these tokens gives the same bits as steps, after what was read."""
    state = engine._assembly.state
    decoder, start = state.decoder, state.length
    assert decoder.passes is not None
    rows = []
    for place, id in enumerate(ids):
        state.rewind(start + place)
        decoder.take(id, decoder.logits())()
        decoder.advance()()
        rows.append(decoder.logits().clone())
    state.rewind(start)
    same = torch.equal(decoder.passes.read(ids), torch.stack(rows))
    state.rewind(start)
    return same


def measured(shape: str, rounds: int) -> list[dict[str, Any]]:
    model = random_model(shape, torch.bfloat16, torch.device("cuda"))
    started = time.perf_counter()
    engine = Engine(model, context_length=4096)
    made, lines = time.perf_counter() - started, []
    prompt = torch.randint(3, 32000, (PROMPT,), generator=torch.Generator().manual_seed(1)).tolist()
    for name, pruning in WAYS.items():
        with engine.read(prompt, pruning) as read:
            reader = Reader(engine, read)
            engine._assembly.state.rewind(PROMPT)
            bits = equal(engine, prompt[:16])
            times = [reader.times(turn) for turn in range(rounds + 1)][1:]
        step = statistics.median(own for own, _ in times)
        passes = {size: statistics.median(own[n] for _, own in times) for n, size in enumerate(SIZES)}
        lines.append(
            {
                "shape": shape,
                "pruning": name,
                "bits": bits,
                "step_ms": round(step * 1e3, 3),
                "pass_ms": {size: round(own * 1e3, 3) for size, own in passes.items()},
                "steps": {size: round(own / step, 2) for size, own in passes.items()},
                "engine_s": round(made, 1),
                "grouped": kernels.GROUPED,
            }
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default="llama-3-8b,llama-1.1b")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--groups", default="")
    given = parser.parse_args()
    for each in filter(None, given.groups.split(",")):
        tokens, group = each.split("=")
        kernels.GROUPED[int(tokens)] = int(group)
    for shape in given.shapes.split(","):
        for line in measured(shape, given.rounds):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
