"""Every parameter comes from the checkpoint; otherwise loading fails, and no weight is made up."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from griffin.errors import LoadError
from griffin.model.families import FAMILIES
from griffin.model.loading import Checkpoint, load
from tests.griffin.model.checkpoint.files import change_weights, write_directory
from tests.tiny import tiny_model

Weights = dict[str, Tensor]


def without(*parts: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: w for name, w in weights.items() if not any(part in name for part in parts)}


@pytest.fixture
def folder(tmp_path: Path, smollm2: Checkpoint) -> Path:
    return write_directory(tmp_path / "tiny", smollm2.tokenizer)


@pytest.mark.parametrize("lost", ["lm_head", "embed_tokens", "layers.1.mlp", "layers.2.", "model.norm", "up_proj.bias"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_weights_that_are_missing(lost: str, kind: str, folder: Path) -> None:
    """The error names the first few, and how many there are."""
    change_weights(folder, without(lost))
    if kind == "bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    with pytest.raises(LoadError, match=rf"lacks \d+ of the model's weights: .*{lost}") as failure:
        load(str(folder), device="cpu", dtype="float32")

    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_no_family_lets_a_weight_be_made_up(model_type: str, tmp_path: Path, smollm2: Checkpoint) -> None:
    """For each family, one weight with its own name is removed."""
    folder = tmp_path / "tiny"
    tiny_model(model_type).save_pretrained(folder)
    smollm2.tokenizer.save_pretrained(folder)
    lost = sorted(name for name in load_file(folder / "model.safetensors") if ".1." in name)[0]
    change_weights(folder, without(lost))
    with pytest.raises(LoadError, match="lacks 1 of the model's weights"):
        load(str(folder), device="cpu", dtype="float32")


def test_a_tied_head_needs_no_weights(tmp_path: Path, smollm2: Checkpoint) -> None:
    """The embedding is the head. If the file also has a head, that one counts."""
    folder = write_directory(tmp_path / "tiny", smollm2.tokenizer, tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    model = load(str(folder), device="cpu", dtype="float32").model
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    head = torch.randn(49_152, 32)
    change_weights(folder, lambda weights: {**weights, "lm_head.weight": head})

    assert torch.equal(load(str(folder), device="cpu", dtype="float32").model.lm_head.weight, head)


def test_weights_in_another_shape(folder: Path) -> None:
    """The error has both shapes."""
    change_weights(folder, lambda weights: {**weights, "lm_head.weight": torch.randn(100, 32)})
    with pytest.raises(LoadError, match=r"lm_head\.weight \(100, 32\) instead of \(49152, 32\)"):
        load(str(folder), device="cpu", dtype="float32")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.int32])
def test_weights_that_are_codes(dtype: torch.dtype, folder: Path) -> None:
    """The configuration does not say that they are quantised, so their scales would be lost."""
    name = "model.layers.1.mlp.up_proj.weight"
    change_weights(folder, lambda weights: {**weights, name: weights[name].to(dtype)})
    with pytest.raises(LoadError, match=rf"codes instead of plain numbers for 1 of its weights: {name}"):
        load(str(folder), device="cpu", dtype="float32")


def test_tensors_that_nothing_takes_are_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In a warning, except those that every old checkpoint has."""
    change_weights(
        folder,
        lambda weights: {
            **weights,
            "score.weight": torch.ones(1, 32),
            "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        },
    )
    load(str(folder), device="cpu", dtype="float32")

    assert "takes 1 of the checkpoint's tensors: score.weight" in caplog.text


def test_a_damaged_file_is_named(folder: Path) -> None:
    """Cut short, as by a full disk."""
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(LoadError, match=r"model\.safetensors is damaged or incomplete"):
        load(str(folder), device="cpu", dtype="float32")


def test_a_file_that_changes_under_a_loaded_model(folder: Path) -> None:
    """The process has its own copy: the weights stay the same, and there is no bus error."""
    loaded = load(str(folder), device="cpu", dtype="float32").model
    before = {name: parameter.clone() for name, parameter in loaded.named_parameters()}
    file = folder / "model.safetensors"
    size = file.stat().st_size
    with file.open("r+b") as content:
        content.truncate(0)
        content.write(b"\xff" * size)

    assert all(torch.equal(parameter, before[name]) for name, parameter in loaded.named_parameters())


def test_a_checkpoint_in_the_old_format(folder: Path) -> None:
    """PyTorch before 1.6 wrote no archive; such files are still read."""
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (folder / "model.safetensors").unlink()

    assert torch.equal(load(str(folder), device="cpu", dtype="float32").model.lm_head.weight, weights["lm_head.weight"])


def test_a_training_checkpoint(folder: Path) -> None:
    """A training checkpoint has its weights under another key, beside other things."""
    weights = load_file(folder / "model.safetensors")
    torch.save({"state_dict": weights, "step": 3}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(LoadError, match="holds more than weights by name"):
        load(str(folder), device="cpu", dtype="float32")


@pytest.mark.parametrize("ff_offload", [False, True])
def test_an_index_that_is_left_from_another_version(ff_offload: bool, folder: Path, tmp_path: Path) -> None:
    """The single file counts, not the index, for mapped weights and for others."""
    weights = load_file(folder / "model.safetensors")
    stale = "model-00001-of-00001.safetensors"
    save_file({name: 2 * w for name, w in weights.items()}, folder / stale, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(weights, stale)}))
    for present in (True, False):
        loaded = load(str(folder), device="cpu", dtype="float32", cache_dir=tmp_path / "cache", ff_offload=ff_offload)
        assert all(torch.equal(p, weights[name]) for name, p in loaded.model.named_parameters())
        if present:
            (folder / stale).unlink()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
@pytest.mark.parametrize("ff_offload", [False, True])
def test_weights_that_are_no_numbers(value: float, ff_offload: bool, folder: Path, tmp_path: Path) -> None:
    """In the file, or in a dtype that is too narrow for them."""
    name = "model.layers.1.self_attn.o_proj.weight"
    change_weights(folder, lambda weights: {**weights, name: torch.full_like(weights[name], value)})
    with pytest.raises(LoadError, match=f"infinite or not a number in float16: {name}"):
        load(str(folder), device="cpu", dtype="float16", cache_dir=tmp_path / "cache", ff_offload=ff_offload)


def test_a_tokenizer_of_another_model(tmp_path: Path, smollm2: Checkpoint) -> None:
    """The error has both sizes. A few added tokens without rows are allowed: some models have them for images."""
    folder = write_directory(tmp_path / "tiny", smollm2.tokenizer, vocab_size=128)
    with pytest.raises(LoadError, match="a tokenizer of 49152 tokens and a model with rows for 128"):
        load(str(folder), device="cpu", dtype="float32")
    tokenizer = copy.deepcopy(smollm2.tokenizer)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    folder = write_directory(tmp_path / "with-images", tokenizer, vocab_size=49_152)
    load(str(folder), device="cpu", dtype="float32")
