"""Sequences with a grammar: each mode obeys it, passes change no token, and the sequence ends where it ends."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from griffin import Engine, Pruning, Sampling, Token, Verification
from griffin.decode.masks import Masks
from griffin.decode.steps import StepName
from griffin.engine.speculation import Verifier
from griffin.request import DraftName, ModeName
from tests.griffin.engine.sequences import EVERYTHING, HALF, Prompts, ids
from tests.griffin.grammars import Slots
from tests.tiny import tiny_model

# Three forced tokens, then two free ones, again and again.
RECORD = tuple(frozenset(place) for place in ((40,), (41,), (42,), range(50, 60), range(3, 120)))
FORM = Slots(RECORD * 6)
GREEDY = Sampling(temperature=0, max_tokens=64, grammar=FORM)
SAMPLINGS = {
    "greedy": GREEDY,
    "seeded": Sampling(seed=3, max_tokens=64, grammar=FORM),
    "everything": replace(
        EVERYTHING, max_tokens=64, ignore_eos=False, min_tokens=0, stop_token_ids=frozenset(), grammar=FORM
    ),
}
PASSES = Verification("fast", "none")


def fits(tokens: list[Token], form: Slots = FORM) -> bool:
    return all(id in place for id, place in zip(ids(tokens), form.places, strict=False))


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_every_family_holds_to_it(family: str, sampling: Sampling, prompts: Prompts) -> None:
    """All tokens fit the grammar, and no token follows its last one."""
    tokens = list(Engine(tiny_model(family)).generate(prompts(1, 12), sampling, HALF))

    assert len(tokens) == len(FORM.places)
    assert fits(tokens)
    assert (tokens[-1].finish_reason, tokens[-1].complete) == ("stop", True)
    assert not any(token.finish_reason or token.complete for token in tokens[:-1])


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("sparsity", [0, 0.5])
@pytest.mark.parametrize("verification", [PASSES, Verification(), Verification(draft="ngram", draft_tokens=4)], ids=str)
def test_passes_change_no_token(
    sampling: Sampling, sparsity: float, verification: Verification, prompts: Prompts
) -> None:
    """Forced tokens and n-grams are read in passes; the tokens are those of single steps."""
    engine, prompt = Engine(tiny_model("llama")), prompts(2, 20)
    stepped = list(engine.generate(prompt, sampling, Pruning(sparsity)))
    passed = list(engine.generate(prompt, sampling, Pruning(sparsity), verification=verification))

    assert ids(passed) == ids(stepped)
    assert [token.logprobs for token in passed] == [token.logprobs for token in stepped]
    # The first token comes from the prompt, so only two tokens of the first record are forced.
    assert passed[-1].verified.forced + passed[-1].verified.accepted >= 2 + 5 * 3 - 1
    assert passed[-1].complete


def test_forced_tokens_cost_no_step(prompts: Prompts) -> None:
    """18 of 30 tokens are forced. After the first token, six passes and six steps are needed."""
    engine, prompt = Engine(tiny_model("llama")), prompts(3, 20)
    last = list(engine.generate(prompt, GREEDY, verification=PASSES))[-1]

    assert last.verified.forced == 2 + 5 * 3
    assert (last.verified.passes, last.verified.drafted) == (0, 0)
    assert last.verified.bytes_read == 12 * engine.accounting.weight_bytes


@pytest.mark.parametrize(("mode", "draft"), list(product(("guarded", "lossless"), ("pruned", "ngram", "both"))))
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_verified_modes_hold_to_it(mode: ModeName, draft: DraftName, sampling: Sampling, prompts: Prompts) -> None:
    """All tokens fit. Mode lossless gives the dense model's tokens under the same grammar."""
    engine, prompt = Engine(tiny_model("llama")), prompts(4, 20)
    tokens = list(engine.generate(prompt, sampling, Pruning(0.5), verification=Verification(mode, draft)))

    assert len(tokens) == len(FORM.places)
    assert fits(tokens)
    assert tokens[-1].complete
    if mode == "lossless":
        assert ids(tokens) == ids(list(engine.generate(prompt, sampling)))


@pytest.mark.parametrize("step", ["native", "lean", "twin"])
def test_with_every_step(step: StepName, prompts: Prompts) -> None:
    """Also with steps that have no passes."""
    tokens = list(Engine(tiny_model("llama"), step=step).generate(prompts(5, 20), GREEDY, HALF, verification=PASSES))

    assert fits(tokens)
    assert tokens[-1].complete


def test_answers_to_one_prompt_begin_anew(prompts: Prompts) -> None:
    """One grammar serves any number of sequences."""
    sampling = SAMPLINGS["seeded"]
    with Engine(tiny_model("llama")).read(prompts(6, 20)) as prompt:
        first, second = (list(prompt.generate(sampling, verification=Verification())) for _ in range(2))

    assert ids(first) == ids(second)


def test_the_limit_cuts_it_off(prompts: Prompts) -> None:
    """max_tokens may also cut in the middle of forced tokens."""
    engine = Engine(tiny_model("llama"))
    for most in (1, 2, 6, 7, 12):
        tokens = list(engine.generate(prompts(7, 20), replace(GREEDY, max_tokens=most), verification=Verification()))

        assert len(tokens) == most
        assert fits(tokens)
        assert (tokens[-1].finish_reason, tokens[-1].complete) == ("length", False)
    # If the last token of the grammar is also the last one allowed, the sequence is complete.
    whole = list(engine.generate(prompts(7, 20), replace(GREEDY, max_tokens=len(FORM.places))))
    assert whole[-1].finish_reason == "stop"


def test_an_end_token_ends_it_where_it_may(prompts: Prompts) -> None:
    """An end token is not drawn before the grammar allows it, however probable it is."""
    form = Slots((frozenset(range(3, 60)),) * 20, least=5, end_id=2)
    sampling = replace(GREEDY, grammar=form, logit_bias={2: 100.0})
    tokens = list(Engine(tiny_model("llama")).generate(prompts(8, 20), sampling, verification=Verification()))

    assert len(tokens) == 6
    assert (tokens[-1].id, tokens[-1].finish_reason, tokens[-1].complete) == (2, "stop", False)


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize(
    "verification",
    [None, PASSES, Verification(draft="ngram", draft_tokens=4), Verification("lossless", "both")],
    ids=str,
)
def test_a_grammar_that_is_done_needs_no_mask(
    sampling: Sampling, verification: Verification | None, prompts: Prompts
) -> None:
    """After that, any token may follow. The tokens are those of a grammar that allows all, but no mask is used."""
    engine, prompt = Engine(tiny_model("llama")), prompts(10, 20)
    anything = (frozenset(range(engine.vocabulary_size)),) * 20
    tokens, expected = (
        list(engine.generate(prompt, replace(sampling, max_tokens=25, grammar=form), HALF, verification=verification))
        for form in (Slots(RECORD, goes_on=True), Slots(RECORD + anything))
    )

    assert ids(tokens) == ids(expected)
    assert [token.logprobs for token in tokens] == [token.logprobs for token in expected]
    assert len(tokens) == 25


def test_a_sequence_can_go_back_before_its_grammar_was_done() -> None:
    """The grammar then counts again. A mark after it was done needs no mark in the grammar."""
    masks = Masks(8, torch.device("cpu"))
    masks.begin(Slots((frozenset({1, 2}),) * 2, goes_on=True))
    for id in (1, 2):
        assert masks.constraint is not None
        if id == 2:
            masks.mark()
        masks.constraint.advance(id)
    assert masks.constraint is None
    assert masks.allowed() is None
    masks.back()

    allowed = masks.allowed()
    assert allowed is not None
    assert allowed.tolist() == [id in (1, 2) for id in range(8)]
    assert masks.constraint is not None
    masks.constraint.advance(1)
    masks.mark()
    masks.back()
    assert masks.constraint is None


def test_log_probabilities_are_the_models_own(prompts: Prompts) -> None:
    """They are computed without the mask: the most probable tokens need not be allowed."""
    engine, prompt = Engine(tiny_model("llama")), prompts(9, 20)
    free = next(engine.generate(prompt, replace(GREEDY, grammar=None, logprobs=2)))
    held = next(engine.generate(prompt, replace(GREEDY, logprobs=2)))

    assert held.id == 40 != free.id
    assert held.logprobs.top == free.logprobs.top
    assert held.logprobs.chosen < free.logprobs.chosen


def test_drafts_are_cut_where_they_are_refused(prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pass reads a token that the grammar refuses."""
    read: list[list[int]] = []
    settle = Verifier._settle
    monkeypatch.setattr(Verifier, "_settle", lambda self, ids, guarded: read.append(ids) or settle(self, ids, guarded))
    places = (*RECORD[:3], frozenset({50}), frozenset(range(3, 120))) * 4
    form = Slots((frozenset(range(43, 60)), *places))
    # The prompt has a record whose next tokens the grammar does not allow.
    prompt = [*prompts(10, 8), 40, 41, 42, 50, 60, 99, 98, 97]
    verification = Verification(draft="ngram", draft_tokens=8)
    list(Engine(tiny_model("llama")).generate(prompt, replace(GREEDY, grammar=form), verification=verification))

    assert read
    assert not {99, 98, 97} & {id for ids in read for id in ids}


@pytest.mark.parametrize("changes", [{"min_tokens": 2}, {"ignore_eos": True}])
def test_what_no_grammar_can_keep_is_refused(changes: dict[str, int]) -> None:
    """A grammar may end the answer early, and always ends it at its own end."""
    with pytest.raises(ValueError, match=next(iter(changes))):
        replace(GREEDY, **changes)
