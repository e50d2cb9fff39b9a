"""Requests of Anthropic's API, and what they are as a chat completion."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from mini_infer.protocol import RequestError
from mini_infer.server.body import validated
from mini_infer.server.limits import check_strings
from mini_infer.server.schemas import (
    STOPS,
    ChatCompletionRequest,
    RequestModel,
    Temperature,
    Texts,
    ToolName,
    TopK,
    TopP,
    check_unlike,
    shown,
)


class Block(RequestModel):
    # That a prefix is cached, and for how long, is not for the client to say here: caching is automatic.
    cache_control: dict[str, Any] | None = None


class TextBlock(Block):
    type: Literal["text"]
    text: str
    citations: None = None


class ThinkingBlock(Block):
    """What the model thought before an earlier answer; how it is shown is for the template to say."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class ToolUseBlock(Block):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    caller: dict[str, Any] | None = None


class ToolResultBlock(Block):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | Annotated[list[TextBlock], Field(fail_fast=True)] | None = None
    is_error: bool = False


ROLE_OF: dict[type, str] = {ThinkingBlock: "assistant", ToolUseBlock: "assistant", ToolResultBlock: "user"}
AnyBlock = Annotated[TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]


class Message(RequestModel):
    role: Literal["user", "assistant"]
    content: str | Annotated[list[AnyBlock], Field(fail_fast=True)]

    @model_validator(mode="after")
    def says_what_its_role_can(self) -> Message:
        for i, block in enumerate(self.content):
            role = ROLE_OF.get(type(block))
            if role not in (None, self.role):
                raise RequestError(f"content[{i}].type: only a message of the role {role} has blocks of this type",
                                   f"content[{i}].type")
        return self

    def as_chat(self) -> list[dict[str, Any]]:
        """As messages of a chat completion: results of tools are messages of their own there."""
        if isinstance(self.content, str):
            return [{"role": self.role, "content": self.content}]
        messages: list[dict[str, Any]] = [
            {"role": "tool", "tool_call_id": block.tool_use_id, "content": _text(block.content)}
            for block in self.content if isinstance(block, ToolResultBlock)]
        texts = [{"type": "text", "text": block.text} for block in self.content if isinstance(block, TextBlock)]
        calls = [{"id": block.id, "function": {"name": block.name, "arguments": json.dumps(block.input)}}
                 for block in self.content if isinstance(block, ToolUseBlock)]
        thoughts = [block.thinking for block in self.content if isinstance(block, ThinkingBlock)]
        if texts or calls or thoughts or not messages:
            messages.append({"role": self.role, "content": texts or (None if calls else ""),
                             "tool_calls": calls or None, "reasoning_content": "\n".join(thoughts) or None})
        return messages


class ToolDefinition(Block):
    name: ToolName
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None  # the others are run by Anthropic
    strict: bool | None = None


def _unlike(tools: list[ToolDefinition]) -> list[ToolDefinition]:
    check_unlike([tool.name for tool in tools], "name")
    return tools


class ToolChoice(RequestModel):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False

    @model_validator(mode="after")
    def a_name_for_a_tool(self) -> ToolChoice:
        if (self.type == "tool") != (self.name is not None):
            raise RequestError("name is for the type tool, which needs it", "name")
        return self

    def as_chat(self) -> dict[str, Any]:
        choice: Any = {"type": "function", "function": {"name": self.name}}
        if self.type != "tool":
            choice = "required" if self.type == "any" else self.type
        return {"tool_choice": choice, "parallel_tool_calls": not self.disable_parallel_tool_use}


class Metadata(RequestModel):
    user_id: str | None = None


class CountTokensRequest(RequestModel):
    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True, examples=[
        [{"role": "user", "content": "What is 27 + 35?"}]])]
    system: str | Annotated[list[TextBlock], Field(fail_fast=True)] | None = None
    tools: Annotated[list[ToolDefinition], Field(fail_fast=True), AfterValidator(_unlike)] | None = None
    tool_choice: ToolChoice | None = None
    cache_control: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None  # vLLM's

    def chat(self) -> ChatCompletionRequest:
        """The chat completion that this asks for. Raises RequestError or RequestValidationError naming the field.

        A last message of the assistant is the beginning of the answer.
        """
        messages = [{"role": "system", "content": _text(self.system)}] if self.system else []
        messages += [part for message in self.messages for part in message.as_chat()]
        goes_on = self.messages[-1].role == "assistant"
        tools = [{"type": "function", "function": {"name": tool.name, "description": tool.description,
                                                   "parameters": tool.input_schema, "strict": tool.strict}}
                 for tool in self.tools or ()]
        choice = {} if self.tool_choice is None else self.tool_choice.as_chat()
        return validated(ChatCompletionRequest, {
            "messages": messages, "tools": tools or None, **choice, "add_generation_prompt": not goes_on,
            "continue_final_message": goes_on, "chat_template_kwargs": self.chat_template_kwargs, **self._more()})

    def names_as_sent(self) -> dict[str, str]:
        names = {"prompt": "messages", "stop": "stop_sequences",
                 "parallel_tool_calls": "tool_choice.disable_parallel_tool_use"}
        number = 1 if self.system else 0
        for i, message in enumerate(self.messages):
            number += len(message.as_chat())
            names[f"messages[{number - 1}].tool_calls"] = f"messages[{i}].content"
        return names

    def _more(self) -> dict[str, Any]:
        return {}


class MessagesRequest(CountTokensRequest):
    max_tokens: Annotated[int, shown(minimum=1, examples=[16])]
    stop_sequences: Annotated[Texts | None, STOPS] = None
    stream: bool = False
    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    top_k: TopK = 0
    # Without an effect on the answer, by their meaning.
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None

    @model_validator(mode="after")
    def short_stop_sequences(self) -> MessagesRequest:
        check_strings("stop_sequences", self.stop_sequences)
        return self

    def _more(self) -> dict[str, Any]:
        return {"stop": self.stop_sequences, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}


def _text(content: str | list[TextBlock] | None) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content or ())
