"""What is chosen where the user did not, for a real engine and for a dry run alike. Imports no torch."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from math import inf

from mini_infer.config import ConfigError, EngineConfig, ModelConfig, SchedulerConfig
from mini_infer.core.scheduler import Scheduler

NO_LIMIT = 1 << 30
TILE = 128  # tokens that a GPU's matmuls take at a time


@dataclass(frozen=True)
class DeviceDefaults:
    """The choices for one kind of device."""

    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    pipeline_depth: int
    flops_a_mixed_layer: float  # what a step with decode rows computes in a layer, the prompts beside them included
    most_mixed_tokens: int  # of such a step, however small the model


CPU_DEFAULTS = DeviceDefaults(max_num_seqs=64, max_num_batched_tokens=1024, block_size=16, pipeline_depth=1,
                              flops_a_mixed_layer=inf, most_mixed_tokens=NO_LIMIT)
# 384 tokens of a 7B or 8B model (benchmarks/LOG.md, 54 to 60); of a small one as many as CUDA graphs hold
# (runtime/graphs.py), since the host launches larger steps for longer than the GPU takes (LOG.md, 76).
GPU_DEFAULTS = DeviceDefaults(max_num_seqs=256, max_num_batched_tokens=8192, block_size=64, pipeline_depth=2,
                              flops_a_mixed_layer=160e9, most_mixed_tokens=1024)


@dataclass(frozen=True)
class Limits:
    """Every size but the number of KV blocks, which is known only once the weights have taken their memory."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_num_mixed_tokens: int
    block_size: int
    pipeline_depth: int

    @property
    def largest_step(self) -> int:
        """Tokens of one sequence that may be computed at once."""
        return min(self.max_num_batched_tokens, self.max_model_len)

    @property
    def largest_mixed_step(self) -> int:
        """Tokens of a step with decode rows in it, unless a prompt hurries: with all sequences that may run at once a
        quarter of the limit is still left to prompts (Scheduler._prompt_budget)."""
        crowded = self.max_num_seqs + -(-self.max_num_mixed_tokens // 4)
        return min(self.max_num_batched_tokens, max(self.max_num_mixed_tokens, crowded))


def pick_limits(config: EngineConfig, model_config: ModelConfig, defaults: DeviceDefaults) -> Limits:
    """Raises ConfigError when more positions are asked for than the model has."""
    max_num_seqs = config.max_num_seqs or defaults.max_num_seqs
    max_num_batched_tokens = config.max_num_batched_tokens or max(defaults.max_num_batched_tokens, max_num_seqs)
    return Limits(
        max_model_len=pick_max_model_len(config, model_config),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_mixed_tokens=min(max_num_batched_tokens, config.max_num_mixed_tokens
                                 or pick_max_num_mixed_tokens(model_config, defaults)),
        block_size=config.block_size or defaults.block_size,
        pipeline_depth=config.pipeline_depth or defaults.pipeline_depth,
    )


def pick_max_num_mixed_tokens(model_config: ModelConfig, defaults: DeviceDefaults) -> int:
    """As many tokens as keep a layer's matmuls busy for about a quarter of a millisecond. Decode rows alone leave the
    matmul units idle while the weights are read, and prompts fill them; more at once would let running requests wait,
    and be missing beside the decode rows of later steps. Of a small model no more than graphs hold."""
    tokens = defaults.flops_a_mixed_layer / (2 * model_config.layer_weights)
    return defaults.most_mixed_tokens if tokens > defaults.most_mixed_tokens else max(256, round(tokens / TILE) * TILE)


def pick_max_model_len(config: EngineConfig, model_config: ModelConfig) -> int:
    """Raises ConfigError when more positions are asked for than the model has."""
    if config.max_model_len is None:
        return model_config.max_position_embeddings
    if config.max_model_len > model_config.max_position_embeddings:
        raise ConfigError(f"max_model_len={config.max_model_len} is beyond the model's max_position_embeddings "
                          f"({model_config.max_position_embeddings}); lower it")
    return config.max_model_len


def make_scheduler_config(config: EngineConfig, model_config: ModelConfig, limits: Limits, num_blocks: int,
                          one_batch: bool = False) -> SchedulerConfig:
    """The scheduler's configuration once the KV blocks are counted, `one_batch` as in SchedulerConfig unless the user
    said how much a step with decode rows may hold. A max_model_len that nobody asked for is lowered to
    what they hold; raises ConfigError where one was asked for and they do not hold it."""
    max_model_len, mixed = limits.max_model_len, limits.max_num_mixed_tokens
    if config.max_model_len is None:
        max_model_len = min(max_model_len, num_blocks * limits.block_size)
    return SchedulerConfig(
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_num_mixed_tokens=mixed if mixed < limits.max_num_batched_tokens else None,
        one_batch=one_batch and config.max_num_mixed_tokens is None,
        max_model_len=max_model_len,
        block_size=limits.block_size,
        num_blocks=num_blocks,
        vocab_size=model_config.vocab_size,
        enable_prefix_caching=config.enable_prefix_caching,
        policy=config.scheduling_policy,
        eos_token_ids=model_config.eos_token_ids,
        hash_key=secrets.token_bytes(16),
    )


def make_scheduler(config: EngineConfig, scheduler_config: SchedulerConfig, clock: Callable[[], float]) -> Scheduler:
    """The scheduler, which writes its run down where `config.record` asks for it. Raises ConfigError."""
    if config.record is None:
        return Scheduler(scheduler_config, clock)
    if find_spec("msgspec") is None:
        raise ConfigError("record needs msgspec: pip install 'mini-infer[serve]'")
    from mini_infer.engine.record import record  # msgspec is not among what the engine itself needs

    return record(config, scheduler_config, clock)
