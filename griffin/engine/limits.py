"""The limits of a model: its token ids, and the length of its context."""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from griffin.errors import ContextLengthExceeded, InvalidRequest
from griffin.request import Sampling, Scoring


@dataclass(frozen=True, slots=True)
class Limits:
    """
    vocabulary_size: all token ids are below it.
    context_length: most tokens of prompt and answer together.
    """

    vocabulary_size: int
    context_length: int

    def check(self, prompt_ids: Sequence[int], sampling: Sampling | None, scoring: Scoring | None) -> None:
        """See ``Engine.check``."""
        if not prompt_ids:
            raise InvalidRequest("the prompt has no tokens; give at least one", "prompt")
        lowest, highest = min(prompt_ids), max(prompt_ids)
        self._check_id(lowest if lowest < 0 else highest, "", "prompt")
        if scoring and scoring.prompt_tokens is not None and not 1 <= scoring.prompt_tokens <= len(prompt_ids):
            raise InvalidRequest(
                f"griffin.prompt_tokens: {scoring.prompt_tokens} is not from 1 to {len(prompt_ids)} (the prompt)",
                "griffin.prompt_tokens",
            )
        if sampling:
            self._check_id(max(sampling.logit_bias, default=0), "logit_bias: ", "logit_bias")
            self._check_id(max(sampling.stop_token_ids, default=0), "stop_token_ids: ", "stop_token_ids")
        self._check_room(len(prompt_ids), sampling.max_tokens if sampling else 0)

    def _check_id(self, id: int, where: str, param: str) -> None:
        if not 0 <= id < self.vocabulary_size:
            raise InvalidRequest(
                f"{where}token id {reprlib.repr(id)} is out of range; this model has ids 0 to "
                f"{self.vocabulary_size - 1}",
                param,
            )

    def _check_room(self, prompt_tokens: int, max_tokens: int) -> None:
        room = self.context_length - prompt_tokens
        if room < min(1, max_tokens):
            raise ContextLengthExceeded(
                f"this model's context is {self.context_length} tokens and the prompt has {prompt_tokens}, "
                "which leaves no room for an answer; shorten the prompt",
                "prompt",
            )
        if max_tokens > room:
            raise ContextLengthExceeded(
                f"this model's context is {self.context_length} tokens: {prompt_tokens} of the prompt and "
                f"max_tokens={reprlib.repr(max_tokens)} do not fit; ask for at most {room}",
                "max_tokens",
            )


def model_context_length(model: PreTrainedModel, limit: int | None = None) -> int:
    """The most tokens that a model can attend to, or ``limit`` if it is lower.

    Model cards describe YaRN as a factor beside an unchanged ``max_position_embeddings``: the context is then the
    original length times the factor (as in vLLM). Linear scaling is written in both ways, so the configured length
    applies unless ``limit`` asks for more, up to the factor.
    """
    config = model.config
    own = most = int(config.max_position_embeddings)
    rope = getattr(config, "rope_parameters", None) or {}
    kind, factor = rope.get("rope_type"), float(rope.get("factor") or 1.0)
    if kind == "longrope":
        # A longer sequence would need all earlier keys rotated again, which a cache cannot do.
        own = most = min(own, int(rope["original_max_position_embeddings"]))
    elif kind == "yarn":
        own = most = max(own, int(float(rope.get("original_max_position_embeddings") or own) * factor))
    elif kind == "linear":
        most = max(own, int(own * factor))
    return own if limit is None else min(limit, most)
