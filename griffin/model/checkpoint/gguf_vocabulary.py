"""A GGUF file's vocabulary becomes the library's tokenizer, from the keys that were read once.

``AutoTokenizer.from_pretrained(gguf_file=...)`` gives the same tokenizer. It reads the file three times more, with
readers that need ten seconds for 150,000 tokens, and it prefers any tokenizer.json that lies beside the file.
"""

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders
from transformers import CONFIG_MAPPING, TOKENIZER_MAPPING, PreTrainedTokenizerBase, TokenizersBackend

try:
    from transformers.integrations.gguf import convert_gguf_tokenizer
except ImportError:
    # Before transformers 5.23. It takes a model type where the later one takes the file's architecture.
    from transformers.integrations.ggml import convert_gguf_tokenizer

    BY_MODEL_TYPE = True
else:
    BY_MODEL_TYPE = False

from griffin.errors import LoadError
from griffin.model.checkpoint.gguf_config import ARCHITECTURES
from griffin.model.checkpoint.gguf_file import GgufFile
from griffin.model.checkpoint.gguf_values import refused, short

PREFIX = "tokenizer.ggml."
# Kinds of tokens that texts may name.
CONTROL, USER_DEFINED = 3, 4
# What the vocabulary is made of: keys to the library's names.
VOCABULARY = {
    "model": "tokenizer_type",
    "pre": "pre_tokenizer_type",
    "tokens": "tokens",
    "scores": "scores",
    "token_type": "token_type",
    "merges": "merges",
}
# Marks around a gap that the model fills, newer keys first: as the library's tokenizer is to call them.
GAP_MARKS = {
    "fim_prefix_token": ("fim_pre", "prefix"),
    "fim_suffix_token": ("fim_suf", "suffix"),
    "fim_middle_token": ("fim_mid", "middle"),
}
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


class _Handed:
    """A tokenizer whose copy is itself: the library copies what it is handed, as slowly as it is made."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __deepcopy__(self, memo: dict[int, Any]) -> Tokenizer:
        return self._tokenizer


def library_tokenizer(file: GgufFile) -> PreTrainedTokenizerBase:
    """The tokenizer that the library makes of a file's keys.

    Raises:
        LoadError: its tokens or merges are missing, or an id is no token's; names the key.
    """
    _require_vocabulary(file)
    settings, row = _settings(file), ARCHITECTURES.get(file.architecture)
    kind = TOKENIZER_MAPPING.get(CONFIG_MAPPING[row.model_type], TokenizersBackend) if row else TokenizersBackend
    tokenizer: PreTrainedTokenizerBase = kind(tokenizer_object=_Handed(_backend(file)), **settings)
    return tokenizer


def _require_vocabulary(file: GgufFile) -> None:
    tokens, merges = (file.metadata.get(PREFIX + key) for key in ("tokens", "merges"))
    if not tokens:
        raise LoadError(f"{file.path.name} has no tokens: its key {PREFIX}tokens is missing or empty")
    for key, value in (("tokens", tokens), ("merges", merges or [])):
        if not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
            raise refused(file, PREFIX + key, f"is {short(value)}, but must be a list of texts", bare=True)
    if merges is None and file.metadata.get(f"{PREFIX}scores") is None:
        raise LoadError(f"{file.path.name} does not say how tokens are made: it lacks the key {PREFIX}merges")


def _backend(file: GgufFile) -> Tokenizer:
    told = {name: file.metadata[PREFIX + key] for key, name in VOCABULARY.items() if PREFIX + key in file.metadata}
    row = ARCHITECTURES.get(file.architecture)
    if not BY_MODEL_TYPE or row is None:
        backend: Tokenizer = convert_gguf_tokenizer(file.architecture, told)[0]
        return backend
    ids = {f"{name}_id": file.metadata.get(f"{PREFIX}{key}_token_id") for name, key in SPECIAL.items()}
    backend = convert_gguf_tokenizer(row.model_type, told | ids)[0]
    _mark(backend, file)
    return backend


def _mark(backend: Tokenizer, file: GgufFile) -> None:
    """As transformers 5.23 does it: tokens that the file marks stay whole, and letters stay as they are."""
    tokens, kinds = file.metadata[f"{PREFIX}tokens"], file.metadata.get(f"{PREFIX}token_type") or []
    marked = list(zip(tokens, kinds, strict=False))
    backend.add_special_tokens([AddedToken(token, normalized=False) for token, kind in marked if kind == CONTROL])
    backend.add_tokens([AddedToken(token, normalized=False) for token, kind in marked if kind == USER_DEFINED])
    if file.metadata.get(f"{PREFIX}model") == "gpt2":
        backend.normalizer, backend.decoder = None, decoders.ByteLevel()


def _settings(file: GgufFile) -> dict[str, Any]:
    """What the library's tokenizer is told beside its vocabulary."""
    names = {"tokenizer.chat_template": "chat_template"}
    names |= {f"{PREFIX}{key}": key for key in ("add_bos_token", "add_eos_token")}
    settings = {name: file.metadata[key] for key, name in names.items() if key in file.metadata}
    if file.metadata.get(f"{PREFIX}model") == "llama":
        # Older files do not say it, and such texts begin with that token all the same.
        settings.setdefault("add_bos_token", True)
    if marks := _gap_marks(file):
        settings["extra_special_tokens"] = marks
    return settings | {name: _special(file, key) for name, key in SPECIAL.items()}


def _gap_marks(file: GgufFile) -> dict[str, str]:
    """The marks that a file names for filling gaps: all three, or none."""
    named = {
        name: mark
        for name, keys in GAP_MARKS.items()
        if (mark := next((mark for key in keys if (mark := _special(file, key)) is not None), None)) is not None
    }
    return named if len(named) == len(GAP_MARKS) else {}


def _special(file: GgufFile, key: str) -> str | None:
    """The token that a key names by its id."""
    name = f"{PREFIX}{key}_token_id"
    id, tokens = file.metadata.get(name), file.metadata[f"{PREFIX}tokens"]
    if id is None:
        return None
    if type(id) is not int or not 0 <= id < len(tokens):
        raise refused(file, name, f"is {short(id)}, and there are {len(tokens)} tokens", bare=True)
    return str(tokens[id])
