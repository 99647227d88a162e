"""Calibration: what a model's neurons do on general text, measured once and kept beside the model.

Method griffin+ weighs what a prompt shows of a neuron against it: how much the loss would mind a change of that
neuron's activation, and what the activation usually is.

Shapes: L layers, F feed-forward neurons, P directions, T tokens, V vocabulary.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
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
from griffin.statistic import FlockingStatistic, Moments, centred_rows

# Raised when files of before would be read wrongly.
EDITION = "2"
TABLES = ("sensitivity_LF", "sum_LF", "square_LF", "unexplained_LF")
NAMES = (*TABLES, "weight_L", "directions_LPF")
# Principal directions, and the tokens that they are found on, evenly from all.
DIRECTIONS = 128
DIRECTION_TOKENS = 4096
# Of each projection, for a model's name: enough to tell two models apart, and read in no time.
SAMPLED = 64


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Means over tokens of general text, fp32. ||z|| is the length of all activations of a layer.

    sensitivity_LF: the squared derivative of the loss by a neuron's activation (the diagonal of Fisher's information,
        with labels drawn from the model itself), times ||z||: where activations are small the loss minds more.
    sum_LF, square_LF: the activation, and its square, each divided by ||z||.
    weight_L: 1 / ||z||.
    directions_LPF: the principal directions of (z - mean) / sqrt||z||, each as long as the tokens spread along it; in
        half precision.
    unexplained_LF: what they leave of each neuron's variance.
    """

    sensitivity_LF: Tensor
    sum_LF: Tensor
    square_LF: Tensor
    unexplained_LF: Tensor
    weight_L: Tensor
    directions_LPF: Tensor

    def to(self, device: torch.device) -> "Calibration":
        return Calibration(*(getattr(self, name).to(device) for name in NAMES))

    def name(self) -> str:
        """Short, equal for equal ones."""
        numbers = torch.cat([getattr(self, name).flatten().half() for name in NAMES])
        return hashlib.sha256(numbers.cpu().numpy().tobytes()).hexdigest()[:16]

    def moments(self, tokens: int) -> Moments:
        """Of as many tokens of general text."""
        return Moments(self.sum_LF * tokens, self.square_LF * tokens, self.weight_L * tokens, tokens)

    def packed(self, model: str) -> bytes:
        """As a file of half precision, scaled by layer, for the model of that ``identity``."""
        tensors = {"weight_L": self.weight_L.cpu(), "directions_LPF": self.directions_LPF.cpu()}
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
                tables = {name: _unpacked(file, name) for name in TABLES}
                others = {name: file.get_tensor(name) for name in NAMES if name not in TABLES}
                return cls(**tables, **others)
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
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], advance: Callable[[], object] = lambda: None
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
    sample = _Sample(len(blocks), every=max(1, math.ceil(sum(map(len, sequences)) / DIRECTION_TOKENS)))
    for ids in sequences:
        statistic.reset(latest=len(ids))
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
        sample.add(statistic.latest())
        advance()
    tokens = max(1, total.tokens)
    directions_LPF = sample.directions(total.mean().cpu())
    explained_LF = directions_LPF.float().square().sum(dim=1)
    return Calibration(
        sensitivity_LF=sensitivity_LF / tokens,
        sum_LF=total.sum_LF.cpu() / tokens,
        square_LF=total.square_LF.cpu() / tokens,
        unexplained_LF=(total.variance().cpu() - explained_LF).clamp_(min=0),
        weight_L=total.weight_L.cpu() / tokens,
        directions_LPF=directions_LPF,
    )


class _Sample:
    """Activations of some tokens, on the host."""

    def __init__(self, layers: int, every: int) -> None:
        self._rows: list[list[Tensor]] = [[] for _ in range(layers)]
        self._every = every

    def add(self, latest: Sequence[Tensor]) -> None:
        # Nothing of a sequence that has only begun.
        for rows, z_TF in zip(self._rows, latest, strict=False):
            rows.append(z_TF[:: self._every].to("cpu", torch.bfloat16))

    @torch.inference_mode()
    def directions(self, mean_LF: Tensor) -> Tensor:
        """The longest principal directions around such means: half precision ``(L, P, F)``."""
        return torch.stack([self._of(rows, mean_F) for rows, mean_F in zip(self._rows, mean_LF, strict=True)])

    @staticmethod
    def _of(rows: list[Tensor], mean_F: Tensor) -> Tensor:
        x_TF = centred_rows(torch.cat(rows), mean_F)
        count = min(DIRECTIONS, *x_TF.shape)
        # More columns than wanted, and a few rounds: exact to well below what a sample of tokens is.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _, length_Q, directions_FQ = torch.svd_lowrank(x_TF, q=min(count + 32, *x_TF.shape), niter=3)
        return (directions_FQ * length_Q).t()[:count].half()


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
