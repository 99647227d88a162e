"""Directories that are no model, as users name them with --model: one line says what it is and what to do."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from griffin.errors import GriffinError
from griffin.model.loading import Checkpoint, load
from tests.griffin.model.checkpoint.files import change_config, text_model, write_directory, write_gguf

Kind = Callable[[Path], None]


def files(*names: str) -> Kind:
    """A directory with only these files."""

    def make(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("{}")

    return make


def two_gguf_files(folder: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        write_gguf(folder / name, text_model("llama", mlp_bias=False))


WITHOUT_CONFIG: dict[str, tuple[Kind, str]] = {
    "nothing": (files(), "is not a model directory: it has no config.json"),
    "adapter": (files("adapter_config.json", "adapter_model.safetensors"), "a LoRA adapter .*merge"),
    "images": (files("model_index.json", "unet/config.json"), "a diffusers pipeline"),
    "Meta's own format": (files("params.json", "consolidated.00.pth", "tokenizer.model"), "its maker's own format"),
    "several GGUF files": (two_gguf_files, "holds 2 GGUF models; name one: .*a.gguf, .*b.gguf"),
    "a run of training": (files("checkpoint-500/config.json", "trainer_state.json"), "checkpoint-500"),
    "a shelf": (files("llama/config.json", "qwen/config.json"), "a folder of models.*llama.*qwen"),
    "tokenizer": (files("tokenizer.json"), "a tokenizer without a model"),
    "NeMo": (files("model.nemo"), "a NeMo checkpoint"),
    "weights alone": (files("model.safetensors"), "copy the model's config.json"),
}


@pytest.mark.parametrize("kind", WITHOUT_CONFIG)
def test_directories_without_a_configuration(kind: str, tmp_path: Path) -> None:
    """The error says what the directory is."""
    make, words = WITHOUT_CONFIG[kind]
    make(tmp_path)
    with pytest.raises(GriffinError, match=words) as failure:
        load(str(tmp_path), device="cpu")

    assert "\n" not in str(failure.value)


def replaced(*names: str) -> Kind:
    """These files replace the weights."""

    def make(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        files(*names)(folder)

    return make


def without(*patterns: str) -> Kind:
    def make(folder: Path) -> None:
        for pattern in patterns:
            for file in folder.glob(pattern):
                file.unlink()

    return make


def config(**changes: object) -> Kind:
    return lambda folder: void(change_config(folder, **changes))


def void(_: object) -> None: ...


def pointer(name: str) -> Kind:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    return lambda folder: void((folder / name).write_text(text))


def dangling(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../../blobs/0a1b")


def shard_lost(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    located = {"lm_head.weight": "model-00001-of-00002.safetensors", "x": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": located}))
    save_file({"lm_head.weight": torch.zeros(2)}, folder / "model-00001-of-00002.safetensors")


WITH_CONFIG: dict[str, tuple[Kind, str]] = {
    "no tokenizer": (without("*token*", "*.jinja"), "has no tokenizer; copy tokenizer.json"),
    "no weights": (without("*.safetensors"), "has no weights"),
    "ONNX": (replaced("onnx/model.onnx"), "an ONNX export"),
    "OpenVINO": (replaced("openvino_model.bin"), "an OpenVINO export"),
    "TensorFlow": (replaced("tf_model.h5"), "TensorFlow or Flax"),
    "Mistral's own": (replaced("consolidated.safetensors"), "its|their maker's own format"),
    "DeepSpeed": (replaced("zero_to_fp32.py", "latest"), "DeepSpeed or FSDP"),
    "half a download": (replaced("model.safetensors.incomplete"), "an unfinished download"),
    "adapter": (replaced("adapter_model.safetensors"), "a LoRA adapter"),
    "adapter beside weights": (
        files("adapter_config.json", "adapter_model.safetensors"), "a LoRA adapter beside its weights",
    ),
    "shards without an index": (
        replaced("model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"),
        "has 2 shards .*not model.safetensors.index.json",
    ),
    "a shard is missing": (shard_lost, "lacks 1 of its 2 files of weights: model-00002-of-00002.safetensors"),
    "a damaged index": (replaced("model.safetensors.index.json"), r"model\.safetensors\.index\.json cannot be read"),
    "embeddings": (files("modules.json"), "an embedding model"),
    "git-lfs weights": (pointer("model.safetensors"), "model.safetensors is a pointer of git-lfs"),
    "git-lfs tokenizer": (pointer("tokenizer.json"), "tokenizer.json is a pointer of git-lfs"),
    "a link to a blob that is not there": (dangling, "model.safetensors is a link to ../../blobs/0a1b"),
    "GPTQ": (
        config(quantization_config={"quant_method": "gptq", "bits": 8}),
        "quantised by GPTQ with 8 bits; supported: 4 bits in the layout gptq or gptq_v2",
    ),
    "GPTQ for a kernel": (
        config(quantization_config={"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}),
        "quantised by GPTQ with the layout 'marlin'",
    ),
    "AWQ": (
        config(quantization_config={"quant_method": "awq", "bits": 4, "version": "gemv"}),
        "quantised by AWQ with the layout 'gemv'; supported: 4 bits in the layout gemm",
    ),
    "bitsandbytes": (config(quantization_config={"quant_method": "bitsandbytes"}), "quantised by bitsandbytes"),
    "bitsandbytes, older": (config(quantization_config={"load_in_4bit": True}), "quantised by bitsandbytes"),
    "FP8": (config(quantization_config={"quant_method": "fp8"}), "quantised by FP8"),
    "a new method": (config(quantization_config={"quant_method": "xq9"}), "quantised by xq9"),
    "MLX": (config(quantization={"group_size": 64, "bits": 4}), "quantised by MLX"),
    "a classifier": (config(architectures=["LlamaForSequenceClassification"]), "LlamaForSequenceClassification"),
    "a reward model": (config(architectures=["LlamaForRewardModel2"]), "LlamaForRewardModel2"),
    "both directions": (config(is_causal=False), "attends in both directions"),
    "no object": (
        lambda folder: void((folder / "config.json").write_text("[]")),
        "config.json does not contain a JSON object",
    ),
    "another type": (config(model_type="bert"), "'bert' is not supported"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WITH_CONFIG)
def test_directories_with_a_configuration(kind: str, tmp_path: Path, smollm2: Checkpoint) -> None:
    """Refused before weights are read. The error does not ask to install a quantiser."""
    make, words = WITH_CONFIG[kind]
    make(write_directory(tmp_path / "tiny", smollm2.tokenizer))
    with pytest.raises(GriffinError, match=words) as failure:
        load(str(tmp_path / "tiny"), device="cpu")

    assert "\n" not in str(failure.value)
    assert "pip install" not in str(failure.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("notes.txt", "hello", r"neither a model directory nor a \.gguf file"),
        ("model.safetensors", "hello", "a file of weights; name a model directory"),
        ("config.json", "{}", "name its directory: --model"),
        ("model.gguf", "<html>404</html>", "not a GGUF file, despite its name"),
        ("model.gguf", "", "is empty; download it again"),
        ("model.gguf", "version https://git-lfs.github.com/spec/v1\n", "a pointer of git-lfs"),
        ("model.tar", "hello", "an archive"),
    ],
)
def test_files(name: str, content: str, words: str, tmp_path: Path) -> None:
    """The error says what the file is, and what to name instead."""
    (tmp_path / name).write_text(content)
    with pytest.raises(GriffinError, match=words):
        load(str(tmp_path / name), device="cpu")
