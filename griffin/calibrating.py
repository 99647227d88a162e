"""Calibrating: a model reads general text once, forwards and backwards, for what ``calibration`` keeps.

Shapes: L layers, T tokens, D model width, F feed-forward neurons, k of them kept, I input directions, N = F + I,
P directions of general text, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from griffin import plus, ridge
from griffin.accounting import Accounting
from griffin.calibration import Calibration
from griffin.families import FeedForward, feed_forwards, linear_weight
from griffin.statistic import FlockingStatistic, Moments, centred_rows, inverse_lengths

# Principal directions, and the tokens that they are found on, evenly from all: as many as there is room for.
DIRECTIONS = 256
SAMPLE_BYTES, FEWEST_TOKENS = 6 * 10**9, 4096
# Of the bytes that a token reads when half of the neurons are kept, what the input directions may add.
INPUT_SHARE = 0.0175
# Of the neurons, when the input directions are looked for.
NOMINAL_SPARSITY = 0.5
# Of a variance, with LEAST of the mean one: what keeps the regressions from going by noise.
PENALTY, LEAST = 0.03, 0.1
# Of what the first input direction tells.
NOTHING = 1e-6


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
    width, entering = blocks[0].width, linear_weight(blocks[0].contract).shape[0]
    # All of the input, not yet a few directions of it.
    statistic = FlockingStatistic(blocks, torch.eye(entering).expand(len(blocks), -1, -1))
    generator = torch.Generator().manual_seed(0)
    sensitivity_LF = torch.zeros(len(blocks), width)
    none_LF, none_L = (
        torch.zeros_like(sensitivity_LF, device=model.device),
        torch.zeros(len(blocks), device=model.device),
    )
    total = Moments(none_LF, none_LF, none_L, 0)
    room = max(FEWEST_TOKENS, SAMPLE_BYTES // (2 * len(blocks) * (width + entering)))
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
            # What the model itself expects: no label of a data set, and no data set's mistakes.
            probabilities_TV = logits_TV.detach().softmax(dim=1).cpu()
            labels_T = torch.multinomial(probabilities_TV, 1, generator=generator)[:, 0].to(model.device)
            loss = nn.functional.cross_entropy(logits_TV, labels_T, reduction="sum")
            loss.backward()  # type: ignore[no-untyped-call]
        total += statistic.moments()
        sample.add(statistic.latest())
        advance()
    tokens = max(1, total.tokens)
    weighed = sensitivity_LF / tokens
    staying = _nominal(total.variance().cpu() * weighed)
    count, mean_LF = input_count(model), total.mean().cpu()
    found = [
        _directions(sample.rows(layer), mean_LF[layer], block, staying[layer], count)
        for layer, block in enumerate(blocks)
    ]
    inputs_LID, input_mean_LI, directions_LPN, unexplained_LN = (
        torch.stack(parts) for parts in zip(*found, strict=True)
    )
    return Calibration(
        sensitivity_LF=weighed,
        sum_LF=total.sum_LF.cpu() / tokens,
        square_LF=total.square_LF.cpu() / tokens,
        unexplained_LN=unexplained_LN,
        weight_L=total.weight_L.cpu() / tokens,
        input_mean_LI=input_mean_LI,
        inputs_LID=inputs_LID,
        directions_LPN=directions_LPN,
    )


def input_count(model: PreTrainedModel) -> int:
    """I: as many directions of the FF blocks' inputs as ``INPUT_SHARE`` allows."""
    accounting = Accounting.of(model)
    width = linear_weight(feed_forwards(model)[0].contract).shape[0]
    allowed = INPUT_SHARE * accounting.active(accounting.kept(NOMINAL_SPARSITY))
    return max(1, min(width // 2, int(allowed / (2 * width * accounting.layers))))


def _nominal(loss_LF: Tensor) -> list[Tensor]:
    """The neurons that general text would keep."""
    return plus.highest(loss_LF, plus.budgets(loss_LF, round(loss_LF.numel() * (1 - NOMINAL_SPARSITY))))


@torch.inference_mode()
def _directions(
    seen_TE: Tensor, mean_F: Tensor, block: FeedForward, staying_k: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of one layer the input directions, their means, the principal directions and what these leave.

    Args:
        seen_TE: E = F + D, activations and inputs.
    """
    width = len(mean_F)
    weight_T = inverse_lengths(seen_TE[:, :width].float())
    mean_D = weight_T @ seen_TE[:, width:].float() / weight_T.sum().clamp_min(torch.finfo(torch.float32).tiny)
    x_TE = centred_rows(seen_TE, torch.cat([mean_F, mean_D]), width)
    z_TF, x_TD = x_TE[:, :width], x_TE[:, width:]
    inputs_ID = telling_inputs(z_TF, x_TD, linear_weight(block.contract).detach().cpu(), staying_k, count)
    # As rounded as it will be kept.
    inputs_ID = inputs_ID.half()
    x_TN = torch.cat([z_TF, x_TD @ inputs_ID.float().t()], dim=1)
    directions_PN = _principal(x_TN)
    unexplained_N = (x_TN.square().sum(dim=0) - directions_PN.float().square().sum(dim=0)).clamp_(min=0)
    return inputs_ID, inputs_ID.float() @ mean_D, directions_PN, unexplained_N


def telling_inputs(z_TF: Tensor, x_TD: Tensor, contract_DF: Tensor, staying_k: Tensor, count: int) -> Tensor:
    """The directions of the input that tell most of what the removed neurons give, beyond what the kept ones tell.

    Reduced-rank regression (Izenman 1975) of what a regression on the kept neurons leaves, on what it leaves of the
    input.

    Args:
        z_TF, x_TD: rows as of ``statistic.centred_rows``.
        staying_k: the kept neurons.
        count: I.

    Returns:
        fp32 ``(I, D)``; what the input has in each varies as much as a neuron does on average.
    """
    given_TD = ridge.given_by_removed(z_TF, contract_DF.float(), staying_k)
    z_Tk = z_TF[:, staying_k]
    both_TE = torch.cat([given_TD, x_TD], dim=1)
    both_TE = both_TE - z_Tk @ _regression(z_Tk, both_TE)
    tiny = torch.finfo(torch.float32).tiny
    left_TD, input_TD = both_TE[:, : given_TD.shape[1]], both_TE[:, given_TD.shape[1] :]
    # Each number of the output counts as much: of some layers one is thousands of times as large as all others.
    left_TD = left_TD / left_TD.square().sum(dim=0).clamp_min(tiny).sqrt()
    map_DD = _regression(input_TD, left_TD)
    towards_DD = left_TD.t() @ input_TD @ map_DD
    # The last are the largest.
    told_D, outputs_DD = torch.linalg.eigh((towards_DD + towards_DD.t()) / 2)
    inputs_ID = (map_DD @ outputs_DD[:, -count:].flip(1)).t()
    spread_I = (x_TD @ inputs_ID.t()).square().sum(dim=0)
    scale_I = (z_TF.square().sum(dim=0).mean() / spread_I.clamp_min(tiny)).sqrt()
    # Where there is no more to tell, what is left is rounding.
    scale_I[told_D[-count:].flip(0) <= NOTHING * told_D[-1]] = 0
    scaled_ID: Tensor = inputs_ID * scale_I[:, None]
    return scaled_ID


def _regression(from_TA: Tensor, to_TB: Tensor) -> Tensor:
    """Of the second on the first, with a small penalty: ``(A, B)``."""
    gram_AA = from_TA.t() @ from_TA
    variance_A = gram_AA.diagonal().clone()
    tiny = torch.finfo(torch.float32).tiny
    gram_AA.diagonal().add_((PENALTY * (variance_A + LEAST * variance_A.mean())).clamp_min(tiny))
    found_AB: Tensor = torch.cholesky_solve(from_TA.t() @ to_TB, torch.linalg.cholesky(gram_AA))
    return found_AB


def _principal(x_TN: Tensor) -> Tensor:
    """The longest principal directions: half precision ``(P, N)``."""
    count = min(DIRECTIONS, *x_TN.shape)
    # More columns than wanted, and a few rounds: exact to well below what a sample of tokens is.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, length_Q, directions_NQ = torch.svd_lowrank(x_TN, q=min(count + 32, *x_TN.shape), niter=3)
    return (directions_NQ * length_Q).t()[:count].half()


class _Sample:
    """What some tokens show, on the host."""

    def __init__(self, layers: int, every: int) -> None:
        self._rows: list[list[Tensor]] = [[] for _ in range(layers)]
        self._every = every

    def add(self, latest: Sequence[Tensor]) -> None:
        # Nothing of a sequence that has only begun.
        for rows, seen_TE in zip(self._rows, latest, strict=False):
            rows.append(seen_TE[:: self._every].to("cpu", torch.bfloat16))

    def rows(self, layer: int) -> Tensor:
        return torch.cat(self._rows[layer])


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
