"""How long the GPU waits for the host between decode steps: a profile of steady decoding at depth 2.

    python -m benchmarks.host_idle [--model qwen3-0.6b]

Needs a GPU. In the profile of STEPS steps, every moment without kernel or copy is idle; the part of it that lies around
a step's upload (before it, and from it to the step's first kernel) is what the host could have filled. The profiler
slows the host, so this is an upper bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import Figure, write_result
from benchmarks.gpu import Stepper, device_of, engine_config, model_dir, parser
from mini_infer.bench.report import table

STEPS = 60
UPLOAD = "Memcpy HtoD"


@dataclass(frozen=True)
class Activity:
    """Something that the device did; nanoseconds."""

    name: str
    start: int
    end: int


def idle_shares(activities: Sequence[Activity]) -> tuple[float, float]:
    """(between steps, in all): shares of the time from the first upload to the last."""
    ordered = sorted(activities, key=lambda activity: activity.start)
    uploads = [index for index, activity in enumerate(ordered) if activity.name.startswith(UPLOAD)]
    first, last = uploads[0], uploads[-1]
    span = ordered[last].start - ordered[first].start
    idle = between = 0
    busy_until = ordered[first].start
    for before, activity in zip(ordered[first:last], ordered[first + 1 : last + 1]):
        busy_until = max(busy_until, before.end)
        gap = max(0, activity.start - busy_until)
        idle += gap
        if activity.name.startswith(UPLOAD) or before.name.startswith(UPLOAD):
            between += gap
    return between / span, idle / span


def measure(stepper: Stepper, batch: int, steps: int) -> dict[str, float]:
    ids = stepper.decoding(batch, 128, 4 * steps + 100)
    for _ in range(10):
        stepper.step()
    begin = perf_counter()
    for _ in range(steps):
        stepper.step()
    step_ms = 1e3 * (perf_counter() - begin) / steps
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            stepper.step()
        torch.cuda.synchronize()
    stepper.stop(ids)
    found = [Activity(event.name(), event.start_ns(), event.start_ns() + event.duration_ns())
             for event in profiler.profiler.kineto_results.events()
             if event.device_type() == torch.autograd.DeviceType.CUDA and event.duration_ns() > 0]
    between, idle = idle_shares(found)
    return {"batch": batch, "step_ms": round(step_ms, 3), "idle_between_steps": round(between, 4),
            "idle": round(idle, 4), "activities_a_step": round(len(found) / steps, 1)}


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--batches", type=int, nargs="+", default=[1, 256])
    options.add_argument("--steps", type=int, default=STEPS)
    args = options.parse_args(argv)
    device = device_of(quick=False)
    stepper = Stepper(engine_config(args.model, device, max_model_len=2048, max_num_seqs=max(args.batches)))
    rows = [measure(stepper, batch, args.steps) for batch in args.batches]
    print(table(("batch", "ms a step", "idle between steps", "idle in all", "kernels and copies a step"),
                [(row["batch"], row["step_ms"], f"{row['idle_between_steps']:.1%}", f"{row['idle']:.1%}",
                  row["activities_a_step"]) for row in rows]))
    figures = [Figure(f"GPU idle between decode steps, batch {row['batch']}",
                      round(100 * row["idle_between_steps"], 1), " %", 3, at_least=False) for row in rows]
    print(*figures, sep="\n")
    path = write_result("host_idle", {"figures": [figure.record() for figure in figures], "rows": rows,
                                      "steps": args.steps, "model": model_dir(args.model, device).rpartition("/")[2]},
                        args.out)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
