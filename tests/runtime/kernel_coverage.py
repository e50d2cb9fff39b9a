"""Which kernels do steps launch that the rehearsal has not shown? Run without a GPU: launches are named, not made.

    python -m tests.runtime.kernel_coverage

Tensors say that they are on a GPU while they are in RAM, Triton is told of a Hopper GPU, and its hook for compilations
skips every launch. So the real runner, scheduler and ops run, on garbage, and each kernel variant that would have to be
compiled shows itself. Prints a line for each variant that random traffic needs and the start has not compiled.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from triton.backends.compiler import GPUTarget

from mini_infer.config import ModelConfig, RopeConfig, SchedulerConfig
from mini_infer.core.plan import StepResult
from mini_infer.core.scheduler import Scheduler
from mini_infer.engine.rehearsal import shallow
from mini_infer.models.decoder import Decoder
from mini_infer.ops import cuda_attention, cuda_few, cuda_swiglu, linear
from mini_infer.ops.epilogue import Epilogue
from mini_infer.ops.norm import rms_norm
from mini_infer.ops.stream import HalfNormed
from mini_infer.protocol import AddRequest, SamplingParams
from mini_infer.runtime import runner as runner_module
from mini_infer.runtime.grammar import SlotGrammars
from mini_infer.runtime.kv_pool import KVPool
from mini_infer.runtime.runner import Runner
from mini_infer.runtime.sampler import Sampler
from mini_infer.runtime.state import SlotState

MAX_NUM_SEQS, MAX_MODEL_LEN, MAX_TOKENS, BLOCK_SIZE, NUM_BLOCKS = 256, 8192, 2048, 64, 600
CONFIG = ModelConfig(
    architecture="test", vocab_size=1024, hidden_size=256, intermediate_size=256, num_layers=3, num_heads=8,
    num_kv_heads=4, head_dim=128, rms_norm_eps=1e-6, rope=RopeConfig(), max_position_embeddings=MAX_MODEL_LEN,
    tie_word_embeddings=False, dtype="bfloat16", qk_norm=True)


def pretend_a_gpu() -> set[tuple[str, str]]:
    """Returns the set in which the variants of kernels gather from now on."""
    named: set[tuple[str, str]] = set()

    def name(*, fn: Any, key: str, **_: Any) -> bool:
        named.add((fn.name, key))
        return True

    triton.knobs.runtime.jit_cache_hook = name
    triton.runtime.driver.set_active(SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32), get_current_device=lambda: 0,
        get_current_stream=lambda device: 0))
    torch.Tensor.is_cuda = property(lambda self: True)  # type: ignore[assignment, misc]
    torch.cuda.get_device_capability = lambda *_: (9, 0)  # type: ignore[assignment]
    for kernel in (cuda_attention, cuda_swiglu):  # compiled beforehand; there is no GPU to launch them
        kernel.LIBRARY = Path("not built")
    # Some numbers of rows by few.cu, their neighbours starting early, and some not: a model has the one or the other.
    cuda_few.choose_blocks = lambda rows, weight, gated=False: 1 if 16 < rows <= 48 else None  # type: ignore
    cuda_few.cuda_few_matmul = few_matmul  # type: ignore
    linear.tuned_plan = plan_in_parts  # type: ignore
    prepare = runner_module.prepare_inputs
    # What a skipped kernel leaves is no token that the embedding knows.
    runner_module.prepare_inputs = lambda *args: tuple(each.zero_() for each in prepare(*args))  # type: ignore
    runner_module.DeviceStep = lambda *args: None  # type: ignore
    return named


def few_matmul(x: torch.Tensor | HalfNormed, weight: torch.Tensor, epilogue: Epilogue, out: torch.Tensor | None = None,
               *, blocks: int, half: HalfNormed | None = None) -> torch.Tensor:
    """few.cu's place in a step: the kernels beside it are launched as they would be, it needs no compiler here."""
    x = x.scaled if isinstance(x, HalfNormed) else x
    if epilogue.norm_weight is not None:
        rms_norm(x, epilogue.norm_weight, epilogue.eps)
    return epilogue.place(x, weight, out)


class PartsPlan:
    """Instead of cuBLASLt's, which is not here: a product in two parts."""

    product = SimpleNamespace(parts=2)

    def __call__(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.empty(2, len(x), len(weight))


def plan_in_parts(x: torch.Tensor, weight: torch.Tensor, bias: bool = False, adds: bool = False) -> PartsPlan | None:
    """A table that has one number of rows, which only mixed steps have."""
    return PartsPlan() if adds and len(x) == 320 else None


def make_runner(config: ModelConfig) -> Runner:
    device, dtype = torch.device("cpu"), torch.bfloat16
    with torch.device("meta"):
        model = Decoder(config, dtype).eval()
    model.materialize(device, MAX_MODEL_LEN)
    pool = KVPool(config, NUM_BLOCKS, BLOCK_SIZE, dtype, device)
    state = SlotState(MAX_NUM_SEQS, MAX_MODEL_LEN, BLOCK_SIZE, NUM_BLOCKS, device)
    sampler = Sampler(config.vocab_size, MAX_NUM_SEQS, device, (), 0)
    return Runner(model, pool, state, sampler, SlotGrammars(lambda *_: None, config.vocab_size),  # type: ignore
                  MAX_MODEL_LEN, MAX_TOKENS)


def traffic(runner: Runner, steps: int, rng: random.Random) -> None:
    """Random requests through the real scheduler: short and long prompts, plain sampling of every kind."""
    scheduler = Scheduler(SchedulerConfig(MAX_NUM_SEQS, MAX_TOKENS, MAX_MODEL_LEN, BLOCK_SIZE, NUM_BLOCKS,
                                          vocab_size=CONFIG.vocab_size), lambda: 0.0)
    for number in range(steps):
        for _ in range(rng.choice((0, 0, 1, 1, 2, 30)) if number % 60 < 40 else 0):
            length = round(2 ** rng.uniform(0, 12.9))
            params = SamplingParams(temperature=rng.choice((0, 0.7)), top_p=rng.choice((1, 0.9)),
                                    max_tokens=rng.randint(1, 40), ignore_eos=True)
            scheduler.add(AddRequest(rng.getrandbits(60), [1] * min(length, MAX_MODEL_LEN - 50), params))
        plan = scheduler.schedule()
        if plan is not None:
            runner.execute(plan)
            scheduler.update(plan, StepResult(plan.step_id, [[1] if seq.sample else [] for seq in plan.seqs]))


@torch.inference_mode()
def main() -> int:
    named = pretend_a_gpu()
    rehearsal = make_runner(shallow(CONFIG))
    rehearsal.warm_up(MAX_TOKENS)
    rehearsal.rehearse(MAX_TOKENS)
    rehearsal.rehearse_graphs()
    rehearsed = set(named)
    runner = make_runner(CONFIG)
    runner.rehearse_graphs()  # as they are captured
    traffic(runner, int(sys.argv[1]) if len(sys.argv) > 1 else 300, random.Random(0))
    for name, key in sorted(named - rehearsed):
        print(name, key)
    print(f"{len(rehearsed)} variants rehearsed, {len(named - rehearsed)} more in traffic", file=sys.stderr)
    return 1 if named - rehearsed else 0


if __name__ == "__main__":
    sys.exit(main())
