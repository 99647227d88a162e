"""Given tokens through kept neurons: with passes, the scores have the bits with which the answer was generated."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from griffin import Engine, Pruning, Sampling, Scoring
from griffin.decode.decoder import PASS_TOKENS
from griffin.errors import Cancelled
from griffin.request import METHOD_NAMES, MethodName
from tests.griffin.engine.sequences import HALF, Prompts, ids
from tests.tiny import tiny_model

SAMPLING = Sampling(seed=3, max_tokens=2 * PASS_TOKENS + 9, ignore_eos=True, logprobs=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
def test_an_answer_scores_as_it_was_generated(
    family: str, method: MethodName, dtype: torch.dtype, prompts: Prompts
) -> None:
    """The bits are the same over several passes, and generation continues as it would have."""
    engine, prompt = Engine(tiny_model(family).to(dtype), prefill_chunk=7), prompts(41, 20)
    pruning, given = Pruning(0.5, method=method), SAMPLING.max_tokens - 4
    answer = list(engine.generate(prompt, SAMPLING, pruning))
    with engine.read([*prompt, *ids(answer)[:given]], pruning, Scoring(2, len(prompt))) as read:
        further = [list(read.generate(replace(SAMPLING, temperature=0, max_tokens=4))) for _ in range(2)]
    with engine.read([*prompt, *ids(answer)], pruning, Scoring(2, len(prompt))) as read:
        scores = read.scores

    # The full model makes the first token, here with other tokens in the same pass, so its bits may differ.
    assert scores[len(prompt) + 1 :] == [token.logprobs for token in answer[1:]]
    assert ids(further[0]) == ids(further[1])
    assert further[0][0].logprobs.top == answer[given].logprobs.top


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_without_passes_the_twin_reads(method: MethodName, prompts: Prompts) -> None:
    """Scores and comparisons are the same except for rounding."""
    prompt, pruning = prompts(42, 20), Pruning(0.5, method=method)
    answer = ids(list(Engine(tiny_model("llama")).generate(prompt, SAMPLING, pruning)))
    scores, comparisons = [], []
    for step in ("native", "lean"):
        engine = Engine(tiny_model("llama"), step=step)
        scores.append(engine.score(prompt, answer, pruning))
        with engine.read(prompt, pruning) as read:
            comparisons.append(read.compare(answer))
    compared, wanted = comparisons

    torch.testing.assert_close(*scores, atol=1e-4, rtol=0)
    assert compared.kl == pytest.approx(wanted.kl, abs=1e-5)
    assert compared.perplexity_ratio == pytest.approx(wanted.perplexity_ratio, abs=1e-4)


def after(times: int) -> Iterator[bool]:
    yield from [False] * times
    while True:
        yield True


def test_a_text_can_be_given_up_between_passes(prompts: Prompts) -> None:
    """It asks before each pass. Here it stops after one pass of the 45 tokens."""
    engine, text = Engine(tiny_model("llama")), prompts(43, 65)
    asked = after(2)
    with pytest.raises(Cancelled), engine.read(text, HALF, Scoring(prompt_tokens=20), lambda: next(asked)):
        pass

    assert engine._assembly.state.length == 20 + PASS_TOKENS
    # A comparison asks before the full model's chunk, and then before each pass.
    asked = after(2)
    with engine.read(text[:20], HALF) as read:
        with pytest.raises(Cancelled):
            read.compare(text[20:], lambda: next(asked))
        assert engine._assembly.state.length == 20 + PASS_TOKENS


def test_what_an_answer_read_is_counted_from_its_own_tokens(prompts: Prompts) -> None:
    """A text that was scored before the answer does not count."""
    engine, text = Engine(tiny_model("llama")), prompts(44, 60)
    with engine.read(text, Pruning(0.5, method="griffin+"), Scoring(prompt_tokens=20)) as read:
        tokens = list(read.generate(replace(SAMPLING, max_tokens=3)))
    step = engine._assembly.state.decoder.passes

    assert tokens[-1].shares is not None
    assert step._tokens == 2


def test_comparisons_leave_sequences_as_they_are(prompts: Prompts) -> None:
    """Before, between and after sequences."""
    engine, prompt = Engine(tiny_model("llama")), prompts(45, 20)
    pruning = Pruning(0.5, method="griffin+")
    answer = ids(list(engine.generate(prompt, SAMPLING, pruning)))
    with engine.read(prompt, pruning) as read:
        first = read.compare(answer)
        for _ in range(2):
            assert ids(list(read.generate(SAMPLING))) == answer
            assert read.compare(answer) == first
