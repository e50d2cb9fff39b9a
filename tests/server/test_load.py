"""The load benchmarks count what they say they count, at toy sizes against a running server."""

from __future__ import annotations

import asyncio
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import abort_storm, front_cost, overload
from benchmarks.wire import Answer, Load, _StreamReader, open_load, stream_load
from tests.server.running import Running


def test_streamed_tokens_and_events_are_counted(server: Running) -> None:
    load = stream_load(server.port, front_cost.bodies(5, max_tokens=20, spread=3), rounds=2, record=True)
    assert load.tokens == 2 * (20 + 23 + 26 + 29 + 32)
    assert 0 < load.events <= load.tokens and load.seconds > 0
    assert [len(requests) for requests in load.arrivals] == [2] * 5


CHUNK = b'5c\r\ndata: {"choices":[{"text":" word","finish_reason":null}],"usage":null}\n\n\r\n'
LAST = b'10\r\ndata: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\ndata: [DONE]\n\n\r\n0\r\n\r\n'


class Sink:
    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...


@given(cuts=st.lists(st.integers(1, 200), max_size=20))
@settings(deadline=None, max_examples=60)
def test_wherever_the_bytes_are_cut(cuts: list[int]) -> None:
    async def read() -> _StreamReader:
        reader = _StreamReader(b"", 1, True)
        reader.connection_made(Sink())  # type: ignore[arg-type]
        reader.ask()
        reader.data_received(b"HTTP/1.1 200 OK\r\nx: y z\r\n\r\n" + CHUNK)
        data, start = CHUNK * 3 + LAST, 0
        for cut in [*cuts, len(data)]:
            if piece := data[start : start + cut]:
                reader.data_received(piece)
            start += cut
        return reader

    reader = asyncio.run(read())
    assert (reader.tokens, reader.events, len(reader.arrivals[0])) == (4, 6, 4)
    assert reader.finished.done()


@given(data=st.data(), steps=st.integers(5, 40), step=st.floats(0.002, 0.02), most=st.floats(0.0, 3.0))
@settings(deadline=None, max_examples=60)
def test_added_latency_is_found(data: st.DataObject, steps: int, step: float, most: float) -> None:
    """Even where tokens are later than a step takes, as long as one of a request's is not."""
    chance = random.Random(data.draw(st.integers(0, 1000)))
    ends = [100 + step * i for i in range(steps)]
    truth, requests = [], []
    for _ in range(3):
        first = chance.randrange(steps - 3)
        late = [chance.random() * most * step for _ in range(chance.randrange(3, steps - first + 1))]
        late[chance.randrange(len(late))] = 0.1 * step
        truth += late
        requests.append([ends[first + i] + seconds for i, seconds in enumerate(late)])
    found = front_cost.added_latencies(ends, Load(arrivals=[requests]))
    assert len(found) == len(truth) and all(abs(a - b) < 1e-6 for a, b in zip(found, truth))


def test_an_open_load(server: Running) -> None:
    answers = open_load(server.port, overload.body(5, 6), rate=60, seconds=0.5, seed=1)
    assert 10 < len(answers) < 60 and {answer.status for answer in answers} == {200}
    assert all(answer.tokens == 6 and 0 < answer.first_byte <= answer.last_byte for answer in answers)
    refusal = open_load(server.port, {**overload.body(5, 6), "bogus": 1}, rate=60, seconds=0.1, seed=1)
    assert {answer.status for answer in refusal} == {400}


def test_goodput_is_of_what_came_in_time() -> None:
    answers = [Answer(0.0, 200, 0.1, 0.5, 50), Answer(1.0, 200, 0.1, 1.0, 50), Answer(1.0, 200, 0.1, 3.0, 50),
               Answer(4.5, 200, 0.1, 1.0, 50), Answer(1.0, 429, 0.002, 0.002), Answer(2.0)]
    row = overload.summary(answers, seconds=5.0, deadline=2.0)
    assert (row["asked"], row["answered"], row["in_time"], row["refused"], row["other"]) == (6, 4, 3, 1, 1)
    assert row["goodput"] == round(50 / 4.0)  # the one that ended neither before the second second nor after the fifth
    assert row["refusal_p99_ms"] == 2.0


def test_a_storm_leaves_nothing(server: Running) -> None:
    tasks = server.metric("front_tasks")
    made, seconds = abort_storm.storm(server.port, rate=100, seconds=0.6, seed=1)
    assert made == 60 and seconds >= 0.5
    for name, value in (("num_requests_running", 0), ("num_requests_waiting", 0), ("kv_cache_usage_perc", 0),
                        ("front_tasks", tasks)):
        server.eventually(name, value)
