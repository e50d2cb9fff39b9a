"""The load client: streams however they are cut, connections that are used again or break, and answers of any kind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("httptools")

from mini_infer.bench.client import Answer, Client, Pieces, sse_events
from mini_infer.bench.serve import Query, read_answer
from mini_infer.config import ConfigError

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
EVENTS = [b'{"a": "1"}', "{\"\u00e9\": 2}".encode(), b"[DONE]"]
STREAM = b": a comment\n\n" + b"".join(b"data: " + event + b"\n\n" for event in EVENTS)


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_events_do_not_depend_on_the_cuts(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces: Pieces = [(float(i), STREAM[a:b]) for i, (a, b) in enumerate(pairwise(edges))]
    found = list(sse_events(pieces))
    assert [data for _, data in found] == EVENTS
    assert [when for when, _ in found] == sorted(when for when, _ in found)
    assert found[-1][0] >= next(float(i) for i, edge in enumerate(edges[1:]) if edge >= len(STREAM) - 1)


def test_carriage_returns_and_unfinished_events() -> None:
    assert [data for _, data in sse_events([(0.0, b"data: x\r\n\r\ndata:y\n\ndata: half")])] == [b"x", b"y"]


async def request(reader: asyncio.StreamReader) -> bytes | None:
    """A whole request, or None when the client has gone."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head + await reader.readexactly(length)


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[Handler], Awaitable[str]]]:
    """Start a server; its URL."""
    servers: list[asyncio.Server] = []

    async def start(handler: Handler) -> str:
        servers.append(await asyncio.start_server(handler, "127.0.0.1", 0))
        return f"http://127.0.0.1:{servers[-1].sockets[0].getsockname()[1]}"

    yield start
    for server in servers:
        server.close()


async def test_a_connection_is_used_again(serve: Callable[[Handler], Awaitable[str]]) -> None:
    connections, seen = 0, []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while (text := await request(reader)) is not None:
            seen.append(text)
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            await asyncio.sleep(0.01)
            writer.write(b"2\r\nde\r\n0\r\n\r\n")
        writer.close()

    client = Client(await serve(handler) + "/v1/", {"X-Key": "1"})
    first, second = await client.ask("POST", "/v1/completions", b"body"), await client.ask("GET", "/v1/models")
    client.close()
    assert connections == 1 and first.status == second.status == 200
    assert [piece for _, piece in first.pieces] == [b"abc", b"de"] and first.body == b"abcde"
    assert first.sent <= first.pieces[0][0] < first.pieces[1][0] <= second.sent
    assert seen[0].startswith(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:")
    assert seen[0].endswith(b"\r\n\r\nbody")
    assert b"X-Key: 1\r\n" in seen[0]


async def test_connections_that_the_server_closed(serve: Callable[[Handler], Awaitable[str]]) -> None:
    """Between two requests it is opened again; inside an answer that is an error."""
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        text = await request(reader)
        assert text is not None
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n" + (b"half"[:2] if b"/half" in text else b"full"))
        await writer.drain()
        writer.close()

    client = Client(await serve(handler))
    for _ in range(3):
        assert (await client.ask("GET", "/full")).body == b"full"
        await asyncio.sleep(0.02)
    with pytest.raises(ConnectionError, match="before the answer was whole"):
        await client.ask("GET", "/half")
    client.close()


async def test_what_is_not_http(serve: Callable[[Handler], Awaitable[str]]) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"SSH-2.0-OpenSSH\r\n")

    client = Client(await serve(handler))
    with pytest.raises(ConnectionError, match="not HTTP"):
        await client.ask("GET", "/")
    client.close()
    for url in ("127.0.0.1:8000", "ftp://a", "http://"):
        with pytest.raises(ConfigError, match="base_url"):
            Client(url)


def completion(*texts: str, usage: dict[str, int] | None = None) -> Answer:
    chunks = [{"choices": [{"text": text, "finish_reason": None}]} for text in texts]
    chunks.append({"choices": [{"text": "", "finish_reason": "length"}]})
    if usage is not None:
        chunks.append({"choices": [], "usage": usage})  # type: ignore[dict-item]
    pieces = [(float(i), b"data: " + json.dumps(chunk).encode() + b"\n\n") for i, chunk in enumerate(chunks, 1)]
    return Answer(0.0, 200, [*pieces, (99.0, b"data: [DONE]\n\n")])


class TestAnswers:
    def test_a_completion(self) -> None:
        answer = completion("a", "", "b", usage={"prompt_tokens": 4, "completion_tokens": 5})
        record = read_answer(Query(b"", 3), answer, None)
        assert (record.prompt_len, record.output_len, record.text, record.error) == (4, 5, "ab", None)
        assert record.arrivals == [1.0, 2.0, 3.0]  # half a character counts, the end by itself does not

    def test_pieces_count_where_nobody_counts_tokens(self) -> None:
        assert read_answer(Query(b"", 3), completion("a", "b"), None).output_len == 2

    def test_an_answer_of_one_invisible_token(self) -> None:
        record = read_answer(Query(b"", 3), completion(usage={"prompt_tokens": 3, "completion_tokens": 1}), None)
        assert record.error is None and record.arrivals == [1.0]

    def test_chat(self) -> None:
        deltas = [{"role": "assistant", "content": ""}, {"reasoning_content": "hm"}, {"content": "a"},
                  {"tool_calls": [{}]}, {}]
        chunks = [{"choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
        answer = Answer(0.0, 200, [(float(i), b"data: " + json.dumps(chunk).encode() + b"\n\n")
                                   for i, chunk in enumerate(chunks)])
        record = read_answer(Query(b"", 3), answer, None)
        assert record.text == "hma" and record.arrivals == [1.0, 2.0, 3.0]

    @pytest.mark.parametrize("answer, says", [
        (Answer(0.0, 429, [(1.0, b'{"error": "busy"}')]), "HTTP 429"),
        (Answer(0.0, 200, [(1.0, b'data: {"error": {"message": "broken"}}\n\n')]), "broken"),
        (Answer(0.0, 200, [(1.0, b"data: nonsense\n\n")]), "not OpenAI's"),
        (Answer(0.0, 200, [(1.0, b"data: 5\n\n")]), "not OpenAI's"),
        (Answer(0.0, 200, [(1.0, b"")]), "without any output"),
    ])
    def test_failures_say_why(self, answer: Answer, says: str) -> None:
        assert says in (read_answer(Query(b"", 3), answer, None).error or "")

    def test_no_answer(self) -> None:
        assert read_answer(Query(b"", 3), None, "gone").error == "gone"
