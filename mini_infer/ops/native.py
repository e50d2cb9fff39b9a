"""The CPU kernels of native.cpp, compiled when the package is installed where there is a C++ compiler.

They are for the few rows of a decode step. Where they are not built, or the work is large and there are several threads
to share it, the torch references run.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from mini_infer.ops.epilogue import Epilogue
from mini_infer.ops.inputs import ForwardBatch

_native: Any
try:
    _native = import_module("mini_infer.ops._native")
except ImportError:  # a plain checkout, or no compiler at installation
    _native = None

HAS_NATIVE = _native is not None
# Elements that one thread goes through in about the time that it takes to wake others for it.
ALONE = 1 << 20
STRETCH = 32  # elements that the kernels take at a time where they sum
HEAD_SIZES = (32, 64, 96, 128)


def use_native(tensor: torch.Tensor, num_elements: int) -> bool:
    """Whether the kernels take work over `num_elements` elements of this tensor's kind."""
    return (HAS_NATIVE and tensor.device.type == "cpu" and tensor.dtype in (torch.bfloat16, torch.float32)
            and (num_elements <= ALONE or torch.get_num_threads() == 1))


def use_native_attention(q: torch.Tensor, batch: ForwardBatch) -> bool:
    """Whether `paged_attention` takes q [T, Hq, D]."""
    return q.shape[2] in HEAD_SIZES and use_native(q, q.numel() * batch.max_seq_len)


def multiplies_one_row(weight: torch.Tensor) -> bool:
    """Whether `one_row_matmul` takes this weight [out, in], and faster than the matrix library, whose calls take
    15 to 20 us however small the matrix is; a large one waits for memory in either, and is shared among threads."""
    return not weight.is_mkldnn and weight.shape[1] % STRETCH == 0 and weight.numel() <= 2 * ALONE \
        and use_native(weight, 0)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """ops/norm.py's rms_norm."""
    x = x.contiguous()
    out = torch.empty_like(x)
    size = x.shape[-1]
    _native.rms_norm(x.dtype == torch.bfloat16, out.data_ptr(), x.data_ptr(), weight.data_ptr(), x.numel() // size,
                     size, eps)
    return out


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """ops/activation.py's silu_and_mul."""
    rows, width = x.shape
    out = x.new_empty(rows, width // 2)
    _native.silu_and_mul(x.dtype == torch.bfloat16, out.data_ptr(), x.data_ptr(), rows, width // 2)
    return out


def qkv_to_cache(qkv: torch.Tensor, num_heads: int, num_kv_heads: int, head_dim: int, positions: torch.Tensor,
                 slot_mapping: torch.Tensor, table: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor,
                 q_norm: torch.Tensor | None = None, k_norm: torch.Tensor | None = None,
                 eps: float = 1e-6) -> torch.Tensor:
    """ops/kv_write.py's qkv_to_cache."""
    num_tokens = qkv.shape[0]
    q = qkv.new_empty(num_tokens, num_heads, head_dim)
    _native.qkv_to_cache(
        qkv.dtype == torch.bfloat16, q.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(), qkv.data_ptr(),
        positions.data_ptr(), slot_mapping.data_ptr(), table.data_ptr(), 0 if q_norm is None else q_norm.data_ptr(),
        0 if k_norm is None else k_norm.data_ptr(), num_tokens, num_heads, num_kv_heads, head_dim, k_cache.shape[2],
        eps)
    return q


def paged_attention(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, batch: ForwardBatch,
                    scale: float, sliding_window: int | None) -> torch.Tensor:
    """ops/attention.py's paged_attention."""
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads, block_size = k_cache.shape[1:3]
    if q.stride(1) != head_dim:
        q = q.contiguous()
    out = q.new_empty(num_tokens, num_heads, head_dim)
    _native.paged_attention(
        q.dtype == torch.bfloat16, out.data_ptr(), q.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(),
        batch.cu_seqlens_q.data_ptr(), batch.seq_lens.data_ptr(), batch.slots.data_ptr(),
        batch.block_table.data_ptr(), batch.num_seqs, q.stride(0), batch.block_table.stride(0), num_heads, num_kv_heads,
        head_dim, block_size, sliding_window or 0, scale)
    return out


def one_row_matmul(x: torch.Tensor, weight: torch.Tensor, epilogue: Epilogue,
                   out: torch.Tensor | None = None) -> torch.Tensor:
    """ops/skinny.py's skinny_matmul for x [1, K]."""
    features, size = weight.shape
    if epilogue.gated:
        features //= 2
    if epilogue.residual is not None:
        out = epilogue.residual
    elif out is None:
        out = x.new_empty(1, features)
    norm, bias, residual = epilogue.norm_weight, epilogue.bias, epilogue.residual
    _native.one_row_matmul(
        x.dtype == torch.bfloat16, out.data_ptr(), x.data_ptr(), weight.data_ptr(), features, size,
        0 if norm is None else norm.data_ptr(), 0 if bias is None else bias.data_ptr(),
        0 if residual is None else residual.data_ptr(), epilogue.gated, epilogue.eps)
    return out
