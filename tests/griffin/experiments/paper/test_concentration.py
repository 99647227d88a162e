"""The sorted statistic: its curve and its shares, worked by hand."""

import argparse
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from griffin.experiments.common.experiment import conduct, defaults
from griffin.experiments.paper import concentration
from tests.griffin import oracle
from tests.griffin.experiments.words import BOS, random_ids, word_study
from tests.tiny import tiny_model


def test_a_curve_by_hand() -> None:
    """1, 3, 2, 5 sorted and scaled to 0..1 are 1, 1/2, 1/4, 0. The top two hold 34 of 39, the sum of squares."""
    found = concentration.curves(torch.tensor([[1.0, 3.0, 2.0, 5.0]]))

    assert found["ranks"] == [0, 1, 2, 3]
    assert found["normalised"] == [[1.0, 0.5, 0.25, 0.0]]
    assert found["upper"] == [0.25]
    assert found["tops"] == (0.05, 0.1, 0.25, 0.5)
    assert found["shares"] == [pytest.approx([25 / 39, 25 / 39, 25 / 39, 34 / 39])]


def test_equal_entries_have_no_curve() -> None:
    """There is no division by zero, and half of the neurons hold half."""
    found = concentration.curves(torch.ones(1, 8))

    assert set(found["normalised"][0]) == {0.0}
    assert found["shares"][0][-1] == pytest.approx(0.5)


def test_points_of_a_wide_layer() -> None:
    """Few points are kept, from the first to the last, and they are closer together at the head."""
    ranks = concentration.curves(torch.rand(1, 5000))["ranks"]
    steps = [after - before for before, after in pairwise(ranks)]

    assert (ranks[0], ranks[-1]) == (0, 4999)
    assert len(ranks) <= 200
    assert steps[0] == 1
    assert steps == sorted(steps) or max(abs(a - b) for a, b in zip(steps, sorted(steps), strict=True)) <= 1


def test_figures_and_picture(tmp_path: Path) -> None:
    """A model's curve is that of the oracle's statistic."""
    text, model = random_ids(1, 60), tiny_model("llama")
    study = word_study(tmp_path, text, model=model)
    arguments = argparse.Namespace(**{**vars(defaults(concentration)), "tokens": 24})
    found = conduct("gating", concentration, study, arguments)
    with torch.no_grad(), oracle.recorded(model) as activations:
        model(torch.tensor([[BOS, *text[:23]]]))

    assert found["tokens"] == 24
    for layer, z_TF in enumerate(activations):
        sorted_F = oracle.statistic(z_TF).sort(descending=True).values
        expected = (sorted_F - sorted_F[-1]) / (sorted_F[0] - sorted_F[-1])
        assert found["normalised"][layer] == pytest.approx(expected[found["ranks"]].tolist(), abs=1e-4)
    assert (tmp_path / "tiny" / "gating.svg").stat().st_size > 0


def test_a_second_run_reads_the_ledger(tmp_path: Path) -> None:
    """The same text is read once."""
    study = word_study(tmp_path, random_ids(1, 60))
    lines = []
    for tokens in (24, 24, 25):
        concentration.measure(study, argparse.Namespace(corpus="books", tokens=tokens))
        lines.append(len((tmp_path / "tiny" / "ledger.jsonl").read_text().splitlines()))

    assert lines == [1, 1, 2]


def found_with(upper: list[float]) -> dict[str, Any]:
    return {"upper": upper, "shares": [[0.2, 0.4, 0.6, 0.8]] * len(upper), "tops": [0.05, 0.1, 0.25, 0.5]}


@pytest.mark.parametrize(("flat", "holds"), [(1, True), (2, False)])
def test_nearly_all_layers(flat: int, holds: bool) -> None:
    """Nine of ten are nearly all; eight are not."""
    (claim,) = concentration.claims(found_with([0.05] * flat + [0.01] * (10 - flat)))

    assert claim.holds is holds
    assert f"In {10 - flat} of 10 layers, fewer than 5 % of the neurons" in claim.here
    assert "hold 40 % of the sum of s squared" in claim.here


def test_the_table_is_over_the_layers() -> None:
    """Lowest, median and highest."""
    found = {"shares": [[0.1], [0.4], [0.2]], "tops": [0.05], "tokens": 9, "corpus": "books"}

    assert concentration.tables(found)[0].rows == [("top 5 %", "10.0 %", "20.0 %", "40.0 %")]
