"""Other clients, harnesses and load tools: the libraries themselves, or the requests that they are known to send."""

from __future__ import annotations

import json
import os
from typing import Any, ClassVar

import httpx
import pytest

from tests.server.running import Running

HI = [{"role": "user", "content": "hello"}]


class TestLiteLLM:
    @pytest.fixture
    def options(self, server: Running) -> dict[str, Any]:
        os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it would fetch one when imported
        return {"model": "openai/dry", "api_base": server.url + "/v1", "api_key": "none", "messages": HI,
                "max_tokens": 8, "temperature": 0}

    def test_whole_and_stream(self, options: dict[str, Any]) -> None:
        import litellm

        whole = litellm.completion(**options)
        pieces = list(litellm.completion(**options, stream=True, stream_options={"include_usage": True}))
        text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
        assert text == whole.choices[0].message.content and whole.usage.completion_tokens == 8

    def test_text_completion_and_error(self, options: dict[str, Any]) -> None:
        import litellm

        given = {key: options[key] for key in ("api_base", "api_key", "max_tokens")}
        answer = litellm.text_completion(model="text-completion-openai/dry", prompt="hello", **given)
        assert answer.choices[0].text
        with pytest.raises(litellm.ContextWindowExceededError):
            litellm.completion(**{**options, "messages": [{"role": "user", "content": "hello " * 2000}]})


class TestLangChain:
    @pytest.fixture
    def chat(self, server: Running) -> Any:
        from langchain_openai import ChatOpenAI

        return ChatOpenAI(model="dry", base_url=server.url + "/v1", api_key="none", max_retries=0, temperature=0,
                          max_tokens=8, seed=1, timeout=20)  # type: ignore[call-arg,arg-type]

    def test_whole_and_stream(self, chat: Any) -> None:
        answer = chat.invoke([("system", "be kind"), ("human", "hello")])
        assert answer.content and answer.usage_metadata["output_tokens"] == 8
        assert answer.response_metadata["finish_reason"] == "length"
        assert "".join(piece.content for piece in chat.stream([("system", "be kind"), ("human", "hello")])) == \
            answer.content

    async def test_async_batch_and_an_answer_sent_back(self, chat: Any) -> None:
        first, second = await chat.abatch(["hello", "world"])
        assert first.content != second.content
        assert (await chat.ainvoke([("human", "hello"), first, ("human", "go on")])).content


class TestHarness:
    """lm-evaluation-harness, local-completions and local-chat-completions. (What a dry run has no logits for is in
    test_bundled_server.)"""

    def test_generation(self, server: Running) -> None:
        body = {"prompt": [[5, 6, 7], [8, 9]], "model": "dry", "max_tokens": 16, "temperature": 0,
                "stop": ["\n\n", "Question:", "</s>"], "seed": 1234}
        status, answer = server.post("/v1/completions", body)
        assert status == 200 and [choice["index"] for choice in answer["choices"]] == [0, 1]

    def test_chat(self, server: Running) -> None:
        messages = [{"role": "system", "content": "be kind", "type": "text"}, {**HI[0], "type": "text"}]
        body = {"messages": messages, "model": "dry", "max_tokens": 16, "temperature": 0, "stop": ["Q:"], "seed": 1234}
        status, answer = server.post("/v1/chat/completions", body)
        assert status == 200 and answer["choices"][0]["message"]["content"]
        bare = [{key: message[key] for key in ("role", "content")} for message in messages]
        assert server.post("/v1/chat/completions", {**body, "messages": bare})[1]["choices"] == answer["choices"]


def lines(server: Running, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> list[Any]:
    """The events of a stream as load tools read them, without the last."""
    found = []
    with httpx.stream("POST", server.url + path, json=body, headers=headers, timeout=20) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if line:
                found.append(line.removeprefix("data: "))
    assert found.pop() == "[DONE]"
    return [json.loads(line) for line in found]


class TestVllmBenchServe:
    COMMON: ClassVar[dict[str, Any]] = {"model": "dry", "stream": True, "stream_options": {"include_usage": True},
                                        "ignore_eos": True}

    def test_completions(self, server: Running) -> None:
        body = {**self.COMMON, "prompt": "hello", "repetition_penalty": 1.0, "max_tokens": 20, "logprobs": None}
        *chunks, usage = lines(server, "/v1/completions", body, {"x-request-id": "bench-0"})
        assert all(chunk["choices"] for chunk in chunks) and usage["choices"] == []
        assert usage["usage"]["completion_tokens"] == 20 and usage["usage"]["prompt_tokens"] > 0
        assert chunks[0]["id"] == "cmpl-bench-0"

    def test_chat(self, server: Running) -> None:
        body = {**self.COMMON, "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
                "max_completion_tokens": 20, "temperature": 0.0}
        *chunks, usage = lines(server, "/v1/chat/completions", body, {"x-request-id": "bench-0"})  # ids may repeat
        assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
        assert usage["usage"]["completion_tokens"] == 20

    def test_what_it_asks_first(self, server: Running) -> None:
        assert server.get("/v1/models")[1]["data"][0]["id"] == "dry"
        assert server.get("/health")[0] == 200


class TestGuideLLM:
    @pytest.mark.parametrize("names", [("max_tokens",), ("max_tokens", "max_completion_tokens")], ids=str)
    def test_completions(self, server: Running, names: tuple[str, ...]) -> None:
        body = {"model": "dry", "prompt": "hello", "stream": True, "stop": None, "ignore_eos": True,
                "stream_options": {"include_usage": True, "continuous_usage_stats": True}, **dict.fromkeys(names, 20)}
        chunks = lines(server, "/v1/completions", body)
        assert chunks[-1]["usage"]["completion_tokens"] == 20

    def test_chat(self, server: Running) -> None:
        body = {"model": "dry", "stream": True, "stop": None, "ignore_eos": True, "max_completion_tokens": 20,
                "stream_options": {"include_usage": True, "continuous_usage_stats": True},
                "messages": [{"role": "system", "content": "be kind"},
                             {"role": "user", "content": [{"type": "text", "text": "hello"}]}]}
        chunks = lines(server, "/v1/chat/completions", body)
        assert chunks[-1]["usage"]["completion_tokens"] == 20


def test_an_answer_goes_back_as_it_came(server: Running) -> None:
    """OpenAI's client sends a message that it got with all of its fields, null ones too."""
    from openai import OpenAI

    client = OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    message = client.chat.completions.create(model="dry", messages=HI, max_tokens=4).choices[0].message  # type: ignore
    everything = message.model_dump()
    assert everything["refusal"] is None and "audio" in everything
    for said in (message, everything):
        client.chat.completions.create(model="dry", messages=[*HI, said, *HI], max_tokens=4)  # type: ignore
