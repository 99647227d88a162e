"""GGUF files give the scores of the same model in safetensors, or an error that names the key or tensor."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf import GGUFWriter
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedModel

from griffin.errors import GriffinError, LoadError, UnsupportedModel
from griffin.model.checkpoint import gguf_file, gguf_tokenizer
from griffin.model.checkpoint.gguf_vocabulary import BY_MODEL_TYPE, library_tokenizer
from griffin.model.checkpoint.gguf_weights import read_model
from griffin.model.loading import load
from tests.griffin.model.checkpoint.files import (  # fmt: skip
    CONTROL,
    EOS,
    FIRST_CONTROL,
    TOKENS,
    Meta,
    text_model,
    write_gguf,
)

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10_000.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32, "rope_theta": 500_000.0,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [2.0, 3.0, 5.0, 9.0], "original_max_position_embeddings": 128,
}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.tensor([[(7 * number) % FIRST_CONTROL for number in range(100)]])
    return model.eval()(ids).logits


def read(path: Path) -> PreTrainedModel:
    return read_model(gguf_file.read(path), torch.float32)


def yarn(writer: GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(64)


def tuned_yarn(writer: GGUFWriter) -> None:
    yarn(writer)
    writer.add_rope_scaling_yarn_attn_factor(1.25)
    writer.add_rope_scaling_yarn_beta_fast(16.0)
    writer.add_rope_scaling_yarn_beta_slow(2.0)


def linear(factor: float) -> Meta:
    def write(writer: GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(factor)

    return write


def nothing(writer: GGUFWriter) -> None:
    """Add no key."""


def factors(model: PreTrainedModel) -> torch.Tensor:
    """Llama 3's factors, as llama.cpp's converter computes them from the same configuration."""
    plain = text_model("llama").model.rotary_emb.inv_freq
    base = torch.full_like(plain, LLAMA3["rope_theta"]) ** (-torch.arange(len(plain)) / len(plain))
    return base / model.model.rotary_emb.inv_freq


CASES: dict[str, tuple[str, dict[str, Any], Meta]] = {
    "llama": ("llama", {"mlp_bias": False}, nothing),
    "llama with biases": ("llama", {"attention_bias": True}, nothing),
    "llama of wide heads": ("llama", {"head_dim": 16}, nothing),
    "llama, tied": ("llama", {"tie_word_embeddings": True}, nothing),
    "llama, linear": ("llama", {"rope_parameters": {**PLAIN, "rope_type": "linear", "factor": 4.0}}, linear(4.0)),
    "llama, yarn": ("llama", {"rope_parameters": YARN}, yarn),
    "llama, yarn with all its numbers": (
        "llama",
        {"rope_parameters": {**YARN, "attention_factor": 1.25, "beta_fast": 16.0, "beta_slow": 2.0}},
        tuned_yarn,
    ),
    "llama, another base": ("llama", {"rope_parameters": {**PLAIN, "rope_theta": 1e6}}, nothing),
    "qwen2": ("qwen2", {}, nothing),
    "qwen2, yarn": ("qwen2", {"rope_parameters": YARN}, yarn),
    "qwen3": ("qwen3", {"head_dim": 16}, nothing),
    "gemma2": (
        "gemma2",
        {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 15.0, "query_pre_attn_scalar": 8},
        nothing,
    ),
    "gemma3": ("gemma3_text", {"num_hidden_layers": 7, "layer_types": None, "query_pre_attn_scalar": 8}, nothing),
    "gemma3, linear": (
        "gemma3_text",
        {
            "num_hidden_layers": 7,
            "layer_types": None,
            "query_pre_attn_scalar": 8,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": PLAIN,
            },
        },
        linear(8.0),
    ),
    "phi3": ("phi3", {"original_max_position_embeddings": 256}, nothing),
    "phi3, without windows": ("phi3", {"sliding_window": None, "original_max_position_embeddings": 256}, nothing),
    "phi3, rotated in part": (
        "phi3",
        {"original_max_position_embeddings": 256, "rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}},
        nothing,
    ),
    "gpt2": ("gpt2", {}, nothing),
    "falcon": ("falcon", {"bias": False}, nothing),
    "falcon of 40B": ("falcon", {"bias": False, "new_decoder_architecture": True, "num_kv_heads": 2}, nothing),
    "falcon of 11B": (
        "falcon",
        {"bias": False, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        nothing,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_numbers_as_in_safetensors(case: str, tmp_path: Path) -> None:
    """The reader undoes all that llama.cpp's converter writes as keys or does to tensors."""
    model_type, changes, meta = CASES[case]
    model = text_model(model_type, **changes)
    loaded = read(write_gguf(tmp_path / "model.gguf", model, meta))

    assert torch.equal(logits(loaded), logits(model))


def test_llama3_factors_are_applied(tmp_path: Path) -> None:
    """They are in a tensor that belongs to no parameter. The logits agree up to rounding."""
    model = text_model("llama", rope_parameters=LLAMA3)
    path = write_gguf(tmp_path / "model.gguf", model, extra={"rope_freqs.weight": factors(model)})

    torch.testing.assert_close(logits(read(path)), logits(model), rtol=1e-4, atol=1e-4)
    plain = write_gguf(tmp_path / "plain.gguf", model)
    assert not torch.allclose(logits(read(plain)), logits(model), rtol=1e-2, atol=1e-2)


def test_longrope_is_applied(tmp_path: Path) -> None:
    """Two lists of factors, and a factor for attention."""
    model = text_model("phi3", rope_parameters=LONG, original_max_position_embeddings=128)
    lists = {f"rope_factors_{kind}.weight": torch.tensor(LONG[f"{kind}_factor"]) for kind in ("short", "long")}

    def attention(writer: GGUFWriter) -> None:
        writer.add_rope_scaling_attn_factors(model.model.rotary_emb.attention_scaling)

    path = write_gguf(tmp_path / "model.gguf", model, attention, extra=lists)
    assert torch.equal(logits(read(path)), logits(model))


def number(key: str, value: float) -> Meta:
    return lambda writer: writer.add_float32(key, value)


def flag(key: str, value: bool) -> Meta:
    return lambda writer: writer.add_bool(key, value)


def whole(key: str, value: int) -> Meta:
    return lambda writer: writer.add_uint32(key, value)


def text(key: str, value: str) -> Meta:
    return lambda writer: writer.add_string(key, value)


REFUSED: dict[str, Meta] = {
    "llama.rope.scaling.type": text("llama.rope.scaling.type", "longrope"),
    "llama.rope.scaling.attn_factor": number("llama.rope.scaling.attn_factor", 1.5),
    "llama.rope.dimension_count": whole("llama.rope.dimension_count", 4),
    "llama.attention.scale": number("llama.attention.scale", 0.5),
    "llama.logit_scale": number("llama.logit_scale", 2.0),
    "llama.residual_scale": number("llama.residual_scale", 2.0),
    "llama.embedding_scale": number("llama.embedding_scale", 12.0),
    "llama.attention.clamp_kqv": number("llama.attention.clamp_kqv", 8.0),
    "llama.attention.max_alibi_bias": number("llama.attention.max_alibi_bias", 8.0),
    "llama.attention.sliding_window": whole("llama.attention.sliding_window", 32),
    "llama.final_logit_softcapping": number("llama.final_logit_softcapping", 30.0),
    "llama.attention.value_length": whole("llama.attention.value_length", 4),
    "llama.some.future_key": whole("llama.some.future_key", 1),
    "tokenizer.ggml.suppress_tokens": lambda writer: writer.add_array("tokenizer.ggml.suppress_tokens", [1, 2]),
    "tokenizer.ggml.pre": text("tokenizer.ggml.pre", "some-new-split"),
    "llama.rope.freq_base": number("llama.rope.freq_base", 0.0),
    "llama.rope.scaling.factor": number("llama.rope.scaling.factor", -4.0),
    "llama.attention.layer_norm_rms_epsilon": number("llama.attention.layer_norm_rms_epsilon", 0.0),
    "llama.context_length": text("llama.context_length", "long"),
    "llama.vocab_size": whole("llama.vocab_size", 999),
    "llama.rope.scaling.original_context_length": whole("llama.rope.scaling.original_context_length", 1),
    "llama.feed_forward_length": lambda writer: writer.add_array("llama.feed_forward_length", [52, 52, 26]),
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_key_that_changes_numbers_and_is_not_applied_is_refused_by_name(key: str, tmp_path: Path) -> None:
    """Such a key is never ignored."""

    def without(writer: GGUFWriter) -> None:
        writer.kv_data[0].pop(key, None)
        REFUSED[key](writer)

    path = write_gguf(tmp_path / "model.gguf", text_model("llama", mlp_bias=False), without)
    with pytest.raises(LoadError, match=key):
        load(str(path), device="cpu", dtype="float32", cache_dir=tmp_path / "cache")

    assert not (tmp_path / "cache" / "dequantised").exists() or not any(
        entry.is_dir() for entry in (tmp_path / "cache" / "dequantised").iterdir()
    )


BOUNDS: dict[str, tuple[str, str, Meta, str]] = {
    key + why: (model_type, key, kind(key, value), words)
    for model_type, key, kind, value, why, words in [
        ("llama", "llama.rope.dimension_count", whole, 0, "", "is 0, but must be a number above 0"),
        ("phi3", "phi3.rope.dimension_count", whole, 3, ", odd", "has 3 numbers of a head rotated in pairs"),
        ("phi3", "phi3.rope.dimension_count", whole, 10, ", wide", "is 10, but heads of such models have 8"),
        ("qwen2", "qwen2.rope.dimension_count", whole, 6, "", "is 6, but such models have 8"),
        ("llama", "llama.context_length", whole, 4 * 10**9, "", "is 4000000000, but must be a whole number from 1 to"),
        ("gpt2", "gpt2.context_length", number, 1.5, "", "is 1.5, but must be a whole number from 1 to 16777216"),
        ("gemma2", "gemma2.attention.sliding_window", whole, 4 * 10**9, "", "is 4000000000, but must be a whole"),
        ("llama", "llama.attention.head_count", whole, 7, "", "is 7, which does not divide embedding_length, 32"),
        ("qwen3", "qwen3.attention.head_count", whole, 64, "", "is 64, which does not divide embedding_length, 32"),
        ("llama", "llama.attention.head_count_kv", whole, 3, "", "is 3, which does not divide attention.head_count, 4"),
        ("llama", "llama.attention.key_length", text, "x", "", "is x, but must be a number above 0"),
        ("gpt2", "gpt2.attention.key_length", whole, 7, "", "is 7, but should be 8"),
        ("llama", "llama.attention.layer_norm_rms_epsilon", number, 1e30, "", "but must be at most 1"),
        ("gemma3_text", "gemma3.final_logit_softcapping", number, -1.0, "", "is -1.0, but must be a number above 0"),
    ]
}


@pytest.mark.parametrize("case", BOUNDS)
def test_a_number_that_no_model_has_is_refused_by_its_key(case: str, tmp_path: Path) -> None:
    """In one line, with either way to read the file. The library's own error would name no key."""
    model_type, key, meta, words = BOUNDS[case]

    def replacing(writer: GGUFWriter) -> None:
        writer.kv_data[0].pop(key, None)
        meta(writer)

    changes = {"mlp_bias": False} if model_type == "llama" else {}
    path = write_gguf(tmp_path / "model.gguf", text_model(model_type, **changes), replacing)
    for dtype in ("auto", "float32"):
        with pytest.raises(LoadError, match=f"its key {key} .*{words}"):
            load(str(path), device="cpu", dtype=dtype, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    "meta",
    [
        flag("llama.rope.scaling.finetuned", True),
        number("llama.logit_scale", 0.0),
        whole("llama.expert_count", 0),
        whole("llama.attention.sliding_window", 256),
        linear(1.0),
        text("llama.tensor_data_layout", "Meta AI original pth"),
        text("quantize.imatrix.file", "x"),
        text("general.quantized_by", "somebody"),
        flag("llama.attention.causal", True),
    ],
)
def test_keys_that_change_nothing_are_no_reason_to_refuse(meta: Meta, tmp_path: Path) -> None:
    """Zeros, notes, and values that are the default."""
    model = text_model("llama", mlp_bias=False)

    assert torch.equal(logits(read(write_gguf(tmp_path / "model.gguf", model, meta))), logits(model))


OTHERS: dict[str, tuple[Meta, type[GriffinError], str]] = {
    "experts": (whole("llama.expert_count", 8), UnsupportedModel, "mixture of experts"),
    "embeddings": (whole("llama.pooling_type", 3), UnsupportedModel, "pooling_type"),
    "both directions": (flag("llama.attention.causal", False), UnsupportedModel, "embeds or ranks"),
    "adapter": (text("general.type", "adapter"), LoadError, "a LoRA adapter"),
    "vision": (text("general.type", "mmproj"), LoadError, "the vision or audio part"),
    "imatrix": (text("general.type", "imatrix"), LoadError, "an importance matrix"),
    "another architecture": (text("general.architecture", "mamba"), UnsupportedModel, "'mamba'"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_files_of_another_kind(kind: str, tmp_path: Path) -> None:
    """The error says what the file is."""
    meta, error, words = OTHERS[kind]

    def replacing(writer: GGUFWriter) -> None:
        for key in ("general.architecture", "general.type"):
            if kind == "another architecture" or key != "general.architecture":
                writer.kv_data[0].pop(key, None)
        meta(writer)

    path = write_gguf(tmp_path / "model.gguf", text_model("llama", mlp_bias=False), replacing)
    with pytest.raises(error, match=words):
        load(str(path), device="cpu", dtype="float32", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    "lost", ["blk.1.ffn_up.weight", "blk.2.", "output_norm.weight", "token_embd.weight", "blk.0.attn_norm.weight"]
)
def test_a_tensor_that_is_missing(lost: str, tmp_path: Path) -> None:
    """The error names it at every start: no cache is written."""
    model = text_model("llama", mlp_bias=False)
    path = write_gguf(tmp_path / "model.gguf", model, keep=lambda name: not name.startswith(lost))
    for _ in range(2):
        with pytest.raises(LoadError, match=r"lacks \d+ of the model's weights: .*|block_count is 3, and .* of 2"):
            load(str(path), device="cpu", dtype="float32", cache_dir=tmp_path / "cache")


EXTRA = {
    "more experts": {"blk.0.ffn_gate_exps.weight": torch.zeros(2, 52, 32)},
    "a norm of queries": {"blk.0.attn_q_norm.weight": torch.ones(8)},
    "a bias": {"blk.1.attn_q.bias": torch.ones(32)},
    "one more layer": {"blk.3.attn_norm.weight": torch.ones(32)},
    "a head that classifies": {"cls.output.weight": torch.ones(2, 32)},
}


@pytest.mark.parametrize("kind", EXTRA)
def test_a_tensor_that_the_architecture_does_not_have(kind: str, tmp_path: Path) -> None:
    """The file contradicts the name of its architecture, so another model would be served."""
    (name,) = EXTRA[kind]
    path = write_gguf(tmp_path / "model.gguf", text_model("llama", mlp_bias=False), extra=EXTRA[kind])
    with pytest.raises(LoadError, match=f"(?s){name}.*general.architecture"):
        read(path)


def test_a_tensor_in_another_shape(tmp_path: Path) -> None:
    """The error has both shapes."""
    path = write_gguf(
        tmp_path / "model.gguf",
        text_model("llama", mlp_bias=False),
        keep=lambda name: name != "blk.1.ffn_up.weight",
        extra={"blk.1.ffn_up.weight": torch.ones(50, 32)},
    )
    with pytest.raises(LoadError, match=r"keys say: blk\.1\.ffn_up\.weight \(50, 32\) instead of \(52, 32\);"):
        read(path)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("block_count", "block_count is 1000000000, and the file has tensors of 3 blocks"),
        ("feed_forward_length", r"blk\.0\.ffn_down\.weight \(32, 52\) instead of \(32, 1000000000\)"),
    ],
)
def test_a_size_that_only_a_key_claims(key: str, words: str, tmp_path: Path) -> None:
    """It is refused before anything of that size is built: no hang, and no memory is taken."""

    def absurd(writer: GGUFWriter) -> None:
        writer.kv_data[0][f"llama.{key}"].value = 10**9

    path = write_gguf(tmp_path / "model.gguf", text_model("llama", mlp_bias=False), absurd)
    with pytest.raises(LoadError, match=words):
        load(str(path), device="cpu", cache_dir=tmp_path / "cache")


def split(path: Path, model: PreTrainedModel) -> list[Path]:
    """The same model in two files, as llama-gguf-split makes them."""

    def part(number: int) -> Meta:
        def write(writer: GGUFWriter) -> None:
            writer.add_uint16("split.no", number)
            writer.add_uint16("split.count", 2)
            writer.add_int32("split.tensors.count", len(model.state_dict()))

        return write

    def second(name: str) -> bool:
        return name.startswith("blk.1.")

    return [
        write_gguf(path / "m-00001-of-00002.gguf", model, part(0), keep=lambda name: not second(name)),
        write_gguf(path / "m-00002-of-00002.gguf", model, part(1), keep=second),
    ]


def test_a_split_file_is_one_model(tmp_path: Path) -> None:
    """The first part finds the others, another part's error names the first, and a missing part is named."""
    model = text_model("llama", mlp_bias=False)
    first, second = split(tmp_path, model)

    assert torch.equal(logits(read(first)), logits(model))
    with pytest.raises(LoadError, match=r"not the first part of the model; name m-00001-of-00002\.gguf"):
        read(second)
    second.unlink()
    with pytest.raises(LoadError, match=r"m-00002-of-00002\.gguf is not beside it"):
        load(str(first), device="cpu", dtype="float32", cache_dir=tmp_path / "cache")


def test_a_part_that_changed_is_read_anew(tmp_path: Path) -> None:
    """All parts together name the cache entry."""
    first, _ = split(tmp_path, text_model("llama", mlp_bias=False))
    load(str(first), device="cpu", dtype="float32", cache_dir=tmp_path / "cache")
    other = text_model("llama", mlp_bias=False)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight *= 2
    split(tmp_path, other)
    again = load(str(first), device="cpu", dtype="float32", cache_dir=tmp_path / "cache").model

    assert torch.equal(again.model.layers[1].mlp.up_proj.weight, other.model.layers[1].mlp.up_proj.weight)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def header_alone(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize("damage", [cut_short, header_alone])
def test_a_file_that_is_cut_short(damage: Callable[[Path], None], tmp_path: Path) -> None:
    """One line names it."""
    path = write_gguf(tmp_path / "model.gguf", text_model("llama", mlp_bias=False))
    damage(path)
    with pytest.raises(LoadError, match=r"model\.gguf is not a complete GGUF file") as failure:
        load(str(path), device="cpu", cache_dir=tmp_path / "cache")

    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [("gpt-2", ["10", "Ġ20"]), ("smollm", ["1", "0", "Ġ", "2", "0"]), ("llama-bpe", ["10", "Ġ", "20"])],
)
def test_text_is_split_as_the_file_says(pre: str, pieces: list[str], tmp_path: Path) -> None:
    """The key tokenizer.ggml.pre decides which pieces may become one token."""
    path = write_gguf(tmp_path / "model.gguf", text_model("llama", mlp_bias=False), text("tokenizer.ggml.pre", pre))
    tokenizer = gguf_tokenizer.read_tokenizer(gguf_file.read(path))
    found = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("10 20")

    assert [piece for piece, _ in found] == pieces


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        (nothing, {EOS, TOKENS.index("<|endoftext|>")}),
        (lambda writer: writer.add_eot_token_id(FIRST_CONTROL + 2), {EOS, FIRST_CONTROL, FIRST_CONTROL + 2}),
        (whole("tokenizer.ggml.eom_token_id", FIRST_CONTROL + 3), {EOS, FIRST_CONTROL, FIRST_CONTROL + 3}),
    ],
)
def test_ends_by_key_and_by_name(meta: Meta, expected: set[int], tmp_path: Path) -> None:
    """The file's own ids, and control tokens that are known as ends; also when read from the cache."""
    path = write_gguf(tmp_path / "model.gguf", text_model("llama", mlp_bias=False), meta)
    for _ in range(2):
        model = load(str(path), device="cpu", dtype="float32", cache_dir=tmp_path / "cache").model

        assert set(model.generation_config.eos_token_id) == expected


@pytest.mark.parametrize(
    "keys", [("fim_pre", "fim_suf", "fim_mid"), ("prefix", "suffix", "middle"), ("fim_pre", "fim_suf")]
)
def test_marks_for_gaps_by_key(keys: tuple[str, ...], tmp_path: Path) -> None:
    """The tokenizer gets all three marks, by newer or older keys, also from the cache; or none of them."""

    def meta(writer: GGUFWriter) -> None:
        for offset, key in enumerate(keys):
            writer.add_uint32(f"tokenizer.ggml.{key}_token_id", FIRST_CONTROL + 1 + offset)

    path = write_gguf(tmp_path / "model.gguf", text_model("llama", mlp_bias=False), meta)
    for _ in range(2):
        tokenizer = load(str(path), device="cpu", dtype="float32", cache_dir=tmp_path / "cache").tokenizer
        marks = [getattr(tokenizer, f"fim_{name}_token", None) for name in ("prefix", "suffix", "middle")]

        assert marks == (CONTROL[1:] if len(keys) == 3 else [None] * 3)


def test_a_name_that_is_no_control_token_is_no_end(tmp_path: Path) -> None:
    """Text may contain the same letters."""

    def plain(writer: GGUFWriter) -> None:
        writer.kv_data[0].pop("tokenizer.ggml.token_type")
        writer.add_token_types([1] * (FIRST_CONTROL + 1) + [3] * (len(CONTROL) - 1))

    path = write_gguf(tmp_path / "model.gguf", text_model("llama", mlp_bias=False), plain)

    assert gguf_tokenizer.ends(gguf_file.read(path)) == {EOS}


def test_sampling_that_a_file_recommends(tmp_path: Path) -> None:
    """The same values as from a generation_config.json, also when read from the cache."""

    def recommend(writer: GGUFWriter) -> None:
        writer.add_float32("general.sampling.temp", 0.5)
        writer.add_int32("general.sampling.top_k", 20)
        writer.add_float32("general.sampling.penalty_repeat", 1.25)

    path = write_gguf(tmp_path / "model.gguf", text_model("llama", mlp_bias=False), recommend)
    for _ in range(2):
        found = load(str(path), device="cpu", dtype="float32", cache_dir=tmp_path / "cache").sampling_defaults

        assert found == {"temperature": 0.5, "top_k": 20, "repetition_penalty": 1.25}


@pytest.mark.parametrize(
    ("name", "values"),
    [("rope_freqs.weight", [0.0, 1, 1, 1]), ("rope_freqs.weight", [float("nan")] * 4), ("rope_freqs.weight", [1.0])],
)
def test_factors_that_no_model_has(name: str, values: list[float], tmp_path: Path) -> None:
    """The error names the tensor. Factors that such models do not use are refused, too."""
    path = write_gguf(tmp_path / "model.gguf", text_model("llama"), extra={name: torch.tensor(values)})
    with pytest.raises(LoadError, match=r"the tensor rope_freqs\.weight must hold 4 numbers above 0"):
        read(path)
    path = write_gguf(tmp_path / "other.gguf", text_model("qwen2"), extra={name: torch.ones(4)})
    with pytest.raises(LoadError, match=r"a tensor that such models do not use: rope_freqs\.weight"):
        read(path)


@pytest.mark.parametrize("key", ["eos", "eot"])
@pytest.mark.parametrize("value", [2**31, -5])
def test_ids_that_are_no_tokens(key: str, value: int, tmp_path: Path) -> None:
    """An invalid eos id is refused, because transformers would look it up. An invalid eot id is ignored."""

    def replaced(writer: GGUFWriter) -> None:
        writer.kv_data[0].pop(f"tokenizer.ggml.{key}_token_id", None)
        writer.add_int64(f"tokenizer.ggml.{key}_token_id", value)

    path = write_gguf(tmp_path / "model.gguf", text_model("llama", mlp_bias=False), replaced)
    if key == "eos":
        with pytest.raises(LoadError, match=f"eos_token_id is {value}"):
            read(path)
    else:
        assert gguf_tokenizer.ends(gguf_file.read(path)) == {EOS, FIRST_CONTROL}


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "glm4"])
def test_what_the_kind_of_split_brings_along(pre: str, tmp_path: Path) -> None:
    """With Llama 3's, a text begins with the begin-of-sequence token, and a piece that is a token stays whole."""
    path = write_gguf(tmp_path / "model.gguf", text_model("llama", mlp_bias=False), text("tokenizer.ggml.pre", pre))
    for told in (None, False):
        file = gguf_file.read(path)
        metadata = {**file.metadata, **({} if told is None else {"tokenizer.ggml.add_bos_token": told})}
        tokenizer = gguf_tokenizer.read_tokenizer(replace(file, metadata=metadata))
        begins = tokenizer("th").input_ids[0] == FIRST_CONTROL

        assert begins == (pre == "llama-bpe" and told is None)
        assert tokenizer.backend_tokenizer.model.ignore_merges == (pre != "gpt-2")


def pieces(writer: GGUFWriter) -> None:
    """Replace the vocabulary by a SentencePiece vocabulary of the same size."""
    for key in ("model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id"):
        writer.kv_data[0].pop(f"tokenizer.ggml.{key}", None)
    words = ["<unk>", "<s>", "</s>", "\u2581", "t", "h", "e", "th", "the", "\u2581the"]
    tokens = [*words, *(f"unused{number}" for number in range(len(TOKENS) - len(words)))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(number) for number in range(len(tokens))])
    writer.add_token_types([2, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        (None, {"the": ["\u2581the"], " the": ["\u2581", "\u2581the"]}),
        (True, {"the": ["\u2581the"], " the": ["\u2581", "\u2581the"]}),
        (False, {"the": ["the"], " the": ["\u2581the"]}),
    ],
)
def test_whether_a_text_begins_with_a_space(
    prefix: bool | None, expected: dict[str, list[str]], tmp_path: Path
) -> None:
    """The key tokenizer.ggml.add_space_prefix decides, as in llama.cpp. Decoded texts do not change."""

    def meta(writer: GGUFWriter) -> None:
        pieces(writer)
        if prefix is not None:
            writer.add_add_space_prefix(prefix)

    path = write_gguf(tmp_path / "model.gguf", text_model("llama", mlp_bias=False), meta)
    for _ in range(2):
        tokenizer = load(str(path), device="cpu", dtype="float32", cache_dir=tmp_path / "cache").tokenizer
        for given, tokens in expected.items():
            ids = tokenizer(given, add_special_tokens=False).input_ids
            assert tokenizer.convert_ids_to_tokens(ids) == tokens
            assert tokenizer.decode(ids) == given


@pytest.mark.skipif(BY_MODEL_TYPE, reason="before transformers 5.23 its own reader makes up tokens")
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma2", "phi3", "falcon"])
@pytest.mark.parametrize("vocabulary", [nothing, pieces])
def test_the_tokenizer_that_the_library_reads(vocabulary: Meta, model_type: str, tmp_path: Path) -> None:
    """Ours, made from the keys that we have already read, is the same as the library's, whose reading is slow."""

    def meta(writer: GGUFWriter) -> None:
        vocabulary(writer)
        writer.add_unk_token_id(0)
        writer.add_chat_template("{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}")

    changes = {"bias": False} if model_type == "falcon" else {}
    path = write_gguf(tmp_path / "model.gguf", text_model(model_type, **changes), meta)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    ours = library_tokenizer(gguf_file.read(path))
    text = "the  he th\n<|im_end|>3.14 Gr\u00fc\u00dfe \U0001f642 <s>"

    assert type(ours) is type(theirs)
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert ours(text).input_ids == theirs(text).input_ids
    assert ours.special_tokens_map == theirs.special_tokens_map
    messages = [{"role": "user", "content": "hello"}]
    assert ours.apply_chat_template(messages, tokenize=False) == "[user] hello"


def test_what_lies_beside_a_file_is_not_its_tokenizer(tmp_path: Path) -> None:
    """Only the file itself says how it splits text."""
    path = write_gguf(tmp_path / "model.gguf", text_model("qwen2"))
    expected = gguf_tokenizer.read_tokenizer(gguf_file.read(path)).backend_tokenizer.to_str()
    Tokenizer(models.BPE(vocab={"x": 0}, merges=[])).save(str(tmp_path / "tokenizer.json"))

    assert gguf_tokenizer.read_tokenizer(gguf_file.read(path)).backend_tokenizer.to_str() == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"unknown_token_id": len(TOKENS)}, f"unknown_token_id is {len(TOKENS)}, and there are {len(TOKENS)} tokens"),
        ({"padding_token_id": "one"}, "padding_token_id is one, and there are"),
        ({"tokens": "abc"}, r"tokenizer\.ggml\.tokens is abc, but must be a list of texts"),
        ({"merges": [1, 2]}, r"merges is \[1, 2\], but must be a list of texts"),
        ({"tokens": None}, r"has no tokens: its key tokenizer\.ggml\.tokens is missing"),
        ({"merges": None}, r"does not say how tokens are made: it lacks the key tokenizer\.ggml\.merges"),
    ],
)
def test_an_invalid_vocabulary(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    """The error names the key."""
    file = gguf_file.read(write_gguf(tmp_path / "model.gguf", text_model("llama", mlp_bias=False)))
    changed = {**file.metadata, **{f"tokenizer.ggml.{key}": value for key, value in changes.items()}}
    metadata = {key: value for key, value in changed.items() if value is not None}
    with pytest.raises(LoadError, match=words):
        gguf_tokenizer.read_tokenizer(replace(file, metadata=metadata))


@pytest.mark.parametrize("change", ["cut", "overwritten"])
def test_a_file_that_changes_while_it_is_read_is_not_cached(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the next start would find half of one file and half of another, or zeros."""
    path = write_gguf(tmp_path / "model.gguf", text_model("llama", mlp_bias=False))
    content = path.read_bytes()
    dequantize, calls = gguf.dequantize, 0

    def changing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 8:
            path.write_bytes(content[:5000] if change == "cut" else content[:-8000] + bytes(8000))
        return dequantize(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(gguf, "dequantize", changing)
        with pytest.raises(LoadError, match="was changed while it was read"):
            load(str(path), device="cpu", dtype="float32", cache_dir=tmp_path / "cache")
    assert not [found for found in (tmp_path / "cache").rglob("*") if found.is_dir() and any(found.glob("*.json"))]
    path.write_bytes(content)
    again = load(str(path), device="cpu", dtype="float32", cache_dir=tmp_path / "cache").model

    assert torch.equal(logits(again), logits(read(path)))
