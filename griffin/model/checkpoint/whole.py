"""Checks that every parameter of a model came from its checkpoint, with the checkpoint's own numbers."""

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from griffin.errors import LoadError
from griffin.model.checkpoint.refusals import INDEXES, PLAIN, WEIGHTS, first_words, listed
from griffin.model.matrix.dense import all_finite
from griffin.model.matrix.modules import named_matrices

logger = logging.getLogger("griffin")

# Buffers that models compute themselves. Old checkpoints contain them too.
USELESS = re.compile(r"(rotary_emb\.inv_freq|rope\.freqs|\.attn\.(masked_)?bias|\.attention\.(masked_)?bias)$")
PLAIN_TYPES = ("F64", "F32", "F16", "BF16")


def require_whole(report: Mapping[str, Any], source: str) -> None:
    """Check what ``from_pretrained`` reports about the weights it read.

    Args:
        report: its ``output_loading_info``.
        source: the checkpoint's name for the user.

    Raises:
        LoadError: a parameter is not in the checkpoint, or has another shape there. Names the first few.
    """
    if missing := sorted(report["missing_keys"]):
        raise lacking(missing, source)
    mismatched = sorted(report["mismatched_keys"])
    if mismatched:
        shapes = [f"{name} {tuple(found)} instead of {tuple(wanted)}" for name, found, wanted in mismatched]
        count = f"{len(mismatched)} of the weights"
        raise LoadError(f"'{source}' holds another shape than its config.json says for {count}: {listed(shapes)}")
    if errors := report.get("error_msgs"):
        raise LoadError(f"'{source}': {str(next(iter(errors))).splitlines()[0]}")
    warn_of_unused(report["unexpected_keys"], source)


def lacking(missing: Sequence[str], source: str) -> LoadError:
    """The error for a checkpoint that lacks some of the model's weights."""
    return LoadError(
        f"'{source}' lacks {len(missing)} of the model's weights: {listed(sorted(missing))}; "
        "missing weights are never invented: is the checkpoint complete, and that of a language model?"
    )


def warn_of_unused(names: Iterable[str], source: str) -> None:
    """Log which tensors of a checkpoint no parameter takes."""
    unused = sorted(name for name in names if not _useless(name))
    if unused:
        logger.warning(
            "%s: no parameter of the model takes %d of the checkpoint's tensors: %s",
            source,
            len(unused),
            listed(unused),
        )


def require_plain_numbers(folder: Path, source: str) -> None:
    """Check the types of the stored weights: reading would convert codes without their scales.

    Raises:
        LoadError: some are integers or 8-bit floats, so they are quantised, or a file is damaged.
    """
    strange = sorted(
        f"{name} ({kind})"
        for name, kind in stored_types(folder, source)
        if kind not in PLAIN_TYPES and not _useless(name)
    )
    if strange:
        count = f"{len(strange)} of its weights"
        raise LoadError(f"'{source}' holds codes instead of plain numbers for {count}: {listed(strange)}; {PLAIN}")


@torch.no_grad()
def require_finite(model: PreTrainedModel, source: str, names: Mapping[str, str] | None = None) -> None:
    """
    Args:
        names: the checkpoint's names of the parameters, if they differ.

    Raises:
        LoadError: a weight is infinite or not a number: the file is damaged, or the dtype is too narrow for it.
    """
    strange = [name for name, p in model.named_parameters() if not p.is_meta and not all_finite(p)]
    strange += [name for name, matrix in named_matrices(model) if not matrix.is_finite]
    if not strange:
        return
    strange = [(names or {}).get(name, (names or {}).get(f"{name}.weight", name)) for name in strange]
    if model.dtype == torch.float16:
        fault, remedy = " in float16", "try --dtype bfloat16 or float32, or download it again"
    else:
        fault, remedy = "", "download or convert it again"
    raise LoadError(f"'{source}' has weights that are infinite or not a number{fault}: {listed(strange)}; {remedy}")


def require_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """
    Raises:
        LoadError: the tokenizer makes tokens of ordinary text that the model does not have.
    """
    rows = int(model.get_input_embeddings().num_embeddings)
    # Added tokens do not count: some models' text parts have no rows for image tokens.
    tokens = tokenizer.vocab_size
    if tokens > rows:
        raise LoadError(
            f"'{source}' has a tokenizer of {tokens} tokens and a model with rows for {rows}; "
            "they belong to different models"
        )


def _useless(name: str) -> bool:
    return USELESS.search(name) is not None


def stored_types(folder: Path, source: str) -> list[tuple[str, str]]:
    """Name and type of each stored tensor, read from headers only; types are those of safetensors.

    Raises:
        LoadError: a file cannot be read.
    """
    found: list[tuple[str, str]] = []
    for file in weight_files(folder):
        try:
            found += _safetensors_types(file) if file.suffix == ".safetensors" else _pickled_types(file)
        except LoadError as error:
            raise LoadError(f"'{source}': {error}") from None
        except Exception as error:
            # Readers raise many kinds of errors. The user needs the file's name.
            raise LoadError(
                f"'{source}': {file.name} is damaged or incomplete ({first_words(error)}); download it again"
            ) from error
    return found


def weight_files(folder: Path) -> list[Path]:
    """The files that a checkpoint's weights are read from, in the order in which transformers prefers them."""
    for index, whole in zip(INDEXES, WEIGHTS, strict=True):
        if (folder / whole).is_file():
            return [folder / whole]
        if (folder / index).is_file():
            located = json.loads((folder / index).read_text())["weight_map"]
            return [folder / name for name in sorted(set(located.values()))]
    return []


def _safetensors_types(file: Path) -> list[tuple[str, str]]:
    with safe_open(file, "pt") as content:
        return [(name, content.get_slice(name).get_dtype()) for name in content.keys()]  # noqa: SIM118


def _pickled_types(file: Path) -> list[tuple[str, str]]:
    names = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    # Files from before PyTorch 1.6 are not archives and cannot be mapped.
    tensors = torch.load(file, map_location="meta", mmap=is_zipfile(file), weights_only=True)
    if strange := [name for name, value in tensors.items() if not isinstance(value, Tensor)]:
        raise LoadError(f"{file.name} holds more than weights by name ({listed(strange)}): a training checkpoint")
    return [(name, names.get(value.dtype, str(value.dtype))) for name, value in tensors.items()]
