"""From the times of a run's requests to the figures of vLLM's serving benchmark, under its names.

TTFT is the time to the first token, ITL the time between two pieces of a stream, TPOT the time per output token after
the first (the mean over a request), E2EL the time to the last piece; all as a client sees them, in milliseconds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mini_infer.config import ConfigError

METRICS = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}
GOODPUT_METRICS = ("ttft", "tpot", "e2el")


@dataclass
class RequestRecord:
    """One request as its client saw it; times in seconds on one clock."""

    prompt_len: int  # tokens; the server's own count where it gives one
    sent: float = 0.0
    arrivals: list[float] = field(default_factory=list)  # of the pieces with output
    output_len: int = 0  # tokens
    text: str = ""
    error: str | None = None

    @property
    def ttft(self) -> float:
        return self.arrivals[0] - self.sent

    @property
    def e2el(self) -> float:
        return self.arrivals[-1] - self.sent

    @property
    def tpot(self) -> float | None:
        """None with fewer than two tokens."""
        return (self.e2el - self.ttft) / (self.output_len - 1) if self.output_len > 1 else None

    @property
    def itls(self) -> list[float]:
        return [after - before for before, after in zip(self.arrivals, self.arrivals[1:])]


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of values in ascending order, linear between neighbours as numpy's default; 0 of none."""
    if not ordered:
        return 0.0
    position = (len(ordered) - 1) * percent / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def distribution(name: str, seconds: Sequence[float], percentiles: Sequence[float]) -> dict[str, float]:
    """mean_, median_, std_ and pNN_NAME_ms of values in seconds."""
    values = sorted(1e3 * value for value in seconds)
    figures = {
        f"mean_{name}_ms": statistics.fmean(values) if values else 0.0,
        f"median_{name}_ms": percentile(values, 50),
        f"std_{name}_ms": statistics.pstdev(values) if values else 0.0,
    }
    return figures | {f"p{percent:g}_{name}_ms": percentile(values, percent) for percent in percentiles}


def parse_goodput(texts: Sequence[str]) -> dict[str, float]:
    """["ttft:200", "tpot:50"] -> limits in seconds. Raises ConfigError for what is no such pair."""
    limits: dict[str, float] = {}
    for text in texts:
        name, _, limit = text.partition(":")
        try:
            milliseconds = float(limit)
        except ValueError:
            milliseconds = -1.0
        if name not in GOODPUT_METRICS or not 0 <= milliseconds < math.inf:
            raise ConfigError(f"goodput: {text!r} must be one of {', '.join(GOODPUT_METRICS)}, a colon and "
                              "milliseconds, such as ttft:200")
        limits[name] = milliseconds / 1e3
    return limits


def is_good(record: RequestRecord, limits: Mapping[str, float]) -> bool:
    """Whether a finished request kept within every limit; a time per token that does not exist keeps within any."""
    times = {"ttft": record.ttft, "tpot": record.tpot or 0.0, "e2el": record.e2el}
    return all(times[name] <= limit for name, limit in limits.items())


def summarize(records: Sequence[RequestRecord], duration: float, percentiles: Sequence[float],
              goodput: Mapping[str, float]) -> dict[str, Any]:
    """The figures of a run that took `duration` seconds; request_goodput is None where no limit was asked for."""
    done = [record for record in records if record.error is None]
    total_input = sum(record.prompt_len for record in done)
    total_output = sum(record.output_len for record in done)
    figures: dict[str, Any] = {
        "duration": duration,
        "completed": len(done),
        "failed": len(records) - len(done),
        "total_input_tokens": total_input,
        "total_output_tokens": total_output,
        "request_throughput": len(done) / duration,
        "request_goodput": sum(is_good(record, goodput) for record in done) / duration if goodput else None,
        "output_throughput": total_output / duration,
        "total_token_throughput": (total_input + total_output) / duration,
        "max_concurrent_requests": _most_at_once(done),
    }
    figures |= distribution("ttft", [record.ttft for record in done], percentiles)
    figures |= distribution("tpot", [record.tpot for record in done if record.tpot is not None], percentiles)
    figures |= distribution("itl", [itl for record in done for itl in record.itls], percentiles)
    return figures | distribution("e2el", [record.e2el for record in done], percentiles)


def _most_at_once(records: Sequence[RequestRecord]) -> int:
    """Requests under way at the busiest moment."""
    changes = sorted([(record.sent, 1) for record in records] + [(record.arrivals[-1], -1) for record in records])
    most = now = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most
