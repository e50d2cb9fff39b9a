"""A dry run: the real scheduler and loop over the simulated executor. Needs a config.json, and no weights or torch."""

from __future__ import annotations

import re
import time
from pathlib import Path

from mini_infer.config import ConfigError, EngineConfig, ModelConfig, SchedulerConfig
from mini_infer.core.scheduler import Scheduler
from mini_infer.engine.loop import EngineLoop
from mini_infer.engine.sim import Clock, CostModel, SimConfig, SimExecutor, WallClock, gpu_spec
from mini_infer.models.registry import load_config, load_plugins
from mini_infer.protocol import EngineInfo
from mini_infer.text.tokenizer import Tokenizer

MAX_NUM_SEQS = 256
MAX_NUM_BATCHED_TOKENS = 8192
BLOCK_SIZE = 16
PIPELINE_DEPTH = 2
WORD = re.compile("[Ġ▁][A-Za-z]+")  # byte-level and SentencePiece vocabularies write a leading space like this


def make_dry_engine(config: EngineConfig, sim: SimConfig, clock: Clock | None = None) -> tuple[EngineLoop, EngineInfo]:
    """An engine that answers at the speed of `sim.gpu` with made-up words.

    Raises ConfigError when the model's config.json is missing or wrong, or the model does not fit on that GPU.
    """
    start = time.perf_counter()
    load_plugins(config.plugins)
    if not Path(config.model).is_dir():
        raise ConfigError(f"model: {config.model} is not a directory; a dry run downloads nothing")
    _, model = load_config(config.model)
    tokenizer = None if config.skip_tokenizer_init else Tokenizer.load(config.tokenizer_path)
    eos = model.eos_token_ids
    dtype = model.dtype if config.dtype == "auto" else config.dtype
    cost = CostModel(gpu_spec(sim.gpu), model, dtype)
    max_model_len = config.max_model_len or model.max_position_embeddings
    max_num_seqs = config.max_num_seqs or MAX_NUM_SEQS
    block_size = config.block_size or BLOCK_SIZE
    num_blocks = config.num_kv_blocks or _num_blocks(config, model, cost, dtype, block_size,
                                                     -(-max_model_len // block_size) * max_num_seqs)
    scheduler_config = SchedulerConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens or max(MAX_NUM_BATCHED_TOKENS, max_num_seqs),
        max_model_len=max_model_len,
        block_size=block_size,
        num_blocks=num_blocks,
        enable_prefix_caching=config.enable_prefix_caching,
        policy=config.scheduling_policy,
        eos_token_ids=eos,
    )
    clock = clock or WallClock()
    executor = SimExecutor(
        vocabulary=word_ids(tokenizer, model),
        cost=cost,
        clock=clock,
        seed=config.seed,
        eos_token_id=eos[0] if eos else None,
        output_len=sim.output_len,
    )
    depth = config.pipeline_depth or PIPELINE_DEPTH
    loop = EngineLoop(Scheduler(scheduler_config, clock.now), executor, depth)
    info = EngineInfo(
        model_path=config.model,
        architecture=model.architecture,
        device=f"simulated {gpu_spec(sim.gpu).name}",
        dtype=dtype,
        vocab_size=model.vocab_size,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=scheduler_config.max_num_batched_tokens,
        block_size=block_size,
        num_blocks=num_blocks,
        pipeline_depth=depth,
        eos_token_ids=list(eos),
        startup_seconds={"dry run": round(time.perf_counter() - start, 3)},
        memory_bytes={"weights": cost.weight_bytes,
                      "kv_pool": num_blocks * block_size * model.kv_bytes_per_token(dtype)},
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


def _num_blocks(config: EngineConfig, model: ModelConfig, cost: CostModel, dtype: str, block_size: int,
                most: int) -> int:
    """What fits beside the weights, and no more than the `most` that all requests together can use."""
    block_bytes = model.kv_bytes_per_token(dtype) * block_size
    budget = config.kv_cache_memory or cost.gpu.memory_bytes * config.gpu_memory_utilization - cost.weight_bytes
    if budget < block_bytes:
        raise ConfigError(f"dry_gpu: {cost.gpu.name} has {cost.gpu.memory_bytes / 1e9:.0f} GB, the weights alone take "
                          f"{cost.weight_bytes / 1e9:.1f} GB; choose a larger GPU or a smaller model")
    return int(min(budget // block_bytes, most))
