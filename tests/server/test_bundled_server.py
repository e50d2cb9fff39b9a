"""The real engine behind HTTP: the bundled model, and what a dry run has no logits for."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest
from anthropic import Anthropic
from openai import OpenAI

from mini_infer.server.answers import AnswerModel, AnthropicMessage, ChatCompletion, Completion
from tests.server.running import Running

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def bundled() -> Iterator[Running]:
    with Running("--num-kv-blocks", "512") as running:
        yield running


@pytest.fixture(scope="module")
def client(bundled: Running) -> OpenAI:
    return OpenAI(base_url=bundled.url + "/v1", api_key="none", max_retries=0, _strict_response_validation=True)


def lenient(client: OpenAI) -> OpenAI:
    """Without validation: OpenAI's own types forget that the first prompt token's log-probability is null."""
    return OpenAI(base_url=client.base_url, api_key="none", max_retries=0)


MODEL = "mini-infer-demo"
MONDAY = [{"role": "user", "content": "What comes after Monday?"}]


def test_it_answers(client: OpenAI, bundled: Running) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MONDAY, temperature=0, max_tokens=40)
    assert "Tuesday" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert bundled.get("/healthz")[1]["model"] == MODEL
    assert any("weights:" in line for line in bundled.log)


def test_whole_and_stream_agree_with_logprobs(client: OpenAI) -> None:
    options = {"model": MODEL, "messages": MONDAY, "temperature": 0, "max_tokens": 40, "logprobs": True,
               "top_logprobs": 3}
    whole = client.chat.completions.create(**options).choices[0]
    entries = whole.logprobs.content
    streamed = [entry for chunk in client.chat.completions.create(**options, stream=True)
                if chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content]
    assert [entry.token for entry in streamed] == [entry.token for entry in entries]
    for entry in entries:
        assert len(entry.top_logprobs) == 3 and entry.top_logprobs[0].token == entry.token
        assert entry.top_logprobs[0].logprob == entry.logprob <= 0
        values = [top.logprob for top in entry.top_logprobs]
        assert values == sorted(values, reverse=True) and sum(map(math.exp, values)) <= 1.001
        assert bytes(entry.bytes).decode("utf-8", "replace") == entry.token


def test_the_pattern_of_evaluation_harnesses(client: OpenAI) -> None:
    """Batched ids with echo, logprobs=1 and one token: an entry for each token, the first without a value."""
    prompts = [[10, 11, 12, 13, 14], [20, 21, 22]]
    answer = lenient(client).completions.create(model=MODEL, prompt=prompts, max_tokens=1, temperature=0, logprobs=1,
                                                echo=True)
    for prompt, choice in zip(prompts, answer.choices):
        logprobs = choice.logprobs
        lists = (logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset)
        assert {len(values) for values in lists} == {len(prompt) + 1}
        assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
        assert all(value <= 0 for value in logprobs.token_logprobs[1:])
        assert logprobs.token_logprobs[-1] == max(logprobs.top_logprobs[-1].values())
        assert logprobs.text_offset == sorted(logprobs.text_offset) and logprobs.text_offset[0] == 0


def test_streamed_logprobs_go_on_where_they_were(client: OpenAI) -> None:
    client = lenient(client)
    options = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0, "logprobs": 2,
               "echo": True}
    whole = client.completions.create(**options).choices[0].logprobs
    parts = [chunk.choices[0].logprobs for chunk in client.completions.create(**options, stream=True)]
    for name in ("tokens", "text_offset"):
        assert list(chain.from_iterable(getattr(part, name) for part in parts)) == getattr(whole, name)
    assert "".join(whole.tokens).startswith("Once upon a time")


def test_prompt_logprobs(client: OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=1, temperature=0,
                                       extra_body={"prompt_logprobs": 1})
    positions = answer.choices[0].model_extra["prompt_logprobs"]
    assert positions[0] is None and len(positions) == answer.usage.prompt_tokens
    entries = [entry for position in positions[1:] for entry in position.values()]
    assert all(entry["rank"] >= 1 and entry["logprob"] <= 0 for entry in entries)


def test_what_shapes_logits_is_honoured(client: OpenAI) -> None:
    def text(**body: object) -> str:
        answer = client.completions.create(model=MODEL, prompt="Once upon a", max_tokens=3, temperature=0,
                                           extra_body=body)
        return answer.choices[0].text

    plain = text()
    assert plain.startswith(" time")
    assert not text(bad_words=[" time"]).startswith(" time")
    assert text(allowed_token_ids=[11]) == text(logit_bias={"11": 100})


def test_anthropic_s_tools(bundled: Running) -> None:
    client = Anthropic(base_url=bundled.url, api_key="none", max_retries=0, _strict_response_validation=True)
    schema = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
              "required": ["city"], "additionalProperties": False}
    question = {"role": "user", "content": "What is the weather in Oslo?"}
    options = {"model": MODEL, "max_tokens": 100, "tools": [{"name": "weather", "input_schema": schema}],
               "extra_body": {"temperature": 0}}
    called = {**options, "messages": [question], "tool_choice": {"type": "tool", "name": "weather"}}
    answer = client.messages.create(**called)
    assert answer.stop_reason == "tool_use"
    [call] = [block for block in answer.content if block.type == "tool_use"]
    assert call.name == "weather" and call.input["city"] in ("Oslo", "Rome")
    with client.messages.stream(**called) as stream:
        kinds = [event.type for event in stream]
        [streamed] = [block for block in stream.get_final_message().content if block.type == "tool_use"]
    assert (streamed.name, streamed.input) == (call.name, call.input)
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") and "input_json" in kinds
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "rain"}]}
    with_result = [question, {"role": "assistant", "content": answer.content}, result]
    assert client.messages.create(**options, messages=with_result).content
    without = client.messages.count_tokens(model=MODEL, messages=[question]).input_tokens
    assert client.messages.count_tokens(model=MODEL, messages=with_result,
                                        tools=options["tools"]).input_tokens > without


WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
ALL_THERE_IS: dict[str, Any] = {"prompt_logprobs": 2, "return_token_ids": True, "n": 2, "max_tokens": 30}


@pytest.mark.parametrize("path, body, model", [
    ("/v1/chat/completions", {"messages": MONDAY, "logprobs": True, "top_logprobs": 3, **ALL_THERE_IS}, ChatCompletion),
    ("/v1/chat/completions", {"messages": MONDAY, "tools": [{"type": "function", "function": WEATHER}],
                              "tool_choice": "required", "max_tokens": 60}, ChatCompletion),
    ("/v1/completions", {"prompt": ["Once", "One"], "logprobs": 3, **ALL_THERE_IS}, Completion),
    ("/v1/completions", {"prompt": "Once", "logprobs": 0, "echo": True, "max_tokens": 0}, Completion),
    ("/v1/messages", {"messages": MONDAY, "tools": [{"name": "weather", "input_schema": WEATHER["parameters"]}],
                      "tool_choice": {"type": "any"}, "max_tokens": 60}, AnthropicMessage),
], ids=lambda value: value if isinstance(value, str) else "")
def test_the_answers_are_those_of_the_schema(bundled: Running, path: str, body: dict[str, Any],
                                             model: type[AnswerModel]) -> None:
    """Those that a dry run refuses to make up; the others are in test_fuzz.py."""
    status, answer = bundled.post(path, body)
    assert status == 200
    model.model_validate_json(json.dumps(answer), strict=True)
