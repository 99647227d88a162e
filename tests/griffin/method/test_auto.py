"""Sparsity auto: what a table predicts, which sparsity follows from it, and the engine that uses it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from griffin import Engine, Pruning, Sampling
from griffin.errors import InvalidRequest, LoadError
from griffin.experiments.common.results import write_whole
from griffin.method.auto import LossTable
from griffin.method.chooser import Chooser
from griffin.method.griffin_plus import GriffinPlus
from griffin.method.statistic import PromptStatistic
from griffin.method.strategies import STRATEGIES
from griffin.model.families import feed_forwards
from griffin.request import Auto
from tests.griffin import oracle
from tests.tiny import tiny_model

Prompts = Callable[[int, int], list[int]]
GREEDY = Sampling(max_tokens=6, temperature=0, ignore_eos=True)
TABLE = LossTable(
    method="griffin",
    sparsities=[0.2, 0.5],
    constants=[math.log(0.2), math.log(2.0)],
    length=-0.5,
    position=1.0,
    removed=0.5,
    prompt_tokens=[10, 400],
    least_removed=[0.005, 0.008],
    tokens=16,
    spread=0.3,
    prompts=12,
)


def test_a_product_of_powers() -> None:
    """By hand: a prompt of 100 tokens and 8 generated ones, whose mean position to the first power is 4."""
    found = TABLE.divergences(100, 8, [0.01, 0.04])

    assert found == pytest.approx([0.2 / 10 * 4 * 0.1, 2.0 / 10 * 4 * 0.2])


def test_predictions_do_not_improve_beyond_the_measured_range() -> None:
    """A longer or more concentrated prompt than any measured one is no better. A higher sparsity is never better."""
    longest = TABLE.divergences(400, 8, [0.01, 0.04])

    assert TABLE.divergences(100_000, 8, [0.01, 0.04]) == longest
    assert TABLE.divergences(5, 8, [0.01, 0.04]) > TABLE.divergences(10, 8, [0.01, 0.04])
    assert TABLE.divergences(100, 8, [0.001, 0.001]) == TABLE.divergences(100, 8, [0.005, 0.008])
    odd = TABLE.divergences(100, 8, [0.9, 1e-12])
    assert odd[1] == odd[0]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(0.0001, 0.0), (0.002, 0.05), (0.008, 0.2), (0.0591, 0.3), (0.16, 0.5), (9.0, 0.5)],
)
def test_the_largest_within_the_limit(limit: float, expected: float) -> None:
    """In steps of 0.05 up to the largest measured sparsity. Losses between two are linear, and 0 at sparsity 0."""
    found = TABLE.outlook(Auto(limit, 8), 100, [0.01, 0.04])

    assert found.sparsity == pytest.approx(expected)
    assert found.divergence <= limit
    assert found.limit == limit


def test_longer_answers_are_pruned_less() -> None:
    """Later positions lose more. An answer without a limit counts as long as the measured ones."""
    few, many, usual, measured = (
        TABLE.outlook(Auto(0.05, tokens), 100, [0.01, 0.04]).sparsity for tokens in (4, 64, None, 16)
    )

    assert few > usual == measured > many


def test_a_loss_table_in_a_file(tmp_path: Path) -> None:
    """A file is for one model. The error for a damaged one says what to do."""
    path = tmp_path / "losses" / "this.json"
    write_whole(path, TABLE.packed("this"))

    assert LossTable.read(path, "this") == TABLE
    assert LossTable.read(path, "that") is None
    assert LossTable.read(tmp_path / "nothing", "this") is None
    path.write_text('{"edition": 3, "model": "this", "method": "griffin"}')
    with pytest.raises(LoadError, match="delete it and run tune again"):
        LossTable.read(path, "this")


@torch.no_grad()
def counted(model: PreTrainedModel, ids: Sequence[int]) -> PromptStatistic:
    statistic = PromptStatistic(feed_forwards(model))
    with statistic.collecting():
        model(torch.tensor([ids]))
    return statistic


def test_what_is_removed(model: PreTrainedModel, prompts: Prompts) -> None:
    """In every family: the removed neurons' share of the tokens' energy, compared with the activations themselves."""
    ids = prompts(1, 20)
    with oracle.recorded(model) as activations, torch.no_grad():
        model(torch.tensor([ids]))
    expected = []
    for sparsity in (0.25, 0.75):
        shares = []
        for z_TF in activations:
            energy_F = oracle.statistic(z_TF).square()
            kept = oracle.statistic(z_TF).topk(round((1 - sparsity) * 52)).indices
            shares.append(1 - float(energy_F[kept].sum() / energy_F.sum()))
        expected.append(sum(shares) / len(shares))

    found = Chooser(feed_forwards(model), model.device).removed(counted(model, ids), Pruning(), [0.25, 0.75, 0.0])

    assert found == pytest.approx([*expected, 0.0], abs=1e-5)


def test_the_engine_uses_the_loss_table(prompts: Prompts) -> None:
    """The answer is that of the sparsity that was found. Each prompt has its own."""
    engine = Engine(tiny_model("llama"), losses=[TABLE])
    ids = prompts(4, 60)
    with engine.read(ids, Pruning(auto=Auto(0.1, 6))) as read:
        found = [token.id for token in read.generate(GREEDY)]
        outlook, selection = read.outlook, read.selection
    assert outlook is not None
    assert selection is not None
    named = list(engine.generate(ids, GREEDY, Pruning(outlook.sparsity)))

    assert 0 < outlook.sparsity < 0.5
    assert found == [token.id for token in named]
    assert named[1].selection is not None
    assert selection.expert_set == named[1].selection.expert_set
    with engine.read(ids, Pruning(auto=Auto(1e-9, 6))) as read:
        dense = [token.id for token in read.generate(GREEDY)]
        assert read.outlook is not None
        assert read.outlook.sparsity == 0
        assert read.selection is None
    assert dense == [token.id for token in engine.generate(ids, GREEDY)]


def test_what_was_not_measured_is_refused() -> None:
    """The error has the command that measures it, and the method that needs no measurement."""
    engine = Engine(tiny_model("llama"))
    expected = r"measured once: python -m griffin tune --method griffin .*; or name a number; or use .* 'griffin\+'$"

    with (
        pytest.raises(InvalidRequest, match=expected) as refused,
        engine.read([5, 6, 7], Pruning(method="griffin", auto=Auto(0.1))),
    ):
        pass
    assert refused.value.param == "sparsity"


@pytest.mark.parametrize(
    ("percent", "sparsity", "divergence"), [(1, 0.15, 0.0083), (5, 0.35, 0.046), (15, 0.5, 0.136), (50, 0.6, 0.29)]
)
def test_usual_losses_need_no_measurement(prompts: Prompts, percent: int, sparsity: float, divergence: float) -> None:
    """They are the same for every prompt: linear between the known sparsities, and not beyond."""
    engine = Engine(tiny_model("llama"))

    for length in (4, 60):
        with engine.read(prompts(1, length), Pruning(method="griffin+", auto=Auto(math.log1p(percent / 100)))) as read:
            assert read.outlook is not None
            assert read.outlook.sparsity == sparsity
            assert read.outlook.divergence == pytest.approx(divergence, rel=0.01)


def test_what_was_measured_counts_more_than_usual_losses(prompts: Prompts) -> None:
    """The table of this model has ten times the usual losses."""
    usual = GriffinPlus.usual_losses
    assert usual is not None
    measured = replace(usual, constants=[constant + math.log(10) for constant in usual.constants])

    engine = Engine(tiny_model("llama"), losses=[measured])
    with engine.read(prompts(1, 9), Pruning(method="griffin+", auto=Auto(0.046))) as read:
        assert read.outlook is not None
        assert read.outlook.sparsity == 0.05


@pytest.mark.parametrize(
    "others", [{"sparsity": 0.5}, {"statistic": "magnitude"}, *({"selection": s} for s in STRATEGIES if s != "top_k")]
)
def test_fields_that_exclude_sparsity_auto(others: dict) -> None:
    """A sparsity as a number, or a choice that does not follow the prompt."""
    with pytest.raises(ValueError, match="auto uses the prompt's statistic"):
        Pruning(auto=Auto(0.1), **others)
