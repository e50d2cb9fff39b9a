"""When requests are sent."""

from __future__ import annotations

import math
import random

from mini_infer.config import ConfigError


def arrival_times(count: int, request_rate: float, burstiness: float, rng: random.Random) -> list[float]:
    """Seconds from the start at which each of `count` requests is sent, as vLLM draws them.

    The gaps follow a gamma distribution of shape `burstiness` and mean 1 / `request_rate`: 1 makes a Poisson process,
    less comes in bursts, more evenly. They are stretched so that the last request is sent at its expected time, which
    takes the luck of the draw out of the rate. An infinite rate sends all at once.
    """
    if not request_rate > 0:
        raise ConfigError(f"request_rate must be positive, or inf, got {request_rate}")
    if not 0 < burstiness < math.inf:
        raise ConfigError(f"burstiness must be positive, got {burstiness}")
    if request_rate == math.inf:
        return [0.0] * count
    times, now = [], 0.0
    for _ in range(count):
        now += rng.gammavariate(burstiness, 1 / (request_rate * burstiness))
        times.append(now)
    stretch = count / request_rate / now if now else 1.0
    return [time * stretch for time in times]
