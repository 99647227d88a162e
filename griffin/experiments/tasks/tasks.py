"""The paper's tasks as lm-eval's: its own definitions wherever it has them, fed from local files or from the hub.

Of the ten, XSum and CNN/DailyMail (1-shot) are written out here: lm-eval has no XSum, and its CNN/DailyMail has another
prompt and wants a BERT model. Their prompts are HELM's; ROUGE comes from rouge-score through lm-eval. SCROLLS' QASPER
is lm-eval's, but for its scorer, which it fetches from the hub: offline the same token F1, SQuAD's, comes from
lm-eval's own functions. Of CoQA every question is an item (lm-eval 0.4.13 asks the last of each conversation only).
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
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
from griffin.experiments.tasks import squad

# Before the tasks that want it are imported.
squad.provide()
from lm_eval.tasks.scrolls.task import Qasper  # type: ignore[import-untyped]  # noqa: E402

# Fields that are spoken to the model.
SPOKEN = (
    "goal",
    "sol1",
    "sol2",
    "premise",
    "choice1",
    "choice2",
    "question",
    "passage",
    "document",
    "story",
    "context",
)
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
    docs: Callable[[list[Sample]], Docs]
    config: str | Config
    shots: int = 0
    chance: float | None = None


def hellaswag(samples: list[Sample]) -> Docs:
    """Only the cleaned context is at hand: its activity label becomes a field again, and cleaning changes nothing."""
    docs = []
    for sample in samples:
        label, _, context = sample["ctx"].partition(": ")
        docs.append({"activity_label": label, "ctx_a": context, "ctx_b": "", **_picked(sample, "endings", "label")})
    return docs


def piqa(samples: list[Sample]) -> Docs:
    return [_picked(sample, "goal", "sol1", "sol2", "label") for sample in samples]


def copa(samples: list[Sample]) -> Docs:
    return [_picked(sample, "premise", "question", "choice1", "choice2", "label") for sample in samples]


def arc(samples: list[Sample]) -> Docs:
    docs = []
    for sample in samples:
        names = [chr(ord("A") + number) for number in range(len(sample["choices"]))]
        choices = {"text": sample["choices"], "label": names}
        docs.append({"question": sample["question"], "choices": choices, "answerKey": names[sample["label"]]})
    return docs


def boolq(samples: list[Sample]) -> Docs:
    # The definition adds the question mark.
    return [{**_picked(s, "passage", "label"), "question": s["question"].removesuffix("?")} for s in samples]


def coqa(samples: list[Sample]) -> Docs:
    """Whole conversations, as in the data set."""
    most = max((len(accepted) for sample in samples for accepted in sample["answers"]), default=1)
    return [
        {
            "story": sample["story"],
            "questions": {"input_text": sample["questions"]},
            "answers": {"input_text": [accepted[0] for accepted in sample["answers"]]},
            # Records of one data set have the same fields; the definition drops repeated answers.
            "additional_answers": {
                str(number): {"input_text": [a[min(number, len(a) - 1)] for a in sample["answers"]]}
                for number in range(1, max(most, 2))
            },
        }
        for sample in samples
    ]


def every_turn(conversations: datasets.Dataset) -> datasets.Dataset:
    """Each question of a conversation as an item, with those before it and their answers as its history.

    lm-eval 0.4.13 asks the last one only; a later version will ask all (its pull request 3856).
    """
    return datasets.Dataset.from_list(
        [_until(doc, turn) for doc in conversations for turn in range(1, len(doc["questions"]["input_text"]) + 1)]
    )


def _until(doc: dict[str, Any], turn: int) -> dict[str, Any]:
    return {
        "story": doc["story"],
        "questions": {"input_text": doc["questions"]["input_text"][:turn]},
        "answers": {"input_text": doc["answers"]["input_text"][:turn]},
        "additional_answers": {
            number: {"input_text": own["input_text"][:turn]} for number, own in doc["additional_answers"].items()
        },
    }


def qasper(samples: list[Sample]) -> Docs:
    """In SCROLLS' form: the question stands before the text."""
    return [
        {
            "id": str(number),
            "pid": str(number),
            "input": f"{sample['question']}\n\n{sample['context']}",
            "outputs": [str(answer) for answer in sample["answers"]],
        }
        for number, sample in enumerate(samples)
    ]


class LocalQasper(Qasper):  # type: ignore[misc]
    """lm-eval's task but for where its data and its scorer come from; answers have at most 64 tokens, not 256."""

    # By this name it would ask the hub for its scorer.
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


def summaries(samples: list[Sample]) -> Docs:
    return [_picked(sample, "document", "summary") for sample in samples]


def _picked(sample: Sample, *fields: str) -> dict[str, Any]:
    return {field: sample[field] for field in fields}


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
    "qasper": TaskSpec(("f1",), 40, "validation", qasper, "scrolls_qasper"),
}
# Answers are a few words, and of CoQA's only the first line counts: most of lm-eval's 256 tokens would be thrown away.
SHORT_ANSWER = 64
CHANGES: dict[str, Config] = {
    "coqa": {
        "process_docs": every_turn,
        "generation_kwargs": {"until": ["\nQ:"], "max_gen_toks": SHORT_ANSWER, "do_sample": False},
    }
}


def make_manager(data: Path | None) -> TaskManager:
    """What makes tasks of definitions. To find those of its own by name, lm-eval reads thousands of files."""
    return TaskManager(include_defaults=data is None)


def make_task(name: str, data: Path | None, manager: TaskManager) -> Task:
    """One of ``TASKS``, ready to be evaluated; from the hub if there is no data.

    Raises:
        GriffinError: its data are not there, or not as they should be.
    """
    spec = TASKS[name]
    if data is None:
        return _from_hub(name, manager)
    path, samples = find(data, name), read_samples(data, name)
    _require_answers(samples, path)
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
    (task,) = manager.load([definition])["tasks"].values()
    return task


def _require_answers(samples: list[Sample], path: Path) -> None:
    """What the fields' kinds alone do not say.

    Raises:
        GriffinError: names the item and the field.
    """
    for number, sample in enumerate(samples, start=1):
        for wrong in _wrong(sample):
            raise GriffinError(f"'{path}', item {number}: {wrong}")


def _wrong(sample: Sample) -> Iterator[str]:
    for field, value in sample.items():
        if field in SPOKEN and not value.strip():
            yield f"the field '{field}' is empty"
    if ": " not in sample.get("ctx", ": "):
        yield "the field 'ctx' is not of the form 'activity: context'"
    if "choice1" in sample and sample["question"] not in ("cause", "effect"):
        yield f"the field 'question' is '{sample['question']}', not cause or effect"
    choices: list[Any] = next((sample[field] for field in ("choices", "endings") if field in sample), ["no", "yes"])
    if len(choices) < 2 or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        yield "two choices or more are needed, each a text"
    if not 0 <= sample.get("label", 0) < len(choices):
        yield f"the label {sample['label']} is none of its {len(choices)} choices"
    answers: list[Any] = sample.get("answers", ["any"])
    lists: list[Any] = answers if "questions" in sample else [answers]
    questions: list[Any] = sample.get("questions", lists)
    if len(lists) != len(questions) or not all(isinstance(own, list) and own for own in lists):
        yield "'answers' needs an answer or more to each question, in a list"


def _definition(name: str) -> Config:
    """lm-eval's, as its file has it (given by name, it could not be told where its data are), or this project's."""
    config = TASKS[name].config
    if isinstance(config, str):
        # The reader is not public; without it, files that include these would have to be written, and data cached.
        own = load_yaml(Path(lm_eval.tasks.__file__).parent / config, resolve_func=True)
        config = {key: value for key, value in own.items() if key not in ("tag", "group")}
    return {**config, "num_fewshot": TASKS[name].shots, **CHANGES.get(name, {})}


def _split(spec: TaskSpec, docs: Docs, path: Path) -> dict[str, Docs]:
    """The worked example is the first item, which is then not evaluated."""
    if len(docs) <= spec.shots:
        raise GriffinError(f"'{path}': {spec.shots + 1} or more items are needed, the first is a worked example")
    return {spec.split: docs[spec.shots :], **({"train": docs[: spec.shots]} if spec.shots else {})}


def _from_hub(name: str, manager: TaskManager) -> Task:
    if name == "qasper":
        definition: Config = {"task": TASKS[name].config}
    else:
        definition = _definition(name)
    if name == "cnn_dm":
        definition["process_docs"] = lambda docs: docs.rename_columns({"article": "document", "highlights": "summary"})
    try:
        (task,) = manager.load([definition])["tasks"].values()
    except Exception as error:
        # Of readers of data sets anything may come; a user needs the first line of it.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise GriffinError(f"cannot get the data set of '{name}' from the hub: {reason}; give --data DIR") from error
    return task
