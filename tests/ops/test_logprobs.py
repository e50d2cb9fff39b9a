"""Log-probabilities against log_softmax in float64; torch and Triton alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sampling_tables import DEVICE, int32

from mini_infer.ops import logprobs
from mini_infer.ops.dispatch import HAS_TRITON

IMPLEMENTATIONS = [logprobs._normalize_and_rank_torch, *([logprobs._normalize_and_rank_triton] if HAS_TRITON else [])]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_normalizer_and_rank(
    implementation: Callable[..., tuple[torch.Tensor, torch.Tensor]], dtype: torch.dtype
) -> None:
    logits = (torch.randn(5, 5001, generator=torch.Generator().manual_seed(0)) * 4).to(DEVICE, dtype)
    logits[1, 100:5000] = -torch.inf  # a chunk with nothing in it
    logits[2] = 1.0
    tokens = torch.tensor([3, 5000, 77, 4096, 0], device=DEVICE)[:, None]
    log_normalizer, ranks = implementation(logits, tokens)
    torch.testing.assert_close(log_normalizer.double(), logits.double().logsumexp(-1), rtol=1e-6, atol=1e-5)
    assert ranks.tolist() == [1 + int((row > row[t]).sum()) for row, (t,) in zip(logits, tokens.tolist())]
    assert ranks.dtype == torch.int32 and ranks[2] == 1


@pytest.mark.parametrize("k", [0, 1, 20, 2000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_top_logprobs(k: int, dtype: torch.dtype) -> None:
    logits = (torch.randn(4, 1500, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)
    tokens = [1, 0, 1499, -1]  # -1: a row that failed
    top = logprobs.token_logprobs(logits, int32(tokens).cpu(), k)
    expected = logits.double().log_softmax(-1)
    width = 1 + min(k, 1500)
    assert top.token_ids.shape == top.logprobs.shape == (4, width)
    assert (top.token_ids.dtype, top.logprobs.dtype) == (torch.int32, torch.float32)
    assert top.token_ids[:, 0].tolist() == [1, 0, 1499, 0]
    torch.testing.assert_close(top.logprobs.double(), expected.gather(1, top.token_ids.long()), rtol=0, atol=2e-5)
    torch.testing.assert_close(top.logprobs[:, 1:].double(), expected.topk(width - 1).values, rtol=0, atol=2e-5)
    if k >= 1:
        in_top = top.ranks <= k
        for row, rank in zip(top.logprobs[in_top], top.ranks[in_top]):
            assert row[0] == row[rank]


def test_slices_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, tokens = torch.randn(7, 300), torch.arange(7)
    whole = logprobs.token_logprobs(logits, tokens, 3)
    monkeypatch.setattr(logprobs, "SLICE_BYTES", 2 * 4 * 300)
    for one, other in zip(whole, logprobs.token_logprobs(logits, tokens, 3)):
        assert torch.equal(one, other)
