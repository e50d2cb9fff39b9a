"""Time to the first token of a prompt whose beginning is in the prefix cache, against one that is new.

Each repeat draws a new prefix and asks twice, with another short ending each time: the first request misses, the second
finds the prefix. Run it with `python -m benchmarks.prefix_cache`.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.common import RESULTS, Figure, spread, time_in_turn, write_result
from mini_infer import LLM, SamplingParams
from mini_infer.config import BUNDLED_MODEL_DIR

ENDING_LEN = 24
ONE_TOKEN = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False)


def measure(llm: LLM, prefix_len: int, repeats: int) -> dict[str, object]:
    """A row of the table."""
    rng = random.Random(prefix_len)

    def tokens(count: int) -> list[int]:
        return rng.choices(range(llm.info.vocab_size), k=count)

    prefixes = [tokens(prefix_len) for _ in range(repeats)]
    whole_blocks = prefix_len // llm.info.block_size * llm.info.block_size

    def first_token(repeat: int, cached: int) -> None:
        (output,) = llm.generate([prefixes[repeat] + tokens(ENDING_LEN)], ONE_TOKEN, use_tqdm=False)
        assert output.num_cached_tokens == cached, f"{output.num_cached_tokens} tokens came from the cache"

    llm.generate([tokens(prefix_len + ENDING_LEN)], ONE_TOKEN, use_tqdm=False)  # warm-up
    seconds = time_in_turn({"miss": lambda repeat: first_token(repeat, 0),
                            "hit": lambda repeat: first_token(repeat, whole_blocks)}, repeats, f"prefix {prefix_len}")
    miss, hit = (spread([1e3 * sample for sample in seconds[side]], digits=2) for side in ("miss", "hit"))
    return {"prefix_len": prefix_len, "cached_tokens": whole_blocks, "miss_ms": miss, "hit_ms": hit,
            "hit_over_miss": round(hit["median"] / miss["median"], 3)}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(BUNDLED_MODEL_DIR))
    parser.add_argument("--prefix-lens", type=int, nargs="+", default=[250, 500, 1000, 2000],
                        help="lengths of the shared prefix in tokens")
    parser.add_argument("--figure-len", type=int, default=1000, help="the length that the figure is about")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of the JSON file")
    args = parser.parse_args(argv)
    if args.figure_len not in args.prefix_lens:
        parser.error(f"--figure-len {args.figure_len} is not among --prefix-lens")

    llm = LLM(model=args.model, device="cpu", skip_tokenizer_init=True)
    rows = [measure(llm, prefix_len, args.repeats) for prefix_len in args.prefix_lens]
    (ratio,) = (row["hit_over_miss"] for row in rows if row["prefix_len"] == args.figure_len)
    figure = Figure(f"first token after a {args.figure_len:,}-token prefix, hit over miss", ratio, "×", 0.3,
                    at_least=False)

    print(f"milliseconds to the first token, prefix + {ENDING_LEN} tokens")
    print(f"{'prefix':>7} {'from cache':>11} {'miss':>8} {'hit':>8} {'hit/miss':>9}")
    for row in rows:
        print(f"{row['prefix_len']:>7} {row['cached_tokens']:>11} {row['miss_ms']['median']:>8.2f} "
              f"{row['hit_ms']['median']:>8.2f} {row['hit_over_miss']:>9.3f}")
    print(figure)
    path = write_result("prefix_cache", {
        "figures": [figure.record()], "rows": rows, "ending_len": ENDING_LEN, "block_size": llm.info.block_size,
        "threads": torch.get_num_threads(), "dtype": llm.info.dtype, "repeats": args.repeats}, args.out)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
