"""What one request used and how long it took: counted token by token, reported in the answer, metrics and log."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from griffin import Accounting, Comparison, Pruning, Selection, Token, Verified
from griffin.method.auto import Outlook
from server.metrics import Metrics, sparsity_label
from server.protocol.fields import SparsityChoice
from server.protocol.report import (
    AutoReport,
    ComparisonReport,
    GriffinReport,
    PromptTokensDetails,
    Reason,
    TimingReport,
    Usage,
    VerificationReport,
)
from server.work.job import Job

# The exponential of more is no float.
MOST_NATS = 700.0


class Tally:
    """Of one job. ``requested``: the sparsity that the client named, in whichever way."""

    def __init__(
        self, job: Job, accounting: Accounting, metrics: Metrics, model_name: str, requested: SparsityChoice | None
    ) -> None:
        self._job, self._accounting, self._metrics = job, accounting, metrics
        self._model_name, self._requested = model_name, requested
        self._verification = job.asks[0].verification
        # What sparsity auto has come to.
        self._outlook: Outlook | None = None
        self._selections: dict[int, Selection] = {}
        # Tokens of each prompt that were not read again.
        self._cached: dict[int, int] = {}
        self._counts: dict[tuple[int, int], int] = {}
        self._last_at: dict[tuple[int, int], float] = {}
        self._count = 0
        self._first: float | None = None
        self._last = 0.0
        # Between tokens of the same sequence.
        self._gaps, self._gap_s = 0, 0.0
        self._label()
        # Of each sequence so far; where tokens are verified, what they read is known by the block only.
        self._verified: dict[tuple[int, int], Verified] = {}
        self._comparisons: list[Comparison] = []
        # Of the next token; all until neurons are chosen.
        self._active = accounting.total

    def _label(self) -> None:
        metrics = self._metrics
        self._labels = (self._model_name, sparsity_label(self._pruning.sparsity))
        self._itl = metrics.inter_token_latency.labels(*self._labels)
        self._generated = metrics.generation_tokens.labels(*self._labels)
        self._parameters_read = metrics.parameters_read.labels(*self._labels)
        self._verifies = self._verification.mode != "fast" and (self._prunes or self._verification.draft != "pruned")

    @property
    def _prunes(self) -> bool:
        return self._pruning.prunes(self._accounting.width)

    @property
    def _pruning(self) -> Pruning:
        """Of all prompts alike; the sparsity is 0 as long as auto has not come to one."""
        return self._job.asks[0].pruning

    def accepted(self) -> None:
        """The job is in the queue: from here on it ends in success, disconnect or failure."""
        self._metrics.accepted.labels(self._model_name).inc()

    @property
    def count(self) -> int:
        """Generated tokens so far."""
        return self._count

    def read(
        self, prompt: int, selection: Selection | None, cached_tokens: int, outlook: Outlook | None = None
    ) -> None:
        """A prompt has been read, or was known in part, and maybe its neurons chosen already."""
        if outlook is not None:
            self._outlook = outlook
            self._label()
        if selection is not None:
            self._chosen(prompt, selection)
        self._cached[prompt] = cached_tokens
        self._metrics.prefix_queries.labels(self._model_name).inc(len(self._job.asks[prompt].prompt_ids))
        self._metrics.prefix_hits.labels(self._model_name).inc(cached_tokens)
        self._last = time.monotonic()

    def made(self, prompt: int, sample: int, token: Token, at: float) -> None:
        """A token has been made."""
        key = prompt, sample
        if token.selection is not None:
            self._chosen(prompt, token.selection)
        if (before := self._last_at.get(key)) is not None:
            self._gaps += 1
            self._gap_s += at - before
            self._itl.observe(at - before)
            if not self._verifies:
                self._parameters_read.inc(self._active)
        if token.verified is not None:
            self._verify(key, token.verified)
        if self._first is None:
            self._first = at
        self._last = self._last_at[key] = at
        self._counts[key] = self._counts.get(key, 0) + 1
        self._count += 1
        # Here and not at the end: a long answer would look like silence and then like a burst.
        self._generated.inc()

    def _chosen(self, prompt: int, selection: Selection) -> None:
        # The same number for every prompt of a job, but for some of few tokens. Others, taken on the way, are not the
        # prompt's. Which neurons they are is all that is told: what stands for the others is far larger.
        self._selections.setdefault(prompt, selection.without_correction())
        self._active = self._accounting.active_with(selection.kept)

    def _verify(self, key: tuple[int, int], verified: Verified) -> None:
        """Count what is new in a sequence's figures."""
        before = self._verified.get(key, Verified())
        self._verified[key] = verified
        if verified == before:
            return
        labels, metrics = (self._model_name, self._verification.mode), self._metrics
        self._parameters_read.inc(verified.parameters_read - before.parameters_read)
        metrics.drafts.labels(*labels).inc(verified.passes - before.passes)
        metrics.draft_tokens.labels(*labels).inc(verified.drafted - before.drafted)
        metrics.accepted_tokens.labels(*labels).inc(verified.accepted - before.accepted)
        metrics.rollbacks.labels(*labels).inc(verified.rollbacks - before.rollbacks)

    def compared(self, comparison: Comparison | None) -> None:
        """A sequence has been compared with the full model, if neurons were removed."""
        if comparison is not None:
            self._comparisons.append(comparison)

    def selection(self, prompt: int) -> Selection | None:
        """The neurons that were chosen for a prompt, if any were, without their correction."""
        return self._selections.get(prompt)

    def usage(self) -> Usage:
        prompt = sum(len(ask.prompt_ids) for ask in self._job.asks)
        return _usage(prompt, self._count, sum(self._cached.values()))

    def usage_of(self, prompt: int, sample: int) -> Usage:
        """One answer's own, so far."""
        read, made = len(self._job.asks[prompt].prompt_ids), self._counts.get((prompt, sample), 0)
        return _usage(read, made, self._cached.get(prompt, 0))

    def griffin_report(self) -> GriffinReport:
        accounting, chosen = self._accounting, list(self._selections.values())
        kept = chosen[0].kept.count if chosen else accounting.neurons
        acting = chosen[0].kept.acting_count if chosen else accounting.neurons
        prompts = range(len(self._job.asks))
        sets = [self._selections[index].expert_set if index in self._selections else None for index in prompts]
        # All answers to a prompt have the same.
        limits = [ask.samplings[0].max_tokens if ask.samplings else 0 for ask in self._job.asks]
        return GriffinReport(
            sparsity=self._pruning.sparsity if chosen else 0.0,
            requested_sparsity=self._requested,
            reason=self._reason(),
            auto=_auto_report(self._outlook),
            method=self._pruning.method,
            mode=self._verification.mode,
            selection=self._pruning.selection,
            statistic=self._pruning.statistic,
            neurons_kept=kept,
            neurons_acting=acting,
            neurons_total=accounting.neurons,
            active_parameters=accounting.active(kept, acting),
            total_parameters=accounting.total,
            prompt_tokens=sum(selection.prompt_tokens for selection in chosen) if chosen else None,
            selection_ms=_milliseconds(sum(selection.seconds for selection in chosen)) if chosen else None,
            expert_set=sets[0],
            expert_sets=sets if len(sets) > 1 else None,
            verification=_verification_report(list(self._verified.values())),
            comparison=_comparison_report(self._comparisons),
            max_tokens=limits[0],
            max_tokens_each=limits if len(limits) > 1 else None,
        )

    def timing_report(self) -> TimingReport:
        job = self._job
        if job.started is None or not self._last:
            return TimingReport.model_construct(**dict.fromkeys(TimingReport.model_fields))
        # Where nothing was generated, the prompt has been read by then.
        read = self._last if self._first is None else self._first
        return TimingReport(
            time_to_first_token_ms=None if self._first is None else _milliseconds(self._first - job.arrived),
            generation_time_ms=None if self._first is None else _milliseconds(self._last - self._first),
            queue_time_ms=_milliseconds(job.started - job.arrived),
            prefill_time_ms=_milliseconds(read - job.started),
            mean_itl_ms=_milliseconds(self._gap_s / self._gaps) if self._gaps else None,
            tokens_per_second=round(self._gaps / self._gap_s, 2) if self._gap_s else None,
        )

    def _reason(self) -> Reason:
        if self._verification.draft == "ngram":
            return "ngram_drafts"
        if self._pruning.sparsity > 0 and not self._selections:
            if not self._count:
                return "nothing_generated"
            return "finished_at_first_token" if self._prunes else "rounded_to_dense"
        if self._pruning.reuse is not None:
            return "expert_set"
        if self._outlook is not None:
            return "auto"
        return "server_default" if self._requested is None else "requested"

    def observe(self, outcome: str) -> Mapping[str, Any]:
        """Into the metrics, once; and the fields of the log line. Never a word of the text."""
        metrics, name, labels, job = self._metrics, self._model_name, self._labels, self._job
        report, timing = self.griffin_report(), self.timing_report()
        if outcome == "cancelled":
            phase = "queue" if job.started is None else "decode" if self._count else "prefill"
            metrics.disconnects.labels(name, phase).inc()
        elif outcome in ("stop", "length"):
            metrics.success.labels(name, outcome).inc()
            metrics.active_parameters.labels(name).set(report.active_parameters)
            metrics.active_ratio.labels(*labels).observe(report.active_parameters / report.total_parameters)
            metrics.e2e_latency.labels(*labels).observe(self._last - job.arrived)
        else:
            metrics.failure.labels(name, outcome).inc()
        if job.started is not None:
            metrics.prompt_tokens.labels(name).inc(self.usage().prompt_tokens)
            metrics.queue_time.labels(*labels).observe(job.started - job.arrived)
        if job.started is not None and self._first is not None:
            metrics.time_to_first_token.labels(*labels).observe(self._first - job.arrived)
            metrics.prefill_time.labels(*labels).observe(self._first - job.started)
            metrics.decode_time.labels(*labels).observe(self._last - self._first)
        if self._gaps:
            metrics.time_per_output_token.labels(*labels).observe(self._gap_s / self._gaps)
        for selection in self._selections.values():
            metrics.selection_time.labels(*labels).observe(selection.seconds)
        return {
            "outcome": outcome,
            "prompt_tokens": self.usage().prompt_tokens,
            "tokens": self._count,
            "sparsity": report.sparsity,
            "queue_ms": timing.queue_time_ms,
            "ttft_ms": timing.time_to_first_token_ms,
            "itl_ms": timing.mean_itl_ms,
        }


def _verification_report(sequences: Sequence[Verified]) -> VerificationReport | None:
    if not sequences:
        return None
    total = Verified(*(sum(getattr(one, field.name) for one in sequences) for field in fields(Verified)))
    return VerificationReport(
        drafted_tokens=total.drafted,
        accepted_tokens=total.accepted,
        acceptance_rate=round(total.accepted / total.drafted, 4) if total.drafted else None,
        rollbacks=total.rollbacks,
        passes=total.passes,
        refreshes=total.refreshes,
        active_parameters_per_token=round(total.parameters_read / total.tokens) if total.tokens else None,
    )


def _auto_report(outlook: Outlook | None) -> AutoReport | None:
    if outlook is None:
        return None
    return AutoReport(
        sparsity=outlook.sparsity,
        predicted_perplexity_percent=round(math.expm1(min(outlook.divergence, MOST_NATS)) * 100, 2),
        tolerance_percent=round(math.expm1(outlook.limit) * 100, 2),
    )


def _comparison_report(sequences: Sequence[Comparison]) -> ComparisonReport | None:
    """Of all tokens together: means by tokens, and of the ratio, which is an exponential of one, the geometric mean."""
    if not (tokens := sum(one.tokens for one in sequences)):
        return None

    def mean(of: Callable[[Comparison], float]) -> float:
        return sum(one.tokens * of(one) for one in sequences) / tokens

    return ComparisonReport(
        tokens=tokens,
        kl=round(mean(lambda one: one.kl), 6),
        top1_agreement=round(mean(lambda one: one.top1_agreement), 6),
        perplexity_ratio=round(math.exp(mean(lambda one: math.log(one.perplexity_ratio))), 6),
    )


def _usage(prompt: int, made: int, cached: int) -> Usage:
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=made,
        total_tokens=prompt + made,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
    )


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1e3, 3)
