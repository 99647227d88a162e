"""All parts on a tiny model: what is asked, timed and compared, and what remains of a stopped run."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from griffin.errors import GriffinError
from griffin.experiments.common.experiment import conduct
from griffin.experiments.common.results import Claim
from griffin.experiments.common.study import Study
from griffin.experiments.speed.drafts import equality, experiment, parts, questions, turns, ways
from tests.griffin.experiments.llama import install, pretended_file
from tests.griffin.experiments.speed.drafts.conftest import asked


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the prompts of passes fit the tiny context."""
    monkeypatch.setattr(parts, "PASS_PROMPT", 32)


def held(claims: Sequence[Claim]) -> list[tuple[str, bool | None]]:
    return [(claim.paper, claim.holds) for claim in claims]


def test_every_part(study: Study, reads: None, tmp_path: Path) -> None:
    """Each has its rows and its table. The figures of an unfinished run are removed at the end."""
    found = conduct("drafts", experiment, study, asked(methods=["griffin+"]))
    names = [table.heads[0] or table.rows[0][0] for table in experiment.tables(found)]
    passes = {row["name"]: row for row in found["passes"]}
    equal = [(row["name"], row["kind"], row["same"], row["answers"]) for row in found["equal"]]

    assert names == ["passes", "first token", "full", "full", "full", "full", "equal", "goal"]
    assert list(passes) == ["full", "griffin+ 50 %"]
    assert all(steps > 0 for steps in passes["full"]["steps"].values())
    assert {(row["name"], row["length"]) for row in found["first-token"]} == {
        (name, length) for name in ("full", "griffin+ 50 %") for length in (8, 27, 64, 128)
    }
    assert [row["text"] for row in found["lossless"]] == ["edits"] * 3 + ["chats"] * 3
    assert equal == [
        (name, kind, 3, 3)
        for kind in ("greedy", "sampled")
        for name in (
            "full, drafts", "griffin+ 50 %, drafts", "lossless, griffin+ 50 %", "lossless, griffin+ 50 % and n-grams"
        )
    ]  # fmt: skip
    assert {row["tokens"] for row in found["equal"]} == {30}
    assert json.loads((tmp_path / "tiny" / "drafts.json").read_text())["edits"] == found["edits"]
    assert not list((tmp_path / "tiny").glob("drafts-so-far.*"))
    # The results in the file give the same claims.
    assert held(experiment.claims(json.loads(json.dumps(found)))) == held(experiment.claims(found))


def test_parts_can_be_left_out_and_stopped(study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The figures of earlier parts and earlier prompts stay."""
    run, answered = ways._by_engine, []

    def stopped(*arguments: object) -> ways.Answer:
        answered.append(arguments)
        # Edits: 4 ways once as a warm-up, then on 2 prompts. Chats: once as a warm-up, then on one prompt.
        if len(answered) == 12 + 8 + 1:
            raise KeyboardInterrupt
        return run(*arguments)

    monkeypatch.setattr(ways, "_by_engine", stopped)
    with pytest.raises(KeyboardInterrupt):
        conduct("drafts", experiment, study, asked(parts=["chats", "edits"]))
    so_far = json.loads((tmp_path / "tiny" / "drafts-so-far.json").read_text())

    assert [row["answers"] for row in so_far["edits"]] == [2] * 4
    assert [row["answers"] for row in so_far["chats"]] == [1] * 4
    assert "chats: sampled" in (tmp_path / "tiny" / "drafts-so-far.txt").read_text()


def test_beside_llama_cpp(study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It answers the same prompts, without lookup and with each. Edits and first tokens are compared with it."""
    install(tmp_path / "package", monkeypatch, 128)
    file = pretended_file(tmp_path / "own.gguf")
    wanted = asked(parts=["edits", "first-token"], llama_cpp=file, lookups=[2, 3])
    found = conduct("drafts", experiment, study, wanted)
    rows = turns.by_name(found["edits"])

    assert list(rows)[4:] == ["llama.cpp", "llama.cpp, lookup 2", "llama.cpp, lookup 3"]
    assert (rows["llama.cpp"]["drafted"], rows["llama.cpp"]["over_base"]) == (0, 1)
    # The fake llama.cpp counts upwards, and one draft of each pass is right.
    assert rows["llama.cpp, lookup 2"]["accepted"] > 0
    assert rows["llama.cpp, lookup 2"]["same"] == 2
    assert {row["name"] for row in found["first-token"]} == {"full", "griffin+ 50 %", "llama.cpp"}
    assert found["llama_cpp"]["file"] == "own.gguf"
    assert len(experiment.claims(found)) == 3 + 2


def test_rows_by_hand() -> None:
    """Medians of ratios on the same prompt. An answer of one token has no speed, but is compared."""
    answers = [
        {"a": ways.Answer([1, 2, 3], 2.0), "a, drafts": ways.Answer([1, 2, 3], 1.0, 4, 2)},
        {"a": ways.Answer([1, 2], 1.0), "a, drafts": ways.Answer([1, 3], 0.25, 4, 1)},
        {"a": ways.Answer([9], 0.0), "a, drafts": ways.Answer([9], 0.0)},
    ]
    compared = [ways.Way(name, "a", lambda prompt: ways.Answer(prompt, 1.0)) for name in ("a", "a, drafts")]
    _, drafts = turns.rows(compared, answers)

    assert (drafts["over_base"], drafts["lowest"], drafts["highest"]) == (3, 2, 4)
    assert drafts["tokens_per_second"] == 3
    assert (drafts["drafted"], drafts["accepted"], drafts["tokens"], drafts["same"]) == (8, 3, 6, 2)
    (line,) = turns.table([drafts], "", "without").rows
    assert line == ("a, drafts", "3.0", "3.00x", "2.00 - 4.00", "3 of 8", "50 %", "2 of 3")


def test_equal_answers_show_something_only_where_drafts_were_made() -> None:
    """A different answer is reported with its place. Without drafts the claim is unsure."""
    way = ways.Way("a, drafts", "a", lambda prompt: ways.Answer(prompt, 1.0))
    row = equality._row("greedy", way)
    equality._compare(row, 0, ways.Answer([1, 2], 1.0), ways.Answer([1, 2], 1.0))
    (idle,) = equality.claims([row])
    equality._compare(row, 1, ways.Answer([1, 2], 1.0, 3, 1), ways.Answer([1, 2], 1.0))
    (drafted,) = equality.claims([row])
    equality._compare(row, 2, ways.Answer([1, 3, 5], 1.0), ways.Answer([1, 2, 5], 1.0))
    (wrong,) = equality.claims([row])

    assert (idle.holds, drafted.holds, wrong.holds) == (None, True, False)
    assert idle.here == "all 1 answers; nothing was drafted: a, drafts, greedy."
    assert wrong.here == "differ: a, drafts, greedy: 2 of 3."
    assert row["parted"] == [[2, 1]]


def test_what_is_asked(study: Study) -> None:
    """Long functions without their docstrings, and chats outside of the categories that repeat texts."""
    (edit,) = questions.edits(study, 1)
    text = questions._edit(
        {"prompt": 'def f(a, b):\n    """What.\n\n    >>> f(1)\n    """\n', "canonical_solution": "    b = a\n" * 7,
         "entry_point": "f"}
    )  # fmt: skip

    assert text is not None
    assert "Rename the parameter `a` to `given_a`" in text
    assert text.endswith("```python\ndef f(a, b):\n" + "\n".join(["    b = a"] * 7) + "\n```")
    assert len(questions.chats(study, 5)) == 5
    assert len(questions.both(study, 3)) == 3
    assert questions.both(study, 3)[0] == edit
    assert (
        questions._edit({"prompt": "def f(a):\n", "canonical_solution": "    return a\n", "entry_point": "f"}) is None
    )
    assert questions._edit({"prompt": "def f(a:\n", "canonical_solution": "", "entry_point": "f"}) is None


def test_what_cannot_be_measured(study: Study, tmp_path: Path) -> None:
    """The error names the flag or the file."""
    with pytest.raises(ValueError, match="6 chats are asked for, but the data has 5"):
        conduct("drafts", experiment, study, asked(parts=["chats"], prompts=6))
    with pytest.raises(
        ValueError, match=r"--tokens: prompts and answers have up to 3\d\d tokens, but the context has 256"
    ):
        conduct("drafts", experiment, study, asked(parts=["chats"], tokens=300))
    with pytest.raises(ValueError, match="--sparsity: 0 is the full model"):
        conduct("drafts", experiment, study, asked(sparsity=0.0))
    study.tokenizer.chat_template = None
    with pytest.raises(GriffinError, match="no chat template"):
        conduct("drafts", experiment, study, asked(parts=["edits"]))
    study.data = None
    with pytest.raises(GriffinError, match=r"--data: name a directory that has humaneval\.jsonl"):
        conduct("drafts", experiment, study, asked(parts=["passes"]))
