"""Bad input at the HTTP door: 400 with OpenAI's error body naming the field, and the server goes on."""

from __future__ import annotations

import http.client
import json
from typing import Any

import pytest

from tests.server.running import Running

MESSAGES = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}

COMPLETIONS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [""]}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": {"text": "a"}}, "prompt"),
    ({"prompt": ["a", 5]}, "prompt[1]"),
    ({"prompt": [1.5]}, "prompt[0]"),
    ({"prompt": [True]}, "prompt[0]"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [10**6]}, "prompt"),
    ({"prompt": [10**30]}, "prompt"),
    ({"prompt": [5] * 512}, "prompt"),
    ({"prompt": "hello " * 2000}, "prompt"),
    ({"prompt": "\ud800"}, "prompt"),
    ({"prompt": ["a"] * 600, "n": 2}, "prompt"),
    ({}, "prompt"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
    ({"prompt": "a", "max_tokens": 1.5}, "max_tokens"),
    ({"prompt": "a", "max_tokens": "5"}, "max_tokens"),
    ({"prompt": "a", "max_tokens": 512}, "max_tokens"),
    ({"prompt": "a", "max_tokens": 10**30}, "max_tokens"),
    ({"prompt": "a", "n": 0}, "n"),
    ({"prompt": "a", "n": 1000}, "n"),
    ({"prompt": "a", "n": True}, "n"),
    ({"prompt": "a", "temperature": -0.1}, "temperature"),
    ({"prompt": "a", "temperature": float("nan")}, "temperature"),
    ({"prompt": "a", "temperature": float("inf")}, "temperature"),
    ({"prompt": "a", "temperature": "hot"}, "temperature"),
    ({"prompt": "a", "top_p": 0}, "top_p"),
    ({"prompt": "a", "top_p": 1.1}, "top_p"),
    ({"prompt": "a", "top_k": -2}, "top_k"), ({"prompt": "a", "top_k": 2**64}, "top_k"),
    ({"prompt": "a", "min_p": 2}, "min_p"),
    ({"prompt": "a", "presence_penalty": 3}, "presence_penalty"),
    ({"prompt": "a", "frequency_penalty": -3}, "frequency_penalty"),
    ({"prompt": "a", "repetition_penalty": 0}, "repetition_penalty"),
    ({"prompt": "a", "seed": 2**63}, "seed"),
    ({"prompt": "a", "seed": 0.5}, "seed"),
    ({"prompt": "a", "stop": ""}, "stop"),
    ({"prompt": "a", "stop": [""]}, "stop"),
    ({"prompt": "a", "stop": [1]}, "stop[0]"),
    ({"prompt": "a", "min_tokens": 17}, "min_tokens"),
    ({"prompt": "a", "stop_token_ids": [-1]}, "stop_token_ids"),
    ({"prompt": "a", "stop_token_ids": [10**6]}, "stop_token_ids"),
    ({"prompt": "a", "allowed_token_ids": []}, "allowed_token_ids"),
    ({"prompt": "a", "allowed_token_ids": [10**6]}, "allowed_token_ids"),
    ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
    ({"prompt": "a", "logit_bias": {"5": 101}}, "logit_bias"),
    ({"prompt": "a", "logit_bias": {"5": 1}}, "logit_bias"),  # a dry run has no logits
    ({"prompt": "a", "logprobs": 1}, "logprobs"),
    ({"prompt": "a", "logprobs": 21}, "logprobs"),
    ({"prompt": "a", "logprobs": True}, "logprobs"),
    ({"prompt": "a", "echo": True, "logprobs": 1, "n": 2}, "n"),
    ({"prompt": "a", "prompt_logprobs": 1}, "prompt_logprobs"),
    ({"prompt": "a", "bad_words": ["x"]}, "bad_words"),
    ({"prompt": "a", "stream": "yes"}, "stream"),
    ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options"),
    ({"prompt": "a", "stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ({"prompt": "a", "priority": 2**31}, "priority"),
    ({"prompt": "a", "priority": 1}, "priority"),  # the server's policy is fcfs
    ({"prompt": "a", "cache_salt": 5}, "cache_salt"),
    ({"prompt": "a", "response_format": {"type": "json_object"}}, "response_format"),  # made-up words are no JSON
    ({"prompt": "a", "response_format": {"type": "yaml"}}, "response_format.type"),
    ({"prompt": "a", "guided_json": {}}, "guided_json"),
    ({"prompt": "a", "suffix": "b"}, "suffix"),
    ({"prompt": "a", "max_completion_tokens": 5, "max_tokens": 6}, "max_tokens"),
    ({"prompt": "a", "echo": True, "max_completion_tokens": 0, "max_tokens": 1}, "max_tokens"),
    ({"prompt": "a", "max_completion_tokens": 0}, "max_completion_tokens"),
    ({"prompt": "a", "max_completion_tokens": -1, "echo": True}, "max_completion_tokens"),
    ({"prompt": "a", "max_completion_tokens": 512}, "max_completion_tokens"),
    ({"prompt": [5] * 505}, "max_tokens"),  # 16 by default
    ({"prompt": "a", "stream": True, "stream_options": {"include_obfuscation": True}},
     "stream_options.include_obfuscation"),
    ({"prompt": "a", "prompt_cache_options": {"mode": "explicit"}}, "prompt_cache_options.mode"),
    ({"prompt": "a", "max_tokens": 0, "stream_options": None}, "max_tokens"),
    ({"prompt": "a", "use_beam_search": True}, "use_beam_search"),
    ({"prompt": "a", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    ({"prompt": "a", "n": 100, "allowed_token_ids": [5] * 60_000}, "allowed_token_ids"),
    ({"prompt": "a", "best_of": 2}, "best_of"),
    ({"prompt": "a", "store": True}, "store"),
    ({"prompt": "a", "bogus": 1}, "bogus"),
    ({"prompt": "a", "bogus": None}, "bogus"),
]
CHATS: list[tuple[dict[str, Any], str]] = [
    ({}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"content": "a"}]}, "messages[0].role"),
    ({"messages": [{"role": "wizard", "content": "a"}]}, "messages[0].role"),
    ({"messages": [*MESSAGES, {"role": "user"}]}, "messages[1].content"),
    ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant", "refusal": ""}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant", "content": "a", "refusal": "b"}]}, "messages[0].refusal"),
    ({"messages": [{"role": "assistant", "content": "a", "reasoning": "b", "reasoning_content": "c"}]},
     "messages[0].reasoning"),
    *(({"messages": [*MESSAGES, {"role": role, "content": "a", name: value}]}, f"messages[1].{name}")
      for name, value, its_role in (("tool_calls", [CALL], "assistant"), ("tool_call_id", "a", "tool"),
                                    ("refusal", "a", "assistant"), ("reasoning", "a", "assistant"),
                                    ("reasoning_content", "a", "assistant"))
      for role in ("system", "developer", "user", "assistant", "tool") if role != its_role),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "a", "mood": "x"}]}, "messages[0].mood"),
    ({"messages": [*MESSAGES, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
     "messages[1].content[0].type"),
    ({"messages": [{"role": "user", "content": "hello " * 2000}]}, "messages"),
    ({"messages": [{"role": "user", "content": "hello " * 2000}], "max_tokens": 5}, "messages"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_completion_tokens": 9999}, "max_completion_tokens"),
    ({"max_tokens": 9999, "max_completion_tokens": 9999}, "max_tokens"),
    ({"logprobs": True}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"timeout": 0}, "timeout"),
    ({"reasoning_effort": "enormous"}, "reasoning_effort"),
    ({"moderation": {}}, "moderation"),
    ({"thinking": {}}, "thinking"),
    ({"messages": [{"role": "user", "content": "a", "type": "image"}]}, "messages[0].type"),
    ({"messages": [{"role": "user", "content": "a", "audio": {"id": "a"}}]}, "messages[0].audio"),
    ({"logprobs": 1}, "logprobs"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    ({"tools": [TOOL], "parallel_tool_calls": False}, "parallel_tool_calls"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
    *(({"tools": [TOOL, {"type": "function", "function": {"name": name}}]}, "tools[1].function.name")
      for name in ("", "two words", "f.g", "é", "f\n", "f" * 65)),
    ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, "tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"documents": [{"title": "a"}]}, "documents"),  # the template does not read them
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_object", "json_schema": {"schema": {}}}}, "response_format.json_schema"),
    ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs"),
    ({"structured_outputs": {"choice": [5]}}, "structured_outputs.choice[0]"),
    ({"structured_outputs": {"whitespace": 1}}, "structured_outputs.whitespace"),
    ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
    ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ({"modalities": ["text", "audio"]}, "modalities[1]"),
    ({"audio": {"voice": "a"}}, "audio"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"continue_final_message": True}, "continue_final_message"),
    ({"chat_template_kwargs": 5}, "chat_template_kwargs"),
    ({"echo": True}, "echo"),
]


def check(server: Running, path: str, body: dict[str, Any], field: str) -> None:
    for stream in (False, True):
        status, answer = server.post(path, {**body, "stream": True} if stream and "stream" not in body else body)
        assert status == 400, answer
        error = answer["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        assert error["param"] == field and "Traceback" not in error["message"], error
        assert 5 < len(error["message"]) < 500
        assert field in error["message"] or error["code"] == "context_length_exceeded"


@pytest.mark.parametrize("body, field", COMPLETIONS, ids=lambda value: json.dumps(value)[:60])
def test_completions(server: Running, body: dict[str, Any], field: str) -> None:
    if field == "stream_options":  # this one is about not streaming
        assert server.post("/v1/completions", body)[1]["error"]["param"] == field
    else:
        check(server, "/v1/completions", body, field)


@pytest.mark.parametrize("body, field", CHATS, ids=lambda value: json.dumps(value)[:60])
def test_chat(server: Running, body: dict[str, Any], field: str) -> None:
    body = body if not body or "messages" in body else {"messages": MESSAGES, **body}
    check(server, "/v1/chat/completions", body, field)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b"null", b'"text"', b"\xff\xfe", b'{"prompt": "a"',
                                  b"[" * 100_000], ids=lambda body: repr(body[:20]))
def test_bodies_that_are_no_object(server: Running, body: bytes) -> None:
    for path in ("/v1/completions", "/v1/chat/completions"):
        status, answer = server.post(path, body)
        assert status == 400 and set(answer["error"]) == {"message", "type", "param", "code"}


def test_null_is_absent(server: Running) -> None:
    body = {"prompt": "a", "stop": None, "seed": None, "n": None, "temperature": None, "stream_options": None,
            "response_format": {"type": "text"}}
    assert server.post("/v1/completions", body)[0] == 200


def test_a_context_that_is_too_long_says_so_as_openai_does(server: Running) -> None:
    for body in ({"prompt": [5] * 600}, {"prompt": "a", "max_tokens": 600}):
        error = server.post("/v1/completions", body)[1]["error"]
        assert error["code"] == "context_length_exceeded"
        assert error["message"].startswith("This model's maximum context length is 512 tokens")


def test_unknown_routes_and_methods(server: Running) -> None:
    for method, path, expected in [("GET", "/nothing", 404), ("GET", "/v1/completions", 405),
                                   ("GET", "/v1/models/none", 404), ("POST", "/v1/models", 405)]:
        status, answer = server.send(method, path)
        assert status == expected and set(answer["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("body, text", [
    ({"stop_sequences": [""]}, "stop_sequences must be"),
    ({"stop_sequences": ["a" * 5000]}, "stop_sequences has an entry of 5000 characters"),
    ({"max_tokens": 0}, "max_tokens must be"),
    ({"max_tokens": 9999}, "Please lower max_tokens"),
    ({"messages": [{"role": "user", "content": "hello " * 2000}]}, "Please shorten the prompt"),
    ({"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "a"}]}]},
     "messages[0].content[0].type: only a message of the role assistant has"),
    ({"messages": [*MESSAGES, {"role": "user", "content": [
        {"type": "text", "text": "a"}, {"type": "tool_use", "id": "a", "name": "f", "input": {}}]}]},
     "messages[1].content[1].type: only a message of the role assistant has"),
    ({"messages": [{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "a"}]}]},
     "messages[0].content[0].type: only a message of the role user has"),
    ({"tools": [{"name": "f", "input_schema": {}}] * 2}, "tools[1].name is the name of another tool as well: 'f'"),
    ({"tools": [{"name": "two words", "input_schema": {}}]}, "tools[0].name: "),
    ({"tool_choice": {"type": "tool"}}, "tool_choice.name is for the type tool"),
    ({"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
     "tool_choice.disable_parallel_tool_use cannot be honoured"),
], ids=lambda value: str(value)[:60])
def test_messages_of_anthropics_api(server: Running, body: dict[str, Any], text: str) -> None:
    status, answer = server.post("/v1/messages", {"messages": MESSAGES, "max_tokens": 5, **body})
    assert status == 400 and answer["error"]["type"] == "invalid_request_error" and text in answer["error"]["message"]


def test_what_is_allowed_instead(server: Running) -> None:
    for path, method, allowed in (("/v1/models", "POST", "GET, HEAD"), ("/v1/completions", "GET", "POST"),
                                  ("/v1/completions", "HEAD", "POST")):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request(method, path)
        answer = connection.getresponse()
        assert (answer.status, answer.headers["allow"]) == (405, allowed)
        connection.close()


def test_paths_are_what_they_are(server: Running) -> None:
    """A redirect would name the host that the client says it wants."""
    for path in ("/health/", "/v1/models/", "/v1/completions/", "/web/"):
        status, answer = server.get(path)
        assert status == 404 and set(answer["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", ["/health", "/healthz", "/metrics", "/version", "/v1/models", "/v1/models/dry",
                                  "/v1/models/none", "/openapi.json", "/", "/v1/engine/events", "/v1/completions"])
def test_heads(server: Running, path: str) -> None:
    """The status and headers of a GET, and no body; a stream is not begun."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    for _ in range(2):  # on one connection, so the first has really ended
        connection.request("HEAD", path)
        head = connection.getresponse()
        assert head.read() == b""
    if path != "/v1/engine/events":
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        assert head.status == answer.status and head.headers["content-type"] == answer.headers["content-type"]
        if path != "/metrics":  # it changes all the time
            assert int(head.headers["content-length"]) == len(body)
    connection.close()


def test_the_server_is_as_before(server: Running) -> None:
    assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 1})[0] == 200
    assert server.metric("num_requests_running") == 0
    assert server.get("/health")[0] == 200
