"""What the tables and charts of all benchmarks share: Markdown, colours, bars and lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

OURS, OTHER, PALE, DARK = "#2f6f9f", "#b9bec4", "#a9c7dd", "#173a54"
INK, GRID = "#24292f", "#e4e7ea"
STACK = (OURS, PALE, "#d9a441", "#7fa37a", "#b9bec4", "#8f6f9f", DARK, "#c96f5a", "#5fb3b3", "#6b7280", "#e0b7c6",
         "#e4e7ea")


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table, columns of numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    rules = ["--:" if all(cell[:1].isdigit() for cell in column) else ":--" for column in zip(*cells)]
    lines = [header, rules, *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def style() -> None:
    """Charts on white, so that they read the same on a light and on a dark page."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({
        "font.size": 10, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.edgecolor": GRID, "axes.grid": True, "axes.grid.axis": "x", "axes.axisbelow": True, "grid.color": GRID,
        "axes.spines.top": False, "axes.spines.right": False, "figure.titlesize": 11, "figure.titleweight": "bold",
        "figure.facecolor": "white", "figure.constrained_layout.use": True, "figure.constrained_layout.h_pad": 0.08,
        "xtick.bottom": False, "ytick.left": False, "legend.frameon": False, "svg.hashsalt": "mini-infer",
    })


def title(axes: Any, text: str) -> None:
    axes.figure.suptitle(text, x=0.01, horizontalalignment="left")


def bars(axes: Any, labels: Sequence[str], values: Sequence[float], notes: Sequence[str], colors: Sequence[str],
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


def stacked(axes: Any, labels: Sequence[str], parts: Sequence[Mapping[str, float]], notes: Sequence[str]) -> None:
    """Horizontal bars from top to bottom, each made of named parts, with a note at its end and a legend below."""
    names = list(dict.fromkeys(name for row in parts for name in row))
    ends = [0.0] * len(labels)
    for color, name in zip(STACK, names, strict=False):
        widths = [row.get(name, 0.0) for row in parts]
        axes.barh(range(len(labels)), widths, left=ends, color=color, height=0.62, label=name)
        ends = [end + width for end, width in zip(ends, widths)]
    for index, (end, note) in enumerate(zip(ends, notes)):
        axes.annotate(note, (end, index), xytext=(5, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, max(ends) * 1.2)
    axes.figure.legend(loc="outside lower center", ncols=5, fontsize=8)


def lines(axes: Any, x: Sequence[float], series: Mapping[str, Sequence[float]]) -> None:
    """A line for each side over common sizes, both axes logarithmic; the first side is ours."""
    for color, (name, values) in zip((OURS, OTHER, DARK), series.items(), strict=False):
        axes.plot(x, values, marker="o", color=color, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(x, [f"{value:g}" for value in x])
    axes.grid(axis="y")
    axes.legend(loc="upper left")
