"""What a generation gives back, and the one processor that makes it of tokens, offline and in the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mini_infer.protocol import RequestError, SamplingParams, TokenLogprobs, TokensOut
from mini_infer.text.detokenizer import IncrementalDetokenizer
from mini_infer.text.stop import StopAutomaton, StopChecker
from mini_infer.text.tokenizer import Tokenizer


class Logprob(NamedTuple):
    """One token's log-probability at one position. rank: 1 is the most likely."""

    logprob: float
    rank: int
    decoded_token: str | None


PositionLogprobs = dict[int, Logprob]  # by token id: the sampled (or prompt) token first, then the most likely in order


class CompletionDelta(NamedTuple):
    """What is new in one completion. `text` lags behind `token_ids` while a character or stop string is incomplete.

    finish_reason: None, "stop", "length", "abort" or "error"; stop_reason: the stop string or stop token id that ended
    it (None for the model's own EOS). prompt_logprobs comes once, with the first delta, position 0 being None.
    """

    index: int  # type: ignore[assignment]  # of the completion; no one needs tuple.index here
    text: str
    token_ids: list[int]
    logprobs: list[PositionLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: list[PositionLogprobs | None] | None = None
    num_cached_tokens: int = 0
    error: str | None = None
    error_param: str | None = None  # the request's own field that made it fail


@dataclass(slots=True)
class CompletionOutput:
    """One of a request's n completions."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[PositionLogprobs] | None = None
    cumulative_logprob: float | None = None  # of the sampled tokens; None when logprobs were not asked for
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    error: str | None = None  # why, when finish_reason is "error"


@dataclass(slots=True)
class RequestOutput:
    """A request and its completions. `prompt` is None when the prompt came as token ids."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[PositionLogprobs | None] | None = None
    num_cached_tokens: int = 0
    finished: bool = False

    @property
    def text(self) -> str:
        """Of the first completion, like the following."""
        return self.outputs[0].text

    @property
    def token_ids(self) -> list[int]:
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> str | None:
        return self.outputs[0].finish_reason


class RequestAssembler:
    """Collects the deltas of a request's completions into its RequestOutput."""

    def __init__(self, request_id: str, prompt: str | None, prompt_token_ids: list[int], n: int = 1):
        self.output = RequestOutput(request_id, prompt, prompt_token_ids, [CompletionOutput(i) for i in range(n)])
        self._texts: list[list[str]] = [[] for _ in range(n)]
        self._unfinished = n

    def add(self, delta: CompletionDelta) -> bool:
        """Take a delta in; True when it finished the request. Texts are joined when a completion finishes."""
        output, completion = self.output, self.output.outputs[delta.index]
        self._texts[delta.index].append(delta.text)
        completion.token_ids.extend(delta.token_ids)
        if delta.logprobs is not None:
            if completion.logprobs is None:
                completion.logprobs = []
            completion.logprobs.extend(delta.logprobs)
            sampled = zip(delta.token_ids, delta.logprobs, strict=True)
            completion.cumulative_logprob = (completion.cumulative_logprob or 0.0) + sum(
                position[token_id].logprob for token_id, position in sampled)
        if delta.prompt_logprobs is not None:
            output.prompt_logprobs = delta.prompt_logprobs
        if delta.index == 0:  # the others find the first one's prompt in the cache
            output.num_cached_tokens = max(output.num_cached_tokens, delta.num_cached_tokens)
        if delta.finish_reason is not None:
            completion.text = "".join(self._texts[delta.index])
            completion.finish_reason, completion.stop_reason = delta.finish_reason, delta.stop_reason
            completion.error = delta.error
            self._unfinished -= 1
            output.finished = self._unfinished == 0
        return output.finished


class SequenceOutput:
    """The text side of one sequence: a detokenizer, a stop checker, and what has not been handed on yet.

    With stream=False nothing is handed on before the end; then, unless stop strings have to be looked for as they
    appear, tokens are only collected and their text is made in one go.
    """

    __slots__ = (
        "_detokenizer",
        "_index",
        "_logprobs",
        "_num_cached_tokens",
        "_num_tokens",
        "_params",
        "_prompt_logprobs",
        "_stop",
        "_stream",
        "_texts",
        "_token_ids",
        "_tokenizer",
        "_undecoded",
    )

    def __init__(self, tokenizer: Tokenizer | None, prompt_token_ids: Sequence[int], params: SamplingParams,
                 index: int, stream: bool, stops: StopAutomaton | None = None):
        self._index = index
        self._params = params
        self._tokenizer = tokenizer
        self._stream = stream
        self._detokenizer: IncrementalDetokenizer | None = None
        if tokenizer is not None and params.detokenize:
            self._detokenizer = IncrementalDetokenizer(tokenizer, params.skip_special_tokens, prompt_token_ids)
        self._stop: StopChecker | None = None
        if stops is not None:
            if self._detokenizer is None:
                raise RequestError("stop needs a tokenizer and detokenize=True", "stop")
            self._stop = StopChecker(stops, params.include_stop_str_in_output)
        self._num_tokens = 0
        self._token_ids: list[int] = []
        self._undecoded: list[int] = []
        self._texts: list[str] = []
        self._logprobs: list[PositionLogprobs] | None = None if params.logprobs is None else []
        self._prompt_logprobs: list[PositionLogprobs | None] | None = None if params.prompt_logprobs is None else [None]
        self._num_cached_tokens = 0

    def push(self, out: TokensOut) -> CompletionDelta | None:
        """Take one step's tokens; returns what to hand on, if anything. The delta that finishes may do so with
        finish_reason "stop" while `out` goes on: then a stop string was found, and the engine must be told."""
        if out.num_cached_tokens:
            self._num_cached_tokens = out.num_cached_tokens
        if out.prompt_logprobs and self._prompt_logprobs is not None:
            self._prompt_logprobs += [self._position(entry) for entry in out.prompt_logprobs]
        finish_reason: str | None = out.finish_reason
        stop_reason: int | str | None = out.stop_reason
        stop_string = None
        if out.token_ids:
            stop_string = self._take(out)
        if stop_string is None and finish_reason is not None:
            stop_string = self._finish_text()
        if stop_string is not None:
            finish_reason, stop_reason = "stop", stop_string
        if finish_reason is None and not (self._stream and out.token_ids):
            return None
        return self._delta(finish_reason, stop_reason, out.error, out.error_param)

    def _take(self, out: TokensOut) -> str | None:
        """Record the tokens, up to the one that completes a stop string; returns that string."""
        token_ids = out.token_ids
        kept, stop_string = len(token_ids), None
        if self._detokenizer is not None:
            shown = token_ids
            if out.finish_reason == "stop" and not self._params.include_stop_str_in_output:
                shown = token_ids[:-1]  # the token that ended it is EOS or a stop token: counted, not shown
            if self._stop is not None:
                for i, token_id in enumerate(shown):
                    may_stop = self._num_tokens + i + 1 > self._params.min_tokens
                    text, stop_string = self._stop.push(self._detokenizer.push((token_id,)), may_stop)
                    self._texts.append(text)
                    if stop_string is not None:
                        kept = i + 1
                        break
            elif self._stream:
                self._texts.append(self._detokenizer.push(shown))
            else:
                self._undecoded += shown
        self._num_tokens += kept
        self._token_ids += token_ids if kept == len(token_ids) else token_ids[:kept]
        if self._logprobs is not None and out.logprobs is not None:
            self._logprobs += [self._position(entry) for entry in out.logprobs[:kept]]
        return stop_string

    def _finish_text(self) -> str | None:
        """Bring out what was held back; returns a stop string that only now became complete."""
        if self._detokenizer is None:
            return None
        text = self._detokenizer.push(self._undecoded) + self._detokenizer.flush()
        stop_string = None
        if self._stop is not None:
            text, stop_string = self._stop.push(text, self._num_tokens > self._params.min_tokens)
            if stop_string is None:
                text += self._stop.flush()
        self._texts.append(text)
        return stop_string

    def _delta(self, finish_reason: str | None, stop_reason: int | str | None, error: str | None,
               error_param: str | None) -> CompletionDelta:
        delta = CompletionDelta(self._index, "".join(self._texts), self._token_ids, self._logprobs, finish_reason,
                                stop_reason, self._prompt_logprobs, self._num_cached_tokens, error, error_param)
        self._texts, self._token_ids, self._prompt_logprobs = [], [], None
        self._logprobs = None if self._logprobs is None else []
        return delta

    def _position(self, entry: TokenLogprobs) -> PositionLogprobs:
        tokenizer = self._tokenizer
        text_of = (lambda token_id: None) if tokenizer is None else tokenizer.token_text
        token_ids, logprobs = entry.token_ids, entry.logprobs
        position = {token_ids[0]: Logprob(logprobs[0], entry.rank, text_of(token_ids[0]))}
        for rank in range(1, len(token_ids)):
            if (token_id := token_ids[rank]) not in position:
                position[token_id] = Logprob(logprobs[rank], rank, text_of(token_id))
        return position


class OutputProcessor:
    """The text side of all running sequences, by the engine's request id. A sequence that finishes is forgotten."""

    def __init__(self, tokenizer: Tokenizer | None):
        self._tokenizer = tokenizer
        self._sequences: dict[int, SequenceOutput] = {}
        self._last_stops: tuple[list[str], StopAutomaton | None] = ([], None)

    def __len__(self) -> int:
        return len(self._sequences)

    def add(self, request_id: int, prompt_token_ids: Sequence[int], params: SamplingParams, index: int = 0,
            stream: bool = True) -> None:
        """Expect outputs of a sequence; `index` is its place among its request's completions.

        stream=False: one delta, at the end, and less work on the way. Raises RequestError("stop") when there are stop
        strings but no text to look for them in.
        """
        stop_strings = params.stop_strings
        if stop_strings != self._last_stops[0]:  # the completions of a request come one after the other, and share it
            self._last_stops = (stop_strings, StopAutomaton(stop_strings) if stop_strings else None)
        self._sequences[request_id] = SequenceOutput(self._tokenizer, prompt_token_ids, params, index, stream,
                                                     self._last_stops[1])

    def discard(self, request_id: int) -> None:
        """Forget a sequence whose client has gone; outputs still on their way are ignored."""
        self._sequences.pop(request_id, None)

    def process(self, outs: Sequence[TokensOut]) -> tuple[list[tuple[int, CompletionDelta]], list[int]]:
        """Outputs of a step to deltas by request id, and the ids of requests to abort in the engine because a stop
        string was found. Outputs of sequences that have finished or are unknown are ignored."""
        deltas, aborts = [], []
        for out in outs:
            sequence = self._sequences.get(out.request_id)
            if sequence is None:
                continue
            delta = sequence.push(out)
            if delta is None:
                continue
            deltas.append((out.request_id, delta))
            if delta.finish_reason is not None:
                del self._sequences[out.request_id]
                if out.finish_reason is None:
                    aborts.append(out.request_id)
        return deltas, aborts


__all__ = ["CompletionDelta", "CompletionOutput", "Logprob", "OutputProcessor", "PositionLogprobs", "RequestAssembler",
           "RequestOutput"]
