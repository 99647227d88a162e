"""Prompts with the same beginning: what is reused is exactly what would have been computed."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from griffin import Engine, Pruning, Sampling, Scoring
from griffin.engine.prefix_chunk import Chunk
from griffin.engine.prefixes import PrefixStore
from griffin.method.statistic import Sums
from tests.tiny import tiny_model

Prompts = Callable[[int, int], list[int]]
GREEDY = Sampling(temperature=0, max_tokens=8, ignore_eos=True, logprobs=2)
PLENTY = 1 << 30


def chunk(floats: int = 4) -> Chunk:
    return Chunk(torch.zeros(floats), Sums(*[torch.zeros(0)] * 4, 0))


def test_reuse_changes_nothing(model: PreTrainedModel, prompts: Prompts) -> None:
    """Tokens, log-probabilities and neurons have the same bits, greedy and by seed, whatever was read before."""
    plain, reusing = Engine(model, prefill_chunk=8), Engine(model, prefill_chunk=8, prefixes=PrefixStore(PLENTY, 8))
    shared = prompts(1, 30)
    for tail, expected in ((prompts(2, 5), 0), (prompts(3, 11), 24), (prompts(2, 40), 32), ([], 24)):
        for sampling in (GREEDY, Sampling(seed=3, max_tokens=8, ignore_eos=True, logprobs=0)):
            prompt = [*shared, *tail]
            with reusing.read(prompt, Pruning(0.5)) as read:
                ours = list(read.generate(sampling))
                cached = read.cached_tokens
            with plain.read(prompt, Pruning(0.5)) as read:
                alone = list(read.generate(sampling))

            assert [(token.id, token.logprobs) for token in ours] == [(token.id, token.logprobs) for token in alone]
            assert ours[1].selection.expert_set == alone[1].selection.expert_set
            # The second time, all whole chunks are reused, except one that ends with the last token.
            assert cached in (expected, (len(prompt) - 1) // 8 * 8)


def test_only_what_the_full_model_computed_is_kept(prompts: Prompts) -> None:
    """A pruned answer that comes back in a prompt is read again, by the full model."""
    engine = Engine(tiny_model("llama"), prefill_chunk=8, prefixes=PrefixStore(PLENTY, 8))
    prompt = prompts(4, 16)
    answer = [token.id for token in engine.generate(prompt, GREEDY, Pruning(0.5))]
    with engine.read([*prompt, *answer, 5]) as read:
        assert read.cached_tokens == 16
        found = list(read.generate(GREEDY))
    alone = list(Engine(tiny_model("llama"), prefill_chunk=8).generate([*prompt, *answer, 5], GREEDY))

    assert [(token.id, token.logprobs) for token in found] == [(token.id, token.logprobs) for token in alone]


def test_a_cached_beginning_needs_no_reading(prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model reads only the rest."""
    engine = Engine(tiny_model("llama"), prefill_chunk=8, prefixes=PrefixStore(PLENTY, 8))
    list(engine.generate(prompts(5, 40), GREEDY))
    read: list[int] = []
    forward = engine._assembly.trees.full.model.forward
    monkeypatch.setattr(
        engine._assembly.trees.full.model,
        "forward",
        lambda *args, **kwargs: read.append(kwargs["input_ids"].shape[1]) or forward(*args, **kwargs),
    )
    with engine.read([*prompts(5, 40), 9, 9, 9]):
        pass

    assert read == [3]


def test_scores_are_computed_where_they_are_wanted(prompts: Prompts) -> None:
    """Tokens to be scored are not reused, but those before them may be."""
    model = tiny_model("llama")
    plain, reusing = Engine(model, prefill_chunk=8), Engine(model, prefill_chunk=8, prefixes=PrefixStore(PLENTY, 8))
    prompt = prompts(6, 37)
    for start, cached in ((0, 0), (0, 0), (17, 16), (16, 8), (36, 32)):
        for pruning in (Pruning(), Pruning(0.5)):
            scoring = Scoring(top=2, start=start, prompt_tokens=33)
            with reusing.read(prompt, pruning, scoring) as read:
                found, reused = read.scores, read.cached_tokens
            with plain.read(prompt, pruning, scoring) as read:
                expected = read.scores

            assert reused in (cached, min(cached, 24))
            assert len(found) == 37
            assert found[max(start, 1) :] == expected[max(start, 1) :]


def test_engines_share_a_store(prompts: Prompts) -> None:
    """A worker reuses what another has read."""
    model, store = tiny_model("llama"), PrefixStore(PLENTY, 8)
    first, second = (Engine(model, prefill_chunk=8, prefixes=store) for _ in range(2))
    list(first.generate(prompts(7, 20), GREEDY))
    with second.read(prompts(7, 20)) as read:
        assert read.cached_tokens == 16


def found(store: PrefixStore, ids: list[int]) -> int:
    return len(store.longest(store.names(ids))[0])


def test_the_budget_holds_and_the_oldest_go_first() -> None:
    """The least recently used goes first. A prompt's first chunk goes last, because the others need it."""
    store = PrefixStore(3 * 16, 2)
    ids = [1, 2, 3, 4, 5, 6]
    for end in (2, 4, 6):
        store.add(store.names(ids[:end]), chunk())
    assert found(store, ids) == 3
    store.add(store.names([9, 9]), chunk())

    assert store.bytes == 3 * 16
    assert found(store, ids) == 2
    assert found(store, [9, 9, 1]) == 1

    store.add(store.names([8, 8]), chunk(floats=100))
    assert found(store, [8, 8]) == 0
    store.clear()
    assert (store.bytes, len(store)) == (0, 0)


def test_no_budget_keeps_nothing() -> None:
    """No name is computed either."""
    store = PrefixStore(0, 2)

    assert store.names([1, 2, 3]) == []
    assert store.longest([]) == ([], 0)


def test_the_same_chunk_after_another_beginning_is_another() -> None:
    """A chunk's keys depend on all tokens before it."""
    store = PrefixStore(PLENTY, 2)
    for ids in ([1, 2], [1, 2, 7, 8], [3, 4]):
        store.add(store.names(ids), chunk())

    assert found(store, [1, 2, 7, 8]) == 2
    assert found(store, [3, 4, 7, 8]) == 1
    assert found(store, [1, 2, 7]) == 1


def test_a_chunk_without_room_fails_no_request(prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request goes on, and kept chunks are freed."""
    engine = Engine(tiny_model("llama"), prefill_chunk=8, prefixes=PrefixStore(PLENTY, 8))
    expected = list(engine.generate(prompts(8, 30), GREEDY))
    engine.prefixes.clear()

    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(engine._assembly.state.cache, "copy", out_of_memory)
    assert list(engine.generate(prompts(8, 30), GREEDY)) == expected
    assert len(engine.prefixes) == 0


def test_chunks_of_another_size_are_refused() -> None:
    """They would begin in the middle of the engine's chunks."""
    with pytest.raises(ValueError, match="prefill_chunk is 8, but prefixes are kept in chunks of 4"):
        Engine(tiny_model("llama"), prefill_chunk=8, prefixes=PrefixStore(PLENTY, 4))
