"""`make demo`: the bundled model answers a few prompts; then speed and the memory ledger."""

from __future__ import annotations

import time

from mini_infer import LLM, SamplingParams

QUESTIONS = [
    "Hello! Who are you?",
    "What is 27 + 35?",
    "Which day comes after Thursday?",
    "Tell me a short story about Mia, a fox and a lighthouse.",
    'Answer in JSON with the keys "name" and "age". Tom is 31 years old.',
    "What is mini-infer?",
    "Who won the football match last night?",
]


def main() -> None:
    llm = LLM()
    info = llm.info
    print(f"{info.architecture} on {info.device} ({info.dtype}), {info.num_blocks} KV blocks of {info.block_size} "
          "tokens\n")
    conversations = [[{"role": "user", "content": question}] for question in QUESTIONS]
    for question, out in zip(QUESTIONS, llm.chat(conversations, temperature=0.0, max_tokens=200)):
        print(f"\033[1m{question}\033[0m\n  {out.text.strip()}\n")

    batch = [{"role": "user", "content": "Tell me a short story about Leo, a dog and a garden."}]
    start, before = time.perf_counter(), llm.stats().generated_tokens
    llm.chat([batch] * 16, SamplingParams(temperature=0.8, max_tokens=128, ignore_eos=True), use_tqdm=False)
    tokens, seconds = llm.stats().generated_tokens - before, time.perf_counter() - start
    print(f"16 stories at once: {tokens} tokens in {seconds:.2f} s = {tokens / seconds:,.0f} tokens/s\n")

    print("Seconds to start:  " + ", ".join(f"{name} {value:.2f}" for name, value in info.startup_seconds.items()))
    print("Memory ledger:")
    for name, size in llm.memory_ledger().items():
        print(f"  {name:<12}{size / 1e6:>10,.1f} MB")
    stats = llm.stats()
    print(f"Blocks: {stats.used_blocks} used, {stats.cached_blocks} cached, {stats.free_blocks} free "
          f"of {stats.total_blocks}; {stats.cached_tokens} prompt tokens came from the cache")


if __name__ == "__main__":
    main()
