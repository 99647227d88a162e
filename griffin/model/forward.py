"""A model's own forward pass, and a second tree of modules over the same weights.

Shapes: T tokens, C positions, D model width.
"""

import copy
from itertools import chain

import torch
from torch import Tensor
from transformers import PreTrainedModel

from griffin.model.cache import KVCache
from griffin.model.families import logit_cap


def share(model: PreTrainedModel) -> PreTrainedModel:
    """A second module tree over the same parameters and buffers; costs no weights."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})


@torch.inference_mode()
def extend(model: PreTrainedModel, ids_T: Tensor, cache: KVCache) -> Tensor:
    """Run tokens, for what they leave in the cache (and in hooks); their last hidden states ``(T, D)``."""
    output = model.base_model(input_ids=ids_T[None], past_key_values=cache.cache, use_cache=True)
    hidden_TD: Tensor = output.last_hidden_state[0]
    return hidden_TD


@torch.inference_mode()
def logits(model: PreTrainedModel, ids_T: Tensor, cache: KVCache, wanted: int = 1) -> Tensor:
    """Run tokens; the logits of the last ``wanted`` of them, ``(wanted, vocabulary)``."""
    # Not through the model's own head: of a slice of a batch, torch makes a product that copies the whole weight.
    return head(model, extend(model, ids_T, cache)[-wanted:])


def head(model: PreTrainedModel, hidden_CD: Tensor) -> Tensor:
    """The logits ``(C, vocabulary)`` of last hidden states."""
    logits_CV: Tensor = model.get_output_embeddings()(hidden_CD)
    cap = logit_cap(model.config)
    return logits_CV if cap is None else cap * torch.tanh(logits_CV / cap)
