"""Passes: how long the decoder takes to read several tokens at once, in units of a step."""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from griffin import Engine, Prompt, Pruning, Sampling
from griffin.errors import GriffinError
from griffin.experiments.common.progress import Progress
from griffin.experiments.common.results import Claim, Table
from griffin.experiments.common.study import Study
from griffin.experiments.speed.drafts.turns import rotated

Row = dict[str, Any]
SIZES = (1, 2, 4, 8, 16)
# By the tokens in a pass, the largest time that it may take, in steps.
GOALS = {2: 1.15, 4: 1.35, 8: 1.9, 16: 3.0}


class Reader:
    """An engine that has read a prompt and stands at its end, pruned in some way."""

    def __init__(self, engine: Engine, prompt: Prompt) -> None:
        """
        Raises:
            GriffinError: its decoder cannot read several tokens.
        """
        self._state, self._device = engine._assembly.state, engine.device
        step = self._state.decoder.passes
        if step is None:
            raise GriffinError(f"--parts passes: the {engine.step} step reads one token at a time")
        self._step = step
        self._length = self._state.length
        # The tokens to read are the model's own. Neurons are chosen while they are generated.
        sampling = Sampling(temperature=0, max_tokens=max(SIZES) + 1, ignore_eos=True)
        self._ids = [token.id for token in prompt.generate(sampling)]
        self._first_logits_V = self._state.decoder.logits().clone()

    def times(self, shift: int) -> tuple[float, list[float]]:
        """Seconds of a step with its draw, and of a pass of each of ``SIZES``.

        Args:
            shift: which size comes first.
        """
        self._pass_seconds(1)
        self._state.decoder.take(self._ids[0], self._first_logits_V)()
        step = self._seconds(lambda: self._state.decoder.advance()())
        found = {size: self._pass_seconds(size) for size in rotated(SIZES, shift)}
        return step, [found[size] for size in SIZES]

    def _pass_seconds(self, tokens: int) -> float:
        return self._seconds(lambda: self._step.read(self._ids[:tokens]))

    def _seconds(self, run: Callable[[], object]) -> float:
        self._state.rewind(self._length)
        self._wait()
        began = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


@torch.inference_mode()
def measure(
    study: Study,
    prompts: Sequence[Sequence[int]],
    prunings: dict[str, Pruning],
    rounds: int,
    kept: Callable[[list[Row]], None],
) -> list[Row]:
    """An engine for each pruning reads each prompt. Then the engines take turns.

    Args:
        kept: called after each prompt with the rows so far.
    """
    times: dict[str, list[tuple[float, list[float]]]] = {name: [] for name in prunings}
    with Progress(len(prompts) * rounds) as progress:
        for number, prompt in enumerate(prompts, start=1):
            with ExitStack() as stack:
                readers = {name: _reader(study, stack, prompt, pruning) for name, pruning in prunings.items()}
                for turn in range(rounds + 1):
                    progress.begin(f"passes, prompt {number} of {len(prompts)}, round {turn}")
                    found = {name: reader.times(turn) for name, reader in readers.items()}
                    # The first round touches memory for the first time.
                    for name in found if turn else ():
                        times[name].append(found[name])
                    progress.advance(bool(turn))
            kept(_rows(times))
    return _rows(times)


def _reader(study: Study, stack: ExitStack, prompt: Sequence[int], pruning: Pruning) -> Reader:
    engine = Engine(study.checkpoint.model)
    return Reader(engine, stack.enter_context(engine.read(prompt, pruning)))


def _rows(times: dict[str, list[tuple[float, list[float]]]]) -> list[Row]:
    return [_row(name, own) for name, own in times.items()]


def _row(name: str, times: list[tuple[float, list[float]]]) -> Row:
    """Medians over all rounds. A ratio compares two times of the same round."""
    return {
        "name": name,
        "step_seconds": statistics.median(step for step, _ in times),
        "pass_seconds": {size: statistics.median(own[n] for _, own in times) for n, size in enumerate(SIZES)},
        "steps": {size: statistics.median(own[n] / step for step, own in times) for n, size in enumerate(SIZES)},
    }


def table(rows: Sequence[Row], caption: str) -> Table:
    heads = ("passes", "ms a step", *(f"{size} token{'s' * (size > 1)}" for size in SIZES))
    cells = [
        (row["name"], f"{row['step_seconds'] * 1e3:.2f}", *(f"{_steps(row, size):.2f}" for size in SIZES))
        for row in rows
    ]
    return Table(heads, cells, caption)


def claims(rows: Sequence[Row]) -> list[Claim]:
    goals = ", ".join(f"{goal:g} at {size}" for size, goal in GOALS.items())
    return [
        Claim(
            f"A pass takes at most this many steps: {goals} tokens.",
            all(_steps(row, size) <= goal for size, goal in GOALS.items()),
            f"{row['name']}: " + ", ".join(f"{_steps(row, size):.2f}" for size in GOALS) + ".",
        )
        for row in rows
    ]


def _steps(row: Row, size: int) -> float:
    """The figure of a row of this run or from a file. In a file the keys are texts, because JSON has no others."""
    found: float = row["steps"].get(size, row["steps"].get(str(size)))
    return found
