"""The requests of the OpenAI API, with vLLM's extensions, as pydantic models.

Whatever is declared here is honoured, but for a few fields that by their meaning cannot change an answer (they are
together, and say so); whatever is not is refused with the field's name. `null` means the same as leaving a field out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mini_infer.protocol import RequestError, SamplingParams

# Fields of OpenAI or vLLM that are not served, and why: a better answer than "unknown field".
UNSUPPORTED: dict[str, str] = {
    "audio": "this server speaks text only",
    "best_of": "use n",
    "cache_control": "prefix caching is automatic",
    "function_call": "deprecated by OpenAI; use tools",
    "functions": "deprecated by OpenAI; use tools",
    "guided_choice": "structured output is not available yet",
    "guided_grammar": "structured output is not available yet",
    "guided_json": "structured output is not available yet",
    "guided_regex": "structured output is not available yet",
    "length_penalty": "there is no beam search",
    "prediction": "predicted outputs are not available",
    "reasoning_effort": "use chat_template_kwargs where the model's template has such a switch",
    "return_token_ids": "not available yet",
    "structured_outputs": "structured output is not available yet",
    "suffix": "infilling is not available",
    "use_beam_search": "there is no beam search",
    "verbosity": "not available",
    "web_search_options": "this server does not search the web",
    "chat_template": "templates in requests are not accepted; the model's own is used",
}


class RequestModel(BaseModel):
    """Strict: no unknown fields and no conversions ("1" is not 1)."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def null_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict) or None not in data.values():
            return data
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return {name: value for name, value in data.items() if value is not None or name not in optional}


class StreamOptions(RequestModel):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class TextFormat(RequestModel):
    type: Literal["text"]


class GenerationRequest(RequestModel):
    """What chat and plain completions have in common."""

    model: str | None = None
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = None
    max_tokens: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: TextFormat | None = None
    # vLLM's
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop_token_ids: list[int] | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    prompt_logprobs: int | None = None
    add_special_tokens: bool | None = None  # to the prompt; None: for plain text yes, for a rendered template no
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    cache_salt: Annotated[str, Field(max_length=1024)] = ""
    # Without an effect on the answer, by their meaning.
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] = False
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: Literal["auto", "default"] | None = None

    @model_validator(mode="after")
    def stream_options_need_stream(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options may be set only when stream is true", "stream_options")
        return self

    def sampling_params(self, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """Raises RequestError naming the field that is out of range."""
        return SamplingParams(
            n=self.n, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p,
            repetition_penalty=self.repetition_penalty, presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty, logit_bias=self._logit_bias(),
            allowed_token_ids=self.allowed_token_ids, bad_words=self.bad_words, seed=self.seed, max_tokens=max_tokens,
            min_tokens=self.min_tokens, stop=self.stop, stop_token_ids=self.stop_token_ids, ignore_eos=self.ignore_eos,
            include_stop_str_in_output=self.include_stop_str_in_output, skip_special_tokens=self.skip_special_tokens,
            logprobs=logprobs, prompt_logprobs=self.prompt_logprobs,
        )

    def _logit_bias(self) -> dict[int, float] | None:
        if self.logit_bias is None:
            return None
        try:
            return {int(token): bias for token, bias in self.logit_bias.items()}
        except ValueError:
            raise RequestError("logit_bias must be keyed by token ids", "logit_bias") from None


class CompletionRequest(GenerationRequest):
    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = 16
    logprobs: int | None = None
    echo: bool = False

    def params(self) -> SamplingParams:
        """With `echo`, log-probabilities are wanted of the prompt as well. Raises RequestError."""
        params = self.sampling_params(self.max_tokens, self.logprobs)
        if self.echo and self.logprobs is not None and self.n > 1:
            raise RequestError("echo with logprobs needs n=1: the prompt has one set of log-probabilities", "n")
        if self.echo and self.logprobs is not None and self.prompt_logprobs is None:
            return replace(params, prompt_logprobs=self.logprobs)
        return params


class TextPart(RequestModel):
    type: Literal["text"]
    text: str


class FunctionCall(RequestModel):
    name: str
    arguments: str


class ToolCall(RequestModel):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(RequestModel):
    """One turn. What `name`, `reasoning_content` and the tool fields do is for the model's template to say."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    @model_validator(mode="after")
    def has_something_to_say(self) -> ChatMessage:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise RequestError(f"a {self.role} message needs content", "messages")
        return self

    def for_template(self) -> dict[str, Any]:
        """As templates know it: they have no developer, and want content to be there."""
        message = {"content": "", **self.model_dump(exclude_none=True)}
        return {**message, "role": "system"} if self.role == "developer" else message


class FunctionDefinition(RequestModel):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Literal[False] | None = None  # strict arguments need structured output


class Tool(RequestModel):
    type: Literal["function"]
    function: FunctionDefinition


class ChatCompletionRequest(GenerationRequest):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    modalities: list[Literal["text"]] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: Literal[True] = True
    # vLLM's
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    documents: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def fields_that_depend_on_each_other(self) -> ChatCompletionRequest:
        if self.max_tokens is not None and self.max_completion_tokens is not None \
                and self.max_tokens != self.max_completion_tokens:
            raise RequestError("max_tokens and max_completion_tokens differ; give one of them", "max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs: true", "top_logprobs")
        if self.add_generation_prompt and self.continue_final_message:
            raise RequestError("continue_final_message needs add_generation_prompt: false", "continue_final_message")
        if self.tool_choice is not None and not self.tools:
            raise RequestError("tool_choice needs tools", "tool_choice")
        return self

    def template_tools(self) -> list[dict[str, Any]] | None:
        """The tools as the template shows them to the model; none when it is not to call any."""
        if not self.tools or self.tool_choice == "none":
            return None
        return [tool.model_dump(exclude_none=True) for tool in self.tools]
