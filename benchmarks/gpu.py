"""Shared by the benchmarks of a GPU: shapes without weights, an engine to step by hand, and a clear refusal."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks.common import RESULTS
from mini_infer.bench.gpu_time import require_gpu
from mini_infer.config import BUNDLED_MODEL_DIR, EngineConfig
from mini_infer.engine.build import Engine, build_engine
from mini_infer.protocol import AddRequest, SamplingParams, TokensOut

SHAPES = Path(__file__).resolve().parent / "shapes"


def parser(description: str | None, model: str = "qwen3-0.6b") -> argparse.ArgumentParser:
    """The options that all of them have."""
    options = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    options.add_argument("--model", default=model, help="a directory of benchmarks/shapes, or any model directory")
    options.add_argument("--out", type=Path, default=RESULTS, help="directory of the JSON file")
    options.add_argument("--quick", action="store_true", help="toy sizes, on a CPU where there is no GPU")
    return options


def device_of(quick: bool) -> str:
    """"cuda", or "cpu" for a quick run where there is none. Raises ConfigError for a long run without a GPU."""
    if not quick:
        require_gpu()
    return "cuda" if torch.cuda.is_available() else "cpu"


def model_dir(name: str, device: str) -> str:
    """The directory of a shape; a CPU, where runs are toys, gets the bundled model instead."""
    if device == "cpu" and not Path(name).is_dir():
        return str(BUNDLED_MODEL_DIR)
    return name if Path(name).is_dir() else str(SHAPES / name)


def engine_config(model: str, device: str, **options: Any) -> EngineConfig:
    """With random weights where there are none."""
    directory = model_dir(model, device)
    dummy = not any(Path(directory).glob("*.safetensors"))
    return EngineConfig(model=directory, device=device, load_format="dummy" if dummy else "auto",
                        skip_tokenizer_init=True, enable_prefix_caching=False, **options)


class Stepper:
    """An engine whose steps are taken by hand, one at a time, with what each brought."""

    def __init__(self, config: EngineConfig):
        self._engine: Engine = build_engine(config)
        self.info = self._engine.info
        self._rng = random.Random(0)
        self._next_id = 0

    def add(self, prompt_len: int, max_tokens: int) -> int:
        """Queue a request of random tokens that makes exactly `max_tokens`; returns its id."""
        self._next_id += 1
        prompt = self._rng.choices(range(self.info.vocab_size), k=prompt_len)
        params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        self._engine.loop.add(AddRequest(self._next_id, prompt, params))
        return self._next_id

    def step(self) -> list[TokensOut]:
        return self._engine.loop.step()

    def decoding(self, batch: int, prompt_len: int, max_tokens: int) -> list[int]:
        """Start `batch` requests and step until each has had its first token; returns their ids."""
        ids = [self.add(prompt_len, max_tokens) for _ in range(batch)]
        waiting = set(ids)
        while waiting:
            waiting -= {out.request_id for out in self.step() if out.token_ids}
        return ids

    def stop(self, ids: Sequence[int]) -> None:
        """End requests, and let the steps under way come in."""
        self._engine.loop.abort(list(ids))
        self.drain()

    def drain(self) -> None:
        while self._engine.loop.has_work():
            self.step()


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Of `repeats` calls, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        begin = perf_counter()
        work()
        times.append(perf_counter() - begin)
    return sorted(times)[repeats // 2]
