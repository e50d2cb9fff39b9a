"""What `mini-infer bench serve` is asked to do. Imports nothing heavy: the command line has its defaults from here."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from mini_infer.bench.arrivals import arrival_times
from mini_infer.bench.dataset import Dataset, RandomDataset
from mini_infer.bench.metrics import METRICS, parse_goodput
from mini_infer.config import ConfigError

ENDPOINTS = {"openai": "/v1/completions", "vllm": "/v1/completions", "openai-chat": "/v1/chat/completions"}


@dataclass(frozen=True)
class ServeBench:
    """The options; names and meanings are those of vLLM's `bench serve`."""

    base_url: str = "http://127.0.0.1:8000"
    backend: str = "openai"
    endpoint: str | None = None  # None: the backend's own
    model: str | None = None  # None: the first that the server names
    tokenizer: str | None = None  # None: the model's, where that is a directory here
    dataset: Dataset = field(default_factory=RandomDataset)
    num_prompts: int = 1000
    num_warmups: int = 0
    request_rate: float = math.inf  # requests a second
    burstiness: float = 1.0
    max_concurrency: int | None = None
    temperature: float = 0.0
    ignore_eos: bool = False
    seed: int = 0
    goodput: tuple[str, ...] = ()
    percentile_metrics: tuple[str, ...] = tuple(METRICS)
    metric_percentiles: tuple[float, ...] = (99.0,)
    use_tqdm: bool = True

    def __post_init__(self) -> None:
        if self.backend not in ENDPOINTS:
            raise ConfigError(f"backend must be {', '.join(ENDPOINTS)}, got {self.backend!r}")
        if unknown := sorted(set(self.percentile_metrics) - set(METRICS)):
            raise ConfigError(f"percentile_metrics: {', '.join(unknown)} must be among {', '.join(METRICS)}")
        if not all(0 < percent < 100 for percent in self.metric_percentiles):
            raise ConfigError(f"metric_percentiles must be between 0 and 100, got {self.metric_percentiles}")
        for name, least in (("num_prompts", 1), ("num_warmups", 0)):
            if vars(self)[name] < least:
                raise ConfigError(f"{name} must be at least {least}, got {vars(self)[name]}")
        if self.max_concurrency is not None and self.max_concurrency < 1:
            raise ConfigError(f"max_concurrency must be at least 1, got {self.max_concurrency}")
        parse_goodput(self.goodput)
        arrival_times(1, self.request_rate, self.burstiness, random.Random(0))

    @property
    def path(self) -> str:
        return self.endpoint or ENDPOINTS[self.backend]

    @property
    def is_chat(self) -> bool:
        return self.path.rstrip("/").endswith("/chat/completions")
