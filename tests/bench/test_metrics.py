"""Figures from times: each by its definition, vLLM's names, and limits that mean what they say."""

from __future__ import annotations

import math
import random
import statistics
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_infer.bench.arrivals import arrival_times
from mini_infer.bench.metrics import (
    RequestRecord,
    distribution,
    is_good,
    parse_goodput,
    percentile,
    summarize,
)
from mini_infer.bench.report import serving_table, table
from mini_infer.config import ConfigError

FLOATS = st.floats(0, 1e4, allow_nan=False)
RECORD = RequestRecord(prompt_len=10, sent=1.0, arrivals=[1.5, 1.7, 2.1], output_len=5)


def test_times_of_a_request() -> None:
    assert RECORD.ttft == pytest.approx(0.5) and RECORD.e2el == pytest.approx(1.1)
    assert RECORD.tpot == pytest.approx(0.6 / 4)  # over the tokens, of which a piece may bring several
    assert RECORD.itls == pytest.approx([0.2, 0.4])
    assert RequestRecord(1, 0.0, [1.0], 1).tpot is None


@given(st.lists(FLOATS, min_size=1, max_size=30), st.floats(0, 100))
def test_percentiles_are_numpy_s(values: list[float], percent: float) -> None:
    assert percentile(sorted(values), percent) == pytest.approx(np.percentile(values, percent), abs=1e-6)


def test_a_distribution_in_milliseconds() -> None:
    figures = distribution("ttft", [0.1, 0.3, 0.2], [50, 99.9])
    assert figures == {"mean_ttft_ms": pytest.approx(200), "median_ttft_ms": pytest.approx(200),
                       "std_ttft_ms": pytest.approx(1e3 * statistics.pstdev([0.1, 0.2, 0.3])),
                       "p50_ttft_ms": pytest.approx(200), "p99.9_ttft_ms": pytest.approx(299.8)}
    assert set(distribution("itl", [], [99]).values()) == {0.0}


def test_goodput() -> None:
    assert parse_goodput(["ttft:200", "e2el:1500.5"]) == {"ttft": 0.2, "e2el": 1.5005}
    for bad in ("ttft", "itl:3", "ttft:-1", "ttft:x", "ttft:inf", ":3"):
        with pytest.raises(ConfigError, match="goodput"):
            parse_goodput([bad])
    assert is_good(RECORD, {"ttft": 0.6, "tpot": 0.2}) and not is_good(RECORD, {"ttft": 0.6, "tpot": 0.1})
    assert is_good(RequestRecord(1, 0.0, [1.0], 1), {"tpot": 0.0})


def test_a_summary_counts_what_finished() -> None:
    failed = RequestRecord(prompt_len=7, error="refused")
    later = RequestRecord(prompt_len=20, sent=1.6, arrivals=[2.0, 3.0], output_len=2)
    figures = summarize([RECORD, failed, later], 2.0, [99], {"ttft": 0.45})
    assert (figures["completed"], figures["failed"], figures["max_concurrent_requests"]) == (2, 1, 2)
    assert (figures["total_input_tokens"], figures["total_output_tokens"]) == (30, 7)
    assert figures["request_throughput"] == 1.0 and figures["output_throughput"] == 3.5
    assert figures["total_token_throughput"] == 18.5 and figures["request_goodput"] == 0.5
    assert summarize([RECORD], 2.0, [99], {})["request_goodput"] is None
    text = serving_table({**figures, "max_concurrency": 4, "request_rate": 2.0}, ("ttft", "itl"), (99,))
    assert "Output token throughput (tok/s):         3.50" in text and "P99 TTFT (ms):" in text and "TPOT" not in text


@given(st.integers(1, 50), st.floats(0.1, 1e3), st.floats(0.05, 50), st.integers(0, 100))
def test_arrivals_come_in_order_at_the_rate_that_was_asked(count: int, rate: float, burstiness: float,
                                                           seed: int) -> None:
    times = arrival_times(count, rate, burstiness, random.Random(seed))
    assert times == sorted(times) and times[0] >= 0
    assert times[-1] == pytest.approx(count / rate)


def test_bursts_are_burstier() -> None:
    def spread(burstiness: float) -> float:
        times = arrival_times(2000, 10, burstiness, random.Random(0))
        return statistics.pstdev(after - before for before, after in pairwise(times))

    assert spread(0.2) > 1.5 * spread(1) > 3 * spread(10)
    assert spread(1) == pytest.approx(0.1, rel=0.1)  # exponential gaps: as wide as long


def test_all_at_once_and_never() -> None:
    assert arrival_times(3, math.inf, 1.0, random.Random(0)) == [0.0] * 3
    for rate, burstiness in ((0, 1), (-1, 1), (math.nan, 1), (1, 0), (1, math.inf)):
        with pytest.raises(ConfigError, match=r"request_rate|burstiness"):
            arrival_times(3, rate, burstiness, random.Random(0))


def test_tables_line_up() -> None:
    assert table(("a", "bb"), [("long", 1), ("x", 22)]) == "a     bb\nlong   1\nx     22"
