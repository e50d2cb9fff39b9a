"""Many requests at once from Python: one batch, a set of sampling parameters for each, results in the order asked.

    .venv/bin/python examples/offline_batch.py [MODEL]
"""

from __future__ import annotations

import sys

from mini_infer import LLM, SamplingParams

QUESTIONS = ["What is 14 + 25?", "Which month comes after May?", "Tell me a short story about Mia, a cat and a river."]


def main(model: str | None) -> None:
    llm = LLM(model) if model else LLM()
    exact, free = SamplingParams(temperature=0.0, max_tokens=40), SamplingParams(temperature=0.8, seed=1, max_tokens=90)
    params = [exact, exact, free]

    conversations = [[{"role": "user", "content": question}] for question in QUESTIONS]
    for question, out in zip(QUESTIONS, llm.chat(conversations, params)):
        print(f"{question}\n  {out.text.strip()} [{out.finish_reason}, {len(out.token_ids)} tokens]")

    talk = [*conversations[2], {"role": "assistant", "content": out.text},
            {"role": "user", "content": "What is 5 + 6?"}]
    (out,) = llm.chat(talk, exact, use_tqdm=False)
    print(f"\nThe conversation goes on: {out.text.strip()} "
          f"[{out.num_cached_tokens} of {len(out.prompt_token_ids)} prompt tokens came from the prefix cache]")

    print("\nThree continuations of one prompt, each with the log-probability of its tokens:")
    (out,) = llm.generate("Once upon a time", n=3, temperature=1.0, seed=0, max_tokens=12, logprobs=0, use_tqdm=False)
    for completion in out.outputs:
        print(f"  {completion.cumulative_logprob:7.2f}  {completion.text!r}")

    stats = llm.stats()
    print(f"\n{stats.generated_tokens} tokens generated in {stats.steps} steps; "
          f"{stats.cached_blocks} of {stats.total_blocks} blocks hold text that a later prompt may share")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
