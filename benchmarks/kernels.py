"""Every GPU kernel against eager torch, torch.compile and the floor: `mini-infer bench kernels`, written down.

    python -m benchmarks.kernels

Needs a GPU. Where the compared sizes are large (2,048 tokens and more) RMSNorm and RoPE must be several times as fast
as eager torch; all are replayed as CUDA graphs, so launches are not what makes the difference.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.common import Figure, write_result
from benchmarks.gpu import parser
from mini_infer.bench.kernels import KernelBench, kernels_table, run_kernels

WANTED = {"rms_norm": 5.0, "apply_rope": 6.0}  # times eager torch
LARGE = ("[2048", "[8192")


def figures_of(rows: Sequence[dict[str, Any]]) -> list[Figure]:
    """The least advantage over eager torch at large sizes; and prefill attention's rate at 8k."""
    figures = []
    for name, wanted in WANTED.items():
        ratios = [row["eager_us"] / row["ours_us"] for row in rows
                  if row["kernel"] == name and row["size"].startswith(LARGE)]
        if ratios:
            figures.append(Figure(f"{name} against eager torch", round(min(ratios), 1), "×", wanted))
    rates = {row["size"]: row["tflops"] for row in rows if row["kernel"] == "prefill attention"}
    if "2 x 8192" in rates:
        figures.append(Figure("prefill attention at 8k tokens", round(rates["2 x 8192"]), " TFLOP/s", 500))
    shares = [row["floor_us"] / row["ours_us"] for row in rows
              if row["kernel"] == "decode attention" and row["size"] == "64 x 8192"]
    if shares:
        figures.append(Figure("decode attention, 64 sequences of 8k, of a copy's bandwidth",
                              round(100 * statistics.fmean(shares), 1), " %", 100))
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--only", nargs="+", default=(), metavar="NAME", help="these kernels")
    options.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    args = options.parse_args(argv)
    result = run_kernels(KernelBench(tuple(args.only), not (args.no_compile or args.quick)))
    print(kernels_table(result))
    figures = figures_of(result["rows"])
    print(*figures, sep="\n")
    path = write_result("kernels", {"figures": [figure.record() for figure in figures], **result}, args.out)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
