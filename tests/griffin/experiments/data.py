"""A few made-up items for every data set, in the fields that the samples module reads."""

import json
from pathlib import Path
from typing import Any

STORY = "Anna has a red boat. She rows to the island every Sunday. Her dog Rex sits in front."
SAMPLES: dict[str, list[dict[str, Any]]] = {
    "hellaswag": [
        {
            "ctx": "Baking bread: A man kneads dough. He",
            "endings": ["bakes it.", "swims.", "flies.", "is a cat."],
            "label": 0,
        },
        {
            "ctx": "Fishing: A woman sits by a lake. She",
            "endings": ["sings a car.", "waits for a bite.", "is ice.", "eats it all."],
            "label": 1,
        },
    ],
    "piqa": [
        {"goal": "Dry a wet shirt", "sol1": "Hang it in the sun.", "sol2": "Put it in a bucket of water.", "label": 0},
        {"goal": "Cut paper", "sol1": "Use a spoon.", "sol2": "Use scissors.", "label": 1},
    ],
    "copa": [
        {
            "premise": "The glass broke.",
            "question": "cause",
            "choice1": "It fell on the floor.",
            "choice2": "It was clean.",
            "label": 0,
        },
        {
            "premise": "It rained all day.",
            "question": "effect",
            "choice1": "The street was dry.",
            "choice2": "The street was wet.",
            "label": 1,
        },
    ],
    "arc_easy": [
        {"question": "What is frozen water?", "choices": ["ice", "steam", "sand"], "label": 0},
        {"question": "Which animal can fly?", "choices": ["dog", "bird", "fish", "cow"], "label": 1},
    ],
    "arc_challenge": [
        {"question": "Why is it dark at night?", "choices": ["the Earth has turned", "the Sun is off"], "label": 0},
        {"question": "What pulls things down?", "choices": ["wind", "light", "gravity", "sound"], "label": 2},
    ],
    "boolq": [
        {"passage": "Cats are animals.", "question": "is a cat an animal?", "label": 1},
        {"passage": "The moon is made of rock.", "question": "is the moon made of cheese?", "label": 0},
    ],
    "xsum": [
        {"document": "A farmer grew the largest pumpkin of the county.", "summary": "A pumpkin won a prize."},
        {"document": "The old bridge will be closed for repairs until May.", "summary": "A bridge is closed."},
        {"document": "A school has bought forty new computers.", "summary": "New computers for a school."},
    ],
    "cnn_dm": [
        {"document": "Heavy snow fell. Trains were late.", "summary": "Snow delays trains."},
        {"document": "The team won. The crowd sang.", "summary": "A win and songs."},
    ],
    "coqa": [
        {
            "story": STORY,
            "questions": ["What colour is the boat?", "Who comes along?"],
            "answers": [["red"], ["Rex", "her dog Rex", "the dog"]],
        }
    ],
    "qasper": [
        {
            "context": "We train on ten thousand notes.",
            "question": "How many notes?",
            "answers": ["ten thousand", "10,000"],
        },
        {"context": "We train on ten thousand notes.", "question": "What is trained on?", "answers": ["notes"]},
        {"context": "We train on ten thousand notes.", "question": "Do we train?", "answers": ["Yes", "yes"]},
    ],
    "humaneval": [
        {
            "prompt": 'def double(x: int) -> int:\n    """Twice as much."""\n',
            "entry_point": "double",
            "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) == 0\n",
        },
        {
            "prompt": 'def shout(text: str) -> str:\n    """In capitals."""\n',
            "entry_point": "shout",
            "test": "def check(candidate):\n    assert candidate('a') == 'A'\n",
        },
    ],
}


def write_data(folder: Path, **changes: list[dict[str, Any]]) -> Path:
    """Write all items to files, with some data sets replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, samples in {**SAMPLES, **changes}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return folder
