"""Jaccard similarity of top-k sets: on sets worked by hand, and on a model with Python's own sets."""

import argparse
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from torch import Generator

from griffin.experiments.common.experiment import conduct, defaults
from griffin.experiments.paper import jaccard
from griffin.method.strategies import top_k
from tests.griffin import oracle
from tests.griffin.experiments.words import BOS, random_ids, word_study
from tests.tiny import tiny_model


def test_sets_of_three_samples() -> None:
    """k = 2: {0, 1}, {1, 2}, {0, 1} give 1/3, 1, 1/3. k = 1: {0}, {1}, {1} give 0, 0, 1. k = 3: all are equal."""
    ranks_SLF = torch.tensor([[[0, 1, 2]], [[2, 0, 1]], [[1, 0, 2]]])

    found = jaccard.jaccard(ranks_SLF, [1, 2, 3])[0].tolist()

    assert found == pytest.approx([1 / 3, (1 / 3 + 1 + 1 / 3) / 3, 1.0])


def test_ranks_are_the_selection() -> None:
    """The neurons of rank below k are those that GRIFFIN keeps, also with equal values."""
    statistic_LF = torch.randint(0, 6, (3, 40), generator=Generator().manual_seed(0)).float()
    ranks_LF = jaccard.ranking(statistic_LF)

    assert jaccard.ranking(torch.tensor([[2.0, 5.0, 2.0, 9.0]])).tolist() == [[2, 1, 3, 0]]
    for k in (1, 7, 40):
        kept_Lk = (ranks_LF < k).nonzero()[:, 1].view(3, k)
        assert kept_Lk.equal(top_k(statistic_LF, k, Generator()))


@pytest.mark.parametrize("width", [52, 2**16, 2**16 + 2])
def test_ranks_of_wide_layers(width: int) -> None:
    """They come out of the ledger unchanged, also if they need more than 16 bits."""
    ranks_LF = torch.stack([torch.arange(width), torch.arange(width).flip(0)])

    assert jaccard.decoded(jaccard.encoded(ranks_LF), 2, width).equal(ranks_LF.int())


def test_by_chance() -> None:
    """Two random halves share a quarter of the neurons and have three quarters together. Sets of all are equal."""
    assert jaccard.by_chance(0.5) == pytest.approx(0.25 / 0.75)
    assert jaccard.by_chance(1.0) == 1.0


def arguments(**changes: object) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(defaults(jaccard)), "tokens": 12, "samples": 3, **changes})


def test_figures_and_picture(tmp_path: Path) -> None:
    """Three samples of a model in fp32: their sets by the oracle's statistic, compared as sets."""
    text, model = random_ids(1, 40), tiny_model("llama")
    study = word_study(tmp_path, text, model=model)
    found = conduct("jaccard", jaccard, study, arguments(fractions=[0.5, 0.1]))
    tops: list[list[set[int]]] = []
    for first in (0, 14, 29):
        with torch.no_grad(), oracle.recorded(model) as activations:
            model(torch.tensor([[BOS, *text[first : first + 11]]]))
        tops.append([set(oracle.statistic(z_TF).topk(26).indices.tolist()) for z_TF in activations])

    assert found["fractions"] == [0.1, 0.5]
    assert found["counts"] == [5, 26]
    for layer in range(3):
        pairs = combinations([sample[layer] for sample in tops], 2)
        assert found["jaccard"][layer][1] == pytest.approx(mean(len(a & b) / len(a | b) for a, b in pairs))
    assert (tmp_path / "tiny" / "jaccard.svg").stat().st_size > 0


def test_a_run_that_was_stopped_goes_on(tmp_path: Path) -> None:
    """Each sample is kept once it is read. Other sizes of the sets need no new reading."""
    study, path = word_study(tmp_path, random_ids(1, 40)), tmp_path / "tiny" / "ledger.jsonl"
    once = jaccard.measure(study, arguments())
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:2]) + "\n")
    resumed = word_study(tmp_path, random_ids(1, 40))
    again = jaccard.measure(resumed, arguments())
    after = path.read_text().splitlines()
    jaccard.measure(resumed, arguments(fractions=[0.3]))

    assert len(lines) == len(after) == 3
    assert again == once
    assert path.read_text().splitlines() == after


def test_sizes_of_sets() -> None:
    """Above 0 and up to 1."""
    assert jaccard.fraction("1") == 1.0
    for text in ("0", "1.01", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not above 0"):
            jaccard.fraction(text)


def found_with(fractions: list[float], values: list[list[float]]) -> dict[str, Any]:
    return {"fractions": fractions, "jaccard": values, "samples": 3, "tokens": 9, "counts": [1] * len(fractions)}


def test_the_vast_majority_of_layers() -> None:
    """Four of five layers below one half are a vast majority; three of five are not."""
    found = found_with([0.1, 0.5], [[0.2, 0.4], [0.3, 0.5], [0.3, 0.6], [0.4, 0.7], [0.9, 0.9]])
    (claim,) = jaccard.claims(found)
    found["jaccard"][3][0] = 0.6
    (other,) = jaccard.claims(found)

    assert claim.holds is True
    assert "below 0.5 in 4 of 5 layers (median 0.30, random sets 0.05" in claim.here
    assert "The median layer reaches 0.5 at 50 % of the neurons. At 50 % it is 0.60 (random sets 0.33)." in claim.here
    assert other.holds is False


def test_large_sets_alone_tell_nothing() -> None:
    """The claim is about small sets: up to a fifth of the neurons."""
    (claim,) = jaccard.claims(found_with([0.21, 0.9], [[0.2, 0.4]]))
    (small,) = jaccard.claims(found_with([0.2, 0.9], [[0.2, 0.4]]))

    assert claim.holds is None
    # Of two random sets of 90 %, 81 % are in both and 99 % in either.
    assert "stays below 0.5 at all sizes. At 90 % it is 0.40 (random sets 0.82)." in claim.here
    assert small.holds is True
