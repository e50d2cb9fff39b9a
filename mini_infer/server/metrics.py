"""Prometheus metrics under `mini_infer:`, with the names and meanings that vLLM's have under `vllm:`.

Everything is written on the event loop only, so the histograms need no lock. What a step brought is observed at once:
sequences that run side by side have the same time between two tokens, so that is one bisection a step and not one a
token. prometheus_client writes the page.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from mini_infer.engine.observer import Observer, StepSeen
from mini_infer.engine.streams import OutputStream, SequenceRecord
from mini_infer.protocol import EngineInfo, EngineStats, Timeline
from mini_infer.server.tally import Tally

_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
                80.0, 160.0)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
_STEP = (0.0005, *_PER_TOKEN)
_REQUEST = (0.001, 0.005, 0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0,
            120.0, 240.0, 480.0, 960.0)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_STEP_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_N = (1, 2, 5, 10, 20, 50, 100)
WELL = ("stop", "length")  # reasons of sequences whose times count
MAX_UNTIMED = 4096  # an engine that died never tells


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

    def totals(self) -> tuple[int, float]:
        """The number of observations, and their sum."""
        return sum(self._counts), self._sum

    def family(self, label_values: list[str]) -> HistogramMetricFamily:
        buckets, total = [], 0
        for bound, number in zip((*map(str, map(float, self._bounds)), "+Inf"), self._counts):
            total += number
            buckets.append((bound, total))
        family = HistogramMetricFamily(f"mini_infer:{self.name}", self.help_text, labels=["model_name"])
        family.add_metric(label_values, buckets=buckets, sum_value=self._sum)
        return family


@dataclass(slots=True)
class Group:
    """Of a prompt's n sequences: how many are over, whether all of those ended well, the tokens of the longest."""

    over: int = 0
    well: bool = True
    longest: int = 0


@dataclass(frozen=True)
class Source:
    """Where the figures that others keep come from."""

    model_name: str
    info: EngineInfo
    stats: Callable[[], EngineStats]


class ServerMetrics(Collector, Observer):
    """Observes sequences and shows them, beside the engine's own counters."""

    def __init__(self) -> None:
        self.time_to_first_token = Histogram("time_to_first_token_seconds", "Time to first token.", _FIRST_TOKEN)
        self.inter_token = Histogram("inter_token_latency_seconds", "Time between two tokens of a sequence.",
                                     _PER_TOKEN)
        self.per_output_token = Histogram("request_time_per_output_token_seconds",
                                          "Mean time per output token of a sequence, after its first.", _PER_TOKEN)
        self.end_to_end = Histogram("e2e_request_latency_seconds", "Time from arrival to the last token.", _REQUEST)
        self.queue = Histogram("request_queue_time_seconds", "Time from arrival to the first admission.", _REQUEST)
        self.prefill = Histogram("request_prefill_time_seconds", "Time from there to the first token.", _REQUEST)
        self.decode = Histogram("request_decode_time_seconds", "Time from the first token to the last.", _REQUEST)
        self.inference = Histogram("request_inference_time_seconds", "Prefill and decode together.", _REQUEST)
        self.prompt_tokens = Histogram("request_prompt_tokens", "Prompt tokens of finished sequences.", _TOKENS)
        self.generation_tokens = Histogram("request_generation_tokens", "Output tokens of finished sequences.", _TOKENS)
        self.longest = Histogram("request_max_num_generation_tokens",
                                 "Output tokens of the longest of a request's n sequences.", _TOKENS)
        self.params_n = Histogram("request_params_n", "The n of finished requests.", _N)
        self.max_tokens = Histogram("request_params_max_tokens", "The max_tokens of finished requests.", _TOKENS)
        self.step_tokens = Histogram("iteration_tokens_total", "Tokens computed in a step.", _STEP_TOKENS)
        self.step_rows = Histogram("iteration_batch_size", "Sequences in a step.", _STEP_ROWS)
        self.step_time = Histogram("engine_step_time_seconds", "Time of a step, planning included.", _STEP)
        self._histograms = tuple(value for value in vars(self).values() if isinstance(value, Histogram))
        self.finished: Counter[str] = Counter({"stop": 0, "length": 0, "abort": 0, "error": 0})
        self._computed_tokens = self._computed_rows = 0  # as of the last step
        self._untimed: dict[int, SequenceRecord] = {}  # ended well here; the engine's timeline is still to come
        self._groups: dict[tuple[OutputStream, int], Group] = {}  # by stream and prompt, while not all are over
        self.requests = Tally()  # the door counts them
        self._source: Source | None = None
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def attach(self, source: Source) -> None:
        """Name the engine, once it is there. A new one counts from zero."""
        self._source = source
        self._computed_tokens = self._computed_rows = 0

    # ---- observed ------------------------------------------------------------------------------------------------

    def on_step(self, seen: StepSeen) -> None:
        for record in seen.first_tokens:
            self.time_to_first_token.observe(seen.now - record.arrival)
        for gap, times in seen.gaps.items():
            self.inter_token.observe(gap, times)
        step = seen.outputs
        if step.step_seconds is not None and step.stats is not None:
            self.step_time.observe(step.step_seconds)
            tokens = step.stats.computed_tokens - self._computed_tokens
            if tokens > 0:
                self.step_tokens.observe(tokens)
                self.step_rows.observe(step.stats.computed_rows - self._computed_rows)
            self._computed_tokens, self._computed_rows = step.stats.computed_tokens, step.stats.computed_rows
        for timeline in step.ended:
            finished = self._untimed.pop(timeline.request_id, None)
            if finished is not None:
                self._on_timeline(finished, timeline)

    def on_finish(self, record: SequenceRecord, reason: str, now: float) -> None:
        self.finished[reason] += 1
        self._on_one_of_n(record, reason)
        if reason not in WELL:
            return
        self.end_to_end.observe(now - record.arrival)
        self.prompt_tokens.observe(record.num_prompt_tokens)
        self.generation_tokens.observe(record.num_tokens)
        if record.num_tokens > 1:
            self.per_output_token.observe((record.last_token - record.first_token) / (record.num_tokens - 1))
        self._untimed[record.request_id] = record
        if len(self._untimed) > MAX_UNTIMED:
            del self._untimed[next(iter(self._untimed))]

    def _on_timeline(self, record: SequenceRecord, timeline: Timeline) -> None:
        """The engine says when a finished sequence was admitted; its clock is this process's."""
        admitted = timeline.spans[0].end
        self.queue.observe(admitted - record.arrival)
        self.prefill.observe(record.first_token - admitted)
        self.decode.observe(record.last_token - record.first_token)
        self.inference.observe(record.last_token - admitted)

    def _on_one_of_n(self, record: SequenceRecord, reason: str) -> None:
        """What is said once for the n sequences of a prompt, when the last of them is over: if all ended well."""
        params = record.params
        key = (record.stream, record.index // params.n)
        group = self._groups.setdefault(key, Group())
        group.over += 1
        group.longest = max(group.longest, record.num_tokens)
        group.well &= reason in WELL
        if group.over < params.n:
            return
        del self._groups[key]
        if group.well:
            self.longest.observe(group.longest)
            self.params_n.observe(params.n)
            if params.max_tokens is not None:
                self.max_tokens.observe(params.max_tokens)

    # ---- shown ---------------------------------------------------------------------------------------------------

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

        yield gauge("num_requests_running", "Sequences in the running batch.", stats.running)
        yield gauge("num_requests_waiting", "Sequences waiting for admission.", stats.waiting)
        yield gauge("kv_cache_usage_perc", "Share of KV blocks held by requests; 1 is all of them.",
                    stats.used_blocks / stats.total_blocks if stats.total_blocks else 0.0)
        yield counter("num_preemptions", "Preemptions.", stats.preemptions)
        yield counter("prompt_tokens", "Prompt tokens processed, cached ones included.", stats.prompt_tokens)
        yield counter("prompt_tokens_cached", "Prompt tokens found in the prefix cache.", stats.cached_tokens)
        yield counter("generation_tokens", "Tokens generated.", stats.generated_tokens)
        yield counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.prompt_tokens)
        yield counter("prefix_cache_hits", "The same as prompt_tokens_cached.", stats.cached_tokens)
        yield counter("engine_steps", "Steps the engine has taken.", stats.steps)
        yield counter("requests_received", "Requests for text.", self.requests.received)
        ended = CounterMetricFamily("mini_infer:requests_ended", "The same that are over, by what became of them.",
                                    labels=["model_name", "outcome"])
        for outcome, number in self.requests.ended.items():
            ended.add_metric([*model, outcome], number)
        yield ended
        yield gauge("front_tasks", "Tasks of the front's event loop.", len(asyncio.all_tasks()))
        refused = CounterMetricFamily("mini_infer:requests_refused", "Requests that were not let in, by HTTP status.",
                                      labels=["model_name", "status"])
        for status, number in self.requests.turned_away.items():
            refused.add_metric([*model, str(status)], number)
        yield refused
        success = CounterMetricFamily("mini_infer:request_success", "Finished sequences by the reason they ended.",
                                      labels=["model_name", "finished_reason"])
        for reason, number in self.finished.items():
            success.add_metric([*model, reason], number)
        yield success
        cache = InfoMetricFamily("mini_infer:cache_config", "How the KV cache is laid out.")
        cache.add_metric([], {"block_size": str(source.info.block_size), "num_gpu_blocks": str(source.info.num_blocks)})
        yield cache
        for histogram in self._histograms:
            yield histogram.family(model)
