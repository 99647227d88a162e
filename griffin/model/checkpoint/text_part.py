"""The text part of a multimodal checkpoint: its configuration, the names of its weights, and what is left out.

The model around it is never built. What is loaded is a model of the text part's own type.
"""

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from griffin.model.families import TextPart, text_part

logger = logging.getLogger("griffin")

# From names in the checkpoint to names in the text model, as ``from_pretrained`` takes them. The inner model is called
# language_model.model, or model.language_model since transformers 4.52.
RENAMED = {
    r"^language_model\.lm_head": "lm_head",
    r"^(model\.)?language_model\.(model\.)?": "model.",
}


def served_config(place: Path) -> tuple[PreTrainedConfig, TextPart | None]:
    """The configuration of what is served of a checkpoint; and which part of it that is, or None for all.

    Args:
        place: a folder with a ``config.json``, or that file.
    """
    whole = AutoConfig.from_pretrained(place)
    part = text_part({"model_type": whole.model_type})
    if part is None:
        return whole, None
    config: PreTrainedConfig = whole.text_config
    # The model around it decides whether the head is the embedding.
    config.tie_word_embeddings = whole.tie_word_embeddings
    return config, part


def without_left_out(part: TextPart, names: Iterable[str], source: str) -> list[str]:
    """Those of a checkpoint's tensors that do not belong to what is left out; logs what is.

    Args:
        names: of tensors that no parameter takes.
        source: as the user named the checkpoint.
    """
    pattern = re.compile(rf"(model\.)?({'|'.join(part.left_out)})\.")
    names = list(names)
    others = [name for name in names if not pattern.match(name)]
    if count := len(names) - len(others):
        logger.info(
            "%s: only its text part is served; %d tensors of %s are left out",
            source,
            count,
            " and ".join(part.left_out),
        )
    return others
