"""A GGUF file's tokenizer: how it splits text before merges, and at which ids a generation ends."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase

from griffin.errors import LoadError
from griffin.model.checkpoint.ends import KNOWN_ENDS
from griffin.model.checkpoint.gguf_file import GgufFile
from griffin.model.checkpoint.gguf_vocabulary import CONTROL, USER_DEFINED, library_tokenizer

# Keys whose ids the file calls ends. The last three end only a fill in the middle.
END_KEYS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")

# The expressions that split text, applied one after the other, for each value of tokenizer.ggml.pre.
# Source: llama.cpp, src/llama-vocab.cpp.
GPT2 = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",)
DIGITS = (r"\p{N}", *GPT2)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
QWEN2 = (LLAMA3[0].replace(r"\p{N}{1,3}", r"\p{N}"),)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    + CONTRACTION
    + r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    + CONTRACTION
    + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", *GPT2, r"[0-9][0-9][0-9]")
DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
SPLITS: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("gpt-2", "gpt2", "phi-2", "mpt", "olmo", "gigachat", "granite-docling", "exaone4"), GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), DIGITS),
    **dict.fromkeys(
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "dbrx", "smaug-bpe",
         "chatglm-bpe", "glm4"),
        LLAMA3,
    ),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "megrez", "stablelm2", "hunyuan"), QWEN2),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), GPT4O),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense"), DEEPSEEK3),
    "tekken": TEKKEN,
    "falcon": FALCON,
}  # fmt: skip


# With these values a piece that is a token stays whole. With all but the last, texts begin with the begin token.
WHOLE_PIECES = (
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken", "glm4",
)  # fmt: skip
BEGINNING = WHOLE_PIECES[:-1]
# SentencePiece's sign for a space.
SPACE = "\u2581"


def read_tokenizer(file: GgufFile) -> PreTrainedTokenizerBase:
    """The tokenizer of a file.

    Raises:
        LoadError: its kind is not supported; names the key.
    """
    kind = file.metadata.get("tokenizer.ggml.model")
    if kind in (None, "none", "no_vocab"):
        raise LoadError(f"{file.path.name} has no tokenizer (tokenizer.ggml.model is {kind})")
    pre = file.metadata.get("tokenizer.ggml.pre", "default")
    by_bytes = kind == "gpt2"
    if by_bytes and pre not in SPLITS and pre not in ("default", ""):
        raise LoadError(f"{file.path.name} splits text in an unknown way: its key tokenizer.ggml.pre is {pre}")
    tokenizer = library_tokenizer(file)
    if by_bytes and pre in SPLITS:
        _split_as(pre, tokenizer.backend_tokenizer)
    if pre in BEGINNING and file.metadata.get("tokenizer.ggml.add_bos_token") is None:
        _begin_with(tokenizer)
    if kind == "llama" and not file.architecture.startswith("gemma"):
        _space_first(tokenizer.backend_tokenizer, file.metadata.get("tokenizer.ggml.add_space_prefix") is not False)
    return tokenizer


def _split_as(pre: str, backend: Tokenizer) -> None:
    splits = [pre_tokenizers.Split(Regex(split), behavior="isolated") for split in SPLITS[pre]]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
    # A piece that is a token stays whole, whether or not merges lead there.
    backend.model.ignore_merges = pre in WHOLE_PIECES


def _begin_with(tokenizer: PreTrainedTokenizerBase) -> None:
    """Begin texts with the begin-of-sequence token if the file does not say whether they do."""
    if tokenizer.bos_token is None:
        return
    begin = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin}:1 $B:1", special_tokens=[(begin, tokenizer.bos_token_id)]
    )


def _space_first(backend: Tokenizer, prefixed: bool) -> None:
    """Put a space before a text and before text after a special token, or do not (llama.cpp)."""
    spaces = normalizers.Replace(" ", SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefixed else spaces
    backend.pre_tokenizer = None
    strip = [decoders.Strip(" ", 1, 0)] if prefixed else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )


def ends(file: GgufFile) -> frozenset[int]:
    """Ids that end a generation according to the file: by a key, or by the name of a control token."""
    found = {id for key in END_KEYS if isinstance(id := file.metadata.get(f"tokenizer.ggml.{key}_token_id"), int)}
    tokens = file.metadata.get("tokenizer.ggml.tokens") or []
    kinds = file.metadata.get("tokenizer.ggml.token_type") or []
    # Some files mark such tokens as user-defined, or do not mark any token.
    named = {
        id
        for id, (token, kind) in enumerate(zip_longest(tokens, kinds, fillvalue=CONTROL))
        if kind in (CONTROL, USER_DEFINED) and token in KNOWN_ENDS
    }
    names = {tokens[id] for id in named}
    if {"<|return|>", "<|call|>"} <= names:
        # In that format it ends only a part of an answer.
        named -= {id for id in named if tokens[id] == "<|end|>"}
    return frozenset(id for id in found | named if 0 <= id < len(tokens))
