"""Random tensors of every type in GGUF files."""

import gguf
import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from transformers import PreTrainedModel

from griffin.model.quantise import Kind, places, quantise_, rounding

T = GGMLQuantizationType
# The places of a block's float16 numbers.
HALVES = {
    T.Q4_0: (0,), T.Q4_1: (0, 2), T.Q5_0: (0,), T.Q5_1: (0, 2), T.Q8_0: (0,), T.Q2_K: (80, 82), T.Q3_K: (108,),
    T.Q4_K: (0, 2), T.Q5_K: (0, 2), T.Q6_K: (208,),
}  # fmt: skip


# A usual mix in layer 0, and every type at least once: for each tensor, its type in each of four layers.
MIXED = {
    "attn_q": (T.Q4_K, T.Q5_0, T.Q2_K, T.F32),
    "attn_k": (T.Q4_K, T.Q4_1, T.Q3_K, T.Q5_K),
    "attn_v": (T.Q6_K, T.Q8_0, T.F16, T.Q5_K),
    "attn_output": (T.Q4_K, T.Q5_1, T.Q4_0, T.BF16),
    "ffn_gate": (T.Q4_K, T.Q4_0, T.Q3_K, T.Q8_0),
    "ffn_up": (T.Q4_K, T.Q5_1, T.Q6_K, T.F16),
    "ffn_down": (T.Q6_K, T.Q4_1, T.Q2_K, T.BF16),
    "token_embd": (T.Q6_K,),
    "output": (T.Q8_0,),
}


def mixed_kind(name: str) -> GGMLQuantizationType | None:
    """The type of a tensor in a mixed file of four layers; None for norms and biases."""
    *layer, part, ending = name.removeprefix("blk.").split(".")
    kinds = MIXED.get(part) if ending == "weight" else None
    return kinds[int(layer[0]) if layer else 0] if kinds else None


def sized_tensor(kind: GGMLQuantizationType, rows: int, columns: int, deviation: float, seed: int) -> np.ndarray:
    """Random codes whose numbers have this standard deviation."""
    data = random_tensor(kind, rows, columns, seed)
    factor = deviation / float(plain(data, kind).std())
    blocks = data.reshape(rows, -1, GGML_QUANT_SIZES[kind][1])
    for place in HALVES[kind]:
        scales = blocks[:, :, place : place + 2].copy().view("<f2") * factor
        blocks[:, :, place : place + 2] = scales.astype("<f2").view(np.uint8)
    return data


def random_tensor(kind: GGMLQuantizationType, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Bytes ``(rows, bytes)`` of random codes, with scales up to 0.02."""
    random = np.random.default_rng(seed)
    numbers, size = GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (rows, columns // numbers, size), dtype=np.uint8)
    for place in HALVES[kind]:
        scales = (random.uniform(0.001, 0.02, blocks.shape[:2]) * random.choice((-1, 1), blocks.shape[:2])).astype(
            "<f2"
        )
        blocks[:, :, place : place + 2] = scales[..., None].view(np.uint8).reshape(*scales.shape, 2)
    return blocks.reshape(rows, -1)


def plain(data: np.ndarray, kind: GGMLQuantizationType) -> torch.Tensor:
    """The numbers that the gguf package reads from these bytes, fp32."""
    return torch.from_numpy(gguf.dequantize(data, kind))


def round_(model: PreTrainedModel, kind: Kind) -> None:
    """Quantise a model in place, as a checkpoint is quantised when it is loaded."""
    quantise_(model, places(model, kind), rounding(model, "model"), model.dtype, "model")
