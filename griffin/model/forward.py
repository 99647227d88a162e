"""A model's own forward pass, and a second tree of modules over the same weights.

Shapes: T tokens, C positions, D model width.
"""

import copy
from itertools import chain

import torch
from torch import Tensor
from transformers import PreTrainedModel

from griffin.model.cache import KVCache
from griffin.model.families import family_of, logit_cap, logit_divisor


def share(model: PreTrainedModel) -> PreTrainedModel:
    """A second module tree over the same parameters and buffers; it needs no memory for weights."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})


@torch.inference_mode()
def extend(model: PreTrainedModel, ids_T: Tensor, cache: KVCache) -> Tensor:
    """Run tokens, which fills the cache and calls hooks. Returns their last hidden states ``(T, D)``."""
    output = model.base_model(input_ids=ids_T[None], past_key_values=cache.cache, use_cache=True)
    hidden_TD: Tensor = output.last_hidden_state[0]
    return hidden_TD


@torch.inference_mode()
def logits(model: PreTrainedModel, ids_T: Tensor, cache: KVCache, wanted: int = 1) -> Tensor:
    """Run tokens. Returns the logits of the last ``wanted`` ones, ``(wanted, vocabulary)``."""
    # Not with the model's own head: torch would copy the whole weight to multiply it with a slice of a batch.
    return head(model, extend(model, ids_T, cache)[-wanted:])


@torch.inference_mode()
def with_own_logits(model: PreTrainedModel, ids_T: Tensor, cache: KVCache) -> tuple[Tensor, Tensor]:
    """Run tokens with the model's own code only: last hidden states ``(T, D)``, logits ``(T, vocabulary)``.

    For checks: it computes the logits of every token, and is slower than ``logits``.
    """
    output = model(input_ids=ids_T[None], past_key_values=cache.cache, use_cache=True, output_hidden_states=True)
    return output.hidden_states[-1][0], output.logits[0]


def head(model: PreTrainedModel, hidden_CD: Tensor) -> Tensor:
    """The logits ``(C, vocabulary)`` of last hidden states."""
    family = family_of(model.config)
    logits_CV: Tensor = model.get_output_embeddings()(hidden_CD)
    if (divisor := logit_divisor(family, model.config)) != 1:
        logits_CV = logits_CV / divisor
    cap = logit_cap(family, model.config)
    return logits_CV if cap is None else cap * torch.tanh(logits_CV / cap)
