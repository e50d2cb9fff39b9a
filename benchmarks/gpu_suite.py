"""All benchmarks that need a GPU, one after the other, each in a process of its own; then their figures together.

    make bench-gpu        or        python -m benchmarks.gpu_suite [--only NAME …]

Runs from a plain checkout with the machine's own Python, for some minutes; much of that is starts. Where the checkout
has no history, BENCHMARK_COMMIT says what it is a copy of.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from benchmarks.charts import GPU_BENCHMARKS, figures_table, read_results
from benchmarks.common import RESULTS, ROOT


def run(name: str, out: Path) -> tuple[float, int]:
    """Seconds and exit status; the others still run when one fails."""
    begin = perf_counter()
    done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", "--out", str(out)], cwd=ROOT)
    return perf_counter() - begin, done.returncode


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=GPU_BENCHMARKS, default=list(GPU_BENCHMARKS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of the JSON files")
    args = parser.parse_args(argv)
    failed = []
    for number, name in enumerate(args.only, 1):
        print(f"\n[{number}/{len(args.only)}] {name}", flush=True)
        seconds, status = run(name, args.out)
        print(f"{seconds:.0f} s", flush=True)
        if status:
            failed.append(name)
    print(f"\n{figures_table({name: result for name, result in read_results(args.out).items() if name in args.only})}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
