"""Prompts in passes of the decoder: the same numbers except for rounding, and the same way each time."""

import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from griffin import Engine, Pruning, Sampling, Scoring, Token, build_engines
from griffin.decode.c.library import available
from griffin.engine import pass_limit, pending, prefill
from griffin.engine.pass_limit import BUSY, FEW, MANY, TIMES, PassLimit, longest, measured
from griffin.engine.prefill import Prefill
from griffin.engine.prefixes import PrefixStore
from griffin.errors import Cancelled
from tests.tiny import COMMON_BLOCK, tiny_model

pytestmark = pytest.mark.skipif(not available(), reason="griffin/_native was not built: no C compiler")

Prompts = Callable[[int, int], list[int]]
GREEDY = Sampling(temperature=0, max_tokens=8, ignore_eos=True)
PLUS, HALF = Pruning(0.5, method="griffin+"), Pruning(0.5)


def told(tokens: Sequence[Token]) -> list[object]:
    """All that tokens report, except times."""
    selections = [token.selection.expert_set for token in tokens if token.selection]
    return [*((token.id, token.logprobs, token.shares) for token in tokens), *selections]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens of every chunk that is read in passes."""
    found, own = list[int](), Prefill._in_passes

    def observed(
        self: Prefill, step: object, ids: Sequence[int], start: int, end: int, *rest: object
    ) -> Iterator[Tensor]:
        found.append(end - start)
        return own(self, step, ids, start, end, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Prefill, "_in_passes", observed)
    return found


@pytest.mark.parametrize("family", COMMON_BLOCK)
def test_a_prompt_in_passes(family: str, prompts: Prompts, passes: list[int]) -> None:
    """A prompt longer than one pass: scores, statistic and the answers of both methods."""
    model = tiny_model(family)
    by_model, by_pass = Engine(model, prefill_chunk=64), Engine(model, prefill_chunk=64, limit=PassLimit(64))
    prompt, found = prompts(1, 41), []
    for engine in (by_model, by_pass):
        with engine.read(prompt, PLUS, Scoring(prompt_tokens=41), others=(HALF,)) as read:
            assert read.scores is not None
            scores = torch.tensor([score.chosen for score in read.scores if score])
            sums = engine._assembly.state.statistic.sums()
        with engine.read(prompt, PLUS, others=(HALF,)) as read:
            answers = [[token.id for token in read.generate(GREEDY)]]
            read.prune(HALF)
            answers.append([token.id for token in read.generate(GREEDY)])
        found.append((scores, sums, answers))
    (scores, sums, answers), (own_scores, own_sums, own_answers) = found

    assert passes == [41, 41]
    torch.testing.assert_close(own_scores, scores, atol=1e-4, rtol=1e-4)
    for values, own in zip(sums.values, own_sums.values, strict=True):
        torch.testing.assert_close(own, values, atol=1e-4, rtol=1e-3)
    assert own_sums.tokens == sums.tokens == 41
    for latest, own_latest in zip(sums.latest, own_sums.latest, strict=True):
        torch.testing.assert_close(own_latest.z, latest.z, atol=1e-4, rtol=1e-3)
    assert own_answers == answers


def test_only_chunks_up_to_the_limit(prompts: Prompts, passes: list[int]) -> None:
    """A rest up to the limit is read in passes, whether the whole chunks before it were read or reused."""
    store = PrefixStore(1 << 24, 32)
    engine = Engine(tiny_model("llama"), prefixes=store, prefill_chunk=32, limit=PassLimit(20))
    for length in (75, 75, 61, 20, 32):
        list(engine.generate(prompts(2, length), GREEDY, HALF))

    assert passes == [11, 11, 20]


@pytest.mark.parametrize(("chunk", "limit"), [(8, 8), (8, 4), (32, 20)], ids=["whole chunks too", "ends", "long ends"])
def test_reuse_changes_nothing(chunk: int, limit: int, prompts: Prompts, passes: list[int]) -> None:
    """Tokens, log-probabilities and neurons have the same bits: reuse does not change how a chunk is read."""
    model, store = tiny_model("llama"), PrefixStore(1 << 24, chunk)
    plain = Engine(model, prefill_chunk=chunk, limit=PassLimit(limit))
    reusing = Engine(model, prefill_chunk=chunk, prefixes=store, limit=PassLimit(limit))
    sampling = Sampling(seed=3, max_tokens=8, ignore_eos=True, logprobs=2)
    for pruning in (HALF, PLUS, Pruning()):
        for tail in (5, 11, 40, 5):
            prompt = [*prompts(3, 40), *prompts(4, tail)]
            ours, alone = (list(engine.generate(prompt, sampling, pruning)) for engine in (reusing, plain))

            assert told(ours) == told(alone)
    assert passes
    assert store.bytes


def test_reading_can_be_cancelled_within_a_chunk(prompts: Prompts) -> None:
    """Reading stops between two passes, and the next prompt is not affected."""
    model = tiny_model("llama")
    engine, asked = Engine(model, limit=PassLimit(64)), list[int]()

    def later() -> bool:
        asked.append(engine._assembly.state.length)
        return asked[-1] == 32

    with pytest.raises(Cancelled), engine.read(prompts(5, 50), HALF, cancelled=later):
        pass
    again = list(engine.generate(prompts(6, 20), GREEDY, HALF))

    assert asked[-1] == 32
    alone = Engine(model, limit=PassLimit(64)).generate(prompts(6, 20), GREEDY, HALF)
    assert told(again) == told(list(alone))


@pytest.mark.parametrize(
    ("one_pass", "few", "many", "expected"),
    [
        (16, 18, 144, 128),
        (16, 17, 200, 0),
        (32, 64, 176, 32),
        (32, 100, 212, 64),
        (32, 500, 400, 128),
        (0, 0, 0, 128),
    ],
    ids=["always faster", "never", "up to two passes", "up to four", "noise", "no time"],
)
def test_the_limit_is_where_both_take_as_long(one_pass: float, few: float, many: float, expected: int) -> None:
    """The model's own code has a cost for each chunk and each token, passes only for each token."""
    assert longest(one_pass, few, many) == expected


def test_both_ways_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each at its numbers of tokens, several times. Here the model's own code takes 2.5 times as long for 16 tokens."""
    now, read = [0.0], list[tuple[str, int]]()
    clock = SimpleNamespace(perf_counter=lambda: now[0], process_time=lambda: now[0] * torch.get_num_threads())
    monkeypatch.setattr(pending, "time", clock)
    monkeypatch.setattr(pass_limit, "time", clock)

    def reading(name: str, seconds: float) -> Callable[[int], None]:
        def reads(tokens: int) -> None:
            read.append((name, tokens))
            now[0] += seconds

        return reads

    found = measured(reading("passes", 0.01), reading("model", 0.025), torch.device("cpu"))

    assert set(read) == {("passes", FEW), ("model", FEW), ("model", MANY)}
    assert len(read) == 3 * TIMES
    assert found == 32


def test_a_busy_machine_is_not_measured(caplog: pytest.LogCaptureFixture) -> None:
    """If the thread waits instead of running, timing stops at once. The log says so at debug level."""
    caplog.set_level("DEBUG", "griffin")
    found = measured(lambda _: time.sleep(0.01), lambda _: pytest.fail("timed"), torch.device("cpu"))

    assert found == BUSY
    assert "other processes use the processors" in caplog.text


def test_the_limit_is_measured_once_for_all_engines(prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is measured before the first request, also for rebuilt engines. Answers are those of the same fixed limit."""
    timed = list[int]()

    def measure(by_passes: Callable[[int], object], by_model: Callable[[int], object], _: torch.device) -> int:
        by_passes(FEW)
        by_model(MANY)
        timed.append(1)
        return 48

    monkeypatch.setattr(prefill, "measured", measure)
    model, prompt = tiny_model("llama"), prompts(7, 40)
    engines = build_engines(model, 2, limit=PassLimit("auto"))
    answers = [told(list(engine.generate(prompt, GREEDY, PLUS))) for engine in engines]
    engines[0].rebuild()
    answers += [
        told(list(engine.generate(prompt, GREEDY, PLUS))) for engine in (engines[0], Engine(model, limit=PassLimit(48)))
    ]

    assert timed == [1]
    assert [engine.pass_tokens for engine in engines] == [48, 48]
    assert all(each == answers[0] for each in answers)


def test_without_passes_no_time_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor when the context has no room for it."""
    monkeypatch.setattr(prefill, "measured", lambda *_: pytest.fail("timed"))
    for engine in (
        Engine(tiny_model("llama"), step="twin", limit=PassLimit("auto")),
        Engine(tiny_model("llama"), context_length=32, limit=PassLimit("auto")),
    ):
        engine.warm_up()
        assert engine.pass_tokens == 0


def test_by_default_no_prompt_is_read_in_passes(prompts: Prompts, passes: list[int]) -> None:
    """In the library, answers do not depend on a clock."""
    (engine,) = build_engines(tiny_model("llama"), 1)
    list(engine.generate(prompts(8, 9), GREEDY))

    assert (engine.pass_tokens, passes) == (0, [])


def test_a_negative_limit_is_refused() -> None:
    """The error has the field's name and value."""
    with pytest.raises(ValueError, match="pass_tokens must be auto, or 0 or more, but is -1"):
        PassLimit(-1)
