"""From what a user asks for to a running engine: load, size, warm up, capture, and say what each phase cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

import torch

from mini_infer.config import ConfigError, EngineConfig, ModelConfig
from mini_infer.engine.defaults import (
    CPU_DEFAULTS,
    GPU_DEFAULTS,
    Limits,
    make_scheduler,
    make_scheduler_config,
    pick_limits,
)
from mini_infer.engine.executor import LocalExecutor
from mini_infer.engine.loop import EngineLoop
from mini_infer.engine.rehearsal import rehearse
from mini_infer.models.decoder import Decoder
from mini_infer.models.hub import resolve
from mini_infer.models.loader import load_model
from mini_infer.models.registry import load_config, load_plugins
from mini_infer.ops.dispatch import HAS_TRITON
from mini_infer.protocol import EngineInfo
from mini_infer.runtime.freed_memory import FreedMemory
from mini_infer.runtime.grammar import SlotGrammars
from mini_infer.runtime.kv_pool import KVPool
from mini_infer.runtime.memory import device_ledger, kv_budget_cpu, kv_budget_cuda, used_cuda
from mini_infer.runtime.runner import Runner
from mini_infer.runtime.sampler import Sampler
from mini_infer.runtime.state import SlotState
from mini_infer.text.grammar import GrammarCompiler
from mini_infer.text.tokenizer import Tokenizer

SMALL_MODEL = 30_000_000  # parameters; below, waiting for a second thread costs more than it brings at batch 1


@dataclass(frozen=True)
class Engine:
    """`load_tokenizer` gives the model's tokenizer, the same one each time; None where there is to be none."""

    loop: EngineLoop
    info: EngineInfo
    grammars: GrammarCompiler
    load_tokenizer: Callable[[], Tokenizer | None]


@dataclass
class Phases:
    """Seconds of each phase of the start, reported as they end."""

    report: Callable[[str, float], None]
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)
        self.report(name, self.seconds[name])


def build_engine(config: EngineConfig, report: Callable[[str, float], None] = lambda name, seconds: None,
                 progress: bool = False, one_batch: bool = False) -> Engine:
    """Build the scheduler, the runner and the loop between them.

    `report(phase, seconds)` is called as each phase of the start ends; `progress` shows a bar while weights load;
    `one_batch`: the requests come all at once, and only the end of the last one counts.
    Raises ConfigError, naming the field and the fix, when the configuration or the checkpoint cannot work.
    """
    phases = Phases(report)
    with phases.phase("config"):
        load_plugins(config.plugins)
        model_dir = resolve(config.model)
        adapter, model_config = load_config(model_dir)
        device = pick_device(config.device)
        if device.index is not None:
            torch.cuda.set_device(device)  # libraries that are called directly work on the current one
        dtype_name = model_config.dtype if config.dtype == "auto" else config.dtype
        dtype: torch.dtype = getattr(torch, dtype_name)
        limits = pick_limits(config, model_config, GPU_DEFAULTS if device.type == "cuda" else CPU_DEFAULTS)
        block_size = limits.block_size

        @cache
        def load_tokenizer() -> Tokenizer | None:
            return None if config.skip_tokenizer_init else Tokenizer.load(config.tokenizer or model_dir)

        grammars = GrammarCompiler(load_tokenizer, model_config.vocab_size, model_config.eos_token_ids)

    def make_runner(model: Decoder, num_blocks: int, max_model_len: int) -> tuple[Runner, KVPool, SlotState]:
        pool = KVPool(model.config, num_blocks, block_size, dtype, device)
        state = SlotState(limits.max_num_seqs, max_model_len, block_size, num_blocks, device)
        sampler = Sampler(model_config.vocab_size, limits.max_num_seqs, device, model_config.eos_token_ids, config.seed)
        slot_grammars = SlotGrammars(grammars.matcher, model_config.vocab_size, model_config.eos_token_ids)
        return Runner(model, pool, state, sampler, slot_grammars, max_model_len,
                      limits.largest_mixed_step), pool, state

    context, rehearsal = 0, None
    if device.type == "cuda":
        with phases.phase("rehearsal"):
            context = used_cuda(device)
            rehearsal = rehearse(model_config, adapter, dtype, device, limits,
                                 lambda model: make_runner(model, 1, limits.max_model_len)[0],
                                 with_graphs=not config.enforce_eager)
    with phases.phase("weights"):
        model = load_model(model_dir, model_config, adapter, dtype=dtype, device=device, load_format=config.load_format,
                           progress=progress, max_model_len=limits.max_model_len, seed=config.seed)
        _synchronize(device)
    freed = FreedMemory() if device.type == "cpu" else None
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    elif device.type == "cpu" and model.num_parameters < SMALL_MODEL:
        torch.set_num_threads(1)

    all_compiled = True
    if rehearsal is not None:
        with phases.phase("kernels"):
            all_compiled = rehearsal.kernels.wait()
    with phases.phase("kv pool"):
        num_blocks = _num_blocks(config, model_config, dtype_name, device, limits,
                                 0 if rehearsal is None else rehearsal.num_bytes)
        scheduler_config = make_scheduler_config(config, model_config, limits, num_blocks, one_batch)
        try:
            runner, pool, state = make_runner(model, num_blocks, scheduler_config.max_model_len)
        except RuntimeError as error:  # torch's out-of-memory errors, on either kind of device
            size = num_blocks * _block_bytes(model_config, dtype_name, block_size) / 1e9
            raise ConfigError(f"no memory for {num_blocks} KV blocks of {block_size} tokens ({size:.1f} GB): lower "
                              f"num_kv_blocks, kv_cache_memory or gpu_memory_utilization ({error})") from None
        _synchronize(device)
    memory = {"weights": model.num_bytes, "kv_pool": pool.num_bytes, "slot_state": state.num_bytes}
    if device.type == "cuda":
        outside = used_cuda(device) - torch.cuda.memory_reserved(device)
        if not config.enforce_eager:
            with phases.phase("graphs"):
                if not all_compiled:
                    runner.rehearse_graphs()  # a kernel must not be compiled while a graph is captured
                runner.capture_graphs()
        with phases.phase("warm-up"):
            runner.warm_up(limits.largest_step)
            _synchronize(device)
        memory = device_ledger(device, memory, outside, context)
    scheduler = make_scheduler(config, scheduler_config, time.monotonic)
    info = EngineInfo(
        model_path=str(model_dir), architecture=model_config.architecture, device=str(device), dtype=dtype_name,
        vocab_size=model_config.vocab_size, max_model_len=scheduler_config.max_model_len,
        max_num_seqs=limits.max_num_seqs, max_num_batched_tokens=limits.max_num_batched_tokens, block_size=block_size,
        num_blocks=num_blocks, pipeline_depth=limits.pipeline_depth, eos_token_ids=list(model_config.eos_token_ids),
        startup_seconds=phases.seconds, memory_bytes=memory)
    loop = EngineLoop(scheduler, LocalExecutor(runner, freed), limits.pipeline_depth)
    return Engine(loop, info, grammars, load_tokenizer)


def pick_device(name: str) -> torch.device:
    """Raises ConfigError when a GPU is asked for and there is none, or nothing to run kernels on it with."""
    if name.startswith("cuda"):
        count = torch.cuda.device_count()
        if int(name.partition(":")[2] or 0) >= count:
            raise ConfigError(f"device={name!r} but this machine has {count} CUDA devices; use device='cpu' or 'auto'")
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    if device.type == "cuda" and not HAS_TRITON:
        raise ConfigError(f"device={name!r}: a GPU needs Triton: pip install triton, or use device='cpu'")
    return device


def _block_bytes(model_config: ModelConfig, dtype: str, block_size: int) -> int:
    return model_config.kv_bytes_per_token(dtype) * block_size


def _num_blocks(config: EngineConfig, model_config: ModelConfig, dtype: str, device: torch.device, limits: Limits,
                needed: int) -> int:
    if config.num_kv_blocks is not None:
        return config.num_kv_blocks
    block_bytes = _block_bytes(model_config, dtype, limits.block_size)
    if config.kv_cache_memory is not None:
        budget = config.kv_cache_memory
    elif device.type == "cuda":
        budget = kv_budget_cuda(device, config.gpu_memory_utilization, needed)
    else:
        blocks_per_seq = -(-limits.max_model_len // limits.block_size)
        budget = kv_budget_cpu(blocks_per_seq * limits.max_num_seqs * block_bytes + block_bytes)
    num_blocks = budget // block_bytes - 1  # one is the null block
    if num_blocks < 1:
        raise ConfigError(f"the KV cache may take {budget / 1e6:.1f} MB but one block of {limits.block_size} tokens "
                          f"needs {block_bytes / 1e6:.1f} MB, and there are two at least; raise kv_cache_memory or "
                          "gpu_memory_utilization, or lower block_size")
    return num_blocks


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


__all__ = ["Engine", "build_engine", "pick_device"]
