"""The official client of Anthropic's API against a dry run, its responses strictly validated."""

from __future__ import annotations

import os
import signal
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic

from tests.server.running import Running
from tests.server.test_streams import open_stream

HI = [{"role": "user", "content": "hello"}]
OPTIONS: dict[str, Any] = {"model": "dry", "max_tokens": 12}


@pytest.fixture
def client(server: Running) -> Anthropic:
    return Anthropic(base_url=server.url, api_key="none", max_retries=0, _strict_response_validation=True)


class TestWhole:
    def test_message(self, client: Anthropic) -> None:
        answer = client.messages.create(**OPTIONS, messages=HI, system="be kind", extra_body={"top_k": 5, "top_p": 0.9})
        [block] = answer.content
        assert answer.type == "message" and answer.role == "assistant" and answer.model == "dry"
        assert block.type == "text" and block.text
        assert (answer.stop_reason, answer.stop_sequence) == ("max_tokens", None)
        assert answer.usage.output_tokens == 12

    def test_system_and_blocks_are_the_conversation_of_a_chat(self, client: Anthropic, server: Running) -> None:
        blocks = [{"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}}]
        counted = client.messages.count_tokens(
            model="dry", system=[{"type": "text", "text": "be kind"}],
            messages=[{"role": "user", "content": blocks}])
        _, chat = server.post("/tokenize", {"messages": [{"role": "system", "content": "be kind"}, *HI]})
        assert counted.input_tokens == chat["count"]

    def test_an_unfinished_answer_goes_on(self, client: Anthropic) -> None:
        begun = [*HI, {"role": "assistant", "content": "the quick"}]
        closed = client.messages.count_tokens(model="dry", messages=[*begun, *HI])
        left_open = client.messages.count_tokens(model="dry", messages=begun)
        assert left_open.input_tokens < closed.input_tokens

    def test_stop_sequences(self, client: Anthropic) -> None:
        greedy = {"model": "dry", "max_tokens": 40, "messages": HI, "extra_body": {"temperature": 0}}
        text = client.messages.create(**greedy).content[0].text
        answer = client.messages.create(**greedy, stop_sequences=[text[20:23]])
        assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", text[20:23])
        assert answer.content[0].text == text[: text.index(text[20:23])]

    def test_what_was_cached_is_not_counted_as_input(self, client: Anthropic) -> None:
        messages = [{"role": "user", "content": "one two three tuesday monday " * 20}]
        first, second = (client.messages.create(**OPTIONS, messages=messages).usage for _ in range(2))
        assert first.cache_read_input_tokens == 0 < second.cache_read_input_tokens
        assert second.input_tokens + second.cache_read_input_tokens == first.input_tokens


class TestStream:
    def test_it_is_the_whole_in_pieces(self, client: Anthropic) -> None:
        options = {**OPTIONS, "messages": HI, "extra_body": {"temperature": 0}}
        whole = client.messages.create(**options)
        with client.messages.stream(**options) as stream:
            kinds = [event.type for event in stream if event.type != "text"]
            final = stream.get_final_message()
        assert final.content[0].text == whole.content[0].text
        assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
        assert kinds[:2] == ["message_start", "content_block_start"]
        assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
        assert set(kinds[2:-3]) == {"content_block_delta"}

    async def test_async(self, server: Running) -> None:
        async with AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0) as client, \
                client.messages.stream(**OPTIONS, messages=HI) as stream:
            text = "".join([piece async for piece in stream.text_stream])
        assert text

    def test_the_form_on_the_wire(self, server: Running) -> None:
        response = open_stream(server, {"messages": HI, "max_tokens": 5}, "/v1/messages")
        *events, end = response.read().decode().split("\n\n")
        assert end == "" and all(event.startswith("event: ") and "\ndata: {" in event for event in events)


@pytest.mark.parametrize("change, error", [
    ({"model": "gpt-9"}, anthropic.NotFoundError),
    ({"max_tokens": 0}, anthropic.BadRequestError),
    ({"max_tokens": 5000}, anthropic.BadRequestError),
    ({"messages": []}, anthropic.BadRequestError),
    ({"messages": [{"role": "wizard", "content": "a"}]}, anthropic.BadRequestError),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, anthropic.BadRequestError),
    ({"extra_body": {"bogus": 1}}, anthropic.BadRequestError),
    ({"extra_body": {"thinking": {"type": "enabled", "budget_tokens": 2000}}}, anthropic.BadRequestError),
], ids=str)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_in_its_form(client: Anthropic, change: dict[str, Any], error: type[anthropic.APIStatusError],
                                stream: bool) -> None:
    with pytest.raises(error) as raised:
        client.messages.create(**{**OPTIONS, "messages": HI, "stream": stream, **change})  # type: ignore[call-overload]
    body: Any = raised.value.body
    assert body["type"] == "error" and set(body["error"]) == {"type", "message"}
    assert raised.value.type == body["error"]["type"]


def test_a_dead_engine_ends_a_stream_with_an_error(slow_server: Running) -> None:
    client = Anthropic(base_url=slow_server.url, api_key="none", max_retries=0)
    engine = [slow_server.engine_pid]
    with pytest.raises(anthropic.APIStatusError) as raised, \
            client.messages.stream(model="dry", max_tokens=400, messages=HI) as stream:
        for event in stream:
            if event.type == "content_block_delta" and engine:
                os.kill(engine.pop(), signal.SIGKILL)
    assert "engine" in str(raised.value)
