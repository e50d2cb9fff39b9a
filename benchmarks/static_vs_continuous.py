"""Continuous against static batching in the same engine, on requests that want answers of mixed lengths.

Continuous: all requests are submitted, and each takes a place in the batch as soon as one is free. Static:
`max_num_seqs` are submitted together, and the next ones only when all of these are done. It comes in two forms: as a
padded batch has it, the rows of finished requests are computed until the batch ends, and their surplus is thrown away;
or our engine drops these rows at once, which no padded batch can.
Run it with `python -m benchmarks.static_vs_continuous`.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.common import RESULTS, Figure, spread, time_in_turn, write_result
from mini_infer import LLM, SamplingParams
from mini_infer.config import BUNDLED_MODEL_DIR

CONTINUOUS, STATIC, DROPPING = "continuous", "static", "static, dropping finished rows"
Request = tuple[list[int], int]  # prompt, number of output tokens


def mixed_load(count: int, prompt_len: int, output_lens: tuple[int, int], vocab_size: int,
               rng: random.Random) -> list[Request]:
    """Prompts of random tokens; output lengths log-uniform between bounds, as stratified draws in random order.

    (The i-th of n quantiles each: every load of n requests asks for the same number of tokens.)
    """
    low, high = map(math.log, output_lens)
    lengths = [round(math.exp(low + (high - low) * (i + 0.5) / count)) for i in range(count)]
    rng.shuffle(lengths)
    return [(rng.choices(range(vocab_size), k=prompt_len), length) for length in lengths]


class Sides:
    """The ways to serve a load; each counts the steps of the engine that it took."""

    def __init__(self, llm: LLM):
        self._llm = llm
        self._batch = llm.info.max_num_seqs
        self.steps: dict[str, int] = {}

    def continuous(self, load: list[Request]) -> None:
        self._serve(CONTINUOUS, [load])

    def static(self, load: list[Request]) -> None:
        self._serve(STATIC, [[(prompt, max(length for _, length in batch)) for prompt, _ in batch]
                             for batch in self._batches(load)])

    def static_dropping(self, load: list[Request]) -> None:
        self._serve(DROPPING, self._batches(load))

    def _batches(self, load: list[Request]) -> list[list[Request]]:
        return [load[i : i + self._batch] for i in range(0, len(load), self._batch)]

    def _serve(self, name: str, submissions: list[list[Request]]) -> None:
        before = self._llm.stats().steps
        for requests in submissions:
            params = [SamplingParams(temperature=0, max_tokens=length, ignore_eos=True, detokenize=False)
                      for _, length in requests]
            outputs = self._llm.generate([prompt for prompt, _ in requests], params, use_tqdm=False)
            assert [len(output.token_ids) for output in outputs] == [length for _, length in requests]
        self.steps[name] = self._llm.stats().steps - before


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(BUNDLED_MODEL_DIR))
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--max-num-seqs", type=int, default=16)
    parser.add_argument("--prompt-len", type=int, default=16)
    parser.add_argument("--output-lens", type=int, nargs=2, default=(8, 256), metavar=("SHORTEST", "LONGEST"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of the JSON file")
    args = parser.parse_args(argv)

    # Without the prefix cache: the sides serve the same prompts, one after the other.
    llm = LLM(model=args.model, device="cpu", skip_tokenizer_init=True, max_num_seqs=args.max_num_seqs,
              enable_prefix_caching=False)
    load = mixed_load(args.requests, args.prompt_len, tuple(args.output_lens), llm.info.vocab_size, random.Random(0))
    sides = Sides(llm)
    runs = {CONTINUOUS: sides.continuous, STATIC: sides.static, DROPPING: sides.static_dropping}
    sides.continuous(load[:2])  # warm-up
    seconds = time_in_turn({name: lambda _, run=run: run(load) for name, run in runs.items()}, args.repeats, "repeats")

    tokens = sum(length for _, length in load)
    rows = [{"side": name, "seconds": spread(samples), "steps": sides.steps[name],
             "tokens_per_step": round(tokens / sides.steps[name], 2),
             "tokens_per_second": round(tokens / spread(samples)["median"], 1)} for name, samples in seconds.items()]
    median = {row["side"]: row["seconds"]["median"] for row in rows}
    figures = [Figure(f"continuous against {name} batching", round(median[side] / median[CONTINUOUS], 2), "×", 2)
               for name, side in (("static", STATIC), ("row-dropping static", DROPPING))]

    print(f"{args.requests} requests, {args.prompt_len} tokens in, {args.output_lens[0]} to {args.output_lens[1]} out "
          f"(log-uniform, {tokens} in all), {args.max_num_seqs} at a time")
    print(f"{'side':<31} {'seconds':>8} {'min':>8} {'max':>8} {'tokens/s':>9} {'steps':>6} {'tokens/step':>12}")
    for row in rows:
        times = row["seconds"]
        print(f"{row['side']:<31} {times['median']:>8.3f} {times['min']:>8.3f} {times['max']:>8.3f} "
              f"{row['tokens_per_second']:>9.0f} {row['steps']:>6} {row['tokens_per_step']:>12.2f}")
    print(*figures, sep="\n")
    path = write_result("static_vs_continuous", {
        "figures": [figure.record() for figure in figures], "rows": rows,
        "requests": args.requests, "max_num_seqs": args.max_num_seqs, "prompt_len": args.prompt_len,
        "output_lens": args.output_lens, "distribution": "log-uniform", "output_tokens": tokens,
        "threads": torch.get_num_threads(), "dtype": llm.info.dtype, "repeats": args.repeats}, args.out)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
