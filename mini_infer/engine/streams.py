"""What waits between the engine and a reader of its output, and what is remembered of each sequence meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from mini_infer.engine.history import Delivery
from mini_infer.protocol import SamplingParams
from mini_infer.text.output import CompletionDelta

STALL_SECONDS = 0.05  # a reader that takes longer with a piece lets the next ones wait
MAX_STALLS = 32  # remembered; beyond that the last one goes on


class OutputStream:
    """The completions of one request, as they grow: `async for deltas in stream` gives what is new since the last time.
    Where each token counts, `take` and `news` do the same without a coroutine for each.

    A reader that is slow finds the deltas of several steps merged into one for each completion, so what waits here is
    never more than the output itself, and nobody else waits for the reader. The stream ends after every completion
    has finished; `close` ends it early and frees what it holds in the engine.
    """

    def __init__(self, num_completions: int, on_close: Callable[[OutputStream], None]):
        self.request_ids: list[int] = []  # the engine's, of the completions that have not finished
        self.deadline: asyncio.TimerHandle | None = None
        self._unfinished = num_completions
        self._pending: dict[int, CompletionDelta] = {}
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._on_close = on_close
        self.deliveries: list[tuple[int, Delivery]] = []  # by request id, of completions that the reader has had
        self.stalls: list[tuple[float, float]] = []
        self._taken = float("inf")  # when the reader took what it is busy with
        self._ended: list[tuple[int, str]] = []  # request id and reason of completions whose last piece waits here
        self._handed: list[tuple[int, str]] = []  # and of those whose last piece the reader is busy with

    def put(self, request_id: int, delta: CompletionDelta) -> None:
        """Add what a step brought for one completion."""
        waiting = self._pending.get(delta.index)
        self._pending[delta.index] = delta if waiting is None else merge(waiting, delta)
        if delta.finish_reason is not None:
            self._unfinished -= 1
            self.request_ids.remove(request_id)
            if self._unfinished == 0:
                self._cancel_deadline()
            self._ended.append((request_id, delta.finish_reason))
        self._wake()

    def fail(self, error: Exception) -> None:
        """End the stream with an error, after what has come already is read."""
        self._cancel_deadline()
        self._error = error
        self._wake()

    def _cancel_deadline(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> OutputStream:
        return self

    async def __anext__(self) -> list[CompletionDelta]:
        while (deltas := self.take()) is not None:
            if deltas:
                return deltas
            await self.news()
        raise StopAsyncIteration

    def news(self) -> asyncio.Future[None]:
        """Done once there is something to take."""
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter

    def take(self) -> list[CompletionDelta] | None:
        """What is new; nothing where `news` is to be awaited, None after all completions have finished. Whoever asks is
        through with what it took before. Raises what the stream ended with."""
        self._return()
        if not self._pending:
            if self._error is not None:
                raise self._error
            return None if self._unfinished == 0 else []
        deltas = list(self._pending.values())
        self._pending.clear()
        self._taken = time.monotonic()
        if self._ended:
            self._handed, self._ended = self._handed + self._ended, []
        return deltas

    def close(self) -> None:
        """Abort what is unfinished. Safe to call at any time, any number of times."""
        self._cancel_deadline()
        self._return()
        self._on_close(self)

    def _return(self) -> None:
        """The reader is through with what it took."""
        now = time.monotonic()
        if now - self._taken > STALL_SECONDS:
            begin = self._taken if len(self.stalls) < MAX_STALLS else self.stalls.pop()[0]
            self.stalls.append((begin, now))
        self._taken = float("inf")
        for request_id, reason in self._handed:
            self.deliveries.append((request_id, Delivery(reason, now, list(self.stalls))))
        self._handed = []


class GenerationError(RuntimeError):
    """The engine could not bring a request to its end; the message says why."""


class DeadlineError(GenerationError):
    """The time that a request was given is over; it was ended."""


class QueueFullError(RuntimeError):
    """As many requests wait as may; this one was not taken."""


def merge(first: CompletionDelta, second: CompletionDelta) -> CompletionDelta:
    """Two deltas of one completion, in order, as one."""
    first.token_ids.extend(second.token_ids)
    logprobs = second.logprobs
    if first.logprobs is not None:  # grows where it is, like the ids: a slow reader costs no more than a fast one
        first.logprobs.extend(logprobs or ())
        logprobs = first.logprobs
    return second._replace(
        text=first.text + second.text,
        token_ids=first.token_ids,
        logprobs=logprobs,
        prompt_logprobs=first.prompt_logprobs if second.prompt_logprobs is None else second.prompt_logprobs,
        num_cached_tokens=max(first.num_cached_tokens, second.num_cached_tokens),
    )


@dataclass(slots=True)
class SequenceRecord:
    """One sequence in the engine, as the front sees it. Times are seconds of `time.monotonic`.

    `params` are its request's, with the n that was asked for; `index` is its place among the stream's completions.
    """

    request_id: int
    stream: OutputStream
    num_prompt_tokens: int
    params: SamplingParams
    index: int
    arrival: float
    num_tokens: int = 0
    first_token: float = 0.0
    last_token: float = 0.0
