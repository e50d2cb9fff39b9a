"""AsyncLLM over a simulated engine process: streams, aborts, deaths, and the messages in between."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_infer.config import ConfigError, EngineConfig
from mini_infer.engine import async_llm, lane
from mini_infer.engine.async_llm import AsyncLLM, takes_long
from mini_infer.engine.client import EngineClient, EngineDeadError
from mini_infer.engine.ipc import FrameDecoder, ProtocolError, encode
from mini_infer.engine.sim import SimConfig
from mini_infer.engine.streams import DeadlineError, OutputStream, QueueFullError
from mini_infer.protocol import (
    AbortRequest,
    AddRequest,
    EngineStats,
    Launching,
    RequestError,
    RequestRefused,
    SamplingParams,
    StepOutputs,
    StructuredOutputs,
    TokenLogprobs,
    TokensOut,
)
from mini_infer.text.door import Prompt
from mini_infer.text.output import CompletionDelta, Logprob
from mini_infer.text.tokenizer import Tokenizer
from tests.server.model_dir import SEVEN_B, SMALL, write_model_dir

REPO = Path(__file__).parents[2]
FRONT = """
import asyncio, sys
from mini_infer.config import EngineConfig
from mini_infer.engine.async_llm import AsyncLLM
from mini_infer.engine.sim import SimConfig

async def main():
    async with AsyncLLM(EngineConfig(model=sys.argv[1], plugins=sys.argv[2:]), SimConfig()) as llm:
        print(llm.engine_pid, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_dir(tmp_path_factory.mktemp("models") / "small", SMALL)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_dir(tmp_path_factory.mktemp("models") / "slow", SEVEN_B)  # on an L4 a step takes 55 ms


@asynccontextmanager
async def dry(model: Path, gpu: str = "free", **options: object) -> AsyncIterator[AsyncLLM]:
    async with AsyncLLM(EngineConfig(model=str(model), **options), SimConfig(gpu=gpu)) as llm:  # type: ignore[arg-type]
        yield llm


async def eventually(condition: Callable[[], bool], seconds: float = 3.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


async def collect(llm: AsyncLLM, prompt: str | list[int], params: SamplingParams,
                  **options: object) -> list[CompletionDelta]:
    return [delta async for delta in llm.generate(prompt, params, **options)]  # type: ignore[arg-type]


class TestGenerate:
    async def test_pieces_make_the_whole(self, small: Path) -> None:
        async with dry(small) as llm:
            params = SamplingParams(max_tokens=30, seed=1)
            pieces = await collect(llm, "hello world", params)
            [whole] = await collect(llm, "hello world", params, stream=False)
            text = "".join(piece.text for piece in pieces)
            ids = [token for piece in pieces for token in piece.token_ids]
            assert (text, ids) == (whole.text, whole.token_ids)
            assert len(ids) == 30 and pieces[-1].finish_reason == whole.finish_reason == "length"
            assert all(piece.finish_reason is None for piece in pieces[:-1])
            assert llm.tokenizer is not None
            assert text == llm.tokenizer.decode(ids)
            same = await collect(llm, llm.tokenizer.encode("hello world"), params, stream=False)
            assert same[0].text == whole.text and same[0].num_cached_tokens == 0

    async def test_n_completions_share_a_prompt(self, small: Path) -> None:
        async with dry(small) as llm:
            outs = await collect(llm, [3] * 64, SamplingParams(max_tokens=10, n=3, seed=1), stream=False)
            assert sorted(out.index for out in outs) == [0, 1, 2]
            assert len({out.text for out in outs}) == 3

    async def test_many_at_once(self, small: Path) -> None:
        async with dry(small, max_num_seqs=16) as llm:
            outs = await asyncio.gather(*[collect(llm, f"user {i}", SamplingParams(max_tokens=20)) for i in range(64)])
            assert all(sum(len(piece.token_ids) for piece in pieces) == 20 for pieces in outs)
            stats = llm.stats()
            assert (stats.requests_finished, stats.used_blocks, stats.running, stats.waiting) == (64, 0, 0, 0)

    async def test_a_pool_for_two_serves_sixteen(self, small: Path) -> None:
        async with dry(small, num_kv_blocks=16, block_size=32, max_model_len=256) as llm:
            params = SamplingParams(max_tokens=190, ignore_eos=True)
            outs = await asyncio.gather(*[collect(llm, [10 + i] * 60, params) for i in range(16)])
            assert [sum(len(piece.token_ids) for piece in pieces) for pieces in outs] == [190] * 16
            stats = llm.stats()
            assert stats.preemptions > 0 and stats.free_blocks + stats.cached_blocks == stats.total_blocks == 16

    async def test_stop_string_ends_the_request_in_the_engine(self, small: Path) -> None:
        async with dry(small) as llm:
            [whole] = await collect(llm, "hello", SamplingParams(max_tokens=400, seed=3), stream=False)
            stop = whole.text[20:26]
            [stopped] = await collect(llm, "hello", SamplingParams(max_tokens=400, seed=3, stop=stop), stream=False)
            assert stopped.text == whole.text[:whole.text.index(stop)]
            assert (stopped.finish_reason, stopped.stop_reason) == ("stop", stop)
            await eventually(lambda: llm.stats().used_blocks == 0)
            assert (llm.stats().requests_finished, llm.stats().requests_aborted) == (2, 0)

    async def test_bad_requests_are_refused_and_cost_nothing(self, small: Path) -> None:
        async with dry(small) as llm:
            for prompt, params, field in [
                ("", SamplingParams(), "prompt"),
                ([10**6], SamplingParams(), "prompt"),
                ([1] * 600, SamplingParams(), "prompt"),
                ("a", SamplingParams(logprobs=1), "logprobs"),
                ("a", SamplingParams(stop_token_ids=[10**6]), "stop_token_ids"),
            ]:
                with pytest.raises(RequestError) as error:
                    await collect(llm, prompt, params)
                assert error.value.param == field
            assert llm.stats().requests_added == 0
            assert len(await collect(llm, "a", SamplingParams(max_tokens=2), stream=False)) == 1

    async def test_a_request_that_cannot_be_sent_leaves_nothing(self, small: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
        """Not even those of its completions that were sent before."""
        async with dry(small) as llm:
            send, sent = llm._client.send, list[AddRequest]()

            def second_fails(message: object) -> None:
                if isinstance(message, AddRequest):
                    sent.append(message)
                    if len(sent) == 2:
                        raise OverflowError("a number that no message can hold")
                send(message)  # type: ignore[arg-type]

            monkeypatch.setattr(llm._client, "send", second_fails)
            with pytest.raises(OverflowError):
                await collect(llm, "a", SamplingParams(max_tokens=300, n=3), timeout=100)
            assert not llm._records
            await eventually(lambda: llm.stats().requests_aborted == 1 and llm.stats().used_blocks == 0)


class TestAborts:
    async def test_leaving_the_loop_frees_the_blocks(self, slow: Path) -> None:
        async with dry(slow, "L4") as llm:
            stream = llm.generate("hello", SamplingParams(max_tokens=400, n=4))
            await anext(stream)
            await eventually(lambda: llm.stats().used_blocks > 0)
            await stream.aclose()  # type: ignore[attr-defined]
            await eventually(lambda: llm.stats().used_blocks == 0)
            assert llm.stats().requests_aborted == 4

    @pytest.mark.parametrize("when", ["queued", "prefill", "decode"])
    @pytest.mark.parametrize("n", [1, 4])
    async def test_within_a_step(self, slow: Path, when: str, n: int) -> None:
        """The first message of the engine after it has heard of the abort says that the blocks are free."""
        async with dry(slow, "L4", max_num_seqs=4, max_num_batched_tokens=32) as llm:
            [four] = await llm.prepare([[6] * 3], SamplingParams(max_tokens=100, n=4))
            others = llm.submit([four]) if when == "queued" else None
            if others is not None:
                await eventually(lambda: llm.stats().running == 4 and llm.stats().generated_tokens >= 4)
            held = llm.stats().used_blocks
            [asked] = await llm.prepare([[7] * 300 if when == "prefill" else [7] * 3],
                                        SamplingParams(max_tokens=100, n=n))
            output = llm.submit([asked])
            if when == "queued":
                await eventually(lambda: llm.stats().waiting == n)
            elif when == "prefill":
                await eventually(lambda: llm.stats().used_blocks > 0)
                assert llm.stats().generated_tokens == 0
            else:
                await anext(output)
            steps = llm.stats().steps
            output.close()
            await eventually(lambda: llm.stats().requests_aborted == n)
            stats = llm.stats()
            assert (stats.waiting, stats.used_blocks) == (0, held)
            assert stats.steps - steps <= 3  # the one that runs, the one planned on top of it, and the next plan
            if others is not None:
                others.close()

    async def test_a_cancelled_task_frees_what_is_still_queued(self, slow: Path) -> None:
        async with dry(slow, "L4", max_num_seqs=1) as llm:
            tasks = [asyncio.ensure_future(collect(llm, "hello", SamplingParams(max_tokens=400))) for _ in range(3)]
            await eventually(lambda: llm.stats().waiting == 2)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await eventually(lambda: llm.stats().requests_aborted == 3 and llm.stats().used_blocks == 0)

    async def test_abort_by_name(self, slow: Path) -> None:
        async with dry(slow, "L4") as llm:
            task = asyncio.ensure_future(collect(llm, "hello", SamplingParams(max_tokens=400), request_id="mine"))
            await eventually(lambda: llm.stats().running == 1)
            with pytest.raises(RequestError, match="in use"):
                await collect(llm, "hello", SamplingParams(), request_id="mine")
            llm.abort("nobody's")
            llm.abort("mine")
            assert (await task)[-1].finish_reason == "abort"
            assert len(await collect(llm, "hello", SamplingParams(max_tokens=1), request_id="mine")) == 1


class TestLimits:
    async def test_as_many_wait_as_may(self, slow: Path) -> None:
        async with AsyncLLM(EngineConfig(model=str(slow), max_num_seqs=2), SimConfig("L4"), max_queue=3) as llm:
            [request] = await llm.prepare([[5] * 3], SamplingParams(max_tokens=50))
            outputs = [llm.submit([request]) for _ in range(5)]  # before the engine has said anything
            with pytest.raises(QueueFullError, match="queue of 3"):
                llm.submit([request])
            await eventually(lambda: (llm.stats().running, llm.stats().waiting) == (2, 3))
            with pytest.raises(QueueFullError):
                llm.submit([request])
            outputs.pop().close()
            outputs.append(llm.submit([request]))
            for output in outputs:
                output.close()
            await eventually(lambda: llm.stats().running == llm.stats().waiting == 0)

    async def test_sequences_count_not_requests(self, slow: Path) -> None:
        async with AsyncLLM(EngineConfig(model=str(slow), max_num_seqs=2), SimConfig("L4"), max_queue=4) as llm:
            [one] = await llm.prepare([[5] * 3], SamplingParams(max_tokens=200))
            [two] = await llm.prepare([[5] * 3], SamplingParams(max_tokens=200, n=2))
            [three] = await llm.prepare([[5] * 3], SamplingParams(max_tokens=200, n=3))
            outputs = [llm.submit([two])]
            await eventually(lambda: llm.stats().running == 2)
            for requests, count in (([one] * 5, 5), ([two] * 3, 6), ([three] * 2, 6)):
                with pytest.raises(QueueFullError, match=f"queue of 4 requests has no room for {count} more"):
                    llm.submit(requests)
            assert llm.stats().waiting == 0 and len(llm._records) == 2
            outputs.append(llm.submit([three]))
            with pytest.raises(QueueFullError):
                llm.submit([two])
            outputs.append(llm.submit([one]))
            with pytest.raises(QueueFullError):
                llm.submit([one])
            await eventually(lambda: (llm.stats().running, llm.stats().waiting) == (2, 4))
            for output in outputs:
                output.close()
            await eventually(lambda: llm.stats().running == llm.stats().waiting == 0)
            llm.submit([three] * 2).close()

    async def test_what_never_fits_is_refused_by_field(self, slow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whether or not there is room at the moment, and before any of it is encoded."""
        async with AsyncLLM(EngineConfig(model=str(slow), max_num_seqs=2), SimConfig("L4"), max_queue=4) as llm:
            assert llm.tokenizer is not None
            [one] = await llm.prepare(["a"], SamplingParams(max_tokens=200))
            busy = llm.submit([one] * 6)
            monkeypatch.setattr(llm.tokenizer, "encode_batch", None)
            for num_prompts, n, field in ((7, 1, "prompt"), (1000, 1, "prompt"), (1, 7, "n"), (2, 4, "prompt")):
                with pytest.raises(RequestError, match=f"{num_prompts * n} sequences; this server runs 2") as error:
                    await llm.prepare(["a"] * num_prompts, SamplingParams(n=n))
                assert error.value.param == field
            with pytest.raises(RequestError, match="7 sequences"):
                llm.submit([one] * 7)
            with pytest.raises(QueueFullError):
                await llm.prepare(["a"] * 6, SamplingParams())
            busy.close()

    async def test_an_engine_that_takes_nothing_is_sent_no_more(self, small: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(async_llm, "MAX_UNSENT_BYTES", 100_000)
        async with AsyncLLM(EngineConfig(model=str(small)), SimConfig("free"), max_queue=3) as llm:
            [request] = await llm.prepare([[200] * 400], SamplingParams(max_tokens=2))
            assert llm.engine_pid is not None
            os.kill(llm.engine_pid, signal.SIGSTOP)
            try:
                with pytest.raises(QueueFullError, match="takes no requests"):
                    for _ in range(10_000):  # of clients that ask and leave: none of them waits
                        llm.submit([request]).close()
            finally:
                os.kill(llm.engine_pid, signal.SIGCONT)
            await eventually(lambda: llm._client.unsent_bytes == 0)
            assert (await collect(llm, "hello", SamplingParams(max_tokens=3)))[-1].finish_reason == "length"

    async def test_no_queue_at_all(self, slow: Path) -> None:
        async with AsyncLLM(EngineConfig(model=str(slow), max_num_seqs=2), SimConfig("L4"), max_queue=0) as llm:
            [request] = await llm.prepare([[5] * 3], SamplingParams(max_tokens=50))
            outputs = [llm.submit([request]) for _ in range(2)]
            with pytest.raises(QueueFullError):
                llm.submit([request])
            for output in outputs:
                output.close()

    async def test_a_deadline_frees_the_blocks(self, slow: Path) -> None:
        async with dry(slow, "L4") as llm:
            [request] = await llm.prepare([[5] * 3], SamplingParams(max_tokens=400, n=2))
            output = llm.submit([request], timeout=0.3)
            with pytest.raises(DeadlineError, match=r"0\.3 s"):
                async for _ in output:
                    pass
            output.close()
            await eventually(lambda: llm.stats().used_blocks == 0 and llm.stats().requests_aborted == 2)

    async def test_a_deadline_that_is_met_leaves_nothing(self, small: Path) -> None:
        async with dry(small) as llm:
            [request] = await llm.prepare([[5] * 3], SamplingParams(max_tokens=4))
            output = llm.submit([request], timeout=30)
            assert sum([len(delta.token_ids) async for deltas in output for delta in deltas]) == 4
            assert output.deadline is None
            output.close()


class TestPreparing:
    """Long texts and long lists, beside the event loop and beside each other."""

    @pytest.fixture
    def encoded(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """The lengths of the texts that were encoded; lanes change after each."""
        lengths: list[int] = []
        encode = Tokenizer.encode_batch

        def counting(tokenizer: Tokenizer, texts: list[str], add_special_tokens: bool = True) -> list[list[int]]:
            lengths.extend(map(len, texts))
            return encode(tokenizer, texts, add_special_tokens)

        monkeypatch.setattr(Tokenizer, "encode_batch", counting)
        monkeypatch.setattr(lane, "TURN_SECONDS", 0.0)
        return lengths

    @pytest.mark.parametrize("prompts", [["x" * 5000], [{"prompt": "x" * 5000}], ["x" * 100] * 50, [[5] * 50_000]])
    def test_what_takes_long(self, prompts: list[Prompt]) -> None:
        assert takes_long(prompts, SamplingParams())
        assert not takes_long([prompts[0][:10]] if isinstance(prompts[0], (str, list)) else ["x"], SamplingParams())
        assert takes_long(["x"], SamplingParams(bad_words=["x"] * 100))
        assert takes_long(["x"], SamplingParams(structured_outputs=StructuredOutputs(choice=["a", "b"])))
        assert not takes_long([None, 5, {}, {"prompt": None}], SamplingParams())  # type: ignore[list-item]

    async def test_a_list_is_refused_at_its_first_that_does_not_fit(self, small: Path, encoded: list[int]) -> None:
        async with dry(small) as llm:
            with pytest.raises(RequestError) as error:
                await llm.prepare(["the fox", "the quick fox " * 400, *["the fox"] * 1000], SamplingParams())
            assert error.value.code == "context_length_exceeded" and len(encoded) <= 3

    async def test_a_list_does_not_hold_others_up(self, small: Path, encoded: list[int]) -> None:
        async with dry(small) as llm:
            many = asyncio.ensure_future(llm.prepare(["the quick fox " * 20] * 1000, SamplingParams()))
            while len(encoded) < 3:
                await asyncio.sleep(0.001)
            for one in ("the fox", "fox" * 5000, "fox " * 20_000):  # on the loop, in the lane, and where long ones go
                with suppress(RequestError):  # too long, and this is how we know
                    await llm.prepare([one], SamplingParams())
            await llm.encode("the fox " * 1000)
            assert not many.done()
            assert len(await many) == 1000 and len(encoded) > 1000

    async def test_a_list_that_nobody_waits_for_is_left(self, small: Path, encoded: list[int]) -> None:
        async with dry(small) as llm:
            task = asyncio.ensure_future(llm.prepare(["the quick fox " * 20] * 1000, SamplingParams()))
            while len(encoded) < 3:
                await asyncio.sleep(0.001)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await llm.encode("the fox " * 1000)
            assert len(encoded) < 1000

    async def test_encode(self, small: Path) -> None:
        async with dry(small) as llm:
            assert llm.tokenizer is not None
            for text in ("fox", "the fox " * 1000, "the fox " * 10_000):
                assert await llm.encode(text) == llm.tokenizer.encode(text)


class TestDeaths:
    async def test_started_again(self, small: Path) -> None:
        async with dry(small) as llm:
            first = llm.engine_pid
            assert first is not None
            os.kill(first, signal.SIGKILL)
            await llm.lost.wait()
            with pytest.raises(EngineDeadError):
                await collect(llm, "hello", SamplingParams())
            await llm.restart()
            assert llm.error is None and not llm.lost.is_set() and llm.engine_pid != first
            assert (await collect(llm, "hello", SamplingParams(max_tokens=3)))[-1].finish_reason == "length"

    async def test_watchers_may_leave_while_it_is_started_again(self, small: Path) -> None:
        async with dry(small) as llm:
            restart = asyncio.ensure_future(llm.restart())
            while not restart.done():
                llm.look_away()
                await asyncio.sleep(0)
            await restart
            assert (await llm.look()).stats.running == 0

    async def test_streams_end_with_an_error_when_the_engine_is_killed(self, slow: Path) -> None:
        async with dry(slow, "L4") as llm:
            tasks = [asyncio.ensure_future(collect(llm, "hello", SamplingParams(max_tokens=400))) for _ in range(4)]
            await eventually(lambda: llm.stats().running == 4)
            assert llm.engine_pid is not None
            os.kill(llm.engine_pid, signal.SIGKILL)
            for task in tasks:
                with pytest.raises(EngineDeadError, match="-9"):
                    await task
            assert llm.error is not None
            with pytest.raises(EngineDeadError):
                await collect(llm, "hello", SamplingParams())

    def test_one_that_closes_its_connection_and_stays_is_killed(self, small: Path) -> None:
        client = EngineClient(EngineConfig(model=str(small)))
        client._process = process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        assert "closed its connection" in str(client._death())
        assert process.wait(timeout=10) == -signal.SIGKILL

    async def test_the_engine_ends_with_close(self, small: Path) -> None:
        async with dry(small) as llm:
            pid = llm.engine_pid
            assert pid is not None and alive(pid)
        assert not alive(pid)

    async def test_the_engine_ends_when_the_front_is_killed(self, small: Path) -> None:
        front = subprocess.Popen([sys.executable, "-c", FRONT, str(small)], cwd=REPO, stdout=subprocess.PIPE)
        assert front.stdout is not None
        engine = int(front.stdout.readline())
        assert alive(engine)
        front.kill()
        front.wait()
        front.stdout.close()
        await eventually(lambda: not alive(engine))

    async def test_the_engine_ends_when_the_front_is_killed_while_it_loads(self, small: Path, tmp_path: Path) -> None:
        sleepy = tmp_path / "sleepy.py"
        sleepy.write_text("import time\nprint('asleep', flush=True)\ntime.sleep(60)\n")
        front = subprocess.Popen([sys.executable, "-c", FRONT, small, sleepy], cwd=REPO, stdout=subprocess.PIPE)
        assert front.stdout is not None and front.stdout.readline() == b"asleep\n"
        [engine] = Path(f"/proc/{front.pid}/task/{front.pid}/children").read_text().split()
        front.kill()
        front.wait()
        front.stdout.close()
        await eventually(lambda: not alive(int(engine)), seconds=10)

    async def test_a_configuration_that_cannot_work_says_so(self, small: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"config\.json"):
            await AsyncLLM(EngineConfig(model=str(tmp_path), tokenizer=str(small)), SimConfig()).start()
        with pytest.raises(ConfigError, match="max_model_len"):
            await AsyncLLM(EngineConfig(model=str(small), num_kv_blocks=2, max_model_len=512), SimConfig()).start()
        with pytest.raises(ConfigError, match="policy"):
            await AsyncLLM(EngineConfig(model=str(small), scheduling_policy="nobody's"), SimConfig()).start()


class TestStream:
    """The reader's end, by itself."""

    async def test_a_slow_reader_gets_everything_in_one_piece(self) -> None:
        closed: list[OutputStream] = []
        stream = OutputStream(2, closed.append)
        stream.request_ids = [10, 11]
        for i in range(1000):
            stream.put(10, CompletionDelta(0, f"{i} ", [i]))
        stream.put(11, CompletionDelta(1, "x", [5], finish_reason="stop"))
        stream.put(10, CompletionDelta(0, "end", [9], finish_reason="length"))
        batches = [deltas async for deltas in stream]
        assert len(batches) == 1 and stream.request_ids == []
        first, second = batches[0]
        assert first.text == " ".join(map(str, range(1000))) + " end" and len(first.token_ids) == 1001
        assert (first.finish_reason, second.finish_reason) == ("length", "stop")

    async def test_log_probabilities_stay_with_their_tokens(self) -> None:
        stream = OutputStream(1, lambda stream: None)
        stream.request_ids = [10]
        for i in range(50):
            stream.put(10, CompletionDelta(0, "x", [i], [{i: Logprob(-0.5, 1, "x")}]))
        stream.put(10, CompletionDelta(0, "", [], None, finish_reason="abort"))
        [[delta]] = [deltas async for deltas in stream]
        assert delta.token_ids == list(range(50)) == [next(iter(position)) for position in delta.logprobs or ()]

    async def test_an_error_comes_after_what_was_there(self) -> None:
        stream = OutputStream(1, lambda stream: None)
        stream.put(1, CompletionDelta(0, "a", [1]))
        stream.fail(EngineDeadError("gone"))
        assert (await anext(stream))[0].text == "a"
        with pytest.raises(EngineDeadError):
            await anext(stream)


MESSAGES = [
    AddRequest(7, list(range(300)), SamplingParams(logit_bias={3: -1.5}, stop="a", seed=-1), 1, "salt", 2.5),
    AbortRequest([1, 2, 3]),
    StepOutputs([TokensOut(1, [2], "stop", 5, [TokenLogprobs([2, 3], [-0.5, -1.0], 1)]), TokensOut(2, [], error="no")],
                EngineStats(total_blocks=4)),
    RequestRefused(1, "why", "prompt"),
    Launching(1.5),
]


class TestFrames:
    @given(cuts=st.lists(st.integers(1, 400), max_size=30))
    @settings(deadline=None, max_examples=50)
    def test_any_cut_gives_the_same_messages(self, cuts: list[int]) -> None:
        data = b"".join(encode(message) for message in MESSAGES)
        decoder, found, start = FrameDecoder(), [], 0
        for cut in [*cuts, len(data)]:
            found += decoder.feed(data[start : start + cut])
            start += cut
        assert found == MESSAGES

    @given(body=st.binary(max_size=60), kind=st.integers(0, 255))
    @settings(deadline=None, max_examples=200)
    def test_garbage_is_an_error_or_a_message(self, body: bytes, kind: int) -> None:
        frame = len(body).to_bytes(4, "little") + bytes([kind]) + body
        try:
            messages = FrameDecoder().feed(frame)
        except ProtocolError:
            return
        assert len(messages) == 1
