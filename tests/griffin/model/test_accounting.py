"""Parameter counts against the paper's, on real configurations without weights."""

from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from griffin.experiments.speed.shapes import shape_config
from griffin.model.accounting import Accounting, NeuronBytes
from griffin.model.loading import Checkpoint
from griffin.neurons import Acting, Correction, Kept
from tests.griffin.model.quantised import round_
from tests.tiny import tiny_model


@cache
def accounting_of(shape: str) -> Accounting:
    """Of a named shape in bfloat16."""
    with torch.device("meta"):
        return Accounting.of(AutoModelForCausalLM.from_config(shape_config(shape), dtype=torch.bfloat16))


@pytest.mark.parametrize(("shape", "total", "active"), [("llama-2-13b", 13.0, 8.8), ("gemma-7b", 8.5, 5.4)])
def test_active_parameters_of_the_paper(shape: str, total: float, active: float) -> None:
    """At 50 % Llama 2 13B uses 8.8 of 13 billion parameters, Gemma 7B 5.4 of 8.5 (paper, 4.2)."""
    accounting = accounting_of(shape)

    assert round(accounting.total / 1e9, 1) == total
    assert round(accounting.active(accounting.kept(0.5)) / 1e9, 1) == active


def test_smollm2(smollm2: Checkpoint) -> None:
    """The embedded model's counts, to the parameter."""
    accounting = Accounting.of(smollm2.model)

    assert (accounting.total, accounting.active(30 * 768)) == (134_515_008, 94_701_888)
    assert accounting.neurons == 30 * 1536


def test_every_family_counts_what_its_block_holds(model: PreTrainedModel) -> None:
    """Keeping all neurons is the whole model; a neuron's share is its rows, their biases and its column."""
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
    """At 0, 50 and 75 %: an untied embedding is one row, and so are OPT's positions; a tied one is read as the head."""
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
    """As many bytes as the model's own cache holds after a prompt."""
    accounting = Accounting.of(model)
    with torch.inference_mode():
        layers = model(torch.arange(3, 10)[None], use_cache=True).past_key_values.layers
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)

    assert accounting.bytes_per_step(5, 7) - accounting.bytes_per_step(5, 0) == held


def test_tables_are_looked_up_and_heads_are_read() -> None:
    """Of 128 rows of 32 in fp32: 127 are not read unless the head is the same table. GPT-2 has positions besides."""
    not_read = 127 * 32 * 4
    untied, tied, positions = (Accounting.of(tiny_model(name)) for name in ("llama", "qwen2", "gpt2"))

    assert untied.weight_bytes == 4 * untied.total - not_read
    assert tied.weight_bytes == 4 * tied.total
    assert positions.weight_bytes == 4 * positions.total - 255 * 32 * 4


def test_every_family_counts_the_bytes_of_its_neurons(model: PreTrainedModel) -> None:
    """In fp32, four for each parameter; keeping all neurons reads what the full model reads."""
    accounting = Accounting.of(model)
    everything = Kept([torch.arange(accounting.width)] * accounting.layers)

    assert accounting.feed_forward_bytes == 4 * accounting.feed_forward
    assert all((each.gate, each.whole, each.widening) == (4 * accounting.per_gate, 4 * accounting.per_neuron, 0)
               for each in accounting.neuron_bytes)  # fmt: skip
    assert accounting.bytes_per_token(None) == accounting.bytes_per_token(everything) == accounting.weight_bytes


# Two layers of 10 neurons: of a neuron the first reads 2 + 4 bytes, the second 2 + 8; besides, a token reads 40.
MIXED = Accounting(
    total=100, layers=2, width=10, per_neuron=3, weight_bytes=200,
    neuron_bytes=(NeuronBytes(2, 4, widening=10), NeuronBytes(2, 8, widening=6)),
)  # fmt: skip
UNEVEN = Kept([torch.arange(4), torch.arange(8)])


def acting(count: int) -> Acting:
    return Acting([], [], [], count)


def test_bytes_are_counted_layer_by_layer() -> None:
    """Which layer a neuron is kept in matters where layers have different formats."""
    swapped = Kept([*reversed(UNEVEN.layers)])

    assert MIXED.bytes_per_token(UNEVEN) == 40 + 4 * 6 + 8 * 10
    assert MIXED.bytes_per_token(swapped) == 40 + 8 * 6 + 4 * 10
    assert MIXED.bytes_per_token_at(0.5) == MIXED.bytes_per_step(10, 0) == 40 + 5 * 6 + 5 * 10
    assert MIXED.feed_forward_bytes == 160


def test_a_resting_neuron_reads_its_gate() -> None:
    """Each layer lets the same share act: here a quarter."""
    kept = Kept(UNEVEN.layers, acting=acting(3))

    assert MIXED.bytes_per_token(kept) == 40 + 4 * 2 + 1 * 4 + 8 * 2 + 2 * 8
    assert MIXED.bytes_per_token(Kept(UNEVEN.layers, acting=acting(0))) == 40 + 12 * 2


def test_corrected_rows_are_plain_numbers() -> None:
    """They take more bytes than the file's own, and are read of acting neurons only."""
    correction = Correction([], [])
    kept = Kept(UNEVEN.layers, correction=correction, acting=acting(3))
    read = 40 + 4 * 2 + 1 * (4 + 10) + 8 * 2 + 2 * (8 + 6)

    assert MIXED.bytes_per_token(kept) == read
    assert MIXED.bytes_per_token(Kept(UNEVEN.layers, acting=acting(3)), corrected=True) == read


def test_bytes_of_int8_are_those_of_its_rows() -> None:
    """Codes and a scale for each row; a second projection stays plain, so nothing is widened."""
    model = tiny_model("llama")
    plain = Accounting.of(model).neuron_bytes
    round_(model, "int8")
    rounded = Accounting.of(model).neuron_bytes

    assert {(each.gate, each.others, each.widening) for each in plain} == {(4 * 33, 4 * (33 + 32), 0)}
    assert {(each.gate, each.others, each.widening) for each in rounded} == {(32 + 4 + 4, 32 + 4 + 4 + 128, 0)}
