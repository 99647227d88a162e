"""Prompts, or what is left of them, in the decoder's passes: the same statistic, scores and tokens to rounding."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from griffin import Engine, Pruning, Sampling, Scoring
from griffin.decode.decoder import PassingStep
from griffin.engine.prefill import PassLimit, Prefill
from griffin.engine.prefixes import PrefixStore
from tests.tiny import COMMON_BLOCK, tiny_model

Prompts = Callable[[int, int], list[int]]
GREEDY = Sampling(temperature=0, max_tokens=8, ignore_eos=True)


def engines(family: str, chunk: int = 64) -> tuple[Engine, Engine]:
    """One that reads prompts by the model's own code, and one that reads them in passes."""
    model = tiny_model(family)
    return Engine(model, prefill_chunk=chunk), Engine(model, prefill_chunk=chunk, passes=PassLimit(chunk))


@pytest.mark.parametrize("family", COMMON_BLOCK)
def test_a_prompt_in_passes(family: str, prompts: Prompts) -> None:
    """Longer than one pass: scores, everything that was counted, and the answers of both methods."""
    by_model, by_pass = engines(family)
    prompt, found = prompts(1, 41), []
    for engine in (by_model, by_pass):
        griffin, plus = Pruning(0.5), Pruning(0.5, method="griffin+")
        with engine.read(prompt, plus, Scoring(prompt_tokens=41), others=(griffin,)) as read:
            assert read.scores is not None
            scores = torch.tensor([score.chosen for score in read.scores if score])
            sums = engine._assembly.state.statistic.sums()
        with engine.read(prompt, plus, others=(griffin,)) as read:
            answers = [[token.id for token in read.generate(GREEDY)]]
            read.prune(griffin)
            answers.append([token.id for token in read.generate(GREEDY)])
        found.append((scores, sums, answers))
    (scores, sums, answers), (own_scores, own_sums, own_answers) = found

    torch.testing.assert_close(own_scores, scores, atol=1e-4, rtol=1e-4)
    for values, own in zip(sums.values, own_sums.values, strict=True):
        torch.testing.assert_close(own, values, atol=1e-4, rtol=1e-3)
    assert own_sums.tokens == sums.tokens == 41
    assert own_answers == answers


def test_only_chunks_up_to_the_limit(prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left after whole chunks, read or known, goes through a pass."""
    engine = Engine(tiny_model("llama"), prefixes=PrefixStore(1 << 24, 32), prefill_chunk=32, passes=PassLimit(20))
    observed, own = list[int](), Prefill._pass

    def observe(prefill: Prefill, step: PassingStep, ids: list[int], wanted: int) -> Tensor:
        observed.append(len(ids))
        return own(prefill, step, ids, wanted)

    monkeypatch.setattr(Prefill, "_pass", observe)
    for length in (75, 75, 61, 20, 32):
        list(engine.generate(prompts(2, length), GREEDY, Pruning(0.5)))

    assert observed == [11, 11, 20]


@pytest.mark.parametrize(
    ("token", "few", "many", "expected"),
    [(1.0, 17.0, 65.0, 256), (2.0, 16.0, 64.0, 0), (2.0, 66.0, 114.0, 50), (2.0, 1000.0, 1048.0, 256)],
    ids=["always faster", "never", "up to some", "up to a chunk"],
)
def test_the_limit_is_where_both_take_as_long(token: float, few: float, many: float, expected: int) -> None:
    """The model's own code takes something for each call and each token; a pass only for each token."""
    limit = PassLimit()
    limit.decide(token, few, many, 256)

    assert (limit.tokens, limit.measured) == (expected, True)


def test_it_is_measured_once() -> None:
    """When an engine is warmed up, for all that share it."""
    model, limit = tiny_model("llama"), PassLimit()
    first, second = (Engine(model, passes=limit) for _ in range(2))
    first.warm_up()
    assert limit.measured
    limit.tokens = 7
    second.warm_up()
    assert limit.tokens == 7
