"""Streams on the wire: their form, clients that leave, and an engine that dies."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import time
from typing import Any

import pytest

from tests.server.running import Running

BODY = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 400}


def open_stream(server: Running, body: dict[str, Any], path: str = "/v1/chat/completions") -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("POST", path, json.dumps({**body, "stream": True}), {"Content-Type": "application/json"})
    return connection.getresponse()


def events(response: http.client.HTTPResponse) -> list[Any]:
    """All events; the text is read whole, so anything between them shows."""
    text = response.read().decode()
    parts = text.split("\n\n")
    assert parts.pop() == "" and all(part.startswith("data: ") and "\n" not in part for part in parts)
    return [part[6:] if part == "data: [DONE]" else json.loads(part[6:]) for part in parts]


class TestForm:
    def test_chat(self, server: Running) -> None:
        response = open_stream(server, {**BODY, "max_tokens": 20})
        assert response.headers["content-type"].startswith("text/event-stream")
        *chunks, done = events(response)
        assert done == "[DONE]"
        deltas = [chunk["choices"][0] for chunk in chunks]
        assert deltas[0]["delta"] == {"role": "assistant", "content": ""}
        assert deltas[-1]["delta"] == {} and deltas[-1]["finish_reason"] == "length"
        assert all(delta["finish_reason"] is None and list(delta["delta"]) == ["content"] for delta in deltas[1:-1])
        assert all("usage" not in chunk for chunk in chunks)

    def test_text_survives_json(self, server: Running) -> None:
        """Every byte value as output: quotes, controls, and pieces of characters."""
        for token_ids in ([2 + i for i in range(0, 256, 4)], [2 + i for i in range(3, 256, 4)]):
            body = {**BODY, "max_tokens": 60, "seed": 1, "allowed_token_ids": token_ids}
            whole = server.post("/v1/chat/completions", body)[1]["choices"][0]["message"]["content"]
            chunks = events(open_stream(server, body))[:-1]
            assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == whole

    def test_no_role_before_the_first_token(self, slow_server: Running) -> None:
        first = open_stream(slow_server, {**BODY, "max_tokens": 2})
        lines = first.read().decode().split("\n\n")
        assert "role" in lines[0]
        start = time.monotonic()
        with pytest.raises(TimeoutError):  # not even headers, while it waits for the first token
            response = open_stream(slow_server, BODY)
            response.fp.raw._sock.settimeout(0)  # type: ignore[union-attr]
            raise TimeoutError if time.monotonic() - start > 0.05 else AssertionError("answered before the first token")


class TestClientsThatLeave:
    def leave(self, response: http.client.HTTPResponse) -> None:
        response.read(20)
        response.fp.raw._sock.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]
        response.close()

    @pytest.mark.parametrize("n", [1, 4])
    def test_in_a_stream(self, slow_server: Running, n: int) -> None:
        response = open_stream(slow_server, {**BODY, "n": n})
        slow_server.eventually("num_requests_running", n)
        self.leave(response)
        slow_server.eventually("num_requests_running", 0)
        slow_server.eventually("kv_cache_usage_perc", 0)
        assert slow_server.get("/healthz")[1]["running"] == 0

    def test_while_waiting_for_a_whole_answer(self, slow_server: Running) -> None:
        with socket.create_connection(("127.0.0.1", slow_server.port)) as sock:
            data = json.dumps({"prompt": "hello", "max_tokens": 400, "n": 2}).encode()
            sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                         b"Content-Length: %d\r\n\r\n%b" % (len(data), data))
            slow_server.eventually("num_requests_running", 2)
        slow_server.eventually("num_requests_running", 0)
        slow_server.eventually("kv_cache_usage_perc", 0)

    def test_others_go_on(self, slow_server: Running) -> None:
        staying = open_stream(slow_server, {**BODY, "max_tokens": 12})
        for _ in range(8):
            self.leave(open_stream(slow_server, BODY))
        *chunks, done = events(staying)
        assert done == "[DONE]" and chunks[-1]["choices"][0]["finish_reason"] == "length"
        slow_server.eventually("kv_cache_usage_perc", 0)


def test_a_killed_engine_ends_streams_with_an_error(slow_server: Running) -> None:
    streams = [open_stream(slow_server, BODY) for _ in range(3)]
    os.kill(slow_server.engine_pid, signal.SIGKILL)
    for stream in streams:
        *_, error, done = events(stream)
        assert done == "[DONE]" and error["error"]["code"] == "engine_dead"
    for path in ("/health", "/healthz"):
        status, body = slow_server.get(path)
        assert status == 503 and body["status"] == "error"
    status, body = slow_server.post("/v1/completions", {"prompt": "a"})
    assert status == 503 and body["error"]["type"] == "service_unavailable_error"
    assert slow_server.get("/v1/models")[0] == 200
