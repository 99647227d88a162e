"""The real default model: dense equals generate, pruned equals the masked model, quality is in the right order."""

import math
from pathlib import Path

import pytest
import torch

from griffin import Checkpoint, Engine, Pruning, Sampling
from griffin.request import DEFAULT_METHOD
from tests.griffin import oracle

PROSE = (Path(__file__).parents[1] / "prose.txt").read_text()

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n",
    "Once upon a time, in a village by the sea,",
    "Water boils at 100 degrees because",
    PROSE[:1500],
)


@pytest.fixture(scope="module")
def engine(smollm2: Checkpoint) -> Engine:
    return Engine(smollm2.model, prefill_chunk=128)


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt[:20])
def test_dense_is_generate(prompt: str, engine: Engine, smollm2: Checkpoint) -> None:
    """32 greedy tokens at sparsity 0 are those of transformers' generate."""
    ids = smollm2.tokenizer(prompt).input_ids
    inputs = torch.tensor([ids])
    expected = smollm2.model.generate(
        inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=32
    )[0, len(ids) :].tolist()

    assert [token.id for token in engine.generate(ids, Sampling(temperature=0, max_tokens=32))] == expected


@pytest.mark.parametrize("prompt", PROMPTS[2:], ids=lambda prompt: prompt[:20])
def test_half_is_the_masked_model(prompt: str, engine: Engine, smollm2: Checkpoint) -> None:
    """32 greedy tokens at sparsity 0.5 are those of the full model with masked activations."""
    ids = smollm2.tokenizer(prompt).input_ids
    expected, logits = oracle.generate(smollm2.model, ids, 0.5, 32)
    tokens = list(
        engine.generate(ids, Sampling(temperature=0, max_tokens=32, ignore_eos=True, logprobs=0), Pruning(0.5))
    )

    assert [token.id for token in tokens] == expected
    logprobs = logits.log_softmax(dim=1).amax(dim=1)
    assert (torch.tensor([token.logprobs.chosen for token in tokens]) - logprobs).abs().max() < 1e-3


def test_quality_falls_with_sparsity_and_far_more_without_the_prompt(engine: Engine, smollm2: Checkpoint) -> None:
    """Perplexity of prose: full < griffin+ 50 % < GRIFFIN 25 % < GRIFFIN 50 % << magnitude 50 %."""
    ids = smollm2.tokenizer(PROSE).input_ids
    prompt, rest = ids[:512], ids[512:704]

    def perplexity(pruning: Pruning) -> float:
        return math.exp(-float(engine.score(prompt, rest, pruning).mean()))

    full, quarter, half = (perplexity(Pruning(sparsity)) for sparsity in (0.0, 0.25, 0.5))
    static = perplexity(Pruning(0.5, statistic="magnitude"))
    plus = perplexity(Pruning(0.5, method=DEFAULT_METHOD))

    assert full < plus < quarter < half
    assert half * 20 < static
