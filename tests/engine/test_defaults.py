"""What is chosen where the user did not."""

from __future__ import annotations

from pathlib import Path

import pytest

from mini_infer.config import EngineConfig, ModelConfig
from mini_infer.engine.defaults import CPU_DEFAULTS, GPU_DEFAULTS, make_scheduler_config, pick_limits
from mini_infer.models.registry import load_config
from mini_infer.runtime.graphs import MAX_MIXED, mixed_shapes

SHAPES = Path(__file__).parents[2] / "benchmarks" / "shapes"


def shape(name: str) -> ModelConfig:
    return load_config(SHAPES / name)[1]


@pytest.mark.parametrize("name, tokens", [("qwen3-0.6b", MAX_MIXED), ("qwen2.5-7b", 384), ("qwen3-8b", 384),
                                          ("llama-3.1-8b", 384)])
def test_a_mixed_step_takes_the_same_time_for_every_model_but_small_ones(name: str, tokens: int) -> None:
    assert pick_limits(EngineConfig(), shape(name), GPU_DEFAULTS).max_num_mixed_tokens == tokens


def test_the_user_s_limits_come_first() -> None:
    model = shape("qwen2.5-7b")
    assert pick_limits(EngineConfig(max_num_mixed_tokens=77), model, GPU_DEFAULTS).max_num_mixed_tokens == 77
    small = pick_limits(EngineConfig(max_num_batched_tokens=100), model, GPU_DEFAULTS)
    assert small.max_num_mixed_tokens == small.largest_mixed_step == 100
    crowded = pick_limits(EngineConfig(max_num_seqs=512), model, GPU_DEFAULTS)
    assert crowded.largest_mixed_step == 512 + 96


def test_a_cpu_has_no_limit_of_its_own() -> None:
    model = shape("qwen2.5-7b")
    limits = pick_limits(EngineConfig(), model, CPU_DEFAULTS)
    assert make_scheduler_config(EngineConfig(), model, limits, 10_000).max_num_mixed_tokens is None


def test_one_batch_is_for_those_who_set_no_limit() -> None:
    model = shape("qwen2.5-7b")
    for tokens, hurries in ((None, True), (384, False)):
        config = EngineConfig(max_num_mixed_tokens=tokens)
        limits = pick_limits(config, model, GPU_DEFAULTS)
        made = make_scheduler_config(config, model, limits, 10_000, one_batch=True)
        assert (made.max_num_mixed_tokens, made.one_batch) == (384, hurries)
        assert not make_scheduler_config(config, model, limits, 10_000).one_batch


@pytest.mark.parametrize("batched", [2, 50, 100, 384, 8192])
@pytest.mark.parametrize("max_num_seqs", [1, 64, 256, 512])
def test_no_graph_is_larger_than_the_largest_step(batched: int, max_num_seqs: int) -> None:
    """The rehearsal has positions for no more tokens."""
    config = EngineConfig(max_num_batched_tokens=batched, max_num_seqs=min(max_num_seqs, batched), max_model_len=4096)
    limits = pick_limits(config, shape("qwen2.5-7b"), GPU_DEFAULTS)
    shapes = mixed_shapes(limits.max_num_seqs, limits.largest_mixed_step, limits.max_model_len)
    assert max(shape.num_tokens for shape in shapes) == min(limits.largest_mixed_step, 1024) <= batched
