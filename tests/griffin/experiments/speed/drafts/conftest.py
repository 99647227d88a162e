"""Made-up functions and chats for a tiny model that reads words."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from griffin.experiments.common.experiment import defaults
from griffin.experiments.common.study import Study
from griffin.experiments.speed.drafts import experiment
from tests.griffin.experiments.data import write_data
from tests.griffin.experiments.words import random_ids, word_study

BODY = "".join(f"    x{line} = numbers [ {line} ]\n" for line in range(8))
FUNCTIONS = [
    {
        "prompt": f'def pick_{n}(numbers):\n    """Pick one.\n\n    As asked.\n    """\n',
        "canonical_solution": f"{BODY}    return x{n % 8}\n",
        "entry_point": f"pick_{n}",
        "test": "",
    }
    for n in range(16)
]
CHATS = [
    {"category": category, "turns": [f"w{5 + n} w{40 + n} w{70 + n}", "w3"]}
    for n, category in enumerate(["writing", "math", "generic", "stem", "coding", "fermi", "roleplay"])
]
TEMPLATE = "{% for message in messages %}<s> {{ message['content'] }} w9 w8 w9 w8 {% endfor %}"


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study of a tiny llama with its own data. Its ends are never drawn by chance alone."""
    found = word_study(tmp_path, random_ids(1, 40))
    write_data(tmp_path / "data", humaneval=FUNCTIONS, chat_prompts=CHATS)
    found.data = tmp_path / "data"
    found.tokenizer.chat_template = TEMPLATE
    return found


def asked(**changes: Any) -> argparse.Namespace:
    """The flags' defaults, with small numbers."""
    small = {"prompts": 2, "tokens": 12, "rounds": 2, "equal_prompts": 3, "equal_tokens": 10, "model": "tiny"}
    return argparse.Namespace(**{**vars(defaults(experiment)), **small, **changes})
