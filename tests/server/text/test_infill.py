"""The ids that ask for the text in a gap, with a tiny tokenizer of each family."""

from collections.abc import Sequence

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from server.text.infill import FORMS, Gap, Infill

# SentencePiece's sign for a space.
SPACE = "\u2581"
BEGIN = "<s>"
GAP = Gap("def f(x):\n    return ", "\n\nprint(f(1))\n")

QWEN = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
STARCODER = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
SANTACODER = ("<fim-prefix>", "<fim-suffix>", "<fim-middle>")
DEEPSEEK = ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>")
CODE_LLAMA = (f"{SPACE}<PRE>", f"{SPACE}<SUF>", f"{SPACE}<MID>")
CODESTRAL = ("[PREFIX]", "[SUFFIX]")


def by_bytes(*added: str, special: bool = True) -> PreTrainedTokenizerFast:
    """A token for each byte, and the added ones. Qwen's files call the marks not special, which ``special`` does."""
    backend = Tokenizer(BPE({text: id for id, text in enumerate(bytes_to_unicode().values())}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|endoftext|>", normalized=False)])
    marks = [AddedToken(text, normalized=False) for text in added]
    backend.add_special_tokens(marks) if special else backend.add_tokens(marks)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def by_pieces(*added: str) -> PreTrainedTokenizerFast:
    """Like Llama 2's: a space before every text, bytes for unknown characters, and a token at the beginning."""
    pieces = [BEGIN, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), SPACE, *map(chr, range(33, 127))]
    backend = Tokenizer(
        BPE({piece: id for id, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, 0)])
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in (BEGIN, *added)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BEGIN)


def spelled(tokenizer: PreTrainedTokenizerFast, gap: Gap, add_special_tokens: bool = True) -> str:
    """The text of the ids for a gap, with spaces and special tokens."""
    infill = Infill.of(tokenizer)
    assert infill is not None
    return str(tokenizer.decode(infill.encode(gap, add_special_tokens), skip_special_tokens=False))


@pytest.mark.parametrize("marks", [QWEN, STARCODER, SANTACODER, DEEPSEEK], ids=lambda marks: str(marks[0]))
def test_before_and_after_stand_between_marks(marks: Sequence[str]) -> None:
    """The order is: text before, text after, mark. The answer follows the last mark."""
    prefix, suffix, middle = marks

    assert spelled(by_bytes(*marks), GAP) == f"{prefix}{GAP.before}{suffix}{GAP.after}{middle}"


def test_code_llama_puts_no_space_before_the_text_after() -> None:
    """The tokenizer puts a space before the first text, but not before the second."""
    text = spelled(by_pieces(*CODE_LLAMA), GAP).replace(SPACE, " ")

    assert text == f"{BEGIN} <PRE> {GAP.before} <SUF>{GAP.after} <MID>"


def test_codestral_has_the_text_before_last() -> None:
    """The answer follows the text before the gap, without a mark between."""
    assert spelled(by_pieces(*CODESTRAL), GAP) == f"{BEGIN}[SUFFIX]{GAP.after}[PREFIX] {GAP.before}"


def test_the_begin_token_is_left_out_where_asked() -> None:
    """``add_special_tokens`` false leaves it out."""
    assert spelled(by_pieces(*CODESTRAL), GAP, add_special_tokens=False).startswith("[SUFFIX]")


@pytest.mark.parametrize("gap", [Gap("", "b"), Gap("a", " "), Gap("\n", "\n")])
def test_texts_may_be_short(gap: Gap) -> None:
    """At the beginning of a file the text before the gap is empty."""
    prefix, suffix, middle = QWEN

    assert spelled(by_bytes(*QWEN), gap) == f"{prefix}{gap.before}{suffix}{gap.after}{middle}"


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("text", ["x = '<|fim_middle|>'", "<|fim_prefix|><|fim_suffix|>", "<<|endoftext|>|>"])
def test_marks_in_the_texts_stay_text(text: str, special: bool) -> None:
    """A source file may contain the text of special tokens: it becomes no such token, and no character is lost."""
    tokenizer = by_bytes(*QWEN, special=special)
    infill = Infill.of(tokenizer)
    assert infill is not None
    ids = infill.encode(Gap(text, text), True)

    assert sum(id >= 256 for id in ids) == 3
    assert tokenizer.decode(ids, skip_special_tokens=False) == f"{QWEN[0]}{text}{QWEN[1]}{text}{QWEN[2]}"


def test_marks_in_the_texts_of_code_llama_get_no_spaces() -> None:
    """The text is cut at marks; the tokenizer must not put a space before each part."""
    after = f"a{SPACE}<MID>b</s>"
    ids = Infill.of(tokenizer := by_pieces(*CODE_LLAMA, "</s>")).encode(Gap("", after), True)  # type: ignore[union-attr]

    assert (
        tokenizer.decode(ids, skip_special_tokens=False).replace(SPACE, " ") == f"{BEGIN} <PRE> <SUF>a <MID>b</s> <MID>"
    )
    assert len([id for id in ids if id >= len(tokenizer) - 4]) == 3


@pytest.mark.parametrize(
    ("tokenizer", "ends"),
    [
        (by_bytes(*QWEN, "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
         {"<|endoftext|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", *QWEN}),
        (by_bytes(*STARCODER, "<file_sep>", "<|im_end|>"), {"<|endoftext|>", "<file_sep>", *STARCODER}),
        (by_pieces(*CODE_LLAMA, f"{SPACE}<EOT>"), {f"{SPACE}<EOT>", *CODE_LLAMA}),
        (by_bytes(*DEEPSEEK, "<|EOT|>"), {"<|EOT|>", *DEEPSEEK}),
    ],
)  # fmt: skip
def test_answers_end_at_the_familys_tokens(tokenizer: PreTrainedTokenizerFast, ends: set[str]) -> None:
    """They also end at a mark, because text after a mark is not in the gap."""
    infill = Infill.of(tokenizer)
    assert infill is not None

    assert infill.ends == {tokenizer.convert_tokens_to_ids(end) for end in ends}


def test_a_file_may_name_its_own_marks() -> None:
    """They win over those of a family that the tokenizer also has."""
    named = dict(zip(("fim_prefix_token", "fim_suffix_token", "fim_middle_token"), ["<A>", "<B>", "<C>"], strict=True))
    backend = by_bytes(*QWEN, *named.values()).backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, extra_special_tokens=named)

    assert spelled(tokenizer, Gap("a", "b")) == "<A>a<B>b<C>"


def test_without_all_marks_there_is_no_infill() -> None:
    """A tokenizer needs all three marks."""
    assert Infill.of(by_bytes()) is None
    assert Infill.of(by_bytes(*QWEN[:2])) is None
    assert len({form.prefix for form in FORMS}) == len(FORMS)
