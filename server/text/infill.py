"""Fill in the middle: the marks that a model was trained with, and the token ids that ask for the text in between.

Sources of the table: the model cards of Qwen2.5-Coder, CodeGemma, StarCoder2, SantaCoder and DeepSeek-Coder; the code
published with Code Llama; mistral-common.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from server.text.tokenizer import Tokenizer, encode

# SentencePiece's sign for a space, which some tokenizers put before each text.
SPACE = "\u2581"
# A text that is never part of a longer token in such a vocabulary: the text after it gets no extra space.
APART = "\u263a"
# Attributes of tokenizers whose file names the marks, as GGUF files do.
OWN_MARKS = ("fim_prefix_token", "fim_suffix_token", "fim_middle_token")


@dataclass(frozen=True, slots=True)
class Gap:
    """Two texts with a gap between them that the model fills."""

    before: str
    after: str


class Form(NamedTuple):
    """One family's marks.

    middle: the mark before the answer; None if the text before the gap comes last, so that the answer continues it.
    ends: tokens that end an answer, besides the model's own ends and the marks.
    """

    prefix: str
    suffix: str
    middle: str | None
    ends: tuple[str, ...] = ()


_QWEN_ENDS = ("<|endoftext|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>")
_STARCODER_ENDS = ("<|endoftext|>", "<fim_pad>", "<repo_name>", "<reponame>", "<file_sep>", "<filename>")
FORMS = (
    # Qwen-Coder, CodeGemma
    Form("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", _QWEN_ENDS),
    # StarCoder, StarCoder2, Granite code
    Form("<fim_prefix>", "<fim_suffix>", "<fim_middle>", _STARCODER_ENDS),
    # SantaCoder
    Form("<fim-prefix>", "<fim-suffix>", "<fim-middle>", ("<|endoftext|>", "<fim-pad>")),
    # DeepSeek-Coder
    Form("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>", ("<|EOT|>",)),
    # Code Llama
    Form("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>", ("\u2581<EOT>",)),
    # Codestral
    Form("[PREFIX]", "[SUFFIX]", None),
)


class Infill:
    """How to ask a model for the text in a gap. ``ends``: ids that end the answer, besides the model's own."""

    def __init__(self, tokenizer: Tokenizer, form: Form, ids: dict[str, int]) -> None:
        """
        Args:
            ids: id of each token in the vocabulary.
        """
        self._tokenizer, self._form, self._ids = tokenizer, form, ids
        marks = [mark for mark in form[:3] if mark is not None]
        names = {*marks, *form.ends} & ids.keys()
        self.ends = frozenset(ids[name] for name in names)
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        special = {str(token) for token in added if token.special} | names
        # Positions at which a special token's text begins, overlapping ones included.
        self._spelled = re.compile(f"(?={'|'.join(map(re.escape, sorted(special)))})")
        first = tokenizer.convert_ids_to_tokens(encode(tokenizer, "a", False)[:1])
        self._apart = encode(tokenizer, APART, False) if first[0].startswith(SPACE) else []

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Infill | None":
        """By the marks that the tokenizer names, else by the first family whose marks it has; None if it has none."""
        ids: dict[str, int] = getattr(tokenizer, "get_vocab", dict)()
        form = next((form for form in _forms(tokenizer) if {*form[:3]} - {None} <= ids.keys()), None)
        return cls(tokenizer, form, ids) if form else None

    def encode(self, gap: Gap, add_special_tokens: bool) -> list[int]:
        """The ids that ask for the text in a gap. Special tokens spelled out in the two texts stay plain text.

        Args:
            add_special_tokens: begin with the tokens that the tokenizer puts before texts.
        """
        form, ids = self._form, self._ids
        before, after = self._plain(gap.before), self._plain(gap.after, goes_on=True)
        begin = encode(self._tokenizer, "", add_special_tokens)
        if form.middle is None:
            return [*begin, ids[form.suffix], *after, ids[form.prefix], *before]
        return [*begin, ids[form.prefix], *before, ids[form.suffix], *after, ids[form.middle]]

    def _plain(self, text: str, *, goes_on: bool = False) -> list[int]:
        """A text's ids without special tokens: the text is split inside each special token's spelling.

        Args:
            goes_on: leave out the space that the tokenizer would put before the text.
        """
        cuts = [0, *(match.start() + 1 for match in self._spelled.finditer(text)), len(text)]
        ids: list[int] = []
        for start, end in pairwise(cuts):
            piece = text[start:end]
            ids += self._going_on(piece) if goes_on or start else encode(self._tokenizer, piece, False)
        return ids

    def _going_on(self, text: str) -> list[int]:
        known = self._apart
        ids = encode(self._tokenizer, APART + text, False) if known else []
        return ids[len(known) :] if ids and ids[: len(known)] == known else encode(self._tokenizer, text, False)


def _forms(tokenizer: Tokenizer) -> Iterator[Form]:
    own: Sequence[str | None] = [getattr(tokenizer, name, None) for name in OWN_MARKS]
    if own[0] and own[1] and own[2]:
        known = [end for form in FORMS for end in form.ends]
        yield Form(own[0], own[1], own[2], tuple(known))
    yield from FORMS
