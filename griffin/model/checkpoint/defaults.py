"""How a model's maker recommends to draw tokens: the sampling values of generation_config.json."""

import logging
import math
from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig

from griffin.request import Sampling

logger = logging.getLogger("griffin")

# Names in the file, and the matching names of ``Sampling``.
NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
WHOLE_NUMBERS = ("top_k", "max_tokens")
# A number that means no limit here, and that every part of the library can handle.
MOST = 2**31 - 1
# Names in the file that change what transformers generates, but are not applied here. Each has the values that change
# nothing. do_sample is not read, as in vLLM: only a temperature of 0 is greedy.
NOT_APPLIED: dict[str, tuple[Any, ...]] = {
    "typical_p": (1,),
    "top_h": (),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ({}, []),
    "exponential_decay_length_penalty": (),
    "forced_eos_token_id": (),
    "forced_bos_token_id": (),
    "guidance_scale": (1,),
    "watermarking_config": (),
    "num_beams": (1,),
    "penalty_alpha": (0,),
}


def sampling_defaults(config: GenerationConfig | None) -> Mapping[str, float]:
    """The values in a generation config that ``Sampling`` has, by their names there.

    A value that ``Sampling`` would refuse is left out, with a warning.
    """
    found: dict[str, float] = {}
    if config is None:
        return found
    for theirs, name in NAMES.items():
        if (value := getattr(config, theirs, None)) is None:
            continue
        if (usable := _usable(name, value)) is None:
            logger.warning("generation_config.json: %s cannot be %r; it is left out", theirs, value)
        else:
            found[name] = usable
    if others := [name for name, nothing in NOT_APPLIED.items() if getattr(config, name, None) not in (None, *nothing)]:
        logger.warning("generation_config.json: %s would change answers elsewhere, not here", ", ".join(others))
    return found


def _usable(name: str, value: object) -> float | None:
    """The value as ``Sampling`` takes it; None if ``Sampling`` would refuse it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not math.isfinite(value) or (name in WHOLE_NUMBERS and value != int(value)):
        return None
    if name in WHOLE_NUMBERS:
        # As in a request, a top_k of -1 keeps all tokens.
        value = 0 if name == "top_k" and value == -1 else min(int(value), MOST)
    try:
        Sampling(**{name: value})  # type: ignore[arg-type]
    except ValueError:
        return None
    return value
