"""Every Prometheus metric, declared once with help and unit. Names are vLLM's with another prefix, for its panels."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from griffin.request import MODES

# vLLM's buckets, with finer ones where a token of a small or pruned model falls.
ITL_BUCKETS = (
    0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.010, 0.012, 0.015, 0.020, 0.025, 0.030, 0.040, 0.050,
    0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5,
)  # fmt: skip
TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
REQUEST_BUCKETS = (
    0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
    240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
SELECTION_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
KL_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
AGREEMENT_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 1.0)
PERPLEXITY_RATIO_BUCKETS = (
    0.8, 0.9, 1.0, 1.05, 1.1, 1.15, 1.2, 1.3, 1.4, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0, 10.0, 20.0, 50.0, 100.0,
)  # fmt: skip
RATIO_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SPARSITIES = (0.0, 0.25, 0.5, 0.75)
OTHER = "other"

# Label values that Prometheus must see before their first event. There may be more.
FINISHED_REASONS = ("stop", "length")
FORM_KINDS = ("json_object", "json_schema", "regex", "choice", "grammar")
PHASES = ("queue", "prefill", "decode")
FAILURES = ("request_timeout", "internal_error", "out_of_memory", "engine_failed")
SHADOW_OUTCOMES = ("compared", "dropped")
REJECTIONS = ("queue_full", "model_loading", "server_draining", "engine_failed", "invalid_value", "invalid_api_key")

MODEL = ("model_name",)
BY_SPARSITY = ("model_name", "sparsity")
BY_MODE = ("model_name", "mode")


def sparsity_label(sparsity: float) -> str:
    """A label from a short list. Clients could send any number, and each would become a series."""
    return next((f"{known:g}" for known in SPARSITIES if known == sparsity), OTHER)


class Metrics:
    """All metrics of one app, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._by_sparsity: list[Counter | Histogram] = []

        def counter(name: str, text: str, labels: tuple[str, ...]) -> Counter:
            return Counter(f"griffin_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = MODEL) -> Gauge:
            return Gauge(f"griffin_{name}", text, labels, registry=registry)

        def plain_histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"griffin_{name}", text, BY_SPARSITY, buckets=buckets, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            metric = plain_histogram(name, text, buckets)
            self._by_sparsity.append(metric)
            return metric

        self.ready = gauge("ready", "1 while requests are accepted (as /ready says), else 0.", ())
        self.draining = gauge("draining_seconds", "Seconds since the server was told to stop; 0 before.", ())
        self.drain_timeout = gauge("drain_timeout_seconds", "Seconds that running requests have after that.", ())
        self.queue_size = gauge("queue_size", "Requests that may wait.", ())
        self.workers = gauge("workers", "Requests that can be generated at the same time.")
        self.model_loaded = gauge("model_loaded", "1 while the model is loaded, 0 while it is not.")
        self.running = gauge("num_requests_running", "Requests that a worker is generating.")
        self.waiting = gauge("num_requests_waiting", "Requests in the queue, or waiting for their model to load.")
        self.accepted = counter("requests_accepted", "Requests put into the queue.", MODEL)
        self.success = counter("request_success", "Requests answered in full.", (*MODEL, "finished_reason"))
        self.failure = counter("request_failure", "Accepted requests that ended in an error.", (*MODEL, "reason"))
        self.rejected = counter("requests_rejected", "Requests refused before they were queued.", ("reason",))
        for reason in REJECTIONS:
            self.rejected.labels(reason)
        self.structured = counter(
            "structured_requests", "Accepted requests whose answers must have a form.", (*MODEL, "kind")
        )
        self.forced_tokens = counter("forced_tokens", "Tokens that a form forced, without a step.", MODEL)
        self.disconnects = counter(
            "client_disconnects", "Requests cancelled because the client left or the server stopped.", (*MODEL, "phase")
        )
        self.worker_restarts = counter("worker_restarts", "Engines rebuilt after a failure.", MODEL)
        # In tokens, as vLLM counts them.
        self.prefix_queries = counter("prefix_cache_queries", "Tokens of prompts that were read or looked up.", MODEL)
        self.prefix_hits = counter("prefix_cache_hits", "Prompt tokens reused instead of read again.", MODEL)
        self.prefix_file_hits = counter(
            "prefix_cache_file_hits", "Part of the hits that came from --prefix-cache-dir.", MODEL
        )
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of started requests.", MODEL)
        self.generation_tokens = counter("generation_tokens", "Generated tokens.", BY_SPARSITY)
        self.parameters_read = counter(
            "decode_parameters_read", "Parameters read, summed over all tokens after the first.", BY_SPARSITY
        )
        self.bytes_read = counter(
            "decode_bytes_read", "Bytes of weights read, summed over all tokens after the first.", BY_SPARSITY
        )
        self.drafts = counter("spec_decode_num_drafts", "Passes over a block of drafts.", BY_MODE)
        self.draft_tokens = counter("spec_decode_num_draft_tokens", "Tokens that were drafted.", BY_MODE)
        self.accepted_tokens = counter("spec_decode_num_accepted_tokens", "Drafted tokens that were accepted.", BY_MODE)
        self.rollbacks = counter(
            "spec_decode_num_rollbacks", "Passes that rejected part of a block of drafts.", BY_MODE
        )
        self.time_to_first_token = histogram(
            "time_to_first_token_seconds", "From arrival to the first token.", TTFT_BUCKETS
        )
        self.inter_token_latency = histogram(
            "inter_token_latency_seconds", "Seconds between one token and the next.", ITL_BUCKETS
        )
        self.time_per_output_token = histogram(
            "request_time_per_output_token_seconds", "Mean inter-token latency of a request.", ITL_BUCKETS
        )
        self.e2e_latency = histogram("e2e_request_latency_seconds", "From arrival to the last token.", REQUEST_BUCKETS)
        self.queue_time = histogram("request_queue_time_seconds", "From arrival to a worker.", REQUEST_BUCKETS)
        self.prefill_time = histogram("request_prefill_time_seconds", "From a worker to the first token.", TTFT_BUCKETS)
        self.decode_time = histogram(
            "request_decode_time_seconds", "From the first token to the last.", REQUEST_BUCKETS
        )
        self.selection_time = histogram(
            "neuron_selection_seconds", "From the finished prompt to decode-ready weights.", SELECTION_BUCKETS
        )
        self.shadow_requests = counter(
            "shadow_requests", "Answers chosen for a comparison with the full model.", (*MODEL, "outcome")
        )
        self.shadow_kl = plain_histogram(
            "shadow_kl_nats", "Kullback-Leibler divergence of pruned answers from the full model.", KL_BUCKETS
        )
        self.shadow_top1_agreement = plain_histogram(
            "shadow_top1_agreement_ratio", "How often both models find the same token most probable.", AGREEMENT_BUCKETS
        )
        self.shadow_perplexity_ratio = plain_histogram(
            "shadow_perplexity_ratio", "The full model's perplexity on pruned answers over the pruned model's.",
            PERPLEXITY_RATIO_BUCKETS,
        )  # fmt: skip
        self._by_sparsity += [self.generation_tokens, self.parameters_read, self.bytes_read]
        self.model_parameters = gauge("model_parameters", "Parameters of the model.", (*MODEL, "kind"))
        self.model_bytes_per_token = gauge(
            "model_bytes_per_token", "Bytes of weights that a token of the full model reads."
        )
        self.active_parameters = gauge("active_parameters", "Active parameters of the last finished request.")
        self.bytes_per_token = gauge(
            "bytes_per_token", "Bytes of weights that a token of the last finished request read."
        )
        self.active_ratio = histogram(
            "request_active_parameter_ratio", "Active parameters over all parameters.", RATIO_BUCKETS
        )

    def watch(
        self,
        model: str,
        total: int,
        feed_forward: int,
        bytes_per_token: int,
        workers: int,
        running: Callable[[], int],
        waiting: Callable[[], int],
        loaded: Callable[[], bool],
    ) -> None:
        """Watch a loaded model: its size, and what its workers are doing."""
        self.model_parameters.labels(model, "total").set(total)
        self.model_parameters.labels(model, "feed_forward").set(feed_forward)
        self.model_bytes_per_token.labels(model).set(bytes_per_token)
        self.workers.labels(model).set(workers)
        self.running.labels(model).set_function(running)
        self.waiting.labels(model).set_function(waiting)
        self.model_loaded.labels(model).set_function(loaded)
        self._begin_at_zero(model)

    def _begin_at_zero(self, model: str) -> None:
        """Create the series now. A series that appears with its first event shows Prometheus no increase then."""
        for metric in (
            self.accepted, self.worker_restarts, self.prefix_queries, self.prefix_hits, self.prefix_file_hits,
            self.prompt_tokens, self.forced_tokens,
        ):  # fmt: skip
            metric.labels(model)
        for labelled, values in (
            (self.success, FINISHED_REASONS),
            (self.failure, FAILURES),
            (self.disconnects, PHASES),
            (self.drafts, MODES),
            (self.draft_tokens, MODES),
            (self.accepted_tokens, MODES),
            (self.rollbacks, MODES),
            (self.shadow_requests, SHADOW_OUTCOMES),
            (self.structured, FORM_KINDS),
        ):
            for value in values:
                labelled.labels(model, value)
        for by_sparsity in self._by_sparsity:
            for sparsity in (*map(sparsity_label, SPARSITIES), OTHER):
                by_sparsity.labels(model, sparsity)

    def begin_shadows(self, model: str) -> None:
        """Create the series of shadow comparisons, if there are any: they make a scrape a third longer."""
        for by_sparsity in (self.shadow_kl, self.shadow_top1_agreement, self.shadow_perplexity_ratio):
            for sparsity in (*(sparsity_label(sparsity) for sparsity in SPARSITIES if sparsity), OTHER):
                by_sparsity.labels(model, sparsity)

    def expose(self) -> bytes:
        return generate_latest(self.registry)
