"""The paper's numbers, compared with those of this run."""

import math
from typing import Any

import pytest

from griffin.experiments.report.comparison import comparison
from griffin.experiments.report.published import SCORES, TABLE_2, TABLE_3, TABLE_4
from griffin.experiments.tasks.names import CLASSIFICATION, GENERATION, REASONING
from griffin.experiments.tasks.scores import METRICS, TITLES

SIX = ["Llama 2 7B", "Llama 2 13B", "Gemma 7B", "Mistral 7B", "OPT 6.7B", "OPT 13B"]
THREE = ["full", "magnitude", "GRIFFIN"]


@pytest.mark.parametrize(
    ("name", "number", "models", "variants", "columns"),
    [
        ("classification", 1, SIX, THREE, 6),
        ("generation", 2, [*SIX, "ReluLlama 2 7B"], THREE, 9),
        ("selection", 4, ["Llama 2 7B", "Gemma 7B"], ["full", "top-k", "sampling", "top-k + sampling"], 9),
    ],
)
def test_every_row_is_there(name: str, number: int, models: list[str], variants: list[str], columns: int) -> None:
    """Each model has each variant, with a percentage for each column."""
    table = SCORES[name]

    assert (table.number, list(table.rows)) == (number, models)
    for row in table.rows.values():
        assert list(row) == variants
        assert {len(figures) for figures in row.values()} == {columns}
        assert all(0 <= figure < 100 for figures in row.values() for figure in figures)
    assert len(table.columns) == columns == len(set(table.columns))


@pytest.mark.parametrize(
    ("name", "model", "variant", "task", "metric", "printed"),
    [
        ("classification", "Llama 2 7B", "full", "hellaswag", "acc", 57.16),
        ("classification", "Gemma 7B", "magnitude", "copa", "acc", 57.00),
        ("classification", "OPT 13B", "GRIFFIN", "boolq", "acc", 67.65),
        ("generation", "Llama 2 7B", "GRIFFIN", "xsum", "rouge1", 24.75),
        ("generation", "Gemma 7B", "magnitude", "coqa", "em", 1.50),
        ("generation", "ReluLlama 2 7B", "GRIFFIN", "qasper", "f1", 22.29),
        ("selection", "Gemma 7B", "top-k + sampling", "cnn_dm", "rougeL", 7.52),
        ("selection", "Llama 2 7B", "sampling", "coqa", "f1", 76.15),
    ],
)
def test_cells(name: str, model: str, variant: str, task: str, metric: str, printed: float) -> None:
    """A figure is found by its model, variant, task and metric."""
    assert SCORES[name].score(model, variant, task, metric) == printed


def test_two_tables_agree() -> None:
    """Table 4 repeats rows of Table 2."""
    for model, rows in TABLE_4.items():
        assert rows["full"] == TABLE_2[model]["full"]
        assert rows["top-k"] == TABLE_2[model]["GRIFFIN"]


def test_the_papers_speedups() -> None:
    """Section 5.2 names 1.25x and 1.16x for long generations at half the neurons; its table has the same."""
    long = {row.model: row.full / row.griffin[0] for row in TABLE_3 if row.tokens == 2048}

    assert len(TABLE_3) == 4
    assert math.floor(long["Llama 2 13B"] * 100) / 100 == 1.25
    assert math.floor(long["Gemma 7B"] * 100) / 100 == 1.16


def test_tasks_and_metrics_have_names() -> None:
    """The tables have the paper's ten tasks, and no other."""
    columns = {column for table in SCORES.values() for column in table.columns}

    assert {task for task, _ in columns} == set(CLASSIFICATION + GENERATION)
    assert {metric for _, metric in columns} < set(METRICS)
    assert set(TITLES) == set(CLASSIFICATION + GENERATION + REASONING)


def variant(name: str, sparsity: float = 0.0) -> dict[str, Any]:
    return {"name": name, "sparsity": sparsity, "statistic": "flocking", "selection": "top_k"}


def test_scores_beside_the_papers() -> None:
    """This run comes first, with items and standard errors. A task that was not run is a dash."""
    found = {
        "variants": [variant("full"), variant("GRIFFIN", 0.5)],
        "tasks": {"piqa": {"items": 200, "metrics": ["acc"]}},
        "scores": {"piqa": {"full": {"acc": 0.685, "acc_stderr": 0.0329}, "GRIFFIN": {"acc": 0.66}}},
    }
    table = comparison("classification", {"tiny": found})

    assert table is not None
    assert table.heads[:3] == ["", "HellaSwag accuracy", "PIQA accuracy"]
    assert table.rows[:3] == [
        ["tiny, items", "-", "200", "-", "-", "-", "-"],
        ["tiny, full", "-", "68.5 ± 3.3", "-", "-", "-", "-"],
        ["tiny, GRIFFIN 50 %", "-", "66.0", "-", "-", "-", "-"],
    ]
    assert table.rows[3] == ["Llama 2 7B, full", "57.16", "78.07", "87.00", "76.35", "43.34", "77.71"]
    assert len(table.rows) == 3 + 6 * 3


def test_several_metrics_share_a_cell() -> None:
    """As in the paper: ROUGE-1/2/L, F1/EM."""
    scores = {"rouge1": 0.25, "rouge2": 0.05, "rougeL": 0.2, "rouge1_stderr": 0.01}
    found = {
        "variants": [variant("full")],
        "tasks": {"xsum": {"items": 50, "metrics": ["rouge1", "rouge2", "rougeL"]}},
        "scores": {"xsum": {"full": scores}},
    }
    table = comparison("generation", {"one": found, "two": found})

    assert table is not None
    assert table.heads[1:] == ["XSum ROUGE-1/2/L", "CNN/DailyMail ROUGE-1/2/L", "CoQA F1/EM", "QASPER F1"]
    assert table.rows[1] == ["one, full", "25.0 / 5.0 / 20.0", "-", "-", "-"]
    assert table.rows[3] == ["two, full", "25.0 / 5.0 / 20.0", "-", "-", "-"]
    assert table.rows[-1] == [
        "ReluLlama 2 7B, GRIFFIN", "21.83 / 5.88 / 18.09", "16.85 / 4.96 / 14.69", "78.35 / 67.10", "22.29",
    ]  # fmt: skip


def timed(name: str, sparsity: float, seconds: float) -> dict[str, Any]:
    spread = {"median": seconds, "lowest": seconds, "highest": seconds}
    return {"name": name, "sparsity": sparsity, "generation_seconds": spread, "prefill_seconds": spread}


def test_speed_beside_the_papers() -> None:
    """Sparsities share a cell, as in Table 3. The speedup is the full model's time over GRIFFIN's."""
    rows = [timed("full", 0, 3.0), timed("magnitude", 0.5, 2.0), timed("GRIFFIN", 0.5, 2.5), timed("GRIFFIN", 0.75, 2)]
    found = {"settings": [{"prompt_tokens": 64, "tokens": 16, "rows": rows}]}
    table = comparison("latency", {"tiny": found})

    assert table is not None
    assert table.rows[0] == ["tiny", "64+16", "3.00", "3.00", "2.00", "2.50 / 2.00", "1.20x / 1.50x"]
    assert table.rows[1] == ["Llama 2 13B", "2048+128", "0.5", "6.8", "5.4 / 5.0", "5.4 / 5.1", "1.26x / 1.33x"]
    assert "at 50 % / 75 % sparsity" in table.caption


def test_figures_have_no_numbers() -> None:
    """There is no comparison if the paper has only a picture, or if the experiment found nothing."""
    assert comparison("sparsity", {"tiny": {}}) is None
    assert comparison("classification", {}) is None
