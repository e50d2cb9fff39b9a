"""AsyncLLM: the engine for asyncio programs. The engine runs in its own process; text is made and read here.

    async with AsyncLLM(EngineConfig(model=...)) as llm:
        async for delta in llm.generate("Hello", SamplingParams(max_tokens=20)):
            print(delta.text, end="")
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

from mini_infer.config import EngineConfig
from mini_infer.engine.client import EngineClient, EngineDeadError
from mini_infer.engine.history import Delivery, History
from mini_infer.engine.ipc import Message
from mini_infer.engine.observer import Observer, StepSeen
from mini_infer.engine.sim import SimConfig, refuse_unsimulated
from mini_infer.engine.streams import DeadlineError, OutputStream, QueueFullError, SequenceRecord
from mini_infer.protocol import (
    AbortRequest,
    AddRequest,
    EngineInfo,
    EngineStats,
    EngineView,
    Launching,
    RequestError,
    RequestRefused,
    SamplingParams,
    StepOutputs,
    WatchEngine,
    check_priority,
)
from mini_infer.text.chat_template import ChatTemplate, require_chat_template
from mini_infer.text.door import Door, PreparedRequest, Prompt, expand
from mini_infer.text.grammar import GrammarCompiler
from mini_infer.text.output import CompletionDelta, OutputProcessor
from mini_infer.text.tokenizer import Tokenizer

STALL_TIMEOUT = 60.0  # seconds
LAUNCH_ALLOWANCE = 10  # times the stall timeout, for a step that is still being started: kernels may compile
MAX_UNSENT_BYTES = 256 * 2**20  # of requests that an engine has not taken; one that hangs takes none
LONG_TEXT = 4000  # characters; encoding this takes about a millisecond, more than the event loop should stand still


class AsyncLLM:
    """Generates for many callers at once; each request joins the running batch at the next step.

    `sim` makes it a dry run. `spawn` may be called before there is an event loop, so that the engine loads while the
    caller does something else; `start` waits until it is ready. `max_queue`: sequences that may wait for a place in the
    running batch; None means any number. `stall_timeout`: seconds without progress after which the engine is said to
    hang.
    """

    def __init__(self, config: EngineConfig | None = None, sim: SimConfig | None = None, *,
                 max_queue: int | None = None, stall_timeout: float = STALL_TIMEOUT):
        self.config = config or EngineConfig()
        self.sim = sim
        self._max_queue = max_queue
        self._stall_timeout = stall_timeout
        self._heard = 0.0  # when the engine last showed progress, or got work after it had none
        self.lost = asyncio.Event()  # set while the engine is gone
        self._observers: list[Observer] = []
        self._client = EngineClient(self.config, sim)
        self._ids = count(1)
        self._records: dict[int, SequenceRecord] = {}
        self._named: dict[str, OutputStream] = {}
        self._stats = EngineStats()
        self.history = History()  # of the sequences that ended last
        self._view: asyncio.Future[EngineView] | None = None  # asked for and not there yet
        self._error: EngineDeadError | None = None
        self._info: EngineInfo | None = None
        self._text: tuple[Tokenizer | None, ChatTemplate | None] = (None, None)
        self._grammar_thread = ThreadPoolExecutor(1, "grammar")

    # ---- life ----------------------------------------------------------------------------------------------------

    def spawn(self) -> None:
        """Start the engine process. Returns at once."""
        self._client.spawn()

    def observe(self, observer: Observer) -> None:
        """From now on tell `observer` as well what happens to sequences."""
        self._observers.append(observer)

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
        self._processor = OutputProcessor(self.tokenizer)
        self._open_door(self._info)
        return self._info

    def _open_door(self, info: EngineInfo) -> None:
        grammars = GrammarCompiler(lambda: self.tokenizer, info.vocab_size, info.eos_token_ids)
        self._door = Door(self.tokenizer, info.vocab_size, info.max_model_len, grammars)

    async def restart(self) -> EngineInfo:
        """Start the engine again after it has ended, or end it and start it again. Raises as `start` does; requests are
        served again once this returns."""
        self._on_lost(EngineDeadError("the engine is being started again"))
        await self._client.close()
        self._client = EngineClient(self.config, self.sim)
        self._stats = EngineStats()
        self._info = await self._client.connect(self._on_message, self._on_lost)
        self._open_door(self._info)
        self._error = None
        self.lost.clear()
        return self._info

    def kill(self) -> None:
        """End an engine that makes no progress; requests end with EngineDeadError."""
        self._client.kill()

    async def close(self) -> None:
        """End the engine process; whatever still runs ends with EngineDeadError."""
        self._grammar_thread.shutdown(wait=False, cancel_futures=True)
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
    def chat_template(self) -> ChatTemplate | None:
        return self._text[1]

    @property
    def error(self) -> EngineDeadError | None:
        """Why requests cannot be served, or not at the moment; None while they can."""
        return self._error

    @property
    def stalled(self) -> bool:
        """Whether there is work, and the engine has made no progress with it for longer than the stall timeout."""
        return bool(self._records) and time.monotonic() - self._heard > self._stall_timeout

    def check_queue(self) -> None:
        """Raises QueueFullError when as many sequences wait as may: as of the engine's last step, and those sent since;
        and when the engine takes nothing, whether those who asked still wait or have gone.

        A batch that others wait for is as large as it gets, whether slots, tokens or blocks are short.
        """
        if self._max_queue is None:
            return
        places = self._stats.running if self._stats.waiting else self.info.max_num_seqs
        if len(self._records) >= places + self._max_queue:
            raise QueueFullError(f"the server is busy: its queue of {self._max_queue} requests is full")
        if self._client.unsent_bytes > MAX_UNSENT_BYTES:
            raise QueueFullError("the server is busy: its engine takes no requests at the moment")

    @property
    def engine_pid(self) -> int | None:
        return self._client.pid

    def stats(self) -> EngineStats:
        """The engine's counters as of its last step."""
        return self._stats

    async def look(self) -> EngineView:
        """What the engine is doing. From the first look on it keeps a trace of its steps, until `look_away`.

        The engine answers between two steps. Raises EngineDeadError when it is gone.
        """
        if self._error is not None:
            raise self._error
        if self._view is None:
            self._view = asyncio.get_running_loop().create_future()
            self._client.send(WatchEngine(True))
        return await asyncio.shield(self._view)

    def look_away(self) -> None:
        """Nobody watches any more."""
        self._client.send(WatchEngine(False))

    # ---- requests ------------------------------------------------------------------------------------------------

    async def generate(self, prompt: Prompt, params: SamplingParams | None = None, *, priority: int = 0,
                       cache_salt: str = "", request_id: str | None = None, stream: bool = True,
                       timeout: float | None = None) -> AsyncIterator[CompletionDelta]:
        """The completions of one prompt, piece by piece. Leaving the loop early frees what the request holds.

        `request_id` is the caller's own name for it, for `abort`. With `stream=False` each completion comes whole.
        Raises RequestError for a request that cannot be served, EngineDeadError when the engine is gone; and what
        `submit` raises.
        """
        [prepared] = await self.prepare([prompt], params or SamplingParams())
        output = self.submit([prepared], priority=priority, cache_salt=cache_salt, request_id=request_id, stream=stream,
                             timeout=timeout)
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

        if params.structured_outputs is not None:  # a grammar may take a while; in a thread that nothing else needs
            return await asyncio.get_running_loop().run_in_executor(self._grammar_thread, work)
        length = sum(len(prompt) for prompt in prompts if isinstance(prompt, str))
        long = length + LONG_TEXT // 40 * len(params.bad_words or ()) > LONG_TEXT  # each bad word is encoded twice
        return await asyncio.to_thread(work) if long else work()

    async def render_chat(self, messages: list[dict[str, Any]], chat_template: ChatTemplate | None = None,
                          **options: Any) -> str:
        """Messages as the model's chat template, or the one given, writes them; `options` are ChatTemplate.render's."""
        template = chat_template or require_chat_template(self._text[1])
        long = len(str(messages)) + len(str(options)) > LONG_TEXT
        return await asyncio.to_thread(template.render, messages, **options) if long else \
            template.render(messages, **options)

    def submit(self, requests: Sequence[PreparedRequest], *, priority: int = 0, cache_salt: str = "",
               request_id: str | None = None, stream: bool = True, timeout: float | None = None) -> OutputStream:
        """Hand prepared requests to the engine; their completions share one stream, where completion j of request i has
        index i * n + j. The caller must `close` the stream. After `timeout` seconds it ends with DeadlineError.

        Raises QueueFullError, EngineDeadError, and RequestError when the name is in use or the priority has no effect.
        """
        if self._error is not None:
            raise self._error
        self.check_queue()
        check_priority(priority, self.config.scheduling_policy)
        if request_id is not None and request_id in self._named:
            raise RequestError(f"request_id {request_id!r} is in use by an unfinished request", "request_id")
        parts = [(request, params) for request in requests for params in expand(request.params)]
        output = OutputStream(len(parts), self._close)
        now = time.monotonic()
        if not self._records:
            self._heard = now
        if timeout is not None:
            output.deadline = asyncio.get_running_loop().call_later(timeout, self._expire, output, timeout)
        try:
            for index, (request, params) in enumerate(parts):
                engine_id = next(self._ids)
                ids = request.prompt_token_ids
                self._processor.add(engine_id, ids, params, index, stream)
                record = SequenceRecord(engine_id, output, len(ids), request.params, index, now)
                self._records[engine_id] = record
                output.request_ids.append(engine_id)
                for observer in self._observers:
                    observer.on_submit(record)
                self._client.send(AddRequest(engine_id, ids, params, priority, cache_salt, now))
        except BaseException:  # nobody has the stream yet to close it
            output.close()
            for observer in self._observers:
                observer.on_refused(engine_id)  # the one that could not be sent
            raise
        if request_id is not None:
            self._named[request_id] = output
        return output

    def abort(self, request_id: str) -> None:
        """End a request by the name it was given; unknown or finished ones are passed over."""
        output = self._named.get(request_id)
        if output is not None:
            self._client.send(AbortRequest(list(output.request_ids)))  # the answers have finish_reason "abort"

    def fail_all(self, error: Exception) -> None:
        """End every request with an error, after what has come already is read."""
        for output in list(dict.fromkeys(record.stream for record in self._records.values())):
            self._drop(output)
            output.fail(error)

    def _expire(self, output: OutputStream, timeout: float) -> None:
        self._drop(output)
        output.fail(DeadlineError(f"the request was not finished within its timeout of {timeout:g} s"))

    def _drop(self, output: OutputStream) -> None:
        """Abort in the engine what is unfinished."""
        ids, output.request_ids = output.request_ids, []
        if ids:
            self._client.send(AbortRequest(ids))
        now = time.monotonic()
        for engine_id in ids:
            self.history.deliver(engine_id, Delivery("abort", now, output.stalls))
            self._processor.discard(engine_id)
            self._forget(self._records[engine_id], "abort", now)

    def _close(self, output: OutputStream) -> None:
        for engine_id, delivery in output.deliveries:
            self.history.deliver(engine_id, delivery)
        output.deliveries = []
        self._drop(output)
        for name in [name for name, named in self._named.items() if named is output]:
            del self._named[name]

    def _forget(self, record: SequenceRecord, reason: str, now: float) -> None:
        del self._records[record.request_id]
        for observer in self._observers:
            observer.on_finish(record, reason, now)

    # ---- from the engine -----------------------------------------------------------------------------------------

    def _on_message(self, message: Message) -> None:
        if isinstance(message, StepOutputs):
            self._heard = time.monotonic()
            self._on_step(message)
        elif isinstance(message, Launching):
            if message.seconds < LAUNCH_ALLOWANCE * self._stall_timeout:
                self._heard = time.monotonic()
        elif isinstance(message, EngineView) and self._view is not None:
            self._view.set_result(message)
            self._view = None
        elif isinstance(message, RequestRefused):
            record = self._records.get(message.request_id)
            if record is None:  # ended here meanwhile
                for observer in self._observers:
                    observer.on_refused(message.request_id)
                return
            self._processor.discard(message.request_id)
            record.stream.request_ids.remove(message.request_id)
            self._forget(record, "error", time.monotonic())
            record.stream.fail(RequestError(message.message, message.param, message.code))

    def _on_step(self, step: StepOutputs) -> None:
        """Everything one step brought, in one go: a reader wakes once a step however many tokens came."""
        if step.stats is not None:
            self._stats = step.stats
        for timeline in step.ended:
            self.history.add(timeline)
        now = time.monotonic()
        seen, records = StepSeen(step, now), self._records
        for out in step.outputs:
            if out.token_ids and (record := records.get(out.request_id)) is not None:
                seen.add(record, len(out.token_ids))
        deltas, aborts = self._processor.process(step.outputs)
        for engine_id, delta in deltas:
            record = records[engine_id]
            record.stream.put(engine_id, delta)
            if delta.finish_reason is not None:
                self._forget(record, delta.finish_reason, now)
        if aborts:
            self._client.send(AbortRequest(aborts, "stop"))
        for observer in self._observers:
            observer.on_step(seen)

    def _on_lost(self, error: EngineDeadError) -> None:
        if self._error is None:
            self._error = error
        self.lost.set()
        if self._view is not None:
            self._view.set_exception(self._error)
            self._view.exception()  # seen, even if whoever asked has gone
            self._view = None
        now = time.monotonic()
        for record in list(self._records.values()):
            self._processor.discard(record.request_id)
            record.stream.request_ids.clear()
            record.stream.fail(self._error)
            self._forget(record, "error", now)
        for observer in self._observers:
            observer.on_lost()


def _load_text(config: EngineConfig, model_dir: str) -> tuple[Tokenizer, ChatTemplate | None]:
    tokenizer = Tokenizer.load(config.tokenizer or model_dir)
    return tokenizer, ChatTemplate.load(config.tokenizer or model_dir, tokenizer)


__all__ = ["AsyncLLM", "EngineDeadError", "OutputStream"]
