"""Log-probabilities of tokens under the model's own distribution, without a log-softmax written to memory."""

from __future__ import annotations

from typing import NamedTuple

import torch

from mini_infer.ops.dispatch import cdiv, tl, triton, use_triton

SLICE_BYTES = 64 << 20  # float32 copies of the logits that the torch reference makes at a time
CHUNK = 4096  # tokens a program


class TopLogprobs(NamedTuple):
    """For each of R rows: the asked token first, then the k most likely in falling order."""

    token_ids: torch.Tensor  # int32 [R, 1 + k]
    logprobs: torch.Tensor  # float32 [R, 1 + k], log_softmax of the logits
    ranks: torch.Tensor  # int32 [R], 1 + the number of tokens strictly more likely than the asked one


def token_logprobs(logits: torch.Tensor, token_ids: torch.Tensor, k: int) -> TopLogprobs:
    """Log-probabilities of one token a row and of the row's k most likely.

    `logits` [R, V] float32, bfloat16 or float16, before any sampling parameter; `token_ids` integer [R], negative ones
    (no token was chosen) stand for token 0. Computed in float32. Of tokens with equal logits any may be listed.
    """
    token_ids = token_ids.long().clamp(min=0)[:, None]
    if use_triton(logits):
        log_normalizer, ranks = _normalize_and_rank_triton(logits, token_ids)
    else:
        log_normalizer, ranks = _normalize_and_rank_torch(logits, token_ids)
    chosen = logits.gather(1, token_ids)
    if k:
        top = logits.topk(min(k, logits.shape[1]))
        chosen, token_ids = torch.cat([chosen, top.values], 1), torch.cat([token_ids, top.indices], 1)
    return TopLogprobs(token_ids.int(), chosen.float() - log_normalizer[:, None], ranks)


def _normalize_and_rank_torch(logits: torch.Tensor, token_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The log of the sum of exponentials (float32 [R]) and the rank of `token_ids` [R, 1] (int32 [R])."""
    log_normalizers, ranks = [], []
    rows = max(1, SLICE_BYTES // (4 * logits.shape[1]))
    for piece, tokens in zip(logits.split(rows), token_ids.split(rows), strict=True):
        x = piece.float()
        log_normalizers.append(x.logsumexp(-1))
        ranks.append((x > x.gather(1, tokens)).sum(-1, dtype=torch.int32) + 1)
    return torch.cat(log_normalizers), torch.cat(ranks)


def _normalize_and_rank_triton(logits: torch.Tensor, token_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    num_rows, vocab_size = logits.shape
    num_chunks = cdiv(vocab_size, CHUNK)
    chunk_log_sum = torch.empty(num_rows, num_chunks, dtype=torch.float32, device=logits.device)
    chunk_greater = torch.empty(num_rows, num_chunks, dtype=torch.int32, device=logits.device)
    _normalize_and_rank_kernel[(num_rows, num_chunks)](
        logits, logits.stride(0), token_ids, chunk_log_sum, chunk_greater, vocab_size, CHUNK=CHUNK)
    return chunk_log_sum.logsumexp(-1), chunk_greater.sum(-1, dtype=torch.int32) + 1


@triton.jit
def _normalize_and_rank_kernel(
    logits_ptr, logits_stride, token_ids_ptr, chunk_log_sum_ptr, chunk_greater_ptr, vocab_size, CHUNK: tl.constexpr
):
    """One program a (row, chunk): log-sum-exp of the chunk, and how many of its logits exceed the asked token's."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * logits_stride
    asked = tl.load(row_ptr + tl.load(token_ids_ptr + row)).to(tl.float32)
    token = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(row_ptr + token, mask=token < vocab_size, other=float("-inf")).to(tl.float32)
    top = tl.max(x, axis=0)
    log_sum = top + tl.log(tl.sum(tl.where(x > float("-inf"), tl.exp(x - top), 0.0), axis=0))
    out = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(chunk_log_sum_ptr + out, tl.where(top > float("-inf"), log_sum, float("-inf")))
    tl.store(chunk_greater_ptr + out, tl.sum((x > asked).to(tl.int32), axis=0))


__all__ = ["TopLogprobs", "token_logprobs"]
