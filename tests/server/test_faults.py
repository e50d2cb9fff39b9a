"""What goes wrong with a running server, made to go wrong: clients, the engine, the device, the end of the process."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.server import faults
from tests.server.model_dir import SEVEN_B, write_model_dir
from tests.server.running import Running
from tests.tiny import write_chat_model

LONG = {"prompt": "hello", "max_tokens": 400}
SHORT = {"prompt": "hello", "max_tokens": 2}


def ask(server: Running, body: dict[str, Any]) -> http.client.HTTPResponse:
    """The beginning of an answer: status and headers."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    return connection.getresponse()


def stream(server: Running, **body: Any) -> http.client.HTTPResponse:
    return ask(server, {**LONG, **body, "stream": True})


def events(response: http.client.HTTPResponse) -> list[dict[str, Any]]:
    """All but the [DONE], which must be there."""
    *parts, done, rest = response.read().decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def send_raw(server: Running, body: dict[str, Any]) -> socket.socket:
    """A request whose answer nobody reads yet."""
    sock = socket.create_connection(("127.0.0.1", server.port))
    data = json.dumps(body).encode()
    sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                 b"Content-Length: %d\r\n\r\n%b" % (len(data), data))
    return sock


def wait_for(condition: Any, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Four sequences at a time, six may wait; prompts come in chunks of 16; a step takes 55 ms."""
    model = write_model_dir(tmp_path_factory.mktemp("faults") / "slow", SEVEN_B, 256)
    limits = ("--max-num-seqs", "4", "--max-queue", "6", "--max-concurrent-requests", "8")
    with Running(model, "--dry-run", "--dry-gpu", "L4", *limits, "--max-num-batched-tokens", "16",
                 "--no-enable-prefix-caching") as running:
        yield running


def settled(server: Running) -> bool:
    return all(server.metric(name) == 0 for name in ("num_requests_running", "num_requests_waiting",
                                                     "kv_cache_usage_perc"))


class TestClientsThatLeave:
    @pytest.mark.parametrize("streaming", [True, False])
    @pytest.mark.parametrize("n", [1, 4])
    @pytest.mark.parametrize("when", ["queued", "prefill", "decode"])
    def test_blocks_are_free_within_a_step(self, crowded: Running, when: str, n: int, streaming: bool) -> None:
        prompt: Any = [5] * 100 if when == "prefill" else "hi"
        others = [send_raw(crowded, {"prompt": "hello", "max_tokens": 120}) for _ in range(4)] \
            if when == "queued" else []
        if others:
            crowded.eventually("num_requests_running", 4)
        before = crowded.metric("kv_cache_usage_perc")
        sock = send_raw(crowded, {"prompt": prompt, "max_tokens": 120, "n": n, "stream": streaming})
        if when == "queued":
            crowded.eventually("num_requests_waiting", n)
        elif when == "prefill":
            wait_for(lambda: crowded.metric("kv_cache_usage_perc") > 0)
        else:
            start = crowded.metric("generation_tokens_total")
            wait_for(lambda: crowded.metric("generation_tokens_total") >= start + n)
        steps = crowded.metric("engine_steps_total")
        sock.close()
        if others:
            crowded.eventually("num_requests_waiting", 0)
        else:
            crowded.eventually("kv_cache_usage_perc", before)
        assert crowded.metric("engine_steps_total") - steps <= 4  # two in flight, and one while the news arrives
        for other in others:
            other.close()
        wait_for(lambda: settled(crowded))


class TestLimits:
    def test_a_full_queue_is_said_at_once(self, crowded: Running) -> None:
        taken = [send_raw(crowded, {"prompt": "a", "max_tokens": 30, "n": 4})]
        crowded.eventually("num_requests_running", 4)
        taken.append(send_raw(crowded, {"prompt": "a", "max_tokens": 30, "n": 6}))
        crowded.eventually("num_requests_waiting", 6)
        for body in (SHORT, SHORT | {"stream": True}):
            self.refused(crowded, body, "queue of 6")
        taken.pop().close()
        crowded.eventually("num_requests_waiting", 0)
        assert crowded.post("/v1/completions", SHORT)[0] == 200
        taken.pop().close()
        wait_for(lambda: settled(crowded))

    def test_sequences_count_not_requests(self, crowded: Running) -> None:
        with send_raw(crowded, {"prompt": "a", "max_tokens": 100, "n": 4}):
            crowded.eventually("num_requests_running", 4)
            for body in ({"prompt": ["a"] * 7}, {"prompt": [[5]] * 7}, {"prompt": ["a", "b"], "n": 4, "stream": True}):
                self.refused(crowded, SHORT | body, "queue of 6")
            with send_raw(crowded, {"prompt": ["a"] * 6, "max_tokens": 2}):
                crowded.eventually("num_requests_waiting", 6)
        wait_for(lambda: settled(crowded))
        for body, field in (({"prompt": ["a"] * 11}, "prompt"), ({"prompt": ["a"] * 4, "n": 3}, "prompt"),
                            ({"prompt": "a", "n": 11}, "n")):
            status, answer = crowded.post("/v1/completions", SHORT | body)
            assert status == 400 and answer["error"]["param"] == field
            assert "runs 4 at a time and lets 6 wait" in answer["error"]["message"]

    def test_only_so_many_at_a_time(self, crowded: Running) -> None:
        taken = [send_raw(crowded, LONG | {"max_tokens": 200}) for _ in range(8)]
        crowded.eventually("num_requests_waiting", 4)
        self.refused(crowded, SHORT, "answers 8 requests")
        for sock in taken:
            sock.close()
        wait_for(lambda: settled(crowded))

    def refused(self, server: Running, body: dict[str, Any], says: str) -> None:
        response = ask(server, body)
        error = json.loads(response.read())["error"]
        assert response.status == 429 and int(response.headers["Retry-After"]) >= 1
        assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full") and says in error["message"]

    def test_a_deadline(self, crowded: Running) -> None:
        status, body = crowded.post("/v1/completions", LONG | {"max_tokens": 200, "timeout": 0.4})
        assert status == 504 and (body["error"]["type"], body["error"]["code"]) == ("timeout_error", "timeout")
        *chunks, error = events(stream(crowded, max_tokens=200, timeout=0.4))
        assert chunks and error["error"]["code"] == "timeout"
        assert crowded.post("/v1/completions", SHORT | {"timeout": 20})[0] == 200
        wait_for(lambda: settled(crowded))

    @pytest.mark.parametrize("timeout", [0, -1, 1e9, "5", True, float("nan")])
    def test_a_deadline_that_is_none(self, crowded: Running, timeout: object) -> None:
        status, body = crowded.post("/v1/completions", SHORT | {"timeout": timeout})
        assert status == 400 and body["error"]["param"] == "timeout"


def test_a_deadline_for_requests_that_name_none(slow_model: Path) -> None:
    with Running(slow_model, "--dry-run", "--dry-gpu", "L4", "--default-timeout", "0.2") as server:
        message = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 400}
        for path, body in (("/v1/completions", LONG | {"timeout": None}), ("/v1/chat/completions", message)):
            status, answer = server.post(path, body)
            assert status == 504 and answer["error"]["code"] == "timeout" and "0.2 s" in answer["error"]["message"]
        assert server.post("/v1/messages", message)[0] == 504
        *chunks, error = events(stream(server))
        assert chunks and error["error"]["code"] == "timeout"
        for body in (LONG | {"max_tokens": 6, "timeout": 20}, SHORT):  # its own, and one that it meets
            assert server.post("/v1/completions", body)[0] == 200
        wait_for(lambda: settled(server))


def test_a_reader_that_does_not_read_holds_nobody_up(server: Running) -> None:
    """Its text waits in one piece for each of its completions, and is whole when it reads at last."""
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", server.port))
    n, tokens = 64, 480
    data = json.dumps({"prompt": "hello", "max_tokens": tokens, "n": n, "stream": True, "ignore_eos": True,
                       "stream_options": {"include_usage": True}}).encode()
    slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                 b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data))
    slow.recv(10)
    for _ in range(3):
        *_, end = events(stream(server, max_tokens=50, stream_options={"include_usage": True}))
        assert end["usage"]["completion_tokens"] == 50
    server.eventually("num_requests_running", 0, seconds=20)  # the engine is through with it, though nothing is read
    received = bytearray()
    while data := slow.recv(1 << 16):
        received += data
    slow.close()
    assert b'"completion_tokens":%d' % (n * tokens) in received and b"data: [DONE]" in received
    assert received.count(b"data: ") < n * tokens / 2


class TestEngineThatDies:
    def test_killed(self, slow_model: Path) -> None:
        shared = set(os.listdir("/dev/shm"))
        with Running(slow_model, "--dry-run", "--dry-gpu", "L4") as server:
            engine = server.engine_pid
            streams = [stream(server) for _ in range(2)]
            with ThreadPoolExecutor(1) as pool:
                whole = pool.submit(server.post, "/v1/completions", LONG)
                server.eventually("num_requests_running", 3)
                os.kill(engine, signal.SIGKILL)
                for response in streams:
                    assert events(response)[-1]["error"]["code"] == "engine_dead"
                status, body = whole.result()
            assert status == 503 and body["error"]["code"] == "engine_dead"
            for path in ("/health", "/healthz"):
                status, body = server.get(path)
                assert status == 503 and body["status"] == "error" and body["error"]["code"] == "engine_dead"
            response = ask(server, SHORT)
            assert response.status == 503 and response.headers["Retry-After"]
            assert server.process.wait(timeout=10) == 1
            assert gone(engine)
        assert set(os.listdir("/dev/shm")) <= shared

    def test_started_again_by_flag(self, slow_model: Path) -> None:
        flags = ("--restart-engine", "2", "--engine-stall-timeout", "1")
        with Running(slow_model, "--dry-run", "--dry-gpu", "L4", *flags) as server:
            engines = []
            for how in (signal.SIGKILL, signal.SIGSTOP):  # dead, and hanging
                response = stream(server)
                engines.append(server.engine_pid)
                os.kill(engines[-1], how)
                assert events(response)[-1]["error"]["code"] == "engine_dead"
                assert server.get("/healthz")[0] == 200  # it is being seen to
                wait_for(lambda: server.get("/health")[0] == 200, seconds=20)
                assert server.post("/v1/completions", SHORT)[0] == 200
            engines.append(server.engine_pid)
            assert len(set(engines)) == 3
            os.kill(engines[-1], signal.SIGKILL)
            assert server.process.wait(timeout=10) == 1
            assert all(map(gone, engines))


@pytest.fixture(scope="module")
def faulty(small_model: Path) -> Iterator[Running]:
    with Running(small_model, "--dry-run", "--dry-gpu", "free", "--engine-stall-timeout", "1", "--plugin",
                 str(Path(faults.__file__))) as running:
        yield running


class TestDeviceThatFails:
    @pytest.mark.parametrize("fault, says", [(faults.EXCEPTION, "the engine failed"),
                                             (faults.OUT_OF_MEMORY, "out of GPU memory")])
    def test_the_step_fails_and_service_goes_on(self, faulty: Running, fault: int, says: str) -> None:
        status, body = faulty.post("/v1/completions", {"prompt": [fault, 5, 6], "max_tokens": 5, "n": 2})
        assert status == 500 and says in body["error"]["message"] and body["error"]["code"] == "generation_failed"
        assert not any(hidden in body["error"]["message"] for hidden in ("/opt", "0x", "RuntimeError"))
        response = stream(faulty, prompt=[fault, 5, 6])
        assert response.status == 500 and says in json.loads(response.read())["error"]["message"]
        faulty.eventually("kv_cache_usage_perc", 0)
        assert faulty.post("/v1/completions", LONG)[1]["usage"]["completion_tokens"] == 400
        assert faulty.get("/health")[0] == 200

    def test_a_long_launch_is_no_hang(self, faulty: Running) -> None:
        """Two and a half times the stall timeout, as when kernels compile."""
        seen: list[int] = []
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(faulty.post, "/v1/completions", {"prompt": [faults.SLOW_LAUNCH], "max_tokens": 2})
            while not answer.done():
                seen.append(faulty.get("/health")[0])
                time.sleep(0.1)
        assert answer.result()[0] == 200 and set(seen) == {200} and len(seen) > 5

    def test_a_hanging_device_shows(self, faulty: Running) -> None:
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(faulty.post, "/v1/completions", {"prompt": [faults.HANG], "max_tokens": 2})
            for path in ("/health", "/healthz"):
                wait_for(lambda path=path: faulty.get(path)[0] == 503)
                assert faulty.get(path)[1]["status"] == "stalled"
            assert answer.result()[0] == 200
        assert faulty.get("/health")[0] == 200

    def test_a_stopped_process_shows(self, faulty: Running) -> None:
        os.kill(faulty.engine_pid, signal.SIGSTOP)
        try:
            assert faulty.get("/health")[0] == 200  # it has nothing to do
            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(faulty.post, "/v1/completions", SHORT)
                wait_for(lambda: faulty.get("/health")[0] == 503)
                os.kill(faulty.engine_pid, signal.SIGCONT)
                assert answer.result()[0] == 200
        finally:
            os.kill(faulty.engine_pid, signal.SIGCONT)
        wait_for(lambda: faulty.get("/health")[0] == 200)

    def test_a_lost_device_ends_the_server(self, faulty: Running) -> None:  # the last one here, for that reason
        engine = faulty.engine_pid
        status, body = faulty.post("/v1/completions", {"prompt": [faults.DEVICE_LOST], "max_tokens": 2})
        assert status == 503 and "the GPU has failed" in body["error"]["message"]
        assert faulty.process.wait(timeout=10) == 1 and gone(engine)


def test_logits_that_are_no_numbers_fail_their_request_alone(tmp_path: Path) -> None:
    """The embedding of one token is not finite, in a real model: whoever sends it gets an error, and no one else."""
    bad = 3
    model = write_chat_model(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["model.embed_tokens.weight"][bad] = float("nan")
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with Running(model, "--device", "cpu", "--num-kv-blocks", "64") as server:
        prompt = [5, 6, 7, 8] * 10
        good = {"prompt": prompt, "max_tokens": 8, "temperature": 0, "return_token_ids": True}
        before = server.post("/v1/completions", good)[1]["choices"][0]["token_ids"]
        for _ in range(2):  # the second finds no blocks of the first in the cache
            status, body = server.post("/v1/completions", good | {"prompt": [bad, *prompt]})
            assert status == 500 and body["error"]["code"] == "generation_failed" and "NaN" in body["error"]["message"]
        server.eventually("kv_cache_usage_perc", 0)
        hits = server.metric("prefix_cache_hits_total")
        assert server.post("/v1/completions", good | {"prompt": [bad, *prompt]})[0] == 500
        assert server.metric("prefix_cache_hits_total") == hits
        assert server.post("/v1/completions", good)[1]["choices"][0]["token_ids"] == before


class TestTheEnd:
    def test_sigterm_lets_running_requests_finish(self, slow_model: Path) -> None:
        with Running(slow_model, "--dry-run", "--dry-gpu", "L4") as server:
            response = stream(server, max_tokens=20, stream_options={"include_usage": True})
            os.kill(server.process.pid, signal.SIGTERM)
            wait_for(lambda: server.get("/health")[0] == 503)
            body = server.get("/health")[1]
            assert body["status"] == "draining" and body["error"]["code"] == "draining"
            assert server.get("/healthz")[0] == 200  # nothing is wrong with it
            refused = ask(server, SHORT)
            assert refused.status == 503 and int(refused.headers["Retry-After"]) >= 1
            assert json.loads(refused.read())["error"]["code"] == "draining"
            assert events(response)[-1]["usage"]["completion_tokens"] == 20
            assert server.process.wait(timeout=10) == 0

    def test_a_log_that_nobody_reads_does_not_keep_it(self) -> None:
        server = Running("--dry-run")
        assert server.process.stderr is not None
        server.process.stderr.close()
        os.kill(server.process.pid, signal.SIGTERM)
        assert server.process.wait(timeout=10) == 0

    def test_what_takes_too_long_is_told(self, slow_model: Path) -> None:
        with Running(slow_model, "--dry-run", "--dry-gpu", "L4", "--shutdown-timeout", "1") as server:
            response = stream(server)
            os.kill(server.process.pid, signal.SIGTERM)
            assert events(response)[-1]["error"]["code"] == "draining"
            assert server.process.wait(timeout=10) == 0

    def test_a_second_signal_forces(self, slow_model: Path) -> None:
        with Running(slow_model, "--dry-run", "--dry-gpu", "L4") as server:
            engine = server.engine_pid
            response = stream(server)
            os.kill(server.process.pid, signal.SIGTERM)
            wait_for(lambda: server.get("/health")[0] == 503)
            begin = time.monotonic()
            os.kill(server.process.pid, signal.SIGTERM)
            assert server.process.wait(timeout=10) == 1
            assert time.monotonic() - begin < 8 and gone(engine)
            response.close()
