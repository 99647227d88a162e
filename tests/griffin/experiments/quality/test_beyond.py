"""What goes beyond the paper: calibrating, and measuring what griffin+ and the verified modes are worth."""

import argparse
import math
from itertools import permutations
from pathlib import Path

import pytest
import torch

from griffin import Preparation, Pruning
from griffin.experiments.common.experiment import Experiment, conduct, defaults
from griffin.experiments.common.study import Study
from griffin.experiments.common.teacher import Teacher
from griffin.experiments.quality import acceptance, drift, pareto
from griffin.experiments.quality.drift import Way, read_after
from griffin.experiments.speed import pace
from griffin.experiments.tune import calibrate as command
from griffin.method.plus.calibration import Calibration
from griffin.method.plus.measurement import calibrate
from griffin.model.identity import identity
from griffin.model.loading import Checkpoint
from griffin.request import METHOD_NAMES
from tests.griffin.experiments.data import write_data
from tests.griffin.experiments.words import random_ids, word_study, write_texts
from tests.tiny import tiny_model


def arguments(experiment: Experiment, **changes: object) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(defaults(experiment)), **changes})


def calibrated_study(folder: Path, text: list[int]) -> Study:
    calibration = calibrate(tiny_model("llama").requires_grad_(False), [random_ids(5, 20), random_ids(6, 20)])
    return word_study(folder, text, calibration=calibration)


def test_sequences_from_all_of_a_text() -> None:
    """Evenly spread from the first token to the last, each behind what begins a text; too little text is told."""
    found = command.spread(list(range(100, 120)), [1], 3, 5)

    assert found == [[1, 100, 101, 102, 103], [1, 108, 109, 110, 111], [1, 116, 117, 118, 119]]
    with pytest.raises(ValueError, match="--text: has 20 tokens, but 6 sequences of 5"):
        command.spread(list(range(20)), [1], 6, 5)


def test_a_model_is_calibrated_from_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is written is this model's, and says where."""
    study = word_study(tmp_path, random_ids(1, 40))
    monkeypatch.setattr(command, "open_model", lambda *_: study)
    file, to = tmp_path / "text.txt", tmp_path / "cal.safetensors"
    file.write_text(" ".join(f"w{id}" for id in random_ids(2, 60)))
    given = {"model": "tiny", "dtype": "auto", "device": "auto", "data": None, "sequences": 4, "tokens": 12}

    command.run(argparse.Namespace(text=[file], to=to, cache_dir=None, quantize=None, **given))

    assert f"tiny is calibrated on 48 tokens: {to}" in capsys.readouterr().out
    assert Calibration.read(to, identity(study.checkpoint.model)) is not None


def test_results_of_another_calibration_are_not_taken(tmp_path: Path) -> None:
    """A ledger knows by which one its answers were found."""
    text = random_ids(1, 40)
    one, other = calibrated_study(tmp_path, text), word_study(tmp_path, text)
    one.ledger.put({"a": 1}, 2)

    assert calibrated_study(tmp_path, text).ledger.get({"a": 1}) == 2
    assert other.ledger.get({"a": 1}) is None


def test_curves_against_active_parameters(tmp_path: Path) -> None:
    """The paper's method is 1 of itself, each part has its row, and nothing is drawn that was not measured."""
    study = calibrated_study(tmp_path, random_ids(1, 120))
    asked = arguments(pareto, prompt=12, generated=8, windows=3, sparsities=[0.25, 0.5], tasks=[], model="tiny")
    found = conduct("pareto", pareto, study, asked)

    assert pareto.relative_excess(found, "GRIFFIN", 0.5) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-9))
    (table,) = pareto.tables(found)
    assert [row[0] for row in table.rows][:2] == ["GRIFFIN", "+ score"]
    assert len({len(row) for row in table.rows} | {len(table.heads)}) == 1
    active = found["active"]
    assert active["full@0"] > active["GRIFFIN@0.25"] > active["GRIFFIN@0.5"]
    # Counted token by token; the paper's method reads as much of each.
    assert active["griffin+@0.5"] == pytest.approx(active["GRIFFIN@0.5"], rel=0.1)
    assert active["griffin+ without gating@0.5"] == active["GRIFFIN@0.5"]
    assert (tmp_path / "tiny" / "pareto.svg").stat().st_size > 0
    assert len(pareto.claims(found)) == 1


def test_scores_against_active_parameters(tmp_path: Path, smollm2: Checkpoint) -> None:
    """Each addition is asked the tasks too; what is taken away is not."""
    model = tiny_model("llama", vocab_size=49152, max_position_embeddings=512).requires_grad_(False)
    calibration = calibrate(model, [random_ids(5, 20), random_ids(6, 20)])
    data = write_texts(write_data(tmp_path / "data"), random_ids(1, 120))
    study = Study(Checkpoint("tiny", model, smollm2.tokenizer), data, tmp_path / "tiny", Preparation(calibration))
    asked = arguments(pareto, prompt=12, generated=4, windows=2, sparsities=[0.5], limit=1, model="tiny")
    found = conduct("pareto", pareto, study, asked)

    expected = ["full", *[f"{variant.name} 50 %" for variant in pareto.added_at(0.5)]]
    assert {task: list(scores) for task, scores in found["scores"].items()} == dict.fromkeys(pareto.TASKS, expected)
    _, scores, answers = pareto.tables(found)
    assert [row[0] for row in scores.rows] == ["items", *expected]
    assert [row[0] for row in answers.rows] == [variant.name for variant in pareto.added_at(0.5)]
    assert "CoQA" in (tmp_path / "tiny" / "pareto.svg").read_text()


def test_long_generations(tmp_path: Path) -> None:
    """Every way has its line; where nothing is removed there is no gap."""
    study = calibrated_study(tmp_path, random_ids(1, 120))
    asked = arguments(drift, prompt=6, generated=24, block=4, parts=3, windows=2, model="tiny")
    found = conduct("drift", drift, study, asked)

    assert len(found["ways"]) == 1 + 3 * len(METHOD_NAMES)
    assert [len(window) for window in found["losses"]] == [7, 7]
    summary = drift.summary(found)
    assert summary["griffin"]["of_plain"] == pytest.approx(1.0)
    assert math.isfinite(summary["griffin, refreshed"]["gap"])
    assert (tmp_path / "tiny" / "drift.svg").stat().st_size > 0


def test_a_refresh_after_every_token_chooses_on_all_before() -> None:
    """By hand: each token is predicted behind what the full model has read, by neurons chosen on all of it."""
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
    """Lossless is what the full model generates; drafts are counted; every way has its row."""
    study = calibrated_study(tmp_path, random_ids(1, 120))
    asked = arguments(acceptance, prompt=12, tokens=8, prompts=2, sparsities=[0.5], model="tiny")
    found = conduct("acceptance", acceptance, study, asked)

    lossless = [row for row in found["rows"] if row["mode"] == "lossless"]
    assert [row["same"] for row in lossless] == [1.0] * len(lossless)
    assert all(0 <= row["acceptance"] <= 1 for row in lossless if row["sparsity"])
    (claim,) = acceptance.claims(found)
    assert claim.holds
    assert (tmp_path / "tiny" / "acceptance.svg").stat().st_size > 0


def test_pace_times_methods_in_turn(tmp_path: Path) -> None:
    """Each method's row names what it reads; griffin beside itself is one; full runs beside each sparsity."""
    study = calibrated_study(tmp_path, random_ids(1, 120))
    asked = arguments(pace, prompt=12, tokens=8, prompts=2, sparsities=[0.25, 0.5], model="tiny")
    found = conduct("pace", pace, study, asked)
    rows = {(row["name"], row["beside"]): row for row in found["rows"]}
    full, griffin, plus = (rows[name, 0.5] for name in ("full", "griffin", "griffin+"))

    assert list(rows) == [(name, s) for s in (0.25, 0.5) for name in ("full", "griffin", "griffin+")]
    assert full["active_parameters"] == study.accounting.total
    assert griffin["active_parameters"] == study.accounting.active(study.accounting.kept(0.5))
    assert plus["active_parameters"] == pytest.approx(griffin["active_parameters"], rel=0.02)
    assert (griffin["over_griffin"], griffin["lowest"], griffin["highest"]) == (1, 1, 1)
    assert 0 < plus["lowest"] <= plus["over_griffin"] <= plus["highest"]
    assert (tmp_path / "tiny" / "pace.svg").stat().st_size > 0


def test_pace_is_judged_by_the_slowest_sparsity() -> None:
    """Within 2 % at each; too near to tell is neither."""
    prompts = [([[3.0] * 4, [1.0, 2.0, 1.0, 2.0], [r, 2 * r, r, 9.0]], [9, 6, 6]) for r in (1.0, 1.01, 1.02)]
    fast, slow = (pace.rows_of(s, prompts) for s in (0.25, 0.5))
    slow[2]["over_griffin"] = 1.04
    (as_fast,) = pace.claims({"rows": fast})
    (slower,) = pace.claims({"rows": [*fast, *slow]})
    slow[2]["over_griffin"] = 1.03
    (unsure,) = pace.claims({"rows": [*fast, *slow]})

    assert (as_fast.holds, slower.holds, unsure.holds) == (True, False, None)
    assert slower.here == "1.010 ± 0.006 at 25 %, 1.040 ± 0.006 at 50 %"


def test_each_is_timed_behind_each_other_equally_often() -> None:
    """Round after round."""
    before = pace.ORDER[-1:] + pace.ORDER[:-1]

    assert sorted(zip(before, pace.ORDER, strict=True)) == sorted(permutations(range(3), 2))


def test_a_beginning_is_read_once() -> None:
    """What went on behind it leaves nothing: each way, and another beginning, as by a teacher that saw nothing else."""
    model, ids = tiny_model("llama"), random_ids(4, 24)
    calibration = calibrate(model.requires_grad_(False), [random_ids(5, 20)])
    plus = Pruning(0.5, method="griffin+")
    ways = [Way("", None), Way("", plus, block=3, refresh=True), Way("", plus), Way("", Pruning(0.5), block=2)]
    asked = [*((10, way) for way in ways), (7, ways[2]), (10, ways[2])]
    teacher = Teacher(model, calibration=calibration)

    for cut, way in asked:
        found = read_after(teacher, ids[:cut], ids[cut:], way)
        expected = read_after(Teacher(model, calibration=calibration), ids[:cut], ids[cut:], way)

        torch.testing.assert_close(torch.cat(found), torch.cat(expected), atol=1e-6, rtol=1e-6)
