"""A decode step as one CUDA graph against the same step launched kernel by kernel, over batch sizes.

    python -m benchmarks.cuda_graphs [--model qwen3-0.6b]

Needs a GPU. A step's time is (time for LONG new tokens - time for SHORT) / (LONG - SHORT), prompts of 128 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.common import Figure, write_result
from benchmarks.gpu import device_of, engine_config, median_seconds, model_dir, parser
from mini_infer import LLM, SamplingParams
from mini_infer.bench.report import table

BATCHES = (1, 8, 32, 64, 128, 256)
PROMPT_LEN, SHORT, LONG = 128, 16, 80


def step_ms(llm: LLM, batch: int, repeats: int) -> float:
    def seconds(tokens: int) -> float:
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        prompts = torch.randint(llm.info.vocab_size, (batch, PROMPT_LEN)).tolist()
        return median_seconds(lambda: llm.generate(prompts, params, use_tqdm=False), repeats)

    return 1e3 * (seconds(LONG) - seconds(SHORT)) / (LONG - SHORT)


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    options.add_argument("--repeats", type=int, default=3)
    args = options.parse_args(argv)
    device = device_of(args.quick)
    times: dict[str, list[float]] = {}
    for side, eager in (("graphs", False), ("eager", True)):
        llm = LLM(engine_config(args.model, device, enforce_eager=eager, max_model_len=2048,
                                max_num_seqs=max(args.batches)))
        times[side] = [step_ms(llm, batch, args.repeats) for batch in args.batches]
        del llm
    rows = [{"batch": batch, "graphs_ms": round(graphs, 3), "eager_ms": round(eager, 3),
             "eager_over_graphs": round(eager / graphs, 2) if graphs > 0 else None}
            for batch, graphs, eager in zip(args.batches, times["graphs"], times["eager"])]
    print(table(("ms a step", "graphs", "eager", "eager/graphs"), [tuple(row.values()) for row in rows]))
    figure = Figure(f"decode step at batch {args.batches[0]}, eager over graphs", rows[0]["eager_over_graphs"] or 0.0,
                    "×", 2)
    print(figure)
    path = write_result("cuda_graphs", {"figures": [figure.record()], "rows": rows, "repeats": args.repeats,
                                        "model": model_dir(args.model, device).rpartition("/")[2]}, args.out)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
