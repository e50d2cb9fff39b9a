"""Tiny random checkpoints, written as transformers writes them, for tests of the whole engine."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.server.model_dir import SMALL, write_model_dir

VOCAB_SIZE = 256


def write_checkpoint(directory: Path, seed: int = 0, **changes: object) -> Path:
    """A fp32 Qwen3 of two layers whose greedy tokens vary (large weights: no near-ties, no fixed points)."""
    torch.manual_seed(seed)
    shape = dict(vocab_size=VOCAB_SIZE, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                 num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=512,
                 tie_word_embeddings=False, initializer_range=0.15, eos_token_id=None, bos_token_id=None)
    model = Qwen3ForCausalLM(Qwen3Config(**{**shape, **changes})).float()
    model.save_pretrained(directory)
    return directory


def write_chat_model(directory: Path, **changes: object) -> Path:
    """The same with a tokenizer and a chat template."""
    write_model_dir(directory, SMALL)
    return write_checkpoint(directory, vocab_size=512, **changes)


def reference_logprobs(directory: Path, token_ids: list[int]) -> torch.Tensor:
    """log-softmax [len(token_ids), vocab] of a dense, cacheless forward pass by transformers."""
    model = Qwen3ForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([token_ids])).logits[0].log_softmax(-1)
