"""The paper's tasks as lm-eval's: its own definitions wherever it has them, fed from local files or from the hub.

Of the ten, XSum and CNN/DailyMail (1-shot) are written out here: lm-eval has no XSum, and its CNN/DailyMail has another
prompt and wants a BERT model. Their prompts are HELM's; ROUGE comes from rouge-score through lm-eval. SCROLLS' QASPER
exists in lm-eval, but fetches its scorer from the hub: offline its prompt is repeated here and answers are scored by
the same token F1, SQuAD's, as lm-eval scores CoQA.
"""

import contextlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import lm_eval.tasks  # type: ignore[import-untyped]
from lm_eval.api.task import Task  # type: ignore[import-untyped]
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml  # type: ignore[import-untyped]

from griffin.errors import GriffinError
from griffin.experiments import squad
from griffin.experiments.samples import Sample, find, read_samples

Config = dict[str, Any]
Docs = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One of the paper's tasks.

    metrics: lm-eval's names, of values from 0 to 1.
    items: evaluated unless a limit is given.
    split: of the data set, where lm-eval looks for the items.
    shots: worked examples before each item.
    chance: what guessing scores, where answers are chosen.
    docs: local samples as the data set's own records.
    config: a file among lm-eval's tasks, or a definition of this project's own.
    """

    metrics: tuple[str, ...]
    items: int
    split: str
    docs: Callable[[list[Sample], Path], Docs]
    config: str | Config
    shots: int = 0
    chance: float | None = None


def hellaswag(samples: list[Sample], path: Path) -> Docs:
    """Only the cleaned context is at hand: its activity label becomes a field again, and cleaning changes nothing."""
    docs = []
    for number, sample in enumerate(samples, start=1):
        label, colon, context = sample["ctx"].partition(": ")
        if not colon:
            raise GriffinError(f"'{path}', item {number}: the field 'ctx' is not of the form 'activity: context'")
        docs.append({"activity_label": label, "ctx_a": context, "ctx_b": "", **_picked(sample, "endings", "label")})
    return docs


def piqa(samples: list[Sample], path: Path) -> Docs:
    return [_picked(sample, "goal", "sol1", "sol2", "label") for sample in samples]


def copa(samples: list[Sample], path: Path) -> Docs:
    return [_picked(sample, "premise", "question", "choice1", "choice2", "label") for sample in samples]


def arc(samples: list[Sample], path: Path) -> Docs:
    docs = []
    for sample in samples:
        names = [chr(ord("A") + number) for number in range(len(sample["choices"]))]
        choices = {"text": sample["choices"], "label": names}
        docs.append({"question": sample["question"], "choices": choices, "answerKey": names[sample["label"]]})
    return docs


def boolq(samples: list[Sample], path: Path) -> Docs:
    # The definition adds the question mark.
    return [{**_picked(s, "passage", "label"), "question": s["question"].removesuffix("?")} for s in samples]


def coqa(samples: list[Sample], path: Path) -> Docs:
    """Each question of a conversation is an item, with those before it and their answers as its history."""
    most = max((len(accepted) for sample in samples for accepted in sample["answers"]), default=1)
    return [_conversation(sample, turn, most) for sample in samples for turn in range(1, len(sample["questions"]) + 1)]


def _conversation(sample: Sample, turn: int, most: int) -> dict[str, Any]:
    answers = sample["answers"][:turn]
    doc: dict[str, Any] = {
        "story": sample["story"],
        "questions": {"input_text": sample["questions"][:turn]},
        "answers": {"input_text": [accepted[0] for accepted in answers]},
    }
    if most > 1:
        # Records of one data set have the same fields; the definition drops repeated answers.
        doc["additional_answers"] = {
            str(number): {"input_text": [accepted[min(number, len(accepted) - 1)] for accepted in answers]}
            for number in range(1, most)
        }
    return doc


def qasper(samples: list[Sample], path: Path) -> Docs:
    return [
        {"text": s["context"], "question": s["question"], "outputs": [str(answer) for answer in s["answers"]]}
        for s in samples
    ]


def summaries(samples: list[Sample], path: Path) -> Docs:
    return [_picked(sample, "document", "summary") for sample in samples]


def _picked(sample: Sample, *fields: str) -> dict[str, Any]:
    return {field: sample[field] for field in fields}


def token_f1(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """SQuAD's token F1 against the best of the accepted answers, as SCROLLS scores QASPER."""
    return {"f1": max(squad.compute_f1(accepted, results[0].strip()) for accepted in doc["outputs"])}


def rouge(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """F-measures of ROUGE-1, -2 and -L, stemmed."""
    # Prints, when it is imported, that a metric which is not used here is not installed.
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
QASPER = {
    "task": "qasper", "output_type": "generate_until", "validation_split": "validation",
    "doc_to_text": "{{text}}\n\nQuestion: {{question}}\nAnswer:", "doc_to_target": "{{outputs[0]}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 64, "do_sample": False}, "process_results": token_f1,
    "metric_list": _metrics("f1"), "metadata": {"version": 1.0},
}  # fmt: skip
ROUGE = ("rouge1", "rouge2", "rougeL")

TASKS: dict[str, TaskSpec] = {
    "hellaswag": TaskSpec(("acc",), 200, "validation", hellaswag, "hellaswag/hellaswag.yaml", chance=1 / 4),
    "piqa": TaskSpec(("acc",), 200, "validation", piqa, "piqa/piqa.yaml", chance=1 / 2),
    "copa": TaskSpec(("acc",), 200, "validation", copa, "super_glue/copa/default.yaml", chance=1 / 2),
    "arc_easy": TaskSpec(("acc",), 200, "test", arc, "arc/arc_easy.yaml", chance=1 / 4),
    "arc_challenge": TaskSpec(("acc",), 200, "test", arc, "arc/arc_challenge.yaml", chance=1 / 4),
    "boolq": TaskSpec(("acc",), 200, "validation", boolq, "super_glue/boolq/default.yaml", chance=1 / 2),
    "xsum": TaskSpec(ROUGE, 50, "test", summaries, XSUM, shots=1),
    "cnn_dm": TaskSpec(ROUGE, 25, "test", summaries, CNN_DM, shots=1),
    "coqa": TaskSpec(("f1", "em"), 100, "validation", coqa, "coqa/default.yaml"),
    "qasper": TaskSpec(("f1",), 40, "validation", qasper, QASPER),
}
# An answer of CoQA's is its first line, a few words long: lm-eval's 256 tokens would mostly be thrown away.
SHORTENED = {"coqa": {"until": ["\nQ:"], "max_gen_toks": 64, "do_sample": False}}


def make_manager(data: Path | None) -> TaskManager:
    """What makes tasks of definitions. To find those of its own by name, lm-eval reads thousands of files."""
    return TaskManager(include_defaults=data is None)


def make_task(name: str, data: Path | None, manager: TaskManager) -> Task:
    """One of ``TASKS``, ready to be evaluated; from the hub if there is no data.

    Raises:
        GriffinError: its data are not there, or not as they should be.
    """
    spec = TASKS[name]
    definition = _own_definition(spec.config) if isinstance(spec.config, str) else dict(spec.config)
    definition["num_fewshot"] = spec.shots
    if name in SHORTENED:
        definition["generation_kwargs"] = SHORTENED[name]
    squad.provide()
    if data is None:
        return _from_hub(name, definition, manager)
    path, samples = find(data, name), read_samples(data, name)
    _require_answers(samples, path)
    parts = _split(spec, spec.docs(samples, path), path)
    made = {split: datasets.Dataset.from_list(docs) for split, docs in parts.items()}
    definition |= {"custom_dataset": lambda **_: made, "dataset_path": None, "dataset_name": None}
    for key in ("training_split", "validation_split", "test_split"):
        if definition.get(key) not in made:
            definition[key] = None
    (task,) = manager.load([definition])["tasks"].values()
    return task


def _require_answers(samples: list[Sample], path: Path) -> None:
    """What the fields' kinds alone do not say."""
    for number, sample in enumerate(samples, start=1):
        where = f"'{path}', item {number}"
        choices = len(sample.get("choices") or sample.get("endings") or ("no", "yes"))
        if not 0 <= sample.get("label", 0) < choices:
            raise GriffinError(f"{where}: the label {sample['label']} is none of its {choices} choices")
        if "questions" in sample:
            lists = sample["answers"]
            if len(lists) != len(sample["questions"]) or not all(isinstance(a, list) and a for a in lists):
                raise GriffinError(f"{where}: 'answers' needs for each of 'questions' a list with an answer or more")
        elif sample.get("answers") == []:
            raise GriffinError(f"{where}: 'answers' is empty; it needs an answer or more")


def _own_definition(file: str) -> Config:
    """lm-eval's, as its file has it: given by name, it could not be told where its data are."""
    # The reader is not public; without it, files that include these would have to be written, and data cached.
    definition: Config = load_yaml(Path(lm_eval.tasks.__file__).parent / file, resolve_func=True)
    return {key: value for key, value in definition.items() if key not in ("tag", "group")}


def _split(spec: TaskSpec, docs: Docs, path: Path) -> dict[str, Docs]:
    """The worked example is the first item, which is then not evaluated."""
    if len(docs) <= spec.shots:
        raise GriffinError(f"'{path}': {spec.shots + 1} or more items are needed, the first is a worked example")
    return {spec.split: docs[spec.shots :], **({"train": docs[: spec.shots]} if spec.shots else {})}


def _from_hub(name: str, definition: Config, manager: TaskManager) -> Task:
    if name == "cnn_dm":
        definition["process_docs"] = lambda docs: docs.rename_columns({"article": "document", "highlights": "summary"})
    if name == "qasper":
        definition = {"task": "scrolls_qasper"}
    try:
        (task,) = manager.load([definition])["tasks"].values()
    except Exception as error:
        # Of readers of data sets anything may come; a user needs the first line of it.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise GriffinError(f"cannot get the data set of '{name}' from the hub: {reason}; give --data DIR") from error
    return task
