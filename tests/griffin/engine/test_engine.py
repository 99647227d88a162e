"""The engine against transformers' generate (dense) and the masked model (pruned), on every family."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from griffin import Engine, Pruning, Sampling, Scoring, build_engines
from griffin.decode.steps import StepName
from griffin.engine.prefixes import PrefixStore
from griffin.engine.state import SequenceState
from griffin.errors import (
    ContextLengthExceeded,
    EngineBusy,
    InvalidRequest,
    LoadError,
    OutOfMemory,
    UnsupportedModel,
)
from griffin.model import cache
from griffin.model.matrix.dense import Dense
from griffin.model.weights import read_weights
from tests.griffin import oracle
from tests.tiny import COMMON_BLOCK, tiny_model

Prompts = Callable[[int, int], list[int]]


def greedy(tokens: int) -> Sampling:
    return Sampling(temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=0)


def test_three_requests_in_turn_equal_the_masked_model(model: PreTrainedModel, prompts: Prompts) -> None:
    """Pruned tokens and log-probabilities are those of the full model with masked activations."""
    engine = Engine(model, prefill_chunk=7)
    for seed, length, sparsity in ((1, 20, 0.5), (2, 33, 0.25), (3, 9, 0.8)):
        prompt = prompts(seed, length)
        expected_ids, expected_logits = oracle.generate(model, prompt, sparsity, 12)
        tokens = list(engine.generate(prompt, greedy(12), Pruning(sparsity)))

        assert [token.id for token in tokens] == expected_ids
        logprobs = expected_logits.log_softmax(dim=1).gather(1, torch.tensor(expected_ids)[:, None])[:, 0]
        assert torch.tensor([token.logprobs.chosen for token in tokens]).sub(logprobs).abs().max() < 1e-5


def test_sparsity_zero_is_generate(model: PreTrainedModel, prompts: Prompts) -> None:
    """Without sparsity, greedy tokens are those of transformers' generate."""
    engine = Engine(model, prefill_chunk=8)
    for seed in (4, 5):
        prompt = prompts(seed, 21)
        expected = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24)[0, 21:].tolist()
        tokens = [token.id for token in engine.generate(prompt, Sampling(temperature=0, max_tokens=24))]

        assert tokens == expected


@pytest.mark.parametrize("step", ["native", "lean", "twin"])
def test_every_step_makes_the_same_tokens(model: PreTrainedModel, prompts: Prompts, step: StepName) -> None:
    """Dense and pruned, greedy and by seed: the step changes only the speed."""
    if step != "twin" and model.config.model_type not in COMMON_BLOCK:
        with pytest.raises(ValueError, match="has no common block"):
            Engine(model, step=step)
        return
    engine = Engine(model, prefill_chunk=7, step=step)
    for sparsity in (0.5, 0.0, 0.75):
        prompt = prompts(36, 20)
        expected_ids, expected_logits = oracle.generate(model, prompt, sparsity, 12)
        tokens = list(engine.generate(prompt, greedy(12), Pruning(sparsity)))
        drawn = [token.id for token in engine.generate(prompt, Sampling(seed=1, ignore_eos=True), Pruning(sparsity))]
        other = Engine(model, prefill_chunk=5, step="twin")

        assert [token.id for token in tokens] == expected_ids
        logprobs = expected_logits.log_softmax(dim=1).gather(1, torch.tensor(expected_ids)[:, None])[:, 0]
        assert torch.tensor([token.logprobs.chosen for token in tokens]).sub(logprobs).abs().max() < 1e-5
        sampled = other.generate(prompt, Sampling(seed=1, ignore_eos=True), Pruning(sparsity))
        assert drawn == [token.id for token in sampled]


@pytest.mark.parametrize("step", ["native", "lean"])
def test_a_step_that_computes_something_else_is_not_used(
    prompts: Prompts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: StepName
) -> None:
    """For example because the common block ignores a field of the configuration. A slower, right step replaces it."""
    model = tiny_model("llama")
    right = Engine(model, step=step)
    right.warm_up()
    monkeypatch.setattr(
        "griffin.engine.trees.read_weights", lambda model: replace(read_weights(model), scale=2.0, logit_cap=3.0)
    )
    wrong = Engine(model, step=step)
    wrong.warm_up()
    expected, _ = oracle.generate(model, prompts(37, 20), 0.5, 12)

    assert (right.step, wrong.step) == (step, "twin")
    assert f"the {step} step differs from the model's own code" in caplog.text
    assert [token.id for token in wrong.generate(prompts(37, 20), greedy(12), Pruning(0.5))] == expected


class ScaledLogits(LlamaForCausalLM):
    """Scales logits by a field of the configuration that griffin does not know."""

    def forward(self, *args: Any, **kwargs: Any) -> CausalLMOutputWithPast:
        output = super().forward(*args, **kwargs)
        return replace(output, logits=output.logits * self.config.unknown_logit_scale)


@pytest.mark.parametrize("step", ["native", "lean", "twin"])
def test_logits_that_are_made_in_an_unknown_way_are_refused(step: StepName) -> None:
    """Neither the prompt's logits nor those of any step would be the model's own."""
    model = tiny_model("llama", unknown_logit_scale=0.25)
    model.__class__ = ScaledLogits
    with pytest.raises(UnsupportedModel, match="'llama' model computes its logits in an unknown way"):
        Engine(model, step=step).warm_up()

    model.config.unknown_logit_scale = 1.0
    Engine(model, step=step).warm_up()


def test_graphs_need_a_gpu() -> None:
    """The error names the step and what it needs."""
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="graph: needs a CUDA device"):
            Engine(tiny_model("llama"), step="graph")


def test_a_context_too_long_for_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, with advice."""

    def out_of_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("griffin.engine.assembly.make_decoder", out_of_memory)
    with pytest.raises(LoadError, match="choose a shorter context \\(max-model-len\\) or fewer workers"):
        build_engines(tiny_model("llama"), 2)


def test_unknown_steps_are_refused() -> None:
    """The error lists the known steps."""
    with pytest.raises(ValueError, match="step must be one of auto, native, graph, lean, twin, but is 'fast'"):
        Engine(tiny_model("llama"), step="fast")


def test_score_equals_stepwise_generation(model: PreTrainedModel, prompts: Prompts) -> None:
    """Scoring a continuation in one pass gives the log-probabilities with which it was generated."""
    engine = Engine(model, prefill_chunk=5)
    prompt = prompts(6, 17)
    tokens = list(engine.generate(prompt, greedy(11), Pruning(0.5)))
    scores = engine.score(prompt, [token.id for token in tokens], Pruning(0.5))

    torch.testing.assert_close(scores, torch.tensor([token.logprobs.chosen for token in tokens]), atol=1e-5, rtol=0)


def test_interleaved_engines_keep_their_own_neurons(prompts: Prompts) -> None:
    """Two engines on one model work in turn, and each gives what it gives alone."""
    model = tiny_model("llama")
    engines = [Engine(model), Engine(model)]
    requests = [(prompts(7, 15), Pruning(0.5)), (prompts(8, 26), Pruning(0.7))]
    alone = [list(engine.generate(p, greedy(10), s)) for engine, (p, s) in zip(engines, requests, strict=True)]
    streams = [engine.generate(p, greedy(10), s) for engine, (p, s) in zip(engines, requests, strict=True)]
    together = list(zip(*streams, strict=True))

    for index in range(2):
        assert [pair[index].id for pair in together] == [token.id for token in alone[index]]
        assert together[1][index].selection.expert_set == alone[index][1].selection.expert_set


def test_engines_share_weights() -> None:
    """A second engine needs module objects and buffers, but no weights."""
    model = tiny_model("llama")
    first, second = Engine(model), Engine(model)
    tensors = [{p.data_ptr() for p in engine._assembly.trees.full.parameters()} for engine in (first, second)]

    assert tensors[0] == tensors[1] == {p.data_ptr() for p in model.parameters()}


def test_buffers_do_not_move_between_requests(model: PreTrainedModel, prompts: Prompts) -> None:
    """Gathered weights are at the same addresses in every request, at any sparsity."""
    engine = Engine(model, step="twin")

    def addresses() -> list[int]:
        return [m.matrices[0].planes[0].data_ptr() for m in oracle.contracts(engine._assembly.trees.twin.model)]

    list(engine.generate(prompts(9, 12), greedy(3), Pruning(0.5)))
    first = addresses()
    for sparsity in (0.9, 0.02, 0.5):
        list(engine.generate(prompts(10, 12), greedy(3), Pruning(sparsity)))

        assert addresses() == first


def test_selection_is_reported_once(prompts: Prompts) -> None:
    """The full model makes the first token. The second token reports what was selected."""
    tokens = list(Engine(tiny_model("llama")).generate(prompts(11, 12), greedy(4), Pruning(0.5)))

    assert [token.selection is None for token in tokens] == [True, False, True, True]
    assert [len(kept_k) for kept_k in tokens[1].selection.chosen.layers] == [26] * 3
    assert tokens[1].selection.seconds > 0


@pytest.mark.parametrize("selection", ["sample", "top_k_sample"])
def test_drawn_selections_follow_their_seed(selection: str, prompts: Prompts) -> None:
    """The same seed draws the same neurons."""
    engine = Engine(tiny_model("llama"))

    def expert_set(seed: int) -> str:
        tokens = list(engine.generate(prompts(12, 12), greedy(2), Pruning(0.5, selection=selection, seed=seed)))
        return tokens[1].selection.expert_set

    assert expert_set(1) == expert_set(1) != expert_set(2)


def test_magnitude_ignores_the_prompt(prompts: Prompts) -> None:
    """Weight magnitude keeps the same neurons for every prompt; flocking does not."""
    engine = Engine(tiny_model("llama"))

    def expert_set(seed: int, statistic: str) -> str:
        tokens = list(engine.generate(prompts(seed, 12), greedy(2), Pruning(0.5, statistic=statistic)))
        return tokens[1].selection.expert_set

    assert expert_set(13, "magnitude") == expert_set(14, "magnitude")
    assert expert_set(13, "flocking") != expert_set(14, "flocking")


def test_seed_repeats_a_sampled_sequence(prompts: Prompts) -> None:
    """A seed gives the same sequence, whatever ran before. Without a seed it differs."""
    engine = Engine(tiny_model("llama"))

    def draw(seed: int | None) -> list[int]:
        return [t.id for t in engine.generate(prompts(15, 12), Sampling(seed=seed, max_tokens=20, ignore_eos=True))]

    first = draw(3)
    unseeded = draw(None)

    assert draw(3) == first
    assert unseeded != first
    assert draw(2**63 + 5) == draw(2**63 + 5)


def test_stops_at_end_of_sequence_and_at_stop_ids(prompts: Prompts) -> None:
    """The token that ends the sequence comes with the reason, and no token follows."""
    engine = Engine(tiny_model("llama"))
    prompt = prompts(16, 12)
    free = [token.id for token in engine.generate(prompt, greedy(8))]
    stop = free[3]
    tokens = list(engine.generate(prompt, Sampling(temperature=0, max_tokens=8, stop_token_ids=frozenset({stop}))))

    assert [token.id for token in tokens] == free[: free.index(stop) + 1]
    assert tokens[-1].finish_reason == "stop"
    assert all(token.finish_reason is None for token in tokens[:-1])

    engine.eos_token_ids = frozenset({stop})

    ended = [token.id for token in engine.generate(prompt, Sampling(temperature=0, max_tokens=8))]
    assert ended == free[: free.index(stop) + 1]
    assert [token.id for token in engine.generate(prompt, greedy(8))] == free


def test_length_is_the_reason_at_max_tokens(prompts: Prompts) -> None:
    """The last token has the finish reason."""
    tokens = list(Engine(tiny_model("llama")).generate(prompts(17, 5), greedy(3)))

    assert [token.finish_reason for token in tokens] == [None, None, "length"]


def test_one_token_prompt_selects_from_that_token(prompts: Prompts) -> None:
    """One token is enough for a statistic, and an earlier request leaves no trace."""
    model = tiny_model("llama")
    engine = Engine(model)
    list(engine.generate(prompts(18, 30), greedy(4), Pruning(0.5)))
    expected, _ = oracle.generate(model, [77], 0.5, 6)

    assert [token.id for token in engine.generate([77], greedy(6), Pruning(0.5))] == expected


def test_a_sequence_may_outgrow_the_cache_again_and_again(
    model: PreTrainedModel, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache grows by copying and loses nothing. A shorter sequence afterwards is not disturbed."""
    monkeypatch.setattr(cache, "SMALLEST_CAPACITY", 4)
    engine = Engine(model, prefill_chunk=3)
    for length, tokens in ((2, 40), (11, 8), (50, 30)):
        prompt = prompts(24, length)
        expected = model.generate(torch.tensor([prompt]), do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens)

        # generate's minimum forbids the end-of-sequence id; our engine only continues after it.
        ours = [token.id for token in engine.generate(prompt, greedy(tokens))]
        if 2 not in ours:
            assert ours == expected[0, length:].tolist()


def test_running_out_of_memory_costs_one_request(prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an allocation fails between two layers, the engine still answers."""
    engine = Engine(tiny_model("llama"))
    expected = [token.id for token in engine.generate(prompts(25, 10), greedy(5))]
    calls = iter(range(1000))

    def out_of_memory(buffer: torch.Tensor, filled: int, needed: int) -> torch.Tensor:
        if next(calls) == 3:
            raise torch.OutOfMemoryError
        return with_room(buffer, filled, max(needed, 600))

    with_room = cache._with_room
    with monkeypatch.context() as short_of_memory:
        short_of_memory.setattr(cache, "_with_room", out_of_memory)
        with pytest.raises(OutOfMemory):
            list(engine.generate(prompts(25, 10), greedy(5)))

    assert [token.id for token in engine.generate(prompts(25, 10), greedy(5))] == expected


def test_longrope_is_served_up_to_its_original_length() -> None:
    """Beyond it, all earlier keys would need another rotation, which a cache cannot give."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64, **factors}
    engine = Engine(tiny_model("phi3", rope_parameters=rope, original_max_position_embeddings=64))

    assert engine.context_length == 64


def test_cancelled_prefill_ends_between_chunks(prompts: Prompts) -> None:
    """A cancelled prompt stops after the current chunk, and the engine is free again."""
    engine = Engine(tiny_model("llama"), prefill_chunk=4)
    asked = iter([False, False, True])

    assert list(engine.generate(prompts(19, 40), greedy(4), cancelled=lambda: next(asked))) == []
    assert len(list(engine.generate(prompts(19, 40), greedy(4)))) == 4


def test_cancelled_decode_ends_within_a_token(prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    """After cancellation, no token is computed and no neurons are selected."""
    cancelled: list[bool] = []
    stream = Engine(tiny_model("llama")).generate(prompts(20, 10), greedy(50), cancelled=lambda: bool(cancelled))
    next(stream)
    cancelled.append(True)
    monkeypatch.setattr(SequenceState, "choose", lambda *_: pytest.fail("selected after cancellation"))

    assert list(stream) == []


def test_busy_engine_refuses_a_second_sequence(prompts: Prompts) -> None:
    """An engine makes one sequence at a time. Closing the first one frees it."""
    engine = Engine(tiny_model("llama"))
    first = engine.generate(prompts(21, 10), greedy(5))
    next(first)
    with pytest.raises(EngineBusy):
        next(engine.generate(prompts(22, 10), greedy(5)))
    first.close()

    assert len(list(engine.generate(prompts(22, 10), greedy(5)))) == 5


def test_context_can_be_filled_to_the_last_token(prompts: Prompts) -> None:
    """Prompt and answer together may be as long as the context."""
    engine = Engine(tiny_model("llama"), context_length=32)

    assert len(list(engine.generate(prompts(23, 20), greedy(12)))) == 12


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "error", "param"),
    [
        ([], 1, InvalidRequest, "prompt"),
        ([5, 128], 1, InvalidRequest, "prompt"),
        ([-1], 1, InvalidRequest, "prompt"),
        ([5] * 32, 1, ContextLengthExceeded, "prompt"),
        ([5] * 20, 13, ContextLengthExceeded, "max_tokens"),
    ],
)
def test_impossible_requests_are_refused_at_once(
    prompt: list[int], max_tokens: int, error: type[InvalidRequest], param: str
) -> None:
    """They are refused before anything is computed, and the error names the field."""
    engine = Engine(tiny_model("llama"), context_length=32)
    with pytest.raises(error) as refusal:
        engine.generate(prompt, greedy(max_tokens))

    assert refusal.value.param == param


def test_several_sequences_from_one_reading(model: PreTrainedModel, prompts: Prompts) -> None:
    """The prompt is read once and neurons are chosen once. Each sequence is the same as alone."""
    engine = Engine(model, prefill_chunk=7)
    prompt, pruning = prompts(26, 20), Pruning(0.5)
    samplings = [Sampling(seed=seed, max_tokens=9, ignore_eos=True, logprobs=0) for seed in (1, 2, 1)]
    alone = [list(engine.generate(prompt, sampling, pruning)) for sampling in samplings]
    with engine.read(prompt, pruning) as read:
        together = [list(read.generate(sampling)) for sampling in samplings]

    assert [[token.id for token in tokens] for tokens in together] == [[t.id for t in tokens] for tokens in alone]
    assert together[0] == together[2]
    assert [token.id for token in together[0]] != [token.id for token in together[1]]
    for first, second in zip(alone, together, strict=True):
        assert [token.logprobs.chosen for token in first] == pytest.approx(
            [t.logprobs.chosen for t in second], abs=1e-4
        )


def test_several_prunings_from_one_reading(model: PreTrainedModel, prompts: Prompts) -> None:
    """Each answer is the same as alone, in any order. A pruning that the prompt was not read for is refused."""
    engine = Engine(model, prefill_chunk=7, prefixes=PrefixStore(2**20, 7))
    prompt, plus = prompts(26, 20), Pruning(0.5, method="griffin+")
    prunings = [plus, Pruning(), Pruning(0.5), plus, Pruning(0.25)]
    alone = [[token.id for token in engine.generate(prompt, greedy(9), pruning)] for pruning in prunings]
    together = []
    with engine.read(prompt, others=prunings) as read:
        for pruning in prunings:
            read.prune(pruning)
            together.append([token.id for token in read.generate(greedy(9))])

    assert together == alone
    with engine.read(prompt, Pruning(0.5)) as read, pytest.raises(ValueError, match="was not read for this pruning"):
        read.prune(plus)


def test_prompt_scores_are_the_dense_models(model: PreTrainedModel, prompts: Prompts) -> None:
    """In chunks or not: each token's log-probability given the tokens before it, and the most probable tokens."""
    prompt = prompts(27, 19)
    with torch.inference_mode():
        expected = model(torch.tensor([prompt])).logits[0].float().log_softmax(dim=1)
    with Engine(model, prefill_chunk=5).read(prompt, scoring=Scoring(top=3)) as read:
        scores = read.scores

    assert len(scores) == 19
    assert scores[0] is None
    for position, score in enumerate(scores[1:]):
        assert score.chosen == pytest.approx(float(expected[position, prompt[position + 1]]), abs=1e-4)
        values = [value for _, value in score.top]
        assert values == pytest.approx(expected[position].topk(3).values.tolist(), abs=1e-4)
        assert values == sorted(values, reverse=True)
        if score.top[0][0] == prompt[position + 1]:
            assert score.chosen == score.top[0][1]


def test_a_generated_answer_scores_as_it_was_generated(model: PreTrainedModel, prompts: Prompts) -> None:
    """With sparsity, scoring gives what generating gave, and generation continues with the same neurons."""
    engine = Engine(model, prefill_chunk=6)
    prompt, pruning = prompts(28, 17), Pruning(0.5)
    tokens = list(engine.generate(prompt, greedy(12), pruning))
    ids = [token.id for token in tokens]
    with engine.read([*prompt, *ids[:8]], pruning, Scoring(prompt_tokens=17)) as read:
        scores = [score.chosen for score in read.scores[17:]]
        further = list(read.generate(greedy(4)))

    assert scores == pytest.approx([token.logprobs.chosen for token in tokens[:8]], abs=1e-4)
    assert [token.id for token in further] == ids[8:]
    assert further[0].selection == read.selection
    assert read.selection.prompt_tokens == 17


def test_by_default_the_last_input_is_read_sparsely(prompts: Prompts) -> None:
    """The paper's classification (5.1): all inputs but the last choose the neurons, and only the last uses them."""
    model = tiny_model("llama")
    engine, prompt, pruning = Engine(model, prefill_chunk=6), prompts(29, 14), Pruning(0.5)
    with engine.read(prompt, scoring=Scoring()) as read:
        dense = [score.chosen for score in read.scores[1:]]
    with engine.read(prompt, pruning, Scoring()) as read:
        sparse = [score.chosen for score in read.scores[1:]]
    expected = oracle.classify(model, prompt[:-1], 0.5).log_softmax(dim=0)[prompt[-1]]

    assert sparse[:-1] == pytest.approx(dense[:-1], abs=1e-5)
    assert sparse[-1] == pytest.approx(float(expected), abs=1e-5)
    assert abs(sparse[-1] - dense[-1]) > 1e-3


@pytest.mark.parametrize("prompt_tokens", [0, 15])
def test_a_prompt_cannot_end_outside_itself(prompts: Prompts, prompt_tokens: int) -> None:
    """The error names the field."""
    engine = Engine(tiny_model("llama"))
    with pytest.raises(InvalidRequest) as refusal, engine.read(prompts(30, 14), None, Scoring(0, prompt_tokens)):
        pass

    assert refusal.value.param == "griffin.prompt_tokens"


def test_a_rebuilt_engine_is_as_new(prompts: Prompts) -> None:
    """After any failure, everything but the weights is made again."""
    engine = Engine(tiny_model("llama"), step="lean")
    expected = [token.id for token in engine.generate(prompts(31, 12), greedy(6), Pruning(0.5))]
    abandoned = engine.generate(prompts(32, 12), greedy(6), Pruning(0.5))
    next(abandoned)
    engine._assembly.trees.twin.model.get_submodule("model.layers.0.mlp").down_proj.matrix = Dense(torch.zeros(1, 1))
    engine.rebuild()

    assert [token.id for token in engine.generate(prompts(31, 12), greedy(6), Pruning(0.5))] == expected


def test_min_tokens_puts_off_the_end(prompts: Prompts) -> None:
    """Before min_tokens, no end-of-sequence or stop id is drawn, however probable it is."""
    engine = Engine(tiny_model("llama"))
    prompt = prompts(16, 12)
    free = [token.id for token in engine.generate(prompt, greedy(8))]
    stops = frozenset(free[:2])
    ended = list(engine.generate(prompt, Sampling(temperature=0, max_tokens=8, stop_token_ids=stops)))
    later = list(engine.generate(prompt, Sampling(temperature=0, max_tokens=8, min_tokens=5, stop_token_ids=stops)))

    assert len(ended) == 1
    assert len(later) > 5
    assert not stops & {token.id for token in later[:5]}


def test_a_rebuild_that_failed_can_be_tried_again(prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when some parts of the old engine are gone and some of the new one are missing."""
    engine = Engine(tiny_model("llama"))
    expected = [token.id for token in engine.generate(prompts(33, 12), greedy(6), Pruning(0.5))]
    with monkeypatch.context() as short_of_memory:
        short_of_memory.setattr("griffin.engine.trees.DecodeTwin", lambda _: (_ for _ in ()).throw(MemoryError))
        for _ in range(2):
            with pytest.raises(MemoryError):
                engine.rebuild()
    engine.rebuild()

    assert [token.id for token in engine.generate(prompts(33, 12), greedy(6), Pruning(0.5))] == expected


def test_a_prompt_is_good_for_one_sequence_at_a_time(prompts: Prompts) -> None:
    """Two sequences at once would use the same cache, and so would one after the prompt's block."""
    engine = Engine(tiny_model("llama"))
    with engine.read(prompts(34, 10)) as read:
        first, second = read.generate(greedy(5)), read.generate(greedy(5))
        next(first)
        next(second)
        with pytest.raises(EngineBusy):
            next(first)
    with pytest.raises(EngineBusy):
        next(second)
    with engine.read(prompts(35, 10)), pytest.raises(EngineBusy):
        next(read.generate(greedy(5)))


@pytest.mark.parametrize(
    ("rope", "limit", "expected"),
    [
        ({"rope_type": "default"}, None, 256),
        ({"rope_type": "default"}, 1000, 256),
        ({"rope_type": "default"}, 100, 100),
        # As model cards write it: max_position_embeddings is the length before scaling.
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, None, 1024),
        ({"rope_type": "yarn", "factor": 4.0}, None, 1024),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, 600, 600),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, 5000, 1024),
        # Or max_position_embeddings is the length after scaling.
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, None, 256),
        # Linear scaling is written in both ways: only a request for a longer context gives one.
        ({"rope_type": "linear", "factor": 2.0}, None, 256),
        ({"rope_type": "linear", "factor": 2.0}, 512, 512),
        ({"rope_type": "linear", "factor": 2.0}, 513, 512),
    ],
)
def test_scaled_contexts(rope: dict[str, object], limit: int | None, expected: int) -> None:
    """Context lengths with rotary scaling. A prompt beyond the trained length is really read."""
    model = tiny_model("llama", rope_parameters={"rope_theta": 10_000.0, **rope})
    engine = Engine(model, context_length=limit)
    prompt = [3 + number % 100 for number in range(expected - 2)]

    assert engine.context_length == expected
    assert len(list(engine.generate(prompt, Sampling(max_tokens=2, ignore_eos=True)))) == 2
