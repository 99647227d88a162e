"""Arithmetic: word problems after four worked examples, answered by a whole number.

The number after "The answer is" counts, or else the last one. The form and this rule are those of lm-eval's GSM8K with
worked answers: text after the answer does not count. The problems are ours, see ``word_problems``. They need no data
set, and their scores cannot be compared with published ones.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import datasets  # type: ignore[import-untyped]

from griffin.experiments.tasks.word_problems import problems

# Written by hand: question, worked answer.
WORKED = (
    (
        "A baker has 48 eggs. He uses 3 eggs for each of 9 cakes and 5 eggs for breakfast. How many eggs are left?",
        "The cakes take 9 * 3 = 27 eggs. With breakfast that is 27 + 5 = 32 eggs. So 48 - 32 = 16 eggs are left. "
        "The answer is 16.",
    ),
    (
        "Nora has $75. She buys 4 tickets for $12 each and 2 drinks for $3 each. How many dollars does she have left?",
        "The tickets cost 4 * 12 = 48 dollars. The drinks cost 2 * 3 = 6 dollars. Together that is 48 + 6 = 54. "
        "So 75 - 54 = 21 dollars are left. The answer is 21.",
    ),
    (
        "Tom is 9 years old. His grandmother is 7 times as old. How old will she be in 6 years?",
        "The grandmother is 7 * 9 = 63 years old. In 6 years she will be 63 + 6 = 69 years old. The answer is 69.",
    ),
    (
        "A shop sells 125 cups on Monday and 20 percent fewer on Tuesday. Each cup costs $4. How many dollars does the "
        "shop take on the two days?",
        "20 percent of 125 is 25. On Tuesday the shop sells 125 - 25 = 100 cups. On both days it sells 125 + 100 = 225 "
        "cups. They bring 225 * 4 = 900 dollars. The answer is 900.",
    ),
)
ITEMS = 200
MOST_TOKENS = 160
SAID = "The answer is"
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def right(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 if the given number is the answer, else 0. Commas in it do not count."""
    before, said, after = results[0].partition(SAID)
    numbers = NUMBER.findall(after)[:1] if said else NUMBER.findall(before)[-1:]
    return {"em": float(any(float(number.replace(",", "")) == doc["answer"] for number in numbers))}


def _data(**_: Any) -> dict[str, datasets.Dataset]:
    worked = [{"question": question, "worked": answer} for question, answer in WORKED]
    asked = [{"question": question, "worked": str(answer), "answer": answer} for question, answer in problems(ITEMS)]
    return {"train": datasets.Dataset.from_list(worked), "test": datasets.Dataset.from_list(asked)}


# lm-eval has a group of tasks with the shorter name.
ARITHMETIC: dict[str, Any] = {
    "task": "griffin_arithmetic", "custom_dataset": _data, "training_split": "train", "test_split": "test",
    "fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}, "output_type": "generate_until",
    "doc_to_text": "Q: {{question}}\nA:", "doc_to_target": "{{worked}}", "process_results": right,
    "metric_list": [{"metric": "em", "aggregation": "mean", "higher_is_better": True}],
    "generation_kwargs": {"until": ["\nQ:", "\n\n"], "max_gen_toks": MOST_TOKENS, "do_sample": False},
    "metadata": {"version": 1.0},
}  # fmt: skip
