"""What running requests notice of long prompts that arrive: prompts cut into chunks against whole prompts first.

    python -m benchmarks.chunked_prefill [--model qwen2.5-7b]

Requests decode all the time; every so many of their tokens a long prompt arrives. With a budget of a few hundred tokens
a step, the prompt is computed in chunks beside the decoding; with a budget larger than any prompt, in one step that
everybody waits for, which is what prefill-first scheduling does. Inter-token latencies are the running requests'.
Then a mixed step against its parts, each alone: a chunk, and the decode rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

from benchmarks.common import Figure, write_result
from benchmarks.gpu import Stepper, device_of, engine_config, median_seconds, model_dir, parser
from mini_infer.bench.metrics import percentile
from mini_infer.bench.report import table

RUNNING_PROMPT = 128


def arrivals_while_decoding(stepper: Stepper, running: int, prompt_len: int, prompts: int,
                            every: int) -> dict[str, Any]:
    """Latencies in milliseconds: between tokens of the running requests, and to the first token of the prompts."""
    ids = set(stepper.decoding(running, RUNNING_PROMPT, stepper.info.max_model_len - RUNNING_PROMPT))
    last = dict.fromkeys(ids, perf_counter())
    gaps: list[float] = []
    first_tokens: list[float] = []
    sent: dict[int, float] = {}
    begin, made, steps = perf_counter(), 0, 0
    while len(first_tokens) < prompts:
        if made >= every * running * (len(sent) + 1) and len(sent) < prompts:
            sent[stepper.add(prompt_len, 1)] = perf_counter()
        outs = stepper.step()
        now = perf_counter()
        steps += 1
        for out in outs:
            if out.request_id in sent:
                first_tokens.append(1e3 * (now - sent[out.request_id]))
            elif out.request_id in ids and out.token_ids:
                gaps.append(1e3 * (now - last[out.request_id]))
                last[out.request_id] = now
                made += len(out.token_ids)
    seconds = perf_counter() - begin
    stepper.stop(list(ids))
    gaps, first_tokens = sorted(gaps), sorted(first_tokens)
    return {"median_itl_ms": round(percentile(gaps, 50), 2), "p99_itl_ms": round(percentile(gaps, 99), 2),
            "max_itl_ms": round(gaps[-1], 2), "median_ttft_ms": round(percentile(first_tokens, 50), 1),
            "output_tokens_per_s": round(made / seconds), "steps": steps}


def parts_of_a_mixed_step(stepper: Stepper, running: int, chunk: int, repeats: int) -> dict[str, float]:
    """Milliseconds of a step of `chunk` prompt tokens, of one of `running` decode rows, and of both in one; host
    included, at depth 1."""
    def prompt() -> None:
        stepper.add(chunk, 1)
        stepper.step()

    alone = median_seconds(prompt, repeats)
    ids = stepper.decoding(running, RUNNING_PROMPT, stepper.info.max_model_len - RUNNING_PROMPT)
    decode = median_seconds(stepper.step, repeats)
    mixed = median_seconds(prompt, repeats)
    stepper.stop(ids)
    return {"chunk_ms": round(1e3 * alone, 3), "decode_ms": round(1e3 * decode, 3), "mixed_ms": round(1e3 * mixed, 3),
            "mixed_over_parts": round(mixed / (alone + decode), 3)}


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__, model="qwen2.5-7b")
    options.add_argument("--running", type=int, default=64)
    options.add_argument("--prompt-len", type=int, default=8192)
    options.add_argument("--prompts", type=int, default=8)
    options.add_argument("--every", type=int, default=40, help="tokens of each running request between two prompts")
    options.add_argument("--budgets", type=int, nargs="+", default=[576, 2048, 16384],
                         help="max_num_batched_tokens; the last one must hold a whole prompt")
    args = options.parse_args(argv)
    if args.quick:
        args.running, args.prompt_len, args.prompts, args.every, args.budgets = 4, 256, 2, 4, [36, 1024]
    device = device_of(args.quick)
    rows = []
    for budget in args.budgets:
        stepper = Stepper(engine_config(args.model, device, max_num_batched_tokens=budget, max_num_mixed_tokens=budget,
                                        max_model_len=512 if args.quick else 16384, max_num_seqs=args.running + 8))
        stepper.stop(stepper.decoding(1, args.prompt_len, 2))  # warm-up
        rows.append({"max_num_batched_tokens": budget, "whole_prompts": budget > args.prompt_len + args.running,
                     **arrivals_while_decoding(stepper, args.running, args.prompt_len, args.prompts, args.every)})
        del stepper
    chunk = args.budgets[0] - args.running
    stepper = Stepper(engine_config(args.model, device, max_model_len=512 if args.quick else 2048,
                                    max_num_mixed_tokens=args.budgets[0], max_num_seqs=args.running + 8,
                                    pipeline_depth=1))
    parts = parts_of_a_mixed_step(stepper, args.running, chunk, 3 if args.quick else 15)

    print(f"{args.running} running requests; {args.prompts} prompts of {args.prompt_len:,} tokens arrive")
    print(table(("budget", "median ITL", "P99 ITL", "max ITL", "median TTFT", "output tok/s"),
                [(row["max_num_batched_tokens"], row["median_itl_ms"], row["p99_itl_ms"], row["max_itl_ms"],
                  row["median_ttft_ms"], row["output_tokens_per_s"]) for row in rows]))
    print(f"a step of {chunk} prompt tokens {parts['chunk_ms']} ms, of {args.running} decode rows "
          f"{parts['decode_ms']} ms, of both {parts['mixed_ms']} ms")
    figures = [Figure(f"P99 inter-token latency, whole prompts first over chunks of {chunk}",
                      round(rows[-1]["p99_itl_ms"] / rows[0]["p99_itl_ms"], 1), "×", 2),
               Figure("a mixed step over the sum of its parts", parts["mixed_over_parts"], "×", 1, at_least=False)]
    print(*figures, sep="\n")
    path = write_result("chunked_prefill", {
        "figures": [figure.record() for figure in figures], "rows": rows, "parts": parts, "chunk": chunk,
        "running": args.running, "prompt_len": args.prompt_len, "prompts": args.prompts,
        "model": model_dir(args.model, device).rpartition("/")[2]}, args.out)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
