"""Method griffin+: its parts by hand, and the whole through the engine."""

import copy
from collections.abc import Callable
from dataclasses import astuple, replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from griffin import Engine, Pruning, Sampling, Verification
from griffin.engine.prefixes import PrefixStore
from griffin.errors import InvalidRequest
from griffin.experiments.common.likelihood import target_logprobs
from griffin.experiments.common.teacher import Teacher
from griffin.method.plus import acting, ridge
from griffin.method.plus.budget import budgets, highest
from griffin.method.plus.calibration import Calibration
from griffin.method.plus.measurement import calibrate
from griffin.model.accounting import Accounting
from griffin.model.families import FeedForward, feed_forwards
from griffin.neurons import Kept, Selection
from griffin.request import PARTS, PartName
from tests.griffin import oracle
from tests.tiny import tiny_model

Prompts = Callable[[int, int], list[int]]
PLUS = Pruning(0.5, method="griffin+")
PARTS_BUT_GATING = frozenset(PARTS) - {"gating"}


def calibrated(model: PreTrainedModel) -> Calibration:
    generator = torch.Generator().manual_seed(7)
    sequences = torch.randint(3, 128, (4, 20), generator=generator).tolist()
    return calibrate(model.requires_grad_(False), sequences)


def chosen(model: PreTrainedModel, ids: list[int], pruning: Pruning, chunk: int = 256) -> Kept:
    teacher = Teacher(model, chunk, calibrated(model))
    teacher.begin()
    list(teacher.read(ids))
    kept = teacher.choose(pruning)
    assert kept is not None
    return kept


def as_selection(kept: Kept) -> Selection:
    return Selection(0.0, "name", 20, kept.to(torch.device("cpu"), torch.int32))


def test_one_ranking_over_all_layers() -> None:
    """As many as asked for in all, the highest, and a few of every layer."""
    score_LF = torch.tensor([[9.0, 8.0, 7.0, 6.0], [1.0, 2.0, 0.0, 0.5], [4.0, 5.0, 0.0, 0.0]])

    counts = budgets(score_LF, 6)

    assert counts == [4, 1, 1]
    assert [kept_k.tolist() for kept_k in highest(score_LF, counts)] == [[0, 1, 2, 3], [1], [1]]


def test_equal_scores_do_not_make_a_layer_larger() -> None:
    """Layers of nothing but equals get what there is, and no more than that in all."""
    counts = budgets(torch.zeros(3, 20), 30)

    assert sum(counts) == 30
    assert min(counts) >= 2


@pytest.mark.parametrize("parts", [frozenset(PARTS), *[frozenset(PARTS) - {part} for part in PARTS], frozenset()])
@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.9])
def test_the_budget_is_the_papers(parts: frozenset, sparsity: float, prompts: Prompts) -> None:
    """Whatever the parts: a token reads as much as sparsity says, of at least one neuron in each layer, sorted."""
    model = tiny_model("llama")
    kept = chosen(model, prompts(1, 20), Pruning(sparsity, method="griffin+", parts=parts))
    accounting = Accounting.of(model)

    read = accounting.active_with(kept)
    # Whole neurons, and in each layer.
    assert abs(read - accounting.active(accounting.kept(sparsity))) <= 3 * accounting.per_neuron
    assert "gating" in parts or read == accounting.active(accounting.kept(sparsity))
    assert min(kept.counts) >= 1
    assert all(torch.equal(kept_k, kept_k.unique()) for kept_k in kept.layers)


@pytest.mark.parametrize("left_out", ["ridge", "prior"])
def test_each_block_gives_as_before_on_average(left_out: PartName, model: PreTrainedModel, prompts: Prompts) -> None:
    """In every family, over the prompt but its first token, each token weighed by 1 / ||z||."""
    ids = prompts(2, 24)
    parts = frozenset(PARTS) - {left_out, "prior", "gating"}
    kept = chosen(model, ids, Pruning(0.5, method="griffin+", parts=parts))
    with oracle.recorded(model) as activations, torch.no_grad():
        model(torch.tensor([ids]))

    for layer, block in enumerate(feed_forwards(model)):
        z_TF = activations[layer][1:]
        weight_1T = 1 / z_TF.norm(dim=1)[None]
        weight_1T /= weight_1T.sum()
        with torch.no_grad():
            whole_D = (weight_1T @ block.contract(z_TF))[0]
            left_D = (weight_1T @ standing_in(kept, layer, block, z_TF))[0]
        torch.testing.assert_close(left_D, whole_D, atol=1e-4, rtol=1e-4)


def standing_in(kept: Kept, layer: int, block: FeedForward, z_TF: Tensor) -> Tensor:
    """What the kept neurons of a block give, and what stands for the others."""
    kept_k = kept.layers[layer]
    given_TD = block.contract(torch.zeros_like(z_TF).index_copy(1, kept_k, z_TF[:, kept_k]))
    if kept.correction is not None:
        given_TD += z_TF[:, kept_k] @ kept.correction.left[layer] @ kept.correction.right[layer]
    return given_TD if kept.offset_LD is None else given_TD + kept.offset_LD[layer]


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.8])
def test_the_gates_let_the_wanted_part_act(sparsity: float, model: PreTrainedModel, prompts: Prompts) -> None:
    """In every family and each layer, on the prompt's own tokens; what the others gave there stands for them."""
    ids, calibration = prompts(12, 24), calibrated(model)
    kept = chosen(model, ids, Pruning(sparsity, method="griffin+"))
    blocks, gated = feed_forwards(model), kept.acting
    assert gated is not None
    with oracle.recorded(model) as activations, oracle.gated(model) as gates, torch.no_grad():
        model(torch.tensor([ids]))

    for layer, (block, kept_k) in enumerate(zip(blocks, kept.layers, strict=True)):
        z_Tk = activations[layer][1:, kept_k]
        given_Tk = gates[layer][1:, kept_k] if gates else z_Tk
        acts_Tk = given_Tk.abs() > gated.thresholds[layer]
        missing = gated.count / kept.count - float(acts_Tk.float().mean())
        # Tokens are read in two ways here, whose last bits differ. Of a ReLU more may be shut than need be.
        assert abs(missing) < 0.02 or (model.config.model_type == "opt" and missing > 0)
        rests_Tk = ~acts_Tk
        often_k = acts_Tk.sum(0)[gated.order[layer]]
        # Tokens at the thresholds, as above.
        assert (often_k[1:] - often_k[:-1]).max() <= 1
        expected_k = (z_Tk * rests_Tk).sum(0) / (rests_Tk.sum(0) + 4)
        torch.testing.assert_close(gated.resting[layer], expected_k, atol=1e-2 * float(z_Tk.abs().max()), rtol=1e-2)
        reach_k = calibration.reach_LF[layer, kept_k]
        products_k = gated.thresholds[layer] * reach_k
        torch.testing.assert_close(products_k, products_k.mean().expand_as(products_k), rtol=1e-4, atol=0)
        assert block.activation is not None or torch.equal(reach_k, torch.ones_like(reach_k))


def test_what_all_give_at_rest_is_in_the_offset(model: PreTrainedModel, prompts: Prompts) -> None:
    """In every family: a token on which no neuron acts gets what all gave when they rested, through corrected rows."""
    blocks = feed_forwards(model)
    share, _ = acting.shares(0.5, 1 / (blocks[0].parts + 1))
    kept = chosen(model, prompts(13, 24), PLUS)
    without = chosen(model, prompts(13, 24), Pruning(1 - share, method="griffin+", parts=PARTS_BUT_GATING))

    assert kept.counts == without.counts
    assert kept.acting is not None
    assert kept.correction is not None
    assert without.acting is None
    for layer, (block, resting_k) in enumerate(zip(blocks, kept.acting.resting, strict=True)):
        rows_kD = block.down.dense()[kept.layers[layer]]
        rows_kD = rows_kD + kept.correction.left[layer] @ kept.correction.right[layer]
        expected_D = without.offset_LD[layer] + resting_k @ rows_kD
        torch.testing.assert_close(kept.offset_LD[layer], expected_D, atol=1e-5, rtol=1e-3)


def test_a_short_prompt_shuts_no_gate(prompts: Prompts) -> None:
    """Of a few tokens nobody can tell what is usual: as many neurons are kept as are to be read."""
    model = tiny_model("llama")
    few, enough = (chosen(model, prompts(14, 1 + tokens), PLUS) for tokens in (7, 8))

    assert few.acting is None
    assert sum(few.counts) == Accounting.of(model).kept(0.5)
    assert enough.acting is not None


@pytest.mark.parametrize("prior", [True, False])
def test_the_prediction_is_ridge_regression(prior: bool, model: PreTrainedModel, prompts: Prompts) -> None:
    """In every family: the weights are those that solve the regression as it is written down, in double precision."""
    ids, calibration = prompts(3, 30), calibrated(model)
    parts = frozenset(PARTS) if prior else frozenset(PARTS) - {"prior"}
    kept = chosen(model, ids, Pruning(0.5, method="griffin+", parts=parts))
    with oracle.recorded(model) as activations, torch.no_grad():
        model(torch.tensor([ids]))
    assert kept.correction is not None
    for layer, block in enumerate(feed_forwards(model)):
        z_TF, weight_FD = activations[layer][1:].double(), block.down.dense().double()
        kept_k = kept.layers[layer]
        removed_F = torch.ones(len(weight_FD)).index_fill(0, kept_k, 0).bool()
        own_T1 = 1 / z_TF.norm(dim=1, keepdim=True)
        general = 128 if prior else 0
        mean_F = (z_TF * own_T1).sum(0) + general * calibration.sum_LF[layer]
        mean_F = mean_F / (own_T1.sum() + general * calibration.weight_L[layer])
        x_TF = (z_TF - mean_F) * (own_T1 / len(z_TF)).sqrt()
        covariance_FF = x_TF.t() @ x_TF
        general_F = torch.zeros(len(weight_FD), dtype=torch.float64)
        if prior:
            share = len(z_TF) / (len(z_TF) + 1024)
            directions_PF = calibration.directions_LPF[layer].double()
            covariance_FF = share * covariance_FF + (1 - share) * directions_PF.t() @ directions_PF
            general_F = (1 - share) * calibration.unexplained_LF[layer].double()
        variance_k = (covariance_FF.diagonal() + general_F)[kept_k]
        penalty_k = (0.1 if prior else 2.0) * (variance_k + 0.1 * variance_k.mean()) + general_F[kept_k]
        expected_kD = torch.linalg.solve(
            covariance_FF[kept_k][:, kept_k] + penalty_k.diag(),
            covariance_FF[kept_k][:, removed_F] @ weight_FD[removed_F],
        )

        found_kD = kept.correction.left[layer] @ kept.correction.right[layer]

        torch.testing.assert_close(found_kD.double(), expected_kD, atol=1e-5, rtol=1e-3)


def test_half_precision_holds_the_correction(prompts: Prompts) -> None:
    """Also where a neuron hardly moves, whose weight in the regression is beyond what half precision has."""
    model, ids = tiny_model("llama"), prompts(11, 30)
    with torch.no_grad():
        for block in feed_forwards(model):
            block.parts_FD[-1].dense().mul_(1e-7)
            block.down.dense().mul_(1e3)
    calibration = calibrated(model)
    corrections = []
    for dtype in (torch.float32, torch.float16):
        teacher = Teacher(copy.deepcopy(model).to(dtype), calibration=calibration)
        teacher.begin()
        list(teacher.read(ids))
        kept = teacher.choose(PLUS)
        assert kept is not None
        assert kept.correction is not None
        corrections.append(kept.correction)
    full, half = corrections

    assert all(
        left_kR.isfinite().all() and right_RD.isfinite().all()
        for left_kR, right_RD in zip(half.left, half.right, strict=True)
    )
    assert half.left[0].abs().max() == 1
    assert full.left[0].dtype == torch.float32
    assert half.left[0].dtype == torch.float16


def test_chunks_change_nothing(prompts: Prompts) -> None:
    """The sums add up: the same neurons and offsets however the prompt is cut."""
    model, ids = tiny_model("llama"), prompts(3, 23)
    whole, cut = chosen(model, ids, PLUS), chosen(model, ids, PLUS, chunk=5)

    assert all(torch.equal(a, b) for a, b in zip(whole.layers, cut.layers, strict=True))
    torch.testing.assert_close(whole.offset_LD, cut.offset_LD, atol=1e-5, rtol=1e-4)
    for layer in range(3):
        found, expected = (each.correction.left[layer] @ each.correction.right[layer] for each in (cut, whole))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


def test_the_engine_decodes_as_the_masked_model(model: PreTrainedModel, prompts: Prompts) -> None:
    """In every family: gathered neurons and a bias give what masked activations and an addition give."""
    calibration = calibrated(model)
    prompt, rest = prompts(4, 18), prompts(5, 6)
    teacher = Teacher(model, calibration=calibration)
    teacher.begin()
    (first_1V,) = teacher.read(prompt, wanted=1)
    logits = [first_1V, *teacher.follow(rest[:-1], teacher.choose(PLUS), wanted=len(rest) - 1)]
    expected = target_logprobs(torch.cat(logits), rest)

    engine = Engine(model)
    reused = Pruning(0.5, reuse=as_selection(teacher.choose(PLUS)))

    torch.testing.assert_close(engine.score(prompt, rest, reused), expected, atol=5e-5, rtol=1e-3)


@pytest.mark.parametrize("step", ["native", "lean", "twin"])
def test_every_step_generates_the_same(step: str, prompts: Prompts) -> None:
    """Ragged sets, offsets, corrections and gates, whatever runs them; and nothing of them stays for the next."""
    model = tiny_model("llama")
    ids, sampling = prompts(6, 20), Sampling(max_tokens=8, temperature=0, ignore_eos=True)
    reused = Pruning(0.5, reuse=as_selection(chosen(model, ids, PLUS)))
    one, other = (Engine(tiny_model("llama"), step=name) for name in ("twin", step))

    for pruning in (reused, Pruning(0.5), reused, Pruning()):
        tokens = [[token.id for token in engine.generate(ids, sampling, pruning)] for engine in (one, other)]
        assert tokens[0] == tokens[1]


@pytest.mark.parametrize("step", ["native", "lean", "twin"])
def test_gates_where_nothing_more_of_a_neuron_is_read(step: str, prompts: Prompts) -> None:
    """Steps that read it all the same keep as many neurons as a token is to read."""
    model = tiny_model("llama")
    engine = Engine(model, calibration=calibrated(model), step=step)
    selection = [t.selection for t in engine.generate(prompts(6, 20), Sampling(max_tokens=2, ignore_eos=True), PLUS)][1]

    assert selection is not None
    assert (selection.kept.acting is not None) == (step == "native")
    assert (selection.kept.count > engine.accounting.kept(0.5)) == (step == "native")
    assert selection.kept.acting_count <= engine.accounting.kept(0.5)


@pytest.mark.parametrize(("more", "cached"), [(5, 8), (7, 16)])
def test_prefix_reuse_changes_nothing(
    more: int, cached: int, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept of a prompt's beginning has the sums in it; the latest tokens, which no sum has, are read again."""
    model = tiny_model("llama")
    calibration = calibrated(model)
    store = PrefixStore(2**20, 8)
    monkeypatch.setattr(ridge, "LATEST_TOKENS", 7)
    engine = Engine(model, prefill_chunk=8, prefixes=store, calibration=calibration)
    fresh = Engine(model, prefill_chunk=8, calibration=calibration)
    beginning = prompts(7, 16)
    sampling = Sampling(max_tokens=3, temperature=0, ignore_eos=True)
    list(engine.generate(beginning, sampling, PLUS))
    ids = [*beginning, *prompts(8, more)]

    with engine.read(ids, PLUS) as read:
        again = [token.selection for token in read.generate(sampling)][1]
        assert read.cached_tokens == cached
    first = [token.selection for token in fresh.generate(ids, sampling, PLUS)][1]

    assert again is not None
    assert first is not None
    assert again.expert_set == first.expert_set


def test_a_known_beginning_changes_no_score(prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neurons are chosen where the full model's part of a scored text ends: the latest tokens before that are read."""
    model = tiny_model("llama")
    calibration = calibrated(model)
    monkeypatch.setattr(ridge, "LATEST_TOKENS", 7)
    engine = Engine(model, prefill_chunk=8, prefixes=PrefixStore(2**20, 8), calibration=calibration)
    fresh = Engine(model, prefill_chunk=8, calibration=calibration)
    ids, rest = prompts(7, 18), prompts(8, 12)
    list(engine.generate(ids, Sampling(max_tokens=1), PLUS))

    torch.testing.assert_close(engine.score(ids, rest, PLUS), fresh.score(ids, rest, PLUS), atol=1e-5, rtol=0)


def test_a_dense_request_reads_nothing_again(prompts: Prompts) -> None:
    """Whatever its method: there is no neuron to predict."""
    model = tiny_model("llama")
    engine = Engine(model, prefill_chunk=8, prefixes=PrefixStore(2**20, 8), calibration=calibrated(model))
    ids = prompts(7, 18)
    list(engine.generate(ids, Sampling(max_tokens=1)))

    with engine.read(ids, Pruning(method="griffin+")) as read:
        assert read.cached_tokens == 16


def test_a_prompt_of_one_token(prompts: Prompts) -> None:
    """Shows nothing of any neuron; general text does, and without it the full model's means are what there is."""
    model = tiny_model("llama")
    calibration = calibrated(model)
    engine = Engine(model, calibration=calibration)
    for parts in (frozenset(PARTS), frozenset(PARTS) - {"prior"}):
        pruning = Pruning(0.5, method="griffin+", parts=parts)
        found = list(engine.generate(prompts(1, 1), Sampling(max_tokens=4, ignore_eos=True), pruning))
        assert len(found) == 4


def test_reused_neurons(prompts: Prompts) -> None:
    """Another prompt takes them as they are, offsets too, under the same name."""
    model = tiny_model("llama")
    engine = Engine(model, calibration=calibrated(model))
    sampling = Sampling(max_tokens=4, temperature=0, ignore_eos=True)
    given = [token.selection for token in engine.generate(prompts(9, 20), sampling, PLUS)][1]
    assert given is not None

    taken = list(engine.generate(prompts(10, 20), sampling, Pruning(0.5, reuse=given)))[1].selection

    assert taken is not None
    assert taken.expert_set == given.expert_set
    assert torch.equal(taken.kept.offset_LD, given.kept.offset_LD)
    assert taken.kept.acting is not None
    for one, other in ((taken.kept.acting, given.kept.acting), (taken.kept.correction, given.kept.correction)):
        for values, others in zip(astuple(one)[:2], astuple(other)[:2], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(values, others, strict=True))


def test_a_model_that_is_not_calibrated() -> None:
    """Says what to do; the paper's method is served all the same."""
    engine = Engine(tiny_model("llama"))

    with pytest.raises(InvalidRequest, match="python -m griffin calibrate"):
        list(engine.generate([5, 6, 7], Sampling(max_tokens=2), PLUS))
    assert len(list(engine.generate([5, 6, 7], Sampling(max_tokens=2, ignore_eos=True), Pruning(0.5)))) == 2


def test_it_chooses_by_itself() -> None:
    """A statistic or a way of selecting would be ignored, so they are refused."""
    with pytest.raises(ValueError, match="leave out selection and statistic"):
        Pruning(0.5, "sample", method="griffin+")
    with pytest.raises(ValueError, match="method must be one of"):
        Pruning(0.5, method="best")


@pytest.mark.parametrize("sparsity", [0.25, 0.5])
def test_verified_and_refreshed(sparsity: float, prompts: Prompts) -> None:
    """What its neurons draft is verified like any other, and chosen anew from the same sums; gates, where all stay."""
    model = tiny_model("llama", max_position_embeddings=512)
    engine = Engine(model, calibration=calibrated(model))
    sampling = Sampling(max_tokens=150, temperature=0, ignore_eos=True)
    prompt, pruning = prompts(11, 12), replace(PLUS, sparsity=sparsity)

    dense = [token.id for token in engine.generate(prompt, sampling, Pruning())]
    found = list(engine.generate(prompt, sampling, pruning, verification=Verification("lossless")))

    assert [token.id for token in found] == dense
    assert found[-1].verified is not None
    assert found[-1].verified.refreshes > 0
    others = [token.selection for token in found if token.selection is not None]
    assert len(others) == 1 + found[-1].verified.refreshes
    assert all(selection.kept.offset_LD is not None for selection in others)
