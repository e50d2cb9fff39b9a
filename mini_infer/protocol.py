"""What crosses a process boundary: plain dataclasses of integers, floats and strings.

Nothing here imports torch, the engine or the server. msgspec packs these types as they are. Anything that depends on
a model (vocabulary size, context length) is checked at the door by whoever knows the model; what can be checked from
the values alone is checked here, when the object is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MAX_SEED = 2**63 - 1
MAX_LOGPROBS = 20
MAX_N = 128
MAX_VOCAB_SIZE = 2**31  # token ids are 32-bit integers on the device


class RequestError(ValueError):
    """A request that cannot be served as asked. `param` names the offending field."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.param = param
        self.code = code


def _require(ok: bool, param: str, message: str, value: object) -> None:
    if not ok:
        raise RequestError(f"{param} must be {message}, got {value!r}", param)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return (_is_int(value) or isinstance(value, float)) and math.isfinite(value)  # type: ignore[arg-type]


@dataclass(frozen=True)
class StructuredOutputs:
    """What a request's text must look like: exactly one of the first five. Names are vLLM's StructuredOutputsParams'.

    json: a JSON schema, as an object or as text; regex: a regular expression for the whole text; choice: the possible
    texts; grammar: Lark, GBNF, or llguidance's own form; json_object: any JSON object. With disable_any_whitespace
    JSON comes without whitespace between its tokens. Whether the model's engine can honour it is checked at the door.
    """

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool = False
    disable_any_whitespace: bool = False
    preamble: str = ""  # Lark: a rule of this name, for what may come first (a model's thoughts)
    instead: str = ""  # Lark: what may come in the place of all this (tool calls)
    lenient: bool = False  # pass over keywords of a JSON schema that cannot be enforced, instead of refusing them
    source: str = "structured_outputs"  # the request's field that asked for this; errors name it

    def __post_init__(self) -> None:
        given = [name for name in STRUCTURED_KINDS if self.__dict__[name] not in (None, False)]
        if len(given) != 1:
            raise RequestError(f"{self.source} must have exactly one of {', '.join(STRUCTURED_KINDS)}, got "
                               f"{' and '.join(given) or 'none'}", self.source)
        for name, kinds in (("json", (dict, str)), ("regex", str), ("grammar", str), ("preamble", str),
                            ("instead", str)):
            value = self.__dict__[name]
            _require(value is None or isinstance(value, kinds), f"{self.source}.{name}",
                     "a JSON schema" if name == "json" else "text", value)
        for name in ("json_object", "disable_any_whitespace", "lenient"):
            _require(isinstance(self.__dict__[name], bool), f"{self.source}.{name}", "true or false",
                     self.__dict__[name])
        _require(self.choice is None or (isinstance(self.choice, list) and len(self.choice) > 0
                                         and all(isinstance(text, str) and text for text in self.choice)),
                 f"{self.source}.choice", "a list of non-empty strings", self.choice)


STRUCTURED_KINDS = ("json", "regex", "choice", "grammar", "json_object")


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen and when a request ends. Names and meanings follow vLLM's.

    Raises `RequestError` naming the field when a value is out of range.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0  # 0 or -1: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    seed: int | None = None
    max_tokens: int | None = 16  # None: up to the context length
    min_tokens: int = 0
    stop: list[str] | str | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    detokenize: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    structured_outputs: StructuredOutputs | None = None
    # Filled at the door from `bad_words` by the tokenizer; each is a token sequence that must not appear.
    bad_words_token_ids: list[list[int]] | None = None

    def __post_init__(self) -> None:
        _require(_is_int(self.n) and 1 <= self.n <= MAX_N, "n", f"an integer in [1, {MAX_N}]", self.n)
        _require(_is_number(self.temperature) and 0 <= self.temperature <= 100, "temperature",
                 "a number in [0, 100]", self.temperature)
        _require(_is_int(self.top_k) and -1 <= self.top_k <= MAX_SEED, "top_k",
                 "a positive 64-bit integer, or 0 or -1 for off", self.top_k)
        _require(_is_number(self.top_p) and 0 < self.top_p <= 1, "top_p", "a number in (0, 1]", self.top_p)
        _require(_is_number(self.min_p) and 0 <= self.min_p <= 1, "min_p", "a number in [0, 1]", self.min_p)
        _require(_is_number(self.repetition_penalty) and 0 < self.repetition_penalty <= 100, "repetition_penalty",
                 "a number in (0, 100]", self.repetition_penalty)
        for name in ("presence_penalty", "frequency_penalty"):
            value = self.__dict__[name]
            _require(_is_number(value) and -2 <= value <= 2, name, "a number in [-2, 2]", value)
        if self.seed is not None:
            _require(_is_int(self.seed) and -MAX_SEED - 1 <= self.seed <= MAX_SEED, "seed", "a 64-bit integer",
                     self.seed)
        if self.max_tokens is not None:
            _require(_is_int(self.max_tokens) and self.max_tokens >= 1, "max_tokens", "at least 1", self.max_tokens)
        _require(_is_int(self.min_tokens) and self.min_tokens >= 0, "min_tokens", "at least 0", self.min_tokens)
        if self.max_tokens is not None:
            _require(self.min_tokens <= self.max_tokens, "min_tokens",
                     f"at most max_tokens ({self.max_tokens})", self.min_tokens)
        for name in ("logprobs", "prompt_logprobs"):
            value = self.__dict__[name]
            _require(value is None or (_is_int(value) and 0 <= value <= MAX_LOGPROBS), name,
                     f"None or an integer in [0, {MAX_LOGPROBS}]", value)
        for name in ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens", "detokenize"):
            _require(isinstance(self.__dict__[name], bool), name, "true or false", self.__dict__[name])
        self._check_lists()

    def _check_lists(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", [self.stop])
        for name in ("stop", "bad_words"):
            value = self.__dict__[name]
            _require(value is None or (isinstance(value, list) and all(isinstance(s, str) and s for s in value)),
                     name, "a list of non-empty strings", value)
        for name in ("stop_token_ids", "allowed_token_ids"):
            value = self.__dict__[name]
            _require(value is None or (isinstance(value, list) and all(_is_int(t) and t >= 0 for t in value)),
                     name, "a list of token ids", value)
        _require(self.allowed_token_ids is None or len(self.allowed_token_ids) > 0, "allowed_token_ids",
                 "None or a non-empty list", self.allowed_token_ids)
        if self.logit_bias is not None:
            _require(isinstance(self.logit_bias, dict), "logit_bias", "a map from token id to bias", self.logit_bias)
            for token, bias in self.logit_bias.items():
                _require(_is_int(token) and token >= 0, "logit_bias", "keyed by token id", token)
                _require(_is_number(bias) and -100 <= bias <= 100, "logit_bias", "a number in [-100, 100]", bias)
        for word in self.bad_words_token_ids or ():
            _require(isinstance(word, list) and len(word) > 0 and all(map(_is_int, word)), "bad_words_token_ids",
                     "non-empty lists of token ids", word)
        _require(self.structured_outputs is None or isinstance(self.structured_outputs, StructuredOutputs),
                 "structured_outputs", "a StructuredOutputs", self.structured_outputs)
        _require(not (self.stop and not self.detokenize), "stop", "unset when detokenize is false", self.stop)

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list, whichever form it was given in."""
        return [self.stop] if isinstance(self.stop, str) else (self.stop or [])


def check_token_ids(params: SamplingParams, vocab_size: int) -> None:
    """Every token id in the parameters is one that the model's logits have. Raises `RequestError` naming the field."""
    by_field = {
        "logit_bias": params.logit_bias or (),
        "allowed_token_ids": params.allowed_token_ids or (),
        "stop_token_ids": params.stop_token_ids or (),
        "bad_words": [token for word in params.bad_words_token_ids or () for token in word],
    }
    for name, token_ids in by_field.items():
        for token_id in token_ids:
            if not 0 <= token_id < vocab_size:
                raise _outside_vocabulary(name, token_id, vocab_size)


def check_priority(priority: int, scheduling_policy: str) -> None:
    """Raises RequestError for a priority that the policy would not look at."""
    if priority and scheduling_policy == "fcfs":
        raise RequestError("priority has no effect under the scheduling policy fcfs; leave it out, or start the engine "
                           "with scheduling_policy priority", "priority")


def check_prompt(token_ids: list[int], vocab_size: int, max_model_len: int) -> None:
    """A prompt has tokens, all of them in the vocabulary, and leaves room for one of output. Raises `RequestError`.

    The door asks, to refuse a request before anything is done for it; the scheduler asks again, as it trusts nobody.
    """
    if not token_ids:
        raise RequestError("prompt must not be empty", "prompt")
    if len(token_ids) >= max_model_len:
        raise prompt_too_long(len(token_ids), max_model_len)
    if set(map(type, token_ids)) != {int}:
        wrong = next(token for token in token_ids if type(token) is not int)
        raise RequestError(f"prompt must be text or a list of token ids, got an element {wrong!r}", "prompt")
    low, high = min(token_ids), max(token_ids)
    if low < 0 or high >= vocab_size:
        raise _outside_vocabulary("prompt", low if low < 0 else high, vocab_size)


def prompt_too_long(num_tokens: int | str, max_model_len: int) -> RequestError:
    """The refusal of a prompt of `num_tokens`, a number or words such as "over 4096"."""
    return RequestError(
        f"This model's maximum context length is {max_model_len} tokens. However, your prompt has {num_tokens} tokens, "
        "which leaves no room for the output. Please shorten the prompt.", "prompt", "context_length_exceeded")


def _outside_vocabulary(param: str, token_id: int, vocab_size: int) -> RequestError:
    return RequestError(f"{param} has token id {token_id}, outside the vocabulary of {vocab_size}", param)


@dataclass(frozen=True)
class AddRequest:
    """One sequence to generate. `request_id` is the front's own, unique while the engine lives.

    A request with n > 1 becomes n of these.
    """

    request_id: int
    prompt_token_ids: list[int]
    params: SamplingParams  # n is 1 and max_tokens is set here
    priority: int = 0  # lower runs first
    cache_salt: str = ""
    arrival_time: float = 0.0


@dataclass(frozen=True)
class AbortRequest:
    request_ids: list[int]
    reason: str = "abort"  # or "stop": the front found a stop string


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities of one position under the model's own distribution (before any sampling parameter).

    `token_ids[0]` is the sampled (or prompt) token, then the `k` most likely in falling order; `ranks[0]` is the
    sampled token's rank (1 is the most likely).
    """

    token_ids: list[int]
    logprobs: list[float]
    rank: int


@dataclass(slots=True)  # not frozen: one is made per token, and a frozen one costs five times as much to make
class TokensOut:
    """What one step brought for one request. `finish_reason`: None, "stop", "length", "abort" or "error"."""

    request_id: int
    token_ids: list[int]
    finish_reason: str | None = None
    stop_reason: int | None = None  # the stop token that ended it, None when it was the model's own EOS
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None  # of prompt positions 1.., in order, as chunks complete
    num_cached_tokens: int = 0
    error: str | None = None
    error_param: str | None = None  # the request's own field that made it fail


@dataclass(frozen=True)
class EngineStats:
    """A snapshot of the engine: blocks, queues, and counters since start."""

    total_blocks: int = 0
    free_blocks: int = 0  # never used or holding nothing worth keeping
    cached_blocks: int = 0  # unreferenced, content kept for prefix hits until evicted
    used_blocks: int = 0  # referenced by a live request
    block_size: int = 0
    running: int = 0
    waiting: int = 0
    preemptions: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    computed_tokens: int = 0  # in steps whose results are in, those that a preemption made it compute again included
    computed_rows: int = 0  # in the same steps: how many sequences each had, added up
    requests_added: int = 0
    requests_finished: int = 0
    requests_aborted: int = 0
    requests_failed: int = 0


class Span(NamedTuple):
    """A stretch of a request's life, which begins where the one before it ended, the first one at its arrival.

    phase: "queued"; "prefill", one for each chunk; "decode"; or "preempted". end: seconds of the engine's clock.
    tokens: computed in a chunk, brought by a decode span, else 0.
    """

    phase: str
    end: float
    tokens: int


@dataclass(slots=True)
class Timeline:
    """Where the time of a request went that has ended. The spans have no gaps: they add up to its life."""

    request_id: int
    arrival: float
    spans: list[Span]
    prompt_tokens: int
    cached_tokens: int  # of the prompt, found in the cache at its first admission
    output_tokens: int
    preemptions: int
    reason: str  # as TokensOut.finish_reason


@dataclass(frozen=True)
class StepOutputs:
    """Everything one engine step tells the front."""

    outputs: list[TokensOut] = field(default_factory=list)
    stats: EngineStats | None = None
    ended: list[Timeline] = field(default_factory=list)
    step_seconds: float | None = None  # one turn of the loop: plan, wait for the device, take the result in


@dataclass(frozen=True)
class Launching:
    """The engine has been starting one step for so long: host work, which may compile kernels. Said again and again."""

    seconds: float


@dataclass(frozen=True)
class WatchEngine:
    """`on`: answer with an EngineView, and keep a trace of steps for the next one. Off: stop doing so."""

    on: bool


@dataclass(frozen=True)
class StepView:
    """What one step computed, by the ids of the requests that had a row in it. The first `num_decodes` rows are of
    requests that missed one token; the others are chunks of prompts, of `chunks` tokens each."""

    step_id: int
    end: float  # seconds of the engine's clock, when its result was there
    seconds: float  # since it was submitted, or since the result before it
    num_decodes: int
    request_ids: list[int]
    chunks: list[int]


class RequestView(NamedTuple):
    """A live request. phase: that of its Span to come."""

    request_id: int
    phase: str
    arrival: float
    prompt_tokens: int
    computed_tokens: int
    output_tokens: int
    max_tokens: int
    cached_tokens: int
    num_blocks: int
    preemptions: int


@dataclass(frozen=True)
class EngineView:
    """A look at a running engine.

    cells: the KV pool as 16-bit little-endian numbers, one for every `blocks_per_cell` blocks, which shows the first of
    them. 0 is free, 1 is cached (evictable), 2 is shared by several requests, 3 + i is held by `owners[i]` alone.
    """

    time: float  # seconds of the engine's clock
    cost: float  # seconds that making this view took, and keeping its steps
    stats: EngineStats
    steps: list[StepView]  # the first of those since the last view
    requests: list[RequestView]  # the first of those that run and of those that wait
    owners: list[tuple[int, int]]  # all that run: request id and number of blocks
    blocks_per_cell: int
    cells: bytes


@dataclass(frozen=True)
class EngineInfo:
    """What an engine says of itself once it is ready: every choice made, bytes and seconds counted."""

    model_path: str
    architecture: str
    device: str
    dtype: str
    vocab_size: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_blocks: int
    pipeline_depth: int
    eos_token_ids: list[int]
    startup_seconds: dict[str, float] = field(default_factory=dict)  # a phase each, in order
    memory_bytes: dict[str, int] = field(default_factory=dict)  # the ledger: weights, KV pool, workspace, …


@dataclass(frozen=True)
class EngineFailed:
    """The engine could not start, or cannot go on, and ends. `bad_config`: the configuration is at fault and `message`
    says what to change."""

    message: str
    bad_config: bool


@dataclass(frozen=True)
class RequestRefused:
    """The engine's answer to an AddRequest that it can never serve; nothing else follows for that request."""

    request_id: int
    message: str
    param: str | None = None
    code: str | None = None
