"""A model and its tokenizer from a directory of safetensors or .bin files."""

from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from griffin.model.checkpoint.mapped import mapped_model
from griffin.model.checkpoint.pretrained import from_pretrained
from griffin.model.checkpoint.refusals import require_readable
from griffin.model.checkpoint.whole import require_plain_numbers, require_rows, weight_files
from griffin.model.guard import whole_while_read


def read(
    folder: Path, source: str, dtype: torch.dtype, map_from: Path | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read a checkpoint's model and tokenizer.

    Args:
        source: the checkpoint's name for the user.
        map_from: a folder for the file from which FF weights are mapped; None: they are in memory.

    Raises:
        LoadError: the model is incomplete, or changes while it is read.
    """
    require_readable(folder, source)
    with whole_while_read(source, weight_files(folder)):
        require_plain_numbers(folder, source)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        model = mapped_model(folder, dtype, map_from, source) if map_from else from_pretrained(folder, source, dtype)
        require_rows(model, tokenizer, source)
    return model, tokenizer
