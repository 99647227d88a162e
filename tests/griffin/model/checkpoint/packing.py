"""Projections in the layouts of GPTQ and AWQ, and their numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

SCHEMES: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True},
    "gptq_v2": {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "checkpoint_format": "gptq_v2"},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True},
}
# The order of eight neighbours in AWQ's words, from the lowest bits on.
AWQ = (0, 2, 4, 6, 1, 3, 5, 7)


def random_projection(
    rows: int, columns: int, scheme: str, *, group: int = 32, act_order: bool = False, symmetric: bool = False
) -> tuple[dict[str, Tensor], np.ndarray]:
    """The tensors of a projection by their endings, and its numbers, float32 ``(rows, columns)``."""
    random = np.random.default_rng(rows + columns)
    groups = columns // group
    codes = random.integers(0, 16, (rows, columns))
    # GPTQ's first layout cannot store a zero point of 0.
    zeros = np.full((rows, groups), 8) if symmetric else random.integers(scheme == "gptq", 16, (rows, groups))
    scales = random.uniform(0.001, 0.05, (rows, groups)).astype(np.float16)
    of_group = np.repeat(np.arange(groups), group)
    if act_order:
        of_group = random.permutation(of_group)
    numbers = (scales.astype(np.float64)[:, of_group] * (codes - zeros[:, of_group])).astype(np.float32)
    stored = zeros - (scheme == "gptq")
    if scheme == "awq":
        words, zero_words, more = _words(codes.T, AWQ), _words(stored.T, AWQ), {}
    else:
        words, zero_words = _words(codes, range(8)).T, _words(stored.T, range(8))
        more = {"g_idx": torch.from_numpy(of_group.astype(np.int32))}
    tensors = {"qweight": words, "qzeros": zero_words, "scales": scales.T}
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in tensors.items()} | more, numbers


def _words(codes: np.ndarray, order: "range | tuple[int, ...]") -> np.ndarray:
    """Pack eight neighbours of a row into a word of 32 bits."""
    words = np.zeros((len(codes), codes.shape[1] // 8), dtype=np.uint32)
    for place, which in enumerate(order):
        words |= codes[:, which::8].astype(np.uint32) << np.uint32(4 * place)
    return words.view(np.int32)


def write_packed(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, scheme: str, **options: bool
) -> None:
    """Write a directory with a model whose projections are quantised. The model gets the numbers of the codes."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    state = {name: value.half() for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    # Every second projection of a layer has zero points other than 8.
    for number, (path, module) in enumerate(model.named_modules()):
        if isinstance(module, nn.Linear) and path != "lm_head":
            symmetric = number % 2 == 0 or not options.get("asymmetric", True)
            rows, columns = module.weight.shape
            act_order = options.get("act_order", False)
            tensors, numbers = random_projection(rows, columns, scheme, act_order=act_order, symmetric=symmetric)
            del state[f"{path}.weight"]
            state |= {f"{path}.{ending}": value for ending, value in tensors.items()}
            module.weight.data = torch.from_numpy(numbers)
    save_file(state, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": SCHEMES[scheme]}))
