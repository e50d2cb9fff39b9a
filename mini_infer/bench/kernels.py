"""`mini-infer bench kernels`: every kernel against eager torch, torch.compile and the floor.

All are timed by replaying a CUDA graph of calls on inputs that no cache holds, so that eager torch is not charged for
its launches. The shapes are Qwen2.5-7B's. Eager torch is written as transformers writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from tqdm import tqdm

from mini_infer.bench.gpu_time import ceilings, copies_for, graph_time, require_gpu
from mini_infer.bench.report import table
from mini_infer.config import ConfigError, RopeConfig
from mini_infer.ops.activation import silu_and_mul
from mini_infer.ops.attention import paged_attention
from mini_infer.ops.inputs import ForwardBatch
from mini_infer.ops.kv_write import qkv_to_cache
from mini_infer.ops.linear import linear
from mini_infer.ops.norm import rms_norm
from mini_infer.ops.rope import apply_rope, cos_sin_table
from mini_infer.ops.sampling import SamplingNeeds, sample
from mini_infer.ops.sampling_params import NUM_PARAM_COLUMNS, TEMPERATURE, TOP_K, TOP_P

HIDDEN, HEADS, KV_HEADS, DIM, INNER, VOCABULARY, BLOCK_SIZE = 3584, 28, 4, 128, 18944, 152064, 64
EPS = 1e-6
DEVICE = "cuda"
Run = Callable[[int], object]  # with the number of the copy of the inputs


@dataclass(frozen=True)
class KernelBench:
    only: tuple[str, ...] = ()  # names of kernels; () is all
    compile: bool = True
    use_tqdm: bool = True

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.only) - set(CASES)):
            raise ConfigError(f"only: {', '.join(unknown)} must be among {', '.join(CASES)}")


@dataclass(frozen=True)
class Case:
    """One kernel at one size. `compiled` is what torch.compile makes of `eager`, where that is worth asking."""

    size: str
    copies: int
    ours: Run
    eager: Run
    num_bytes: float
    flops: float = 0.0
    compiled: Callable[[], Run] | None = None


def run_kernels(bench: KernelBench) -> dict[str, Any]:
    """{"gpu", "copy_tb_per_s", "matmul_tflops", "rows"}; times in microseconds. Raises ConfigError without a GPU."""
    gpu = require_gpu()
    best = ceilings()
    rows = []
    names = bench.only or tuple(CASES)
    with torch.inference_mode(), tqdm(names, desc="kernels", disable=not bench.use_tqdm, dynamic_ncols=True) as bar:
        for name in bar:
            bar.set_postfix_str(name)
            make_case, sizes = CASES[name]
            for size in sizes:
                case = make_case(*size)
                largest = size == sizes[-1]  # the only one that is worth the seconds of a compilation
                compiled = case.compiled() if bench.compile and largest and case.compiled is not None else None
                ours = graph_time(case.ours, case.copies)
                rows.append({
                    "kernel": name, "size": case.size, "ours_us": 1e6 * ours,
                    "eager_us": 1e6 * graph_time(case.eager, case.copies),
                    "compiled_us": None if compiled is None else 1e6 * graph_time(compiled, case.copies),
                    "floor_us": 1e6 * best.floor(case.num_bytes, case.flops),
                    "tb_per_s": case.num_bytes / ours / 1e12, "tflops": case.flops / ours / 1e12})
    return {"gpu": gpu, "copy_tb_per_s": best.bytes_per_s / 1e12, "matmul_tflops": best.flops_per_s / 1e12,
            "rows": rows}


def kernels_table(figures: Mapping[str, Any]) -> str:
    def row(entry: Mapping[str, Any]) -> tuple[str, ...]:
        ours, compiled = entry["ours_us"], entry["compiled_us"]
        return (entry["kernel"], entry["size"], f"{ours:.1f}", f"{entry['eager_us']:.1f}",
                "" if compiled is None else f"{compiled:.1f}", f"{entry['floor_us']:.1f}",
                f"{entry['eager_us'] / ours:.1f}x", f"{entry['floor_us'] / ours:.0%}")

    header = ("microseconds", "size", "ours", "eager", "compile", "floor", "eager/ours", "floor/ours")
    return (f"{figures['gpu']}: copies {figures['copy_tb_per_s']:.2f} TB/s, multiplies "
            f"{figures['matmul_tflops']:.0f} TFLOP/s\n" + table(header, map(row, figures["rows"])))


# ---------------------------------------------------------------------------------------------------------------- cases
# A function of a size for each kernel; CASES, at the end, has the sizes.


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.bfloat16, device=DEVICE)


def _compiled(function: Callable[..., object], arguments: list[tuple[torch.Tensor, ...]]) -> Run:
    torch.compiler.reset()
    faster = torch.compile(function, dynamic=False)
    return lambda i: faster(*arguments[i])


def _same_arguments(size: str, num_bytes: int, ours: Callable[..., object], eager: Callable[..., object],
                    inputs: Callable[[], tuple[torch.Tensor, ...]]) -> Case:
    arguments = [inputs() for _ in range(copies_for(num_bytes))]
    return Case(size, len(arguments), lambda i: ours(*arguments[i]), lambda i: eager(*arguments[i]), num_bytes,
                compiled=partial(_compiled, eager, arguments))


def _norm(tokens: int) -> Case:
    weight = _random(HIDDEN)
    return _same_arguments(f"[{tokens}, {HIDDEN}]", 4 * tokens * HIDDEN, partial(rms_norm, weight=weight, eps=EPS),
                           partial(eager_norm, weight=weight), lambda: (_random(tokens, HIDDEN),))


def eager_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + EPS)
    return weight * y.to(x.dtype)


def _rope(tokens: int) -> Case:
    rotations = cos_sin_table(RopeConfig(), DIM, tokens, DEVICE)
    positions = torch.arange(tokens, dtype=torch.int32, device=DEVICE)
    return _same_arguments(f"[{tokens}, {HEADS}, {DIM}]", 4 * tokens * HEADS * DIM,
                           partial(apply_rope, positions=positions, table=rotations),
                           partial(eager_rope, positions=positions, table=rotations),
                           lambda: (_random(tokens, HEADS, DIM),))


def eager_rope(x: torch.Tensor, positions: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    cos, sin = table[positions].to(x.dtype).unsqueeze(1).chunk(2, -1)
    cos, sin = torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat((-right, left), -1) * sin


def _silu(tokens: int) -> Case:
    return _same_arguments(f"[{tokens}, {2 * INNER}]", 6 * tokens * INNER, silu_and_mul, eager_silu_and_mul,
                           lambda: (_random(tokens, 2 * INNER),))


def eager_silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def _cache_write(tokens: int) -> Case:
    rotations = cos_sin_table(RopeConfig(), DIM, tokens, DEVICE)
    heads = HEADS + 2 * KV_HEADS
    k_cache, v_cache = torch.zeros(2, tokens // BLOCK_SIZE + 1, KV_HEADS, BLOCK_SIZE, DIM, dtype=torch.bfloat16,
                                   device=DEVICE)
    positions = torch.arange(tokens, dtype=torch.int32, device=DEVICE)

    def ours(qkv: torch.Tensor) -> torch.Tensor:
        return qkv_to_cache(qkv, HEADS, KV_HEADS, DIM, positions, positions, rotations, k_cache, v_cache)

    def eager(qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = qkv.view(-1, heads, DIM).split([HEADS, KV_HEADS, KV_HEADS], 1)
        block, offset = positions.long() // BLOCK_SIZE, positions.long() % BLOCK_SIZE
        k_cache[block, :, offset] = eager_rope(k, positions, rotations)
        v_cache[block, :, offset] = v
        return eager_rope(q, positions, rotations)

    return _same_arguments(f"[{tokens}, {heads * DIM}]", 4 * tokens * heads * DIM, ours, eager,
                           lambda: (_random(tokens, heads * DIM),))


def _sampling(kind: str, rows: int) -> Case:
    params = torch.zeros(rows + 1, NUM_PARAM_COLUMNS, dtype=torch.int32)
    floats = params.view(torch.float32)
    floats[:, TEMPERATURE.value] = 0.0 if kind == "greedy" else 0.7
    floats[:, TOP_P.value] = 0.95 if kind == "filtered" else 1.0
    params[:, TOP_K.value] = 50 if kind == "filtered" else 0
    needs = SamplingNeeds(random=kind != "greedy", filtered=kind == "filtered")
    slots = torch.arange(rows, dtype=torch.int32, device=DEVICE)
    return _same_arguments(f"{kind}, {rows} rows", 2 * rows * VOCABULARY,
                           partial(sample, slots=slots, positions=slots, params=params.to(DEVICE), needs=needs),
                           EAGER_SAMPLING[kind], lambda: (4 * _random(rows, VOCABULARY),))


def _eager_draw(logits: torch.Tensor) -> torch.Tensor:
    return torch.multinomial((logits.float() / 0.7).softmax(-1), 1)


def _eager_filtered_draw(logits: torch.Tensor) -> torch.Tensor:
    ordered, tokens = (logits.float() / 0.7).sort(descending=True)
    weights = ordered.softmax(-1)
    weights[:, 50:] = 0
    weights.masked_fill_(weights.cumsum(-1) - weights > 0.95, 0)
    return tokens.gather(1, torch.multinomial(weights, 1))


EAGER_SAMPLING: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "greedy": lambda logits: logits.argmax(-1), "random": _eager_draw, "filtered": _eager_filtered_draw}


def paged_inputs(lengths: Sequence[int], query_len: int, num_heads: int = HEADS, num_kv_heads: int = KV_HEADS,
                 dim: int = DIM) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, ForwardBatch]:
    """q [B * query_len, Hq, D], the caches and the batch of sequences that are `lengths` tokens long, the last
    `query_len` of which ask; their blocks lie anywhere in the pool."""
    num_seqs, longest = len(lengths), max(lengths)
    blocks_each = [-(-length // BLOCK_SIZE) for length in lengths]
    order = torch.randperm(sum(blocks_each), device=DEVICE).to(torch.int32)
    block_table = torch.zeros(num_seqs, -(-longest // BLOCK_SIZE), dtype=torch.int32, device=DEVICE)
    for row, ids in enumerate(order.split(blocks_each)):
        block_table[row, : len(ids)] = ids
    shape = (len(order) + 1, num_kv_heads, BLOCK_SIZE, dim)
    num_tokens = num_seqs * query_len
    slots = torch.arange(num_seqs, dtype=torch.int32, device=DEVICE)
    starts = torch.arange(0, num_tokens + 1, query_len, dtype=torch.int32, device=DEVICE)
    seq_lens = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    unused = torch.zeros(num_tokens, dtype=torch.int32, device=DEVICE)
    batch = ForwardBatch(
        input_ids=unused, positions=unused, slot_mapping=unused, cu_seqlens_q=starts, seq_lens=seq_lens, slots=slots,
        block_table=block_table, logit_rows=None, num_tokens=num_tokens, num_seqs=num_seqs,
        max_query_len=query_len, max_seq_len=longest, num_decodes=num_seqs if query_len == 1 else 0)
    return _random(num_tokens, num_heads, dim), _random(*shape), _random(*shape), batch


def attend(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
    """Our attention over what `paged_inputs` made."""
    return paged_attention(q, k_cache, v_cache, batch, q.shape[-1] ** -0.5, None)


def _decode_attention(num_seqs: int, length: int) -> Case:
    num_bytes = 4 * num_seqs * length * KV_HEADS * DIM
    inputs = [paged_inputs([length] * num_seqs, 1) for _ in range(min(16, copies_for(num_bytes)))]
    dense = [_random(2, num_seqs, KV_HEADS, length, DIM) for _ in inputs]
    queries = _random(num_seqs, HEADS, 1, DIM)
    return Case(f"{num_seqs} x {length}", len(inputs), lambda i: attend(*inputs[i]),
                lambda i: F.scaled_dot_product_attention(queries, dense[i][0], dense[i][1], enable_gqa=True), num_bytes)


def _prefill_attention(num_seqs: int, length: int) -> Case:
    inputs = paged_inputs([length] * num_seqs, length)
    queries = _random(num_seqs, HEADS, length, DIM)
    keys, values = _random(2, num_seqs, KV_HEADS, length, DIM)
    return Case(f"{num_seqs} x {length}", 2, lambda i: attend(*inputs),
                lambda i: F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True),
                0.0, flops=2.0 * num_seqs * HEADS * DIM * length * length)


def _linear(name: str, rows: int) -> Case:
    out_features, in_features = PRODUCTS[name]
    num_bytes = 2 * out_features * in_features
    weights = [_random(out_features, in_features) for _ in range(min(8, copies_for(num_bytes)))]
    x = _random(rows, in_features)
    return Case(f"{name}, {rows} rows", len(weights), lambda i: linear(x, weights[i]),
                lambda i: F.linear(x, weights[i]), num_bytes, flops=2.0 * rows * out_features * in_features)


PRODUCTS = {"qkv": ((HEADS + 2 * KV_HEADS) * DIM, HIDDEN), "gate-up": (2 * INNER, HIDDEN), "down": (HIDDEN, INNER)}
TOKENS = ((1,), (64,), (2048,), (8192,))
CASES: dict[str, tuple[Callable[..., Case], Sequence[tuple[Any, ...]]]] = {
    "rms_norm": (_norm, TOKENS),
    "apply_rope": (_rope, TOKENS),
    "silu_and_mul": (_silu, TOKENS[:3]),
    "qkv_to_cache": (_cache_write, TOKENS),
    "sample": (_sampling, [(kind, rows) for kind in EAGER_SAMPLING for rows in (1, 64, 256)]),
    "decode attention": (_decode_attention, ((1, 1024), (1, 8192), (8, 8192), (64, 1024), (64, 8192), (256, 1024))),
    "prefill attention": (_prefill_attention, ((1, 1024), (8, 2048), (1, 8192), (2, 8192))),
    "linear": (_linear, [(name, rows) for name in PRODUCTS for rows in (1, 8, 16, 64, 256)]),
}
