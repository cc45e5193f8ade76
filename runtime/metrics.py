"""Counts and times of the server, written out in the Prometheus text format (version 0.0.4).

The hot path only adds numbers; the text is made when somebody asks. It is written here and not by the Prometheus client library because
the names are given: four failure counters without the `_total` that the library forces on counters, and summaries with quantiles, which
it lacks.

    counters   friendli_requests_total …      gauges     friendli_current_* (read from the server when scraped)
    histograms friendli_input_lengths …       summaries  friendli_requests_latencies … (ns, quantiles over the last 1024 requests)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from ._core import Buckets, Window

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
QUANTILES = (0.5, 0.9, 0.99)
WINDOW_REQUESTS = 1024
_LENGTH_BUCKETS = tuple(float(2**i) for i in range(18))
_RATIO_BUCKETS = tuple(i / 10 for i in range(11))


class Counter:
    """A number that only grows."""

    kind = "counter"

    def __init__(self, name: str, help_text: str) -> None:
        self.name, self.help_text, self.value = name, help_text, 0

    def add(self, amount: int = 1) -> None:
        self.value += amount

    def samples(self) -> Iterator[tuple[str, str, float]]:
        yield "", "", self.value


class Histogram:
    """How many observations were at most each bound."""

    kind = "histogram"

    def __init__(self, name: str, help_text: str, bounds: Sequence[float]) -> None:
        self.name, self.help_text = name, help_text
        self._bounds = tuple(bounds)
        self._buckets = Buckets(list(bounds))
        self.observe = self._buckets.observe

    def samples(self) -> Iterator[tuple[str, str, float]]:
        total = 0
        for bound, count in zip((*map(_number, self._bounds), "+Inf"), self._buckets.counts, strict=True):
            total += count
            yield "_bucket", f'le="{bound}"', total
        yield "_count", "", total
        yield "_sum", "", self._buckets.sum


class Summary:
    """Quantiles of the last WINDOW_REQUESTS observations; count and sum of all."""

    kind = "summary"

    def __init__(self, name: str, help_text: str) -> None:
        self.name, self.help_text = name, help_text
        self._window = Window(WINDOW_REQUESTS)
        self.observe = self._window.observe

    def samples(self) -> Iterator[tuple[str, str, float]]:
        ordered = sorted(self._window.recent)
        for quantile in QUANTILES:
            value = ordered[min(int(quantile * len(ordered)), len(ordered) - 1)] if ordered else float("nan")
            yield "", f'quantile="{quantile}"', value
        yield "_count", "", self._window.count
        yield "_sum", "", self._window.sum


class Metrics:
    """All metrics of one server. `gauges()` gives the values of the moment, by the names of `_GAUGE_HELP`."""

    def __init__(self, version: str, gauges: Callable[[], Mapping[str, float]]) -> None:
        self._version = version
        self._gauges = gauges
        self.requests = Counter("friendli_requests_total", "Requests received.")
        self.responses = Counter("friendli_responses_total", "Responses sent.")
        self.items = Counter("friendli_items_total", "Items requested: a request for n results has n.")
        self.failures_by_cancel = Counter("friendli_failure_by_cancel", "Requests that the client gave up.")
        self.failures_by_timeout = Counter("friendli_failure_by_timeout", "Requests that took longer than the server allows.")
        self.failures_by_nan_error = Counter("friendli_failure_by_nan_error", "Requests whose logits were not numbers.")
        self.failures_by_reject = Counter("friendli_failure_by_reject", "Requests refused because a limit was reached.")
        self.cache_hit_ratio = Histogram("friendli_tcache_hit_ratio", "Share of prompt tokens that were cached.", _RATIO_BUCKETS)
        self.input_lengths = Histogram("friendli_input_lengths", "Prompt tokens of a request.", _LENGTH_BUCKETS)
        self.output_lengths = Histogram("friendli_output_lengths", "Generated tokens of an item.", _LENGTH_BUCKETS)
        self.latencies = Summary("friendli_requests_latencies", "Time from request to end of answer, in nanoseconds.")
        self.ttft = Summary("friendli_requests_ttft", "Time from request to first token, in nanoseconds.")
        self.queueing_delays = Summary("friendli_requests_queueing_delays", "Time from request to first scheduling, in nanoseconds.")

    def render(self) -> str:
        """The page of /metrics."""
        lines: list[str] = []
        for metric in vars(self).values():
            if isinstance(metric, Counter | Histogram | Summary):
                _write(lines, metric.name, metric.kind, metric.help_text, metric.samples())
        for name, value in self._gauges().items():
            _write(lines, f"friendli_{name}", "gauge", _GAUGE_HELP[name], [("", "", value)])
        version = _escaped(self._version)
        _write(lines, "friendli_engine_version", "gauge", "The version of the engine, as a label.", [("", f'version="{version}"', 1)])
        return "\n".join(lines) + "\n"


_GAUGE_HELP = {
    "current_requests": "Requests that are assigned or waiting.",
    "current_items": "Items that are assigned or waiting.",
    "current_assigned_items": "Items that the engine is working on.",
    "current_waiting_items": "Items that wait for the engine.",
    "current_used_blocks": "Blocks of the KV cache that items hold; those that only the prefix cache keeps are not counted.",
}


def _write(
    lines: list[str], name: str, kind: str, help_text: str, samples: Iterator[tuple[str, str, float]] | list[tuple[str, str, float]]
) -> None:
    lines += (f"# HELP {name} {help_text}", f"# TYPE {name} {kind}")
    lines += (
        f"{name}{suffix}{{{labels}}} {_number(value)}" if labels else f"{name}{suffix} {_number(value)}"
        for suffix, labels, value in samples
    )


def _number(value: float) -> str:
    return "NaN" if value != value else repr(int(value)) if float(value).is_integer() else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
