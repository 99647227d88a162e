"""The tokens that end a generation: every id that one of the model's files calls an end."""

from collections.abc import Iterable

from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Control tokens that end a turn or a text, in models that have them. A GGUF file names one of them as its end and marks
# the others only as control tokens; llama.cpp has the same list.
KNOWN_ENDS = frozenset({
    "</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>",
    "<end_of_turn>", "<turn|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<end_of_utterance>", "<|return|>", "<|call|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>", "<|fim_pad|>", "<|file_sep|>", "<|repo_name|>",
})  # fmt: skip


def configured_ends(model: PreTrainedModel) -> frozenset[int]:
    """Ids that a model's generation_config or config calls ends."""
    found: set[int] = set()
    for config in (model.generation_config, model.config):
        found |= token_ids(getattr(config, "eos_token_id", None))
    return frozenset(found)


def tokenizer_ends(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The id that a tokenizer calls the end of a text, if it has one."""
    return frozenset(token_ids(tokenizer.eos_token_id))


def settle_ends(model: PreTrainedModel, *others: Iterable[int]) -> None:
    """Write all ends into the model's generation_config: its own, those of the config, and these."""
    ends = configured_ends(model).union(*others)
    if model.generation_config is not None and ends:
        model.generation_config.eos_token_id = sorted(ends)


def token_ids(value: object) -> set[int]:
    """The ids in a configuration's entry: one, several, or none."""
    listed = value if isinstance(value, list | tuple) else [value]
    return {id for id in listed if isinstance(id, int) and id >= 0}
