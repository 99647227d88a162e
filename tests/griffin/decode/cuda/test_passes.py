"""Several tokens in one pass beside as many steps: the same bits, in logits, keys, values and counts."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from griffin.neurons import Chosen
from griffin.thresholds import Shares
from tests.griffin.decode.cuda.test_step import CONTEXT, DEVICE, draw_kept, draw_thresholds, fused, tiny_weights
from tests.tiny import COMMON_BLOCK

PROMPT = 5
IDS = torch.randint(3, 128, (PROMPT + 16,), generator=torch.Generator().manual_seed(2)).tolist()


class Sequenced:
    """A step whose cache holds a prompt."""

    def __init__(self, family: str, dtype: torch.dtype = torch.float32) -> None:
        self.step = fused.FusedStep(tiny_weights(family, dtype), CONTEXT)
        for held in (*self.step.keys, *self.step.values):
            held.zero_()
        self.steps(IDS[:PROMPT], 0)

    def steps(self, ids: Sequence[int], start: int = PROMPT) -> Tensor:
        """The logits after each token, ``(M, V)``, of a step for each."""
        self.step.position.fill_(start)
        rows = []
        for id in ids:
            self.step.token_id.fill_(id)
            self.step.run(CONTEXT)
            rows.append(self.step.logits_V.clone())
        return torch.stack(rows)

    def passed(self, ids: Sequence[int], tokens: int) -> Tensor:
        """Likewise, of one pass over so many tokens; those after ``ids`` are not wanted."""
        self.step.ids_M[: len(ids)] = torch.tensor(ids)
        self.step.position.fill_(PROMPT)
        self.step.count.fill_(len(ids))
        self.step.run(CONTEXT, tokens)
        return self.step.logits_MV[: len(ids)].clone()

    def written(self, count: int) -> list[Tensor]:
        """Keys and values up to so many tokens after the prompt."""
        return [held[:, :, : PROMPT + count].clone() for held in (*self.step.keys, *self.step.values)]

    def spoil(self) -> None:
        """Nothing may be read that was written after the prompt."""
        for held in (*self.step.keys, *self.step.values):
            held[:, :, PROMPT:] = torch.nan


def check(sequenced: Sequenced, chosen: Chosen | None, count: int = 3, tokens: int = 4) -> None:
    """A pass with room for ``tokens``, of which so many are wanted."""
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
def test_halves_too(dtype: torch.dtype) -> None:
    """Each value is rounded where a step rounds it."""
    sequenced = Sequenced("gemma2", dtype)
    check(sequenced, draw_thresholds(sequenced.step.weights), 2, 2)


@pytest.mark.parametrize(("family", "count", "tokens"), [("opt", 7, 8), ("llama", 16, 16)])
def test_groups_of_tokens_follow_each_other(family: str, count: int, tokens: int) -> None:
    """More tokens than a program multiplies at a time."""
    check(Sequenced(family), None, count, tokens)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_pass_of_kept_neurons_has_the_bits_of_steps(family: str) -> None:
    """Few, more and all."""
    check(Sequenced(family), draw_kept(21, 5, 52, device=DEVICE), 2, 2)


@pytest.mark.parametrize(("family", "scale"), [("llama", 1.0), ("opt", 1.0), ("llama", 1e6), ("opt", -1.0)])
def test_each_token_of_a_pass_picks_what_it_reads(family: str, scale: float) -> None:
    """Something, nothing or everything; tokens that are not wanted are not counted."""
    sequenced = Sequenced(family)
    check(sequenced, draw_thresholds(sequenced.step.weights, scale))


@pytest.mark.parametrize("by", ["kept", "thresholds"])
def test_a_pass_may_read_everything_meanwhile(by: str) -> None:
    """Steps go on as they were, and such tokens are not counted."""
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
    """Learned positions and the cache end there; what is not wanted has neither."""
    sequenced = Sequenced("opt")
    ids = IDS[:2]
    start = CONTEXT - 2
    expected_MV = sequenced.steps(ids, start)
    sequenced.step.ids_M[:2] = torch.tensor(ids)
    sequenced.step.position.fill_(start)
    sequenced.step.run(CONTEXT, 8)

    assert torch.equal(sequenced.step.logits_MV[:2], expected_MV)
