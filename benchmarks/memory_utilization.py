"""How much of the KV memory that requests hold is filled: blocks on demand against preallocation, on the same requests.

The real scheduler serves a mixed load while more requests wait, so memory is the limit; the device is simulated. At
every step the live tokens (those whose keys and values are in the cache once the step is done) are set against the
token slots that running requests hold. Preallocation is the same scheduler with one block of max_model_len tokens for
each request: what an engine without paging does. Run it with `python -m benchmarks.memory_utilization`.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from benchmarks.common import RESULTS, Figure, write_result
from mini_infer.config import SchedulerConfig
from mini_infer.core.plan import StepPlan
from mini_infer.core.scheduler import Scheduler
from mini_infer.engine.loop import EngineLoop
from mini_infer.engine.sim import SimExecutor, SimPending
from mini_infer.protocol import AddRequest, SamplingParams

MAX_MODEL_LEN = 2048
MAX_NUM_SEQS = 512  # more than fit: memory is the limit
VOCABULARY = range(1, 4096)
PROMPT_LENS = (16, 1024)  # log-uniform in these bounds, as are the outputs: mostly short, some long
OUTPUT_LENS = (8, 512)


@dataclass
class Sample:
    """One step."""

    live: int  # tokens in the cache
    held: int  # token slots of used blocks
    exact: int  # token slots if every request held, from start to end, just what it will need in all
    running: int


@dataclass
class Probe:
    """An executor that looks at each plan on its way to the simulated device. At that moment the scheduler has given
    every running request the blocks that the step fills."""

    scheduler: Scheduler
    device: SimExecutor
    samples: list[Sample] = field(default_factory=list)
    _live: dict[int, int] = field(default_factory=dict)  # by slot
    _exact: dict[int, int] = field(default_factory=dict)

    def submit(self, plan: StepPlan) -> SimPending:
        for slot in plan.released_slots:
            del self._live[slot], self._exact[slot]
        for admitted in plan.admitted:
            self._live[admitted.slot] = admitted.num_computed
            self._exact[admitted.slot] = admitted.prompt_len + (admitted.params.max_tokens or 0)
        for row in plan.seqs:
            self._live[row.slot] = row.start + row.n
        stats = self.scheduler.stats()
        self.samples.append(Sample(sum(self._live.values()), stats.used_blocks * stats.block_size,
                                   sum(self._exact.values()), stats.running))
        return self.device.submit(plan)


def mixed_load(count: int, seed: int) -> list[AddRequest]:
    rng = random.Random(seed)

    def log_uniform(low: int, high: int) -> int:
        return round(math.exp(rng.uniform(math.log(low), math.log(high))))

    return [AddRequest(i, rng.choices(VOCABULARY, k=log_uniform(*PROMPT_LENS)),
                       SamplingParams(temperature=0, max_tokens=log_uniform(*OUTPUT_LENS), ignore_eos=True))
            for i in range(count)]


def serve(requests: list[AddRequest], block_size: int, pool_tokens: int, bar: tqdm) -> dict[str, float]:
    """Serve them all, queued from the start; a row of the table."""
    config = SchedulerConfig(max_num_seqs=MAX_NUM_SEQS, max_num_batched_tokens=8192, max_model_len=MAX_MODEL_LEN,
                             block_size=block_size, num_blocks=pool_tokens // block_size)
    scheduler = Scheduler(config, lambda: 0.0)
    probe = Probe(scheduler, SimExecutor(VOCABULARY))
    loop = EngineLoop(scheduler, probe, pipeline_depth=1)
    for request in requests:
        loop.add(request)
    while loop.has_work():
        bar.update(sum(out.finish_reason is not None for out in loop.step()))
    stats = loop.stats()
    assert stats.requests_finished == len(requests)
    utilisation = sorted(sample.live / sample.held for sample in probe.samples)
    return {
        "block_size": block_size,
        "utilisation": round(statistics.fmean(utilisation), 4),
        "utilisation_p5": round(utilisation[len(utilisation) // 20], 4),
        "exact_reservation": round(statistics.fmean(sample.live / sample.exact for sample in probe.samples), 4),
        "mean_running": round(statistics.fmean(sample.running for sample in probe.samples), 1),
        "steps": stats.steps,
        "preemptions": stats.preemptions,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--pool-tokens", type=int, default=32 * MAX_MODEL_LEN, help="token slots of the KV cache")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of the JSON file")
    args = parser.parse_args(argv)

    requests = mixed_load(args.requests, args.seed)
    block_sizes = [8, 16, 32, 64, 128, MAX_MODEL_LEN]
    with tqdm(total=len(block_sizes) * len(requests), desc="requests", dynamic_ncols=True) as bar:
        rows = [serve(requests, block_size, args.pool_tokens, bar) for block_size in block_sizes]
    by_size = {row["block_size"]: row for row in rows}
    paged, whole = by_size[16], by_size[MAX_MODEL_LEN]

    print(f"{args.requests} requests, a KV cache of {args.pool_tokens} tokens, max_model_len {MAX_MODEL_LEN}")
    print(f"{'KV held in':<16} {'utilisation':>11} {'5th percentile':>15} {'running':>8} {'steps':>7} "
          f"{'preemptions':>12}")
    for row in rows:
        name = "one piece" if row is whole else f"blocks of {row['block_size']}"
        print(f"{name:<16} {row['utilisation']:>11.1%} {row['utilisation_p5']:>15.1%} {row['mean_running']:>8.1f} "
              f"{row['steps']:>7} {row['preemptions']:>12}")
    print(f"had every request reserved exactly what it needs in the end: {paged['exact_reservation']:.1%}")
    figure = Figure("KV utilisation at block size 16", round(100 * paged["utilisation"], 1), " %", 90)
    print(figure, f"; preallocated: {whole['utilisation']:.1%}", sep="")
    path = write_result("memory_utilization", {
        "figures": [figure.record()], "rows": rows, "requests": args.requests, "pool_tokens": args.pool_tokens,
        "max_model_len": MAX_MODEL_LEN, "prompt_lens": PROMPT_LENS, "output_lens": OUTPUT_LENS,
        "distribution": "log-uniform", "seed": args.seed}, args.out)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
