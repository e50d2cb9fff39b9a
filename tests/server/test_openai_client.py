"""The official client against a dry run, its responses strictly validated."""

from __future__ import annotations

import asyncio

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.server.running import Running

HI = [{"role": "user", "content": "hello"}]


@pytest.fixture
def client(server: Running) -> OpenAI:
    return OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, _strict_response_validation=True)


@pytest.fixture
def lenient(server: Running) -> OpenAI:
    """Without validation, for streams of plain completions: that OpenAI's chunks have a null finish_reason before the
    last one, its own types forget."""
    return OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def aclient(server: Running) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, _strict_response_validation=True)


class TestChat:
    def test_whole(self, client: OpenAI) -> None:
        answer = client.chat.completions.create(model="dry", messages=HI, max_tokens=12, seed=1)
        [choice] = answer.choices
        assert choice.finish_reason == "length" and choice.message.role == "assistant"
        assert choice.message.content and answer.object == "chat.completion"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 12
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12

    def test_stream_is_the_whole_in_pieces(self, client: OpenAI) -> None:
        options = {"model": "dry", "messages": HI, "max_completion_tokens": 40, "seed": 1}
        whole = client.chat.completions.create(**options)
        chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
        *parts, last = chunks
        assert parts[0].choices[0].delta.role == "assistant"
        assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
        assert [part.choices[0].finish_reason for part in parts].count("length") == 1
        assert parts[-1].choices[0].finish_reason == "length"
        assert last.choices == [] and last.usage == whole.usage.model_copy(update={
            "prompt_tokens_details": last.usage.prompt_tokens_details})
        assert all(part.usage is None for part in parts)
        assert len({chunk.id for chunk in chunks}) == 1

    def test_n(self, client: OpenAI) -> None:
        answer = client.chat.completions.create(model="dry", messages=HI, max_tokens=8, n=3)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert len({choice.message.content for choice in answer.choices}) == 3
        assert answer.usage is not None and answer.usage.completion_tokens == 24
        texts = ["", "", ""]
        ends = []
        for chunk in client.chat.completions.create(model="dry", messages=HI, max_tokens=8, n=3, seed=4, stream=True):
            [choice] = chunk.choices
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                ends.append(choice.index)
        assert all(texts) and sorted(ends) == [0, 1, 2]

    def test_tools_reach_the_template(self, client: OpenAI) -> None:
        tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}

        def prompt_tokens(**options: object) -> int:
            answer = client.chat.completions.create(model="dry", messages=HI, max_tokens=1, **options)  # type: ignore
            return answer.usage.prompt_tokens

        assert prompt_tokens(tools=[tool]) == prompt_tokens(tools=[tool], tool_choice="auto") > prompt_tokens()
        assert prompt_tokens(tools=[tool], tool_choice="none") == prompt_tokens()

    def test_a_conversation_with_tool_calls(self, client: OpenAI) -> None:
        call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
        messages = [{"role": "developer", "content": "be brief"}, *HI, {"role": "assistant", "tool_calls": [call]},
                    {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "rain"}]}]
        answer = client.chat.completions.create(model="dry", messages=messages, max_tokens=2)  # type: ignore
        assert answer.choices[0].message.content

    def test_prefix_hits_are_reported(self, client: OpenAI) -> None:
        messages = [{"role": "user", "content": "the quick brown fox " * 20}]
        options = {"model": "dry", "messages": messages, "max_tokens": 1, "extra_body": {"cache_salt": "prefix"}}
        first, second = (client.chat.completions.create(**options).usage for _ in range(2))
        assert first.prompt_tokens_details.cached_tokens == 0
        assert second.prompt_tokens_details.cached_tokens >= second.prompt_tokens - 32

    def test_vllm_fields(self, client: OpenAI) -> None:
        answer = client.chat.completions.create(
            model="dry", messages=HI, max_tokens=6, temperature=0, top_p=0.9, presence_penalty=1, frequency_penalty=1,
            user="me", metadata={"a": "b"}, store=False, service_tier="auto",
            extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 2, "ignore_eos": True,
                        "stop_token_ids": [3], "skip_special_tokens": False, "include_stop_str_in_output": True,
                        "allowed_token_ids": [70, 71], "priority": 0, "cache_salt": "x", "add_generation_prompt": True,
                        "chat_template_kwargs": {"enable_thinking": False}})
        assert len(set(answer.choices[0].message.content)) <= 2  # of one character each

    def test_continue_final_message(self, client: OpenAI) -> None:
        messages = [*HI, {"role": "assistant", "content": "the quick"}]
        options = {"model": "dry", "messages": messages, "max_tokens": 1}
        closed = client.chat.completions.create(**options)
        left_open = client.chat.completions.create(**options, extra_body={"continue_final_message": True,
                                                                          "add_generation_prompt": False})
        assert left_open.usage.prompt_tokens < closed.usage.prompt_tokens


class TestCompletions:
    @pytest.mark.parametrize("prompt, count", [
        ("hello", 1), (["hello", "world"], 2), ([5, 6, 7], 1), ([[5, 6], [7, 8], [9]], 3)], ids=str)
    def test_forms_of_a_prompt(self, client: OpenAI, prompt: object, count: int) -> None:
        answer = client.completions.create(model="dry", prompt=prompt, max_tokens=5, n=2)  # type: ignore
        assert [choice.index for choice in answer.choices] == list(range(2 * count))
        assert all(choice.text and choice.finish_reason == "length" for choice in answer.choices)
        assert answer.usage is not None and answer.usage.completion_tokens == 10 * count

    def test_sixteen_tokens_unless_told(self, client: OpenAI) -> None:
        assert client.completions.create(model="dry", prompt="a").usage.completion_tokens == 16

    def test_echo_and_stream(self, client: OpenAI, lenient: OpenAI) -> None:
        prompts = ["hello world", "user"]
        options = {"model": "dry", "prompt": prompts, "max_tokens": 5, "echo": True, "seed": 2}
        whole = client.completions.create(**options)
        assert all(choice.text.startswith(prompt) for choice, prompt in zip(whole.choices, prompts))
        texts = ["", ""]
        for chunk in lenient.completions.create(**options, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].text
        assert texts == [choice.text for choice in whole.choices]

    def test_echo_of_ids(self, client: OpenAI) -> None:
        text = client.completions.create(model="dry", prompt="hello world", max_tokens=1, echo=True).choices[0].text
        assert text.startswith("hello world")

    def test_stop(self, client: OpenAI) -> None:
        whole = client.completions.create(model="dry", prompt="x", max_tokens=60, seed=9).choices[0]
        stop = whole.text[30:34]
        cut = client.completions.create(model="dry", prompt="x", max_tokens=60, seed=9, stop=[stop]).choices[0]
        assert cut.text == whole.text[: whole.text.index(stop)] and cut.finish_reason == "stop"
        assert cut.model_extra["stop_reason"] == stop
        kept = client.completions.create(model="dry", prompt="x", max_tokens=60, seed=9, stop=stop,
                                         extra_body={"include_stop_str_in_output": True}).choices[0]
        assert kept.text == cut.text + stop

    def test_usage_as_it_grows(self, lenient: OpenAI) -> None:
        chunks = list(lenient.completions.create(
            model="dry", prompt="x", max_tokens=9, stream=True,
            stream_options={"include_usage": True, "continuous_usage_stats": True}))  # type: ignore
        counts = [chunk.usage.completion_tokens for chunk in chunks]
        assert counts == sorted(counts) and counts[-1] == 9 and chunks[-1].choices == []


class TestModels:
    def test_list_and_card(self, client: OpenAI) -> None:
        names = [model.id for model in client.models.list()]
        assert names == ["dry", "small"]
        assert client.models.retrieve("small").model_extra["max_model_len"] == 512

    def test_an_unknown_one(self, client: OpenAI) -> None:
        for call in (lambda: client.models.retrieve("gpt-9"),
                     lambda: client.completions.create(model="gpt-9", prompt="a")):
            with pytest.raises(openai.NotFoundError) as error:
                call()
            assert error.value.code == "model_not_found"


class TestAsync:
    async def test_sixty_four_streams(self, server: Running) -> None:
        async with aclient(server) as client:
            async def one(i: int) -> str:
                text = ""
                stream = await client.chat.completions.create(
                    model="dry", messages=[{"role": "user", "content": f"user {i}"}], max_tokens=50, temperature=0,
                    stream=True)
                async for chunk in stream:
                    text += chunk.choices[0].delta.content or ""
                return text

            texts = await asyncio.gather(*[one(i) for i in range(64)])
            alone = await client.chat.completions.create(
                model="dry", messages=[{"role": "user", "content": "user 17"}], max_tokens=50, temperature=0)
        assert len(set(texts)) == 64
        assert texts[17] == alone.choices[0].message.content
        server.eventually("num_requests_running", 0)
        assert server.metric("kv_cache_usage_perc") == 0
