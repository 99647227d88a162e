"""Time to the first token: how long a short prompt takes, here and in llama.cpp."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from griffin import Engine, Pruning, Sampling
from griffin.engine.pass_limit import PassLimit
from griffin.experiments.common.llama import LlamaCpp
from griffin.experiments.common.progress import Progress
from griffin.experiments.common.results import Claim, Table
from griffin.experiments.common.study import Study
from griffin.experiments.speed.contestants import LLAMA_CPP, PAUSE
from griffin.experiments.speed.drafts.questions import windows
from griffin.experiments.speed.drafts.turns import rotated

Row = dict[str, Any]
LENGTHS = (8, 27, 64, 128)


def measure(
    study: Study,
    peer: LlamaCpp | None,
    prunings: dict[str, Pruning],
    rounds: int,
    kept: Callable[[list[Row]], None],
) -> list[Row]:
    """Each round reads another prompt of each length, by each pruning and by llama.cpp in turn.

    Args:
        kept: called after each length with the rows so far.
    """
    # A new engine keeps no beginnings of earlier prompts.
    engine = Engine(study.checkpoint.model, limit=PassLimit("auto"))
    engine.warm_up()
    readers: dict[str, Callable[[list[int]], float]] = {
        name: lambda prompt, pruning=pruning: _seconds(engine, prompt, pruning)  # type: ignore[misc]
        for name, pruning in prunings.items()
    }
    if peer is not None:
        readers[LLAMA_CPP] = lambda prompt: _peer_seconds(peer, prompt)
    rows: list[Row] = []
    with Progress(len(LENGTHS) * (rounds + 1)) as progress:
        for length in LENGTHS:
            times: dict[str, list[float]] = {name: [] for name in readers}
            for turn, prompt in enumerate(windows(study, length, rounds + 1)):
                progress.begin(f"first-token, {length} tokens, round {turn}")
                for name, reader in rotated(list(readers.items()), turn):
                    found = reader(prompt)
                    # The first round chooses kernels and touches memory.
                    if turn:
                        times[name].append(found)
                progress.advance()
            rows += [_row(name, length, own, engine.pass_tokens) for name, own in times.items()]
            kept(rows)
    return rows


def _seconds(engine: Engine, prompt: Sequence[int], pruning: Pruning) -> float:
    time.sleep(PAUSE)
    began = time.perf_counter()
    tokens = engine.generate(prompt, Sampling(temperature=0, max_tokens=1), pruning)
    next(tokens)
    seconds = time.perf_counter() - began
    tokens.close()  # type: ignore[attr-defined]
    return seconds


def _peer_seconds(peer: LlamaCpp, prompt: Sequence[int]) -> float:
    time.sleep(PAUSE)
    found: float = peer.timed(prompt, 1)["times"][0]
    return found


def _row(name: str, length: int, times: Sequence[float], pass_tokens: int) -> Row:
    return {
        "name": name,
        "length": length,
        "passes": name != LLAMA_CPP and length <= pass_tokens,
        "seconds": statistics.median(times),
        "lowest": min(times),
        "highest": max(times),
    }


def table(rows: Sequence[Row], caption: str) -> Table:
    heads = ("first token", "prompt", "in passes", "ms", "lowest - highest", "x llama.cpp's")
    cells = [
        (
            row["name"],
            str(row["length"]),
            "yes" if row.get("passes") else "no",
            f"{row['seconds'] * 1e3:.1f}",
            f"{row['lowest'] * 1e3:.1f} - {row['highest'] * 1e3:.1f}",
            _over(row, rows),
        )
        for row in rows
    ]
    return Table(heads, cells, caption)


def claims(rows: Sequence[Row]) -> list[Claim]:
    """One for each pruning, if llama.cpp ran."""
    peers = {row["length"]: row["seconds"] for row in rows if row["name"] == LLAMA_CPP}
    found = []
    for name in dict.fromkeys(row["name"] for row in rows if peers and row["name"] != LLAMA_CPP):
        own = [row for row in rows if row["name"] == name and row["length"] in peers]
        holds = all(row["seconds"] <= peers[row["length"]] for row in own)
        here = ", ".join(f"{_over(row, rows)} at {row['length']}" for row in own)
        found.append(Claim("The first token comes no later than llama.cpp's.", holds, f"{name}: {here} tokens."))
    return found


def _over(row: Row, rows: Sequence[Row]) -> str:
    peer = next((each for each in rows if each["name"] == LLAMA_CPP and each["length"] == row["length"]), None)
    return "-" if peer is None or row is peer else f"{row['seconds'] / peer['seconds']:.2f}x"
