"""Paged attention against plain attention in float64, with garbage (mostly NaN) wherever nothing may be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from mini_infer.ops import attention, attention_ragged, attention_split

DECODE = [(1, 0), (1, 4), (1, 15), (1, 16), (1, 39)]
CHUNKS = [(3, 0), (17, 0), (5, 30), (2, 14)]
MIXED = [(1, 20), (6, 0), (1, 0), (4, 33), (1, 47)]
BATCHES = pytest.mark.parametrize("sequences", [DECODE, CHUNKS, MIXED, [(1, 63)]],
                                  ids=["decode", "chunks", "mixed", "one"])


def run(case, implementation: Callable, window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    out = implementation(case.q, case.k_cache, case.v_cache, case.batch, case.scale, window)
    assert out.shape == case.q.shape and out.dtype == case.q.dtype
    expected = case.expected(window)
    return out[: len(expected)], expected


@BATCHES
@pytest.mark.parametrize("window", [None, 1, 5, 16, 1000])
@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, 100.0])  # the padded calls must notice the first two
def test_reference_is_attention(paged_case, assert_close, dtype, sequences, window, garbage):
    case = paged_case(sequences, dtype=dtype, garbage=garbage)
    assert_close(*run(case, attention._paged_attention_torch, window))


@pytest.mark.parametrize("heads", [(1, 1), (3, 1), (7, 1), (16, 1), (6, 2)])
@pytest.mark.parametrize("block_size", [8, 32, 256])
def test_reference_groups_and_blocks(paged_case, assert_close, heads, block_size):
    case = paged_case(MIXED, heads=heads, block_size=block_size, head_dim=80, garbage=100.0)
    assert_close(*run(case, attention._paged_attention_torch, None))
    assert_close(*run(case, attention._paged_attention_torch, 9))


def test_reference_of_skewed_lengths_gathers_little(paged_case, assert_close, monkeypatch):
    gathered = []
    gather = attention._gather

    def spy(cache, rows, num_seqs):
        result = gather(cache, rows, num_seqs)
        gathered.append(result.shape[0] * result.shape[2])
        return result

    monkeypatch.setattr(attention, "_gather", spy)
    case = paged_case([(1, 1500), *[(1, 10 * b) for b in range(30)]], head_dim=16, garbage=0.0)
    assert_close(*run(case, attention._paged_attention_torch, None))
    real = sum(map(len, case.keys))
    assert len(gathered) <= 6 and sum(gathered) <= 2 * 2 * real  # keys and values


def test_reference_survives_padding(paged_case, assert_close):
    assert_close(*run(paged_case(MIXED, padding=2), attention._paged_attention_torch, None))
    assert_close(*run(paged_case(DECODE, padding=2), attention._paged_attention_torch, None))


def test_reference_is_the_same_alone_and_in_a_batch(paged_case):
    """Float32 rounding may differ with the padding, but no more than that."""
    case = paged_case([(1, before) for before in (3, 60, 100, 117)], garbage=100.0)
    together, _ = run(case, attention._paged_attention_torch, None)
    for b in range(4):
        plan = attention._Plan(case.batch, *case.k_cache.shape[1:3], None, case.q.dtype)
        alone = attention._run_call(case.q[b : b + 1], case.k_cache, case.v_cache, plan, plan.alone(b), case.scale)
        torch.testing.assert_close(together[b : b + 1], alone, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- Triton


@BATCHES
@pytest.mark.parametrize("window", [None, 9])
def test_triton_is_attention(paged_case, assert_close, device, dtype, sequences, window):
    if device.type == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies bf16 matrices as if their bits were integers")
    case = paged_case(sequences, dtype=dtype, device=device)
    assert_close(*run(case, attention._paged_attention_triton, window))


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("heads", [(3, 1), (14, 2)])
def test_triton_head_dims(paged_case, assert_close, device, head_dim, heads):
    for sequences in (DECODE[1:4], [(1, 20), (6, 12)]):
        case = paged_case(sequences, head_dim=head_dim, heads=heads, device=device, dtype=torch.float16)
        assert_close(*run(case, attention._paged_attention_triton, None))


@pytest.mark.parametrize("block_size", [8, 32, 64, 256])
@pytest.mark.parametrize("heads", [(1, 1), (16, 1), (40, 1)])
def test_triton_blocks(paged_case, assert_close, device, block_size, heads):
    for sequences in ([(1, 70), (1, 4)], [(1, 70), (9, 60)]):
        case = paged_case(sequences, block_size=block_size, heads=heads, device=device)
        assert_close(*run(case, attention._paged_attention_triton, 33))


@pytest.mark.parametrize("window", [None, 150])
@pytest.mark.parametrize("max_seq_len", [None, 3000])
def test_triton_merges_splits(paged_case, assert_close, device, window, max_seq_len):
    """Sequences of one and of several splits side by side; the host's bound may be far above the lengths."""
    lens = [(1, 300), (1, 128), (1, 127), (1, 0), (1, 255)]
    case = paged_case(lens, heads=(3, 1), head_dim=16 if device.type == "cpu" else 64, device=device,
                      max_seq_len=max_seq_len)
    tiles = attention_split.SPLIT_TILES | {(4, 16): attention_split.SPLIT_TILES[4, 64]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_split, "SPLIT_TILES", tiles)
        assert_close(*run(case, attention._paged_attention_triton, window))


@pytest.mark.parametrize("sequences", [MIXED, DECODE], ids=["mixed", "decode"])
def test_triton_survives_padding(paged_case, assert_close, device, sequences):
    assert_close(*run(paged_case(sequences, padding=3, device=device), attention._paged_attention_triton, None))


def test_triton_finds_each_tile_of_a_sequence(paged_case, assert_close, device):
    """Sequence lengths on either side of the tile's tokens, so that tiles and sequences fall out of step."""
    case = paged_case([(16, 0), (1, 3), (15, 1), (17, 0), (1, 0), (33, 2), (1, 9)], heads=(4, 1), device=device)
    assert_close(*run(case, attention._paged_attention_triton, None))


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("window", [None, 1, 64, 100, 150])
@pytest.mark.parametrize("block_size", [16, 64, 128])
def test_triton_masks_only_the_edges(paged_case, assert_close, device, monkeypatch, block_size, window, large):
    """Chunks whose keys span several tiles, which begin and end at and around the edges of a tile and of a page."""
    monkeypatch.setattr(attention_ragged, "LARGE_WORK", 0 if large else 1 << 30)
    sequences = [(1, 191), (40, 0), (30, 98), (5, 187), (64, 64), (2, 62), (1, 127), (70, 60)]
    case = paged_case(sequences, heads=(3, 1), block_size=block_size, device=device, dtype=torch.float16)
    assert_close(*run(case, attention._paged_attention_triton, window))


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("num_decodes", [0, 1, 3])
def test_triton_splits_long_decodes_beside_chunks(paged_case, assert_close, device, num_decodes, window):
    sequences = [(1, 20), (1, 0), (1, 140), (5, 30), (1, 3), (17, 0)]
    case = paged_case(sequences, device=device, max_seq_len=attention.LONG_CONTEXT + 1, padding=2)
    case = replace(case, batch=replace(case.batch, num_decodes=num_decodes))
    assert_close(*run(case, attention._paged_attention_triton, window))


@pytest.mark.gpu
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("window", [None, 700])
@pytest.mark.parametrize("heads", [(32, 8), (28, 4), (16, 16), (7, 1)])
def test_gpu_large(paged_case, assert_close, monkeypatch, dtype, heads, window, large):
    monkeypatch.setattr(attention_ragged, "LARGE_WORK", 0 if large else 1 << 30)
    for sequences in ([(1, 4000), (1, 1), (700, 300), (130, 0), (4, 999)], [(1, 3000), (1, 17), (1, 2048), (1, 0)]):
        case = paged_case(sequences, heads=heads, head_dim=128, block_size=64, dtype=dtype, device="cuda")
        assert_close(*run(case, attention._paged_attention_triton, window))


@pytest.mark.gpu
@pytest.mark.parametrize("n", [1, 3])
def test_gpu_offsets_beyond_31_bits(paged_case, assert_close, n):
    case = paged_case([(n, 60)], heads=(32, 8), head_dim=128, block_size=64, dtype=torch.bfloat16, device="cuda")
    far = 2**31 // case.k_cache[0].numel()
    caches = [torch.empty(far + len(cache), *cache.shape[1:], dtype=cache.dtype, device="cuda")
              for cache in (case.k_cache, case.v_cache)]
    for cache, small in zip(caches, (case.k_cache, case.v_cache)):
        cache[far:] = small
    batch = replace(case.batch, block_table=case.batch.block_table + far)
    assert_close(attention.paged_attention(case.q, *caches, batch, case.scale, None), case.expected(None))


@pytest.mark.gpu
@pytest.mark.parametrize("block_size", [16, 64])
@pytest.mark.parametrize("sequences", [DECODE, MIXED, [(200, 100), (1, 130)]], ids=["decode", "mixed", "chunk"])
def test_gpu_graph_replays(paged_case, assert_close, sequences, block_size):
    """Captured once, replayed on other queries: nothing in a launch depends on the device's contents."""
    case = paged_case(sequences, block_size=block_size, device="cuda", dtype=torch.bfloat16, max_seq_len=2048,
                      padding=2)
    attention.paged_attention(case.q, case.k_cache, case.v_cache, case.batch, case.scale, None)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention.paged_attention(case.q, case.k_cache, case.v_cache, case.batch, case.scale, None)
    case.q.copy_(torch.randn_like(case.q))
    graph.replay()
    expected = case.expected(None)
    assert_close(out[: len(expected)], expected)
