"""The text part of a multimodal checkpoint: its configuration, its weights' names, and what is left out.

The surrounding model is never built. A model of the text part's own type is loaded.
"""

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from griffin.model.families import TextPart, text_part

logger = logging.getLogger("griffin")

# From names in the checkpoint to names in the text model, in the form for ``from_pretrained``. The inner model is
# called language_model.model, or model.language_model since transformers 4.52.
RENAMED = {
    r"^language_model\.lm_head": "lm_head",
    r"^(model\.)?language_model\.(model\.)?": "model.",
}


def served_config(place: Path) -> tuple[PreTrainedConfig, TextPart | None]:
    """The configuration of the part that is served, and which part it is; None means the whole checkpoint.

    Args:
        place: a folder with a ``config.json``, or that file.
    """
    whole = AutoConfig.from_pretrained(place)
    part = text_part({"model_type": whole.model_type})
    if part is None:
        return whole, None
    config: PreTrainedConfig = whole.text_config
    # The surrounding model decides whether the head equals the embedding.
    config.tie_word_embeddings = whole.tie_word_embeddings
    return config, part


def without_left_out(part: TextPart, names: Iterable[str], source: str) -> list[str]:
    """The tensors that do not belong to a left-out part; logs what is left out.

    Args:
        names: tensors that no parameter takes.
        source: the checkpoint's name for the user.
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
