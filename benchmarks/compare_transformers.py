"""Against transformers' `generate`: the same checkpoint, requests, dtype and numbers of threads, on a CPU.

Each side serves all requests at once (transformers: as one batch) and one after the other, with one thread and with as
many as there are cores. Every request gets exactly the same number of tokens, greedily. Prompts are random and new in
every repeat, so nothing comes from the prefix cache. Run it with `python -m benchmarks.compare_transformers`.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from benchmarks.common import RESULTS, Figure, machine, spread, time_in_turn, write_result
from mini_infer import LLM, SamplingParams
from mini_infer.config import BUNDLED_MODEL_DIR

Prompts = list[list[int]]
OURS_AT_ONCE, OURS_SINGLY = "mini-infer, all at once", "mini-infer, one by one"
THEIRS_AT_ONCE, THEIRS_SINGLY = "transformers, one batch", "transformers, one by one"


class MiniInfer:
    """Our side."""

    def __init__(self, model: str, output_len: int):
        self._llm = LLM(model=model, device="cpu", skip_tokenizer_init=True)
        self._params = SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True, detokenize=False)
        self.dtype = self._llm.info.dtype

    def generate(self, prompts: Prompts) -> None:
        outputs = self._llm.generate(prompts, self._params, use_tqdm=False)
        assert all(len(output.token_ids) == self._params.max_tokens for output in outputs)
        assert not any(output.num_cached_tokens for output in outputs), "a prompt was in the prefix cache"


class Transformers:
    """Their side, as it comes: its own choice of attention, a dynamic KV cache."""

    def __init__(self, model: str, output_len: int):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype="auto").eval()
        # No end-of-sequence: cheaper for it than forbidding the token at every step.
        self._model.generation_config.eos_token_id = None
        self._output_len = output_len
        self.dtype = str(self._model.dtype).removeprefix("torch.")
        self.vocab_size: int = self._model.config.vocab_size

    @torch.inference_mode()
    def generate(self, prompts: Prompts) -> None:
        input_ids = torch.tensor(prompts)
        output = self._model.generate(input_ids, attention_mask=torch.ones_like(input_ids), do_sample=False,
                                      max_new_tokens=self._output_len, pad_token_id=0)
        assert output.shape[1] == input_ids.shape[1] + self._output_len


def singly(generate: Callable[[Prompts], None]) -> Callable[[Prompts], None]:
    """`generate`, called with one prompt after the other."""
    def run(prompts: Prompts) -> None:
        for prompt in prompts:
            generate([prompt])
    return run


def measure(sides: dict[str, Callable[[Prompts], None]], prompts_of: Callable[[], Prompts], repeats: int,
            threads: int) -> dict[str, list[float]]:
    """Seconds of each side in each repeat, after a short warm-up."""
    torch.set_num_threads(threads)
    for run in sides.values():
        run(prompts_of()[:2])
    timed = {name: lambda _, run=run: run(prompts_of()) for name, run in sides.items()}
    return time_in_turn(timed, repeats, f"{threads} thread{'s' * (threads > 1)}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(BUNDLED_MODEL_DIR))
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, machine()["cores"]}))
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of the JSON file")
    args = parser.parse_args(argv)

    ours, theirs = MiniInfer(args.model, args.output_len), Transformers(args.model, args.output_len)
    assert ours.dtype == theirs.dtype
    rng = random.Random(0)

    def prompts_of() -> Prompts:
        return [rng.choices(range(theirs.vocab_size), k=args.input_len) for _ in range(args.requests)]

    sides = {OURS_AT_ONCE: ours.generate, THEIRS_AT_ONCE: theirs.generate,
             OURS_SINGLY: singly(ours.generate), THEIRS_SINGLY: singly(theirs.generate)}
    seconds = {threads: measure(sides, prompts_of, args.repeats, threads) for threads in args.threads}

    tokens = args.requests * args.output_len
    rows = [{"side": side, "threads": threads, "seconds": spread(samples),
             "tokens_per_second": round(tokens / statistics.median(samples), 1)}
            for side in sides for threads in args.threads for samples in [seconds[threads][side]]]
    best = {side: min((row for row in rows if row["side"] == side), key=lambda row: row["seconds"]["median"])
            for side in sides}

    def speedup(ours: str, theirs: str) -> float:
        return round(best[theirs]["seconds"]["median"] / best[ours]["seconds"]["median"], 2)

    at_once = f"{args.requests} requests at once, against transformers"
    figures = [Figure(f"{at_once} one by one", speedup(OURS_AT_ONCE, THEIRS_SINGLY), "×", 8),
               Figure(f"{at_once} in one batch", speedup(OURS_AT_ONCE, THEIRS_AT_ONCE), "×", 2.5),
               Figure("one request at a time, against transformers", speedup(OURS_SINGLY, THEIRS_SINGLY), "×", 2)]
    print(f"{args.requests} requests, {args.input_len} tokens in, {args.output_len} out, {ours.dtype}")
    print(f"{'side':<26} {'threads':>7} {'seconds':>9} {'min':>8} {'max':>8} {'tokens/s':>9}")
    for row in rows:
        times = row["seconds"]
        print(f"{row['side']:<26} {row['threads']:>7} {times['median']:>9.3f} {times['min']:>8.3f} "
              f"{times['max']:>8.3f} {row['tokens_per_second']:>9.0f}{'  best' * (row is best[row['side']])}")
    print(*figures, sep="\n")
    path = write_result("compare_transformers", {
        "figures": [figure.record() for figure in figures], "rows": rows,
        "best_threads": {side: row["threads"] for side, row in best.items()}, "dtype": ours.dtype,
        "requests": args.requests, "input_len": args.input_len, "output_len": args.output_len,
        "repeats": args.repeats}, args.out)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
