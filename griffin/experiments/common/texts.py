"""Texts: token sequences from WikiText or from books (PG-19), for measurements on plain text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from transformers import PreTrainedTokenizerBase

from griffin.errors import GriffinError
from griffin.experiments.common.samples import FILES, Corpus, read_samples
from griffin.experiments.common.study import Study

CORPORA: tuple[Corpus, ...] = get_args(Corpus)
# Two books are enough, because each is longer than any model's context.
HUB_BOOKS = 2


@dataclass(frozen=True, slots=True)
class Text:
    """One corpus as tokens.

    corpus: its name.
    ids: the whole corpus, without special tokens.
    start: the tokens that the tokenizer puts before any text: the BOS token, or none.
    """

    corpus: str
    ids: list[int]
    start: list[int]

    def windows(self, length: int, count: int, length_flag: str, count_flag: str) -> list[list[int]]:
        """Parts of equal length that do not overlap, spread evenly from the beginning to the end.

        Raises:
            ValueError: the text is too short; names the flag and its largest possible value.
        """
        total = len(self.ids)
        if length > total:
            raise ValueError(f"{length_flag}: {length} tokens of '{self.corpus}', which has only {total}")
        if count * length > total:
            raise ValueError(
                f"{count_flag}: {count} times {length} tokens of '{self.corpus}', which has only {total}; "
                f"the most is {total // length}"
            )
        return evenly(self.ids, length, count)

    def begun(self, window: Sequence[int]) -> list[int]:
        """The window with its first tokens replaced by ``start``, as a model expects a text. The length is the same."""
        return [*self.start, *window[len(self.start) :]]


def evenly(ids: Sequence[int], length: int, count: int) -> list[list[int]]:
    """Parts of equal length, spread evenly from the beginning to the end. There must be enough tokens."""
    starts = [(len(ids) - length) * number // max(1, count - 1) for number in range(count)]
    return [list(ids[first : first + length]) for first in starts]


def read_text(study: Study, corpus: Corpus) -> Text:
    """A corpus as tokens.

    Raises:
        GriffinError: it cannot be read, or the hub does not give it.
    """
    whole = "".join(_documents(study.data, corpus))
    return Text(corpus, tokens_of(study.tokenizer, whole), start_of(study.tokenizer))


def read_own_text(study: Study, file: Path) -> Text:
    """A user's text file as tokens.

    Raises:
        GriffinError: it cannot be read, or is not UTF-8.
    """
    try:
        whole = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GriffinError(f"--text: cannot read '{file}': {error}") from error
    return Text(file.name, tokens_of(study.tokenizer, whole), start_of(study.tokenizer))


def sequences(study: Study, corpus: Corpus, length: int, count: int = 1, count_flag: str = "") -> list[list[int]]:
    """Sequences as a user would give them to the model: of ``length`` tokens, with the BOS token if there is one.

    Args:
        length: the value of ``--tokens``.
        count_flag: the flag that ``count`` comes from.

    Raises:
        GriffinError: as ``read_text``.
        ValueError: the length exceeds the model's context or the text; names the flag and its largest possible value.
    """
    if length > study.context_length:
        raise ValueError(f"--tokens: {length} is more than the context of this model, {study.context_length}")
    text = read_text(study, corpus)
    windows = text.windows(length - len(text.start), count, "--tokens", count_flag)
    return [[*text.start, *window] for window in windows]


def tokens_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text, without special tokens."""
    # verbose would warn that the text is longer than the model's context.
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids


def start_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that this tokenizer puts before any text. Chat models often know a BOS token but do not use it."""
    first: int = tokenizer("a").input_ids[0]
    return [first] if first == tokenizer.bos_token_id else []


def _documents(data: Path | None, corpus: Corpus) -> list[str]:
    documents = _from_hub(corpus) if data is None else [sample["text"] for sample in read_samples(data, corpus)]
    # The same line breaks that Python gives when it reads a file.
    return [document.replace("\r\n", "\n") for document in documents]


def _wikitext(load_dataset: Callable[..., Any]) -> list[str]:
    return list(load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split="test")["text"])


def _books(load_dataset: Callable[..., Any]) -> list[str]:
    books = load_dataset("emozilla/pg19-test", split="test", streaming=True)
    return [book["text"] for book in islice(books, HUB_BOOKS)]


ON_THE_HUB: dict[Corpus, Callable[[Callable[..., Any]], list[str]]] = {"wikitext": _wikitext, "books": _books}


def _from_hub(corpus: Corpus) -> list[str]:
    instead = f"; or give --data a directory with {FILES[corpus]}.jsonl"
    try:
        from datasets import load_dataset  # type: ignore[import-untyped]
    except ImportError:
        raise GriffinError(f"texts from the hub need datasets; run: pip install datasets{instead}") from None
    try:
        return ON_THE_HUB[corpus](load_dataset)
    except Exception as error:
        # Any error can come, from a missing connection to a moved data set. Its first line is enough for a user.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise GriffinError(f"cannot get '{corpus}' from the hub: {reason[0]}{instead}") from error
