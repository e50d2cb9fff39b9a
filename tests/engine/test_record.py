"""Recordings: what was recorded replays the same, and whatever is done to a file is seen."""

from __future__ import annotations

import gc
import gzip
import os
import resource
import subprocess
import sys
import zlib
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mini_infer.cli import main
from mini_infer.config import ConfigError, EngineConfig, SchedulerConfig
from mini_infer.core.plan import StepResult
from mini_infer.core.scheduler import Scheduler
from mini_infer.engine.loop import EngineLoop
from mini_infer.engine.record import GZIP, RecordingScheduler, record, result_body
from mini_infer.engine.replay import Recording, RecordingError, Report, describe, replay
from mini_infer.engine.sim import SimExecutor, VirtualClock
from mini_infer.protocol import AddRequest, RequestError, SamplingParams
from tests.core.shadow import EOS, Engine, story

MAX_MODEL_LEN = 48


def scheduler_config(**changes: object) -> SchedulerConfig:
    shape = dict(max_num_seqs=4, max_num_batched_tokens=16, max_model_len=MAX_MODEL_LEN, block_size=4, num_blocks=14,
                 eos_token_ids=(EOS,), hash_key=b"secret")
    return SchedulerConfig(**{**shape, **changes})  # type: ignore[arg-type]


def recorder(path: Path, clock: VirtualClock, **changes: object) -> RecordingScheduler:
    return record(EngineConfig(record=str(path)), scheduler_config(**changes), clock.now)


def write_run(path: Path, seed: int, depth: int, num_events: int, finished: bool = True,
              **changes: object) -> RecordingScheduler:
    """A random load on the simulated executor: requests that share prefixes, stop, are refused, fail and are aborted;
    a pool that is too small for them."""
    random, clock = Random(seed), VirtualClock(100.0)
    scheduler = recorder(path, clock, **changes)
    loop = EngineLoop(scheduler, SimExecutor(range(1, 9), None, clock, seed, eos_token_id=EOS, output_len=12), depth)
    for number in range(num_events):
        clock.sleep_until(clock.now() + random.random())
        kind = random.random()
        if kind < 0.3:
            prompt = [story(random.randrange(3), position) for position in range(random.choice([3, 8, 20, 39]))]
            params = SamplingParams(
                max_tokens=random.choice([None, 1, 5, 30]), seed=random.choice([None, 1]),
                stop_token_ids=random.choice([None, [3]]), logit_bias=random.choice([None, None, None, {3: 1.5}]))
            prompt *= random.choice([1] * 9 + [40])
            with suppress(RequestError):
                loop.add(AddRequest(number, prompt, params, random.randrange(3), random.choice(["", "salt"]),
                                    random.choice([0.0, clock.now()])))
        elif kind < 0.4:
            loop.abort([random.randrange(number + 1), number, number - 1])
        else:
            loop.step()
    while finished and loop.has_work():
        loop.step()
    return scheduler


def replayed(path: Path) -> tuple[Report, Recording]:
    recording = Recording(str(path))
    return replay(recording), recording


@given(seed=st.integers(0, 10**6), depth=st.integers(1, 3), num_events=st.integers(0, 150), finished=st.booleans(),
       policy=st.sampled_from(["fcfs", "priority"]), caching=st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_run_replays_the_same(tmp_path: Path, seed: int, depth: int, num_events: int, finished: bool, policy: str,
                                  caching: bool) -> None:
    path = tmp_path / "run"
    path.unlink(missing_ok=True)
    scheduler = write_run(path, seed, depth, num_events, finished, policy=policy, enable_prefix_caching=caching)
    steps = scheduler.stats().steps
    scheduler.close()
    report, recording = replayed(path)
    assert report.difference is None and recording.complete and recording.damage is None
    assert report.num_plans == steps


def test_prompt_logprobs_and_preemption_replay_the_same(tmp_path: Path) -> None:
    """How far a prompt is matched after a preemption depends on the log-probabilities delivered before it."""
    config = scheduler_config(num_blocks=12)
    engine = Engine(config, 2)
    engine.scheduler = record(EngineConfig(record=str(tmp_path / "run")), config, lambda: 0.0)
    params = SamplingParams(max_tokens=24, prompt_logprobs=0, logprobs=0, ignore_eos=True)
    for number in range(4):
        engine.add(AddRequest(number, [1] * 20 + [number], params))
    engine.run()
    assert engine.scheduler.stats().preemptions > 0
    report, _ = replayed(tmp_path / "run")
    assert report.difference is None and report.num_plans == len(engine.plans)


def test_every_call_that_changes_the_scheduler_is_recorded() -> None:
    public = {name for name in vars(Scheduler) if not name.startswith("_")}
    recorded = {"add", "abort", "schedule", "update"}
    reads = {"has_work", "stats", "now", "running_requests", "waiting_requests", "block_states", "check"}
    reads |= {"take_timelines", "close"}  # the one empties a list that nothing is decided by, the other is the end
    assert public == recorded | reads, "record a new one in engine/record.py, or say here that it only reads"
    assert recorded <= set(vars(RecordingScheduler))
    known = {"step_id", "sampled", "prompt_logprobs", "failed", "at_fault", "error"}
    assert set(result_body(StepResult(1))) == known, "replay.py reads these alone"


def test_a_bug_is_in_the_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Scheduler) -> None:
        raise AssertionError("a bug")

    scheduler = recorder(tmp_path / "run", VirtualClock())
    scheduler.add(AddRequest(1, [1, 2], SamplingParams()))
    with monkeypatch.context() as patch:
        patch.setattr(Scheduler, "_plan_decodes", broken)
        with pytest.raises(AssertionError):
            scheduler.schedule()
        scheduler.abort([1])
        assert replayed(tmp_path / "run")[0].difference is None  # the same bug again
    found = replayed(tmp_path / "run")[0].difference
    assert found is not None and "a bug" in str(found.recorded) and found.event.kind == "plan"


def test_what_cannot_be_written_is_refused_before_it_does_anything(tmp_path: Path) -> None:
    scheduler = recorder(tmp_path / "run", VirtualClock())
    with pytest.raises(RequestError, match="recorded"):
        scheduler.add(AddRequest(1, [1], SamplingParams(), cache_salt="\ud800"))
    assert not scheduler.has_work()


# ---- the file --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recordings") / "run"
    scheduler = write_run(path, seed=14, depth=2, num_events=120)
    stats = scheduler.stats()
    assert stats.preemptions and stats.cached_tokens and stats.requests_aborted and stats.requests_failed
    del scheduler
    gc.collect()  # a recording ends with its engine
    assert replayed(path)[1].complete
    return path


def changed(run: Path, tmp_path: Path, old: bytes, new: bytes) -> Path:
    lines = gzip.decompress(run.read_bytes())
    assert old in lines
    path = tmp_path / "changed"
    path.write_bytes(gzip.compress(lines.replace(old, new, 1)))
    return path


def test_a_changed_decision_is_shown(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = changed(run, tmp_path, b'"slot":1,', b'"slot":2,')
    assert main(["replay", str(path)]) == 1
    out = capsys.readouterr().out
    assert "plan.admitted[0].slot" in out and "recorded  2" in out and "replayed  1" in out


def test_a_change_that_changes_nothing_is_seen_as_well(run: Path, tmp_path: Path,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    path = changed(run, tmp_path, b'"temperature":1.0', b'"temperature":0.5')
    assert main(["replay", str(path)]) == 1
    assert "changed after it was written" in capsys.readouterr().out


def unzipped(raw: bytes) -> bytes:
    return zlib.decompressobj(GZIP).decompress(raw)  # unlike gzip, content with a broken trailer


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_other_byte_is_seen(run: Path, tmp_path: Path, data: st.DataObject) -> None:
    """But for the few bits that leave every line as it was: those that fill up the last byte before each flush."""
    whole = run.read_bytes()
    raw = bytearray(whole)
    position = data.draw(st.integers(10, len(raw) - 1))  # the first ten are gzip's own date and system
    raw[position] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "flipped"
    path.write_bytes(raw)
    try:
        report, recording = replayed(path)
    except RecordingError:
        return
    seen = report.difference is not None or recording.damage is not None or not recording.complete
    assert seen or unzipped(raw) == unzipped(whole)


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_cut_anywhere_replays_as_far_as_it_goes(run: Path, tmp_path: Path, data: st.DataObject) -> None:
    raw = run.read_bytes()
    path = tmp_path / "cut"
    path.write_bytes(raw[:data.draw(st.integers(0, len(raw) - 1))])
    try:
        report, recording = replayed(path)
    except RecordingError:
        return  # not even its first line
    assert report.difference is None and recording.damage is None
    # Without gzip's trailer it may still be whole to the last line.
    assert not recording.complete or report == replayed(run)[0]


def test_a_run_that_died_leaves_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scheduler = write_run(tmp_path / "run", seed=5, depth=1, num_events=60)  # alive still: nothing was closed
    report, recording = replayed(tmp_path / "run")
    assert report.num_plans == scheduler.stats().steps > 0
    assert not recording.complete and recording.damage is None
    assert main(["replay", str(tmp_path / "run")]) == 0
    assert "has no end" in capsys.readouterr().out


def test_a_full_disk_ends_the_recording_and_not_the_engine(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # Python ignores the signal; a write fails
    try:
        scheduler = write_run(tmp_path / "run", seed=5, depth=1, num_events=200)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not scheduler.has_work() and scheduler.stats().requests_finished > 0
    assert capfd.readouterr().err.count("has ended: File too large") == 1


@pytest.mark.parametrize("content", [b"", b"hello", gzip.compress(b"hello\n"), gzip.compress(b'{"format": 1}\n'),
                                     gzip.compress(b'{"format": "mini-infer recording 99", "version": "9", '
                                                   b'"engine": {}, "scheduler": {}}\n')], ids=range(5))
def test_what_is_no_recording(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(content)
    assert main(["replay", str(tmp_path / "file")]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "nowhere")]) == 2


def test_unknown_events_and_policies(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(changed(run, tmp_path, b'["plan",', b'["dance",'))]) == 2
    assert "'dance' is not an event" in capsys.readouterr().err
    assert main(["replay", str(changed(run, tmp_path, b'"policy":"fcfs"', b'"policy":"mine"'))]) == 2
    assert "--plugin" in capsys.readouterr().err
    assert main(["replay", str(run), "--plugin", "nobody"]) == 2
    assert "'nobody'" in capsys.readouterr().err


def test_dump_is_readable(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "--dump", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("14 blocks of 4 tokens, 4 slots, 16 tokens a step, fcfs")
    assert len(lines) - 1 == sum(1 for _ in Recording(str(run)).events())
    text = "\n".join(lines)
    for words in ("prompt tokens, max_tokens", "admitted to slot", "raised RequestError", "ended (length)",
                  "asked for"):
        assert words in text, words
    event = next(iter(Recording(str(run)).events()))
    assert describe(event, event.time).startswith("    0.0000 s")


def test_a_reader_that_leaves_early_is_no_error(run: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "mini_infer.cli", "replay", "--dump", str(run)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 141 and done.stderr == ""


def test_nobody_s_recording_is_overwritten_and_nobody_else_reads_it(tmp_path: Path) -> None:
    first = recorder(tmp_path / "run", VirtualClock())
    second = recorder(tmp_path / "run", VirtualClock())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.1"]
    assert {os.stat(path).st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    assert not first.has_work() and not second.has_work()
    with pytest.raises(ConfigError, match="cannot be written"):
        recorder(Path("/proc/nobody"), VirtualClock())
    with pytest.raises(ConfigError, match="record"):
        EngineConfig(record=str(tmp_path / "nowhere" / "run"))
