"""A model read by transformers, after a check that all its weights come from the checkpoint."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from griffin.model.checkpoint.quiet import quiet
from griffin.model.checkpoint.text_part import RENAMED, served_config, without_left_out
from griffin.model.checkpoint.whole import require_whole


def from_pretrained(folder: Path, source: str, dtype: torch.dtype, **options: Any) -> PreTrainedModel:
    """A model whose weights all come from its checkpoint.

    Raises:
        LoadError: some weights do not; names the first few.
    """
    config, part = served_config(folder)
    with quiet():
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            key_mapping=RENAMED if part else None,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    if part:
        report["unexpected_keys"] = without_left_out(part, report["unexpected_keys"], source)
    require_whole(report, source)
    assert isinstance(model, PreTrainedModel)
    return model
