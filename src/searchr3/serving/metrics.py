"""What Prometheus reads: requests, and what the model does for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from searchr3.serving.backend import Figures

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


@dataclass
class Traffic:
    """Requests to the model, as the gate sees them.

    Attributes:
        active: accepted and not yet answered.
        draining: no more are accepted.
        seconds: of a request, a moving mean.
    """

    active: int = 0
    draining: bool = False
    seconds: float = 1.0

    def took(self, seconds: float) -> None:
        """A request was answered."""
        self.seconds += 0.05 * (seconds - self.seconds)


class Metrics:
    """The figures of one server, in a registry of its own."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, traffic: Traffic, figures: Callable[[], Figures]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "searchr3_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "searchr3_request_seconds",
            "From a request's first byte to its answer's last.",
            ["route"],
            registry=self.registry,
            buckets=BUCKETS,
        )
        self.registry.register(_Work(traffic, figures))

    def count(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self.registry)


class _Work:
    """Looks at the figures when it is asked for them."""

    def __init__(self, traffic: Traffic, figures: Callable[[], Figures]) -> None:
        self.traffic, self.figures = traffic, figures

    def collect(self) -> Iterator[Metric]:
        now = self.figures()
        said = CounterMetricFamily("searchr3_said_tokens", "Tokens said, by what for.", labels=["what"])
        said.add_metric(["thinking"], now.said_thinking)
        said.add_metric(["chat"], now.said_chat)
        yield said
        yield CounterMetricFamily("searchr3_read_tokens", "Tokens of prompts and texts.", value=now.read)
        yield CounterMetricFamily("searchr3_texts", "Texts embedded without thinking.", value=now.texts)
        if now.steps:  # elsewhere nobody counts them
            yield CounterMetricFamily("searchr3_steps", "Steps, each a token for every row.", value=now.steps)
        yield GaugeMetricFamily("searchr3_rows", "Thoughts and chats in work.", value=now.rows)
        yield GaugeMetricFamily("searchr3_waiting", "Texts and chats not yet begun.", value=now.waiting)
        yield GaugeMetricFamily(
            "searchr3_active_requests", "Accepted, unanswered.", value=self.traffic.active
        )
