"""Scores by variant: the table, the relative scores, and the claims about the paper's findings."""

import math
from pathlib import Path
from typing import Any

import pytest

from griffin.experiments.common.experiment import Experiment, conduct, defaults
from griffin.experiments.common.study import Study
from griffin.experiments.paper import classification, generation, sparsity
from griffin.experiments.paper import strategies as selection
from griffin.experiments.tasks.evaluation import kept_error
from griffin.experiments.tasks.scores import mean_relative, relative, score_table, telling, where
from griffin.model.loading import Checkpoint
from tests.griffin.experiments.data import write_data
from tests.tiny import tiny_model


def variant(name: str, sparsity: float = 0.5) -> dict[str, Any]:
    return {
        "name": name,
        "sparsity": 0.0 if name == "full" else sparsity,
        "statistic": "flocking",
        "selection": "top_k",
    }


def accuracies(**scores: dict[str, float]) -> dict[str, Any]:
    """Accuracies on 100 items each, by task and variant."""
    names = next(iter(scores.values())).keys()
    return {
        "variants": [variant(name) for name in names],
        "tasks": {t: {"items": 100, "metrics": ["acc"], "shots": 0, "chance": 0.5} for t in scores},
        "scores": {t: {v: {"acc": a, "acc_stderr": 0.05} for v, a in own.items()} for t, own in scores.items()},
    }


def f1s(**scores: float) -> dict[str, Any]:
    """F1 scores of one task, by variant."""
    own = {name: {"f1": score} for name, score in scores.items()}
    return {
        "variants": [variant(name) for name in own],
        "tasks": {"qasper": {"items": 10, "metrics": ["f1"], "shots": 0, "chance": None}},
        "scores": {"qasper": own},
    }


def test_the_table() -> None:
    """Percentages, and the standard errors of the full model's."""
    found = accuracies(piqa={"full": 0.8, "magnitude": 0.6, "GRIFFIN": 0.76})

    assert score_table(found).text().splitlines() == [
        "                  PIQA",
        "items              100",
        "full       80.00 ± 5.0",
        "magnitude        60.00",
        "GRIFFIN          76.00",
    ]


def test_relative_scores() -> None:
    """Relative to the full model. 100 guesses have an error of 0.05, so a task at 0.6 is left out of the mean."""
    found = accuracies(
        piqa={"full": 0.8, "GRIFFIN": 0.76}, copa={"full": 0.6, "GRIFFIN": 0.6}, boolq={"full": 0.61, "GRIFFIN": 0.305}
    )

    assert relative(found, "piqa", "GRIFFIN") == pytest.approx(0.95)
    assert telling(found) == ["piqa", "boolq"]
    assert mean_relative(found, "GRIFFIN") == pytest.approx((0.95 + 0.5) / 2)
    assert where(found) == "over the 2 of 3 tasks that the full model can do"


def test_nothing_is_said_of_what_the_full_model_cannot_do() -> None:
    """A score of 0 cannot get worse."""
    found = f1s(full=0.0, GRIFFIN=0.0, magnitude=0.0)

    assert math.isnan(relative(found, "qasper", "GRIFFIN"))
    assert telling(found) == []
    assert math.isnan(mean_relative(found, "GRIFFIN"))
    assert held(generation, found) == [None, None, None]


def test_errors_of_pairs() -> None:
    """By hand: kept is 2/3; residuals 1/3, -2/3, 1/3 and 0 have squares of 6/9; over 4 x 3, root, times 4/3."""
    assert kept_error([1, 1, 1, 0], [1, 0, 1, 0]) == pytest.approx(math.sqrt(6 / 9 / 12) * 4 / 3)
    assert kept_error([0.5, 0.1], [0.5, 0.1]) == kept_error([0, 0], [1, 0]) == kept_error([1], [0]) == 0


def held(experiment: Experiment, found: dict[str, Any]) -> list[bool | None]:
    return [claim.holds for claim in experiment.claims(found)]


def test_claims_on_classification() -> None:
    """Only tasks that the full model can do count: here 0.76 / 0.8 and 0.6 / 0.8, not COPA's 1.2."""
    copa = {"full": 0.5, "magnitude": 0.5, "GRIFFIN": 0.6}
    better = accuracies(piqa={"full": 0.8, "magnitude": 0.6, "GRIFFIN": 0.76}, copa=copa)
    worse = accuracies(piqa={"full": 0.8, "magnitude": 0.75, "GRIFFIN": 0.7}, copa=copa)

    assert held(classification, better) == [True, True]
    assert held(classification, worse) == [False, False]
    assert held(classification, accuracies(copa=copa)) == [None, None]
    # 0.95 and 0.75 differ by less than two errors of the difference: 2 x sqrt(2) x 0.11 = 2 x 0.156.
    for name in ("magnitude", "GRIFFIN"):
        better["scores"]["piqa"][name]["acc_kept_stderr"] = 0.11
    assert held(classification, better) == [True, None]
    assert "95 % ± 11 %" in classification.claims(better)[0].here


def test_claims_on_generation() -> None:
    """Full >= GRIFFIN, GRIFFIN preserves, magnitude scores less than half of GRIFFIN's; by tasks."""
    assert held(generation, f1s(full=0.5, magnitude=0.1, GRIFFIN=0.46)) == [True, True, True]
    assert held(generation, f1s(full=0.5, magnitude=0.2, GRIFFIN=0.3)) == [True, False, False]
    above = f1s(full=0.5, magnitude=0.2, GRIFFIN=0.55)
    assert held(generation, above) == [False, True, True]
    above["scores"]["qasper"]["GRIFFIN"]["f1_kept_stderr"] = 0.06
    assert held(generation, above) == [True, True, True]


def test_claims_on_selection() -> None:
    """Each pair of the order is a claim."""
    own = {"full": 0.5, "top-k": 0.4, "sampling": 0.2, "top-k + sampling": 0.3}

    assert held(selection, f1s(**own)) == [True, True, True]
    assert held(selection, f1s(**{**own, "sampling": 0.35})) == [True, False, True]
    assert held(selection, f1s(**{**own, "full": 0.0})) == [None, None, None]


def test_claims_on_sparsity() -> None:
    """How many tasks keep nine tenths, at the sparsity nearest to 50 %."""
    found = accuracies(piqa={"full": 0.8, "GRIFFIN 50 %": 0.73}, boolq={"full": 0.8, "GRIFFIN 50 %": 0.71})

    (claim,) = sparsity.claims(found)
    assert claim.holds is False
    assert "keeps at least 90 % of the full model's score in 1 of 2 tasks" in claim.here
    assert "(PIQA)" in claim.here


@pytest.mark.parametrize(
    ("name", "experiment", "columns"),
    [
        ("classification", classification, 3),
        ("generation", generation, 3),
        ("selection", selection, 4),
        ("sparsity", sparsity, 3),
    ],
)
def test_the_small_form(name: str, experiment: Experiment, columns: int, smollm2: Checkpoint, tmp_path: Path) -> None:
    """Each experiment on a tiny model and made-up items: measured, kept, drawn. A second run finds the same."""
    model = tiny_model("llama", vocab_size=49152, max_position_embeddings=512)
    study = Study(Checkpoint("tiny", model, smollm2.tokenizer), write_data(tmp_path / "data"), tmp_path / "out")
    flags = defaults(experiment)
    flags.limit = 1
    if name == "sparsity":
        flags.sparsities, flags.tasks = [0.5, 0.9], ["piqa", "qasper"]
    found = conduct(name, experiment, study, flags)
    again = conduct(name, experiment, Study(study.checkpoint, study.data, study.folder), flags)

    assert len(found["variants"]) == columns
    assert set(found["scores"]) == set(flags.tasks)
    assert again["scores"] == found["scores"]
    assert "prefers-color-scheme" in (tmp_path / f"out/{name}.svg").read_text()
    assert all(table.text() and table.markdown() for table in experiment.tables(found))
    assert experiment.claims(found)
