"""HumanEval (Chen et al. 2021): write a function's body after its head and docstring. The data set's tests judge it.

The prompt is that of lm-eval's task ``humaneval``: the head alone, without a chat template. Its stop texts are used
too, and one more: a fence, with which instruct models end code. Answers are greedy, so pass@1 needs one answer to each
problem. They have at most 512 tokens. Tests run in ``sandbox``.
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
