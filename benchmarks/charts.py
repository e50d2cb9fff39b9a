"""From the JSON files in benchmarks/results to charts in docs/charts and tables in the documentation.

`python -m benchmarks.charts` does both; `--docs` only writes the tables, for which it needs no matplotlib. A table
stands between `<!-- table: NAME -->` and `<!-- end -->`, so that no figure is ever typed by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import gpu_charts
from benchmarks.common import RESULTS, ROOT, Figure
from benchmarks.drawing import OTHER, OURS, PALE, bars, markdown, style, title

Result = dict[str, Any]  # the content of one JSON file
BENCHMARKS = ("compare_transformers", "static_vs_continuous", "memory_utilization", "prefix_cache", "host_cost",
              "many_requests", "client_capacity")
GPU_BENCHMARKS = tuple(gpu_charts.TABLES)
SERVER_BENCHMARKS = ("front_cost", "overload", "abort_storm", "storm")  # told by their figures alone
GROUPS = {"": BENCHMARKS, "gpu_": GPU_BENCHMARKS, "server_": SERVER_BENCHMARKS}  # by what their marks begin with
DOCS = (ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "zh" / "benchmarks.md")
CHARTS = ROOT / "docs" / "charts"
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def read_results(directory: Path) -> dict[str, Result]:
    """Those that are there, by name."""
    paths = {name: directory / f"{name}.json" for group in GROUPS.values() for name in group}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.is_file()}


def figures_of(result: Result) -> list[Figure]:
    """What a benchmark stands for."""
    if result["name"] == "host_cost":
        return [Figure("scheduling and update a step, 256 running requests", result["worst_256_ms"], " ms",
                       result["limit_ms"], at_least=False),
                Figure("the same with 4,096 requests queued instead of 64, change",
                       round(100 * abs(result["queued_4096_over_64"]), 1), " %", 10, at_least=False)]
    return [Figure(**{key: value for key, value in record.items() if key != "met"}) for record in result["figures"]]


# --------------------------------------------------------------------------------------------------------------- tables


def figures_table(results: dict[str, Result]) -> str:
    return markdown(
        ("figure", "measured", "wanted", "", "measured by"),
        [(figure.name, f"{figure.value:g}{figure.unit}", figure.wanted, "met" if figure.met else "**falls short**",
          f"`python -m benchmarks.{name}`") for name, result in results.items() for figure in figures_of(result)])


def machine_table(results: dict[str, Result]) -> str:
    def row(name: str, result: Result) -> tuple[str, ...]:
        machine = result["machine"]
        return (name, result["time"][:16].replace("T", " "), f"`{machine['commit']}`",
                f"{machine['cpu']}, {machine['cores']} cores, {machine['gpu'] or 'no GPU'}",
                f"Python {machine['python']}, torch {machine['torch']}")

    return markdown(("benchmark", "when (UTC)", "commit", "machine", "software"),
                    [row(name, result) for name, result in results.items()])


def _compare_table(result: Result) -> str:
    def best(row: dict[str, Any]) -> str:
        return "best" if row["threads"] == result["best_threads"][row["side"]] else ""

    return markdown(("side", "threads", "seconds", "least", "most", "tokens/s", ""),
                    [(row["side"], row["threads"], f"{row['seconds']['median']:.3f}", f"{row['seconds']['min']:.3f}",
                      f"{row['seconds']['max']:.3f}", f"{row['tokens_per_second']:.0f}", best(row))
                     for row in result["rows"]])


def _static_table(result: Result) -> str:
    return markdown(("batching", "seconds", "least", "most", "tokens/s", "steps", "useful tokens a step"),
                    [(row["side"], f"{row['seconds']['median']:.2f}", f"{row['seconds']['min']:.2f}",
                      f"{row['seconds']['max']:.2f}", f"{row['tokens_per_second']:.0f}", row["steps"],
                      f"{row['tokens_per_step']:.2f}") for row in result["rows"]])


def _memory_table(result: Result) -> str:
    return markdown(("KV held in", "utilisation", "5th percentile", "running at once", "steps", "preemptions"),
                    [(_held_in(row, result), f"{row['utilisation']:.1%}", f"{row['utilisation_p5']:.1%}",
                      f"{row['mean_running']:.0f}", row["steps"], row["preemptions"]) for row in result["rows"]])


def _prefix_table(result: Result) -> str:
    return markdown(("prefix", "from the cache", "miss, ms", "least–most", "hit, ms", "least–most", "hit / miss"),
                    [(f"{row['prefix_len']:,}", f"{row['cached_tokens']:,}", f"{row['miss_ms']['median']:.1f}",
                      f"{row['miss_ms']['min']:.1f}–{row['miss_ms']['max']:.1f}", f"{row['hit_ms']['median']:.1f}",
                      f"{row['hit_ms']['min']:.1f}–{row['hit_ms']['max']:.1f}", f"{row['hit_over_miss']:.3f}")
                     for row in result["rows"]])


def _host_table(result: Result) -> str:
    return markdown(("running", "queued", "schedule, ms", "update, ms", "both, ms", "worst step, ms"),
                    [(row["running"], f"{row['queued']:,}", f"{row['schedule_ms']:.3f}", f"{row['update_ms']:.3f}",
                      f"{row['total_ms']:.3f}", f"{row['worst_step_ms']:.3f}") for row in result["rows"]])


def _held_in(row: dict[str, Any], result: Result) -> str:
    size = row["block_size"]
    return f"one piece of {size:,}" if size == result["max_model_len"] else f"blocks of {size}"


def _requests_table(result: Result) -> str:
    return markdown(("tokens made", "host, µs a token", "resident, MB"),
                    [(f"{row['tokens']:,}", row["us_per_token"], row["resident_mb"]) for row in result["rows"]])


def _client_table(result: Result) -> str:
    return markdown(("connections", "tokens", "tokens/s", "µs of the client a token", "tokens/s that allows"),
                    [(row["connections"], f"{row['tokens']:,}", f"{row['tokens_per_s']:,}", row["client_us_per_token"],
                      f"{row['capacity_tokens_per_s']:,}") for row in result["rows"]])


TABLES: dict[str, Callable[[Result], str]] = {
    "compare_transformers": _compare_table, "static_vs_continuous": _static_table,
    "memory_utilization": _memory_table, "prefix_cache": _prefix_table, "host_cost": _host_table,
    "many_requests": _requests_table, "client_capacity": _client_table, **gpu_charts.TABLES,
}


def with_tables(text: str, results: dict[str, Result], charts: str = "charts") -> str:
    """A document with the tables between its marks made anew; `figures` and `machine` are about all benchmarks of a
    CPU, `gpu_figures` and `gpu_machine` about those of a GPU, `server_figures` and `server_machine` of the server.

    A table whose result is missing stays as it is. Those of a GPU come with their chart, whose directory is `charts` as
    the document sees it."""

    def table(mark: re.Match[str]) -> str:
        name = mark[2]
        if (summary := re.fullmatch(r"(\w+_)?(figures|machine)", name)) is not None:
            about = {key: result for key, result in results.items() if key in GROUPS[summary[1] or ""]}
            content = (figures_table if summary[2] == "figures" else machine_table)(about)
        elif name in results:
            content = TABLES[name](results[name])
            if name in GPU_BENCHMARKS:
                content = f"![{name}]({charts}/{name}.svg)\n\n{content}"
        else:
            return mark[0]
        return f"{mark[1]}\n{content}\n\n{mark[3]}"

    return MARKED.sub(table, text)


def charts_of(document: Path) -> str:
    """The directory of the charts, as a document links to it."""
    return os.path.relpath(CHARTS, document.parent).replace(os.sep, "/")


# --------------------------------------------------------------------------------------------------------------- charts


def draw_all(results: dict[str, Result], directory: Path) -> list[Path]:
    """One SVG for each result that has a drawing; returns their paths."""
    style()
    from matplotlib import pyplot

    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, result in results.items():
        if name not in DRAWINGS:
            continue
        figure, axes = pyplot.subplots(figsize=(7.2, 3.2))
        DRAWINGS[name](axes, result)
        paths.append(directory / f"{name}.svg")
        figure.savefig(paths[-1], metadata={"Date": None})
        pyplot.close(figure)
    return paths


def _draw_compare(axes: Any, result: Result) -> None:
    rows = [row for row in result["rows"] if row["threads"] == result["best_threads"][row["side"]]]
    tokens = result["requests"] * result["output_len"]
    bars(axes, [row["side"] for row in rows], [row["tokens_per_second"] for row in rows],
          [f"{row['tokens_per_second']:,.0f}  ({_threads(row['threads'])})" for row in rows],
          [OURS if row["side"].startswith("mini-infer") else OTHER for row in rows],
          [(tokens / row["seconds"]["max"], tokens / row["seconds"]["min"]) for row in rows])
    title(axes, f"{result['requests']} requests, {result['input_len']} tokens in, {result['output_len']} out, "
                 f"{result['dtype']}, CPU")
    axes.set_xlabel("output tokens per second, each side at its best number of threads")


def _draw_static(axes: Any, result: Result) -> None:
    rows, tokens = result["rows"], result["output_tokens"]
    bars(axes, [row["side"].replace(", ", ",\n") for row in rows], [row["tokens_per_second"] for row in rows],
          [f"{row['tokens_per_second']:,.0f}" for row in rows],
          [OURS if row["side"] == "continuous" else OTHER for row in rows],
          [(tokens / row["seconds"]["max"], tokens / row["seconds"]["min"]) for row in rows])
    low, high = result["output_lens"]
    title(axes, f"{result['requests']} requests of {low} to {high} tokens, {result['max_num_seqs']} at a time")
    axes.set_xlabel("wanted output tokens per second")


def _draw_memory(axes: Any, result: Result) -> None:
    rows = result["rows"]
    bars(axes, [_held_in(row, result) for row in rows], [100 * row["utilisation"] for row in rows],
          [f"{row['utilisation']:.1%}" for row in rows],
          [OTHER if row["block_size"] == result["max_model_len"] else OURS if row["block_size"] == 16 else PALE
           for row in rows])
    title(axes, f"KV memory in use that holds tokens, {result['requests']:,} mixed requests")
    axes.set_xlabel("live tokens over token slots held, %")
    axes.set_xticks(range(0, 101, 20))


def _draw_prefix(axes: Any, result: Result) -> None:
    labels, values, notes, colors, spans = [], [], [], [], []
    for row in result["rows"]:
        for side, color in (("miss", OTHER), ("hit", OURS)):
            times = row[f"{side}_ms"]
            labels.append(f"{row['prefix_len']:,} tokens, {side}")
            values.append(times["median"])
            notes.append(f"{times['median']:.0f} ms" + (f"  ({row['hit_over_miss']:.2f}×)" if side == "hit" else ""))
            colors.append(color)
            spans.append((times["min"], times["max"]))
    bars(axes, labels, values, notes, colors, spans)
    title(axes, "Time to the first token after a shared prefix")
    axes.set_xlabel("milliseconds")


def _draw_host(axes: Any, result: Result) -> None:
    rows = result["rows"]
    queued = [f", {row['queued']:,} queued" if row["queued"] else "" for row in rows]
    bars(axes, [f"{row['running']} running{more}" for row, more in zip(rows, queued)],
          [row["total_ms"] for row in rows], [f"{row['total_ms']:.3f}" for row in rows], [PALE] * len(rows))
    axes.barh(range(len(rows)), [row["schedule_ms"] for row in rows], color=OURS, height=0.62, label="schedule")
    axes.barh(0, 0, color=PALE, label="update")
    axes.legend(loc="upper right")
    title(axes, f"What a step costs the host (limit {result['limit_ms']:g} ms)")
    axes.set_xlabel("milliseconds a step")


def _draw_requests(axes: Any, result: Result) -> None:
    rows = result["rows"]
    bars(axes, [f"until {row['tokens']:,}" for row in rows], [row["us_per_token"] for row in rows],
         [f"{row['us_per_token']:.0f} µs, {row['resident_mb']:.0f} MB" for row in rows], [OURS] * len(rows))
    title(axes, f"{result['requests']:,} requests of {result['output_len']} tokens on {result['device']}")
    axes.set_xlabel("microseconds of the processor a token, in each tenth of the run")


def _draw_client(axes: Any, result: Result) -> None:
    rows = result["rows"]
    bars(axes, [f"{row['connections']} streams" for row in rows], [row["capacity_tokens_per_s"] for row in rows],
         [f"{row['capacity_tokens_per_s']:,}  ({row['client_us_per_token']} µs each)" for row in rows],
         [OURS] * len(rows))
    title(axes, "What `bench serve` can take in")
    axes.set_xlabel("streamed tokens per second of the client's processor time")


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


DRAWINGS: dict[str, Callable[[Any, Result], None]] = {
    "compare_transformers": _draw_compare, "static_vs_continuous": _draw_static, "memory_utilization": _draw_memory,
    "prefix_cache": _draw_prefix, "host_cost": _draw_host, "many_requests": _draw_requests,
    "client_capacity": _draw_client, **gpu_charts.DRAWINGS,
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", action="store_true", help="write the tables only")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--charts", type=Path, default=CHARTS, help="directory of the SVG files")
    args = parser.parse_args(argv)
    results = read_results(args.results)
    for path in DOCS:
        path.write_text(with_tables(path.read_text(encoding="utf-8"), results, charts_of(path)), encoding="utf-8")
        print(f"tables of {path.relative_to(ROOT)} written")
    if not args.docs:
        for path in draw_all(results, args.charts):
            print(f"{path} drawn")


if __name__ == "__main__":
    main()
