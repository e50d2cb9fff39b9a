"""What a step costs the host: scheduling plus update, against the number of running and of queued requests.

The real scheduler runs decode steps at pipeline depth 2; the device is replaced by a list of made-up tokens, whose
making is not timed. Run it with `python -m benchmarks.host_cost` (`--help` for the knobs).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import deque

from benchmarks.common import write_result
from mini_infer.config import SchedulerConfig
from mini_infer.core.plan import StepPlan, StepResult
from mini_infer.core.scheduler import Scheduler
from mini_infer.protocol import AddRequest, SamplingParams

PROMPT_LEN = 64
BLOCK_SIZE = 16
LIMIT_MS = 1.0  # 256 running requests, schedule plus update
FLATNESS = 0.10  # from 64 to 4,096 queued requests


def fake_result(plan: StepPlan) -> StepResult:
    return StepResult(plan.step_id, [[1] if row.sample else [] for row in plan.seqs])


def prepared(running: int, queued: int, steps: int) -> Scheduler:
    """A scheduler with every slot decoding and `queued` more requests waiting for one."""
    output_len = 4 * steps
    blocks_each = -(-(PROMPT_LEN + output_len) // BLOCK_SIZE)
    config = SchedulerConfig(max_num_seqs=running, max_num_batched_tokens=8192, max_model_len=PROMPT_LEN + output_len,
                             block_size=BLOCK_SIZE, num_blocks=2 * running * blocks_each, eos_token_ids=(0,))
    scheduler = Scheduler(config, time.monotonic)
    params = SamplingParams(max_tokens=output_len)
    for i in range(running + queued):
        scheduler.add(AddRequest(i, [2 + i] + [1] * (PROMPT_LEN - 1), params))
    decoding = False
    while not decoding:
        plan = scheduler.schedule()
        assert plan is not None
        decoding = len(plan.seqs) == plan.num_tokens == running
        scheduler.update(plan, fake_result(plan))
    stats = scheduler.stats()
    assert (stats.running, stats.waiting) == (running, queued)
    return scheduler


def step_times(scheduler: Scheduler, steps: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each `schedule` and of each `update`, with two plans in flight."""
    clock = time.perf_counter
    schedules, updates = [], []
    in_flight: deque[StepPlan] = deque()
    for _ in range(steps):
        begin = clock()
        plan = scheduler.schedule()
        schedules.append(1e3 * (clock() - begin))
        assert plan is not None
        in_flight.append(plan)
        if len(in_flight) == 2:
            oldest = in_flight.popleft()
            result = fake_result(oldest)
            begin = clock()
            scheduler.update(oldest, result)
            updates.append(1e3 * (clock() - begin))
    return schedules, updates


def measure(cases: list[tuple[int, int]], steps: int, rounds: int) -> list[dict[str, float]]:
    """A row for each (running, queued). Rounds go over all cases in turn, so that a busy moment hits them alike."""
    runs: dict[tuple[int, int], list[tuple[list[float], list[float]]]] = {case: [] for case in cases}
    for _ in range(rounds):
        for running, queued in cases:
            runs[running, queued].append(step_times(prepared(running, queued, steps), steps))
    rows = []
    for (running, queued), rounds_of_case in runs.items():
        # Step i does the same work in every round, and other programs only ever add time: take its least.
        schedules = [min(times) for times in zip(*(schedule for schedule, _ in rounds_of_case))]
        updates = [min(times) for times in zip(*(update for _, update in rounds_of_case))]
        schedule, update = statistics.fmean(schedules), statistics.fmean(updates)
        worst = max(map(sum, zip(schedules, updates)))
        rows.append({"running": running, "queued": queued, "schedule_ms": round(schedule, 4),
                     "update_ms": round(update, 4), "total_ms": round(schedule + update, 4),
                     "worst_step_ms": round(worst, 4), "us_per_request": round(1e3 * (schedule + update) / running, 3)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="decode steps timed in each round")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    cases = [(1, 0), (16, 0), (64, 0), (256, 0), (256, 64), (256, 512), (256, 4096)]
    rows = measure(cases, args.steps, args.rounds)

    print("milliseconds a step, mean and worst (there all requests at once grow, and hash and publish a block)")
    print(f"{'running':>8} {'queued':>8} {'schedule':>9} {'update':>8} {'total':>8} {'worst':>8} {'us/request':>11}")
    for row in rows:
        print(f"{row['running']:>8} {row['queued']:>8} {row['schedule_ms']:>9.3f} {row['update_ms']:>8.3f} "
              f"{row['total_ms']:>8.3f} {row['worst_step_ms']:>8.3f} {row['us_per_request']:>11.2f}")
    total = {(row["running"], row["queued"]): row["total_ms"] for row in rows}
    worst = max(ms for (running, _), ms in total.items() if running == 256)
    spread = total[256, 4096] / total[256, 64] - 1
    print(f"256 running: {worst:.3f} ms a step on average (limit {LIMIT_MS} ms); "
          f"4,096 queued against 64: {spread:+.1%} (limit {FLATNESS:.0%})")
    path = write_result("host_cost", {
        "rows": rows, "worst_256_ms": worst, "limit_ms": LIMIT_MS, "queued_4096_over_64": round(spread, 4),
        "within_limits": worst < LIMIT_MS and abs(spread) <= FLATNESS, "steps": args.steps, "rounds": args.rounds})
    print(f"written to {path}")


if __name__ == "__main__":
    main()
