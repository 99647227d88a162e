"""Evaluation: lm-eval's scores of each task for each variant. All experiments on tasks use it.

This module imports lm-eval, which takes seconds. So import it inside functions.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import fmean, stdev
from typing import Any

import datasets  # type: ignore[import-untyped]
import lm_eval.api.task  # type: ignore[import-untyped]
from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]
from tqdm import tqdm  # type: ignore[import-untyped]

from griffin.experiments.common.study import Study
from griffin.experiments.common.variants import Variant
from griffin.experiments.tasks.definitions import TASKS, make_manager, make_task
from griffin.experiments.tasks.harness import GriffinLM

# The scores of one variant: for each metric, one for each item.
Items = dict[str, list[float]]


def evaluate(
    study: Study, names: Sequence[str], variants: Sequence[Variant], limit: int | None, max_length: int | None
) -> dict[str, Any]:
    """Scores of each task for each variant, from 0 to 1, with standard errors.

    ``METRIC_kept_stderr`` is the standard error of the score over the first variant's. For multiple choice there is
    also ``excess``: the negative log-likelihood of the right answer above the first variant's, in nats. It shows small
    differences between variants; a score changes only when another answer wins.

    Args:
        limit: items of each task. None takes each task's own number, 0 takes all.
        max_length: longer prompts lose their beginning, as in lm-eval. None: the model's context.

    Returns:
        ``variants``, ``tasks`` (facts about each task), ``scores`` (by task, then by variant).

    Raises:
        GriffinError: data of a task are missing or wrong.
    """
    with _quiet():
        return _evaluate(study, names, variants, limit, max_length)


def _evaluate(
    study: Study, names: Sequence[str], variants: Sequence[Variant], limit: int | None, max_length: int | None
) -> dict[str, Any]:
    manager = make_manager(study.data)
    models = {variant.name: GriffinLM.of(study, variant, variants, max_length) for variant in variants}
    # Check all data before anything is computed.
    counts = {name: len(make_task(name, study.data, manager).eval_docs) for name in names}
    tasks: dict[str, Any] = {}
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for name in names:
        spec = TASKS[name]
        wanted = _items(counts[name], spec.items if limit is None else limit)
        found = {own: _evaluated(study, name, model, wanted, manager) for own, model in models.items()}
        full = next(iter(found.values()))
        tasks[name] = {
            "items": wanted,
            "metrics": list(spec.metrics),
            "shots": spec.shots,
            "chance": _chance(spec.chance, full),
            "max_length": models[variants[0].name].max_length,
            "cut": len(models[variants[0].name].cut),
        }
        scores[name] = {
            own: {
                **_scores(study, name, values),
                **_kept_errors(_by_item(name, full), _by_item(name, values)),
                **(_excess(full, values) if spec.chance is not None else {}),
            }
            for own, values in found.items()
        }
    return {"variants": [variant.as_json() for variant in variants], "tasks": tasks, "scores": scores}


def _items(there: int, wanted: int) -> int:
    return min(there, wanted or there)


def _evaluated(study: Study, name: str, model: GriffinLM, items: int, manager: TaskManager) -> dict[str, Any]:
    """lm-eval's own result for one task and one variant."""
    model.doing = name
    model.cut.clear()
    # A task keeps its answers, so each variant needs its own task. (simple_evaluate would list all installed packages
    # each time, for its records.)
    loaded = manager.load([make_task(name, study.data, manager)])
    found: dict[str, Any] = lm_eval.evaluate(lm=model, task_dict=loaded, limit=items, bootstrap_iters=1000)
    return found


def _scores(study: Study, name: str, found: dict[str, Any]) -> dict[str, float]:
    (values,) = found["results"].values()
    # The scorer of SCROLLS, which comes from the hub, returns percents.
    unit = 100 if study.data is None and name == "qasper" else 1
    return {
        key: float(values[f"{key},none"]) / unit
        for metric in TASKS[name].metrics
        for key in (metric, f"{metric}_stderr")
        if isinstance(values.get(f"{key},none"), float | int)
    }


def _by_item(name: str, found: dict[str, Any]) -> Items:
    (samples,) = found["samples"].values()
    return {metric: [sample[metric] for sample in samples] for metric in TASKS[name].metrics}


def _chance(guessing: float | None, found: dict[str, Any]) -> float | None:
    """The score of guessing. If all items have the same choices (yes and no): the share of the most frequent answer."""
    if guessing is None:
        return None
    (samples,) = found["samples"].values()
    if len({tuple(choice for _, choice, *_ in sample["arguments"]) for sample in samples}) > 1:
        return guessing
    answers = Counter(str(sample["target"]) for sample in samples)
    return max(guessing, max(answers.values()) / len(samples))


def _kept_errors(full: Items, pruned: Items) -> dict[str, float]:
    """``METRIC_kept_stderr``: the standard error of the pruned score over the full model's.

    Both models answered the same items, so the ratio is more certain than the two scores. There
    is no entry if each item has the same score for both, or if the full model's score is 0.
    """
    found: dict[str, float] = {}
    for metric, values in full.items():
        if all(isinstance(value, float | int) for value in (*values, *pruned[metric])):
            error = kept_error(values, pruned[metric])
            found |= {f"{metric}_kept_stderr": error} if error else {}
    return found


def kept_error(full: Sequence[float], pruned: Sequence[float]) -> float:
    """The standard error of the ratio of two means over the same items (as in survey sampling); 0 if it has none."""
    count, total = len(full), sum(full)
    if count < 2 or not total:
        return 0.0
    ratio = sum(pruned) / total
    residuals = sum((after - ratio * before) ** 2 for before, after in zip(full, pruned, strict=True))
    return math.sqrt(residuals / (count * (count - 1))) * count / total


def _excess(full: dict[str, Any], pruned: dict[str, Any]) -> dict[str, float]:
    """``excess``, the mean over items that both models answered, and its standard error."""
    pairs = zip(_right_answers(full), _right_answers(pruned), strict=True)
    losses = [before - after for before, after in pairs]
    error = stdev(losses) / math.sqrt(len(losses)) if len(losses) > 1 else 0.0
    return {"excess": fmean(losses), "excess_stderr": error}


def _right_answers(found: dict[str, Any]) -> list[float]:
    """The log-likelihood of the right answer of each item."""
    (samples,) = found["samples"].values()
    return [float(sample["filtered_resps"][_right(sample)][0]) for sample in samples]


def _right(sample: dict[str, Any]) -> int:
    """The index of the right answer. lm-eval's sample has it, or for some tasks the text of the answer."""
    target = sample["target"]
    if isinstance(target, int):
        return target
    return [choice.strip() for _, choice, *_ in sample["arguments"]].index(target.strip())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence progress bars and warnings of libraries about things that are intended."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    # This bar cannot be switched off. Its loop takes no time.
    bar, lm_eval.api.task.tqdm = lm_eval.api.task.tqdm, partial(tqdm, disable=True)
    try:
        yield
    finally:
        lm_eval.api.task.tqdm = bar
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        datasets.enable_progress_bars()
