"""From the JSON files in benchmarks/results to charts in docs/charts and tables in the documentation.

`python -m benchmarks.charts` does both; `--docs` only writes the tables, for which it needs no matplotlib. A table
stands between `<!-- table: NAME -->` and `<!-- end -->`, so that no figure is ever typed by hand.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT, Figure

Result = dict[str, Any]  # the content of one JSON file
BENCHMARKS = ("compare_transformers", "static_vs_continuous", "memory_utilization", "prefix_cache", "host_cost")
DOCS = (ROOT / "docs" / "benchmarks.md",)
CHARTS = ROOT / "docs" / "charts"
OURS, OTHER, PALE = "#2f6f9f", "#b9bec4", "#a9c7dd"
INK, GRID = "#24292f", "#e4e7ea"
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def read_results(directory: Path) -> dict[str, Result]:
    """Those that are there, by name."""
    paths = {name: directory / f"{name}.json" for name in BENCHMARKS}
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


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table, columns of numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    rules = ["--:" if all(cell[:1].isdigit() for cell in column) else ":--" for column in zip(*cells)]
    lines = [header, rules, *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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


TABLES: dict[str, Callable[[Result], str]] = {
    "compare_transformers": _compare_table, "static_vs_continuous": _static_table,
    "memory_utilization": _memory_table, "prefix_cache": _prefix_table, "host_cost": _host_table,
}


def with_tables(text: str, results: dict[str, Result]) -> str:
    """A document with the tables between its marks made anew; `figures` and `machine` are about all benchmarks.

    A table whose result is missing stays as it is."""

    def table(mark: re.Match[str]) -> str:
        name = mark[2]
        if name in ("figures", "machine"):
            content = (figures_table if name == "figures" else machine_table)(results)
        elif name in results:
            content = TABLES[name](results[name])
        else:
            return mark[0]
        return f"{mark[1]}\n{content}\n\n{mark[3]}"

    return MARKED.sub(table, text)


# --------------------------------------------------------------------------------------------------------------- charts


def draw_all(results: dict[str, Result], directory: Path) -> list[Path]:
    """One SVG for each result; returns their paths."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({
        "font.size": 10, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.edgecolor": GRID, "axes.grid": True, "axes.grid.axis": "x", "axes.axisbelow": True, "grid.color": GRID,
        "axes.spines.top": False, "axes.spines.right": False, "figure.titlesize": 11, "figure.titleweight": "bold",
        "figure.facecolor": "white", "figure.constrained_layout.use": True, "figure.constrained_layout.h_pad": 0.08,
        "xtick.bottom": False, "ytick.left": False, "legend.frameon": False, "svg.hashsalt": "mini-infer",
    })
    from matplotlib import pyplot

    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, result in results.items():
        figure, axes = pyplot.subplots(figsize=(7.2, 3.2))
        DRAWINGS[name](axes, result)
        paths.append(directory / f"{name}.svg")
        figure.savefig(paths[-1], metadata={"Date": None})
        pyplot.close(figure)
    return paths


def _title(axes: Any, text: str) -> None:
    axes.figure.suptitle(text, x=0.01, horizontalalignment="left")


def _bars(axes: Any, labels: Sequence[str], values: Sequence[float], notes: Sequence[str], colors: Sequence[str],
          spans: Sequence[tuple[float, float]] | None = None) -> None:
    """Horizontal bars from top to bottom, each with its note at the end; `spans` are drawn as whiskers."""
    whiskers = None
    if spans is not None:
        whiskers = [[max(0, value - low) for value, (low, _) in zip(values, spans)],
                    [max(0, high - value) for value, (_, high) in zip(values, spans)]]
    axes.barh(range(len(values)), values, color=colors, height=0.62, xerr=whiskers,
              error_kw={"ecolor": INK, "elinewidth": 0.8, "capsize": 2})
    ends = values if spans is None else [high for _, high in spans]
    for index, (end, note) in enumerate(zip(ends, notes)):
        axes.annotate(note, (end, index), xytext=(5, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, max(ends) * 1.25)


def _draw_compare(axes: Any, result: Result) -> None:
    rows = [row for row in result["rows"] if row["threads"] == result["best_threads"][row["side"]]]
    tokens = result["requests"] * result["output_len"]
    _bars(axes, [row["side"] for row in rows], [row["tokens_per_second"] for row in rows],
          [f"{row['tokens_per_second']:,.0f}  ({_threads(row['threads'])})" for row in rows],
          [OURS if row["side"].startswith("mini-infer") else OTHER for row in rows],
          [(tokens / row["seconds"]["max"], tokens / row["seconds"]["min"]) for row in rows])
    _title(axes, f"{result['requests']} requests, {result['input_len']} tokens in, {result['output_len']} out, "
                 f"{result['dtype']}, CPU")
    axes.set_xlabel("output tokens per second, each side at its best number of threads")


def _draw_static(axes: Any, result: Result) -> None:
    rows, tokens = result["rows"], result["output_tokens"]
    _bars(axes, [row["side"].replace(", ", ",\n") for row in rows], [row["tokens_per_second"] for row in rows],
          [f"{row['tokens_per_second']:,.0f}" for row in rows],
          [OURS if row["side"] == "continuous" else OTHER for row in rows],
          [(tokens / row["seconds"]["max"], tokens / row["seconds"]["min"]) for row in rows])
    low, high = result["output_lens"]
    _title(axes, f"{result['requests']} requests of {low} to {high} tokens, {result['max_num_seqs']} at a time")
    axes.set_xlabel("wanted output tokens per second")


def _draw_memory(axes: Any, result: Result) -> None:
    rows = result["rows"]
    _bars(axes, [_held_in(row, result) for row in rows], [100 * row["utilisation"] for row in rows],
          [f"{row['utilisation']:.1%}" for row in rows],
          [OTHER if row["block_size"] == result["max_model_len"] else OURS if row["block_size"] == 16 else PALE
           for row in rows])
    _title(axes, f"KV memory in use that holds tokens, {result['requests']:,} mixed requests")
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
    _bars(axes, labels, values, notes, colors, spans)
    _title(axes, "Time to the first token after a shared prefix")
    axes.set_xlabel("milliseconds")


def _draw_host(axes: Any, result: Result) -> None:
    rows = result["rows"]
    queued = [f", {row['queued']:,} queued" if row["queued"] else "" for row in rows]
    _bars(axes, [f"{row['running']} running{more}" for row, more in zip(rows, queued)],
          [row["total_ms"] for row in rows], [f"{row['total_ms']:.3f}" for row in rows], [PALE] * len(rows))
    axes.barh(range(len(rows)), [row["schedule_ms"] for row in rows], color=OURS, height=0.62, label="schedule")
    axes.barh(0, 0, color=PALE, label="update")
    axes.legend(loc="upper right")
    _title(axes, f"What a step costs the host (limit {result['limit_ms']:g} ms)")
    axes.set_xlabel("milliseconds a step")


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


DRAWINGS: dict[str, Callable[[Any, Result], None]] = {
    "compare_transformers": _draw_compare, "static_vs_continuous": _draw_static, "memory_utilization": _draw_memory,
    "prefix_cache": _draw_prefix, "host_cost": _draw_host,
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", action="store_true", help="write the tables only")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--charts", type=Path, default=CHARTS, help="directory of the SVG files")
    args = parser.parse_args(argv)
    results = read_results(args.results)
    for path in DOCS:
        path.write_text(with_tables(path.read_text(encoding="utf-8"), results), encoding="utf-8")
        print(f"tables of {path.relative_to(ROOT)} written")
    if not args.docs:
        for path in draw_all(results, args.charts):
            print(f"{path} drawn")


if __name__ == "__main__":
    main()
