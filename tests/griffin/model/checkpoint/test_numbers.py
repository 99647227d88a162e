"""Numbers of a config.json: a missing one is not guessed, and an impossible one is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from griffin.errors import LoadError
from griffin.model.checkpoint.numbers import require_numbers
from griffin.model.families import FAMILIES
from griffin.model.loading import Checkpoint, load
from tests.griffin.model.checkpoint.files import write_directory
from tests.tiny import tiny_model

PLAIN: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_passes(model_type: str) -> None:
    """With its own names."""
    require_numbers(tiny_model(model_type).config.to_dict(), "model")


@pytest.mark.parametrize("name", PLAIN)
def test_a_number_that_is_missing(name: str) -> None:
    """Otherwise transformers would use another model's number."""
    with pytest.raises(LoadError, match=f"config.json lacks {name}"):
        require_numbers({key: value for key, value in PLAIN.items() if key != name}, "model")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads in config.json is '0'"),
        ({"hidden_size": "32"}, "hidden_size in config.json is '32'"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers"),
        ({"max_position_embeddings": -1}, "max_position_embeddings"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps in config.json is 'nan'"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rope_scaling": {"factor": 4.0}}, "a factor in rope_scaling, but no rope_type"),
        ({"rope_scaling": {"type": "linear", "factor": -2}}, "rope_scaling.factor"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 0}}, "rope_parameters.factor"),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 0}}}, "full_attention.factor"),
        ({"final_logit_softcapping": 0}, "final_logit_softcapping"),
    ],
)
def test_a_number_that_no_model_has(changes: dict[str, Any], words: str) -> None:
    """The error names the field and its value."""
    with pytest.raises(LoadError, match=words):
        require_numbers({**PLAIN, **changes}, "model")


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": None, "n_inner": None, "sliding_window": None},
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}},
        {"final_logit_softcapping": None, "intermediate_size": 64.0},
    ],
)
def test_absent_or_usual_numbers_are_accepted(changes: dict[str, Any]) -> None:
    """It is accepted."""
    require_numbers({**PLAIN, **changes}, "model")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"eos_token_id":[7,8],', "generation_config.json cannot be read"),
        ("[]", "generation_config.json does not contain a JSON object"),
        (json.dumps({"eos_token_id": ["7", "8"]}), "eos_token_id in generation_config.json is"),
        (json.dumps({"eos_token_id": 7.5}), "eos_token_id in generation_config.json is 7.5"),
    ],
)
def test_a_damaged_generation_config(content: str, words: str, tmp_path: Path, smollm2: Checkpoint) -> None:
    """transformers would go on without it, and without its ends."""
    folder = write_directory(tmp_path / "tiny", smollm2.tokenizer)
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(LoadError, match=words.replace(".", r"\.")):
        load(str(folder), device="cpu", dtype="float32")


def test_a_damaged_tokenizer_is_named(tmp_path: Path, smollm2: Checkpoint) -> None:
    """The error names its file."""
    folder = write_directory(tmp_path / "tiny", smollm2.tokenizer)
    (folder / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(LoadError, match=r"tokenizer\.json cannot be read"):
        load(str(folder), device="cpu", dtype="float32")
