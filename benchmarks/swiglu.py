"""The gated product of 9 rows and more as one CUDA kernel (`make build-ext`) against cuBLAS and a kernel for the gate.

    python -m benchmarks.swiglu [--models qwen2.5-7b,…] [--rows 256,384,2048]

Needs a Hopper GPU. Each is a graph over copies of the weight that no cache holds, with a small kernel between two
products as a step has it (its time is taken off). Two times are told: the best of three short runs, at the clock that
the GPU has then; and, for cuBLAS and the tile that ops/cuda_swiglu.py chooses (`*`, if it chooses one), the time after
half a second of nothing else, when power limits the clock, as in long runs. Writes results/swiglu.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.common import RESULTS, Figure, write_result
from benchmarks.cublaslt import Operands, Timing
from benchmarks.gpu import SHAPES
from mini_infer.bench.gpu_time import require_gpu
from mini_infer.models.registry import load_config
from mini_infer.ops.activation import silu_and_mul
from mini_infer.ops.cublaslt import Product
from mini_infer.ops.cuda_swiglu import TILES, Tile, choose_tile, cuda_swiglu
from mini_infer.ops.linear import linear

SHORT, LONG = 2e-3, 0.5  # seconds
BASE = "cublas and silu"
ROUNDS = 3


def two_kernels(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
    silu_and_mul(linear(x, weight, out=out))


def name_of(tile: Tile) -> str:
    return f"{tile.rows}x{tile.width}{'' if tile.shares_x else ', weights shared'}"


def figures_of(products: list[dict[str, Any]]) -> list[Figure]:
    """The kernel's time, in per cent of the two kernels' that it replaces, where it is used: it should win by 5."""
    shares = [100 * row["us"][row["chosen"]][0] / row["us"][BASE][0] for row in products if row["chosen"]]
    if not shares:
        return []
    return [Figure(f"gate and up as one kernel, time over that of two: {name}", round(share, 1), " %", 95,
                   at_least=False)
            for name, share in (("median", statistics.median(shares)), ("worst", max(shares)))]


def held(graph: torch.cuda.CUDAGraph, copies: int, us: float) -> float:
    """Microseconds a product in the last fifth of LONG seconds of replays, queued without a pause."""
    replays = round(LONG * 1e6 / us / copies)
    Timing.queue(graph, copies, replays - replays // 5)
    return Timing.queue(graph, copies, replays // 5).us()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="qwen2.5-7b,qwen3-8b,llama-3.1-8b,qwen3-0.6b")
    parser.add_argument("--rows", default="16,64,128,192,256,384,512,2048,4224,8192")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    gpu, found = require_gpu(), []
    all_rows = [int(rows) for rows in args.rows.split(",")]
    for name in tqdm(args.models.split(","), desc="models"):
        config = load_config(SHAPES / name)[1]
        features, k = config.intermediate_size, config.hidden_size
        operands = Operands(Product(max(all_rows), 2 * features, k, torch.bfloat16), max(all_rows))
        for rows in all_rows:
            runs: dict[str, Callable[..., object] | None] = {"between": None, BASE: two_kernels}
            runs |= {name_of(tile): partial(_by_kernel, tile) for tile in TILES if tile.suits(rows)}
            graphs = {label: operands.capture(rows, run) for label, run in runs.items()}
            replays = max(1, round(SHORT / (4 * rows * features * k / 6e14) / operands.copies))
            first = {label: min(Timing.queue(graph, operands.copies, replays).us() for _ in range(ROUNDS))
                     for label, graph in graphs.items()}
            between = first.pop("between")
            tile = choose_tile(operands.x(rows), operands.weights[0])
            chosen = name_of(tile) if tile else None
            times = {label: [round(us - between, 1)] for label, us in first.items()}
            for label in {BASE, chosen or BASE}:
                times[label].append(round(held(graphs[label], operands.copies, first[label]) - between, 1))
            found.append({"model": name, "rows": rows, "features": features, "k": k, "chosen": chosen, "us": times})
            told = sorted(times.items(), key=lambda item: (item[0] not in (BASE, chosen), item[1]))[:5]
            tqdm.write(f"{name} {rows} rows, us: " + "  ".join(
                f"{label}{'*' * (label == chosen)} {' / '.join(map(str, us))}" for label, us in told))
            time.sleep(0.2)
        del operands
    figures = figures_of(found)
    print(*figures, sep="\n")
    result = {"figures": [figure.record() for figure in figures], "gpu": gpu, "us": "[short, held]", "products": found}
    print(f"written to {write_result('swiglu', result, args.out)}")


def _by_kernel(tile: Tile, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
    cuda_swiglu(x, weight, tile)


if __name__ == "__main__":
    main()
