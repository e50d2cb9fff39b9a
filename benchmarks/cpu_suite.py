"""All benchmarks that need no GPU, one after the other, each in a process of its own; then their figures together.

Run it with `python -m benchmarks.cpu_suite` on a machine that does nothing else; it takes about five minutes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from benchmarks.charts import BENCHMARKS, figures_table, read_results
from benchmarks.common import RESULTS, ROOT

TAKES_NO_OUT = {"host_cost"}  # always writes to benchmarks/results


def run(name: str, out: Path, options: Sequence[str]) -> float:
    """Run one benchmark; returns its seconds. Raises CalledProcessError when it fails."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    if name not in TAKES_NO_OUT:
        command += ["--out", str(out)]
    begin = perf_counter()
    subprocess.run(command, cwd=ROOT, check=True)
    return perf_counter() - begin


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of the JSON files")
    parser.add_argument("options", nargs="*", help="handed to each benchmark, after --")
    args = parser.parse_args(argv)
    for number, name in enumerate(args.only, 1):
        print(f"\n[{number}/{len(args.only)}] {name}", flush=True)
        print(f"{run(name, args.out, args.options):.0f} s")
    print(f"\n{figures_table(read_results(args.out))}")


if __name__ == "__main__":
    main()
