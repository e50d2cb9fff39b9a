"""Rotary embedding: the table against transformers' for every scaling, the rotation against complex multiplication."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mini_infer.config import RopeConfig, rope_config
from mini_infer.ops import rope

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 128},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn untruncated": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
                         "truncate": False, "beta_fast": 16.0, "beta_slow": 2.0},
    "yarn attention_factor": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
                              "attention_factor": 1.25},
    "yarn mscale": {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 64,
                    "mscale": 1.0, "mscale_all_dim": 0.7},
}
MAX_POSITION = 256


def transformers_cos_sin(scaling: dict[str, Any], head_dim: int, length: int, first: int = 0) -> torch.Tensor:
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = transformers.LlamaConfig(
        hidden_size=2 * head_dim, num_attention_heads=2, head_dim=head_dim, max_position_embeddings=MAX_POSITION,
        rope_parameters={"rope_type": "default", "rope_theta": 5e4, **scaling})
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(first, length)[None])
    return torch.cat((cos[0, :, : head_dim // 2], sin[0, :, : head_dim // 2]), dim=-1)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("head_dim", [64, 80])
def test_table_is_transformers(variant, head_dim):
    scaling = VARIANTS[variant]
    config = rope_config({"rope_parameters": {"rope_theta": 5e4, **scaling}} if scaling else {"rope_theta": 5e4},
                         MAX_POSITION)
    table = rope.cos_sin_table(config, head_dim, MAX_POSITION, "cpu")
    assert table.shape == (MAX_POSITION, head_dim) and table.dtype == torch.float32
    torch.testing.assert_close(table, transformers_cos_sin(scaling, head_dim, MAX_POSITION), rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant != "dynamic"])
def test_table_is_transformers_at_long_positions(variant):
    """Where a frequency's last bit shows: 2e-3 radians at position 30,000."""
    config = rope_config({"rope_parameters": {"rope_theta": 5e4, **VARIANTS[variant]}}, MAX_POSITION)
    table = rope.cos_sin_table(config, 128, 30_050, "cpu")
    expected = transformers_cos_sin(VARIANTS[variant], 128, 30_050, first=30_000)
    torch.testing.assert_close(table[30_000:], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("max_len", [MAX_POSITION - 56, MAX_POSITION + 100])
def test_dynamic_table_is_stretched_for_its_length(max_len):
    """As transformers does for one sequence of that length; not at all up to the original context."""
    config = RopeConfig("dynamic", theta=5e4, factor=2.0, original_max_position_embeddings=MAX_POSITION)
    table = rope.cos_sin_table(config, 64, max_len, "cpu")
    torch.testing.assert_close(table, transformers_cos_sin(VARIANTS["dynamic"], 64, max_len), rtol=0, atol=1e-6)


def rotated(x: torch.Tensor, positions: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Pairs as complex numbers, turned by their angles."""
    cos, sin = table.double().cpu()[positions.long().cpu()].chunk(2, dim=-1)
    pairs = torch.complex(*x.double().cpu().chunk(2, dim=-1)) * torch.complex(cos, sin)[:, None]
    return torch.cat((pairs.real, pairs.imag), dim=-1)


def case(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device | str) -> list[torch.Tensor]:
    num_tokens, heads, head_dim = shape
    table = rope.cos_sin_table(RopeConfig(), head_dim, 100, device)
    x = torch.randn(num_tokens, heads + 3, head_dim).to(dtype).to(device)[:, 1 : heads + 1]  # a strided view
    return [x, torch.randint(0, 100, (num_tokens,), dtype=torch.int32).to(device), table]


SHAPES = pytest.mark.parametrize(
    "shape", [(1, 8, 64), (7, 3, 80), (2, 17, 96), (3, 1, 128), (1, 2, 256), (0, 2, 64)], ids=str)


@SHAPES
def test_reference(assert_close, dtype, shape):
    x, positions, table = case(shape, dtype, "cpu")
    before = x.clone()
    assert_close(rope._apply_rope_torch(x, positions, table), rotated(x, positions, table))
    assert torch.equal(x, before)


@SHAPES
def test_triton(assert_close, device, dtype, shape):
    x, positions, table = case(shape, dtype, device)
    out = rope._apply_rope_triton(x, positions, table)
    assert out.dtype == dtype and out.is_contiguous()
    assert_close(out, rotated(x, positions, table))
