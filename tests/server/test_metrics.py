"""The metrics page: what Prometheus reads, and that it adds up."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from mini_infer.engine.streams import OutputStream, SequenceRecord
from mini_infer.server.metrics import Histogram, ServerMetrics
from tests.server.running import Running


def test_counts_add_up(server: Running) -> None:
    before = {name: server.metric(name) for name in ("generation_tokens_total", "prompt_tokens_total")}
    finished = server.metric("request_success_total")
    server.post("/v1/completions", {"prompt": [[5, 6, 7], [8, 9]], "max_tokens": 10, "n": 2})
    assert server.metric("generation_tokens_total") - before["generation_tokens_total"] == 40
    assert server.metric("prompt_tokens_total") - before["prompt_tokens_total"] == 10
    assert server.metric("request_success_total") - finished == 4


def test_the_page_parses_and_has_vllm_s_names(server: Running) -> None:
    families = {family.name: family for family in text_string_to_metric_families(server.get("/metrics")[1])}
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "num_preemptions",
                 "prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits", "request_success",
                 "time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds",
                 "request_time_per_output_token_seconds", "request_prompt_tokens", "request_generation_tokens"):
        family = families[f"mini_infer:{name}"]
        assert all(sample.labels["model_name"] == "dry" for sample in family.samples)
    buckets = [sample.value for sample in families["mini_infer:time_to_first_token_seconds"].samples
               if sample.name.endswith("_bucket")]
    assert buckets == sorted(buckets)


def test_histogram() -> None:
    histogram = Histogram("x", "help", (1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    histogram.observe(2.0, times=3)
    values = {(sample.name, sample.labels.get("le")): sample.value for sample in histogram.family(["m"]).samples}
    assert values[("mini_infer:x_bucket", "1.0")] == 2
    assert values[("mini_infer:x_bucket", "2.0")] == 6
    assert values[("mini_infer:x_bucket", "+Inf")] == values[("mini_infer:x_count", None)] == 7
    assert values[("mini_infer:x_sum", None)] == 18.0


def test_latencies_of_a_sequence() -> None:
    metrics = ServerMetrics()
    record = SequenceRecord(1, OutputStream(1, lambda stream: None), 5, 10, arrival=100.0)
    for now, tokens in ((100.5, 1), (100.6, 2), (100.7, 1)):
        metrics.on_tokens(record, tokens, now)
        record.num_tokens += tokens
        record.first_token = record.first_token or now
        record.last_token = now
    metrics.on_finish(record, "stop", 100.7)

    def total(histogram: Histogram) -> tuple[float, float]:
        values = {sample.name.rpartition("_")[2]: sample.value for sample in histogram.family(["m"]).samples}
        return values["count"], round(values["sum"], 6)

    assert total(metrics.time_to_first_token) == (1, 0.5)
    assert total(metrics.inter_token) == (3, 0.2)
    assert total(metrics.per_output_token) == (1, round(0.2 / 3, 6))
    assert total(metrics.end_to_end) == (1, 0.7)
