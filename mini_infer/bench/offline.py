"""`mini-infer bench throughput` and `latency`: the engine in this process, without any server."""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from mini_infer.bench.dataset import Dataset, RandomDataset
from mini_infer.bench.metrics import percentile
from mini_infer.config import ConfigError, EngineConfig
from mini_infer.engine.llm import LLM
from mini_infer.protocol import SamplingParams

LATENCY_PERCENTILES = (10, 25, 50, 75, 90, 99)


@dataclass(frozen=True)
class ThroughputBench:
    """All requests at once; options as vLLM's `bench throughput`."""

    engine: EngineConfig
    dataset: Dataset = field(default_factory=RandomDataset)
    num_prompts: int = 1000
    temperature: float = 1.0
    use_tqdm: bool = True

    def __post_init__(self) -> None:
        _check_positive(self, "num_prompts")


@dataclass(frozen=True)
class LatencyBench:
    """One batch, again and again; options as vLLM's `bench latency`."""

    engine: EngineConfig
    input_len: int = 32
    output_len: int = 128
    batch_size: int = 8
    num_iters_warmup: int = 3
    num_iters: int = 10
    use_tqdm: bool = True

    def __post_init__(self) -> None:
        _check_positive(self, "input_len", "output_len", "batch_size", "num_iters")


def run_throughput(bench: ThroughputBench) -> dict[str, Any]:
    """Requests and tokens a second. Every request makes exactly the tokens it asks for."""
    llm = LLM(bench.engine)
    rng = random.Random(bench.engine.seed)
    samples = bench.dataset.samples(bench.num_prompts, range(llm.info.vocab_size), rng)
    prompts = [sample.prompt_token_ids for sample in samples]
    with_text = not bench.engine.skip_tokenizer_init
    params = [SamplingParams(temperature=bench.temperature, max_tokens=sample.output_len, ignore_eos=True,
                             detokenize=with_text) for sample in samples]
    llm.generate([[0]], SamplingParams(max_tokens=2, ignore_eos=True, detokenize=with_text), use_tqdm=False)  # warm-up
    begin = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=bench.use_tqdm)
    elapsed = time.perf_counter() - begin
    total_input = sum(map(len, prompts))
    total_output = sum(len(output.token_ids) for output in outputs)
    return {
        "elapsed_time": elapsed, "num_requests": len(outputs), "total_input_tokens": total_input,
        "total_output_tokens": total_output, "total_num_tokens": total_input + total_output,
        "requests_per_second": len(outputs) / elapsed, "tokens_per_second": (total_input + total_output) / elapsed,
        "output_tokens_per_second": total_output / elapsed,
    }


def run_latency(bench: LatencyBench) -> dict[str, Any]:
    """Seconds from submitting a batch to its last token. Prompts are new in every iteration: nothing is cached."""
    llm = LLM(bench.engine)
    rng = random.Random(bench.engine.seed)
    params = SamplingParams(temperature=0, max_tokens=bench.output_len, ignore_eos=True,
                            detokenize=not bench.engine.skip_tokenizer_init)
    latencies = []
    iterations = bench.num_iters_warmup + bench.num_iters
    for _ in tqdm(range(iterations), desc="iterations", disable=not bench.use_tqdm, dynamic_ncols=True):
        prompts = [rng.choices(range(llm.info.vocab_size), k=bench.input_len) for _ in range(bench.batch_size)]
        begin = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        latencies.append(time.perf_counter() - begin)
    latencies = latencies[bench.num_iters_warmup :]
    ordered = sorted(latencies)
    return {"avg_latency": statistics.fmean(latencies), "latencies": latencies,
            "percentiles": {str(percent): percentile(ordered, percent) for percent in LATENCY_PERCENTILES}}


def _check_positive(bench: object, *names: str) -> None:
    for name in names:
        if vars(bench)[name] < 1:
            raise ConfigError(f"{name} must be at least 1, got {vars(bench)[name]}")
