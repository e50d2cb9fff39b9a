"""Decode attention: keys split over programs (Flash-Decoding) against one program for each sequence and KV head.

    python -m benchmarks.flash_decoding

Needs a GPU. 32 query heads, 8 KV heads of 128, bf16, blocks anywhere in the pool. The split side is what decode steps
run, from the QKV matmul's result on. The unsplit side is Triton's kernel for prompt chunks, which gives each sequence's
KV head one program. TB/s are bytes of keys and values over time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from benchmarks.common import Figure, write_result
from benchmarks.gpu import device_of, parser
from mini_infer.bench.gpu_time import ceilings, copies_for, graph_time
from mini_infer.bench.kernels import attend, paged_inputs
from mini_infer.bench.report import table
from mini_infer.config import RopeConfig
from mini_infer.ops.qkv_attention import qkv_attention
from mini_infer.ops.rope import cos_sin_table

HEADS, KV_HEADS, DIM = 32, 8, 128


@dataclass(frozen=True)
class Work:
    """The context lengths of a batch."""

    name: str
    lengths: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return 4 * sum(self.lengths) * KV_HEADS * DIM


EVEN = ((1, (1024, 8192, 32768)), (8, (1024, 8192, 32768)), (64, (1024, 8192)), (256, (1024, 4096)))
WORKS = [Work(f"{batch} × {length:,}", (length,) * batch) for batch, lengths in EVEN for length in lengths]
WORKS += [Work("1 × 32,768 beside 255 × 500", (32768,) + (500,) * 255),
          Work("8 × 16,384 beside 56 × 256", (16384,) * 8 + (256,) * 56)]


def measure(work: Work) -> dict[str, object]:
    inputs = [paged_inputs(work.lengths, 1, HEADS, KV_HEADS, DIM) for _ in range(min(16, copies_for(work.num_bytes)))]
    unsplit = [(*rest, replace(batch, max_query_len=2, num_decodes=0)) for *rest, batch in inputs]
    q = inputs[0][0]
    qkv = torch.randn(len(q), (HEADS + 2 * KV_HEADS) * DIM, dtype=q.dtype, device=q.device)
    rope_table = cos_sin_table(RopeConfig(), DIM, max(work.lengths), q.device)

    def split(i: int) -> torch.Tensor:
        _, k_cache, v_cache, batch = inputs[i]
        return qkv_attention(qkv, HEADS, KV_HEADS, DIM, batch, rope_table, k_cache, v_cache, DIM**-0.5, None)

    seconds = {"split": graph_time(split, len(inputs)),
               "unsplit": graph_time(lambda i: attend(*unsplit[i]), len(inputs))}
    torch.testing.assert_close(attend(*inputs[0]), attend(*unsplit[0]), atol=2e-2, rtol=2e-2)
    row: dict[str, object] = {"work": work.name, "mbytes": round(work.num_bytes / 1e6, 1)}
    for side, time in seconds.items():
        row |= {f"{side}_us": round(1e6 * time, 2), f"{side}_tb_per_s": round(work.num_bytes / time / 1e12, 3)}
    return row


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> None:
    args = parser(__doc__).parse_args(argv)
    device_of(quick=False)
    copy = ceilings().bytes_per_s / 1e12
    rows = [measure(work) for work in (WORKS[:2] if args.quick else WORKS)]
    print(f"a copy moves {copy:.2f} TB/s")
    print(table(("contexts", "split, us", "TB/s", "one program a head, us", "TB/s"),
                [(row["work"], row["split_us"], row["split_tb_per_s"], row["unsplit_us"], row["unsplit_tb_per_s"])
                 for row in rows]))
    by_name = {row["work"]: row for row in rows}
    figures = [Figure(f"decode attention, {name}, of a copy's bandwidth",
                      round(100 * by_name[name]["split_tb_per_s"] / copy, 1), " %", wanted)
               for name, wanted in (("8 × 8,192", 90), ("64 × 8,192", 100)) if name in by_name]
    skewed = by_name.get(WORKS[-2].name)
    if skewed is not None:
        figures.append(Figure("one context of 32k beside 255 of 500: unsplit over split",
                              round(skewed["unsplit_us"] / skewed["split_us"], 1), "×", 2))
    print(*figures, sep="\n")
    path = write_result("flash_decoding", {"figures": [figure.record() for figure in figures], "rows": rows,
                                           "copy_tb_per_s": round(copy, 3)}, args.out)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
