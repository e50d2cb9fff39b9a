"""Attention of prompt chunks in CUDA C++ (cuda/attention.cu), in place of attention_ragged.py's kernel where it can be.

Optional: `make build-ext` compiles it (ops/build_cuda.py), for Hopper alone. It works on tiles of 128 rows and keeps
the tensor cores busier than Triton can, so it is for chunks that fill such tiles.
"""

from __future__ import annotations

import ctypes

import torch

from mini_infer.ops.attention_ragged import is_large
from mini_infer.ops.cuda_library import hopper_multiprocessors, library_path, load
from mini_infer.ops.inputs import ForwardBatch

LIBRARY = library_path("attention")
_ARGTYPES = (*[ctypes.c_void_p] * 8, *[ctypes.c_int64] * 4, *[ctypes.c_int] * 7, ctypes.c_float, ctypes.c_int,
             ctypes.c_void_p)
HEAD_DIM, ROWS, PAGE = 128, 128, 64
FEWEST_TOKENS = 256  # fewer are no work for a whole GPU in tiles of this size; measured from 1,024 on


def can_attend(q: torch.Tensor, k_cache: torch.Tensor, batch: ForwardBatch, window: int) -> bool:
    """Whether `launch_chunks` takes the sequences of a batch that are behind its decode tokens: where it is built, this
    GPU runs it, it knows such heads and pages, and sequences fill half a tile on average, or Triton's tiles would be as
    large (which no rehearsal has compiled, since this takes its chunks)."""
    num_tokens, num_seqs = batch.num_tokens - batch.num_decodes, batch.num_seqs - batch.num_decodes
    (num_heads, head_dim), (num_kv_heads, block_size) = q.shape[1:], k_cache.shape[1:3]
    group = num_heads // num_kv_heads
    filled = num_tokens >= FEWEST_TOKENS and 2 * num_tokens * group >= ROWS * num_seqs
    return (q.dtype == torch.bfloat16 and head_dim == HEAD_DIM and group <= ROWS and block_size % PAGE == 0
            and not window and (filled or is_large(batch.num_tokens, num_heads, ROWS))
            and load(LIBRARY, "attention", _ARGTYPES) is not None and hopper_multiprocessors(q.device.index) > 0)


def launch_chunks(
    out: torch.Tensor,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: ForwardBatch,
    scale_log2: float,
    first_seq: int = 0,
) -> None:
    """q [T, Hq, 128] -> out [T, Hq, 128], dense, for the sequences from `first_seq` on; those before it have a token
    each. All on the current device; queries of each token and head begin at multiples of 16 bytes. One launch at a time
    on a device: two would skip tiles. Raises RuntimeError where the kernel is not built or cannot be launched so.
    """
    kernel = load(LIBRARY, "attention", _ARGTYPES)
    if kernel is None:
        raise RuntimeError("the CUDA kernels are not built: make build-ext")
    assert q.dtype == k_cache.dtype == torch.bfloat16 and k_cache.is_contiguous() and v_cache.is_contiguous()
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads, block_size = k_cache.shape[1:3]
    group = num_heads // num_kv_heads
    # Each sequence may leave its last tile unfilled, so this many tiles always suffice; the kernel skips the surplus.
    num_tiles = (num_tokens - first_seq) // (ROWS // group) + batch.num_seqs - first_seq
    error = kernel(
        out.data_ptr(), q.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(), batch.cu_seqlens_q.data_ptr(),
        batch.seq_lens.data_ptr(), batch.slots.data_ptr(), batch.block_table.data_ptr(), k_cache.numel() // head_dim,
        q.stride(0), q.stride(1), batch.block_table.stride(0), num_tokens, first_seq, batch.num_seqs, num_kv_heads,
        group, block_size, num_tiles, scale_log2, hopper_multiprocessors(q.device.index),
        torch.cuda.current_stream(q.device).cuda_stream)
    if error is not None:
        raise RuntimeError(f"attention.cu, {tuple(q.shape)}, caches {tuple(k_cache.shape)}: {error.decode()}")
