"""Seconds from starting a process to the first token, by phase, with an empty and with a full kernel cache.

    python -m benchmarks.startup [--models qwen3-0.6b qwen2.5-7b]

Random weights: what reading 15 GB from the page cache adds is in benchmarks/weights.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common import Figure, write_result
from benchmarks.gpu import device_of, engine_config, parser
from mini_infer.bench.report import table
from mini_infer.bench.startup import StartupBench, run_startup

LIMITS = {"cold": 15.0, "warm": 8.0}  # seconds


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--models", nargs="+", default=["qwen2.5-7b"])
    options.add_argument("--num-iters-warm", type=int, default=2)
    args = options.parse_args(argv)
    device = device_of(args.quick)
    rows, figures = [], []
    for model in args.models:
        config = engine_config(model, device, **({} if device == "cpu" else {"max_model_len": 16384}))
        found = run_startup(StartupBench(config, num_iters_warm=args.num_iters_warm))
        for kind, result in found.items():
            rows.append({"model": model, "cache": kind, "total": round(result["total"], 3),
                         "phases": {name: round(seconds, 3) for name, seconds in result["phases"].items()},
                         "totals": [round(run["total"], 3) for run in result["starts"]],
                         "memory_bytes": result["starts"][-1]["memory_bytes"]})
            figures.append(Figure(f"{model}: process start to first token, {kind} kernel cache",
                                  round(result["total"], 1), " s", LIMITS[kind], at_least=False))
    names = list(rows[0]["phases"])
    print(table(("model", "cache", *names, "total"),
                [(row["model"], row["cache"], *(row["phases"].get(name, 0.0) for name in names), row["total"])
                 for row in rows]))
    print(*figures, sep="\n")
    path = write_result("startup", {"figures": [figure.record() for figure in figures], "rows": rows}, args.out)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
