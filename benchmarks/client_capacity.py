"""How many streamed tokens `mini-infer bench serve` can take in: its client against a responder that computes nothing.

    python -m benchmarks.client_capacity

The responder, a process of its own, answers every request with events of a usual size, one write and one token each,
to all connections in turn, as fast as it can. It and the client have one core each at best, so beside the rate that
came about stands what the client's own processor time would allow.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.common import RESULTS, Figure, write_result
from mini_infer.bench.client import Answer, Client
from mini_infer.bench.report import table
from mini_infer.bench.serve import Query, read_answer

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
SERVERS_BEST = 35_500  # output tokens a second, the floor of the fastest shape on the fastest GPU that we know


def event_bytes(value: dict[str, Any]) -> bytes:
    data = b"data: " + json.dumps(value).encode() + b"\n\n"
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


CHUNK = event_bytes({"id": "cmpl-0123456789abcdef0123456789abcdef", "object": "text_completion", "created": 1700000000,
                     "model": "a-model", "choices": [{"index": 0, "text": " word", "logprobs": None,
                                                      "finish_reason": None}], "usage": None})


class Responder(asyncio.Protocol):
    """Answers each request with `tokens` events."""

    def __init__(self, tokens: int, writers: set[Responder]):
        self._tokens = tokens
        self._writers = writers
        self.left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"POST"):
            self.transport.write(HEAD)  # type: ignore[attr-defined]
            self.left = self._tokens
            self._writers.add(self)

    def write(self) -> None:
        self.transport.write(CHUNK)  # type: ignore[attr-defined]
        self.left -= 1
        if not self.left:
            last = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": self._tokens}}
            self.transport.write(event_bytes(last) + END)  # type: ignore[attr-defined]
            self._writers.discard(self)


def respond(pipe: Connection, tokens: int) -> None:
    """A process: serve until it is ended."""
    async def serve() -> None:
        writers: set[Responder] = set()
        server = await asyncio.get_running_loop().create_server(lambda: Responder(tokens, writers), "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        while True:
            for writer in list(writers):
                writer.write()
            await asyncio.sleep(0 if writers else 0.001)

    asyncio.run(serve())


async def ask_all(port: int, connections: int, rounds: int) -> list[Answer]:
    client = Client(f"http://127.0.0.1:{port}")
    answers = []
    for _ in range(rounds):
        answers += await asyncio.gather(*(client.ask("POST", "/v1/completions", b"{}") for _ in range(connections)))
    client.close()
    return answers


def measure(connections: int, tokens: int, rounds: int) -> dict[str, float]:
    ours, theirs = multiprocessing.Pipe()
    responder = multiprocessing.get_context("spawn").Process(target=respond, args=(theirs, tokens), daemon=True)
    responder.start()
    try:
        port = ours.recv()
        before, begin = _cpu_seconds(), perf_counter()
        answers = _run(ask_all(port, connections, rounds))
        seconds, cpu = perf_counter() - begin, _cpu_seconds() - before
    finally:
        responder.terminate()
        responder.join()
    records = [read_answer(Query(b"", 1), answer, None) for answer in answers]
    assert all(record.error is None and len(record.arrivals) == record.output_len == tokens for record in records)
    total = connections * tokens * rounds
    return {"connections": connections, "tokens": total, "tokens_per_s": round(total / seconds),
            "client_us_per_token": round(1e6 * cpu / total, 2), "capacity_tokens_per_s": round(total / cpu)}


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _run(work: Any) -> Any:
    try:
        from uvloop import new_event_loop
    except ImportError:
        from asyncio import new_event_loop
    loop = new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--tokens", type=int, default=400, help="of each answer")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of the JSON file")
    args = parser.parse_args(argv)
    rows = [measure(connections, args.tokens, args.rounds) for connections in args.connections]
    print(table(("connections", "tokens", "tokens/s", "us of the client's CPU a token", "tokens/s that allows"),
                [tuple(row.values()) for row in rows]))
    worst = min(row["capacity_tokens_per_s"] for row in rows)
    figure = Figure("tokens a second that the load client's own time allows", worst, "", SERVERS_BEST)
    print(figure)
    path = write_result("client_capacity", {"figures": [figure.record()], "rows": rows, "tokens": args.tokens,
                                            "event_bytes": len(CHUNK), "uvloop": "uvloop" in sys.modules}, args.out)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
