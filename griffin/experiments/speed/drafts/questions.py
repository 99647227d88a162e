"""Questions: functions to edit, chats whose answers repeat nothing, and plain code of a given length."""

import ast
from typing import Any, TypeVar

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from griffin.errors import GriffinError
from griffin.experiments.common.samples import read_samples
from griffin.experiments.common.study import Study
from griffin.experiments.common.texts import evenly

Item = TypeVar("Item")

EDIT = (
    "Rename the parameter `{old}` to `given_{old}`, and add a docstring. Change nothing else. Answer with the whole "
    "code, in one block.\n\n```python\n{code}\n```"
)
# The fewest lines of a function to edit. A model rewrites very short functions instead of editing them.
SHORTEST = 8
# Categories whose answers repeat the question or themselves.
REPEATING = ("coding", "extraction", "math")


def edits(study: Study, count: int) -> list[list[int]]:
    """Prompts that ask for an edited function of HumanEval, spread over the data set.

    Raises:
        GriffinError: there is no --data, its file is wrong, or the model has no chat template.
        ValueError: the data has fewer functions.
    """
    texts = [text for text in map(_edit, _samples(study, "functions")) if text is not None]
    return [_encoded(study.tokenizer, text) for text in _spread(texts, count, "functions")]


def chats(study: Study, count: int) -> list[list[int]]:
    """Prompts for free text, spread over the data set.

    Raises:
        GriffinError, ValueError: see ``edits``.
    """
    samples = [each for each in _samples(study, "chats") if each["category"] not in REPEATING]
    return [_encoded(study.tokenizer, str(each["turns"][0])) for each in _spread(samples, count, "chats")]


def both(study: Study, count: int) -> list[list[int]]:
    """``count`` prompts, of both kinds in turn.

    Raises:
        GriffinError, ValueError: see ``edits``.
    """
    half = -(-count // 2)
    pairs = zip(edits(study, half), chats(study, half), strict=True)
    return [prompt for pair in pairs for prompt in pair][:count]


def windows(study: Study, length: int, count: int) -> list[list[int]]:
    """Parts of HumanEval's code with ``length`` tokens each, spread over the data set.

    Raises:
        GriffinError: see ``edits``.
        ValueError: there is too little code.
    """
    code = "\n\n".join(each["prompt"] + each["canonical_solution"] for each in _samples(study, "functions"))
    ids = study.tokenizer(code, add_special_tokens=False)["input_ids"]
    if length * count > len(ids):
        raise ValueError(f"--data: its functions have {len(ids)} tokens, but {count} prompts of {length} are wanted")
    return evenly(ids, length, count)


def _samples(study: Study, name: str) -> list[dict[str, Any]]:
    if study.data is None:
        raise GriffinError("--data: name a directory that has humaneval.jsonl and chat_prompts.jsonl")
    return read_samples(study.data, name)


def _spread(items: list[Item], count: int, what: str) -> list[Item]:
    """``count`` of the items, spread evenly over all.

    Raises:
        ValueError: there are fewer items.
    """
    if count > len(items):
        raise ValueError(f"{count} {what} are asked for, but the data has {len(items)}: ask for fewer prompts")
    return [items[(len(items) - 1) * number // max(1, count - 1)] for number in range(count)]


def _edit(sample: dict[str, Any]) -> str | None:
    """The question for one function, without its docstring; None if it is too short or is not Python."""
    code = sample["prompt"] + sample["canonical_solution"]
    try:
        functions = [each for each in ast.parse(code).body if isinstance(each, ast.FunctionDef)]
    except SyntaxError:
        return None
    function = next((each for each in functions if each.name == sample["entry_point"] and each.args.args), None)
    if function is None:
        return None
    lines, first = code.splitlines(), function.body[0]
    if ast.get_docstring(function) is not None:
        del lines[first.lineno - 1 : first.end_lineno]
    lines = [line for line in lines if line.strip()]
    if len(lines) < SHORTEST:
        return None
    return EDIT.format(old=function.args.args[0].arg, code="\n".join(lines))


def _encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """A conversation of one message, as the server reads it."""
    if not tokenizer.chat_template:
        raise GriffinError("drafts: this model has no chat template; measure an instruct model")
    messages = [{"role": "user", "content": text}]
    try:
        conversation = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise GriffinError(f"drafts: the model's chat template refuses a question: {error}") from error
    # The template has already written the special tokens.
    ids: list[int] = tokenizer(conversation, add_special_tokens=False)["input_ids"]
    return ids
