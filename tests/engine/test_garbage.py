"""The garbage collector is put back as it was, and finds no tensors."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from mini_infer import LLM, SamplingParams
from mini_infer.engine.garbage import FEW, undisturbed
from mini_infer.ops import native
from tests.tiny import write_checkpoint


@pytest.mark.parametrize("failing", [False, True])
def test_a_long_run_leaves_the_collector_as_it_was(failing: bool) -> None:
    threshold = gc.get_threshold()
    try:
        with undisturbed():
            assert gc.get_freeze_count() > FEW and gc.get_threshold()[0] > threshold[0]
            if failing:
                raise KeyError
    except KeyError:
        pass
    assert gc.get_threshold() == threshold and gc.get_freeze_count() == 0


def test_what_others_have_frozen_stays_frozen() -> None:
    gc.freeze()
    threshold = gc.get_threshold()
    try:
        with undisturbed():
            assert gc.get_threshold() == threshold
        assert gc.get_freeze_count() > FEW
    finally:
        gc.unfreeze()


def test_runs_that_overlap() -> None:
    threshold = gc.get_threshold()
    first, second = undisturbed(), undisturbed()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert gc.get_threshold() == threshold and gc.get_freeze_count() == 0


@pytest.mark.parametrize("kernels", [False, True], ids=["references", "kernels"])
def test_steps_leave_nothing_for_the_collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: bool) -> None:
    """A tensor in a circle stays until the collector comes, and memory is as large as that is late."""
    if not kernels:
        monkeypatch.setattr(native, "HAS_NATIVE", False)
    llm = LLM(str(write_checkpoint(tmp_path)), device="cpu", skip_tokenizer_init=True, num_kv_blocks=32,
              max_model_len=64, max_num_batched_tokens=16)
    params = SamplingParams(max_tokens=8, detokenize=False, logprobs=2, prompt_logprobs=2, repetition_penalty=1.1,
                            logit_bias={3: 1.0}, bad_words_token_ids=[[5]], top_k=4, min_tokens=2, seed=0)
    prompts = [list(range(2, 2 + length)) for length in (3, 20, 30)]
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        llm.generate(prompts, params)
        gc.collect()
        left = [found for found in gc.garbage if isinstance(found, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not left
