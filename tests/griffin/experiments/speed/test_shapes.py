"""Named shapes have the real models' sizes, and models with random weights compute."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from griffin.errors import LoadError, UnsupportedModel
from griffin.experiments.speed.shapes import SHAPES, random_model, shape_config
from griffin.model.accounting import Accounting
from tests.tiny import COMMON, CONFIGS

BILLIONS = {
    "llama-2-7b": (6.738, 4.329),
    "llama-2-13b": (13.016, 8.493),
    "gemma-7b": (8.538, 6.342),
    "mistral-7b": (7.242, 5.637),
    "opt-6.7b": (6.658, 4.295),
    "opt-13b": (12.853, 8.389),
    "llama-3-8b": (8.030, 5.637),
    "llama-1.1b": (1.100, 0.761),
    "smollm2-135m": (0.135, 0.080),
}


def write_config(folder: Path, model_type: str) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({"model_type": model_type, **COMMON, **CONFIGS.get(model_type, {})}))
    return path


def test_every_shape_has_its_parameters() -> None:
    """Billions of parameters, in all and in FF neurons."""
    found = {}
    for name in SHAPES:
        with torch.device("meta"):
            accounting = Accounting.of(AutoModelForCausalLM.from_config(shape_config(name)))
        found[name] = (round(accounting.total / 1e9, 3), round(accounting.feed_forward / 1e9, 3))

    assert found == BILLIONS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_weights_compute(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Logits are finite, different, and in the asked dtype. No weight is left uninitialised."""
    model = random_model(str(write_config(tmp_path, family)), dtype, torch.device("cpu"))
    with torch.inference_mode():
        logits_TV = model(torch.arange(3, 12)[None]).logits[0]

    assert logits_TV.isfinite().all()
    assert logits_TV.std() > 0
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert all(parameter.abs().max() <= 1 for parameter in model.parameters())


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    """The head is the embedding only if the configuration says so."""
    tied, untied = (
        random_model(str(write_config(tmp_path, name)), torch.float32, torch.device("cpu"))
        for name in ("qwen2", "llama")
    )

    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    assert untied.get_output_embeddings().weight is not untied.get_input_embeddings().weight


def test_a_multimodal_shape_is_that_of_its_text_part(tmp_path: Path) -> None:
    """As when such a checkpoint is loaded."""
    text = {"model_type": "gemma3_text", **COMMON, **CONFIGS["gemma3_text"]}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "gemma3", "text_config": text}))

    assert shape_config(str(path)).model_type == "gemma3_text"


def test_wrong_shapes(tmp_path: Path) -> None:
    """The error for an unknown name lists the known ones. A file must be a supported config.json."""
    with pytest.raises(LoadError, match=r"unknown shape 'llama-9'.*llama-2-7b, llama-2-13b.*smollm2-135m"):
        shape_config("llama-9")
    with pytest.raises(UnsupportedModel, match="bert"):
        shape_config(str(write_config(tmp_path, "bert")))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(LoadError, match=r"config\.json"):
        shape_config(str(tmp_path / "config.json"))
