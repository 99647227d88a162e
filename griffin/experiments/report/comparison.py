"""Comparison: this run's figures beside the paper's, in one table. Scores are in percent, times in seconds."""

from collections.abc import Mapping, Sequence
from typing import Any

from griffin.experiments.common.results import Table
from griffin.experiments.report.published import SCORES, TABLE_3, PaperTable
from griffin.experiments.tasks.scores import METRICS, TITLES

Founds = Mapping[str, Mapping[str, Any]]


def comparison(name: str, founds: Founds) -> Table | None:
    """The table for one experiment. Models of this run come first, then the paper's.

    Args:
        name: of the experiment.
        founds: its results for each model.

    Returns:
        None if the paper has no figures for it, or if there are no results.
    """
    if not founds:
        return None
    if name == "latency":
        return _latency(founds)
    return _scores(SCORES[name], founds) if name in SCORES else None


def _scores(table: PaperTable, founds: Founds) -> Table:
    rows = [row for model, found in founds.items() for row in _own_rows(model, found, table)]
    for model, variants in table.rows.items():
        for variant in variants:
            cells = [
                " / ".join(f"{table.score(model, variant, task, metric):.2f}" for metric in metrics)
                for task, metrics in table.metrics.items()
            ]
            rows.append([f"{model}, {variant}", *cells])
    return Table(
        ["", *(_head(task, metrics) for task, metrics in table.metrics.items())],
        rows,
        f"This run and the paper's Table {table.number}. The models of this run come first, with their number of "
        "items; ± is one standard error. The paper's models follow, at 50 % sparsity. The items and some prompts "
        "differ from the paper's, so compare what pruning changes, not the scores themselves.",
    )


def _head(task: str, metrics: Sequence[str]) -> str:
    first, *others = [METRICS[metric] for metric in metrics]
    return f"{TITLES[task]} {'/'.join([first, *(other.removeprefix('ROUGE-') for other in others)])}"


def _own_rows(model: str, found: Mapping[str, Any], table: PaperTable) -> list[list[str]]:
    items = [str(found["tasks"].get(task, {}).get("items") or "-") for task in table.metrics]
    rows = [[f"{model}, items", *items]]
    for variant in found["variants"]:
        label = variant["name"]
        if variant["sparsity"] and "%" not in label:
            label += f" {variant['sparsity'] * 100:.3g} %"
        cells = [
            _cell(found["scores"].get(task, {}).get(variant["name"], {}), metrics)
            for task, metrics in table.metrics.items()
        ]
        rows.append([f"{model}, {label}", *cells])
    return rows


def _cell(scores: Mapping[str, float], metrics: Sequence[str]) -> str:
    if any(metric not in scores for metric in metrics):
        return "-"
    shown = " / ".join(f"{scores[metric] * 100:.1f}" for metric in metrics)
    error = scores.get(f"{metrics[0]}_stderr")
    return shown if error is None or len(metrics) > 1 else f"{shown} ± {error * 100:.1f}"


def _latency(founds: Founds) -> Table:
    rows = [_own_latency(model, setting) for model, found in founds.items() for setting in found["settings"]]
    for row in TABLE_3:
        rows.append(
            [
                row.model,
                f"{row.prompt_tokens}+{row.tokens}",
                f"{row.prompt:.1f}",
                f"{row.full:.1f}",
                " / ".join(f"{seconds:.1f}" for seconds in row.magnitude),
                " / ".join(f"{seconds:.1f}" for seconds in row.griffin),
                " / ".join(f"{row.full / seconds:.2f}x" for seconds in row.griffin),
            ]
        )
    sparsities = sorted(
        {row["sparsity"] for found in founds.values() for setting in found["settings"] for row in setting["rows"]}
    )
    here = " / ".join(f"{sparsity * 100:.3g} %" for sparsity in sparsities if sparsity)
    return Table(
        ["", "P+G", "prompt", "full", "magnitude", "GRIFFIN", "full over GRIFFIN"],
        rows,
        "This run and the paper's Table 3: seconds to read a prompt of P tokens, and seconds to generate G more. This "
        f"run comes first, at {here} sparsity. The paper's rows follow, at 50 % / 75 %, in fp16 on an NVIDIA L40.",
        words=2,
    )


def _own_latency(model: str, setting: Mapping[str, Any]) -> list[str]:
    seconds: dict[str, list[float]] = {"full": [], "magnitude": [], "GRIFFIN": []}
    for row in setting["rows"]:
        if row["name"] in seconds:
            seconds[row["name"]].append(row["generation_seconds"]["median"])
    prompt = next(row["prefill_seconds"]["median"] for row in setting["rows"] if row["name"] == "full")
    (full,) = seconds["full"]
    return [
        model,
        f"{setting['prompt_tokens']}+{setting['tokens']}",
        f"{prompt:.2f}",
        *(" / ".join(f"{value:.2f}" for value in own) or "-" for own in seconds.values()),
        " / ".join(f"{full / value:.2f}x" for value in seconds["GRIFFIN"]) or "-",
    ]
