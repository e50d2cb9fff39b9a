"""Fields of requests that answers show: token ids, an echo alone, names for requests, and what has no effect."""

from __future__ import annotations

from typing import Any

import pytest

from mini_infer.server.schemas import UNSUPPORTED
from tests.server.running import Running
from tests.server.test_streams import events, open_stream

CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 20, "seed": 3}
TEXT = {"prompt": ["hello world", "the dog"], "max_tokens": 20, "seed": 3}


def decoded(server: Running, token_ids: list[int]) -> str:
    return server.post("/detokenize", {"tokens": token_ids})[1]["prompt"]


class TestTokenIds:
    @pytest.mark.parametrize("more", [{}, {"stop": ["zzz"]}, {"logprobs": False, "n": 2}], ids=str)
    def test_of_a_chat(self, server: Running, more: dict[str, Any]) -> None:
        body = {**CHAT, **more, "return_token_ids": True}
        _, whole = server.post("/v1/chat/completions", body)
        assert whole["prompt_token_ids"] == server.post("/tokenize", {"messages": CHAT["messages"]})[1]["tokens"]
        ids: dict[int, list[int]] = {}
        *chunks, _ = events(open_stream(server, body))
        assert [chunk.get("prompt_token_ids") for chunk in chunks] == \
            [whole["prompt_token_ids"], *[None] * (len(chunks) - 1)]
        for chunk in chunks:
            [choice] = chunk["choices"]
            ids.setdefault(choice["index"], []).extend(choice.get("token_ids", []))
        for choice in whole["choices"]:
            assert ids[choice["index"]] == choice["token_ids"] and len(choice["token_ids"]) == 20
            assert decoded(server, choice["token_ids"]) == choice["message"]["content"]

    def test_of_plain_completions(self, server: Running) -> None:
        body = {**TEXT, "return_token_ids": True}
        _, whole = server.post("/v1/completions", body)
        ids: dict[int, list[int]] = {0: [], 1: []}
        prompts: dict[int, list[int]] = {}
        for chunk in events(open_stream(server, body, "/v1/completions"))[:-1]:
            [choice] = chunk["choices"]
            if "prompt_token_ids" in choice:
                assert choice["index"] not in prompts
                prompts[choice["index"]] = choice["prompt_token_ids"]
            ids[choice["index"]] += choice["token_ids"]
        for choice, prompt in zip(whole["choices"], TEXT["prompt"]):
            assert decoded(server, choice["prompt_token_ids"]) == prompt
            assert decoded(server, choice["token_ids"]) == choice["text"]
            assert prompts[choice["index"]] == choice["prompt_token_ids"]
            assert ids[choice["index"]] == choice["token_ids"]

    def test_not_unless_asked_for(self, server: Running) -> None:
        assert "token_ids" not in str(server.post("/v1/chat/completions", CHAT)[1])
        assert "token_ids" not in str(server.post("/v1/completions", TEXT)[1])


def test_an_echo_alone(server: Running) -> None:
    body = {**TEXT, "max_tokens": 0, "echo": True}
    _, whole = server.post("/v1/completions", body)
    by_its_other_name = {**body, "max_tokens": None, "max_completion_tokens": 0}
    assert server.post("/v1/completions", by_its_other_name)[1]["choices"] == whole["choices"]
    assert [choice["text"] for choice in whole["choices"]] == TEXT["prompt"]
    assert whole["usage"]["completion_tokens"] == 0 and {c["finish_reason"] for c in whole["choices"]} == {"length"}
    texts = ["", ""]
    for chunk in events(open_stream(server, body, "/v1/completions"))[:-1]:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == TEXT["prompt"]


@pytest.mark.parametrize("path, prefix, body", [("/v1/chat/completions", "chatcmpl", CHAT),
                                                ("/v1/completions", "cmpl", TEXT)], ids=["chat", "text"])
def test_names_of_requests(server: Running, path: str, prefix: str, body: dict[str, Any]) -> None:
    for _ in range(2):
        assert server.post(path, {**body, "request_id": "mine"})[1]["id"] == f"{prefix}-mine"
    first, second = (server.post(path, body)[1]["id"] for _ in range(2))
    assert first != second


@pytest.mark.parametrize("body", [
    {"user": "u", "metadata": {"a": "b"}, "store": False, "safety_identifier": "s", "prompt_cache_key": "k"},
    {"prompt_cache_retention": "24h", "service_tier": "auto", "use_beam_search": False},
    {"prompt_cache_options": {"mode": "implicit", "ttl": "30m"}},
    {"spaces_between_special_tokens": True, "response_format": {"type": "text"}, "request_id": "r", "timeout": 100},
], ids=str)
def test_what_has_no_effect(server: Running, body: dict[str, Any]) -> None:
    for path, request in (("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)):
        plain, with_more = (server.post(path, {**request, **more}) for more in ({}, body))
        assert with_more[0] == 200 and with_more[1]["choices"] == plain[1]["choices"]


@pytest.mark.parametrize("message", [
    {"role": "user", "content": "hello", "name": "Mia"}, {"role": "user", "content": "hello", "type": "text"},
    {"role": "assistant", "content": "hello", "reasoning": "hm", "reasoning_content": "hm", "refusal": "",
     "tool_calls": [], "annotations": [], "audio": None, "function_call": None},
    {"role": "assistant", "refusal": "hello"}, {"role": "assistant", "content": "", "refusal": "hello"},
    {"role": "tool", "content": "hello", "tool_call_id": "a"}], ids=str)
def test_what_a_message_says(server: Running, message: dict[str, Any]) -> None:
    """To a template that reads no more than roles, content and calls; a refusal is the content."""
    plain = {"role": message["role"], "content": "hello"}
    ids = [server.post("/tokenize", {"messages": [one]})[1]["tokens"] for one in (plain, message)]
    assert ids[0] == ids[1]


def test_streams_have_no_obfuscation(server: Running) -> None:
    body = {**CHAT, "stream_options": {"include_obfuscation": False}}
    assert "obfuscation" not in str(events(open_stream(server, body)))


def test_two_names_of_one_thing(server: Running) -> None:
    answers = [server.post("/v1/completions", {"prompt": "a", "seed": 1, **body})[1]["choices"] for body in (
        {"max_tokens": 7}, {"max_completion_tokens": 7}, {"max_tokens": 7, "max_completion_tokens": 7},
        {"max_tokens": 7, "best_of": 1, "suffix": ""})]
    assert answers == [answers[0]] * 4


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_what_is_known_and_refused_says_why(server: Running, name: str) -> None:
    for value in (1, None, {}):
        status, answer = server.post("/v1/chat/completions", {**CHAT, name: value})
        assert status == 400 and answer["error"]["param"] == name
        assert answer["error"]["message"] == f"{name} is not supported: {UNSUPPORTED[name]}"
