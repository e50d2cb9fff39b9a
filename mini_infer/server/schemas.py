"""The requests of the OpenAI API, with vLLM's extensions, as pydantic models.

Whatever is declared here is honoured, but for a few fields that by their meaning cannot change an answer (they are
together, and say so); whatever is not is refused with the field's name. `null` means the same as leaving a field out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from mini_infer.protocol import MAX_LOGPROBS, MAX_N, MAX_SEED, RequestError, SamplingParams, StructuredOutputs
from mini_infer.server.limits import (
    MAX_ENTRIES,
    MAX_ID_CHARS,
    MAX_STRING_CHARS,
    MAX_TIMEOUT,
    check_entries,
    check_strings,
)

# Fields of OpenAI or vLLM that are not served, and why: a better answer than "unknown field".
UNSUPPORTED: dict[str, str] = {
    "audio": "this server speaks text only",
    "cache_control": "prefix caching is automatic",
    "function_call": "deprecated by OpenAI; use tools",
    "echo": "plain completions have it",
    "functions": "deprecated by OpenAI; use tools",
    "guided_choice": "use structured_outputs: {\"choice\": …}",
    "guided_grammar": "use structured_outputs: {\"grammar\": …}",
    "guided_json": "use structured_outputs: {\"json\": …}",
    "guided_regex": "use structured_outputs: {\"regex\": …}",
    "kv_transfer_params": "this server moves no KV cache to others",
    "length_penalty": "there is no beam search",
    "logits_processors": "code in requests is not run",
    "logprob_token_ids": "use top_logprobs or logprobs",
    "media_io_kwargs": "this server speaks text only",
    "mm_processor_kwargs": "this server speaks text only",
    "moderation": "this server moderates nothing",
    "prediction": "predicted outputs are not available",
    "prompt_cache_breakpoint": "prefix caching is automatic",
    "prompt_embeds": "prompts are text or token ids",
    "return_tokens_as_token_ids": "use return_token_ids",
    "thinking": "use chat_template_kwargs where the model's template has such a switch",
    "thinking_token_budget": "not available",
    "truncate_prompt_tokens": "a prompt is never cut; shorten it",
    "verbosity": "not available",
    "vllm_xargs": "there are no custom extensions",
    "web_search_options": "this server does not search the web",
}


def shown(**limits: Any) -> Any:
    """Limits of a field in the schema of the API, in JSON Schema's words; it is SamplingParams that holds them."""
    return Field(json_schema_extra=limits)


def token_ids(name: str, **limits: Any) -> Any:
    """The same of a list of token ids."""
    return shown(maxItems=MAX_ENTRIES[name], items={"minimum": 0}, **limits)


def _boolean(value: Any) -> Any:
    """For Literal, to which 0 is False."""
    if not isinstance(value, bool):
        raise PydanticCustomError("bool_type", "Input should be a valid boolean")
    return value


# A list that ends its validation at the first wrong entry: the error names that one anyway.
Texts = Annotated[list[str], Field(fail_fast=True)]
TokenIds = Annotated[list[int], Field(fail_fast=True)]
Temperature = Annotated[float, shown(minimum=0, maximum=100)]
TopP = Annotated[float, shown(exclusiveMinimum=0, maximum=1)]
TopK = Annotated[int, shown(minimum=-1, maximum=MAX_SEED)]
Penalty = Annotated[float, shown(minimum=-2, maximum=2)]
Bias = Annotated[float, shown(minimum=-100, maximum=100)]
NumLogprobs = Annotated[int | None, shown(minimum=0, maximum=MAX_LOGPROBS)]
OnlyFalse = Annotated[Literal[False], BeforeValidator(_boolean)]
OnlyTrue = Annotated[Literal[True], BeforeValidator(_boolean)]
MaxTokens = Annotated[int | None, shown(minimum=1, examples=[16])]
TOKEN_ID = re.compile("^(0|[1-9][0-9]{0,9})$")  # as a key of JSON
ToolName = Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]
STRINGS = {"minLength": 1, "maxLength": MAX_STRING_CHARS}
STOPS = shown(**STRINGS, maxItems=MAX_ENTRIES["stop"], items=STRINGS)


def _show_null(schema: dict[str, Any]) -> None:
    """In the schema of the API: what may be left out may also be null."""
    for name, field in schema.get("properties", {}).items():
        if name not in schema.get("required", ()) and {"type": "null"} not in (field, *field.get("anyOf", ())):
            outer = {key: field.pop(key) for key in ("title", "default") if key in field}
            schema["properties"][name] = {"anyOf": [field, {"type": "null"}], **outer}


def renamed(error: RequestError, name: str) -> RequestError:
    """The same error, of a field that the client knows by this name."""
    old = error.param or ""
    before = r"(?<!\w)" if "_" in old else "^"  # within a sentence, "prompt" and "stop" may be words like others
    message = re.sub(f"{before}{re.escape(old)}(?!\\w)", lambda _: name, str(error), count=1)
    return RequestError(message, name, error.code)


class RequestModel(BaseModel):
    """Strict: no unknown fields and no conversions ("1" is not 1).

    A RequestError of a validator names the field as seen from its model; where that is in the request comes in front.
    """

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_show_null)

    @model_validator(mode="before")
    @classmethod
    def null_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        check_entries(data)
        if None not in data.values():
            return data
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return {name: value for name, value in data.items() if value is not None or name not in optional}

    def names_as_sent(self) -> dict[str, str]:
        """The client's names of what this server's other parts call by another name, by the latter."""
        return {}

    @contextmanager
    def errors_as_sent(self) -> Iterator[None]:
        """Errors of what is done for this request get the client's names."""
        try:
            yield
        except RequestError as error:
            name = self.names_as_sent().get(error.param or "")
            if name is None:
                raise
            raise renamed(error, name) from None


class StreamOptions(RequestModel):
    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: OnlyFalse = False


class PromptCacheOptions(RequestModel):
    mode: Literal["implicit"] | None = None
    ttl: Literal["30m"] | None = None


class JsonSchema(RequestModel):
    name: str | None = None  # the model is shown neither this
    description: str | None = None  # nor this
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool = False  # true: a keyword that cannot be enforced is refused; else it is passed over


class ResponseFormat(RequestModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def schema_where_it_belongs(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise RequestError("json_schema is for the type json_schema, which needs it", "json_schema")
        return self

    def structured(self) -> StructuredOutputs | None:
        if self.type == "json_object":
            return StructuredOutputs(json_object=True, source="response_format")
        if self.json_schema is None:
            return None
        return StructuredOutputs(json=self.json_schema.schema_, lenient=not self.json_schema.strict,
                                 source="response_format.json_schema")


class StructuredOutputsFields(RequestModel):
    """vLLM's: exactly one of the first five."""

    json_: Annotated[dict[str, Any] | str | None, Field(alias="json")] = None
    regex: str | None = None
    choice: Texts | None = None
    grammar: str | None = None
    json_object: bool = False
    disable_any_whitespace: bool = False

    def structured(self) -> StructuredOutputs:
        return StructuredOutputs(json=self.json_, regex=self.regex, choice=self.choice, grammar=self.grammar,
                                 json_object=self.json_object, disable_any_whitespace=self.disable_any_whitespace)


class GenerationRequest(RequestModel):
    """What chat and plain completions have in common."""

    model: str | None = None
    n: Annotated[int, shown(minimum=1, maximum=MAX_N)] = 1
    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    seed: Annotated[int | None, shown(minimum=-MAX_SEED - 1, maximum=MAX_SEED)] = None
    stop: Annotated[str | Texts | None, STOPS] = None
    logit_bias: Annotated[dict[str, Bias] | None, shown(
        propertyNames={"pattern": TOKEN_ID.pattern}, maxProperties=MAX_ENTRIES["logit_bias"])] = None
    max_tokens: MaxTokens = None
    max_completion_tokens: MaxTokens = None  # the same, by its newer name
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    # vLLM's
    top_k: TopK = 0
    min_p: Annotated[float, shown(minimum=0, maximum=1)] = 0.0
    repetition_penalty: Annotated[float, shown(exclusiveMinimum=0, maximum=100)] = 1.0
    stop_token_ids: Annotated[TokenIds | None, token_ids("stop_token_ids")] = None
    min_tokens: Annotated[int, shown(minimum=0)] = 0
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    allowed_token_ids: Annotated[TokenIds | None, token_ids("allowed_token_ids", minItems=1)] = None
    bad_words: Annotated[Texts | None, shown(maxItems=MAX_ENTRIES["bad_words"], items=STRINGS)] = None
    prompt_logprobs: NumLogprobs = None
    structured_outputs: StructuredOutputsFields | None = None
    return_token_ids: bool = False
    use_beam_search: OnlyFalse = False
    add_special_tokens: bool | None = None  # to the prompt; None: for plain text yes, for a rendered template no
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    cache_salt: Annotated[str, Field(max_length=1024)] = ""
    timeout: Annotated[float, Field(gt=0, le=MAX_TIMEOUT)] | None = None  # seconds; ours
    request_id: Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)] | None = None  # may repeat
    # Without an effect on the answer, by their meaning.
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: OnlyFalse = False
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: PromptCacheOptions | None = None
    prompt_cache_retention: Literal["in-memory", "in_memory", "24h"] | None = None
    spaces_between_special_tokens: OnlyTrue = True
    service_tier: Literal["auto", "default"] | None = None

    @model_validator(mode="after")
    def fields_that_go_together(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options may be set only when stream is true", "stream_options")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise RequestError("max_tokens and max_completion_tokens differ; give one of them", "max_tokens")
        check_strings("stop", self.stop)
        check_strings("bad_words", self.bad_words)
        return self

    @property
    def token_limit(self) -> int | None:
        """max_tokens, by whichever of its names."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    def names_as_sent(self) -> dict[str, str]:
        newer = self.max_tokens is None and self.max_completion_tokens is not None
        return {"max_tokens": "max_completion_tokens"} if newer else {}

    def sampling_params(self, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """Raises RequestError naming the field that is out of range."""
        return SamplingParams(
            n=self.n, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p,
            repetition_penalty=self.repetition_penalty, presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty, logit_bias=self._logit_bias(),
            allowed_token_ids=self.allowed_token_ids, bad_words=self.bad_words, seed=self.seed, max_tokens=max_tokens,
            min_tokens=self.min_tokens, stop=self.stop, stop_token_ids=self.stop_token_ids, ignore_eos=self.ignore_eos,
            include_stop_str_in_output=self.include_stop_str_in_output, skip_special_tokens=self.skip_special_tokens,
            logprobs=logprobs, prompt_logprobs=self.prompt_logprobs, structured_outputs=self.structured(),
        )

    def structured(self) -> StructuredOutputs | None:
        """What the text must look like, by either of its names. Raises RequestError when both are given."""
        asked = None if self.response_format is None else self.response_format.structured()
        if self.structured_outputs is None:
            return asked
        if asked is not None:
            raise RequestError("response_format and structured_outputs say the same thing; give one of them",
                               "structured_outputs")
        return self.structured_outputs.structured()

    def _logit_bias(self) -> dict[int, float] | None:
        if self.logit_bias is None:
            return None
        if not all(map(TOKEN_ID.fullmatch, self.logit_bias)):
            raise RequestError("logit_bias must be keyed by token ids", "logit_bias")
        return {int(token): bias for token, bias in self.logit_bias.items()}


class CompletionRequest(GenerationRequest):
    prompt: Annotated[str | Texts | TokenIds | Annotated[list[TokenIds], Field(fail_fast=True)],
                      shown(examples=["Once upon a time"])]
    max_tokens: Annotated[int | None, shown(minimum=0, examples=[16])] = None  # 16; 0 with echo only
    max_completion_tokens: Annotated[int | None, shown(minimum=0, examples=[16])] = None
    logprobs: NumLogprobs = None
    echo: bool = False
    best_of: int | None = None  # only what n says anyway
    suffix: Literal[""] | None = None

    @model_validator(mode="after")
    def one_number_of_choices(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != self.n:
            raise RequestError(f"best_of must be n ({self.n}): completions are not ranked, got {self.best_of}",
                               "best_of")
        return self

    @property
    def prompt_only(self) -> bool:
        """Whether nothing but the prompt is wanted back (OpenAI's max_tokens: 0 with echo)."""
        return self.echo and self.token_limit == 0

    def params(self) -> SamplingParams:
        """With `echo`, log-probabilities are wanted of the prompt as well. Raises RequestError."""
        max_tokens = 16 if self.token_limit is None else self.token_limit
        params = self.sampling_params(1 if self.prompt_only else max_tokens, self.logprobs)
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


ROLE_OF = {"refusal": "assistant", "tool_calls": "assistant", "reasoning_content": "assistant",
           "reasoning": "assistant", "tool_call_id": "tool"}


class ChatMessage(RequestModel):
    """One turn. What `name`, `reasoning_content` and `tool_call_id` do is for the model's template to say."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    refusal: str | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # the same, by its newer name
    # In messages that clients send back as they got them, or that a harness makes; without an effect.
    type: Annotated[Literal["text"] | None, Field(exclude=True)] = None
    annotations: Annotated[list[Any] | None, Field(exclude=True)] = None
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def says_what_its_role_can(self) -> ChatMessage:
        for name, role in ROLE_OF.items():
            if vars(self)[name] is not None and self.role != role:
                raise RequestError(f"{name} is for a message of the role {role}, not {self.role}", name)
        if self.reasoning is not None and self.reasoning_content not in (None, self.reasoning):
            raise RequestError("reasoning and reasoning_content differ; give one of them", "reasoning")
        if self.content is None and not self.tool_calls and not self.refusal:
            raise RequestError(f"content is missing: a message of the role {self.role} needs it", "content")
        if self.content and self.refusal:
            raise RequestError("refusal cannot go with content: it is what is said instead", "refusal")
        return self

    def for_template(self) -> dict[str, Any]:
        """As templates know it: they have no developer and no refusals, and want content to be there."""
        message = self.model_dump(exclude={"refusal"}, exclude_none=True)
        return {**message, "role": "system" if self.role == "developer" else self.role,
                "content": message.get("content") or self.refusal or ""}


class FunctionDefinition(RequestModel):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None  # true: arguments follow the schema, all of it, wherever this is called


class Tool(RequestModel):
    type: Literal["function"]
    function: FunctionDefinition


def check_unlike(names: list[str], field: str) -> None:
    """Raises RequestError for a tool that has the name of another; `field`: what a name is called within its entry."""
    for i, name in enumerate(names):
        if name in names[:i]:
            raise RequestError(f"[{i}].{field} is the name of another tool as well: {name!r}", f"[{i}].{field}")


def _unlike(tools: list[Tool]) -> list[Tool]:
    check_unlike([tool.function.name for tool in tools], "function.name")
    return tools


Tools = Annotated[list[Tool], Field(fail_fast=True), AfterValidator(_unlike)]


class FunctionName(RequestModel):
    name: str


class NamedToolChoice(RequestModel):
    type: Literal["function"]
    function: FunctionName


class Conversation(RequestModel):
    """What goes through the chat template, in every route that has one."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True, examples=[
        [{"role": "user", "content": "What is 27 + 35?"}]])]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    documents: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    chat_template: str | None = None  # a stranger's program; served with --trust-request-chat-template only
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None

    @model_validator(mode="after")
    def one_end_of_the_prompt(self) -> Conversation:
        if self.add_generation_prompt and self.continue_final_message:
            raise RequestError("continue_final_message needs add_generation_prompt: false", "continue_final_message")
        return self

    def names_as_sent(self) -> dict[str, str]:
        return {**super().names_as_sent(), "prompt": "messages"}


class ChatCompletionRequest(Conversation, GenerationRequest):
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    modalities: list[Literal["text"]] | None = None
    tools: Tools | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool = True

    @model_validator(mode="after")
    def fields_that_depend_on_each_other(self) -> ChatCompletionRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs: true", "top_logprobs")
        if self.tool_choice is not None and not self.tools:
            raise RequestError("tool_choice needs tools", "tool_choice")
        if isinstance(self.tool_choice, NamedToolChoice) \
                and self.tool_choice.function.name not in [tool.function.name for tool in self.tools or ()]:
            raise RequestError(f"tool_choice names {self.tool_choice.function.name!r}, which is none of the tools",
                               "tool_choice")
        return self

    def names_as_sent(self) -> dict[str, str]:
        top = {} if self.top_logprobs is None else {"logprobs": "top_logprobs"}
        return {**super().names_as_sent(), **top}

    def template_tools(self) -> list[dict[str, Any]] | None:
        """The tools as the template shows them to the model; none when it is not to call any."""
        if not self.tools or self.tool_choice == "none":
            return None
        return [tool.model_dump(exclude={"function": {"strict"}}, exclude_none=True) for tool in self.tools]
