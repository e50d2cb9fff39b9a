"""Which algorithm of cuBLASLt multiplies fastest, for the products of decode and mixed steps; a table comes of it.

    python -m benchmarks.cublaslt [--models qwen2.5-7b,…] [--write]

Needs a GPU. Candidates for some rows are what the library would take for about as many. They are timed as graphs over
enough copies of the weight to leave the L2 cache cold, with a small kernel between two products as a step has it: one
after the other, cuBLAS's kernels start early and hide how long the last of their tiles take. Nothing rests in between,
so that large ones run at a clock that the GPU can hold. The best few are timed again in turn with torch's own choice.
Those that win by MIN_GAIN go to mini_infer/ops/tuned with --write. Writes results/cublaslt.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tqdm import tqdm

from benchmarks.common import RESULTS, write_result
from benchmarks.gpu import SHAPES
from mini_infer.bench.gpu_time import copies_for, require_gpu
from mini_infer.config import ModelConfig
from mini_infer.models.registry import load_config
from mini_infer.ops.cublaslt import (
    MOST_WORKSPACE,
    TABLES,
    Algorithm,
    CublasLt,
    Plan,
    Product,
    library,
    table_path,
)
from mini_infer.ops.skinny import max_skinny_rows
from mini_infer.runtime.graphs import MAX_MIXED, decode_shapes, mixed_shapes

MIN_GAIN = 1.02  # less would not be worth an entry
FINALISTS = 4
ROUNDS = 5
SECONDS = 1.5e-3  # that a candidate runs for, each time


def products_of(config: ModelConfig, rows: int) -> Iterator[Product]:
    """QKV, attention's output, gate over up, down, and the logits, of one step."""
    hidden, dtype = config.hidden_size, torch.bfloat16
    yield Product(rows, config.q_size + 2 * config.kv_size, hidden, dtype, bias=config.qkv_bias)
    yield Product(rows, hidden, config.q_size, dtype, adds=True)
    yield Product(rows, 2 * config.intermediate_size, hidden, dtype)
    yield Product(rows, hidden, config.intermediate_size, dtype, adds=True)
    yield Product(rows, config.vocab_size, hidden, dtype)


class Operands:
    """Random ones for every number of rows of a product, the weight in several copies."""

    def __init__(self, product: Product, most_rows: int):
        shape = (product.features, product.k)
        self.copies = copies_for(2 * product.features * product.k)
        self.weights = [torch.randn(shape, dtype=product.dtype, device="cuda") / product.k**0.5
                        for _ in range(self.copies)]
        self.bias = torch.randn(product.features, dtype=product.dtype, device="cuda") if product.bias else None
        self._x = torch.randn(most_rows, product.k, dtype=product.dtype, device="cuda")
        self._out = torch.zeros(most_rows, product.features, dtype=product.dtype, device="cuda")

    def x(self, rows: int) -> torch.Tensor:
        return self._x[:rows]

    def capture(self, rows: int, run: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], object] | None
                ) -> torch.cuda.CUDAGraph:
        """run(x, weight, out) with each copy of the weight, and before it a kernel that leaves x in the cache; without
        `run`, that kernel alone. torch.cuda.graph would collect garbage each time, and there are thousands of graphs.
        """
        x, out = self._x[:rows], self._out[:rows]
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        with torch.cuda.stream(stream):
            if run is not None:
                run(x, self.weights[0], out)
            torch.cuda.synchronize()
            graph.capture_begin()
            for weight in self.weights:
                x.mul_(1)
                if run is not None:
                    run(x, weight, out)
            graph.capture_end()
        return graph


@dataclass
class Timing:
    """Replays of a graph that have been queued, to be read once the GPU has done them."""

    start: torch.cuda.Event
    end: torch.cuda.Event
    products: int

    @classmethod
    def queue(cls, graph: torch.cuda.CUDAGraph, copies: int, replays: int) -> Timing:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(replays):
            graph.replay()
        end.record()
        return cls(start, end, copies * replays)

    def us(self) -> float:
        self.end.synchronize()
        return 1e3 * self.start.elapsed_time(self.end) / self.products


def best_of(product: Product, operands: Operands, lt: CublasLt, algorithms: list[Algorithm]) -> dict[str, Any]:
    """Torch's time, and the fastest algorithm's, each the median of rounds in turn. All is queued before anything is
    waited for: a GPU that rests in between would run at a clock that it cannot hold in a step."""
    rows, size = product.rows, product.features * product.k
    replays = max(2, round(SECONDS / max(2 * size / 4e12, 2 * rows * size / 700e12) / operands.copies))
    plans = {algorithm.hex(): lt.plan(product, algorithm) for algorithm in algorithms}
    graphs = {name: operands.capture(rows, partial(_by_plan, plan, operands.bias))
              for name, plan in plans.items() if plan is not None}
    timings = {name: Timing.queue(graph, operands.copies, replays) for name, graph in graphs.items()}
    first = sorted(graphs, key=lambda name: timings[name].us())
    finalists = {"torch": operands.capture(rows, partial(_by_torch, product, operands.bias)),
                 "between": operands.capture(rows, None), **{name: graphs[name] for name in first[:FINALISTS]}}
    rounds = [{name: Timing.queue(graph, operands.copies, replays) for name, graph in finalists.items()}
              for _ in range(ROUNDS)]
    medians = {name: statistics.median(timings[name].us() for timings in rounds) for name in finalists}
    between, torch_us = medians.pop("between"), medians.pop("torch")
    winner = min(medians, key=medians.__getitem__)
    return {"rows": rows, "torch_us": round(torch_us - between, 2), "best_us": round(medians[winner] - between, 2),
            "algorithm": winner, "tried": len(graphs)}


def _by_plan(plan: Plan, bias: torch.Tensor | None, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
    plan(x, weight, bias, out)


def _by_torch(product: Product, bias: torch.Tensor | None, x: torch.Tensor, weight: torch.Tensor,
              out: torch.Tensor) -> None:
    if product.adds:
        out.addmm_(x, weight.t())
    else:
        F.linear(x, weight, bias)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="qwen3-0.6b,qwen2.5-7b,qwen3-8b,llama-3.1-8b")
    parser.add_argument("--rows", default="", help="some numbers of rows instead of the whole ladder: 64,256")
    parser.add_argument("--write", action="store_true", help="keep what won in mini_infer/ops/tuned")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    gpu = require_gpu()
    lt = library(torch.device("cuda", 0))
    shapes = decode_shapes(512, 1024, 8) + mixed_shapes(512, MAX_MIXED, MAX_MIXED)
    skinny = max_skinny_rows(torch.empty(0, dtype=torch.bfloat16))
    ladder = sorted({shape.num_tokens for shape in shapes if shape.num_tokens > skinny})
    logits = sorted({shape.num_seqs for shape in shapes if shape.num_seqs > skinny})
    configs = [load_config(SHAPES / name)[1] for name in args.models.split(",")]
    vocabularies = {config.vocab_size for config in configs}
    wanted = {int(rows) for rows in args.rows.split(",")} if args.rows else {*ladder, *logits}
    kinds = dict.fromkeys(product for config in configs for product in products_of(config, ladder[0]))
    found = []
    gc.freeze()
    for kind in tqdm(kinds, desc="products"):
        rows_of = logits if kind.features in vocabularies else ladder
        pool = {rows: [each for workspace in (0, MOST_WORKSPACE)
                       for each in lt.candidates(replace(kind, rows=rows), workspace)] for rows in rows_of}
        operands = Operands(kind, rows_of[-1])
        best = []
        for rows in sorted(wanted.intersection(rows_of)):
            near = {each.hex(): each for other in rows_of if rows / 2 <= other <= 2 * rows for each in pool[other]}
            best.append(best_of(replace(kind, rows=rows), operands, lt, list(near.values())))
        found.append({"features": kind.features, "k": kind.k, "bias": kind.bias, "adds": kind.adds, "best": best})
        gains = " ".join(f"{row['rows']}:{row['torch_us'] / row['best_us'] - 1:.1%}" for row in best)
        tqdm.write(f"{kind.features} x {kind.k}: {gains}")
        del operands
    times = [{**each, "best": [(row["rows"], row["torch_us"], row["best_us"]) for row in each["best"]]}
             for each in found]
    path = write_result("cublaslt", {"gpu": gpu, "cublaslt_version": lt.version, "best": "[rows, torch us, best us]",
                                     "products": times}, args.out)
    print(f"written to {path}")
    if args.write:
        write_table(gpu, lt.version, found)


def write_table(gpu: str, version: int, found: list[dict[str, Any]]) -> None:
    """Put what won into the table, in place of what it says of the same products and rows; one line a product."""
    path = table_path(gpu)
    products: dict[tuple[int, int, str, bool, bool], dict[int, str]] = {}
    if path.exists() and (old := json.loads(path.read_text()))["cublaslt_version"] == version:
        products = {tuple(product): dict(best) for *product, best in old["products"]}  # type: ignore[misc]
    for each in found:
        best = products.setdefault((each["features"], each["k"], "bfloat16", each["bias"], each["adds"]), {})
        for row in each["best"]:
            best.pop(row["rows"], None)
            if row["torch_us"] / row["best_us"] >= MIN_GAIN:
                best[row["rows"]] = row["algorithm"]
    lines = ",\n".join(json.dumps([*product, sorted(best.items())]) for product, best in products.items())
    TABLES.mkdir(exist_ok=True)
    path.write_text(f'{{"gpu": "{gpu}", "cublaslt_version": {version}, "products": [\n{lines}]}}\n')


if __name__ == "__main__":
    main()
