"""A study of a tiny model that reads words: made-up WikiText and made-up books, in its own 128 tokens."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from griffin.experiments.common.study import Study
from griffin.model.loading import Checkpoint
from tests.tiny import tiny_model

BOS = 1
FIRST_WORD = 3
VOCABULARY = ["<pad>", "<s>", "</s>", *(f"w{id}" for id in range(FIRST_WORD, 128))]


def word_tokenizer(bos: bool = True) -> PreTrainedTokenizerBase:
    """The word ``w17`` is token 17. It knows a BOS token, and puts it before each text only with ``bos``."""
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(VOCABULARY)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<pad>"
    )


def random_ids(seed: int, length: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(FIRST_WORD, 128, (length,), generator=generator).tolist()


def write_texts(folder: Path, *texts: list[int]) -> Path:
    """A directory of data whose WikiText and books are these documents."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"title": "", "text": "".join(f" w{id}" for id in ids)}) + "\n" for ids in texts]
    for name in ("wikitext2_raw_test", "books"):
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def word_study(
    folder: Path,
    *texts: list[int],
    model: PreTrainedModel | None = None,
    bos: bool = True,
) -> Study:
    checkpoint = Checkpoint("tiny", model or tiny_model("llama"), word_tokenizer(bos))
    return Study(checkpoint, write_texts(folder / "data", *texts), folder / "tiny")
