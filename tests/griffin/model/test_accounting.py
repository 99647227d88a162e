"""Parameters and bytes, compared with the paper's counts, on real configurations without weights."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from gguf import GGMLQuantizationType as T
from transformers import AutoModelForCausalLM, PreTrainedModel

from griffin.experiments.speed.shapes import shape_config
from griffin.method.budget import shares
from griffin.model.accounting import Accounting, BlockBytes
from griffin.model.families import feed_forwards
from griffin.model.loading import Checkpoint
from griffin.neurons import Kept, kept_count
from griffin.thresholds import Shares, Thresholds
from tests.griffin.model.coded import coded_model
from tests.griffin.model.quantised import round_
from tests.tiny import tiny_model


@cache
def accounting_of(shape: str) -> Accounting:
    """The accounting of a named shape in bfloat16."""
    with torch.device("meta"):
        return Accounting.of(AutoModelForCausalLM.from_config(shape_config(shape), dtype=torch.bfloat16))


@pytest.mark.parametrize(("shape", "total", "active"), [("llama-2-13b", 13.0, 8.8), ("gemma-7b", 8.5, 5.4)])
def test_active_parameters_of_the_paper(shape: str, total: float, active: float) -> None:
    """At 50 % Llama 2 13B uses 8.8 of 13 billion parameters, Gemma 7B 5.4 of 8.5 (paper, 4.2)."""
    accounting = accounting_of(shape)

    assert round(accounting.total / 1e9, 1) == total
    assert round(accounting.active(accounting.kept(0.5)) / 1e9, 1) == active


def test_smollm2(smollm2: Checkpoint) -> None:
    """The embedded model's exact counts."""
    accounting = Accounting.of(smollm2.model)

    assert (accounting.total, accounting.active(30 * 768)) == (134_515_008, 94_701_888)
    assert accounting.neurons == 30 * 1536


def test_every_family_counts_what_its_block_holds(model: PreTrainedModel) -> None:
    """All neurons are the whole FF block. A neuron has its rows, their biases and its column."""
    accounting = Accounting.of(model)

    assert accounting.active(accounting.neurons) == accounting.total
    assert accounting.active(0) == accounting.total - accounting.feed_forward
    gated = model.config.model_type not in ("opt", "gpt_neox", "gpt2", "phi", "gptj", "falcon")
    biased = model.config.model_type in ("llama", "opt", "gpt_neox", "gpt2", "phi", "gptj", "falcon")
    assert accounting.per_neuron == 32 * (2 + gated) + biased * (1 + gated)


@pytest.mark.parametrize(
    ("shape", "gigabytes"),
    [
        ("llama-2-7b", (13.21, 8.89, 6.72)),
        ("llama-2-13b", (25.70, 17.21, 12.96)),
        ("mistral-7b", (14.22, 8.58, 5.77)),
        ("gemma-7b", (17.08, 10.73, 7.56)),
        ("opt-6.7b", (13.30, 9.00, 6.86)),
        ("opt-13b", (25.69, 17.30, 13.10)),
    ],
)
def test_weight_bytes_of_a_token(shape: str, gigabytes: tuple[float, ...]) -> None:
    """At 0, 50 and 75 %. A token reads one row of an untied embedding or of OPT's positions; a tied one is the head."""
    accounting = accounting_of(shape)
    found = [accounting.bytes_per_step(accounting.kept(s), 0) for s in (0, 0.5, 0.75)]

    assert tuple(round(count / 1e9, 2) for count in found) == gigabytes


@pytest.mark.parametrize(
    ("shape", "kibibytes"),
    [("llama-2-7b", 512), ("llama-2-13b", 800), ("mistral-7b", 128), ("gemma-7b", 448), ("opt-13b", 800)],
)
def test_kv_bytes_of_a_token(shape: str, kibibytes: int) -> None:
    """Each token of the context adds its keys and values in all layers."""
    accounting = accounting_of(shape)
    added = accounting.bytes_per_step(1, 101) - accounting.bytes_per_step(1, 100)

    assert added == kibibytes * 1024


def test_keys_and_values_lower_the_ideal_speedup() -> None:
    """Llama 2 13B at a mean context of 3072 tokens: 1.43 and 1.82 instead of 1.49 and 1.98."""
    accounting = accounting_of("llama-2-13b")
    dense = accounting.bytes_per_step(accounting.neurons, 3072)
    kept = [accounting.kept(sparsity) for sparsity in (0.5, 0.75)]

    assert [round(dense / accounting.bytes_per_step(k, 3072), 2) for k in kept] == [1.43, 1.82]


def test_a_window_bounds_the_context() -> None:
    """Mistral 7B reads the keys of its latest 4096 tokens."""
    accounting = accounting_of("mistral-7b")

    assert accounting.bytes_per_step(1, 5000) == accounting.bytes_per_step(1, 4096)
    assert accounting.bytes_per_step(1, 4096) > accounting.bytes_per_step(1, 4095)


def test_every_family_counts_the_keys_and_values_it_keeps(model: PreTrainedModel) -> None:
    """They take as many bytes as in the model's own cache after a prompt."""
    accounting = Accounting.of(model)
    with torch.inference_mode():
        layers = model(torch.arange(3, 10)[None], use_cache=True).past_key_values.layers
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)

    assert accounting.bytes_per_step(5, 7) - accounting.bytes_per_step(5, 0) == held


def test_tables_are_looked_up_and_heads_are_read() -> None:
    """127 of 128 rows of 32 in fp32 are not read, unless the table is the head. GPT-2 also has positions."""
    not_read = 127 * 32 * 4
    untied, tied, positions = (Accounting.of(tiny_model(name)) for name in ("llama", "qwen2", "gpt2"))

    assert untied.weight_bytes == 4 * untied.total - not_read
    assert tied.weight_bytes == 4 * tied.total
    assert positions.weight_bytes == 4 * positions.total - 255 * 32 * 4


def test_every_family_counts_the_bytes_of_its_neurons(model: PreTrainedModel) -> None:
    """Four bytes for each parameter in fp32. To keep all neurons is to read the full model."""
    accounting = Accounting.of(model)
    everything = Kept([torch.arange(accounting.width)] * accounting.layers)

    assert accounting.feed_forward_bytes == 4 * accounting.feed_forward
    matrix = 4 * 32 * accounting.width
    for each in accounting.block_bytes:
        assert (each.gate, each.gate_scales, each.up, each.down) == (matrix, 0, matrix * accounting.gated, matrix)
        assert each.biases == 4 * accounting.width * accounting.per_bias
        assert each.by_neuron == 4 * accounting.width * accounting.per_neuron
    assert accounting.bytes_per_token(None) == accounting.bytes_per_token(everything) == accounting.weight_bytes


# Two layers of 10 neurons. A neuron has 6 bytes in the first layer and 10 in the second; the other weights have 40.
MIXED = Accounting(
    total=100, layers=2, width=10, per_neuron=4, per_bias=1, weight_bytes=200,
    block_bytes=(
        BlockBytes(gate=10, gate_scales=5, up=15, down=20, biases=10),
        BlockBytes(gate=20, gate_scales=10, up=20, down=40, biases=10),
    ),
)  # fmt: skip
UNEVEN = Kept([torch.arange(4), torch.arange(8)])


def thresholds(shares: Shares) -> Thresholds:
    empty = torch.empty(0)
    return Thresholds(shares, empty, empty, empty, empty, empty, empty)


def test_bytes_are_counted_layer_by_layer() -> None:
    """If layers have different formats, the layer of a kept neuron matters."""
    swapped = Kept([*reversed(UNEVEN.layers)])

    assert MIXED.bytes_per_token(UNEVEN) == 40 + 4 * 6 + 8 * 10
    assert MIXED.bytes_per_token(swapped) == 40 + 8 * 6 + 4 * 10
    assert MIXED.bytes_per_token_at(0.5) == MIXED.bytes_per_step(10, 0) == 40 + 5 * 6 + 5 * 10
    assert MIXED.feed_forward_bytes == 160


def test_by_thresholds_each_matrix_has_its_share() -> None:
    """Biases and the scales of the gate's matrix are always read whole."""
    chosen = thresholds(Shares(0.5, 0.4, 0.25))

    assert MIXED.bytes_per_token(chosen) == 40 + (5 + 5 + 6 + 5 + 10) + (10 + 10 + 8 + 10 + 10)
    assert MIXED.bytes_per_token(thresholds(Shares(1, 1, 1))) == MIXED.weight_bytes
    assert MIXED.bytes_per_token(thresholds(Shares(0, 0, 0))) == 40 + 5 + 10 + 10 + 10


def test_read_shares_replace_planned_ones() -> None:
    """If the shares that were read are known, they replace the planned ones."""
    chosen = thresholds(Shares(0.5, 0.5, 0.5))

    assert MIXED.bytes_per_token(chosen, Shares(1, 1, 0.5)) == 200 - 10 - 20
    assert MIXED.bytes_per_token(UNEVEN, Shares(1, 1, 1)) == MIXED.bytes_per_token(UNEVEN)


def test_active_parameters_by_thresholds() -> None:
    """Each of the 20 neurons has one parameter in each matrix. Biases are always active."""
    chosen = thresholds(Shares(0.5, 0.4, 0.25))

    assert MIXED.active_with(chosen) == MIXED.active_at(chosen.planned) == 100 - 10 - 12 - 15
    assert MIXED.active_with(UNEVEN) == 100 - 8 * 4
    plain = replace(MIXED, gated=False, per_neuron=3)
    # Without a gate the share of the up projection means nothing.
    assert plain.active_at(Shares(0.5, 0.0, 0.25)) == 100 - 10 - 15


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.8])
def test_both_methods_read_as_much(sparsity: float, model: PreTrainedModel) -> None:
    """In every family, with plain numbers; except that thresholds read all biases, and that whole neurons round."""
    accounting = Accounting.of(model)
    planned = thresholds(shares(sparsity, gated=accounting.gated))
    kept = Kept([torch.arange(kept_count(accounting.width, sparsity))] * accounting.layers)
    biases = sum(each.biases for each in accounting.block_bytes)
    rounding = accounting.layers * accounting.per_neuron

    assert abs(accounting.active_with(planned) - accounting.active_with(kept) - biases / 4 * sparsity) <= rounding
    assert (
        abs(accounting.bytes_per_token(planned) - accounting.bytes_per_token(kept) - biases * sparsity) <= 4 * rounding
    )


def test_scales_are_counted_apart_from_codes() -> None:
    """A gate stored by input has its scales read whole. Other scales are read with their rows."""
    coded, _ = coded_model(lambda _: T.Q4_K, hidden_size=256, intermediate_size=256, head_dim=64)
    for each, block in zip(Accounting.of(coded).block_bytes, feed_forwards(coded), strict=True):
        gate, up = block.parts_FD

        assert each.gate == 256 * 256 // 2
        assert each.gate + each.gate_scales == gate.bytes
        assert each.up == up.bytes
        # Rows share their scales: these are read with any of them.
        assert each.down == 256 * 256 // 2


def test_bytes_of_int8_are_those_of_its_rows() -> None:
    """A row has its codes and one scale; the contracting matrix stays plain."""
    model = tiny_model("llama")
    round_(model, "int8")
    (found,) = set(Accounting.of(model).block_bytes)

    assert found == BlockBytes(gate=52 * 32, gate_scales=52 * 4, up=52 * 36, down=52 * 128, biases=2 * 52 * 4)
