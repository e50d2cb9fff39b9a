"""The matrix products of a decode step with few rows: our fused kernels against cuBLAS with its neighbours as kernels.

    python -m benchmarks.skinny [--rows 1,2,4,8,16,32]

Needs a GPU. Each timing is the median of graph replays over enough copies of the weight to leave the L2 cache cold.
`floor` is the time of the weight's bytes at the measured copy bandwidth; `cuda` is few.cu with the fastest number of
blocks, where it is built (make build-ext), and `!` marks where ops/cuda_few.py chooses it. Writes results/skinny.json.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from tqdm import tqdm

from benchmarks.common import write_result
from mini_infer.bench.gpu_time import graph_time
from mini_infer.ops import cuda_few
from mini_infer.ops.activation import silu_and_mul
from mini_infer.ops.epilogue import Epilogue
from mini_infer.ops.norm import rms_norm
from mini_infer.ops.skinny import SkinnyTile, choose_tile, skinny_matmul

COPY_BYTES_PER_S = 4.25e12
# (model, product, [N, K]): gate-up is gated, o and down add to the residual stream, qkv and gate-up follow a norm.
PRODUCTS = [
    ("qwen3-0.6b", "qkv", 4096, 1024), ("qwen3-0.6b", "o", 1024, 2048), ("qwen3-0.6b", "gate-up", 3072, 1024),
    ("qwen3-0.6b", "down", 1024, 3072), ("qwen3-0.6b", "lm_head", 151936, 1024),
    ("qwen2.5-7b", "qkv", 4608, 3584), ("qwen2.5-7b", "o", 3584, 3584), ("qwen2.5-7b", "gate-up", 18944, 3584),
    ("qwen2.5-7b", "down", 3584, 18944), ("qwen2.5-7b", "lm_head", 152064, 3584),
    ("llama-3.1-8b", "qkv", 6144, 4096), ("llama-3.1-8b", "o", 4096, 4096), ("llama-3.1-8b", "gate-up", 14336, 4096),
    ("llama-3.1-8b", "down", 4096, 14336),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="1,2,4,8,16,32")
    args = parser.parse_args()
    dtype, device = torch.bfloat16, "cuda"
    results = []
    for model, product, n, k in tqdm(PRODUCTS, desc="products"):
        gated = product == "gate-up"
        rows_of_weight = 2 * n if gated else n
        copies = max(2, min(40, int(4e8 / (rows_of_weight * k * 2))))
        weights = [torch.randn(rows_of_weight, k, dtype=dtype, device=device) / k**0.5 for _ in range(copies)]
        norm_weight = torch.ones(k, dtype=dtype, device=device) if product in ("qkv", "gate-up") else None
        floor = rows_of_weight * k * 2 / COPY_BYTES_PER_S * 1e6
        for m in map(int, args.rows.split(",")):
            x = torch.randn(m, k, dtype=dtype, device=device)
            stream = torch.randn(m, n, dtype=dtype, device=device) if product in ("o", "down") else None
            epilogue = Epilogue(norm_weight, 1e-6, None, gated, stream)
            library = partial(library_product, x, weights, epilogue)
            entry = dict(model=model, product=product, n=n, k=k, m=m, floor_us=floor,
                         library_us=1e6 * graph_time(library, copies))
            if m <= 16:
                chosen = choose_tile(m, n, k, gated)
                timings = {tile: 1e6 * graph_time(partial(our_product, x, weights, epilogue, tile), copies)
                           for tile in dict.fromkeys([chosen, *candidates(m)])}
                best = min(timings, key=timings.__getitem__)
                entry |= dict(ours_us=timings[chosen], best_us=timings[best], best=str(best))
            if m <= cuda_few.MOST_ROWS and cuda_few.LIBRARY.exists():
                times = {blocks: 1e6 * graph_time(partial(cuda_product, x, weights, epilogue, blocks), copies)
                         for blocks in cuda_few.BLOCKS}
                fastest = min(times, key=times.__getitem__)
                entry |= dict(cuda_us=times[fastest], cuda_best=f"{fastest} blocks",
                              cuda_chosen=str(cuda_few.choose_blocks(m, weights[0], gated)))
            results.append(entry)
    print(f"{'model':<14}{'product':<9}{'m':>4}{'floor':>8}{'library':>9}{'ours':>8}{'best':>8}{'cuda':>8}  best tiles")
    for e in results:
        print(f"{e['model']:<14}{e['product']:<9}{e['m']:>4}{e['floor_us']:>8.1f}{e['library_us']:>9.1f}"
              + (f"{e['ours_us']:>8.1f}{e['best_us']:>8.1f}" if "ours_us" in e else "")
              + (f"{e['cuda_us']:>8.1f}{' ' if e['cuda_chosen'] == 'None' else '!'}" if "cuda_us" in e else "")
              + f"  {e.get('best', '')} {e.get('cuda_best', '')}")
    write_result("skinny", {"products": results})


def library_product(x: torch.Tensor, weights: list[torch.Tensor], epilogue: Epilogue, i: int) -> torch.Tensor:
    """The same with cuBLAS and a kernel for each neighbour that it cannot fold in."""
    y = x if epilogue.norm_weight is None else rms_norm(x, epilogue.norm_weight, epilogue.eps)
    if epilogue.residual is not None:
        return epilogue.residual.addmm_(y, weights[i].t())
    y = torch.mm(y, weights[i].t())
    return silu_and_mul(y) if epilogue.gated else y


def our_product(x: torch.Tensor, weights: list[torch.Tensor], epilogue: Epilogue, tile: SkinnyTile,
                i: int) -> torch.Tensor:
    return skinny_matmul(x, weights[i], epilogue, tile=tile)


def cuda_product(x: torch.Tensor, weights: list[torch.Tensor], epilogue: Epilogue, blocks: int,
                 i: int) -> torch.Tensor:
    return cuda_few.cuda_few_matmul(x, weights[i], epilogue, blocks=blocks)


def candidates(rows: int) -> list[SkinnyTile]:
    """Other tiles to try, so that the choice in ops/skinny.py can be measured again."""
    if rows == 1:
        shapes = [(4, 1024, 4, 2), (4, 2048, 8, 2), (8, 512, 4, 3), (8, 1024, 8, 2), (2, 2048, 4, 2), (2, 1024, 4, 2)]
        shapes = [(*shape, False) for shape in shapes] + [(16, 512, 4, 3)]
    else:
        shapes = [(16, 512, 4, 4), (32, 512, 4, 3), (16, 1024, 4, 3), (16, 1024, 8, 3), (32, 1024, 8, 2)]
    return [SkinnyTile(*shape) for shape in shapes]


if __name__ == "__main__":
    main()
