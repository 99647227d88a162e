"""The table of steps: their order, where each can run, and how a decoder describes its step."""

import sys
from typing import get_args

import pytest
import torch
from transformers import PreTrainedModel

from griffin.decode.steps import STEP_NAMES, STEPS, Parts, Placement, StepName, make_decoder
from griffin.decode.twin import DecodeTwin
from griffin.model.cache import KVCache
from griffin.model.host import offload_
from griffin.model.weights import read_weights
from tests.tiny import tiny_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def parts(model: PreTrainedModel) -> Parts:
    weights = read_weights(model)
    return Parts(model, weights, DecodeTwin(model), KVCache(model.config.num_hidden_layers), 64)


def test_every_name_has_a_row() -> None:
    """Except auto, which means the first step that can run."""
    assert ("auto", *(row.name for row in STEPS)) == STEP_NAMES == get_args(StepName)


@pytest.mark.parametrize(
    ("placement", "common", "runs"),
    [
        (Placement("llama", CPU, False, False), True, {"native", "lean", "twin"}),
        (Placement("llama", CPU, False, False), False, {"twin"}),
        (Placement("llama", CUDA, False, False), True, {"native", "graph", "lean", "twin"}),
        (Placement("llama", CUDA, True, False), True, {"native", "lean", "twin"}),
        (Placement("llama", CUDA, False, True), True, {"twin"}),
        (Placement("llama", CUDA, False, False), False, {"twin"}),
    ],
)
def test_where_each_step_can_run(
    placement: Placement, common: bool, runs: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device, the place of the weights and the block's form decide; the compiled step counts as built."""
    monkeypatch.setattr("griffin.decode.steps.available", lambda: True)
    weights = read_weights(tiny_model("llama")) if common else None

    assert {row.name for row in STEPS if row.can_run(placement, weights)} == runs
    assert all((row.obstacle(placement, weights) is None) == (row.name in runs) for row in STEPS)


@pytest.mark.parametrize(("name", "own_pass"), [("native", False), ("lean", False), ("twin", True)])
def test_a_decoder_describes_its_step(name: StepName, own_pass: bool) -> None:
    """A decoder describes its step, so that other code need not know the step's name."""
    decoder = make_decoder(name, parts(tiny_model("llama")))

    assert (decoder.name, decoder.own_pass, decoder.ahead) == (name, own_pass, False)
    # Nothing is counted until thresholds are in use.
    assert decoder.shares() is None


def test_a_dense_token_of_a_model_on_the_host_is_the_models_own_pass() -> None:
    """With every step: it decodes only tokens with sparsity."""
    model = tiny_model("llama")
    offload_(model, CPU)

    decoder = make_decoder("lean", parts(model))

    assert (decoder.name, decoder.own_pass) == ("lean", True)


def test_a_step_that_cannot_be_loaded_is_skipped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A step that cannot be loaded is skipped with a warning; if the user named it, that is an error."""
    broken = next(row for row in STEPS if row.name == "graph")
    monkeypatch.setattr("griffin.decode.steps.STEPS", (type(broken)("graph", lambda *_: None, broken.make), *STEPS[2:]))
    monkeypatch.setitem(sys.modules, "griffin.decode.cuda.graph", None)

    assert make_decoder("auto", parts(tiny_model("llama"))).name == "lean"
    assert "decoding without the graph step, several times slower: cannot run here" in caplog.text
    with pytest.raises(ValueError, match="graph: cannot run here"):
        make_decoder("graph", parts(tiny_model("llama")))
