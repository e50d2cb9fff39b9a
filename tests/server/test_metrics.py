"""The metrics page: what Prometheus reads, that it adds up, and that it is documented and drawn."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import time
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from starlette.types import Message

from benchmarks.wire import request_bytes
from mini_infer.engine.observer import StepSeen
from mini_infer.engine.streams import OutputStream, SequenceRecord
from mini_infer.protocol import EngineStats, SamplingParams, Span, StepOutputs, Timeline
from mini_infer.server.errors import CUT_SHORT
from mini_infer.server.limits import MAX_BODY_SIZE
from mini_infer.server.metrics import Histogram, ServerMetrics, Source
from mini_infer.server.tally import OUTCOMES, Tally
from tests.server.running import REPO, Running

DASHBOARD = REPO / "deploy" / "grafana" / "mini-infer.json"
HISTOGRAMS = ("time_to_first_token_seconds", "inter_token_latency_seconds", "request_time_per_output_token_seconds",
              "e2e_request_latency_seconds", "request_queue_time_seconds", "request_prefill_time_seconds",
              "request_decode_time_seconds", "request_inference_time_seconds", "request_prompt_tokens",
              "request_generation_tokens", "request_max_num_generation_tokens", "request_params_n",
              "request_params_max_tokens", "iteration_tokens_total", "iteration_batch_size",
              "engine_step_time_seconds")


def samples(page: str) -> list[Sample]:
    return [sample for family in text_string_to_metric_families(page) for sample in family.samples]


def test_counts_add_up(server: Running) -> None:
    names = ["generation_tokens_total", "prompt_tokens_total", "request_success_total", "iteration_tokens_total_sum",
             "iteration_batch_size_sum", *(f"{name}_count" for name in HISTOGRAMS)]
    before = {name: server.metric(name) for name in names}
    server.post("/v1/completions", {"prompt": [[5, 6, 7], [8, 9]], "max_tokens": 10, "n": 2})
    server.post("/v1/completions", {"prompt": [3], "max_tokens": 1})
    added = {name: server.metric(name) - before[name] for name in names}
    assert (added["generation_tokens_total"], added["prompt_tokens_total"]) == (41, 11)
    assert added["request_success_total"] == 5
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds",
                 "request_prefill_time_seconds", "request_decode_time_seconds", "request_inference_time_seconds",
                 "request_prompt_tokens", "request_generation_tokens"):
        assert added[f"{name}_count"] == 5, name
    for name in ("request_params_n", "request_params_max_tokens", "request_max_num_generation_tokens"):
        assert added[f"{name}_count"] == 3, name
    assert added["inter_token_latency_seconds_count"] == 36
    assert added["request_time_per_output_token_seconds_count"] == 4
    # Every token was computed once, but for the last of each sequence.
    assert added["iteration_tokens_total_sum"] == 41 + 11 - 5
    # A prompt fits in one step, so each sequence was in as many steps as it has tokens.
    assert added["iteration_batch_size_sum"] == 41
    assert added["iteration_batch_size_count"] == added["iteration_tokens_total_count"]
    assert added["engine_step_time_seconds_count"] >= added["iteration_tokens_total_count"] >= 10


def test_the_times_of_a_request_add_up(server: Running) -> None:
    names = [f"{name}_seconds_sum" for name in ("request_queue_time", "request_prefill_time", "request_decode_time",
                                                "request_inference_time", "e2e_request_latency")]
    before = [server.metric(name) for name in names]
    server.post("/v1/completions", {"prompt": [5] * 40, "max_tokens": 100, "stop": "no such thing"})
    queue, prefill, decode, inference, end_to_end = (server.metric(name) - old for name, old in zip(names, before))
    assert min(queue, prefill, decode) > 0
    assert prefill + decode == pytest.approx(inference)
    assert queue + inference == pytest.approx(end_to_end)


def test_a_stop_string_is_timed_as_well(server: Running) -> None:
    """The front ends such a sequence, and the engine tells of it a step later."""
    whole = server.post("/v1/completions", {"prompt": [5, 6], "max_tokens": 200, "temperature": 0})[1]
    stop = whole["choices"][0]["text"][20:24]
    before = server.metric("request_queue_time_seconds_count")
    answer = server.post("/v1/completions", {"prompt": [5, 6], "max_tokens": 200, "temperature": 0, "stop": stop})[1]
    assert answer["choices"][0]["finish_reason"] == "stop"
    server.eventually("request_queue_time_seconds_count", before + 1)


def test_the_page_parses_and_has_vllm_s_names(server: Running) -> None:
    page = server.get("/metrics")[1]
    families = {family.name: family for family in text_string_to_metric_families(page)}
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "num_preemptions",
                 "prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits", "request_success",
                 *HISTOGRAMS):
        family = families[f"mini_infer:{name}"]
        assert all(sample.labels["model_name"] == "dry" for sample in family.samples)
    for family in families.values():
        assert family.documentation and family.type != "unknown", family.name
        keys = [(sample.name, *sorted(sample.labels.items())) for sample in family.samples]
        assert len(keys) == len(set(keys)), "a series is there twice"
    for name in HISTOGRAMS:
        check_histogram(families[f"mini_infer:{name}"].samples)
    text = page.splitlines()
    types = [line.split()[2] for line in text if line.startswith("# TYPE")]
    assert len(types) == len(set(types)) and page.endswith("\n")


def check_histogram(series: list[Sample]) -> None:
    """As Prometheus wants it: bounds and counts rise, the last bound is +Inf and counts all."""
    buckets = [sample for sample in series if sample.name.endswith("_bucket")]
    bounds = [float(sample.labels["le"]) for sample in buckets]
    counts = [sample.value for sample in buckets]
    assert bounds == sorted(set(bounds)) and bounds[-1] == float("inf") and counts == sorted(counts)
    (count,) = (sample.value for sample in series if sample.name.endswith("_count"))
    assert count == counts[-1]


@pytest.mark.parametrize("path", ["docs/serving.md", "docs/zh/serving.md"])
def test_every_metric_is_documented(server: Running, path: str) -> None:
    text = (REPO / path).read_text(encoding="utf-8")
    for family in text_string_to_metric_families(server.get("/metrics")[1]):
        name = family.name.removeprefix("mini_infer:").removesuffix("_info")
        assert f"`{name}`" in text or (name.startswith("process_") and "`process_*`" in text), name


def test_the_dashboard_draws_what_is_there(server: Running) -> None:
    server.post("/v1/completions", {"prompt": [1], "max_tokens": 2})
    exported = {sample.name for sample in samples(server.get("/metrics")[1])}
    board = json.loads(DASHBOARD.read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    drawn: set[str] = set()
    for expression in expressions:
        assert expression.count("(") == expression.count(")") and expression.count("{") == expression.count("}")
        names = re.findall(r"\b(?:mini_infer:|process_)\w+", expression)
        assert names and set(names) <= exported, f"{set(names) - exported} is not exported: {expression}"
        if "histogram_quantile" in expression:
            assert "by (le" in expression and names[0].endswith("_bucket")
        assert "model_name" in expression or names[0].startswith("process_"), expression
        drawn.update(names)
    variables = {variable["name"] for variable in board["templating"]["list"]}
    assert set(re.findall(r"\$(\w+)", " ".join(expressions))) <= variables | {"__rate_interval"}
    shown = {re.sub(r"_(?:bucket|sum|count)$", "", name).removeprefix("mini_infer:") for name in drawn}
    assert shown >= {*HISTOGRAMS} - {"request_params_n", "request_params_max_tokens", "request_inference_time_seconds",
                                     "request_max_num_generation_tokens", "request_time_per_output_token_seconds"}
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    for panel in panels:
        assert panel["title"] and panel["fieldConfig"]["defaults"].get("unit"), panel["title"]
        where = panel["gridPos"]
        assert where["x"] + where["w"] <= 24


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


def total(histogram: Histogram) -> tuple[float, float]:
    count, added = histogram.totals()
    return count, round(added, 6)


def test_latencies_of_a_sequence() -> None:
    metrics = ServerMetrics()
    record = SequenceRecord(1, OutputStream(1, lambda stream: None), 5, SamplingParams(max_tokens=10), 0, 100.0)
    computed = 0
    for now, tokens in ((100.5, 1), (100.6, 2), (100.7, 1)):
        computed += 5
        seen = StepSeen(StepOutputs([], EngineStats(computed_tokens=computed, computed_rows=computed // 5 * 2), [],
                                    0.01), now)
        seen.add(record, tokens)
        metrics.on_step(seen)
    metrics.on_finish(record, "stop", 100.7)
    assert total(metrics.queue) == (0, 0)  # nobody knows yet
    timeline = Timeline(1, 100.0, [Span("queued", 100.2, 0), Span("prefill", 100.4, 5), Span("decode", 100.7, 3)],
                        5, 0, 4, 0, "stop")
    for _ in range(2):  # it counts once
        metrics.on_step(StepSeen(StepOutputs(ended=[timeline]), 100.7))
    assert total(metrics.time_to_first_token) == (1, 0.5)
    assert total(metrics.inter_token) == (3, 0.2)
    assert total(metrics.per_output_token) == (1, round(0.2 / 3, 6))
    assert total(metrics.end_to_end) == (1, 0.7)
    assert total(metrics.queue) == (1, 0.2)
    assert total(metrics.prefill) == (1, 0.3)
    assert total(metrics.decode) == (1, 0.2)
    assert total(metrics.inference) == (1, 0.5)
    assert total(metrics.step_tokens) == (3, 15) and total(metrics.step_time) == (3, 0.03)
    assert total(metrics.step_rows) == (3, 6)


def test_a_new_engine_s_steps_count_from_its_first() -> None:
    """One that was started again begins with fewer tokens computed than the one before it had."""
    metrics = ServerMetrics()
    for tokens, rows in ((30, 3), (4, 2)):
        metrics.attach(Source("m", cast(Any, None), EngineStats))
        stats = EngineStats(computed_tokens=tokens, computed_rows=rows)
        metrics.on_step(StepSeen(StepOutputs([], stats, [], 0.01), 1.0))
    assert total(metrics.step_tokens) == (2, 34) and total(metrics.step_rows) == (2, 5)


def test_sequences_side_by_side_are_observed_at_once() -> None:
    records = [SequenceRecord(i, OutputStream(1, lambda stream: None), 5, SamplingParams(), 0, 1.0) for i in range(50)]
    for now in (2.0, 2.5):
        seen = StepSeen(StepOutputs(), now)
        for record in records:
            seen.add(record, 1)
    assert seen.gaps == {0.5: 50} and not seen.first_tokens


@pytest.mark.parametrize("let_in, status, sent, cut, outcome", [
    (True, 200, "all", None, "finished"), (True, 200, "some", None, "aborted"), (True, 0, "nothing", None, "aborted"),
    (True, 499, "all", None, "aborted"), (True, 504, "all", None, "aborted"), (True, 200, "all", 504, "aborted"),
    (True, 500, "all", None, "failed"), (True, 503, "all", None, "failed"), (True, 200, "all", 503, "failed"),
    (True, 400, "all", None, "refused"), (True, 429, "all", None, "refused"), (False, 429, "all", None, "refused"),
    (False, 503, "all", None, "refused")])
def test_how_a_request_ended(let_in: bool, status: int, sent: str, cut: int | None, outcome: str) -> None:
    tally, passed_on = Tally(), list[Message]()

    async def send(message: Message) -> None:
        passed_on.append(message)

    async def answer() -> None:
        scope: dict[str, Any] = {}
        with tally.visit(scope, send) as visit:
            assert tally.received == 1 and not sum(tally.ended.values())
            visit.let_in = let_in
            if sent != "nothing":
                await visit.send({"type": "http.response.start", "status": status, "headers": []})
                await visit.send({"type": "http.response.body", "body": b"x", "more_body": True})
            if cut is not None:
                scope[CUT_SHORT] = cut
            if sent == "all":
                await visit.send({"type": "http.response.body", "body": b""})

    asyncio.run(answer())
    assert tally.ended == {**dict.fromkeys(OUTCOMES, 0), outcome: 1}
    assert tally.turned_away == {429: int(status == 429), 503: int(status == 503 and not let_in)}
    assert len(passed_on) == {"nothing": 0, "some": 2, "all": 3}[sent]


def test_a_request_that_raises_has_failed() -> None:
    tally = Tally()
    with pytest.raises(ValueError), tally.visit({}, cast(Any, None)) as visit:
        visit.let_in = True
        raise ValueError
    assert tally.received == tally.ended["failed"] == 1


def outcomes(server: Running) -> dict[str, int]:
    """The counters of requests."""
    names = ("mini_infer:requests_received_total", "mini_infer:requests_ended_total")
    found = {sample.labels.get("outcome", "received"): int(sample.value)
             for sample in samples(server.get("/metrics")[1]) if sample.name in names}
    assert set(found) == {"received", *OUTCOMES}
    return found


def check_outcomes(server: Running, before: dict[str, int], **wanted: int) -> None:
    """Wait until so many have ended in each way, and as many have been received as that is together."""
    added = {**dict.fromkeys(OUTCOMES, 0), **wanted, "received": sum(wanted.values())}
    end = time.monotonic() + 5
    while (found := {name: value - before[name] for name, value in outcomes(server).items()}) != added:
        assert time.monotonic() < end, f"{found} is not {added}"
        time.sleep(0.02)


def test_requests_that_were_answered_or_refused(server: Running) -> None:
    before = outcomes(server)
    for body in ({"prompt": "a", "max_tokens": 3, "n": 4}, {"prompt": "a", "max_tokens": 3, "stream": True}):
        assert server.post("/v1/completions", body)[0] == 200
    for path in ("/v1/chat/completions", "/v1/messages"):
        assert server.post(path, {"messages": [{"role": "user", "content": "a"}], "max_tokens": 3})[0] == 200
    check_outcomes(server, before, finished=4)
    refused: list[Any] = [b"{", b" " * (MAX_BODY_SIZE + 1), {"prompt": "a", "no_such_field": 1}, {"prompt": [10**6]},
                          {"prompt": "a", "model": "another"}, {"prompt": "a" * 10**6}]
    assert [server.post("/v1/completions", body)[0] for body in refused] == [400, 413, 400, 400, 404, 400]
    for method, path in (("GET", "/v1/completions"), ("POST", "/v1/messages/count_tokens"), ("POST", "/tokenize")):
        server.send(method, path, b"{}" if method == "POST" else None)  # these ask for no text
    check_outcomes(server, before, finished=4, refused=6)


def test_requests_that_were_aborted_or_failed(slow_server: Running) -> None:
    before = outcomes(slow_server)
    body = {"prompt": "a", "max_tokens": 400}
    whole, stream = (request_bytes("/v1/completions", {**body, "stream": value}) for value in (False, True))
    for data, running in ((whole, 1), (stream, 1), (whole[:-5], 0)):  # the last one goes before its body is there
        with socket.create_connection(("127.0.0.1", slow_server.port)) as sock:
            sock.sendall(data)
            slow_server.eventually("num_requests_running", running)
        slow_server.eventually("num_requests_running", 0)
    assert slow_server.post("/v1/completions", {**body, "timeout": 0.1})[0] == 504
    check_outcomes(slow_server, before, aborted=4)
    with socket.create_connection(("127.0.0.1", slow_server.port)) as one, \
            socket.create_connection(("127.0.0.1", slow_server.port)) as other, other.makefile("rb") as lines:
        one.sendall(whole)
        other.sendall(stream)
        assert any(b"data:" in line for line in lines)
        slow_server.eventually("num_requests_running", 2)
        os.kill(slow_server.engine_pid, signal.SIGKILL)
        assert b" 503 " in one.recv(1000) and any(b"engine_dead" in line for line in lines)
        assert slow_server.post("/v1/completions", body)[0] == 503
        check_outcomes(slow_server, before, aborted=4, failed=2, refused=1)


def test_a_request_with_many_sequences_counts_once() -> None:
    """And those of which not all ended well count not at all, whichever was the last."""
    metrics = ServerMetrics()
    stream, params = OutputStream(9, lambda stream: None), SamplingParams(n=3, max_tokens=9)
    for index, reason in enumerate(["stop", "length", "stop", "abort", "error", "abort", "abort", "stop", "stop"]):
        record = SequenceRecord(index, stream, 5, params, index, 1.0)
        record.num_tokens = index + 1
        metrics.on_finish(record, reason, 2.0)
    assert (total(metrics.params_n), total(metrics.longest), total(metrics.max_tokens)) == ((1, 3), (1, 3), (1, 9))
    assert metrics.finished == {"stop": 4, "length": 1, "abort": 3, "error": 1}
