"""What Prometheus reads at /metrics."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from ..scores import Score

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKENS = tuple(2**i for i in range(4, 17))
_REWARDS = (-4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
GENERAL = "(general)"


class Metrics:
    """One server's counters, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = one = CollectorRegistry()
        ProcessCollector(registry=one)
        self.requests = Counter("dmoerm_requests", "Requests answered.", ["path", "status"], registry=one)
        self.latency = Histogram(
            "dmoerm_request_seconds", "From the first byte to the answer.", ["path"], buckets=_SECONDS, registry=one
        )
        self.waiting_requests = Gauge("dmoerm_queue_requests", "Requests that wait or are being scored.", registry=one)
        self.waiting_tokens = Gauge("dmoerm_queue_tokens", "Tokens that wait for a pass.", registry=one)
        self.queued = Histogram(
            "dmoerm_queue_seconds", "From a request's arrival to its first pass.", buckets=_SECONDS, registry=one
        )
        self.refused = Counter("dmoerm_refused", "Requests answered 429.", registry=one)
        self.left = Counter("dmoerm_client_left", "Requests whose client went away before the answer.", registry=one)
        self.batch_tokens = Histogram("dmoerm_batch_tokens", "Tokens of a pass.", buckets=_TOKENS, registry=one)
        self.batch_seconds = Histogram("dmoerm_batch_seconds", "Seconds of a pass.", buckets=_SECONDS, registry=one)
        self.responses = Counter("dmoerm_responses", "Responses scored.", ["task"], registry=one)
        self.empty = Counter("dmoerm_empty_responses", "Empty responses scored.", registry=one)
        self.truncated = Counter("dmoerm_truncated_responses", "Responses scored on part of the text.", registry=one)
        self.reward = Histogram("dmoerm_reward", "Rewards.", ["task"], buckets=_REWARDS, registry=one)
        self.confidence = Histogram(
            "dmoerm_route_confidence", "The likeliest task's probability.", ["task"], buckets=_SHARES, registry=one
        )

    def scored(self, scores: Sequence[Score]) -> None:
        """Count one query's scores; the histogram of rewards leaves out empty responses."""
        task = scores[0].task or GENERAL
        self.responses.labels(task).inc(len(scores))
        for score in scores:
            self.empty.inc(score.empty)
            self.truncated.inc(score.truncated)
            if not score.empty:
                self.reward.labels(task).observe(score.reward)
        self.confidence.labels(task).observe(max(scores[0].route.values(), default=0.0))

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
