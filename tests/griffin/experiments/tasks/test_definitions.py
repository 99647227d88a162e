"""Prompts from local files have exactly the words of lm-eval's own definitions."""

import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from lm_eval.tasks import TaskManager

from griffin.errors import GriffinError
from griffin.experiments.tasks import sandbox, squad
from griffin.experiments.tasks.arithmetic import WORKED
from griffin.experiments.tasks.definitions import make_manager, make_task, rouge
from griffin.experiments.tasks.word_problems import TEMPLATES, problems
from tests.griffin.experiments.data import SAMPLES, STORY, write_data


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return make_manager(Path())


def asked(name: str, data: Path, manager: TaskManager) -> list[Any]:
    """The arguments of every request, for all items."""
    task = make_task(name, data, manager)
    task.build_all_requests(rank=0, world_size=1)
    return [instance.args for instance in task.instances]


CHOICES = {
    "hellaswag": [
        ("Baking bread: A man kneads dough. He", [" bakes it.", " swims.", " flies.", " is a cat."]),
        ("Fishing: A woman sits by a lake. She", [" sings a car.", " waits for a bite.", " is ice.", " eats it all."]),
    ],
    "piqa": [
        ("Question: Dry a wet shirt\nAnswer:", [" Hang it in the sun.", " Put it in a bucket of water."]),
        ("Question: Cut paper\nAnswer:", [" Use a spoon.", " Use scissors."]),
    ],
    "copa": [
        ("The glass broke because", [" it fell on the floor.", " it was clean."]),
        ("It rained all day therefore", [" the street was dry.", " the street was wet."]),
    ],
    "arc_easy": [
        ("Question: What is frozen water?\nAnswer:", [" ice", " steam", " sand"]),
        ("Question: Which animal can fly?\nAnswer:", [" dog", " bird", " fish", " cow"]),
    ],
    "arc_challenge": [
        ("Question: Why is it dark at night?\nAnswer:", [" the Earth has turned", " the Sun is off"]),
        ("Question: What pulls things down?\nAnswer:", [" wind", " light", " gravity", " sound"]),
    ],
    "boolq": [
        ("Cats are animals.\nQuestion: is a cat an animal?\nAnswer:", [" no", " yes"]),
        ("The moon is made of rock.\nQuestion: is the moon made of cheese?\nAnswer:", [" no", " yes"]),
    ],
}
GOLD = {
    "hellaswag": [0, 1],
    "piqa": [0, 1],
    "copa": [0, 1],
    "arc_easy": [0, 1],
    "arc_challenge": [0, 2],
    "boolq": [1, 0],
}


@pytest.mark.parametrize("name", CHOICES)
def test_choices(name: str, tmp_path: Path, manager: TaskManager) -> None:
    """The context, the answers, and which of them is right: the most likely one scores 1."""
    data = write_data(tmp_path)
    # COPA's answers begin with a space, and lm-eval adds another. We keep both, as all users of lm-eval have them.
    space = " " if name == "copa" else ""
    expected = [(context, space + answer) for context, answers in CHOICES[name] for answer in answers]

    assert [arguments[:2] for arguments in asked(name, data, manager)] == expected
    task = make_task(name, data, manager)
    for doc, (_, answers), gold in zip(task.eval_docs, CHOICES[name], GOLD[name], strict=True):
        for likely in range(len(answers)):
            results = [(0.0 if number == likely else -5.0, False) for number in range(len(answers))]
            assert task.process_results(doc, results)["acc"] == float(likely == gold)


def test_summaries_have_one_worked_example(tmp_path: Path, manager: TaskManager) -> None:
    """It is the first item of the file, which is not asked itself."""
    (text, options), (other, _) = asked("xsum", write_data(tmp_path), manager)
    example = (
        "###\nArticle: A farmer grew the largest pumpkin of the county.\n\n"
        "Summarize the above article in 1 sentence.\nA pumpkin won a prize.\n\n"
    )

    assert text == example + (
        "###\nArticle: The old bridge will be closed for repairs until May.\n\n"
        "Summarize the above article in 1 sentence.\n"
    )
    assert other.startswith(example + "###\nArticle: A school")
    assert (options["until"], options["max_gen_toks"], options["do_sample"]) == (["###"], 64, False)
    ((longer, _),) = asked("cnn_dm", tmp_path, manager)
    assert longer.endswith("The crowd sang.\n\nSummarize the above article in 3 sentences.\n")


def test_every_question_of_a_conversation(tmp_path: Path, manager: TaskManager) -> None:
    """With the earlier questions and answers. Several accepted answers count in CoQA's way."""
    (first, _), (second, options) = asked("coqa", write_data(tmp_path), manager)
    task = make_task("coqa", tmp_path, manager)
    one, two = task.eval_docs

    assert first == f"{STORY}\n\nQ: What colour is the boat?\n\nA:"
    assert second == f"{STORY}\n\nQ: What colour is the boat?\n\nA: red\n\nQ: Who comes along?\n\nA:"
    assert options["until"] == ["\nQ:"]
    assert task.process_results(one, [" Red.\n\nQ: and"]) == {"em": 1.0, "f1": 1.0}
    # "Rex", "her dog Rex" and "the dog" are left out in turn. EM is 1 unless "Rex" is left out.
    # Then F1 with "her dog Rex" is 2 * 1 * (1/3) / (4/3) = 0.5, the best of the other two.
    assert task.process_results(two, [" Rex"]) == pytest.approx({"em": 2 / 3, "f1": (1 + 1 + 0.5) / 3})


def test_questions_on_papers(tmp_path: Path, manager: TaskManager) -> None:
    """SCROLLS' task: the best of the accepted answers counts, by words in common, without articles."""
    (text, options), _, yes, no = asked("qasper", write_data(tmp_path), manager)
    task = make_task("qasper", tmp_path, manager)
    one, two, three = task.eval_docs

    assert text == "We train on ten thousand notes.\n\nQuestion: How many notes?\nAnswer:"
    assert options == {"until": ["\n"], "max_gen_toks": 64, "do_sample": False}
    # Without its article, "the ten thousand pages" has 3 words, 2 of them right: precision 2/3, recall 1.
    assert task.process_results(one, [" the ten thousand pages"])["f1"] == pytest.approx(0.8)
    assert task.process_results(two, [" "])["f1"] == 0
    # A yes-or-no question is a choice between these two words.
    assert (yes[1], no[1]) == (" yes", " no")
    assert task.process_results(three, [(-1.0, False), (-2.0, False)])["f1"] == 1
    assert task.process_results(three, [(-2.0, False), (-1.0, False)])["f1"] == 0


def test_heads_of_functions(tmp_path: Path, manager: TaskManager, sandboxed: None) -> None:
    """As lm-eval asks them; a fence also ends an answer. An answer must pass all tests of its item."""
    (text, options), _ = asked("humaneval", write_data(tmp_path), manager)
    task = make_task("humaneval", tmp_path, manager)
    double, shout = task.eval_docs

    assert text == SAMPLES["humaneval"][0]["prompt"]
    until = ["\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```"]
    assert options == {"until": until, "max_gen_toks": 512, "do_sample": False}
    for doc, body, passed in (
        (double, "    return 2 * x", 1), (double, "    return 4", 0), (double, "    return 2 *", 0),
        (shout, "    return text.upper()\n", 1), (shout, "    import sys; sys.exit(0)", 0), (shout, "", 0),
    ):  # fmt: skip
        assert task.process_results(doc, [body]) == {"pass@1": passed}


def test_without_a_sandbox_nothing_is_asked(
    tmp_path: Path, manager: TaskManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error comes before any answer is computed."""
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    with pytest.raises(GriffinError, match="run in a sandbox that only Linux has"):
        make_task("humaneval", write_data(tmp_path), manager)


def test_word_problems(manager: TaskManager) -> None:
    """They need no data and follow four worked examples. The named answer counts, or else the last number."""
    texts = [text for text, _ in asked("arithmetic", Path("nowhere"), manager)]
    task = make_task("arithmetic", Path("nowhere"), manager)
    head = "\n\n".join(f"Q: {question}\nA: {worked}" for question, worked in WORKED)
    (question, answer), *_ = problems(1)

    assert len(set(texts)) > 190
    assert all(text.startswith(f"{head}\n\nQ: ") and text.endswith("?\nA:") for text in texts)
    assert texts[0] == f"{head}\n\nQ: {question}\nA:"
    for text, found in (
        (f" 3 + 4 = {answer}.", 1), (f"The answer is ${answer}.00.", 1), (f"{answer}, not 7", 0), ("Many.", 0),
        (f"1 + 1. The answer is {answer}. The answer is 7.", 1), (f"{answer}. The answer is none.", 0),
    ):  # fmt: skip
        assert task.process_results(task.eval_docs[0], [text]) == {"em": found}
    assert task.process_results({"answer": 1200}, [" It is 1,200!"]) == {"em": 1}


def test_word_problems_stay_the_same() -> None:
    """A seed draws them: they are the same on every machine and for any count. Answers are above zero."""
    many = problems(40 * len(TEMPLATES))

    assert many[:3] == problems(3)
    assert many[1] == (
        "Grace saves $6 every week for 5 weeks and then gets $30 from an aunt. After buying a book for $37, how many "
        "dollars does Grace have?",
        6 * 5 + 30 - 37,
    )
    assert min(answer for _, answer in many) > 0


@pytest.mark.parametrize("worked", [answer for _, answer in WORKED])
def test_worked_answers_are_right(worked: str) -> None:
    """Each sum is right, and the last one is the answer."""
    sums = re.findall(r"([\d +*-]+) = (\d+)", worked)

    assert all(eval(left) == int(right) for left, right in sums)
    assert worked.endswith(f"The answer is {sums[-1][1]}.")


def test_rouge() -> None:
    """Overlap of words, of pairs of words, and the longest common subsequence, after stemming."""
    # Prediction: the cats sat down (4 words); reference: a cat sat (3). Common: cat, sat; one pair: cat sat.
    found = rouge({"summary": "a cat sat"}, ["The cats sat down"])

    precision, recall = 2 / 4, 2 / 3
    assert found["rouge1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert found["rouge2"] == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    assert found["rougeL"] == pytest.approx(found["rouge1"])


@pytest.mark.parametrize(
    ("accepted", "answer", "exact", "f1"),
    [("The cat!", "cat", 1, 1.0), ("a black cat", "cat", 0, 2 / 3), ("", "cat", 0, 0.0), ("the", "", 1, 1.0)],
)
def test_squad(accepted: str, answer: str, exact: int, f1: float) -> None:
    """By hand: "black cat" against "cat" has precision 1 and recall 1/2."""
    assert squad.compute_exact(accepted, answer) == exact
    assert squad.compute_f1(accepted, answer) == pytest.approx(f1)


COPA = {"premise": "p", "question": "cause", "choice1": "a", "choice2": "b", "label": 0}


@pytest.mark.parametrize(
    ("name", "samples", "message"),
    [
        ("piqa", [{"goal": "Fly", "sol1": "a", "label": 0}], r"piqa.jsonl', line 1: the field 'sol2' is missing"),
        ("piqa", [], r"piqa.jsonl' holds no samples"),
        (
            "boolq",
            [{"passage": "a", "question": "b", "label": "yes"}],
            r"line 1: the field 'label' is not a whole number",
        ),
        (
            "hellaswag",
            [{"ctx": "no label", "endings": ["a"] * 4, "label": 0}],
            r"item 1: the field 'ctx' is not of the form",
        ),
        (
            "arc_easy",
            [{"question": "q", "choices": ["a", "b"], "label": 2}],
            r"item 1: the label 2 is none of its 2 choices",
        ),
        ("coqa", [{"story": "s", "questions": ["q"], "answers": [[]]}], r"item 1: .* an answer or more"),
        ("qasper", [{"context": "c", "question": "q", "answers": []}], r"item 1: .* an answer or more"),
        ("copa", [{**COPA, "question": "why"}], r"item 1: the field 'question' is 'why', not cause or effect"),
        ("copa", [{**COPA, "choice2": " "}], r"item 1: the field 'choice2' is empty"),
        ("arc_easy", [{"question": "q", "choices": ["a"], "label": 0}], r"item 1: two choices or more are needed"),
        ("xsum", [{"document": "d", "summary": "s"}], r"2 or more items are needed"),
        ("humaneval", [{"prompt": "p", "test": "t", "entry_point": "a b"}], r"item 1: .* not the name of a function"),
    ],
)
def test_bad_data(
    name: str,
    samples: list[dict[str, Any]],
    message: str,
    tmp_path: Path,
    manager: TaskManager,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line names the file, the item and what is wrong with it."""
    if name == "humaneval":
        monkeypatch.setattr(sandbox, "passes", lambda _: True)
    with pytest.raises(GriffinError, match=message):
        make_task(name, write_data(tmp_path, **{name: samples}), manager)


def test_a_missing_file(tmp_path: Path, manager: TaskManager) -> None:
    """The error says what should be in it."""
    with pytest.raises(
        GriffinError, match=r"has no piqa.jsonl \(one JSON object a line with: goal, sol1, sol2, label\)"
    ):
        make_task("piqa", tmp_path, manager)


def test_without_data_the_hub_is_asked(manager: TaskManager) -> None:
    """It cannot be reached here, and one line says so."""
    with pytest.raises(GriffinError, match=r"cannot get the data set of 'piqa' from the hub: .*; give --data DIR"):
        make_task("piqa", None, manager)


HUB = {
    "EdinburghNLP/xsum": {"document": "A hen laid an egg.", "summary": "An egg."},
    "abisee/cnn_dailymail": {"article": "A hen laid an egg.", "highlights": "An egg."},
    "baber/piqa": {"goal": "Cut paper", "sol1": "Use a spoon.", "sol2": "Use scissors.", "label": 1},
}


@pytest.fixture(scope="module")
def hub_manager() -> TaskManager:
    """It knows lm-eval's own tasks, too: to find them it reads thousands of files."""
    return make_manager(None)


@pytest.mark.parametrize(("name", "prompt"), [
    ("xsum", "###\nArticle: A hen laid an egg.\n\nSummarize the above article in 1 sentence.\n"),
    ("cnn_dm", "###\nArticle: A hen laid an egg.\n\nSummarize the above article in 3 sentences.\n"),
    ("piqa", "Question: Cut paper\nAnswer:"),
])  # fmt: skip
def test_data_sets_of_the_hub(
    name: str, prompt: str, hub_manager: TaskManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the hub's own field names; here the data come from memory."""

    def load_dataset(path: str, **_: Any) -> datasets.DatasetDict:
        part = datasets.Dataset.from_list([HUB[path]])
        return datasets.DatasetDict(train=part, validation=part, test=part)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = make_task(name, None, hub_manager)
    task.build_all_requests(rank=0, world_size=1)
    texts = [instance.args[0] for instance in task.instances]

    shots = f"{prompt}An egg.\n\n" if name != "piqa" else ""
    assert set(texts) == {shots + prompt}
