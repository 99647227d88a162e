"""The arithmetic of a benchmark, on numbers worked by hand."""

import time
from dataclasses import replace

import pytest
import torch

from griffin.experiments.common.progress import Progress
from griffin.experiments.speed.bandwidth import Bandwidth, measure_bandwidth
from griffin.experiments.speed.beside import beside_table
from griffin.experiments.speed.contestants import Contestant, Run, run_rounds
from griffin.experiments.speed.rows import Spread, break_even, rows
from griffin.experiments.speed.tables import cost_table, paper_table, speed_table
from griffin.model.accounting import Accounting, BlockBytes

# A token reads 1000 bytes of weights, or 600 at half the neurons, and 2 layers x 5 bytes for each token of context.
ACCOUNTING = Accounting(
    total=500,
    layers=2,
    width=100,
    per_neuron=2,
    weight_bytes=1000,
    block_bytes=(BlockBytes(gate=180, gate_scales=20, up=0, down=200, biases=0),) * 2,
    kv_bytes=5,
    windows=(None, None),
)


def contestant(name: str, sparsity: float = 0.0) -> Contestant:
    return Contestant(name, sparsity, lambda prompt, tokens: Run((1.0, 2.0, 3.0)))


def run_of(per_token: float, selection: float | None = None) -> Run:
    """A run with a prefill of 1 s and 4 tokens."""
    second = 1 + per_token + (selection or 0)
    return Run((1.0, second, second + per_token, second + 2 * per_token), selection, 10)


CONTESTANTS = [contestant("full"), contestant("GRIFFIN", 0.5), contestant("generate")]
RUNS = [
    [run_of(0.3), run_of(0.2), run_of(0.25)],
    [run_of(0.125, 0.5), run_of(0.1, 0.5), run_of(0.15, 0.5)],
    [run_of(0.5), run_of(0.5), run_of(0.5)],
]


def test_a_run_is_split_at_its_second_token() -> None:
    """Selection is a cost of the sequence, not of each token."""
    run = run_of(0.25, 2.0)

    assert run.prefill == 1
    assert run.per_token == 0.25
    assert run.generation == 2.75
    assert run.end_to_end == 3.75


def test_limit_speedups_and_break_even() -> None:
    """Context of 20 tokens: 1200 bytes full, 800 at half; at 8000 bytes a second these take 0.15 and 0.1 s."""
    full, griffin, generate = rows(CONTESTANTS, RUNS, ACCOUNTING, 20, 8000.0)

    assert (full.bytes_per_step, griffin.bytes_per_step, generate.bytes_per_step) == (1200, 800, 1200)
    assert full.seconds_per_token == Spread(pytest.approx(0.25), pytest.approx(0.2), pytest.approx(0.3))
    assert (full.limit_seconds, griffin.limit_seconds) == (0.15, 0.1)
    assert full.of_limit == pytest.approx(0.6)
    assert griffin.of_limit == pytest.approx(0.8)
    assert griffin.bytes_per_second == pytest.approx(6400)
    assert griffin.tokens_per_second == pytest.approx(8)
    assert griffin.speedup_over_full == pytest.approx(2)
    assert griffin.speedup_over_generate == pytest.approx(4)
    assert griffin.ideal_speedup == 1.5
    assert griffin.break_even_tokens == pytest.approx(4)
    assert griffin.active_parameters == 300
    assert (full.selection_seconds, full.break_even_tokens, full.peak_bytes) == (None, None, 10)


def test_the_better_of_two_bandwidths_counts() -> None:
    assert Bandwidth(3, 5).or_faster(Bandwidth(4, 2)) == Bandwidth(4, 5)


def test_break_even() -> None:
    """50 ms of selection at 10 ms saved a token: 5 tokens. Without a saving: never."""
    assert break_even(0.05, 0.03, 0.02) == pytest.approx(5)
    assert break_even(0.05, 0.02, 0.02) is None


def test_beside_llama_cpp() -> None:
    """Ratios compare runs of the same round. llama.cpp has its own accounting, and pruned rows do not use it."""
    reads = replace(ACCOUNTING, weight_bytes=300)
    peer = Contestant("llama.cpp", 0.0, CONTESTANTS[0].run, reads)
    found = rows([*CONTESTANTS, peer], [*RUNS, [run_of(0.6), run_of(0.2), run_of(0.25)]], ACCOUNTING, 20, 8000.0)
    full, griffin, _, llama_cpp = found

    assert llama_cpp.bytes_per_step == 500
    assert llama_cpp.ideal_speedup == 2.4
    assert full.over_llama_cpp == Spread(pytest.approx(1), pytest.approx(1), pytest.approx(2))
    assert full.prompt_over_llama_cpp == Spread(1, 1, 1)
    assert griffin.over_llama_cpp == Spread(pytest.approx(2), pytest.approx(5 / 3), pytest.approx(4.8))
    assert rows(CONTESTANTS, RUNS, ACCOUNTING, 20, 8000.0)[0].over_llama_cpp is None
    head, *lines = beside_table(found, 12).splitlines()
    assert [line.split()[0] for line in lines] == ["full", "GRIFFIN", "llama.cpp"]
    assert {len(line) for line in lines} == {len(head)}
    assert len(head) <= 120


def test_tables_fit_a_terminal() -> None:
    """120 columns, a line for each contestant, all lines as long as the head."""
    found = rows(CONTESTANTS, RUNS, ACCOUNTING, 20, 8000.0)
    for table in (speed_table(found), cost_table(found)):
        lines = table.splitlines()
        assert len(lines) == 1 + len(found)
        assert {len(line) for line in lines} == {len(lines[0])}
        assert len(lines[0]) <= 120


def test_the_papers_table() -> None:
    """The prompt, then the generation phase of each contestant; sparsities share a cell."""
    contestants = [*CONTESTANTS, contestant("GRIFFIN", 0.75)]
    found = rows(contestants, [*RUNS, RUNS[1]], ACCOUNTING, 20, 8000.0)
    title, head, line = paper_table([("20+4", found)]).splitlines()

    assert title.endswith("at 50 % / 75 % sparsity:")
    assert head.split() == ["prompt", "full", "GRIFFIN", "generate"]
    assert line.split() == ["20+4", "1.00", "0.75", "0.88", "/", "0.88", "1.50"]


def test_rounds_are_interleaved_and_the_first_is_not_counted() -> None:
    """Each contestant in turn, in each round."""
    order: list[str] = []

    def runner(name: str) -> Contestant:
        def run(prompt: list[int], tokens: int) -> Run:
            order.append(name)
            return Run((1.0, 2.0, float(len(order) + 2)))

        return Contestant(name, 0.0, run)

    with Progress(6) as progress:
        runs = run_rounds([runner("a"), runner("b")], [1], 3, 2, progress)

    assert order == ["a", "b"] * 3
    assert [[run.end_to_end for run in own] for own in runs] == [[5.0, 7.0], [6.0, 8.0]]


def test_a_deadline_ends_the_rounds_early() -> None:
    """But at least one round is counted."""
    with Progress(100) as progress:
        runs = run_rounds([contestant("full")], [1], 3, 99, progress, deadline=time.monotonic())

    assert len(runs[0]) == 1


def test_bandwidth_is_measured() -> None:
    """Between that of a slow disk and that of a fast accelerator."""
    bandwidth = measure_bandwidth(torch.device("cpu"), 2**22)

    assert 1e8 < bandwidth.copy < 1e14
    assert 1e8 < bandwidth.read < 1e14
