"""`mini-infer replay`: what a recorded run decided, and whether this scheduler decides the same."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mini_infer import __version__
from mini_infer.engine.replay import Recording, describe, load_policies
from mini_infer.engine.replay import replay as drive


def replay(path: str, dump: bool, plugins: Sequence[str]) -> int:
    """0 when every decision is the recorded one, 1 at the first that is not, or for a damaged file.

    Raises ConfigError for a file that is no recording, and for a policy that none of `plugins` brings.
    """
    recording = Recording(path)
    header = recording.header
    if header.version != __version__:
        print(f"mini-infer: the recording is of version {header.version}, this is {__version__}", file=sys.stderr)
    if dump:
        return _dump(recording)
    load_policies(plugins, header.scheduler.policy)
    report = drive(recording)
    if (found := report.difference) is not None:
        print(f"{path}: differs after {report.num_events} events and {report.num_plans} plans")
        print(f"  at     line {found.event.line}: {describe(found.event, found.event.time).strip()}")
        print(f"  where  {found.event.kind}{found.path}")
        print(f"  recorded  {found.recorded}")
        print(f"  replayed  {found.replayed}")
        return 1
    print(f"{path}: {report.num_events} events, {report.num_plans} plans, all as recorded")
    return _end(recording)


def _dump(recording: Recording) -> int:
    start: float | None = None
    scheduler = recording.header.scheduler
    print(f"version {recording.header.version}, {scheduler.num_blocks} blocks of {scheduler.block_size} tokens, "
          f"{scheduler.max_num_seqs} slots, {scheduler.max_num_batched_tokens} tokens a step, {scheduler.policy}")
    for event in recording.events():
        start = event.time if start is None else start
        print(describe(event, start))
    return _end(recording)


def _end(recording: Recording) -> int:
    if recording.damage is not None:
        print(f"{recording.path}: {recording.damage}")
        return 1
    if not recording.complete:
        print(f"{recording.path}: the recording has no end: the run died, or the file was cut off")
    return 0
