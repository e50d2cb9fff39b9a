"""What a benchmark prints and writes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mini_infer.bench.metrics import METRICS

WIDTH = 50


def line(label: str, value: object) -> str:
    """A label to the left and a value beside it, as in vLLM's tables."""
    if isinstance(value, float):
        value = f"{value:.2f}"
    return f"{label + ':':<40} {value:<10}"


def serving_table(figures: Mapping[str, Any], metrics: Sequence[str], percentiles: Sequence[float]) -> str:
    """The table that vLLM's `bench serve` prints."""
    rows = [f"{' Serving Benchmark Result ':=^{WIDTH}}",
            line("Successful requests", figures["completed"]),
            line("Failed requests", figures["failed"])]
    if figures["max_concurrency"] is not None:
        rows.append(line("Maximum request concurrency", figures["max_concurrency"]))
    if figures["request_rate"] != "inf":
        rows.append(line("Request rate configured (RPS)", figures["request_rate"]))
    rows += [line("Benchmark duration (s)", figures["duration"]),
             line("Total input tokens", figures["total_input_tokens"]),
             line("Total generated tokens", figures["total_output_tokens"]),
             line("Request throughput (req/s)", figures["request_throughput"])]
    if figures["request_goodput"] is not None:
        rows.append(line("Request goodput (req/s)", figures["request_goodput"]))
    rows += [line("Output token throughput (tok/s)", figures["output_throughput"]),
             line("Total token throughput (tok/s)", figures["total_token_throughput"]),
             line("Peak concurrent requests", figures["max_concurrent_requests"])]
    for name in metrics:
        label = name.upper()
        rows += [f"{METRICS[name]:-^{WIDTH}}",
                 line(f"Mean {label} (ms)", figures[f"mean_{name}_ms"]),
                 line(f"Median {label} (ms)", figures[f"median_{name}_ms"]),
                 line(f"Std {label} (ms)", figures[f"std_{name}_ms"])]
        rows += [line(f"P{percent:g} {label} (ms)", figures[f"p{percent:g}_{name}_ms"]) for percent in percentiles]
    return "\n".join([*rows, "=" * WIDTH])


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as they need to be: the first to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join(f"{cell:<{width}}" if i == 0 else f"{cell:>{width}}"
                               for i, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in cells)


def write_json(path: Path, figures: Mapping[str, Any]) -> None:
    """Write the figures; the directory is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
