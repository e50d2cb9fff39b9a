"""What waits between the engine and a reader of its output, and what is remembered of each sequence meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from mini_infer.text.output import CompletionDelta


class OutputStream:
    """The completions of one request, as they grow: `async for deltas in stream` gives what is new since the last time.

    A reader that is slow finds the deltas of several steps merged into one for each completion, so what waits here is
    never more than the output itself, and nobody else waits for the reader. The stream ends after every completion
    has finished; `close` ends it early and frees what it holds in the engine.
    """

    def __init__(self, num_completions: int, on_close: Callable[[OutputStream], None]):
        self.request_ids: list[int] = []  # the engine's, of the completions that have not finished
        self._unfinished = num_completions
        self._pending: dict[int, CompletionDelta] = {}
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._on_close = on_close

    def put(self, request_id: int, delta: CompletionDelta) -> None:
        """Add what a step brought for one completion."""
        waiting = self._pending.get(delta.index)
        self._pending[delta.index] = delta if waiting is None else merge(waiting, delta)
        if delta.finish_reason is not None:
            self._unfinished -= 1
            self.request_ids.remove(request_id)
        self._wake()

    def fail(self, error: Exception) -> None:
        """End the stream with an error, after what has come already is read."""
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> OutputStream:
        return self

    async def __anext__(self) -> list[CompletionDelta]:
        while not self._pending:
            if self._error is not None:
                raise self._error
            if self._unfinished == 0:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        deltas = list(self._pending.values())
        self._pending.clear()
        return deltas

    def close(self) -> None:
        """Abort what is unfinished. Safe to call at any time, any number of times."""
        self._on_close(self)


class GenerationError(RuntimeError):
    """The engine could not bring a request to its end; the message says why."""


def merge(first: CompletionDelta, second: CompletionDelta) -> CompletionDelta:
    """Two deltas of one completion, in order, as one."""
    first.token_ids.extend(second.token_ids)
    logprobs = first.logprobs
    if second.logprobs:
        logprobs = [*(logprobs or []), *second.logprobs]
    return second._replace(
        text=first.text + second.text,
        token_ids=first.token_ids,
        logprobs=logprobs,
        prompt_logprobs=first.prompt_logprobs if second.prompt_logprobs is None else second.prompt_logprobs,
        num_cached_tokens=max(first.num_cached_tokens, second.num_cached_tokens),
    )


@dataclass(slots=True)
class SequenceRecord:
    """One sequence in the engine, as the front sees it. Times are seconds of `time.monotonic`."""

    request_id: int
    stream: OutputStream
    num_prompt_tokens: int
    max_tokens: int
    arrival: float
    num_tokens: int = 0
    first_token: float = 0.0
    last_token: float = 0.0
