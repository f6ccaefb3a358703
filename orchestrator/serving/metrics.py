"""Metrics of the service, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from orchestrator.serving.replica import RestoredImage
from orchestrator.serving.served_model import ServedModel

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 900)


class ServiceMetrics:
    """The metrics of one service."""

    def __init__(self, capacity: int) -> None:
        self._registry = registry = CollectorRegistry()

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        def histogram(
            name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()
        ) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=registry)

        self._requests = Counter(
            "mirage_requests", "Requests to /restore, by HTTP status.", ["status"], registry=registry
        )
        self._webhooks = Counter(
            "mirage_webhook_deliveries", "Deliveries of MLflow's webhook, by HTTP status.", ["status"],
            registry=registry,
        )  # fmt: skip
        self._seconds = histogram(
            "mirage_request_seconds", "Time from the head of a request to its response.", _SECONDS
        )
        self._parts = histogram(
            "mirage_part_seconds", "Time of each part of a successful request.", _SECONDS, ("part",)
        )
        self._batch = histogram("mirage_batch_images", "Images restored in one batch.", (1, 2, 4, 8, 16, 32))
        self._retries = Counter(
            "mirage_retries", "Requests sent to another replica after one had died.", registry=registry
        )
        self._counted_retries = 0
        # The second name of each is the old one, for dashboards that use it.
        self._in_flight = [
            gauge(name, "Requests in flight.")
            for name in ("mirage_requests_in_flight", "mirage_requests_inside")
        ]
        for name in ("mirage_requests_in_flight_limit", "mirage_requests_inside_limit"):
            gauge(name, "Maximum requests in flight; beyond it the status is 429.").set(capacity)
        self._replicas = gauge("mirage_replicas", "Running replicas.")
        self._model = gauge("mirage_model_info", "1: the active model.", ("name", "version", "weights"))
        self._rejected = [
            gauge(name, "1 while the version of the alias is rejected.")
            for name in ("mirage_model_rejected", "mirage_model_refused")
        ]

    def request_ended(self, status: int, seconds: float) -> None:
        """Count a request to /restore."""
        self._requests.labels(str(status)).inc()
        self._seconds.observe(seconds)

    def webhook_delivered(self, status: int) -> None:
        """Count a delivery of MLflow's webhook."""
        self._webhooks.labels(str(status)).inc()

    def image_restored(self, image: RestoredImage) -> None:
        """Count a restored image."""
        self._batch.observe(image.batch)
        for part, seconds in image.seconds.items():
            self._parts.labels(part).observe(seconds)

    def text(
        self, *, in_flight: int, replicas: int, retries: int, model: ServedModel, rejected: bool
    ) -> bytes:
        """Return all metrics in Prometheus' text format."""
        for metric in self._in_flight:
            metric.set(in_flight)
        self._replicas.set(replicas)
        self._retries.inc(retries - self._counted_retries)
        self._counted_retries = retries
        for metric in self._rejected:
            metric.set(rejected)
        self._model.clear()
        self._model.labels(model.name, model.version, model.digest[:16]).set(1)
        return generate_latest(self._registry)
