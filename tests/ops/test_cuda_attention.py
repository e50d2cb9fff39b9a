"""Attention of prompt chunks in CUDA C++: what it computes (on a GPU), and where it is used."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mini_infer.ops import attention, cuda_attention
from mini_infer.ops.attention_ragged import RAGGED_TILES, is_large
from mini_infer.ops.cuda_attention import LIBRARY, can_attend, launch_chunks

BF16 = torch.bfloat16
# (n, tokens before it): chunks that end on either side of a tile's tokens, and whose keys do of a tile of keys.
SEQUENCES = [(1, 0), (33, 0), (1, 127), (31, 97), (5, 130), (128, 0), (64, 192), (300, 33), (2, 254), (32, 480),
             (17, 3)]


@pytest.mark.gpu
@pytest.mark.parametrize("block_size", [64, 128, 256])
@pytest.mark.parametrize("heads", [(32, 8), (28, 4), (16, 16), (5, 1), (12, 4), (64, 1), (100, 1)], ids=str)
@pytest.mark.parametrize("garbage", [torch.nan, torch.inf], ids=str)
def test_on_a_gpu(paged_case, assert_close, heads, block_size, garbage):
    needs_the_kernel()
    case = paged_case(SEQUENCES, heads=heads, head_dim=128, block_size=block_size, dtype=BF16, device="cuda", padding=3,
                      garbage=garbage)
    expected, results = case.expected(None), []
    for first_seq in (0, 0, 3):  # again, since whoever was last has tidied up
        out = torch.full(case.q.shape, torch.nan, dtype=BF16, device="cuda")
        launch_chunks(out, case.q, case.k_cache, case.v_cache, case.batch, case.scale * math.log2(math.e), first_seq)
        skipped = int(case.batch.cu_seqlens_q[first_seq])
        assert out[:skipped].isnan().all()
        assert_close(out[skipped : len(expected)], expected[skipped:])
        results.append(out)
    assert torch.equal(results[0][: len(expected)], results[1][: len(expected)])


@pytest.mark.gpu
@pytest.mark.parametrize("sequences", [[(3000, 0)], [(700, 2300), (1500, 0)], [(20, 5)] * 70],
                         ids=["one", "two", "many"])
def test_many_tiles(paged_case, assert_close, sequences):
    """More than there are blocks to take them, and heavy beside light ones."""
    needs_the_kernel()
    case = paged_case(sequences, heads=(16, 4), head_dim=128, block_size=64, dtype=BF16, device="cuda")
    assert can_attend(case.q, case.k_cache, case.batch, 0)
    assert_close(attention.paged_attention(case.q, case.k_cache, case.v_cache, case.batch, case.scale, None),
                 case.expected(None))


@pytest.mark.gpu
def test_decode_tokens_beside_chunks(paged_case, assert_close):
    needs_the_kernel()
    case = paged_case([(1, 900), (1, 3), (400, 100), (1, 64), (250, 0)], heads=(8, 2), head_dim=128, block_size=64,
                      dtype=BF16, device="cuda")
    case = replace(case, batch=replace(case.batch, num_decodes=2))
    assert can_attend(case.q, case.k_cache, case.batch, 0)
    assert_close(attention.paged_attention(case.q, case.k_cache, case.v_cache, case.batch, case.scale, None),
                 case.expected(None))


@pytest.mark.gpu
def test_graph_replays(paged_case, assert_close):
    """The tiles that a launch has follow from the device's contents, their number and what chooses kernels do not."""
    needs_the_kernel()
    case = paged_case([(200, 100), (150, 130)], heads=(8, 2), head_dim=128, block_size=64, dtype=BF16, device="cuda",
                      padding=2)

    def attend() -> torch.Tensor:
        return attention.paged_attention(case.q, case.k_cache, case.v_cache, case.batch, case.scale, None)

    attend()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend()
    for _ in range(3):
        case.q.copy_(torch.randn_like(case.q))
        graph.replay()
        expected = case.expected(None)
        assert_close(out[: len(expected)], expected)


def needs_the_kernel() -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("attention.cu is for Hopper alone")
    if not LIBRARY.exists():
        pytest.skip("the CUDA kernels are not built: make build-ext")


@pytest.fixture
def built(monkeypatch):
    monkeypatch.setattr(cuda_attention, "load", lambda *_: True)
    monkeypatch.setattr(cuda_attention, "hopper_multiprocessors", lambda index: 132)


CHUNKS = [(1, 9), (1, 9), (300, 0), (20, 4)]


def test_chunks_that_fill_tiles(built, paged_case):
    case = paged_case(CHUNKS, heads=(8, 2), head_dim=128, block_size=64, dtype=BF16)
    assert can_attend(case.q, case.k_cache, case.batch, 0)
    assert not can_attend(case.q, case.k_cache, case.batch, 512)
    assert not can_attend(case.q.half(), case.k_cache, case.batch, 0)
    assert not can_attend(case.q, case.k_cache, replace(case.batch, num_tokens=255), 0)
    assert not can_attend(case.q, case.k_cache, replace(case.batch, num_seqs=257, num_tokens=1024), 0)  # a graph's
    assert can_attend(case.q, case.k_cache, replace(case.batch, num_seqs=64, num_tokens=1024), 0)
    assert not can_attend(case.q, case.k_cache, replace(case.batch, num_seqs=1024, num_tokens=8191), 0)
    assert can_attend(case.q, case.k_cache, replace(case.batch, num_seqs=1024, num_tokens=8192), 0)  # large anyhow


@given(st.integers(0, 8192), st.integers(1, 512), st.integers(1, 8192))
def test_triton_s_large_tiles_are_not_needed(num_decodes: int, num_chunks: int, chunked: int) -> None:
    """Where this kernel is built, none but Triton's small tiles run, whatever the traffic: the rehearsal's large chunks
    do not compile the large ones."""
    num_tokens = num_decodes + max(num_chunks, chunked)
    batch = SimpleNamespace(num_tokens=num_tokens, num_seqs=num_decodes + num_chunks, num_decodes=num_decodes)
    q, k_cache = torch.empty(1, 28, 128, dtype=BF16), torch.empty(1, 4, 64, 128, dtype=BF16)
    with mock.patch.multiple(cuda_attention, load=lambda *_: True, hopper_multiprocessors=lambda _: 132):
        by_cuda = can_attend(q, k_cache, batch, 0)
    large = is_large(num_tokens, 28, RAGGED_TILES[2, 128][-1].rows)
    assert by_cuda or not large


@pytest.mark.parametrize("shape", [dict(head_dim=64), dict(block_size=32), dict(block_size=96),
                                   dict(dtype=torch.float32)], ids=str)
def test_what_the_kernel_cannot_do_is_not_chosen(built, paged_case, shape):
    case = paged_case(CHUNKS, **{"heads": (8, 2), "head_dim": 128, "block_size": 64, "dtype": BF16, **shape})
    assert not can_attend(case.q, case.k_cache, case.batch, 0)


def test_nothing_is_used_that_is_not_built(monkeypatch, paged_case):
    monkeypatch.setattr(cuda_attention, "LIBRARY", Path("none"))
    case = paged_case(CHUNKS, heads=(8, 2), head_dim=128, block_size=64, dtype=BF16)
    assert not can_attend(case.q, case.k_cache, case.batch, 0)
    with pytest.raises(RuntimeError, match="make build-ext"):
        launch_chunks(torch.empty_like(case.q), case.q, case.k_cache, case.v_cache, case.batch, 1.0)


@pytest.mark.parametrize("num_decodes, split, first", [(0, 0, 0), (2, 2, 2)])
def test_decode_tokens_go_their_own_way(built, monkeypatch, paged_case, num_decodes, split, first):
    called = []
    monkeypatch.setattr(attention, "launch_split", lambda out, q, k, v, batch, *_: called.append(batch.num_seqs))
    monkeypatch.setattr(attention, "launch_ragged", lambda *_, **__: called.append("ragged"))
    monkeypatch.setattr(cuda_attention, "launch_chunks", lambda *_, first_seq: called.append(("chunks", first_seq)))
    case = paged_case(CHUNKS, heads=(8, 2), head_dim=128, block_size=64, dtype=BF16)
    batch = replace(case.batch, num_decodes=num_decodes)
    attention._paged_attention_triton(case.q, case.k_cache, case.v_cache, batch, case.scale, None)
    assert called == [split] * bool(split) + [("chunks", first)]
    called.clear()
    attention._paged_attention_triton(case.q, case.k_cache, case.v_cache, batch, case.scale, 100)
    assert called == ["ragged"]
