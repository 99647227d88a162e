"""Checks of local samples. ``samples`` has already checked that each field is there and of its kind."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from griffin.errors import GriffinError
from griffin.experiments.common.samples import Sample

# Fields whose text goes into the prompt.
IN_THE_PROMPT = (
    "goal", "sol1", "sol2", "premise", "choice1", "choice2", "question", "passage", "document", "story", "context",
    "prompt",
)  # fmt: skip


def require_usable(samples: list[Sample], path: Path) -> None:
    """
    Raises:
        GriffinError: a sample that no task can use; names the item and the field.
    """
    for number, sample in enumerate(samples, start=1):
        for wrong in _wrong(sample):
            raise GriffinError(f"'{path}', item {number}: {wrong}")


def _wrong(sample: Sample) -> Iterator[str]:
    for field, value in sample.items():
        if field in IN_THE_PROMPT and not value.strip():
            yield f"the field '{field}' is empty"
    if not sample.get("entry_point", "any").isidentifier():
        yield f"the field 'entry_point' is '{sample['entry_point']}', not the name of a function"
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
