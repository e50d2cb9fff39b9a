"""Which algorithm of cuBLASLt multiplies fastest, for the products of decode and mixed steps; a table comes of it.

    python -m benchmarks.cublaslt [--models qwen2.5-7b,…] [--only parts] [--rows 64,256] [--write]

Needs a GPU. Candidates for some rows are what the library would take for about as many. They are timed as graphs over
enough copies of the weight to leave the L2 cache cold, with a small kernel between two products as a step has it: one
after the other, cuBLAS's kernels start early and hide how long the last of their tiles take. Nothing rests in between,
so that large ones run at a clock that the GPU can hold. The best few are timed again in turn with torch's own choice.
What is added to the stream is timed with the norm that follows, which may have the product's parts to add first.
Those that win by MIN_GAIN go to mini_infer/ops/tuned with --write. Writes results/cublaslt_MODEL.json, or
cublaslt_parts_MODEL.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from collections.abc import Callable, Iterable, Iterator
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
from mini_infer.ops.norm import add_rms_norm, rms_norm
from mini_infer.ops.skinny import max_skinny_rows
from mini_infer.runtime.graphs import MAX_MIXED, decode_shapes, mixed_shapes

PARTS = (2, 4)
MIN_GAIN = 1.02  # less would not be worth an entry
FINALISTS = 4
ROUNDS = 5
EPS = 1e-6
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
        self._norm_weight = torch.ones(product.features, dtype=product.dtype, device="cuda")

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

    def by_plan(self, plan: Plan, adds: bool, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
        if plan.product.parts > 1:
            add_rms_norm(out, plan(x, weight), self._norm_weight, EPS)
        else:
            plan(x, weight, self.bias, out)
            if adds:
                rms_norm(out, self._norm_weight, EPS)

    def by_torch(self, adds: bool, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
        if adds:
            rms_norm(out.addmm_(x, weight.t()), self._norm_weight, EPS)
        else:
            F.linear(x, weight, self.bias)


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


Way = tuple[int, str]  # in how many parts, and the algorithm


def best_of(product: Product, operands: Operands, lt: CublasLt, ways: Iterable[Way]) -> dict[str, Any]:
    """Torch's time, and the fastest algorithm's, each the median of rounds in turn. All is queued before anything is
    waited for: a GPU that rests in between would run at a clock that it cannot hold in a step."""
    rows, size = product.rows, product.features * product.k
    replays = max(2, round(SECONDS / max(2 * size / 4e12, 2 * rows * size / 700e12) / operands.copies))
    plans = {way: lt.plan(product.in_parts(way[0]), Algorithm.from_hex(way[1])) for way in ways}
    graphs: dict[Way | str, torch.cuda.CUDAGraph] = {
        way: operands.capture(rows, partial(operands.by_plan, plan, product.adds))
        for way, plan in plans.items() if plan is not None}
    timings = {name: Timing.queue(graph, operands.copies, replays) for name, graph in graphs.items()}
    first = sorted(graphs, key=lambda name: timings[name].us())
    finalists = {"torch": operands.capture(rows, partial(operands.by_torch, product.adds)),
                 "between": operands.capture(rows, None), **{name: graphs[name] for name in first[:FINALISTS]}}
    rounds = [{name: Timing.queue(graph, operands.copies, replays) for name, graph in finalists.items()}
              for _ in range(ROUNDS)]
    medians = {name: statistics.median(timings[name].us() for timings in rounds) for name in finalists}
    between, torch_us = medians.pop("between"), medians.pop("torch")
    winner = min(medians, key=medians.__getitem__)
    parts, algorithm = winner
    return {"rows": rows, "torch_us": round(torch_us - between, 2), "best_us": round(medians[winner] - between, 2),
            "algorithm": algorithm, "parts": parts, "tried": len(graphs)}


def may_be_left_in_parts(product: Product) -> bool:
    """Sums that are few for a GPU, and long enough to be split."""
    return product.adds and product.k > product.features


def candidates(lt: CublasLt, product: Product) -> set[Way]:
    """What the library proposes: with workspace and without, whole and in parts."""
    found = {(1, each.hex()) for workspace in (0, MOST_WORKSPACE) for each in lt.candidates(product, workspace)}
    if may_be_left_in_parts(product):
        found |= {(parts, each.hex()) for parts in PARTS if product.k % (8 * parts) == 0  # 16 bytes
                  for each in lt.candidates(product.in_parts(parts), workspace=0, count=8)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="qwen3-0.6b,qwen2.5-7b,qwen3-8b,llama-3.1-8b")
    parser.add_argument("--only", choices=["parts"], help="those alone that may be left in parts")
    parser.add_argument("--rows", default="", help="some numbers of rows instead of the whole ladder: 64,256")
    parser.add_argument("--write", action="store_true", help="keep what won in mini_infer/ops/tuned")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    gpu = require_gpu()
    lt = library(torch.device("cuda", 0))
    gc.freeze()
    for model in args.models.split(","):
        config = load_config(SHAPES / model)[1]
        kinds = [kind for kind in products_of(config, 1) if args.only is None or may_be_left_in_parts(kind)]
        found = [best_of_rows(lt, kind, *rows_of(kind, config, args.rows)) for kind in tqdm(kinds, desc=model)]
        times = [{**each, "best": [(row["rows"], row["torch_us"], row["best_us"], row["parts"])
                                   for row in each["best"]]} for each in found]
        columns = "[rows, torch us, best us, parts], with the norm that follows where it adds"
        name = f"cublaslt_{model}" if args.only is None else f"cublaslt_{args.only}_{model}"
        path = write_result(name, {"gpu": gpu, "cublaslt_version": lt.version, "best": columns, "products": times},
                            args.out)
        print(f"written to {path}")
        if args.write:
            write_table(gpu, lt.version, found)


def rows_of(kind: Product, config: ModelConfig, asked: str) -> tuple[list[int], list[int]]:
    """The numbers of rows that graphs have for this product, and those to be measured: `asked`, or all."""
    shapes = decode_shapes(512, 1024, 8) + mixed_shapes(512, MAX_MIXED, MAX_MIXED)
    are_logits = kind.features == config.vocab_size
    ladder = sorted({shape.num_seqs if are_logits else shape.num_tokens for shape in shapes})
    ladder = [rows for rows in ladder if rows > max_skinny_rows(torch.empty(0, dtype=kind.dtype))]
    return ladder, sorted({int(rows) for rows in asked.split(",")}.intersection(ladder)) if asked else ladder


def best_of_rows(lt: CublasLt, kind: Product, ladder: list[int], wanted: list[int]) -> dict[str, Any]:
    pool = {rows: candidates(lt, replace(kind, rows=rows)) for rows in ladder}
    operands = Operands(kind, ladder[-1])
    best = []
    for rows in wanted:
        near = set().union(*(pool[other] for other in ladder if rows / 2 <= other <= 2 * rows))
        best.append(best_of(replace(kind, rows=rows), operands, lt, near))
    gains = " ".join(f"{row['rows']}:{row['torch_us'] / row['best_us'] - 1:.1%}" for row in best)
    tqdm.write(f"{kind.features} x {kind.k}: {gains}")
    return {"features": kind.features, "k": kind.k, "bias": kind.bias, "adds": kind.adds, "best": best}


def write_table(gpu: str, version: int, found: list[dict[str, Any]]) -> None:
    """Put what won into the table, in place of what it says of the same products and rows; one line a product."""
    path = table_path(gpu)
    products: dict[tuple[int, int, str, bool, bool], dict[int, tuple[str, int]]] = {}
    if path.exists() and (old := json.loads(path.read_text()))["cublaslt_version"] == version:
        products = {(features, k, dtype, bias, adds): {rows: (algorithm, parts) for rows, algorithm, parts in best}
                    for features, k, dtype, bias, adds, best in old["products"]}
    for each in found:
        best = products.setdefault((each["features"], each["k"], "bfloat16", each["bias"], each["adds"]), {})
        for row in each["best"]:
            best.pop(row["rows"], None)
            if row["torch_us"] / row["best_us"] >= MIN_GAIN:
                best[row["rows"]] = row["algorithm"], row["parts"]
    lines = ",\n".join(json.dumps([*product, [(rows, *how) for rows, how in sorted(best.items())]])
                       for product, best in products.items())
    TABLES.mkdir(exist_ok=True)
    path.write_text(f'{{"gpu": "{gpu}", "cublaslt_version": {version}, "products": [\n{lines}]}}\n')


if __name__ == "__main__":
    main()
