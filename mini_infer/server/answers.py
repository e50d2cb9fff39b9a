"""What the routes answer, as /openapi.json tells it. The answers themselves are written where they are made, straight
as JSON; tests/server/test_fuzz.py holds them to this."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class AnswerModel(BaseModel):
    """Complete: no other fields. One with a default is there only sometimes."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetail(AnswerModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(AnswerModel):
    """OpenAI's form."""

    error: ErrorDetail


class AnthropicErrorDetail(AnswerModel):
    type: str
    message: str


class AnthropicError(AnswerModel):
    """Anthropic's form, on the routes of its API."""

    type: Literal["error"]
    error: AnthropicErrorDetail


class CachedTokens(AnswerModel):
    cached_tokens: int


class CompletionUsage(AnswerModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class PromptLogprob(AnswerModel):
    logprob: float
    rank: int
    decoded_token: str | None


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class TokenLogprob(AnswerModel):
    token: str
    logprob: float
    bytes: list[int]


class ChosenLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(AnswerModel):
    content: list[ChosenLogprob]
    refusal: None


class CalledFunction(AnswerModel):
    name: str
    arguments: str


class CalledTool(AnswerModel):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(AnswerModel):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning: str = ""
    reasoning_content: str = ""
    tool_calls: list[CalledTool] = []


class Choice(AnswerModel):
    index: int
    finish_reason: Literal["stop", "length", "tool_calls"]
    stop_reason: int | str | None
    token_ids: list[int] = []


class ChatChoice(Choice):
    message: AssistantMessage
    logprobs: ChatLogprobs | None


class ChatCompletion(AnswerModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage
    prompt_token_ids: list[int] = []
    prompt_logprobs: PromptLogprobs = []


class TextLogprobs(AnswerModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(Choice):
    text: str
    logprobs: TextLogprobs | None
    prompt_token_ids: list[int] = []
    prompt_logprobs: PromptLogprobs = []


class Completion(AnswerModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: CompletionUsage


class AnthropicText(AnswerModel):
    type: Literal["text"]
    text: str


class AnthropicThinking(AnswerModel):
    type: Literal["thinking"]
    thinking: str
    signature: str


class AnthropicToolUse(AnswerModel):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class AnthropicUsage(AnswerModel):
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class AnthropicMessage(AnswerModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnthropicText | AnthropicThinking | AnthropicToolUse]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: AnthropicUsage


class TokenCount(AnswerModel):
    input_tokens: int


class Tokens(AnswerModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str | None] | None


class Detokenized(AnswerModel):
    prompt: str


class ModelCard(AnswerModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parent: None
    max_model_len: int


class ModelList(AnswerModel):
    object: Literal["list"]
    data: list[ModelCard]


class Health(AnswerModel):
    status: Literal["ok", "draining", "restarting", "error", "stalled"]
    model: str
    version: str
    running: int
    waiting: int


class BadHealth(Health):
    error: ErrorDetail


class Version(AnswerModel):
    version: str
