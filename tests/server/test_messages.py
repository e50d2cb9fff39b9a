"""Anthropic's form without a server: conversations there and back, and blocks as they are streamed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from hypothesis import given
from hypothesis import strategies as st

from mini_infer.protocol import RequestError
from mini_infer.server.messages import BlockWriter, blocks
from mini_infer.server.messages_schemas import MessagesRequest
from mini_infer.text.parsers.machine import CallArguments, CallEnd, CallStart, Content, Event, Reasoning
from mini_infer.text.parsers.message import Message

TEXT = {"type": "text", "text": "hello"}
CALL = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "rain"}]}
TOOL = {"name": "weather", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}


def chat(*messages: dict[str, Any], **more: Any) -> Any:
    return MessagesRequest.model_validate({"messages": list(messages), "max_tokens": 5, **more}).chat()


class TestRequests:
    def test_a_conversation_with_a_call(self) -> None:
        request = chat({"role": "user", "content": "hi"},
                       {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "s"},
                                                         TEXT, CALL]},
                       {"role": "user", "content": [RESULT, TEXT]}, system=[TEXT, TEXT], tools=[TOOL])
        system, user, assistant, tool, again = [message.for_template() for message in request.messages]
        assert (system["role"], system["content"]) == ("system", "hello\nhello")
        assert user["content"] == "hi" and assistant["reasoning_content"] == "hm"
        [call] = assistant["tool_calls"]
        assert call["id"] == "t1" and json.loads(call["function"]["arguments"]) == {"city": "Oslo"}
        assert (tool["role"], tool["tool_call_id"], tool["content"]) == ("tool", "t1", "rain")
        assert again["role"] == "user" and again["content"][0]["text"] == "hello"
        assert request.template_tools()[0]["function"]["name"] == "weather"
        assert request.add_generation_prompt and not request.continue_final_message

    def test_the_beginning_of_an_answer(self) -> None:
        request = chat({"role": "user", "content": "hi"}, {"role": "assistant", "content": "I"})
        assert request.continue_final_message and not request.add_generation_prompt

    @pytest.mark.parametrize("given, expected, parallel", [
        ({"type": "auto"}, "auto", True), ({"type": "any", "disable_parallel_tool_use": True}, "required", False),
        ({"type": "none"}, "none", True)])
    def test_choices(self, given: dict[str, Any], expected: str, parallel: bool) -> None:
        request = chat({"role": "user", "content": "hi"}, tools=[TOOL], tool_choice=given)
        assert (request.tool_choice, request.parallel_tool_calls) == (expected, parallel)

    def test_a_choice_by_name(self) -> None:
        request = chat({"role": "user", "content": "hi"}, tools=[TOOL], tool_choice={"type": "tool", "name": "weather"})
        assert request.tool_choice.function.name == "weather"

    @pytest.mark.parametrize("more", [{"tool_choice": {"type": "auto"}}, {"tool_choice": {"type": "tool"}},
                                      {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
                                      {"stop_sequences": ["a" * 5000]}, {"top_p": 2.0}], ids=str)
    def test_what_is_refused(self, more: dict[str, Any]) -> None:
        with pytest.raises((RequestError, RequestValidationError, ValueError)):
            chat({"role": "user", "content": "hi"}, **more).sampling_params(5, None)


RUNS = st.lists(st.tuples(st.sampled_from(["text", "thought", "call"]), st.lists(st.text("abc", min_size=1), min_size=1,
                                                                              max_size=3)), max_size=5)


@given(RUNS)
def test_streamed_blocks_are_whole_ones_in_pieces(runs: list[tuple[str, list[str]]]) -> None:
    events: list[Event] = []
    for number, (kind, pieces) in enumerate(runs):
        if kind == "call":
            arguments = json.dumps({"x": "".join(pieces)})
            events += [CallStart(number, "f"), CallArguments(number, arguments[:4]),
                       CallArguments(number, arguments[4:]), CallEnd(number)]
        else:
            events += [Content(piece) if kind == "text" else Reasoning(piece) for piece in pieces]
    writer = BlockWriter()
    data = b"".join(writer.write([event]) for event in events) + writer.close()
    found: list[dict[str, Any]] = []
    is_open = False
    for part in data.decode().split("\n\n")[:-1]:
        name, _, body = part.partition("\ndata: ")
        event = json.loads(body)
        assert name == f"event: {event['type']}"
        if event["type"] == "content_block_start":
            assert not is_open and event["index"] == len(found)
            found.append({**event["content_block"], "json": ""})
            is_open = True
        elif event["type"] == "content_block_delta":
            assert is_open and event["index"] == len(found) - 1
            delta = event["delta"]
            name, field = {"text_delta": ("text", "text"), "thinking_delta": ("thinking", "thinking"),
                           "input_json_delta": ("partial_json", "json")}[delta["type"]]
            found[-1][field] += delta[name]
        else:
            assert is_open
            is_open = False
    assert not is_open and writer.has_calls == any(kind == "call" for kind, _ in runs)
    whole = blocks(Message(events))
    for kind, field in (("text", "text"), ("thinking", "thinking")):
        assert "".join(block[field] for block in found if block["type"] == kind) == "".join(
            block[field] for block in whole if block["type"] == kind)
    assert [json.loads(block["json"]) for block in found if block["type"] == "tool_use"] == [
        json.loads(bytes(block["input"])) for block in whole if block["type"] == "tool_use"]
