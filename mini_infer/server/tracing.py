"""OpenTelemetry traces: a span for each request, and in it those of each sequence's queue, prefill and decode.

Spans are made when a request is over, from times that were taken anyway, and sent by a thread of their own. Attributes
are vLLM's (vllm/tracing.py, SpanAttributes), most of them from the semantic conventions for generative AI. With a
`traceparent` header (W3C Trace Context) the span becomes a child of the client's.

This module imports opentelemetry: only `--otlp-traces-endpoint` imports this module.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from opentelemetry import context as contexts
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Receive, Scope, Send

from mini_infer.engine.observer import Observer, StepSeen
from mini_infer.engine.streams import OutputStream, SequenceRecord
from mini_infer.protocol import Timeline
from mini_infer.server.gate import client_request_id

EXPORT_SECONDS = 5.0  # for one batch, retries included
FLUSH_SECONDS = 3.0  # at the end, for what was not sent yet: a collector that hangs must not hold up the server
MAX_OPEN = 4096  # requests whose timelines are still to come; an engine that hangs never tells
ATTRIBUTES = contexts.create_key("mini-infer request")


@dataclass(slots=True)
class _Sequence:
    """One that is over. `timeline` is the engine's; None where it had not begun, or has gone."""

    record: SequenceRecord
    reason: str
    end: float
    timeline: Timeline | None = None

    def phases(self) -> list[tuple[str, float, float]]:
        """(name, begin, end) of queue, prefill and decode, as far as it came."""
        record, timeline = self.record, self.timeline
        if timeline is None:
            return []
        admitted = timeline.spans[0].end
        found = [("queue", record.arrival, admitted)]
        if record.num_tokens:
            found += [("prefill", admitted, record.first_token), ("decode", record.first_token, record.last_token)]
        elif len(timeline.spans) > 1:
            found.append(("prefill", admitted, timeline.spans[-1].end))
        return found


@dataclass(slots=True)
class _Request:
    """What one stream has: `context` is its caller's."""

    context: Context
    num_running: int = 0
    untimed: set[int] = field(default_factory=set)  # over, and the timeline is still to come
    over: dict[int, _Sequence] = field(default_factory=dict)


class Tracing(Observer):
    """Makes spans of requests and gives them to `processor`."""

    def __init__(self, processor: SpanProcessor, model_name: str):
        self._model_name = model_name
        self._requests: dict[OutputStream, _Request] = {}
        self._streams: dict[int, OutputStream] = {}  # by request id, of those in any `untimed`
        resource = Resource({"service.name": "mini-infer"}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("mini_infer")

    @classmethod
    def to(cls, endpoint: str, model_name: str) -> Tracing:
        """To a collector that takes OTLP over HTTP, in protobuf, at this URL."""
        return cls(BatchSpanProcessor(OTLPSpanExporter(endpoint, timeout=EXPORT_SECONDS)), model_name)

    def close(self) -> None:
        """Send what is left, for FLUSH_SECONDS at most."""
        for stream in list(self._requests):
            self._emit(stream)
        sending = threading.Thread(target=self._provider.shutdown, name="traces-flush", daemon=True)
        sending.start()
        sending.join(FLUSH_SECONDS)

    # ---- observed ------------------------------------------------------------------------------------------------

    def on_submit(self, record: SequenceRecord) -> None:
        request = self._requests.get(record.stream)
        if request is None:
            request = self._requests[record.stream] = _Request(contexts.get_current())
            if len(self._requests) > MAX_OPEN:
                self._emit_oldest()
        request.num_running += 1

    def on_finish(self, record: SequenceRecord, reason: str, now: float) -> None:
        request = self._requests.get(record.stream)
        if request is None:
            return
        request.num_running -= 1
        request.over[record.request_id] = _Sequence(record, reason, now)
        if reason != "error" or record.num_tokens:  # else it was refused, and there is no timeline of it
            request.untimed.add(record.request_id)
            self._streams[record.request_id] = record.stream
        elif not request.num_running and not request.untimed:
            self._emit(record.stream)

    def on_step(self, seen: StepSeen) -> None:
        if not self._streams:
            return
        for timeline in seen.outputs.ended:
            self._told(timeline.request_id, timeline)
        for out in seen.outputs.outputs:
            if out.finish_reason is not None:
                self._told(out.request_id, None)  # it waited for its grammar, or there were too many timelines

    def on_refused(self, request_id: int) -> None:
        self._told(request_id, None)

    def on_lost(self) -> None:
        for request_id in list(self._streams):
            self._told(request_id, None)

    def _told(self, request_id: int, timeline: Timeline | None) -> None:
        """All that the engine says of a sequence, unless it has said it before."""
        stream = self._streams.pop(request_id, None)
        if stream is None:
            return
        request = self._requests[stream]
        request.untimed.discard(request_id)
        request.over[request_id].timeline = timeline
        if not request.num_running and not request.untimed:
            self._emit(stream)

    # ---- told ----------------------------------------------------------------------------------------------------

    def _emit_oldest(self) -> None:
        done = (stream for stream, request in self._requests.items() if not request.num_running)
        if (oldest := next(done, None)) is not None:
            self._emit(oldest)

    def _emit(self, stream: OutputStream) -> None:
        """The spans of a request that is over."""
        request = self._requests.pop(stream)
        for request_id in request.untimed:
            self._streams.pop(request_id, None)
        sequences = sorted(request.over.values(), key=lambda sequence: sequence.record.index)
        if not sequences:
            return
        to_wall = time.time() - time.monotonic()

        def at(seconds: float) -> int:
            return int(1e9 * (to_wall + seconds))

        attributes = _attributes(sequences, self._model_name)
        attributes.update(contexts.get_value(ATTRIBUTES, request.context) or {})  # type: ignore[call-overload]
        span = self._tracer.start_span("llm_request", request.context, SpanKind.SERVER, attributes,
                                       start_time=at(sequences[0].record.arrival))
        inside = set_span_in_context(span)
        for sequence in sequences:
            preemptions = 0 if sequence.timeline is None else sequence.timeline.preemptions
            for name, begin, end in sequence.phases():
                child = self._tracer.start_span(name, inside, attributes={
                    "mini_infer.choice.index": sequence.record.index, "mini_infer.preemptions": preemptions},
                    start_time=at(begin))
                child.end(at(end))
        if any(sequence.reason == "error" for sequence in sequences):
            span.set_status(Status(StatusCode.ERROR))
        span.end(at(max(sequence.end for sequence in sequences)))


def _attributes(sequences: list[_Sequence], model_name: str) -> dict[str, Any]:
    """vLLM's, over all sequences of a request. Latencies are seconds, to the first of each event or to the last."""
    first, params = sequences[0].record, sequences[0].record.params
    found: dict[str, Any] = {
        "gen_ai.response.model": model_name,
        "gen_ai.request.id": str(first.request_id),
        "gen_ai.request.n": params.n,
        "gen_ai.request.temperature": float(params.temperature),
        "gen_ai.request.top_p": float(params.top_p),
        "gen_ai.usage.num_sequences": len(sequences),
        "gen_ai.usage.prompt_tokens": sum(sequence.record.num_prompt_tokens for sequence in sequences
                                          if sequence.record.index % params.n == 0),
        "gen_ai.usage.completion_tokens": sum(sequence.record.num_tokens for sequence in sequences),
        "gen_ai.response.finish_reasons": [sequence.reason for sequence in sequences],
        "gen_ai.latency.e2e": max(sequence.end for sequence in sequences) - first.arrival,
    }
    if params.max_tokens is not None:
        found["gen_ai.request.max_tokens"] = params.max_tokens
    admitted = [sequence.timeline.spans[0].end for sequence in sequences if sequence.timeline is not None]
    begun = [sequence.record for sequence in sequences if sequence.record.num_tokens]
    if admitted:
        found["gen_ai.latency.time_in_queue"] = min(admitted) - first.arrival
    if begun:
        first_token = min(record.first_token for record in begun)
        last_token = max(record.last_token for record in begun)
        found["gen_ai.latency.time_to_first_token"] = first_token - first.arrival
        found["gen_ai.latency.time_in_model_decode"] = last_token - first_token
        if admitted:
            found["gen_ai.latency.time_in_model_prefill"] = first_token - min(admitted)
            found["gen_ai.latency.time_in_model_inference"] = last_token - min(admitted)
    return found


class TraceContext:
    """ASGI: what a request says of its trace becomes the context that its handler runs in."""

    def __init__(self, app: ASGIApp):
        self._app = app
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        names = (b"traceparent", b"tracestate")
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in names}
        attributes = {"url.path": scope["path"]}
        if (own := client_request_id(scope)) is not None:
            attributes["gen_ai.request.id"] = own
        context = contexts.set_value(ATTRIBUTES, attributes, self._propagator.extract(headers, Context()))
        token = contexts.attach(context)
        try:
            await self._app(scope, receive, send)
        finally:
            contexts.detach(token)
