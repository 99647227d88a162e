"""Experiments beyond the paper: the quality and speed of griffin+ and of the verified modes."""

import argparse
import math
from itertools import permutations
from pathlib import Path

import pytest
import torch

from griffin import Pruning
from griffin.errors import GriffinError
from griffin.experiments.common.experiment import Experiment, Found, conduct, defaults
from griffin.experiments.common.results import Claim
from griffin.experiments.common.study import Study
from griffin.experiments.common.teacher import Teacher
from griffin.experiments.common.variants import plus
from griffin.experiments.quality import acceptance, drift, pareto, readers
from griffin.experiments.quality.closeness import Passage, closeness
from griffin.experiments.quality.drift import Way, read_after
from griffin.experiments.speed import pace
from griffin.model.loading import Checkpoint
from griffin.request import METHOD_NAMES
from tests.griffin.experiments.data import write_data
from tests.griffin.experiments.quality.test_fidelity import rounded
from tests.griffin.experiments.words import random_ids, word_study, write_texts
from tests.tiny import tiny_model


def arguments(experiment: Experiment, **changes: object) -> argparse.Namespace:
    loading = {"dtype": "auto", "device": "cpu", "out": Path("results")}
    return argparse.Namespace(**{**loading, **vars(defaults(experiment)), **changes})


@pytest.fixture
def quant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that plays the role of a quant: the tiny model rounded to bfloat16, with 20,000 bytes for each token."""

    def opened(name: str, *_: object) -> Study:
        other = word_study(tmp_path / "quant", random_ids(1, 120), model=rounded(tiny_model("llama")))
        if "other" in name:
            other.tokenizer.add_tokens(["one more"])
        return other

    monkeypatch.setattr(readers, "open_model", opened)
    monkeypatch.setattr(readers, "weight_bytes", lambda _: 20_000)
    return tmp_path / "tiny-Q2_K.gguf"


def test_curves_against_bytes(tmp_path: Path, quant: Path) -> None:
    """The paper's method has a ratio of 1 to itself, a quant has its row, and bytes are those that tokens read."""
    study = word_study(tmp_path, random_ids(1, 120))
    asked = {"prompt": 12, "generated": 8, "windows": 3, "sparsities": [0.25, 0.5], "no_tasks": True, "quants": [quant]}
    found = conduct("pareto", pareto, study, arguments(pareto, **asked, model="tiny"))
    (table,) = pareto.tables(found)
    griffin, plus = (pareto.by_method(found, name, 0.5) for name in METHOD_NAMES)
    full, *_, rounded_to = found["rows"]

    assert pareto.relative_excess(found, "griffin", 0.5) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-9))
    assert [row["name"] for row in found["rows"]] == ["full", *METHOD_NAMES * 2, "tiny-Q2_K.gguf"]
    assert {row[0] for row in table.rows} == {row["name"] for row in found["rows"]}
    assert len({len(row) for row in table.rows} | {len(table.heads)}) == 1
    assert (full["kl"], full["same"], full["bytes"]) == (pytest.approx(0), 1, study.accounting.weight_bytes)
    assert 0 < rounded_to["kl"] < plus["kl"]
    assert rounded_to["bytes"] == 20_000
    assert griffin["bytes"] == study.accounting.bytes_per_token_at(0.5)
    # Counted token by token; the plan is to read as much as the paper's method.
    assert plus["bytes"] == pytest.approx(griffin["bytes"], rel=0.1)
    assert plus["active"] == pytest.approx(griffin["active"], rel=0.1)
    assert (tmp_path / "tiny" / "pareto.svg").stat().st_size > 0
    assert len(pareto.claims(found)) == 2


def test_closeness_by_hand(tmp_path: Path) -> None:
    """KL, excess and agreement of one window, from the logits themselves."""
    study, ids = word_study(tmp_path, random_ids(1, 120)), random_ids(7, 20)
    passage = Passage(study.teacher, ids[:12], ids[12:])
    found = closeness(passage, readers.VariantReader(study, plus(0.5)))
    teacher = Teacher(study.checkpoint.model)
    teacher.begin_with(ids[:12])
    chosen, mark = teacher.choose(Pruning(0.5, method="griffin+")), teacher.mark()
    pruned_TV = torch.cat(list(teacher.follow(ids[12:-1], chosen, wanted=7))).double().log_softmax(1)
    teacher.back_to(mark)
    full_TV = torch.cat(list(teacher.follow(ids[12:-1], None, wanted=7))).double().log_softmax(1)

    assert found["kl"] == pytest.approx(float((full_TV.exp() * (full_TV - pruned_TV)).sum() / 7))
    assert found["loss"] == pytest.approx(float(-pruned_TV[torch.arange(7), ids[13:]].mean()))
    assert found["same"] == pytest.approx(float((full_TV.argmax(1) == pruned_TV.argmax(1)).double().mean()))


def test_a_claim_about_a_quant() -> None:
    """It compares the largest griffin+ with no more bytes. One window is not enough to tell."""

    def row(name: str, kind: str, sparsity: float, weight: int, kl: list[float]) -> Found:
        windows = {"kl": kl, "loss": kl}
        return {
            "name": name, "kind": kind, "sparsity": sparsity, "bytes": weight, "kl": sum(kl) / len(kl),
            "windows": windows,
        }  # fmt: skip

    def claims(quant: Found, windows: int) -> list[Claim]:
        ours = [
            row("griffin+", "method", s, b, kl[:windows]) for s, b, kl in ((0.4, 70, [0.1, 0.2]), (0.6, 50, [3, 4]))
        ]
        return pareto.claims({"sparsities": [], "rows": [*ours, quant]})

    (closer,) = claims(row("Q3", "quant", 0, 75, [1.1, 1.3]), 2)
    (farther,) = claims(row("Q2", "quant", 0, 60, [0.1, 0.2]), 2)
    (unsure,) = claims(row("Q3", "quant", 0, 75, [1.1]), 1)

    assert (closer.holds, farther.holds, unsure.holds) == (True, False, None)
    assert "at 40 %" in closer.here
    assert claims(row("Q1", "quant", 0, 40, [9, 9]), 2) == []


def test_a_quant_of_another_model_is_refused(tmp_path: Path, quant: Path) -> None:
    """Its tokens would be others. --text reads a user's own text, or its error names the file."""
    study, text = word_study(tmp_path, random_ids(1, 120)), tmp_path / "own.txt"
    asked = {"prompt": 12, "generated": 8, "windows": 2, "sparsities": [0.5], "no_tasks": True, "text": text}
    with pytest.raises(GriffinError, match=r"--quants: 'other.gguf' has another vocabulary than the model"):
        pareto.measure(study, arguments(pareto, **{**asked, "text": None}, quants=[quant.with_name("other.gguf")]))
    with pytest.raises(GriffinError, match=r"--text: cannot read '.*own.txt'"):
        pareto.measure(study, arguments(pareto, **asked))
    text.write_text(" ".join(f"w{id}" for id in random_ids(3, 90)))

    assert pareto.measure(study, arguments(pareto, **asked))["text"] == "own.txt"


def test_scores_against_bytes(tmp_path: Path, smollm2: Checkpoint) -> None:
    """Each method also answers the tasks."""
    model = tiny_model("llama", vocab_size=49152, max_position_embeddings=512).requires_grad_(False)
    data = write_texts(write_data(tmp_path / "data"), random_ids(1, 120))
    study = Study(Checkpoint("tiny", model, smollm2.tokenizer), data, tmp_path / "tiny")
    asked = arguments(pareto, prompt=12, generated=4, windows=2, sparsities=[0.5], limit=1, model="tiny")
    found = conduct("pareto", pareto, study, asked)

    expected = ["full", "griffin 50 %", "griffin+ 50 %"]
    assert {task: list(scores) for task, scores in found["scores"].items()} == dict.fromkeys(pareto.TASKS, expected)
    _, scores, answers = pareto.tables(found)
    assert [row[0] for row in scores.rows] == ["items", *expected]
    assert [row[0] for row in answers.rows] == list(METHOD_NAMES)
    assert "CoQA" in (tmp_path / "tiny" / "pareto.svg").read_text()


def test_long_generations(tmp_path: Path) -> None:
    """Every way has its line, and no gap if no neuron is removed."""
    study = word_study(tmp_path, random_ids(1, 120))
    asked = arguments(drift, prompt=6, generated=24, block=4, parts=3, windows=2, model="tiny")
    found = conduct("drift", drift, study, asked)

    assert len(found["ways"]) == 1 + 3 * len(METHOD_NAMES)
    assert [len(window) for window in found["losses"]] == [7, 7]
    summary = drift.summary(found)
    assert summary["griffin"]["of_plain"] == pytest.approx(1.0)
    assert math.isfinite(summary["griffin, refreshed"]["gap"])
    assert (tmp_path / "tiny" / "drift.svg").stat().st_size > 0


def test_a_refresh_after_every_token_chooses_on_all_before() -> None:
    """By hand: neurons chosen on all earlier tokens predict each token, after what the full model has read."""
    model, ids, pruning = tiny_model("llama"), random_ids(3, 20), Pruning(0.5)
    found = torch.cat(read_after(Teacher(model), ids[:8], ids[8:], Way("", pruning, block=1, refresh=True)))

    teacher = Teacher(model)
    expected = []
    for place in range(8, 19):
        teacher.begin()
        list(teacher.read(ids[:place]))
        (logits_1V,) = teacher.follow(ids[place : place + 1], teacher.choose(pruning), wanted=1)
        expected.append(-logits_1V[0].log_softmax(0)[ids[place + 1]])

    torch.testing.assert_close(found.float(), torch.stack(expected), atol=2e-5, rtol=1e-4)


def test_what_verification_keeps(tmp_path: Path) -> None:
    """Lossless gives what the full model generates; drafts are counted; every way has its row."""
    study = word_study(tmp_path, random_ids(1, 120))
    asked = arguments(acceptance, prompt=12, tokens=8, prompts=2, sparsities=[0.5], model="tiny")
    found = conduct("acceptance", acceptance, study, asked)

    lossless = [row for row in found["rows"] if row["mode"] == "lossless"]
    assert [row["same"] for row in lossless] == [1.0] * len(lossless)
    assert all(0 <= row["acceptance"] <= 1 for row in lossless if row["sparsity"])
    (claim,) = acceptance.claims(found)
    assert claim.holds
    assert (tmp_path / "tiny" / "acceptance.svg").stat().st_size > 0


def test_pace_times_methods_in_turn(tmp_path: Path) -> None:
    """Each row has the bytes that its method reads. griffin's ratio to itself is 1, and full runs at each sparsity."""
    study = word_study(tmp_path, random_ids(1, 120))
    asked = arguments(pace, prompt=12, tokens=8, prompts=2, sparsities=[0.25, 0.5], model="tiny")
    found = conduct("pace", pace, study, asked)
    rows = {(row["name"], row["beside"]): row for row in found["rows"]}
    full, griffin, ours = (rows[name, 0.5] for name in ("full", "griffin", "griffin+"))

    assert list(rows) == [(name, s) for s in (0.25, 0.5) for name in ("full", "griffin", "griffin+")]
    assert full["bytes_per_token"] == study.accounting.weight_bytes
    assert griffin["bytes_per_token"] == study.accounting.bytes_per_token_at(0.5)
    # These bytes are counted token by token.
    assert ours["bytes_per_token"] == pytest.approx(griffin["bytes_per_token"], rel=0.1)
    assert (griffin["over_griffin"], griffin["lowest"], griffin["highest"]) == (1, 1, 1)
    assert 0 < ours["lowest"] <= ours["over_griffin"] <= ours["highest"]
    assert (tmp_path / "tiny" / "pace.svg").stat().st_size > 0


def test_pace_is_judged_by_the_slowest_sparsity() -> None:
    """As fast means within 3 % at each sparsity. Near that limit, the claim cannot tell."""
    prompts = [([[3.0] * 4, [1.0, 2.0, 1.0, 2.0], [r, 2 * r, r, 9.0]], [9, 6, 6]) for r in (1.0, 1.01, 1.02)]
    fast, slow = (pace.rows_of(s, prompts) for s in (0.25, 0.5))
    slow[2]["over_griffin"] = 1.05
    (as_fast,) = pace.claims({"rows": fast})
    (slower,) = pace.claims({"rows": [*fast, *slow]})
    slow[2]["over_griffin"] = 1.04
    (unsure,) = pace.claims({"rows": [*fast, *slow]})

    assert (as_fast.holds, slower.holds, unsure.holds) == (True, False, None)
    assert slower.here == "1.010 ± 0.006 at 25 %, 1.050 ± 0.006 at 50 %"


def test_each_is_timed_after_each_other_equally_often() -> None:
    """In each round of the order."""
    before = pace.ORDER[-1:] + pace.ORDER[:-1]

    assert sorted(zip(before, pace.ORDER, strict=True)) == sorted(permutations(range(3), 2))


def test_a_beginning_is_read_once() -> None:
    """A continuation leaves no trace: each result is that of a teacher that has read nothing else."""
    model, ids = tiny_model("llama"), random_ids(4, 24)
    plus = Pruning(0.5, method="griffin+")
    ways = [Way("", None), Way("", plus, block=3, refresh=True), Way("", plus), Way("", Pruning(0.5), block=2)]
    asked = [*((10, way) for way in ways), (7, ways[2]), (10, ways[2])]
    teacher = Teacher(model)

    for cut, way in asked:
        found = read_after(teacher, ids[:cut], ids[cut:], way)
        expected = read_after(Teacher(model), ids[:cut], ids[cut:], way)

        torch.testing.assert_close(torch.cat(found), torch.cat(expected), atol=1e-6, rtol=1e-6)
