"""No request gives a 5xx, an answer that /openapi.json does not tell of, or the end of the server."""

from __future__ import annotations

import http.client
import json
import math
import random
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mini_infer.server.messages_schemas import CountTokensRequest, MessagesRequest
from mini_infer.server.schemas import UNSUPPORTED, ChatCompletionRequest, CompletionRequest
from mini_infer.server.tokenize import DetokenizeRequest, TokenizeChat, TokenizePrompt
from tests.server.running import Running

# ---- what the schema says, and what it does not allow ----------------------------------------------------------------

SCHEMATHESIS = """
[checks]
positive_data_acceptance.enabled = false  # rules between two fields are not in the schema
[[operations]]
include-path = "/v1/engine/events"  # a stream without an end
enabled = false
[[operations]]
include-path-regex = "tokens$|/tokenize$"  # the others have all of their fields, too
phases.coverage.enabled = false
[[operations]]
include-path = "/v1/embeddings"
checks.not_a_server_error.expected-statuses = [501, "4xx"]
[[operations]]
include-path-regex = "completions$"
checks.not_a_server_error.expected-statuses = ["2xx", "4xx", 504]  # they have a timeout, which may be short
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("schemathesis") is None, reason="needs schemathesis, which needs Python 3.11")
def test_the_server_does_what_its_schema_says(server: Running, tmp_path: Path) -> None:
    """Requests in accordance with the schema and against it: each status, content type and body of an answer is one
    that the schema has, and what it forbids is refused."""
    config = tmp_path / "schemathesis.toml"
    config.write_text(SCHEMATHESIS)
    run = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "--no-color", "--config-file", config, "run",
         server.url + "/openapi.json", "--phases", "coverage,fuzzing", "--max-examples", "8",
         "--generation-deterministic"],
        capture_output=True, text=True, cwd=tmp_path, timeout=200)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Tested: 13" in run.stdout


@pytest.mark.parametrize("path, required", [
    ("/v1/completions", {"prompt": "a", "ignore_eos": True}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}),
    ("/v1/messages", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1})])
def test_the_limits_in_the_schema_are_the_servers(server: Running, path: str, required: dict[str, Any]) -> None:
    schema = server.get("/openapi.json")[1]
    body = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    fields = schema["components"]["schemas"][body.rpartition("/")[2]]["properties"]
    for name in ("n", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
                 "frequency_penalty", "max_tokens"):
        if name not in fields:
            assert path == "/v1/messages"
            continue
        field = {**fields[name], **fields[name].get("anyOf", [{}])[0]}
        low, high = field.get("minimum"), field.get("maximum")
        if low is not None and name != "max_tokens":
            assert server.post(path, {**required, name: int(low)})[0] == 200
            assert server.post(path, {**required, name: int(low) - 1})[0] == 400
        if high is not None and high < 2**53:  # larger ones are rounded on their way
            assert server.post(path, {**required, name: int(high)})[0] == 200
            assert server.post(path, {**required, name: int(high) + 1})[0] == 400
        assert (low, high) != (None, None) or name == "top_p"


# ---- what no schema has: values that JSON should not have, and bytes that are no JSON --------------------------------

FEW = settings(max_examples=150, deadline=None, derandomize=True, database=None,
               suppress_health_check=[HealthCheck.function_scoped_fixture])
MESSAGES = [{"role": "user", "content": "hello"}]
CHAT = {"messages": MESSAGES, "max_tokens": 3}
Route = tuple[str, dict[str, Any], list[str]]  # a path, a body that passes, the fields that there are
ROUTES: list[Route] = [
    ("/v1/chat/completions", CHAT, [*ChatCompletionRequest.model_fields, "bogus", *UNSUPPORTED]),
    ("/v1/completions", {"prompt": "hello"}, [*CompletionRequest.model_fields, "bogus", *UNSUPPORTED]),
    ("/v1/messages", CHAT, [*MessagesRequest.model_fields]),
    ("/v1/messages/count_tokens", {"messages": MESSAGES}, [*CountTokensRequest.model_fields]),
    ("/tokenize", {"prompt": "hello"}, [*TokenizePrompt.model_fields]),
    ("/tokenize", {"messages": MESSAGES}, [*TokenizeChat.model_fields]),
    ("/detokenize", {"tokens": [5, 6]}, [*DetokenizeRequest.model_fields]),
]
ODD = st.sampled_from([
    None, True, False, 0, 1, -1, 10**30, -(2**63), 2**63, 10**400, -0.0, 1e308, 5e-324, math.nan, math.inf, -math.inf,
    "", "a", "\x00", "\ud800", "\U0001f600", "<|im_end|>", "{{ 7 * 7 }}", "x" * 3000, [], [[]], [None], {}, {"": None},
    {"type": "text"}, {"type": "json_object"}, {"regex": "("}, {"choice": ["a"]},
    [{"role": "user", "content": "\ud800"}]])
ODDER = st.recursive(ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.sampled_from(["type", "text", "role", "content", "name", "function", "id", "\ud800"]), inner, max_size=3),
    max_leaves=6)


def odd_request(route: Route) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """A body that would pass, but for one or two of its fields."""
    path, body, fields = route
    odd = st.dictionaries(st.sampled_from(sorted({*fields} - {"timeout"})), ODDER, min_size=1, max_size=2)
    return odd.map(lambda odd: (path, {**body, **odd}))


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
@given(request=st.sampled_from(ROUTES).flatmap(odd_request), ascii_only=st.booleans())
def test_values(connection: http.client.HTTPConnection, request: tuple[str, dict[str, Any]], ascii_only: bool) -> None:
    path, body = request
    send(connection, path, json.dumps(body, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"))


@FEW
@given(route=st.sampled_from(ROUTES), seed=st.integers(0), flips=st.integers(0, 6), content_type=st.sampled_from([
    "application/json", "application/json; charset=latin-1", "application/x+json", "text/plain", "", "a/b/c",
    "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"]))
def test_bytes(connection: http.client.HTTPConnection, route: Route, seed: int, flips: int,
               content_type: str) -> None:
    """JSON that was hurt on the way: bytes changed, removed, doubled, keys given twice."""
    path, body, _ = route
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
