"""Op tests run a kernel on the GPU where there is one, and interpreted on the CPU, on small sizes, where there is none.

Triton decides at import whether kernels are interpreted, so the variable is set before any op is imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"

from mini_infer.ops.dispatch import HAS_TRITON  # noqa: E402
from mini_infer.ops.inputs import ForwardBatch  # noqa: E402

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def _triton_device(name: str) -> torch.device:
    if not HAS_TRITON:
        pytest.skip("triton is not installed")
    if name == "cuda":
        return torch.device("cuda")
    if HAS_GPU:
        pytest.skip("the GPU runs the same test compiled")
    from triton.runtime.interpreter import InterpretedFunction

    from mini_infer.ops.norm import _rms_norm_kernel

    assert isinstance(_rms_norm_kernel, InterpretedFunction), \
        "an op was imported before tests/ops/conftest.py: set TRITON_INTERPRET=1 in the environment"
    return torch.device("cpu")


CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(params=["interpreter", CUDA])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where a Triton kernel is tested."""
    return _triton_device(request.param)


class Implementation(NamedTuple):
    name: str  # "torch" or "triton"
    device: torch.device


@pytest.fixture(params=["torch", "interpreter", CUDA])
def implementation(request: pytest.FixtureRequest) -> Implementation:
    """Both implementations of an op, in turn."""
    if request.param == "torch":
        return Implementation("torch", torch.device("cpu"))
    return Implementation("triton", _triton_device(request.param))


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def assert_close() -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Compare with an expectation computed in float64, within what the result's dtype can hold."""

    def check(actual: torch.Tensor, expected: torch.Tensor) -> None:
        tolerance = TOLERANCE[actual.dtype]
        torch.testing.assert_close(actual.double().cpu(), expected.double().cpu(), rtol=tolerance, atol=tolerance)

    return check


@dataclass(frozen=True)
class PagedCase:
    """A ragged batch over a paged cache, where everything that must not be read is garbage."""

    q: torch.Tensor  # [T, Hq, D], a strided view
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    batch: ForwardBatch
    scale: float
    keys: list[torch.Tensor]  # a sequence each, float64 [len, Hkv, D]
    values: list[torch.Tensor]

    def expected(self, window: int | None) -> torch.Tensor:
        """Plain attention in float64, without the padding: [sum of n, Hq, D]."""
        rows = []
        starts = self.batch.cu_seqlens_q.tolist()
        for b, (k, v) in enumerate(zip(self.keys, self.values)):
            queries = self.q[starts[b] : starts[b + 1]].double().cpu()
            group = queries.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
            key = torch.arange(len(k))
            position = torch.arange(len(k) - len(queries), len(k))[:, None]
            seen = (key <= position) if window is None else (key <= position) & (key > position - window)
            scores = torch.einsum("nhd,lhd->hnl", queries, k) * self.scale
            weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
            rows.append(torch.einsum("hnl,lhd->nhd", weights, v))
        return torch.cat(rows)


@pytest.fixture
def paged_case() -> Callable[..., PagedCase]:
    def build(
        sequences: list[tuple[int, int]],  # (n, tokens in the cache before this step)
        heads: tuple[int, int] = (4, 2),
        head_dim: int = 64,
        block_size: int = 16,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        padding: int = 0,  # sequences of the null slot, a token each, and as many stray tokens behind them
        max_seq_len: int | None = None,
        garbage: float = torch.nan,  # what lies where nothing may be read
        seed: int = 0,
    ) -> PagedCase:
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(dtype)

        num_heads, num_kv_heads = heads
        lens = [n + before for n, before in sequences]
        pages = [-(-length // block_size) for length in lens]
        num_blocks = sum(pages) + 3
        order = torch.randperm(num_blocks, generator=generator).tolist()
        spare = order[sum(pages):]
        caches = [torch.full((num_blocks + 1, num_kv_heads, block_size, head_dim), garbage, dtype=dtype)
                  for _ in range(2)]
        num_slots = len(sequences) + 2
        state = torch.full((num_slots + 1, max(pages) + 7), spare[0], dtype=torch.int32)
        table = state[:, 4 : 4 + max(pages) + 1]
        state[num_slots] = num_blocks
        slots = torch.randperm(num_slots, generator=generator)[: len(sequences)].int()
        contents: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for b, length in enumerate(lens):
            blocks = [order.pop(0) for _ in range(pages[b])]
            table[slots[b], : pages[b]] = torch.tensor(blocks, dtype=torch.int32)
            for cache, content in zip(caches, contents):
                content.append(random(length, num_kv_heads, head_dim))
                for token in range(length):
                    cache[blocks[token // block_size], :, token % block_size] = content[b][token]
        query_lens = [n for n, _ in sequences] + [1] * padding
        num_tokens = sum(query_lens) + padding
        qkv = random(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim).to(device)
        batch = ForwardBatch(
            input_ids=torch.zeros(num_tokens, dtype=torch.int32, device=device),
            positions=torch.zeros(num_tokens, dtype=torch.int32, device=device),
            slot_mapping=torch.zeros(num_tokens, dtype=torch.int32, device=device),
            cu_seqlens_q=torch.tensor([0, *query_lens]).cumsum(0).int().to(device),
            seq_lens=torch.tensor(lens + [b % 2 for b in range(padding)], dtype=torch.int32, device=device),
            slots=torch.cat((slots, torch.full((padding,), num_slots, dtype=torch.int32))).to(device),
            block_table=state.to(device)[:, 4 : 4 + max(pages) + 1],
            logit_rows=None,
            num_tokens=num_tokens,
            num_seqs=len(query_lens),
            max_query_len=max(query_lens),
            max_seq_len=max_seq_len or max(lens),
        )
        q = qkv.view(num_tokens, -1, head_dim)[:, :num_heads]
        return PagedCase(q, caches[0].to(device), caches[1].to(device), batch, head_dim**-0.5,
                         [k.double() for k in contents[0]], [v.double() for v in contents[1]])

    return build
