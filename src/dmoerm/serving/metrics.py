"""The metrics that Prometheus reads at /metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from ..scores import Score
from .waiting import Throughput

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKENS = tuple(2**i for i in range(4, 17))
_REWARDS = (-4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
GENERAL = "(general)"


class WatchedQueue(Protocol):
    """The state of a queue that the metrics read."""

    throughput: Throughput

    @property
    def requests(self) -> int:
        """How many requests wait or are being scored."""
        ...

    @property
    def waiting_tokens(self) -> int:
        """How many tokens wait for a pass."""
        ...

    def expected_seconds(self) -> float:
        """Return the estimated time in which the engine scores all that waits."""
        ...


class Metrics:
    """The metrics of one server, in their own registry."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self._queues: set[WatchedQueue] = set()
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"dmoerm_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, read: Callable[[], float]) -> None:
            Gauge(f"dmoerm_{name}", text, registry=registry).set_function(read)

        def histogram(name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(f"dmoerm_{name}", text, labels, buckets=buckets, registry=registry)

        self.requests = counter("requests", "Answered requests.", "path", "status")
        self.latency = histogram("request_seconds", "Time from the first byte to the answer.", _SECONDS, "path")
        gauge("queue_requests", "Requests that wait or are being scored.", lambda: self._sum(lambda q: q.requests))
        gauge("queue_tokens", "Tokens that wait for a pass.", lambda: self._sum(lambda q: q.waiting_tokens))
        gauge(
            "queue_expected_seconds",
            "Estimated time in which the engine scores all that waits.",
            lambda: max((queue.expected_seconds() for queue in self._queues), default=0.0),
        )
        gauge(
            "tokens_per_second",
            "Measured rate of the recent passes, of all engines.",
            lambda: self._sum(lambda q: q.throughput.total_rate),
        )
        gauge("models", "Models in memory.", lambda: len(self._queues))
        self._loads = counter("model_loads", "Models that were loaded.")
        self.queued = histogram("queue_seconds", "Time from a request's arrival to its first pass.", _SECONDS)
        self.refused = counter("refused", "Requests that a full queue refused.")
        self.left = counter("client_left", "Requests whose client disconnected before the answer.")
        self.batch_tokens = histogram("batch_tokens", "Tokens of a pass.", _TOKENS)
        self.batch_seconds = histogram("batch_seconds", "Duration of a pass.", _SECONDS)
        self.responses = counter("responses", "Scored responses.", "task")
        self.empty = counter("empty_responses", "Empty responses among the scored ones.")
        self.truncated = counter("truncated_responses", "Scored responses whose text was truncated.")
        self.reward = histogram("reward", "Rewards, without those of empty responses.", _REWARDS, "task")
        self.cache_hits = counter("score_cache_hits", "Responses whose score the cache had.")
        self.cache_misses = counter("score_cache_misses", "Responses whose score the cache did not have.")
        self.confidence = histogram("route_confidence", "Probability of the likeliest task.", _SHARES, "task")

    def watch(self, queue: WatchedQueue) -> None:
        """Read the state of this model's queue, too, whenever the metrics are read."""
        self._queues.add(queue)
        self._loads.inc()

    def forget(self, queue: WatchedQueue) -> None:
        """Stop reading the state of a queue that is closed."""
        self._queues.discard(queue)

    def _sum(self, read: Callable[[WatchedQueue], float]) -> float:
        return sum(map(read, self._queues))

    def scored(self, scores: Sequence[Score]) -> None:
        """Count the scores of one query."""
        task = scores[0].task or GENERAL
        self.responses.labels(task).inc(len(scores))
        for score in scores:
            self.empty.inc(score.empty)
            self.truncated.inc(score.truncated)
            if not score.empty:
                self.reward.labels(task).observe(score.reward)
        self.confidence.labels(task).observe(max(scores[0].route.values(), default=0.0))

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
