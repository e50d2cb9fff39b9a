"""The message that an answer's events add up to."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from mini_infer.text.parsers.dialects import ReasoningDialect, ToolDialect
from mini_infer.text.parsers.machine import (
    CallArguments,
    CallBroken,
    CallStart,
    Content,
    Event,
    OutputParser,
    Reasoning,
)


def new_call_id() -> str:
    """Nine letters and digits: Mistral's templates take no other ids back, and everybody else's take any."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


@dataclass(slots=True)
class ToolCall:
    """A call with its id and the pieces of its arguments."""

    name: str
    id: str = field(default_factory=new_call_id)
    arguments: list[str] = field(default_factory=list)

    def parsed(self) -> dict[str, Any]:
        """The arguments as an object."""
        return json.loads("".join(self.arguments))

    def body(self) -> dict[str, Any]:
        """As OpenAI's API has it."""
        return {"id": self.id, "type": "function",
                "function": {"name": self.name, "arguments": "".join(self.arguments)}}


class Message:
    """The message of an answer that is complete. A call that broke is content, as the model wrote it.

        message = Message.of(llm.chat(messages, tools=tools)[0].text, HERMES)
        message.content, message.reasoning, [(call.name, call.parsed()) for call in message.calls]
    """

    @classmethod
    def of(cls, text: str, tools: ToolDialect | None, reasoning: ReasoningDialect | None = None,
           names: Collection[str] = (), prompt: str = "") -> Message:
        """Read a whole answer; the other arguments are OutputParser's."""
        return cls(OutputParser(tools, reasoning, names, prompt).read(text))

    def __init__(self, events: Iterable[Event]):
        content: list[str] = []
        reasoning: list[str] = []
        calls: dict[int, ToolCall] = {}
        for event in events:
            match event:
                case Content(text):
                    content.append(text)
                case Reasoning(text):
                    reasoning.append(text)
                case CallStart(call, name):
                    calls[call] = ToolCall(name)
                case CallArguments(call, text):
                    calls[call].arguments.append(text)
                case CallBroken(call, text):
                    del calls[call]
                    content.append(text)
        self.content = "".join(content)
        self.reasoning = "".join(reasoning)
        self.calls = list(calls.values())

    def body(self) -> dict[str, Any]:
        """As OpenAI's API has it."""
        silent = not self.content and (self.calls or self.reasoning)
        body: dict[str, Any] = {"role": "assistant", "content": None if silent else self.content, "refusal": None}
        if self.reasoning:  # by both of the names that clients look for
            body |= {"reasoning": self.reasoning, "reasoning_content": self.reasoning}
        if self.calls:
            body["tool_calls"] = [call.body() for call in self.calls]
        return body


__all__ = ["Message", "ToolCall"]
