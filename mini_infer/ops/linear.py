"""Matrix multiplication with a weight as checkpoints store it, [out_features, in_features]."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from mini_infer.ops import cuda_few, cuda_swiglu, native
from mini_infer.ops.activation import silu_and_mul
from mini_infer.ops.cublaslt import tuned_plan
from mini_infer.ops.dispatch import use_triton
from mini_infer.ops.epilogue import Epilogue
from mini_infer.ops.pdl import MOST_ROWS
from mini_infer.ops.skinny import max_skinny_rows, skinny_matmul
from mini_infer.ops.stream import Stream


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """The form of a weight [out, in] that `linear` multiplies with fastest; use it in place of `weight`, once loaded.

    On a CPU that is oneDNN's blocked layout (an opaque tensor, the same number of bytes): a decode step's matmuls take
    0.3 to 0.7 of the time, since oneDNN otherwise rearranges the weight in every call. Elsewhere the weight itself.
    """
    if weight.device.type != "cpu" or not _onednn_runs(weight.dtype):
        return weight
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None,
           out: torch.Tensor | None = None) -> torch.Tensor:
    """x [T, in] times weight [out, in] transposed, plus bias [out] -> [T, out], in x.dtype, summed in float32.

    `weight` is plain or comes from `pack_weight`. `out` takes the result (for a plain weight without bias).
    """
    if weight.is_mkldnn:
        assert out is None, "a packed weight's result has a place of its own"
        return torch.ops.mkldnn._linear_pointwise.default(_padded(x), weight, bias, "none", [], "")[: x.shape[0]]
    if multiply := _skinny(x, weight):
        return multiply(x, weight, Epilogue(bias=bias), out)
    if x.is_cuda and (plan := tuned_plan(x, weight, bias=bias is not None)):
        return plan(x, weight, bias, out)
    if out is not None:
        assert bias is None, "out is for products without bias"
        return torch.mm(x, weight.t(), out=out)
    return F.linear(x, weight, bias)


def norm_linear(stream: Stream, norm_weight: torch.Tensor, eps: float, weight: torch.Tensor,
                bias: torch.Tensor | None) -> torch.Tensor:
    """linear(rms_norm(stream)): stream [T, in], norm_weight [in] -> [T, out]; one kernel for few rows on a GPU."""
    half = stream.half_normed(norm_weight)
    if half and (blocks := cuda_few.choose_blocks(len(stream), weight)):
        return cuda_few.cuda_few_matmul(half, weight, Epilogue(eps=eps, bias=bias), blocks=blocks)
    if not stream.in_parts and (multiply := _skinny(stream.value, weight)):
        return multiply(stream.value, weight, Epilogue(norm_weight=norm_weight, eps=eps, bias=bias))
    return linear(stream.norm(norm_weight, eps), weight, bias)


def norm_swiglu(stream: Stream, norm_weight: torch.Tensor, eps: float, weight: torch.Tensor,
                bias: torch.Tensor | None) -> torch.Tensor:
    """silu_and_mul(norm_linear(stream)), weight [2I, in] being gate over up -> [T, I].

    One kernel for few rows on a GPU; two for more where the CUDA kernels are built."""
    half = stream.half_normed(norm_weight)
    if half and (blocks := cuda_few.choose_blocks(len(stream), weight, gated=True)):
        return cuda_few.cuda_few_matmul(half, weight, Epilogue(eps=eps, bias=bias, gated=True), blocks=blocks)
    if not stream.in_parts and (multiply := _skinny(stream.value, weight, gated=True)):
        return multiply(stream.value, weight, Epilogue(norm_weight=norm_weight, eps=eps, bias=bias, gated=True))
    x = stream.norm(norm_weight, eps)
    if x.is_cuda and bias is None and (tile := cuda_swiglu.choose_tile(x, weight)):
        return cuda_swiglu.cuda_swiglu(x, weight, tile)
    return silu_and_mul(linear(x, weight, bias))


def linear_add(stream: Stream, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
               next_norm: torch.Tensor | None = None) -> None:
    """Add linear(x) to the stream [T, out], in the matmul's own epilogue or with the next norm: rounded once (a bias
    beside cuBLAS apart). next_norm [out], if known: the weight of the norm that will read the stream next."""
    if weight.is_mkldnn:
        x, residual, rows = _padded(x), _padded(stream.value), x.shape[0]
        stream.value = torch.ops.mkldnn._linear_pointwise.binary(x, residual, weight, bias, "add")[:rows]
    elif use_triton(x) and (blocks := cuda_few.choose_blocks(x.shape[0], weight)):
        half = None if next_norm is None else cuda_few.room_for_norm(stream.value, next_norm)
        epilogue = Epilogue(bias=bias, residual=stream.value)
        stream.value = cuda_few.cuda_few_matmul(x, weight, epilogue, blocks=blocks, half=half)
        if half is not None:
            stream.begin_norm(half)
    elif multiply := _skinny(x, weight):
        stream.value = multiply(x, weight, Epilogue(bias=bias, residual=stream.value))
    else:
        if bias is not None:
            stream.target.add_(bias)
        plan = tuned_plan(x, weight, adds=True) if x.is_cuda else None
        if plan is None:
            stream.target.addmm_(x, weight.t())
        elif plan.product.parts > 1:
            stream.add_in_parts(plan(x, weight))
        else:
            plan(x, weight, None, stream.target)


def starts_early(rows: int, weight: torch.Tensor) -> bool:
    """Whether the product of so many rows with this weight starts early, as does what follows (ops/pdl.py)."""
    return rows <= MOST_ROWS or (weight.is_cuda and cuda_few.choose_blocks(rows, weight) is not None)


def _padded(x: torch.Tensor) -> torch.Tensor:
    """x [T, in] with rows of zeros up to `padded_rows`."""
    missing = padded_rows(x.shape[0]) - x.shape[0]
    return F.pad(x, (0, 0, 0, missing)) if missing else x


def padded_rows(rows: int) -> int:
    """How many rows oneDNN is given for so many. For each number and weight it compiles a kernel, which takes a
    millisecond and half a megabyte that it keeps: with any number, those of a few hours' prompts would be most of what
    a small model needs."""
    step = 1 if rows <= 16 else 4 if rows <= 64 else 16 if rows <= 256 else 32
    return -(-rows // step) * step


def _skinny(x: torch.Tensor, weight: torch.Tensor, gated: bool = False) -> Callable[..., torch.Tensor] | None:
    """The kernel for few rows that takes this product, if one does."""
    if use_triton(x):
        if blocks := cuda_few.choose_blocks(x.shape[0], weight, gated):
            return partial(cuda_few.cuda_few_matmul, blocks=blocks)
        return skinny_matmul if x.shape[0] <= max_skinny_rows(weight) else None
    return native.one_row_matmul if x.shape[0] == 1 and native.multiplies_one_row(weight) else None


def _onednn_runs(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if dtype == torch.float16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return dtype == torch.float32
