"""The memory ledger against the driver, and gpu_memory_utilization against what was asked, idle and under load.

    python -m benchmarks.gpu_memory [--models qwen3-0.6b qwen2.5-7b]

Needs a GPU, with nobody else on it. Each engine starts in a process of its own; the load is long prompts beside many
short ones, sampled in every way, so that the largest steps happen.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.common import ROOT, Figure, write_result
from benchmarks.gpu import device_of, engine_config, parser
from mini_infer import LLM, SamplingParams
from mini_infer.bench.report import table


def measure(model: str, utilization: float) -> dict[str, Any]:
    """In this process: shares of the GPU's memory in use after the start and under load, and the ledger."""
    llm = LLM(engine_config(model, "cuda", max_model_len=16384, max_num_seqs=512, gpu_memory_utilization=utilization))
    free, total = torch.cuda.mem_get_info()
    rng = random.Random(0)
    prompts = [rng.choices(range(llm.info.vocab_size), k=12000 if i % 100 == 0 else rng.randint(4, 400))
               for i in range(600)]
    params = [SamplingParams(temperature=i % 2 * 0.7, top_p=0.9 + i % 3 * 0.05, repetition_penalty=1 + i % 5 * 0.01,
                             logprobs=3 if i % 4 == 0 else None, max_tokens=rng.randint(4, 24), ignore_eos=True,
                             detokenize=False) for i in range(len(prompts))]
    llm.generate(prompts, params, use_tqdm=False)
    loaded, _ = torch.cuda.mem_get_info()
    return {"utilization": utilization, "idle": round((total - free) / total, 4),
            "loaded": round((total - loaded) / total, 4), "total_bytes": total,
            "ledger_bytes": llm.info.memory_bytes, "ledger_sum": sum(llm.info.memory_bytes.values())}


def measure_in_own_process(model: str, utilization: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu_memory", "--child", model, str(utilization)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{model} at {utilization} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--models", nargs="+", default=["qwen3-0.6b", "qwen2.5-7b"])
    options.add_argument("--utilizations", type=float, nargs="+", default=[0.85, 0.95])
    options.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = options.parse_args(argv)
    if args.child is not None:
        print(json.dumps(measure(args.child[0], float(args.child[1]))))
        return
    device_of(quick=False)
    rows = [{"model": model, **measure_in_own_process(model, utilization)}
            for model in args.models for utilization in args.utilizations]
    print(table(("model", "asked", "idle", "under load", "ledger over driver"),
                [(row["model"], f"{row['utilization']:.1%}", f"{row['idle']:.1%}", f"{row['loaded']:.1%}",
                  f"{row['ledger_sum'] / row['total_bytes']:.2%}") for row in rows]))
    off = max(abs(row[when] - row["utilization"]) for row in rows for when in ("idle", "loaded"))
    gap = max(abs(row["ledger_sum"] / row["total_bytes"] - 1) for row in rows)
    figures = [Figure("gpu_memory_utilization, off by at most", round(100 * off, 2), " %", 1, at_least=False),
               Figure("the memory ledger against the driver, off by at most", round(100 * gap, 2), " %", 2,
                      at_least=False)]
    print(*figures, sep="\n")
    path = write_result("gpu_memory", {"figures": [figure.record() for figure in figures], "rows": rows}, args.out)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
