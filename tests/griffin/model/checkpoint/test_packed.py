"""Checkpoints of GPTQ and AWQ give exactly the numbers of a plain reading of their layouts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from griffin import Engine, Pruning, Sampling
from griffin.errors import LoadError
from griffin.model.checkpoint.gguf_codes import column_sizes, lay_columns, lay_rows, row_sizes
from griffin.model.checkpoint.packed import Packed, Scheme, order_of
from griffin.model.loading import Checkpoint, load
from griffin.model.matrix.modules import matrices
from griffin.model.weights import read_weights
from tests.griffin.model.checkpoint.packing import SCHEMES, random_projection, write_packed
from tests.tiny import tiny_model

ROWS, COLUMNS = 128, 256
WIDE: dict[str, object] = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
PROMPT = list(range(3, 30))


def read(tensors: dict[str, Tensor], scheme: str) -> Packed:
    found = Scheme.of({"quantization_config": SCHEMES[scheme]}, "model")
    assert found is not None
    return Packed.read(tensors, found, (ROWS, COLUMNS))


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group", [32, 128, COLUMNS])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_numbers(scheme: str, group: int, act_order: bool) -> None:
    """In every layout, with groups of any size and inputs in any order."""
    if scheme == "awq" and act_order:
        pytest.skip("AWQ has no order of its own")
    tensors, numbers = random_projection(ROWS, COLUMNS, scheme, group=group, act_order=act_order)

    assert torch.equal(read(tensors, scheme).plain(), torch.from_numpy(numbers))


@pytest.mark.parametrize(("symmetric", "kind"), [(True, "Q4_0"), (False, "Q5_0")])
@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_blocks_hold_the_same_numbers(scheme: str, group: int, symmetric: bool, kind: str) -> None:
    """As rows and as columns. With act-order, the inputs are first sorted by group."""
    act_order = scheme != "awq"
    tensors, numbers = random_projection(
        ROWS, COLUMNS, scheme, group=group, act_order=act_order, symmetric=symmetric
    )  # fmt: skip
    packed, expected_RC = read(tensors, scheme), torch.from_numpy(numbers)
    order_C = order_of(packed.groups)
    if order_C is not None:
        assert packed.blocks() is None
        packed, expected_RC = packed.inputs(order_C), expected_RC[:, order_C]
    blocks = packed.blocks()
    assert blocks is not None
    found, data = blocks
    rooms = [
        [torch.empty(size, dtype=torch.uint8) for size in sizes]
        for sizes in (row_sizes(found, (ROWS, COLUMNS)), column_sizes(found, (COLUMNS, ROWS)))
    ]
    rows = lay_rows(data.numpy(), found, (ROWS, COLUMNS), rooms[0], torch.float32)
    columns = lay_columns(data.numpy(), found, (COLUMNS, ROWS), rooms[1], torch.float32)

    assert found is GGMLQuantizationType[kind]
    assert torch.equal(rows.dense(), expected_RC)
    assert torch.equal(columns.dense(), expected_RC.t())


def test_scales_beyond_float16_are_not_rounded() -> None:
    """They need plain numbers."""
    tensors, _ = random_projection(ROWS, COLUMNS, "gptq")
    tensors["scales"] = tensors["scales"].bfloat16() * 2**-20

    assert read(tensors, "gptq").blocks() is None


def directory(
    folder: Path, smollm2: Checkpoint, scheme: str, family: str = "llama", **options: bool
) -> PreTrainedModel:
    """Write a checkpoint, and return its model in plain numbers."""
    sizes: dict[str, object] = (
        {"hidden_size": 64, "ffn_dim": 96, "word_embed_proj_dim": 64} if family == "opt" else WIDE
    )
    model = tiny_model(family, vocab_size=len(smollm2.tokenizer), **sizes)
    write_packed(folder, model, smollm2.tokenizer, scheme, **options)
    return model


def scores(model: PreTrainedModel) -> list[float]:
    return Engine(model).score(PROMPT, [7, 8, 9], Pruning())


@pytest.mark.parametrize(
    ("scheme", "family", "act_order"),
    [
        ("gptq", "llama", False), ("gptq_v2", "llama", True), ("awq", "llama", False), ("gptq", "qwen2", False),
        ("gptq", "phi3", True), ("awq", "phi3", False), ("gptq", "opt", True),
    ],
)  # fmt: skip
def test_a_checkpoint_is_the_model_that_it_stands_for(
    tmp_path: Path, smollm2: Checkpoint, scheme: str, family: str, act_order: bool
) -> None:
    """With its own codes and in plain numbers; tied or not, with biases, with fused projections."""
    exact = directory(tmp_path, smollm2, scheme, family, act_order=act_order)
    plain = load(str(tmp_path), device="cpu", dtype="float32")
    kept = load(str(tmp_path), device="cpu")

    for ours, theirs in zip(plain.model.parameters(), exact.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert plain.formats == "float32"
    assert "grouped" in kept.formats
    torch.testing.assert_close(scores(plain.model), scores(exact), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores(kept.model), scores(exact), atol=0.15, rtol=0.05)
    for sparsity in (0.0, 0.5):
        sampling = Sampling(temperature=0, max_tokens=5, ignore_eos=True)
        assert len(list(Engine(kept.model).generate(PROMPT, sampling, Pruning(sparsity)))) == 5


@pytest.mark.parametrize("act_order", [False, True])
def test_every_matrix_is_exact(
    tmp_path: Path, smollm2: Checkpoint, act_order: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """With act-order, the neurons of a layer get one new order. A warning counts projections that cannot keep codes."""
    exact = directory(tmp_path, smollm2, "gptq", act_order=act_order)
    found, expected = read_weights(load(str(tmp_path), device="cpu").model), read_weights(exact)
    assert found is not None
    assert expected is not None
    for ours, theirs in zip(found.layers, expected.layers, strict=True):
        order_F = torch.arange(96)
        contract, wanted = (each.feed_forward.contract.dense(torch.float32) for each in (ours, theirs))
        if act_order:
            order_F = torch.tensor([int((wanted == row).all(dim=1).nonzero()[0, 0]) for row in contract])
        assert sorted(order_F.tolist()) == list(range(96))
        assert torch.equal(contract, wanted[order_F])
        for own, other in zip(ours.feed_forward.expanding(), theirs.feed_forward.expanding(), strict=True):
            assert torch.equal(own.matrix.dense(torch.float32), other.matrix.dense(torch.float32)[order_F])
            assert own.bias is not None
            assert other.bias is not None
            assert torch.equal(own.bias, other.bias[order_F])
        rows = [part.dense(torch.float32) for part in ours.query_key_value.parts]
        assert torch.equal(torch.cat(rows), theirs.query_key_value.matrix.dense(torch.float32))
        assert torch.equal(ours.output.matrix.dense(torch.float32), theirs.output.matrix.dense(torch.float32))
        assert ours.feed_forward.contract.format.startswith("grouped")
    assert torch.equal(found.embedding.dense(torch.float32), expected.embedding.dense(torch.float32))
    assert caplog.text.count("18 of its 21 projections are held in float32") == act_order


def without(ending: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: state.pop(f"model.layers.1.mlp.up_proj.{ending}")


def changed(ending: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], object]:
    name = f"model.layers.1.mlp.up_proj.{ending}"
    return lambda state: state.update({name: change(state[name]).contiguous()})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without("qzeros"), "has no qzeros"),
        (without("qweight"), r"lacks 1 of the model's weights: model\.layers\.1\.mlp\.up_proj\.weight"),
        (changed("qweight", lambda x: x[1:]), r"has qweight of \(7, 96\) but should have \(8, 96\)"),
        (changed("scales", lambda x: x[:, :8]), r"has scales of \(2, 8\) but should have \(2, 96\)"),
        (changed("scales", lambda x: x * torch.inf), "has scales that are infinite or not a number"),
        (changed("g_idx", lambda x: x + 1), "has g_idx beyond its 2 groups"),
        (changed("qweight", lambda x: x.long()), "has codes that are not packed in words of 32 bits"),
    ],
)
def test_damaged_projections(
    tmp_path: Path, smollm2: Checkpoint, damage: Callable[[dict[str, Tensor]], object], words: str
) -> None:
    """One line names the projection."""
    directory(tmp_path, smollm2, "gptq")
    state = load_file(tmp_path / "model.safetensors")
    damage(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(LoadError, match=words) as failure:
        load(str(tmp_path), device="cpu")

    assert "model.layers.1.mlp.up_proj" in str(failure.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quantize": "int4"}, "quantised by GPTQ; leave --quantize out to use its own codes"),
        ({"ff_offload": True}, "quantised by GPTQ, which cannot be combined with ff-offload on a CPU"),
    ],
)
def test_options_that_codes_do_not_allow(
    tmp_path: Path, smollm2: Checkpoint, options: dict[str, Any], words: str
) -> None:
    """They are refused before any weight is read."""
    directory(tmp_path, smollm2, "gptq")
    with pytest.raises(LoadError, match=words):
        load(str(tmp_path), device="cpu", **options)


def test_formats_of_a_packed_checkpoint(tmp_path: Path, smollm2: Checkpoint) -> None:
    """The embedding is not quantised and keeps the checkpoint's numbers."""
    directory(tmp_path, smollm2, "awq")
    checkpoint = load(str(tmp_path), device="cpu")

    assert {matrix.format for matrix in matrices(checkpoint.model)} == {"grouped4", "grouped6", "float16"}
    assert checkpoint.model.generation_config.eos_token_id is not None
