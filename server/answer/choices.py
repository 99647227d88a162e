"""A request's sparsity and ``griffin`` object become the engine's choices. The settings fill in what is absent."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from griffin import Pruning, Verification
from griffin.request import METHOD_FIELDS, MODE_DRAFTS, STANDARD, Auto, DraftName, ModeName
from server.errors import ExpertsNotFound, InvalidField
from server.protocol.fields import SparsityChoice
from server.protocol.options import GriffinOptions
from server.protocol.request import GenerationRequest
from server.served import ServedModel
from server.settings import Settings


@dataclass(frozen=True, slots=True)
class Choices:
    """The same for all prompts of a request."""

    pruning: Pruning
    verification: Verification
    compare: bool


def choose(
    body: GenerationRequest, requested: SparsityChoice | None, prompts: int, settings: Settings, model: ServedModel
) -> Choices:
    """Everything that a request chooses for the engine.

    Args:
        requested: the sparsity that the request names, in whichever way.
        prompts: how many the request has.

    Raises:
        InvalidField: choices that do not go together, by name.
        ExpertsNotFound: the neurons that it asks for are no longer known.
    """
    options, scored = body.griffin or GriffinOptions(), body.scoring() is not None
    if scored and options.compare:
        _refuse("compare", "not for texts that are scored (echo with logprobs)")
    verification = _verification(options, settings, scored)
    if verification.full_alone:
        _require_no_neurons(options, requested)
        pruning = Pruning(method=settings.method)
    elif options.expert_set is not None:
        pruning = _reused(options, options.expert_set, requested, model)
    else:
        alone = prompts == 1 and not scored
        pruning = _pruning(options, _sparsity(requested, alone, settings), settings, body.seed)
    if options.refresh and not pruning.follows_text:
        _refuse("refresh", "only for neurons that are chosen by top_k from the flocking statistic")
    return Choices(pruning, verification, bool(options.compare))


def _verification(options: GriffinOptions, settings: Settings, scored: bool) -> Verification:
    mode = options.mode or ("fast" if scored else settings.mode)
    if mode == "fast" and options.refresh is not None:
        _refuse("refresh", "only with mode guarded or lossless")
    if mode != "fast" and scored:
        _refuse("mode", "texts that are scored (echo with logprobs) are generated in mode fast; leave it out")
    if options.draft not in (None, *MODE_DRAFTS[mode]):
        _refuse("draft", f"only {_any_of(MODE_DRAFTS[mode])} in mode {mode} (got {options.draft!r})")
    draft = options.draft or _draft(mode, settings)
    source = draft or Verification(mode).source
    if options.draft_tokens is not None and source == "none":
        _refuse("draft_tokens", "not with draft none, or a server without drafts (--draft none); leave it out")
    if options.acceptance is not None and (mode != "guarded" or source == "ngram"):
        _refuse("acceptance", "only with mode guarded, and a draft of kept neurons")
    given = {name: getattr(options, name) for name in ("acceptance", "refresh")}
    return Verification(
        mode=mode,
        draft=draft,
        draft_tokens=options.draft_tokens,
        **{name: value for name, value in given.items() if value is not None},
    )


def _draft(mode: ModeName, settings: Settings) -> DraftName | None:
    """Where drafts come from if the request does not say; None: what the mode takes by itself."""
    if settings.draft == "ngram":
        return None
    return "none" if mode == "fast" else "pruned"


def _sparsity(requested: SparsityChoice | None, alone: bool, settings: Settings) -> SparsityChoice:
    """The sparsity that applies.

    Args:
        alone: whether auto is possible: the request has a single prompt, which is not scored.
    """
    if requested == "auto" and not alone:
        raise InvalidField(
            "sparsity: auto is found for one prompt, which is not scored (echo with logprobs): send prompts one by "
            "one, or name a number",
            "sparsity",
        )
    if requested is not None:
        return requested
    return 0.0 if settings.sparsity == "auto" and not alone else settings.sparsity


def _pruning(options: GriffinOptions, sparsity: SparsityChoice, settings: Settings, seed: int | None) -> Pruning:
    named = _first_named(options, *STANDARD)
    # A request that sets one of these fields means a method that takes it, even if --method says otherwise.
    takes = [name for name, fields in METHOD_FIELDS.items() if named is None or named in fields]
    method = options.method or (settings.method if settings.method in takes else takes[0])
    if named and method not in takes:
        _refuse(named, f"not with method {method}, which chooses by itself; leave it out")
    if sparsity == "auto":
        if named and any(getattr(options, name) not in (None, value) for name, value in STANDARD.items()):
            _refuse(
                named, "not with sparsity auto, which goes by the flocking statistic; leave it out, or name a sparsity"
            )
        # The number of tokens is filled in for each prompt.
        return Pruning(seed=seed, method=method, auto=Auto(math.log1p(settings.auto_tolerance / 100)))
    return Pruning(
        sparsity=sparsity,
        selection=options.selection or "top_k",
        statistic=options.statistic or "flocking",
        seed=seed,
        method=method,
    )


def _reused(options: GriffinOptions, expert_set: str, requested: SparsityChoice | None, model: ServedModel) -> Pruning:
    """The choices of the request that these neurons were chosen for."""
    if named := _first_named(options, "selection", "statistic", "method"):
        _refuse(named, "not with expert_set, whose neurons have been chosen; leave it out")
    known = model.experts.find(expert_set)
    if known is None:
        raise ExpertsNotFound(expert_set, "griffin.expert_set")
    if requested == "auto":
        raise InvalidField(
            "sparsity: not auto with expert_set, whose neurons have been chosen; leave it out", "sparsity"
        )
    own, kept = known.pruning.sparsity, model.engine.accounting.kept
    sparsity = own if requested is None else requested
    if sparsity != own and kept(sparsity) != kept(own):
        raise InvalidField(
            f"sparsity: expert_set {expert_set} was chosen at {own:g}, not at {sparsity:g}; leave it out", "sparsity"
        )
    return replace(known.pruning, sparsity=sparsity, reuse=known.selection)


def _require_no_neurons(options: GriffinOptions, requested: SparsityChoice | None) -> None:
    """Draft ngram uses no kept neurons, so fields about them could not be honoured.

    Raises:
        InvalidField: one of them is set.
    """
    if named := _first_named(options, "expert_set", "method", "selection", "statistic", "refresh"):
        _refuse(named, "not with draft ngram, which uses the full model alone; leave it out, or take draft both")
    if requested:
        raise InvalidField(
            "sparsity: draft ngram uses the full model alone; leave sparsity out, or take draft both", "sparsity"
        )


def _any_of(names: Sequence[str]) -> str:
    """Names as a sentence lists them: none or ngram; pruned, ngram or both."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def _first_named(options: GriffinOptions, *names: str) -> str | None:
    return next((name for name in names if getattr(options, name) is not None), None)


def _refuse(name: str, why: str) -> NoReturn:
    raise InvalidField(f"griffin.{name}: {why}", f"griffin.{name}")
