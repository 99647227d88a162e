"""What a generation config recommends, as fields of Sampling."""

import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from griffin import Checkpoint, Sampling
from griffin.model.checkpoint.defaults import sampling_defaults
from griffin.model.loading import load
from tests.tiny import tiny_model

NAMED = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1}


def config(**values: Any) -> GenerationConfig:
    """A config as read from a file, without any check of its values."""
    found = GenerationConfig()
    for name, value in values.items():
        setattr(found, name, value)
    return found


def test_values_that_are_named() -> None:
    """They have the names of Sampling's fields."""
    defaults = sampling_defaults(config(**NAMED, max_new_tokens=512, do_sample=True))

    assert defaults == {**NAMED, "max_tokens": 512}
    assert Sampling(**dict(defaults)).top_k == 20


@pytest.mark.parametrize("given", [None, GenerationConfig(), config(do_sample=False, num_beams=1, eos_token_id=2)])
def test_library_defaults_are_no_recommendation(
    given: GenerationConfig | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The library's own defaults are no recommendation."""
    assert sampling_defaults(given) == {}
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.5), ("temperature", float("nan")), ("temperature", float("inf")), ("temperature", "hot"),
        ("temperature", True), ("temperature", [0.7]), ("top_p", -0.1), ("top_p", 1.5), ("top_k", -2),
        ("top_k", 2.5), ("top_k", float("inf")), ("min_p", 2), ("repetition_penalty", 0), ("repetition_penalty", 1e9),
        ("max_new_tokens", 0), ("max_new_tokens", -1),
    ],
)  # fmt: skip
def test_values_out_of_range_are_left_out(name: str, value: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A warning names the value, and the other values stay."""
    with caplog.at_level(logging.WARNING, "griffin"):
        defaults = sampling_defaults(config(**{"min_p": 0.1, "top_k": 5, name: value}))

    assert set(defaults) == {"min_p", "top_k"} - {name}
    assert f"{name} cannot be {value!r}" in caplog.text


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [("top_k", -1, 0), ("top_k", 0, 0), ("top_k", 40.0, 40), ("top_k", 2**63, 2**31 - 1), ("temperature", 0, 0)],
)
def test_values_that_ask_for_nothing_or_too_much(name: str, value: Any, found: int) -> None:
    """They keep their meaning."""
    assert sampling_defaults(config(**{name: value})) == {name: found}


def test_what_is_not_applied_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """In one line, if it would change anything."""
    with caplog.at_level(logging.WARNING, "griffin"):
        sampling_defaults(
            config(typical_p=0.9, no_repeat_ngram_size=3, num_beams=1, suppress_tokens=[], eta_cutoff=0.0)
        )

    (record,) = caplog.records
    assert "typical_p, no_repeat_ngram_size would" in record.getMessage()


def test_defaults_of_a_checkpoint(tmp_path: Path, smollm2: Checkpoint) -> None:
    """The values come from generation_config.json; the embedded model has none."""
    model = tiny_model("llama", vocab_size=len(smollm2.tokenizer))
    model.generation_config = config(**NAMED, do_sample=True)
    model.save_pretrained(tmp_path / "tiny")
    smollm2.tokenizer.save_pretrained(tmp_path / "tiny")

    assert load(str(tmp_path / "tiny"), device="cpu", dtype="float32").sampling_defaults == NAMED
    assert smollm2.sampling_defaults == {}
