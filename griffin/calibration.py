"""Calibration: what a model's neurons do on general text, measured once and kept beside the model.

Method griffin+ weighs what a prompt shows of a neuron against it: how much the loss would mind a change of that
neuron's activation, and what the activation usually is.

Shapes: L layers, F feed-forward neurons, T tokens, V vocabulary.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedModel

from griffin.errors import LoadError
from griffin.families import FeedForward, feed_forwards, linear_weight
from griffin.statistic import FlockingStatistic, Moments

# Raised when files of before would be read wrongly.
EDITION = "1"
TABLES = ("sensitivity_LF", "sum_LF", "square_LF")
NAMES = (*TABLES, "weight_L")
# Of each projection, for a model's name: enough to tell two models apart, and read in no time.
SAMPLED = 64


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Means over tokens of general text, fp32. ||z|| is the length of all activations of a layer.

    sensitivity_LF: the squared derivative of the loss by a neuron's activation (the diagonal of Fisher's information,
        with labels drawn from the model itself), times ||z||: where activations are small the loss minds more.
    sum_LF, square_LF: the activation, and its square, each divided by ||z||.
    weight_L: 1 / ||z||.
    """

    sensitivity_LF: Tensor
    sum_LF: Tensor
    square_LF: Tensor
    weight_L: Tensor

    def to(self, device: torch.device) -> "Calibration":
        return Calibration(*(getattr(self, name).to(device) for name in NAMES))

    def name(self) -> str:
        """Short, equal for equal ones."""
        numbers = torch.cat([getattr(self, name).flatten() for name in NAMES]).half()
        return hashlib.sha256(numbers.cpu().numpy().tobytes()).hexdigest()[:16]

    def moments(self, tokens: int) -> Moments:
        """Of as many tokens of general text."""
        return Moments(self.sum_LF * tokens, self.square_LF * tokens, self.weight_L * tokens, tokens)

    def packed(self, model: str) -> bytes:
        """As a file of half precision, scaled by layer, for the model of that ``identity``."""
        tensors = {"weight_L": self.weight_L.cpu()}
        for name in TABLES:
            values_LF = getattr(self, name).cpu()
            scale_L1 = values_LF.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
            # Roots: the smallest of squares would be lost in half precision.
            tensors[name] = (values_LF / scale_L1).abs().sqrt().mul(values_LF.sign()).half()
            tensors[f"{name}_scale"] = scale_L1
        return save(tensors, {"model": model, "edition": EDITION})

    @classmethod
    def read(cls, path: Path, model: str) -> "Calibration | None":
        """What was packed there for that model; None if there is nothing, or it is another model's.

        Raises:
            LoadError: the file is damaged.
        """
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                facts = file.metadata() or {}
                if (facts.get("model"), facts.get("edition")) != (model, EDITION):
                    return None
                sensitivity_LF, sum_LF, square_LF = (_unpacked(file, name) for name in TABLES)
                return cls(sensitivity_LF, sum_LF, square_LF, file.get_tensor("weight_L"))
        except (OSError, SafetensorError, ValueError) as error:
            raise LoadError(f"'{path}' is damaged; delete it and calibrate again ({error})") from error


def _unpacked(file: Any, name: str) -> Tensor:
    roots_LF: Tensor = file.get_tensor(name).float()
    scaled_LF: Tensor = roots_LF.square() * roots_LF.sign() * file.get_tensor(f"{name}_scale")
    return scaled_LF


def identity(model: PreTrainedModel) -> str:
    """A short name for this model's FF weights, in whichever dtype, on whichever device, however laid out."""
    digest = hashlib.sha256()
    for block in feed_forwards(model):
        for projection in (*block.expand, block.contract):
            weight = linear_weight(projection)
            step = max(1, weight.shape[0] // SAMPLED)
            # Of bfloat16's precision, which all dtypes that a model is served in have in common or exceed.
            sample = weight[::step, 0].float().to(torch.bfloat16).view(torch.int16).cpu()
            digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def calibrate(
    model: PreTrainedModel, sequences: Iterable[Sequence[int]], advance: Callable[[], object] = lambda: None
) -> Calibration:
    """Read some thousands of tokens of general text, forwards and backwards.

    Args:
        model: not one that an engine was built on, whose weights autograd cannot use.
        sequences: token ids; the first of each only begins it.
        advance: called after each.
    """
    blocks = feed_forwards(model)
    statistic, generator = FlockingStatistic(blocks), torch.Generator().manual_seed(0)
    sensitivity_LF = torch.zeros(len(blocks), blocks[0].width)
    none_LF, none_L = (
        torch.zeros_like(sensitivity_LF, device=model.device),
        torch.zeros(len(blocks), device=model.device),
    )
    total = Moments(none_LF, none_LF, none_L, 0)
    for ids in sequences:
        statistic.reset()
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            statistic.collecting(),
            _weighing(blocks, sensitivity_LF),
        ):
            ids_1T = torch.tensor([ids], device=model.device)
            embedded = model.get_input_embeddings()(ids_1T).detach().requires_grad_(True)
            logits_TV = model(inputs_embeds=embedded, use_cache=False).logits[0].float()
            # What the model itself expects: no label of a data set, and no data set's mistakes.
            probabilities_TV = logits_TV.detach().softmax(dim=1).cpu()
            labels_T = torch.multinomial(probabilities_TV, 1, generator=generator)[:, 0].to(model.device)
            loss = nn.functional.cross_entropy(logits_TV, labels_T, reduction="sum")
            loss.backward()  # type: ignore[no-untyped-call]
        total += statistic.moments()
        advance()
    tokens = max(1, total.tokens)
    return Calibration(
        sensitivity_LF / tokens,
        total.sum_LF.cpu() / tokens,
        total.square_LF.cpu() / tokens,
        total.weight_L.cpu() / tokens,
    )


@contextmanager
def _weighing(blocks: Sequence[FeedForward], sensitivity_LF: Tensor) -> Iterator[None]:
    """While open, a backward pass adds each neuron's squared derivatives, times ||z||, of all tokens but the first."""
    with ExitStack() as hooks:
        for block, sensitivity_F in zip(blocks, sensitivity_LF, strict=True):
            hooks.enter_context(block.contract.register_forward_pre_hook(_weigh(sensitivity_F)))
        yield


def _weigh(sensitivity_F: Tensor) -> Any:
    def forward(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        z = inputs[0]
        lengths_T = torch.linalg.vector_norm(z.detach().reshape(-1, z.shape[-1])[1:].float(), dim=1)

        def backward(gradient: Tensor) -> None:
            gradient_TF = gradient.reshape(-1, gradient.shape[-1])[1:].float()
            sensitivity_F.add_((lengths_T @ gradient_TF.square()).cpu())

        z.register_hook(backward)  # type: ignore[no-untyped-call]

    return forward
