"""/metrics: the names, types and values that dashboards rely on."""

import random
from collections.abc import Callable

import httpx
from friendli_runtime.metrics import WINDOW_REQUESTS, Histogram, Summary
from prometheus_client.parser import text_string_to_metric_families

from .conftest import TestServer

COUNTERS = [
    "requests_total",
    "responses_total",
    "items_total",
    "failure_by_cancel",
    "failure_by_timeout",
    "failure_by_nan_error",
    "failure_by_reject",
]
GAUGES = ["current_requests", "current_items", "current_assigned_items", "current_waiting_items", "current_used_blocks"]
HISTOGRAMS = ["tcache_hit_ratio", "input_lengths", "output_lengths"]
SUMMARIES = ["requests_latencies", "requests_ttft", "requests_queueing_delays"]


def scrape(server: TestServer) -> dict[str, float]:
    text = httpx.get(server.metrics_url + "/metrics").text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {sample.name + str(sorted(sample.labels.items()) or ""): sample.value for sample in samples}


def test_every_documented_name_is_there_with_its_type(server: TestServer) -> None:
    response = httpx.get(server.metrics_url + "/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    kinds = dict.fromkeys(COUNTERS, "counter") | dict.fromkeys(GAUGES, "gauge")
    kinds |= dict.fromkeys(HISTOGRAMS, "histogram") | dict.fromkeys(SUMMARIES, "summary")
    lines = response.text.splitlines()
    for name, kind in kinds.items():
        assert f"# TYPE friendli_{name} {kind}" in lines
    for name in COUNTERS + GAUGES:
        assert any(line.startswith(f"friendli_{name} ") for line in lines)
    assert 'friendli_engine_version{version="1.2.3"} 1' in lines


def test_the_counts_are_those_of_the_requests(make_server: Callable[..., TestServer]) -> None:
    server = make_server()
    prompt_len = len(server.tokenizer.encode("[[hello world]]"))
    assert server.post("/v1/completions", prompt="[[hello world]]", n=3).status_code == 200
    assert server.post("/v1/completions", prompt="[[hello world]]", stream=True).status_code == 200
    assert server.post("/v1/completions", prompt="x", temperature=-1).status_code == 422
    values = scrape(server)
    assert values["friendli_requests_total"] == values["friendli_responses_total"] == 3
    assert values["friendli_items_total"] == 4
    assert values["friendli_input_lengths_sum"] == 2 * prompt_len
    assert values["friendli_output_lengths_sum"] == 4 * 3 and values["friendli_output_lengths_count"] == 4
    assert all(values[f"friendli_{name}"] == 0 for name in GAUGES)
    assert values["friendli_requests_latencies_count"] == values["friendli_requests_ttft_count"] == 2
    assert 0 < values["friendli_requests_ttft_sum"] <= values["friendli_requests_latencies_sum"]
    assert values["friendli_requests_queueing_delays_count"] == 2
    quantiles = [values[f"friendli_requests_latencies[('quantile', '{quantile}')]"] for quantile in ("0.5", "0.9", "0.99")]
    assert quantiles == sorted(quantiles)


def test_histogram_buckets_are_cumulative_and_end_with_all(server: TestServer) -> None:
    values = scrape(server)
    for name in HISTOGRAMS:
        buckets = [value for key, value in values.items() if key.startswith(f"friendli_{name}_bucket")]
        assert buckets == sorted(buckets) and buckets[-1] == values[f"friendli_{name}_count"]


def test_the_metrics_port_has_nothing_else(server: TestServer) -> None:
    assert httpx.get(server.metrics_url + "/v1/models").status_code == 404
    assert server.client.get("/metrics").status_code == 404


def test_a_histogram_counts_what_is_at_most_each_bound_and_a_summary_keeps_the_last_values() -> None:
    draw = random.Random(0)
    bounds, values = [0.0, 0.5, 1.0, 4.0], [draw.choice([-1.0, 0.0, 0.25, 0.5, 1.0, 3.0, 4.0, 9.0]) for _ in range(500)]
    histogram = Histogram("h", "", bounds)
    for value in values:
        histogram.observe(value)
    counted = {labels or name: number for name, labels, number in histogram.samples()}
    for bound, name in zip((*bounds, float("inf")), ("0", "0.5", "1", "4", "+Inf"), strict=True):
        assert counted[f'le="{name}"'] == sum(value <= bound for value in values)
    assert counted["_count"] == 500 and counted["_sum"] == sum(values)
    summary = Summary("s", "")
    for number in range(3 * WINDOW_REQUESTS + 10):
        summary.observe(number)
    kept = {labels or name: number for name, labels, number in summary.samples()}
    assert kept['quantile="0.5"'] == 2 * WINDOW_REQUESTS + 10 + WINDOW_REQUESTS // 2
    assert kept["_count"] == 3 * WINDOW_REQUESTS + 10 and kept["_sum"] == sum(range(3 * WINDOW_REQUESTS + 10))
