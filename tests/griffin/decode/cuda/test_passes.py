"""A pass of several tokens gives the same bits as single steps: logits, keys, values and counts."""

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from griffin.method.statistic import PromptStatistic
from griffin.model.cache import KVCache
from griffin.model.families import feed_forwards
from griffin.model.layout import store_by_neuron_
from griffin.model.weights import read_weights
from griffin.neurons import Chosen
from griffin.thresholds import Shares
from tests.griffin.decode.cuda.test_step import CONTEXT, DEVICE, draw_kept, draw_thresholds, fused, tiny_weights
from tests.tiny import COMMON_BLOCK, tiny_model

passing = pytest.importorskip("griffin.decode.cuda.passes", reason="needs triton", exc_type=ImportError)

PROMPT = 5
IDS = torch.randint(3, 128, (PROMPT + 16,), generator=torch.Generator().manual_seed(2)).tolist()


class Sequenced:
    """A step whose cache holds a prompt: keys and values drawn at random, which takes less time than steps."""

    def __init__(self, family: str, dtype: torch.dtype = torch.float32) -> None:
        self.step = fused.FusedStep(tiny_weights(family, dtype), CONTEXT)
        dice = torch.Generator().manual_seed(3)
        for held in (*self.step.keys, *self.step.values):
            held.zero_()
            prompt = held[:, :, :PROMPT]
            prompt.copy_(torch.randn(prompt.shape, generator=dice))

    def steps(self, ids: Sequence[int], start: int = PROMPT) -> Tensor:
        """The logits of single steps after each token, ``(M, V)``."""
        self.step.position.fill_(start)
        rows = []
        for id in ids:
            self.step.token_id.fill_(id)
            self.step.run(CONTEXT)
            rows.append(self.step.logits_V.clone())
        return torch.stack(rows)

    def passed(self, ids: Sequence[int], tokens: int) -> Tensor:
        """The logits of one pass with room for ``tokens`` tokens, of which only ``ids`` are wanted, ``(M, V)``."""
        self.step.ids_M[: len(ids)] = torch.tensor(ids)
        self.step.position.fill_(PROMPT)
        self.step.count.fill_(len(ids))
        self.step.run(CONTEXT, tokens)
        return self.step.logits_MV[: len(ids)].clone()

    def written(self, count: int) -> list[Tensor]:
        """Keys and values up to ``count`` tokens after the prompt."""
        return [held[:, :, : PROMPT + count].clone() for held in (*self.step.keys, *self.step.values)]

    def spoil(self) -> None:
        """Overwrite the keys and values after the prompt with NaN, so that a read of them is noticed."""
        for held in (*self.step.keys, *self.step.values):
            held[:, :, PROMPT:] = torch.nan


def check(sequenced: Sequenced, chosen: Chosen | None, count: int = 3, tokens: int = 4) -> None:
    """Compare a pass with room for ``tokens``, of which ``count`` are wanted, with single steps."""
    ids = IDS[PROMPT : PROMPT + count]
    sequenced.spoil()
    sequenced.step.keep(chosen)
    expected_MV = sequenced.steps(ids)
    cached, shares = sequenced.written(count), sequenced.step.shares()
    sequenced.spoil()
    sequenced.step.keep(chosen)
    sequenced.step.have_passes_read(full=False)

    assert torch.equal(sequenced.passed(ids, tokens), expected_MV)
    assert all(map(torch.equal, sequenced.written(count), cached))
    assert sequenced.step.shares() == shares


@pytest.mark.parametrize("family", COMMON_BLOCK)
def test_a_dense_pass_has_the_bits_of_steps(family: str) -> None:
    """Every family: windows, norms before and after, learned positions, biases."""
    check(Sequenced(family), None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_pass_in_half_precision_has_the_bits_of_steps(dtype: torch.dtype) -> None:
    """In half precision, a pass rounds each value where a step rounds it."""
    sequenced = Sequenced("gemma2", dtype)
    check(sequenced, draw_thresholds(sequenced.step.weights), 2, 2)


@pytest.mark.parametrize(("family", "count", "tokens"), [("opt", 7, 8), ("llama", 16, 16)])
def test_groups_of_tokens_follow_each_other(family: str, count: int, tokens: int) -> None:
    """With more tokens than a program multiplies at a time."""
    check(Sequenced(family), None, count, tokens)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_pass_of_kept_neurons_has_the_bits_of_steps(family: str) -> None:
    """Some layers keep few neurons, others more or all."""
    check(Sequenced(family), draw_kept(21, 5, 52, device=DEVICE), 2, 2)


@pytest.mark.parametrize(("family", "scale"), [("llama", 1.0), ("opt", 1.0), ("llama", 1e6), ("opt", -1.0)])
def test_each_token_of_a_pass_picks_what_it_reads(family: str, scale: float) -> None:
    """Something, nothing or everything. Only wanted tokens are counted."""
    sequenced = Sequenced(family)
    check(sequenced, draw_thresholds(sequenced.step.weights, scale))


@pytest.mark.parametrize("by", ["kept", "thresholds"])
def test_a_pass_may_read_all_neurons(by: str) -> None:
    """A pass with all neurons does not change later steps, and its tokens are not counted."""
    sequenced, ids = Sequenced("llama"), IDS[PROMPT : PROMPT + 2]
    weights = sequenced.step.weights
    chosen = draw_kept(21, 5, 52, device=DEVICE) if by == "kept" else draw_thresholds(weights)
    dense_MV = sequenced.steps(ids)
    sequenced.step.keep(chosen)
    sparse_MV = sequenced.steps(ids)
    shares = sequenced.step.shares()
    for full, expected_MV in ((True, dense_MV), (False, sparse_MV), (True, dense_MV)):
        sequenced.step.have_passes_read(full=full)
        assert torch.equal(sequenced.passed(ids, 2), expected_MV)
    assert torch.equal(sequenced.steps(ids), sparse_MV)
    assert not torch.equal(dense_MV, sparse_MV)
    assert (shares is None) == (by == "kept")
    if isinstance(shares, Shares):
        assert sequenced.step.shares() == shares


def test_a_pass_at_the_contexts_end_writes_nothing_beyond_it() -> None:
    """Learned positions and the cache end there; only unwanted tokens are beyond it."""
    sequenced = Sequenced("opt")
    ids = IDS[:2]
    start = CONTEXT - 2
    expected_MV = sequenced.steps(ids, start)
    sequenced.step.ids_M[:2] = torch.tensor(ids)
    sequenced.step.position.fill_(start)
    sequenced.step.run(CONTEXT, 8)

    assert torch.equal(sequenced.step.logits_MV[:2], expected_MV)


class Passing:
    """Passes of a model of one layer, whose buckets are short."""

    BUCKETS = (8, 16, CONTEXT)

    def __init__(self, family: str) -> None:
        self.model = tiny_model(family, num_hidden_layers=1).to(DEVICE)
        store_by_neuron_(feed_forwards(self.model))
        weights = read_weights(self.model)
        assert weights is not None
        self.step, self.cache = fused.FusedStep(weights, CONTEXT), KVCache(1)
        self.cache.adopt(self.step.keys, self.step.values)
        recorded = {
            (bucket, tokens): partial(self.step.run, bucket, tokens)
            for bucket in self.BUCKETS
            for tokens in fused.PASSES
        }
        self.passes = passing.GraphPasses(self.step, self.cache, self.BUCKETS, recorded)

    def steps(self, ids: Sequence[int]) -> Tensor:
        """The logits of single steps from the beginning of the sequence, ``(T, V)``."""
        rows = []
        self.step.position.zero_()
        for place, id in enumerate(ids):
            self.step.token_id.fill_(id)
            self.step.run(next(bucket for bucket in self.BUCKETS if bucket > place))
            rows.append(self.step.logits_V.clone())
        return torch.stack(rows)


def test_passes_end_where_buckets_do() -> None:
    """Tokens that cross two buckets and are more than the largest pass; then one token, and two."""
    made, ids = Passing("llama"), [*IDS, *IDS[:4]]
    expected_TV = made.steps(ids)
    found = [made.passes.read(part).clone() for part in (ids[:22], ids[22:23], ids[23:25])]

    assert torch.equal(torch.cat(found), expected_TV)
    assert made.cache.length == 25


@pytest.mark.parametrize("family", ["llama", "olmo2", "opt"])
def test_what_a_pass_sees_is_what_the_model_counts(family: str) -> None:
    """With a gate and without, with a norm before the block and without; two passes, with few kept neurons."""
    made, ids = Passing(family), IDS[:11]
    blocks = feed_forwards(made.model)
    ours, expected = PromptStatistic(blocks), PromptStatistic(blocks)
    with torch.inference_mode(), expected.collecting():
        own_TV = made.model(torch.tensor([ids], device=DEVICE), past_key_values=DynamicCache()).logits[0]
    made.step.keep(draw_kept(5, device=DEVICE))
    rows_TV, seen = made.passes.observe(ids, 3)
    ours.count(seen)

    torch.testing.assert_close(rows_TV, own_TV[-3:], atol=1e-4, rtol=1e-4)
    assert ours.tokens == expected.tokens == 11
    for found, wanted in zip(ours.sums().values, expected.sums().values, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_a_pass_beyond_the_context_is_refused() -> None:
    """The cache and the positions end there."""
    made = Passing("llama")
    made.cache.length = CONTEXT - 1

    with pytest.raises(IndexError, match="a pass of 2 tokens does not fit a context of 64 after 63"):
        made.passes.read(IDS[:2])
