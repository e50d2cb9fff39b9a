"""The counter-based generator: known vectors, and the same bits on the host, in torch and in Triton."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_tables import DEVICE, int32

from mini_infer.ops.dispatch import HAS_TRITON, tl, triton
from mini_infer.ops.random import GOLDEN, mix64, random_bits, request_key, two_uniforms, two_uniforms_kernel

MASK64 = 2**64 - 1
uint64 = st.integers(0, MASK64)
position = st.integers(0, 2**31 - 2)


def signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


@triton.jit
def _uniforms_kernel(low_ptr, high_ptr, positions_ptr, u1_ptr, u2_ptr):
    row = tl.program_id(0)
    u1, u2 = two_uniforms_kernel(tl.load(low_ptr + row), tl.load(high_ptr + row), tl.load(positions_ptr + row))
    tl.store(u1_ptr + row, u1)
    tl.store(u2_ptr + row, u2)


def test_splitmix64_vectors() -> None:
    """The first outputs of the published generator from seeds 0 and 1234567."""
    assert mix64(GOLDEN) == 0xE220A8397B1DCDAF
    assert [mix64(1234567 + (i + 1) * GOLDEN) for i in range(5)] == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


@given(st.lists(st.tuples(uint64, position), min_size=1, max_size=20))
@settings(deadline=None, max_examples=50)
def test_torch_bits_are_the_hosts(cases: list[tuple[int, int]]) -> None:
    keys = torch.tensor([signed(key) for key, _ in cases], device=DEVICE)
    bits = random_bits(keys, int32([p for _, p in cases]))
    assert [b & MASK64 for b in bits.tolist()] == [mix64(key + (p + 1) * GOLDEN) for key, p in cases]


@pytest.mark.skipif(not HAS_TRITON, reason="needs Triton")
@given(st.lists(st.tuples(uint64, position), min_size=1, max_size=8))
@settings(deadline=None, max_examples=25)
def test_triton_uniforms_are_torchs(cases: list[tuple[int, int]]) -> None:
    keys = torch.tensor([signed(key) for key, _ in cases], device=DEVICE)
    positions = int32([p for _, p in cases])
    low, high = keys.view(torch.int32).view(-1, 2).t().contiguous()  # little-endian
    u1, u2 = torch.empty(2, len(cases), device=DEVICE)
    _uniforms_kernel[(len(cases),)](low, high, positions, u1, u2)
    expected = two_uniforms(keys, positions)
    assert torch.equal(u1, expected[0]) and torch.equal(u2, expected[1])


def test_uniforms_are_uniform_and_below_one() -> None:
    positions = torch.arange(200_000, dtype=torch.int32)
    u1, u2 = two_uniforms(torch.full_like(positions, signed(mix64(7)), dtype=torch.int64), positions)
    for u in (u1, u2):
        assert float(u.min()) >= 0 and float(u.max()) < 1
        counts = torch.histc(u, bins=100, min=0, max=1)
        assert float(((counts - 2000) ** 2 / 2000).sum()) < 149  # chi-square, 99 degrees of freedom, p = 0.001
    assert abs(float(torch.corrcoef(torch.stack([u1, u2]))[0, 1])) < 0.01
    assert abs(float(torch.corrcoef(torch.stack([u1[1:], u1[:-1]]))[0, 1])) < 0.01
    assert float(torch.tensor(0xFFFFFF).float() * 2**-24) < 1  # the largest there is


def test_request_keys() -> None:
    """A seed alone decides; without one, engine seed and request id do; neighbours share nothing."""
    assert request_key(5, 0, 1) == request_key(5, 9, 2) == mix64(5)
    assert request_key(-1, 0, 0) == mix64(MASK64)
    keys = [request_key(None, engine, request) for engine in range(10) for request in range(100)]
    keys += [request_key(seed, 0, 0) for seed in range(100)]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key <= MASK64 for key in keys)
