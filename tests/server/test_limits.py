"""Limits that are held before anything is made of a request: the scanner by itself, then a server that stays awake."""

from __future__ import annotations

import http.client
import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_infer.protocol import RequestError
from mini_infer.server.errors import error_body
from mini_infer.server.limits import (
    MAX_BODY_SIZE,
    MAX_DEPTH,
    MAX_ENTRIES,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_OBJECTS,
    MAX_VALUES,
    JsonMeter,
    parse_json,
)
from tests.server.model_dir import SMALL, write_model_dir
from tests.server.running import Running

TEXTS = st.text(st.sampled_from('a"\\[]{},:/é\n'), max_size=8)
VALUES = st.recursive(st.none() | st.integers() | TEXTS,
                      lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
                      max_leaves=20)


def depth_of(value: Any) -> int:
    if isinstance(value, (list, dict)):
        return 1 + max(map(depth_of, value.values() if isinstance(value, dict) else value), default=0)
    return 0


def scan(body: bytes, cuts: list[int]) -> bool:
    """Whether it passes, cut into pieces at those places."""
    scanner = JsonMeter()
    places = sorted(cut % (len(body) + 1) for cut in cuts)
    try:
        for start, end in zip([0, *places], [*places, len(body)]):
            scanner.feed(body[start:end])
    except RequestError:
        return False
    return True


class TestScanner:
    @given(value=VALUES, wrap=st.integers(0, 2 * MAX_DEPTH), ascii_only=st.booleans(), cuts=st.lists(st.integers(0)))
    def test_it_knows_how_deep_json_is_however_it_arrives(self, value: Any, wrap: int, ascii_only: bool,
                                                         cuts: list[int]) -> None:
        for level in range(wrap):
            value = [value] if level % 2 else {'{"\\': value}
        body = json.dumps(value, ensure_ascii=ascii_only).encode()
        assert scan(body, cuts) == (depth_of(value) <= MAX_DEPTH)

    @given(body=st.binary(max_size=200) | st.text('"\\[]{},', max_size=200).map(str.encode),
           cuts=st.lists(st.integers(0)))
    def test_any_bytes_in_any_pieces(self, body: bytes, cuts: list[int]) -> None:
        assert scan(body, cuts) == scan(body, [])

    def test_values_are_counted_outside_of_strings(self) -> None:
        assert scan(b'["' + b"," * 2 * MAX_VALUES + b'"]', [])
        assert not scan(b"[" + b"1," * MAX_VALUES + b"1]", [])
        assert not scan(b"[" + b"[],[]," * (MAX_VALUES // 2) + b"1]", [])

    def test_objects_are_counted_outside_of_strings(self) -> None:
        assert scan(b'["' + b"{}," * 2 * MAX_OBJECTS + b'"]', [])
        assert scan(b"[" + b"{}," * (MAX_OBJECTS - 1) + b"{}]", [7, 8, 9])
        assert not scan(b"[" + b"{}," * MAX_OBJECTS + b"{}]", [7, 8, 9])


class TestParsing:
    @given(VALUES)
    def test_json_is_json(self, value: Any) -> None:
        assert parse_json(json.dumps(value).encode()) == value

    @pytest.mark.parametrize("body, field", [
        (b'{"a": "\\ud800"}', "a"), (b'{"a": 1, "b": [{"c": "\\udc00\\ud800"}]}', "b"), (b'{"\\ud800": 1}', None),
        (b'"\\uDfff"', None), (b'{"a": "\xed\xa0\x80"}', None), (b"\xff", None)])
    def test_what_has_no_bytes_is_refused_by_field(self, body: bytes, field: str | None) -> None:
        with pytest.raises(RequestError) as error:
            parse_json(body)
        assert error.value.param == field

    def test_pairs_are_characters(self) -> None:
        assert parse_json(b'{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


def test_messages_are_short_and_say_nothing_of_the_inside() -> None:
    message = error_body("x" * 10**6)["error"]["message"]
    assert len(message) < 2000
    assert "0x7f" not in error_body("cannot use <object at 0x7f00aa> here")["error"]["message"]


PROMPT = {"prompt": "a"}
MESSAGE = {"role": "user", "content": "a"}
TOO_MANY: list[tuple[str, dict[str, Any], str]] = [
    *(("/v1/completions", {**PROMPT, name: ["a"] * (MAX_ENTRIES[name] + 1)}, name) for name in ("stop", "bad_words")),
    *(("/v1/completions", {**PROMPT, name: [1] * (MAX_ENTRIES[name] + 1)}, name)
      for name in ("stop_token_ids", "allowed_token_ids")),
    ("/v1/completions", {**PROMPT, "logit_bias": {str(i): 1 for i in range(2000)}}, "logit_bias"),
    ("/v1/completions", {**PROMPT, "metadata": {str(i): "x" for i in range(17)}}, "metadata"),
    ("/v1/completions", {**PROMPT, "stop": "x" * 5000}, "stop"),
    ("/v1/completions", {**PROMPT, "stop": ["x" * 1000] * 17}, "stop"),
    ("/v1/completions", {**PROMPT, "bad_words": ["x" * 5000]}, "bad_words"),
    ("/v1/completions", {**PROMPT, "cache_salt": "x" * 5000}, "cache_salt"),
    ("/v1/completions", {**PROMPT, "request_id": "x" * 500}, "request_id"),
    ("/v1/completions", {"prompt": ["a"] * 600, "n": 2}, "prompt"),
    ("/v1/completions", {"prompt": [[5]] * 2000}, "prompt"),
    ("/v1/completions", {f"field{i}": 1 for i in range(1000)}, ""),
    ("/v1/chat/completions", {"messages": [MESSAGE] * 5000}, "messages"),
    ("/v1/chat/completions", {"messages": [{**MESSAGE, "content": [{"type": "text", "text": "a"}] * 5000}]},
     "messages[0].content"),
    ("/v1/chat/completions", {"messages": [MESSAGE], "tools": [{}] * 200}, "tools"),
    ("/v1/chat/completions", {"messages": [MESSAGE], "documents": [{}] * 2000}, "documents"),
    ("/v1/messages", {"messages": [MESSAGE], "max_tokens": 1, "stop_sequences": ["a"] * 100}, "stop_sequences"),
    ("/tokenize", {"prompt": "a" * (2**20 + 1)}, "prompt"),
    ("/detokenize", {"tokens": [10**9]}, "tokens"),
]


@pytest.mark.parametrize("path, body, field", TOO_MANY, ids=lambda value: str(value)[:40])
def test_lists_are_bounded(server: Running, path: str, body: dict[str, Any], field: str) -> None:
    status, answer = server.post(path, body)
    assert status == 400
    if path != "/v1/messages":
        assert (answer["error"]["param"] or "") == field
    assert len(json.dumps(answer)) < 2000


@pytest.mark.parametrize("body", [
    b'{"prompt": "a", "documents": ' + b"[" * 1000 + b"]" * 1000 + b"}",
    b'{"prompt": [' + b"[],{}," * (MAX_VALUES // 2) + b"1]}",
    b'{"prompt": [' + b"{}," * 1_000_000 + b"1]}",
    b'{"prompt": "a", "seed": ' + b"9" * 100_000 + b"}",
    b'{"prompt": ["' + b'","'.join([b"a"] * 500_000) + b'", 1]}',
    b'{"prompt": [' + b"1," * 500_000 + b'"a"]}',
    b'{"prompt": "a", "n": 1, "n": 2, "\\u0000": 3}',
], ids=["deep", "many", "objects", "long number", "many texts", "many ids", "keys"])
def test_bodies_that_would_cost(server: Running, body: bytes) -> None:
    status, answer = server.post("/v1/completions", body)
    assert status == 400 and set(answer["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages"])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("close", [False, True])
def test_a_body_that_is_too_large(server: Running, path: str, chunked: bool, close: bool) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    pieces = (b" " * 2**20 for _ in range(MAX_BODY_SIZE // 2**20 + 30))
    headers = {"Content-Type": "application/json", **({"Connection": "close"} if close else {})}
    if chunked:
        connection.request("POST", path, pieces, headers, encode_chunked=True)
    else:
        connection.request("POST", path, b"".join(pieces), headers)
    response = connection.getresponse()
    error = json.loads(response.read())["error"]
    assert response.status == 413
    assert error["type"] == "request_too_large" if path == "/v1/messages" else error["code"] == "request_too_large"
    connection.request("GET", "/health")  # the same connection goes on
    assert connection.getresponse().status == 200


def test_a_client_that_asks_before_it_sends(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                     b"Expect: 100-continue\r\nContent-Length: 100000000\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 413 ")


class TestHeaders:
    def answer(self, server: Running, *pieces: bytes) -> tuple[int, dict[str, Any]]:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            for piece in pieces:
                sock.sendall(piece)
                time.sleep(0.02)
            head, _, body = sock.makefile("rb").read().partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)

    @pytest.mark.parametrize("data, expected", [
        (b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * (MAX_HEADERS + 1) + b"\r\n", 431),
        (b"GET /" + b"a" * MAX_HEADER_BYTES + b" HTTP/1.1\r\n\r\n", 431),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400),
    ], ids=["many", "url", "nonsense", "bytes"])
    def test_too_much_before_a_body(self, server: Running, data: bytes, expected: int) -> None:
        status, body = self.answer(server, data)
        assert status == expected and set(body["error"]) == {"message", "type", "param", "code"}

    def test_a_header_without_an_end(self, server: Running) -> None:
        assert self.answer(server, b"GET /health HTTP/1.1\r\na: b", b"c" * (MAX_HEADER_BYTES + 1))[0] == 431

    def test_a_connection_may_have_many_requests(self, server: Running) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        for _ in range(5):
            connection.request("GET", "/health", headers={f"x-{i}": "y" * 500 for i in range(100)})
            response = connection.getresponse()
            response.read()
            assert response.status == 200


FITS = "the quick brown fox " * 380  # in a context of 2048 tokens
OVER = "a b " * 1900


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    model = write_model_dir(tmp_path_factory.mktemp("limits") / "small", SMALL, 2048)
    with Running(model, "--dry-run", "--dry-gpu", "free", "--max-body-size", "32MB") as running:
        yield running


def send(server: Running, body: dict[str, Any]) -> socket.socket:
    """A completion request whose answer nobody reads yet."""
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    data = json.dumps(body).encode()
    sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                 b"Content-Length: %d\r\n\r\n%b" % (len(data), data))
    return sock


def answered(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0])


class TestLongLists:
    """Hundreds of long prompts, about a second of encoding."""

    @pytest.fixture
    def encoding(self, roomy: Running) -> Iterator[socket.socket]:
        """The connection of a client whose list is being encoded, to be refused at its end."""
        received = roomy.metric("requests_received_total")
        with send(roomy, {"prompt": [FITS] * 600 + [OVER], "max_tokens": 1}) as sock:
            roomy.eventually("requests_received_total", received + 1)
            yield sock

    def test_it_is_refused_at_the_first_that_does_not_fit(self, roomy: Running, encoding: socket.socket) -> None:
        for prompt in ([OVER] * 1024, [FITS] * 3 + [OVER] + [FITS] * 1000):
            status, body = roomy.post("/v1/completions", {"prompt": prompt, "max_tokens": 1})
            assert status == 400 and body["error"]["code"] == "context_length_exceeded"
        assert not answered(encoding)
        assert encoding.recv(12) == b"HTTP/1.1 400"

    def test_others_do_not_wait_for_it(self, roomy: Running, encoding: socket.socket) -> None:
        """Whether what they bring is encoded on the event loop, in turns with the list, or by itself as it is long."""
        for prompt, expected in (("the fox", 200), ([FITS] * 3, 200), (OVER * 4, 400), (OVER * 30, 400)):
            assert roomy.post("/v1/completions", {"prompt": prompt, "max_tokens": 1})[0] == expected
        assert roomy.post("/tokenize", {"prompt": FITS * 4})[0] == 200
        assert not answered(encoding)

    def test_it_is_left_when_its_client_goes(self, roomy: Running, encoding: socket.socket) -> None:
        aborted = r'requests_ended_total\{.*"aborted"\}'
        before = roomy.metric(aborted)
        assert roomy.post("/v1/completions", {"prompt": "the fox", "max_tokens": 1})[0] == 200
        encoding.close()
        roomy.eventually("requests_ended_total", roomy.metric("requests_received_total"))
        assert roomy.metric(aborted) == before + 1


def test_a_huge_prompt_stalls_nobody(roomy: Running) -> None:
    """10 MB of text, let in by a flag: refused for its length while /health goes on answering."""
    answers: list[tuple[int, Any]] = []
    prompt = "the quick brown fox " * 500_000
    bodies = [("/v1/completions", {"prompt": prompt}), ("/v1/completions", {"prompt": [prompt]}),
              ("/v1/chat/completions", {"messages": [{"role": "user", "content": prompt}]}),
              ("/tokenize", {"prompt": prompt})]
    asking = [threading.Thread(target=lambda path=path, body=body: answers.append(roomy.post(path, body)))
              for path, body in bodies]
    slowest, rounds = 0.0, 0
    for thread in asking:
        thread.start()
    while any(thread.is_alive() for thread in asking) or rounds < 3:
        start = time.monotonic()
        assert roomy.get("/health")[0] == 200
        slowest, rounds = max(slowest, time.monotonic() - start), rounds + 1
    assert [status for status, _ in answers] == [400] * 4
    codes = [answer["error"]["code"] for _, answer in answers]
    assert codes.count("context_length_exceeded") == 3
    assert slowest < 5  # not a measurement: it would be the time of all of them
