"""What the clients of the storm send: requests whose answers are known, and what nobody should send."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.wire import request_bytes

COMPLETIONS, CHAT, MESSAGES = "/v1/completions", "/v1/chat/completions", "/v1/messages"
MAX_BODY_SIZE = 2**20  # what the server of the storm takes
VOCABULARY = 4096  # of the bundled model
PATIENCE = 5.0  # seconds that a request with something odd in it may take


@dataclass(frozen=True)
class Ask:
    """A request without randomness: whenever it is made, the answer is the same."""

    path: str
    body: dict[str, Any]

    def data(self, stream: bool) -> bytes:
        return request_bytes(self.path, {**self.body, "stream": stream})


def _completion(prompt: Any, **more: Any) -> Ask:
    return Ask(COMPLETIONS, {"prompt": prompt, "temperature": 0, "max_tokens": 24, **more})


def _chat(text: str, **more: Any) -> Ask:
    return Ask(CHAT, {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 40, **more})


def _message(text: str, **more: Any) -> Ask:
    return Ask(MESSAGES, {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 40, **more})


def known_asks() -> list[Ask]:
    """Of every kind: long and short, one choice and several, with whatever changes how an answer is made."""
    ids = random.Random(7)
    person = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
              "required": ["name", "age"], "additionalProperties": False}
    city = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
            "required": ["city"], "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": city}}]
    story = "Once upon a time there was a little girl named Mia who lived in a small house near the forest. " * 12
    return [
        _completion("Once upon a time"), _completion("Once upon a time", n=4), _completion(["One day, Mia", "The cat"]),
        _completion([ids.randrange(10, 3000) for _ in range(300)]), _completion(story, max_tokens=60),
        _completion(story + "One day,", max_tokens=8), _completion("The dog", max_tokens=200, ignore_eos=True),
        _completion("A bird", max_tokens=120, stop=[" and the", "zebra"]), _completion("Mia said", stop="."),
        _completion("The sun", logprobs=3), _completion("The moon", logprobs=1, echo=True, max_tokens=1),
        _completion("Tom had", prompt_logprobs=2), _completion("It was", repetition_penalty=1.3, frequency_penalty=0.5),
        _completion("They went", bad_words=[" to"], logit_bias={"300": 2.5}, min_tokens=10),
        _completion([50, 60, 70], allowed_token_ids=list(range(20, 400, 3)), return_token_ids=True),
        _completion("A number:", structured_outputs={"regex": "[0-9]{3}-[0-9]{4}"}),
        _completion("A colour:", structured_outputs={"choice": ["red", "green", "dark blue"]}),
        _chat("What comes after Monday?"), _chat("What is 27 + 35?", n=2), _chat("Who are you?", logprobs=True),
        _chat("Tell me a story.", max_tokens=150), _chat(story + "Who lived there?"),
        _chat("Name a person.", response_format={"type": "json_schema", "json_schema": {
            "name": "person", "schema": person, "strict": True}}, max_tokens=80),
        _chat("Anything.", response_format={"type": "json_object"}),
        _chat("What is the weather in Oslo?", tools=tools, max_tokens=80,
              tool_choice={"type": "function", "function": {"name": "weather"}}),
        _chat("What is the weather in Rome?", tools=tools, tool_choice="auto", max_tokens=80),
        _message("What comes after Friday?"), _message("Tell me a story.", stop_sequences=[" the"]),
        _message("What is the weather in Oslo?", max_tokens=80, tools=[{"name": "weather", "input_schema": city}],
                 tool_choice={"type": "tool", "name": "weather"}),
    ]


JUNK: list[Any] = [
    None, True, False, 0, -1, 3, 10**30, -(2**63), 1.5, 1e308, "", "a", "1", "\x00", "\U0001f600", "{{ 7 * 7 }}",
    "<|im_end|>", "x" * 5000, [], [[]], [None], ["a"] * 100, [10**6], [-1], [2**70], [VOCABULARY], {}, {"": None},
    {"type": "text"}, {"regex": "("}, {"regex": "(a|b){999999}"}, {"grammar": "start: nothing"}, {"choice": []},
    {"json": {"$ref": "http://127.0.0.1/x"}}, {"type": "json_schema"}, {"0": "a"}, [{"type": "function"}]]
FIELDS = ("max_tokens", "n", "stop", "logprobs", "top_logprobs", "temperature", "top_p", "top_k", "seed", "stream",
          "stream_options", "logit_bias", "allowed_token_ids", "bad_words", "structured_outputs", "response_format",
          "tools", "tool_choice", "messages", "prompt", "model", "echo", "priority", "cache_salt", "request_id",
          "chat_template", "no_such_field", "prompt_logprobs", "stop_token_ids", "timeout", "user", "metadata")


def odd_request(asks: list[Ask], chance: random.Random) -> tuple[str, bytes]:
    """A request that should have been another: its path, and its bytes. It may turn out to be a good one."""
    ask = chance.choice(asks)
    body = dict(ask.body)
    if ask.path != MESSAGES:  # which has no such field
        body["timeout"] = PATIENCE
    for _ in range(chance.choice((1, 1, 2))):
        body[chance.choice((*FIELDS, *body))] = chance.choice(JUNK)
    return ask.path, request_bytes(ask.path, body)


def bad_body(chance: random.Random) -> tuple[int, bytes]:
    """A request in good HTTP whose body can never do, and the status that it gets."""
    deep = b"[" * 5000 + b"]" * 5000
    ids = chance.choice((-1, VOCABULARY, 10**6, 2**31, 2**64))
    status, body = chance.choice((
        (400, b"{"), (400, b""), (400, b"null"), (400, b"[1, 2]"), (400, b'{"prompt": "a",}'), (400, b"\x80" * 100),
        (400, b'{"prompt": NaN}'), (400, b'{"prompt": ' + deep + b"}"), (400, deep), (400, b'{"prompt": "\xff\xfe"}'),
        (400, b'{"prompt": "\\ud800"}'), (400, b'{"prompt": "a", "seed": ' + b"9" * 6000 + b"}"),
        (400, b'{"prompt": [' + b"{}," * 30_000 + b"1]}"), (400, b'{"prompt": [%d]}' % ids), (400, b'{"prompt": []}'),
        (400, b'{"prompt": "a", "max_tokens": 100000}'), (400, b'{"prompt": "' + b"word " * 20_000 + b'"}'),
        (404, b'{"prompt": "a", "model": "another"}'), (400, b'{"prompt": "a", "n": 1000000}'),
        (413, b'{"prompt": "' + b"x" * MAX_BODY_SIZE + b'"}'), (413, b" " * (2 * MAX_BODY_SIZE))))
    if chance.random() < 0.3:
        return status, _chunked(body, chance)
    return status, _head(b"Content-Length: %d" % len(body)) + body


def _head(*lines: bytes, start: bytes = b"POST /v1/completions HTTP/1.1") -> bytes:
    return b"\r\n".join((start, b"Host: x", b"Content-Type: application/json", *lines, b"", b""))


def _chunked(body: bytes, chance: random.Random) -> bytes:
    size = chance.choice((7, 4096, 2**18)) if len(body) < 10_000 else 2**18
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    return _head(b"Transfer-Encoding: chunked") + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) \
        + b"0\r\n\r\n"


def _noise(chance: random.Random) -> bytes:
    return chance.randbytes(chance.randrange(1, 3000))


GOOD = b'{"prompt": "a", "max_tokens": 2}'
NOT_HTTP: tuple[Callable[[random.Random], bytes], ...] = (  # after these the connection is of no use
    _noise,
    lambda chance: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + _noise(chance),  # the beginning of TLS
    lambda chance: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    lambda chance: b"GET / HTTP/9.9\r\n\r\n",
    lambda chance: b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
    lambda chance: b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 200 + b"\r\n",
    lambda chance: b"GET / HTTP/1.1\r\nno colon here\r\n\r\n",
    lambda chance: _head(b"Content-Length: -1") + GOOD,
    lambda chance: _head(b"Content-Length: ten") + GOOD,
    lambda chance: _head(b"Content-Length: 32", b"Content-Length: 5") + GOOD,
    lambda chance: _head(b"Content-Length: " + b"9" * 40) + GOOD,
    lambda chance: _head(b"Content-Length: 32", b"Transfer-Encoding: chunked") + GOOD,
    lambda chance: _head(b"Transfer-Encoding: chunked") + b"zz\r\n" + GOOD,
    lambda chance: _head(b"Transfer-Encoding: chunked") + b"ffffffffffffffffffff\r\n" + GOOD,
    lambda chance: _head(b"Transfer-Encoding: chunked") + b"5\r\n" + GOOD,
    lambda chance: _head(b"Content-Length: 32")[:-20],
    lambda chance: _head(b"Content-Length: 32") + GOOD[:-5],
    lambda chance: _head(b"Content-Length: 32") + GOOD + _noise(chance),
)
