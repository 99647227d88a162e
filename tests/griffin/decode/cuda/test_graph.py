"""The decoder that works ahead. Its kernels run in Triton's interpreter, and plain calls replace its graphs."""

from collections.abc import Callable
from dataclasses import astuple, replace
from functools import cache

import pytest
import torch
from transformers import PreTrainedModel

from griffin import Engine, Pruning, Sampling, Verification
from griffin.engine.throttle import Throttle
from griffin.model.weights import read_weights
from tests.griffin.grammars import Slots
from tests.tiny import tiny_model

graph = pytest.importorskip("griffin.decode.cuda.graph", reason="Triton is not installed")

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs the real graphs")

Prompts = Callable[[int, int], list[int]]
SAMPLINGS = [
    Sampling(temperature=0, max_tokens=5, ignore_eos=True),
    Sampling(seed=3, max_tokens=5, ignore_eos=True),
    Sampling(
        seed=4, max_tokens=5, ignore_eos=True, top_p=0.9, top_k=50, min_p=0.01, logprobs=3,
        presence_penalty=0.5, frequency_penalty=0.4, repetition_penalty=1.1, logit_bias={9: 2.0}, min_tokens=3,
    ),
]  # fmt: skip


def repeated(body: Callable[[], None]) -> Callable[[], None]:
    """Stands for a capture: the body runs once before, and again at each launch."""
    body()
    return body


def small(model_type: str) -> PreTrainedModel:
    """A model of one layer, because the interpreter is slow. test_step.py tests all layers."""
    return tiny_model(model_type, num_hidden_layers=1)


@cache
def graph_engine(model_type: str) -> Engine:
    """An engine that all tests share: to make it takes seconds, because the interpreter runs passes of every size."""
    engine = Engine(small(model_type), context_length=64, prefill_chunk=8, step="lean")
    trees, state = engine._assembly.trees, engine._assembly.state
    weights = read_weights(trees.full)
    state.decoder = graph.GraphDecoder(weights, state.cache, 64, capture=repeated)
    return engine


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "opt"])
def test_graphs_give_what_plain_steps_give(model_type: str, prompts: Prompts) -> None:
    """Greedy, seeded and with all sampling fields; dense and pruned requests in turn on one engine."""
    ours, plain = graph_engine(model_type), Engine(small(model_type), prefill_chunk=8, step="lean")
    for number, sampling in enumerate(SAMPLINGS):
        for sparsity in (0.5, 0.0, 0.9)[: 3 - number]:
            prompt = prompts(40 + number, 9 + number)
            found = list(ours.generate(prompt, sampling, Pruning(sparsity)))
            expected = list(plain.generate(prompt, sampling, Pruning(sparsity)))

            assert [token.id for token in found] == [token.id for token in expected]
            assert [token.selection and token.selection.expert_set for token in found] == [
                token.selection and token.selection.expert_set for token in expected
            ]
            for ours_token, token in zip(found, expected, strict=True):
                if token.logprobs is not None:
                    assert ours_token.logprobs.chosen == pytest.approx(token.logprobs.chosen, abs=1e-4)
                    assert [id for id, _ in ours_token.logprobs.top] == [id for id, _ in token.logprobs.top]


@pytest.mark.parametrize("model_type", ["llama", "opt"])
def test_tokens_pick_in_graphs_as_in_plain_steps(model_type: str, prompts: Prompts) -> None:
    """The same graphs serve thresholds, kept neurons and the full model in turn."""
    ours, plain = graph_engine(model_type), Engine(small(model_type), prefill_chunk=8, step="lean")
    for pruning in (Pruning(0.5, method="griffin+"), Pruning(0.5), Pruning(0.25, method="griffin+"), Pruning(0)):
        found, expected = (
            [token.id for token in engine.generate(prompts(43, 20), SAMPLINGS[0], pruning)] for engine in (ours, plain)
        )

        assert found == expected
        shares = [engine._assembly.state.decoder.shares() for engine in (ours, plain)]
        assert (shares[0] is None) == (shares[1] is None) == (pruning.method != "griffin+")
        if shares[0] is not None:
            # The graph decoder launched one more step.
            assert astuple(shares[0]) == pytest.approx(astuple(shares[1]), abs=0.1)


@pytest.mark.parametrize(
    "verification", [None, Verification("fast", "none"), Verification("lossless", "pruned")], ids=str
)
def test_sequences_with_a_grammar_are_not_worked_ahead_on(verification: Verification | None, prompts: Prompts) -> None:
    """Tokens are those of plain steps, and forced tokens are read in passes. The next sequence works ahead again."""
    ours, plain = graph_engine("llama"), Engine(small("llama"), prefill_chunk=8, step="lean")
    places = tuple(frozenset(place) for place in ((40,), (41,), range(50, 60), range(3, 120))) * 2
    for sampling in (Sampling(temperature=0, max_tokens=9, logprobs=1), Sampling(seed=3, max_tokens=9, top_p=0.9)):
        held = replace(sampling, grammar=Slots(places))
        found = list(ours.generate(prompts(45, 9), held, Pruning(0.5), verification=verification))
        sparsity = Pruning(0 if verification and verification.mode == "lossless" else 0.5)
        expected = list(plain.generate(prompts(45, 9), held, sparsity))

        assert [token.id for token in found] == [token.id for token in expected]
        assert found[-1].complete
    assert ours._assembly.state.decoder.ahead is False
    list(ours.generate(prompts(45, 9), SAMPLINGS[0]))
    assert ours._assembly.state.decoder.ahead is True


def test_work_ahead_begins_where_a_grammar_is_done(prompts: Prompts) -> None:
    """For example after the end of a thought. Tokens are those of plain steps."""
    ours, plain = graph_engine("llama"), Engine(small("llama"), prefill_chunk=8, step="lean")
    places = tuple(frozenset(place) for place in (range(50, 60), (40,), (41,)))
    for sampling in (Sampling(temperature=0, max_tokens=9), Sampling(seed=3, max_tokens=9, top_p=0.9)):
        held = replace(sampling, grammar=Slots(places, goes_on=True))
        found, ahead = list[int](), list[bool]()
        for token in ours.generate(prompts(46, 9), held, Pruning(0.5)):
            found.append(token.id)
            ahead.append(ours._assembly.state.decoder.ahead)

        assert found == [token.id for token in plain.generate(prompts(46, 9), held, Pruning(0.5))]
        assert ahead == [False, False] + [True] * 7


def test_the_step_ahead_is_thrown_away(prompts: Prompts) -> None:
    """A sequence that ends has launched one step too many. No later sequence sees it, not even of the same prompt."""
    engine = graph_engine("llama")
    prompt = prompts(50, 12)
    free = [token.id for token in engine.generate(prompt, SAMPLINGS[0])]
    stopping = replace(SAMPLINGS[0], stop_token_ids=frozenset({free[2]}))
    with engine.read(prompt) as read:
        first = [token.id for token in read.generate(stopping)]
        second = [token.id for token in read.generate(SAMPLINGS[0])]

    assert first == free[: free.index(free[2]) + 1]
    assert second == free
    assert [token.id for token in engine.generate(prompt, SAMPLINGS[0])] == free


def test_the_next_step_is_launched_before_the_token_is_read(prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the device would wait for the host at every token."""
    engine = graph_engine("llama")
    events: list[str] = []
    decoder = engine._assembly.state.decoder
    advance, fetch = decoder.advance, decoder._fetch
    list(engine.generate(prompts(51, 9), SAMPLINGS[0]))
    monkeypatch.setattr(decoder, "advance", lambda: (events.append("launch"), advance())[1])

    def noted() -> Callable[[], object]:
        wait = fetch()
        return lambda: (events.append("read"), wait())[1]

    monkeypatch.setattr(decoder, "_fetch", noted)
    list(engine.generate(prompts(51, 9), replace(SAMPLINGS[0], max_tokens=3)))

    assert events == ["launch", "read", "launch", "read", "read"]


def test_nothing_is_captured_after_the_warm_up(prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every length, kind of sampling and pass size has its graph before the first request."""
    engine = graph_engine("llama")
    decoder = engine._assembly.state.decoder
    captured, recorded = dict(decoder._graphs), dict(decoder._recorded)
    monkeypatch.setattr(decoder, "_capture", lambda body: pytest.fail("captured in a request"))
    for sampling in SAMPLINGS:
        list(engine.generate(prompts(52, 40), replace(sampling, max_tokens=3), Pruning(0.5)))
    lossless = Verification("lossless", "pruned", 2)
    list(engine.generate(prompts(52, 40), SAMPLINGS[0], Pruning(0.5), verification=lossless))

    assert (decoder._graphs, decoder._recorded) == (captured, recorded)
    assert sorted(recorded) == [(64, 2), (64, 4), (64, 8), (64, 16)]


def test_passes_have_the_bits_of_steps(prompts: Prompts) -> None:
    """A pass after a prompt gives the logits of steps and leaves the cache at the same length."""
    engine, ids = graph_engine("llama"), prompts(57, 6)
    state = engine._assembly.state
    decoder, cache = state.decoder, state.cache
    assert decoder.passes is not None
    for pruning in (Pruning(0), Pruning(0.5), Pruning(0.5, method="griffin+")):
        with engine.read(prompts(56, 9), pruning) as read:
            list(read.generate(replace(SAMPLINGS[0], max_tokens=2)))
            rows = []
            for place, id in enumerate(ids):
                cache.length = 9 + place
                decoder.take(id, decoder.logits())()
                decoder.advance()()
                rows.append(decoder.logits().clone())
            cache.length = 9
            found_TV = decoder.passes.read(ids)

        assert torch.equal(found_TV, torch.stack(rows))
        assert cache.length == 15


# All pairs of three tokens, so that every n-gram is found.
PAIRS = [5, 5, 6, 6, 7, 7, 5, 7, 6, 5]


@pytest.mark.parametrize("pruning", [Pruning(0), Pruning(0.5), Pruning(0.5, method="griffin+")])
@pytest.mark.parametrize("sampling", SAMPLINGS[1:], ids=["seeded", "everything"])
def test_n_grams_change_no_token(pruning: Pruning, sampling: Sampling) -> None:
    """In mode fast, kept neurons check drafts with the same bits: tokens and log-probabilities stay the same."""
    engine, few = graph_engine("llama"), {5: 90.0, 6: 90.0, 7: 90.0}
    wanted = replace(sampling, max_tokens=12, logit_bias=few)
    plain = list(engine.generate(PAIRS, wanted, pruning, verification=Verification("fast", "none")))
    drafted = list(engine.generate(PAIRS, wanted, pruning, verification=Verification("fast", "ngram", 3)))

    assert [token.id for token in drafted] == [token.id for token in plain]
    assert [token.logprobs for token in drafted] == [token.logprobs for token in plain]
    assert drafted[-1].verified.drafted > 0
    assert (drafted[-1].shares is None) == (plain[-1].shares is None) == (pruning.method != "griffin+")


def test_single_steps_between_drafts_run_ahead(prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the text repeats nothing, the next step is launched before the token is read, as without drafts."""
    engine = graph_engine("llama")
    events: list[str] = []
    decoder = engine._assembly.state.decoder
    advance = decoder.advance

    def noted() -> Callable[[], object]:
        events.append("launch")
        wait = advance()
        return lambda: (events.append("read"), wait())[1]

    monkeypatch.setattr(decoder, "advance", noted)
    # Measured times decide whether a pass is worth it; times in the interpreter mean nothing.
    monkeypatch.setattr(Throttle, "worth", lambda self, length, room: 0)
    wanted = replace(SAMPLINGS[0], max_tokens=4)
    tokens = list(engine.generate(prompts(51, 9), wanted, Pruning(0.5), verification=Verification("fast")))

    assert events == ["launch", "launch", "read", "launch", "read", "read"]
    assert tokens[-1].verified.tokens == 3


def test_the_context_can_be_filled_to_its_end(prompts: Prompts) -> None:
    """The last position can be used, and no step is launched after it."""
    engine = graph_engine("llama")
    plain = Engine(small("llama"), context_length=64, step="lean")
    sampling = replace(SAMPLINGS[0], max_tokens=5)

    assert [token.id for token in engine.generate(prompts(53, 59), sampling)] == [
        token.id for token in plain.generate(prompts(53, 59), sampling)
    ]


@pytest.mark.parametrize(
    ("sampling", "verification"),
    [
        (SAMPLINGS[0], Verification("lossless", "pruned", 2)),
        (SAMPLINGS[2], Verification("lossless", "both", 3)),
        (SAMPLINGS[1], Verification("lossless", "ngram", 4)),
        (SAMPLINGS[2], Verification("guarded", "pruned", 3)),
    ],
    ids=["greedy", "everything", "n-grams", "guarded"],
)
def test_verified_drafts_of_graphs_are_those_of_plain_steps(
    sampling: Sampling, verification: Verification, prompts: Prompts
) -> None:
    """Rejected drafts are undone: position, token and penalties. Mode lossless gives the dense model's tokens."""
    ours, plain = graph_engine("gemma2"), Engine(small("gemma2"), prefill_chunk=8, step="lean")
    # With this stop token, the second prompt's drafts end within a block.
    stop = frozenset({next(iter(ours.generate(prompts(54, 9), sampling))).id})
    for number, ends in ((0, frozenset()), (1, stop)):
        prompt, wanted = prompts(54 + number, 9), replace(sampling, max_tokens=7, stop_token_ids=ends)
        found = list(ours.generate(prompt, wanted, Pruning(0.5), verification=verification))
        expected = list(plain.generate(prompt, wanted, Pruning(0.5), verification=verification))

        assert [token.id for token in found] == [token.id for token in expected]
        assert [token.verified for token in found] == [token.verified for token in expected]
        for token, other in zip(found, expected, strict=True):
            if token.logprobs is not None:
                assert token.logprobs.chosen == pytest.approx(other.logprobs.chosen, abs=1e-4)
        if verification.mode == "lossless":
            assert [token.id for token in found] == [token.id for token in plain.generate(prompt, wanted)]


def test_verification_can_fill_the_context_to_its_end(prompts: Prompts) -> None:
    """No block goes beyond the last position."""
    engine, sampling = graph_engine("llama"), replace(SAMPLINGS[0], max_tokens=5)
    verification = Verification("guarded", draft_tokens=16, acceptance=1e-30)
    with engine.read(prompts(53, 59), Pruning(0.5)) as read:
        tokens = [token.id for token in read.generate(sampling, verification=verification)]
        pruned = [token.id for token in read.generate(sampling)]

    assert len(tokens) == 5
    assert tokens[:4] == pruned[:4]
