"""No request gives a 5xx or ends the server: bodies of any values, of nearly right ones, and bytes that are none."""

from __future__ import annotations

import http.client
import json
import math
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mini_infer.server.messages_schemas import CountTokensRequest, MessagesRequest
from mini_infer.server.schemas import UNSUPPORTED, ChatCompletionRequest, ChatMessage, CompletionRequest
from mini_infer.server.tokenize import DetokenizeRequest, TokenizeChat, TokenizePrompt
from tests.server.running import Running

FEW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

ODD = st.sampled_from([
    None, True, False, 0, 1, -1, 2, 10**30, -(2**63), 2**63, 1.5, -0.0, 1e308, 5e-324, math.nan, math.inf, -math.inf,
    "", "a", "\x00", "\ud800", "\U0001f600", "<|im_end|>", "{{ 7 * 7 }}", "x" * 3000, [], [[]], [None], {}, {"": None},
    {"type": "text"}, {"type": "text", "text": "a"}, {"type": "json_object"}, {"regex": "("}, {"choice": ["a", "b"]}])
ANY = st.recursive(ODD | st.text(max_size=5) | st.integers() | st.floats(),
                   lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.sampled_from(
                       ["type", "text", "role", "content", "name", "function", "index", "id"]), inner, max_size=3),
                   max_leaves=8)
TEXT = st.text(max_size=12) | st.sampled_from(["hello", "the quick brown fox"])


def mostly(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What passes, nine times of ten, so that what lies behind is reached."""
    return st.integers(0, 9).flatmap(lambda draw: ANY if draw > 8 else usual)


MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant"]), "content": mostly(TEXT)},
    optional={"name": TEXT, "refusal": st.none(), "type": st.just("text")})
ODD_MESSAGE = st.fixed_dictionaries({}, optional=dict.fromkeys(ChatMessage.model_fields, ANY))
FUNCTION = st.fixed_dictionaries({"name": TEXT}, optional={"parameters": ANY, "description": ANY, "strict": ANY})
USUAL: dict[str, st.SearchStrategy[Any]] = {
    "messages": mostly(st.lists(mostly(MESSAGE), min_size=1, max_size=4) | st.lists(ODD_MESSAGE, max_size=2)),
    "prompt": mostly(TEXT | st.lists(TEXT, max_size=3) | st.lists(st.integers(0, 300), max_size=5)),
    "tokens": mostly(st.lists(st.integers(0, 300), max_size=5)),
    "max_tokens": mostly(st.integers(1, 20)),
    "stop": mostly(TEXT | st.lists(TEXT, max_size=3)),
    "logit_bias": st.dictionaries(st.integers(-1, 500).map(str) | TEXT, st.floats() | st.integers(), max_size=3),
    "tools": st.lists(st.fixed_dictionaries({"type": st.just("function"), "function": FUNCTION}), max_size=2),
    "chat_template_kwargs": mostly(st.dictionaries(TEXT, ANY, max_size=2)),
    "stream": mostly(st.booleans()),
    "stream_options": st.fixed_dictionaries({}, optional={"include_usage": st.booleans()}),
    "model": mostly(st.sampled_from(["dry", "small"])),
    "n": mostly(st.integers(1, 4)),
    "timeout": st.sampled_from([100, None, 0, -1, math.nan, math.inf, "a", []]),  # a short one may end in a 504
}
NUMBERS = mostly(st.floats(0, 1) | st.integers(-2, 5) | st.booleans())


def bodies(required: tuple[str, ...], fields: Any, extra: tuple[str, ...] = ()) -> st.SearchStrategy[dict[str, Any]]:
    """A few fields of a model: some as they should be, some as nobody would send them."""
    optional = {name: USUAL.get(name, NUMBERS) for name in (*fields, *extra) if name not in required}
    few = st.lists(st.sampled_from(sorted(optional)), max_size=3, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: optional[name] for name in names}))
    must = st.fixed_dictionaries({name: USUAL[name] for name in required})
    return st.tuples(must, few).map(lambda parts: {**parts[0], **parts[1]})


REQUESTS = st.one_of(
    st.tuples(st.just("/v1/chat/completions"), bodies(("messages", "max_tokens"),
                                                      ChatCompletionRequest.model_fields, ("bogus", *UNSUPPORTED))),
    st.tuples(st.just("/v1/completions"), bodies(("prompt",), CompletionRequest.model_fields, ("bogus", *UNSUPPORTED))),
    st.tuples(st.just("/v1/messages"), bodies(("messages", "max_tokens"), MessagesRequest.model_fields)),
    st.tuples(st.just("/v1/messages/count_tokens"), bodies(("messages",), CountTokensRequest.model_fields)),
    st.tuples(st.just("/tokenize"), bodies(("prompt",), TokenizePrompt.model_fields)),
    st.tuples(st.just("/tokenize"), bodies(("messages",), TokenizeChat.model_fields)),
    st.tuples(st.just("/detokenize"), bodies(("tokens",), DetokenizeRequest.model_fields)),
)
PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/tokenize", "/detokenize"]


@pytest.fixture
def connection(server: Running) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    yield connection
    connection.close()


def send(connection: http.client.HTTPConnection, path: str, body: bytes, content_type: str = "application/json",
         method: str = "POST") -> None:
    """Whatever it answers is in the form that it should have, and is no fault of the server's."""
    connection.request(method, path, body, {"Content-Type": content_type})
    try:
        response = connection.getresponse()
        text = response.read().decode()
    except (OSError, http.client.HTTPException):
        connection.close()  # or the next example would fail for this one's sake
        raise
    assert response.status in (200, 400, 404, 405, 413), text
    if response.headers["content-type"].startswith("text/event-stream"):
        assert '"error"' not in text
        return
    answer = json.loads(text)
    if response.status == 200:
        return
    if path.startswith("/v1/messages"):
        assert answer["type"] == "error" and set(answer["error"]) == {"type", "message"}
    else:
        assert set(answer["error"]) == {"message", "type", "param", "code"}
    message = answer["error"]["message"]
    assert 0 < len(message) < 1500 and "Traceback" not in message and " at 0x" not in message
    assert "/home/" not in message and ".py" not in message


@FEW
@given(request=REQUESTS, ascii_only=st.booleans())
def test_values(connection: http.client.HTTPConnection, request: tuple[str, dict[str, Any]], ascii_only: bool) -> None:
    path, body = request
    send(connection, path, json.dumps(body, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"))


@FEW
@given(path=st.sampled_from(PATHS), seed=st.integers(0), flips=st.integers(0, 6), body=bodies(
    ("messages",), ChatCompletionRequest.model_fields), content_type=st.sampled_from([
        "application/json", "application/json; charset=latin-1", "application/x+json", "text/plain", "", "a/b/c",
        "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"]))
def test_bytes(connection: http.client.HTTPConnection, path: str, seed: int, flips: int, body: dict[str, Any],
               content_type: str) -> None:
    """JSON that was hurt on the way: bytes changed, removed, doubled, keys given twice."""
    data = bytearray(json.dumps(body).encode())
    chance = random.Random(seed)
    for _ in range(flips):
        place = chance.randrange(len(data))
        how = chance.randrange(4)
        if how == 0:
            data[place] = chance.randrange(256)
        elif how == 1:
            del data[place : place + chance.randrange(1, 9)]
        elif how == 2:
            data[place:place] = data[place : place + chance.randrange(1, 30)]
        else:
            data[place:place] = chance.choice([b'"', b"\\ud800", b"\\u0000", b"[[[[", b"1e999", b"-", b"NaN", b"\xff"])
        if not data:
            data += b"{"
    send(connection, path, bytes(data), content_type)


def test_the_server_is_as_before(server: Running) -> None:
    assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 1})[0] == 200
    server.eventually("num_requests_running", 0)
    server.eventually("kv_cache_usage_perc", 0)
    assert server.process.poll() is None and not [line for line in server.log if "Traceback" in line]
