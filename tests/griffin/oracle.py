"""Both methods written a second time, slowly and without our code: the full model with masked activations."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from griffin.neurons import Chosen, Kept
from griffin.thresholds import Shares, Thresholds

EXPAND = ("gate_proj", "gate_up_proj", "fc1", "dense_h_to_4h", "c_fc", "fc_in")
CONTRACT = ("down_proj", "fc2", "dense_4h_to_h", "c_proj", "fc_out")


def contracts(model: PreTrainedModel) -> list[nn.Module]:
    """The contracting projections, found by name, so that a wrong row of the family table is noticed."""
    return _named(model, CONTRACT)


def first_expands(model: PreTrainedModel) -> list[nn.Module]:
    """The projections that hold the gate, or the only expanding projections; found by name."""
    return _named(model, EXPAND)


def _named(model: PreTrainedModel, endings: tuple[str, ...]) -> list[nn.Module]:
    return [
        module
        for name, module in model.named_modules()
        if name.endswith(endings) and "attn" not in name and "attention" not in name
    ]


def gate_functions(model: PreTrainedModel) -> list[nn.Module]:
    """The modules of the gates' activation functions; empty for blocks without gates."""
    if not any(name.endswith(("gate_proj", "gate_up_proj")) for name, _ in model.named_modules()):
        return []
    return [module for name, module in model.named_modules() if name.endswith(("act_fn", "activation_fn"))]


@contextmanager
def recorded(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """The activations z of every layer in one forward pass, ``(T, F)`` each."""
    with _seen_by(contracts(model), given=True) as seen:
        yield seen


@contextmanager
def inputs(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """The inputs of every FF block in one forward pass, ``(T, D)`` each."""
    with _seen_by(first_expands(model), given=True) as seen:
        yield seen


@contextmanager
def gated(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """The outputs of the gates' functions in one forward pass, ``(T, F)`` each; empty without gates."""
    with _seen_by(gate_functions(model), given=False) as seen:
        yield seen


@contextmanager
def _seen_by(modules: Sequence[nn.Module], *, given: bool) -> Iterator[list[Tensor]]:
    """The first inputs of modules (``given``), or their outputs, in one forward pass."""
    seen: list[Tensor] = []

    def see(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((inputs[0] if given else output).detach().flatten(0, -2))

    hooks = [module.register_forward_hook(see) for module in modules]
    yield seen
    for hook in hooks:
        hook.remove()


@dataclass(eq=False)
class Reads:
    """Counts of what tokens have read by thresholds, over all layers.

    inputs: inputs that were read in stage 1.
    acting: neurons that passed stage 2.
    giving: neurons that passed stage 3.
    all_inputs, all_neurons: numbers of all inputs and neurons.
    gates: outputs of the gates' functions that stage 2 has not used yet.
    """

    inputs: int = 0
    acting: int = 0
    giving: int = 0
    all_inputs: int = 0
    all_neurons: int = 0
    gates: list[Tensor] = field(default_factory=list)

    def shares(self, *, gated: bool) -> Shares:
        gate = self.inputs / self.all_inputs
        return Shares(gate, self.acting / self.all_neurons if gated else gate, self.giving / self.all_neurons)


@contextmanager
def masked(model: PreTrainedModel, chosen: Chosen | None) -> Iterator[Reads]:
    """In this context all activations but the kept ones are zero, or a token reads by thresholds as these define it."""
    reads, hooks = Reads(), []
    if isinstance(chosen, Kept):
        hooks = [
            module.register_forward_pre_hook(_mask(index_k))
            for module, index_k in zip(contracts(model), chosen.layers, strict=True)
        ]
    elif chosen is not None:
        hooks = _by_thresholds(model, chosen, reads)
    yield reads
    for hook in hooks:
        hook.remove()


def _mask(index_k: Tensor) -> object:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        mask = torch.zeros(inputs[0].shape[-1]).index_fill(0, index_k, 1.0)
        return (inputs[0] * mask.to(inputs[0]),)

    return hook


def _by_thresholds(model: PreTrainedModel, by: Thresholds, reads: Reads) -> list[object]:
    hooks: list[object] = []
    functions = gate_functions(model)
    for layer, (expand, contract) in enumerate(zip(first_expands(model), contracts(model), strict=True)):
        hooks.append(expand.register_forward_hook(_read_inputs(by, layer, reads)))
        hooks.append(contract.register_forward_pre_hook(_read_neurons(by, layer, reads)))
        if functions:
            hooks.append(functions[layer].register_forward_hook(lambda _, __, given: reads.gates.append(given)))
    return hooks


def _read_inputs(by: Thresholds, layer: int, reads: Reads) -> object:
    """Stage 1 on the first F rows: inputs near their means count with their means."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x, mean_D, offset_F = inputs[0].float(), by.means_LD[layer], by.offsets_LF[layer]
        far = (x - mean_D).abs() > by.input_limits_LD[layer]
        weight_DF = gate_weight(module, len(offset_F)).float().t()
        gate = torch.where(far, x - mean_D, 0) @ weight_DF + offset_F
        reads.inputs += int(far.sum())
        reads.all_inputs += far.numel()
        return torch.cat((gate.to(output), output[..., len(offset_F) :]), dim=-1)

    return hook


@torch.no_grad()
def step_by_step(model: PreTrainedModel, ids: Tensor, prompt: int, chosen: Chosen | None) -> tuple[Tensor, Reads]:
    """The logits after each token beyond the first ``prompt`` ones, ``(T - prompt, V)``, and what was read."""
    # Without a configuration, the cache also keeps the positions outside of a window.
    cache = DynamicCache()
    model(ids[None, :prompt], past_key_values=cache)
    with masked(model, chosen) as reads:
        logits = [model(id.view(1, 1), past_key_values=cache).logits[0, -1] for id in ids[prompt:]]
    return torch.stack(logits), reads


def _read_neurons(by: Thresholds, layer: int, reads: Reads) -> object:
    """Stages 2 and 3: each neuron that does not pass both has its resting value."""

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z, resting_F = inputs[0].float(), by.resting_LF[layer]
        gives = (z - resting_F).abs() > by.output_limits_LF[layer]
        if by.gate_limits_LF is not None:
            acts = reads.gates.pop().float().reshape(z.shape).abs() > by.gate_limits_LF[layer]
            reads.acting += int(acts.sum())
            gives &= acts
        reads.giving += int(gives.sum())
        reads.all_neurons += gives.numel()
        return (torch.where(gives, z, resting_F).to(inputs[0]),)

    return hook


def gate_weight(module: nn.Module, neurons: int) -> Tensor:
    """The gate's weight as rows of neurons, ``(F, D)``, in whichever orientation the module stores it."""
    weight: Tensor = module.weight
    by_output = weight if isinstance(module, nn.Linear) else weight.t()
    return by_output[:neurons]


@torch.no_grad()
def thresholds(model: PreTrainedModel, ids: list[int], shares: Shares, latest: int = 128) -> Thresholds:
    """The thresholds of a prompt in double precision, as ``griffin.method.griffin_plus`` defines them."""
    expands, downs, functions = first_expands(model), contracts(model), gate_functions(model)
    ups = [module for module in _named(model, ("up_proj",) if functions else ()) if module not in expands]
    with (
        inputs(model) as xs,
        recorded(model) as zs,
        gated(model) as gates,
        _seen_by(ups, given=False) as seen_ups,
        _seen_by(expands, given=False) as firsts,
    ):
        model(torch.tensor([ids]))
    found = []
    for layer, (x_TD, z_TF) in enumerate(zip(xs, zs, strict=True)):
        gate_TF, up_TF = None, None
        if functions:
            gate_TF, up_TF = gates[layer], seen_ups[layer] if ups else firsts[layer][:, z_TF.shape[1] :]
        found.append(_thresholds(expands[layer], downs[layer], x_TD, z_TF, gate_TF, up_TF, shares, latest))
    tensors = [torch.stack(column).float() for column in zip(*found, strict=True)]
    means, input_limits, offsets, gate_limits, resting, output_limits = tensors
    return Thresholds(shares, means, input_limits, offsets, gate_limits if functions else None, resting, output_limits)


def _thresholds(
    expand: nn.Module,
    down: nn.Module,
    x_TD: Tensor,
    z_TF: Tensor,
    gate_TF: Tensor | None,
    up_TF: Tensor | None,
    shares: Shares,
    latest: int,
) -> list[Tensor]:
    """The thresholds of one layer, in the order of the fields. z is gate_TF times up_TF."""
    tokens, neurons = z_TF.shape
    weight_FD, norms_F = gate_weight(expand, neurons).double(), rows(down).double().norm(dim=1)
    norms_D = weight_FD.norm(dim=0)
    averaged = tokens - 1 if tokens > 2 else 0
    mean_D = x_TD[1:].double().sum(0) / averaged if averaged else torch.zeros(x_TD.shape[1], dtype=torch.float64)
    offset_F = weight_FD @ mean_D
    if expand.bias is not None:
        offset_F = offset_F + expand.bias[:neurons].double()
    # The first token is unlike all others: it counts only if it is alone.
    first = 1 if tokens > 1 else 0
    x_TD, z_TF = x_TD[first:][-latest:].double(), z_TF[first:][-latest:].double()
    # By this factor, a token is further from the mean of the other tokens.
    further = averaged / (averaged - 1) if averaged else 1
    input_limit_D = highest((x_TD - mean_D).abs() * norms_D * further, shares.gate) / norms_D
    if gate_TF is None or up_TF is None:
        size_F, worth_TF, share = norms_F, z_TF.abs() * norms_F, shares.down
    else:
        squares_F, counted = up_TF[first:].double().square().sum(0), tokens - first
        # As if four average tokens came in addition, unless there is only the first token.
        mean = squares_F.mean() / counted
        size_F = ((squares_F + 4 * first * mean) / (counted + 4 * first)).sqrt()
        worth_TF, share = gate_TF[first:][-latest:].double().abs() * size_F, shares.up
    cut = highest(worth_TF, share)
    rests_TF = worth_TF <= cut
    at_rest_TF = rests_TF
    if up_TF is not None:
        # Compare z / up with the limit: in half precision it differs from the gate's value near the limit.
        at_rest_TF = z_TF.abs() <= cut * (1 + 1e-5) / size_F * up_TF[first:][-latest:].double().abs()
    # As if four tokens came in addition, on which z is 0.
    resting_F = (z_TF * at_rest_TF).sum(0) / (at_rest_TF.sum(0) + 4)
    giving_TF = (z_TF - resting_F).abs() * norms_F
    if gate_TF is not None:
        giving_TF[rests_TF] = 0
    return [mean_D, input_limit_D, offset_F, cut / size_F, resting_F, highest(giving_TF, shares.down) / norms_F]


def rows(module: nn.Module) -> Tensor:
    """The weight of a contracting projection with one row for each neuron, ``(F, D)``."""
    weight: Tensor = module.weight
    return weight.t() if isinstance(module, nn.Linear) else weight


def highest(values: Tensor, share: float) -> Tensor:
    """The threshold that this share of all values exceeds, rounded to a whole number of values.

    A margin keeps rounding from moving a value across.
    """
    ordered = values.flatten().sort().values
    count = round((1 - share) * len(ordered))
    return ordered[count - 1] * (1 + 1e-5) if count else torch.tensor(-1.0)


def statistic(z_TF: Tensor) -> Tensor:
    """Equation 1 of the paper, unchanged."""
    unit_TF = z_TF / z_TF.norm(dim=1, keepdim=True)
    return unit_TF.norm(dim=0)


@torch.no_grad()
def generate(model: PreTrainedModel, prompt_ids: list[int], sparsity: float, tokens: int) -> tuple[list[int], Tensor]:
    """Greedy ids, and the logits that each was drawn from, ``(tokens, vocabulary)``."""
    cache = DynamicCache(config=model.config)
    with recorded(model) as activations:
        output = model(torch.tensor([prompt_ids]), past_key_values=cache)
    width = activations[0].shape[1]
    k = max(1, round((1 - sparsity) * width))
    kept = [statistic(z_TF).topk(k).indices for z_TF in activations]
    logits = [output.logits[0, -1]]
    with masked(model, Kept(kept)):
        while len(logits) < tokens:
            output = model(logits[-1].argmax().view(1, 1), past_key_values=cache)
            logits.append(output.logits[0, -1])
    return [int(row.argmax()) for row in logits], torch.stack(logits)


@torch.no_grad()
def classify(model: PreTrainedModel, ids: list[int], sparsity: float) -> Tensor:
    """The logits of the last token, as in Section 5.1: the prompt is all other tokens."""
    cache = DynamicCache(config=model.config)
    with recorded(model) as activations:
        model(torch.tensor([ids[:-1]]), past_key_values=cache)
    k = max(1, round((1 - sparsity) * activations[0].shape[1]))
    with masked(model, Kept([statistic(z_TF).topk(k).indices for z_TF in activations])):
        logits: Tensor = model(torch.tensor([ids[-1:]]), past_key_values=cache).logits[0, -1]
    return logits
