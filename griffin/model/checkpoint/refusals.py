"""Wrong values of ``--model``: what kind of file or folder it is, and what to do instead."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from griffin.errors import LoadError, UnsupportedModel

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
PARTS = (".safetensors", ".bin", ".json", ".model", ".gguf")
JSON_FILES = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
LFS_POINTER = b"version https://git-lfs"
# How the quantisation programs call themselves.
QUANTISERS = {
    "gptq": "GPTQ", "awq": "AWQ", "bitsandbytes": "bitsandbytes", "exl2": "EXL2", "exl3": "EXL3", "fp8": "FP8",
    "fbgemm_fp8": "FP8", "compressed-tensors": "compressed-tensors", "hqq": "HQQ", "aqlm": "AQLM", "quanto": "Quanto",
    "mxfp4": "MXFP4", "eetq": "EETQ", "torchao": "torchao",
}  # fmt: skip
PLAIN = "take the model's own checkpoint in bfloat16 or float16, or a GGUF file of it"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file or directory that is not a checkpoint of a language model.

    shows: whether a directory is of this kind.
    what: what it is, after "is".
    instead: what its user can do.
    """

    shows: Callable[[Path], bool]
    what: str
    instead: str


def _has(*names: str) -> Callable[[Path], bool]:
    """Whether a directory holds any of these; a name may be a pattern."""
    return lambda folder: any(any(folder.glob(name)) for name in names)


# In this order: the first that fits is named.
WITHOUT_CONFIG: Sequence[Kind] = (
    Kind(_has("adapter_config.json"), "a LoRA adapter", "merge it into its base model (peft: merge_and_unload) first"),
    Kind(_has("model_index.json"), "a diffusers pipeline, for images", "name a language model"),
    Kind(
        _has("params.json", "consolidated*"),
        "a checkpoint in its maker's own format (params.json)",
        "take the version for transformers, which has a config.json",
    ),
    Kind(_has("*.gguf"), "a folder without a model in its GGUF files", "name a model's own file, not {gguf}"),
    Kind(
        _has("checkpoint-*/config.json"),
        "a folder of training checkpoints",
        "name one of them: {checkpoints}",
    ),
    Kind(
        _has("*/config.json"),
        "a folder of models, but not a model itself",
        "name one of them: {models}",
    ),
    Kind(_has(*TOKENIZERS), "a tokenizer without a model", "name the directory that has config.json and the weights"),
    Kind(_has("*.nemo"), "a NeMo checkpoint", "convert it to transformers' format"),
    Kind(_has("*.safetensors", "*.bin"), "weights without a config.json", "copy the model's config.json beside them"),
)
WITHOUT_WEIGHTS: Sequence[Kind] = (
    Kind(_has("adapter_model*"), "a LoRA adapter", "merge it into its base model (peft: merge_and_unload) first"),
    Kind(_has("*.onnx", "onnx/*.onnx"), "an ONNX export", PLAIN),
    Kind(_has("openvino_model*"), "an OpenVINO export", PLAIN),
    Kind(
        _has("tf_model.h5", "flax_model*", "model.ckpt*"), "weights for TensorFlow or Flax", "convert them to PyTorch"
    ),
    Kind(_has("consolidated*"), "weights in their maker's own format", "take model*.safetensors of the same model"),
    Kind(
        _has("zero_to_fp32.py", "global_step*", "pytorch_model_fsdp*", "*.distcp"),
        "a training checkpoint in pieces of DeepSpeed or FSDP",
        "join them first (zero_to_fp32.py, or accelerate merge-weights)",
    ),
    Kind(_has("*.incomplete", "*.part", "*.aria2"), "an unfinished download", "download it again"),
    Kind(_has("*.gguf"), "a configuration beside GGUF files", "name one of them: {gguf}"),
)
FILES = {
    ".safetensors": "a file of weights", ".bin": "a file of weights", ".pt": "a file of weights",
    ".pth": "a file of weights", ".ckpt": "a file of weights", ".json": "one file of a checkpoint",
    ".model": "a tokenizer's file", ".nemo": "a NeMo checkpoint", ".onnx": "an ONNX export",
    ".zip": "an archive", ".tar": "an archive", ".gz": "an archive", ".tgz": "an archive", ".7z": "an archive",
    ".ggml": "a GGML file, older than GGUF", ".h5": "weights for TensorFlow", ".msgpack": "weights for Flax",
    ".gguf": "not a GGUF file, despite its name",
}  # fmt: skip


def refuse_file(path: Path, text: str) -> NoReturn:
    """
    Raises:
        LoadError: the file is not a GGUF file.
    """
    if not path.is_file():
        raise LoadError(f"'{text}' is not a regular file; name a model directory or a .gguf file")
    if _is_pointer(path):
        raise LoadError(f"'{text}' is a pointer of git-lfs, not the file itself; run git lfs pull in its repository")
    if path.stat().st_size == 0:
        raise LoadError(f"'{text}' is empty; download it again")
    what = FILES.get(path.suffix.lower())
    if what is None:
        raise LoadError(f"'{text}' is neither a model directory nor a .gguf file; name one of these")
    if (path.parent / "config.json").is_file() and path.suffix.lower() != ".gguf":
        raise LoadError(f"'{text}' is {what}; name its directory: --model {path.parent}")
    raise LoadError(f"'{text}' is {what}; name a model directory or a .gguf file")


def require_config(folder: Path, text: str) -> None:
    """Check a directory's files before any is read.

    Raises:
        LoadError: it has no configuration, or links to missing files; says what it is and what to do.
    """
    try:
        names = [file.name for file in folder.iterdir()]
    except OSError as error:
        raise LoadError(f"'{text}' cannot be read: {error.strerror}") from None
    for name in sorted(names):
        _require_present(folder / name, text)
    if not (folder / "config.json").is_file():
        _refuse_first(WITHOUT_CONFIG, folder, text, " (it has no config.json)")
        raise LoadError(f"'{text}' is not a model directory: it has no config.json")
    _require_object(folder / "config.json", text)


def require_files(folder: Path, text: str) -> None:
    """Check a directory whose configuration is that of a supported model.

    Raises:
        LoadError: weights or a tokenizer are missing, or it is another kind of model.
    """
    names = [file.name for file in folder.iterdir()]
    _require_weights(folder, text)
    if "adapter_config.json" in names and any(name.startswith("adapter_model") for name in names):
        raise LoadError(f"'{text}' has a LoRA adapter beside its weights; merge the two (peft: merge_and_unload) first")
    if "modules.json" in names:
        raise LoadError(f"'{text}' is an embedding model (it has modules.json); it does not generate text")
    if not any(name in names for name in TOKENIZERS):
        raise LoadError(
            f"'{text}' has no tokenizer; copy {TOKENIZERS[0]} (or {TOKENIZERS[1]}, or vocab.json and merges.txt) and "
            "tokenizer_config.json of the same model into it"
        )


def require_readable(folder: Path, text: str) -> None:
    """Check small files that readers skip silently, or report without a clear message, when they are damaged.

    Raises:
        LoadError: one of them is not a JSON object; names it.
    """
    for name in JSON_FILES:
        if not (folder / name).exists():
            continue
        content = _require_object(folder / name, text)
        ends = content.get("eos_token_id") if name == "generation_config.json" else None
        if any(type(id) is not int for id in (ends if isinstance(ends, list) else [ends or 0])):
            raise LoadError(f"'{text}': eos_token_id in {name} is {str(ends)[:40]}, but must be a token id or several")


def _require_object(file: Path, text: str) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"'{text}': {file.name} cannot be read ({first_words(error)}); download it again") from None
    if not isinstance(content, Mapping):
        raise LoadError(f"'{text}': {file.name} does not contain a JSON object; download it again")
    return content


def require_plain(config: Mapping[str, Any], text: str) -> None:
    """Check the contents of a ``config.json`` before any weight is read.

    Raises:
        LoadError: the weights are quantised in an unsupported way.
        UnsupportedModel: it is not a causal language model.
    """
    quantised = config.get("quantization_config")
    if isinstance(quantised, str):
        quantised = {"quant_method": quantised}
    if quantised and isinstance(quantised, Mapping):
        method = str(quantised.get("quant_method") or _guessed(quantised))
        raise LoadError(f"'{text}' has weights quantised by {QUANTISERS.get(method, method)}; {PLAIN}")
    if isinstance(config.get("quantization"), Mapping):
        raise LoadError(f"'{text}' has weights quantised by MLX; {PLAIN}")
    named = config.get("architectures") or []
    heads = [name for name in ([named] if isinstance(named, str) else named) if isinstance(name, str)]
    if heads and not any(_generates(name) for name in heads):
        raise UnsupportedModel(
            f"'{text}' is a {heads[0]}, which does not generate text; a name that ends in ForCausalLM is needed"
        )
    if (
        config.get("is_encoder_decoder")
        or config.get("is_causal") is False
        or config.get("use_bidirectional_attention")
    ):
        raise UnsupportedModel(f"'{text}' attends in both directions: it embeds texts and does not generate text")


def _generates(architecture: str) -> bool:
    # Checkpoints of a bare model name only its class (OPTModel). The head must be in the file, or tied.
    return architecture.endswith(("ForCausalLM", "LMHeadModel", "Model", "ForConditionalGeneration"))


def _guessed(quantised: Mapping[str, Any]) -> str:
    return "bitsandbytes" if quantised.get("load_in_4bit") or quantised.get("load_in_8bit") else "an unnamed method"


def _require_present(file: Path, text: str) -> None:
    if file.suffix not in PARTS:
        return
    if file.is_symlink() and not file.exists():
        raise LoadError(
            f"'{text}': {file.name} is a link to {file.readlink()}, which is not here; a container needs the whole "
            "folder of the hub's cache (models--OWNER--NAME) mounted"
        )
    if file.is_file() and _is_pointer(file):
        raise LoadError(f"'{text}': {file.name} is a pointer of git-lfs, not the file itself; run git lfs pull there")


def _require_weights(folder: Path, text: str) -> None:
    # In the order in which transformers looks for them; an old index file may be left over.
    for index, whole in zip(INDEXES, WEIGHTS, strict=True):
        if (folder / whole).is_file():
            return None
        if (folder / index).is_file():
            return _require_shards(folder, index, text)
    for pattern in ("model-*-of-*.safetensors", "pytorch_model-*-of-*.bin"):
        if shards := sorted(file.name for file in folder.glob(pattern)):
            index = INDEXES[pattern.startswith("pytorch")]
            raise LoadError(
                f"'{text}' has {len(shards)} shards ({shards[0]}, ...) but not {index}, which says what is in them; "
                "copy it from where the shards came from"
            )
    _refuse_first(WITHOUT_WEIGHTS, folder, text, " (it has no model.safetensors)")
    raise LoadError(f"'{text}' has no weights: no model.safetensors and no pytorch_model.bin")


def _require_shards(folder: Path, index: str, text: str) -> None:
    try:
        located: Mapping[str, str] = json.loads((folder / index).read_text())["weight_map"]
        shards = sorted(set(located.values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise LoadError(f"'{text}': {index} cannot be read ({error}); download it again") from None
    absent = [shard for shard in shards if not (folder / shard).is_file()]
    if absent:
        raise LoadError(
            f"'{text}' lacks {len(absent)} of its {len(shards)} files of weights: {listed(absent)}; finish the download"
        )


def _refuse_first(kinds: Sequence[Kind], folder: Path, text: str, why: str) -> None:
    for kind in kinds:
        if kind.shows(folder):
            places = {
                "gguf": listed([str(file) for file in sorted(folder.glob("*.gguf"))]),
                "checkpoints": listed([str(file.parent) for file in sorted(folder.glob("checkpoint-*/config.json"))]),
                "models": listed([str(file.parent) for file in sorted(folder.glob("*/config.json"))]),
            }
            raise LoadError(f"'{text}' is {kind.what}{why}; {kind.instead.format(**places)}")


def _is_pointer(file: Path) -> bool:
    with file.open("rb") as content:
        return content.read(len(LFS_POINTER)) == LFS_POINTER


def first_words(error: BaseException) -> str:
    """A reader's error in one line. Some readers write paragraphs, others only the name of a key."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    if isinstance(error, KeyError) or not text:
        text = f"{type(error).__name__} {text}".strip()
    return text if len(text) <= 300 else text[:297] + "..."


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and the number of the others."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
