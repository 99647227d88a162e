"""What an answer reports: the tokens it used, what GRIFFIN applied, and how long each part took."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from griffin import Accounting, Comparison, Verified
from griffin.method.auto import Outlook
from griffin.neurons import Chosen, Kept
from griffin.request import METHOD_FIELDS
from griffin.thresholds import Shares
from server.answer.counts import Counts
from server.protocol.fields import SparsityChoice
from server.protocol.report import (
    AutoReport,
    ComparisonReport,
    CompletionTokensDetails,
    GriffinReport,
    PromptTokensDetails,
    Reason,
    SharesReport,
    TimingReport,
    Usage,
    VerificationReport,
)
from server.work.job import Job

# Above this, the exponential exceeds the largest float.
MOST_NATS = 700.0


class Report:
    """The report of one request, at any time while it is answered."""

    def __init__(self, job: Job, counts: Counts, accounting: Accounting, requested: SparsityChoice | None) -> None:
        """
        Args:
            requested: the sparsity that the client named in any way.
        """
        self._job, self._counts = job, counts
        self._accounting, self._requested = accounting, requested

    def usage(self) -> Usage:
        """The usage of all prompts and all answers together."""
        cached = sum(prompt.cached_tokens for prompt in self._counts.prompts)
        return _usage(
            sum(len(ask.prompt_ids) for ask in self._job.asks),
            self._counts.tokens,
            cached,
            self._counts.reasoning_tokens,
        )

    def usage_of(self, prompt: int, sample: int) -> Usage:
        """The usage of one answer so far, with its prompt."""
        answer = self._counts.answers.get((prompt, sample))
        read, cached = len(self._job.asks[prompt].prompt_ids), self._counts.prompts[prompt].cached_tokens
        return _usage(read, answer.tokens if answer else 0, cached, answer.reasoning_tokens if answer else 0)

    def griffin(self) -> GriffinReport:
        """What was applied, and why."""
        accounting, counts, chosen = self._accounting, self._counts, self._counts.selections
        read, takes = self._read(), METHOD_FIELDS[counts.pruning.method]
        sets = [prompt.selection.expert_set if prompt.selection else None for prompt in counts.prompts]
        # All answers to a prompt have the same limit.
        limits = [ask.samplings[0].max_tokens if ask.samplings else 0 for ask in self._job.asks]
        return GriffinReport(
            sparsity=counts.pruning.sparsity if chosen else 0.0,
            requested_sparsity=self._requested,
            reason=self._reason(),
            auto=_auto(counts.outlook),
            method=counts.pruning.method,
            mode=self._job.asks[0].verification.mode,
            selection=counts.pruning.selection if "selection" in takes else None,
            statistic=counts.pruning.statistic if "statistic" in takes else None,
            neurons_kept=read.neurons,
            neurons_total=accounting.neurons,
            shares_read=_shares(read.shares, gated=accounting.gated),
            active_parameters=read.parameters,
            total_parameters=accounting.total,
            bytes_per_token=read.bytes,
            prompt_tokens=sum(selection.prompt_tokens for selection in chosen) if chosen else None,
            selection_ms=milliseconds(sum(selection.seconds for selection in chosen)) if chosen else None,
            expert_set=sets[0],
            expert_sets=sets if len(sets) > 1 else None,
            verification=_verification(self._verified()),
            comparison=_comparison(counts.comparisons),
            max_tokens=limits[0],
            max_tokens_each=limits if len(limits) > 1 else None,
        )

    def timing(self) -> TimingReport:
        """All fields are null until a prompt was read."""
        job, times = self._job, self._counts.times
        if job.started is None or not times.last:
            return TimingReport.model_construct(**dict.fromkeys(TimingReport.model_fields))
        # If nothing was generated, the last prompt was read at this time.
        read = times.last if times.first is None else times.first
        return TimingReport(
            time_to_first_token_ms=None if times.first is None else milliseconds(times.first - job.arrived),
            generation_time_ms=None if times.first is None else milliseconds(times.last - times.first),
            queue_time_ms=milliseconds(job.started - job.arrived),
            prefill_time_ms=milliseconds(read - job.started),
            mean_itl_ms=milliseconds(times.gaps_s / times.gaps) if times.gaps else None,
            tokens_per_second=round(times.gaps / times.gaps_s, 2) if times.gaps_s else None,
        )

    def _verified(self) -> list[Verified]:
        """Verification figures of all answers. With n-gram drafts alone, answers without a draft are left out.

        Tokens that a grammar forced and that a pass read count too.
        """
        alone = self._job.asks[0].verification.source in ("none", "ngram")
        found = (answer.verified for answer in self._counts.answers.values() if answer.verified)
        return [verified for verified in found if verified.drafted or verified.forced or not alone]

    def _read(self) -> "_TokenReads":
        """What a token reads with the first prompt's neurons. All figures about neurons use that prompt."""
        accounting = self._accounting
        for prompt in self._counts.prompts:
            if prompt.selection is not None:
                return _TokenReads.of(accounting, prompt.selection.chosen, prompt.shares)
        return _TokenReads(accounting.neurons, Shares(1, 1, 1), accounting.total, accounting.weight_bytes)

    def _reason(self) -> Reason:
        """Why this sparsity applied."""
        counts = self._counts
        if self._job.asks[0].verification.full_alone:
            return "ngram_drafts"
        if counts.pruning.sparsity > 0 and not counts.selections:
            if not counts.pruning.prunes(self._accounting.width):
                return "rounded_to_dense"
            return "finished_at_first_token" if counts.tokens else "nothing_generated"
        if counts.pruning.reuse is not None:
            return "expert_set"
        if counts.outlook is not None:
            return "auto"
        return "server_default" if self._requested is None else "requested"


@dataclass(frozen=True, slots=True)
class _TokenReads:
    """What a token after the first one reads, on average.

    neurons: number of neurons that stay, over all layers.
    """

    neurons: int
    shares: Shares
    parameters: int
    bytes: int

    @classmethod
    def of(cls, accounting: Accounting, chosen: Chosen, counted: Shares | None) -> "_TokenReads":
        """
        Args:
            counted: measured shares that tokens read by thresholds; None before any token did.
        """
        shares = counted or chosen.shares(accounting.width)
        neurons = chosen.count if isinstance(chosen, Kept) else accounting.neurons
        parameters, read = accounting.active_with(chosen, shares), accounting.bytes_per_token(chosen, shares)
        return cls(neurons, shares, parameters, read)


def _shares(shares: Shares, *, gated: bool) -> SharesReport:
    return SharesReport(
        gate=round(shares.gate, 4), up=round(shares.up, 4) if gated else None, down=round(shares.down, 4)
    )


def _usage(prompt: int, made: int, cached: int, reasoning: int) -> Usage:
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=made,
        total_tokens=prompt + made,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=reasoning) if reasoning else None,
    )


def _verification(answers: Sequence[Verified]) -> VerificationReport | None:
    if not answers:
        return None
    total = Verified(*(sum(getattr(one, field.name) for one in answers) for field in fields(Verified)))
    return VerificationReport(
        drafted_tokens=total.drafted,
        accepted_tokens=total.accepted,
        acceptance_rate=round(total.accepted / total.drafted, 4) if total.drafted else None,
        rollbacks=total.rollbacks,
        passes=total.passes,
        forced_tokens=total.forced,
        refreshes=total.refreshes,
        active_parameters_per_token=round(total.parameters_read / total.tokens) if total.tokens else None,
        bytes_per_token=round(total.bytes_read / total.tokens) if total.tokens else None,
    )


def _auto(outlook: Outlook | None) -> AutoReport | None:
    if outlook is None:
        return None
    return AutoReport(
        sparsity=outlook.sparsity,
        predicted_perplexity_percent=round(math.expm1(min(outlook.divergence, MOST_NATS)) * 100, 2),
        tolerance_percent=round(math.expm1(outlook.limit) * 100, 2),
    )


def _comparison(answers: Sequence[Comparison]) -> ComparisonReport | None:
    """Means over the tokens of all answers. For the perplexity ratio this is the geometric mean."""
    if not (tokens := sum(one.tokens for one in answers)):
        return None

    def mean(of: Callable[[Comparison], float]) -> float:
        return sum(one.tokens * of(one) for one in answers) / tokens

    return ComparisonReport(
        tokens=tokens,
        kl=round(mean(lambda one: one.kl), 6),
        top1_agreement=round(mean(lambda one: one.top1_agreement), 6),
        perplexity_ratio=round(math.exp(mean(lambda one: math.log(one.perplexity_ratio))), 6),
    )


def milliseconds(seconds: float) -> float:
    return round(seconds * 1e3, 3)
