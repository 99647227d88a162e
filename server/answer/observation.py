"""What happens to one request: metrics while it runs, and fields of its log line at its end."""

import time
from collections.abc import MutableMapping
from dataclasses import dataclass

from prometheus_client import Counter, Histogram

from griffin import Accounting, Pruning, Verified
from griffin.neurons import Chosen
from griffin.thresholds import Shares
from server.answer.counts import Counts
from server.answer.report import Report
from server.metrics import Metrics, sparsity_label
from server.protocol.structured import FormKind
from server.work.job import Compared, Job, Made, Read

# After this many tokens, the shares that thresholds read are copied into the metrics.
COUNTED_EVERY = 16


@dataclass(frozen=True, slots=True)
class TokenMetrics:
    """The metrics that each token adds to. They are looked up once for all tokens of a sparsity."""

    labels: tuple[str, str]
    generated: Counter
    inter_token_latency: Histogram
    parameters_read: Counter
    bytes_read: Counter

    @classmethod
    def of(cls, metrics: Metrics, model_name: str, pruning: Pruning) -> "TokenMetrics":
        labels = model_name, sparsity_label(pruning.sparsity)
        return cls(
            labels,
            metrics.generation_tokens.labels(*labels),
            metrics.inter_token_latency.labels(*labels),
            metrics.parameters_read.labels(*labels),
            metrics.bytes_read.labels(*labels),
        )


class Observation:
    """Counts a job's events and reports them to metrics and log. It never reports text."""

    def __init__(
        self,
        job: Job,
        counts: Counts,
        report: Report,
        accounting: Accounting,
        metrics: Metrics,
        model_name: str,
        log_fields: MutableMapping[str, object],
        form: FormKind | None = None,
    ) -> None:
        """
        Args:
            log_fields: fields of the request's log line; ``end`` adds to them.
            form: the kind of form that answers must have.
        """
        self._job, self._counts, self._report, self._accounting = job, counts, report, accounting
        self._metrics, self._model_name, self._log_fields = metrics, model_name, log_fields
        self._form = form
        self._tokens = self._token_metrics()
        # What the next token reads: all weights, until neurons are chosen.
        self._active, self._bytes = accounting.total, accounting.weight_bytes
        self._choice: Chosen | None = None

    def accepted(self) -> None:
        """The job is in the queue. It will end in success, disconnect or failure."""
        self._metrics.accepted.labels(self._model_name).inc()
        if self._form is not None:
            self._metrics.structured.labels(self._model_name, self._form).inc()

    def read(self, read: Read) -> None:
        """A prompt was read; its neurons may be chosen already."""
        self._counts.read(read, time.monotonic())
        if read.outlook is not None:
            # Sparsity auto has become a number.
            self._tokens = self._token_metrics()
        if read.selection is not None:
            self._chosen(read.selection.chosen)
        self._metrics.prefix_queries.labels(self._model_name).inc(len(self._job.asks[read.prompt].prompt_ids))
        self._metrics.prefix_hits.labels(self._model_name).inc(read.cached_tokens)
        self._metrics.prefix_file_hits.labels(self._model_name).inc(read.cached_in_files)

    def made(self, made: Made) -> None:
        """A token was made. It is counted at once: counted at the end, a long answer would show as one burst."""
        token, gap_s = made.token, self._counts.made(made)
        if token.selection is not None:
            self._chosen(token.selection.chosen)
        if token.shares is not None and self._counts.tokens % COUNTED_EVERY == 0:
            self._chosen(self._choice, token.shares)
        if gap_s is not None:
            self._tokens.inter_token_latency.observe(gap_s)
            # What verified tokens read is known for a whole block only.
            if token.verified is None:
                self._tokens.parameters_read.inc(self._active)
                self._tokens.bytes_read.inc(self._bytes)
        if token.verified is not None:
            self._verified((made.prompt, made.sample), token.verified)
        self._tokens.generated.inc()

    def compared(self, compared: Compared) -> None:
        """An answer was compared with the full model, if neurons were removed."""
        if compared.comparison is not None:
            self._counts.comparisons.append(compared.comparison)

    def end(self, outcome: str) -> None:
        """The request has ended. Called once.

        Args:
            outcome: stop or length if the last answer ended so; cancelled; or the reason of an error.
        """
        if outcome == "cancelled":
            self._metrics.disconnects.labels(self._model_name, self._phase()).inc()
        elif outcome in ("stop", "length"):
            self._succeeded(outcome)
        else:
            self._metrics.failure.labels(self._model_name, outcome).inc()
        self._timed()
        self._log(outcome)

    def _token_metrics(self) -> TokenMetrics:
        return TokenMetrics.of(self._metrics, self._model_name, self._counts.pruning)

    def _chosen(self, chosen: Chosen | None, shares: Shares | None = None) -> None:
        """Set what tokens read. If each token picks its own neurons: ``shares`` on average, or as planned."""
        if chosen is not None:
            self._choice, accounting = chosen, self._accounting
            self._active, self._bytes = (
                accounting.active_with(chosen, shares), accounting.bytes_per_token(chosen, shares)
            )  # fmt: skip

    def _verified(self, key: tuple[int, int], verified: Verified) -> None:
        """Add what is new in an answer's verification figures."""
        answer = self._counts.answers[key]
        before, answer.verified = answer.verified or Verified(), verified
        if verified == before:
            return
        labels, metrics = (self._model_name, self._job.asks[0].verification.mode), self._metrics
        self._tokens.parameters_read.inc(verified.parameters_read - before.parameters_read)
        self._tokens.bytes_read.inc(verified.bytes_read - before.bytes_read)
        metrics.drafts.labels(*labels).inc(verified.passes - before.passes)
        metrics.draft_tokens.labels(*labels).inc(verified.drafted - before.drafted)
        metrics.accepted_tokens.labels(*labels).inc(verified.accepted - before.accepted)
        metrics.rollbacks.labels(*labels).inc(verified.rollbacks - before.rollbacks)
        metrics.forced_tokens.labels(self._model_name).inc(verified.forced - before.forced)

    def _phase(self) -> str:
        if self._job.started is None:
            return "queue"
        return "decode" if self._counts.tokens else "prefill"

    def _succeeded(self, outcome: str) -> None:
        metrics, name, labels, report = self._metrics, self._model_name, self._tokens.labels, self._report.griffin()
        metrics.success.labels(name, outcome).inc()
        metrics.active_parameters.labels(name).set(report.active_parameters)
        metrics.bytes_per_token.labels(name).set(report.bytes_per_token)
        metrics.active_ratio.labels(*labels).observe(report.active_parameters / report.total_parameters)
        metrics.e2e_latency.labels(*labels).observe(self._counts.times.last - self._job.arrived)

    def _timed(self) -> None:
        metrics, labels, job, times = self._metrics, self._tokens.labels, self._job, self._counts.times
        if job.started is not None:
            metrics.prompt_tokens.labels(self._model_name).inc(self._report.usage().prompt_tokens)
            metrics.queue_time.labels(*labels).observe(job.started - job.arrived)
        if job.started is not None and times.first is not None:
            metrics.time_to_first_token.labels(*labels).observe(times.first - job.arrived)
            metrics.prefill_time.labels(*labels).observe(times.first - job.started)
            metrics.decode_time.labels(*labels).observe(times.last - times.first)
        if times.gaps:
            metrics.time_per_output_token.labels(*labels).observe(times.gaps_s / times.gaps)
        for selection in self._counts.selections:
            metrics.selection_time.labels(*labels).observe(selection.seconds)

    def _log(self, outcome: str) -> None:
        timing = self._report.timing()
        self._log_fields.update(
            outcome=outcome,
            prompt_tokens=self._report.usage().prompt_tokens,
            tokens=self._counts.tokens,
            sparsity=self._report.griffin().sparsity,
            queue_ms=timing.queue_time_ms,
            ttft_ms=timing.time_to_first_token_ms,
            itl_ms=timing.mean_itl_ms,
        )
