"""Which algorithm of cuBLASLt multiplies fastest, for the products of decode and mixed steps; a table comes of it.

    python -m benchmarks.cublaslt [--models qwen2.5-7b,…] [--write]

Needs a GPU. Candidates for one number of rows are what the library would take for any number on the ladder. They are
timed as graphs over enough copies of the weight to leave the L2 cache cold, one after another without a rest; the best
few again in turn with torch's own choice. Those that win by MIN_GAIN
go to mini_infer/ops/tuned with --write. Writes results/cublaslt.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from benchmarks.common import RESULTS, write_result
from benchmarks.gpu import SHAPES
from mini_infer.bench.gpu_time import copies_for, require_gpu
from mini_infer.config import ModelConfig
from mini_infer.models.registry import load_config
from mini_infer.ops.cublaslt import MOST_WORKSPACE, TABLES, Algorithm, CublasLt, Product, library, table_path
from mini_infer.ops.skinny import max_skinny_rows
from mini_infer.runtime.graphs import MAX_MIXED, decode_shapes, mixed_shapes

MIN_GAIN = 1.02  # less would not be worth an entry
FINALISTS = 4
ROUNDS = 5
HOT_ROWS = 128  # from here on matmuls take all the power there is: candidates run for longer


def products_of(config: ModelConfig, rows: int) -> Iterator[Product]:
    """QKV, attention's output, gate over up, down, and the logits, of one step."""
    hidden, dtype = config.hidden_size, torch.bfloat16
    yield Product(rows, config.q_size + 2 * config.kv_size, hidden, dtype, bias=config.qkv_bias)
    yield Product(rows, hidden, config.q_size, dtype, adds=True)
    yield Product(rows, 2 * config.intermediate_size, hidden, dtype)
    yield Product(rows, hidden, config.intermediate_size, dtype, adds=True)
    if rows <= 512:
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

    def runs(self, product: Product, lt: CublasLt, algorithm: Algorithm | None) -> Callable[[int], object] | None:
        """The product with the i-th weight, by torch where no algorithm is given."""
        x, out = self._x[: product.rows], self._out[: product.rows]
        if algorithm is not None:
            plan = lt.plan(product, algorithm)
            return plan and (lambda i: plan(x, self.weights[i], self.bias, out))
        if product.adds:
            return lambda i: out.addmm_(x, self.weights[i].t())
        return lambda i: F.linear(x, self.weights[i], self.bias)


def captured(run: Callable[[int], object], copies: int) -> torch.cuda.CUDAGraph:
    """Without the collection of garbage that torch.cuda.graph begins with: there are thousands."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run(0)
        torch.cuda.synchronize()
        graph.capture_begin()
        for i in range(copies):
            run(i)
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


def best_of(product: Product, operands: Operands, lt: CublasLt, algorithms: list[Algorithm]) -> dict[str, object]:
    """Torch's time, and the fastest algorithm's, each the median of rounds in turn. All is queued before anything is
    waited for: a GPU that rests in between would run at a clock that it cannot hold in a step."""
    floor = max(2 * product.features * product.k / 4e12, 2 * product.rows * product.features * product.k / 700e12)
    replays = max(2, round((5e-3 if product.rows >= HOT_ROWS else 1e-3) / floor / operands.copies))
    graphs = {}
    for algorithm in algorithms:
        if run := operands.runs(product, lt, algorithm):
            graphs[algorithm.hex()] = captured(run, operands.copies)
    timings = {name: Timing.queue(graph, operands.copies, replays) for name, graph in graphs.items()}
    first = sorted(graphs, key=lambda name: timings[name].us())
    run = operands.runs(product, lt, None)
    assert run is not None
    finalists = {"": captured(run, operands.copies), **{name: graphs[name] for name in first[:FINALISTS]}}
    rounds = [{name: Timing.queue(graph, operands.copies, replays) for name, graph in finalists.items()}
              for _ in range(ROUNDS)]
    medians = {name: statistics.median(timings[name].us() for timings in rounds) for name in finalists}
    torch_us = medians.pop("")
    winner = min(medians, key=medians.__getitem__)
    return {"rows": product.rows, "torch_us": round(torch_us, 2), "best_us": round(medians[winner], 2),
            "algorithm": winner, "tried": len(graphs)}


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
    configs = [load_config(SHAPES / name)[1] for name in args.models.split(",")]
    wanted = {int(rows) for rows in args.rows.split(",")} if args.rows else set(ladder)
    kinds = dict.fromkeys(product for config in configs for product in products_of(config, ladder[0]))
    found = []
    gc.freeze()
    for kind in tqdm(kinds, desc="products"):
        rows_of = [rows for rows in ladder if rows <= 512 or kind.features < 1 << 16]
        pool: dict[str, Algorithm] = {}
        for rows in rows_of:
            for workspace in (0, MOST_WORKSPACE):
                pool.update((each.hex(), each) for each in lt.candidates(replace(kind, rows=rows), workspace))
        operands = Operands(kind, rows_of[-1])
        best = [best_of(replace(kind, rows=rows), operands, lt, list(pool.values())) for rows in rows_of
                if rows in wanted]
        found.append({"features": kind.features, "k": kind.k, "bias": kind.bias, "adds": kind.adds, "best": best})
        gains = " ".join(f"{row['rows']}:{row['torch_us'] / row['best_us'] - 1:.1%}" for row in best)  # type: ignore
        tqdm.write(f"{kind.features} x {kind.k} of {len(pool)}: {gains}")
        del operands
    path = write_result("cublaslt", {"gpu": gpu, "cublaslt_version": lt.version, "products": found}, args.out)
    print(f"written to {path}")
    if args.write:
        write_table(gpu, lt.version, found)


def write_table(gpu: str, version: int, found: list[dict]) -> None:  # type: ignore[type-arg]
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
