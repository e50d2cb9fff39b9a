"""What a server does when more is asked of it than it can do: its goodput, and how fast it says no.

A dry run (a 7B model on the simulated GPU) first gets more than it can do: what it answers in a second is its capacity.
Then requests come at random times, at multiples of the capacity, whatever has become of those before. Goodput is the
tokens of the requests that were answered in full and in time, a second; in time means within `--patience` times what a
request takes when the batch is full. The last row has no limit to the queue, for comparison.

Run it with `python -m benchmarks.overload` (`--help` for the knobs) on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common import RESULTS, Figure, write_result
from benchmarks.served import SEVEN_B, DryServer, conditions, write_model
from benchmarks.wire import Answer, in_own_process, open_load, stream_load

WARM_UP = 0.2  # of the time of each load
MULTIPLES = (0.5, 1.0, 2.0, 3.0)
SHARE = 0.9  # of the peak, at the highest multiple
REFUSAL_MS = 50.0


def body(prompt_len: int, max_tokens: int) -> dict[str, Any]:
    return {"prompt": [100 + i % 3000 for i in range(prompt_len)], "max_tokens": max_tokens, "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True}}


def percentile(values: Sequence[float], share: float) -> float | None:
    """None of no values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def per_second(answers: Sequence[Answer], seconds: float, deadline: float) -> float:
    """Tokens a second of the requests answered within `deadline`, once the batch has filled and while requests come."""
    tokens = sum(answer.tokens for answer in answers if answer.status == 200 and answer.last_byte <= deadline
                 and WARM_UP * seconds < answer.due + answer.last_byte <= seconds)
    return tokens / ((1 - WARM_UP) * seconds)


def summary(answers: Sequence[Answer], seconds: float, deadline: float) -> dict[str, Any]:
    served = [answer for answer in answers if answer.status == 200]
    refused = [1e3 * answer.first_byte for answer in answers if answer.status == 429]
    in_time = sum(answer.last_byte <= deadline for answer in served)
    rounded = {name: None if value is None else round(value, 2) for name, value in (
        ("refusal_p50_ms", percentile(refused, 0.5)), ("refusal_p99_ms", percentile(refused, 0.99)),
        ("refusal_max_ms", max(refused, default=None)),
        ("latency_p50_s", percentile([answer.last_byte for answer in served], 0.5)),
        ("latency_p99_s", percentile([answer.last_byte for answer in served], 0.99)))}
    return {"asked": len(answers), "answered": len(served), "in_time": in_time, "refused": len(refused),
            "other": len(answers) - len(served) - len(refused),
            "goodput": round(per_second(answers, seconds, deadline)), **rounded}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", default="A100")
    parser.add_argument("--max-num-seqs", type=int, default=48)
    parser.add_argument("--max-queue", type=int, default=48)
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--patience", type=float, default=3.0, help="times a request's latency in a full batch")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a look, of half a minute")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    if args.quick:
        args.seconds = 4.0
    settings = {**vars(args), "out": None, **conditions()}
    request = body(args.prompt_len, args.max_tokens)
    cases = [(multiple, args.max_queue) for multiple in MULTIPLES] + [(MULTIPLES[-1], 1_000_000)]
    with tempfile.TemporaryDirectory() as directory, tqdm(total=1 + len(cases), desc="overload") as bar:
        options = [write_model(Path(directory) / "7b", **SEVEN_B), "--dry-gpu", args.gpu, "--max-num-seqs",
                   str(args.max_num_seqs), "--no-enable-prefix-caching"]
        with DryServer(*options, "--max-queue", str(args.max_queue)) as server:
            together = in_own_process(stream_load, server.port, [request] * args.max_num_seqs, 2)
            enough = 3 * args.max_num_seqs / (together.seconds / 2)  # requests a second
            answers = in_own_process(open_load, server.port, request, enough, args.seconds, args.seed)
        tokens = per_second(answers, args.seconds, float("inf"))
        capacity = tokens / args.max_tokens  # requests a second
        deadline = args.patience * args.max_num_seqs / capacity
        bar.update()
        rows = []
        for multiple, max_queue in cases:
            bar.set_postfix_str(f"{multiple} x capacity")
            with DryServer(*options, "--max-queue", str(max_queue)) as server:
                answers = in_own_process(open_load, server.port, request, multiple * capacity, args.seconds, args.seed)
            rows.append({"load": multiple, "max_queue": max_queue, **summary(answers, args.seconds, deadline)})
            bar.update()
    limited = rows[: len(MULTIPLES)]
    peak = max(row["goodput"] for row in limited)
    share = round(limited[-1]["goodput"] / peak, 3)
    figures = [Figure(f"goodput at {MULTIPLES[-1]:g}x capacity, share of the peak", share, "", SHARE),
               Figure("a refused request is answered, p99", limited[-1]["refusal_p99_ms"] or 0.0, " ms", REFUSAL_MS,
                      at_least=False)]
    print(f"capacity {capacity:.1f} requests/s, {tokens:.0f} tokens/s; in time: {deadline:.2f} s")
    for row in rows:
        print(row)
    for figure in figures:
        print(figure)
    path = write_result("overload", {"settings": settings, "capacity_requests_per_second": round(capacity, 2),
                                     "deadline_s": round(deadline, 3), "rows": rows,
                                     "figures": [figure.record() for figure in figures]}, args.out)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
