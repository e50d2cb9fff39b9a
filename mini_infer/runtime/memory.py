"""How much memory there is, and how many KV blocks it makes."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from mini_infer.config import ConfigError

CPU_SHARE = 0.25  # of the memory available, for the KV pool, when nothing else was asked
GIB = 1024**3


def available_ram() -> int:
    """Bytes of RAM that can be taken without swapping."""
    try:
        with open("/proc/meminfo") as meminfo:
            for line in meminfo:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def kv_budget_cuda(device: torch.device, gpu_memory_utilization: float, needed: int) -> int:
    """Bytes left for the KV pool once weights are loaded: the share of the whole GPU, less what is in use already
    (by anyone), less what is `needed` for the largest step, the slot table and the graphs.

    Raises ConfigError with the numbers when nothing is left.
    """
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    budget = int(total * gpu_memory_utilization) - (total - free) - needed
    if budget <= 0:
        raise ConfigError(
            f"gpu_memory_utilization={gpu_memory_utilization} of {total / GIB:.1f} GiB leaves no room for KV blocks: "
            f"{(total - free) / GIB:.1f} GiB are in use after loading the weights, and steps and graphs need "
            f"{needed / GIB:.1f} GiB; raise gpu_memory_utilization, lower max_num_batched_tokens, or free the GPU")
    return budget


def used_cuda(device: torch.device) -> int:
    """Bytes of the GPU in use, by anyone, as the driver says; makes the CUDA context if there is none yet."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def device_ledger(device: torch.device, held: Mapping[str, int], outside: int, context: int) -> dict[str, int]:
    """Where the GPU's bytes are: adds up to all of its memory but for what libraries took for themselves.

    held: what torch's allocator holds for known purposes, by name; outside: bytes in use that are not the allocator's,
    before the graphs were captured; context: `used_cuda` before the engine's first tensor. Whatever else the allocator
    has taken is the workspace that steps share.
    """
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    index = torch.cuda.current_device() if device.index is None else device.index
    pooled = sum(segment["total_size"] for segment in torch.cuda.memory_snapshot()
                 if segment["device"] == index and tuple(segment["segment_pool_id"]) != (0, 0))
    graphs = pooled + (total - free - reserved) - outside
    return {**held, "workspace": reserved - pooled - sum(held.values()), "graphs": graphs, "context": context,
            "free": free}


def format_ledger(ledger: Mapping[str, int]) -> str:
    """In one line, for the log."""
    return ", ".join(f"{name.replace('_', ' ')} {size / 1e9:.2f} GB" for name, size in ledger.items() if size)


def kv_budget_cpu(wanted: int) -> int:
    """Bytes for the KV pool on a CPU: `wanted`, but no more than a sensible share of the RAM available."""
    return min(wanted, int(available_ram() * CPU_SHARE))
