"""The distance of served weights from the checkpoint's: zero if they are equal, above zero if rounded."""

import argparse
import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from griffin.decode.decoder import StepDecoder
from griffin.errors import GriffinError
from griffin.experiments.common.experiment import Found, conduct, defaults
from griffin.experiments.quality import fidelity
from griffin.experiments.quality.passes import Reference, Served
from griffin.experiments.quality.tally import Tally
from griffin.model.loading import Checkpoint
from tests.griffin.experiments.llama import install, pretended_file
from tests.griffin.experiments.words import random_ids, word_study, word_tokenizer
from tests.tiny import tiny_model


def rounded(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its weights rounded to bfloat16, still in fp32."""
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return model


@pytest.fixture
def study_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The ``fidelity`` experiment on a served model, with another model as its checkpoint."""

    def conducted(served: PreTrainedModel, checkpoint: PreTrainedModel, **changes: object) -> Found:
        loaded = Checkpoint("tiny", checkpoint, word_tokenizer())
        monkeypatch.setattr(fidelity, "load", lambda *_, **__: loaded)
        asked = {
            "windows": 3,
            "prompt": 6,
            "tokens": 10,
            "model": "tiny",
            "device": "cpu",
            "passes": ["steps", "prompt"],
        }
        arguments = argparse.Namespace(**{**vars(defaults(fidelity)), **asked, **changes})
        return conduct("fidelity", fidelity, word_study(tmp_path, random_ids(1, 80), model=served), arguments)

    return conducted


def test_the_same_values_are_found_again(study_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In both passes, at every token. Each token of ``steps`` really runs through the decode step."""
    steps: list[int] = []
    advance = StepDecoder.advance
    monkeypatch.setattr(StepDecoder, "advance", lambda self: steps.append(1) or advance(self))
    found = study_of(tiny_model("llama"), tiny_model("llama"))
    reference, *others = found["rows"]

    # The checks of both steps need two more.
    assert len(steps) == 3 * 10 + 2
    assert [row["name"] for row in others] == ["here, by steps", "here, as a prompt"]
    for row in others:
        assert row["kl"] < 1e-9
        assert row["same"] == 1
        assert row["perplexity"] == pytest.approx(reference["perplexity"], rel=1e-5)
    assert all(claim.holds for claim in fidelity.claims(found))
    (table,) = fidelity.tables(found)
    assert [row[0] for row in table.rows] == ["fp32", "here, by steps", "here, as a prompt"]


def test_rounded_values_are_told(study_of: Any) -> None:
    """Both passes find the same divergence."""
    model = tiny_model("llama")
    _, steps, prompt = study_of(rounded(model), model)["rows"]

    assert 1e-9 < steps["kl"] <= steps["kl_highest"]
    assert steps["kl"] == pytest.approx(prompt["kl"], rel=1e-2)


def test_llama_cpp_reads_the_same_windows(study_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For it the next id is the most probable, and it is in the table and the claims."""
    install(tmp_path / "package", monkeypatch, 128)
    file = pretended_file(tmp_path / "own.gguf")
    found = study_of(tiny_model("llama"), tiny_model("llama"), llama_cpp=file)
    names = [row["name"] for row in found["rows"]]
    (table,) = fidelity.tables(found)

    assert names[3:] == ["llama.cpp, by steps", "llama.cpp, as a prompt"]
    assert found["rows"][3]["windows"] == found["rows"][4]["windows"]
    assert found["llama_cpp"]["file"] == "own.gguf"
    assert "llama-cpp-python 9.9" in table.caption
    assert table.rows[3][-1] == "-"
    assert len(fidelity.claims(found)) == 4


def test_what_cannot_be_measured(study_of: Any) -> None:
    """A window beyond the context, and a reference that is not in fp32."""
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="--prompt, --tokens: 507 tokens, but the context has 256"):
        study_of(model, model, tokens=500)
    with pytest.raises(GriffinError, match="must be in float32 throughout, but is bfloat16"):
        study_of(model, tiny_model("llama").bfloat16())


def test_a_tally_by_hand() -> None:
    """Two windows of one token each: KL of (1/2, 1/2) from (1/4, 3/4), and of a distribution from itself."""
    half, quarter = torch.tensor([[0.5, 0.5]]).double().log(), torch.tensor([[0.25, 0.75]]).double().log()
    tally = Tally()
    for found in (quarter, half):
        tally.begin()
        tally.add(half, found, [1])
    row = tally.row("a")

    assert row["windows"]["kl"] == [pytest.approx(0.143841), pytest.approx(0)]
    assert row["kl"] == pytest.approx(0.143841 / 2)
    assert row["kl_highest"] == pytest.approx(0.143841)
    assert row["perplexity"] == pytest.approx((1 / 0.75 / 0.5) ** 0.5)
    assert row["same"] == 0.5


def test_every_family_is_read(model: PreTrainedModel) -> None:
    """The library's own pass and the decode step agree for every kind of block."""
    reference, served = Reference(copy.deepcopy(model)), Served(model, "steps", 64)
    for each in (reference, served):
        each.begin([5, 6, 7])

    torch.testing.assert_close(served.read([8, 9, 10]), reference.read([8, 9, 10]), rtol=1e-3, atol=1e-4)
