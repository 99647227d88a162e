"""Records: local samples in the form of the data sets that lm-eval's definitions read.

Each form has a function with the name of its task. It returns one record for each sample.
"""

from typing import Any

import datasets  # type: ignore[import-untyped]

from griffin.experiments.common.samples import Sample

Docs = list[dict[str, Any]]


def hellaswag(samples: list[Sample]) -> Docs:
    """Split the context into the activity label and the rest. lm-eval's cleaning changes nothing here."""
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
    # lm-eval's definition adds the question mark.
    return [{**_picked(s, "passage", "label"), "question": s["question"].removesuffix("?")} for s in samples]


def coqa(samples: list[Sample]) -> Docs:
    """Whole conversations, as in the data set."""
    most = max((len(accepted) for sample in samples for accepted in sample["answers"]), default=1)
    return [
        {
            "story": sample["story"],
            "questions": {"input_text": sample["questions"]},
            "answers": {"input_text": [accepted[0] for accepted in sample["answers"]]},
            # All records of a data set need the same fields. The definition drops answers that repeat.
            "additional_answers": {
                str(number): {"input_text": [a[min(number, len(a) - 1)] for a in sample["answers"]]}
                for number in range(1, max(most, 2))
            },
        }
        for sample in samples
    ]


def every_turn(conversations: datasets.Dataset) -> datasets.Dataset:
    """One item for each question. Earlier questions of the conversation, with their answers, are its history.

    lm-eval 0.4.13 asks only the last question. A later version will ask all (its pull request 3856).
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
    """In SCROLLS' form, with the question before the text."""
    return [
        {
            "id": str(number),
            "pid": str(number),
            "input": f"{sample['question']}\n\n{sample['context']}",
            "outputs": [str(answer) for answer in sample["answers"]],
        }
        for number, sample in enumerate(samples)
    ]


def summaries(samples: list[Sample]) -> Docs:
    return [_picked(sample, "document", "summary") for sample in samples]


def programs(samples: list[Sample]) -> Docs:
    return [_picked(sample, "prompt", "test", "entry_point") for sample in samples]


def _picked(sample: Sample, *fields: str) -> dict[str, Any]:
    return {field: sample[field] for field in fields}
