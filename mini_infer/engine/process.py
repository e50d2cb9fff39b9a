"""The engine process: `python -m mini_infer.engine.process FD CONFIG`, started by engine/client.py.

FD is one end of a socket pair, so nothing listens anywhere and nobody else can connect. CONFIG is JSON. The process
says `EngineInfo` (or `EngineFailed`) once, then answers AddRequest and AbortRequest with StepOutputs, one message a
step, and WatchEngine with an EngineView, until the front closes its end.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import NoReturn

from mini_infer.config import ConfigError, EngineConfig
from mini_infer.core.plan import DeviceLostError
from mini_infer.engine.arrivals import POLL_SECONDS, Arrivals
from mini_infer.engine.garbage import settle_memory
from mini_infer.engine.ipc import Channel, Message
from mini_infer.engine.loop import EngineLoop
from mini_infer.engine.sim import SimConfig
from mini_infer.protocol import (
    AbortRequest,
    AddRequest,
    EngineFailed,
    EngineInfo,
    Launching,
    StepOutputs,
    StructuredOutputs,
    TokensOut,
    WatchEngine,
)

HANGUP_GRACE_SECONDS = 2.0
LAUNCHING_SECONDS = 0.25  # from one message to the next, while a step takes long to start


def config_to_json(config: EngineConfig, sim: SimConfig | None) -> str:
    """What `main` reads back from its command line."""
    return json.dumps({"engine": asdict(config), "sim": None if sim is None else asdict(sim)})


def config_from_json(text: str) -> tuple[EngineConfig, SimConfig | None]:
    raw = json.loads(text)
    return EngineConfig(**raw["engine"]), None if raw["sim"] is None else SimConfig(**raw["sim"])


CompileGrammar = Callable[[StructuredOutputs], object]


def build(config: EngineConfig, sim: SimConfig | None) -> tuple[EngineLoop, EngineInfo, CompileGrammar]:
    """The engine on this machine's device, or on an imagined one, and what compiles a grammar for it. Imports torch
    only for the former."""
    if sim is not None:
        from mini_infer.engine.dry_run import make_dry_engine

        loop, info = make_dry_engine(config, sim)
        for name, seconds in info.startup_seconds.items():
            log_phase(name, seconds)
        return loop, info, lambda asked: None  # the simulated executor refuses it
    start = time.perf_counter()
    from mini_infer.engine.build import build_engine
    from mini_infer.ops.cuda_library import hopper_multiprocessors, is_built
    from mini_infer.runtime.memory import format_ledger

    log_phase("imports", time.perf_counter() - start)
    engine = build_engine(config, report=log_phase, progress=sys.stderr.isatty())
    log(f"memory: {format_ledger(engine.info.memory_bytes)}")
    device = engine.info.device
    if device.startswith("cuda") and not is_built() and hopper_multiprocessors(int(device.partition(":")[2] or 0)):
        log("the optional CUDA kernels are not built; where nvcc is, python -m mini_infer.ops.build_cuda builds them, "
            "for prompts and batches of more than eight")
    threading.Thread(target=engine.grammars.warm, name="grammar-warm-up", daemon=True).start()
    return engine.loop, engine.info, engine.grammars.check


def serve(channel: Channel, loop: EngineLoop, compile_grammar: CompileGrammar) -> None:
    """Run the loop until the front goes away: read what has come, take a step, tell what it brought.

    Reading waits only while there is nothing to compute, so a new request joins the next step.
    """
    arrivals = Arrivals(loop, compile_grammar, channel.send)
    while True:
        try:
            messages = channel.receive(wait=not loop.has_work() and not arrivals)
        except EOFError:
            return
        outputs: list[TokensOut] = []
        for message in messages:
            outputs += _handle(message, channel, loop, arrivals)
        arrivals.poll(0.0 if loop.has_work() or messages else POLL_SECONDS)
        seconds = None
        if loop.has_work():
            start = time.perf_counter()
            outputs += loop.step()
            seconds = time.perf_counter() - start
        try:
            channel.send(StepOutputs(outputs, loop.stats(), loop.take_timelines(), seconds))
            os.sched_yield()  # where they share a core, the front writes these tokens before the next step is planned
        except OSError:
            return


def _handle(message: Message, channel: Channel, loop: EngineLoop, arrivals: Arrivals) -> list[TokensOut]:
    if isinstance(message, AddRequest):
        arrivals.add(message)
        return []
    if isinstance(message, AbortRequest):
        return arrivals.abort(message.request_ids, message.reason)
    if isinstance(message, WatchEngine):
        if message.on:
            channel.send(loop.look())
        else:
            loop.look_away()
        return []
    raise TypeError(f"the front sent a {type(message).__name__}")


def log_phase(name: str, seconds: float) -> None:
    log(f"{name}: {seconds:.2f} s")


def log(message: str) -> None:
    """One line on standard error, lost where nobody reads it any more."""
    with suppress(OSError):
        print(f"mini-infer engine: {message}", file=sys.stderr, flush=True)


class FrontWatch(threading.Thread):
    """Ends this process when the front is gone, even while it loads weights or hangs in a step; and tells the front
    when a step takes long to start, which is no reason to think that the engine hangs."""

    def __init__(self, fd: int, channel: Channel):
        super().__init__(name="front-watch", daemon=True)
        self._fd = fd
        self._channel = channel
        self.loop: EngineLoop | None = None  # once it is there

    def run(self) -> None:
        poller = select.poll()
        poller.register(self._fd, 0)  # nothing asked for: only a hang-up wakes it
        while not poller.poll(1e3 * LAUNCHING_SECONDS):
            since = None if self.loop is None else self.loop.launching_since()
            if since is not None and (seconds := time.monotonic() - since) > LAUNCHING_SECONDS:
                with suppress(OSError):  # the next look at the socket will tell
                    self._channel.send(Launching(seconds))
        time.sleep(HANGUP_GRACE_SECONDS)  # the main thread usually sees it first and leaves in order
        os._exit(1)


def main(argv: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the front, which tells us to stop by closing
    fd, (config, sim) = int(argv[0]), config_from_json(argv[1])
    channel = Channel(socket.socket(fileno=fd))
    watch = FrontWatch(fd, channel)
    watch.start()
    try:
        loop, info, compile_grammar = build(config, sim)
    except Exception as error:  # whatever went wrong, the front must hear of it
        bad_config = isinstance(error, ConfigError)
        if not bad_config:
            traceback.print_exc()
        channel.send(EngineFailed(str(error) if bad_config else f"{type(error).__name__}: {error}", bad_config))
        return 1
    settle_memory()
    channel.send(info)
    watch.loop = loop
    try:
        serve(channel, loop, compile_grammar)
    except DeviceLostError as error:
        traceback.print_exc()
        channel.send(EngineFailed(str(error), bad_config=False))
        loop.close()
        leave(1)  # from here: torch aborts the process when a tensor of the frames that have failed is freed
    finally:
        loop.close()
    return 0


def leave(status: int) -> NoReturn:
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))  # libraries would take a while to go, and some complain of each other
