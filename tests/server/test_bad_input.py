"""Bad input at the HTTP door: 400 with OpenAI's error body naming the field, and the server goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.running import Running

MESSAGES = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f"}}

COMPLETIONS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [""]}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": {"text": "a"}}, "prompt"),
    ({"prompt": ["a", 5]}, "prompt"),
    ({"prompt": [1.5]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
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
    ({"messages": [{"role": "user"}]}, "messages"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "a", "mood": "x"}]}, "messages[0].mood"),
    ({"messages": [*MESSAGES, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
     "messages[1].content[0].type"),
    ({"messages": [{"role": "user", "content": "hello " * 2000}]}, "prompt"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_tokens"),
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
        assert (error["param"] or "").startswith(field), error
        assert 5 < len(error["message"]) < 500 and "Traceback" not in error["message"]


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


def test_the_server_is_as_before(server: Running) -> None:
    assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 1})[0] == 200
    assert server.metric("num_requests_running") == 0
    assert server.get("/health")[0] == 200
