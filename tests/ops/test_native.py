"""The compiled CPU kernels against their formulas in float64, and against the references where they share a batch."""

from __future__ import annotations

import pytest
import torch

from mini_infer.config import RopeConfig
from mini_infer.ops import activation, kv_write, linear, native, norm, rope
from mini_infer.ops.epilogue import Epilogue

pytestmark = pytest.mark.skipif(not native.HAS_NATIVE, reason="the CPU kernels are not built: pip install -e .")
EPS = 1e-5


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.mark.parametrize("shape", [(1, 384), (5, 100), (3, 3584), (2, 3, 80), (1, 1), (0, 64)], ids=str)
def test_rms_norm(assert_close, dtype, shape):
    x, weight = torch.randn(shape).to(dtype), torch.randn(shape[-1]).to(dtype)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()
    assert_close(native.rms_norm(x, weight, EPS), expected)
    assert_close(norm.rms_norm(x, weight, EPS), expected)


def test_strided_rows_are_read_as_they_are(assert_close):
    x, weight = torch.randn(6, 10, 64)[:, 2:5], torch.randn(64)
    assert_close(native.rms_norm(x, weight, EPS), norm._rms_norm_torch(x, weight, EPS))


@pytest.mark.parametrize("shape", [(1, 2), (3, 896), (2, 70)], ids=str)
def test_silu_and_mul(assert_close, dtype, shape):
    x = (torch.randn(shape) * 10).to(dtype)
    gate, up = x.double().chunk(2, dim=-1)
    assert_close(native.silu_and_mul(x), gate * gate.sigmoid() * up)


def test_silu_far_out(assert_close):
    x = torch.tensor([[-1e4, -200.0, -88.0, 88.0, 200.0, 1e4, torch.nan, torch.inf, *[1.0] * 8]])
    out = activation.silu_and_mul(x)
    assert_close(out[:, :6], torch.tensor([[0.0, 0.0, 0.0, 88.0, 200.0, 1e4]]))
    assert out[0, 6].isnan() and out[0, 7].isinf()


@pytest.mark.parametrize("qk_norm", [False, True], ids=["plain", "qk_norm"])
@pytest.mark.parametrize("heads", [(8, 2), (7, 1), (3, 3)], ids=str)
@pytest.mark.parametrize("head_dim", [64, 80, 6])
def test_qkv_to_cache(dtype, qk_norm, heads, head_dim):
    num_heads, num_kv_heads = heads
    qkv = torch.randn(5, (num_heads + 2 * num_kv_heads) * head_dim).to(dtype)
    positions = torch.randint(0, 50, (5,), dtype=torch.int32)
    slots = torch.randperm(4 * 16)[:5].int()
    table = rope.cos_sin_table(RopeConfig(), head_dim, 50, "cpu")
    weights = [torch.randn(head_dim).to(dtype) for _ in range(2)] if qk_norm else [None, None]
    results = []
    for op in (native.qkv_to_cache, kv_write._qkv_to_cache_torch):
        caches = [torch.full((5, num_kv_heads, 16, head_dim), -7.0, dtype=dtype) for _ in range(2)]
        q = op(qkv, num_heads, num_kv_heads, head_dim, positions, slots, table, *caches, *weights, EPS)
        results.append([q, *caches])
    for ours, reference in zip(*results):  # untouched places included
        torch.testing.assert_close(ours, reference, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)


DECODE = [(1, 0), (1, 4), (1, 15), (1, 16), (1, 39)]
MIXED = [(1, 20), (6, 0), (1, 0), (4, 33), (1, 47)]


@pytest.mark.parametrize("sequences", [DECODE, MIXED, [(17, 5)], [(1, 300)]], ids=["decode", "mixed", "chunk", "one"])
@pytest.mark.parametrize("window", [None, 1, 9, 1000])
@pytest.mark.parametrize("heads", [(4, 2), (7, 1), (3, 3)], ids=str)
@pytest.mark.parametrize("head_dim", native.HEAD_SIZES)
def test_attention(paged_case, assert_close, dtype, sequences, window, heads, head_dim):
    """Where nothing may be read lies NaN. The null slot's padding behind the batch may hold anything."""
    case = paged_case(sequences, heads=heads, head_dim=head_dim, dtype=dtype, padding=2)
    out = native.paged_attention(case.q, case.k_cache, case.v_cache, case.batch, case.scale, window)
    expected = case.expected(window)
    assert_close(out[: len(expected)], expected)


def test_attention_takes_any_strides_of_q(paged_case, assert_close):
    case = paged_case(DECODE, head_dim=32)
    q = case.q.transpose(0, 1).contiguous().transpose(0, 1)
    out = native.paged_attention(q, case.k_cache, case.v_cache, case.batch, case.scale, None)
    assert_close(out, case.expected(None))


def test_a_row_is_the_same_to_the_bit_in_any_batch(paged_case, dtype):
    case = paged_case([(1, before) for before in (3, 60, 100, 117)], dtype=dtype)
    together = native.paged_attention(case.q, case.k_cache, case.v_cache, case.batch, case.scale, None)
    for b in range(4):
        lone = paged_case([(1, before) for before in (3, 60, 100, 117)], dtype=dtype).batch
        object.__setattr__(lone, "num_seqs", b + 1)
        alone = native.paged_attention(case.q, case.k_cache, case.v_cache, lone, case.scale, None)
        assert torch.equal(alone[b], together[b])


@pytest.mark.parametrize("features", [1, 4, 7, 96])
@pytest.mark.parametrize("size", [32, 384])
@pytest.mark.parametrize("folded", ["nothing", "bias", "residual", "norm", "gated", "all"])
def test_one_row_matmul(assert_close, dtype, features, size, folded):
    x = torch.randn(1, size).to(dtype)
    gated = folded in ("gated", "all")
    weight = (torch.randn(features * (1 + gated), size) / size**0.5).to(dtype)
    bias = torch.randn(len(weight)).to(dtype) if folded in ("bias", "all") else None
    residual = torch.randn(1, features).to(dtype) if folded in ("residual", "all") else None
    norm_weight = torch.randn(size).to(dtype) if folded in ("norm", "all") else None
    expected = x.double()
    if norm_weight is not None:
        expected = expected / (expected.square().mean() + EPS).sqrt() * norm_weight.double()
    expected = expected @ weight.double().T + (0 if bias is None else bias.double())
    if gated:
        gate, up = expected.chunk(2, dim=-1)
        expected = gate * gate.sigmoid() * up
    if residual is not None:
        expected = expected + residual.double()
    out = native.one_row_matmul(x, weight, Epilogue(norm_weight=norm_weight, eps=EPS, bias=bias, gated=gated,
                                                    residual=residual))
    assert_close(out, expected)
    assert residual is None or out is residual


def test_one_row_goes_to_the_kernel_and_more_to_the_library(assert_close, monkeypatch):
    weight = torch.randn(40, 64)
    assert native.multiplies_one_row(weight)
    assert not native.multiplies_one_row(torch.randn(40, 33))  # not a whole number of stretches
    assert not native.multiplies_one_row(torch.empty(4096, 4096))  # waits for memory in any case
    assert not native.multiplies_one_row(linear.pack_weight(weight))
    x = torch.randn(3, 64)
    expected = x.double() @ weight.double().T
    assert_close(linear.linear(x[:1], weight), expected[:1])
    assert_close(linear.linear(x, weight), expected)


def test_large_work_is_left_to_several_threads(monkeypatch):
    x = torch.empty(native.ALONE + 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert not native.use_native(x, x.numel()) and native.use_native(x, native.ALONE)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert native.use_native(x, x.numel())
    assert not native.use_native(x.half(), 1)
