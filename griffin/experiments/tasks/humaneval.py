"""HumanEval (Chen et al. 2021): a function's body from its head and docstring. It passes if the data set's tests do.

The prompt is lm-eval's task ``humaneval``: the head as it is, without a chat template. Its texts that end an answer are
taken too, and one more: a fence, with which instruct models end code. Answers are greedy, so pass@1 needs one of each,
and have at most 512 tokens. Tests run in ``sandbox``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from griffin.experiments.tasks import sandbox

UNTIL = ["\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```"]
MOST_TOKENS = 512


def passed(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 if the head with this body passes all tests, else 0."""
    program = f"{doc['prompt']}{results[0]}\n{doc['test']}\ncheck({doc['entry_point']})\n"
    return {"pass@1": float(sandbox.passes(program))}


HUMANEVAL: dict[str, Any] = {
    "task": "humaneval", "dataset_path": "openai/openai_humaneval", "test_split": "test",
    "output_type": "generate_until", "doc_to_text": "{{prompt}}", "doc_to_target": "{{test}}\ncheck({{entry_point}})",
    "process_results": passed, "metric_list": [{"metric": "pass@1", "aggregation": "mean", "higher_is_better": True}],
    "generation_kwargs": {"until": UNTIL, "max_gen_toks": MOST_TOKENS, "do_sample": False},
    "metadata": {"version": 1.0},
}  # fmt: skip
