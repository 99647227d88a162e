"""Measures a calibration: a model reads general text once, forwards and backwards.

Shapes: L layers, T tokens, F feed-forward neurons, P directions, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from griffin.method.plus.calibration import Calibration
from griffin.method.statistic import Activations, FlockingStatistic, Moments, centred_rows
from griffin.model.families import FeedForward, feed_forwards

# How many principal directions are found. They are found on evenly spaced tokens, as many as this memory holds.
DIRECTIONS = 128
SAMPLE_BYTES, FEWEST_TOKENS = 6 * 10**9, 4096


def calibrate(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], advance: Callable[[], object] = lambda: None
) -> Calibration:
    """Read some thousands of tokens of general text, forwards and backwards.

    Args:
        model: autograd cannot use the weights of one that an engine was built on.
        sequences: token ids; the first of each is not counted.
        advance: called after each sequence.
    """
    blocks = feed_forwards(model)
    statistic, generator = FlockingStatistic(blocks), torch.Generator().manual_seed(0)
    sensitivity_LF, square_LF = torch.zeros(2, len(blocks), blocks[0].width)
    none_LF, none_L = (
        torch.zeros_like(sensitivity_LF, device=model.device),
        torch.zeros(len(blocks), device=model.device),
    )
    total = Moments(none_LF, none_LF, none_L, 0)
    room = max(FEWEST_TOKENS, SAMPLE_BYTES // (2 * sensitivity_LF.numel()))
    sample = _Sample(len(blocks), every=max(1, math.ceil(sum(map(len, sequences)) / room)))
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
            # Labels are drawn from the model itself, as Fisher's information needs them.
            probabilities_TV = logits_TV.detach().softmax(dim=1).cpu()
            labels_T = torch.multinomial(probabilities_TV, 1, generator=generator)[:, 0].to(model.device)
            loss = nn.functional.cross_entropy(logits_TV, labels_T, reduction="sum")
            loss.backward()  # type: ignore[no-untyped-call]
        total += statistic.moments()
        latest = statistic.latest()
        sample.add(latest)
        # A sequence of one token has no activations here, and blocks without a gate have no factor.
        for square_F, known in zip(square_LF, latest, strict=False):
            square_F += len(known.given) if known.up is None else known.up.float().square().sum(dim=0).cpu()
        advance()
    tokens = max(1, total.tokens)
    directions_LPF = sample.directions(total.mean().cpu())
    explained_LF = directions_LPF.float().square().sum(dim=1)
    return Calibration(
        sensitivity_LF=sensitivity_LF / tokens,
        sum_LF=total.sum_LF.cpu() / tokens,
        square_LF=total.square_LF.cpu() / tokens,
        unexplained_LF=(total.variance().cpu() - explained_LF).clamp_(min=0),
        reach_LF=(square_LF / tokens).sqrt(),
        weight_L=total.weight_L.cpu() / tokens,
        directions_LPF=directions_LPF,
    )


class _Sample:
    """Activations of evenly spaced tokens, on the host."""

    def __init__(self, layers: int, every: int) -> None:
        self._rows: list[list[Tensor]] = [[] for _ in range(layers)]
        self._every = every

    def add(self, latest: Sequence[Activations]) -> None:
        # A sequence of one token has no activations here.
        for rows, known in zip(self._rows, latest, strict=False):
            rows.append(known.z[:: self._every].to("cpu", torch.bfloat16))

    @torch.inference_mode()
    def directions(self, mean_LF: Tensor) -> Tensor:
        """The longest principal directions around these means: half precision ``(L, P, F)``."""
        return torch.stack([self._of(rows, mean_F) for rows, mean_F in zip(self._rows, mean_LF, strict=True)])

    @staticmethod
    def _of(rows: list[Tensor], mean_F: Tensor) -> Tensor:
        x_TF = centred_rows(torch.cat(rows), mean_F)
        count = min(DIRECTIONS, *x_TF.shape)
        # With more columns than needed and a few rounds, the error is far below that of sampling tokens.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _, length_Q, directions_FQ = torch.svd_lowrank(x_TF, q=min(count + 32, *x_TF.shape), niter=3)
        return (directions_FQ * length_Q).t()[:count].half()


@contextmanager
def _weighing(blocks: Sequence[FeedForward], sensitivity_LF: Tensor) -> Iterator[None]:
    """While open, a backward pass adds each neuron's squared derivatives, times ||z||, for all tokens but the first."""
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
