"""The service's numbers, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from orchestrator.serving.replica import Answer
from orchestrator.serving.served_model import Served

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 900)


class Metrics:
    """Counts what happens; one object per service."""

    def __init__(self, capacity: int) -> None:
        self._registry = every = CollectorRegistry()
        self._requests = Counter(
            "mirage_requests", "Requests to restore, by status.", ["status"], registry=every
        )
        self._seconds = Histogram(
            "mirage_request_seconds", "From a request's head to its answer.", buckets=_SECONDS, registry=every
        )
        self._parts = Histogram(
            "mirage_part_seconds", "Where an answer's time went.", ["part"], buckets=_SECONDS, registry=every
        )
        self._batch = Histogram(
            "mirage_batch_images", "Images restored at once.", buckets=(1, 2, 4, 8, 16, 32), registry=every
        )
        self._again = Counter(
            "mirage_retries", "Requests given to another replica, the first one died.", registry=every
        )
        self._counted_retries = 0
        self._inside = Gauge("mirage_requests_inside", "Requests waiting or being restored.", registry=every)
        room = Gauge("mirage_requests_inside_limit", "Beyond it the answer is 429.", registry=every)
        room.set(capacity)
        self._replicas = Gauge("mirage_replicas", "Replicas that run.", registry=every)
        self._model = Gauge(
            "mirage_model_info", "1: the model that answers.", ["name", "version", "weights"], registry=every
        )
        self._refused = Gauge(
            "mirage_model_refused", "1 while a version that was asked for is refused.", registry=every
        )

    def answered(self, status: int, seconds: float) -> None:
        """Count an answer of any kind."""
        self._requests.labels(str(status)).inc()
        self._seconds.observe(seconds)

    def restored(self, answer: Answer) -> None:
        """Count what a restored image took."""
        self._batch.observe(answer.batch)
        for part, seconds in answer.seconds.items():
            self._parts.labels(part).observe(seconds)

    def text(self, *, inside: int, replicas: int, retries: int, model: Served, refused: bool) -> bytes:
        """Return all of it in Prometheus' text format."""
        self._inside.set(inside)
        self._replicas.set(replicas)
        self._again.inc(retries - self._counted_retries)
        self._counted_retries = retries
        self._refused.set(refused)
        self._model.clear()
        self._model.labels(model.name, model.version, model.digest[:16]).set(1)
        return generate_latest(self._registry)
