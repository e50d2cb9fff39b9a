"""`mini-infer generate`: the continuation of one prompt."""

from __future__ import annotations

import sys
import time

from mini_infer.config import EngineConfig
from mini_infer.protocol import SamplingParams


def generate(config: EngineConfig, prompt: str, params: SamplingParams) -> int:
    """Print the prompt's continuation as it comes, and the rate at the end."""
    from mini_infer.engine.llm import LLM  # loads torch

    llm = LLM(config)
    start, before = time.perf_counter(), llm.stats().generated_tokens
    for piece in llm.stream(prompt, params):
        print(piece, end="", flush=True)
    print()
    tokens, seconds = llm.stats().generated_tokens - before, time.perf_counter() - start
    print(f"{tokens} tokens, {tokens / seconds:.0f} tokens/s", file=sys.stderr)
    return 0
