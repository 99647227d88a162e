"""Definitions of the tasks for lm-eval, with items from local files or from the hub.

The paper's ten are lm-eval's own definitions, with these exceptions:

- XSum and CNN/DailyMail (1-shot) are defined here. lm-eval has no XSum. Its CNN/DailyMail has another prompt and needs
  a BERT model. Our prompts are HELM's; ROUGE comes from rouge-score through lm-eval.
- QASPER is lm-eval's SCROLLS task, which gets its scorer from the hub. Local items are scored by the same token F1
  (SQuAD's), which lm-eval has too.
- In CoQA every question is an item. lm-eval 0.4.13 asks only the last one of each conversation.

Two more are in ``humaneval`` and ``arithmetic``.
"""

import contextlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import lm_eval.tasks  # type: ignore[import-untyped]
from lm_eval.api.instance import Instance  # type: ignore[import-untyped]
from lm_eval.api.metrics import mean  # type: ignore[import-untyped]
from lm_eval.api.task import Task  # type: ignore[import-untyped]
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml  # type: ignore[import-untyped]

from griffin.errors import GriffinError
from griffin.experiments.common.samples import Sample, find, read_samples
from griffin.experiments.tasks import records, sandbox, squad
from griffin.experiments.tasks.arithmetic import ARITHMETIC, WORKED
from griffin.experiments.tasks.checks import require_usable
from griffin.experiments.tasks.humaneval import HUMANEVAL
from griffin.experiments.tasks.records import Docs

# Before the import of tasks that need it.
squad.provide()
from lm_eval.tasks.scrolls.task import Qasper  # type: ignore[import-untyped]  # noqa: E402

Config = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task.

    metrics: lm-eval's names; values are from 0 to 1.
    items: how many are evaluated if no limit is given.
    split: the part of the data set where lm-eval looks for items.
    docs: turns local samples into records of the data set; None if the definition has its own items.
    config: a file among lm-eval's tasks, or a definition of our own.
    shots: worked examples before each item.
    chance: the score of guessing, for multiple choice.
    require: raises a GriffinError if the task cannot be evaluated here.
    """

    metrics: tuple[str, ...]
    items: int
    split: str
    docs: Callable[[list[Sample]], Docs] | None
    config: str | Config
    shots: int = 0
    chance: float | None = None
    require: Callable[[], None] | None = None


class LocalQasper(Qasper):  # type: ignore[misc]
    """lm-eval's task with local data and a local scorer. Answers have at most 64 tokens, not 256."""

    # With a name, the task would ask the hub for its scorer.
    DATASET_NAME = None

    def __init__(self, made: dict[str, datasets.Dataset]) -> None:
        self._made = made
        super().__init__()
        self.config.task = "qasper"

    def has_training_docs(self) -> bool:
        return False

    def download(self, *_: Any, **__: Any) -> None:
        self.dataset = self._made

    def construct_requests(self, doc: dict[str, Any], ctx: str, **options: Any) -> Any:
        found = super().construct_requests(doc, ctx, **options)
        if isinstance(found, Instance):
            text, settings = found.arguments
            found.arguments = (text, {**settings, "max_gen_toks": SHORT_ANSWER, "do_sample": False})
        return found

    def process_results(self, doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
        prediction, accepted = super().process_results(doc, results)["f1"]
        return {"f1": max(squad.compute_f1(one, prediction.strip()) for one in accepted)}

    def aggregation(self) -> dict[str, Any]:
        return {"f1": mean}


def rouge(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """F-measures of ROUGE-1, -2 and -L, on stemmed words."""
    # The import prints a warning about a metric that is not used here.
    with contextlib.redirect_stdout(io.StringIO()):
        from lm_eval.tasks.cnn_dailymail.utils import calculate_rouge_scores  # type: ignore[import-untyped]

    return dict(calculate_rouge_scores(results[:1], [doc["summary"]]))


def _metrics(*names: str) -> list[Config]:
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names]


def _summary_task(name: str, where: Config, length: str, max_tokens: int) -> Config:
    return {
        "task": name, **where, "output_type": "generate_until", "num_fewshot": 1, "fewshot_split": "train",
        "fewshot_config": {"sampler": "first_n"}, "target_delimiter": "", "process_results": rouge,
        "doc_to_text": f"###\nArticle: {{{{document}}}}\n\nSummarize the above article in {length}.\n",
        "doc_to_target": "{{summary}}", "test_split": "test", "training_split": "train",
        "generation_kwargs": {"until": ["###"], "max_gen_toks": max_tokens, "do_sample": False},
        "metric_list": _metrics("rouge1", "rouge2", "rougeL"), "metadata": {"version": 1.0},
    }  # fmt: skip


XSUM = _summary_task("xsum", {"dataset_path": "EdinburghNLP/xsum"}, "1 sentence", 64)
CNN_DM = _summary_task("cnn_dm", {"dataset_path": "abisee/cnn_dailymail", "dataset_name": "3.0.0"}, "3 sentences", 128)
ROUGE = ("rouge1", "rouge2", "rougeL")

TASKS: dict[str, TaskSpec] = {
    "hellaswag": TaskSpec(("acc",), 200, "validation", records.hellaswag, "hellaswag/hellaswag.yaml", chance=1 / 4),
    "piqa": TaskSpec(("acc",), 200, "validation", records.piqa, "piqa/piqa.yaml", chance=1 / 2),
    "copa": TaskSpec(("acc",), 200, "validation", records.copa, "super_glue/copa/default.yaml", chance=1 / 2),
    "arc_easy": TaskSpec(("acc",), 200, "test", records.arc, "arc/arc_easy.yaml", chance=1 / 4),
    "arc_challenge": TaskSpec(("acc",), 200, "test", records.arc, "arc/arc_challenge.yaml", chance=1 / 4),
    "boolq": TaskSpec(("acc",), 200, "validation", records.boolq, "super_glue/boolq/default.yaml", chance=1 / 2),
    "xsum": TaskSpec(ROUGE, 50, "test", records.summaries, XSUM, shots=1),
    "cnn_dm": TaskSpec(ROUGE, 25, "test", records.summaries, CNN_DM, shots=1),
    "coqa": TaskSpec(("f1", "em"), 100, "validation", records.coqa, "coqa/default.yaml"),
    "qasper": TaskSpec(("f1",), 40, "validation", records.qasper, "scrolls_qasper"),
    "humaneval": TaskSpec(("pass@1",), 164, "test", records.programs, HUMANEVAL, require=sandbox.require),
    "arithmetic": TaskSpec(("em",), 100, "test", None, ARITHMETIC, shots=len(WORKED)),
}
# Answers have a few words, and only the first line of a CoQA answer counts, so lm-eval's 256 tokens are not needed.
SHORT_ANSWER = 64
CHANGES: dict[str, Config] = {
    "coqa": {
        "process_docs": records.every_turn,
        "generation_kwargs": {"until": ["\nQ:"], "max_gen_toks": SHORT_ANSWER, "do_sample": False},
    }
}


def make_manager(data: Path | None) -> TaskManager:
    """lm-eval's maker of tasks. For its own tasks it reads thousands of files, which only the hub's tasks need."""
    return TaskManager(include_defaults=data is None)


def make_task(name: str, data: Path | None, manager: TaskManager) -> Task:
    """One of ``TASKS``, ready for evaluation. Without ``data`` its items come from the hub.

    Raises:
        GriffinError: its data are missing or wrong; names the file and what is wrong. Or this system cannot run it.
    """
    spec = TASKS[name]
    if spec.require is not None:
        spec.require()
    if spec.docs is None:
        return _loaded(_definition(name), manager)
    if data is None:
        return _from_hub(name, manager)
    path, samples = find(data, name), read_samples(data, name)
    require_usable(samples, path)
    parts = _split(spec, spec.docs(samples), path)
    made = {split: datasets.Dataset.from_list(docs) for split, docs in parts.items()}
    if name == "qasper":
        task = LocalQasper(made)
        task.set_config("num_fewshot", 0)
        return task
    definition = _definition(name) | {"custom_dataset": lambda **_: made, "dataset_path": None, "dataset_name": None}
    for key in ("training_split", "validation_split", "test_split"):
        if definition.get(key) not in made:
            definition[key] = None
    return _loaded(definition, manager)


def _loaded(definition: Config, manager: TaskManager) -> Task:
    (task,) = manager.load([definition])["tasks"].values()
    return task


def _definition(name: str) -> Config:
    """The definition from lm-eval's file, or our own. Loaded by name, a task would take no other data."""
    config = TASKS[name].config
    if isinstance(config, str):
        # load_yaml is not public. The public way needs extra files on disk that include these, and cached data.
        own = load_yaml(Path(lm_eval.tasks.__file__).parent / config, resolve_func=True)
        config = {key: value for key, value in own.items() if key not in ("tag", "group")}
    return {**config, "num_fewshot": TASKS[name].shots, **CHANGES.get(name, {})}


def _split(spec: TaskSpec, docs: Docs, path: Path) -> dict[str, Docs]:
    """The items by split. The first one is the worked example, and is not evaluated."""
    if len(docs) <= spec.shots:
        raise GriffinError(
            f"'{path}': {spec.shots + 1} or more items are needed, because the first is a worked example"
        )
    return {spec.split: docs[spec.shots :], **({"train": docs[: spec.shots]} if spec.shots else {})}


def _from_hub(name: str, manager: TaskManager) -> Task:
    if name == "qasper":
        definition: Config = {"task": TASKS[name].config}
    else:
        definition = _definition(name)
    if name == "cnn_dm":
        definition["process_docs"] = lambda docs: docs.rename_columns({"article": "document", "highlights": "summary"})
    try:
        return _loaded(definition, manager)
    except Exception as error:
        # A reader of data sets may raise anything. Its first line is enough for a user.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise GriffinError(f"cannot get the data set of '{name}' from the hub: {reason}; give --data DIR") from error
