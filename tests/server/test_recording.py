"""`--record` on a server, from the flag to a replay of what its clients did."""

from __future__ import annotations

import gzip
import json
import socket
from pathlib import Path

import pytest

from mini_infer.cli import main
from tests.server.running import Running


def test_a_server_s_run_replays_the_same(slow_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run"
    options = ("--dry-run", "--dry-gpu", "H200", "--num-kv-blocks", "18", "--max-model-len", "256",
               "--block-size", "16", "--record", path)
    with Running(slow_model, *options) as server:
        body = {"prompt": [[1, 2] * 20, [1, 2] * 20 + [3]], "n": 3, "max_tokens": 60, "seed": 5}
        assert server.post("/v1/completions", body)[0] == 200
        with socket.create_connection(("127.0.0.1", server.port)) as client:  # goes away in the middle
            data = json.dumps({"prompt": "a", "max_tokens": 200, "stream": True}).encode()
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                           b"Content-Length: %d\r\n\r\n%b" % (len(data), data))
            assert client.recv(100)
        server.eventually("num_requests_running", 0)
        preemptions = server.metric("num_preemptions_total")
    assert preemptions > 0, "the pool was to be too small"
    assert main(["replay", str(path)]) == 0
    out = capsys.readouterr().out
    assert "all as recorded" in out and "no end" not in out
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    header, events = json.loads(lines[0]), [json.loads(line) for line in lines[1:-1]]
    assert header["engine"]["record"] == str(path) and header["scheduler"]["num_blocks"] == 18
    assert {event[0] for event in events} == {"add", "plan", "result", "abort"}
    assert sum(event[0] == "add" for event in events) == 7
