"""Tables and charts of the benchmarks that need a GPU; benchmarks/charts.py puts them where they belong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.drawing import DARK, OTHER, OURS, PALE, STACK, bars, lines, markdown, stacked, title

Result = dict[str, Any]  # the content of one JSON file


def _optional(value: float | None, form: str = ".1f") -> str:
    return "" if value is None else format(value, form)


def _kernels_table(result: Result) -> str:
    return markdown(("kernel", "size", "ours, µs", "eager, µs", "torch.compile, µs", "floor, µs", "eager / ours",
                     "floor / ours"),
                    [(row["kernel"], row["size"], f"{row['ours_us']:.1f}", f"{row['eager_us']:.1f}",
                      _optional(row["compiled_us"]), f"{row['floor_us']:.1f}",
                      f"{row['eager_us'] / row['ours_us']:.1f}×", f"{row['floor_us'] / row['ours_us']:.0%}")
                     for row in result["rows"]])


def _draw_kernels(axes: Any, result: Result) -> None:
    largest = {row["kernel"]: row for row in result["rows"]}  # the last size of each
    rows = list(largest.values())
    axes.figure.set_figheight(4.2)
    bars(axes, [f"{row['kernel']}\n{row['size']}" for row in rows], [row["eager_us"] / row["ours_us"] for row in rows],
         [f"{row['eager_us'] / row['ours_us']:.1f}×, {row['floor_us'] / row['ours_us']:.0%} of the floor's speed"
          for row in rows], [OURS] * len(rows))
    axes.set_xlim(0, 1.5 * axes.get_xlim()[1])
    title(axes, f"Kernels on {result['gpu']}, the largest size of each")
    axes.set_xlabel("times as fast as eager torch in a CUDA graph")


def _decoding_table(result: Result) -> str:
    return markdown(("contexts", "KV, MB", "split, µs", "TB/s", "one program a head, µs", "TB/s"),
                    [(row["work"], row["mbytes"], row["split_us"], row["split_tb_per_s"], row["unsplit_us"],
                      row["unsplit_tb_per_s"]) for row in result["rows"]])


def _draw_decoding(axes: Any, result: Result) -> None:
    axes.figure.set_figheight(6.0)
    labels, values, colors = [], [], []
    for row in result["rows"]:
        labels += [row["work"], ""]
        values += [row["split_tb_per_s"], row["unsplit_tb_per_s"]]
        colors += [OURS, OTHER]
    bars(axes, labels, values, [f"{value:.2f}" for value in values], colors)
    axes.axvline(result["copy_tb_per_s"], color=DARK, linewidth=1, linestyle="--")
    axes.barh(0, 0, color=OURS, label="keys split over programs")
    axes.barh(0, 0, color=OTHER, label="one program a sequence and head")
    axes.figure.legend(loc="outside lower center", ncols=2)
    title(axes, "Decode attention (dashed: a copy)")
    axes.set_xlabel("TB/s of keys and values")


def _graphs_table(result: Result) -> str:
    return markdown(("batch", "graphs, ms a step", "eager, ms a step", "eager / graphs"),
                    [(row["batch"], row["graphs_ms"], row["eager_ms"], f"{row['eager_over_graphs']}×")
                     for row in result["rows"]])


def _draw_graphs(axes: Any, result: Result) -> None:
    rows = result["rows"]
    lines(axes, [row["batch"] for row in rows], {"one CUDA graph a step": [row["graphs_ms"] for row in rows],
                                                 "launched kernel by kernel": [row["eager_ms"] for row in rows]})
    title(axes, f"A decode step of {result['model']}")
    axes.set_xlabel("batch")
    axes.set_ylabel("milliseconds")


def _idle_table(result: Result) -> str:
    return markdown(("batch", "ms a step", "idle between steps", "idle in all", "kernels and copies a step"),
                    [(row["batch"], row["step_ms"], f"{row['idle_between_steps']:.1%}", f"{row['idle']:.1%}",
                      row["activities_a_step"]) for row in result["rows"]])


def _draw_idle(axes: Any, result: Result) -> None:
    rows = result["rows"]
    bars(axes, [f"batch {row['batch']}" for row in rows], [100 * row["idle_between_steps"] for row in rows],
         [f"{row['idle_between_steps']:.1%} of a step of {row['step_ms']:.2f} ms" for row in rows], [OURS] * len(rows))
    axes.set_xlim(0, max(5.0, 1.6 * axes.get_xlim()[1]))
    title(axes, f"GPU idle between decode steps, {result['model']} (profiled)")
    axes.set_xlabel("% of the time")


def _chunked_table(result: Result) -> str:
    table = markdown(("tokens a step", "median ITL, ms", "P99 ITL, ms", "max ITL, ms", "median TTFT, ms",
                      "output tokens/s"),
                     [(f"{row['max_num_batched_tokens']:,}", row["median_itl_ms"], row["p99_itl_ms"],
                       row["max_itl_ms"], row["median_ttft_ms"], f"{row['output_tokens_per_s']:,}")
                      for row in result["rows"]])
    parts = result["parts"]
    return table + "\n\n" + markdown(
        (f"{result['chunk']} prompt tokens, ms", f"{result['running']} decode rows, ms", "both in a step, ms",
         "over the sum"), [(parts["chunk_ms"], parts["decode_ms"], parts["mixed_ms"], parts["mixed_over_parts"])])


def _draw_chunked(axes: Any, result: Result) -> None:
    rows = result["rows"]
    bars(axes, [f"{'whole prompts' if row['whole_prompts'] else 'chunks'}\n{row['max_num_batched_tokens']:,} a step"
                for row in rows], [row["p99_itl_ms"] for row in rows],
         [f"{row['p99_itl_ms']:.0f} ms  (prompt's first token after {row['median_ttft_ms']:.0f} ms)" for row in rows],
         [OTHER if row["whole_prompts"] else OURS for row in rows])
    axes.set_xlim(0, 1.5 * axes.get_xlim()[1])
    title(axes, f"{result['running']} running requests while prompts of {result['prompt_len']:,} tokens arrive, "
                f"{result['model']}")
    axes.set_xlabel("P99 inter-token latency of the running requests, milliseconds")


def _startup_table(result: Result) -> str:
    names = list(dict.fromkeys(name for row in result["rows"] for name in row["phases"]))
    return markdown(("model", "kernel cache", *names, "total, s"),
                    [(row["model"], row["cache"], *(f"{row['phases'].get(name, 0.0):.2f}" for name in names),
                      f"{row['total']:.2f}") for row in result["rows"]])


def _draw_startup(axes: Any, result: Result) -> None:
    rows = result["rows"]
    stacked(axes, [f"{row['model']}\n{row['cache']} cache" for row in rows], [row["phases"] for row in rows],
            [f"{row['total']:.1f} s" for row in rows])
    title(axes, "From process start to the first token")
    axes.set_xlabel("seconds")


def _memory_table(result: Result) -> str:
    names = list(dict.fromkeys(name for row in result["rows"] for name in row["ledger_bytes"]))
    return markdown(("model", "asked", "idle", "under load", *(f"{name.replace('_', ' ')}, GB" for name in names),
                     "sum / driver"),
                    [(row["model"], f"{row['utilization']:.0%}", f"{row['idle']:.1%}", f"{row['loaded']:.1%}",
                      *(f"{row['ledger_bytes'].get(name, 0) / 1e9:.2f}" for name in names),
                      f"{row['ledger_sum'] / row['total_bytes']:.2%}") for row in result["rows"]])


def _draw_memory(axes: Any, result: Result) -> None:
    rows = result["rows"]
    stacked(axes, [f"{row['model']}, {row['utilization']:.0%}" for row in rows],
            [{name.replace("_", " "): size / 1e9 for name, size in row["ledger_bytes"].items()} for row in rows],
            [f"{row['loaded']:.1%} under load" for row in rows])
    title(axes, "Where the GPU's memory goes")
    axes.set_xlabel("GB")


def _weights_table(result: Result) -> str:
    rates = result["gigabytes_per_s"]
    return markdown(("GB", "median, GB/s", "least", "most"),
                    [(result["gigabytes"], rates["median"], rates["min"], rates["max"])])


def _draw_weights(axes: Any, result: Result) -> None:
    rates = result["gigabytes_per_s"]
    bars(axes, ["wanted", "measured"], [4, rates["median"]], ["4", f"{rates['median']:.1f}"], [OTHER, OURS])
    title(axes, f"{result['gigabytes']} GB of weights from the page cache to the GPU")
    axes.set_xlabel("GB/s")


def _vllm_rows(result: Result) -> list[tuple[str, str, dict[str, Any]]]:
    """(model, what, {side: value}) of every figure that mini-infer has."""
    rows = []
    for model, sides in result["models"].items():
        ours = sides["mini-infer"]
        for key in (key for key in ours if key.startswith("offline_")):
            count = key.removeprefix("offline_").removesuffix("tok_s").strip("_")  # "" where it is the usual one
            what = f"offline, {int(count):,} requests" if count else "offline"
            rows.append((model, f"{what}, tokens/s", {side: found.get(key) for side, found in sides.items()}))
        for key, what in (("decode_ms", "decode b={}, ms"), ("prefill_s", "prefill {}, s")):
            rows += [(model, what.format(size), {side: found.get(key, {}).get(size) for side, found in sides.items()})
                     for size in ours[key]]
        rows.append((model, "cold start, s", {side: found.get("cold_s") for side, found in sides.items()}))
    return rows


def _vllm_table(result: Result) -> str:
    sides = list(dict.fromkeys(side for found in result["models"].values() for side in found))
    return markdown(("model", "work", *sides),
                    [(model, what, *(_optional(values.get(side), "g") for side in sides))
                     for model, what, values in _vllm_rows(result)])


def _draw_vllm(axes: Any, result: Result) -> None:
    found = [(f"{model}, {side}", values["offline_tok_s"], side) for model, sides in result["models"].items()
             for side, values in sides.items() if "offline_tok_s" in values]
    colors = {"mini-infer": OURS, "floor": PALE}
    axes.figure.set_figheight(1.2 + 0.36 * len(found))
    bars(axes, [label for label, _, _ in found], [value for _, value, _ in found],
         [f"{value:,.0f}" for _, value, _ in found], [colors.get(side, OTHER) for _, _, side in found])
    title(axes, "256 requests of 100 to 1,024 tokens in and out, one H200")
    axes.set_xlabel("output tokens per second")


def _swiglu_rows(result: Result) -> list[tuple[str, int, str, float, float]]:
    """(model, rows, tile, µs of cuBLAS and the gate, µs of the kernel) where the kernel is used."""
    return [(row["model"], row["rows"], row["chosen"], row["us"]["cublas and silu"][0], row["us"][row["chosen"]][0])
            for row in result["products"] if row["chosen"]]


def _swiglu_table(result: Result) -> str:
    return markdown(("model", "rows", "tile", "cuBLAS and the gate, µs", "one kernel, µs", "of the time"),
                    [(model, rows, tile, f"{base:.1f}", f"{ours:.1f}", f"{ours / base:.0%}")
                     for model, rows, tile, base, ours in _swiglu_rows(result)])


def _draw_swiglu(axes: Any, result: Result) -> None:
    series: dict[str, dict[int, float]] = {}
    for model, rows, _, base, ours in _swiglu_rows(result):
        series.setdefault(model, {})[rows] = 100 * ours / base
    for color, (model, points) in zip(STACK, series.items(), strict=False):
        axes.plot(list(points), list(points.values()), marker="o", color=color, label=model)
    sizes = sorted({rows for points in series.values() for rows in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(rows) for rows in sizes], rotation=60)
    axes.axhline(100, color=DARK, linewidth=1, linestyle="--")
    axes.figure.legend(loc="outside lower center", ncols=4)
    title(axes, "Gate and up as one kernel (dashed: cuBLAS and a kernel for the gate)")
    axes.set_xlabel("rows")
    axes.set_ylabel("% of the time")
    axes.grid(axis="y")


TABLES: dict[str, Callable[[Result], str]] = {
    "compare_vllm": _vllm_table, "kernels": _kernels_table, "flash_decoding": _decoding_table,
    "cuda_graphs": _graphs_table, "host_idle": _idle_table, "chunked_prefill": _chunked_table,
    "startup": _startup_table, "gpu_memory": _memory_table, "weights": _weights_table, "swiglu": _swiglu_table,
}
DRAWINGS: dict[str, Callable[[Any, Result], None]] = {
    "compare_vllm": _draw_vllm, "kernels": _draw_kernels, "flash_decoding": _draw_decoding,
    "cuda_graphs": _draw_graphs, "host_idle": _draw_idle, "chunked_prefill": _draw_chunked,
    "startup": _draw_startup, "gpu_memory": _draw_memory, "weights": _draw_weights, "swiglu": _draw_swiglu,
}
