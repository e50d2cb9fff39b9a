"""The engine process: `python -m mini_infer.engine.process FD CONFIG`, started by engine/client.py.

FD is one end of a socket pair, so nothing listens anywhere and nobody else can connect. CONFIG is JSON. The process
says `EngineInfo` (or `EngineFailed`) once, then answers AddRequest and AbortRequest with StepOutputs, one message a
step, until the front closes its end.
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
from dataclasses import asdict

from mini_infer.config import ConfigError, EngineConfig
from mini_infer.engine.ipc import Channel, Message
from mini_infer.engine.loop import EngineLoop
from mini_infer.engine.sim import SimConfig
from mini_infer.protocol import (
    AbortRequest,
    AddRequest,
    EngineFailed,
    EngineInfo,
    RequestError,
    RequestRefused,
    StepOutputs,
    TokensOut,
)

HANGUP_GRACE_SECONDS = 2.0


def config_to_json(config: EngineConfig, sim: SimConfig | None) -> str:
    """What `main` reads back from its command line."""
    return json.dumps({"engine": asdict(config), "sim": None if sim is None else asdict(sim)})


def config_from_json(text: str) -> tuple[EngineConfig, SimConfig | None]:
    raw = json.loads(text)
    return EngineConfig(**raw["engine"]), None if raw["sim"] is None else SimConfig(**raw["sim"])


def build(config: EngineConfig, sim: SimConfig | None) -> tuple[EngineLoop, EngineInfo]:
    """The engine on this machine's device, or on an imagined one. Imports torch only for the former."""
    if sim is not None:
        from mini_infer.engine.dry_run import make_dry_engine

        loop, info = make_dry_engine(config, sim)
        for name, seconds in info.startup_seconds.items():
            log_phase(name, seconds)
        return loop, info
    start = time.perf_counter()
    from mini_infer.engine.build import build_engine

    log_phase("imports", time.perf_counter() - start)
    engine = build_engine(config, report=log_phase, progress=sys.stderr.isatty())
    return engine.loop, engine.info


def serve(channel: Channel, loop: EngineLoop) -> None:
    """Run the loop until the front goes away: read what has come, take a step, tell what it brought.

    Reading waits only while there is nothing to compute, so a new request joins the next step.
    """
    while True:
        try:
            messages = channel.receive(wait=not loop.has_work())
        except EOFError:
            return
        outputs: list[TokensOut] = []
        for message in messages:
            outputs += _handle(message, channel, loop)
        if loop.has_work():
            outputs += loop.step()
        try:
            channel.send(StepOutputs(outputs, loop.stats()))
        except OSError:
            return


def _handle(message: Message, channel: Channel, loop: EngineLoop) -> list[TokensOut]:
    if isinstance(message, AddRequest):
        try:
            loop.add(message)
        except RequestError as error:
            channel.send(RequestRefused(message.request_id, str(error), error.param, error.code))
        return []
    if isinstance(message, AbortRequest):
        return loop.abort(message.request_ids)
    raise TypeError(f"the front sent a {type(message).__name__}")


def log_phase(name: str, seconds: float) -> None:
    print(f"mini-infer engine: {name}: {seconds:.2f} s", file=sys.stderr, flush=True)


def _leave_when_front_dies(fd: int) -> None:
    """Ends this process when the front is gone, even while it loads weights or hangs in a step."""
    poller = select.poll()
    poller.register(fd, 0)  # nothing asked for: only a hang-up wakes it
    poller.poll()
    time.sleep(HANGUP_GRACE_SECONDS)  # the main thread usually sees it first and leaves in order
    os._exit(1)


def main(argv: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the front, which tells us to stop by closing
    fd, (config, sim) = int(argv[0]), config_from_json(argv[1])
    channel = Channel(socket.socket(fileno=fd))
    threading.Thread(target=_leave_when_front_dies, args=(fd,), name="front-watch", daemon=True).start()
    try:
        loop, info = build(config, sim)
    except Exception as error:  # whatever went wrong, the front must hear of it
        bad_config = isinstance(error, ConfigError)
        if not bad_config:
            traceback.print_exc()
        channel.send(EngineFailed(str(error) if bad_config else f"{type(error).__name__}: {error}", bad_config))
        return 1
    channel.send(info)
    serve(channel, loop)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
