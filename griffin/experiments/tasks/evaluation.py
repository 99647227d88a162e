"""Tasks by variants: what lm-eval finds for each, as one table of scores. The experiments on tasks share it.

It imports lm-eval, which takes seconds: experiments import it when they run.
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
from griffin.experiments.tasks.harness import GriffinLM
from griffin.experiments.tasks.tasks import TASKS, make_manager, make_task

# Of one variant: for each metric, each item's score.
Items = dict[str, list[float]]


def evaluate(
    study: Study, names: Sequence[str], variants: Sequence[Variant], limit: int | None, max_length: int | None
) -> dict[str, Any]:
    """Scores from 0 to 1 with their standard errors, and those of what is kept of the first variant's scores.

    Where answers are chosen, also ``excess``: the negative log-likelihood of the right answer over the first
    variant's, in nats. It tells variants apart long before scores do, which change only where another answer wins.

    Args:
        limit: items of each task; None takes each task's own number, 0 all there are.
        max_length: longer prompts lose their beginning, as lm-eval does it; None: the model's context.
    """
    with _quiet():
        return _evaluate(study, names, variants, limit, max_length)


def _evaluate(
    study: Study, names: Sequence[str], variants: Sequence[Variant], limit: int | None, max_length: int | None
) -> dict[str, Any]:
    manager = make_manager(study.data)
    models = {variant.name: GriffinLM.of(study, variant, variants, max_length) for variant in variants}
    # All data are looked at before anything is computed.
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
    """What lm-eval finds."""
    model.doing = name
    model.cut.clear()
    # A task keeps what it was answered: each variant has its own. (simple_evaluate would list all installed packages
    # each time, for its own records.)
    loaded = manager.load([make_task(name, study.data, manager)])
    found: dict[str, Any] = lm_eval.evaluate(lm=model, task_dict=loaded, limit=items, bootstrap_iters=1000)
    return found


def _scores(study: Study, name: str, found: dict[str, Any]) -> dict[str, float]:
    (values,) = found["results"].values()
    # SCROLLS' own scorer, which only the hub has, speaks of percents.
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
    """What guessing scores; or, where all items have the same choices (yes and no), the most frequent answer alone."""
    if guessing is None:
        return None
    (samples,) = found["samples"].values()
    if len({tuple(choice for _, choice, *_ in sample["arguments"]) for sample in samples}) > 1:
        return guessing
    answers = Counter(str(sample["target"]) for sample in samples)
    return max(guessing, max(answers.values()) / len(samples))


def _kept_errors(full: Items, pruned: Items) -> dict[str, float]:
    """Standard errors of the part of the full model's score that is kept, ``METRIC_kept_stderr``.

    Both answered the same items, which tells small changes apart that two scores alone could not. None where no item
    was scored otherwise, or the full model has 0: so few items say no more.
    """
    found: dict[str, float] = {}
    for metric, values in full.items():
        if all(isinstance(value, float | int) for value in (*values, *pruned[metric])):
            error = kept_error(values, pruned[metric])
            found |= {f"{metric}_kept_stderr": error} if error else {}
    return found


def kept_error(full: Sequence[float], pruned: Sequence[float]) -> float:
    """Of the ratio of two means over the same items (the usual estimator of survey sampling); 0 if there is none."""
    count, total = len(full), sum(full)
    if count < 2 or not total:
        return 0.0
    ratio = sum(pruned) / total
    residuals = sum((after - ratio * before) ** 2 for before, after in zip(full, pruned, strict=True))
    return math.sqrt(residuals / (count * (count - 1))) * count / total


def _excess(full: dict[str, Any], pruned: dict[str, Any]) -> dict[str, float]:
    """Of items that both answered, with its standard error."""
    pairs = zip(_right_answers(full), _right_answers(pruned), strict=True)
    losses = [before - after for before, after in pairs]
    error = stdev(losses) / math.sqrt(len(losses)) if len(losses) > 1 else 0.0
    return {"excess": fmean(losses), "excess_stderr": error}


def _right_answers(found: dict[str, Any]) -> list[float]:
    """Their log-likelihoods."""
    (samples,) = found["samples"].values()
    return [float(sample["filtered_resps"][_right(sample)][0]) for sample in samples]


def _right(sample: dict[str, Any]) -> int:
    """lm-eval has the right answer's place or, of some tasks, its text."""
    target = sample["target"]
    if isinstance(target, int):
        return target
    return [choice.strip() for _, choice, *_ in sample["arguments"]].index(target.strip())


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither bars nor warnings of libraries' for what is meant so."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    # The bar of a loop that takes no time has no switch.
    bar, lm_eval.api.task.tqdm = lm_eval.api.task.tqdm, partial(tqdm, disable=True)
    try:
        yield
    finally:
        lm_eval.api.task.tqdm = bar
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        datasets.enable_progress_bars()
