"""AsyncLLM: the engine for asyncio programs. The engine runs in its own process; text is made and read here.

    async with AsyncLLM(EngineConfig(model=...)) as llm:
        async for delta in llm.generate("Hello", SamplingParams(max_tokens=20)):
            print(delta.text, end="")
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from mini_infer.config import EngineConfig
from mini_infer.engine.client import EngineClient, EngineDeadError
from mini_infer.engine.ipc import Message
from mini_infer.engine.sim import SimConfig, refuse_unsimulated
from mini_infer.engine.streams import OutputStream, SequenceRecord
from mini_infer.protocol import (
    AbortRequest,
    AddRequest,
    EngineInfo,
    EngineStats,
    RequestError,
    RequestRefused,
    SamplingParams,
    StepOutputs,
)
from mini_infer.text.chat_template import ChatTemplate, require_chat_template
from mini_infer.text.door import Door, PreparedRequest, Prompt, expand
from mini_infer.text.output import CompletionDelta, OutputProcessor
from mini_infer.text.tokenizer import Tokenizer

LONG_TEXT = 4000  # characters; encoding this takes about a millisecond, more than the event loop should stand still


class Observer(Protocol):
    """Hears of everything that happens to sequences; for metrics. Called on the event loop: be quick."""

    def on_tokens(self, record: SequenceRecord, num_tokens: int, now: float) -> None:
        """New tokens; `record` still holds the times before them."""

    def on_finish(self, record: SequenceRecord, reason: str, now: float) -> None: ...


class AsyncLLM:
    """Generates for many callers at once; each request joins the running batch at the next step.

    `sim` makes it a dry run. `spawn` may be called before there is an event loop, so that the engine loads while the
    caller does something else; `start` waits until it is ready.
    """

    def __init__(self, config: EngineConfig | None = None, sim: SimConfig | None = None):
        self.config = config or EngineConfig()
        self.sim = sim
        self._observer: Observer | None = None
        self._client = EngineClient(self.config, sim)
        self._ids = count(1)
        self._records: dict[int, SequenceRecord] = {}
        self._named: dict[str, OutputStream] = {}
        self._stats = EngineStats()
        self._error: EngineDeadError | None = None
        self._info: EngineInfo | None = None
        self._text: tuple[Tokenizer | None, ChatTemplate | None] = (None, None)

    # ---- life ----------------------------------------------------------------------------------------------------

    def spawn(self) -> None:
        """Start the engine process. Returns at once."""
        self._client.spawn()

    def observe(self, observer: Observer) -> None:
        """From now on tell `observer` what happens to sequences."""
        self._observer = observer

    async def start(self) -> EngineInfo:
        """Wait until the engine is ready. Raises ConfigError for a configuration that cannot work, else EngineDeadError
        when it did not come up."""
        connecting = asyncio.create_task(self._client.connect(self._on_message, self._on_lost))
        tasks: list[asyncio.Task[Any]] = [connecting]
        local = not self.config.skip_tokenizer_init and Path(self.config.tokenizer_path).is_dir()
        if local:  # the tokenizer loads beside the engine
            tasks.append(asyncio.create_task(asyncio.to_thread(_load_text, self.config, self.config.model)))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                if task.done():
                    task.result()
            self._info = connecting.result()
            if local:
                self._text = tasks[1].result()
            elif not self.config.skip_tokenizer_init:  # only the engine knows where it put the model
                self._text = await asyncio.to_thread(_load_text, self.config, self._info.model_path)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._client.close()
            raise
        self._door = Door(self.tokenizer, self._info.vocab_size, self._info.max_model_len)
        self._processor = OutputProcessor(self.tokenizer)
        return self._info

    async def close(self) -> None:
        """End the engine process; whatever still runs ends with EngineDeadError."""
        await self._client.close()
        self._on_lost(EngineDeadError("the engine was shut down"))

    async def __aenter__(self) -> AsyncLLM:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        traceback: TracebackType | None) -> None:
        await self.close()

    @property
    def info(self) -> EngineInfo:
        """What the engine said of itself. Raises RuntimeError before `start`."""
        if self._info is None:
            raise RuntimeError("AsyncLLM: start() first")
        return self._info

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._text[0]

    @property
    def error(self) -> EngineDeadError | None:
        """Why requests cannot be served any more; None while they can."""
        return self._error

    @property
    def engine_pid(self) -> int | None:
        return self._client.pid

    def stats(self) -> EngineStats:
        """The engine's counters as of its last step."""
        return self._stats

    # ---- requests ------------------------------------------------------------------------------------------------

    async def generate(self, prompt: Prompt, params: SamplingParams | None = None, *, priority: int = 0,
                       cache_salt: str = "", request_id: str | None = None,
                       stream: bool = True) -> AsyncIterator[CompletionDelta]:
        """The completions of one prompt, piece by piece. Leaving the loop early frees what the request holds.

        `request_id` is the caller's own name for it, for `abort`. With `stream=False` each completion comes whole.
        Raises RequestError for a request that cannot be served, EngineDeadError when the engine is gone.
        """
        [prepared] = await self.prepare([prompt], params or SamplingParams())
        output = self.submit([prepared], priority=priority, cache_salt=cache_salt, request_id=request_id, stream=stream)
        try:
            async for deltas in output:
                for delta in deltas:
                    yield delta
        finally:
            output.close()

    async def prepare(self, prompts: Sequence[Prompt], params: SamplingParams, *, clip_max_tokens: bool = True,
                      add_special_tokens: bool = True) -> list[PreparedRequest]:
        """Encode and check; long texts are encoded beside the event loop. Raises RequestError naming the field."""
        if self.sim is not None:
            refuse_unsimulated(params)

        def work() -> list[PreparedRequest]:
            return self._door.prepare_batch(prompts, [params] * len(prompts), clip_max_tokens=clip_max_tokens,
                                            add_special_tokens=add_special_tokens)

        long = sum(len(prompt) for prompt in prompts if isinstance(prompt, str)) > LONG_TEXT
        return await asyncio.to_thread(work) if long else work()

    async def render_chat(self, messages: list[dict[str, Any]], **options: Any) -> str:
        """Messages as the model's chat template writes them; `options` are ChatTemplate.render's."""
        template = require_chat_template(self._text[1])
        long = sum(len(str(message.get("content"))) for message in messages) > LONG_TEXT
        return await asyncio.to_thread(template.render, messages, **options) if long else \
            template.render(messages, **options)

    def submit(self, requests: Sequence[PreparedRequest], *, priority: int = 0, cache_salt: str = "",
               request_id: str | None = None, stream: bool = True) -> OutputStream:
        """Hand prepared requests to the engine; their completions share one stream, where completion j of request i has
        index i * n + j. The caller must `close` the stream."""
        if self._error is not None:
            raise self._error
        if request_id is not None and request_id in self._named:
            raise RequestError(f"request_id {request_id!r} is in use by an unfinished request", "request_id")
        parts = [(request, params) for request in requests for params in expand(request.params)]
        output = OutputStream(len(parts), self._close)
        now = time.monotonic()
        for index, (request, params) in enumerate(parts):
            engine_id = next(self._ids)
            ids = request.prompt_token_ids
            self._processor.add(engine_id, ids, params, index, stream)
            self._records[engine_id] = SequenceRecord(engine_id, output, len(ids), params.max_tokens or 0, now)
            output.request_ids.append(engine_id)
            self._client.send(AddRequest(engine_id, ids, params, priority, cache_salt, now))
        if request_id is not None:
            self._named[request_id] = output
        return output

    def abort(self, request_id: str) -> None:
        """End a request by the name it was given; unknown or finished ones are passed over."""
        output = self._named.get(request_id)
        if output is not None:
            self._client.send(AbortRequest(list(output.request_ids)))  # the answers have finish_reason "abort"

    def _close(self, output: OutputStream) -> None:
        ids = output.request_ids
        if ids:
            self._client.send(AbortRequest(ids))
        now = time.monotonic()
        for engine_id in ids:
            self._processor.discard(engine_id)
            self._forget(self._records[engine_id], "abort", now)
        output.request_ids = []
        for name in [name for name, named in self._named.items() if named is output]:
            del self._named[name]

    def _forget(self, record: SequenceRecord, reason: str, now: float) -> None:
        del self._records[record.request_id]
        if self._observer is not None:
            self._observer.on_finish(record, reason, now)

    # ---- from the engine -----------------------------------------------------------------------------------------

    def _on_message(self, message: Message) -> None:
        if isinstance(message, StepOutputs):
            self._on_step(message)
        elif isinstance(message, RequestRefused) and (record := self._records.get(message.request_id)) is not None:
            self._processor.discard(message.request_id)
            record.stream.request_ids.remove(message.request_id)
            self._forget(record, "error", time.monotonic())
            record.stream.fail(RequestError(message.message, message.param, message.code))

    def _on_step(self, step: StepOutputs) -> None:
        """Everything one step brought, in one go: a reader wakes once a step however many tokens came."""
        if step.stats is not None:
            self._stats = step.stats
        now = time.monotonic()
        observer, records = self._observer, self._records
        for out in step.outputs:
            num_tokens = len(out.token_ids)
            if num_tokens and (record := records.get(out.request_id)) is not None:
                if observer is not None:
                    observer.on_tokens(record, num_tokens, now)
                record.num_tokens += num_tokens
                record.last_token = now
                record.first_token = record.first_token or now
        deltas, aborts = self._processor.process(step.outputs)
        for engine_id, delta in deltas:
            record = records[engine_id]
            record.stream.put(engine_id, delta)
            if delta.finish_reason is not None:
                self._forget(record, delta.finish_reason, now)
        if aborts:
            self._client.send(AbortRequest(aborts))

    def _on_lost(self, error: EngineDeadError) -> None:
        if self._error is None:
            self._error = error
        now = time.monotonic()
        for record in list(self._records.values()):
            self._processor.discard(record.request_id)
            record.stream.request_ids.clear()
            record.stream.fail(self._error)
            self._forget(record, "error", now)


def _load_text(config: EngineConfig, model_dir: str) -> tuple[Tokenizer, ChatTemplate | None]:
    tokenizer = Tokenizer.load(config.tokenizer or model_dir)
    return tokenizer, ChatTemplate.load(config.tokenizer or model_dir, tokenizer)


__all__ = ["AsyncLLM", "EngineDeadError", "Observer", "OutputStream"]
