"""A GGUF file's tokenizer: how it splits text before merges, and at which ids a generation ends."""

from collections.abc import Mapping, Sequence

from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from griffin.checkpoint.ends import KNOWN_ENDS
from griffin.checkpoint.gguf_file import GgufFile
from griffin.errors import LoadError

CONTROL = 3
# Ids that the file itself calls ends; generation in the middle of a text ends at the last three.
END_KEYS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")

# What tokenizer.ggml.pre stands for: text is split by these expressions, one after the other.
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


def read_tokenizer(file: GgufFile) -> PreTrainedTokenizerBase:
    """The tokenizer of a file.

    Raises:
        LoadError: it is of a kind that cannot be read; names the key.
    """
    kind = file.metadata.get("tokenizer.ggml.model")
    if kind in (None, "none", "no_vocab"):
        raise LoadError(f"{file.path.name} has no tokenizer (tokenizer.ggml.model is {kind})")
    pre = file.metadata.get("tokenizer.ggml.pre", "default")
    by_bytes = kind == "gpt2"
    if by_bytes and pre not in SPLITS and pre not in ("default", ""):
        raise LoadError(
            f"{file.path.name} splits text in a way that is not known here: its key tokenizer.ggml.pre is {pre}"
        )
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(file.path.parent, gguf_file=file.path.name)
    if by_bytes and pre in SPLITS:
        splits = [pre_tokenizers.Split(Regex(split), behavior="isolated") for split in SPLITS[pre]]
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
    return tokenizer


def ends(file: GgufFile) -> frozenset[int]:
    """Ids at which the file says that a generation ends, by key, or by the name of a control token."""
    found = {file.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in END_KEYS}
    tokens = file.metadata.get("tokenizer.ggml.tokens") or []
    kinds = file.metadata.get("tokenizer.ggml.token_type") or []
    named = {
        id
        for id, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
        if kind == CONTROL and token in KNOWN_ENDS
    }
    names = {tokens[id] for id in named}
    if {"<|return|>", "<|call|>"} <= names:
        # There it ends a part of an answer alone.
        named -= {id for id in named if tokens[id] == "<|end|>"}
    return frozenset(int(id) for id in found | named if isinstance(id, int) and id >= 0)
