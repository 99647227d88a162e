"""What our own steps read from a model, and which models they leave to the library."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from griffin import Engine, Sampling
from griffin.model.families import feed_forwards
from griffin.model.layout import store_by_neuron_
from griffin.model.weights import QueryGrowth, read_weights
from tests.tiny import COMMON_BLOCK, tiny_model

Prompts = Callable[[int, int], list[int]]
GREEDY = Sampling(temperature=0, max_tokens=16, ignore_eos=True)


@pytest.mark.parametrize(
    ("model_type", "stray"),
    [
        ("llama", {"sliding_window": 4}),
        ("opt", {"sliding_window": 4}),
        ("gemma", {"sliding_window": 4}),
        ("llama", {"attn_logit_softcapping": 5.0}),
        ("llama", {"final_logit_softcapping": 3.0}),
        ("llama", {"hidden_activation": "relu"}),
        ("gemma3_text", {"attn_logit_softcapping": 2.0}),
    ],
)
def test_what_the_family_does_not_read_changes_nothing(
    model_type: str, stray: dict[str, object], prompts: Prompts
) -> None:
    """A config.json may have any key; the model's own code decides which keys count."""
    model = tiny_model(model_type, **stray)
    prompt = prompts(1, 20)
    expected = list(prompt)
    with torch.no_grad():
        # Without a cache, because the library chooses the cache's layers by the same keys.
        for _ in range(16):
            expected.append(int(model(torch.tensor([expected]), use_cache=False).logits[0, -1].argmax()))

    for step in ("twin", "lean", "auto"):
        tokens = Engine(model, step=step).generate(prompt, GREEDY)
        assert [token.id for token in tokens] == expected[20:]


def test_fields_of_newer_families() -> None:
    """Multipliers, layers without rotary positions, frequencies for each kind of layer, growing queries."""
    granite, smollm3, olmo3, ministral3, gemma = (
        read_weights(tiny_model(name)) for name in ("granite", "smollm3", "olmo3", "ministral3", "gemma")
    )
    assert (granite.embedding_scale, granite.residual_scale, granite.scale, granite.logit_divisor) == (3, 0.4, 0.2, 6)
    assert [layer.rotary is None for layer in smollm3.layers] == [False, True, False]
    assert [layer.window for layer in smollm3.layers] == [layer.window for layer in olmo3.layers] == [8, 8, None]
    assert olmo3.layers[0].rotary is olmo3.layers[1].rotary is not olmo3.layers[2].rotary
    assert [layer.rotary.scaling > 1 for layer in olmo3.layers] == [False, False, True]
    assert ministral3.query_growth == QueryGrowth(rate=0.1, context=5)
    assert (gemma.residual_scale, gemma.logit_divisor, gemma.query_growth) == (1, 1, None)
    assert gemma.embedding_scale == pytest.approx(32**0.5)


class Adapted(nn.Linear):
    """A projection that computes more than its weight, like one with an adapter."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.5 * super().forward(x)


def test_adapted_projections_are_run_by_the_model(prompts: Prompts) -> None:
    """Their weight alone is not what they compute."""
    model = tiny_model("llama")
    model.model.layers[1].self_attn.q_proj.__class__ = Adapted

    assert read_weights(model) is None
    assert Engine(model).step == "twin"


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_norm_elementwise_affine": False},
        {"_remove_final_layer_norm": True},
        {"do_layer_norm_before": False},
        {"word_embed_proj_dim": 16},
        {"activation_function": "quick_gelu"},
    ],
)
def test_variants_without_the_common_form_still_run(changes: dict[str, object], prompts: Prompts) -> None:
    """They decode with their own forward pass."""
    engine = Engine(tiny_model("opt", **changes))

    assert engine.step == "twin"
    assert len(list(engine.generate(prompts(2, 9), GREEDY))) == 16


@pytest.mark.parametrize("model_type", COMMON_BLOCK)
def test_nothing_that_a_token_reads_is_copied(model_type: str) -> None:
    """Merged weights are the model's own memory, for all engines. Angles are computed once for each kind of layer."""
    model = tiny_model(model_type)
    store_by_neuron_(feed_forwards(model))
    first, second = read_weights(model), read_weights(model)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    for weights in (first, second):
        for layer in weights.layers:
            read = (layer.query_key_value.matrix, layer.output.matrix, layer.feed_forward.expand.matrix)

            assert all(
                matrix.dense().untyped_storage().data_ptr() in own for matrix in (*read, layer.feed_forward.contract)
            )
    kinds = len(set(getattr(model.config, "layer_types", None) or [""]))
    assert len({id(layer.rotary) for layer in first.layers if layer.rotary}) <= kinds
