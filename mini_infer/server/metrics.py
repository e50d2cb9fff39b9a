"""Prometheus metrics under `mini_infer:`, with the names and meanings that vLLM's have under `vllm:`.

Everything is written on the event loop only, so the histograms need no lock and cost a bisection per observation;
prometheus_client writes the page.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from mini_infer.engine.streams import SequenceRecord
from mini_infer.protocol import EngineInfo, EngineStats

_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0)
_REQUEST = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 120.0, 240.0, 480.0)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


class Histogram:
    """Counts of observations up to each bound."""

    def __init__(self, name: str, help_text: str, bounds: Sequence[float]):
        self.name = name
        self.help_text = help_text
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def family(self, label_values: list[str]) -> HistogramMetricFamily:
        buckets, total = [], 0
        for bound, number in zip((*map(str, map(float, self._bounds)), "+Inf"), self._counts):
            total += number
            buckets.append((bound, total))
        family = HistogramMetricFamily(f"mini_infer:{self.name}", self.help_text, labels=["model_name"])
        family.add_metric(label_values, buckets=buckets, sum_value=self._sum)
        return family


@dataclass(frozen=True)
class Source:
    """Where the figures that others keep come from."""

    model_name: str
    info: EngineInfo
    stats: Callable[[], EngineStats]


class ServerMetrics(Collector):
    """Observes sequences (see `engine.async_llm.Observer`) and shows them, beside the engine's own counters."""

    def __init__(self) -> None:
        self.time_to_first_token = Histogram("time_to_first_token_seconds", "Time to first token.", _FIRST_TOKEN)
        self.inter_token = Histogram("inter_token_latency_seconds", "Time between two tokens of a request.", _PER_TOKEN)
        self.per_output_token = Histogram("request_time_per_output_token_seconds",
                                          "Mean time per output token of a request, after its first.", _PER_TOKEN)
        self.end_to_end = Histogram("e2e_request_latency_seconds", "Time from arrival to the last token.", _REQUEST)
        self.prompt_tokens = Histogram("request_prompt_tokens", "Prompt tokens of finished requests.", _TOKENS)
        self.generation_tokens = Histogram("request_generation_tokens", "Output tokens of finished requests.", _TOKENS)
        self.max_tokens = Histogram("request_params_max_tokens", "The max_tokens of finished requests.", _TOKENS)
        self.finished: Counter[str] = Counter({"stop": 0, "length": 0, "abort": 0, "error": 0})
        self._source: Source | None = None
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def attach(self, source: Source) -> None:
        """Name the engine, once it is there."""
        self._source = source

    def on_tokens(self, record: SequenceRecord, num_tokens: int, now: float) -> None:
        if record.num_tokens == 0:
            self.time_to_first_token.observe(now - record.arrival)
            num_tokens -= 1  # the rest of a first batch came with no time in between
        if num_tokens:
            since = record.last_token or now
            self.inter_token.observe((now - since) / num_tokens, num_tokens)

    def on_finish(self, record: SequenceRecord, reason: str, now: float) -> None:
        self.finished[reason] += 1
        if reason not in ("stop", "length"):
            return
        self.end_to_end.observe(now - record.arrival)
        self.prompt_tokens.observe(record.num_prompt_tokens)
        self.generation_tokens.observe(record.num_tokens)
        self.max_tokens.observe(record.max_tokens)
        if record.num_tokens > 1:
            self.per_output_token.observe((record.last_token - record.first_token) / (record.num_tokens - 1))

    def page(self) -> bytes:
        """The exposition format, version 0.0.4."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        if self._source is None:
            return
        source, stats = self._source, self._source.stats()
        model = [source.model_name]

        def gauge(name: str, help_text: str, value: float) -> Metric:
            family = GaugeMetricFamily(f"mini_infer:{name}", help_text, labels=["model_name"])
            family.add_metric(model, value)
            return family

        def counter(name: str, help_text: str, value: float) -> Metric:
            family = CounterMetricFamily(f"mini_infer:{name}", help_text, labels=["model_name"])
            family.add_metric(model, value)
            return family

        yield gauge("num_requests_running", "Requests in the running batch.", stats.running)
        yield gauge("num_requests_waiting", "Requests waiting for admission.", stats.waiting)
        yield gauge("kv_cache_usage_perc", "Share of KV blocks held by requests; 1 is all of them.",
                    stats.used_blocks / stats.total_blocks if stats.total_blocks else 0.0)
        yield counter("num_preemptions", "Preemptions.", stats.preemptions)
        yield counter("prompt_tokens", "Prompt tokens processed, cached ones included.", stats.prompt_tokens)
        yield counter("generation_tokens", "Tokens generated.", stats.generated_tokens)
        yield counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.prompt_tokens)
        yield counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.cached_tokens)
        yield counter("engine_steps", "Steps the engine has taken.", stats.steps)
        success = CounterMetricFamily("mini_infer:request_success", "Finished sequences by the reason they ended.",
                                      labels=["model_name", "finished_reason"])
        for reason, number in self.finished.items():
            success.add_metric([*model, reason], number)
        yield success
        cache = InfoMetricFamily("mini_infer:cache_config", "How the KV cache is laid out.")
        cache.add_metric([], {"block_size": str(source.info.block_size), "num_gpu_blocks": str(source.info.num_blocks)})
        yield cache
        for histogram in (self.time_to_first_token, self.inter_token, self.per_output_token, self.end_to_end,
                          self.prompt_tokens, self.generation_tokens, self.max_tokens):
            yield histogram.family(model)
