"""The benchmarks run, at toy sizes and without looking at the times; the documentation says what the JSON files say."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import (
    charts,
    compare_transformers,
    cpu_suite,
    memory_utilization,
    prefix_cache,
    static_vs_continuous,
)
from benchmarks.common import RESULTS, ROOT, Figure, spread, time_in_turn
from tests.tiny import write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("model")))


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def read(directory: Path, name: str) -> dict:
    return json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))


def test_compare_transformers(checkpoint: str, tmp_path: Path) -> None:
    compare_transformers.main(["--model", checkpoint, "--requests", "2", "--input-len", "8", "--output-len", "4",
                               "--repeats", "1", "--threads", "1", "--out", str(tmp_path)])
    result = read(tmp_path, "compare_transformers")
    assert len(result["rows"]) == 4 and len(result["figures"]) == 3
    assert all(row["tokens_per_second"] > 0 for row in result["rows"])


def test_static_vs_continuous(checkpoint: str, tmp_path: Path) -> None:
    static_vs_continuous.main(["--model", checkpoint, "--requests", "6", "--max-num-seqs", "2", "--prompt-len", "4",
                               "--output-lens", "1", "8", "--repeats", "1", "--out", str(tmp_path)])
    result = read(tmp_path, "static_vs_continuous")
    steps = {row["side"]: row["steps"] for row in result["rows"]}
    assert steps["continuous"] < steps["static"] == steps["static, dropping finished rows"]


def test_memory_utilization(tmp_path: Path) -> None:
    memory_utilization.main(["--requests", "60", "--pool-tokens", "8192", "--out", str(tmp_path)])
    result = read(tmp_path, "memory_utilization")
    by_size = {row["block_size"]: row for row in result["rows"]}
    whole = by_size[result["max_model_len"]]
    assert all(0 < row["utilisation"] <= 1 for row in result["rows"])
    # No clock is in this one: what it claims can be asserted.
    assert by_size[16]["utilisation"] > 0.9 > 0.5 > whole["utilisation"]
    assert whole["mean_running"] <= 8192 / result["max_model_len"] < by_size[16]["mean_running"]


def test_prefix_cache(checkpoint: str, tmp_path: Path) -> None:
    prefix_cache.main(["--model", checkpoint, "--prefix-lens", "40", "64", "--figure-len", "64", "--repeats", "1",
                       "--out", str(tmp_path)])
    assert [row["cached_tokens"] for row in read(tmp_path, "prefix_cache")["rows"]] == [32, 64]


def test_suite_runs_each_in_a_process_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cpu_suite.main(["--only", "memory_utilization", "--out", str(tmp_path), "--", "--requests", "20"])
    assert read(tmp_path, "memory_utilization")["requests"] == 20
    assert "KV utilisation at block size 16" in capsys.readouterr().out


def test_every_benchmark_has_a_script_a_table_and_a_chart() -> None:
    for name in charts.BENCHMARKS:
        assert (ROOT / "benchmarks" / f"{name}.py").is_file()
    assert set(charts.TABLES) == set(charts.DRAWINGS) == set(charts.BENCHMARKS)


@pytest.mark.parametrize("path", charts.DOCS, ids=lambda path: path.name)
def test_documentation_says_what_the_results_say(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert charts.with_tables(text, charts.read_results(RESULTS)) == text, "run `python -m benchmarks.charts --docs`"


def test_every_result_is_in_the_documentation() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for name in charts.read_results(RESULTS):
        assert f"<!-- table: {name} -->" in text and f"charts/{name}.svg" in text
        assert (charts.CHARTS / f"{name}.svg").is_file(), "run `python -m benchmarks.charts`"


def test_charts_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = charts.read_results(RESULTS)
    for path in charts.draw_all(results, tmp_path):
        assert path.read_text(encoding="utf-8").lstrip().startswith("<?xml")


def test_tables_need_no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert charts.figures_table(charts.read_results(RESULTS)).startswith("| figure ")


def test_markdown_aligns_numbers() -> None:
    table = charts.markdown(("name", "value"), [("a", 1), ("b", "2.5")])
    assert table == "| name | value |\n| :-- | --: |\n| a | 1 |\n| b | 2.5 |"


def test_figures_know_whether_they_are_met() -> None:
    assert Figure("speed", 2.0, "×", 2).met and not Figure("speed", 1.9, "×", 2).met
    assert Figure("cost", 0.9, " ms", 1, at_least=False).met and not Figure("cost", 1.1, " ms", 1, at_least=False).met
    assert str(Figure("cost", 1.5, " ms", 1, at_least=False)) == "cost: 1.5 ms (wanted ≤ 1 ms; falls short)"


def test_sides_take_turns() -> None:
    calls: list[tuple[str, int]] = []
    seconds = time_in_turn({"a": lambda i: calls.append(("a", i)), "b": lambda i: calls.append(("b", i))}, 2, "")
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert [len(samples) for samples in seconds.values()] == [2, 2]
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "samples": [3.0, 1.0, 2.0]}
