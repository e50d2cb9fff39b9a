"""A dry run: the real scheduler and loop over the simulated executor. Needs a config.json, and no weights or torch."""

from __future__ import annotations

import re
import time
from pathlib import Path

from mini_infer.config import ConfigError, EngineConfig, ModelConfig
from mini_infer.engine.defaults import GPU_DEFAULTS, Limits, make_scheduler, make_scheduler_config, pick_limits
from mini_infer.engine.loop import EngineLoop
from mini_infer.engine.sim import Clock, CostModel, SimConfig, SimExecutor, WallClock, gpu_spec
from mini_infer.models.registry import load_config, load_plugins
from mini_infer.protocol import EngineInfo
from mini_infer.text.tokenizer import Tokenizer

WORD = re.compile("[Ġ▁][A-Za-z]+")  # byte-level and SentencePiece vocabularies write a leading space like this


def make_dry_engine(config: EngineConfig, sim: SimConfig, clock: Clock | None = None) -> tuple[EngineLoop, EngineInfo]:
    """An engine that answers at the speed of `sim.gpu` with made-up words.

    Raises ConfigError when the model's config.json is missing or wrong, the model does not fit on that GPU, or an
    option is given that has no effect here.
    """
    start = time.perf_counter()
    _refuse_without_effect(config)
    load_plugins(config.plugins)
    if not Path(config.model).is_dir():
        raise ConfigError(f"model: {config.model} is not a directory; a dry run downloads nothing")
    _, model = load_config(config.model)
    tokenizer = None if config.skip_tokenizer_init else Tokenizer.load(config.tokenizer_path)
    eos = model.eos_token_ids
    dtype = model.dtype if config.dtype == "auto" else config.dtype
    cost = CostModel(gpu_spec(sim.gpu), model, dtype)
    limits = pick_limits(config, model, GPU_DEFAULTS)
    num_blocks = config.num_kv_blocks or _num_blocks(config, model, cost, dtype, limits)
    scheduler_config = make_scheduler_config(config, model, limits, num_blocks)
    clock = clock or WallClock()
    executor = SimExecutor(
        vocabulary=word_ids(tokenizer, model),
        cost=cost,
        clock=clock,
        seed=config.seed,
        eos_token_id=eos[0] if eos else None,
        output_len=sim.output_len,
    )
    loop = EngineLoop(make_scheduler(config, scheduler_config, clock.now), executor, limits.pipeline_depth)
    info = EngineInfo(
        model_path=config.model,
        architecture=model.architecture,
        device=f"simulated {gpu_spec(sim.gpu).name}",
        dtype=dtype,
        vocab_size=model.vocab_size,
        max_model_len=scheduler_config.max_model_len,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        block_size=limits.block_size,
        num_blocks=num_blocks,
        pipeline_depth=limits.pipeline_depth,
        eos_token_ids=list(eos),
        startup_seconds={"dry run": round(time.perf_counter() - start, 3)},
        memory_bytes={"weights": cost.weight_bytes,
                      "kv_pool": num_blocks * limits.block_size * model.kv_bytes_per_token(dtype)},
    )
    return loop, info


def word_ids(tokenizer: Tokenizer | None, model: ModelConfig) -> list[int]:
    """Ids that read as whole words; every id but end-of-sequence where no tokenizer tells."""
    if tokenizer is not None:
        pieces = ((i, tokenizer.id_to_piece(i) or "") for i in range(min(tokenizer.vocab_size, model.vocab_size)))
        words = [i for i, piece in pieces if WORD.fullmatch(piece)]
        if words:
            return words
    return [i for i in range(model.vocab_size) if i not in model.eos_token_ids]


def _refuse_without_effect(config: EngineConfig) -> None:
    """Raise ConfigError for options that a dry run could only ignore."""
    unused = dict.fromkeys(("device", "load_format", "enforce_eager", "threads"), "it has neither device nor weights")
    if config.kv_cache_memory is not None:
        unused["gpu_memory_utilization"] = "kv_cache_memory decides"
    if config.num_kv_blocks is not None:
        unused["gpu_memory_utilization"] = "num_kv_blocks decides"
    for name, reason in unused.items():
        if vars(config)[name] != vars(EngineConfig)[name]:
            raise ConfigError(f"{name} has no effect in this dry run, as {reason}; leave it out")


def _num_blocks(config: EngineConfig, model: ModelConfig, cost: CostModel, dtype: str, limits: Limits) -> int:
    """What fits beside the weights, and no more than all requests together can use."""
    most = -(-limits.max_model_len // limits.block_size) * limits.max_num_seqs
    block_bytes = model.kv_bytes_per_token(dtype) * limits.block_size
    if config.kv_cache_memory is not None:
        if config.kv_cache_memory < block_bytes:
            raise ConfigError(f"kv_cache_memory={config.kv_cache_memory} does not hold one block of "
                              f"{limits.block_size} tokens ({block_bytes} bytes); raise it or lower block_size")
        return min(config.kv_cache_memory // block_bytes, most)
    budget = cost.gpu.memory_bytes * config.gpu_memory_utilization - cost.weight_bytes
    if budget < block_bytes:
        raise ConfigError(f"dry_gpu: {cost.gpu.name} has {cost.gpu.memory_bytes / 1e9:.0f} GB, the weights alone take "
                          f"{cost.weight_bytes / 1e9:.1f} GB; choose a larger GPU or a smaller model")
    return int(min(budget // block_bytes, most))
