"""Counters of the HTTP doors for Prometheus, by route template: never a path, a person or a study.

Made once per process in `ops.compose` on its registry; `/metrics` itself is served by ops.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class HttpMetrics:
    """The HTTP families: requests, seconds, connections, refusals."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        self.requests = Counter(
            "accord_http_requests", "Requests answered.", ("method", "route", "status"), registry=registry
        )
        self.seconds = Histogram(
            "accord_http_request_seconds",
            "Seconds until the answer was ready or its stream ended.",
            ("method", "route"),
            buckets=BUCKETS,
            registry=registry,
        )
        self.connections = Gauge("accord_http_connections", "Connections open now.", registry=registry)
        self.refused_connections = Counter(
            "accord_http_connections_refused",
            "Connections closed before a request: a cap was reached or the TLS handshake failed.",
            ("reason",),
            registry=registry,
        )

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answer."""
        self.requests.labels(method, route, str(status)).inc()
        self.seconds.labels(method, route).observe(seconds)
