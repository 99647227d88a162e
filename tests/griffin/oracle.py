"""GRIFFIN written out a second time, slowly and by none of our code: the full model, its activations masked."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from griffin.kept import Kept

CONTRACT = ("down_proj", "fc2", "dense_4h_to_h", "c_proj", "fc_out")
EXPAND = ("gate_proj", "gate_up_proj", "fc1", "dense_h_to_4h", "c_fc", "fc_in")


def contracts(model: PreTrainedModel, names: tuple[str, ...] = CONTRACT) -> list[nn.Module]:
    """By name alone, so that a wrong row of the family table cannot hide. GPT-2's attention has a c_proj too."""
    return [
        module
        for name, module in model.named_modules()
        if name.endswith(names) and "attn" not in name and "attention" not in name
    ]


@contextmanager
def recorded(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """The activations z of every layer in one forward pass, ``(T, F)`` each."""
    with _entering(contracts(model)) as seen:
        yield seen


@contextmanager
def recorded_inputs(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """What enters every FF block in one forward pass, ``(T, D)`` each."""
    with _entering(contracts(model, EXPAND)) as seen:
        yield seen


@contextmanager
def _entering(modules: list[nn.Module]) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().flatten(0, -2)))
        for module in modules
    ]
    yield seen
    for hook in hooks:
        hook.remove()


@contextmanager
def masked(model: PreTrainedModel, kept: Kept) -> Iterator[None]:
    """All activations but the kept ones are zero, and what stands for the others is added to what each block gives."""

    def mask(index: Tensor) -> object:
        return lambda _, inputs: (inputs[0] * torch.zeros(inputs[0].shape[-1]).index_fill(0, index, 1.0),)

    def add(layer: int) -> object:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if kept.offset_LD is not None:
                output = output + kept.offset_LD[layer]
            if kept.correction is not None:
                known = inputs[0][..., kept.layers[layer]]
                if kept.correction.inputs:
                    known = torch.cat([known, entered[layer] @ kept.correction.inputs[layer].t()], dim=-1)
                output = output + known @ kept.correction.left[layer] @ kept.correction.right[layer]
            return output

        return hook

    def enter(layer: int) -> object:
        return lambda _, inputs: entered.__setitem__(layer, inputs[0])

    entered: dict[int, Tensor] = {}
    hooks = [module.register_forward_pre_hook(enter(layer)) for layer, module in enumerate(contracts(model, EXPAND))]
    for layer, (module, index) in enumerate(zip(contracts(model), kept.layers, strict=True)):
        hooks += [module.register_forward_pre_hook(mask(index)), module.register_forward_hook(add(layer))]
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
