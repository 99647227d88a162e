"""The text part of multimodal checkpoints: it loads without the rest, and answers texts as the whole model does."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from griffin import Engine, Pruning, Sampling
from griffin.decode.steps import StepName
from griffin.errors import LoadError
from griffin.model.loading import Checkpoint, load
from tests.griffin.model.checkpoint.files import change_weights
from tests.tiny import COMMON, CONFIGS

VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
# Types of the whole model, the vision part and the text part.
KINDS = {
    "gemma3": ("gemma3", "siglip_vision_model", "gemma3_text"),
    "mistral3": ("mistral3", "pixtral", "mistral"),
    "ministral3": ("mistral3", "pixtral", "ministral3"),
}
IDS = torch.randint(3, 128, (1, 30), generator=torch.Generator().manual_seed(1))
GREEDY = Sampling(temperature=0, max_tokens=8, ignore_eos=True)


def multimodal(kind: str, smollm2: Checkpoint, folder: Path) -> PreTrainedModel:
    """A tiny model with a vision part, written to a folder as a checkpoint."""
    whole, vision, text = KINDS[kind]
    # The head is separate for the type whose real checkpoints have it so.
    tied = kind != "mistral3"
    sizes = {**COMMON, **CONFIGS[text], "vocab_size": len(smollm2.tokenizer)}
    config = AutoConfig.for_model(
        whole,
        text_config={"model_type": text, **sizes},
        vision_config={"model_type": vision, **VISION, "head_dim": 8},
        tie_word_embeddings=tied,
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.25)
    model.save_pretrained(folder)
    smollm2.tokenizer.save_pretrained(folder)
    return model


def change_config(folder: Path, **text: Any) -> None:
    """Change fields of the text part; None removes a field."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["text_config"] = {k: v for k, v in {**config["text_config"], **text}.items() if v is not None}
    file.write_text(json.dumps(config))


@torch.no_grad()
def greedy(model: PreTrainedModel, count: int) -> list[int]:
    """Greedy tokens of the whole model's own forward pass, without a cache."""
    ids = IDS
    for _ in range(count):
        ids = torch.cat((ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)), dim=1)
    return ids[0, IDS.shape[1] :].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_whole_model_on_text(
    kind: str, tmp_path: Path, smollm2: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    """To the last bit, and with every step. The log names the parts that are left out, without a warning."""
    model = multimodal(kind, smollm2, tmp_path / "eyes")
    with caplog.at_level(logging.INFO, "griffin"):
        loaded = load(str(tmp_path / "eyes"), device="cpu", dtype="float32").model

    assert loaded.config.model_type == KINDS[kind][2]
    assert not any("vision" in name for name, _ in loaded.named_modules())
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    expected = greedy(model, GREEDY.max_tokens)
    steps: tuple[StepName, ...] = ("native", "lean", "twin")
    for step in steps:
        engine = Engine(loaded, step=step)
        engine.warm_up()
        assert engine.step == step
        assert [token.id for token in engine.generate(IDS[0].tolist(), GREEDY)] == expected
    told = [record for record in caplog.records if "only its text part is served" in record.message]
    assert "of vision_tower and multi_modal_projector are left out" in told[0].message
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.parametrize(
    ("kind", "inner", "ff_offload"),
    [
        ("gemma3", "model.language_model.", False),
        ("gemma3", "language_model.model.", True),
        ("mistral3", "model.language_model.", True),
    ],
)
def test_both_spellings_of_names(kind: str, inner: str, ff_offload: bool, tmp_path: Path, smollm2: Checkpoint) -> None:
    """Names of older and newer checkpoints, in memory and mapped."""
    model = multimodal(kind, smollm2, tmp_path / "eyes")

    def spelled(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        assert any(name.startswith("language_model.model.") for name in weights)
        if inner.startswith("language_model"):
            return weights
        renamed = {name.replace("language_model.model.", inner): weight for name, weight in weights.items()}
        return {
            f"model.{name}" if name.startswith(("vision", "multi")) else name.removeprefix("language_model."): weight
            for name, weight in renamed.items()
        }

    change_weights(tmp_path / "eyes", spelled)
    loaded = load(str(tmp_path / "eyes"), device="cpu", dtype="float32", ff_offload=ff_offload, cache_dir=tmp_path)
    engine = Engine(loaded.model)
    tokens = list(engine.generate(IDS[0].tolist(), GREEDY))

    assert [token.id for token in tokens] == greedy(model, GREEDY.max_tokens)
    assert list(engine.generate(IDS[0].tolist(), GREEDY, Pruning(0.5)))


def test_weights_that_are_missing_are_named(tmp_path: Path, smollm2: Checkpoint) -> None:
    """As in any other checkpoint."""
    multimodal("gemma3", smollm2, tmp_path / "eyes")
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    change_weights(tmp_path / "eyes", lambda weights: {k: v for k, v in weights.items() if k != name})
    with pytest.raises(LoadError, match=r"lacks 1 of the model's weights: model\.layers\.1\.mlp\.up_proj\.weight"):
        load(str(tmp_path / "eyes"), device="cpu", dtype="float32")


def test_unknown_tensors_are_warned_of(tmp_path: Path, smollm2: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
    """These belong to neither part."""
    multimodal("gemma3", smollm2, tmp_path / "eyes")
    change_weights(tmp_path / "eyes", lambda weights: {**weights, "audio_tower.weight": torch.ones(3)})
    load(str(tmp_path / "eyes"), device="cpu", dtype="float32")

    assert "takes 1 of the checkpoint's tensors: audio_tower.weight" in caplog.text


def test_numbers_that_shapes_tell_may_be_missing(tmp_path: Path, smollm2: Checkpoint) -> None:
    """Gemma 3 may leave out its number of heads: a wrong default does not fit the weights."""
    multimodal("gemma3", smollm2, tmp_path / "eyes")
    change_config(tmp_path / "eyes", num_attention_heads=None)
    with pytest.raises(LoadError, match=r"another shape than its config\.json says"):
        # The default is 8, but these weights have 4 heads.
        load(str(tmp_path / "eyes"), device="cpu", dtype="float32")

    change_config(tmp_path / "eyes", hidden_size=None)
    with pytest.raises(LoadError, match=r"config\.json lacks hidden_size"):
        load(str(tmp_path / "eyes"), device="cpu", dtype="float32")


def test_numbers_that_shapes_do_not_tell_are_required(tmp_path: Path, smollm2: Checkpoint) -> None:
    """The shapes of Mistral's projections do not show the number of heads."""
    multimodal("mistral3", smollm2, tmp_path / "eyes")
    change_config(tmp_path / "eyes", num_attention_heads=None)
    with pytest.raises(LoadError, match=r"config\.json lacks num_attention_heads"):
        load(str(tmp_path / "eyes"), device="cpu", dtype="float32")


def test_a_quantised_text_part_is_refused(tmp_path: Path, smollm2: Checkpoint) -> None:
    """Also if only the text part's configuration says so."""
    multimodal("mistral3", smollm2, tmp_path / "eyes")
    change_config(tmp_path / "eyes", quantization_config={"quant_method": "fp8"})
    with pytest.raises(LoadError, match="quantised by FP8"):
        load(str(tmp_path / "eyes"), device="cpu")


def test_ends_that_only_the_whole_configuration_names(tmp_path: Path, smollm2: Checkpoint) -> None:
    """As in Gemma 3's checkpoint."""
    multimodal("gemma3", smollm2, tmp_path / "eyes")
    file = tmp_path / "eyes" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": [7, 106]}))
    (tmp_path / "eyes" / "generation_config.json").unlink(missing_ok=True)
    loaded = load(str(tmp_path / "eyes"), device="cpu", dtype="float32")

    assert {7, 106} < Engine(loaded.model).eos_token_ids
    assert "language_model.lm_head.weight" not in load_file(tmp_path / "eyes" / "model.safetensors")
