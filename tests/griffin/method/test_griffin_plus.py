"""Method griffin+: its thresholds against a plain version of their definition, and its requests to the engine."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from transformers import PreTrainedModel

from griffin import Engine, Pruning, Sampling, Token, Verification, build_engines
from griffin.decode.steps import StepName
from griffin.engine.prefixes import PrefixStore
from griffin.experiments.common.likelihood import target_logprobs
from griffin.method import budget, griffin_plus
from griffin.method.griffin_plus import GriffinPlus, cut
from griffin.method.statistic import PromptStatistic
from griffin.model.cache import KVCache
from griffin.model.families import feed_forwards
from griffin.model.gates import GatesByInput
from griffin.thresholds import Shares, Thresholds
from tests.griffin import oracle
from tests.griffin.method.thresholds import as_selection, differences, sided, thresholds_of, values
from tests.tiny import tiny_model

Prompts = Callable[[int, int], list[int]]
PLUS = Pruning(0.5, method="griffin+")
GREEDY = Sampling(max_tokens=8, temperature=0, ignore_eos=True)
SPARSITIES = pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.8])
STEPS = pytest.mark.parametrize("step", ["native", "lean", "twin"])


def ids_of(tokens: list[Token]) -> list[int]:
    return [token.id for token in tokens]


def chosen_of(tokens: list[Token]) -> Thresholds:
    """The thresholds that the tokens report as chosen."""
    (selection,) = [token.selection for token in tokens if token.selection is not None]
    assert isinstance(selection.chosen, Thresholds)
    return selection.chosen


def is_gated(model: PreTrainedModel) -> bool:
    return bool(oracle.gate_functions(model))


def close(found: Thresholds, wanted: Thresholds) -> None:
    for ours, theirs in zip(values(found), values(wanted), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def equal(found: Thresholds, wanted: Thresholds) -> bool:
    return all(ours.equal(theirs) for ours, theirs in zip(values(found), values(wanted), strict=True))


@pytest.fixture(params=["llama", "phi3", "opt", "gpt2"])
def some_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Blocks with a gate and without, fused and transposed weights, with biases and without."""
    return tiny_model(request.param)


# ---- The budget. ----


@pytest.mark.parametrize("gated", [True, False])
def test_shares_are_what_sparsity_says(gated: bool) -> None:
    """Their mean over the matrices is 1 - sparsity, and no share rises with sparsity."""
    found = [budget.shares(percent / 100, gated=gated) for percent in range(100)]

    for percent, shares in enumerate(found):
        matrices = (shares.gate, shares.up, shares.down) if gated else (shares.gate, shares.down)
        assert sum(matrices) / len(matrices) == pytest.approx(1 - percent / 100)
        assert all(0 < share <= 1 for share in matrices)
    for more, less in pairwise(found):
        assert more.gate >= less.gate
        assert more.up >= less.up
        assert more.down >= less.down
    assert found[0] == Shares(1, 1, 1)


def test_a_sparsity_above_one_is_refused() -> None:
    """The table ends at sparsity 1."""
    with pytest.raises(ValueError, match="sparsity must be below 1"):
        budget.shares(1.1, gated=True)


# ---- Thresholds of a prompt. ----


def test_thresholds_are_those_of_the_definition(model: PreTrainedModel, prompts: Prompts) -> None:
    """In every family."""
    ids = prompts(1, 30)
    for sparsity in (0.25, 0.5, 0.8):
        shares = budget.shares(sparsity, gated=is_gated(model))
        found = thresholds_of(model, ids, sparsity)

        assert found.planned == shares
        close(found, oracle.thresholds(model, ids, shares))


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_any_activation(family: str, activation: str, prompts: Prompts) -> None:
    """With ReLU many gates are zero; a threshold of zero lets only the others pass."""
    model = tiny_model(family, **{"hidden_act" if family == "llama" else "activation_function": activation})
    ids = prompts(2, 30)

    close(thresholds_of(model, ids), oracle.thresholds(model, ids, budget.shares(0.5, gated=family == "llama")))


def test_thresholds_go_by_the_latest_tokens(prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means are over all tokens but the first."""
    monkeypatch.setattr(griffin_plus, "LATEST_TOKENS", 11)
    model, ids = tiny_model("llama"), prompts(3, 40)

    close(thresholds_of(model, ids), oracle.thresholds(model, ids, budget.shares(0.5, gated=True), latest=11))


@SPARSITIES
def test_the_prompts_own_tokens_read_as_planned(sparsity: float, some_model: PreTrainedModel, prompts: Prompts) -> None:
    """In each layer, the prompt's activations read the planned share, up to two values.

    A token's distance from the mean counts as its distance from the mean of the other tokens.
    """
    model, ids = some_model, prompts(4, 40)
    by, blocks = thresholds_of(model, ids, sparsity), feed_forwards(model)
    with oracle.inputs(model) as xs, oracle.recorded(model) as zs, oracle.gated(model) as gates, torch.no_grad():
        model(torch.tensor([ids]))

    for number in range(len(blocks)):
        layer, z_TF = by.layer(number, model.device), zs[number][1:]
        further = (len(ids) - 1) / (len(ids) - 2)
        layer.inputs(layer.means + (xs[number][1:] - layer.means) * further)
        layer.outputs(gates[number][1:] if gates else z_TF, z_TF)
        inputs, acting, giving, tokens = layer.reads.tolist()

        assert tokens == len(ids) - 1
        assert inputs == pytest.approx(by.planned.gate * tokens * 32, abs=2)
        assert not gates or acting == pytest.approx(by.planned.up * tokens * 52, abs=2)
        # With ReLU, more neurons may be zero than planned.
        wanted = pytest.approx(by.planned.down * tokens * 52, abs=2)
        assert giving == wanted or (model.config.model_type == "opt" and giving < by.planned.down * tokens * 52)


def test_a_threshold_of_values() -> None:
    """In each row, it lets the share pass: exactly for all and for none. No value passes if all are equal."""
    rows = torch.tensor([[3.0, 1.0, 2.0, 4.0], [30.0, 10.0, 20.0, 40.0]])

    for share, count in ((0.0, 0), (0.25, 1), (0.5, 2), (1.0, 4)):
        assert (rows > cut(rows, share)).sum(dim=1).tolist() == [count, count]
    assert not (torch.ones(1, 8) > cut(torch.ones(1, 8), 0.5)).any()


def test_thresholds_are_found_on_a_sample(prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the values gives nearly the same thresholds."""
    model, ids = tiny_model("llama"), prompts(3, 100)
    whole = thresholds_of(model, ids)
    monkeypatch.setattr(griffin_plus, "VALUES", 500)
    found = thresholds_of(model, ids)

    assert not equal(found, whole)
    for ours, theirs in zip(values(found), values(whole), strict=True):
        assert float((ours / theirs).nanmedian()) == pytest.approx(1, abs=0.2)


def test_removed_energy_for_sparsity_auto(some_model: PreTrainedModel, prompts: Prompts) -> None:
    """The share of energy that is left out is between 0 and 1, and grows with sparsity."""
    statistic = PromptStatistic(feed_forwards(some_model))
    statistic.reset(latest=128)
    with statistic.collecting(), torch.no_grad():
        some_model(torch.tensor([prompts(4, 30)]))
    method = GriffinPlus(feed_forwards(some_model), some_model.device)
    found = method.removed(statistic, PLUS, [0.01, 0.25, 0.5, 0.75, 0.99])

    assert found == sorted(found)
    assert 0 <= found[0] < 0.01
    assert 0.5 < found[-1] <= 1


@pytest.mark.parametrize("family", ["llama", "phi3", "opt", "gpt2"])
def test_weights_of_zero(family: str, prompts: Prompts) -> None:
    """An input that no neuron uses, and a neuron without output, are never read; nothing becomes NaN."""
    model, ids = tiny_model(family), prompts(5, 20)
    with torch.no_grad():
        for expand, contract in zip(oracle.first_expands(model), oracle.contracts(model), strict=True):
            oracle.gate_weight(expand, 52)[:, 3] = 0
            oracle.rows(contract)[7] = 0
    by = thresholds_of(model, ids)

    assert (by.input_limits_LD[:, 3] == torch.inf).all()
    assert (by.output_limits_LF[:, 7] == torch.inf).all()
    assert not any(each.isnan().any() for each in values(by))
    assert all(each.isfinite().all() for each in (by.means_LD, by.offsets_LF, by.resting_LF))
    found = list(Engine(model).generate(ids, replace(GREEDY, logprobs=0), PLUS))
    assert torch.tensor([token.logprobs.chosen for token in found]).isfinite().all()


def test_an_up_projection_of_zero(prompts: Prompts) -> None:
    """A neuron whose up projection is zero needs the largest gate to act, and its output is zero."""
    model = tiny_model("gemma")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[9] = 0
    by = thresholds_of(model, prompts(6, 20))

    assert by.gate_limits_LF is not None
    assert (by.gate_limits_LF.argmax(dim=1) == 9).all()
    assert (by.resting_LF[:, 9] == 0).all()


@pytest.mark.parametrize(("dtype", "near"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)], ids=["fp16", "bf16"])
def test_half_precision(dtype: torch.dtype, near: float, some_model: PreTrainedModel, prompts: Prompts) -> None:
    """Sums and thresholds are fp32, and right up to the rounding of the activations."""
    half, ids = some_model.to(dtype), prompts(7, 30)
    found = thresholds_of(half, ids)
    wanted = oracle.thresholds(half, ids, found.planned)

    for ours, theirs in zip(values(found), values(wanted), strict=True):
        assert ours.dtype == torch.float32
        assert float((ours - theirs).abs().max()) < near * float(theirs.abs().max())


@pytest.mark.parametrize("tokens", [1, 2, 3, 8])
def test_short_prompts(tokens: int, some_model: PreTrainedModel, prompts: Prompts) -> None:
    """They follow the definition, and all numbers are finite."""
    model, ids = some_model, prompts(8, tokens)
    close(thresholds_of(model, ids), oracle.thresholds(model, ids, budget.shares(0.5, gated=is_gated(model))))
    found = list(Engine(model).generate(ids, replace(GREEDY, logprobs=0), PLUS))

    assert len(found) == 8
    assert torch.tensor([token.logprobs.chosen for token in found]).isfinite().all()


# ---- Chunks and prefixes. ----


@pytest.mark.parametrize("chunk", [1, 5, 8])
def test_chunks_change_nothing(chunk: int, some_model: PreTrainedModel, prompts: Prompts) -> None:
    """However the prompt is cut, sums and latest tokens are the same."""
    ids = prompts(9, 23)

    close(thresholds_of(some_model, ids, chunk=chunk), thresholds_of(some_model, ids))


@pytest.mark.parametrize(("more", "cached"), [(5, 8), (7, 16)])
def test_prefix_reuse_changes_nothing(
    more: int, cached: int, some_model: PreTrainedModel, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits: a kept beginning includes its sums, and the latest tokens are read again."""
    model, sampling = some_model, replace(GREEDY, logprobs=0)
    monkeypatch.setattr(griffin_plus, "LATEST_TOKENS", 7)
    engine = Engine(model, prefill_chunk=8, prefixes=PrefixStore(2**20, 8))
    fresh = Engine(model, prefill_chunk=8)
    beginning = prompts(10, 16)
    list(engine.generate(beginning, sampling, PLUS))
    ids = [*beginning, *prompts(11, more)]

    with engine.read(ids, PLUS) as read:
        again = list(read.generate(sampling))
        assert read.cached_tokens == cached
    first = list(fresh.generate(ids, sampling, PLUS))

    assert equal(chosen_of(again), chosen_of(first))
    assert again[1].selection.expert_set == first[1].selection.expert_set
    assert [(token.id, token.logprobs) for token in again] == [(token.id, token.logprobs) for token in first]


def test_a_known_beginning_changes_no_score(prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the prompt sets the thresholds, so the tokens before it are read again."""
    model = tiny_model("llama")
    monkeypatch.setattr(griffin_plus, "LATEST_TOKENS", 7)
    engine = Engine(model, prefill_chunk=8, prefixes=PrefixStore(2**20, 8))
    fresh = Engine(model, prefill_chunk=8)
    ids, rest = prompts(12, 18), prompts(13, 12)
    list(engine.generate(ids, Sampling(max_tokens=1), PLUS))

    assert torch.equal(engine.score(ids, rest, PLUS), fresh.score(ids, rest, PLUS))


def test_a_dense_request_reads_nothing_again(prompts: Prompts) -> None:
    """With any method: there is no threshold to find."""
    engine = Engine(tiny_model("llama"), prefill_chunk=8, prefixes=PrefixStore(2**20, 8))
    ids = prompts(14, 18)
    list(engine.generate(ids, Sampling(max_tokens=1)))

    with engine.read(ids, Pruning(method="griffin+")) as read:
        assert read.cached_tokens == 16


# ---- Through the engine. ----


@torch.no_grad()
def masked_logprobs(model: PreTrainedModel, prompt: list[int], rest: list[int], by: Thresholds) -> torch.Tensor:
    """Log-probabilities of a continuation, from whole forward passes of the masked model."""
    cache = KVCache(model.config.num_hidden_layers)
    first = model(torch.tensor([prompt]), past_key_values=cache.cache).logits[0, -1:]
    with oracle.masked(model, by):
        others = model(torch.tensor([rest[:-1]]), past_key_values=cache.cache).logits[0]
    return target_logprobs(torch.cat((first, others)), rest)


def test_scores_are_those_of_the_masked_model(model: PreTrainedModel, prompts: Prompts) -> None:
    """In every family, also with another prompt's thresholds."""
    prompt, rest = prompts(15, 18), prompts(16, 6)
    own, others = thresholds_of(model, prompt), sided(thresholds_of(model, prompts(17, 18)))
    wanted = [masked_logprobs(model, prompt, rest, by) for by in (own, others)]
    engine = Engine(model)

    torch.testing.assert_close(engine.score(prompt, rest, PLUS), wanted[0], atol=5e-5, rtol=1e-3)
    reused = Pruning(0.5, reuse=as_selection(others))
    torch.testing.assert_close(engine.score(prompt, rest, reused), wanted[1], atol=5e-5, rtol=1e-3)


@STEPS
def test_every_step_generates_the_same(step: StepName, prompts: Prompts) -> None:
    """The step changes no token, and thresholds leave no trace in the next request."""
    ids = prompts(18, 20)
    one, other = (Engine(tiny_model("llama"), step=name) for name in ("twin", step))

    for pruning in (PLUS, Pruning(0.5), replace(PLUS, sparsity=0.8), Pruning(), PLUS):
        found = [list(engine.generate(ids, GREEDY, pruning)) for engine in (one, other)]
        assert ids_of(found[0]) == ids_of(found[1])
        assert [token.shares for token in found[0]] == [token.shares for token in found[1]]


@STEPS
def test_what_was_read_is_reported(step: StepName, prompts: Prompts) -> None:
    """The mean over the tokens after the first is near the plan. Other methods report nothing."""
    engine = Engine(tiny_model("llama"), step=step)
    found = list(engine.generate(prompts(19, 60), replace(GREEDY, max_tokens=60), PLUS))
    planned = chosen_of(found).planned

    assert found[0].shares is None
    assert differences(found[-1].shares, planned) < 0.1
    assert differences(found[-1].shares, planned) > 0
    for pruning in (Pruning(), Pruning(0.5)):
        assert {token.shares for token in engine.generate(prompts(19, 20), GREEDY, pruning)} == {None}


def test_reused_thresholds(prompts: Prompts) -> None:
    """Another prompt uses them unchanged, and reports the same name."""
    engine = Engine(tiny_model("llama"))
    given = list(engine.generate(prompts(20, 20), GREEDY, PLUS))
    taken = list(engine.generate(prompts(21, 20), GREEDY, Pruning(reuse=given[1].selection)))
    other = list(engine.generate(prompts(21, 20), GREEDY, PLUS))

    assert equal(chosen_of(taken), chosen_of(given))
    assert taken[1].selection.expert_set == given[1].selection.expert_set
    assert taken[1].selection.prompt_tokens == 20
    assert other[1].selection.expert_set != given[1].selection.expert_set


def test_several_sequences_of_one_prompt(prompts: Prompts) -> None:
    """They share thresholds, which are found once and reported each time. Reads are counted for each alone."""
    engine, ids = Engine(tiny_model("llama")), prompts(22, 20)
    with engine.read(ids, PLUS) as read:
        first, second = list(read.generate(GREEDY)), list(read.generate(replace(GREEDY, temperature=1, seed=3)))
        third = list(read.generate(GREEDY))
    alone = list(engine.generate(ids, GREEDY, PLUS))

    assert ids_of(first) == ids_of(third) == ids_of(alone)
    assert len({tokens[1].selection.expert_set for tokens in (first, second, third, alone)}) == 1
    assert first[-1].shares == alone[-1].shares


def test_several_engines(some_model: PreTrainedModel, prompts: Prompts) -> None:
    """Two engines on one model, each in a thread, answer as one alone does. All share the gates by input."""
    alone = Engine(some_model)
    engines, requests = build_engines(some_model, 2), [prompts(27, 20), prompts(28, 33)]
    with ThreadPoolExecutor(2) as pool:
        answers = [
            pool.submit(lambda engine, ids: [list(engine.generate(ids, GREEDY, PLUS)) for _ in range(3)], *each)
            for each in zip(engines, requests, strict=True)
        ]
        found = [each.result() for each in answers]
    held = {id(GatesByInput.of(engine._assembly.trees.full)) for engine in (alone, *engines)}

    assert len(held) == 1
    for each, ids in zip(found, requests, strict=True):
        wanted = list(alone.generate(ids, GREEDY, PLUS))
        assert all(ids_of(tokens) == ids_of(wanted) for tokens in each)
        assert all(equal(chosen_of(tokens), chosen_of(wanted)) for tokens in each)


def test_compared_with_the_full_model(prompts: Prompts) -> None:
    """It agrees with whole passes of both models, and later sequences do not change."""
    model = tiny_model("llama")
    engine, ids = Engine(model), prompts(29, 20)
    with engine.read(ids, PLUS) as read:
        first = list(read.generate(GREEDY))
        found = read.compare(ids_of(first))
        again = list(read.generate(GREEDY))
    exact = tiny_model("llama")
    with torch.no_grad():
        text = torch.tensor([[*ids, *ids_of(first)[:-1]]])
        full = exact(text).logits[0, len(ids) :].log_softmax(dim=1)
        cache = KVCache(model.config.num_hidden_layers)
        exact(text[:, : len(ids)], past_key_values=cache.cache)
        with oracle.masked(exact, chosen_of(first)):
            pruned = exact(text[:, len(ids) :], past_key_values=cache.cache).logits[0].log_softmax(dim=1)

    assert found is not None
    assert found.kl == pytest.approx(float((full.exp() * (full - pruned)).sum(dim=1).mean()), abs=1e-4)
    assert ids_of(again) == ids_of(first)


def test_thresholds_take_little_memory(prompts: Prompts) -> None:
    """A few vectors for each layer."""
    by = thresholds_of(tiny_model("llama"), prompts(23, 20))

    assert by.bytes == 4 * 3 * (2 * 32 + 4 * 52)


@pytest.mark.parametrize("mode", ["lossless", "guarded"])
@SPARSITIES
def test_verified_and_refreshed(sparsity: float, mode: str, prompts: Prompts) -> None:
    """Drafts by thresholds are verified like others, and thresholds are found again as the text goes on."""
    engine = Engine(tiny_model("llama", max_position_embeddings=512))
    sampling, prompt = replace(GREEDY, max_tokens=150), prompts(24, 12)
    dense = list(engine.generate(prompt, sampling, Pruning()))
    found = list(
        engine.generate(prompt, sampling, replace(PLUS, sparsity=sparsity), verification=Verification(mode))  # type: ignore[arg-type]
    )
    selections = [token.selection for token in found if token.selection is not None]
    verified = found[-1].verified

    assert len(found) == 150
    assert mode == "guarded" or ids_of(found) == ids_of(dense)
    assert verified is not None
    assert verified.refreshes > 0
    assert len(selections) == 1 + verified.refreshes
    assert len({selection.expert_set for selection in selections}) == len(selections)
    assert [selection.prompt_tokens for selection in selections] == sorted({s.prompt_tokens for s in selections})


def test_refreshed_thresholds_are_those_of_the_longer_text(prompts: Prompts) -> None:
    """The longer text is the prompt and the tokens that the full model has read since."""
    model = tiny_model("llama", max_position_embeddings=512)
    prompt, sampling = prompts(25, 12), replace(GREEDY, max_tokens=120)
    found = list(Engine(model).generate(prompt, sampling, PLUS, verification=Verification("lossless")))
    text = [*prompt, *ids_of(found)]
    selections = [token.selection for token in found if token.selection is not None]

    assert len(selections) > 1
    for selection in selections:
        wanted = thresholds_of(tiny_model("llama", max_position_embeddings=512), text[: selection.prompt_tokens])
        assert isinstance(selection.chosen, Thresholds)
        close(selection.chosen, wanted)


def test_it_chooses_by_itself() -> None:
    """The method would ignore a statistic or a strategy, so both are refused."""
    with pytest.raises(ValueError, match="leave out selection and statistic"):
        Pruning(0.5, "sample", method="griffin+")
    with pytest.raises(ValueError, match="method must be one of"):
        Pruning(0.5, method="best")  # type: ignore[arg-type]


def test_the_statistic_knows_no_more_than_it_was_asked_for(prompts: Prompts) -> None:
    """It keeps the latest tokens that the method needs, and none without need."""
    model = tiny_model("llama")
    statistic = PromptStatistic(feed_forwards(model))
    for latest in (0, 4):
        statistic.reset(latest)
        with statistic.collecting(), torch.no_grad():
            model(torch.tensor([prompts(26, 30)]))
        assert [len(known) for known in statistic.latest()] == [latest] * (3 if latest else 0)
    assert GriffinPlus.latest_tokens(PLUS) == griffin_plus.LATEST_TOKENS
