"""Traces: what a collector gets over HTTP, and the spans of requests that end in every way."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mini_infer.cli import main
from mini_infer.config import ConfigError, EngineConfig, SchedulerConfig
from mini_infer.core.scheduler import Scheduler
from mini_infer.engine.arrivals import Arrivals
from mini_infer.engine.async_llm import AsyncLLM
from mini_infer.engine.client import EngineDeadError
from mini_infer.engine.ipc import Message
from mini_infer.engine.loop import EngineLoop
from mini_infer.engine.observer import StepSeen
from mini_infer.engine.sim import SimConfig, SimExecutor, VirtualClock
from mini_infer.engine.streams import OutputStream, SequenceRecord
from mini_infer.protocol import (
    AddRequest,
    RequestRefused,
    SamplingParams,
    Span,
    StepOutputs,
    StructuredOutputs,
    Timeline,
)
from mini_infer.server import launch, tracing
from mini_infer.server.tracing import Tracing
from tests.server.running import Running

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VLLM = {f"gen_ai.{name}" for name in (
    "response.model", "request.id", "request.n", "request.temperature", "request.top_p", "request.max_tokens",
    "usage.num_sequences", "usage.prompt_tokens", "usage.completion_tokens", "latency.e2e", "latency.time_in_queue",
    "latency.time_to_first_token", "latency.time_in_model_prefill", "latency.time_in_model_decode",
    "latency.time_in_model_inference")}


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP, as a collector would."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[Any] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/traces"


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        request = ExportTraceServiceRequest()
        request.ParseFromString(self.rfile.read(int(self.headers["Content-Length"])))
        for resource in request.resource_spans:
            self.server.resources += resource.resource.attributes
            for scope in resource.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def attributes(span: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        return [plain(item) for item in value.array_value.values] if kind == "array_value" else getattr(value, kind)

    return {item.key: plain(item.value) for item in span.attributes}


def test_a_collector_gets_a_span_a_request(collector: Collector, small_model: Path) -> None:
    with Running(small_model, "--dry-run", "--dry-gpu", "free", "--otlp-traces-endpoint", collector.url) as server:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "mine"}
        body = {"prompt": [[5, 6, 7], [8, 9]], "max_tokens": 10, "n": 2, "temperature": 0.5, "top_p": 0.9}
        headers["Content-Type"] = "application/json"
        request = urllib.request.Request(server.url + "/v1/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            assert response.status == 200
        assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 3})[0] == 200
        assert server.post("/v1/completions", {"prompt": "a", "colour": 3})[0] == 400  # never reached the engine
    assert server.process.returncode == 0  # what was left went out at the end
    roots = [span for span in collector.spans if span.name == "llm_request"]
    assert len(roots) == 2 and len(collector.spans) == 2 + 3 * 5
    (root,) = (span for span in roots if span.trace_id.hex() == TRACE)
    assert root.parent_span_id.hex() == PARENT and root.kind == 2  # of a server
    found = attributes(root)
    assert set(found) == VLLM | {"gen_ai.response.finish_reasons", "url.path"}
    assert (found["gen_ai.request.id"], found["url.path"]) == ("mine", "/v1/completions")
    assert (found["gen_ai.usage.prompt_tokens"], found["gen_ai.usage.completion_tokens"]) == (5, 40)
    assert (found["gen_ai.request.n"], found["gen_ai.usage.num_sequences"]) == (2, 4)
    assert found["gen_ai.response.finish_reasons"] == ["length"] * 4
    assert found["gen_ai.request.temperature"] == 0.5 and found["gen_ai.response.model"] == "dry"
    assert 0 < found["gen_ai.latency.time_in_queue"] <= found["gen_ai.latency.time_to_first_token"]
    assert found["gen_ai.latency.time_to_first_token"] < found["gen_ai.latency.e2e"]
    for index in range(4):
        children = {span.name: span for span in collector.spans if span.parent_span_id == root.span_id
                    and attributes(span)["mini_infer.choice.index"] == index}
        queue, prefill, decode = children["queue"], children["prefill"], children["decode"]
        assert queue.start_time_unix_nano == root.start_time_unix_nano
        assert queue.end_time_unix_nano == prefill.start_time_unix_nano < prefill.end_time_unix_nano
        assert prefill.end_time_unix_nano == decode.start_time_unix_nano < decode.end_time_unix_nano
        assert decode.end_time_unix_nano <= root.end_time_unix_nano
    assert abs(root.start_time_unix_nano / 1e9 - time.time()) < 60
    (other,) = (span for span in roots if span is not root)
    assert other.parent_span_id == b"" and other.trace_id.hex() != TRACE
    assert {"service.name"} <= {attribute.key for attribute in collector.resources}


# ---- without a server ------------------------------------------------------------------------------------------------


@pytest.fixture
def memory() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traces(memory: InMemorySpanExporter) -> Tracing:
    return Tracing(SimpleSpanProcessor(memory), "m")


def sequence(stream: OutputStream, index: int = 0, n: int = 1) -> SequenceRecord:
    return SequenceRecord(index + 1, stream, 5, SamplingParams(n=n, max_tokens=10), index, 100.0)


def timeline(request_id: int, *ends: float, preemptions: int = 0) -> Timeline:
    phases = ("queued", "prefill", "decode")
    return Timeline(request_id, 100.0, [Span(phase, end, 0) for phase, end in zip(phases, ends)], 5, 0, 0, preemptions,
                    "stop")


def told(traces: Tracing, *timelines: Timeline) -> None:
    traces.on_step(StepSeen(StepOutputs(ended=list(timelines)), 0.0))


def ended(memory: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    spans = memory.get_finished_spans()
    assert len({span.name for span in spans}) == len(spans)
    return {span.name: span for span in spans}


def test_a_request_that_waited_and_was_aborted(traces: Tracing, memory: InMemorySpanExporter) -> None:
    record = sequence(OutputStream(1, lambda stream: None))
    traces.on_submit(record)
    traces.on_finish(record, "abort", 101.0)
    assert not memory.get_finished_spans()  # the engine has not told yet
    told(traces, timeline(7, 101.0), timeline(1, 101.0))
    spans = ended(memory)
    assert set(spans) == {"llm_request", "queue"} and spans["llm_request"].status.is_unset
    assert "gen_ai.latency.time_to_first_token" not in (spans["llm_request"].attributes or {})


def test_one_that_was_aborted_in_its_prompt(traces: Tracing, memory: InMemorySpanExporter) -> None:
    record = sequence(OutputStream(1, lambda stream: None))
    traces.on_submit(record)
    traces.on_finish(record, "abort", 103.0)
    told(traces, timeline(1, 101.0, 103.0, preemptions=2))
    spans = ended(memory)
    assert set(spans) == {"llm_request", "queue", "prefill"}
    start, end = spans["prefill"].start_time, spans["prefill"].end_time
    assert start is not None and end is not None and end - start == pytest.approx(2e9, abs=1e3)
    assert (spans["prefill"].attributes or {})["mini_infer.preemptions"] == 2


def test_one_that_the_engine_refused(traces: Tracing, memory: InMemorySpanExporter) -> None:
    record = sequence(OutputStream(1, lambda stream: None))
    traces.on_submit(record)
    traces.on_finish(record, "error", 100.1)
    (span,) = memory.get_finished_spans()
    assert not span.status.is_ok and not span.status.is_unset


def test_one_that_was_aborted_while_its_grammar_was_compiled(traces: Tracing, memory: InMemorySpanExporter) -> None:
    """The engine's own end of it: nothing was begun, so there is no timeline."""
    gate = threading.Event()
    clock = VirtualClock(100.0)
    loop = EngineLoop(Scheduler(SchedulerConfig(4, 64, 64, 4, 16), clock.now), SimExecutor([1], None, clock, 0), 1)
    arrivals = Arrivals(loop, lambda asked: gate.wait(10), lambda refused: None)
    record = sequence(OutputStream(1, lambda stream: None))
    traces.on_submit(record)
    arrivals.add(AddRequest(record.request_id, [1], SamplingParams(structured_outputs=StructuredOutputs(regex="a"))))
    traces.on_finish(record, "abort", 101.0)
    assert not memory.get_finished_spans()
    outputs = arrivals.abort([record.request_id], "abort")
    for _ in range(2):
        traces.on_step(StepSeen(StepOutputs(outputs, ended=loop.take_timelines()), 0.0))
    gate.set()
    assert set(ended(memory)) == {"llm_request"} and ended(memory)["llm_request"].status.is_unset


def test_one_that_the_engine_refused_after_its_client_had_gone(traces: Tracing, memory: InMemorySpanExporter) -> None:
    record = sequence(OutputStream(1, lambda stream: None))
    traces.on_submit(record)
    traces.on_finish(record, "abort", 101.0)
    traces.on_refused(record.request_id)
    traces.on_refused(record.request_id)
    assert set(ended(memory)) == {"llm_request"}


def test_those_of_an_engine_that_is_gone(traces: Tracing, memory: InMemorySpanExporter) -> None:
    for number in range(3):
        record = sequence(OutputStream(1, lambda stream: None), number)
        traces.on_submit(record)
        if number:
            record.num_tokens, record.first_token, record.last_token = number, 100.5, 100.9
        traces.on_finish(record, "error", 101.0)
    assert len(memory.get_finished_spans()) == 1
    for end in (traces.on_lost, traces.on_lost, traces.close):
        end()
        assert [span.name for span in memory.get_finished_spans()] == ["llm_request"] * 3


async def test_an_engine_that_ends_or_refuses(traces: Tracing, memory: InMemorySpanExporter, slow_model: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is refused after its client has gone, one that cannot be sent, one that the engine dies with."""
    def unsendable(message: Message) -> None:
        if isinstance(message, AddRequest):
            raise OverflowError("a number that no message can hold")

    async with AsyncLLM(EngineConfig(model=str(slow_model)), SimConfig(gpu="L4")) as llm:
        llm.observe(traces)
        [request] = await llm.prepare(["a"], SamplingParams(max_tokens=100))
        with monkeypatch.context() as patch:
            patch.setattr(llm._client, "send", lambda message: None)
            left = llm.submit([request])
            [number] = left.request_ids
            left.close()
            llm._on_message(RequestRefused(number, "no such grammar", "structured_outputs"))
            assert len(memory.get_finished_spans()) == 1
            patch.setattr(llm._client, "send", unsendable)
            with pytest.raises(OverflowError):
                llm.submit([request])
            assert len(memory.get_finished_spans()) == 2
        running = llm.submit([request])
        await anext(aiter(running))
        llm.kill()
        with pytest.raises(EngineDeadError):
            async for _ in running:
                pass
        assert [span.name for span in memory.get_finished_spans()] == ["llm_request"] * 3


def test_all_sequences_of_a_request_are_waited_for(traces: Tracing, memory: InMemorySpanExporter) -> None:
    stream = OutputStream(2, lambda stream: None)
    records = [sequence(stream, index, n=2) for index in range(2)]
    for record in records:
        traces.on_submit(record)
    traces.on_finish(records[1], "stop", 101.0)
    told(traces, timeline(2, 100.5, 101.0))
    assert not memory.get_finished_spans()
    traces.on_finish(records[0], "stop", 102.0)
    told(traces, timeline(1, 100.5, 102.0))
    assert [span.name for span in memory.get_finished_spans()].count("llm_request") == 1


def test_an_engine_that_never_tells_costs_no_memory(traces: Tracing, memory: InMemorySpanExporter,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "MAX_OPEN", 3)
    for number in range(10):
        record = sequence(OutputStream(1, lambda stream: None), number)
        record.num_tokens = 1
        traces.on_submit(record)
        traces.on_finish(record, "error", 101.0)
    assert len(memory.get_finished_spans()) == 7
    traces.close()
    assert len(memory.get_finished_spans()) == 10


def test_a_collector_that_hangs_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hangs(SpanProcessor):
        def shutdown(self) -> None:
            release.wait(20)

    release = threading.Event()
    monkeypatch.setattr(tracing, "FLUSH_SECONDS", 0.05)
    Tracing(Hangs(), "m").close()  # returns
    release.set()


# ---- the option ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["", "127.0.0.1:4317", "grpc://host:4317", "http://"])
def test_an_endpoint_must_be_a_url(endpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--dry-run", "--otlp-traces-endpoint", endpoint]) == 2
    assert "otlp_traces_endpoint" in capsys.readouterr().err


def test_the_packages_are_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "TRACES_PACKAGES", ("no_such_package.sdk",))
    with pytest.raises(ConfigError, match=r"mini-infer\[otel\]"):
        launch.ServeOptions(EngineConfig(), otlp_traces_endpoint="http://127.0.0.1:4318/v1/traces")
    launch.ServeOptions(EngineConfig())  # nobody else needs them
