"""GRIFFIN written out a second time, slowly and by none of our code: the full model, its activations masked."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from griffin.neurons import Kept

CONTRACT = ("down_proj", "fc2", "dense_4h_to_h", "c_proj", "fc_out")


def contracts(model: PreTrainedModel) -> list[nn.Module]:
    """By name alone, so that a wrong row of the family table cannot hide. GPT-2's attention has a c_proj too."""
    return [
        module
        for name, module in model.named_modules()
        if name.endswith(CONTRACT) and "attn" not in name and "attention" not in name
    ]


def gate_functions(model: PreTrainedModel) -> list[nn.Module]:
    """Where blocks are gated, the modules that the gates go through."""
    if not any(name.endswith(("gate_proj", "gate_up_proj")) for name, _ in model.named_modules()):
        return []
    return [module for name, module in model.named_modules() if name.endswith(("act_fn", "activation_fn"))]


@contextmanager
def recorded(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """The activations z of every layer in one forward pass, ``(T, F)`` each."""
    seen: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().flatten(0, -2)))
        for module in contracts(model)
    ]
    yield seen
    for hook in hooks:
        hook.remove()


@contextmanager
def gated(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """What the gates' functions give in one forward pass, ``(T, F)`` each; nothing where there is no gate."""
    seen: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _, __, given: seen.append(given.detach().flatten(0, -2)))
        for module in gate_functions(model)
    ]
    yield seen
    for hook in hooks:
        hook.remove()


@contextmanager
def masked(model: PreTrainedModel, kept: Kept) -> Iterator[None]:
    """All activations but the kept ones are zero, and what stands for the others is added to what each block gives."""

    def mask(layer: int, index: Tensor, gates: list[Tensor]) -> object:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            z = inputs[0]
            mask = torch.zeros(z.shape[-1]).index_fill(0, index, 1.0)
            if kept.acting is None:
                return (z * mask,)
            limits, resting = torch.full((z.shape[-1],), torch.inf), torch.zeros(z.shape[-1])
            limits[index], resting[index] = kept.acting.thresholds[layer], kept.acting.resting[layer]
            given = gates.pop().reshape(z.shape) if gates else z
            return (torch.where(given.abs() > limits.to(given), z - resting.to(z), 0),)

        return hook

    def add(layer: int) -> object:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if kept.offset_LD is not None:
                output = output + kept.offset_LD[layer]
            if kept.correction is not None:
                known = inputs[0][..., kept.layers[layer]] @ kept.correction.left[layer]
                output = output + known @ kept.correction.right[layer]
            return output

        return hook

    hooks = []
    functions = gate_functions(model)
    for layer, (module, index) in enumerate(zip(contracts(model), kept.layers, strict=True)):
        gates: list[Tensor] = []
        if functions:
            hooks.append(functions[layer].register_forward_hook(lambda _, __, given, gates=gates: gates.append(given)))
        hooks += [
            module.register_forward_pre_hook(mask(layer, index, gates)),
            module.register_forward_hook(add(layer)),
        ]
    yield
    for hook in hooks:
        hook.remove()


def statistic(z_TF: Tensor) -> Tensor:
    """Equation 1 of the paper, as it stands there."""
    unit_TF = z_TF / z_TF.norm(dim=1, keepdim=True)
    return unit_TF.norm(dim=0)


@torch.no_grad()
def generate(model: PreTrainedModel, prompt_ids: list[int], sparsity: float, tokens: int) -> tuple[list[int], Tensor]:
    """Greedy: the ids, and the logits that each was drawn from ``(tokens, vocabulary)``."""
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
    """Section 5.1: all tokens but the last are the prompt, the last is the one generation step. Its logits."""
    cache = DynamicCache(config=model.config)
    with recorded(model) as activations:
        model(torch.tensor([ids[:-1]]), past_key_values=cache)
    k = max(1, round((1 - sparsity) * activations[0].shape[1]))
    with masked(model, Kept([statistic(z_TF).topk(k).indices for z_TF in activations])):
        logits: Tensor = model(torch.tensor([ids[-1:]]), past_key_values=cache).logits[0, -1]
    return logits
