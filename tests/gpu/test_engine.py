"""The engine on a CUDA device against the same model on the CPU."""

import pytest
import torch

from griffin import Engine, Pruning, Sampling
from tests.griffin import oracle
from tests.tiny import tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_pruned_decoding_equals_the_masked_model(family: str) -> None:
    """Greedy tokens at half the neurons, in fp32, for every family."""
    prompt = torch.randint(3, 128, (20,), generator=torch.Generator().manual_seed(1)).tolist()
    expected, _ = oracle.generate(tiny_model(family), prompt, 0.5, 12)
    engine = Engine(tiny_model(family).to("cuda"), prefill_chunk=7)
    sampling = Sampling(temperature=0, max_tokens=12, ignore_eos=True)

    assert [token.id for token in engine.generate(prompt, sampling, Pruning(0.5))] == expected


def test_seeded_selections_and_draws_repeat() -> None:
    """Selections that draw choose the same neurons as on the CPU; sampled tokens repeat by seed."""
    models = [tiny_model("llama"), tiny_model("llama").to("cuda")]
    pruning = Pruning(0.5, selection="sample", statistic="magnitude", seed=3)
    sampling = Sampling(seed=5, max_tokens=8, ignore_eos=True)
    runs = [list(Engine(model).generate([7, 8, 9], sampling, pruning)) for model in [*models, models[1]]]

    assert runs[0][1].selection.expert_set == runs[1][1].selection.expert_set
    assert [token.id for token in runs[1]] == [token.id for token in runs[2]]
