"""The simulated executor: its clock, its costs, and that its tokens depend on the request alone."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_infer.config import ConfigError, EngineConfig
from mini_infer.core.plan import AdmittedSlot, SeqStep, StepPlan
from mini_infer.engine.defaults import GPU_DEFAULTS
from mini_infer.engine.dry_run import make_dry_engine
from mini_infer.engine.loop import EngineLoop
from mini_infer.engine.sim import (
    BANDWIDTH_SHARE,
    GPUS,
    CostModel,
    SimConfig,
    SimExecutor,
    VirtualClock,
    WallClock,
    _attention_extent,
    gpu_spec,
)
from mini_infer.models.registry import adapter_for
from mini_infer.protocol import AddRequest, EngineInfo, SamplingParams
from tests.server.model_dir import SEVEN_B, SMALL, write_model_dir

EOS = 1


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_dir(tmp_path_factory.mktemp("sim") / "small", SMALL)


def seq(start: int, n: int, slot: int = 0, sample: bool = True) -> SeqStep:
    return SeqStep(slot, 0, slot, start, n, 0, [], sample, False)


def cost_model(gpu: str = "H200", **changes: int) -> CostModel:
    raw = {"architectures": ["Qwen2ForCausalLM"], "vocab_size": 152064, "max_position_embeddings": 32768,
           "rms_norm_eps": 1e-6, **SEVEN_B, **changes}
    return CostModel(gpu_spec(gpu), adapter_for(raw).config(raw), "bfloat16")


class TestCost:
    def test_one_decode_row_costs_the_weights(self) -> None:
        cost = cost_model()
        floor = 14.1e9 / (GPUS["H200"].bytes_per_s * BANDWIDTH_SHARE)  # what one step of this shape must read
        assert floor < cost.seconds(StepPlan(1, seqs=[seq(100, 1)])) < 1.2 * floor

    def test_a_prompt_costs_its_operations(self) -> None:
        cost = cost_model()
        seconds = cost.seconds(StepPlan(1, seqs=[seq(0, 8192)]))
        assert 0.15 < seconds < 0.22  # the floor on that GPU is 0.185 s

    def test_a_batch_shares_the_weights(self) -> None:
        cost = cost_model()
        one = cost.seconds(StepPlan(1, seqs=[seq(100, 1)]))
        assert cost.seconds(StepPlan(1, seqs=[seq(100, 1, slot) for slot in range(64)])) < 1.3 * one

    def test_slower_gpus_take_longer(self) -> None:
        plan = StepPlan(1, seqs=[seq(100, 1)])
        seconds = [cost_model(name).seconds(plan) for name in ("H200", "H100", "A100", "L40S", "L4")]
        assert seconds == sorted(seconds)
        assert cost_model("free").seconds(plan) == 0

    def test_unknown_gpu_is_refused_with_the_list(self) -> None:
        with pytest.raises(ConfigError, match="H200"):
            SimConfig(gpu="GTX-1")
        assert gpu_spec("rtx-4090").name == "RTX-4090"

    @given(start=st.integers(0, 50), n=st.integers(1, 50), window=st.none() | st.integers(1, 60))
    @settings(deadline=None, max_examples=200)
    def test_attention_extent_counts_what_causal_attention_sees(self, start: int, n: int, window: int | None) -> None:
        seen = [[key for key in range(query + 1) if window is None or key > query - window]
                for query in range(start, start + n)]
        expected = (len(set().union(*seen)), sum(map(len, seen)))
        assert _attention_extent([seq(start, n)], window) == expected


class TestClock:
    def plan(self, step_id: int) -> StepPlan:
        admitted = [AdmittedSlot(0, 0, [5, 6], 2, 0, [0], SamplingParams())] if step_id == 0 else []
        return StepPlan(step_id, admitted, [seq(1 + step_id, 1)])

    def test_a_step_starts_when_the_one_before_ends(self) -> None:
        clock = VirtualClock()
        executor = SimExecutor([7], cost_model(), clock)
        first, second = executor.submit(self.plan(0)), executor.submit(self.plan(1))
        assert not first.done()
        first.result()
        one = clock.now()
        assert one > 0 and first.done() and not second.done()
        second.result()
        assert clock.now() == pytest.approx(2 * one, rel=0.01)

    def test_an_idle_device_starts_at_once(self) -> None:
        clock = VirtualClock()
        executor = SimExecutor([7], cost_model(), clock)
        executor.submit(self.plan(0)).result()
        one = clock.now()
        clock.sleep_until(10.0)
        executor.submit(self.plan(1)).result()
        assert clock.now() == pytest.approx(10.0 + one, rel=0.01)

    def test_wall_clock_waits_for_the_modelled_time_and_overlaps_the_host(self) -> None:
        executor = SimExecutor([7], cost_model("L40S"), WallClock())  # about 19 ms a step
        start = time.monotonic()
        pending = [executor.submit(self.plan(i)) for i in range(3)]
        assert time.monotonic() - start < 0.015
        time.sleep(0.02)  # the host's own work, hidden behind the device
        for step in pending:
            step.result()
        assert time.monotonic() - start == pytest.approx(executor.busy_seconds, rel=0.2)


def run(model_dir: Path, requests: list[AddRequest], sim: SimConfig | None = None,
        **options: object) -> dict[int, list[int]]:
    config = EngineConfig(model=str(model_dir), **options)  # type: ignore[arg-type]
    loop, _ = make_dry_engine(config, sim or SimConfig(), VirtualClock())
    return drain(loop, requests)


def drain(loop: EngineLoop, requests: list[AddRequest]) -> dict[int, list[int]]:
    tokens: dict[int, list[int]] = {request.request_id: [] for request in requests}
    for request in requests:
        loop.add(request)
    for _ in range(100_000):
        if not loop.has_work():
            break
        for out in loop.step():
            assert out.error is None, out.error
            tokens[out.request_id] += out.token_ids
    assert not loop.has_work()
    stats = loop.stats()
    assert stats.used_blocks == 0
    assert stats.free_blocks + stats.cached_blocks == stats.total_blocks
    return tokens


def requests(count: int, **params: object) -> list[AddRequest]:
    return [AddRequest(i, [10 + i, 3, 4] * (1 + i % 5), SamplingParams(**{"max_tokens": 40, **params}))  # type: ignore[arg-type]
            for i in range(count)]


class TestTokens:
    @pytest.mark.parametrize("options", [
        {"pipeline_depth": 1}, {"pipeline_depth": 2}, {"max_num_batched_tokens": 16, "max_num_seqs": 4},
        {"block_size": 8, "num_kv_blocks": 20, "max_model_len": 64}, {"enable_prefix_caching": False},
    ], ids=str)
    def test_do_not_depend_on_how_the_engine_runs_them(self, model_dir: Path, options: dict[str, object]) -> None:
        crowd = requests(16, temperature=0.0)
        alone = {request.request_id: run(model_dir, [request])[request.request_id] for request in crowd[::5]}
        together = run(model_dir, crowd, **options)
        assert all(len(tokens) == 40 for tokens in together.values())
        assert {key: together[key] for key in alone} == alone

    def test_a_small_pool_serves_everybody(self, model_dir: Path) -> None:
        loop, _ = make_dry_engine(EngineConfig(model=str(model_dir), block_size=8, num_kv_blocks=16, max_model_len=128),
                                  SimConfig(), VirtualClock())
        tokens = drain(loop, requests(16, max_tokens=60))
        assert all(len(found) == 60 for found in tokens.values())
        assert loop.stats().preemptions > 0

    def test_seeds(self, model_dir: Path) -> None:
        def one(request_id: int, engine_seed: int = 0, **params: object) -> list[int]:
            request = AddRequest(request_id, [9, 9], SamplingParams(max_tokens=20, **params))  # type: ignore[arg-type]
            return run(model_dir, [request], seed=engine_seed)[request_id]

        assert one(1, seed=5) == one(2, seed=5)
        assert one(1, seed=5) != one(1, seed=6)
        assert one(1) != one(2)
        assert one(1, temperature=0.0) == one(2, temperature=0.0)
        assert one(1, temperature=0.0) != one(1, engine_seed=1, temperature=0.0)

    def test_allowed_token_ids_are_honoured(self, model_dir: Path) -> None:
        tokens = run(model_dir, requests(3, allowed_token_ids=[42, 43]))
        assert set().union(*tokens.values()) == {42, 43}

    def test_ends_by_itself_only_when_asked_to(self, model_dir: Path) -> None:
        assert all(EOS not in tokens for tokens in run(model_dir, requests(8)).values())
        sim = SimConfig(output_len=5)
        ended = run(model_dir, requests(32), sim)
        assert all(tokens[-1] == EOS and len(tokens) <= 10 for tokens in ended.values())
        assert len({len(tokens) for tokens in ended.values()}) > 3
        assert all(len(tokens) > 6 for tokens in run(model_dir, requests(8, min_tokens=6), sim).values())
        assert all(len(tokens) == 40 for tokens in run(model_dir, requests(8, ignore_eos=True), sim).values())

    def test_logprobs_fail_that_request_alone(self, model_dir: Path) -> None:
        loop, _ = make_dry_engine(EngineConfig(model=str(model_dir)), SimConfig(), VirtualClock())
        loop.add(AddRequest(1, [5, 6], SamplingParams(max_tokens=4, logprobs=1)))
        loop.add(AddRequest(2, [5, 6], SamplingParams(max_tokens=4)))
        outs = []
        while loop.has_work():
            outs += loop.step()
        assert [out.finish_reason for out in outs if out.request_id == 1] == ["error"]
        assert "logprobs" in next(out.error for out in outs if out.error)
        assert sum(len(out.token_ids) for out in outs if out.request_id == 2) == 4


def test_model_too_large_for_the_gpu_is_refused(tmp_path: Path) -> None:
    huge = write_model_dir(tmp_path / "huge", {**SEVEN_B, "num_hidden_layers": 200})
    with pytest.raises(ConfigError, match="larger GPU"):
        make_dry_engine(EngineConfig(model=str(huge)), SimConfig(gpu="L4"))


class TestConfiguration:
    """A dry run accepts and chooses what a real engine would."""

    def info(self, model_dir: Path, **options: object) -> EngineInfo:
        config = EngineConfig(model=str(model_dir), **options)  # type: ignore[arg-type]
        return make_dry_engine(config, SimConfig(gpu="H100"))[1]

    def test_the_defaults_are_a_gpu_s(self, model_dir: Path) -> None:
        info = self.info(model_dir)
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size", "pipeline_depth"):
            assert getattr(info, name) == getattr(GPU_DEFAULTS, name), name

    def test_a_batch_holds_a_token_of_every_request(self, model_dir: Path) -> None:
        assert self.info(model_dir, max_num_seqs=10_000).max_num_batched_tokens == 10_000

    def test_more_positions_than_the_model_has_are_refused(self, model_dir: Path) -> None:
        assert self.info(model_dir).max_model_len == self.info(model_dir, max_model_len=512).max_model_len == 512
        with pytest.raises(ConfigError, match=r"max_model_len=513 .* max_position_embeddings \(512\)"):
            self.info(model_dir, max_model_len=513)

    def test_a_length_that_nobody_asked_for_follows_the_blocks(self, model_dir: Path) -> None:
        assert self.info(model_dir, num_kv_blocks=3, block_size=16).max_model_len == 48
        with pytest.raises(ConfigError, match="max_model_len"):
            self.info(model_dir, num_kv_blocks=3, block_size=16, max_model_len=49)

    @pytest.mark.parametrize("options, named", [
        ({"device": "cpu"}, "device"),
        ({"load_format": "dummy"}, "load_format"),
        ({"enforce_eager": True}, "enforce_eager"),
        ({"threads": 2}, "threads"),
        ({"gpu_memory_utilization": 0.5, "kv_cache_memory": 10**8}, "gpu_memory_utilization"),
        ({"gpu_memory_utilization": 0.5, "num_kv_blocks": 64}, "gpu_memory_utilization"),
        ({"kv_cache_memory": 10**8, "num_kv_blocks": 64}, "kv_cache_memory"),
        ({"kv_cache_memory": 100}, "kv_cache_memory"),
    ], ids=str)
    def test_what_would_have_no_effect_is_refused(self, model_dir: Path, options: dict[str, object],
                                                  named: str) -> None:
        with pytest.raises(ConfigError, match=f"^{named}[ =]"):
            self.info(model_dir, **options)

    def test_memory_decides_the_blocks(self, model_dir: Path) -> None:
        block = self.info(model_dir).memory_bytes["kv_pool"] // self.info(model_dir).num_blocks
        assert self.info(model_dir, kv_cache_memory=20 * block).num_blocks == 20
        small = write_model_dir(model_dir.parent / "long", SMALL, max_position_embeddings=10**7)
        full, half = (self.info(small, gpu_memory_utilization=share).num_blocks for share in (0.9, 0.45))
        assert full == pytest.approx(2 * half, rel=0.01)


def test_a_dry_run_needs_no_torch() -> None:
    code = "import sys, mini_infer.engine.dry_run; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
