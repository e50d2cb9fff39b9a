"""AsyncLLM: the engine for asyncio programs. The engine runs in its own process; text is made and read here.

    async with AsyncLLM(EngineConfig(model=...)) as llm:
        async for delta in llm.generate("Hello", SamplingParams(max_tokens=20)):
            print(delta.text, end="")
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

from mini_infer.config import EngineConfig
from mini_infer.engine.client import EngineClient, EngineDeadError
from mini_infer.engine.history import Delivery, History
from mini_infer.engine.ipc import Message
from mini_infer.engine.lane import Lane
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
UNDIVIDED_TEXT = 32_000  # characters; encoding this, all at once, is as long as others should wait for their turn


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
        self._lane = Lane("encode")  # of what can be done in small pieces
        self._long_lane = Lane("encode-long")  # of texts that cannot
        self._grammar_lane = Lane("grammar")

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
        for lane in (self._lane, self._long_lane, self._grammar_lane):
            lane.close()
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

    def check_queue(self, num_prompts: int = 1, n: int = 1) -> None:
        """Raises QueueFullError when n sequences for each prompt would be more than may wait: as of the engine's last
        step, and those sent since; and when the engine takes nothing, whether those who asked still wait or have gone.
        Raises RequestError, naming prompt or n, when they would be too many at any time.

        A batch that others wait for is as large as it gets, whether slots, tokens or blocks are short.
        """
        if self._max_queue is None:
            return
        count, slots = num_prompts * n, self.info.max_num_seqs
        if count > slots + self._max_queue:
            field = "prompt" if num_prompts > 1 else "n"
            raise RequestError(f"{field}: {num_prompts} prompts with n={n} are {count} sequences; this server runs "
                               f"{slots} at a time and lets {self._max_queue} wait. Send fewer at once", field)
        places = self._stats.running if self._stats.waiting else slots
        room = places + self._max_queue - len(self._records)
        if room <= 0:
            raise QueueFullError(f"the server is busy: its queue of {self._max_queue} requests is full")
        if count > room:
            raise QueueFullError(f"the server is busy: its queue of {self._max_queue} requests has no room for {count} "
                                 "more at the moment")
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
        """Encode and check. What `takes_long` is done beside the event loop, in turns with that of others, up to the
        first prompt that cannot be served. Raises RequestError naming the field; and as `check_queue`, before any of
        it is done."""
        if self.sim is not None:
            refuse_unsimulated(params)
        self.check_queue(len(prompts), params.n)
        requests = self._door.prepare_each(prompts, [params] * len(prompts), clip_max_tokens=clip_max_tokens,
                                           add_special_tokens=add_special_tokens)
        if not takes_long(prompts, params):
            return list(requests)
        lane = self._lane
        if params.structured_outputs is not None:
            lane = self._grammar_lane
        elif any(isinstance(text, str) and len(text) > UNDIVIDED_TEXT for text in map(_content, prompts)):
            lane = self._long_lane
        return await lane.collect(requests)

    async def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text of any length, of which those who wait for their prompts see nothing. Raises RequestError
        when there is no tokenizer, or the text is not valid Unicode."""
        if self.tokenizer is None:
            raise RequestError("prompt must be token ids: this engine runs without a tokenizer", "prompt")
        if len(text) <= LONG_TEXT:
            return self.tokenizer.encode(text, add_special_tokens)
        lane = self._long_lane if len(text) > UNDIVIDED_TEXT else self._lane
        [ids] = await lane.collect(map(self.tokenizer.encode, [text], [add_special_tokens]))
        return ids

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

        Raises QueueFullError, EngineDeadError, and RequestError when the name is in use, the priority has no effect, or
        these are more sequences than could ever wait.
        """
        if self._error is not None:
            raise self._error
        self.check_queue(len(requests), requests[0].params.n)
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
        ended = []
        for engine_id, delta in deltas:
            if delta.finish_reason is None:
                records[engine_id].stream.put(engine_id, delta)
            else:
                ended.append((records[engine_id], delta, delta.finish_reason))
        for record, delta, reason in ended:  # a reader that ends takes a while, and wakes after the others
            record.stream.put(record.request_id, delta)
            self._forget(record, reason, now)
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


def takes_long(prompts: Sequence[Prompt], params: SamplingParams) -> bool:
    """Whether preparing them would keep an event loop for more than a millisecond or two."""
    weight = LONG_TEXT // 40 * len(params.bad_words or ())  # each is encoded twice
    for content in map(_content, prompts):
        weight += len(content) if isinstance(content, str) else len(content) // 10  # ids are only looked at
    return params.structured_outputs is not None or weight > LONG_TEXT


def _content(prompt: Prompt) -> str | Sequence[int]:
    """A prompt's text or ids; none where it is neither, which the door will say."""
    content = next(iter(prompt.values()), ()) if isinstance(prompt, Mapping) else prompt
    return content if isinstance(content, (str, list, tuple)) else ()


def _load_text(config: EngineConfig, model_dir: str) -> tuple[Tokenizer, ChatTemplate | None]:
    tokenizer = Tokenizer.load(config.tokenizer or model_dir)
    return tokenizer, ChatTemplate.load(config.tokenizer or model_dir, tokenizer)


__all__ = ["AsyncLLM", "EngineDeadError", "OutputStream", "takes_long"]
