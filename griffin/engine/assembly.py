"""Assembly: everything an engine needs to run sequences. A rebuild makes all of it again, except the weights."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from griffin.decode.decoder import Decoder
from griffin.decode.steps import Parts, StepName, make_decoder
from griffin.engine.pass_limit import PassLimit
from griffin.engine.prefill import Prefill
from griffin.engine.prefixes import PrefixStore
from griffin.engine.state import SequenceState
from griffin.engine.trees import Trees, lay_out
from griffin.errors import UnsupportedModel
from griffin.method.chooser import Chooser
from griffin.method.preparation import Preparation
from griffin.model.cache import KVCache
from griffin.model.families import feed_forwards
from griffin.model.forward import head, with_own_logits
from griffin.model.placement import make_current
from griffin.request import Pruning, Sampling

logger = logging.getLogger("griffin")

# Largest allowed difference between a step and the model's own forward pass, relative to the largest logit. Rounding
# stays far below it; a different computation is far above it.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


@dataclass(frozen=True, slots=True, eq=False)
class Assembly:
    """The module trees of one engine, the state of its sequence, and the parts that read prompts.

    threads: torch's number of threads at creation.
    """

    trees: Trees
    state: SequenceState
    prefill: Prefill
    make_decoder: Callable[[StepName, KVCache], Decoder]
    threads: int = field(default_factory=torch.get_num_threads)

    def begin(self, *prunings: Pruning) -> None:
        """Forget the sequence. The next one runs in this thread and may be pruned in any of these ways."""
        make_current(self.trees.device)
        if self.trees.device.type == "cpu":
            # A thread that uses torch for the first time may take a number of threads that another thread set briefly.
            torch.set_num_threads(self.threads)
        self.state.reset(*prunings)

    def verify(self, ids: Sequence[int]) -> None:
        """Compare the decoder's step with the model's own forward pass, and decode with the latter if they differ.

        A configuration may contain something that our steps do not know. Answers must be right even then, if slower. A
        step's passes are compared with the step, because a device may round several tokens differently from one.

        Args:
            ids: a few tokens to continue from.

        Raises:
            UnsupportedModel: the model computes logits from its hidden states in an unknown way. Then neither a step
                nor the logits of a prompt would be right.
        """
        decoder, model, cache, device = self.state.decoder, self.trees.full, self.state.cache, self.trees.device
        self.begin()
        hidden_TD, own_TV = with_own_logits(model, torch.tensor(ids, device=device), cache)
        read_V = head(model, hidden_TD[-1:])[0]
        if _error(read_V, own_TV[-1]) > TOLERANCES[model.dtype]:
            raise UnsupportedModel(f"this '{model.config.model_type}' model computes its logits in an unknown way")
        if decoder.own_pass:
            return
        decoder.keep(None)
        next_id = decoder.begin(read_V, Sampling(temperature=0), ids, ())().id
        decoder.advance()()
        found_V = decoder.logits().clone()
        self.state.rewind(len(ids))
        passed_V = found_V if decoder.passes is None else decoder.passes.read((next_id, next_id))[0].clone()
        self.state.rewind(len(ids))
        _, expected_TV = with_own_logits(model, torch.tensor([next_id], device=device), cache)
        error = max(_error(found_V, expected_TV[-1]), _error(passed_V, expected_TV[-1]))
        if error > TOLERANCES[model.dtype]:
            logger.warning(
                "the %s step differs from the model's own code by %.2g of the largest logit; using the model's code",
                decoder.name,
                error,
            )
            self.state.decoder = self.make_decoder("twin", cache)
        elif not torch.equal(passed_V, found_V):
            logger.warning(
                "passes of the %s step round differently from its steps on this device; drafts may change an answer "
                "where two tokens are nearly equally likely",
                decoder.name,
            )


def _error(found_V: Tensor, expected_V: Tensor) -> float:
    """The largest difference of logits, relative to the largest logit."""
    return float((found_V.float() - expected_V.float()).abs().max() / expected_V.float().abs().max())


def assemble(
    origin: PreTrainedModel,
    prefixes: PrefixStore,
    limit: PassLimit,
    preparation: Preparation,
    *,
    context_length: int,
    step: StepName,
) -> Assembly:
    """
    Args:
        origin: the model, shared by several engines.
        prefixes: shared by them too; its chunk size is that of the prompt phase.
        limit: shared by them too.
        step: auto takes the fastest one.

    Raises:
        UnsupportedModel: see ``families.feed_forwards``.
        ValueError: the step cannot run here.
    """
    make_current(origin.device)
    trees = lay_out(origin)

    def decoder(name: StepName, cache: KVCache) -> Decoder:
        return make_decoder(name, Parts(trees.full, trees.weights, trees.twin, cache, context_length))

    # Streaming moves weights in and out of the full tree, but never out of the origin's.
    chooser = Chooser(feed_forwards(origin), origin.device, preparation.tables)
    state = SequenceState(trees, chooser, lambda cache: decoder(step, cache))
    return Assembly(trees, state, Prefill(trees, state, prefixes, limit), decoder)
