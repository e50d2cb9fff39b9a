"""Whole decode steps as CUDA graphs, with the tiles that the code chooses and with others in their place.

    python -m benchmarks.decode_step MODEL_DIR [--batches 1,8,16,32,64,256] [--context 272] [--only few.cu] [--write]

What a kernel takes alone says little about a step in which kernels start before the ones before them have ended, so
tiles are compared here, one product (or attention) changed at a time; where the CUDA kernels are built (make
build-ext), also steps without them, and each of their tiles. Needs a GPU and a directory with a config.json; the
weights are random. All variants of a batch size take turns, ten replays at a time, so that a GPU that warms up or slows
down does so for all of them; told are the median of six turns and their extremes. One and the same step of 256 rows
still differs by 1 %. Writes results/decode_step.json; with --write, the one change that made a step shortest, if by
MIN_GAIN, goes to a table of mini_infer/ops/tuned: tiles of batches 1 and 8 to skinny.json, blocks of few.cu to
few.json. Run again, it looks for the next.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tqdm import tqdm

from benchmarks.common import RESULTS, spread, write_result
from mini_infer.models.decoder import Decoder
from mini_infer.models.loader import build_model
from mini_infer.models.registry import load_config
from mini_infer.ops import attention_split, cuda_few, cuda_swiglu, skinny
from mini_infer.ops.attention_split import Tile
from mini_infer.ops.inputs import ForwardBatch
from mini_infer.ops.sampling import SamplingNeeds, sample
from mini_infer.ops.sampling_params import NUM_PARAM_COLUMNS
from mini_infer.ops.skinny import SkinnyTile
from mini_infer.runtime.compile_ahead import CompileAhead

Product = tuple[int, int, bool]  # output features, K, gated
BLOCK_SIZE = 64
REPLAYS, TURNS = 10, 6
MIN_GAIN = 1.005
FEW_ROWS = [SkinnyTile(*shape) for shape in (
    (16, 512, 4, 3), (32, 512, 4, 3), (16, 1024, 4, 3), (16, 1024, 8, 3), (16, 1024, 4, 1), (32, 1024, 4, 1),
    (16, 2048, 8, 1), (16, 256, 2, 3), (16, 256, 2, 4), (16, 128, 1, 4))]
ONE_ROW = [*(SkinnyTile(*shape, stages=1, dot=False) for shape in (
    (8, 1024, 4), (4, 1024, 2), (4, 512, 4), (4, 512, 2), (2, 2048, 4), (2, 4096, 4))),
    *(tile for tile in FEW_ROWS if tile.k <= 512)]
ATTENTION = [(32, 2, 5), (16, 1, 5), (32, 1, 4), (64, 4, 5)]  # keys, warps, stages


def decode_batch(num_seqs: int, context: int, device: str) -> ForwardBatch:
    """A token each of `num_seqs` sequences that are `context` long with it, on pages in random order."""
    pages = -(-context // BLOCK_SIZE)
    table = torch.randperm(num_seqs * pages, device=device).int().view(num_seqs, pages)
    last = context - 1
    return ForwardBatch(
        input_ids=torch.randint(1000, (num_seqs,), dtype=torch.int32, device=device),
        positions=torch.full((num_seqs,), last, dtype=torch.int32, device=device),
        slot_mapping=table[:, last // BLOCK_SIZE] * BLOCK_SIZE + last % BLOCK_SIZE,
        cu_seqlens_q=torch.arange(num_seqs + 1, dtype=torch.int32, device=device),
        seq_lens=torch.full((num_seqs,), context, dtype=torch.int32, device=device),
        slots=torch.arange(num_seqs, dtype=torch.int32, device=device), block_table=table,
        logit_rows=None, num_tokens=num_seqs, num_seqs=num_seqs, max_query_len=1, max_seq_len=max(1024, context))


def step_of(model: Decoder, batch: ForwardBatch, caches: list[tuple[torch.Tensor, torch.Tensor]]
            ) -> Callable[[], torch.Tensor]:
    params = torch.zeros(batch.num_seqs, NUM_PARAM_COLUMNS, dtype=torch.int32, device="cuda")
    return lambda: sample(model.logits(model.forward(batch, caches)), batch.slots, batch.seq_lens, params,
                          SamplingNeeds(random=True))


def compile_variants(step: Callable[[], object], contexts: Iterable[AbstractContextManager[object]]) -> None:
    """All of them side by side: one after the other, this would take longer than to time them."""
    kernels = CompileAhead(torch.device("cuda"))
    with kernels.rehearsal():
        for context in contexts:
            with context:
                step()
    kernels.wait()  # what cannot be compiled will say so when it is launched


def capture_step(step: Callable[[], object]) -> torch.cuda.CUDAGraph:
    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def time_steps(graphs: dict[str, torch.cuda.CUDAGraph]) -> dict[str, list[float]]:
    """Microseconds of a replay, in each turn; every other one goes through them backwards."""
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for turn in range(TURNS):
        for name in list(graphs)[:: -1 if turn % 2 else 1]:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            graphs[name].replay()
            start.record()
            for _ in range(REPLAYS):
                graphs[name].replay()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end) / REPLAYS * 1e3)
    return times


def variants(model: Decoder, batch_size: int) -> Iterator[tuple[str, AbstractContextManager[object]]]:
    """What is compared: a name, and a context in which it is so."""
    yield "as chosen", nullcontext()
    if cuda_few.FEWEST_ROWS <= batch_size <= cuda_few.MOST_ROWS and cuda_few.LIBRARY.exists():
        yield "without few.cu", mock.patch.object(cuda_few, "blocks_for", lambda *product: None)
    few = cuda_few.blocks_for
    for name, (product, blocks) in few_variants(products(model), batch_size).items():
        yield name, mock.patch.object(cuda_few, "blocks_for", instead(few, product, blocks or None))
    if batch_size >= cuda_swiglu.FEWEST_ROWS and cuda_swiglu.LIBRARY.exists():
        yield "gate and up by cuBLAS", mock.patch.object(cuda_swiglu, "choose_tile", lambda *operands: None)
    chosen = skinny.choose_tile
    for name, (product, tile) in skinny_variants(products(model), batch_size).items():
        yield name, mock.patch.object(skinny, "choose_tile", instead(chosen, product, tile))
    for shape in ATTENTION:
        yield f"attention: {shape}", mock.patch.multiple(
            attention_split, SPLIT_TILES=dict.fromkeys(attention_split.SPLIT_TILES, Tile(*shape)),
            SMALL_TILE=Tile(*shape))


def skinny_variants(of: list[Product], batch_size: int) -> dict[str, tuple[Product, SkinnyTile | int]]:
    """Other tiles of the Triton kernels for few rows: names, products, tiles."""
    tiles = ONE_ROW if batch_size == 1 else FEW_ROWS if batch_size <= skinny.MOST_FEW_ROWS else []
    return {f"{product[0]} x {product[1]}: {tile}": (product, tile) for product in of for tile in tiles
            if in_triton(batch_size, *product) and tile != skinny.choose_tile(batch_size, *product)}


def few_variants(of: list[Product], batch_size: int) -> dict[str, tuple[Product, SkinnyTile | int]]:
    """Other numbers of blocks for few.cu, 0 where it is not to multiply: names, products, blocks."""
    if not cuda_few.FEWEST_ROWS <= batch_size <= cuda_few.MOST_ROWS or not cuda_few.LIBRARY.exists():
        return {}
    return {f"{features} x {k}: {blocks} blocks" if blocks else f"{features} x {k}: no few.cu":
            ((features, k, gated), blocks)
            for features, k, gated in of for blocks in (0, *cuda_few.BLOCKS)
            if blocks * cuda_few.SPAN <= k and blocks != (blocks_chosen(batch_size, features, k, gated) or 0)}


def blocks_chosen(batch_size: int, features: int, k: int, gated: bool) -> int | None:
    """Those of few.cu, if it multiplies."""
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    return cuda_few.blocks_for(batch_size, features, k, gated, torch.bfloat16, multiprocessors)


def write_table(folder: Path, gpu: str, medians: dict[str, float], of: list[Product], batch_size: int) -> str | None:
    """Put the one change that made the step shortest into its table, if it is shorter by MIN_GAIN; returns its name."""
    tiles = skinny_variants(of, batch_size) if batch_size in (1, skinny.MOST_FEW_ROWS) else {}
    blocks = few_variants(of, batch_size) if batch_size in cuda_few.ROWS else {}
    times = {name: medians[name] for name in (*tiles, *blocks) if name in medians}
    if not times or medians["as chosen"] / min(times.values()) < MIN_GAIN:
        return None
    best = min(times, key=times.__getitem__)
    product, change = (tiles | blocks)[best]
    path, key = (skinny.TABLE, "tiles") if isinstance(change, SkinnyTile) else (cuda_few.TABLE, "blocks")
    table = json.loads((folder / path.name).read_text())
    entries = {tuple(product): entry for *product, entry in table[key]}
    entries[(*product, batch_size)] = astuple(change) if isinstance(change, SkinnyTile) else change
    lines = ",\n".join(json.dumps([*product, entry]) for product, entry in entries.items())
    columns = json.dumps(table["columns"])
    (folder / path.name).write_text(f'{{"gpu": {json.dumps(gpu)}, "columns": {columns}, "{key}": [\n{lines}]}}\n')
    skinny.measured_tiles.cache_clear()
    cuda_few.measured_blocks.cache_clear()
    return best


def products(model: Decoder) -> list[Product]:
    """Each different product of a step."""
    layer = model.layers[0]
    gate_up = layer.mlp.gate_up_proj.weight
    plain = [layer.self_attn.qkv_proj.weight, layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight,
             model.embed_tokens.weight if model.lm_head is None else model.lm_head.weight]
    return [*((*weight.shape, False) for weight in plain), (gate_up.shape[0] // 2, gate_up.shape[1], True)]


def in_triton(batch_size: int, features: int, k: int, gated: bool) -> bool:
    """Whether the CUDA kernel leaves the product to Triton's."""
    return not cuda_few.LIBRARY.exists() or blocks_chosen(batch_size, features, k, gated) is None


def instead(chosen: Callable[..., Any], product: tuple[Any, ...], tile: Any) -> Callable[..., Any]:
    """The function that chooses tiles, with another for one product."""
    return lambda rows, *of: tile if of[:3] == product else chosen(rows, *of)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--batches", default="1,8,16,32,64,256")
    parser.add_argument("--context", type=int, default=272)
    parser.add_argument("--only", default="", help="beside what is chosen, variants whose names contain this")
    parser.add_argument("--write", action="store_true", help="keep tiles that won in mini_infer/ops/tuned")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    adapter, config = load_config(args.model)
    model = build_model(config, adapter, torch.bfloat16)
    model.materialize(torch.device("cuda"), args.context)
    for parameter in model.parameters():
        parameter.normal_(std=0.02)
    rows = []
    for batch_size in map(int, args.batches.split(",")):
        batch = decode_batch(batch_size, args.context, "cuda")
        shape = (batch.block_table.numel(), config.num_kv_heads, BLOCK_SIZE, config.head_dim)
        caches = [tuple(torch.randn(shape, dtype=torch.bfloat16, device="cuda") for _ in "kv")
                  for _ in range(config.num_layers)]
        asked = [(name, context) for name, context in variants(model, batch_size)
                 if name == "as chosen" or args.only in name]
        graphs: dict[str, torch.cuda.CUDAGraph] = {}
        found: dict[str, dict[str, Any]] = {}
        step = step_of(model, batch, caches)
        compile_variants(step, (context for _, context in asked))
        for name, context in tqdm(asked, desc=f"batch {batch_size}"):
            with context:
                try:
                    graphs[name] = capture_step(step)
                except Exception as error:  # a tile that does not fit into shared memory
                    found[name] = {"error": f"{type(error).__name__}: {error}"[:120]}
        found |= {name: spread(times, 1) for name, times in time_steps(graphs).items()}
        if args.write:
            medians = {name: row["median"] for name, row in found.items() if "median" in row}
            won = write_table(skinny.TABLE.parent, torch.cuda.get_device_name(), medians, products(model), batch_size)
            print(f"in the table now: {won}" if won else "nothing for the table")
        for name, microseconds in found.items():
            rows.append({"model": Path(args.model).name, "batch": batch_size, "context": args.context, "variant": name,
                         "microseconds": microseconds})
            print(f"{batch_size:>4}  {name:<36}{microseconds.get('median', microseconds.get('error')):>10}")
    write_result("decode_step", {"rows": rows}, args.out)


if __name__ == "__main__":
    main()
