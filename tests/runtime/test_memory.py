"""What is left for the KV cache, and where the GPU's bytes are; the driver's numbers are made up, but for one test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mini_infer.config import ConfigError
from mini_infer.runtime import memory
from mini_infer.runtime.memory import device_ledger, format_ledger, kv_budget_cpu, kv_budget_cuda, used_cuda

DEVICE = torch.device("cuda:0")
GB = 10**9


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of 100 GB with 70 GB free; torch has taken 28 GB, of which 1 GB is in a graph's pool."""
    segments = [{"device": 0, "segment_pool_id": pool, "total_size": size * GB}
                for pool, size in (((0, 0), 20), ((0, 0), 7), ((0, 1), 1))]
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70 * GB, 100 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 28 * GB)
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: [*segments, {**segments[0], "device": 1}])


def test_what_is_left_for_blocks(driver: None) -> None:
    assert used_cuda(DEVICE) == 30 * GB
    assert kv_budget_cuda(DEVICE, 0.9, 5 * GB) == 55 * GB
    with pytest.raises(ConfigError, match="leaves no room for KV blocks"):
        kv_budget_cuda(DEVICE, 0.3, 1 * GB)


def test_a_cpu_gets_what_it_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_ram", lambda: 8 * GB)
    assert kv_budget_cpu(GB) == GB and kv_budget_cpu(5 * GB) == 2 * GB


def test_the_ledger_adds_up(driver: None) -> None:
    # 1.5 GB were the context's before the graphs came, and 2 GB are not torch's now: the graphs took half a GB there.
    ledger = device_ledger(DEVICE, {"weights": 15 * GB, "kv_pool": 8 * GB}, outside=3 * GB // 2, context=3 * GB // 2)
    assert ledger == {"weights": 15 * GB, "kv_pool": 8 * GB, "workspace": 4 * GB, "graphs": 3 * GB // 2,
                      "context": 3 * GB // 2, "free": 70 * GB}
    assert sum(ledger.values()) == 100 * GB
    assert format_ledger({"kv_pool": 8 * GB, "graphs": 0, "free": GB // 2}) == "kv pool 8.00 GB, free 0.50 GB"


@pytest.mark.gpu
@pytest.mark.alone
def test_on_a_gpu_the_share_is_kept_and_the_ledger_adds_up(tmp_path: Path) -> None:
    from mini_infer import LLM, SamplingParams
    from tests.tiny import write_checkpoint

    llm = LLM(str(write_checkpoint(tmp_path)), skip_tokenizer_init=True, gpu_memory_utilization=0.6, max_num_seqs=32)
    free, total = torch.cuda.mem_get_info()
    assert (total - free) / total == pytest.approx(0.6, abs=0.01)
    assert sum(llm.memory_ledger().values()) == pytest.approx(total, rel=0.02)
    params = SamplingParams(temperature=0.7, max_tokens=20, ignore_eos=True, detokenize=False)
    llm.generate([[i % 256] * (1 + 7 * i) for i in range(64)], params, use_tqdm=False)
    free, _ = torch.cuda.mem_get_info()
    assert (total - free) / total == pytest.approx(0.6, abs=0.01)
