"""Text as it is made: from a plain loop, and for several readers at once with asyncio.

    .venv/bin/python examples/streaming.py [MODEL]
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import closing

from mini_infer import LLM, AsyncLLM, EngineConfig, SamplingParams

PARAMS = SamplingParams(temperature=0.8, seed=3, max_tokens=60)


def plain(config: EngineConfig) -> None:
    llm = LLM(config)
    for piece in llm.stream("Once upon a time", PARAMS):
        print(piece, end="", flush=True)
    print("\n\nThe same, left at the first full stop:")
    with closing(llm.stream("Once upon a time", PARAMS)) as pieces:  # closing ends the request and frees its blocks
        for piece in pieces:
            print(piece, end="", flush=True)
            if "." in piece:
                break
    print(f"\n{llm.stats().running} requests are still running\n")


async def side_by_side(config: EngineConfig) -> None:
    """The engine runs in a process of its own; both requests are in every step of it."""

    async def read(prompt: str) -> str:
        return prompt + "".join([delta.text async for delta in llm.generate(prompt, PARAMS)])

    async with AsyncLLM(config) as llm:
        for text in await asyncio.gather(read("Once upon a time"), read("One day, a small boy")):
            print(text)


if __name__ == "__main__":
    chosen = EngineConfig(model=sys.argv[1]) if len(sys.argv) > 1 else EngineConfig()
    plain(chosen)
    asyncio.run(side_by_side(chosen))
