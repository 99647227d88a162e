"""The comparison of kept neurons with the full model on an answer, against whole passes of the masked model."""

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from griffin import Comparison, Engine, Pruning
from griffin.engine.prompt import Prompt
from griffin.errors import Cancelled
from griffin.neurons import Kept
from tests.griffin import oracle
from tests.griffin.engine.sequences import HALF, Prompts, greedy, ids
from tests.tiny import tiny_model


@torch.no_grad()
def compared(model: PreTrainedModel, prompt: list[int], read: Prompt, tokens: list[int]) -> Comparison:
    """The comparison, computed from whole forward passes of the full model and of the masked model."""
    text, count = torch.tensor([[*prompt, *tokens[:-1]]]), len(tokens) - 1
    full = model(text).logits[0, -count:].log_softmax(dim=1)
    cache = DynamicCache(config=model.config)
    model(text[:, : len(prompt)], past_key_values=cache)
    with oracle.masked(model, Kept([kept_k.long() for kept_k in read.selection.chosen.layers])):
        pruned = model(text[:, len(prompt) :], past_key_values=cache).logits[0].log_softmax(dim=1)
    targets = torch.tensor(tokens[1:])[:, None]
    losses = [-side.gather(1, targets).mean() for side in (full, pruned)]
    return Comparison(
        count,
        float((full.exp() * (full - pruned)).sum(dim=1).mean()),
        float((full.argmax(dim=1) == pruned.argmax(dim=1)).float().mean()),
        float(losses[0].exp() / losses[1].exp()),
    )


def test_comparison_with_the_full_model(
    model: PreTrainedModel, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is computed in chunks, and a sequence before or after it does not change."""
    monkeypatch.setattr("griffin.engine.prompt.AT_ONCE", 4)
    engine, prompt, sampling = (
        Engine(model, prefill_chunk=7),
        prompts(23, 17),
        replace(greedy(14), seed=1, temperature=1),
    )
    with engine.read(prompt, HALF) as read:
        tokens = ids(list(read.generate(sampling)))
        before = engine._assembly.state.statistic.sums()
        found = read.compare(tokens)
        again = ids(list(read.generate(sampling)))
        expected = compared(model, prompt, read, tokens)

    assert found.tokens == 13
    assert found.kl == pytest.approx(expected.kl, abs=1e-4, rel=1e-4)
    assert found.top1_agreement == pytest.approx(expected.top1_agreement)
    assert found.perplexity_ratio == pytest.approx(expected.perplexity_ratio, rel=1e-3)
    assert again == tokens
    after = engine._assembly.state.statistic.sums()
    assert all(found.equal(was) for found, was in zip(after.values, before.values, strict=True))


def test_comparison_needs_no_sequence_before_it(prompts: Prompts) -> None:
    """An earlier answer can be compared later, with the same neurons that made it."""
    engine, prompt = Engine(tiny_model("llama")), prompts(24, 17)
    with engine.read(prompt, HALF) as read:
        tokens = ids(list(read.generate(greedy(10))))
        selection, expected = read.selection, read.compare(tokens)
    with engine.read(prompt, Pruning(0.5, reuse=selection)) as read:
        assert read.compare(tokens) == expected


@pytest.mark.parametrize(("sparsity", "tokens"), [(0.0, [5, 6, 7]), (0.5, [5]), (0.5, [])])
def test_nothing_to_compare(sparsity: float, tokens: list[int], prompts: Prompts) -> None:
    """With all neurons, or without a token from kept neurons, there is no comparison."""
    with Engine(tiny_model("llama")).read(prompts(25, 17), Pruning(sparsity)) as read:
        assert read.compare(tokens) is None


def test_a_comparison_can_be_given_up(prompts: Prompts) -> None:
    """It stops between two chunks, and the prompt can still be used."""
    asked = iter([False, False, True])
    with Engine(tiny_model("llama"), prefill_chunk=4).read(prompts(26, 17), HALF) as read:
        expected = ids(list(read.generate(greedy(20))))
        with pytest.raises(Cancelled):
            read.compare(expected, lambda: next(asked))

        assert ids(list(read.generate(greedy(20)))) == expected
